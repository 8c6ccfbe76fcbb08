//! Requests to `/v2/keys`: query and form to a checked [`Request`], in etcd's order of checks.
//!
//! Source: etcd v2 API, sections 2 and 3, checked against etcd 3.4.

use super::v2::{ApiError, full_path};
use crate::flags::parse_bool;
use crate::tree::Op;
use crate::tree::path::{is_too_long as path_is_too_long, too_long_cause};

/// HTTP methods that the keys take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Look or watch.
    Get,
    /// Look, without a body in the answer.
    Head,
    /// Write.
    Put,
    /// Make in order.
    Post,
    /// Remove.
    Delete,
}

/// What a request to `/v2/keys` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Answered from this member's tree.
    Get(Get),
    /// Answered from this member's tree after a quorum has confirmed the leader.
    QuorumGet(Get),
    /// Wait for events.
    Watch {
        /// Full path.
        path: String,
        /// Everything below as well.
        recursive: bool,
        /// First index of interest; 0 for what comes next.
        since: u64,
        /// More than one event.
        stream: bool,
    },
    /// A change, to be replicated.
    Write {
        /// The operation. Expiry is still relative.
        write: Write,
        /// Answer with the action alone.
        no_value: bool,
    },
}

/// A look at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// Full path.
    pub path: String,
    /// The whole subtree.
    pub recursive: bool,
}

/// A change whose expiry is still relative to now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    op: Op,
    ttl_s: Option<u64>,
}

impl Write {
    /// The operation with an absolute expiry time, by the clock `now_ns` of the member that took the request.
    /// A time that does not fit is for ever, as in etcd.
    pub fn into_op(self, now_ns: i64) -> Op {
        let at = self.ttl_s.and_then(|ttl| {
            let ns = i64::try_from(ttl).ok()?.checked_mul(1_000_000_000)?;
            now_ns.checked_add(ns)
        });
        let mut op = self.op;
        match &mut op {
            Op::Set { expires_ns, .. }
            | Op::Create { expires_ns, .. }
            | Op::Update { expires_ns, .. }
            | Op::CompareAndSwap { expires_ns, .. } => *expires_ns = at,
            Op::Delete { .. } | Op::CompareAndDelete { .. } => {}
        }
        op
    }
}

/// Every name that means something.
const NAMES: [&str; 14] = [
    "dir",
    "noValueOnSuccess",
    "prevExist",
    "prevIndex",
    "prevValue",
    "quorum",
    "recursive",
    "refresh",
    "sorted",
    "stream",
    "ttl",
    "value",
    "wait",
    "waitIndex",
];

/// Names and values of a query or form. The first of a name counts.
struct Form {
    pairs: Vec<(String, String)>,
}

impl Form {
    /// Body first, so that it wins over the query.
    fn new(query: &str, body: Option<&[u8]>) -> Result<Form, ApiError> {
        let mut pairs = Vec::new();
        for part in [body.unwrap_or_default(), query.as_bytes()] {
            check_escapes(part)?;
            for (name, value) in form_urlencoded::parse(part) {
                // A form of nothing but names would otherwise take many times its own size.
                if NAMES.contains(&&*name) && !pairs.iter().any(|(known, _)| *known == name) {
                    pairs.push((name.into_owned(), value.into_owned()));
                }
            }
        }
        Ok(Form { pairs })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// `None` if absent; anything but Go's spellings of a boolean is an error with `cause`.
    fn flag(&self, name: &str, cause: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(text) => parse_bool(text).map(Some).ok_or_else(|| ApiError::new(209, cause)),
        }
    }

    fn index(&self, name: &str) -> Result<u64, ApiError> {
        match self.text(name) {
            "" => Ok(0),
            text => {
                parse_uint(text).ok_or_else(|| ApiError::new(203, format!("invalid value for \"{name}\"")))
            }
        }
    }
}

