//! What the API asks of the member: propose a command, make a read linearizable, look, watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::Input;
use super::stats::StoreStats;
use crate::machine::Machine;
use crate::node::Leadership;
use crate::replica::Proposal;
use crate::snapshot::Snapshot;
use crate::state::Identity;
use crate::tree::watch::WatcherId;
use crate::tree::{Event, Hub, NodeView, Sink, TreeError, WatchRequest};
use crate::wire::command::{Command, Envelope, RequestId};
use crate::wire::v2::ApiError;

/// Events that may wait for one watcher; one that is further behind is cut off, as in etcd.
const WATCHER_BACKLOG: usize = 100;
/// Requests waiting for consensus at one time; more are refused.
const MAX_WAITING: usize = 16 * 1024;

/// Bytes of commands waiting for consensus at one time; more are refused.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// State that the threads and the API share.
pub struct Shared {
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// Its name.
    pub name: String,
    /// When it started.
    pub started: SystemTime,
    /// The replicated state. Written by the apply thread only.
    pub machine: RwLock<Machine>,
    /// Who watches. Taken after `machine` where both are.
    pub hub: Mutex<Hub<EventSender>>,
    /// Who waits for which request of ours.
    pub waiters: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    /// A snapshot that the apply thread took for the raft thread.
    pub snapshot: Mutex<Option<Snapshot>>,
    /// Index of the last applied entry.
    pub applied: AtomicU64,
    /// Whether the raft thread holds reads until more is applied, and wants to be woken then.
    pub reads_wait: AtomicBool,
    /// Whether any key expires.
    pub has_expiries: AtomicBool,
    /// Who leads, since when.
    pub leadership: watch::Sender<(Leadership, Instant)>,
    /// Counters.
    pub stats: StoreStats,
    /// Bytes of commands that wait for consensus.
    pub waiting_bytes: AtomicUsize,
}

impl Shared {
    /// The shared state of a member that starts with `machine` and knows of no leader yet.
    pub fn new(identity: Identity, name: String, machine: Machine) -> Shared {
        Shared {
            member_id: identity.member_id,
            cluster_id: identity.cluster_id,
            name,
            started: wall_clock(),
            reads_wait: AtomicBool::new(false),
            has_expiries: AtomicBool::new(machine.tree.has_expiries()),
            applied: AtomicU64::new(machine.applied.index),
            machine: RwLock::new(machine),
            hub: Mutex::default(),
            waiters: Mutex::default(),
            snapshot: Mutex::default(),
            leadership: watch::Sender::new((Leadership::default(), now())),
            stats: StoreStats::default(),
            waiting_bytes: AtomicUsize::new(0),
        }
    }
}

/// What a proposal came to.
pub type Answer = Result<Option<Arc<Event>>, Refusal>;

/// Why a proposal was not carried out.
#[derive(Debug)]
pub enum Refusal {
    /// The tree refused it.
    Tree(TreeError),
    /// Too many wait for a leader.
    Overload,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Tree(error) => error.into(),
            Refusal::Overload => ApiError::raft(TOO_MANY),
        }
    }
}

/// etcd's words for a member with too much to do.
const TOO_MANY: &str = "etcdserver: too many requests";

/// The sending half of a watcher.
pub struct EventSender(mpsc::Sender<Arc<Event>>);

impl Sink for EventSender {
    fn deliver(&self, event: &Arc<Event>) -> bool {
        self.0.try_send(Arc::clone(event)).is_ok()
    }
}

/// The member as the API sees it; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    inputs: SyncSender<Input>,
    next: Arc<AtomicU64>,
    timeout: Duration,
    election: Duration,
}

