//! `/v2/keys`: an HTTP request to a [`Request`], and its outcome to an HTTP answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use super::handle::{Handle, Watch, now_ns};
use super::http::{Answer, json_type};
use super::stats::Kind;
use crate::tree::Event;
use crate::wire::command::Command;
use crate::wire::v2::{self, ApiError};
use crate::wire::v2_request::{self, Get, Method, Request};

/// The largest form, as in etcd.
const MAX_FORM_BYTES: usize = 10 << 20;

/// Answers a request below `/v2/keys`; `key` is the decoded rest of the path.
pub async fn answer(
    handle: &Handle,
    method: Method,
    key: &str,
    parts: &Parts,
    body: Incoming,
) -> Response<Answer> {
    match try_answer(handle, method, key, parts, body).await {
        Ok(response) => response,
        Err(error) => api_error(handle, &error),
    }
}

async fn try_answer(
    handle: &Handle,
    method: Method,
    key: &str,
    parts: &Parts,
    body: Incoming,
) -> Result<Response<Answer>, ApiError> {
    let form = read_form(method, &parts.headers, body).await?;
    let request = v2_request::parse(method, key, parts.uri.query().unwrap_or_default(), form.as_deref())?;
    match request {
        Request::Get(get) => look(handle, &get),
        Request::QuorumGet(get) => {
            handle.linearize(None).await?;
            look(handle, &get)
        }
        Request::Watch { path, recursive, since, stream } => {
            let watch = handle.watch(path, recursive, since, stream)?;
            let mut response =
                json_response(handle, StatusCode::OK, watch.index, Answer::Watch(Box::new(watch)));
            add_raft_headers(handle, response.headers_mut());
            Ok(response)
        }
        Request::Write { write, no_value } => {
            let op = write.into_op(now_ns());
            let kind = Kind::from(&op);
            let result = handle.propose(Command::V2(op)).await;
            handle.shared().stats.count(kind, result.is_ok());
            let event = result?.ok_or_else(|| ApiError::raft("etcdserver: no event"))?;
            let body = if no_value { v2::action_body(&event) } else { v2::event_body(&event, now_ns()) };
            let status = if event.is_creation() { StatusCode::CREATED } else { StatusCode::OK };
            let mut response = json_response(handle, status, event.index(), Answer::full(body));
            add_raft_headers(handle, response.headers_mut());
            Ok(response)
        }
    }
}

fn look(handle: &Handle, get: &Get) -> Result<Response<Answer>, ApiError> {
    let (index, node) = handle.get(&get.path, get.recursive);
    handle.shared().stats.count(Kind::Gets, node.is_ok());
    let body = v2::get_body(&node?, now_ns());
    let mut response = json_response(handle, StatusCode::OK, index, Answer::full(body));
    add_raft_headers(handle, response.headers_mut());
    Ok(response)
}

fn api_error(handle: &Handle, error: &ApiError) -> Response<Answer> {
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
async fn read_form(method: Method, headers: &HeaderMap, body: Incoming) -> Result<Option<Bytes>, ApiError> {
    let is_form = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
    });
    if !is_form || !matches!(method, Method::Put | Method::Post) {
        return Ok(None);
    }
    match Limited::new(body, MAX_FORM_BYTES).collect().await {
        Ok(collected) => Ok(Some(collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(210, "http: POST too large")),
        Err(error) => Err(ApiError::new(210, error.to_string())),
    }
}

/// Polls a watch as the body of an answer: one event, or with `stream` a line for each.
pub fn poll_watch(watch: &mut Option<Box<Watch>>, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
    let Some(current) = watch else { return Poll::Ready(None) };
    let event: Option<Arc<Event>> = std::task::ready!(current.poll_next(cx));
    if event.is_none() || !current.is_stream() {
        *watch = None;
    }
    Poll::Ready(event.map(|event| Frame::data(Bytes::from(v2::event_body(&event, now_ns())))))
}

/// What is known of the length of such a body: nothing.
pub fn watch_size() -> SizeHint {
    SizeHint::default()
}
