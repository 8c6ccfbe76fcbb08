//! The answers of the v2 API: what goes wrong as etcd says it (v2 API, section 5); the rest is in [`super::v2_body`].

use std::fmt::Write as _;

use super::json;
pub use super::v2_body::{
    action_body, event_body, event_size, get_body, get_size, get_size_within, rfc3339, short_event_body,
};
use crate::tree::{Code, TreeError};

/// Where users' keys live in the tree; not part of what they see.
pub const KEYS_ROOT: &str = "/1";

/// The full path of a user's key.
pub fn full_path(key: &str) -> String {
    crate::tree::path::clean(&format!("{KEYS_ROOT}/{}", crate::tree::path::clean(key)))
}

/// A path as users see it; empty for their root.
pub fn user_path(path: &str) -> &str {
    path.strip_prefix(KEYS_ROOT).unwrap_or(path)
}

/// An error of the v2 keys API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// etcd's error code.
    pub code: u32,
    /// What was at fault; may be empty.
    pub cause: String,
    /// The tree's index; 0 for requests that never reached it.
    pub index: u64,
    /// The HTTP status, where it is not the one that goes with the code.
    http: Option<u16>,
    /// The limit that the client met, if it is one that etcd does not have.
    limit: Option<&'static str>,
}

/// etcd's words for a member with too much to do.
pub const TOO_MANY_REQUESTS: &str = "etcdserver: too many requests";

impl ApiError {
    /// An error from before the tree.
    pub fn new(code: u32, cause: impl Into<String>) -> ApiError {
        ApiError { code, cause: cause.into(), index: 0, http: None, limit: None }
    }

    /// A limit of this member that etcd does not have: status 503, at which clients turn to another member, with
    /// etcd's words for too much to do before `limit`.
    pub fn busy(limit: &'static str) -> ApiError {
        ApiError::busy_with(limit, limit)
    }

    /// The same with words that differ from one request to the next. `limit`, which does not, is what the log goes by
    /// when it tells something once and not for every request.
    pub fn busy_with(limit: &'static str, what: impl std::fmt::Display) -> ApiError {
        let error = ApiError::raft(format!("{TOO_MANY_REQUESTS}: {what}"));
        ApiError { http: Some(503), limit: Some(limit), ..error }
    }

    /// A form that does not come in time: status 408.
    pub fn late(cause: impl Into<String>) -> ApiError {
        ApiError {
            http: Some(408),
            limit: Some("the form did not arrive in time"),
            ..ApiError::new(210, cause)
        }
    }

    /// The limit that the client met, which the operator may want to know; the same words whatever the numbers.
    pub fn limit(&self) -> Option<&'static str> {
        let overload = self.code == 300 && self.cause == TOO_MANY_REQUESTS;
        self.limit.or(overload.then_some(TOO_MANY_REQUESTS))
    }

    /// Code 300: consensus did not answer.
    pub fn raft(cause: impl Into<String>) -> ApiError {
        ApiError::new(300, cause)
    }

    /// The HTTP status: as a rule the one that goes with the code.
    pub const fn status(&self) -> u16 {
        if let Some(status) = self.http {
            return status;
        }
        match self.code {
            100 => 404,
            101 | 105 => 412,
            102 | 108 => 403,
            110 => 401,
            300 | 301 => 500,
            _ => 400,
        }
    }

    /// etcd's text for the code.
    pub const fn message(&self) -> &'static str {
        match self.code {
            100 => "Key not found",
            101 => "Compare failed",
            102 => "Not a file",
            104 => "Not a directory",
            105 => "Key already exists",
            107 => "Root is read only",
            108 => "Directory not empty",
            110 => "The request requires user authentication",
            201 => "PrevValue is Required in POST form",
            202 => "The given TTL in POST form is not a number",
            203 => "The given index in POST form is not a number",
            209 => "Invalid field",
            210 => "Invalid POST form",
            211 => "Value provided on refresh",
            212 => "A TTL must be provided on refresh",
            300 => "Raft Internal Error",
            301 => "During Leader Election",
            401 => "The event in requested index is outdated and cleared",
            _ => "Client Internal Error",
        }
    }

    /// The body of the answer.
    pub fn body(&self) -> String {
        let mut out = format!("{{\"errorCode\":{},\"message\":\"{}\"", self.code, self.message());
        if !self.cause.is_empty() {
            out.push_str(",\"cause\":");
            json::write_string(&mut out, &self.cause);
        }
        let _ = writeln!(out, ",\"index\":{}}}", self.index);
        out
    }
}

impl From<TreeError> for ApiError {
    fn from(error: TreeError) -> ApiError {
        let is_path = !matches!(error.code, Code::CompareFailed | Code::EventCleared | Code::KeyTooLong);
        let cause = if is_path { user_path(&error.cause).to_owned() } else { error.cause };
        ApiError { code: error.code.number(), cause, index: error.index, http: None, limit: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_apart_and_has_etcds_words() {
        let busy = ApiError::busy_with("watches", "12 watches are the most");
        assert_eq!(busy.status(), 503);
        assert_eq!(
            busy.body(),
            "{\"errorCode\":300,\"message\":\"Raft Internal Error\",\"cause\":\"etcdserver: too many requests: 12 \
             watches are the most\",\"index\":0}\n"
        );
        assert_eq!(ApiError::late("slow").status(), 408);
        assert_eq!(busy.limit(), Some("watches"));
        assert_eq!(ApiError::late("12 bytes").limit(), ApiError::late("13 bytes").limit());
        assert_eq!(ApiError::raft(TOO_MANY_REQUESTS).limit(), Some(TOO_MANY_REQUESTS));
        assert_eq!(ApiError::raft("etcdserver: request timed out").limit(), None);
    }

    #[test]
    fn errors_carry_cause_and_index() {
        let error = ApiError { index: 5, ..ApiError::new(100, "/nokey") };
        assert_eq!(
            error.body(),
            "{\"errorCode\":100,\"message\":\"Key not found\",\"cause\":\"/nokey\",\"index\":5}\n"
        );
        assert_eq!(
            ApiError::new(102, "").body(),
            "{\"errorCode\":102,\"message\":\"Not a file\",\"index\":0}\n"
        );
    }

    #[test]
    fn keys_map_below_their_root() {
        assert_eq!(full_path("/"), "/1");
        assert_eq!(full_path("/a/../../0/members"), "/1/0/members");
        assert_eq!(user_path("/1/a"), "/a");
    }
}
