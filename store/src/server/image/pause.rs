//! When to try again what has failed. Pure.

use std::time::{Duration, Instant};

/// The first pause after a failure.
pub(super) const MIN_PAUSE: Duration = Duration::from_secs(3);
/// The longest.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A pause before the next attempt, longer after each that fails.
#[derive(Debug, Default)]
pub(super) struct Pause(Option<(Instant, Duration)>);

impl Pause {
    /// Whether an attempt is due.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.0.is_none_or(|(until, _)| now >= until)
    }

    /// Whether the last attempt has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.0.is_some()
    }

    /// An attempt has failed. Returns how long it is to the next.
    pub(super) fn fail(&mut self, now: Instant) -> Duration {
        let pause = self.0.map_or(MIN_PAUSE, |(_, pause)| MAX_PAUSE.min(pause * 2));
        self.0 = Some((now + pause, pause));
        pause
    }

    /// An attempt has succeeded.
    pub(super) fn succeed(&mut self) {
        self.0 = None;
    }

    /// Something has changed: an attempt is due at once, and the pauses begin anew.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.0.is_some() {
            self.0 = Some((now, MIN_PAUSE / 2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::handle::now;

    #[test]
    fn pauses_grow_until_something_changes() {
        let (start, mut pause) = (now(), Pause::default());
        assert!(pause.is_over(start) && !pause.has_failed());
        let pauses: Vec<u64> = (0..7).map(|_| pause.fail(start).as_secs()).collect();
        assert_eq!(pauses, [3, 6, 12, 24, 48, 60, 60]);
        assert!(!pause.is_over(start + MAX_PAUSE / 2) && pause.is_over(start + MAX_PAUSE));
        pause.hurry(start);
        assert!(pause.is_over(start) && pause.has_failed());
        assert_eq!(pause.fail(start), MIN_PAUSE);
        pause.succeed();
        pause.hurry(start);
        assert!(!pause.has_failed());
    }
}
