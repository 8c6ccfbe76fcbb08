//! `cli overlay datapath` against a real status server; captures are read back by tcpdump.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overlay::datapath::capture::{Capture, Direction};
use overlay::datapath::status::server::{Serving, Status};
use overlay::datapath::status::{Engine, Kind, Report, Source};
use tokio::runtime::Runtime;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// An overlayd as far as its status socket goes.
struct Daemon {
    folder: tempfile::TempDir,
    capture: Arc<Capture>,
    serving: Option<Serving>,
    runtime: Runtime,
}

struct Fixed(Report, Option<Arc<Capture>>);

impl Source for Fixed {
    fn report(&self) -> Report {
        self.0.clone()
    }

    fn capture(&self) -> Option<Arc<Capture>> {
        self.1.clone()
    }
}

fn report(datapath: Kind, engine: Option<Engine>) -> Report {
    Report {
        datapath,
        version: "0.1.0".into(),
        device: "flannel.7".into(),
        mac: "62:3b:27:aa:b8:86".into(),
        mtu: 1450,
        vni: 7,
        port: 8472,
        underlay: [192, 168, 31, 63].into(),
        subnet: "172.17.63.0/24".parse().unwrap(),
        peers: 0,
        engine,
    }
}

impl Daemon {
    fn new(report: Report) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let capture = Arc::new(Capture::new());
        let offered = (report.datapath == Kind::Rust).then(|| capture.clone());
        let folder = tempfile::tempdir().unwrap();
        let serving = runtime.block_on(async {
            let status = Status::bind(&folder.path().join("s.sock")).unwrap();
            status.serve(Arc::new(Fixed(report, offered)))
        });
        Self { folder, capture, serving: Some(serving), runtime }
    }

    fn running() -> Self {
        Self::new(report(Kind::Rust, Some(Engine { running: true, ..Engine::default() })))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("x.pcapng")
    }

    /// Starts `cli overlay datapath` in the daemon's folder.
    fn start(&self, line: &str) -> Child {
        self.start_words(&format!("overlay datapath --socket s.sock {line}"))
    }

    fn start_words(&self, line: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cli"));
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, line: &str) -> (i32, String, String) {
        ended(self.start(line))
    }

    /// Offers frames as soon as somebody captures.
    fn offer(&self, frames: u16) {
        wait_until("a capture", || self.capture.is_on());
        for n in 0..frames {
            let time = || UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456 + u64::from(n));
            let direction = if n % 2 == 0 { Direction::Outbound } else { Direction::Inbound };
            self.capture.frame(direction, time, &[&frame(n)]);
        }
    }
}

/// An Ethernet frame with a UDP datagram of 4 bytes from port `n`.
fn frame(n: u16) -> Vec<u8> {
    let mut bytes = vec![0x62, 0x3b, 0x27, 0xaa, 0xb8, 0x87, 0x62, 0x3b, 0x27, 0xaa, 0xb8, 0x86, 8, 0];
    let ipv4 = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 172, 17, 63, 2, 172, 17, 65, 2];
    bytes.extend_from_slice(&ipv4);
    bytes.extend((1000 + n).to_be_bytes());
    bytes.extend_from_slice(&[0x13, 0x88, 0, 12, 0, 0, 1, 2, 3, 4]);
    bytes
}

/// Exit code, stdout and stderr.
fn ended(mut child: Child) -> (i32, String, String) {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take().unwrap());
    let reader = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    let mut text = Vec::new();
    if let Some(out) = &mut out {
        out.read_to_end(&mut text).unwrap();
    }
    let mut code = None;
    wait_until("cli to end", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    (code.unwrap().code().unwrap(), String::from_utf8_lossy(&text).into_owned(), reader.join().unwrap())
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What tcpdump makes of a file: one line for each frame.
fn tcpdump(args: &str, input: Stdio) -> Vec<String> {
    let mut command = Command::new("tcpdump");
    command.args(args.split_whitespace()).env("TZ", "UTC").stdin(input);
    let output = command.output().expect("tcpdump cannot be started: install Debian's package tcpdump");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_report_as_text_and_as_json() {
    let daemon = Daemon::running();
    let (code, out, err) = daemon.run("");
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("flannel.7: overlayd's own data path, running for "), "{out}");
    for line in ["overlay datapath --socket s.sock -o json", "-o json overlay datapath --socket s.sock"] {
        let (code, out, err) = ended(daemon.start_words(line));
        assert_eq!((code, err.as_str()), (0, ""), "{line}");
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&json["datapath"], &json["engine"]["running"]), (&"rust".into(), &true.into()));
        assert_eq!(out.lines().count(), 1);
    }
}

