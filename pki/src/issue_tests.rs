#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use proptest::prelude::*;
use time::macros::datetime;

use super::*;
use crate::key::{Curve, KeySpec};
use crate::request::Subject;

const NOW: OffsetDateTime = datetime!(2026-03-01 12:34:56 UTC);

fn key() -> PrivateKey {
    PrivateKey::generate(KeySpec::Ecdsa(Curve::P256)).unwrap()
}

fn request(hosts: &[&str]) -> CertRequest {
    CertRequest {
        subject: Subject::common_name("x"),
        hosts: hosts.iter().map(|h| Host::parse(h).unwrap()).collect(),
        key: KeySpec::Ecdsa(Curve::P256),
        ca: None,
    }
}

fn ca_with(options: CaOptions) -> (String, PrivateKey) {
    let key = key();
    let request = CertRequest { ca: Some(options), ..request(&[]) };
    let issued = self_signed(&request, &key, Serial::from_bytes([7; 20]), NOW).unwrap();
    (issued.cert_pem, key)
}

fn ca() -> (String, PrivateKey) {
    ca_with(CaOptions::default())
}

fn authority(cert: &str, key: &str) -> Result<Authority, IssueError> {
    Authority::new("ca.pem", cert.as_bytes(), "ca-key.pem", key.as_bytes(), NOW)
}

fn issue(authority: &Authority, profile: &Profile, hosts: &[&str]) -> Result<Issued, IssueError> {
    authority.issue(&request(hosts), profile, &key(), Serial::from_bytes([9; 20]), NOW)
}

fn read<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    look(&cert)
}

#[test]
fn validity_is_rounded_backdated_and_whole() {
    let (from, to) = validity(Duration::from_secs(300), Duration::from_secs(3600), NOW).unwrap();
    assert_eq!(from, datetime!(2026-03-01 12:30 UTC));
    assert_eq!(to, datetime!(2026-03-01 13:30 UTC));
    let (from, _) =
        validity(Duration::from_secs(300), Duration::from_secs(3600), datetime!(2026-03-01 12:34:29 UTC))
            .unwrap();
    assert_eq!(from, datetime!(2026-03-01 12:29 UTC));
    let late = datetime!(9900-01-01 0:00 UTC);
    let err = validity(Duration::ZERO, Duration::from_secs(200 * 8_766 * 3_600), late);
    assert_eq!(err, Err(IssueError::ExpiryTooLong));
}

#[test]
fn a_certificate_holds_what_was_asked_for() {
    let (cert, ca_key) = ca();
    let authority = authority(&cert, ca_key.to_pem()).unwrap();
    let profile = Profile { crl_url: Some("http://crl.example/ca.crl".into()), ..Profile::default() };
    let hosts = ["spiffe://weft/store", "10.0.0.1", "ops@example.org", "b.example", "a.example", "b.example"];
    let issued = issue(&authority, &profile, &hosts).unwrap();
    assert_eq!(issued.warnings, []);
    let ca_ski = read(&cert, |ca| format!("{:?}", ski(ca)));
    read(&issued.cert_pem, |cert| {
        let names = cert.subject_alternative_name().unwrap().unwrap();
        let names: Vec<_> = names.value.general_names.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 5, "a host given twice is there once: {names:?}");
        assert!(names[0].contains("b.example") && names[1].contains("a.example"), "{names:?}");
        assert!(names[2].contains("ops@") && names[4].contains("spiffe"), "Go's order: {names:?}");
        assert_eq!(cert.raw_serial(), [9; 20]);
        let constraints = cert.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && !constraints.value.ca);
        let usage = cert.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
        assert!(!usage.value.key_cert_sign());
        let extended = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && extended.other.is_empty());
        assert!(ski(cert).is_some());
        let aki = cert.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.clone(),
            _ => None,
        });
        assert_eq!(format!("{aki:?}"), ca_ski, "the CA's key is named as the CA names it");
        let crl = cert
            .extensions()
            .iter()
            .any(|e| matches!(e.parsed_extension(), ParsedExtension::CRLDistributionPoints(_)));
        assert!(crl);
    });
}

