//! One bounded run of a command, with everything it said.

#![expect(clippy::disallowed_methods, reason = "bounds real processes by real time")]

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a command may take unless the caller says otherwise.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that must have succeeded.
    ///
    /// # Errors
    /// When the status is not 0: the command line, the status and both outputs.
    pub fn ok(&self) -> Result<&str> {
        self.exits(0)
    }

    /// Standard output of a command that must have ended with `code`.
    ///
    /// # Errors
    /// When it ended otherwise: the command line, the status and both outputs.
    pub fn exits(&self, code: i32) -> Result<&str> {
        if self.code != Some(code) {
            bail!("expected exit status {code} of {self}");
        }
        Ok(&self.stdout)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => writeln!(f, "`{}` (exit status {code})", self.line)?,
            None => writeln!(f, "`{}` (ended by a signal)", self.line)?,
        }
        writeln!(f, "--- stdout\n{}", self.stdout.trim_end())?;
        write!(f, "--- stderr\n{}", self.stderr.trim_end())
    }
}

/// The command line as a person would type it, for messages.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs `command` to its end, at most [`DEFAULT_LIMIT`].
///
/// # Errors
/// When it cannot be started or does not end in time (it is killed then). A failing status is not an error
/// here: ask [`Output::ok`].
pub fn run(command: &mut Command) -> Result<Output> {
    run_with(command, b"", DEFAULT_LIMIT)
}

/// Runs `command` with `input` as its standard input, at most `limit`.
///
/// Input and outputs are files rather than pipes, so that a child which leaves a daemon behind cannot hold
/// the test up, and no amount of output can block it.
///
/// # Errors
/// As [`run`].
pub fn run_with(command: &mut Command, input: &[u8], limit: Duration) -> Result<Output> {
    let line = line(command);
    let mut stdin = tempfile::tempfile().context("temporary file for standard input")?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    let stdout = tempfile::tempfile().context("temporary file for standard output")?;
    let stderr = tempfile::tempfile().context("temporary file for standard error")?;
    let mut child = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stderr.try_clone()?))
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().ok();
            child.wait().ok();
            bail!(
                "`{line}` did not end within {limit:?}; killed\n--- stdout\n{}\n--- stderr\n{}",
                contents(stdout)?,
                contents(stderr)?
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Output { line, code: status.code(), stdout: contents(stdout)?, stderr: contents(stderr)? })
}

fn contents(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn output_and_status_are_kept() {
        let out =
            run_with(Command::new("sh").args(["-c", "cat; echo oops >&2; exit 3"]), b"in", DEFAULT_LIMIT);
        let out = out.unwrap();
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (Some(3), "in", "oops\n"));
        assert!(out.ok().unwrap_err().to_string().contains("oops"));
    }

    #[test]
    fn a_hanging_command_is_killed_and_named() {
        let error = run_with(Command::new("sleep").arg("60"), b"", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("`sleep 60` did not end"), "{error}");
    }
}
