//! Real servers and commands for the tests of `cli`.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// A one-member etcd with the v2 API, in a directory of its own; killed when dropped.
pub(crate) struct Etcd {
    process: Option<Child>,
    pub(crate) url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Etcd {
    /// Starts one on free ports and waits until it answers.
    pub(crate) fn start() -> Self {
        // Somebody else may be given the ports between the two who use them.
        (0..5).find_map(|_| Self::try_start()).expect("etcd ended five times")
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // Bound together, so that they differ; free again by the time that etcd binds them.
        let (client, peer) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let url_of = |socket: &TcpListener| format!("http://{}", socket.local_addr().unwrap());
        let (url, peer_url) = (url_of(&client), url_of(&peer));
        drop((client, peer));
        let process = Command::new("etcd")
            .args(["--enable-v2=true", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd cannot be started: install Debian's package etcd-server");
        let mut etcd = Self { process: Some(process), url, _folder: Some(folder) };
        let mut ended = false;
        wait_for("etcd to answer", || {
            ended = etcd.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_some());
            ended || run("etcdctl", &etcd, &["cluster-health"]).code == 0
        });
        if ended {
            return None;
        }
        // It decides on the version after it has begun to serve, and with that takes an index.
        wait_for("etcd to decide on the cluster's version", || {
            let version = etcd.get("/version");
            version.contains("etcdcluster") && !version.contains("not_decided")
        });
        Some(etcd)
    }

    /// The answer to a plain `GET`, head included.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// An endpoint where nothing listens.
    pub(crate) fn nobody() -> Self {
        Self { process: None, url: "http://127.0.0.1:1".to_owned(), _folder: None }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl Outcome {
    /// Without what differs between two servers: their ports, ids and times of expiry, and what is left until then.
    pub(crate) fn normal(&self, etcd: &Etcd) -> Self {
        let clean = |text: &str| {
            let mut words = text.replace(&etcd.url, "URL");
            for (begin, ends) in [("\"expiration\":\"", '"'), ("peerURLs=", ' '), ("member ", ' ')] {
                if let Some((before, rest)) = words.clone().split_once(begin)
                    && let Some((_, after)) = rest.split_once(ends)
                {
                    words = format!("{before}{begin}*{ends}{after}");
                }
            }
            for begin in ["\"ttl\":", "TTL: "] {
                words = without_numbers_after(&words, begin);
            }
            // The id that begins a line of `member list`.
            match words.split_once(": name=") {
                Some((id, rest)) if id.bytes().all(|b| b.is_ascii_hexdigit()) => format!("*: name={rest}"),
                _ => words,
            }
        };
        Self { stdout: clean(&self.stdout), stderr: clean(&self.stderr), code: self.code }
    }
}

/// With `*` for each number after these words, unless it is 0.
fn without_numbers_after(text: &str, words: &str) -> String {
    let mut parts = text.split(words);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &part[..part.len() - rest.len()];
        out.extend([words, if number.trim_matches('0').is_empty() { number } else { "*" }, rest]);
    }
    out
}

/// Runs a client program against `etcd`; `{}` in an argument stands for its URL.
pub(crate) fn run(program: &str, etcd: &Etcd, args: &[&str]) -> Outcome {
    run_with_stdin(program, etcd, args, "")
}

/// As [`run`], with something on stdin.
pub(crate) fn run_with_stdin(program: &str, etcd: &Etcd, args: &[&str], stdin: &str) -> Outcome {
    finish(command(program, etcd, args), stdin)
}

/// Runs any program.
pub(crate) fn run_program(program: &str, args: &[&str], stdin: &str) -> Outcome {
    let mut command = Command::new(program);
    command.args(args);
    finish(command, stdin)
}

fn command(program: &str, etcd: &Etcd, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(args.iter().map(|arg| arg.replace("{}", &etcd.url)))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("ETCDCTL_API", "2");
    if !args.contains(&"--endpoints") {
        command.env("ETCDCTL_ENDPOINTS", &etcd.url);
    }
    command
}

fn finish(mut command: Command, stdin: &str) -> Outcome {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(
            |e| panic!("{command:?} cannot be started ({e}): install Debian's package etcd-client"),
        );
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    let (done, finished) = mpsc::channel::<()>();
    // A command that hangs is killed; its output then shows how far it came.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let guard = std::thread::spawn(move || {
        if finished.recv_timeout(LIMIT).is_err_and(|e| e == mpsc::RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let mut stdout = String::new();
    out.read_to_string(&mut stdout).unwrap();
    let status = child.wait().unwrap();
    drop(done);
    guard.join().unwrap();
    Outcome { stdout, stderr: reader.join().unwrap(), code: status.code().unwrap_or(-1) }
}

/// A command that goes on; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(program: &str, etcd: &Etcd, args: &[&str]) -> Self {
        let mut child =
            command(program, etcd, args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let out: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The next lines it prints.
    pub(crate) fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.lines.recv_timeout(LIMIT).expect("no further line in time")).collect()
    }

    /// Ends it as Ctrl-C does and gives its exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let mut code = None;
        wait_for("the command to end", || {
            let ended = self.child.try_wait().unwrap();
            code = ended.and_then(|status| status.code());
            ended.is_some()
        });
        code
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not in time.
#[expect(clippy::disallowed_methods, reason = "a real deadline for real programs")]
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
