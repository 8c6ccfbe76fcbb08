//! `/v2/keys`: an HTTP request to a [`Request`], and its outcome to an HTTP answer.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use tokio::time::timeout;

use super::handle::{Handle, left, now, now_ns};
use super::http::{Answer, json_type};
use super::limits::{MAX_FORM_BYTES, form_time};
use super::looks;
use super::served::fitted;
use super::shares::{ClientRoom, Share};
use super::stats::Kind;
use super::watching::Watch;
use crate::wire::command::Command;
use crate::wire::v2::{self, ApiError};
use crate::wire::v2_request::{self, Get, Method, Request};

/// How long the answer to a write that is done waits for room at least, however long the write took.
const LEAST_WAIT: Duration = Duration::from_millis(500);

/// Answers a request below `/v2/keys` from the client at `from`; `key` is the decoded rest of the path.
pub async fn answer(
    handle: &Handle,
    from: SocketAddr,
    method: Method,
    key: &str,
    parts: &Parts,
    body: Incoming,
) -> Response<Answer> {
    match try_answer(handle, from, method, key, parts, body).await {
        Ok(response) => response,
        Err(error) => api_error(handle, from, &error),
    }
}

async fn try_answer(
    handle: &Handle,
    from: SocketAddr,
    method: Method,
    key: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<Response<Answer>, ApiError> {
    let request = {
        // What is read is given back before the rest begins.
        let form = read_form(&handle.limits().forms(from), method, &parts.headers, body).await?;
        let query = parts.uri.query().unwrap_or_default();
        v2_request::parse(method, key, query, form.as_ref().map(|(form, _)| &**form))?
    };
    match request {
        Request::Get(get) => look(handle, from, &get).await,
        Request::QuorumGet(get) => {
            handle.linearize(None).await?;
            look(handle, from, &get).await
        }
        Request::Watch { path, recursive, since, stream } => {
            let watch = Watch::start(handle, from, path, recursive, since, stream)?;
            let mut response =
                json_response(handle, StatusCode::OK, watch.index, Answer::Watch(Box::new(watch)));
            add_raft_headers(handle, response.headers_mut());
            Ok(response)
        }
        Request::Write { write, no_value } => {
            let by = now() + handle.timeout();
            let op = write.into_op(now_ns());
            let kind = Kind::from(&op);
            let result = handle.propose(Command::V2(op)).await;
            handle.shared().stats.count(kind, result.is_ok());
            let event = result?.ok_or_else(|| ApiError::raft("etcdserver: no event"))?;
            let body = if no_value {
                v2::action_body(&event).into()
            } else {
                let make = || v2::event_body(&event, now_ns());
                let room = handle.limits().answers(from);
                // It is done, so there is nothing to refuse any more. Without room the answer leaves out the value.
                timeout(left(by).max(LEAST_WAIT), fitted(&room, v2::event_size(&event), make))
                    .await
                    .unwrap_or_else(|_| v2::short_event_body(&event, now_ns()).into())
            };
            let status = if event.is_creation() { StatusCode::CREATED } else { StatusCode::OK };
            let mut response = json_response(handle, status, event.index(), Answer::full(body));
            add_raft_headers(handle, response.headers_mut());
            Ok(response)
        }
    }
}

/// Looks at a node.
async fn look(handle: &Handle, from: SocketAddr, get: &Get) -> Result<Response<Answer>, ApiError> {
    let looked = looks::look(handle, &handle.limits().answers(from), get).await;
    handle.shared().stats.count(Kind::Gets, looked.is_ok());
    let (index, body) = looked?;
    let mut response = json_response(handle, StatusCode::OK, index, Answer::full(body));
    add_raft_headers(handle, response.headers_mut());
    Ok(response)
}

/// The answer to a request that failed; where it met a limit, the log is told.
pub fn api_error(handle: &Handle, from: SocketAddr, error: &ApiError) -> Response<Answer> {
    if let Some(limit) = error.limit() {
        handle.limits().tell_limit(from, limit, &error.cause);
    }
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(handle, status, error.index, Answer::full(error.body()))
}

fn json_response(handle: &Handle, status: StatusCode, index: u64, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    json_type(headers);
    super::http::cluster_id(handle, headers);
    headers.insert("x-etcd-index", HeaderValue::from(index));
    response
}

fn add_raft_headers(handle: &Handle, headers: &mut HeaderMap) {
    let shared = handle.shared();
    headers.insert("x-raft-index", HeaderValue::from(shared.applied.load(Ordering::Acquire)));
    headers.insert("x-raft-term", HeaderValue::from(shared.leadership.borrow().0.term));
}

/// The body, if it is a form and the method takes one. Any other body is not looked at, as in etcd.
async fn read_form(
    room: &ClientRoom,
    method: Method,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Option<(Bytes, Share)>, ApiError> {
    let is_form = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
    });
    if !is_form || !matches!(method, Method::Put | Method::Post) {
        return Ok(None);
    }
    read_body(room, body).await.map(Some)
}

/// A whole body, with its share of the room for such.
async fn read_body<B>(room: &ClientRoom, mut body: B) -> Result<(Bytes, Share), ApiError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (begun, mut read, mut share) = (now(), BytesMut::new(), Share::default());
    // Told at once, before it is sent.
    if body.size_hint().lower() > MAX_FORM_BYTES as u64 {
        return Err(too_large());
    }
    loop {
        let by = begun + form_time(read.len());
        let Ok(frame) = timeout(left(by), body.frame()).await else {
            return Err(ApiError::late(format!(
                "the form did not arrive in time: {} bytes within {} seconds",
                read.len(),
                form_time(read.len()).as_secs()
            )));
        };
        let Some(frame) = frame else { return Ok((read.freeze(), share)) };
        let frame = frame.map_err(|error| ApiError::new(210, error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = read.len() + data.len();
        if bytes > MAX_FORM_BYTES {
            return Err(too_large());
        }
        if !room.grow(&mut share, bytes) {
            return Err(ApiError::busy("too many large forms arrive at the same time"));
        }
        if read.is_empty() && body.is_end_stream() {
            return Ok((data, share));
        }
        read.extend_from_slice(&data);
    }
}

fn too_large() -> ApiError {
    ApiError::new(210, "http: POST too large")
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
