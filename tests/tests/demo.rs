//! `cli demo`: it succeeds, as root and as a plain user; nothing of it is left, whether it ended by itself, by a
//! signal or by SIGKILL of one of its halves; and with `--keep` it stays up until `--down`.

#![expect(clippy::disallowed_methods, reason = "measures the length of a real run")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use weft_tests::demo::{NOBODY, PATIENCE, Scene};
use weft_tests::process::{Process, one_at_a_time};
use weft_tests::wait::wait_for;
use weft_tests::{command, ns, programs};

/// The promise, for a run by itself.
const WHOLE_RUN: Duration = Duration::from_secs(20);
/// How long the teardown after a signal may take.
const TEARDOWN: Duration = Duration::from_secs(30);

/// Starts a demo and waits until it is half way: the stores are up, which is when there is most to be torn down.
fn begun(scene: &Scene) -> Result<Process> {
    let mut demo = scene.start()?;
    demo.wait_until("a store to run", PATIENCE, |_| {
        let all = scene.processes();
        ensure!(all.iter().any(|(_, line)| line.contains("store ")), "{all:?}");
        Ok(())
    })?;
    Ok(demo)
}

/// `command` must end with 1 and say all of `why`.
fn refused(mut command: Command, why: &[&str]) -> Result<()> {
    let out = command::run_with(&mut command, b"", PATIENCE)?;
    out.exits(1)?;
    for part in why {
        ensure!(out.stderr.contains(part), "no `{part}` said by {out}");
    }
    Ok(())
}

#[test]
fn the_demo_succeeds_and_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    let begin = Instant::now();
    let mut demo = scene.start()?;
    let status = demo.wait_exit(PATIENCE)?;
    let took = begin.elapsed();
    ensure!(status.success(), "cli demo: {status}\n{}", demo.log());
    let log = demo.log();
    ensure!(log.contains("cluster is healthy"), "no health shown:\n{log}");
    for address in ["192.168.31.65", "192.168.31.66"] {
        ensure!(log.contains(address), "no {address} shown:\n{log}");
    }
    scene.nothing_is_left()?;
    ensure!(took < WHOLE_RUN, "the demo took {took:?}:\n{log}");
    Ok(())
}

#[test]
fn the_demo_also_succeeds_without_the_kernels_vxlan_device() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    let mut demo = scene.start_with(&["--datapath", "rust", "--verbose"])?;
    let status = demo.wait_exit(PATIENCE)?;
    let log = demo.log();
    ensure!(status.success(), "cli demo --datapath rust: {status}\n{log}");
    ensure!(log.contains("-datapath=rust"), "overlayd was not told:\n{log}");
    scene.nothing_is_left()
}

#[test]
fn an_interrupted_demo_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let scene = Scene::new()?;
        let mut demo = begun(&scene)?;
        demo.signal(signal)?;
        let status = demo.wait_exit(TEARDOWN).with_context(|| format!("after {signal}"))?;
        ensure!(
            !status.success(),
            "an interrupted demo must not report success ({status}, {:?})",
            status.signal()
        );
        scene.nothing_is_left().with_context(|| format!("after {signal}\n{}", demo.log()))?;
    }
    Ok(())
}

#[test]
fn a_demo_with_its_outer_half_killed_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    let mut demo = begun(&scene)?;
    demo.kill9()?;
    scene.nothing_is_left().with_context(|| demo.log())
}

#[test]
fn a_demo_with_its_inner_half_killed_leaves_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    let mut demo = begun(&scene)?;
    scene.kill_stage()?;
    let status = demo.wait_exit(TEARDOWN)?;
    ensure!(status.code() == Some(1), "{status}\n{}", demo.log());
    ensure!(demo.log().contains("inner process ended unexpectedly"), "{}", demo.log());
    scene.nothing_is_left().with_context(|| demo.log())
}

#[test]
fn a_kept_demo_stays_up_until_it_is_taken_down() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    let mut kept = scene.keep()?;
    kept.runs()?;
    let named: Vec<String> = ns::names().into_iter().filter(|name| name.starts_with("weft-demo-")).collect();
    ensure!(named.len() == 7, "the fabric, three hosts and three containers have names: {named:?}");
    kept.look_around()?;

    refused(scene.cli(&["demo", "--keep"])?, &["a demo is still up", "cli demo --down"])?;
    // One that does not stay up runs beside it, and the first is left alone.
    let mut second = scene.start()?;
    let status = second.wait_exit(PATIENCE)?;
    ensure!(status.success(), "a demo beside a kept one: {status}\n{}", second.log());
    kept.runs()?;
    kept.look_around()?;

    let out = kept.take_down()?;
    ensure!(out.ok()?.contains("Nothing is left"), "{out}");
    scene.nothing_is_left()?;
    refused(scene.cli(&["demo", "--down"])?, &["no demo is up", "cli demo --keep"])
}

#[test]
fn a_kept_demo_that_has_died_is_cleared_away() -> Result<()> {
    let _turn = one_at_a_time();
    programs::require_root()?;
    let scene = Scene::new()?;
    // Nor is a name in its way whose record is lost.
    fs::create_dir_all("/run/netns")?;
    fs::write("/run/netns/weft-demo-host1", "")?;
    let mut kept = scene.keep()?;
    scene.kill_stage()?;
    wait_for("its programs to be gone", TEARDOWN, || {
        let left = scene.processes();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let out = kept.take_down()?;
    ensure!(out.ok()?.contains("had ended before"), "{out}");
    scene.nothing_is_left()
}

#[test]
fn a_plain_user_can_run_the_demo() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::of_nobody()?;
    let mut demo = scene.start()?;
    let status = demo.wait_exit(PATIENCE)?;
    // Where the kernel forbids it the demo's own words name the setting in the way.
    ensure!(status.success(), "cli demo as user {NOBODY}: {status}\n{}", demo.log());
    for shown in ["running inside a user namespace", "cluster is healthy", "mesh is complete"] {
        ensure!(demo.log().contains(shown), "no `{shown}`:\n{}", demo.log());
    }
    scene.nothing_is_left()
}

#[test]
fn a_plain_user_can_keep_a_demo_and_take_it_down() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::of_nobody()?;
    let mut kept = scene.keep()?;
    kept.runs()?;
    kept.look_around()?;
    refused(scene.cli(&["demo", "--keep"])?, &["a demo is still up", "cli demo --down"])?;
    let out = kept.take_down()?;
    ensure!(out.ok()?.contains("Nothing is left"), "{out}");
    scene.nothing_is_left()
}

/// The setting is made in a user namespace and holds in there, so that the machine's stays as it is.
#[test]
fn a_kernel_that_forbids_user_namespaces_is_named() -> Result<()> {
    let _turn = one_at_a_time();
    let scene = Scene::new()?;
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces";
    let without_rights = "exec setpriv --bounding-set=-all --inh-caps=-all";
    let mut shell = Command::new(programs::tool("unshare")?);
    shell.args(["--user", "--map-root-user", "sh", "-c"]).env("TMPDIR", scene.tmp());
    shell.arg(format!("{forbid} && {without_rights} {} demo", programs::ours("cli")?.display()));
    refused(shell, &["user.max_user_namespaces is 0", "run the demo as root"])?;
    scene.nothing_is_left()
}
