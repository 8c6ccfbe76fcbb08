//! Who wants to hear of which event.
//!
//! The hub holds watchers by the path they watch and hands each event to those it concerns. It does not know
//! how an event travels to a client: that is the [`Sink`]'s affair. A sink that cannot take an event is
//! dropped, so a slow reader never holds up the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::event::Event;
use super::ops::Outcome;
use super::path;

/// Takes events for one watcher.
pub trait Sink {
    /// Takes the event; `false` if the watcher is gone or too slow.
    fn deliver(&self, event: &Arc<Event>) -> bool;
}

/// What a watcher asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchRequest {
    /// The clean full path.
    pub path: String,
    /// Everything below as well.
    pub recursive: bool,
    /// More than one event.
    pub stream: bool,
    /// No event before this index.
    pub since: u64,
}

/// Identifies a watcher until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatcherId(u64);

struct Watcher<S> {
    request: WatchRequest,
    sink: S,
}

/// All watchers of a tree.
pub struct Hub<S> {
    by_path: BTreeMap<String, BTreeMap<WatcherId, Watcher<S>>>,
    next: u64,
    count: usize,
}

impl<S> Default for Hub<S> {
    fn default() -> Hub<S> {
        Hub { by_path: BTreeMap::new(), next: 0, count: 0 }
    }
}

impl<S: Sink> Hub<S> {
    /// Number of watchers.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a watcher. Events before this call are the history's affair.
    pub fn add(&mut self, request: WatchRequest, sink: S) -> WatcherId {
        let id = WatcherId(self.next);
        self.next += 1;
        self.count += 1;
        self.by_path.entry(request.path.clone()).or_default().insert(id, Watcher { request, sink });
        id
    }

    /// Removes a watcher of `path`, if it is still there.
    pub fn remove(&mut self, path: &str, id: WatcherId) {
        if let Some(watchers) = self.by_path.get_mut(path) {
            self.count -= usize::from(watchers.remove(&id).is_some());
            if watchers.is_empty() {
                self.by_path.remove(path);
            }
        }
    }

    /// Ends every watch. Ids are not used again.
    pub fn clear(&mut self) {
        self.by_path.clear();
        self.count = 0;
    }

    /// Hands the outcome of an operation to everyone it concerns, each at most once: watchers of the key,
    /// recursive watchers above it who may see it, and watchers of every path that was removed with it.
    pub fn notify(&mut self, outcome: &Outcome) {
        let event = &outcome.event;
        if event.refresh || self.by_path.is_empty() {
            return;
        }
        let key = event.node.path.as_str();
        for removed in outcome.removed.iter().filter(|removed| *removed != key) {
            self.notify_at(removed, event, true);
        }
        self.notify_at("/", event, false);
        for (end, _) in path::components(key) {
            self.notify_at(&key[..end], event, end == key.len());
        }
    }

    fn notify_at(&mut self, at: &str, event: &Arc<Event>, exact: bool) {
        let Some(watchers) = self.by_path.get_mut(at) else { return };
        let key = event.node.path.as_str();
        let before = watchers.len();
        watchers.retain(|_, watcher| {
            let concerned = (exact || (watcher.request.recursive && !path::is_hidden_from(at, key)))
                && event.index() >= watcher.request.since;
            // One event is all that a plain watcher waits for; a sink that refuses is gone or too slow.
            !concerned || (watcher.sink.deliver(event) && watcher.request.stream)
        });
        self.count -= before - watchers.len();
        if watchers.is_empty() {
            self.by_path.remove(at);
        }
    }
}
