//! The client port: connections, routes, and the small endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::conn::{Connection, say_and_close};
use super::crowd::Place;
use super::handle::{Handle, now};
use super::limits::{Limits, PIECE_BYTES};
use super::pulse::Pulse;
use super::stats::{self, PeerStats};
use super::watching::Watch;
use super::{health, keys};
use crate::wire::v2::ApiError;
use crate::wire::v2_request;

/// The version of etcd whose API this store serves; clients parse it.
pub const ETCD_VERSION: &str = "3.2.12";
/// The cluster version that goes with it.
pub const CLUSTER_VERSION: &str = "3.2.0";

/// Time for the confirmation that `/health` asks for, as in etcd.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// The body of an answer.
pub enum Answer {
    /// All of it.
    Full(Option<Bytes>),
    /// Events as they come.
    Watch(Box<Watch>),
    /// A watch that has given its last.
    Ended,
}

impl Answer {
    /// A body that is there already.
    pub fn full(body: impl Into<Bytes>) -> Answer {
        Answer::Full(Some(body.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }
}

impl Answer {
    /// Polls for the next part of the body; a large one comes in pieces, so that not all of it is copied at once.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Answer::Full(bytes) => {
                let Some(rest) = bytes else { return Poll::Ready(None) };
                let piece = rest.split_to(rest.len().min(PIECE_BYTES));
                if rest.is_empty() {
                    *bytes = None;
                }
                Poll::Ready(Some(piece))
            }
            Answer::Ended => Poll::Ready(None),
            Answer::Watch(watch) => {
                let body = ready!(watch.poll_body(cx));
                if body.is_none() || !watch.is_stream() {
                    *self = Answer::Ended;
                }
                Poll::Ready(body)
            }
        }
    }

    /// Whether there is nothing more.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Answer::Full(None) | Answer::Ended)
    }

    /// The bytes that are left, where that is known.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Answer::Full(bytes) => Some(bytes.as_ref().map_or(0, Bytes::len)),
            Answer::Ended => Some(0),
            Answer::Watch(_) => None,
        }
    }
}

/// What the routes answer from.
pub struct Api {
    /// The member.
    pub handle: Handle,
    /// The other members' counters.
    pub peers: Arc<BTreeMap<u64, Arc<PeerStats>>>,
}

/// Time for a connection that is told to go to be gone.
const LEAVING: Duration = Duration::from_millis(500);
/// Clients that are told at one time that there is no place for them; others are just closed.
pub(super) const MAX_TURNED_AWAY: usize = 32;
/// Pause after a connection could not be accepted: it needs a descriptor, and none comes free by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A TLS alert in the clear: fatal, internal error (RFC 8446 section 6). A client of a full member sees it in place
/// of the handshake.
const FULL_TLS: &[u8] = &[0x15, 3, 3, 0, 2, 2, 80];

/// Serves clients on one listener until `stop` says so.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) {
    let turning_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    let limits = Arc::clone(api.handle.limits());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|&stop| stop) => return,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Ok(here) = listener.local_addr() {
                    limits.tell_of(here, "cannot accept clients", &error.to_string());
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, api, stop) = (tls.clone(), Arc::clone(&api), stop.clone());
        if let Some(place) = enter(&limits, from, tls.is_some()).await {
            tokio::spawn(Connection { api, from, place, stop }.serve(tcp, tls));
        } else {
            limits.tell(from, "turned away: all connections of this member are in use");
            if let Ok(turn) = Arc::clone(&turning_away).try_acquire_owned() {
                tokio::spawn(turn_away(tcp, tls.is_some(), turn));
            }
        }
    }
}

/// A place for a new connection, for which an idle one may have to go.
async fn enter(limits: &Limits, from: SocketAddr, tls: bool) -> Option<Place> {
    let pulse = || Pulse::new(now(), tls);
    let mut entered = limits.crowd.enter(pulse());
    if entered.is_none() {
        let _ = timeout(LEAVING, limits.crowd.someone_has_left()).await;
        entered = limits.crowd.enter(pulse());
    }
    let (place, gone) = entered?;
    if gone > 0 {
        limits.tell(from, "all connections were in use: the longest idle are closed for new ones");
    }
    Some(place)
}

async fn turn_away(mut tcp: TcpStream, tls: bool, _turn: OwnedSemaphorePermit) {
    if tls {
        return say_and_close(&mut tcp, FULL_TLS).await;
    }
    let body = ApiError::busy("all connections of this member are in use").body();
    let words = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    say_and_close(&mut tcp, words.as_bytes()).await;
}

