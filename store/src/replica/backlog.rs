//! What is committed and not applied yet, and what is not taken while that is too much.
//!
//! The apply thread may be slow, or stand still because its disk does. What is committed meanwhile waits here, in memory,
//! so it is bounded:
//!
//! | what would make it grow | while it is full |
//! |---|---|
//! | entries that the leader sends | are dropped before raft sees them: to raft they are lost messages, which it sends again. Heartbeats pass, so there is no election; what they commit was in the log before |
//! | proposals that others pass on to this member, which leads | wait, a bounded number of them |
//! | proposals of this member | wait where they are, bounded by the server's limits; its duties as a leader are left undone |
//!
//! A leader that is full and applies nothing for [`STUCK_TICKS`] is of no use, and gives leadership away.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raft::eraftpb::{Entry, Message};

use super::Work;
use super::compaction::entry_bytes;

/// How much may be committed and not applied: reaching one bound is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unapplied {
    /// Entries.
    pub entries: u64,
    /// Bytes of entries.
    pub bytes: u64,
}

/// What may wait to be applied. What was in the log already may come on top, for it can still be committed: with a leader
/// that obeys its own bound on that, 64 MiB.
pub const MAX_UNAPPLIED: Unapplied = Unapplied { entries: 16 * 1024, bytes: 64 << 20 };
/// Proposals of other members that wait for room.
const MAX_PASSED_ON: usize = 1024;
/// Bytes of them. More are dropped, as if they had been lost on the way.
const MAX_PASSED_ON_BYTES: u64 = 16 << 20;
/// Ticks without progress after which a leader that is full gives leadership away, and tries so again.
const STUCK_TICKS: u32 = 30;

/// What waits for the apply thread.
#[derive(Debug)]
pub(super) struct Backlog {
    most: Unapplied,
    /// Work that the apply thread has no room for yet. The raft thread does not wait for it: heartbeats must go on.
    pub(super) work: VecDeque<Work>,
    /// Entries of the leader are not taken: since there was no room, and until half of it is there again. Were one taken
    /// now and then, the leader would send many in vain in between.
    refuses: bool,
    /// Entries that came in since the last round: they may be committed in the next.
    arrived: Unapplied,
    passed_on: Vec<Message>,
    passed_on_bytes: u64,
    /// How far the state was applied when that last changed, or when there was room last.
    stands: (u64, Instant),
}

impl Backlog {
    pub(super) fn new(most: Unapplied, now: Instant) -> Backlog {
        Backlog {
            most,
            work: VecDeque::new(),
            refuses: false,
            arrived: Unapplied { entries: 0, bytes: 0 },
            passed_on: Vec::new(),
            passed_on_bytes: 0,
            stands: (0, now),
        }
    }

    /// Whether there is no room for more, with so much committed and not applied.
    pub(super) fn is_full(&self, unapplied: Unapplied) -> bool {
        self.is_beyond(self.most, unapplied)
    }

    fn is_beyond(&self, bound: Unapplied, unapplied: Unapplied) -> bool {
        unapplied.entries + self.arrived.entries >= bound.entries
            || unapplied.bytes + self.arrived.bytes >= bound.bytes
    }

    /// Whether these entries of the leader may go into the log, with so much committed and not applied.
    pub(super) fn takes(&mut self, entries: &[Entry], unapplied: Unapplied) -> bool {
        let Unapplied { entries: most, bytes: most_bytes } = self.most;
        let half = Unapplied { entries: most / 2, bytes: most_bytes / 2 };
        self.refuses = self.is_beyond(if self.refuses { half } else { self.most }, unapplied);
        if !self.refuses {
            self.arrived.entries += entries.len() as u64;
            self.arrived.bytes += bytes(entries);
        }
        !self.refuses
    }

    /// What arrived is in the log, and counted there once it is committed.
    pub(super) fn settle(&mut self) {
        self.arrived = Unapplied { entries: 0, bytes: 0 };
    }

    /// Keeps a proposal of another member until there is room. Returns whether it does.
    pub(super) fn keep(&mut self, proposal: Message) -> bool {
        let bytes = bytes(&proposal.entries);
        let fits =
            self.passed_on.len() < MAX_PASSED_ON && self.passed_on_bytes + bytes <= MAX_PASSED_ON_BYTES;
        if fits {
            self.passed_on_bytes += bytes;
            self.passed_on.push(proposal);
        }
        fits
    }

    /// The proposals that were kept.
    pub(super) fn take_kept(&mut self) -> Vec<Message> {
        self.passed_on_bytes = 0;
        std::mem::take(&mut self.passed_on)
    }

    /// Whether a leader with this backlog has stood still for so long that another one should lead; not again until as much
    /// time has passed. `full` as of now, and the state applied up to `applied`.
    pub(super) fn is_stuck(&mut self, full: bool, applied: u64, now: Instant, tick: Duration) -> bool {
        let (stood_at, since) = self.stands;
        let stuck = full && applied == stood_at && now.saturating_duration_since(since) >= tick * STUCK_TICKS;
        if stuck || !full || applied != stood_at {
            self.stands = (applied, now);
        }
        stuck
    }
}

fn bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry_bytes(&entry.data)).sum()
}
