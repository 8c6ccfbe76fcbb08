//! Another program's opinion: `openssl` must read, verify and understand all we write, and we must be able to
//! sign with what it writes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use pki::host::Host;
use pki::issue::{Authority, IssueError};
use pki::key::{Curve, KeyError, KeySpec, PrivateKey};
use pki::profile::Profile;
use pki::request::{CertRequest, Subject};
use pki::serial::Serial;
use pki::usage;
use support::{KINDS, ca, leaf, openssl, openssl_result, www};
use time::OffsetDateTime;

const P256: KeySpec = KeySpec::Ecdsa(Curve::P256);

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, contents) in files {
        fs::write(dir.join(name), contents).unwrap();
    }
}

/// Text of a certificate, with runs of blanks made one, for openssl's layout differs between versions.
fn text_of(dir: &Path, file: &str) -> String {
    let text =
        openssl(dir, &["x509", "-in", file, "-noout", "-text", "-nameopt", "utf8,sep_comma_plus,sname"]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_kind_of_key_signs_and_is_signed() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let ca = ca(kind, now());
        let leaf = leaf(&ca.authority, &www(), kind, &[], now());
        write(
            dir,
            &[
                ("ca.pem", &ca.cert),
                ("ca-key.pem", &ca.key),
                ("server.pem", &leaf.issued.cert_pem),
                ("server-key.pem", &leaf.key),
                ("server.csr", &leaf.issued.csr_pem),
            ],
        );
        for purpose in ["sslserver", "sslclient"] {
            let out = openssl(
                dir,
                &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "server.pem"],
            );
            assert_eq!(out.trim(), "server.pem: OK", "{kind:?}");
        }
        // Both keys are sound, belong to their certificates, and the request is signed by the same key.
        for (cert, key) in [("ca.pem", "ca-key.pem"), ("server.pem", "server-key.pem")] {
            openssl(dir, &["pkey", "-in", key, "-check", "-noout"]);
            let of_cert = openssl(dir, &["x509", "-in", cert, "-noout", "-pubkey"]);
            assert_eq!(openssl(dir, &["pkey", "-in", key, "-pubout"]), of_cert, "{kind:?}");
        }
        openssl(dir, &["req", "-in", "server.csr", "-noout", "-verify"]);
        let of_csr = openssl(dir, &["req", "-in", "server.csr", "-noout", "-pubkey"]);
        assert_eq!(openssl(dir, &["x509", "-in", "server.pem", "-noout", "-pubkey"]), of_csr);
    }
}

#[test]
fn openssl_shows_what_the_tutorial_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let rsa = KINDS[0];
    let ca = ca(rsa, now());
    let leaf = leaf(
        &ca.authority,
        &www(),
        rsa,
        &["etcd.example", "::1", "ops@example.org", "spiffe://weft/s"],
        now(),
    );
    write(
        dir,
        &[("ca.pem", &ca.cert), ("server.pem", &leaf.issued.cert_pem), ("server.csr", &leaf.issued.csr_pem)],
    );

    let text = text_of(dir, "ca.pem");
    for part in [
        "Issuer: C=CN,ST=ShangHai,L=ShangHai,CN=etcd CA ",
        "Subject: C=CN,ST=ShangHai,L=ShangHai,CN=etcd CA ",
        "Basic Constraints: critical CA:TRUE ",
        "Key Usage: critical Certificate Sign, CRL Sign ",
        "Signature Algorithm: sha256WithRSAEncryption ",
        "Public-Key: (2048 bit)",
        "Subject Key Identifier:",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("Alternative Name") && !text.contains("pathlen"), "{text}");

    let text = text_of(dir, "server.pem");
    for part in [
        "Version: 3",
        "Issuer: C=CN,ST=ShangHai,L=ShangHai,CN=etcd CA ",
        "Subject: C=CN,ST=ShangHai,L=ShangHai,CN=etcd ",
        "Subject Alternative Name: DNS:etcd.example, email:ops@example.org, IP Address:192.168.31.63, \
         IP Address:192.168.31.65, IP Address:192.168.31.66, IP Address:0:0:0:0:0:0:0:1, URI:spiffe://weft/s ",
        "Basic Constraints: critical CA:FALSE ",
        "Key Usage: critical Digital Signature, Key Encipherment ",
        "Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let identifier = |text: &str, which: &str| {
        let after = text.split(which).nth(1).unwrap();
        after.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(
        identifier(&text, "Authority Key Identifier: "),
        identifier(&text_of(dir, "ca.pem"), "Subject Key Identifier: "),
    );

    let csr = openssl(dir, &["req", "-in", "server.csr", "-noout", "-text"]);
    assert!(csr.contains("IP Address:192.168.31.66") && !csr.contains("Key Usage"), "{csr}");
    assert!(openssl(dir, &["asn1parse", "-in", "server.pem"]).contains("PRINTABLESTRING   :ShangHai"));
}

