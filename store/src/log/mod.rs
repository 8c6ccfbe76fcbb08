//! The raft log and hard state: what must be on disk before a message that depends on it leaves.

mod cache;
pub mod disk;
pub mod engine;
mod files;
pub mod mem;
mod record;
mod scan;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod test_disk;

use raft::eraftpb::{Entry, HardState};

use crate::machine::Position;

/// Why the log could not be read or written. A member cannot go on after one.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The engine refused.
    #[error("raft log in {dir}: {source}")]
    Engine {
        /// Where the log lies.
        dir: String,
        /// What it said.
        #[source]
        source: raft_engine::Error,
    },
    /// What is stored is not what was written.
    #[error(
        "raft log: {path} is damaged{}: {what}. The disk or another program has changed it, and what this member has \
         acknowledged and voted may be lost: do not start it on this copy or an older one. If the file can be read \
         elsewhere as it was when this member stopped, put that in its place. Otherwise leave this member stopped: the \
         others go on while they are a majority, but this release cannot replace a member at run time; to be complete \
         again, start a new cluster (other --initial-cluster-token, empty data directories) and copy the keys into it",
        at(*.offset)
    )]
    Damaged {
        /// The file, or the directory if one is missing.
        path: String,
        /// Where in the file the damage begins, in bytes.
        offset: Option<u64>,
        /// What is wrong.
        what: String,
    },
    /// A file could not be read or put right.
    #[error("raft log: {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be synced, and what was written to it may be lost.
    #[error(
        "raft log: cannot sync {path}: {why}; check the disk (dmesg) before this member is started again"
    )]
    Sync {
        /// The file.
        path: String,
        /// What the system said.
        why: String,
    },
    /// There is no room. Nothing was changed; the same can be tried again.
    #[error("raft log in {dir}: no space left on the device")]
    NoSpace {
        /// Where the log lies.
        dir: String,
    },
}

fn at(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
}

/// Durable entries and hard state of one member.
///
/// Writes are on disk when [`LogStore::append`] and [`LogStore::reset`] return. Entries before
/// [`LogStore::truncated`] are gone; the term of the last of them is kept.
pub trait LogStore {
    /// The hard state last written.
    fn hard_state(&self) -> HardState;

    /// The position before the first entry kept.
    fn truncated(&self) -> Position;

    /// Index of the last entry, or the truncated one if there is none.
    fn last_index(&self) -> u64;

    /// The term of an entry kept or of the truncated position.
    ///
    /// # Errors
    /// [`LogError`]; `Ok(None)` if the index is not kept.
    fn term(&self, index: u64) -> Result<Option<u64>, LogError>;

    /// Entries `from..to`, all of which must be kept; as many as fit in `max_bytes`, at least one.
    ///
    /// # Errors
    /// [`LogError`].
    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError>;

    /// Writes entries, replacing what was at their indexes and after, and the hard state; synced if `sync`
    /// or if there are entries.
    ///
    /// # Errors
    /// [`LogError`]; the member must stop, as it does not know what is on disk.
    fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), LogError>;

    /// The snapshot that [`LogStore::mark_install`] was last told of, if it has not taken the place of the log since.
    fn installing(&self) -> Option<Position>;

    /// Notes that the applied state is about to be replaced by a snapshot at `position`; `None` takes that back. Synced: a
    /// start that finds the state at that position, and a log that does not reach there, knows by it that the log was to
    /// go ([`LogStore::reset`]), and that nothing of it is lost. [`LogStore::reset`] takes it back too, in the same step.
    ///
    /// # Errors
    /// [`LogError`].
    fn mark_install(&mut self, position: Option<Position>) -> Result<(), LogError>;

    /// Drops the whole log: a snapshot at `position` has taken its place. Synced.
    ///
    /// # Errors
    /// [`LogError`].
    fn reset(&mut self, position: Position, hard_state: Option<&HardState>) -> Result<(), LogError>;

    /// Drops entries up to and including `index`, which must be applied and on disk elsewhere.
    ///
    /// # Errors
    /// [`LogError`].
    fn compact(&mut self, index: u64) -> Result<(), LogError>;

    /// Gives back room that is only kept for later: the disk is low.
    fn shrink(&mut self) {}
}
