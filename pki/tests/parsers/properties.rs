//! What must hold for any file that an operator hands to `cli pki`, or that a guide's cfssl has written. The first byte
//! chooses the reader, the rest is the file. The fuzz target `pki` feeds this, and `parsers_corpus.rs` what that found.

use std::sync::OnceLock;

use pki::api::Envelope;
use pki::duration;
use pki::host::Host;
use pki::inspect::{self, Item};
use pki::issue::{Authority, Issued, self_signed};
use pki::key::{KeySpec, PrivateKey};
use pki::profile::{Config, Profile};
use pki::request::CertRequest;
use pki::serial::Serial;
use time::OffsetDateTime;

/// The readers, in the order of the first byte.
pub(crate) const READERS: [fn(&[u8]); 6] = [config, request, envelope, pem, authority, words];

/// One input.
pub(crate) fn pki(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    READERS[usize::from(first) % READERS.len()](rest);
}

const FILE: &str = "f";

/// November 2026; fixed, so that an input means the same on every day.
fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_000_000).expect("a time in range")
}

fn serial() -> Serial {
    Serial::from_bytes([7; 20])
}

/// A CA, and the key of its leaves.
fn ca() -> &'static (Authority, PrivateKey, String) {
    static CA: OnceLock<(Authority, PrivateKey, String)> = OnceLock::new();
    CA.get_or_init(|| {
        let key = || PrivateKey::generate(KeySpec::Ed25519).expect("a key");
        let (ca_key, leaf_key) = (key(), key());
        let request = CertRequest::parse(FILE, br#"{"CN":"ca"}"#).expect("a request");
        let issued = self_signed(&request, &ca_key, serial(), now()).expect("a CA");
        let cert = issued.cert_pem.as_bytes();
        let authority = Authority::new(FILE, cert, FILE, ca_key.to_pem().as_bytes(), now()).expect("a CA");
        (authority, leaf_key, issued.cert_pem)
    })
}

/// Every profile that is accepted grants something, for a time that ends.
fn config(data: &[u8]) {
    let Ok(config) = Config::parse(FILE, data) else { return };
    for name in [None, Some("ca"), Some("www"), Some("kubernetes")] {
        let Ok(profile) = config.profile(FILE, name) else { continue };
        assert!(!profile.expiry.is_zero() && profile.backdate < profile.expiry, "{profile:?}");
        let (authority, key, _) = ca();
        let request = CertRequest::parse(FILE, br#"{"CN":"leaf","hosts":["a.example"]}"#).expect("a request");
        if let Ok(issued) = authority.issue(&request, profile, key, serial(), now()) {
            reads_back(&issued, profile.ca.is_some());
        }
    }
}

/// A request that is accepted can be signed by a CA and by itself, and what comes of it is read again; or there is an
/// error, but no panic in the writers below.
fn request(data: &[u8]) {
    let Ok(request) = CertRequest::parse(FILE, data) else { return };
    let (authority, key, _) = ca();
    if let Ok(issued) = authority.issue(&request, &Profile::default(), key, serial(), now()) {
        reads_back(&issued, false);
    }
    if let Ok(issued) = self_signed(&request, key, serial(), now()) {
        reads_back(&issued, true);
    }
}

/// A certificate is one of the CA's or signed by itself, belongs to its key, and goes with its signing request.
fn reads_back(issued: &Issued, is_ca: bool) {
    let (_, key, ca_pem) = ca();
    let text = [&issued.cert_pem, &issued.csr_pem, key.to_pem(), ca_pem.as_str()].concat();
    let items = inspect::parse(FILE, text.as_bytes(), now()).expect("what we write we read");
    let [Item::Certificate(cert), Item::Request(csr), Item::PrivateKey(key), Item::Certificate(ca)] =
        &items[..]
    else {
        panic!("{items:?}");
    };
    assert!(cert.belongs_to(key) && csr.belongs_to(key) && csr.signature_valid);
    assert!(cert.signed_by(ca) || cert.signed_by(cert));
    assert_eq!(cert.ca, is_ca);
}

/// cfssl's output, in either form, means the same in the one that we print.
fn envelope(data: &[u8]) {
    let Ok(envelope) = Envelope::parse(FILE, data) else { return };
    assert_eq!(Envelope::parse(FILE, envelope.to_json().as_bytes()).as_ref(), Ok(&envelope));
}

/// Certificates, requests and keys of any origin.
fn pem(data: &[u8]) {
    for item in inspect::parse(FILE, data, now()).unwrap_or_default() {
        if let Item::Certificate(cert) = item {
            assert_eq!(cert.self_signed, cert.signed_by(&cert), "{cert:?}");
        }
    }
    if let Ok(key) = PrivateKey::from_pem(FILE, data) {
        let again = PrivateKey::from_pem(FILE, key.to_pem().as_bytes()).expect("what we write we read");
        assert_eq!((again.public_key(), again.kind()), (key.public_key(), key.kind()));
    }
}

/// A file with a CA's certificate and key: what is accepted can sign.
fn authority(data: &[u8]) {
    let Ok(authority) = Authority::new(FILE, data, FILE, data, now()) else { return };
    let request = CertRequest::parse(FILE, br#"{"CN":"leaf"}"#).expect("a request");
    let _ = authority.issue(&request, &Profile::default(), &ca().1, serial(), now());
}

/// Durations and names, a line each. A name means the same when it is read again from how it is shown.
fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        let _ = duration::parse(line);
        if let Ok(host) = Host::parse(line) {
            assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
        }
    }
}
