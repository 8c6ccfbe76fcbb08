//! What can go wrong when talking to a store, sorted by who must act.

use std::fmt::Write as _;

/// An error of the v2 client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The store answered with one of the v2 API's own errors (etcd v2, error codes).
    ///
    /// Shown as etcd's clients show it: `100: Key not found (/nokey) [20]`.
    #[error("{code}: {message} ({cause}) [{index}]")]
    Api {
        /// The v2 error code, for example 100.
        code: u32,
        /// The code's fixed text, for example `Key not found`.
        message: String,
        /// What it was about, often a key; may be empty.
        cause: String,
        /// The store index at the time, 0 for errors found before the store was asked.
        index: u64,
        /// The HTTP status that came with it.
        status: u16,
        /// The endpoint that answered.
        endpoint: String,
    },
    /// No endpoint could be used. Every endpoint that was tried is listed, in the order of trying.
    #[error("client: etcd cluster is unavailable or misconfigured{}", list(attempts))]
    Unavailable {
        /// `(endpoint, why)` for each try.
        attempts: Vec<(String, String)>,
    },
    /// A request that must not be repeated may have reached the store, and no answer came: it may or may
    /// not have been carried out.
    #[error(
        "{endpoint}: the request was sent but not answered ({why}); it may or may not have been carried out"
    )]
    Unanswered {
        /// The endpoint that got the request.
        endpoint: String,
        /// How the answer was lost.
        why: String,
    },
    /// The endpoint answered, but not as a v2 store does.
    #[error("{endpoint}: HTTP status {status}: {body}")]
    Http {
        /// The endpoint that answered.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The start of the body, or the `message` in it.
        body: String,
    },
    /// The endpoint's answer could not be understood.
    #[error("{endpoint}: {what} cannot be understood: {why}")]
    Decode {
        /// The endpoint that answered.
        endpoint: String,
        /// Which answer.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration cannot work. `field` is the field of [`Config`](super::Config) at fault.
    #[error("{why}")]
    Config {
        /// The field's name, such as `tls.ca` or `endpoints`.
        field: &'static str,
        /// What is wrong and what to do about it; names the file or URL.
        why: String,
    },
}

impl ClientError {
    /// The v2 error code, if the store answered with one.
    pub fn api_code(&self) -> Option<u32> {
        match self {
            Self::Api { code, .. } => Some(*code),
            Self::Unavailable { .. }
            | Self::Unanswered { .. }
            | Self::Http { .. }
            | Self::Decode { .. }
            | Self::Config { .. } => None,
        }
    }

    /// Whether this is error 100, `Key not found`.
    pub fn is_key_not_found(&self) -> bool {
        self.api_code() == Some(100)
    }
}

/// The tries in etcd's wording: `; error #0: <why>` and a line end for each.
fn list(attempts: &[(String, String)]) -> String {
    let mut text = String::new();
    for (number, (endpoint, why)) in attempts.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        // Go's words name the address already. Writing to a String cannot fail.
        let _ = if why.starts_with("dial tcp ") {
            write!(text, "; error #{number}: {why}")
        } else {
            write!(text, "; error #{number}: {endpoint}: {why}")
        };
    }
    text
}