#[test]
fn strength_of_the_hash_follows_the_cas_key() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, want) in KINDS.into_iter().zip([
        "sha256WithRSAEncryption",
        "sha384WithRSAEncryption",
        "sha512WithRSAEncryption",
        "ecdsa-with-SHA256",
        "ecdsa-with-SHA384",
        "ecdsa-with-SHA512",
        "ED25519",
    ]) {
        // Read back from PEM, which is where a key's hash could get lost.
        let ca = ca(kind, now());
        write(dir.path(), &[("leaf.pem", &leaf(&ca.authority, &www(), P256, &[], now()).issued.cert_pem)]);
        let text = text_of(dir.path(), "leaf.pem");
        assert!(text.contains(&format!("Signature Algorithm: {want} ")), "{kind:?}: {text}");
    }
}

#[test]
fn openssl_knows_every_usage_by_its_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ca(P256, now());
    let shown = [
        ("signing", "Digital Signature"),
        ("digital signature", "Digital Signature"),
        ("content commitment", "Non Repudiation"),
        ("content committment", "Non Repudiation"),
        ("key encipherment", "Key Encipherment"),
        ("data encipherment", "Data Encipherment"),
        ("key agreement", "Key Agreement"),
        ("cert sign", "Certificate Sign"),
        ("crl sign", "CRL Sign"),
        ("encipher only", "Encipher Only"),
        ("decipher only", "Decipher Only"),
        ("any", "Any Extended Key Usage"),
        ("server auth", "TLS Web Server Authentication"),
        ("client auth", "TLS Web Client Authentication"),
        ("code signing", "Code Signing"),
        ("email protection", "E-mail Protection"),
        ("s/mime", "E-mail Protection"),
        ("ipsec end system", "IPSec End System"),
        ("ipsec tunnel", "IPSec Tunnel"),
        ("ipsec user", "IPSec User"),
        ("timestamping", "Time Stamping"),
        ("ocsp signing", "OCSP Signing"),
        ("microsoft sgc", "Microsoft Server Gated Crypto"),
        ("netscape sgc", "Netscape Server Gated Crypto"),
    ];
    let mut names: Vec<_> = usage::names().collect();
    names.sort_unstable();
    let mut here: Vec<_> = shown.iter().map(|(name, _)| *name).collect();
    here.sort_unstable();
    assert_eq!(names, here, "the table of this test is complete");
    for (name, want) in shown {
        let mut profile = Profile { usages: usage::Usages::default(), ..Profile::default() };
        assert!(profile.usages.add(name));
        write(dir.path(), &[("leaf.pem", &leaf(&ca.authority, &profile, P256, &[], now()).issued.cert_pem)]);
        let text = text_of(dir.path(), "leaf.pem");
        assert!(
            text.contains(&format!("Key Usage: critical {want} X509v3"))
                || text.contains(&format!("Extended Key Usage: {want} X509v3")),
            "{name}: {text}"
        );
    }
}

#[test]
fn a_ca_made_by_openssl_signs_in_every_form_of_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (algorithm, forms) in [
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"][..], &["pkcs8", "traditional"][..]),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], &["pkcs8", "traditional", "ecparam"]),
        (&["-algorithm", "ED25519"], &["pkcs8"]),
    ] {
        openssl(dir, &[&["genpkey", "-out", "key"], algorithm].concat());
        openssl(
            dir,
            &[
                "req",
                "-x509",
                "-new",
                "-key",
                "key",
                "-out",
                "ca.pem",
                "-days",
                "30",
                "-subj",
                "/C=DE/O=Wüst/CN=Other CA",
                "-utf8",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ],
        );
        for form in forms {
            match *form {
                "traditional" => {
                    openssl(dir, &["pkey", "-in", "key", "-traditional", "-out", "ca-key.pem"]);
                }
                // openssl ecparam puts a block of its own in front of the key.
                "ecparam" => {
                    let params = openssl(dir, &["ecparam", "-name", "secp384r1"]);
                    let key = openssl(dir, &["pkey", "-in", "key", "-traditional"]);
                    write(dir, &[("ca-key.pem", &format!("{params}{key}"))]);
                }
                _ => drop(fs::copy(dir.join("key"), dir.join("ca-key.pem")).unwrap()),
            }
            let (cert, key) =
                (fs::read(dir.join("ca.pem")).unwrap(), fs::read(dir.join("ca-key.pem")).unwrap());
            let authority = Authority::new("ca.pem", &cert, "ca-key.pem", &key, now()).unwrap();
            write(dir, &[("leaf.pem", &leaf(&authority, &www(), P256, &[], now()).issued.cert_pem)]);
            openssl(dir, &["verify", "-x509_strict", "-CAfile", "ca.pem", "leaf.pem"]);
        }
    }
}

