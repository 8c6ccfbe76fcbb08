//! Handshakes in memory, with certificates made here.
#![allow(clippy::unwrap_used, reason = "tests")]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};

use super::*;

/// A directory with `ca.pem`, and a certificate of each usage as `NAME.pem` and `NAME-key.pem`.
fn files(usages: &[(&str, &[ExtendedKeyUsagePurpose])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
    for (name, usages) in usages {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = usages.to_vec();
        let certificate = params.signed_by(&key, &ca).unwrap();
        fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.path().join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
    dir
}

const BOTH: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

fn tls(dir: &Path, name: &str, cert_auth: bool) -> Tls {
    Tls {
        cert: Some(dir.join(format!("{name}.pem"))),
        key: Some(dir.join(format!("{name}-key.pem"))),
        trusted_ca: Some(dir.join("ca.pem")),
        cert_auth,
    }
}

/// A handshake to its end, session tickets included; on failure the side that found it, and the other's view.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(HandshakeKind, HandshakeKind), (String, String)> {
    let mut client = ClientConnection::new(Arc::clone(client), server_name(name).unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            if let Err(error) = server.process_new_packets() {
                server_error.get_or_insert(error);
            }
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            if let Err(error) = client.process_new_packets() {
                client_error.get_or_insert(error);
            }
        }
    }
    let words = |error: Option<rustls::Error>| error.map(|error| describe_tls(&error)).unwrap_or_default();
    if client_error.is_some() || server_error.is_some() {
        return Err((words(client_error), words(server_error)));
    }
    Ok((client.handshake_kind().unwrap(), server.handshake_kind().unwrap()))
}

/// A client that would like to resume, as any ordinary one does.
fn eager_client(dir: &Path) -> Arc<ClientConfig> {
    let mut config = (*client_config(&tls(dir, "both", false)).unwrap().unwrap()).clone();
    config.resumption = Resumption::default();
    Arc::new(config)
}

#[test]
fn who_must_show_a_certificate_is_verified_every_time() {
    let dir = files(&[("both", BOTH)]);
    for (cert_auth, mutual) in [(true, false), (false, true)] {
        let server = server_config(&tls(dir.path(), "both", cert_auth), mutual, &[]).unwrap().unwrap();
        let client = eager_client(dir.path());
        for _ in 0..3 {
            let kinds = handshake(&client, &server, "127.0.0.1").unwrap();
            assert_eq!(kinds, (HandshakeKind::Full, HandshakeKind::Full), "{cert_auth} {mutual}");
        }
    }
    // Where nobody is verified, resuming is allowed: the same client does, so the test above tells something.
    let server = server_config(&tls(dir.path(), "both", false), false, &[]).unwrap().unwrap();
    let client = eager_client(dir.path());
    handshake(&client, &server, "127.0.0.1").unwrap();
    let kinds = handshake(&client, &server, "127.0.0.1").unwrap();
    assert_eq!(kinds, (HandshakeKind::Resumed, HandshakeKind::Resumed));
    // Members never ask for it.
    let member = client_config(&tls(dir.path(), "both", false)).unwrap().unwrap();
    handshake(&member, &server, "127.0.0.1").unwrap();
    assert_eq!(handshake(&member, &server, "127.0.0.1").unwrap().0, HandshakeKind::Full);
}

#[test]
fn each_side_says_which_cause_it_was() {
    let dir = files(&[
        ("both", BOTH),
        ("server", &[ExtendedKeyUsagePurpose::ServerAuth]),
        ("client", &[ExtendedKeyUsagePurpose::ClientAuth]),
    ]);
    let other = files(&[("both", BOTH)]);
    let server = |dir: &Path, name| server_config(&tls(dir, name, false), true, &[]).unwrap().unwrap();
    let client = |dir: &Path, name| client_config(&tls(dir, name, false)).unwrap().unwrap();
    let dir = dir.path();

    // (client, server, name that is dialled, words of the client, words of the server)
    let lacks = "its certificate lacks the usage";
    let refused_usage = "refuses our certificate: lacks the usage";
    let cases = [
        (client(dir, "server"), server(dir, "both"), "127.0.0.1", refused_usage, lacks),
        (client(dir, "both"), server(dir, "client"), "127.0.0.1", lacks, refused_usage),
        (
            client(dir, "both"),
            server(dir, "both"),
            "10.9.9.9",
            "not valid for 10.9.9.9",
            "refuses our certificate: not valid for the name or address",
        ),
        (client(dir, "both"), server(other.path(), "both"), "127.0.0.1", "wrong CA", "wrong CA"),
    ];
    for (client, server, name, at_client, at_server) in cases {
        let (said_client, said_server) = handshake(&client, &server, name).unwrap_err();
        assert!(said_client.contains(at_client), "client: {said_client:?} lacks {at_client:?}");
        assert!(said_server.contains(at_server), "server: {said_server:?} lacks {at_server:?}");
    }
}

#[test]
fn a_dialling_address_must_be_in_the_certificate() {
    let dir = files(&[("both", BOTH)]);
    let certificate = CertificateDer::from_pem_file(dir.path().join("both.pem")).unwrap();
    assert_eq!(is_valid_for(&certificate, "127.0.0.1".parse().unwrap()), Ok(()));
    let error = is_valid_for(&certificate, "127.0.0.2".parse().unwrap()).unwrap_err();
    assert!(error.contains("127.0.0.2") && error.contains("SAN missing"), "{error}");
}
