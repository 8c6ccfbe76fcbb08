//! Whether the raft log and the applied state that a start finds belong together.
//!
//! Entries are synced before they are committed, and applied after that, so the log always reaches at least as far as the
//! applied state. There are two exceptions, in which the log has nothing to add and begins anew where the state stands:
//! the very first start, and a crash while a snapshot from the leader is taken over. The latter is done in three durable
//! steps, and a crash leaves one of these:
//!
//! | found | log | state | what a start does |
//! |---|---|---|---|
//! | before [`LogStore::mark_install`] | old | old | goes on |
//! | before the state is replaced | old, marked | old | takes the mark back, goes on: the leader sends the snapshot again |
//! | before [`LogStore::reset`] | old, marked | new, where the mark says | begins the log there, which takes the mark back |
//! | after it | new | new | goes on |
//!
//! Without the mark a state beyond the log says that the log has lost entries which this member has acknowledged. That
//! must not pass for a snapshot: the member would vote and count in majorities without what it has promised.

use super::CoreError;
use crate::log::LogStore;
use crate::machine::Position;

/// How a log goes with an applied state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It holds what comes after.
    Continues,
    /// It has nothing to add and is to begin where the state stands.
    Begins,
}

/// Why a log and an applied state do not belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The log begins after the state ends.
    #[error(
        "the raft log begins after entry {log}, but the applied state stands at {applied}: entries between are lost"
    )]
    Gap {
        /// The last entry that the log has dropped.
        log: u64,
        /// Where the applied state stands.
        applied: u64,
    },
    /// The log ends before an entry that it has held.
    #[error(
        "the raft log ends with entry {last}, but it has held entry {held}, which was {how}: entries are lost"
    )]
    Short {
        /// The last entry of the log.
        last: u64,
        /// An entry that is missing.
        held: u64,
        /// How that is known: it was "applied", or "committed".
        how: &'static str,
    },
    /// The log holds another entry than the one that was applied.
    #[error("entry {index} of the raft log is of term {log}, but one of term {applied} was applied")]
    Other {
        /// The entry.
        index: u64,
        /// Its term.
        log: u64,
        /// The term of the one that was applied.
        applied: u64,
    },
}

/// Whether `log` goes with a state that stands at `applied`. Changes nothing.
///
/// # Errors
/// [`CoreError::Misfit`], or [`CoreError::Log`] if it cannot be read.
pub fn fit(log: &impl LogStore, applied: Position) -> Result<Fit, CoreError> {
    let (truncated, last, committed) = (log.truncated(), log.last_index(), log.hard_state().commit);
    if truncated.index > applied.index {
        return Err(Misfit::Gap { log: truncated.index, applied: applied.index }.into());
    }
    if committed > last {
        return Err(Misfit::Short { last, held: committed, how: "committed" }.into());
    }
    let term = log.term(applied.index)?;
    if term == Some(applied.term) {
        return Ok(Fit::Continues);
    }
    let is_empty = truncated == Position::default() && last == 0;
    if is_empty || log.installing() == Some(applied) {
        return Ok(Fit::Begins);
    }
    Err(match term {
        None => Misfit::Short { last, held: applied.index, how: "applied" },
        Some(log) => Misfit::Other { index: applied.index, log, applied: applied.term },
    }
    .into())
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;
