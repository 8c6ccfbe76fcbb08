//! Peers authenticate each other: a member with a certificate that must not be accepted stays outside, and a
//! good member's log says what is wrong with it and which peer it is.
//!
//! Members 1 and 2 are good; member 3 gets the certificate in question. Certificates are made by openssl here,
//! so that our own library cannot make the same mistake on both sides.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::command;
use weft_tests::fabric::Fabric;
use weft_tests::http::{self, Request};
use weft_tests::process::one_at_a_time;
use weft_tests::programs;
use weft_tests::wait::wait_for;

const SOON: Duration = Duration::from_secs(20);
const GOOD_SANS: &str = "IP:192.168.31.63,IP:192.168.31.65,IP:192.168.31.66,IP:127.0.0.1";
const BOTH_USAGES: &str = "serverAuth,clientAuth";

/// What is wrong with a certificate, and how a log must put it (any of these words).
struct Case {
    name: &'static str,
    words: &'static [&'static str],
}

fn openssl(dir: &Path, args: &str) -> Result<()> {
    let mut openssl = Command::new(programs::tool("openssl")?);
    command::run(openssl.current_dir(dir).args(args.split_ascii_whitespace()))?.ok()?;
    Ok(())
}

/// A certificate authority in `dir`, as `ca.pem` and `ca-key.pem`.
fn make_ca(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    openssl(dir, "ecparam -name prime256v1 -genkey -noout -out ca-key.pem")?;
    fs::write(
        dir.join("ca.cnf"),
        "[req]\ndistinguished_name=dn\nx509_extensions=v3\nprompt=no\n[dn]\nCN=test CA\n[v3]\n\
         basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n",
    )?;
    openssl(dir, "req -x509 -new -key ca-key.pem -days 30 -out ca.pem -config ca.cnf")
}

/// A member's certificate in `dir` (`server.pem`, `server-key.pem`), signed by the authority in `ca`.
/// `validity` is `-days 30` or two times for `openssl ca`.
fn make_server(dir: &Path, ca: &Path, sans: &str, usages: &str, expired: bool) -> Result<()> {
    fs::create_dir_all(dir)?;
    openssl(dir, "ecparam -name prime256v1 -genkey -noout -out server-key.pem")?;
    openssl(dir, "req -new -key server-key.pem -subj /CN=etcd -out server.csr")?;
    let sans = if sans.is_empty() { String::new() } else { format!("subjectAltName={sans}\n") };
    fs::write(
        dir.join("ext.cnf"),
        format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage={usages}\n{sans}"
        ),
    )?;
    let ca = ca.display();
    // `openssl x509` cannot date back, `openssl ca` can.
    fs::write(dir.join("index.txt"), "")?;
    fs::write(dir.join("serial"), "1000\n")?;
    let place = dir.display();
    fs::write(
        dir.join("sign.cnf"),
        format!(
            "[ca]\ndefault_ca=this\n[this]\ndatabase={place}/index.txt\nserial={place}/serial\n\
             new_certs_dir={place}\ndefault_md=sha256\npolicy=any\nunique_subject=no\n[any]\nCN=supplied\n"
        ),
    )?;
    let dates = if expired { "-startdate 20200101000000Z -enddate 20210101000000Z" } else { "-days 30" };
    openssl(
        dir,
        &format!(
            "ca -batch -notext -config sign.cnf -cert {ca}/ca.pem -keyfile {ca}/ca-key.pem {dates} \
             -extfile ext.cnf -in server.csr -out server.pem"
        ),
    )
}

