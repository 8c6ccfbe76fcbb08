//! The status server: HTTP/1.1 on a Unix socket that only root may open.
//!
//! One request per connection. Connections are bounded in number and in time: a client that does not send its request,
//! or does not read the answer, is left after [`PATIENCE`], and so a capture ends at its time limit in any case.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Source;
use crate::datapath::recording::{Limits, Recording};

/// Connections served at the same time; more wait.
const CONNECTIONS: usize = 16;

/// How long a client may take over its request, and over reading the answer once all of it is there.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// Who may open the socket: its owner, root. A capture shows everybody's traffic.
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Why there is no status server.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Somebody answers on the socket.
    #[error("{}: another overlayd answers there: stop it, or give each its own socket", .0.display())]
    InUse(PathBuf),
    /// There is something that is no socket; it is left alone.
    #[error("{}: exists and is not a socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{}: {doing}: {error}", path.display())]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why it did not work.
        error: io::Error,
    },
}

/// A socket that listens but is not served yet.
#[derive(Debug)]
pub struct Status {
    listener: UnixListener,
    place: Place,
}

/// A server at work. Dropping it ends the server, with all connections and captures, and removes the socket.
#[derive(Debug)]
#[must_use = "dropping it ends the server"]
pub struct Serving {
    task: JoinHandle<()>,
    _place: Place,
}

/// The socket's file, removed when this is dropped.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Device and inode, which tell it from a successor's.
    identity: (u64, u64),
}

impl Status {
    /// Listens on a new socket of mode 0600. Its directory is made if need be. A socket that nobody answers on was left
    /// behind by a killed overlayd, and is replaced.
    ///
    /// # Errors
    /// When somebody answers on it, when it is no socket, or when the system refuses.
    pub fn bind(path: &Path) -> Result<Self, StatusError> {
        let failed =
            |doing| move |error: io::Error| StatusError::System { path: path.to_owned(), doing, error };
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(failed("making its directory"))?;
        }
        match occupant(path).map_err(failed("seeing who is there"))? {
            Occupant::Nobody => {}
            Occupant::Dead => fs::remove_file(path).map_err(failed("removing a socket without a server"))?,
            Occupant::Alive => return Err(StatusError::InUse(path.to_owned())),
            Occupant::NotASocket => return Err(StatusError::NotASocket(path.to_owned())),
        }
        let socket = listen(path).map_err(|errno| failed("listening")(errno.into()))?;
        let found = fs::symlink_metadata(path).map_err(failed("listening"))?;
        let place = Place { path: path.to_owned(), identity: (found.dev(), found.ino()) };
        let listener = UnixListener::from_std(StdListener::from(socket)).map_err(failed("listening"))?;
        Ok(Self { listener, place })
    }

    /// Serves until the returned value is dropped.
    pub fn serve(self, source: Arc<dyn Source>) -> Serving {
        Serving { task: tokio::spawn(accept(self.listener, source)), _place: self.place }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|it| (it.dev(), it.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("status socket {} cannot be removed: {error}", self.path.display());
        }
    }
}

/// What is at the socket's path.
enum Occupant {
    Nobody,
    Dead,
    Alive,
    NotASocket,
}

fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => return Ok(Occupant::NotASocket),
        Ok(_) => {}
    }
    // Not blocking: connecting to a socket whose backlog is full would wait.
    let probe = stream_socket()?;
    match socket::connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => Ok(Occupant::Dead),
        Err(Errno::ENOENT) => Ok(Occupant::Nobody),
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(Occupant::Alive),
        Err(error) => Err(error.into()),
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

fn listen(path: &Path) -> nix::Result<OwnedFd> {
    let address = UnixAddr::new(path)?;
    let listener = stream_socket()?;
    // Linux makes the file with the mode of the socket itself (unix_bind), so nobody can connect before it is 0600.
    fchmod(&listener, MODE)?;
    socket::bind(listener.as_raw_fd(), &address)?;
    socket::listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, source: Arc<dyn Source>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("status server: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let source = source.clone();
        connections.spawn(async move {
            converse(stream, &*source).await;
            drop(slot);
        });
    }
}

/// One connection: one request, one answer.
async fn converse(stream: UnixStream, source: &dyn Source) {
    let (extend, deadline) = watch::channel(Instant::now() + PATIENCE);
    let service = service_fn(|request: Request<Incoming>| {
        let (response, time) = respond(&request, source);
        extend.send_replace(Instant::now() + time + PATIENCE);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        outcome = connection => if let Err(error) = outcome {
            debug!("status connection: {error}");
        },
        () = passed(deadline) => debug!("status connection: the client neither asks nor reads"),
    }
}

/// Returns once the deadline, which may be moved meanwhile, has passed.
async fn passed(mut deadline: watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() {
                return sleep_until(at).await;
            },
        }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The answer to a request, and how long it takes to be there as a whole.
fn respond(request: &Request<Incoming>, source: &dyn Source) -> (Answer, Duration) {
    let query = request.uri().query().unwrap_or_default();
    let answer = match request.uri().path() {
        "/v1/datapath" | "/v1/datapath/pcap" if request.method() != Method::GET => {
            let mut answer = text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not possible here: use GET", request.method()),
            );
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            answer
        }
        "/v1/datapath" if query.is_empty() => match serde_json::to_vec(&source.report()) {
            Ok(json) => typed("application/json", Full::from(json).boxed_unsync()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        "/v1/datapath" => text(StatusCode::BAD_REQUEST, "/v1/datapath takes no parameters".to_owned()),
        "/v1/datapath/pcap" => match Limits::parse(query) {
            Ok(limits) => return (capture(limits, source), Duration::from_secs(limits.seconds)),
            Err(error) => text(StatusCode::BAD_REQUEST, error.to_string()),
        },
        path => {
            let right = "GET /v1/datapath, and GET /v1/datapath/pcap?packets=N&bytes=N&seconds=N&snaplen=N";
            text(StatusCode::NOT_FOUND, format!("nothing is at {path}; there are {right}"))
        }
    };
    (answer, Duration::ZERO)
}

fn capture(limits: Limits, source: &dyn Source) -> Answer {
    let report = source.report();
    let device = &report.device;
    let Some(capture) = source.capture() else {
        let instead = format!(
            "the kernel carries the packets of this overlay: capture them with `tcpdump -i {device} -w FILE`"
        );
        return text(StatusCode::NOT_IMPLEMENTED, instead);
    };
    let description = format!("VXLAN {} as overlayd's data path sees it", report.vni);
    let recording = match Recording::start(&capture, limits, device, &description) {
        Ok(recording) => recording,
        Err(busy) => return text(StatusCode::CONFLICT, busy.to_string()),
    };
    let pieces = stream::unfold(recording, |mut recording| async {
        let piece = recording.next().await?;
        Some((Ok(Frame::data(Bytes::from(piece))), recording))
    });
    typed("application/x-pcapng", StreamBody::new(pieces).boxed_unsync())
}

fn text(status: StatusCode, mut text: String) -> Answer {
    text.push('\n');
    let mut answer = typed("text/plain; charset=utf-8", Full::from(text).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

fn typed(kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
