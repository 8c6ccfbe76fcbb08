//! Links to the other members: one task for each that dials, one for each connection that comes in.
//!
//! Sending never waits. Each peer has a bounded queue; when it is full or the link is down, messages are
//! dropped and raft is told. The protocol is in [`crate::wire::peer`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::driver::Input;
use super::stats::PeerStats;
use super::tls;
use crate::config::{Scheme, Url};
use crate::wire::peer::{
    self, FRAME_HEAD_BYTES, HELLO_BYTES, Hello, Kind, PeerError, VERDICT_BYTES, Verdict,
};

/// Messages that may wait for one peer.
const QUEUE: usize = 4096;
/// Time for connecting, the handshake and the hello.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failed attempt.
const REDIAL: Duration = Duration::from_millis(250);
/// A link without other traffic says that often that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A link that takes or gives nothing for that long is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// Time for sending one snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes gathered before a write, and read at once.
const WRITE_BUFFER: usize = 64 * 1024;
/// Connections from peers at one time: a few for each member and its snapshots.
const MAX_INCOMING: usize = 64;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What dialling needs to know.
#[derive(Clone)]
pub struct Dialler {
    /// The cluster.
    pub cluster: u64,
    /// This member.
    pub me: u64,
    /// TLS, if any peer URL is https.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why a peer could not be dialled or was lost.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Io(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Protocol(#[from] PeerError),
    #[error("{0}")]
    Refused(&'static str),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        LinkError::Io(tls::describe(&error))
    }
}

/// Another member, to be linked to.
pub struct PeerLink {
    /// Its id.
    pub id: u64,
    /// Its peer URLs, tried in order.
    pub urls: Vec<Url>,
    /// Its counters.
    pub stats: Arc<PeerStats>,
}

/// The sending side of all links.
pub struct Peers {
    links: BTreeMap<u64, Link>,
    dialler: Dialler,
    inputs: SyncSender<Input>,
    runtime: tokio::runtime::Handle,
}

struct Link {
    queue: mpsc::Sender<Message>,
    urls: Vec<Url>,
    stats: Arc<PeerStats>,
}

impl Peers {
    /// Starts a dialling task for each of `others`.
    pub fn start(
        others: Vec<PeerLink>,
        dialler: Dialler,
        inputs: SyncSender<Input>,
        runtime: tokio::runtime::Handle,
    ) -> Peers {
        let mut links = BTreeMap::new();
        for PeerLink { id, urls, stats } in others {
            let (queue, messages) = mpsc::channel(QUEUE);
            runtime.spawn(keep_linked(id, urls.clone(), dialler.clone(), messages, inputs.clone()));
            links.insert(id, Link { queue, urls, stats });
        }
        Peers { links, dialler, inputs, runtime }
    }

    /// Puts a message on its way; drops it if the peer is too slow.
    pub fn send(&self, message: Message) {
        let Some(link) = self.links.get(&message.to) else { return };
        match message.get_msg_type() {
            MessageType::MsgSnapshot => return self.send_snapshot(link, message),
            MessageType::MsgAppend => link.stats.append_sent(),
            _ => {}
        }
        let to = message.to;
        if link.queue.try_send(message).is_err() {
            link.stats.dropped();
            let _ = self.inputs.try_send(Input::Unreachable(to));
        }
    }

    /// A snapshot goes over a connection of its own, so that heartbeats are not stuck behind it.
    fn send_snapshot(&self, link: &Link, message: Message) {
        let (urls, dialler, inputs) = (link.urls.clone(), self.dialler.clone(), self.inputs.clone());
        self.runtime.spawn(async move {
            let to = message.to;
            let send = async {
                let (mut stream, url) = dial(to, &urls, &dialler).await.map_err(|(_, error)| error)?;
                tracing::info!(peer = format_args!("{to:x}"), %url, "sending a snapshot");
                write_message(&mut stream, &message).await?;
                stream.shutdown().await?;
                Ok::<(), LinkError>(())
            };
            let sent = match timeout(SNAPSHOT_TIMEOUT, send).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(peer = format_args!("{to:x}"), %error, "cannot send a snapshot");
                    false
                }
                Err(_) => false,
            };
            let _ = inputs.try_send(Input::SnapshotSent { to, sent });
        });
    }
}