#[test]
fn a_stopped_engine_is_a_failure_and_the_kernel_is_not() {
    let stopped = Daemon::new(report(Kind::Rust, Some(Engine::default())));
    let (code, out, _) = stopped.run("");
    assert_eq!(code, 1);
    assert!(out.contains("NOT RUNNING"), "{out}");
    let kernel = Daemon::new(report(Kind::Kernel, None));
    let (code, out, _) = kernel.run("");
    assert_eq!(code, 0);
    assert!(out.contains("ip -s -s link show flannel.7"), "{out}");
    let (code, _, err) = kernel.run("--watch");
    assert_eq!(code, 1);
    assert!(err.contains("`ip -s link show flannel.7`"), "{err}");
    let (code, _, err) = kernel.run("--pcap x.pcapng");
    assert_eq!(code, 1);
    assert!(err.contains("`tcpdump -i flannel.7 -w FILE`"), "{err}");
    assert!(!kernel.file().exists());
}

#[test]
fn a_daemon_that_is_not_there_and_words_that_make_no_sense() {
    let mut daemon = Daemon::running();
    drop(daemon.serving.take());
    let (code, out, err) = daemon.run("");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("Error:  s.sock: no such socket: overlayd is not running"), "{err}");
    for (line, text) in [
        ("--pcap x --packets 0", "packets=0: must be a number from 1 to 1000000 (default 1000)"),
        ("--packets 5", "--pcap <FILE>"),
        ("--force", "--pcap <FILE>"),
        ("--watch 0", "0 is not in 1..=3600"),
        ("--watch 1 --pcap x", "cannot be used with"),
        ("-o extended", "[possible values: text, json]"),
    ] {
        let (code, _, err) = daemon.run(line);
        assert_eq!(code, 2, "{line}: {err}");
        assert!(err.contains(text), "{line}: {err}");
    }
}

#[test]
fn a_capture_is_what_tcpdump_reads() {
    let daemon = Daemon::running();
    let child = daemon.start("--pcap x.pcapng --packets 3");
    daemon.offer(5);
    let (code, out, err) = ended(child);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    let size = fs::metadata(daemon.file()).unwrap().len();
    assert_eq!(err, format!("x.pcapng: 3 packets, {size} B\n"));
    assert_eq!(fs::metadata(daemon.file()).unwrap().permissions().mode() & 0o777, 0o600);
    let lines = tcpdump(&format!("-n -tttt -r {}", daemon.file().display()), Stdio::null());
    let expected = |n: u32| {
        format!(
            "2023-11-14 22:13:20.{:06} IP 172.17.63.2.{} > 172.17.65.2.5000: UDP, length 4",
            123_456 + n,
            1000 + n
        )
    };
    assert_eq!(lines, [expected(0), expected(1), expected(2)]);
}

#[test]
fn a_file_that_is_there_is_kept_unless_forced() {
    let daemon = Daemon::running();
    fs::write(daemon.file(), "precious").unwrap();
    let (code, _, err) = daemon.run("--pcap x.pcapng");
    assert_eq!(code, 1);
    assert!(err.contains("--pcap x.pcapng: is there already") && err.contains("--force"), "{err}");
    assert_eq!(fs::read_to_string(daemon.file()).unwrap(), "precious");
    let child = daemon.start("--pcap x.pcapng --force --packets 1 -o json");
    daemon.offer(1);
    let (code, out, err) = ended(child);
    assert_eq!((code, err.as_str()), (0, ""));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&json["file"], &json["packets"], &json["missing"]),
        (&"x.pcapng".into(), &1.into(), &0.into())
    );
    assert_eq!((&json["complete"], json.get("error")), (&true.into(), None));
    assert_eq!(tcpdump(&format!("-n -r {}", daemon.file().display()), Stdio::null()).len(), 1);
}