/// Starts two good members and one with the files in `third`, and checks that it stays outside.
fn third_is_refused(fabric: &Fabric, good: &Path, third: &Path, third_ca: &str, case: &Case) -> Result<()> {
    let mut cluster = Cluster::on_fabric(fabric, Server::Weft, good)?;
    let bad = &mut cluster.members[2];
    let path = |name: &str| third.join(name).display().to_string();
    // Its client side stays good, so that its health can be asked; its peers' side is what is tested.
    bad.set_flag("peer-cert-file", &path("server.pem"))?;
    bad.set_flag("peer-key-file", &path("server-key.pem"))?;
    bad.set_flag("peer-trusted-ca-file", third_ca)?;
    for member in &mut cluster.members {
        member.start()?;
    }
    for n in [0, 1] {
        cluster.members[n].wait_healthy(SOON).context("the two good members are a majority")?;
    }
    cluster.members[0].endpoint().set("/x", "1")?;

    let line = wait_for("a log line of a good member about the third", SOON, || {
        let mut seen = String::new();
        for n in [0, 1] {
            let log = cluster.members[n].process()?.log();
            for line in log.lines().filter(|l| l.contains("192.168.31.66") || l.contains("etcd03")) {
                let lower = line.to_lowercase();
                if case.words.iter().any(|w| lower.contains(w)) {
                    return Ok(line.to_owned());
                }
                line.clone_into(&mut seen);
            }
        }
        anyhow::bail!("no line with any of {:?} that names the peer; the last about it: {seen}", case.words)
    });
    let line = line.map_err(|e| match cluster.members[0].process() {
        Ok(process) => e.context(process.log_tail()),
        Err(_) => e,
    })?;
    eprintln!("{}: {line}", case.name);
    // Given what it was refused for, it must not have got anything by another door.
    let third = &mut cluster.members[2];
    if third.process()?.is_running()? {
        // It may answer with an error or let the request hang, as etcd does before it has joined.
        let endpoint = third.endpoint();
        let request = Request { target: "/v2/keys/x", ..Request::default() };
        let got = http::send(endpoint.ns, endpoint.address, &request, Duration::from_secs(2));
        ensure!(!got.is_ok_and(|r| r.status == 200), "the refused member has replicated a write ({line})");
    }
    Ok(())
}

fn run(case: &Case, prepare: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let _turn = one_at_a_time();
    let dir = tempfile::tempdir()?;
    let (good, third) = (dir.path().join("good"), dir.path().join("third"));
    make_ca(&good)?;
    make_server(&good, &good, GOOD_SANS, BOTH_USAGES, false)?;
    prepare(&good, &third)?;
    let fabric = Fabric::tutorial()?;
    let ca = good.join("ca.pem").display().to_string();
    third_is_refused(&fabric, &good, &third, &ca, case).with_context(|| case.name)
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    let case =
        Case { name: "wrong CA", words: &["unknown issuer", "unknownissuer", "not signed by", "wrong ca"] };
    run(&case, |_, third| {
        let other = third.join("ca");
        make_ca(&other)?;
        make_server(third, &other, GOOD_SANS, BOTH_USAGES, false)
    })
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    let case = Case { name: "expired", words: &["expired"] };
    run(&case, |good, third| make_server(third, good, GOOD_SANS, BOTH_USAGES, true))
}

#[test]
fn a_certificate_without_the_peers_address_is_refused() -> Result<()> {
    let words = &[
        "not valid for",
        "does not name",
        "no name",
        "missing san",
        "subjectaltname",
        "subject alternative",
    ];
    let case = Case { name: "missing SAN", words };
    run(&case, |good, third| make_server(third, good, "IP:10.9.9.9", BOTH_USAGES, false))
}

#[test]
fn a_certificate_without_the_usage_is_refused() -> Result<()> {
    let case = Case { name: "missing usage", words: &["usage", "purpose"] };
    run(&case, |good, third| make_server(third, good, GOOD_SANS, "codeSigning", false))
}

/// A member dials and is dialled, so half of the usages is not enough.
#[test]
fn a_certificate_for_servers_only_is_refused() -> Result<()> {
    let case = Case { name: "server usage only", words: &["usage", "purpose"] };
    run(&case, |good, third| make_server(third, good, GOOD_SANS, "serverAuth", false))
}

#[test]
fn good_certificates_are_accepted() -> Result<()> {
    let _turn = one_at_a_time();
    let dir = tempfile::tempdir()?;
    make_ca(dir.path())?;
    make_server(dir.path(), dir.path(), GOOD_SANS, BOTH_USAGES, false)?;
    let fabric = Fabric::tutorial()?;
    let mut cluster = Cluster::on_fabric(&fabric, Server::Weft, dir.path())?;
    cluster.start()?;
    cluster.members[2].endpoint().set("/x", "1")?;
    ensure!(cluster.members[0].endpoint().value("/x", true)? == "1");
    Ok(())
}
