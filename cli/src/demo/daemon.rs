//! The demo's long-running programs: started in a namespace, watched until ready, stopped, their logs quoted.
//!
//! A program says that it is ready as it would to systemd: by a datagram on `NOTIFY_SOCKET`.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fabric::Namespace;
use super::topology::Paths;

/// How often a wait looks at the programs beside what it waits for.
const GLANCE: Duration = Duration::from_millis(50);
/// Lines of a log that a failure quotes.
const TAIL_LINES: usize = 15;

/// A running program of the demo; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    notify: UnixDatagram,
    ready: bool,
}

/// The search path for programs the demo starts and for those they start in turn.
fn search_path() -> String {
    match std::env::var("PATH") {
        Ok(path) if !path.is_empty() => with_sbin(&path),
        _ => with_sbin("/usr/local/bin:/usr/bin:/bin"),
    }
}

/// `path` and the `sbin` beside each of its `bin`s: there the packet filter programs are, and a plain user's path
/// may lack it.
fn with_sbin(path: &str) -> String {
    let given: Vec<&str> = path.split(':').collect();
    let beside =
        given.iter().filter_map(|dir| dir.strip_suffix("/bin")).map(|parent| format!("{parent}/sbin"));
    let added: Vec<String> = beside.filter(|dir| !given.contains(&dir.as_str())).collect();
    given.into_iter().map(str::to_owned).chain(added).collect::<Vec<_>>().join(":")
}

/// A command for `program` that sees nothing of the caller's environment: a stray `ETCD_*` variable or proxy
/// setting would change what the demo shows.
pub(crate) fn clean_command(program: &Path, args: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", search_path()).env("LANG", "C.UTF-8").stdin(Stdio::null());
    for kept in ["RUST_LOG", "RUST_BACKTRACE", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

impl Daemon {
    /// Starts `program` in `namespace`; its output goes to the log called `name`.
    ///
    /// # Errors
    /// When the log or the notify socket cannot be made or the program cannot be started.
    pub(crate) fn start(
        name: &str,
        namespace: &Namespace,
        program: &Path,
        args: &[String],
        paths: &Paths,
    ) -> Result<Self> {
        let log = paths.log(name);
        let output = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let socket = paths.notify(name);
        let notify =
            UnixDatagram::bind(&socket).with_context(|| format!("notify socket {}", socket.display()))?;
        notify.set_read_timeout(Some(GLANCE))?;
        let mut command = clean_command(program, args);
        command.env("NOTIFY_SOCKET", &socket).stdout(output.try_clone()?).stderr(output);
        // A group of its own: Ctrl-C at the terminal is for the demo, which then decides what goes when.
        command.process_group(0);
        let child = namespace.spawn(&mut command)?;
        Ok(Self { name: name.to_owned(), child, log, notify, ready: false })
    }

    /// Sees that it has not ended.
    ///
    /// # Errors
    /// When it has; with the last lines of its log.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// The last lines of its log, under a heading that names the file.
    pub(crate) fn log_tail(&self) -> String {
        match fs::read(&self.log) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                format!("last lines of {}:\n{}", self.log.display(), tail(&text, TAIL_LINES))
            }
            Err(err) => format!("its log {} cannot be read: {err}", self.log.display()),
        }
    }

    /// Takes the ready datagram if there is one, waiting for a glance.
    fn poll_ready(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.notify.recv(&mut buffer) {
            Ok(len) => self.ready |= says_ready(&buffer[..len]),
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(err) => return Err(err).with_context(|| format!("notify socket of {}", self.name)),
        }
        Ok(self.ready)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only for what has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until every daemon has said that it is ready, calling `on_ready` as each does.
///
/// # Errors
/// When one ends, or `timeout` passes first; with the last lines of its log.
pub(crate) fn wait_ready(
    daemons: &mut [Daemon],
    timeout: Duration,
    mut on_ready: impl FnMut(&str),
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        for daemon in daemons.iter_mut().filter(|daemon| !daemon.ready) {
            if daemon.poll_ready()? {
                on_ready(&daemon.name);
            }
        }
        for daemon in daemons.iter_mut() {
            daemon.check_alive()?;
        }
        let Some(late) = daemons.iter().find(|daemon| !daemon.ready) else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{} is not ready after {} s\n{}", late.name, timeout.as_secs(), late.log_tail());
        }
    }
}

/// Asks all of them to end (SIGTERM) and waits; what is left after `grace` is killed. Gives what went wrong.
pub(crate) fn stop_all(daemons: &mut [Daemon], grace: Duration) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut pending: Vec<&mut Daemon> = Vec::new();
    for daemon in daemons {
        match daemon.child.try_wait() {
            Ok(None) => match daemon.signal(Signal::SIGTERM) {
                Ok(()) => pending.push(daemon),
                Err(err) => complaints.push(format!("{err:#}")),
            },
            Ok(Some(status)) => complaints.push(format!("{} had ended by itself: {status}", daemon.name)),
            Err(err) => complaints.push(format!("{}: {err}", daemon.name)),
        }
    }
    let deadline = Instant::now() + grace;
    loop {
        pending.retain_mut(|daemon| match daemon.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                complaints.extend(bad_end(&daemon.name, status));
                false
            }
            Err(err) => {
                complaints.push(format!("{}: {err}", daemon.name));
                false
            }
        });
        if pending.is_empty() {
            return complaints;
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    for daemon in pending {
        complaints.push(format!(
            "{} did not end within {} s of SIGTERM: killed",
            daemon.name,
            grace.as_secs()
        ));
        let _ = daemon.child.kill();
        let _ = daemon.child.wait();
    }
    complaints
}

fn bad_end(name: &str, status: ExitStatus) -> Option<String> {
    (!status.success()).then(|| format!("{name} answered SIGTERM with {status}"))
}

/// Whether a notify datagram (lines of `KEY=value`, `sd_notify(3)`) reports readiness.
fn says_ready(datagram: &[u8]) -> bool {
    datagram.split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

/// The last `count` lines of `text`, each marked as a quotation.
fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  | (empty)".to_owned();
    }
    let quoted: Vec<String> =
        lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("  | {line}")).collect();
    quoted.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(says_ready(b"READY=1"));
        assert!(says_ready(b"STATUS=serving\nREADY=1\n"));
        assert!(!says_ready(b"STATUS=READY=1"));
        assert!(!says_ready(b"READY=0"));
        assert!(!says_ready(b""));
    }

    #[test]
    fn sbin_joins_the_bins_of_the_path() {
        assert_eq!(with_sbin("/usr/bin:/bin"), "/usr/bin:/bin:/usr/sbin:/sbin");
        assert_eq!(with_sbin("/usr/sbin:/usr/bin:/opt/x"), "/usr/sbin:/usr/bin:/opt/x");
        assert_eq!(with_sbin("/nonexistent"), "/nonexistent");
    }

    #[test]
    fn a_tail_is_the_end_of_the_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "  | b\n  | c");
        assert_eq!(tail("a\n", 2), "  | a");
        assert_eq!(tail("", 2), "  | (empty)");
    }
}
