//! Waiting for a condition, with a deadline and the last reason why it did not hold.

#![expect(clippy::disallowed_methods, reason = "a deadline in real time is what this is")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait fail from now on, so that the program unwinds and what it made is removed on the way: to be
/// called when the user presses Ctrl-C.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Fails once [`interrupt`] was called.
///
/// # Errors
/// Then.
pub fn not_interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Calls `probe` until it succeeds, at most `limit`; its error is the reason why it is not yet so.
///
/// # Errors
/// When the time is up: what was waited for, how long, and the last reason. At once when interrupted.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        not_interrupted()?;
        match probe() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                return Err(reason).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_last_reason_is_told() {
        let mut n = 0;
        let error = wait_for::<()>("rain", Duration::from_millis(50), || {
            n += 1;
            anyhow::bail!("look {n}: sun")
        });
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.starts_with("waited 50ms for rain: look "), "{text}");
    }
}