/// Dials a peer for ever, and sends what is in its queue while linked.
async fn keep_linked(
    id: u64,
    urls: Vec<Url>,
    dialler: Dialler,
    mut messages: mpsc::Receiver<Message>,
    inputs: SyncSender<Input>,
) {
    let peer = format!("{id:x}");
    let mut last_error = String::new();
    loop {
        match dial(id, &urls, &dialler).await {
            Ok((stream, url)) => {
                tracing::info!(%peer, %url, "linked to peer");
                last_error.clear();
                // What waited through an outage is stale.
                while messages.try_recv().is_ok() {}
                match forward(stream, &mut messages).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%peer, %url, %error, "lost the link to peer"),
                }
            }
            Err((url, error)) => {
                let error = error.to_string();
                if error == last_error {
                    tracing::debug!(%peer, %url, %error, "still cannot link to peer");
                } else {
                    tracing::warn!(%peer, %url, %error, "cannot link to peer");
                    last_error = error;
                }
            }
        }
        let _ = inputs.try_send(Input::Unreachable(id));
        tokio::time::sleep(REDIAL).await;
    }
}

async fn dial(to: u64, urls: &[Url], dialler: &Dialler) -> Result<(Box<dyn Stream>, Url), (Url, LinkError)> {
    let mut last = None;
    for url in urls {
        match timeout(DIAL_TIMEOUT, dial_one(to, url, dialler)).await {
            Ok(Ok(stream)) => return Ok((stream, url.clone())),
            Ok(Err(error)) => last = Some((url.clone(), error)),
            Err(_) => last = Some((url.clone(), LinkError::Timeout(DIAL_TIMEOUT))),
        }
    }
    Err(last.expect("a member has at least one peer URL"))
}

async fn dial_one(to: u64, url: &Url, dialler: &Dialler) -> Result<Box<dyn Stream>, LinkError> {
    let tcp = TcpStream::connect((url.host(), url.port())).await?;
    tune(&tcp);
    let mut stream: Box<dyn Stream> = match (url.scheme(), &dialler.tls) {
        (Scheme::Http, _) => Box::new(tcp),
        (Scheme::Https, None) => {
            return Err(LinkError::Refused("it is https and --peer-trusted-ca-file is missing"));
        }
        (Scheme::Https, Some(config)) => {
            let name =
                tls::server_name(url.host()).ok_or(LinkError::Refused("its host is no name for TLS"))?;
            Box::new(TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?)
        }
    };
    stream.write_all(&Hello { cluster: dialler.cluster, from: dialler.me, to }.encode()).await?;
    stream.flush().await?;
    let mut verdict = [0; VERDICT_BYTES];
    stream.read_exact(&mut verdict).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkError::Refused("it closed the connection; its log says why"),
        _ => error.into(),
    })?;
    match Verdict::decode(&verdict)? {
        Verdict::Welcome => Ok(stream),
        other => Err(LinkError::Refused(other.advice())),
    }
}

/// Without delay, and given up when the other side acknowledges nothing for a while (a cut cable).
fn tune(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let _ = nix::sys::socket::setsockopt(
        tcp,
        nix::sys::socket::sockopt::TcpUserTimeout,
        &u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX),
    );
}

/// Sends until the queue's owner is gone (`Ok`) or the link breaks.
async fn forward(stream: Box<dyn Stream>, messages: &mut mpsc::Receiver<Message>) -> Result<(), LinkError> {
    let mut stream = BufWriter::with_capacity(WRITE_BUFFER, stream);
    loop {
        let write = async {
            match timeout(KEEP_ALIVE, messages.recv()).await {
                Ok(None) => return Ok(false),
                Ok(Some(message)) => {
                    write_message(&mut stream, &message).await?;
                    while let Ok(message) = messages.try_recv() {
                        write_message(&mut stream, &message).await?;
                    }
                }
                Err(_) => stream.write_all(&peer::frame_head(Kind::KeepAlive, 0)?).await?,
            }
            stream.flush().await?;
            Ok::<bool, LinkError>(true)
        };
        match timeout(KEEP_ALIVE + SILENCE, write).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(LinkError::Timeout(SILENCE)),
        }
    }
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), LinkError> {
    let body = message.write_to_bytes().map_err(|error| LinkError::Io(error.to_string()))?;
    stream.write_all(&peer::frame_head(Kind::Raft, body.len())?).await?;
    stream.write_all(&body).await?;
    Ok(())
}

