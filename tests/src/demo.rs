//! `cli demo` under test: who runs it, what it could leave behind, and one that `--keep` left up.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};
use tempfile::TempDir;

use crate::command::{self, Output};
use crate::ns;
use crate::process::Process;
use crate::programs;
use crate::wait::wait_for;

/// How long a run may take when its speed is not what is tested.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A user who is nobody in particular, and the group of the same number.
pub const NOBODY: u32 = 65534;
/// A part of the command line of the demo's inner process.
const STAGE: &str = "cli demo --stage ";
/// How many of our programs run for as long as the cluster does, by a part of their command lines.
const PROGRAMS: [(&str, usize); 3] = [("store ", 3), ("overlayd ", 3), (STAGE, 1)];

/// The machine as it was, and the user who runs the demo on it.
#[derive(Debug)]
pub struct Scene {
    namespaces: BTreeSet<String>,
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    runtime: BTreeSet<String>,
    /// The demo's own directory for temporary files; also the mark by which its processes are known.
    tmp: TempDir,
    /// For a plain user: copies of our programs, where everyone may read them.
    copies: Option<TempDir>,
}

impl Scene {
    /// Looks at the machine; the demo runs as the test's user.
    ///
    /// # Errors
    /// When the kernel's lists cannot be read or no directory can be made.
    pub fn new() -> Result<Self> {
        Ok(Self {
            namespaces: ns::names(),
            links: links()?,
            mounts: mounts()?,
            runtime: runtime_files(),
            tmp: tempfile::Builder::new().prefix("weft-demo-test-").tempdir()?,
            copies: None,
        })
    }

    /// As [`Scene::new`], but the demo runs as [`NOBODY`].
    ///
    /// # Errors
    /// When not root, or the programs cannot be copied.
    pub fn of_nobody() -> Result<Self> {
        programs::require_root()?;
        let mut scene = Self::new()?;
        let copies = tempfile::Builder::new()
            .prefix("weft-demo-programs-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()?;
        for name in ["cli", "store", "overlayd"] {
            let from = programs::ours(name)?;
            fs::copy(&from, copies.path().join(name)).with_context(|| format!("{}", from.display()))?;
        }
        chown(scene.tmp.path(), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?;
        scene.copies = Some(copies);
        Ok(scene)
    }

    /// `program` as the scene's user, with nothing of the test's environment but the mark. No program of the system
    /// can be found: the demo needs nothing but the build.
    fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        command.env_clear().env("TMPDIR", self.tmp.path()).env("PATH", "/nonexistent").current_dir("/");
        if self.copies.is_some() {
            // Also drops root's supplementary groups.
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// `cli ARGS`, to be run by the scene's user.
    ///
    /// # Errors
    /// When `cli` is not there.
    pub fn cli(&self, args: &[&str]) -> Result<Command> {
        let program = match &self.copies {
            Some(copies) => copies.path().join("cli"),
            None => programs::ours("cli")?,
        };
        let mut command = self.command(program);
        command.args(args);
        Ok(command)
    }

    /// Starts `cli demo`. Its log lies outside of what is checked.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<Process> {
        self.start_with(&[])
    }

    /// As [`Scene::start`], with options.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(&self, options: &[&str]) -> Result<Process> {
        let args = [&["demo"], options].concat();
        Process::spawn("cli demo", self.cli(&args)?, &self.tmp.path().with_extension("log"))
    }

    /// Runs `cli demo --keep`.
    ///
    /// # Errors
    /// When it fails: everything it said.
    pub fn keep(&self) -> Result<Kept<'_>> {
        let out = command::run_with(&mut self.cli(&["demo", "--keep"])?, b"", PATIENCE)?;
        let said = out.ok()?.to_owned();
        Ok(Kept { scene: self, said, down: false })
    }

    /// The directory for the demo's temporary files.
    pub fn tmp(&self) -> &Path {
        self.tmp.path()
    }

