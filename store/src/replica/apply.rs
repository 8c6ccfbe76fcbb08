//! What the apply thread decides: answers, events, and when the image on disk must follow.

use std::sync::Arc;

use raft::eraftpb::{Entry, EntryType};

use super::compaction::{CHECKPOINT_BYTES, entry_bytes};
use crate::machine::{Applied, Done, Machine, Position};
use crate::tree::{Event, TreeError};
use crate::voters::Voters;
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
    /// Bytes of entries since the checkpoint.
    bytes: u64,
}

impl Applying {
    /// For a member whose image stands at `checkpoint` and is made durable every `snapshot_count` entries, or more often
    /// if these are large: every [`CHECKPOINT_BYTES`].
    pub fn new(member: u64, snapshot_count: u64, checkpoint: u64) -> Applying {
        Applying { member, snapshot_count, checkpoint, bytes: 0 }
    }

    /// The log still holds what came since `checkpoint`, so many bytes: otherwise a member that is started often would
    /// never get to the next one.
    #[must_use]
    pub fn since(self, (checkpoint, bytes): (u64, u64)) -> Applying {
        Applying { checkpoint: checkpoint.min(self.checkpoint), bytes, ..self }
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
            if entry.entry_type != EntryType::EntryNormal {
                machine.reconfigure(position, Voters::decode(&entry.context));
                continue;
            }
            self.bytes += entry_bytes(&entry.data);
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
        batch.checkpoint = applied >= self.checkpoint + self.snapshot_count || self.bytes >= CHECKPOINT_BYTES;
        if batch.checkpoint {
            self.installed(applied);
        }
        batch.write_image = machine.tree.dirty_len() > MAX_DIRTY_PATHS;
        Ok(batch)
    }

    /// A snapshot has taken the place of the state: its image is durable at `index`.
    pub fn installed(&mut self, index: u64) {
        (self.checkpoint, self.bytes) = (index, 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::membership::{Member, Membership};

    /// Applies entries of so many bytes each until there is a checkpoint; returns how many that took.
    fn until_checkpoint(mut applying: Applying, bytes: usize) -> u64 {
        let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
        let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
        let data = command(bytes);
        for count in 1.. {
            let index = machine.applied.index + 1;
            let entry = Entry { index, term: 1, data: data.clone().into(), ..Entry::default() };
            if applying.apply(&mut machine, vec![entry], |_| {}).unwrap().checkpoint {
                return count;
            }
        }
        unreachable!("the loop has no end")
    }

    fn command(bytes: usize) -> Vec<u8> {
        use crate::tree::Op;
        use crate::wire::command::{Command, Envelope, RequestId};
        let (path, value) = ("/1/k".to_owned(), "v".repeat(bytes));
        let op = Op::Set { path, dir: false, value, expires_ns: None, refresh: false };
        Envelope { id: RequestId { member: 2, number: 1 }, command: Command::V2(op) }.encode()
    }

    #[test]
    fn a_checkpoint_comes_after_so_many_entries_or_bytes() {
        let applying = || Applying::new(1, 500, 1);
        assert_eq!(until_checkpoint(applying(), 10), 500);
        let large = until_checkpoint(applying(), 1 << 20);
        assert_eq!(large, CHECKPOINT_BYTES.div_ceil(entry_bytes(&command(1 << 20))));
    }

    #[test]
    fn what_the_log_held_at_the_start_counts() {
        assert_eq!(until_checkpoint(Applying::new(1, 500, 1).since((0, 0)), 10), 499);
        assert_eq!(until_checkpoint(Applying::new(1, 500, 1).since((1, CHECKPOINT_BYTES)), 10), 1);
    }
}
