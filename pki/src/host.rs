//! Which kind of subject alternative name a host of a request is: IP address, e-mail, URI or DNS name.
//!
//! The order of the tests is cfssl's (`csr.Generate`): address, then e-mail, then URI, and what remains is a
//! DNS name. cfssl takes anything for a DNS name; here a name that no verifier would ever match is an error.

use std::fmt;
use std::net::IpAddr;

/// A subject alternative name (RFC 5280 section 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name, possibly with `*` as its first label.
    Dns(String),
    /// An e-mail address.
    Email(String),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A URI with its scheme.
    Uri(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) | Self::Email(name) | Self::Uri(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// Why a string cannot be a subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host:?} is not a host: {why}")]
pub struct HostError {
    /// The string in question.
    pub host: String,
    /// What is wrong with it.
    pub why: HostProblem,
}

/// What is wrong with a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostProblem {
    /// The string is empty.
    #[error("it is empty")]
    Empty,
    /// A blank or control character is in it.
    #[error("it contains a blank or a control character")]
    Blank,
    /// Not ASCII.
    #[error("it is not ASCII; write an international name in its xn-- form")]
    NotAscii,
    /// All numbers and dots, but no address.
    #[error("it looks like an IP address and is none")]
    BadAddress,
    /// An address in brackets.
    #[error("write the IPv6 address without brackets")]
    Brackets,
    /// Something behind a colon.
    #[error("it contains a colon; a host has no port, and a URI starts with its scheme and ://")]
    Colon,
    /// A slash.
    #[error("it contains a slash; an address has no prefix length, and a URI starts with its scheme and ://")]
    Slash,
    /// Not a usable URI.
    #[error("it is not a valid URI")]
    BadUri,
    /// Not a usable e-mail address.
    #[error("it is not a valid e-mail address")]
    BadEmail,
    /// Longer than a DNS name can be.
    #[error("it is longer than the 253 characters of a DNS name")]
    TooLong,
    /// A dot at the end.
    #[error("write the DNS name without the dot at its end")]
    TrailingDot,
    /// An empty or too long label, or a character that no label has.
    #[error(
        "the label {label:?} is not one of a DNS name (1 to 63 letters, digits, - and _, no - at an end)"
    )]
    BadLabel {
        /// The label.
        label: String,
    },
    /// A wildcard elsewhere than in the first label, or alone.
    #[error("a * may only be the whole first label, as in *.example.org")]
    Wildcard,
}

impl Host {
    /// Decides what `text` is.
    ///
    /// # Errors
    /// [`HostError`] names the string and what makes it useless as a subject alternative name.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        classify(text).map_err(|why| HostError { host: text.to_owned(), why })
    }
}

fn classify(text: &str) -> Result<Host, HostProblem> {
    if text.is_empty() {
        return Err(HostProblem::Empty);
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(HostProblem::Blank);
    }
    if !text.is_ascii() {
        return Err(HostProblem::NotAscii);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        // ::ffff:10.0.0.1 becomes 10.0.0.1, as in Go; verifiers compare addresses by their bytes.
        return Ok(Host::Ip(ip.to_canonical()));
    }
    if text.starts_with('[') {
        return Err(HostProblem::Brackets);
    }
    if text.contains("://") || text.starts_with("urn:") {
        return uri(text);
    }
    if text.contains('@') {
        return email(text);
    }
    if text.contains(':') {
        return Err(HostProblem::Colon);
    }
    if text.contains('/') {
        return Err(HostProblem::Slash);
    }
    dns(text)?;
    Ok(Host::Dns(text.to_owned()))
}

/// RFC 3986 section 3, as far as a certificate needs it: a scheme, and the characters a URI may have.
fn uri(text: &str) -> Result<Host, HostProblem> {
    let (scheme, rest) = text.split_once(':').ok_or(HostProblem::BadUri)?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let rest_ok = !rest.trim_start_matches('/').is_empty()
        && rest.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b));
    if scheme_ok && rest_ok { Ok(Host::Uri(text.to_owned())) } else { Err(HostProblem::BadUri) }
}

/// RFC 5321's `local@domain` without quoting or comments; the domain is a DNS name without wildcard.
fn email(text: &str) -> Result<Host, HostProblem> {
    let (local, domain) = text.rsplit_once('@').ok_or(HostProblem::BadEmail)?;
    let local_ok = !local.is_empty()
        && local.split('.').all(|atom| !atom.is_empty())
        && local.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b));
    if local_ok && !domain.starts_with('*') && dns(domain).is_ok() {
        Ok(Host::Email(text.to_owned()))
    } else {
        Err(HostProblem::BadEmail)
    }
}

