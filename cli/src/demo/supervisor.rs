//! The outer process: finds the programs, starts the stage, takes signals, cleans up and looks that it is clean.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::Datapath;
use super::control::{FromStage, Held, PLAN_FILE, Plan, ToStage, decode, encode};
use super::keep::{self, Kept};
use super::privilege::{self, Privilege};
use super::{leftovers, report::Reporter};

/// Time for the stage to end after it was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the kernel to take the last processes away.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a demo from start to end.
///
/// # Errors
/// What keeps it from starting, or what it leaves behind.
pub(crate) fn run(
    keep: bool,
    bin_dir: Option<PathBuf>,
    datapath: Datapath,
    verbose: bool,
) -> Result<ExitCode> {
    let reporter = Reporter::new(verbose);
    let cli = env::current_exe().context("cannot tell where this program is")?;
    let bin_dir = match bin_dir {
        Some(dir) => dir.canonicalize().with_context(|| format!("--bin-dir {}", dir.display()))?,
        None => cli.parent().context("this program is in no directory")?.to_owned(),
    };
    let (store, overlayd) = (program(&bin_dir, "store")?, program(&bin_dir, "overlayd")?);
    let record = if keep { Some(keep::claim()?) } else { None };
    let privilege = privilege::enter()?;
    if privilege == Privilege::UserNamespace {
        reporter.line("Not root: running inside a user namespace.");
    }
    // One thread only: after `privilege::enter` the kernel would refuse a second.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before there is anything that a signal could leave behind.
    let signals = {
        let _context = runtime.enter();
        Signals::new()?
    };
    let work_dir = tempfile::Builder::new()
        .prefix("weft-demo-")
        .tempdir()
        .with_context(|| format!("cannot make a directory in {}", env::temp_dir().display()))?;
    let plan = Plan { work_dir: work_dir.path().to_owned(), store, overlayd, cli, datapath, keep, verbose };
    let plan_file = work_dir.path().join(PLAN_FILE);
    fs::write(&plan_file, serde_json::to_vec(&plan)?).with_context(|| format!("{}", plan_file.display()))?;
    let mut watch = Watch { privilege, record, networks: Vec::new(), pid_namespace: None };
    let end = runtime.block_on(watch.supervise(&plan, &plan_file, signals, &reporter));
    finish(end, &watch, work_dir, &reporter, keep)
}

/// The program called `name` in `dir`.
fn program(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{}: there is no such program; build the workspace with `cargo build`, or give the directory of `store` \
         and `overlayd` with --bin-dir",
        path.display()
    );
    Ok(path)
}

/// How the stage came to an end.
#[derive(Debug)]
enum End {
    /// By itself.
    Exited(ExitStatus),
    /// The user or the system asked for it.
    Interrupted(&'static str),
    /// It lives on, by `--keep`.
    Kept(Kept),
}

/// What the supervisor knows of the stage.
#[derive(Debug)]
struct Watch {
    privilege: Privilege,
    /// Where to record a demo that stays up.
    record: Option<PathBuf>,
    networks: Vec<Held>,
    pid_namespace: Option<u64>,
}

impl Watch {
    async fn supervise(
        &mut self,
        plan: &Plan,
        plan_file: &Path,
        mut signals: Signals,
        reporter: &Reporter,
    ) -> Result<End> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (read, mut write) = UnixStream::from_std(ours)?.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut child = Command::new(&plan.cli)
            .args(["demo", "--stage"])
            .arg(plan_file)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start {}", plan.cli.display()))?;
        let pid = child.id().context("the demo's inner process has no id")?;
        loop {
            tokio::select! {
                name = signals.next() => {
                    reporter.line(&format!("\n{name}: taking everything down"));
                    stop(&mut child, &mut write).await?;
                    return Ok(End::Interrupted(name));
                }
                message = next(&mut lines) => match message? {
                    Some(FromStage::Holding { networks, pid_namespace }) => {
                        self.networks = networks;
                        self.pid_namespace = Some(pid_namespace);
                    }
                    Some(FromStage::Up { containers }) => {
                        // Written down before the stage is let go: from here on `--down` can find it.
                        let kept = match self.keep(pid, plan, containers) {
                            Ok(kept) => kept,
                            Err(err) => {
                                stop(&mut child, &mut write).await?;
                                return Err(err);
                            }
                        };
                        write.write_all(&encode(&ToStage::Detach)?).await?;
                        match next(&mut lines).await? {
                            Some(FromStage::Detached) => return Ok(End::Kept(kept)),
                            other => {
                                keep::forget(&kept)?;
                                bail!("the demo's inner process did not stay up: it said {other:?}");
                            }
                        }
                    }
                    Some(FromStage::Detached) => bail!("the demo's inner process went off unasked"),
                    None => return Ok(End::Exited(child.wait().await?)),
                },
            }
        }
    }

