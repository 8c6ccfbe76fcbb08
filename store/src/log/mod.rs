//! The raft log and hard state: what must be on disk before a message that depends on it leaves.

pub mod engine;
pub mod mem;

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
    /// What is stored contradicts itself.
    #[error("raft log in {dir}: {what}")]
    Damaged {
        /// Where the log lies.
        dir: String,
        /// What is wrong.
        what: String,
    },
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
}
