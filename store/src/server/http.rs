//! The client port: connections, routes, and the small endpoints.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::handle::{Handle, Watch};
use super::stats::{self, PeerStats};
use super::{keys, tls};
use crate::wire::v2_request;

/// The version of etcd whose API this store serves; clients parse it.
pub const ETCD_VERSION: &str = "3.2.12";
/// The cluster version that goes with it.
pub const CLUSTER_VERSION: &str = "3.2.0";

/// Time for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the headers of a request, counted from the end of the one before: so long that a client's own limit on
/// idle connections (90 seconds in Go) comes first, and no request meets a connection that is just being closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for the confirmation that `/health` asks for, as in etcd.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// What a client sees that talks plain HTTP to a TLS port; the words are Go's.
const PLAIN_ON_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

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

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::mem::replace(&mut *self, Answer::Ended) {
            Answer::Full(bytes) => Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Ended => Poll::Ready(None),
            Answer::Watch(watch) => {
                let mut watch = Some(watch);
                let polled = keys::poll_watch(&mut watch, cx);
                *self = watch.map_or(Answer::Ended, Answer::Watch);
                polled.map(|frame| frame.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Full(None) | Answer::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Ended => SizeHint::with_exact(0),
            Answer::Watch(_) => keys::watch_size(),
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

/// Serves clients on one listener until `stop` says so; each connection takes one of `slots`, which all listeners
/// share.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    api: Arc<Api>,
    slots: Arc<tokio::sync::Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            _ = stop.wait_for(|&stop| stop) => return,
        };
        let Some((tcp, from, slot)) = accepted else { continue };
        let (tls, api, stop) = (tls.clone(), Arc::clone(&api), stop.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = tcp.set_nodelay(true);
            if let Err(error) = connection(tcp, tls, api, stop).await {
                tracing::debug!(%from, %error, "client connection ended");
            }
        });
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<tokio::sync::Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((tcp, from)) => Some((tcp, from, slot)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a client");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(
    mut tcp: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    api: Arc<Api>,
    stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(config) = tls else { return requests(TokioIo::new(tcp), api, stop).await };
    let mut first = [0];
    let peeked = timeout(HANDSHAKE_TIMEOUT, tcp.peek(&mut first)).await??;
    if peeked == 1 && first[0] != TLS_HANDSHAKE {
        tcp.write_all(PLAIN_ON_TLS).await?;
        tcp.shutdown().await?;
        // Read what is there, so that closing does not reset the connection before the answer is read.
        let _ = timeout(Duration::from_millis(200), tcp.read(&mut [0; 4096])).await;
        return Ok(());
    }
    let from = tcp.peer_addr()?;
    match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp)).await? {
        Ok(stream) => requests(TokioIo::new(stream), api, stop).await,
        Err(error) => {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                tracing::warn!(%from, error = tls::describe(&error), "TLS handshake with a client failed");
            }
            Ok(())
        }
    }
}

/// The first byte of every TLS connection (RFC 8446 section 5.1: content type handshake).
const TLS_HANDSHAKE: u8 = 0x16;

async fn requests<I>(
    io: I,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(route(&api, request).await) }
    });
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = stop.wait_for(|&stop| stop) => connection.as_mut().graceful_shutdown(),
    }
    // Watches never end by themselves; what is left after a moment is cut off.
    timeout(Duration::from_secs(1), connection).await?
}

async fn route(api: &Api, request: Request<Incoming>) -> Response<Answer> {
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
        return keys::answer(&api.handle, method, key, &parts, body).await;
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
    let has_leader = api.handle.shared().leadership.borrow().0.leader != 0;
    if has_leader && api.handle.linearize(Some(HEALTH_TIMEOUT)).await.is_ok() {
        text(StatusCode::OK, "{\"health\": \"true\"}")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "{\"health\": \"false\"}\n")
    }
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
    fn paths_are_cleaned_as_gos_mux_does() {
        assert_eq!(unclean("/v2/keys/a"), None);
        assert_eq!(unclean("/v2/keys/a/"), None);
        assert_eq!(unclean("/v2/keys//a").as_deref(), Some("/v2/keys/a"));
        assert_eq!(unclean("/v2/keys/a/../b/").as_deref(), Some("/v2/keys/b/"));
    }
}