    fn keep(&self, pid: u32, plan: &Plan, containers: Vec<Ipv4Addr>) -> Result<Kept> {
        let record = self.record.as_ref().context("the demo stays up unasked")?;
        keep::record(record, pid, plan, &self.networks, containers, self.privilege)
    }

    fn namespaces(&self) -> BTreeSet<u64> {
        self.networks.iter().map(|held| held.inode).chain(self.pid_namespace).collect()
    }
}

async fn next(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<Option<FromStage>> {
    lines.next_line().await?.map(|line| decode(&line)).transpose()
}

/// Tells the stage to stop; kills it when it does not.
async fn stop(child: &mut Child, write: &mut OwnedWriteHalf) -> Result<()> {
    // Fails only when the stage is gone, which is what is wanted.
    let _ = write.write_all(&encode(&ToStage::Stop)?).await;
    if timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        child.kill().await.context("cannot kill the demo's inner process")?;
    }
    Ok(())
}

/// Takes the directory away (or leaves it, where it was asked for) and sees that nothing else is left.
fn finish(
    end: Result<End>,
    watch: &Watch,
    work_dir: TempDir,
    reporter: &Reporter,
    keep: bool,
) -> Result<ExitCode> {
    let end = match end {
        Ok(End::Kept(kept)) => {
            let _ = work_dir.keep();
            reporter.line(&keep::instructions(&kept));
            return Ok(ExitCode::SUCCESS);
        }
        other => other,
    };
    let failed = match &end {
        Ok(End::Exited(status)) => !status.success(),
        Ok(End::Interrupted(_) | End::Kept(_)) => false,
        Err(_) => true,
    };
    let logs_stay = keep && failed;
    let path = work_dir.path().to_owned();
    if logs_stay {
        let path = work_dir.keep();
        reporter.line(&format!(
            "The logs are in {}; remove {} when done.",
            path.join("logs").display(),
            path.display()
        ));
    } else {
        work_dir.close().with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    let left = await_gone(&watch.namespaces(), if logs_stay { Path::new("") } else { &path });
    ensure!(left.is_empty(), "the demo has left behind: {}", left.join(", "));
    match end? {
        End::Exited(status) if status.success() => {
            reporter.line(&format!(
                "Done in {:.1} s. Nothing is left: no process, namespace, device or file.",
                reporter.elapsed().as_secs_f64()
            ));
            Ok(ExitCode::SUCCESS)
        }
        End::Exited(status) => {
            if status.code() != Some(1) {
                reporter.line(&format!("The demo's inner process ended unexpectedly: {status}."));
            }
            Ok(ExitCode::FAILURE)
        }
        End::Interrupted(name) => {
            reporter.line("Nothing is left: no process, namespace, device or file.");
            // 128 and the signal's number, as shells say it.
            Ok(ExitCode::from(match name {
                "SIGHUP" => 129,
                "SIGINT" => 130,
                _ => 143,
            }))
        }
        End::Kept(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Looks for leftovers until there are none or the time is up: the kernel is not done the moment process 1 ends.
fn await_gone(namespaces: &BTreeSet<u64>, work_dir: &Path) -> Vec<String> {
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        let left = leftovers::find(namespaces, work_dir);
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The signals that end a demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
