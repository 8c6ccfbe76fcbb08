//! What cfssl itself printed, against what we make of the same files at the same time: field by field and byte by
//! byte. See `fixtures/cfssl/README.md` for how it was recorded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use pki::api::Envelope;
use pki::inspect::{Item, parse};
use pki::issue::{Authority, Issued, self_signed};
use pki::key::PrivateKey;
use pki::profile::Config;
use pki::request::CertRequest;
use pki::serial::Serial;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use support::{CA_CONFIG, CA_CSR, SERVER_CSR};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

const CA: &[u8] = include_bytes!("fixtures/cfssl/ca.json");
const SERVER: &[u8] = include_bytes!("fixtures/cfssl/server.json");
const MANY: &[u8] = include_bytes!("fixtures/cfssl/many.json");
const MANY_CSR: &[u8] = include_bytes!("fixtures/cfssl/many-csr.json");
const MANY_CONFIG: &[u8] = include_bytes!("fixtures/cfssl/many-config.json");

const SUBJECT_KEY_ID: &str = "2.5.29.14";
const AUTHORITY_KEY_ID: &str = "2.5.29.35";

/// One certificate as cfssl printed it.
struct Recorded {
    cert: String,
    csr: String,
    key: String,
}

fn recorded(json: &[u8]) -> Recorded {
    let Envelope { cert, csr, key } = Envelope::parse("recorded", json).unwrap();
    Recorded { cert: cert.unwrap(), csr: csr.unwrap(), key: key.unwrap() }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn not_before(pem: &str) -> OffsetDateTime {
    X509Certificate::from_der(&der(pem)).unwrap().1.validity().not_before.to_datetime()
}

fn authority(now: OffsetDateTime) -> Authority {
    let ca = recorded(CA);
    Authority::new("ca.pem", ca.cert.as_bytes(), "ca-key.pem", ca.key.as_bytes(), now).unwrap()
}

/// Everything that must be equal, byte for byte; key identifiers are compared where both derive them alike.
fn assert_same(ours: &Issued, theirs: &Recorded, except: &[&str]) {
    let (our_der, their_der) = (der(&ours.cert_pem), der(&theirs.cert));
    let our = X509Certificate::from_der(&our_der).unwrap().1;
    let their = X509Certificate::from_der(&their_der).unwrap().1;
    assert_eq!(our.version(), their.version());
    assert_eq!(our.subject().as_raw(), their.subject().as_raw());
    assert_eq!(our.issuer().as_raw(), their.issuer().as_raw());
    assert_eq!(our.validity(), their.validity());
    assert_eq!(our.signature_algorithm, their.signature_algorithm);
    // rcgen and Go order the extensions differently, which means nothing (RFC 5280 section 4.1.2.9).
    let extensions = |cert: &X509Certificate<'_>| {
        let mut all: Vec<_> = cert
            .extensions()
            .iter()
            .map(|e| (e.oid.to_id_string(), e.critical, e.value.to_vec()))
            .map(|(oid, critical, value)| {
                let compared = if except.contains(&oid.as_str()) { Vec::new() } else { value };
                (oid, critical, compared)
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(extensions(&our), extensions(&their));

    let read = |pem: &str| CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (our_csr, their_csr) = (read(&ours.csr_pem), read(&theirs.csr));
    let our = X509CertificationRequest::from_der(&our_csr).unwrap().1.certification_request_info;
    let their = X509CertificationRequest::from_der(&their_csr).unwrap().1.certification_request_info;
    assert_eq!(our.subject.as_raw(), their.subject.as_raw());
    let attributes = |info: &x509_parser::certification_request::X509CertificationRequestInfo<'_>| {
        info.attributes().iter().map(|a| (a.oid.to_id_string(), a.value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(attributes(&our), attributes(&their));
}

#[test]
fn the_tutorials_ca() {
    let theirs = recorded(CA);
    let now = not_before(&theirs.cert) + Duration::minutes(5);
    let request = CertRequest::parse("ca-csr.json", CA_CSR).unwrap();
    // Their key, so that what is made of the key can be compared as well.
    let key = PrivateKey::from_pem("ca-key.pem", theirs.key.as_bytes()).unwrap();
    assert_eq!(key.to_pem(), theirs.key);
    let ours = self_signed(&request, &key, Serial::random().unwrap(), now).unwrap();
    assert_same(&ours, &theirs, &[SUBJECT_KEY_ID, AUTHORITY_KEY_ID]);
}

#[test]
fn the_tutorials_server_signed_by_cfssls_ca() {
    let theirs = recorded(SERVER);
    let now = not_before(&theirs.cert) + Duration::minutes(5);
    let config = Config::parse("ca-config.json", CA_CONFIG).unwrap();
    let profile = config.profile("ca-config.json", Some("www")).unwrap();
    let request = CertRequest::parse("server-csr.json", SERVER_CSR).unwrap();
    let key = PrivateKey::from_pem("server-key.pem", theirs.key.as_bytes()).unwrap();
    let ours = authority(now).issue(&request, profile, &key, Serial::random().unwrap(), now).unwrap();
    // The authority's key identifier is the one in cfssl's CA; the subject's is SHA-1 there, SHA-256 here.
    assert_same(&ours, &theirs, &[SUBJECT_KEY_ID]);
    let made = PrivateKey::generate(request.key).unwrap();
    assert_eq!(made.to_pem().lines().next(), theirs.key.lines().next(), "keys are in the same form");
}

#[test]
fn many_kinds_of_hosts_names_and_usages() {
    let theirs = recorded(MANY);
    let now = not_before(&theirs.cert) + Duration::hours(1);
    let config = Config::parse("many-config.json", MANY_CONFIG).unwrap();
    let profile = config.profile("many-config.json", Some("many")).unwrap();
    let request = CertRequest::parse("many-csr.json", MANY_CSR).unwrap();
    let key = PrivateKey::from_pem("many-key.pem", theirs.key.as_bytes()).unwrap();
    let ours = authority(now).issue(&request, profile, &key, Serial::random().unwrap(), now).unwrap();
    assert_same(&ours, &theirs, &[SUBJECT_KEY_ID]);
    let made = PrivateKey::generate(request.key).unwrap();
    assert_eq!(made.to_pem().lines().next(), theirs.key.lines().next());
    assert_eq!(
        made.to_pem().len(),
        theirs.key.len(),
        "SEC 1 with the curve and the public key, as Go writes it"
    );
}

#[test]
fn cfssls_certificates_are_shown() {
    let (ca, many) = (recorded(CA), recorded(MANY));
    let now = not_before(&many.cert) + Duration::hours(2);
    let items = parse("many.pem", [many.cert, many.csr, many.key, ca.cert].concat().as_bytes(), now).unwrap();
    let [Item::Certificate(cert), Item::Request(csr), Item::PrivateKey(key), Item::Certificate(ca)] =
        &items[..]
    else {
        panic!("{items:?}")
    };
    assert!(cert.belongs_to(key) && csr.belongs_to(key) && !ca.belongs_to(key));
    assert!(cert.signed_by(ca) && ca.self_signed && !cert.self_signed && csr.signature_valid);
    assert_eq!(cert.subject, "C=DE, ST=Thüringen, L=Jena, O=a_b, OU=Ops, CN=many kinds");
    let names =
        ["DNS:etcd.example", "DNS:*.store.example", "email:ops@example.org", "IP:10.0.0.1", "IP:fd00::1"];
    assert_eq!(
        (&cert.names[..], &csr.names[..]),
        (&names.map(String::from)[..], &names.map(String::from)[..])
    );
    assert_eq!(cert.usages[..4], ["digital signature", "key encipherment", "data encipherment", "crl sign"]);
    for usage in ["server auth", "timestamping", "email protection", "ipsec user", "netscape sgc"] {
        assert!(cert.usages.iter().any(|u| u == usage), "{usage}: {:?}", cert.usages);
    }
    assert_eq!((cert.key.as_str(), cert.signature.as_str()), ("ECDSA P-384", "RSA with SHA-256"));
    assert_eq!(cert.days_left, 364);
}
