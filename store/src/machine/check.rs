//! The consistency check: members compare digests of their states at the same index of the log.
//!
//! A check is an entry of the log. When a member applies it, it remembers the digest of its state there: a mark. The leader
//! puts its own last mark into the next check, and every member that has a mark at that index compares. So nobody waits,
//! and what is compared is the state after exactly the same entries. What this module keeps is a member's own affair and
//! no part of the replicated state: it is lost at a restart, and a mark that nobody remembers is not compared.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::alarm::{AlarmKind, Alarms};
use crate::tree::Digest;
use crate::wire::command::Command;

/// Marks that are remembered. A leader refers to its last one; more than one is behind only while leaders change.
const MARKS: usize = 8;

/// The digest of a state and the index of the last entry applied to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The raft index.
    pub index: u64,
    /// The digest.
    pub digest: Digest,
}

/// Two states that should be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// The raft index at which they differ.
    pub index: u64,
    /// The leader's digest.
    pub leader: Digest,
    /// This member's digest.
    pub own: Digest,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { index, leader, own } = self;
        write!(f, "state digest {own} at raft index {index}, where the leader's is {leader}")
    }
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There was nothing to compare.
    Unknown,
    /// The states are equal.
    Equal,
    /// They are not.
    Differs(Mismatch),
}

/// One member's side of the check.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    marks: VecDeque<Mark>,
    /// Whether anything but a check has been applied since the last mark.
    changed: bool,
    /// Whether anything had when the last mark was made, so that it is worth comparing.
    worth_comparing: bool,
    /// The first difference that was found.
    found: Option<Mismatch>,
    /// Whether a comparison has found the states equal.
    passed: bool,
}

impl Checks {
    /// An entry that is no check has been applied.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// A check has been applied: `leader` is what it says of an earlier one, `here` the mark to remember.
    pub(super) fn check(&mut self, leader: Option<Mark>, here: Mark) -> Verdict {
        let verdict = leader.map_or(Verdict::Unknown, |leader| self.compare(leader));
        match verdict {
            Verdict::Unknown => {}
            Verdict::Equal => self.passed = true,
            Verdict::Differs(mismatch) => {
                self.found.get_or_insert(mismatch);
            }
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(here);
        self.worth_comparing = std::mem::take(&mut self.changed);
        verdict
    }

    fn compare(&self, leader: Mark) -> Verdict {
        match self.marks.iter().find(|own| own.index == leader.index) {
            None => Verdict::Unknown,
            Some(own) if own.digest == leader.digest => Verdict::Equal,
            Some(own) => {
                Verdict::Differs(Mismatch { index: own.index, leader: leader.digest, own: own.digest })
            }
        }
    }

    /// What the leader should propose when it is time for a check; `None` if nothing has changed since the last one that
    /// was compared.
    pub fn next(&self) -> Option<Command> {
        (self.changed || self.worth_comparing).then(|| Command::Check(self.marks.back().copied()))
    }

    /// What member `me` should propose as long as `alarms` do not say what it has found: that its state differs, or that
    /// it does not any more. An alarm is cleared only by a member that has started anew since: whoever runs it has had
    /// the chance to see it.
    pub fn news(&self, me: u64, alarms: &Alarms) -> Option<Command> {
        let is_raised = alarms.get(me, AlarmKind::Corrupt).is_some();
        let (raise, text) = match self.found {
            Some(mismatch) if !is_raised => (true, mismatch.to_string()),
            None if is_raised && self.passed => (false, String::new()),
            Some(_) | None => return None,
        };
        Some(Command::Alarm { member: me, kind: AlarmKind::Corrupt, raise, text })
    }
}
