//! What has been said in the log already: a cause that lasts is told once and then now and again.
//!
//! Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A complaint that goes on is repeated that often.
const REMINDER: Duration = Duration::from_secs(30);
/// Complaints remembered. Whoever can make more different ones than this only makes the log longer.
const MAX_KEPT: usize = 256;

/// Complaints about others, by who it is about (`K`) and what.
#[derive(Debug)]
pub(crate) struct Complaints<K> {
    told: BTreeMap<(K, String), Told>,
}

/// Leave to say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Say {
    /// How often it was held back since it was said last, if it was said before.
    pub(crate) held_back: Option<u64>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    held_back: u64,
}

impl<K: Ord + Clone> Complaints<K> {
    /// None yet.
    pub(crate) fn new() -> Complaints<K> {
        Complaints { told: BTreeMap::new() }
    }

    /// Whether to say it now.
    pub(crate) fn admit(&mut self, now: Instant, about: &K, why: &str) -> Option<Say> {
        let key = (about.clone(), why.to_owned());
        if let Some(told) = self.told.get_mut(&key) {
            if now.saturating_duration_since(told.at) < REMINDER {
                told.held_back += 1;
                return None;
            }
            let held_back = std::mem::take(&mut told.held_back);
            told.at = now;
            return Some(Say { held_back: Some(held_back) });
        }
        if self.told.len() >= MAX_KEPT {
            self.make_room(now);
        }
        self.told.insert(key, Told { at: now, held_back: 0 });
        Some(Say { held_back: None })
    }

    /// Forgets everything: what comes next is news.
    pub(crate) fn clear(&mut self) {
        self.told.clear();
    }

    fn make_room(&mut self, now: Instant) {
        self.told.retain(|_, told| now.saturating_duration_since(told.at) < REMINDER);
        if self.told.len() >= MAX_KEPT {
            let oldest = self.told.iter().min_by_key(|(_, told)| told.at).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.told.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::handle::now;

    const NEWS: Option<Say> = Some(Say { held_back: None });

    #[test]
    fn a_lasting_cause_is_told_once_and_then_every_reminder() {
        let (start, mut complaints) = (now(), Complaints::new());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(complaints.admit(at(0), &1, "expired"), NEWS);
        for quarter in 1..120 {
            assert_eq!(complaints.admit(at(quarter * 250), &1, "expired"), None);
        }
        assert_eq!(complaints.admit(at(30_000), &1, "expired"), Some(Say { held_back: Some(119) }));
        assert_eq!(complaints.admit(at(30_250), &1, "expired"), None);
    }

    #[test]
    fn other_causes_and_other_peers_are_news() {
        let (start, mut complaints) = (now(), Complaints::new());
        assert_eq!(complaints.admit(start, &1, "expired"), NEWS);
        assert_eq!(complaints.admit(start, &1, "wrong CA"), NEWS);
        assert_eq!(complaints.admit(start, &2, "expired"), NEWS);
        assert_eq!(complaints.admit(start, &2, "expired"), None);
        complaints.clear();
        assert_eq!(complaints.admit(start, &2, "expired"), NEWS);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_are_kept() {
        let (start, mut complaints) = (now(), Complaints::new());
        for who in 0..1000_u64 {
            let at = start + Duration::from_millis(who);
            assert_eq!(complaints.admit(at, &who, "no hello"), NEWS);
            assert!(complaints.told.len() <= MAX_KEPT);
        }
        assert_eq!(complaints.admit(start + Duration::from_secs(1), &999, "no hello"), None);
    }
}