    /// Ids and command lines of the processes that inherited the mark: the demo and all that it started.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("TMPDIR={}\0", self.tmp.path().display());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&environment).contains(&mark) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// `kill -9` of the demo's inner process, and waits until it has ended: it gives up its memory, with the mark in
    /// it, some time before.
    ///
    /// # Errors
    /// When there is none, or it does not end.
    pub fn kill_stage(&self) -> Result<()> {
        let all = self.processes();
        let stage = all.iter().find(|(_, line)| line.contains(STAGE));
        let (pid, _) = stage.with_context(|| format!("no inner process: {all:?}"))?;
        kill(Pid::from_raw(*pid), Signal::SIGKILL).context("kill -9 of the demo's inner process")?;
        wait_for("the inner process to have ended", Duration::from_secs(5), || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie, which waits for its parent only, has ended (proc(5), field 3, after the name).
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            ensure!(state.is_empty() || state.starts_with(['Z', 'X']), "{stat}");
            Ok(())
        })
    }

    /// Sees that nothing is there that was not there before. What ends by itself a moment later is waited for.
    ///
    /// # Errors
    /// When something is left: what.
    pub fn nothing_is_left(&self) -> Result<()> {
        // Other tests' namespaces may come and go meanwhile; they are known by their names.
        let foreign = |name: &String| name.contains("weft-t") || name.starts_with("weft-ov");
        let more = |now: BTreeSet<String>, then: &BTreeSet<String>| -> Vec<String> {
            now.difference(then).filter(|name| !foreign(name)).cloned().collect()
        };
        wait_for("everything to be gone", Duration::from_secs(5), || {
            for (what, left) in [
                ("processes", self.processes().into_iter().map(|(_, line)| line).collect()),
                ("temporary files", entries(self.tmp.path()).into_iter().collect()),
                ("namespaces", more(ns::names(), &self.namespaces)),
                ("devices", more(links()?, &self.links)),
                ("mounts", more(mounts()?, &self.mounts)),
                ("files in /run", more(runtime_files(), &self.runtime)),
            ] {
                ensure!(left.is_empty(), "left behind: {what}: {left:?}");
            }
            Ok(())
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_file(self.tmp.path().with_extension("log")).ok();
    }
}

/// A demo that `--keep` left up; taken down when dropped, if the test has not done so.
#[derive(Debug)]
pub struct Kept<'a> {
    scene: &'a Scene,
    /// What the demo printed.
    said: String,
    down: bool,
}

impl Kept<'_> {
    /// Sees that every program of the cluster runs.
    ///
    /// # Errors
    /// When one is missing, or there are too many.
    pub fn runs(&self) -> Result<()> {
        let all = self.scene.processes();
        for (program, wanted) in PROGRAMS {
            let running = all.iter().filter(|(_, line)| line.contains(program)).count();
            ensure!(running == wanted, "{running} of {wanted} run of `{program}`: {all:?}");
        }
        Ok(())
    }

    /// Types every printed line that leads in, and looks at what it shows.
    ///
    /// # Errors
    /// When a line is missing, fails or shows something else.
    pub fn look_around(&self) -> Result<()> {
        let mut seen = Vec::new();
        for line in self.printed("Look around:")? {
            let (line, what, shown) = match line {
                _ if line.ends_with("ip addr") => (line.to_owned(), "addresses", "192.168.31.63/24"),
                _ if line.ends_with("ip route") => (line.to_owned(), "routes", "dev flannel.1"),
                _ if line.contains(" ping ") => (format!("{line} -c 1 -W 5"), "ping", " 1 received"),
                _ if line.contains("cli health ") => (line.to_owned(), "health", "cluster is healthy"),
                _ if line.contains("cli ping-mesh ") => (line.to_owned(), "mesh", "mesh is complete"),
                // A pager waits for a key; what it would show is the logs.
                _ if line.starts_with("less ") => (line.replacen("less", "cat", 1), "logs", "etcd02"),
                _ => bail!("the test does not know the printed line `{line}`"),
            };
            let out = self.typed(&line)?;
            ensure!(out.ok()?.contains(shown), "no `{shown}` shown by {out}");
            seen.push(what);
        }
        ensure!(seen == ["addresses", "routes", "ping", "health", "mesh", "logs"], "printed: {seen:?}");
        Ok(())
    }

    /// Types the printed line that takes it down.
    ///
    /// # Errors
    /// When none was printed or it cannot be run; its failing is left to the caller.
    pub fn take_down(&mut self) -> Result<Output> {
        let line = self.printed("Take it down:")?.join("\n");
        self.down = true;
        self.typed(&line)
    }

    /// The indented lines that were printed under the one that is `title`.
    fn printed(&self, title: &str) -> Result<Vec<&str>> {
        let under = self.said.lines().skip_while(|line| *line != title).skip(1);
        let lines: Vec<&str> = under.map_while(|line| line.strip_prefix("  ")).collect();
        ensure!(!lines.is_empty(), "nothing printed under `{title}`:\n{}", self.said);
        Ok(lines)
    }

    /// Runs a printed line in a shell, as its user would.
    fn typed(&self, line: &str) -> Result<Output> {
        let mut shell = self.scene.command("/bin/sh");
        shell.args(["-c", line]).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        command::run(&mut shell)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if !self.down
            && let Err(err) = self.take_down()
        {
            eprintln!("the kept demo may still be up: {err:#}");
        }
    }
}

fn entries(dir: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|e| e.path().display().to_string()).filter(|p| !p.starts_with("/run/user")).collect()
}

/// Where the demo and its programs could leave records and locks.
fn runtime_files() -> BTreeSet<String> {
    ["/run", "/run/flannel"].iter().flat_map(|dir| entries(Path::new(dir))).collect()
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
