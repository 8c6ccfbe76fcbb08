//! Watches: what was, then what comes, to one client; with bounds on how many there are and how far one may lag.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::backlog::{Backlog, Next, Slot, Untaken, may_wait};
use super::handle::{Handle, Shared, now_ns};
use super::limits::Limits;
use super::served::sharing;
use super::shares::{ClientRoom, Share};
use crate::tree::watch::WatcherId;
use crate::tree::{Event, Sink, Tree, TreeError, WatchRequest};
use crate::wire::v2::{self, ApiError};

/// The sending half of a watcher.
pub struct EventSender {
    backlog: Arc<Backlog>,
    untaken: Arc<Untaken>,
}

impl Sink for EventSender {
    fn deliver(&self, event: &Arc<Event>) -> bool {
        self.backlog.push(&self.untaken, event)
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.backlog.end();
    }
}

/// Takes the watcher out of the hub when its client is gone.
struct WatchGuard {
    shared: Arc<Shared>,
    path: String,
    id: WatcherId,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.shared.hub.lock().remove(&self.path, self.id);
    }
}

/// What a watcher wants of the history. It is read as the client takes it, a little ahead: all of it would be the
/// client's to keep here for as long as it likes, when the history has long gone on.
struct Past {
    path: String,
    recursive: bool,
    /// The first index that has not been looked at.
    next: u64,
    /// The last before what the hub delivers.
    last: u64,
    /// Read, and not taken.
    ahead: VecDeque<Arc<Slot>>,
}

impl Past {
    /// Reads on, up to what a watcher may be behind by.
    ///
    /// # Errors
    /// Code 401 if the history does not reach back that far, any more.
    fn read(&mut self, tree: &Tree, untaken: &Untaken) -> Result<(), TreeError> {
        let (mut events, mut bytes) = (0, 0);
        while self.next <= self.last {
            let found = tree.history().scan(&self.path, self.recursive, self.next, tree.index())?;
            let Some(event) = found.filter(|event| event.index() <= self.last) else {
                self.next = self.last + 1;
                break;
            };
            let slot = untaken.hold(&event);
            if !may_wait(events, bytes, slot.bytes()) {
                break;
            }
            (events, bytes) = (events + 1, bytes + slot.bytes());
            self.next = event.index() + 1;
            self.ahead.push_back(slot);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.ahead.is_empty() && self.next > self.last
    }
}

/// A share of the room for answers that is waited for.
type Waiting = Pin<Box<dyn Future<Output = Share> + Send>>;

/// A watch under way.
pub struct Watch {
    /// The tree's index when it began.
    pub index: u64,
    past: Past,
    backlog: Arc<Backlog>,
    /// A large event has to wait for room.
    waiting: Option<Waiting>,
    share: Share,
    room: ClientRoom,
    stream: bool,
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    from: SocketAddr,
    _guard: Option<WatchGuard>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Starts a watch for the client at `from`. `since` 0 means what comes next.
    ///
    /// # Errors
    /// Code 401 if the history no longer reaches back that far; too many watches.
    pub fn start(
        handle: &Handle,
        from: SocketAddr,
        path: String,
        recursive: bool,
        since: u64,
        stream: bool,
    ) -> Result<Watch, ApiError> {
        let (shared, limits) = (handle.shared(), handle.limits());
        let place = Arc::clone(&limits.watches).try_acquire_owned().map_err(|_| {
            let what = format_args!("{} watches are the most that this member takes", limits.max_watches);
            ApiError::busy_with("watches", what)
        })?;
        let machine = shared.machine.read();
        let index = machine.tree.index();
        let since = if since == 0 { index + 1 } else { since };
        let ahead = VecDeque::new();
        let mut past = Past { path: path.clone(), recursive, next: since, last: index, ahead };
        past.read(&machine.tree, &limits.untaken)?;
        if !stream && !past.ahead.is_empty() {
            past.ahead.truncate(1);
            past.next = past.last + 1;
        }
        let backlog = Arc::<Backlog>::default();
        let mut guard = None;
        if stream || past.ahead.is_empty() {
            // Still under the lock on the machine: no event can pass between the look back and this.
            let since = since.max(index + 1);
            let request = WatchRequest { path: path.clone(), recursive, stream, since };
            let sender = EventSender { backlog: Arc::clone(&backlog), untaken: Arc::clone(&limits.untaken) };
            let id = shared.hub.lock().add(request, sender);
            guard = Some(WatchGuard { shared: Arc::clone(shared), path, id });
        }
        drop(machine);
        Ok(Watch {
            index,
            past,
            backlog,
            waiting: None,
            share: Share::default(),
            room: limits.answers(from),
            stream,
            shared: Arc::clone(shared),
            limits: Arc::clone(limits),
            from,
            _guard: guard,
            _place: place,
        })
    }