/// What accepting needs to know.
#[derive(Clone)]
pub struct Acceptor {
    /// The cluster.
    pub cluster: u64,
    /// This member.
    pub me: u64,
    /// The members and their counters.
    pub members: Arc<BTreeMap<u64, Arc<PeerStats>>>,
    /// TLS, if the listener is https.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The raft thread.
    pub inputs: SyncSender<Input>,
}

/// Accepts peers on one listener for ever.
pub async fn accept(listener: TcpListener, acceptor: Acceptor) {
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_INCOMING));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(REDIAL).await;
                continue;
            }
        };
        tune(&tcp);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let mut id = None;
            match serve(tcp, from, &acceptor, &mut id).await {
                Ok(()) => tracing::debug!(%from, "peer closed its connection"),
                Err(error) => {
                    let peer = id.map_or_else(|| "unknown".to_owned(), |id: u64| format!("{id:x}"));
                    tracing::warn!(%from, %peer, %error, "connection from a peer refused or lost");
                }
            }
        });
    }
}

async fn serve(
    tcp: TcpStream,
    from: SocketAddr,
    acceptor: &Acceptor,
    id: &mut Option<u64>,
) -> Result<(), LinkError> {
    let (stream, hello) = timeout(DIAL_TIMEOUT, greet(tcp, from, acceptor))
        .await
        .map_err(|_| LinkError::Timeout(DIAL_TIMEOUT))??;
    *id = Some(hello.from);
    let mut stream = BufReader::with_capacity(WRITE_BUFFER, stream);
    let stats = acceptor.members.get(&hello.from).cloned();
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        match timeout(SILENCE, stream.read_exact(&mut head)).await {
            Err(_) => return Err(LinkError::Timeout(SILENCE)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(_)) => {}
        }
        let (kind, length) = peer::parse_frame_head(head)?;
        // Grows with what arrives, so a head alone costs no memory.
        let mut body = Vec::with_capacity(length.min(WRITE_BUFFER));
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        let read = timeout(SNAPSHOT_TIMEOUT, (&mut stream).take(limit).read_to_end(&mut body)).await;
        if read.map_err(|_| LinkError::Timeout(SNAPSHOT_TIMEOUT))?? != length {
            return Err(LinkError::Io("the connection ended within a frame".to_owned()));
        }
        if kind == Kind::KeepAlive {
            continue;
        }
        let message = Message::parse_from_bytes(&body).map_err(|error| LinkError::Io(error.to_string()))?;
        if message.from != hello.from || message.to != acceptor.me {
            return Err(LinkError::Refused("it sends messages in another member's name"));
        }
        if let (Some(stats), MessageType::MsgAppendResponse) = (&stats, message.get_msg_type()) {
            stats.append_answered();
        }
        if acceptor.inputs.try_send(Input::Peer(Box::new(message))).is_err() {
            // Too much to do: raft sends again what matters.
            tokio::task::yield_now().await;
        }
    }
}

/// TLS if it is on, and the hello.
async fn greet(
    tcp: TcpStream,
    from: SocketAddr,
    acceptor: &Acceptor,
) -> Result<(Box<dyn Stream>, Hello), LinkError> {
    let mut stream: Box<dyn Stream> = match &acceptor.tls {
        None => Box::new(tcp),
        Some(config) => {
            let stream = TlsAcceptor::from(Arc::clone(config)).accept(tcp).await?;
            let (_, session) = stream.get_ref();
            if let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) {
                tls::is_valid_for(certificate, from.ip()).map_err(LinkError::Io)?;
            }
            Box::new(stream)
        }
    };
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await?;
    let hello = Hello::decode(&bytes);
    let verdict = match hello {
        Err(PeerError::Version(_)) => Verdict::OtherVersion,
        Err(error) => return Err(error.into()),
        Ok(hello) if hello.cluster != acceptor.cluster => Verdict::OtherCluster,
        Ok(hello) if hello.to != acceptor.me => Verdict::NotMe,
        Ok(hello) if !acceptor.members.contains_key(&hello.from) => Verdict::UnknownMember,
        Ok(_) => Verdict::Welcome,
    };
    stream.write_all(&verdict.encode()).await?;
    stream.flush().await?;
    match verdict {
        Verdict::Welcome => Ok((stream, hello?)),
        other => Err(LinkError::Refused(match other {
            Verdict::OtherCluster => "it belongs to another cluster",
            Verdict::NotMe => "it means to reach another member",
            Verdict::UnknownMember => "it is no member of this cluster",
            Verdict::OtherVersion | Verdict::Welcome => "it speaks another version of the peer protocol",
        })),
    }
}
