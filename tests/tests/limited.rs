//! `tests/limited`, which keeps a hanging test from blocking CI for ever.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weft_tests::command;
use weft_tests::process::Process;
use weft_tests::wait::wait_for;

/// It gives ten seconds to those that it ends.
const SOON: Duration = Duration::from_secs(30);

/// Three processes that end by nothing of their own: one in the background, one that ignores SIGTERM, one in a process
/// group of its own. Their numbers go to files.
const HANGS: &str = r#"
    sleep 1001 & echo $! >"$0/a"
    (trap "" TERM; exec sleep 1002) & echo $! >"$0/b"
    set -m; sleep 1003 & echo $! >"$0/c"
    wait
"#;

fn limited(seconds: u32, script: &str, dir: &Path) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/limited"));
    // This test may be under a limit itself.
    command.env_remove("WEFT_LIMITED").arg(seconds.to_string()).args(["bash", "-c", script]).arg(dir);
    command
}

/// The processes of [`HANGS`], once all have been started.
fn started(dir: &Path) -> Result<Vec<String>> {
    let numbers = ["a", "b", "c"].map(|name| std::fs::read_to_string(dir.join(name)));
    let mut started = Vec::new();
    for number in numbers {
        let number = number?.trim().to_owned();
        ensure!(!number.is_empty(), "not yet written");
        started.push(number);
    }
    Ok(started)
}

fn all_ended(numbers: &[String]) -> Result<()> {
    for number in numbers {
        let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
        ensure!(status.is_empty() || status.contains("State:\tZ"), "{status}");
    }
    Ok(())
}

#[test]
fn what_is_not_done_in_time_is_named_and_ended_with_all_it_started() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = command::run(&mut limited(2, HANGS, dir.path()))?;
    output.exits(124)?;
    ensure!(output.stderr.contains("not done after 2s"), "{output}");
    for sleep in ["sleep 1001", "sleep 1002", "sleep 1003"] {
        ensure!(output.stderr.contains(sleep), "{output}");
    }
    all_ended(&started(dir.path())?)
}

#[test]
fn what_is_done_in_time_says_how_it_went() -> Result<()> {
    let dir = tempfile::tempdir()?;
    command::run(&mut limited(60, "exit 3", dir.path()))?.exits(3)?;
    command::run(&mut limited(60, "echo done", dir.path()))?.ok()?;
    Ok(())
}

#[test]
fn who_ends_it_ends_what_it_runs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut process = Process::spawn("limited", limited(600, HANGS, dir.path()), &dir.path().join("log"))?;
    let numbers = wait_for("the start", SOON, || started(dir.path()))?;
    process.signal(Signal::SIGTERM)?;
    let status = process.wait_exit(SOON)?;
    ensure!(status.code() == Some(143), "{status}");
    all_ended(&numbers).context("after SIGTERM")
}
