//! A daemon under test: started with its output in a file, killed and reaped when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::wait::wait_for;

/// The unit of the kernel's processor times: `USER_HZ` is 100 on every architecture Linux has today.
pub const CPU_TICK: Duration = Duration::from_millis(10);

/// Held by a test that starts whole clusters, so that the tests of one file do not compete for the processor.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed in its turn has told so itself.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running child process with its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; both outputs are appended to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("log of {name}: {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::from(out.try_clone()?))
            .stderr(Stdio::from(out))
            .spawn()
            .with_context(|| format!("starting {name}: `{}`", command::line(&command)))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The name given at the start, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the process has written so far (and its predecessors with the same log).
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }

    /// The last lines of the log, to be put into a failure.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(25)..].join("\n");
        format!("--- last lines of {}'s log\n{tail}", self.name)
    }

    /// Waits for `probe` to succeed, at most `limit`, and gives up at once when the process ends.
    ///
    /// # Errors
    /// When it ended or the time is up: what was waited for, the last reason and the log's last lines.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let mut ended = None;
        let outcome = wait_for(what, limit, || {
            if ended.is_none() {
                ended = self.child.try_wait()?;
            }
            if let Some(status) = ended {
                return Ok(Err(status));
            }
            probe(self).map(Ok)
        });
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{} ended ({status}) before {what}\n{}", self.name, self.log_tail()),
            Err(reason) => Err(reason.context(self.log_tail())),
        }
    }

    /// Waits for a line of the log that holds `text`, and returns it.
    ///
    /// # Errors
    /// As [`Self::wait_until`].
    pub fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.wait_until(&format!("`{text}` in the log"), limit, |p| {
            let log = p.log();
            log.lines().find(|l| l.contains(text)).map(str::to_owned).context("not in the log")
        })
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it has not ended within `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended =
            wait_for(&format!("{} to end", self.name), limit, || child.try_wait()?.context("still running"));
        ended.map_err(|e| e.context(self.log_tail()))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill -9 of {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(limit)
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// When the process has gone.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory_kib("VmRSS:")
    }

    /// The most memory that was ever resident, in KiB.
    ///
    /// # Errors
    /// When the process has gone.
    pub fn peak_kib(&self) -> Result<u64> {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("{path} of {}", self.name))?;
        let line = status.lines().find_map(|l| l.strip_prefix(field)).context(field.to_owned())?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Processor time of all threads so far, those that have ended included; it moves in steps of [`CPU_TICK`].
    ///
    /// # Errors
    /// When the process has gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("{path} of {}", self.name))?;
        let ticks = stat_ticks(&stat).with_context(|| format!("{path}: {stat}"))?;
        Ok(CPU_TICK * ticks)
    }
}

/// utime and stime in `/proc/PID/stat` (proc(5)): the 12th and 13th field after the name, which is in parentheses
/// and may itself hold blanks and parentheses.
fn stat_ticks(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended already is no failure here.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) 9 (b) S 1 7 7 0 -1 4194560 201 0 0 0 31 11 5 6 20 0 3 0 1234 0 0";
        assert_eq!(stat_ticks(stat), Some(42));
        assert_eq!(stat_ticks("7 (a) S 1"), None);
    }
}
