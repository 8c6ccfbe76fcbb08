#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use rcgen::KeyUsagePurpose;

use super::*;
use crate::usage::{CLIENT_AUTH, SERVER_AUTH};

const TUTORIAL: &[u8] = include_bytes!("../tests/fixtures/ca-config.json");

fn hours(h: u64) -> Duration {
    Duration::from_secs(h * 3600)
}

fn parse(json: &str) -> Result<Config, InputError> {
    Config::parse("ca-config.json", json.as_bytes())
}

fn error_of(json: &str) -> String {
    parse(json).unwrap_err().to_string()
}

/// A configuration with one profile `p`, whose fields are given.
fn one_profile(fields: &str) -> String {
    format!(r#"{{"signing": {{"default": {{"expiry": "1h"}}, "profiles": {{"p": {{{fields}}}}}}}}}"#)
}

#[test]
fn the_tutorials_configuration_is_read() {
    let config = Config::parse("ca-config.json", TUTORIAL).unwrap();
    let www = config.profile("ca-config.json", Some("www")).unwrap();
    assert_eq!(www.expiry, hours(87_600));
    assert_eq!(www.backdate, Duration::from_secs(300));
    assert_eq!(www.usages.key, [KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment]);
    assert_eq!(www.usages.extended, [SERVER_AUTH, CLIENT_AUTH]);
    assert_eq!(www.ca, None);
}

#[test]
fn an_unknown_profile_is_named_with_the_known_ones() {
    let config = Config::parse("ca-config.json", TUTORIAL).unwrap();
    let err = config.profile("ca-config.json", Some("wwww")).unwrap_err();
    assert_eq!(err.to_string(), "ca-config.json: signing.profiles.wwww: no such profile; known are www");
    // The tutorial's default profile has an expiry and no usages: signing with it is an error, as in cfssl.
    let err = config.profile("ca-config.json", None).unwrap_err();
    assert!(err.to_string().starts_with("ca-config.json: signing.default.usages: no usages"), "{err}");
}

#[test]
fn without_a_default_cfssls_own_applies() {
    let config = parse(r#"{"signing": {"profiles": {}}}"#).unwrap();
    let default = config.profile("c", None).unwrap();
    assert_eq!(default, &Profile::default());
    assert_eq!(default.expiry, hours(8_760));
    assert_eq!(default.usages.extended, [SERVER_AUTH, CLIENT_AUTH]);
}

#[test]
fn ca_constraints_follow_gos_zero_values() {
    for (constraint, want) in [
        (r#"{"is_ca": true}"#, Some(CaConstraint { max_path_len: None })),
        (r#"{"is_ca": true, "max_path_len": 0}"#, Some(CaConstraint { max_path_len: None })),
        (r#"{"is_ca": true, "max_path_len_zero": true}"#, Some(CaConstraint { max_path_len: Some(0) })),
        (r#"{"is_ca": true, "max_path_len": 3}"#, Some(CaConstraint { max_path_len: Some(3) })),
        (r#"{"is_ca": false}"#, None),
        ("null", None),
    ] {
        let json = one_profile(&format!(
            r#""expiry": "1h", "usages": ["cert sign"], "ca_constraint": {constraint}"#
        ));
        let config = parse(&json).unwrap();
        assert_eq!(config.profile("c", Some("p")).unwrap().ca, want, "{constraint}");
    }
}

#[test]
fn every_error_names_the_file_and_the_field() {
    let usages = r#""usages": ["server auth"]"#;
    let cases = [
        ("{".to_owned(), "ca-config.json: line 1, column 1: not valid JSON: EOF while parsing an object"),
        ("[]".to_owned(), "ca-config.json: the whole file: expected an object {...}, found a list"),
        ("{}".to_owned(), "ca-config.json: signing: missing; it holds \"default\" and \"profiles\""),
        (
            r#"{"signing": {"profile": {}}}"#.to_owned(),
            "ca-config.json: signing.profile: unknown field; known here are default, profiles",
        ),
        (
            r#"{"signing": {"default": {}}}"#.to_owned(),
            "ca-config.json: signing.default.expiry: missing; write a duration such as \"87600h\"",
        ),
        (
            one_profile(r#""expiry": "10y", "usages": []"#),
            "ca-config.json: signing.profiles.p.expiry: \"10y\" has the unit \"y\"; the units are h, m, s, ms, us \
             and ns (a year is 8760h)",
        ),
        (
            one_profile(r#""expiry": 87600, "usages": []"#),
            "ca-config.json: signing.profiles.p.expiry: expected a string, found a number",
        ),
        (
            one_profile(&format!(r#""expiry": "0s", {usages}"#)),
            "ca-config.json: signing.profiles.p.expiry: must be longer than zero",
        ),
        (
            one_profile(&format!(r#""expiry": "1h", "backdate": "60m", {usages}"#)),
            "ca-config.json: signing.profiles.p.backdate: is not shorter than the expiry, so the certificate \
             would be expired from the start",
        ),
        (
            one_profile(r#""expiry": "1h""#),
            "ca-config.json: signing.profiles.p.usages: no usages; name at least one, such as \"server auth\"",
        ),
        (
            one_profile(&format!(r#""expiry": "1h", {usages}, "auth_key": "k""#)),
            "ca-config.json: signing.profiles.p.auth_key: not supported; remove it; there is no signing over \
             the network here",
        ),
        (
            one_profile(&format!(r#""expiry": "1h", {usages}, "ocsp_url": "http://o""#)),
            "ca-config.json: signing.profiles.p.ocsp_url: not supported; remove it",
        ),
        (
            one_profile(&format!(r#""expiry": "1h", {usages}, "crl_url": "nowhere""#)),
            "ca-config.json: signing.profiles.p.crl_url: \"nowhere\" is not a host: it is not a valid URI",
        ),
        (
            one_profile(&format!(
                r#""expiry": "1h", {usages}, "ca_constraint": {{"is_ca": true, "max_path_len": 300}}"#
            )),
            "ca-config.json: signing.profiles.p.ca_constraint.max_path_len: 300 is out of range, 0 to 255",
        ),
    ];
    for (json, want) in cases {
        assert_eq!(error_of(&json), want, "{json}");
    }
    let err = error_of(&one_profile(r#""expiry": "1h", "usages": ["server auth", "sever auth"]"#));
    assert!(
        err.starts_with(
            "ca-config.json: signing.profiles.p.usages[1]: unknown usage \"sever auth\"; known are"
        ),
        "{err}"
    );
}

#[test]
fn settings_at_gos_zero_value_and_comments_pass() {
    let json = one_profile(
        r#""expiry": "1h", "usages": ["signing"], "ocsp_url": "", "policies": [], "auth_key": null,
           "ocsp_no_check": false, "_comment": "x", "//": "y", "BACKDATE": "1m""#,
    );
    let config = parse(&json).unwrap();
    assert_eq!(config.profile("c", Some("p")).unwrap().backdate, Duration::from_secs(60));
}

proptest! {
    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse("noise", &bytes);
    }

    #[test]
    fn any_list_of_known_usages_is_taken(picked in proptest::sample::subsequence(
        usage::names().collect::<Vec<_>>(), 1..10,
    )) {
        let list = serde_json::to_string(&picked).unwrap();
        let config = parse(&one_profile(&format!(r#""expiry": "1h", "usages": {list}"#))).unwrap();
        prop_assert!(!config.profile("c", Some("p")).unwrap().usages.is_empty());
    }
}
