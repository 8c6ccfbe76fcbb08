//! Two hosts made of network namespaces, joined by a veth pair, with Debian's etcd on the first.
//!
//! ```text
//!   namespace a: eth0 10.99.0.2 ──── veth ──── eth0 10.99.0.3 :namespace b
//!                etcd 10.99.0.2:2379
//! ```
//!
//! Everything is removed when dropped: processes by their id, namespaces by name. Without root these tests fail; they
//! do not skip.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const STORE: &str = "http://10.99.0.2:2379";
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// Runs a program to its end and returns its standard output; panics with everything it said if it fails.
pub(crate) fn run(args: &[&str]) -> String {
    let (status, out, err) = try_run(args);
    assert!(
        status.success(),
        "{args:?}: {status}\n{out}{err}\n(these tests need root, iproute2, etcd, iptables and nft)"
    );
    out
}

pub(crate) fn try_run(args: &[&str]) -> (ExitStatus, String, String) {
    let output = Command::new(args[0])
        .args(&args[1..])
        .env("ETCDCTL_API", "2")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", args[0]));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status, text(output.stdout), text(output.stderr))
}

/// Waits until `condition` yields something; panics with `what` after `limit`.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// A process that is killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(args: &[&str], env: &[(&str, &str)], log: &Path) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(args[0])
            .args(&args[1..])
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", args[0]));
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Sends a signal by number. `ip netns exec` becomes the program it runs, so the id is the program's.
    pub(crate) fn signal(&self, signal: &str) {
        run(&["kill", signal, &self.child.id().to_string()]);
    }

    /// Stops every thread of it, until SIGCONT. The signal alone leaves a busy machine's threads running for a moment.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("all threads stopped", Duration::from_secs(30), || {
            let stopped = |task: std::fs::DirEntry| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
            };
            std::fs::read_dir(&tasks).unwrap().all(|task| stopped(task.unwrap())).then_some(())
        });
    }

    /// Waits for the end and returns the exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let log = self.log.clone();
        let status =
            eventually(&format!("end of process; log {}", log.display()), Duration::from_secs(30), || {
                self.child.try_wait().unwrap()
            });
        status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The two hosts.
