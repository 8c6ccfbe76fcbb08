//! What the apply thread decides: answers, events, and when the image on disk must follow.

use std::sync::Arc;

use raft::eraftpb::Entry;

use crate::machine::{Applied, Done, Machine, Position};
use crate::tree::{Event, TreeError};
use crate::wire::command::DecodeError;

/// Changed paths that the image may be behind before applying waits for it.
const MAX_DIRTY_PATHS: usize = 100_000;

/// An entry that this program cannot read; going on would make this member differ from the others.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft entry {index} of term {term}: {source}; is another member newer? upgrade this one")]
pub struct EntryError {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What is wrong.
    #[source]
    pub source: DecodeError,
}

/// What a request came to: its event, or the rule that it broke.
pub type Answer = Result<Option<Arc<Event>>, TreeError>;

/// What applying some entries leads to.
#[derive(Debug, Default)]
pub struct Batch {
    /// Answers to requests of this member, by their numbers.
    pub answers: Vec<(u64, Answer)>,
    /// The image must be made durable, so that the log can be compacted.
    pub checkpoint: bool,
    /// The image is far behind: nothing more is to be applied until it has caught up.
    pub write_image: bool,
}

/// The apply thread's bookkeeping.
#[derive(Debug)]
pub struct Applying {
    member: u64,
    snapshot_count: u64,
    checkpoint: u64,
}

impl Applying {
    /// For a member whose image stands at `checkpoint` and is made durable every `snapshot_count` entries.
    pub fn new(member: u64, snapshot_count: u64, checkpoint: u64) -> Applying {
        Applying { member, snapshot_count, checkpoint }
    }

    /// Applies committed entries in order. `changed` is told of every change at once: watchers hear of it before
    /// anybody can look at a later state.
    ///
    /// # Errors
    /// [`EntryError`]; the member must stop.
    pub fn apply(
        &mut self,
        machine: &mut Machine,
        entries: Vec<Entry>,
        mut changed: impl FnMut(&Done),
    ) -> Result<Batch, EntryError> {
        let mut batch = Batch { answers: Vec::with_capacity(entries.len()), ..Batch::default() };
        for entry in entries {
            let position = Position { index: entry.index, term: entry.term };
            let applied = machine.apply(position, &entry.data).map_err(|source| EntryError {
                index: entry.index,
                term: entry.term,
                source,
            })?;
            let Some(Applied { id, result }) = applied else { continue };
            let answer = result.map(|done| {
                changed(&done);
                done.outcomes().first().map(|outcome| Arc::clone(&outcome.event))
            });
            if id.member == self.member {
                batch.answers.push((id.number, answer));
            }
        }
        let applied = machine.applied.index;
        batch.checkpoint = applied >= self.checkpoint + self.snapshot_count;
        if batch.checkpoint {
            self.checkpoint = applied;
        }
        batch.write_image = machine.tree.dirty_len() > MAX_DIRTY_PATHS;
        Ok(batch)
    }

    /// A snapshot has taken the place of the state: its image is durable at `index`.
    pub fn installed(&mut self, index: u64) {
        self.checkpoint = index;
    }
}
