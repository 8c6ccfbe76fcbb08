//! The status server over real sockets, with its own client and with clients that misbehave.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::UNIX_EPOCH;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::super::client::{CaptureStream, Client, ClientError};
use super::super::doubles::{Fixed, kernel};
use super::super::{Kind, Report};
use super::*;
use crate::datapath::capture::{Capture, Direction};
use crate::datapath::pcapng::Scanner;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    capture: Arc<Capture>,
    serving: Option<Serving>,
}

impl Bench {
    /// A server with an engine's source.
    fn new() -> Self {
        let capture = Arc::new(Capture::new());
        let report = Report { datapath: Kind::Rust, ..kernel() };
        Self::with(report, Some(capture.clone()), capture)
    }

    fn with(report: Report, offered: Option<Arc<Capture>>, capture: Arc<Capture>) -> Self {
        let mut bench = Self { folder: tempfile::tempdir().unwrap(), capture, serving: None };
        let status = Status::bind(&bench.path()).unwrap();
        bench.serving = Some(status.serve(Arc::new(Fixed { report, capture: offered })));
        bench
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/overlayd.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.path())
    }

    async fn capture(&self, query: &str) -> Result<CaptureStream, ClientError> {
        self.client().capture(Limits::parse(query).unwrap()).await
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    /// Sends a request as it is and reads until the server has done with the connection.
    async fn raw(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }

    fn offer(&self, bytes: usize) {
        self.capture.frame(Direction::Inbound, || UNIX_EPOCH, &[&vec![1; bytes]]);
    }

    async fn wait_until_off(&self) {
        wait_until(|| !self.capture.is_on()).await;
        // Off comes first, then it can be started again.
        wait_until(|| self.capture.start(1).is_ok()).await;
    }
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap();
}

