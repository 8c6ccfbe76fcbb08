//! Peers authenticate each other: a member with a certificate that must not be accepted stays outside, and the
//! logs of both sides say what is wrong with it and which peer it is, whoever dialled.
//!
//! Members 1 and 2 are good; member 3 gets the certificate in question. Certificates are made by openssl here,
//! so that our own library cannot make the same mistake on both sides.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::{Cluster, Member, Server};
use weft_tests::command;
use weft_tests::fabric::Fabric;
use weft_tests::http::{self, Request};
use weft_tests::process::one_at_a_time;
use weft_tests::programs;

const SOON: Duration = Duration::from_secs(20);
const GOOD_SANS: &str = "IP:192.168.31.63,IP:192.168.31.65,IP:192.168.31.66,IP:127.0.0.1";
const BOTH_USAGES: &str = "serverAuth,clientAuth";

/// What is wrong with the third member's certificate, and how the logs must put it.
struct Case {
    name: &'static str,
    /// A good member that dials the third; `None` where nothing is wrong with the certificate as a server's.
    dialling: Option<&'static str>,
    /// A good member that the third dials.
    accepting: &'static str,
    /// The third when it dials.
    told_dialling: &'static str,
    /// The third when it is dialled.
    told_accepting: Option<&'static str>,
}

/// How the log begins a line about a peer that was dialled, before and after this member has started.
const DIALLED: [&str; 2] = ["cannot reach peer", "cannot link to peer"];
/// And about one that dialled.
const ACCEPTED: [&str; 1] = ["connection from a peer refused or lost"];

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

    let third_id = id_of(&cluster, "192.168.31.66")?;
    for (n, address) in [(0, "192.168.31.63"), (1, "192.168.31.65")] {
        let good_id = id_of(&cluster, address)?;
        if let Some(words) = case.dialling {
            has_line(&mut cluster.members[n], &DIALLED, &third_id, words)?;
        }
        has_line(&mut cluster.members[n], &ACCEPTED, &third_id, case.accepting)?;
        has_line(&mut cluster.members[2], &DIALLED, &good_id, case.told_dialling)?;
        if let Some(words) = case.told_accepting {
            has_line(&mut cluster.members[2], &ACCEPTED, &good_id, words)?;
        }
    }
    told_once(&mut cluster.members[0], case.accepting)?;
    // Given what it was refused for, it must not have got anything by another door.
    let third = &mut cluster.members[2];
    if third.process()?.is_running()? {
        // It may answer with an error or let the request hang, as etcd does before it has joined.
        let endpoint = third.endpoint();
        let request = Request { target: "/v2/keys/x", ..Request::default() };
        let got = http::send(endpoint.ns, endpoint.address, &request, Duration::from_secs(2));
        ensure!(!got.is_ok_and(|r| r.status == 200), "the refused member has replicated a write");
    }
    Ok(())
}

/// The id of the member with this peer address, as the log writes it.
fn id_of(cluster: &Cluster<'_>, address: &str) -> Result<String> {
    let list = cluster.members[0].endpoint().get("/v2/members")?.json()?;
    let url = format!("https://{address}:2380");
    let members = list["members"].as_array().into_iter().flatten();
    let member = members.into_iter().find(|member| member["peerURLs"][0] == url.as_str());
    let id = member.and_then(|member| member["id"].as_str());
    Ok(id.with_context(|| format!("{url} in {list}"))?.to_owned())
}

/// Waits for a line that opens with one of `openings`, names the peer and holds `words`.
fn has_line(member: &mut Member<'_>, openings: &[&str], peer: &str, words: &str) -> Result<()> {
    let peer = format!("peer={peer} ");
    let what = format!("{openings:?} with {peer:?} and {words:?} in the log of {}", member.name);
    member.process()?.wait_until(&what, SOON, |process| {
        let log = process.log();
        let fits = |line: &&str| {
            openings.iter().any(|opening| line.contains(opening))
                && line.contains(&peer)
                && line.contains(words)
        };
        let line = log.lines().find(fits).context("not there")?;
        eprintln!("{}: {line}", process.name());
        Ok(())
    })
}

/// The third dials four times a second; who reads the log needs to be told once.
fn told_once(member: &mut Member<'_>, words: &str) -> Result<()> {
    std::thread::sleep(Duration::from_secs(2));
    let log = member.process()?.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains(ACCEPTED[0]) && line.contains(words)).collect();
    ensure!(lines.len() == 1, "the same complaint {} times: {lines:#?}", lines.len());
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
    let case = Case {
        name: "wrong CA",
        dialling: Some("not in the trusted CA file (wrong CA)"),
        accepting: "not in the trusted CA file (wrong CA)",
        told_dialling: "refuses our certificate: signed by a",
        told_accepting: Some("refuses our certificate: signed by a"),
    };
    run(&case, |_, third| {
        let other = third.join("ca");
        make_ca(&other)?;
        make_server(third, &other, GOOD_SANS, BOTH_USAGES, false)
    })
}

#[test]
fn an_expired_certificate_is_refused() -> Result<()> {
    let case = Case {
        name: "expired",
        dialling: Some("its certificate has expired on 2021-01-01"),
        accepting: "its certificate has expired on 2021-01-01",
        told_dialling: "refuses our certificate: expired",
        told_accepting: Some("refuses our certificate: expired"),
    };
    run(&case, |good, third| make_server(third, good, GOOD_SANS, BOTH_USAGES, true))
}

#[test]
fn a_certificate_without_the_peers_address_is_refused() -> Result<()> {
    let case = Case {
        name: "missing SAN",
        dialling: Some("its certificate is not valid for 192.168.31.66"),
        accepting: "its certificate is not valid for 192.168.31.66, where it dials from",
        told_dialling: "it is not valid for the address that this member dials from (SAN missing)",
        told_accepting: Some("not valid for the name or address by which it reaches us (SAN missing)"),
    };
    run(&case, |good, third| make_server(third, good, "IP:10.9.9.9", BOTH_USAGES, false))
}

#[test]
fn a_certificate_without_the_usage_is_refused() -> Result<()> {
    let case = Case {
        name: "missing usage",
        dialling: Some("its certificate lacks the usage"),
        accepting: "its certificate lacks the usage",
        told_dialling: "refuses our certificate: lacks the usage",
        told_accepting: Some("refuses our certificate: lacks the usage"),
    };
    run(&case, |good, third| make_server(third, good, GOOD_SANS, "codeSigning", false))
}

/// A member dials and is dialled, so half of the usages is not enough.
#[test]
fn a_certificate_for_servers_only_is_refused() -> Result<()> {
    let case = Case {
        name: "server usage only",
        dialling: None,
        accepting: "its certificate lacks the usage",
        told_dialling: "refuses our certificate: lacks the usage",
        told_accepting: None,
    };
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
