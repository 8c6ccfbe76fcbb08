//! What happened to a node, and the history of the last events.

use std::collections::VecDeque;
use std::sync::Arc;

use super::node::NodeView;
use super::{Code, TreeError};

/// What an event did, in etcd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Action {
    /// Looked at.
    Get,
    /// Made where nothing was.
    Create,
    /// Written, whatever was there.
    Set,
    /// Changed where something was.
    Update,
    /// Removed.
    Delete,
    /// Written after a comparison.
    CompareAndSwap,
    /// Removed after a comparison.
    CompareAndDelete,
    /// Removed because its time was over.
    Expire,
}

impl Action {
    /// The word in the `action` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Get => "get",
            Action::Create => "create",
            Action::Set => "set",
            Action::Update => "update",
            Action::Delete => "delete",
            Action::CompareAndSwap => "compareAndSwap",
            Action::CompareAndDelete => "compareAndDelete",
            Action::Expire => "expire",
        }
    }
}

/// One change of the tree.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// What was done.
    pub action: Action,
    /// The node after it; `node.modified` is the index of the event.
    pub node: NodeView,
    /// The node before it.
    pub prev: Option<NodeView>,
    /// A refresh of the expiry time: it takes an index and a place in the history and wakes nobody.
    pub refresh: bool,
}

impl Event {
    /// The index of the tree after this event.
    pub fn index(&self) -> u64 {
        self.node.modified
    }

    /// What it counts for in [`HISTORY_BYTES`]: about what it takes. A function of its content alone.
    fn bytes(&self) -> usize {
        let view = |node: &NodeView| node.path.len() + node.value.as_ref().map_or(0, String::len);
        EVENT_BYTES + view(&self.node) + self.prev.as_ref().map_or(0, view)
    }

    /// Whether the answer to the writer is 201 (something new) and not 200.
    pub fn is_creation(&self) -> bool {
        matches!(self.action, Action::Create) || (matches!(self.action, Action::Set) && self.prev.is_none())
    }

    /// Whether a watcher of `path` that looks into the history is told of this event.
    ///
    /// As in etcd, a removed directory matches by bare prefix of its path: removing `/foo` also satisfies a
    /// look back from `/foobar`.
    fn matches(&self, path: &str, recursive: bool) -> bool {
        let key = self.node.path.as_str();
        let below = |dir: &str| dir == "/" || key.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        let removed_dir = matches!(self.action, Action::Delete | Action::Expire)
            && self.prev.as_ref().is_some_and(|prev| prev.dir);
        !self.refresh && (key == path || (recursive && below(path)) || (removed_dir && path.starts_with(key)))
    }
}

/// Bytes of the events kept, unless it is a single one: each holds a key's value before and after, so that a thousand
/// of them could hold gigabytes. What is dropped for it is a function of the operations, as everything in the tree: this
/// number and [`EVENT_BYTES`] are part of the replicated state. With another, this member would keep other events than
/// the others, and refuse the image on its own disk for its digest.
pub const HISTORY_BYTES: usize = 64 << 20;
/// What an event counts for beside its paths and values. It is what an [`Event`] took when this was first written, and
/// stays that, whatever an `Event` takes with another field, compiler or machine.
const EVENT_BYTES: usize = 232;

/// The last events of the whole tree, without gaps in their indexes.
#[derive(Debug, Clone)]
pub struct History {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
    bytes: usize,
}

impl History {
    /// An empty history that keeps `capacity` events, if they are not larger than [`HISTORY_BYTES`] together.
    pub fn new(capacity: usize) -> History {
        History { events: VecDeque::new(), capacity, bytes: 0 }
    }

    /// Appends an event; the oldest go when there are too many.
    pub fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        let is_over = |history: &History| {
            history.events.len() > history.capacity
                || (history.bytes > HISTORY_BYTES && history.events.len() > 1)
        };
        while is_over(self) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes());
        }
    }

    /// The events kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// Index of the oldest event kept; `None` if there is none.
    pub fn first_index(&self) -> Option<u64> {
        self.events.front().map(|event| event.index())
    }

    /// The first event at or after `since` that a watcher of `path` is told of.
    ///
    /// # Errors
    /// [`Code::EventCleared`] if events from `since` on have been dropped; `index` is the tree's.
    pub fn scan(
        &self,
        path: &str,
        recursive: bool,
        since: u64,
        index: u64,
    ) -> Result<Option<Arc<Event>>, TreeError> {
        let first = self.first_index().unwrap_or(0);
        if since < first {
            let cause = format!("the requested history has been cleared [{first}/{since}]");
            return Err(TreeError { code: Code::EventCleared, cause, index });
        }
        let skip = usize::try_from(since - first).unwrap_or(usize::MAX);
        Ok(self.events.iter().skip(skip).find(|event| event.matches(path, recursive)).cloned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn event(index: u64, bytes: usize) -> Arc<Event> {
        let node = NodeView {
            path: "/1/k".to_owned(),
            value: Some("v".repeat(bytes)),
            dir: false,
            expires_ns: None,
            nodes: Vec::new(),
            modified: index,
            created: index,
        };
        Arc::new(Event { action: Action::Set, prev: Some(node.clone()), node, refresh: false })
    }

    /// The numbers are not to follow the code: with others, members of different builds differ, and no image is read.
    #[test]
    fn which_events_are_kept_never_changes() {
        for (value_bytes, first) in [(130_836, 89), (130_837, 90), (130_580, 88), (130_581, 89)] {
            let mut history = History::new(1000);
            for index in 1..=600 {
                let event = Event { prev: None, ..(*event(index, value_bytes)).clone() };
                history.push(Arc::new(event));
            }
            assert_eq!(history.first_index(), Some(first), "values of {value_bytes} bytes");
        }
    }

    #[test]
    fn large_events_leave_room_for_fewer() {
        let mut history = History::new(1000);
        for index in 1..=1500 {
            history.push(event(index, 10));
        }
        assert_eq!((history.first_index(), history.iter().count()), (Some(501), 1000));
        for index in 1501..=1600 {
            history.push(event(index, 1 << 20));
        }
        let bytes: usize = history.iter().map(|event| event.bytes()).sum();
        assert_eq!((history.bytes, history.iter().count()), (bytes, 31), "the last 31 of 2 MiB each");
        assert_eq!(history.scan("/1/k", false, 1599, 1600).unwrap().unwrap().index(), 1599);
        assert!(history.scan("/1/k", false, 1569, 1600).is_err(), "what is gone is told");
        history.push(event(1601, HISTORY_BYTES));
        assert_eq!(history.first_index(), Some(1601), "the last one stays");
    }
}
