//! Events that watchers have still to take: who may be behind by how much, and what all of them hold together.
//!
//! Watchers of the same key share an event, so what they hold is counted once for all of them ([`Untaken`]). When it is
//! too much, the oldest event is taken away from whoever has not read it, which ends their watches: memory does not
//! depend on how many there are, nor on whether they ever read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::limits::{WATCHER_BACKLOG, WATCHER_BACKLOG_BYTES};
use crate::tree::Event;
use crate::wire::v2;

/// What an event takes beside what is in it, here and in the queues.
const EVENT_BYTES: usize = 256;
/// Events that nobody holds any more are looked for when there are so many more than before.
const SPARE: usize = 1024;

/// An event for all who have still to take it, until it is taken away from them.
#[derive(Debug)]
pub(super) struct Slot {
    event: Mutex<Option<Arc<Event>>>,
    bytes: usize,
}

/// The events that somebody has still to take, by their index.
#[derive(Debug)]
pub(super) struct Untaken {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// With their bytes: one that everybody has taken since cannot be asked for them.
    slots: BTreeMap<u64, (Weak<Slot>, usize)>,
    /// Of all in `slots`.
    bytes: usize,
    sweep_at: usize,
}

impl Untaken {
    /// None yet, and never more than `limit` bytes of them, unless it is one.
    pub(super) fn new(limit: usize) -> Untaken {
        Untaken { limit, inner: Mutex::default() }
    }

    /// Holds an event for one more watcher.
    pub(super) fn hold(&self, event: &Arc<Event>) -> Arc<Slot> {
        let mut inner = self.inner.lock();
        if let Some(slot) = inner.slots.get(&event.index()).and_then(|(slot, _)| slot.upgrade()) {
            return slot;
        }
        let bytes = v2::event_size(event) + EVENT_BYTES;
        let slot = Arc::new(Slot { event: Mutex::new(Some(Arc::clone(event))), bytes });
        inner.remove(event.index());
        inner.slots.insert(event.index(), (Arc::downgrade(&slot), bytes));
        inner.bytes += bytes;
        if inner.bytes > self.limit || inner.slots.len() > inner.sweep_at {
            inner.sweep();
        }
        while inner.bytes > self.limit {
            let Some(oldest) = inner.slots.keys().copied().find(|&index| index != event.index()) else {
                break;
            };
            if let Some(slot) = inner.remove(oldest) {
                *slot.event.lock() = None;
            }
        }
        slot
    }
}

impl Inner {
    fn remove(&mut self, index: u64) -> Option<Arc<Slot>> {
        let (slot, bytes) = self.slots.remove(&index)?;
        self.bytes -= bytes;
        slot.upgrade()
    }

    /// Forgets those that everybody has taken.
    fn sweep(&mut self) {
        self.slots.retain(|_, (slot, _)| slot.strong_count() > 0);
        self.bytes = self.slots.values().map(|(_, bytes)| bytes).sum();
        self.sweep_at = 2 * self.slots.len() + SPARE;
    }
}

impl Slot {
    /// The event, unless it has been taken away.
    pub(super) fn event(&self) -> Option<Arc<Event>> {
        self.event.lock().clone()
    }

    /// What it counts for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Whether a watcher that is behind by so many events of so many bytes may have another one of `more` bytes wait for it:
/// there are limits to both, but a single event waits however large it is.
pub(super) fn may_wait(events: usize, bytes: usize, more: usize) -> bool {
    events == 0 || (events < WATCHER_BACKLOG && bytes + more <= WATCHER_BACKLOG_BYTES)
}

/// What lies between the tree and the reader of one watcher.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    slots: VecDeque<Arc<Slot>>,
    bytes: usize,
    is_over: bool,
    has_ended: bool,
    reader: Option<Waker>,
}

/// What is next for a watcher.
#[derive(Debug)]
pub(super) enum Next {
    /// This event, until [`Backlog::pop`].
    Event(Arc<Event>),
    /// Nothing: it is too far behind.
    TooSlow,
    /// Nothing: there are no more.
    End,
}

impl Backlog {
    /// Adds an event; `false` if the watcher is too far behind, which ends it: what it has not read is let go.
    pub(super) fn push(&self, untaken: &Untaken, event: &Arc<Event>) -> bool {
        let slot = untaken.hold(event);
        let mut queue = self.queue.lock();
        let fits = !queue.is_over && may_wait(queue.slots.len(), queue.bytes, slot.bytes());
        if fits {
            queue.bytes += slot.bytes();
            queue.slots.push_back(slot);
        } else {
            queue.is_over = true;
            queue.slots.clear();
        }
        queue.wake();
        fits
    }

    /// There will be no more.
    pub(super) fn end(&self) {
        let mut queue = self.queue.lock();
        queue.has_ended = true;
        queue.wake();
    }

