//! The newest entries of a log, in memory: followers that keep up are served from here. Pure.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

/// Entries kept.
const MAX_ENTRIES: usize = 4096;
/// And the size of their data, in bytes; one entry is kept whatever its size.
const MAX_BYTES: usize = 4 << 20;

/// Entries without a gap, up to the last of the log.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Cache {
    /// Adds entries, which replace what is at their indexes and after.
    pub(super) fn add(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            while self.entries.back().is_some_and(|last| last.index >= first.index) {
                self.forget(VecDeque::pop_back);
            }
        }
        for entry in entries {
            self.bytes += entry.data.len();
            self.entries.push_back(entry);
        }
        while self.entries.len() > MAX_ENTRIES || (self.bytes > MAX_BYTES && self.entries.len() > 1) {
            self.forget(VecDeque::pop_front);
        }
    }

    /// Forgets entries up to and including `index`.
    pub(super) fn drop_to(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.forget(VecDeque::pop_front);
        }
    }

    /// Index of the first.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(|entry| entry.index)
    }

    /// The entries from `index` on; none if that one is not here.
    pub(super) fn from(&self, index: u64) -> impl Iterator<Item = &Entry> {
        let skipped = self.first().and_then(|first| usize::try_from(index.checked_sub(first)?).ok());
        let at = skipped.map_or(self.entries.len(), |skipped| skipped.min(self.entries.len()));
        self.entries.range(at..)
    }

    fn forget(&mut self, pop: fn(&mut VecDeque<Entry>) -> Option<Entry>) {
        if let Some(entry) = pop(&mut self.entries) {
            self.bytes -= entry.data.len();
        }
    }
}
