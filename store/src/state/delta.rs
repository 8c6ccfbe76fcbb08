//! What changed between two positions.

use std::sync::Arc;

use crate::machine::Machine;
use crate::snapshot::Snapshot;
use crate::tree::Event;
use crate::tree::frozen::StoredRef;

/// What changed between two positions: the state at the second one, standing still, and what in it is new. It shares
/// everything with the machine that goes on, so that nothing is copied for it.
#[derive(Debug)]
pub struct Delta {
    whole: Snapshot,
    paths: Vec<String>,
    since: u64,
}

impl Delta {
    /// Everything that changed in `machine` since this was last taken; `since` is the tree's index then.
    /// Marks the changes as taken.
    pub fn take(machine: &mut Machine, since: u64) -> Delta {
        Delta { paths: machine.tree.take_dirty(), whole: machine.freeze(), since }
    }

    /// The same with the paths of a delta that was not written; `since` must have been that one's.
    #[must_use]
    pub fn with(mut self, earlier: Vec<String>) -> Delta {
        if !earlier.is_empty() {
            self.paths.extend(earlier);
            self.paths.sort_unstable();
            self.paths.dedup();
        }
        self
    }

    /// Only the paths of what changed, for [`Delta::with`].
    pub fn into_paths(self) -> Vec<String> {
        self.paths
    }

    /// The state at the second position.
    pub fn whole(&self) -> &Snapshot {
        &self.whole
    }

    /// The nodes that changed, in order; `None` for those that are gone.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (&str, Option<StoredRef<'_>>)> {
        self.paths.iter().map(|path| (path.as_str(), self.whole.tree().get(path)))
    }

    /// The events that are new, oldest first.
    pub fn events(&self) -> &[Arc<Event>] {
        let events = self.whole.tree().events();
        &events[events.partition_point(|event| event.index() <= self.since)..]
    }

    /// Index of the oldest event to keep; 0 if there is none.
    pub fn first_event(&self) -> u64 {
        self.whole.tree().events().first().map_or(0, |event| event.index())
    }
}
