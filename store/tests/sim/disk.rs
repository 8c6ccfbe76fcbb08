//! Doubles of the two stores on a member's disk, which know what a power loss leaves.
//!
//! The log is a journal of writes. A write is safe once a sync that came with it or after it has ended; of those that are
//! not, a crash keeps the first few, as many as the dice say (what the page cache had written back; a batch that is cut in
//! the middle fails its checksum and counts as not written). The image keeps every version since the last synced one, and
//! a crash falls back to any of them, for sled's own flush never calls fsync (docs/adr/0002).
//!
//! Both take virtual time, during which the thread that writes does nothing else.

use std::cell::RefCell;
use std::rc::Rc;

use raft::eraftpb::{Entry, HardState};
use store::log::mem::MemLog;
use store::log::{LogError, LogStore};
use store::machine::{Machine, Position};
use store::state::mem::MemState;
use store::state::{Delta, Identity, StateStore};

use crate::dice::Dice;
use crate::time::{MICRO, MILLI, Nanos};

/// The log of one member. Clones are the same log: one for the member, one for the world that crashes it.
#[derive(Clone)]
pub(crate) struct SimLog(Rc<RefCell<Inner>>);

struct Inner {
    live: MemLog,
    /// What is safe.
    base: MemLog,
    /// What may not be, in order.
    journal: Vec<Write>,
    clock: Nanos,
    /// The longest that a sync takes.
    latency: Nanos,
    /// The planted bug: a sync is said to be done before it is.
    early: bool,
    dice: Dice,
}

struct Write {
    what: What,
    synced: bool,
    begun: Nanos,
    done: Nanos,
}

#[derive(Clone)]
enum What {
    Append(Vec<Entry>, Option<HardState>),
    Reset(Position, Option<HardState>),
    Mark(Option<Position>),
    Compact(u64),
}

impl What {
    fn carry_out(&self, log: &mut MemLog) -> Result<(), LogError> {
        match self {
            What::Append(entries, hard) => log.append(entries.clone(), hard.as_ref(), true),
            What::Reset(position, hard) => log.reset(*position, hard.as_ref()),
            What::Mark(position) => log.mark_install(*position),
            What::Compact(index) => log.compact(*index),
        }
    }
}

/// The usual time of a sync.
pub(crate) const QUICK_SYNC: Nanos = 300 * MICRO;

/// What a crash did to a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) lost: usize,
    pub(crate) kept: usize,
}

impl SimLog {
    pub(crate) fn new(start: Position, early: bool, dice: Dice) -> SimLog {
        let mut log = MemLog::default();
        log.reset(start, None).expect("memory does not fail");
        let (live, base) = (log.clone(), log);
        let inner = Inner { live, base, journal: Vec::new(), clock: 0, latency: QUICK_SYNC, early, dice };
        SimLog(Rc::new(RefCell::new(inner)))
    }

    /// A round begins: what was synced before is safe for ever.
    pub(crate) fn begin(&self, now: Nanos) {
        let mut inner = self.0.borrow_mut();
        inner.clock = inner.clock.max(now);
        let safe = inner.safe_at(now);
        inner.settle(safe);
    }

    /// The time, which writes have moved on since the round began.
    pub(crate) fn clock(&self) -> Nanos {
        self.0.borrow().clock
    }

    /// Something else has kept the thread.
    pub(crate) fn spend(&self, time: Nanos) {
        self.0.borrow_mut().clock += time;
    }

    pub(crate) fn set_latency(&self, latency: Nanos) {
        self.0.borrow_mut().latency = latency;
    }

    /// The process is killed at `now`, or stops: the page cache keeps what it has written.
    pub(crate) fn kill(&self, now: Nanos) {
        let mut inner = self.0.borrow_mut();
        inner.forget_what_was_not_begun(now);
        inner.live = inner.base.clone();
        let Inner { live, journal, .. } = &mut *inner;
        for write in journal.iter() {
            write.what.carry_out(live).expect("memory does not fail");
        }
        inner.clock = now;
    }

    /// The power fails at `now`.
    pub(crate) fn crash(&self, now: Nanos) -> Loss {
        let mut inner = self.0.borrow_mut();
        let safe = inner.safe_at(now);
        inner.forget_what_was_not_begun(now);
        let unsafe_writes = inner.journal.len() - safe;
        let kept = inner.dice.below(unsafe_writes as u64 + 1);
        let kept = usize::try_from(kept).expect("it is one of them");
        inner.settle(safe + kept);
        inner.journal.clear();
        inner.live = inner.base.clone();
        inner.clock = now;
        Loss { lost: unsafe_writes - kept, kept }
    }
}

impl Inner {
    /// How many of the journal's writes nothing can undo at `now`.
    fn safe_at(&self, now: Nanos) -> usize {
        self.journal.iter().rposition(|write| write.synced && write.done <= now).map_or(0, |at| at + 1)
    }

    /// A round is computed at once; what it would have written after the process ended was never begun.
    fn forget_what_was_not_begun(&mut self, now: Nanos) {
        self.journal.retain(|write| write.begun <= now);
    }

    fn settle(&mut self, writes: usize) {
        for write in self.journal.drain(..writes) {
            write.what.carry_out(&mut self.base).expect("memory does not fail");
        }
    }

