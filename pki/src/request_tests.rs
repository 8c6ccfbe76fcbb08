#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn parse(json: &str) -> Result<CertRequest, InputError> {
    CertRequest::parse("server-csr.json", json.as_bytes())
}

#[test]
fn the_tutorials_requests_are_read() {
    let ca = CertRequest::parse("ca", include_bytes!("../tests/fixtures/ca-csr.json")).unwrap();
    let place = Subject {
        country: Some("CN".into()),
        state: Some("ShangHai".into()),
        locality: Some("ShangHai".into()),
        ..Subject::default()
    };
    assert_eq!(ca.subject, Subject { common_name: Some("etcd CA".into()), ..place.clone() });
    assert_eq!((ca.key, ca.hosts.len(), ca.ca), (KeySpec::Rsa(RsaSize::Bits2048), 0, None));

    let server = CertRequest::parse("s", include_bytes!("../tests/fixtures/server-csr.json")).unwrap();
    assert_eq!(server.subject, Subject { common_name: Some("etcd".into()), ..place });
    let hosts: Vec<_> = server.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["192.168.31.63", "192.168.31.65", "192.168.31.66"]);
    assert!(server.hosts.iter().all(|h| matches!(h, Host::Ip(_))));
}

#[test]
fn keys_are_cfssls() {
    for (key, want) in [
        (r#"{"algo": "rsa", "size": 3072}"#, KeySpec::Rsa(RsaSize::Bits3072)),
        (r#"{"algo": "rsa", "size": 4096}"#, KeySpec::Rsa(RsaSize::Bits4096)),
        (r#"{"algo": "ecdsa", "size": 256}"#, KeySpec::Ecdsa(Curve::P256)),
        (r#"{"algo": "ecdsa", "size": 384}"#, KeySpec::Ecdsa(Curve::P384)),
        (r#"{"algo": "ecdsa", "size": 521}"#, KeySpec::Ecdsa(Curve::P521)),
        (r#"{"algo": "ed25519"}"#, KeySpec::Ed25519),
        ("null", KeySpec::Ecdsa(Curve::P256)),
    ] {
        assert_eq!(parse(&format!(r#"{{"CN": "x", "key": {key}}}"#)).unwrap().key, want, "{key}");
    }
}

#[test]
fn a_ca_section_is_read() {
    let request =
        parse(r#"{"CN": "x", "ca": {"expiry": "87600h", "pathlen": 1, "backdate": "1h"}}"#).unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(
        request.ca,
        Some(CaOptions {
            expiry: hour * 87_600,
            backdate: hour,
            constraint: CaConstraint { max_path_len: Some(1) },
        })
    );
    assert_eq!(parse(r#"{"CN": "x", "ca": {}}"#).unwrap().ca, Some(CaOptions::default()));
    let zero = parse(r#"{"CN": "x", "ca": {"pathlenzero": true}}"#).unwrap();
    assert_eq!(zero.ca.unwrap().constraint.max_path_len, Some(0));
    let err = request.require_no_ca("server-csr.json").unwrap_err().to_string();
    assert_eq!(err, "server-csr.json: ca: only a CA has this section: use -initca, or remove it");
}

#[test]
fn every_error_names_the_file_and_the_field() {
    for (json, want) in [
        ("", "line 1, column 0: not valid JSON: EOF while parsing a value"),
        ("{\"CN\": \"x\",\n}", "line 2, column 1: not valid JSON: trailing comma"),
        ("{}", "CN: the subject is empty; give CN or names"),
        (r#"{"CN": 5}"#, "CN: expected a string, found a number"),
        (r#"{"CN": "a\u0000b"}"#, "CN: contains a control character"),
        (
            r#"{"CN": "x", "host": ["a"]}"#,
            "host: unknown field; known here are CN, hosts, key, names, ca, serialnumber, extensions, \
             delegation_enabled, crl_url",
        ),
        (r#"{"CN": "x", "hosts": "a"}"#, "hosts: expected a list of strings, found a string"),
        (r#"{"CN": "x", "hosts": ["a", 5]}"#, "hosts[1]: expected a string, found a number"),
        (
            r#"{"CN": "x", "hosts": ["a", "192.168.31.256"]}"#,
            "hosts[1]: \"192.168.31.256\" is not a host: it looks like an IP address and is none",
        ),
        (
            r#"{"CN": "x", "hosts": ["a", "two words"]}"#,
            "hosts[1]: \"two words\" is not a host: it contains a blank or a control character",
        ),
        (r#"{"CN": "x", "names": [{"C": true}]}"#, "names[0].C: expected a string, found a boolean"),
        (
            r#"{"CN": "x", "names": [{"O": "a"}, {"O": "b"}]}"#,
            "names[1].O: a second value of this attribute; one is supported",
        ),
        (r#"{"CN": "x", "names": [{"OID": {"1.2": "x"}}]}"#, "names[0].OID: not supported; remove it"),
        (r#"{"CN": "x", "names": [{"E": "x"}]}"#, "names[0].E: \"x\" is not a valid e-mail address"),
        (
            r#"{"CN": "x", "key": {"algo": "dsa", "size": 1}}"#,
            "key.algo: unknown key algorithm \"dsa\"; known are rsa, ecdsa and ed25519",
        ),
        (r#"{"CN": "x", "key": {}}"#, "key.algo: missing; write rsa, ecdsa or ed25519"),
        (
            r#"{"CN": "x", "key": {"algo": "rsa", "size": 1024}}"#,
            "key.size: 1024 is no size of rsa keys here; sizes are 2048, 3072 and 4096",
        ),
        (
            r#"{"CN": "x", "key": {"algo": "ecdsa", "size": 255}}"#,
            "key.size: 255 is no size of ecdsa keys here; sizes are 256, 384 and 521",
        ),
        (
            r#"{"CN": "x", "key": {"algo": "rsa", "size": "2048"}}"#,
            "key.size: expected a whole number from 0, found a string",
        ),
        (
            r#"{"CN": "x", "ca": {"expiry": "10"}}"#,
            "ca.expiry: \"10\" has a number without a unit; the units are h, m, s, ms, us and ns",
        ),
        (
            r#"{"CN": "x", "ca": {"pathlen": 1, "pathlenzero": true}}"#,
            "ca.pathlenzero: contradicts pathlen, which is not zero",
        ),
        (r#"{"CN": "x", "extensions": [{"id": "1"}]}"#, "extensions: not supported; remove it"),
    ] {
        assert_eq!(parse(json).unwrap_err().to_string(), format!("server-csr.json: {want}"), "{json}");
    }
}

#[test]
fn a_list_of_one_empty_host_is_no_host() {
    assert_eq!(parse(r#"{"CN": "x", "hosts": [""]}"#).unwrap().hosts, []);
    assert!(parse(r#"{"CN": "x", "hosts": ["", "a"]}"#).is_err());
}

#[test]
fn names_are_in_gos_order_and_string_types() {
    let subject = Subject {
        country: Some("CN".into()),
        state: Some("上海".into()),
        organization: Some("a_b".into()),
        common_name: Some("etcd CA".into()),
        email: Some("ops@example.org".into()),
        ..Subject::default()
    };
    let name = subject.to_distinguished_name();
    let types: Vec<_> = name.iter().map(|(ty, _)| ty.clone()).collect();
    assert_eq!(
        types,
        [
            DnType::CountryName,
            DnType::StateOrProvinceName,
            DnType::OrganizationName,
            DnType::CommonName,
            DnType::CustomDnType(OID_EMAIL.to_vec()),
        ]
    );
    assert!(matches!(name.get(&DnType::CountryName), Some(DnValue::PrintableString(_))));
    assert!(matches!(name.get(&DnType::StateOrProvinceName), Some(DnValue::Utf8String(_))));
    assert!(matches!(name.get(&DnType::OrganizationName), Some(DnValue::Utf8String(_))), "no _ in printable");
    assert!(matches!(name.get(&types[4]), Some(DnValue::Ia5String(_))));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = CertRequest::parse("noise", &bytes);
    }

    #[test]
    fn any_text_as_a_name_is_kept_or_refused(cn in "\\PC{1,30}", host in "\\PC{0,30}") {
        let json = serde_json::json!({"CN": cn, "hosts": [host]}).to_string();
        if let Ok(request) = parse(&json) {
            prop_assert_eq!(request.subject.common_name, Some(cn));
        }
    }
}
