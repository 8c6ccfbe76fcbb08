//! `cli demo`: it succeeds, and nothing of it is left, whether it ended by itself, by Ctrl-C or by SIGTERM.

#![expect(clippy::disallowed_methods, reason = "measures the length of a real run")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weft_tests::ns;
use weft_tests::process::{Process, one_at_a_time};
use weft_tests::programs;
use weft_tests::wait::wait_for;

/// The promise, for a run by itself.
const WHOLE_RUN: Duration = Duration::from_secs(20);
/// How long the teardown after a signal may take.
const TEARDOWN: Duration = Duration::from_secs(30);

/// What a demo could leave behind on the machine.
struct Before {
    namespaces: BTreeSet<String>,
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    runtime: BTreeSet<String>,
    /// The demo's own directory for temporary files; also the mark by which its processes are known.
    tmp: tempfile::TempDir,
}

impl Before {
    fn look() -> Result<Self> {
        Ok(Self {
            namespaces: ns::names(),
            links: links()?,
            mounts: mounts()?,
            runtime: entries(Path::new("/run")).union(&entries(Path::new("/run/flannel"))).cloned().collect(),
            tmp: tempfile::Builder::new().prefix("weft-demo-test-").tempdir()?,
        })
    }

    fn demo(&self) -> Result<Process> {
        let mut command = Command::new(programs::ours("cli")?);
        command.arg("demo").env("TMPDIR", self.tmp.path());
        // Nothing but the build: no program of the system can be found. Its log lies outside of what is checked.
        command.env("PATH", "/nonexistent");
        Process::spawn("cli demo", command, &self.tmp.path().with_extension("log"))
    }

    /// Nothing is there that was not there before. What ends by itself a moment later is waited for.
    fn nothing_is_left(&self) -> Result<()> {
        wait_for("everything to be gone", Duration::from_secs(5), || {
            // Other tests' namespaces may come and go meanwhile; they are known by their names.
            let foreign = |name: &String| name.starts_with("weft-t") || name.starts_with("weft-ov");
            let more = |now: BTreeSet<String>, then: &BTreeSet<String>| -> Vec<String> {
                now.difference(then).filter(|n| !foreign(n)).cloned().collect()
            };
            let mark = self.tmp.path().display().to_string();
            for (what, left) in [
                ("processes", marked_processes(&mark)),
                ("temporary files", entries(self.tmp.path()).into_iter().collect()),
                ("namespaces", more(ns::names(), &self.namespaces)),
                ("devices", more(links()?, &self.links)),
                (
                    "mounts",
                    mounts()?.difference(&self.mounts).filter(|m| !m.contains("weft-t")).cloned().collect(),
                ),
                (
                    "files in /run",
                    more(
                        entries(Path::new("/run"))
                            .union(&entries(Path::new("/run/flannel")))
                            .cloned()
                            .collect(),
                        &self.runtime,
                    ),
                ),
            ] {
                ensure!(left.is_empty(), "left behind: {what}: {left:?}");
            }
            Ok(())
        })
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        fs::remove_file(self.tmp.path().with_extension("log")).ok();
    }
}

fn entries(dir: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|e| e.path().display().to_string()).filter(|p| !p.starts_with("/run/user")).collect()
}

fn links() -> Result<BTreeSet<String>> {
    Ok(fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect())
}

fn mounts() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/mounts")?;
    Ok(text.lines().filter_map(|l| l.split(' ').nth(1)).map(str::to_owned).collect())
}

/// Processes that inherited the mark in their environment: the demo and all that it started.
fn marked_processes(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(&format!("TMPDIR={mark}\0")) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

#[test]
fn the_demo_succeeds_and_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let before = Before::look()?;
    let begin = Instant::now();
    let mut demo = before.demo()?;
    let status = demo.wait_exit(Duration::from_secs(60))?;
    let took = begin.elapsed();
    ensure!(status.success(), "cli demo: {status}\n{}", demo.log());
    let log = demo.log();
    ensure!(log.contains("cluster is healthy"), "no health shown:\n{log}");
    for address in ["192.168.31.65", "192.168.31.66"] {
        ensure!(log.contains(address), "no {address} shown:\n{log}");
    }
    before.nothing_is_left()?;
    ensure!(took < WHOLE_RUN, "the demo took {took:?}:\n{log}");
    Ok(())
}

#[test]
fn an_interrupted_demo_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let before = Before::look()?;
        let mut demo = before.demo()?;
        // Mid-run: the stores are up, which is when there is most to be torn down.
        let mark = before.tmp.path().display().to_string();
        demo.wait_until("a store to run", WHOLE_RUN, |_| {
            let all = marked_processes(&mark);
            ensure!(all.iter().any(|line| line.contains("store ")), "{all:?}");
            Ok(())
        })?;
        demo.signal(signal)?;
        let status = demo.wait_exit(TEARDOWN).with_context(|| format!("after {signal}"))?;
        ensure!(
            !status.success(),
            "an interrupted demo must not report success ({status}, {:?})",
            status.signal()
        );
        before.nothing_is_left().with_context(|| format!("after {signal}\n{}", demo.log()))?;
    }
    Ok(())
}
