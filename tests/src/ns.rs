//! Network namespaces that vanish with their guard.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{self, Output};
use crate::programs;

/// All names start with this, then the id of the process that made them.
const PREFIX: &str = "weft-t";

/// A named network namespace, loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with a name of its own that ends in `label`.
    ///
    /// # Errors
    /// When not root, `ip` is missing, or the kernel refuses.
    pub fn new(label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: OnceLock<()> = OnceLock::new();
        programs::require_root()?;
        SWEPT.get_or_init(sweep);
        let name = format!("{PREFIX}{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        command::run(Command::new(programs::tool("ip")?).args(["netns", "add", &name]))?.ok()?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        // No duplicate address detection: its seconds of waiting test nothing of ours.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(namespace)
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command for `program` that will run inside. `nsenter` becomes the program itself, so the child's pid
    /// is the program's; unlike `ip netns exec` it leaves `/sys`, and with it the cgroups, alone.
    ///
    /// # Errors
    /// When `nsenter` is missing.
    pub fn command(&self, program: impl Into<PathBuf>) -> Result<Command> {
        let mut command = Command::new(programs::tool("nsenter")?);
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program.into());
        Ok(command)
    }

    /// Runs one of Debian's programs inside, with blank-separated arguments.
    ///
    /// # Errors
    /// When it is missing, cannot be started or does not end.
    pub fn run(&self, tool: &str, args: &str) -> Result<Output> {
        let mut command = self.command(programs::tool(tool)?)?;
        command::run(command.args(args.split_ascii_whitespace()))
    }

    /// `ip ARGS` inside, which must succeed; its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, args: &str) -> Result<String> {
        let mut command = Command::new(programs::tool("ip")?);
        command.args(["-n", &self.name]).args(args.split_ascii_whitespace());
        Ok(command::run(&mut command)?.ok()?.to_owned())
    }

    /// Sets a kernel parameter of the namespace, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.enter(|| {
            std::fs::write(format!("/proc/sys/{path}"), value)
                .with_context(|| format!("sysctl {path}={value}"))
        })?
    }

    /// Runs `f` on a thread of its own inside the namespace: sockets it opens belong there and stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `f` does.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .map_err(|e| anyhow!("entering {}: {e}", self.name))
                    .map(|()| f())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Kills what still runs inside (a daemon's children) and removes the namespace with all its devices.
fn remove(name: &str) {
    let Ok(ip) = programs::tool("ip") else { return };
    let pids = command::run(Command::new(&ip).args(["netns", "pids", name]));
    for pid in pids.iter().flat_map(|out| out.stdout.lines()).filter_map(|l| l.trim().parse().ok()) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    match command::run(Command::new(&ip).args(["netns", "del", name])) {
        Ok(out) if out.code == Some(0) => {}
        Ok(out) => eprintln!("left behind: namespace {name}: {out}"),
        Err(error) => eprintln!("left behind: namespace {name}: {error:#}"),
    }
}

/// Removes the namespaces of test processes that are gone (killed before they could clean up).
fn sweep() {
    for name in names() {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let Some((pid, _)) = rest.split_once('-') else { continue };
        if pid.parse::<u32>().is_ok() && !PathBuf::from("/proc").join(pid).exists() {
            remove(&name);
        }
    }
}

/// Names of all namespaces on this machine.
pub fn names() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}
