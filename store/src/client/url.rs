//! Endpoint URLs, key paths and query strings. Pure.

use hyper::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::ClientError;

/// What Go leaves as it is in a URL path (RFC 3986 section 3.3, `pchar` less what Go escapes, and `/`).
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// One server to talk to: scheme, host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Endpoint {
    /// The URL without a trailing slash, as it appears in messages and in `Client::endpoints`.
    pub(super) url: String,
    pub(super) https: bool,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// `host:port` as the `Host` header carries it.
    pub(super) authority: String,
}

impl Endpoint {
    /// Reads `http://host:port` or `https://host:port`, with or without a trailing slash.
    pub(super) fn parse(text: &str) -> Result<Self, ClientError> {
        let (endpoint, path) = Self::split(text)?;
        if path != "/" {
            return Err(bad(text, "an endpoint has no path or query"));
        }
        Ok(endpoint)
    }

    /// Reads a whole URL into its endpoint and its path with query.
    pub(super) fn split(text: &str) -> Result<(Self, String), ClientError> {
        // Known by name, since its form is not that of a URL with a host.
        if text.trim_start().starts_with("unix") {
            return Err(bad(text, "unix sockets are not supported by this client"));
        }
        let uri: Uri =
            text.trim().parse().map_err(|e: hyper::http::uri::InvalidUri| bad(text, &e.to_string()))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad(text, "it must begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad(text, "it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad(text, "credentials in a URL are not supported; give the user name separately"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad(text, "it names no host"));
        }
        // A port that is there but does not parse must not turn into the default.
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, digits)) if !digits.contains(']') => {
                digits.parse().map_err(|_| bad(text, "its port is not a number from 0 to 65535"))?
            }
            _ => {
                if https {
                    443
                } else {
                    80
                }
            }
        };
        let scheme = if https { "https" } else { "http" };
        let endpoint = Self {
            url: format!("{scheme}://{authority}"),
            https,
            host,
            port,
            authority: authority.to_string(),
        };
        let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
        Ok((endpoint, path.to_owned()))
    }
}

fn bad(url: &str, why: &str) -> ClientError {
    ClientError::Config { field: "endpoints", why: format!("endpoint {url:?} is not a usable URL: {why}") }
}

/// The request path of a key below `/v2/keys`, escaped as etcd's own client escapes it.
///
/// Empty and `.` segments are dropped and `..` takes away the one before it, because the server would answer
/// such a path with a redirect; a trailing slash stays.
pub(super) fn key_path(key: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in key.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut path = String::from("/v2/keys");
    for segment in &segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, PATH));
    }
    if key.ends_with('/') && !segments.is_empty() {
        path.push('/');
    }
    path
}

/// Appends a query to a path; nothing if there are no parameters.
pub(super) fn with_query(path: &str, parameters: &[(&str, String)]) -> String {
    if parameters.is_empty() { path.to_owned() } else { format!("{path}?{}", form(parameters)) }
}

/// A form body or query string.
pub(super) fn form(parameters: &[(&str, String)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoints_of_both_schemes_are_read() {
        let e = Endpoint::parse("https://192.168.31.63:2379/").unwrap();
        assert_eq!(
            (e.url.as_str(), e.https, e.host.as_str(), e.port),
            ("https://192.168.31.63:2379", true, "192.168.31.63", 2379)
        );
        let e = Endpoint::parse(" http://[::1]:4001").unwrap();
        assert_eq!(
            (e.https, e.host.as_str(), e.port, e.authority.as_str()),
            (false, "::1", 4001, "[::1]:4001")
        );
        assert_eq!(Endpoint::parse("http://h").unwrap().port, 80);
        assert_eq!(Endpoint::parse("https://[::1]").unwrap().port, 443);
    }

    #[test]
    fn what_is_no_endpoint_is_refused_by_name() {
        for (text, says) in [
            ("127.0.0.1:2379", "must begin with http"),
            ("ftp://h:1", "must begin with http"),
            ("unix:///run/x", "unix sockets"),
            ("http://h:1/v2", "no path"),
            ("http://h:99999", "port"),
            ("http://u:p@h:1", "credentials"),
            ("", "must begin"),
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            let shown = error.to_string();
            assert!(matches!(error, ClientError::Config { field: "endpoints", .. }), "{text}");
            assert!(shown.contains(&format!("{text:?}")), "{shown}");
            assert!(text.is_empty() || shown.contains(says), "{shown} should say {says}");
        }
    }

    #[test]
    fn keys_are_escaped_like_etcds_client_does() {
        for (key, path) in [
            ("/a/b", "/v2/keys/a/b"),
            ("a", "/v2/keys/a"),
            ("/", "/v2/keys"),
            ("", "/v2/keys"),
            ("/a//b/./c/../d", "/v2/keys/a/b/d"),
            ("/../x", "/v2/keys/x"),
            ("/dir/", "/v2/keys/dir/"),
            ("/a b%?#", "/v2/keys/a%20b%25%3F%23"),
            ("/ü", "/v2/keys/%C3%BC"),
            ("/172.17.71.0-24", "/v2/keys/172.17.71.0-24"),
            ("/$&+,:;=@-_.~", "/v2/keys/$&+,:;=@-_.~"),
        ] {
            assert_eq!(key_path(key), path);
        }
    }

    proptest! {
        #[test]
        fn any_key_makes_a_path_that_decodes_to_its_segments(key in ".{0,40}") {
            let path = key_path(&key);
            prop_assert!(path.parse::<Uri>().is_ok());
            let decoded = percent_encoding::percent_decode_str(path.strip_prefix("/v2/keys").unwrap()).decode_utf8().unwrap().into_owned();
            prop_assert_eq!(key_path(&decoded), path);
        }

        #[test]
        fn noise_never_panics(text in ".{0,60}") {
            let _ = Endpoint::split(&text);
        }
    }
}
