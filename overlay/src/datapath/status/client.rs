//! The other end of the status socket, for `cli` and for tests.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Report;
use crate::datapath::recording::Limits;

/// How long overlayd may take to answer, or to begin to.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest report that is read: 5,000 peers are about 1 MB.
const MAX_REPORT_BYTES: usize = 64 << 20;

/// Why there is no answer. Each text names the socket.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket.
    #[error(
        "{}: no such socket: overlayd is not running or has not got its subnet yet (see its log), \
         or its -status-socket says another path",
        .0.display()
    )]
    Absent(PathBuf),
    /// There is one that nobody serves.
    #[error("{}: nobody answers: the overlayd that made this socket has gone; start it again and see its log", .0.display())]
    Dead(PathBuf),
    /// It belongs to root.
    #[error("{}: permission denied: only root may ask overlayd", .0.display())]
    Denied(PathBuf),
    /// It answers too slowly.
    #[error("{}: no answer within {} s: overlayd hangs or is stopped", .0.display(), PATIENCE.as_secs())]
    Slow(PathBuf),
    /// It says no, and why.
    #[error("{}: {text}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
    /// The conversation broke off.
    #[error("{}: {}", path.display(), chain(&**error))]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not a report.
    #[error("{}: its report cannot be read: {error}; use the same release of cli and overlayd", path.display())]
    Report {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: serde_json::Error,
    },
}

/// An error and what it comes from; hyper's say little alone.
fn chain(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// Asks one overlayd. Each question is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// A capture as it comes. Dropping it ends it.
#[derive(Debug)]
pub struct CaptureStream {
    path: PathBuf,
    body: Incoming,
    _connection: Connection,
}

/// The task that moves the bytes.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// A client of the overlayd that listens on this socket.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The data path's report.
    ///
    /// # Errors
    /// When nobody answers, or with something else.
    pub async fn report(&self) -> Result<Report, ClientError> {
        let asking = async {
            let (response, _connection) = self.get("/v1/datapath").await?;
            let body = Limited::new(response.into_body(), MAX_REPORT_BYTES).collect().await;
            Ok(body.map_err(|error| self.broken(error))?.to_bytes())
        };
        let body = timeout(PATIENCE, asking).await.map_err(|_| ClientError::Slow(self.path.clone()))??;
        serde_json::from_slice(&body).map_err(|error| ClientError::Report { path: self.path.clone(), error })
    }

    /// Starts a capture.
    ///
    /// # Errors
    /// When nobody answers, somebody captures already, or the kernel carries the packets.
    pub async fn capture(&self, limits: Limits) -> Result<CaptureStream, ClientError> {
        let path = format!("/v1/datapath/pcap?{}", limits.query());
        let slow = |_| ClientError::Slow(self.path.clone());
        let (response, connection) = timeout(PATIENCE, self.get(&path)).await.map_err(slow)??;
        Ok(CaptureStream { path: self.path.clone(), body: response.into_body(), _connection: connection })
    }

    /// The response to a request that was granted.
    async fn get(&self, path: &str) -> Result<(Response<Incoming>, Connection), ClientError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.unreachable(error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(error))?;
        let connection = Connection(tokio::spawn(async move {
            // Its errors reach whoever reads the answer.
            let _ = connection.await;
        }));
        let request = Request::get(path).header(HOST, "overlayd").body(Empty::<Bytes>::new());
        let request = request.map_err(|error| self.broken(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok((response, connection));
        }
        let body = Limited::new(response.into_body(), 64 << 10).collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        let text = String::from_utf8_lossy(&body).trim_end().to_owned();
        Err(ClientError::Refused { path: self.path.clone(), status: status.as_u16(), text })
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            io::ErrorKind::NotFound => ClientError::Absent(path),
            io::ErrorKind::ConnectionRefused => ClientError::Dead(path),
            io::ErrorKind::PermissionDenied => ClientError::Denied(path),
            _ => self.broken(error),
        }
    }

    fn broken(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { path: self.path.clone(), error: error.into() }
    }
}

impl CaptureStream {
    /// The next piece of the pcapng stream; `None` at its end.
    ///
    /// # Errors
    /// When it breaks off. What came before can be used.
    pub async fn next(&mut self) -> Option<Result<Bytes, ClientError>> {
        loop {
            let frame = match self.body.frame().await? {
                Ok(frame) => frame,
                Err(error) => {
                    return Some(Err(ClientError::Broken { path: self.path.clone(), error: error.into() }));
                }
            };
            // What is no data would be trailers.
            if let Ok(data) = frame.into_data() {
                return Some(Ok(data));
            }
        }
    }
}
