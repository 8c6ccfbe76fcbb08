//! TLS against real handshakes: each way to go wrong is told apart, and the file or endpoint is named.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ca::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, both PEM.
fn issue(ca: &Ca, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

/// A server that answers every request with a healthy `/health`, over TLS with this certificate.
async fn serve((cert, key): &(String, String), client_ca: Option<&Ca>) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain =
        rustls_pki_types::CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                let mut request = [0; 1024];
                if stream.read(&mut request).await.is_ok_and(|length| length > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"health\":\"true\"}";
                    let _ = stream.write_all(answer).await;
                    let _ = stream.read(&mut request).await;
                }
            });
        }
    });
    address
}

/// Asks the server for its health, trusting `ca`, by the given host name.
async fn ask(
    address: SocketAddr,
    host: &str,
    ca: &Ca,
    client: Option<&(String, String)>,
) -> Result<bool, ClientError> {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let tls = TlsFiles {
        ca: Some(write("ca.pem", &ca.pem())),
        cert: client.map(|(cert, _)| write("client.pem", cert)),
        key: client.map(|(_, key)| write("client-key.pem", key)),
    };
    let url = format!("https://{host}:{}", address.port());
    Client::new(Config { endpoints: vec![url.clone()], tls, ..Config::default() })?
        .health(&url)
        .await
        .map(|health| health.healthy)
}

fn why(result: Result<bool, ClientError>) -> String {
    result.expect_err("must fail").to_string()
}

#[tokio::test]
async fn a_server_certificate_is_refused_with_the_reason() {
    let (good, other) = (ca("weft"), ca("other"));
    let here = ["127.0.0.1"];
    let address = serve(&issue(&good, &here, |_| {}), None).await;
    assert_eq!(ask(address, "127.0.0.1", &good, None).await, Ok(true));

    let error = why(ask(address, "127.0.0.1", &other, None).await);
    assert!(error.contains("wrong CA") && error.contains(&format!("https://{address}")), "{error}");

    let impostor = ca("weft");
    let error = why(ask(address, "127.0.0.1", &impostor, None).await);
    assert!(error.contains("wrong CA"), "same name, other key: {error}");

    let error = why(ask(address, "localhost", &good, None).await);
    assert!(error.contains("name mismatch") && error.contains("localhost"), "{error}");

    let expired = issue(&good, &here, |p| {
        p.not_before = date_time_ymd(2020, 1, 1);
        p.not_after = date_time_ymd(2021, 1, 1);
    });
    let error = why(ask(serve(&expired, None).await, "127.0.0.1", &good, None).await);
    assert!(error.contains("expired"), "{error}");

    let future = issue(&good, &here, |p| {
        p.not_before = date_time_ymd(4000, 1, 1);
        p.not_after = date_time_ymd(4001, 1, 1);
    });
    let error = why(ask(serve(&future, None).await, "127.0.0.1", &good, None).await);
    assert!(error.contains("not valid yet"), "{error}");

    let for_clients =
        issue(&good, &here, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let error = why(ask(serve(&for_clients, None).await, "127.0.0.1", &good, None).await);
    assert!(error.contains("wrong usage"), "{error}");
}

#[tokio::test]
async fn a_server_that_wants_a_client_certificate_is_understood() {
    let (good, other) = (ca("weft"), ca("other"));
    let address = serve(&issue(&good, &["127.0.0.1"], |_| {}), Some(&good)).await;
    let for_clients =
        |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];

    let ours = issue(&good, &["admin"], for_clients);
    assert_eq!(ask(address, "127.0.0.1", &good, Some(&ours)).await, Ok(true));

    let error = why(ask(address, "127.0.0.1", &good, None).await);
    assert!(error.contains("wants a client certificate and none was given"), "{error}");

    let foreign = issue(&other, &["admin"], for_clients);
    let error = why(ask(address, "127.0.0.1", &good, Some(&foreign)).await);
    assert!(error.contains("not signed by the server's CA"), "{error}");

    let expired = issue(&good, &["admin"], |p| {
        for_clients(p);
        p.not_before = date_time_ymd(2020, 1, 1);
        p.not_after = date_time_ymd(2021, 1, 1);
    });
    let error = why(ask(address, "127.0.0.1", &good, Some(&expired)).await);
    assert!(error.contains("client certificate has expired"), "{error}");
}

#[tokio::test]
async fn a_plain_server_behind_an_https_url_is_recognised() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut hello = [0; 16];
        let _ = tcp.read(&mut hello).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
    });
    let error = why(ask(address, "127.0.0.1", &ca("weft"), None).await);
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[test]
fn files_that_cannot_work_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca("weft");
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    write("ca.pem", &ca.pem());
    write("empty.pem", "nothing here\n");
    write("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    write("not-a-cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let (cert, key) = issue(&ca, &["a"], |_| {});
    write("cert.pem", &cert);
    write("key.pem", &key);
    write("other-key.pem", &issue(&ca, &["b"], |_| {}).1);
    let path = |name: &str| (!name.is_empty()).then(|| folder.path().join(Path::new(name)));
    for (ca, cert, key, field, says) in [
        ("", "", "", "tls.ca", "needs a CA file"),
        ("no.pem", "", "", "tls.ca", "no.pem"),
        ("empty.pem", "", "", "tls.ca", "no CERTIFICATE block"),
        ("broken.pem", "", "", "tls.ca", "broken.pem"),
        ("not-a-cert.pem", "", "", "tls.ca", "not-a-cert.pem"),
        ("ca.pem", "cert.pem", "", "tls.key", "cert.pem is given without its key"),
        ("ca.pem", "", "key.pem", "tls.cert", "key.pem is given without its certificate"),
        ("ca.pem", "cert.pem", "cert.pem", "tls.key", "no usable private key"),
        ("ca.pem", "cert.pem", "other-key.pem", "tls.key", "cannot be used together"),
        ("ca.pem", "key.pem", "key.pem", "tls.cert", "no CERTIFICATE block"),
    ] {
        let tls = TlsFiles { ca: path(ca), cert: path(cert), key: path(key) };
        let error =
            Client::new(Config { endpoints: vec!["https://127.0.0.1:1".into()], tls, ..Config::default() });
        match error.unwrap_err() {
            ClientError::Config { field: named, why } => {
                assert_eq!(named, field, "{why}");
                assert!(why.contains(says), "{why} should say {says}");
            }
            other => panic!("{other:?} for {ca} {cert} {key}"),
        }
    }
}
