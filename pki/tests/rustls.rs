//! Whole TLS handshakes in memory, with rustls and webpki as the judges: what we issue is accepted in every role
//! it is meant for, and refused in every other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use pki::cluster::{self, ClusterSpec};
use pki::host::Host;
use pki::key::{Curve, KeySpec};
use pki::profile::Profile;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, ExtendedKeyPurpose, RootCertStore, ServerConfig,
    ServerConnection,
};
use support::{Ca, KINDS, Leaf, ca, leaf, www};
use time::OffsetDateTime;
use time::macros::datetime;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:00 UTC);
const P256: KeySpec = KeySpec::Ecdsa(Curve::P256);

/// A clock that stands still.
#[derive(Debug)]
struct At(OffsetDateTime);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(self.0.unix_timestamp()).unwrap())))
    }
}

/// Certificate and key as PEM.
type Pair<'a> = (&'a str, &'a str);

fn pair(leaf: &Leaf) -> Pair<'_> {
    (&leaf.issued.cert_pem, &leaf.key)
}

fn roots(pem: &str) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    Arc::new(roots)
}

/// A handshake between a server and a client with these certificates, both trusting the CAs given for them, at
/// this time. The error is that of the side which refused.
fn handshake(
    (server, trusted_by_client): (Pair<'_>, &str),
    (client, trusted_by_server): (Pair<'_>, &str),
    name: &str,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let provider = Arc::new(default_provider());
    let chain = |pem: &str| vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    let key = |pem: &str| PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(trusted_by_server), provider.clone());
    let server = ServerConfig::builder_with_details(provider.clone(), Arc::new(At(at)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain(server.0), key(server.1))
        .unwrap();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(trusted_by_client), provider.clone());
    let client = ClientConfig::builder_with_details(provider, Arc::new(At(at)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_webpki_verifier(verifier.build().unwrap())
        .with_client_auth_cert(chain(client.0), key(client.1))
        .unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    // A handshake is two round trips; ten are plenty, and an endless loop would hide a failure.
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            return Ok(());
        }
    }
    panic!("the handshake does not end");
}

/// Both sides with the same certificate, as the members of the store talk to each other.
fn among_members(ca: &Ca, leaf: &Leaf, name: &str, at: OffsetDateTime) -> Result<(), Error> {
    handshake((pair(leaf), &ca.cert), (pair(leaf), &ca.cert), name, at)
}

fn refusal(result: Result<(), Error>) -> CertificateError {
    match result {
        Err(Error::InvalidCertificate(error)) => error,
        other => panic!("expected a refused certificate, got {other:?}"),
    }
}

#[test]
fn every_kind_of_key_serves_and_is_served() {
    for kind in KINDS {
        let ca = ca(kind, NOW);
        let leaf = leaf(&ca.authority, &www(), kind, &["etcd.example"], NOW);
        for name in ["192.168.31.63", "192.168.31.66", "etcd.example"] {
            among_members(&ca, &leaf, name, NOW).unwrap_or_else(|e| panic!("{kind:?}, {name}: {e}"));
        }
    }
}

#[test]
fn a_name_that_is_not_in_the_certificate_is_refused() {
    let ca = ca(P256, NOW);
    let leaf = leaf(&ca.authority, &www(), P256, &["*.store.example"], NOW);
    among_members(&ca, &leaf, "n1.store.example", NOW).unwrap();
    for name in ["192.168.31.64", "etcd", "store.example", "a.b.store.example"] {
        let refused = refusal(among_members(&ca, &leaf, name, NOW));
        assert!(
            matches!(
                refused,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn only_its_time_counts() {
    let ca = ca(P256, NOW);
    let hour = Profile { expiry: Duration::from_secs(3600), ..www() };
    let leaf = leaf(&ca.authority, &hour, P256, &[], NOW);
    // Backdated five minutes, so its hour ends in 55.
    for (minutes, valid) in [(-4, true), (0, true), (54, true)] {
        let at = NOW + time::Duration::minutes(minutes);
        assert_eq!(among_members(&ca, &leaf, "192.168.31.63", at).is_ok(), valid, "{minutes}");
    }
    let late = refusal(among_members(&ca, &leaf, "192.168.31.63", NOW + time::Duration::minutes(56)));
    assert!(matches!(late, CertificateError::Expired | CertificateError::ExpiredContext { .. }), "{late:?}");
    let early = refusal(among_members(&ca, &leaf, "192.168.31.63", NOW - time::Duration::minutes(6)));
    assert!(
        matches!(early, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }),
        "{early:?}"
    );
}

#[test]
fn another_cas_certificates_are_refused_on_both_sides() {
    // Same name, another key: exactly what a second `gencert -initca` gives.
    let (ours, theirs) = (ca(P256, NOW), ca(P256, NOW));
    let (our, their) =
        (leaf(&ours.authority, &www(), P256, &[], NOW), leaf(&theirs.authority, &www(), P256, &[], NOW));
    let name = "192.168.31.63";
    handshake((pair(&our), &ours.cert), (pair(&their), &theirs.cert), name, NOW).unwrap();
    let refused = [
        refusal(handshake((pair(&their), &ours.cert), (pair(&our), &ours.cert), name, NOW)),
        refusal(handshake((pair(&our), &ours.cert), (pair(&their), &ours.cert), name, NOW)),
    ];
    assert_eq!(refused, [CertificateError::BadSignature, CertificateError::BadSignature]);
}

#[test]
fn usages_are_kept_apart() {
    let ca = ca(P256, NOW);
    let with = |usage: &str| {
        let mut profile = Profile { usages: pki::usage::Usages::default(), ..www() };
        assert!(profile.usages.add("signing") && profile.usages.add(usage));
        leaf(&ca.authority, &profile, P256, &[], NOW)
    };
    let (server, client) = (with("server auth"), with("client auth"));
    let run = |s: &Leaf, c: &Leaf| handshake((pair(s), &ca.cert), (pair(c), &ca.cert), "192.168.31.63", NOW);
    run(&server, &client).unwrap();
    for (s, c, required) in [
        (&client, &client, ExtendedKeyPurpose::ServerAuth),
        (&server, &server, ExtendedKeyPurpose::ClientAuth),
    ] {
        match refusal(run(s, c)) {
            CertificateError::InvalidPurpose => {}
            CertificateError::InvalidPurposeContext { required: why, .. } => assert_eq!(why, required),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_whole_cluster_holds_together() {
    for kind in [KINDS[0], P256, KeySpec::Ed25519] {
        let hosts = ["192.168.31.63", "192.168.31.65", "192.168.31.66"].map(|h| Host::parse(h).unwrap());
        let spec = ClusterSpec { hosts: hosts.into(), key: kind, expiry: cluster::EXPIRY };
        let (ca, authority) = cluster::make_ca(&spec, NOW).unwrap();
        let leaves = cluster::make_leaves(&spec, &authority, NOW).unwrap();
        assert_eq!(leaves.iter().map(|l| l.name).collect::<Vec<_>>(), cluster::LEAVES);
        let all = leaves.iter().chain([&ca]);
        assert!(
            all.clone().all(|l| l.warnings.is_empty()),
            "{:?}",
            all.map(|l| &l.warnings).collect::<Vec<_>>()
        );
        let ca = ca.cert_pem.as_str();
        let server = (leaves[0].cert_pem.as_str(), leaves[0].key_pem.as_str());
        for leaf in &leaves {
            let client = (leaf.cert_pem.as_str(), leaf.key_pem.as_str());
            for name in ["192.168.31.65", "localhost", "127.0.0.1", "::1"] {
                handshake((server, ca), (client, ca), name, NOW)
                    .unwrap_or_else(|e| panic!("{kind:?}: {} at {name}: {e}", leaf.name));
            }
            if leaf.name != "server" {
                refusal(handshake((client, ca), (server, ca), "127.0.0.1", NOW));
            }
        }
        // Ten years later all of them are past.
        let late = NOW + time::Duration::days(3660);
        refusal(handshake((server, ca), (server, ca), "127.0.0.1", late));
    }
    let nobody = ClusterSpec { hosts: vec![], key: P256, expiry: cluster::EXPIRY };
    let (_, authority) = cluster::make_ca(&nobody, NOW).unwrap();
    assert!(matches!(cluster::make_leaves(&nobody, &authority, NOW), Err(cluster::ClusterError::NoHosts)));
}
