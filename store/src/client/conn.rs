//! Connections: dialling, TLS handshake, HTTP/1.1 exchange and a small keep-alive pool.
//!
//! The pool is our own and not hyper-util's because two facts decide about failing over, and both must be exact:
//! whether a request was ever handed to a connection, and which TLS error ended the handshake.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout, timeout_at},
};

use super::{tls, url::Endpoint};

/// A TLS handshake ends within this time, as in etcd's client.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that holds a long poll sends its headers at once; one that does not within this time is stuck.
const WATCH_HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// First keep-alive probe after this much silence, then every [`KEEPALIVE_INTERVAL`].
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// Idle connections kept for each endpoint; more are closed.
const IDLE_PER_ENDPOINT: usize = 16;
/// An answer larger than this is refused rather than kept in memory.
const BODY_LIMIT_BYTES: usize = 128 * 1024 * 1024;

type Sender = http1::SendRequest<Full<Bytes>>;

/// How long an exchange may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Connection and answer together; `None` for no limit once connected.
    Answer(Option<Duration>),
    /// A long poll: the answer's head soon, its body whenever something happens.
    LongPoll,
}

/// An HTTP answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An exchange that brought no answer.
#[derive(Debug)]
pub(super) struct Failure {
    /// Whether the server may have got the request.
    pub(super) sent: bool,
    pub(super) why: String,
}

/// Dials endpoints and keeps what is idle. Shared by all clones of a client.
pub(super) struct Pool {
    tls: Option<Arc<ClientConfig>>,
    dial_timeout: Duration,
    idle: Mutex<BTreeMap<Endpoint, Vec<Sender>>>,
}

impl Pool {
    pub(super) fn new(tls: Option<Arc<ClientConfig>>, dial_timeout: Duration) -> Self {
        Self { tls, dial_timeout, idle: Mutex::new(BTreeMap::new()) }
    }

