//! One connection of a client: TLS or not, HTTP/1 or HTTP/2, and its end when it is late, when its place is needed
//! or when the member stops. What may take how long is [`super::pulse`]'s affair.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::crowd::{Guest, Place};
use super::handle::now;
use super::http::{self, Api};
use super::limits::{
    HEAD, HEAD_BYTES, IDLE, MAX_PENDING_RESETS, MAX_STREAMS, PROBES, UNACKNOWLEDGED, WINDOW_BYTES,
};
use super::pulse::Late;
use super::served::{Asked, Served};
use super::tls;

/// Time in which a client may read the last answer, and finish what it sends, after we have closed our side: a
/// connection that is closed while something is unread is reset, and the answer may be lost with it.
const LINGER: Duration = Duration::from_secs(1);
/// Time for requests to end when the member stops. Watches never end by themselves and are cut off then.
const STOPPING: Duration = Duration::from_secs(1);
/// Bytes of HTTP/2 answers handed over before they can be sent.
const SEND_BUFFER: usize = 64 << 10;
/// What an HTTP/2 client says first (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of every TLS connection (RFC 8446 section 5.1: content type handshake).
const TLS_HANDSHAKE: u8 = 0x16;
/// What a client sees that talks plain HTTP to a TLS port; the words are Go's.
const PLAIN_ON_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// An answer that is being made; or the stream is reset.
type Answering = Pin<Box<dyn Future<Output = Result<Response<Served>, h2::Error>> + Send>>;

/// Why a connection ended before the client had enough.
#[derive(Debug)]
enum End {
    /// It took too long.
    Late(Late),
    /// Another needs its place.
    Left,
    /// The member stops.
    Stopping,
    /// It broke.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl From<hyper::Error> for End {
    fn from(error: hyper::Error) -> End {
        End::Broken(error.into())
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Broken(error.into())
    }
}

/// A client's connection and what serves it.
pub(super) struct Connection {
    /// What it asks.
    pub(super) api: Arc<Api>,
    /// Where it comes from.
    pub(super) from: SocketAddr,
    /// Its place.
    pub(super) place: Place,
    /// Whether the member stops.
    pub(super) stop: watch::Receiver<bool>,
}

impl Connection {
    /// Serves it to its end, and tells the log where the client is to blame.
    pub(super) async fn serve(mut self, tcp: TcpStream, tls: Option<Arc<rustls::ServerConfig>>) {
        tune(&tcp);
        let ended = match tls {
            None => self.plain(tcp).await,
            Some(config) => self.secure(tcp, config).await,
        };
        let from = self.from;
        match ended {
            Err(End::Late(late)) if !late.is_usual() => self.api.handle.limits().tell(from, late.as_str()),
            Err(End::Broken(error)) => tracing::debug!(%from, %error, "client connection ended"),
            Err(end) => tracing::debug!(%from, ?end, "client connection closed"),
            Ok(()) => {}
        }
    }

    async fn plain(&mut self, tcp: TcpStream) -> Result<(), End> {
        let mut io = Paced::new(tcp, Arc::clone(&self.place.guest));
        let is_http2 = self.supervise(&mut pin!(io.sniff())).await??;
        if is_http2 { self.http2(io).await } else { self.http1(io).await }
    }

    async fn secure(&mut self, mut tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> Result<(), End> {
        let mut first = [0];
        let peeked = self.supervise(&mut pin!(tcp.peek(&mut first))).await??;
        if peeked == 1 && first[0] != TLS_HANDSHAKE {
            say_and_close(&mut tcp, PLAIN_ON_TLS).await;
            return Ok(());
        }
        let io = Paced::new(tcp, Arc::clone(&self.place.guest));
        let stream = match self.supervise(&mut TlsAcceptor::from(config).accept(io)).await? {
            Ok(stream) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::UnexpectedEof {
                    let why = tls::describe(&error);
                    self.api.handle.limits().tell_of(self.from, "TLS handshake with a client failed", &why);
                }
                return Ok(());
            }
        };
        self.place.guest.pulse.lock().secured(now());
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.http2(stream).await,
            _ => self.http1(stream).await,
        }
    }

    async fn http1<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: S) -> Result<(), End> {
        let mut builder = http1::Builder::new();
        builder.title_case_headers(true).max_buf_size(HEAD_BYTES).header_read_timeout(None);
        let service = service_fn(self.service(false));
        let mut connection = builder.serve_connection(TokioIo::new(stream), service);
        match self.supervise(&mut connection).await {
            Ok(ended) => Ok(ended?),
            Err(End::Stopping) => {
                Pin::new(&mut connection).graceful_shutdown();
                timeout(STOPPING, connection).await.map_err(|_| End::Stopping)?.map_err(End::from)
            }
            Err(End::Late(Late::Head)) => {
                say_and_close(&mut connection.into_parts().io.into_inner(), late_head().as_bytes()).await;
                Err(End::Late(Late::Head))
            }
            Err(end) => Err(end),
        }
    }

    async fn http2<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: S) -> Result<(), End> {
        self.place.guest.pulse.lock().speaks_http2();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW_BYTES.0)
            .initial_connection_window_size(WINDOW_BYTES.1)
            .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_send_buf_size(SEND_BUFFER);
        let mut connection =
            pin!(builder.serve_connection(TokioIo::new(stream), service_fn(self.service(true))));
        match self.supervise(&mut connection).await {
            Ok(ended) => Ok(ended?),
            Err(End::Stopping) => {
                connection.as_mut().graceful_shutdown();
                timeout(STOPPING, connection).await.map_err(|_| End::Stopping)?.map_err(End::from)
            }
            Err(end) => Err(end),
        }
    }

    /// Answers one request.
    fn service(&self, is_http2: bool) -> impl Fn(Request<Incoming>) -> Answering + use<> {
        let (api, guest, from) = (Arc::clone(&self.api), Arc::clone(&self.place.guest), self.from);
        move |request| {
            let api = Arc::clone(&api);
            let asked = Asked::new(Arc::clone(&guest), is_http2);
            Box::pin(async move {
                let turn = Arc::clone(&api.handle.limits().requests).try_acquire_owned();
                let answer = match &turn {
                    Ok(_) => http::route(&api, from, request).await,
                    // An HTTP/2 client could leave any number of refusals with us. This code tells it that nothing
                    // has been done yet, so that it may ask again, here or elsewhere (RFC 9113 section 8.7).
                    Err(_) if is_http2 => {
                        api.handle.limits().tell(from, "stream reset: this member answers as many as it can");
                        return Err(h2::Reason::REFUSED_STREAM.into());
                    }
                    Err(_) => http::too_many_requests(&api, from),
                };
                Ok(answer.map(|answer| Served::new(answer, asked, turn.ok())))
            })
        }
    }

    /// Drives `future` until it is done, or the connection has to end.
    async fn supervise<F: Future + Unpin>(&mut self, future: &mut F) -> Result<F::Output, End> {
        let guest = Arc::clone(&self.place.guest);
        let mut leave = pin!(guest.leave.notified());
        let mut hurry = pin!(guest.hurry.notified());
        let mut stopped = pin!(self.stop.wait_for(|&stop| stop));
        let mut timer = pin!(sleep_until(Instant::from_std(now() + IDLE)));
        poll_fn(|cx| {
            if let Poll::Ready(output) = Pin::new(&mut *future).poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if leave.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(End::Left));
            }
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(End::Stopping));
            }
            // Answers of HTTP/2 are handed over by tasks of their own.
            while hurry.as_mut().poll(cx).is_ready() {
                hurry.set(guest.hurry.notified());
            }
            poll_deadline(&guest, timer.as_mut(), cx).map(|late| Err(End::Late(late)))
        })
        .await
    }
}

