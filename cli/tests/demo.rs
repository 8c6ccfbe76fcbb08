//! `cli demo` when things go wrong: it says where, and leaves nothing behind. Stand-ins take the place of `store`
//! and `overlayd`; the whole of it with the real ones is in the workspace's `tests`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A directory for everything a demo writes, and one with the stand-ins.
struct Fixture {
    bin: TempDir,
    tmp: TempDir,
}

impl Fixture {
    fn new(store: &str) -> Self {
        let bin = tempfile::tempdir().unwrap();
        for (name, script) in [("store", store), ("overlayd", "exit 9")] {
            let path = bin.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { bin, tmp: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cli"));
        command.arg("demo").arg("--bin-dir").arg(self.bin.path()).args(args).env("TMPDIR", self.tmp.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a demo and reads what it prints up to the line with `text`.
    fn start_until(&self, text: &str) -> (Child, BufReader<ChildStdout>) {
        let mut child = self.command(&[]).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            if output.read_line(&mut line).unwrap() == 0 {
                let mut why = String::new();
                child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
                panic!("the demo ended before `{text}`: {why}");
            }
        }
        (child, output)
    }

    /// Processes whose command line names a file of this demo.
    fn processes(&self) -> Vec<String> {
        let needles = [self.tmp.path(), self.bin.path()].map(|path| path.to_string_lossy().into_owned());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if needles.iter().any(|needle| line.contains(needle.as_str())) {
                found.push(line);
            }
        }
        found
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.tmp.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        assert_eq!(self.files(), Vec::<String>::new());
    }

    fn wait_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && !(self.processes().is_empty() && self.files().is_empty()) {
            thread::sleep(Duration::from_millis(20));
        }
        self.assert_nothing_left();
    }
}

/// A store that never gets ready and leaves a child of its own.
const STUCK: &str = "sleep 600 & exec sleep 600 \"$0\"";
const STORES: &str = "three stores";

fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_failing_program_is_named_with_its_step_and_its_log() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new("echo the disk is full >&2; exit 3");
    let output = fixture.command(&[]).output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in ["FAILED: three stores", "store-etcd0", "exit status: 3", "| the disk is full"] {
        assert!(text.contains(part), "`{part}` is not in {text}");
    }
    fixture.assert_nothing_left();
}

#[test]
fn keep_keeps_the_logs_of_a_failure_and_says_where() {
    if !privileged() || Path::new("/run/weft-demo.json").exists() {
        return;
    }
    let fixture = Fixture::new("echo the disk is full >&2; exit 3");
    let output = fixture.command(&["--keep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let dir = fixture.tmp.path().join(&fixture.files()[0]);
    assert!(text(&output).contains(&format!("The logs are in {}/logs", dir.display())), "{}", text(&output));
    assert_eq!(fs::read_to_string(dir.join("logs/store-etcd01.log")).unwrap(), "the disk is full\n");
    assert_eq!(fixture.processes(), Vec::<String>::new());
    assert!(!Path::new("/run/weft-demo.json").exists());
}

#[test]
fn signals_take_everything_down() {
    if !privileged() {
        return;
    }
    for (sent, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let fixture = Fixture::new(STUCK);
        let (mut child, mut output) = fixture.start_until(STORES);
        signal(&child, sent);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{sent}");
        fixture.assert_nothing_left();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("Nothing is left"), "{rest}");
    }
}

#[test]
fn even_a_killed_demo_leaves_nothing() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new(STUCK);
    let (mut child, _output) = fixture.start_until(STORES);
    child.kill().unwrap();
    child.wait().unwrap();
    fixture.wait_nothing_left();
}

#[test]
fn a_reader_that_goes_away_does_not_keep_it_from_cleaning_up() {
    if !privileged() {
        return;
    }
    let fixture = Fixture::new("exit 3");
    let mut child = fixture.command(&[]).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    fixture.assert_nothing_left();
}

#[test]
fn missing_programs_and_misuse_are_explained() {
    let fixture = Fixture::new("exit 3");
    fs::remove_file(fixture.bin.path().join("overlayd")).unwrap();
    let missing = fixture.command(&[]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing).contains("overlayd: there is no such program"), "{}", text(&missing));
    let by_hand = Command::new(env!("CARGO_BIN_EXE_cli")).args(["demo", "--stage", "/x"]).output().unwrap();
    assert!(!by_hand.status.success());
    assert!(text(&by_hand).contains("run `cli demo`"), "{}", text(&by_hand));
    let both = Command::new(env!("CARGO_BIN_EXE_cli")).args(["demo", "--keep", "--down"]).output().unwrap();
    assert_eq!(both.status.code(), Some(2), "{}", text(&both));
}
