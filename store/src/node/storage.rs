//! What the `raft` crate reads: the log through [`LogStore`], the voters, and a snapshot made on request.

use std::cell::RefCell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::change;
use crate::log::{LogError, LogStore};
use crate::machine::Position;

/// A follower is so far behind that it needs the whole state, at least up to `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The least index that serves.
    pub index: u64,
}

pub(super) struct RaftStorage<L> {
    pub(super) log: L,
    /// The configuration from an index on: the applied state's at the start, and those that came since. A snapshot needs
    /// the one at its own index, which may be behind what is committed.
    conf_states: VecDeque<(u64, ConfState)>,
    /// Index of the applied state when this member started; the stored commit index may be behind it.
    applied: u64,
    snapshots: RefCell<Snapshots>,
}

#[derive(Default)]
struct Snapshots {
    ready: Option<Snapshot>,
    wanted: Option<SnapshotRequest>,
    asked: bool,
    idle_ticks: usize,
}

/// Ticks after which a snapshot that no follower takes is dropped, as it may come to hold as much as the keyspace. A
/// follower whose transfer broke finds the same one for that long, and goes on where it was.
const IDLE_TICKS: usize = 600;

impl<L: LogStore> RaftStorage<L> {
    pub(super) fn new(log: L, conf_state: ConfState, applied: Position) -> RaftStorage<L> {
        let conf_states = VecDeque::from([(applied.index, conf_state)]);
        RaftStorage { log, conf_states, applied: applied.index, snapshots: RefCell::default() }
    }

    pub(super) fn take_request(&mut self) -> Option<SnapshotRequest> {
        let snapshots = self.snapshots.get_mut();
        if snapshots.asked {
            return None;
        }
        snapshots.asked = snapshots.wanted.is_some();
        snapshots.wanted
    }

    pub(super) fn provide(&mut self, position: Position, data: Vec<u8>) {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(data.into());
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (position.index, position.term);
        meta.set_conf_state(self.conf_state_at(position.index).clone());
        *self.snapshots.get_mut() = Snapshots { ready: Some(snapshot), ..Snapshots::default() };
    }

    /// Index of the snapshot that is kept for followers.
    pub(super) fn snapshot_index(&self) -> Option<u64> {
        self.snapshots.borrow().ready.as_ref().map(|snapshot| snapshot.get_metadata().index)
    }

    /// Lets go of a snapshot that nobody needs any more.
    pub(super) fn tick(&mut self, in_use: bool) {
        let snapshots = self.snapshots.get_mut();
        snapshots.idle_ticks = if in_use { 0 } else { snapshots.idle_ticks + 1 };
        if snapshots.idle_ticks > IDLE_TICKS {
            snapshots.ready = None;
        }
    }

    fn conf_state_at(&self, index: u64) -> &ConfState {
        let at = self.conf_states.iter().rev().find(|(from, _)| *from <= index);
        &at.or(self.conf_states.front()).expect("there is one from the start").1
    }

    /// The entry at `index` has changed the configuration to this.
    pub(super) fn reconfigured(&mut self, index: u64, conf_state: ConfState) {
        self.conf_states.push_back((index, conf_state));
    }

    /// Drops entries up to `index`, and the configurations that no later snapshot can be in.
    pub(super) fn compact(&mut self, index: u64) -> Result<(), LogError> {
        while self.conf_states.get(1).is_some_and(|(from, _)| *from <= index) {
            self.conf_states.pop_front();
        }
        self.log.compact(index)
    }

    /// Gives back room that the log keeps for later.
    pub(super) fn shrink(&mut self) {
        self.log.shrink();
    }

    /// A snapshot from the leader is about to take the place of the applied state.
    pub(super) fn announce(&mut self, position: Position) -> Result<(), LogError> {
        self.log.mark_install(Some(position))
    }

    /// Starts the log anew after a snapshot from the leader.
    pub(super) fn install(
        &mut self,
        position: Position,
        conf_state: ConfState,
        hard_state: Option<&HardState>,
    ) -> Result<(), LogError> {
        self.conf_states = VecDeque::from([(position.index, conf_state)]);
        self.log.reset(position, hard_state)
    }
}

/// raft asks for entries and terms in the middle of its own work. A log that cannot be read there cannot be
/// gone on with, and the raft crate stops on any error it does not know.
fn fatal(error: LogError) -> raft::Error {
    raft::Error::Store(StorageError::Other(error.into()))
}

impl<L: LogStore> Storage for RaftStorage<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = self.log.hard_state();
        // The commit index is written with the next batch, so a crash may leave it behind what was applied.
        hard_state.commit = hard_state.commit.max(self.applied);
        let truncated = self.log.truncated();
        if hard_state.term < truncated.term {
            hard_state.term = truncated.term;
        }
        let conf_state = self.conf_state_at(self.applied).clone();
        Ok(RaftState { hard_state, conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.log.truncated().index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.log.entries(low, high, max_size.into().unwrap_or(u64::MAX)).map_err(fatal)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.log.truncated().index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.log.term(index).map_err(fatal)?.ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.truncated().index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut snapshots = self.snapshots.borrow_mut();
        let least = request_index.max(self.log.truncated().index);
        // A member takes no snapshot in which it is none: one from before it joined would be sent to it for ever.
        let serves = |snapshot: &Snapshot| {
            let meta = snapshot.get_metadata();
            meta.index >= least && change::from_conf_state(meta.get_conf_state()).has(to)
        };
        match &snapshots.ready {
            Some(snapshot) if serves(snapshot) => Ok(snapshot.clone()),
            _ => {
                snapshots.ready = None;
                snapshots.wanted = Some(SnapshotRequest { index: least });
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