fn dns(text: &str) -> Result<(), HostProblem> {
    if text.len() > 253 {
        return Err(HostProblem::TooLong);
    }
    if text.ends_with('.') {
        return Err(HostProblem::TrailingDot);
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name.contains('*') {
        return Err(HostProblem::Wildcard);
    }
    for label in name.split('.') {
        let characters = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let ends = !label.starts_with('-') && !label.ends_with('-');
        if !(1..=63).contains(&label.len()) || !characters || !ends {
            return Err(HostProblem::BadLabel { label: label.to_owned() });
        }
    }
    // No top-level domain is a number, so this is a mistyped address that would silently match nothing.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(HostProblem::BadAddress);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_is_told_apart() {
        let ip = |s: &str| Host::Ip(s.parse().unwrap());
        for (text, want) in [
            ("192.168.31.63", ip("192.168.31.63")),
            ("::1", ip("::1")),
            ("::ffff:10.0.0.1", ip("10.0.0.1")),
            ("fd00::1:2", ip("fd00::1:2")),
            ("localhost", Host::Dns("localhost".into())),
            ("etcd-0.example.org", Host::Dns("etcd-0.example.org".into())),
            ("_srv.example.org", Host::Dns("_srv.example.org".into())),
            ("*.example.org", Host::Dns("*.example.org".into())),
            ("k8s-master", Host::Dns("k8s-master".into())),
            ("1.example", Host::Dns("1.example".into())),
            ("ops@example.org", Host::Email("ops@example.org".into())),
            ("a.b+c@example.org", Host::Email("a.b+c@example.org".into())),
            ("spiffe://cluster/ns/default", Host::Uri("spiffe://cluster/ns/default".into())),
            ("https://ops@example.org:8443/x?y=z", Host::Uri("https://ops@example.org:8443/x?y=z".into())),
            ("urn:uuid:1234", Host::Uri("urn:uuid:1234".into())),
        ] {
            assert_eq!(Host::parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_no_verifier_would_match_is_refused() {
        let label = |l: &str| HostProblem::BadLabel { label: l.into() };
        for (text, why) in [
            ("", HostProblem::Empty),
            ("192.168.31.63 ", HostProblem::Blank),
            ("two words", HostProblem::Blank),
            ("192.168.31.300", HostProblem::BadAddress),
            ("192.168.31", HostProblem::BadAddress),
            ("10", HostProblem::BadAddress),
            ("192.168.31.0/24", HostProblem::Slash),
            ("192.168.31.63:2379", HostProblem::Colon),
            ("node1:2379", HostProblem::Colon),
            ("fe80::1%eth0", HostProblem::Colon),
            ("[::1]", HostProblem::Brackets),
            ("münchen.example", HostProblem::NotAscii),
            ("example.org.", HostProblem::TrailingDot),
            ("a..b", label("")),
            (".example.org", label("")),
            ("-a.example.org", label("-a")),
            ("a_b$.example.org", label("a_b$")),
            ("*", HostProblem::Wildcard),
            ("a.*.example.org", HostProblem::Wildcard),
            ("f*.example.org", HostProblem::Wildcard),
            ("://x", HostProblem::BadUri),
            ("1http://x", HostProblem::BadUri),
            ("http://", HostProblem::BadUri),
            ("http://a|b", HostProblem::BadUri),
            ("@example.org", HostProblem::BadEmail),
            ("a@", HostProblem::BadEmail),
            ("a@b@c", HostProblem::BadEmail),
            ("a@*.example.org", HostProblem::BadEmail),
        ] {
            let err = Host::parse(text).unwrap_err();
            assert_eq!((err.host.as_str(), &err.why), (text, &why));
        }
        let long = format!("{}.example", "a".repeat(64));
        assert_eq!(Host::parse(&long).unwrap_err().why, label(&"a".repeat(64)));
        assert_eq!(Host::parse(&"a.".repeat(130)).unwrap_err().why, HostProblem::TooLong);
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_what_is_taken_is_shown_as_given(text in "\\PC{0,60}") {
            if let Ok(host) = Host::parse(&text) && !matches!(host, Host::Ip(_)) {
                prop_assert_eq!(host.to_string(), text);
            }
        }

        #[test]
        fn every_address_is_an_address(ip in any::<std::net::IpAddr>()) {
            prop_assert_eq!(Host::parse(&ip.to_string()), Ok(Host::Ip(ip.to_canonical())));
        }

        #[test]
        fn ordinary_names_are_dns_names(name in "[a-z][a-z0-9]{0,20}(\\.[a-z][a-z0-9-]{0,10}[a-z0-9]){0,4}") {
            prop_assert_eq!(Host::parse(&name), Ok(Host::Dns(name)));
        }
    }
}