    /// Polls for the next event.
    pub(super) fn poll_front(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut queue = self.queue.lock();
        let next = match queue.slots.front() {
            Some(slot) => slot.event().map_or(Next::TooSlow, Next::Event),
            None if queue.is_over => Next::TooSlow,
            None if queue.has_ended => Next::End,
            None => {
                queue.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        Poll::Ready(next)
    }

    /// The event that was next has been taken.
    pub(super) fn pop(&self) {
        let mut queue = self.queue.lock();
        if let Some(slot) = queue.slots.pop_front() {
            queue.bytes -= slot.bytes();
        }
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;
    use crate::tree::{Action, NodeView};

    const MIB: usize = 1 << 20;

    pub(in crate::server) fn event(index: u64, value: usize) -> Arc<Event> {
        let node = NodeView {
            path: "/1/a".to_owned(),
            value: Some("v".repeat(value)),
            dir: false,
            expires_ns: None,
            nodes: vec![],
            modified: index,
            created: 4,
        };
        Arc::new(Event { action: Action::Set, node, prev: None, refresh: false })
    }

    fn next(backlog: &Backlog) -> Next {
        match backlog.poll_front(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => next,
            Poll::Pending => panic!("nothing is there"),
        }
    }

    #[test]
    fn a_watcher_lags_by_so_many_events() {
        let (untaken, backlog) = (Untaken::new(MIB), Backlog::default());
        for index in 0..WATCHER_BACKLOG as u64 {
            assert!(backlog.push(&untaken, &event(index, 1)));
        }
        assert!(matches!(next(&backlog), Next::Event(event) if event.index() == 0));
        assert!(!backlog.push(&untaken, &event(100, 1)));
        assert!(matches!(next(&backlog), Next::TooSlow));
    }

    #[test]
    fn or_by_so_many_bytes_but_one_event_of_any_size() {
        let untaken = Untaken::new(1 << 30);
        let backlog = Backlog::default();
        assert!(backlog.push(&untaken, &event(1, 2 * WATCHER_BACKLOG_BYTES)));
        assert!(!backlog.push(&untaken, &event(2, 1)));
        let backlog = Backlog::default();
        let third = |index| event(index, WATCHER_BACKLOG_BYTES / 3 - EVENT_BYTES - 1024);
        assert!((1..=3).all(|index| backlog.push(&untaken, &third(index))));
        assert!(!backlog.push(&untaken, &third(4)));
        let backlog = Backlog::default();
        for index in 0..1000 {
            assert!(backlog.push(&untaken, &third(index)), "what is taken makes room");
            backlog.pop();
        }
    }

    #[test]
    fn what_came_before_the_end_is_still_given() {
        let (untaken, backlog) = (Untaken::new(MIB), Backlog::default());
        backlog.push(&untaken, &event(1, 1));
        backlog.end();
        assert!(matches!(next(&backlog), Next::Event(_)));
        backlog.pop();
        assert!(matches!(next(&backlog), Next::End));
    }

    #[test]
    fn an_event_counts_once_however_many_wait_for_it() {
        let untaken = Untaken::new(3 * MIB);
        let watchers: Vec<Backlog> = (0..100).map(|_| Backlog::default()).collect();
        for index in 0..2 {
            let event = event(index, MIB);
            assert!(watchers.iter().all(|watcher| watcher.push(&untaken, &event)));
        }
        assert!(watchers.iter().all(|watcher| matches!(next(watcher), Next::Event(_))));
        assert!(untaken.inner.lock().bytes < 3 * MIB);
    }

    #[test]
    fn all_together_hold_so_much_and_the_furthest_behind_is_cut_off() {
        let untaken = Untaken::new(3 * MIB);
        let watchers: Vec<Backlog> = (0..20).map(|_| Backlog::default()).collect();
        let events: Vec<Arc<Event>> = (0..20).map(|index| event(index, MIB)).collect();
        for (watcher, event) in watchers.iter().zip(&events) {
            assert!(watcher.push(&untaken, event));
        }
        let held = events.iter().filter(|event| Arc::strong_count(event) > 1).count();
        assert_eq!(held, 2, "of each there is one watcher");
        assert!(watchers[..18].iter().all(|watcher| matches!(next(watcher), Next::TooSlow)));
        assert!(watchers[18..].iter().all(|watcher| matches!(next(watcher), Next::Event(_))));
    }

    #[test]
    fn what_everybody_has_taken_is_forgotten() {
        let (untaken, backlog) = (Untaken::new(1 << 30), Backlog::default());
        for index in 0..10 * SPARE as u64 {
            assert!(backlog.push(&untaken, &event(index, 1)));
            backlog.pop();
        }
        let inner = untaken.inner.lock();
        assert!(inner.slots.len() <= SPARE + 1, "{}", inner.slots.len());
    }
}