/// Ready when the connection is late. The timer is moved only where it would ring too late, so that a request that
/// is answered at once costs nothing here.
fn poll_deadline(guest: &Guest, mut timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<Late> {
    loop {
        let Some((by, late)) = guest.pulse.lock().look() else { return Poll::Pending };
        let by = Instant::from_std(by);
        if by < timer.deadline() {
            timer.as_mut().reset(by);
        }
        ready!(timer.as_mut().poll(cx));
        if by <= timer.deadline() {
            return Poll::Ready(late);
        }
        timer.as_mut().reset(by);
    }
}

/// Without delay; given up when the client's host acknowledges nothing, or answers no probe, for a while.
fn tune(tcp: &TcpStream) {
    let (after, every, times) = PROBES;
    let socket = SockRef::from(tcp);
    let keep_alive = TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times);
    // A socket that is gone already shows itself when it is read.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keep_alive);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

/// What an HTTP/1 client is told whose head does not come.
fn late_head() -> String {
    let body = format!("the request line and headers did not arrive within {} seconds\n", HEAD.as_secs());
    format!(
        "HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Writes the last words, closes our side and waits a moment for the other.
pub(super) async fn say_and_close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, words: &[u8]) {
    let mut rest = [0; 4096];
    let said = async {
        stream.write_all(words).await?;
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // Whoever does not want to hear it is gone all the same.
    let _ = timeout(LINGER, said).await;
}

/// The bytes below TLS and HTTP, with an eye on whether they move.
struct Paced {
    tcp: TcpStream,
    guest: Arc<Guest>,
    /// Bytes that were read to see what is spoken, and are to be read again.
    replay: Vec<u8>,
    is_blocked: bool,
    /// Runs once our side is closed.
    linger: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(tcp: TcpStream, guest: Arc<Guest>) -> Paced {
        Paced { tcp, guest, replay: Vec::new(), is_blocked: false, linger: None }
    }

    /// Whether the client begins with the preface of HTTP/2. Reads no more than it needs to know.
    async fn sniff(&mut self) -> io::Result<bool> {
        let mut seen = Vec::with_capacity(PREFACE.len());
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let mut bytes = [0; PREFACE.len()];
            let wanted = PREFACE.len() - seen.len();
            let read = self.read(&mut bytes[..wanted]).await?;
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&bytes[..read]);
        }
        let is_http2 = seen == PREFACE;
        self.replay = seen;
        Ok(is_http2)
    }

    fn note(&mut self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => {
                self.is_blocked = true;
                self.guest.pulse.lock().blocked(now());
            }
            Poll::Ready(Ok(_)) if self.is_blocked => {
                self.is_blocked = false;
                self.guest.pulse.lock().taken();
            }
            Poll::Ready(_) => {}
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.replay.is_empty() {
            let length = this.replay.len().min(buf.remaining());
            buf.put_slice(&this.replay[..length]);
            this.replay.drain(..length);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.tcp).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.guest.pulse.lock().received(now());
        }
        polled
    }
}

impl AsyncWrite for Paced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write(cx, bytes);
        this.note(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.tcp).poll_write_vectored(cx, bytes);
        this.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    /// Closes our side, and reads on for a moment: the client may still be sending what we no longer want.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut bytes = [0; 4096];
        loop {
            let mut rest = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.tcp).poll_read(cx, &mut rest) {
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return linger.as_mut().poll(cx).map(Ok),
            }
        }
    }
}
