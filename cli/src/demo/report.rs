//! What the demo prints: a line as each step begins, details under it, and which step failed.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Spaces under which details stand: the width of `[ 1.2s] `.
const INDENT: &str = "        ";

/// Prints steps with the time since the start. A closed standard output is no error: the demo has to clean up
/// whether or not somebody reads along.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    started: Instant,
    verbose: bool,
    muted: Arc<AtomicBool>,
}

impl Reporter {
    /// A reporter whose clock starts now; `verbose` shows [`Reporter::trace`] lines too.
    pub(crate) fn new(verbose: bool) -> Self {
        Self { started: Instant::now(), verbose, muted: Arc::default() }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints nothing from here on, in any clone: somebody else is ending the demo.
    pub(crate) fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }

    /// Whether somebody else is ending the demo.
    pub(crate) fn is_muted(&self) -> bool {
        self.muted.load(Ordering::Relaxed)
    }

    /// Announces `title`, does `work`, and reports its failure with the step's name.
    ///
    /// # Errors
    /// What `work` returns, after it has been printed.
    pub(crate) fn step<T>(&self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.line(&format!("{} {title}", stamp(self.elapsed())));
        let result = work();
        if let Err(err) = &result
            && !self.is_muted()
        {
            let text =
                format!("{} FAILED: {title}\n{}\n", stamp(self.elapsed()), indent(&format!("{err:#}")));
            let _ = io::stderr().write_all(text.as_bytes());
        }
        result
    }

    /// Prints lines under the current step.
    pub(crate) fn detail(&self, text: &str) {
        self.line(&indent(text));
    }

    /// As [`Reporter::detail`], with `--verbose` only.
    pub(crate) fn trace(&self, text: &str) {
        if self.verbose {
            self.detail(text);
        }
    }

    /// Prints a line as it is.
    pub(crate) fn line(&self, text: &str) {
        if !self.is_muted() {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }
}

fn stamp(elapsed: Duration) -> String {
    format!("[{:4.1}s]", elapsed.as_secs_f64())
}

fn indent(text: &str) -> String {
    let lines: Vec<String> = text.trim_end().lines().map(|line| format!("{INDENT}{line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_stand_under_the_title() {
        let title = format!("{} x", stamp(Duration::from_millis(1234)));
        assert_eq!(title, "[ 1.2s] x");
        assert_eq!(title.find('x'), Some(INDENT.len()));
        assert_eq!(indent("a\nb\n"), "        a\n        b");
    }
}
