//! A log in memory that knows which of its writes are synced, for tests of what a crash leaves.

use raft::eraftpb::{Entry, HardState};

use super::{LogError, LogStore};
use crate::machine::Position;

/// The double. [`MemLog::crash`] forgets what was never synced.
#[derive(Debug, Clone, Default)]
pub struct MemLog {
    now: Content,
    synced: Content,
}

#[derive(Debug, Clone, Default)]
struct Content {
    hard_state: HardState,
    truncated: Position,
    entries: Vec<Entry>,
    installing: Option<Position>,
}

impl MemLog {
    /// An empty log that begins after `position`.
    pub fn new(position: Position) -> MemLog {
        let hard_state = HardState { term: position.term, commit: position.index, ..HardState::default() };
        let content = Content { hard_state, truncated: position, ..Content::default() };
        MemLog { now: content.clone(), synced: content }
    }

    /// Loses every write since the last synced one.
    pub fn crash(&mut self) {
        self.now = self.synced.clone();
    }

    fn at(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.now.truncated.index + 1)?).ok()
    }
}

impl LogStore for MemLog {
    fn hard_state(&self) -> HardState {
        self.now.hard_state.clone()
    }

    fn truncated(&self) -> Position {
        self.now.truncated
    }

    fn last_index(&self) -> u64 {
        self.now.entries.last().map_or(self.now.truncated.index, |entry| entry.index)
    }

    fn term(&self, index: u64) -> Result<Option<u64>, LogError> {
        if index == self.now.truncated.index {
            return Ok(Some(self.now.truncated.term));
        }
        Ok(self.at(index).and_then(|at| self.now.entries.get(at)).map(|entry| entry.term))
    }

    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let (Some(from), Some(to)) = (self.at(from), self.at(to)) else { return Ok(Vec::new()) };
        let mut bytes = 0;
        let fits = self.now.entries[from..to].iter().enumerate().take_while(|(at, entry)| {
            bytes += entry.data.len() as u64;
            *at == 0 || bytes <= max_bytes
        });
        Ok(fits.map(|(_, entry)| entry.clone()).collect())
    }

    fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), LogError> {
        let sync = sync || !entries.is_empty();
        if let Some(at) = entries.first().and_then(|first| self.at(first.index)) {
            self.now.entries.truncate(at);
        }
        self.now.entries.extend(entries);
        if let Some(hard_state) = hard_state {
            self.now.hard_state = hard_state.clone();
        }
        if sync {
            self.synced = self.now.clone();
        }
        Ok(())
    }

    fn installing(&self) -> Option<Position> {
        self.now.installing
    }

    fn mark_install(&mut self, position: Option<Position>) -> Result<(), LogError> {
        self.now.installing = position;
        self.synced = self.now.clone();
        Ok(())
    }

    fn reset(&mut self, position: Position, hard_state: Option<&HardState>) -> Result<(), LogError> {
        self.now.entries.clear();
        (self.now.truncated, self.now.installing) = (position, None);
        if let Some(hard_state) = hard_state {
            self.now.hard_state = hard_state.clone();
        }
        self.now.hard_state.commit = self.now.hard_state.commit.min(position.index);
        self.synced = self.now.clone();
        Ok(())
    }

    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        if let (Some(term), Some(at)) = (self.term(index)?, self.at(index)) {
            self.now.entries.drain(..=at);
            self.now.truncated = Position { index, term };
        }
        Ok(())
    }
}