/// This member's clock.
#[expect(clippy::disallowed_methods, reason = "the one place where the store reads the wall clock")]
pub fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Nanoseconds of Unix time by this member's clock: for absolute expiry times and remaining seconds.
pub fn now_ns() -> i64 {
    let since = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The clock for timeouts.
#[expect(clippy::disallowed_methods, reason = "the one place where the store reads the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

impl Handle {
    /// A handle. `start` is drawn at random at every start, so that request ids never repeat; a request times
    /// out after five seconds and two elections, as in etcd.
    pub fn new(shared: Arc<Shared>, inputs: SyncSender<Input>, start: u32, election: Duration) -> Handle {
        let next = Arc::new(AtomicU64::new(u64::from(start) << 32));
        Handle { shared, inputs, next, timeout: Duration::from_secs(5) + 2 * election, election }
    }

    /// The shared state.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Replicates a command and waits until this member has applied it.
    ///
    /// # Errors
    /// The tree's refusal, or code 300 if consensus did not answer in time; the command may still be carried
    /// out later then.
    pub async fn propose(&self, command: Command) -> Result<Option<Arc<Event>>, ApiError> {
        let begun = now();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.shared.waiters.lock();
            if waiters.len() >= MAX_WAITING {
                return Err(ApiError::raft(TOO_MANY));
            }
            waiters.insert(number, sender);
        }
        let mut guard = WaiterGuard { shared: &self.shared, number, bytes: 0 };
        let id = RequestId { member: self.shared.member_id, number };
        let data: Bytes = Envelope { id, command }.encode().into();
        guard.bytes = data.len();
        let before = self.shared.waiting_bytes.fetch_add(guard.bytes, Ordering::Relaxed);
        if before + guard.bytes > MAX_WAITING_BYTES {
            return Err(ApiError::raft(TOO_MANY));
        }
        self.input(Input::Propose(Proposal { number, data, deadline: begun + self.timeout }))?;
        match tokio::time::timeout(self.timeout, receiver).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(ApiError::raft("etcdserver: server stopped")),
            Err(_) => Err(self.timed_out(begun)),
        }
    }

    /// Returns once a read of this member's state shows everything acknowledged before the call.
    ///
    /// # Errors
    /// Code 300 if no quorum answered within `limit` or the request timeout.
    pub async fn linearize(&self, limit: Option<Duration>) -> Result<(), ApiError> {
        let begun = now();
        let (sender, receiver) = oneshot::channel();
        self.input(Input::Read(sender))?;
        match tokio::time::timeout(limit.unwrap_or(self.timeout), receiver).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ApiError::raft("etcdserver: server stopped")),
            Err(_) => Err(self.timed_out(begun)),
        }
    }

    fn input(&self, input: Input) -> Result<(), ApiError> {
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::raft(TOO_MANY),
            TrySendError::Disconnected(_) => ApiError::raft("etcdserver: server stopped"),
        })
    }

    fn timed_out(&self, begun: Instant) -> ApiError {
        let (leadership, since) = *self.shared.leadership.borrow();
        let lost = since.checked_sub(2 * self.election).unwrap_or(since);
        ApiError::raft(if leadership.leader != 0 && begun > lost && begun < since {
            "etcdserver: request timed out, possibly due to previous leader failure"
        } else {
            "etcdserver: request timed out"
        })
    }

    /// Looks at a node; with the tree's index.
    ///
    /// # Errors
    /// The tree's.
    pub fn get(&self, path: &str, recursive: bool) -> (u64, Result<NodeView, TreeError>) {
        let machine = self.shared.machine.read();
        (machine.tree.index(), machine.tree.get(path, recursive))
    }

    /// Starts a watch. `since` 0 means what comes next.
    ///
    /// # Errors
    /// Code 401 if the history no longer reaches back that far.
    pub fn watch(&self, path: String, recursive: bool, since: u64, stream: bool) -> Result<Watch, ApiError> {
        let machine = self.shared.machine.read();
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
        let mut guard = None;
        if stream || past.is_empty() {
            // Still under the lock on the machine: no event can pass between the look back and this.
            let request = WatchRequest { path: path.clone(), recursive, stream, since };
            let id = self.shared.hub.lock().add(request, EventSender(sender));
            guard = Some(WatchGuard { shared: Arc::clone(&self.shared), path, id });
        }
        Ok(Watch { index, past, events, stream, _guard: guard })
    }
}

/// Forgets a request when whoever waits for it is gone.
struct WaiterGuard<'a> {
    shared: &'a Shared,
    number: u64,
    bytes: usize,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.shared.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.shared.waiters.lock().remove(&self.number);
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

/// A watch under way.
pub struct Watch {
    /// The tree's index when it began.
    pub index: u64,
    /// Events from the history, last first.
    past: Vec<Arc<Event>>,
    events: mpsc::Receiver<Arc<Event>>,
    stream: bool,
    _guard: Option<WatchGuard>,
}

impl Watch {
    /// Polls for the next event; `None` when there will be no more.
    pub fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Arc<Event>>> {
        match self.past.pop() {
            Some(event) => std::task::Poll::Ready(Some(event)),
            None => self.events.poll_recv(cx),
        }
    }

    /// Whether more than one event is wanted.
    pub fn is_stream(&self) -> bool {
        self.stream
    }
}