/// Go's unsigned integers: digits only, no sign.
fn parse_uint(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Go refuses a `%` that two hex digits do not follow; the parser used here would keep it.
fn check_escapes(text: &[u8]) -> Result<(), ApiError> {
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|&b| b == b'%') {
        at += found;
        let digits = text.get(at + 1..at + 3).filter(|pair| pair.iter().all(u8::is_ascii_hexdigit));
        if digits.is_none() {
            let shown = String::from_utf8_lossy(&text[at..text.len().min(at + 3)]).into_owned();
            return Err(ApiError::new(210, format!("invalid URL escape \"{shown}\"")));
        }
        at += 3;
    }
    Ok(())
}

/// Reads a request. `key` is the decoded path below `/v2/keys`; `form` is the body if it is a form.
///
/// # Errors
/// The first check that fails, with etcd's code and cause.
pub fn parse(method: Method, key: &str, query: &str, form: Option<&[u8]>) -> Result<Request, ApiError> {
    let takes_form = matches!(method, Method::Put | Method::Post);
    let form = Form::new(query, form.filter(|_| takes_form))?;
    let prev_index = form.index("prevIndex")?;
    let since = form.index("waitIndex")?;
    let quoted = |name: &str| form.flag(name, &format!("invalid value for \"{name}\""));
    let recursive = quoted("recursive")?.unwrap_or(false);
    quoted("sorted")?;
    let wait = quoted("wait")?.unwrap_or(false);
    let dir = quoted("dir")?.unwrap_or(false);
    let quorum = quoted("quorum")?.unwrap_or(false);
    let stream = quoted("stream")?.unwrap_or(false);
    if wait && method != Method::Get {
        return Err(ApiError::new(209, "\"wait\" can only be used with GET requests"));
    }
    let prev_value = form.get("prevValue");
    if prev_value == Some("") {
        return Err(ApiError::new(201, "\"prevValue\" cannot be empty"));
    }
    let no_value = quoted("noValueOnSuccess")?.unwrap_or(false);
    let ttl_s = match form.text("ttl") {
        "" => None,
        text => Some(parse_uint(text).ok_or_else(|| ApiError::new(202, "invalid value for \"ttl\""))?),
    };
    let prev_exist = form.flag("prevExist", "invalid value for prevExist")?;
    let refresh = form.flag("refresh", "invalid value for refresh")?.unwrap_or(false);
    if refresh && !form.text("value").is_empty() {
        return Err(ApiError::new(211, "A value was provided on a refresh"));
    }
    if refresh && ttl_s.is_none() {
        return Err(ApiError::new(212, "No TTL value set"));
    }

    let path = full_path(key);
    if path_is_too_long(&path) {
        return Err(ApiError::new(209, too_long_cause()));
    }
    let value = form.text("value").to_owned();
    let prev_value = prev_value.map(str::to_owned);
    let prev_index = Some(prev_index).filter(|&index| index != 0);
    let compares = prev_value.is_some() || prev_index.is_some();
    let expires_ns = None;
    let op = match (method, prev_exist) {
        (Method::Get | Method::Head, _) if quorum && method == Method::Get => {
            return Ok(Request::QuorumGet(Get { path, recursive }));
        }
        (Method::Get, _) if wait => return Ok(Request::Watch { path, recursive, since, stream }),
        (Method::Get | Method::Head, _) => return Ok(Request::Get(Get { path, recursive })),
        (Method::Post, _) => Op::Create { path, dir, value, expires_ns, in_order: true },
        (Method::Put, Some(false)) => Op::Create { path, dir, value, expires_ns, in_order: false },
        (Method::Put, _) if compares => {
            Op::CompareAndSwap { path, prev_value, prev_index, value, expires_ns, refresh }
        }
        (Method::Put, Some(true)) => Op::Update { path, value, expires_ns, refresh },
        (Method::Put, None) => Op::Set { path, dir, value, expires_ns, refresh },
        (Method::Delete, _) if compares => Op::CompareAndDelete { path, prev_value, prev_index },
        (Method::Delete, _) => Op::Delete { path, dir, recursive },
    };
    let no_value = no_value && takes_form;
    Ok(Request::Write { write: Write { op, ttl_s }, no_value })
}

#[cfg(test)]
#[path = "v2_request_tests.rs"]
mod tests;