use x509_parser::extensions::{KeyIdentifier, ParsedExtension};

fn ski<'a>(cert: &'a X509Certificate<'a>) -> Option<KeyIdentifier<'a>> {
    cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.clone()),
        _ => None,
    })
}

#[test]
fn a_ca_is_one_and_says_how_deep() {
    for max_path_len in [None, Some(0), Some(2)] {
        let constraint = CaConstraint { max_path_len };
        let (cert, _) = ca_with(CaOptions { constraint, ..CaOptions::default() });
        read(&cert, |cert| {
            let constraints = cert.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && constraints.value.ca);
            assert_eq!(constraints.value.path_len_constraint, max_path_len.map(u32::from));
            let usage = cert.key_usage().unwrap().unwrap();
            assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
            assert!(!usage.value.digital_signature());
            let years5 = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
            assert_eq!(years5, 43_800 * 3_600);
        });
    }
}

#[test]
fn an_intermediate_ca_signs_and_a_path_length_of_zero_forbids_it() {
    let (cert, ca_key) = ca();
    let root = authority(&cert, ca_key.to_pem()).unwrap();
    let mut profile = Profile { ca: Some(CaConstraint { max_path_len: Some(0) }), ..Profile::default() };
    assert!(profile.usages.add("cert sign"));
    let below = key();
    let issued = root.issue(&request(&[]), &profile, &below, Serial::from_bytes([5; 20]), NOW).unwrap();
    let intermediate = authority(&issued.cert_pem, below.to_pem()).unwrap();
    issue(&intermediate, &Profile::default(), &["a.example"]).unwrap();
    assert_eq!(issue(&intermediate, &profile, &[]), Err(IssueError::PathLength { file: "ca.pem".into() }));
}

#[test]
fn an_issuer_that_cannot_sign_is_refused_by_name() {
    let (cert, ca_key) = ca();
    let root = authority(&cert, ca_key.to_pem()).unwrap();
    let file = || "ca.pem".to_owned();

    let err = authority(&cert, key().to_pem()).unwrap_err();
    assert_eq!(
        err.to_string(),
        "ca-key.pem: this ECDSA P-256 key does not belong to the CA certificate ca.pem (ECDSA P-256)"
    );
    assert_eq!(authority(&cert, "").unwrap_err(), KeyError::NoKey { file: "ca-key.pem".into() }.into());
    assert_eq!(authority(&cert, &cert).unwrap_err(), KeyError::NoKey { file: "ca-key.pem".into() }.into());
    assert_eq!(authority("", ca_key.to_pem()).unwrap_err(), IssueError::NoCertificate { file: file() });
    let damaged = cert.replacen('M', "N", 1);
    let err = authority(&damaged, ca_key.to_pem()).unwrap_err();
    assert!(matches!(err, IssueError::BadCertificate { .. }), "{err}");

    let leaf_key = key();
    let leaf = root
        .issue(&request(&["a"]), &Profile::default(), &leaf_key, Serial::from_bytes([1; 20]), NOW)
        .unwrap();
    assert_eq!(authority(&leaf.cert_pem, leaf_key.to_pem()).unwrap_err(), IssueError::NotCa { file: file() });

    let no_sign = Profile { ca: Some(CaConstraint { max_path_len: None }), ..Profile::default() };
    let odd_key = key();
    let odd = root.issue(&request(&[]), &no_sign, &odd_key, Serial::from_bytes([1; 20]), NOW).unwrap();
    assert_eq!(
        authority(&odd.cert_pem, odd_key.to_pem()).unwrap_err(),
        IssueError::MayNotSign { file: file() }
    );

    for now in [NOW + time::Duration::days(1826), NOW - time::Duration::days(1)] {
        let err =
            Authority::new("ca.pem", cert.as_bytes(), "k", ca_key.to_pem().as_bytes(), now).unwrap_err();
        assert!(matches!(&err, IssueError::NotValidNow { .. }), "{err}");
        assert!(err.to_string().starts_with("ca.pem: this CA is valid from 2026-03-01"), "{err}");
    }
    let nothing = Profile { usages: Usages::default(), ..Profile::default() };
    assert_eq!(issue(&root, &nothing, &[]), Err(IssueError::NoUsages));
}

