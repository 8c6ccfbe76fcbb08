//! What is sent and what came back, between the v2 API's types and HTTP. Pure.

use hyper::{HeaderMap, Method};
use serde::de::DeserializeOwned;

use super::{
    ClientError, PutOptions, Response,
    conn::Answer,
    types,
    url::{self, Endpoint},
};

/// How much of a body that is not understood is shown.
const SHOWN_BODY_CHARS: usize = 200;

/// A request before it is known which endpoint gets it.
pub(super) struct Call {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) form: Option<String>,
}

impl Call {
    pub(super) fn get(path: String) -> Self {
        Self { method: Method::GET, path, form: None }
    }

    /// The request as a command to repeat it with, in etcdctl's form. Credentials are left out.
    pub(super) fn as_curl(&self, endpoint: &Endpoint) -> String {
        let body = self.form.as_ref().map_or_else(String::new, |form| format!(" -d \"{form}\""));
        format!("curl -X {} {}{}{body}", self.method, endpoint.url, self.path)
    }
}

/// Conditions go in the query, what is to be stored in the body, as etcd's own client sends them.
pub(super) fn put_call(key: &str, options: &PutOptions) -> Call {
    let mut query = Vec::new();
    if options.dir {
        query.push(("dir", "true".to_owned()));
    }
    query.extend(options.prev_exist.map(|exist| ("prevExist", exist.to_string())));
    query.extend(options.prev_index.map(|index| ("prevIndex", index.to_string())));
    query.extend(options.prev_value.clone().map(|value| ("prevValue", value)));
    let mut body = Vec::new();
    if options.refresh {
        body.push(("refresh", "true".to_owned()));
    }
    match options.ttl {
        Some(ttl) => body.push(("ttl", ttl.to_string())),
        None if options.ttl_empty => body.push(("ttl", String::new())),
        None => {}
    }
    body.extend(options.value.clone().map(|value| ("value", value)));
    Call {
        method: Method::PUT,
        path: url::with_query(&url::key_path(key), &query),
        form: Some(url::form(&body)),
    }
}

/// Reads an answer about keys.
pub(super) fn response((endpoint, answer): (&Endpoint, Answer)) -> Result<Response, ClientError> {
    let event: types::Event = decode(endpoint, &answer, "the answer about a key")?;
    Ok(Response {
        action: event.action,
        node: event.node,
        prev_node: event.prev_node,
        etcd_index: number(&answer.headers, "x-etcd-index"),
        raft_index: number(&answer.headers, "x-raft-index"),
        cluster_id: text(&answer.headers, "x-etcd-cluster-id").to_owned(),
    })
}

impl Response {
    /// What [`Client`](super::Client) makes of an answer about keys that came from `endpoint`, a URL: for answers that
    /// were recorded, and for those that a fuzzer makes up.
    ///
    /// # Errors
    /// What the client's own calls would give.
    pub fn from_http(
        endpoint: &str,
        status: u16,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Self, ClientError> {
        response((&Endpoint::parse(endpoint)?, Answer { status, headers, body: body.into() }))
    }
}

pub(super) fn decode<T: DeserializeOwned>(
    endpoint: &Endpoint,
    answer: &Answer,
    what: &'static str,
) -> Result<T, ClientError> {
    if !(200..300).contains(&answer.status) {
        return Err(http_error(endpoint, answer));
    }
    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Decode {
        endpoint: endpoint.url.clone(),
        what,
        why: e.to_string(),
    })
}

/// The error that an answer with a bad status stands for.
pub(super) fn http_error(endpoint: &Endpoint, answer: &Answer) -> ClientError {
    match serde_json::from_slice::<types::ApiError>(&answer.body) {
        Ok(error) => ClientError::Api {
            code: error.error_code,
            message: error.message,
            cause: error.cause,
            index: error.index,
            status: answer.status,
            endpoint: endpoint.url.clone(),
        },
        Err(_) => {
            ClientError::Http { endpoint: endpoint.url.clone(), status: answer.status, body: shown(answer) }
        }
    }
}

/// What a 5xx answer says about its member.
pub(super) fn server_error(answer: &Answer) -> String {
    match serde_json::from_slice::<types::ApiError>(&answer.body) {
        Ok(error) if error.cause.is_empty() => format!("{} (HTTP status {})", error.message, answer.status),
        Ok(error) => format!("{}: {} (HTTP status {})", error.message, error.cause, answer.status),
        Err(_) => format!("{} (HTTP status {})", shown(answer), answer.status),
    }
}

fn shown(answer: &Answer) -> String {
    if let Ok(error) = serde_json::from_slice::<types::PlainError>(&answer.body) {
        return error.message;
    }
    let text = String::from_utf8_lossy(&answer.body);
    let text = text.trim();
    if text.is_empty() { "no body".to_owned() } else { text.chars().take(SHOWN_BODY_CHARS).collect() }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    text(headers, name).parse().unwrap_or_default()
}
