//! The answers of the v2 API: events and errors as JSON, with the times that only the answering member knows.
//!
//! Field order, omissions and escapes are etcd's (v2 API, sections 4 and 5).

use std::fmt::Write as _;

use time::OffsetDateTime;

use super::json;
use crate::tree::{Code, Event, NodeView, TreeError};

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

/// The body of an answer with an event. `now_ns` is this member's clock, for the remaining seconds.
pub fn event_body(event: &Event, now_ns: i64) -> String {
    let mut out = String::with_capacity(256);
    let _ = write!(out, "{{\"action\":\"{}\",\"node\":", event.action.as_str());
    write_node(&mut out, &event.node, now_ns);
    if let Some(prev) = &event.prev {
        out.push_str(",\"prevNode\":");
        write_node(&mut out, prev, now_ns);
    }
    out.push_str("}\n");
    out
}

/// The body of an answer to `noValueOnSuccess`.
pub fn action_body(event: &Event) -> String {
    format!("{{\"action\":\"{}\"}}\n", event.action.as_str())
}

/// The body of the answer to a look at a node.
pub fn get_body(node: &NodeView, now_ns: i64) -> String {
    let mut out = String::with_capacity(256);
    out.push_str("{\"action\":\"get\",\"node\":");
    write_node(&mut out, node, now_ns);
    out.push_str("}\n");
    out
}

/// What a node takes beside its strings and children: names of fields, numbers, a time.
const NODE_BYTES: usize = 200;

/// About how many bytes [`get_body`] makes of a node: as many, unless much in it has to be escaped, which takes up to
/// six times as much. Does not look into the values.
pub fn get_size(node: &NodeView) -> usize {
    let value = node.value.as_deref().map_or(0, str::len);
    let nodes: usize = node.nodes.iter().map(get_size).sum();
    NODE_BYTES + node.path.len() + value + nodes
}

/// The same for [`event_body`].
pub fn event_size(event: &Event) -> usize {
    get_size(&event.node) + event.prev.as_ref().map_or(0, get_size)
}

fn write_node(out: &mut String, node: &NodeView, now_ns: i64) {
    out.push('{');
    let start = out.len();
    let key = user_path(&node.path);
    if !key.is_empty() {
        out.push_str("\"key\":");
        json::write_string(out, key);
    }
    let comma = |out: &mut String| {
        if out.len() > start {
            out.push(',');
        }
    };
    if let Some(value) = &node.value {
        comma(out);
        out.push_str("\"value\":");
        json::write_string(out, value);
    }
    if node.dir {
        comma(out);
        out.push_str("\"dir\":true");
    }
    if let Some(expires_ns) = node.expires_ns {
        comma(out);
        let _ = write!(out, "\"expiration\":\"{}\"", rfc3339(expires_ns));
        let ttl = ttl_s(expires_ns, now_ns);
        if ttl != 0 {
            let _ = write!(out, ",\"ttl\":{ttl}");
        }
    }
    if !node.nodes.is_empty() {
        comma(out);
        out.push_str("\"nodes\":[");
        for (at, child) in node.nodes.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_node(out, child, now_ns);
        }
        out.push(']');
    }
    if node.modified != 0 {
        comma(out);
        let _ = write!(out, "\"modifiedIndex\":{}", node.modified);
    }
    if node.created != 0 {
        comma(out);
        let _ = write!(out, "\"createdIndex\":{}", node.created);
    }
    out.push('}');
}

/// Remaining seconds, rounded up; negative once the time is over.
pub fn ttl_s(expires_ns: i64, now_ns: i64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    let left = expires_ns.saturating_sub(now_ns);
    left.div_euclid(SECOND) + i64::from(left.rem_euclid(SECOND) != 0)
}

/// A time as Go's RFC 3339 with nanoseconds, trailing zeros dropped, in UTC.
pub fn rfc3339(ns: i64) -> String {
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
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
    use crate::tree::Action;

    fn view(path: &str, value: Option<&str>) -> NodeView {
        NodeView {
            path: path.into(),
            value: value.map(Into::into),
            dir: false,
            expires_ns: None,
            nodes: vec![],
            modified: 4,
            created: 4,
        }
    }

    #[test]
    fn the_size_of_a_body_is_about_known_before_it_is_made() {
        let mut dir = view("/1/d", None);
        dir.dir = true;
        let mut mortal = view("/1/d/f", Some("plain text"));
        (mortal.expires_ns, mortal.modified, mortal.created) = (Some(i64::MAX), u64::MAX, u64::MAX);
        dir.nodes = vec![mortal.clone(); 100];
        let made = get_body(&dir, i64::MIN).len();
        let known = get_size(&dir);
        assert!((made..made + 101 * NODE_BYTES).contains(&known), "{known} for {made}");
        let event = Event { action: Action::CompareAndDelete, node: mortal, prev: Some(dir), refresh: false };
        assert!(event_size(&event) >= event_body(&event, i64::MIN).len());
    }

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
    fn bodies_are_etcds() {
        let event = Event { action: Action::Set, node: view("/1/a", Some("1")), prev: None, refresh: false };
        assert_eq!(
            event_body(&event, 0),
            "{\"action\":\"set\",\"node\":{\"key\":\"/a\",\"value\":\"1\",\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        let root = NodeView { dir: true, modified: 0, created: 0, ..view("/1", None) };
        assert_eq!(get_body(&root, 0), "{\"action\":\"get\",\"node\":{\"dir\":true}}\n");
        let due = NodeView { expires_ns: Some(1_795_404_883_166_305_600), ..view("/1/a", Some("")) };
        assert_eq!(
            get_body(&due, 1_795_404_783_166_305_601),
            "{\"action\":\"get\",\"node\":{\"key\":\"/a\",\"value\":\"\",\"expiration\":\"2026-11-23T03:34:43.1663056Z\",\
             \"ttl\":100,\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
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
    fn seconds_are_rounded_up_and_go_negative() {
        for (left, want) in
            [(0, 0), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (-1, 0), (-1_500_000_000, -1)]
        {
            assert_eq!(ttl_s(left, 0), want, "{left} ns left");
        }
    }

    #[test]
    fn keys_map_below_their_root() {
        assert_eq!(full_path("/"), "/1");
        assert_eq!(full_path("/a/../../0/members"), "/1/0/members");
        assert_eq!(user_path("/1/a"), "/a");
    }
}