#[test]
fn what_is_likely_a_mistake_is_warned_about() {
    let (cert, ca_key) = ca();
    let root = authority(&cert, ca_key.to_pem()).unwrap();
    assert_eq!(issue(&root, &Profile::default(), &[]).unwrap().warnings, [Warning::NoHosts]);
    let long = Profile { expiry: Duration::from_secs(87_600 * 3_600), ..Profile::default() };
    let warnings = issue(&root, &long, &["a"]).unwrap().warnings;
    assert!(matches!(warnings[..], [Warning::OutlivesCa { .. }]), "{warnings:?}");
    let issued = self_signed(&request(&["a"]), &key(), Serial::from_bytes([1; 20]), NOW).unwrap();
    assert_eq!(issued.warnings, [Warning::CaHosts]);
}

#[test]
fn keys_are_read_back_and_described() {
    for (spec, label, kind) in [
        (KeySpec::Rsa(crate::key::RsaSize::Bits2048), "RSA PRIVATE KEY", "RSA 2048"),
        (KeySpec::Ecdsa(Curve::P256), "EC PRIVATE KEY", "ECDSA P-256"),
        (KeySpec::Ecdsa(Curve::P384), "EC PRIVATE KEY", "ECDSA P-384"),
        (KeySpec::Ecdsa(Curve::P521), "EC PRIVATE KEY", "ECDSA P-521"),
        (KeySpec::Ed25519, "PRIVATE KEY", "Ed25519"),
    ] {
        let made = PrivateKey::generate(spec).unwrap();
        assert!(made.to_pem().starts_with(&format!("-----BEGIN {label}-----\n")));
        assert!(made.to_pem().lines().all(|l| l.len() <= 64));
        let read = PrivateKey::from_pem("k", made.to_pem().as_bytes()).unwrap();
        assert_eq!(read.to_pem(), made.to_pem());
        assert_eq!(read.public_key(), made.public_key());
        assert_eq!((read.kind().to_string(), made.kind().to_string()), (kind.to_owned(), kind.to_owned()));
        let shown = format!("{made:?}");
        assert_eq!(shown, format!("PrivateKey({kind})"), "no secret in a log");
    }
}

#[test]
fn what_is_no_key_is_told_apart() {
    let file = || "k".to_owned();
    let read = |text: &str| PrivateKey::from_pem("k", text.as_bytes()).unwrap_err();
    assert_eq!(read("nothing"), KeyError::NoKey { file: file() });
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_eq!(read(encrypted), KeyError::Encrypted { file: file() });
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nMA==\n-----END RSA PRIVATE KEY-----\n";
    assert_eq!(read(old), KeyError::Encrypted { file: file() });
    let empty = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";
    assert!(matches!(read(empty), KeyError::Unusable { .. }));
    let cut = "-----BEGIN PRIVATE KEY-----\nMA==\n";
    assert!(matches!(read(cut), KeyError::Pem { .. }), "{:?}", read(cut));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever the subject says, the CA's name comes out unchanged below it: `check` refuses anything else.
    #[test]
    fn any_subject_can_be_a_ca(cn in "\\PC{1,40}", o in proptest::option::of("\\PC{1,40}"), serial in any::<[u8; 20]>()) {
        let subject = Subject { organization: o, ..Subject::common_name(&cn) };
        let ca_key = key();
        let request = CertRequest { subject, ca: Some(CaOptions::default()), ..request(&[]) };
        let issued = self_signed(&request, &ca_key, Serial::from_bytes(serial), NOW).unwrap();
        let root = authority(&issued.cert_pem, ca_key.to_pem()).unwrap();
        issue(&root, &Profile::default(), &["a"]).unwrap();
    }
}
