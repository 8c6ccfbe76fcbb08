//! What the tests of this folder share: the tutorial's files, a time, and the `openssl` program.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::path::Path;
use std::process::Command;

use pki::host::Host;
use pki::issue::{Authority, Issued, self_signed};
use pki::key::{Curve, KeySpec, PrivateKey, RsaSize};
use pki::profile::{Config, Profile};
use pki::request::CertRequest;
use pki::serial::Serial;
use time::OffsetDateTime;

/// cfssl's configuration as the tutorial has it, byte for byte.
pub(crate) const CA_CONFIG: &[u8] = include_bytes!("../fixtures/ca-config.json");
/// The CA's request of the tutorial.
pub(crate) const CA_CSR: &[u8] = include_bytes!("../fixtures/ca-csr.json");
/// The server's request of the tutorial.
pub(crate) const SERVER_CSR: &[u8] = include_bytes!("../fixtures/server-csr.json");

/// Every kind of key.
pub(crate) const KINDS: [KeySpec; 7] = [
    KeySpec::Rsa(RsaSize::Bits2048),
    KeySpec::Rsa(RsaSize::Bits3072),
    KeySpec::Rsa(RsaSize::Bits4096),
    KeySpec::Ecdsa(Curve::P256),
    KeySpec::Ecdsa(Curve::P384),
    KeySpec::Ecdsa(Curve::P521),
    KeySpec::Ed25519,
];

/// A CA with its PEM.
pub(crate) struct Ca {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) authority: Authority,
}

/// A certificate with its PEM.
pub(crate) struct Leaf {
    pub(crate) issued: Issued,
    pub(crate) key: String,
}

/// A CA by the tutorial's request, with a key of this kind.
pub(crate) fn ca(kind: KeySpec, now: OffsetDateTime) -> Ca {
    let request = CertRequest { key: kind, ..CertRequest::parse("ca-csr.json", CA_CSR).unwrap() };
    let key = PrivateKey::generate(request.key).unwrap();
    let cert = self_signed(&request, &key, Serial::random().unwrap(), now).unwrap().cert_pem;
    let key = key.to_pem().to_owned();
    let authority = Authority::new("ca.pem", cert.as_bytes(), "ca-key.pem", key.as_bytes(), now).unwrap();
    Ca { cert, key, authority }
}

/// The profile `www` of the tutorial.
pub(crate) fn www() -> Profile {
    Config::parse("ca-config.json", CA_CONFIG)
        .unwrap()
        .profile("ca-config.json", Some("www"))
        .unwrap()
        .clone()
}

/// A certificate by the tutorial's request, with a key of this kind and these hosts besides its own.
pub(crate) fn leaf(
    ca: &Authority,
    profile: &Profile,
    kind: KeySpec,
    hosts: &[&str],
    now: OffsetDateTime,
) -> Leaf {
    let mut request = CertRequest { key: kind, ..CertRequest::parse("server-csr.json", SERVER_CSR).unwrap() };
    request.hosts.extend(hosts.iter().map(|h| Host::parse(h).unwrap()));
    let key = PrivateKey::generate(request.key).unwrap();
    let issued = ca.issue(&request, profile, &key, Serial::random().unwrap(), now).unwrap();
    Leaf { issued, key: key.to_pem().to_owned() }
}

/// Runs `openssl` in `dir`; gives success and all it printed.
///
/// # Panics
/// When there is no such program: these tests mean nothing without it.
pub(crate) fn openssl_result(dir: &Path, args: &[&str]) -> (bool, String) {
    let output = match Command::new("openssl").args(args).current_dir(dir).output() {
        Ok(output) => output,
        Err(e) => panic!("the tests of pki need the program openssl (apt-get install openssl): {e}"),
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

/// As [`openssl_result`], for what must succeed.
pub(crate) fn openssl(dir: &Path, args: &[&str]) -> String {
    let (success, text) = openssl_result(dir, args);
    assert!(success, "openssl {}: {text}", args.join(" "));
    text
}