async fn read_all(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    // A server that leaves resets the connection if there was more to read for it.
    let _ = timeout(LIMIT, stream.read_to_end(&mut text)).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

async fn scan(stream: &mut CaptureStream, packets: u64) -> Scanner {
    let mut scanner = Scanner::default();
    while scanner.packets < packets
        && let Some(piece) = timeout(LIMIT, stream.next()).await.unwrap()
    {
        scanner.feed(&piece.unwrap(), &mut Vec::new()).unwrap();
    }
    scanner
}

#[tokio::test]
async fn the_report_is_the_sources_and_the_socket_roots_while_it_is_there() {
    let mut bench = Bench::with(kernel(), None, Arc::default());
    let mode = fs::metadata(bench.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(bench.client().report().await.unwrap(), kernel());
    drop(bench.serving.take());
    assert!(!bench.path().exists());
    assert!(matches!(bench.client().report().await, Err(ClientError::Absent(_))));
}

#[tokio::test]
async fn a_live_socket_is_refused_and_a_dead_one_replaced() {
    let bench = Bench::new();
    let error = Status::bind(&bench.path()).unwrap_err();
    assert!(matches!(&error, StatusError::InUse(path) if *path == bench.path()), "{error}");
    assert!(error.to_string().contains("overlayd.sock: another overlayd answers there"), "{error}");
    bench.client().report().await.unwrap();

    let path = bench.folder.path().join("dead.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(matches!(Client::new(&path).report().await, Err(ClientError::Dead(_))));
    let replaced = Status::bind(&path).unwrap();
    let _serving = replaced.serve(Arc::new(Fixed { report: kernel(), capture: None }));
    Client::new(&path).report().await.unwrap();
}

#[tokio::test]
async fn a_socket_nobody_accepts_on_counts_as_live() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.sock");
    let _listener = listen(&path).unwrap();
    let address = UnixAddr::new(&path).unwrap();
    let mut waiting = Vec::new();
    // Until the backlog is full.
    loop {
        let client = stream_socket().unwrap();
        let outcome = socket::connect(client.as_raw_fd(), &address);
        waiting.push(client);
        if outcome == Err(Errno::EAGAIN) {
            break;
        }
        outcome.unwrap();
    }
    assert!(matches!(Status::bind(&path), Err(StatusError::InUse(_))));
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Status::bind(&path), Err(StatusError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let below = Status::bind(&path.join("overlayd.sock")).unwrap_err();
    assert!(below.to_string().contains("file/overlayd.sock: making its directory: "), "{below}");
    let long = folder.path().join("x".repeat(120));
    let too_long = Status::bind(&long).unwrap_err();
    assert!(too_long.to_string().contains(": listening: "), "{too_long}");
}

#[tokio::test]
async fn a_successors_socket_is_not_removed() {
    let mut bench = Bench::new();
    fs::remove_file(bench.path()).unwrap();
    let successor = Status::bind(&bench.path()).unwrap();
    drop(bench.serving.take());
    assert!(bench.path().exists());
    drop(successor);
    assert!(!bench.path().exists());
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_right() {
    let bench = Bench::new();
    for (line, status, text) in [
        (
            "GET / HTTP/1.1",
            "404 Not Found",
            "there are GET /v1/datapath, and GET /v1/datapath/pcap?packets=N",
        ),
        ("GET /v1/datapath/ HTTP/1.1", "404 Not Found", "nothing is at /v1/datapath/; "),
        ("POST /v1/datapath HTTP/1.1", "405 Method Not Allowed", "allow: GET"),
        (
            "DELETE /v1/datapath/pcap HTTP/1.1",
            "405 Method Not Allowed",
            "DELETE is not possible here: use GET",
        ),
        ("GET /v1/datapath?x=1 HTTP/1.1", "400 Bad Request", "/v1/datapath takes no parameters"),
        (
            "GET /v1/datapath/pcap?packets=many HTTP/1.1",
            "400 Bad Request",
            "packets=many: must be a number from 1 to 1000000 (default 1000)",
        ),
        (
            "GET /v1/datapath/pcap?for=ever HTTP/1.1",
            "400 Bad Request",
            "\"for\" is no parameter of a capture",
        ),
        ("HELP ME", "400 Bad Request", ""),
    ] {
        let answer = bench.raw(&format!("{line}\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line}: {answer}");
        assert!(answer.contains(text), "{line}: {answer}");
    }
    assert!(!bench.capture.is_on());
}

#[tokio::test]
async fn the_kernels_packets_are_captured_elsewhere() {
    let bench = Bench::with(kernel(), None, Arc::default());
    match bench.capture("").await {
        Err(ClientError::Refused { status: 501, text, .. }) => {
            assert!(text.contains("`tcpdump -i flannel.1 -w FILE`"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_capture_comes_while_it_runs_and_ends_at_its_limit() {
    let bench = Bench::new();
    let mut stream = bench.capture("packets=5").await.unwrap();
    assert!(bench.capture.is_on());
    bench.offer(60);
    bench.offer(70_000);
    assert_eq!(scan(&mut stream, 2).await.packets, 2, "before it is over");
    match bench.capture("").await {
        Err(ClientError::Refused { status: 409, text, .. }) => {
            assert!(text.starts_with("another capture is running"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    for _ in 0..9 {
        bench.offer(60);
    }
    bench.wait_until_off().await;
    let mut rest = Vec::new();
    while let Some(piece) = stream.next().await {
        rest.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(
        rest.len(),
        3 * crate::datapath::pcapng::packet_bytes(60, 0, "") + crate::datapath::pcapng::END_BYTES
    );
}

#[tokio::test]
async fn a_capture_ends_with_its_client() {
    let bench = Bench::new();
    let mut stream = bench.capture("seconds=3600").await.unwrap();
    stream.next().await.unwrap().unwrap();
    // Nothing is sent meanwhile: the server must notice by itself.
    drop(stream);
    bench.wait_until_off().await;
}

#[tokio::test]
async fn a_capture_ends_although_its_client_does_not_read() {
    let bench = Bench::new();
    let mut client = bench.connect().await;
    client.write_all(b"GET /v1/datapath/pcap?seconds=1 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    wait_until(|| bench.capture.is_on()).await;
    for _ in 0..100 {
        bench.offer(60_000);
    }
    bench.wait_until_off().await;
}

#[tokio::test]
async fn a_capture_ends_with_the_server() {
    let mut bench = Bench::new();
    let mut stream = bench.capture("seconds=3600").await.unwrap();
    drop(bench.serving.take());
    bench.wait_until_off().await;
    let broken = async { while stream.next().await.is_some_and(|piece| piece.is_ok()) {} };
    timeout(LIMIT, broken).await.unwrap();
}

#[tokio::test]
async fn silent_clients_are_left_and_others_get_their_turn() {
    let bench = Bench::new();
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(bench.connect().await);
    }
    let mut half = bench.connect().await;
    half.write_all(b"GET /v1/datapath HTTP/1.1\r\nHost:").await.unwrap();
    bench.client().report().await.unwrap();
    for stream in &mut silent {
        let _ = read_all(stream).await;
    }
    let answer = read_all(&mut half).await;
    assert!(!answer.contains("200 OK"), "{answer}");
}