    fn write(&mut self, what: What, synced: bool) -> Result<(), LogError> {
        what.carry_out(&mut self.live)?;
        let time = self.dice.between(self.latency / 3, self.latency);
        let begun = self.clock;
        self.clock += match (self.early, synced) {
            (true, _) => 0,
            (false, true) => time,
            (false, false) => time / 20,
        };
        let done = if self.early { begun + time + 30 * MILLI } else { self.clock };
        self.journal.push(Write { what, synced, begun, done });
        Ok(())
    }
}

impl LogStore for SimLog {
    fn hard_state(&self) -> HardState {
        self.0.borrow().live.hard_state()
    }

    fn truncated(&self) -> Position {
        self.0.borrow().live.truncated()
    }

    fn last_index(&self) -> u64 {
        self.0.borrow().live.last_index()
    }

    fn term(&self, index: u64) -> Result<Option<u64>, LogError> {
        self.0.borrow().live.term(index)
    }

    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        self.0.borrow().live.entries(from, to, max_bytes)
    }

    fn append(&mut self, entries: Vec<Entry>, hard: Option<&HardState>, sync: bool) -> Result<(), LogError> {
        let sync = sync || !entries.is_empty();
        self.0.borrow_mut().write(What::Append(entries, hard.cloned()), sync)
    }

    fn installing(&self) -> Option<Position> {
        self.0.borrow().live.installing()
    }

    fn mark_install(&mut self, position: Option<Position>) -> Result<(), LogError> {
        self.0.borrow_mut().write(What::Mark(position), true)
    }

    fn reset(&mut self, position: Position, hard: Option<&HardState>) -> Result<(), LogError> {
        self.0.borrow_mut().write(What::Reset(position, hard.cloned()), true)
    }

    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        self.0.borrow_mut().write(What::Compact(index), true)
    }
}

/// The image of one member's applied state.
pub(crate) struct SimImage {
    /// What is safe.
    base: MemState,
    /// What has changed since: a crash may fall back to any point between.
    changes: Vec<Change>,
}

struct Change {
    what: Written,
    /// Before that it cannot be there.
    begun: Nanos,
    safe_from: Option<Nanos>,
}

enum Written {
    Delta(Box<Delta>),
    Whole(Box<MemState>),
}

/// Whom the images belong to; the simulator reads it nowhere.
const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 1 };

fn whole(machine: &Machine) -> MemState {
    let mut state = MemState::default();
    state.replace(IDENTITY, &machine.freeze()).expect("memory does not fail");
    state
}

impl SimImage {
    pub(crate) fn new(machine: &Machine) -> SimImage {
        SimImage { base: whole(machine), changes: Vec::new() }
    }

    pub(crate) fn load(&self) -> Result<Machine, String> {
        let mut state = self.base.clone();
        for change in &self.changes {
            match &change.what {
                Written::Delta(delta) => state.write(delta).expect("memory does not fail"),
                Written::Whole(whole) => state.clone_from(whole),
            }
        }
        match state.load() {
            Ok(Some((_, machine))) => Ok(machine),
            Ok(None) => Err("the image is gone".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Writes a delta from `begun` on; with `sync` it is safe from `done` on.
    pub(crate) fn write(&mut self, delta: Delta, sync: bool, begun: Nanos, done: Nanos) {
        let what = Written::Delta(Box::new(delta));
        self.changes.push(Change { what, begun, safe_from: sync.then_some(done) });
    }

    /// Takes the place of everything, from `begun` on perhaps, from `done` on for sure.
    pub(crate) fn replace(&mut self, machine: &Machine, begun: Nanos, done: Nanos) {
        let what = Written::Whole(Box::new(whole(machine)));
        self.changes.push(Change { what, begun, safe_from: Some(done) });
    }

    /// When everything has been replaced, if that is going on at `now` or is about to: whatever else is to be written
    /// then waits for it, as it does in `server::image`.
    pub(crate) fn replaced_at(&self, now: Nanos) -> Option<Nanos> {
        let last = self.changes.iter().rfind(|change| matches!(change.what, Written::Whole(_)));
        last.and_then(|change| change.safe_from).filter(|done| *done > now)
    }

    /// The process is killed at `now`, or stops.
    pub(crate) fn kill(&mut self, now: Nanos) {
        self.changes.retain(|change| change.begun <= now);
    }

    /// Makes safe what nothing can undo at `now`.
    pub(crate) fn settle(&mut self, now: Nanos) {
        let safe = self.changes.iter().rposition(|change| change.safe_from.is_some_and(|from| from <= now));
        for change in self.changes.drain(..safe.map_or(0, |at| at + 1)) {
            match change.what {
                Written::Delta(delta) => self.base.write(&delta).expect("memory does not fail"),
                Written::Whole(whole) => self.base = *whole,
            }
        }
    }

    /// The power fails. Returns how many writes the image falls back.
    pub(crate) fn crash(&mut self, now: Nanos, dice: &mut Dice) -> usize {
        self.settle(now);
        self.kill(now);
        let kept = dice.below(self.changes.len() as u64 + 1);
        let kept = usize::try_from(kept).expect("it is one of them");
        let back = self.changes.len() - kept;
        self.changes.truncate(kept);
        if let Some(last) = self.changes.last_mut() {
            last.safe_from = Some(now);
        }
        self.settle(now);
        back
    }
}