#[test]
fn a_busy_daemon_and_a_folder_that_is_not_there() {
    let daemon = Daemon::running();
    let reader = daemon.capture.start(100).unwrap();
    let (code, _, err) = daemon.run("--pcap x.pcapng");
    assert_eq!(code, 1);
    assert!(err.contains("another capture is running"), "{err}");
    assert!(!daemon.file().exists());
    drop(reader);
    let (code, _, err) = daemon.run("--pcap nowhere/x.pcapng");
    assert_eq!(code, 1);
    assert!(err.contains("--pcap nowhere/x.pcapng: No such file or directory"), "{err}");
}

#[test]
fn tcpdump_reads_a_capture_as_it_comes() {
    let daemon = Daemon::running();
    let mut child = daemon.start("--pcap - --seconds 3600");
    let out = child.stdout.take().unwrap();
    let reading = thread::spawn(move || tcpdump("-n -c 2 -r -", out.into()));
    daemon.offer(2);
    assert_eq!(reading.join().unwrap().len(), 2, "while the capture goes on");
    // The pipe is closed, which a frame shows; not always the next one, since a process that another test is just
    // starting may hold the pipe's other end until then.
    wait_until("cli to notice", || {
        daemon.capture.frame(Direction::Inbound, || UNIX_EPOCH, &[&frame(1)]);
        child.try_wait().unwrap().is_some()
    });
    let (code, _, err) = ended(child);
    assert_eq!((code, err.as_str()), (0, ""));
}

/// How many packets (blocks of type 6) have come to a capture file that is being written, whole.
fn packets_in(file: &Path) -> usize {
    let text = fs::read(file).unwrap_or_default();
    let (mut rest, mut packets) = (text.as_slice(), 0);
    while let [kind, _, _, _, a, b, c, d, ..] = *rest {
        let Some(after) = rest.get(u32::from_le_bytes([a, b, c, d]) as usize..) else { break };
        packets += usize::from(kind == 6);
        rest = after;
    }
    packets
}

#[test]
fn an_interrupted_capture_is_a_file_all_the_same() {
    let daemon = Daemon::running();
    let child = daemon.start("--pcap x.pcapng --seconds 3600");
    daemon.offer(4);
    wait_until("four frames", || packets_in(&daemon.file()) == 4);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let (code, _, err) = ended(child);
    assert_eq!(code, 0, "{err}");
    assert!(err.starts_with("x.pcapng: 4 packets, ") && err.ends_with("; interrupted\n"), "{err}");
    assert_eq!(tcpdump(&format!("-n -r {}", daemon.file().display()), Stdio::null()).len(), 4);
    wait_until("the capture's end", || !daemon.capture.is_on());
}

#[test]
fn a_daemon_that_ends_meanwhile_is_an_error_and_what_came_is_kept() {
    let mut daemon = Daemon::running();
    let child = daemon.start("--pcap x.pcapng --seconds 3600");
    daemon.offer(4);
    wait_until("four frames", || packets_in(&daemon.file()) == 4);
    drop(daemon.serving.take());
    let (code, _, err) = ended(child);
    assert_eq!(code, 1, "{err}");
    assert!(
        err.starts_with("x.pcapng: 4 packets, ") && err.contains("\nError:  the capture broke off ("),
        "{err}"
    );
    assert_eq!(tcpdump(&format!("-n -r {}", daemon.file().display()), Stdio::null()).len(), 4);
}

#[test]
fn watching_ends_with_the_daemon_or_by_interruption() {
    let mut daemon = Daemon::running();
    let mut child = daemon.start("--watch");
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 6];
    out.read_exact(&mut first).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(ended(child).0, 0);
    let mut child = daemon.start("--watch -o json");
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(daemon.serving.take());
    let (code, _, err) = ended(child);
    assert_eq!(code, 1);
    assert!(err.contains("s.sock: "), "{err}");
    drop(daemon.runtime);
}