    /// Whether `https` endpoints can be used, that is, a CA file was given.
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Sends `request` to `endpoint` and reads the whole answer.
    ///
    /// A request that an idle connection did not take goes out on a new one. With `repeatable`, so does one
    /// that was lost on an idle connection, since the server may have been closing it just then.
    pub(super) async fn exchange(
        &self,
        endpoint: &Endpoint,
        mut request: Request<Full<Bytes>>,
        patience: Patience,
        repeatable: bool,
    ) -> Result<Answer, Failure> {
        let deadline = match patience {
            Patience::Answer(limit) => limit.map(|limit| Instant::now() + limit),
            Patience::LongPoll => None,
        };
        while let Some(sender) = self.take_idle(endpoint).await {
            let again = repeatable.then(|| request.clone());
            match self.send(endpoint, sender, request, patience, deadline).await {
                Ok(answer) => return Ok(answer),
                Err((failure, unsent)) => match (unsent, again) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(again)) if !failure.timed_out => request = again,
                    _ => return Err(failure.into()),
                },
            }
        }
        let unsent = |why| Failure { sent: false, why };
        let sender =
            before(deadline, self.connect(endpoint)).await.ok_or_else(|| unsent("timed out".into()))?;
        let sender = sender.map_err(unsent)?;
        self.send(endpoint, sender, request, patience, deadline).await.map_err(|(failure, _)| failure.into())
    }

    async fn take_idle(&self, endpoint: &Endpoint) -> Option<Sender> {
        loop {
            let mut sender = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.get_mut(endpoint)?.pop()?
            };
            // Still waiting for the end of its last exchange means the server has not read all of it yet.
            if !sender.is_closed()
                && matches!(timeout(Duration::from_millis(20), sender.ready()).await, Ok(Ok(())))
            {
                return Some(sender);
            }
        }
    }

    fn put_idle(&self, endpoint: &Endpoint, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let senders = idle.entry(endpoint.clone()).or_default();
        senders.retain(|s| !s.is_closed());
        if senders.len() < IDLE_PER_ENDPOINT {
            senders.push(sender);
        }
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
        patience: Patience,
        deadline: Option<Instant>,
    ) -> Result<Answer, (Lost, Option<Request<Full<Bytes>>>)> {
        let head_deadline = match patience {
            Patience::Answer(_) => deadline,
            Patience::LongPoll => Some(Instant::now() + WATCH_HEAD_TIMEOUT),
        };
        let Some(head) = before(head_deadline, sender.try_send_request(request)).await else {
            return Err((Lost::late(), None));
        };
        let response = head.map_err(|mut error| {
            let unsent = error.take_message();
            let mut why = reason(error.error(), endpoint);
            // How a TLS server takes leave of a client that does not speak TLS.
            if !endpoint.https && error.error().is_incomplete_message() {
                why.push_str(" (is it an https:// endpoint?)");
            }
            (Lost { sent: unsent.is_none(), timed_out: false, why }, unsent)
        })?;
        let (parts, body) = response.into_parts();
        let body = match before(deadline, read(body)).await {
            None => return Err((Lost::late(), None)),
            Some(Err(why)) => return Err((Lost { sent: true, timed_out: false, why }, None)),
            Some(Ok(body)) => body,
        };
        self.put_idle(endpoint, sender);
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Sender, String> {
        let tcp = match timeout(self.dial_timeout, dial(endpoint)).await {
            Err(_) => return Err(format!("dial tcp {}: i/o timeout", endpoint.authority)),
            Ok(result) => result?,
        };
        // Requests are small and written whole; waiting to fill a segment would only add delay.
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket2::SockRef::from(&tcp).set_tcp_keepalive(&keepalive).map_err(|e| e.to_string())?;
        if !endpoint.https {
            return handshake(tcp).await;
        }
        let Some(config) = &self.tls else { return Err(NO_CA.to_owned()) };
        let name =
            ServerName::try_from(endpoint.host.clone()).map_err(|e| format!("{}: {e}", endpoint.host))?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        match timeout(TLS_HANDSHAKE_TIMEOUT, connector.connect(name, tcp)).await {
            Err(_) => Err("TLS: handshake timeout".to_owned()),
            Ok(Err(e)) => Err(reason(&e, endpoint)),
            Ok(Ok(stream)) => handshake(stream).await,
        }
    }
}

/// What to say about an `https` endpoint when there is no CA file.
pub(super) const NO_CA: &str = "https needs a CA file to verify the server, and none is given";

/// A request lost on the way.
struct Lost {
    sent: bool,
    timed_out: bool,
    why: String,
}

impl Lost {
    fn late() -> Self {
        Self { sent: true, timed_out: true, why: "timed out waiting for the answer".to_owned() }
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        Self { sent: lost.sent, why: lost.why }
    }
}

async fn before<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

async fn dial(endpoint: &Endpoint) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> = lookup_host((endpoint.host.as_str(), endpoint.port))
        .await
        .map_err(|e| format!("dial tcp: lookup {}: {e}", endpoint.host))?
        .collect();
    let mut last = format!("dial tcp: lookup {}: no address", endpoint.host);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(e) => last = format!("dial tcp {address}: connect: {}", go_words(&e)),
        }
    }
    Err(last)
}

/// The system's message as Go prints it: lower case, without Rust's error number.
fn go_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().collect::<String>() + letters.as_str())
}

async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Ends when the sender is dropped or the server closes; its error also reaches the exchange under way.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

async fn read(body: Incoming) -> Result<Bytes, String> {
    let collected = Limited::new(body, BODY_LIMIT_BYTES).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|e| format!("the answer broke off: {e}"))
}

/// The sentence for an error of the connection: TLS if it was that, else the innermost cause.
fn reason(error: &(dyn std::error::Error + 'static), endpoint: &Endpoint) -> String {
    if let Some(text) = tls::explain(error, endpoint) {
        return text;
    }
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