    /// Polls for the body of the next event; `None` when there will be no more.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                self.share = ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            // Not taken before there is room for it: until then it is not this watcher's alone.
            let Some(event) = ready!(self.poll_event(cx)) else { return Poll::Ready(None) };
            match fit(&self.room, std::mem::take(&mut self.share), &event) {
                Ok(body) => {
                    self.take();
                    return Poll::Ready(Some(body));
                }
                Err(needed) => {
                    let room = self.room.clone();
                    self.waiting = Some(Box::pin(async move { room.share(needed).await }));
                }
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        if self.past.ahead.is_empty() && !self.past.is_done() {
            let read = self.past.read(&self.shared.machine.read().tree, &self.limits.untaken);
            if read.is_err() {
                return Poll::Ready(self.cut_off());
            }
        }
        let next = match self.past.ahead.front() {
            Some(slot) => slot.event().map_or(Next::TooSlow, Next::Event),
            None => ready!(self.backlog.poll_front(cx)),
        };
        Poll::Ready(match next {
            Next::Event(event) => Some(event),
            Next::TooSlow => self.cut_off(),
            Next::End => None,
        })
    }

    /// The event that was next has become a body.
    fn take(&mut self) {
        if self.past.ahead.pop_front().is_none() {
            self.backlog.pop();
        }
    }

    fn cut_off(&mut self) -> Option<Arc<Event>> {
        self.limits.tell(self.from, "watch ended: it is read more slowly than events come");
        None
    }

    /// Whether more than one event is wanted.
    pub fn is_stream(&self) -> bool {
        self.stream
    }
}

/// An event's body, if `share` can be made large enough for it; else the bytes it needs.
fn fit(room: &ClientRoom, mut share: Share, event: &Event) -> Result<Bytes, usize> {
    let estimate = v2::event_size(event);
    if !room.grow(&mut share, estimate) {
        return Err(estimate);
    }
    let body = v2::event_body(event, now_ns());
    if room.grow(&mut share, body.len()) { Ok(sharing(body, share)) } else { Err(body.len()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::server::limits::WATCHER_BACKLOG;
    use crate::tree::Op;

    fn set(tree: &mut Tree, key: &str) -> u64 {
        let (path, value) = (key.to_owned(), "v".repeat(100));
        let op = Op::Set { path, dir: false, value, expires_ns: None, refresh: false };
        tree.apply(&op).unwrap().event.index()
    }

    fn past(tree: &Tree, next: u64) -> Past {
        let path = "/1/a".to_owned();
        Past { path, recursive: false, next, last: tree.index(), ahead: VecDeque::new() }
    }

    fn all(past: &mut Past, tree: &Tree, untaken: &Untaken) -> Vec<u64> {
        let mut seen = Vec::new();
        while !past.is_done() {
            past.read(tree, untaken).unwrap();
            assert!(past.ahead.len() <= WATCHER_BACKLOG);
            seen.extend(past.ahead.drain(..).filter_map(|slot| slot.event()).map(|event| event.index()));
        }
        seen
    }

    #[test]
    fn the_past_is_read_a_little_ahead_up_to_where_the_hub_delivers() {
        let (mut tree, untaken) = (Tree::new(), Untaken::new(1 << 30));
        let wanted: Vec<u64> = (0..450)
            .map(|_| {
                set(&mut tree, "/1/b");
                set(&mut tree, "/1/a")
            })
            .collect();
        let mut past = past(&tree, 1);
        set(&mut tree, "/1/a");
        assert_eq!(all(&mut past, &tree, &untaken), wanted);
    }

    #[test]
    fn what_has_gone_from_the_history_is_not_skipped() {
        let (mut tree, untaken) = (Tree::new(), Untaken::new(1 << 30));
        for _ in 0..500 {
            set(&mut tree, "/1/a");
        }
        let mut past = past(&tree, 1);
        past.read(&tree, &untaken).unwrap();
        past.ahead.clear();
        for _ in 0..1000 {
            set(&mut tree, "/1/b");
        }
        assert!(past.read(&tree, &untaken).is_err());
    }
}
