//! Dialling another member: TCP, TLS, hello, verdict.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::super::stats::PeerStats;
use super::super::tls;
use super::spool::SpoolError;
use super::{DIAL_TIMEOUT, SILENCE};
use crate::config::{Scheme, Url};
use crate::wire::peer::{Hello, PeerError, Purpose, VERDICT_BYTES, Verdict};
use crate::wire::transfer::{Refusal, TransferError};

/// A connection to a peer, inside TLS or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
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

/// Another member, to be linked to.
#[derive(Clone)]
pub struct PeerLink {
    /// Its id.
    pub id: u64,
    /// Its peer URLs, tried in order.
    pub urls: Vec<Url>,
    /// Its counters.
    pub stats: Arc<PeerStats>,
}

/// Why a peer could not be dialled or was lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("{0}")]
    Io(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Protocol(#[from] PeerError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("it refuses the snapshot: {}", .0.advice())]
    Declined(Refusal),
    #[error("keeping a snapshot: {0}")]
    Spool(#[from] SpoolError),
    #[error("the snapshot gets no further for {0:?}")]
    Stalled(Duration),
    #[error("it closed the connection")]
    End,
    #[error("{0}")]
    Refused(&'static str),
    #[error("{}", Verdict::AlreadyBootstrapped.advice())]
    AlreadyBootstrapped,
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        LinkError::Io(tls::describe(&error))
    }
}

/// Dials the member `to` at its URLs in order.
pub(super) async fn dial(
    to: u64,
    urls: &[Url],
    dialler: &Dialler,
    purpose: Purpose,
) -> Result<(Box<dyn Stream>, Url), (Url, LinkError)> {
    let mut last = None;
    for url in urls {
        match timeout(DIAL_TIMEOUT, dial_one(to, url, dialler, purpose)).await {
            Ok(Ok(stream)) => return Ok((stream, url.clone())),
            Ok(Err(error @ LinkError::AlreadyBootstrapped)) => return Err((url.clone(), error)),
            Ok(Err(error)) => last = Some((url.clone(), error)),
            Err(_) => last = Some((url.clone(), LinkError::Timeout(DIAL_TIMEOUT))),
        }
    }
    Err(last.expect("a member has at least one peer URL"))
}

async fn dial_one(
    to: u64,
    url: &Url,
    dialler: &Dialler,
    purpose: Purpose,
) -> Result<Box<dyn Stream>, LinkError> {
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
    let hello = Hello { cluster: dialler.cluster, from: dialler.me, to, purpose };
    let said = async {
        stream.write_all(&hello.encode()).await?;
        stream.flush().await
    };
    let said = said.await;
    // Also when that failed: in TLS 1.3 the other side looks at our certificate only after we have finished the
    // handshake, and its alert, which says what is wrong with it, comes where the verdict would.
    let mut verdict = [0; VERDICT_BYTES];
    if let Err(heard) = stream.read_exact(&mut verdict).await {
        return Err(match (said, tls::is_tls_error(&heard)) {
            (Err(said), false) => said.into(),
            (_, false) if heard.kind() == io::ErrorKind::UnexpectedEof => {
                LinkError::Refused("it closed the connection; its log says why")
            }
            _ => heard.into(),
        });
    }
    match Verdict::decode(&verdict)? {
        Verdict::Welcome => Ok(stream),
        Verdict::AlreadyBootstrapped => Err(LinkError::AlreadyBootstrapped),
        other => Err(LinkError::Refused(other.advice())),
    }
}

/// Without delay, and given up when the other side acknowledges nothing for a while (a cut cable).
pub(super) fn tune(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let _ = nix::sys::socket::setsockopt(
        tcp,
        nix::sys::socket::sockopt::TcpUserTimeout,
        &u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX),
    );
}