pub(crate) struct Hosts {
    names: [String; 2],
    pub(crate) dir: tempfile::TempDir,
    etcd: Option<Process>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Hosts {
    /// Builds the hosts, starts etcd, and writes `config` to the config key.
    pub(crate) fn new(config: &str) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|side| format!("weft-ov-{}-{n}{side}", std::process::id()));
        let [a, b] = &names;
        for name in &names {
            run(&["ip", "netns", "add", name]);
        }
        let mut hosts = Self { names: names.clone(), dir: tempfile::tempdir().unwrap(), etcd: None };
        run(&["ip", "link", "add", "eth0", "netns", a, "type", "veth", "peer", "name", "eth0", "netns", b]);
        for (host, address) in [(0, "10.99.0.2/24"), (1, "10.99.0.3/24")] {
            hosts.ip(host, &["link", "set", "lo", "up"]);
            hosts.ip(host, &["link", "set", "eth0", "up"]);
            hosts.ip(host, &["addr", "add", address, "dev", "eth0"]);
            hosts.ip(host, &["route", "add", "default", "via", "10.99.0.1"]);
        }
        hosts.start_etcd();
        hosts.set("config", config);
        hosts
    }

    pub(crate) fn start_etcd(&mut self) {
        let data = self.dir.path().join("etcd");
        let data = data.to_str().unwrap();
        let log = self.dir.path().join("etcd.log");
        let args = [
            "ip",
            "netns",
            "exec",
            &self.names[0],
            "etcd",
            "--enable-v2=true",
            "--data-dir",
            data,
            "--listen-client-urls",
            STORE,
            "--advertise-client-urls",
            STORE,
        ];
        self.etcd = Some(Process::spawn(&args, &[], &log));
        eventually("etcd serves", Duration::from_secs(30), || {
            self.try_exec(0, &["curl", "-sf", &format!("{STORE}/health")]).0.success().then_some(())
        });
    }

    pub(crate) fn stop_etcd(&mut self) {
        self.etcd = None;
    }

    pub(crate) fn ip(&self, host: usize, args: &[&str]) -> String {
        run(&[&["ip", "-n", &self.names[host]], args].concat())
    }

    pub(crate) fn bridge(&self, host: usize, args: &[&str]) -> String {
        run(&[&["bridge", "-n", &self.names[host]], args].concat())
    }

    pub(crate) fn exec(&self, host: usize, args: &[&str]) -> String {
        run(&[&["ip", "netns", "exec", &self.names[host]], args].concat())
    }

    pub(crate) fn try_exec(&self, host: usize, args: &[&str]) -> (ExitStatus, String, String) {
        try_run(&[&["ip", "netns", "exec", &self.names[host]], args].concat())
    }

    /// etcdctl, API version 2.
    pub(crate) fn etcdctl(&self, args: &[&str]) -> String {
        self.exec(0, &[&["etcdctl", "--endpoints", STORE], args].concat())
    }

    pub(crate) fn set(&self, key: &str, value: &str) {
        self.etcdctl(&["set", &format!("{PREFIX}/{key}"), value]);
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let (status, out, _) =
            self.try_exec(0, &["etcdctl", "--endpoints", STORE, "get", &format!("{PREFIX}/{key}")]);
        status.success().then(|| out.trim_end().to_owned())
    }

    pub(crate) fn env_file(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("run{host}/subnet.env"))
    }

    /// Starts overlayd on a host, with `args` added.
    pub(crate) fn overlayd(&self, host: usize, args: &[&str], env: &[(&str, &str)]) -> Process {
        let file = self.env_file(host);
        let base = [
            "ip",
            "netns",
            "exec",
            &self.names[host],
            env!("CARGO_BIN_EXE_overlayd"),
            "-etcd-endpoints",
            STORE,
            "-subnet-file",
            file.to_str().unwrap(),
        ];
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Process::spawn(&[&base, args].concat(), env, &self.dir.path().join(format!("overlayd{host}.{n}.log")))
    }

    /// Starts overlayd and waits until it is ready; returns it and its subnet's base.
    pub(crate) fn ready(&self, host: usize, args: &[&str]) -> (Process, String) {
        let daemon = self.overlayd(host, args, &[]);
        eventually(&format!("readiness of host {host}"), Duration::from_secs(30), || {
            daemon.log().contains(": ready subnet=").then_some(())
        });
        (daemon, self.subnet(host))
    }

    /// The base of a host's subnet, from its `subnet.env`.
    pub(crate) fn subnet(&self, host: usize) -> String {
        let text = std::fs::read_to_string(self.env_file(host)).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("FLANNEL_SUBNET=")).unwrap();
        format!("{}.0", line.strip_suffix(".1/24").unwrap())
    }

    /// What a command prints, sorted; nothing while the device does not exist.
    fn listed(&self, host: usize, args: &[&str]) -> Vec<String> {
        lines(&self.try_exec(host, args).1)
    }

    /// `flannel.1`'s hardware address.
    pub(crate) fn mac(&self, host: usize) -> String {
        let text = self.ip(host, &["link", "show", "flannel.1"]);
        text.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap().to_owned()
    }

    pub(crate) fn routes(&self, host: usize) -> Vec<String> {
        self.listed(host, &["ip", "route", "show", "dev", "flannel.1"])
    }

    pub(crate) fn neighbours(&self, host: usize) -> Vec<String> {
        self.listed(host, &["ip", "-4", "neigh", "show", "dev", "flannel.1"])
    }

    pub(crate) fn fdb(&self, host: usize) -> Vec<String> {
        self.listed(host, &["bridge", "fdb", "show", "dev", "flannel.1"])
    }

    /// Starts to send `count` echo requests at intervals of 10 ms.
    pub(crate) fn background_ping(&self, host: usize, to: &str, count: u32) -> Ping {
        let log = self.dir.path().join(format!("ping{}.log", NEXT.fetch_add(1, Ordering::Relaxed)));
        let count = count.to_string();
        let args = [
            "ip",
            "netns",
            "exec",
            &self.names[host],
            "ping",
            "-q",
            "-i",
            "0.01",
            "-W",
            "1",
            "-c",
            &count,
            to,
        ];
        Ping(Process::spawn(&args, &[], &log))
    }

    pub(crate) fn ping(&self, host: usize, to: &str) {
        self.exec(host, &["ping", "-c", "1", "-W", "2", to]);
    }
}

/// A ping at work.
pub(crate) struct Ping(Process);

impl Ping {
    /// Waits for its end and returns how many answers came.
    pub(crate) fn received(mut self) -> u32 {
        eventually("end of the ping", Duration::from_secs(60), || self.0.child.try_wait().unwrap());
        let log = self.0.log();
        let words: Vec<&str> = log.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "received,").unwrap_or_else(|| panic!("{log}"));
        words[at - 1].parse().unwrap()
    }
}

pub(crate) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
    lines.sort();
    lines
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.etcd = None;
        if std::thread::panicking() {
            for log in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                let path = log.path();
                if path.extension().is_some_and(|e| e == "log") && !path.ends_with("etcd.log") {
                    eprintln!(
                        "--- {}\n{}",
                        path.display(),
                        std::fs::read_to_string(&path).unwrap_or_default()
                    );
                }
            }
        }
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}