#[test]
fn what_cannot_sign_is_refused_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let authority = |cert: &str, key: &str| {
        let (cert, key) = (fs::read(dir.join(cert)).unwrap(), fs::read(dir.join(key)).unwrap());
        Authority::new("ca.pem", &cert, "ca-key.pem", &key, now()).unwrap_err()
    };
    let make = |subject: &str, more: &[&str]| {
        let base = ["req", "-x509", "-new", "-key", "key", "-out", "ca.pem", "-days", "30", "-subj", subject];
        openssl(dir, &[&base[..], more].concat());
    };
    openssl(dir, &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key"]);

    make("/CN=Other CA", &[]);
    openssl(dir, &["pkey", "-in", "key", "-aes128", "-passout", "pass:secret", "-out", "encrypted"]);
    let file = || "ca-key.pem".to_owned();
    assert_eq!(authority("ca.pem", "encrypted"), KeyError::Encrypted { file: file() }.into());
    openssl(
        dir,
        &["pkey", "-in", "key", "-traditional", "-aes128", "-passout", "pass:secret", "-out", "encrypted"],
    );
    assert_eq!(authority("ca.pem", "encrypted"), KeyError::Encrypted { file: file() }.into());
    openssl(dir, &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-out", "odd"]);
    assert!(matches!(authority("ca.pem", "odd"), IssueError::Key(KeyError::Unusable { .. })));
    openssl(dir, &["genpkey", "-algorithm", "ED25519", "-out", "other"]);
    let err = authority("ca.pem", "other").to_string();
    assert_eq!(
        err,
        "ca-key.pem: this Ed25519 key does not belong to the CA certificate ca.pem (ECDSA P-256)"
    );

    make("/CN=Other CA", &["-addext", "basicConstraints=critical,CA:FALSE"]);
    // openssl writes its own basic constraints too where the default configuration says so; then it is unreadable.
    let err = authority("ca.pem", "key");
    assert!(matches!(err, IssueError::NotCa { .. } | IssueError::BadCertificate { .. }), "{err}");
    make("/DC=org/DC=example/CN=Other CA", &[]);
    assert!(matches!(authority("ca.pem", "key"), IssueError::IssuerName { .. }));
    make("/C=C?/CN=Other CA", &[]);
    let err = authority("ca.pem", "key").to_string();
    assert!(err.contains("question mark"), "{err}");
    make("/CN=Other CA+O=x", &["-multivalue-rdn"]);
    assert!(matches!(authority("ca.pem", "key"), IssueError::IssuerName { .. }));
}

#[test]
fn an_intermediate_made_here_holds_for_openssl() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let root = ca(P256, now());
    let json = br#"{"signing": {"profiles": {"ca": {"expiry": "8760h", "usages": ["cert sign", "crl sign"],
                    "ca_constraint": {"is_ca": true, "max_path_len_zero": true}}}}}"#;
    let config = pki::profile::Config::parse("c", json).unwrap();
    let key = PrivateKey::generate(P256).unwrap();
    let request = CertRequest { subject: Subject::common_name("below"), hosts: vec![], key: P256, ca: None };
    let below = root
        .authority
        .issue(&request, config.profile("c", Some("ca")).unwrap(), &key, Serial::random().unwrap(), now())
        .unwrap();
    let authority =
        Authority::new("below", below.cert_pem.as_bytes(), "key", key.to_pem().as_bytes(), now()).unwrap();
    write(
        dir,
        &[
            ("root.pem", &root.cert),
            ("below.pem", &below.cert_pem),
            ("leaf.pem", &leaf(&authority, &www(), P256, &[], now()).issued.cert_pem),
        ],
    );
    assert!(text_of(dir, "below.pem").contains("Basic Constraints: critical CA:TRUE, pathlen:0 "));
    openssl(dir, &["verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "below.pem", "leaf.pem"]);
    let (success, text) = openssl_result(dir, &["verify", "-CAfile", "root.pem", "leaf.pem"]);
    assert!(!success, "without the intermediate there is no chain: {text}");
}

#[test]
fn names_hold_for_openssl() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = ca(P256, now());
    let hosts = ["*.store.example", "10.0.0.1"].map(|h| Host::parse(h).unwrap());
    let request =
        CertRequest { subject: Subject::common_name("上海"), hosts: hosts.into(), key: P256, ca: None };
    let key = PrivateKey::generate(P256).unwrap();
    let issued = ca.authority.issue(&request, &www(), &key, Serial::random().unwrap(), now()).unwrap();
    write(dir, &[("ca.pem", &ca.cert), ("leaf.pem", &issued.cert_pem)]);
    for (check, name, holds) in [
        ("-verify_hostname", "n1.store.example", true),
        ("-verify_hostname", "store.example", false),
        ("-verify_ip", "10.0.0.1", true),
        ("-verify_ip", "10.0.0.2", false),
    ] {
        let (success, text) = openssl_result(dir, &["verify", "-CAfile", "ca.pem", check, name, "leaf.pem"]);
        assert_eq!(success, holds, "{name}: {text}");
    }
    let subject = openssl(dir, &["x509", "-in", "leaf.pem", "-noout", "-subject", "-nameopt", "utf8"]);
    assert!(subject.contains("上海"), "{subject}");
}
