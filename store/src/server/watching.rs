//! Watches: what was, then what comes, to one client; with bounds on how many there are and how far one may lag.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::handle::{Handle, Shared, now_ns};
use super::limits::{Limits, OWN_BYTES, WATCHER_BACKLOG, WATCHER_BACKLOG_BYTES};
use super::served::fitted;
use crate::tree::watch::WatcherId;
use crate::tree::{Event, Sink, WatchRequest};
use crate::wire::v2::{self, ApiError};

/// What lies between the sender and the reader of a watcher.
#[derive(Default)]
struct Backlog {
    bytes: AtomicUsize,
    is_over: AtomicBool,
}

/// The sending half of a watcher.
pub struct EventSender {
    events: mpsc::Sender<Arc<Event>>,
    backlog: Arc<Backlog>,
}

impl Sink for EventSender {
    fn deliver(&self, event: &Arc<Event>) -> bool {
        let bytes = v2::event_size(event);
        let before = self.backlog.bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = before == 0 || before + bytes <= WATCHER_BACKLOG_BYTES;
        let taken = fits && self.events.try_send(Arc::clone(event)).is_ok();
        if !taken {
            self.backlog.is_over.store(true, Ordering::Release);
        }
        taken
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

/// The body of an event, which waits for its share of the room.
type Waiting = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// A watch under way.
pub struct Watch {
    /// The tree's index when it began.
    pub index: u64,
    /// Events from the history, last first.
    past: Vec<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    backlog: Arc<Backlog>,
    /// A large event, whose body has to wait for room.
    waiting: Option<Waiting>,
    stream: bool,
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
        let mut since = if since == 0 { index + 1 } else { since };
        let mut past = Vec::new();
        while let Some(event) = machine.tree.history().scan(&path, recursive, since, index)? {
            since = event.index() + 1;
            past.push(event);
            if !stream {
                break;
            }
        }
        past.reverse();
        let (sender, events) = mpsc::channel(if stream { WATCHER_BACKLOG } else { 1 });
        let backlog = Arc::<Backlog>::default();
        let mut guard = None;
        if stream || past.is_empty() {
            // Still under the lock on the machine: no event can pass between the look back and this.
            let request = WatchRequest { path: path.clone(), recursive, stream, since };
            let sender = EventSender { events: sender, backlog: Arc::clone(&backlog) };
            let id = shared.hub.lock().add(request, sender);
            guard = Some(WatchGuard { shared: Arc::clone(shared), path, id });
        }
        drop(machine);
        let limits = Arc::clone(limits);
        Ok(Watch {
            index,
            past,
            events,
            backlog,
            waiting: None,
            stream,
            limits,
            from,
            _guard: guard,
            _place: place,
        })
    }

    /// Polls for the body of the next event; `None` when there will be no more.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.waiting.is_none() {
            let Some(event) = ready!(self.poll_event(cx)) else { return Poll::Ready(None) };
            let bytes = v2::event_size(&event);
            if bytes <= OWN_BYTES {
                return Poll::Ready(Some(v2::event_body(&event, now_ns()).into()));
            }
            let room = self.limits.answers(self.from);
            let make = move || v2::event_body(&event, now_ns());
            self.waiting = Some(Box::pin(async move { fitted(&room, bytes, make).await }));
        }
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(None) };
        let body = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(Some(body))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        if let Some(event) = self.past.pop() {
            return Poll::Ready(Some(event));
        }
        let event = ready!(self.events.poll_recv(cx));
        match &event {
            Some(event) => {
                self.backlog.bytes.fetch_sub(v2::event_size(event), Ordering::AcqRel);
            }
            None if self.backlog.is_over.load(Ordering::Acquire) => {
                self.limits.tell(self.from, "watch ended: it is read more slowly than events come");
            }
            None => {}
        }
        Poll::Ready(event)
    }

    /// Whether more than one event is wanted.
    pub fn is_stream(&self) -> bool {
        self.stream
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::tree::{Action, NodeView};

    fn event(value: usize) -> Arc<Event> {
        let node = NodeView {
            path: "/1/a".to_owned(),
            value: Some("v".repeat(value)),
            dir: false,
            expires_ns: None,
            nodes: vec![],
            modified: 4,
            created: 4,
        };
        Arc::new(Event { action: Action::Set, node, prev: None, refresh: false })
    }

    fn sender() -> (EventSender, mpsc::Receiver<Arc<Event>>) {
        let (events, receiver) = mpsc::channel(WATCHER_BACKLOG);
        (EventSender { events, backlog: Arc::default() }, receiver)
    }

    #[test]
    fn a_watcher_lags_by_so_many_events() {
        let (sender, _receiver) = sender();
        for _ in 0..WATCHER_BACKLOG {
            assert!(sender.deliver(&event(1)));
        }
        assert!(!sender.backlog.is_over.load(Ordering::Acquire));
        assert!(!sender.deliver(&event(1)));
        assert!(sender.backlog.is_over.load(Ordering::Acquire));
    }

    #[test]
    fn or_by_so_many_bytes_but_one_event_of_any_size() {
        let (sender, _receiver) = sender();
        assert!(sender.deliver(&event(2 * WATCHER_BACKLOG_BYTES)));
        assert!(!sender.deliver(&event(1)));
        let (sender, _receiver) = self::sender();
        let third = event(WATCHER_BACKLOG_BYTES / 3);
        assert!(sender.deliver(&third) && sender.deliver(&third) && !sender.deliver(&third));
    }
}