/// The answer to a request when there are too many already.
pub(super) fn too_many_requests(api: &Api, from: SocketAddr) -> Response<Answer> {
    keys::api_error(&api.handle, from, &ApiError::busy("this member answers as many as it can"))
}

/// Answers a request from the client at `from`.
pub(super) async fn route(api: &Api, from: SocketAddr, request: Request<Incoming>) -> Response<Answer> {
    let is_head = request.method() == Method::HEAD;
    let response = answer(api, from, request).await;
    if is_head { without_body(response) } else { response }
}

/// The answer to HEAD: the length of the body, and not the body. Over HTTP/1 hyper leaves it out by itself; over HTTP/2
/// it would send it, at which clients reset the stream.
fn without_body(response: Response<Answer>) -> Response<Answer> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size().filter(|&length| length > 0) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Answer::Full(None))
}

async fn answer(api: &Api, from: SocketAddr, request: Request<Incoming>) -> Response<Answer> {
    let (parts, body) = request.into_parts();
    if parts.method == Method::OPTIONS {
        return Response::new(Answer::Full(None));
    }
    let path = parts.uri.path();
    if let Some(clean) = unclean(path) {
        return moved(&clean, parts.uri.query());
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    if let Some(key) = decoded.strip_prefix("/v2/keys").filter(|key| key.is_empty() || key.starts_with('/')) {
        let method = match parts.method {
            Method::GET => v2_request::Method::Get,
            Method::HEAD => v2_request::Method::Head,
            Method::PUT => v2_request::Method::Put,
            Method::POST => v2_request::Method::Post,
            Method::DELETE => v2_request::Method::Delete,
            _ => return not_allowed("HEAD,GET,PUT,POST,DELETE"),
        };
        return keys::answer(&api.handle, from, method, key, &parts, body).await;
    }
    match decoded.as_ref() {
        "/health" => health(api, &parts.method).await,
        "/version" => version(api, &parts.method),
        "/v2/machines" | "/v2/machines/" => machines(api, &parts.method),
        "/v2/members" | "/v2/members/" => members(api, &parts.method),
        "/v2/members/leader" => leader(api, &parts.method),
        "/v2/stats/self" => stats_answer(api, &parts.method, |api| {
            Ok(stats::self_body(api.handle.shared(), api.peers.values().map(|stats| &**stats)))
        }),
        "/v2/stats/store" => stats_answer(api, &parts.method, |api| {
            let shared = api.handle.shared();
            let watchers = shared.hub.lock().len();
            Ok(shared.stats.body(watchers))
        }),
        "/v2/stats/leader" => stats_answer(api, &parts.method, |api| {
            let shared = api.handle.shared();
            if !shared.leadership.borrow().0.leads {
                return Err((StatusCode::FORBIDDEN, "not current leader"));
            }
            Ok(stats::leader_body(shared.member_id, api.peers.iter().map(|(id, stats)| (*id, &**stats))))
        }),
        "/v2/auth/enable" if parts.method == Method::GET => json(StatusCode::OK, "{\"enabled\":false}\n"),
        other if other.starts_with("/v2/auth/") => message(
            StatusCode::NOT_IMPLEMENTED,
            "this store has no users and roles yet; use client certificates",
        ),
        other if other.starts_with("/v2/members/") => {
            let mut response = match parts.method {
                Method::GET => message(StatusCode::NOT_FOUND, "Not found"),
                Method::PUT | Method::DELETE => fixed_members(),
                _ => not_allowed("GET,POST,DELETE,PUT"),
            };
            cluster_id(&api.handle, response.headers_mut());
            response
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// The cleaned form of a path that Go's mux would redirect: doubled slashes, `.` and `..` names.
fn unclean(path: &str) -> Option<String> {
    let dirty = path.contains("//") || path.split('/').any(|name| name == "." || name == "..");
    if !dirty {
        return None;
    }
    let mut clean = crate::tree::path::clean(path);
    if path.ends_with('/') && !clean.ends_with('/') {
        clean.push('/');
    }
    Some(clean)
}

fn moved(path: &str, query: Option<&str>) -> Response<Answer> {
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let escaped = target.replace('&', "&amp;");
    let mut response =
        Response::new(Answer::full(format!("<a href=\"{escaped}\">Moved Permanently</a>.\n\n")));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(location) = HeaderValue::from_str(&target) {
        headers.insert(LOCATION, location);
    }
    response
}

async fn health(api: &Api, method: &Method) -> Response<Answer> {
    if *method != Method::GET {
        return not_allowed("GET");
    }
    let shared = api.handle.shared();
    let room = shared.room.alarm();
    let has_leader = shared.leadership.borrow().0.leader != 0;
    // Without room it is unhealthy whatever else, and what it would wait for may wait in a write to its disk.
    let asks = room.is_none() && has_leader;
    let serves = asks && api.handle.linearize(Some(HEALTH_TIMEOUT)).await.is_ok();
    let fault = shared.image_fault.lock().clone();
    let alarms = shared.machine.read().alarms.clone();
    let own =
        health::Own { member: shared.member_id, room: room.as_deref(), fault: fault.as_deref(), serves };
    let (status, body) = health::body(&own, &alarms);
    text(status, body)
}

fn version(api: &Api, method: &Method) -> Response<Answer> {
    if *method != Method::GET {
        return not_allowed("GET");
    }
    let machine = api.handle.shared().machine.read();
    let cluster = match machine.membership.version.as_str() {
        "" => "not_decided",
        version => version,
    };
    json(StatusCode::OK, format!("{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{cluster}\"}}"))
}

fn machines(api: &Api, method: &Method) -> Response<Answer> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return not_allowed("GET,HEAD");
    }
    let machine = api.handle.shared().machine.read();
    text(StatusCode::OK, machine.membership.client_urls().join(", "))
}

fn members(api: &Api, method: &Method) -> Response<Answer> {
    let mut response = match *method {
        Method::GET => {
            let mut list = api.handle.shared().machine.read().membership.list_json();
            list.push('\n');
            json(StatusCode::OK, list)
        }
        Method::POST => fixed_members(),
        // A member's id is missing; etcd names no methods here.
        Method::PUT | Method::DELETE => text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n"),
        _ => not_allowed("GET,POST,DELETE,PUT"),
    };
    cluster_id(&api.handle, response.headers_mut());
    response
}

/// Changing the membership is not built yet, and says so.
fn fixed_members() -> Response<Answer> {
    message(
        StatusCode::NOT_IMPLEMENTED,
        "this store cannot change its members at run time yet; start a new cluster with --initial-cluster",
    )
}

fn leader(api: &Api, method: &Method) -> Response<Answer> {
    if *method != Method::GET {
        return members(api, method);
    }
    let shared = api.handle.shared();
    let leader = shared.leadership.borrow().0.leader;
    let machine = shared.machine.read();
    let mut response = match machine.membership.member(leader) {
        None => message(StatusCode::SERVICE_UNAVAILABLE, "During election"),
        Some(member) => {
            let mut body = String::new();
            member.write_json(&mut body);
            body.push('\n');
            json(StatusCode::OK, body)
        }
    };
    cluster_id(&api.handle, response.headers_mut());
    response
}

fn stats_answer(
    api: &Api,
    method: &Method,
    body: impl FnOnce(&Api) -> Result<String, (StatusCode, &'static str)>,
) -> Response<Answer> {
    if *method != Method::GET {
        return not_allowed("GET");
    }
    match body(api) {
        Ok(body) => json(StatusCode::OK, body),
        Err((status, why)) => message(status, why),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = Response::new(Answer::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Answer> {
    let mut response = text(status, body);
    json_type(response.headers_mut());
    response
}

/// The shape of errors outside `/v2/keys`.
fn message(status: StatusCode, text: &str) -> Response<Answer> {
    let mut body = "{\"message\":".to_owned();
    crate::wire::json::write_string(&mut body, text);
    body.push('}');
    json(status, body)
}

fn not_allowed(allow: &'static str) -> Response<Answer> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// Marks a JSON body.
pub fn json_type(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

/// Says which cluster answers.
pub fn cluster_id(handle: &Handle, headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&format!("{:x}", handle.shared().cluster_id)) {
        headers.insert("x-etcd-cluster-id", id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_head_has_the_length_and_nothing_of_the_body() {
        for (body, length) in [("12345", Some("5")), ("", None)] {
            let response = without_body(text(StatusCode::NOT_FOUND, body));
            let declared = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            assert_eq!((response.status().as_u16(), declared), (404, length));
            assert!(response.body().is_end());
        }
    }

    #[test]
    fn paths_are_cleaned_as_gos_mux_does() {
        assert_eq!(unclean("/v2/keys/a"), None);
        assert_eq!(unclean("/v2/keys/a/"), None);
        assert_eq!(unclean("/v2/keys//a").as_deref(), Some("/v2/keys/a"));
        assert_eq!(unclean("/v2/keys/a/../b/").as_deref(), Some("/v2/keys/b/"));
    }
}
