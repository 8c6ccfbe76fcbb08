//! The client side of TLS, by curl: who is let in, and what a client that speaks no TLS is told.

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::command::{self, Output};
use weft_tests::fabric::Fabric;
use weft_tests::http::Request;
use weft_tests::ns::Namespace;
use weft_tests::process::one_at_a_time;
use weft_tests::programs;
use weft_tests::tutorial::make_certificates;
use weft_tests::v2::Endpoint;

const URL: &str = "https://192.168.31.63:2379/version";

fn curl(ns: &Namespace, args: &[&str]) -> Result<Output> {
    let mut curl = ns.command(programs::tool("curl")?)?;
    command::run(curl.args(["-sS", "--max-time", "10", "-w", "\n%{http_code} %{http_version}"]).args(args))
}

#[test]
fn client_cert_auth_lets_in_who_has_a_certificate() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (certs, foreign) = (tempfile::tempdir()?, tempfile::tempdir()?);
    make_certificates(certs.path())?;
    make_certificates(foreign.path())?;
    let file = |dir: &tempfile::TempDir, name: &str| dir.path().join(name).display().to_string();
    let ca = file(&certs, "ca.pem");
    let (cert, key) = (file(&certs, "server.pem"), file(&certs, "server-key.pem"));
    let (other_cert, other_key) = (file(&foreign, "server.pem"), file(&foreign, "server-key.pem"));

    let mut cluster = Cluster::on_fabric(&fabric, Server::Weft, certs.path())?;
    // Only the first asks for certificates; the guide's way is that of the other two.
    cluster.members[0].push_flag("--client-cert-auth");
    cluster.start()?;
    let ns = &fabric.hosts[2].ns;

    let out = curl(ns, &["--cacert", &ca, "--cert", &cert, "--key", &key, URL])?;
    ensure!(out.ok()?.ends_with("200 2"), "HTTP/2 is offered by ALPN, as etcd does: {out}");
    let out = curl(ns, &["--http1.1", "--cacert", &ca, "--cert", &cert, "--key", &key, URL])?;
    ensure!(out.ok()?.ends_with("200 1.1"), "{out}");
    let out = curl(ns, &["--tls-max", "1.2", "--cacert", &ca, "--cert", &cert, "--key", &key, URL])?;
    ensure!(out.ok()?.contains("etcdserver"), "TLS 1.2: {out}");
    let out = curl(ns, &["--tls-max", "1.1", "--cacert", &ca, "--cert", &cert, "--key", &key, URL])?;
    ensure!(out.code != Some(0), "TLS 1.1 must be refused: {out}");

    let foreign_pair = ["--cert", &other_cert, "--key", &other_key];
    for (what, pair) in [("no certificate", &[][..]), ("a foreign certificate", &foreign_pair[..])] {
        // In TLS 1.2 the refusal is part of the handshake, so the client is told by an alert. In 1.3 the client has
        // finished before the server has looked, and may see no more than the end of the connection.
        let out = curl(ns, &[&["--tls-max", "1.2", "--cacert", &ca], pair, &[URL]].concat())?;
        ensure!(out.code != Some(0) && out.stderr.contains("alert"), "{what} must be refused: {out}");
        let out = curl(ns, &[&["--tlsv1.3", "--cacert", &ca], pair, &[URL]].concat())?;
        ensure!(out.code != Some(0) && !out.stdout.contains("etcdserver"), "{what} must be refused: {out}");
    }
    let out = curl(ns, &["--cacert", &ca, "https://192.168.31.65:2379/version"])?;
    out.ok().context("the second asks for no certificate")?;
    let out = curl(ns, &["--cacert", &file(&foreign, "ca.pem"), URL])?;
    ensure!(out.stderr.contains("certificate"), "curl does not trust a foreign CA: {out}");

    let plain = Endpoint { ns: Some(ns), address: "192.168.31.63:2379".parse()? };
    let reply = plain.send(&Request { target: "/version", ..Request::default() })?;
    ensure!(reply.status == 400, "{reply:?}");
    ensure!(reply.text().contains("Client sent an HTTP request to an HTTPS server."), "{}", reply.text());
    Ok(())
}
