//! The inner process: process 1 of the demo's process namespace, holder of its networks, parent of its programs.
//!
//! A thread listens to the supervisor. When the supervisor says stop, or is gone, that thread ends the process
//! whatever the steps are at, and the kernel ends the rest.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, setsid};
use tokio::signal::unix::{SignalKind, signal};

use super::control::{FromStage, Plan, ToStage, decode, send};
use super::report::Reporter;
use super::steps::Demo;

/// Exit code for a demo that was told to stop.
const STOPPED: i32 = 130;

/// Runs the plan in the file `plan`, with standard input as the socket to the supervisor.
///
/// # Errors
/// When it was not started by the supervisor, or is left by it. A failed step gives exit code 1.
pub(crate) fn run(plan: &Path) -> Result<ExitCode> {
    ensure!(getpid().as_raw() == 1, "--stage is for the demo itself: run `cli demo`");
    let text = fs::read(plan).with_context(|| format!("{}", plan.display()))?;
    let plan: Plan = serde_json::from_slice(&text).with_context(|| format!("{}", plan.display()))?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let reporter = Reporter::new(plan.verbose);
    // Before the first thread: the mount namespace belongs to the whole process.
    if let Err(err) = hide_run(&plan) {
        reporter.detail(&format!("/run stays shared with the host: {err:#}"));
    }
    let detach = listen(&socket, &reporter, &plan)?;
    let result = perform(plan, &reporter, &socket, &detach);
    // The thread that takes everything down made the steps fail; it ends the process when it is done.
    while reporter.is_muted() {
        thread::park();
    }
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Failure::Printed) => Ok(ExitCode::FAILURE),
        Err(Failure::Other(err)) => Err(err),
    }
}

enum Failure {
    /// A step failed and has said so.
    Printed,
    Other(anyhow::Error),
}

fn perform(
    plan: Plan,
    reporter: &Reporter,
    socket: &UnixStream,
    detach: &mpsc::Receiver<()>,
) -> Result<(), Failure> {
    let keep = plan.keep;
    let log = plan.work_dir.join("logs").join("demo.log");
    let announce = |message: &FromStage| send(socket, message);
    let mut demo = Demo::begin(plan, reporter, announce).map_err(|_| Failure::Printed)?;
    let containers = demo.run().map_err(|_| Failure::Printed)?;
    if keep {
        send(socket, &FromStage::Up { containers }).map_err(Failure::Other)?;
        detach.recv().context("the demo's supervisor is gone").map_err(Failure::Other)?;
        return stay_up(&mut demo, socket, &log).map_err(Failure::Other);
    }
    reporter.step("taking everything down", || demo.stop()).map_err(|_| Failure::Printed)
}

/// Gives this process an empty `/run` of its own, so that no program of the demo meets the host's lock and state
/// files there (`/run/xtables.lock`, `/run/flannel`).
fn hide_run(plan: &Plan) -> Result<()> {
    let needed = [&plan.work_dir, &plan.store, &plan.overlayd, &plan.cli];
    if let Some(path) = needed.into_iter().find(|path| path.starts_with("/run")) {
        anyhow::bail!("{} is in it", path.display());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make / private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("weft-demo"), "/run", Some("tmpfs"), flags, Some("mode=755")).context("cannot mount on /run")
}

/// Starts the thread that hears the supervisor; the channel carries its leave to go on alone.
fn listen(socket: &UnixStream, reporter: &Reporter, plan: &Plan) -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel();
    let mut lines = BufReader::new(socket.try_clone()?).lines();
    let (reporter, work_dir) = (reporter.clone(), plan.work_dir.clone());
    thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
        match lines.next().map(|line| line.map_err(anyhow::Error::from).and_then(|line| decode(&line))) {
            // After this the end of the socket means nothing any more.
            Some(Ok(ToStage::Detach)) => {
                let _ = sender.send(());
                return;
            }
            // Whoever says so cleans up behind us.
            Some(Ok(ToStage::Stop)) => {
                reporter.mute();
                std::process::exit(STOPPED);
            }
            Some(Err(_)) | None => {}
        }
        // The supervisor is gone without a word: nobody else will remove the files.
        reporter.mute();
        remove_all(&work_dir);
        std::process::exit(STOPPED);
    })?;
    Ok(receiver)
}

/// Ends every other process of the namespace, then removes the directory they wrote to.
fn remove_all(work_dir: &Path) {
    // As process 1 of a process namespace (checked at the start) this reaches its other processes and no others.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    for _ in 0..50 {
        match fs::remove_dir_all(work_dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => thread::sleep(Duration::from_millis(20)),
            _ => return,
        }
    }
}

/// Lets go of the terminal and holds everything up until a signal ends it.
fn stay_up(demo: &mut Demo, socket: &UnixStream, log: &Path) -> Result<()> {
    setsid().context("cannot leave the terminal's session")?;
    let log =
        File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enter = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    drop(enter);
    send(socket, &FromStage::Detached)?;
    dup2_stdin(File::open("/dev/null")?)?;
    dup2_stdout(&log)?;
    dup2_stderr(&log)?;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    demo.stop()
}
