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

/// The last events of the whole tree, without gaps in their indexes.
#[derive(Debug, Clone)]
pub struct History {
    events: VecDeque<Arc<Event>>,
    capacity: usize,
}

impl History {
    /// An empty history that keeps `capacity` events.
    pub fn new(capacity: usize) -> History {
        History { events: VecDeque::new(), capacity }
    }

    /// Appends an event; the oldest goes when there are too many.
    pub fn push(&mut self, event: Arc<Event>) {
        if self.events.len() == self.capacity {
            self.events.pop_front();
        }
        self.events.push_back(event);
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
