//! What the API asks of the member: propose a command, make a read linearizable, look, watch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::driver::Input;
use super::limits::{Limits, MAX_WAITING, MAX_WAITING_BYTES};
use super::space::Room;
use super::stats::StoreStats;
use super::watching::EventSender;
use crate::machine::Machine;
use crate::node::Leadership;
use crate::replica::Proposal;
use crate::snapshot::Snapshot;
use crate::state::Identity;
use crate::tree::{Event, FrozenNode, Hub, TreeError};
use crate::wire::command::{Command, Envelope, RequestId};
use crate::wire::v2::{ApiError, TOO_MANY_REQUESTS};
use crate::wire::v2_request::Get;

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
    /// Whether the state says which version the cluster has.
    pub has_version: AtomicBool,
    /// When the next key expires, in nanoseconds of Unix time; `i64::MAX` for never: see [`Shared::next_expiry`].
    next_expiry: AtomicI64,
    /// Who leads, since when.
    pub leadership: watch::Sender<(Leadership, Instant)>,
    /// Whether there is room on the disk.
    pub room: Arc<Room>,
    /// Why the image of the state cannot be written, if it cannot.
    pub image_fault: Mutex<Option<String>>,
    /// Counters.
    pub stats: StoreStats,
    /// Bytes of commands on their way to the log, and of those that nobody waits for any more but that are held.
    pub waiting_bytes: Arc<AtomicUsize>,
}

impl Shared {
    /// The shared state of a member that starts with `machine` and knows of no leader yet.
    pub fn new(identity: Identity, name: String, machine: Machine) -> Shared {
        let shared = Shared {
            member_id: identity.member_id,
            cluster_id: identity.cluster_id,
            name,
            started: wall_clock(),
            reads_wait: AtomicBool::new(false),
            has_version: AtomicBool::default(),
            next_expiry: AtomicI64::default(),
            applied: AtomicU64::default(),
            machine: RwLock::new(machine),
            hub: Mutex::default(),
            waiters: Mutex::default(),
            snapshot: Mutex::default(),
            leadership: watch::Sender::new((Leadership::default(), now())),
            room: Arc::default(),
            image_fault: Mutex::default(),
            stats: StoreStats::default(),
            waiting_bytes: Arc::default(),
        };
        shared.note(&shared.machine.read());
        shared
    }

    /// Shows where the state stands to those who do not take its lock.
    pub fn note(&self, machine: &Machine) {
        self.has_version.store(!machine.membership.version.is_empty(), Ordering::Release);
        self.next_expiry.store(machine.tree.next_expiry().unwrap_or(i64::MAX), Ordering::Release);
        self.applied.store(machine.applied.index, Ordering::SeqCst);
    }

    /// When the next key expires, in nanoseconds of Unix time, if any does.
    pub fn next_expiry(&self) -> Option<i64> {
        Some(self.next_expiry.load(Ordering::Acquire)).filter(|at| *at < i64::MAX)
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
            Refusal::Overload => ApiError::raft(TOO_MANY_REQUESTS),
        }
    }
}

/// The member as the API sees it; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    inputs: SyncSender<Input>,
    limits: Arc<Limits>,
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

/// The time until then, none if it has passed.
pub fn left(by: Instant) -> Duration {
    by.saturating_duration_since(now())
}

impl Handle {
    /// A handle. `start` is drawn at random at every start, so that request ids never repeat; a request times
    /// out after five seconds and two elections, as in etcd.
    pub fn new(
        shared: Arc<Shared>,
        inputs: SyncSender<Input>,
        limits: Arc<Limits>,
        start: u32,
        election: Duration,
    ) -> Handle {
        let next = Arc::new(AtomicU64::new(u64::from(start) << 32));
        Handle { shared, inputs, limits, next, timeout: Duration::from_secs(5) + 2 * election, election }
    }

    /// The shared state.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What clients may hold.
    pub fn limits(&self) -> &Arc<Limits> {
        &self.limits
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Replicates a command and waits until this member has applied it.
    ///
    /// # Errors
    /// The tree's refusal, or code 300 if consensus did not answer in time; the command may still be carried
    /// out later then.
    pub async fn propose(&self, command: Command) -> Result<Option<Arc<Event>>, ApiError> {
        if let Some(why) = self.shared.room.refuses(&command) {
            return Err(ApiError::raft(&*why));
        }
        let begun = now();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiters = self.shared.waiters.lock();
            if waiters.len() >= MAX_WAITING {
                return Err(ApiError::raft(TOO_MANY_REQUESTS));
            }
            waiters.insert(number, sender);
        }
        let _guard = WaiterGuard { shared: &self.shared, number };
        let id = RequestId { member: self.shared.member_id, number };
        let data = Weighed::pack(Envelope { id, command }.encode(), &self.shared.waiting_bytes)
            .ok_or_else(|| ApiError::raft(TOO_MANY_REQUESTS))?;
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
            TrySendError::Full(_) => ApiError::raft(TOO_MANY_REQUESTS),
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

    /// The tree's index, and a node as it is now. Holds the lock only for as long as it takes to find it.
    ///
    /// # Errors
    /// The tree's.
    pub fn look(&self, get: &Get) -> Result<(u64, FrozenNode), TreeError> {
        let machine = self.shared.machine.read();
        Ok((machine.tree.index(), machine.tree.look(&get.path, get.recursive)?))
    }
}

/// Forgets a request when whoever waits for it is gone.
struct WaiterGuard<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.shared.waiters.lock().remove(&self.number);
    }
}

/// An encoded command that counts among those on their way for as long as anybody holds it: who gives up waiting
/// does not take his command out of the queues.
struct Weighed {
    data: Vec<u8>,
    total: Arc<AtomicUsize>,
}

/// What a queued command takes beside its bytes.
const COMMAND_BYTES: usize = 256;

impl Weighed {
    /// The command as bytes to be passed on; `None` if there are too many already.
    fn pack(data: Vec<u8>, total: &Arc<AtomicUsize>) -> Option<Bytes> {
        let weighed = Weighed { data, total: Arc::clone(total) };
        let before = total.fetch_add(weighed.weight(), Ordering::Relaxed);
        let fits = before + weighed.weight() <= MAX_WAITING_BYTES;
        // Dropped where it does not fit, which takes its weight off again.
        fits.then(|| Bytes::from_owner(weighed))
    }

    fn weight(&self) -> usize {
        self.data.len() + COMMAND_BYTES
    }
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Weighed {
    fn drop(&mut self) {
        self.total.fetch_sub(self.weight(), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::membership::{Member, Membership};
    use crate::tree::Op;

    #[test]
    fn a_command_weighs_until_the_last_holder_lets_go_of_it() {
        let total = Arc::default();
        let data = Weighed::pack(vec![7; 1000], &total).unwrap();
        let held = data.slice(..1);
        drop(data);
        assert_eq!(total.load(Ordering::Relaxed), 1000 + COMMAND_BYTES);
        drop(held);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_disconnects_does_not_take_his_command_back() {
        let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
        let machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
        let identity = Identity { cluster_id: 1, member_id: 2 };
        let shared = Arc::new(Shared::new(identity, "test".to_owned(), machine));
        let (inputs, queue) = std::sync::mpsc::sync_channel(16);
        let limits = Arc::new(Limits::new(16));
        let handle = Handle::new(Arc::clone(&shared), inputs, limits, 1, Duration::from_secs(1));
        shared.waiting_bytes.store(MAX_WAITING_BYTES - 1500, Ordering::Relaxed);
        // Asks, and is gone before there is an answer.
        let ask = || {
            let op = Op::Delete { path: "/1/a".to_owned(), dir: false, recursive: false };
            let asked = std::pin::pin!(handle.propose(Command::V2(op)));
            asked.poll(&mut Context::from_waker(Waker::noop()))
        };
        let refused: Vec<_> = std::iter::repeat_with(ask).take(8).filter(Poll::is_ready).collect();
        assert!((1..8).contains(&refused.len()), "{refused:?}");
        let Poll::Ready(Err(error)) = &refused[0] else { panic!("{refused:?}") };
        assert_eq!(error.cause, TOO_MANY_REQUESTS);
        assert!(shared.waiters.lock().is_empty());
        queue.try_iter().for_each(drop);
        assert!(ask().is_pending());
    }

    #[test]
    fn what_is_too_much_weighs_nothing() {
        let total = Arc::new(AtomicUsize::new(MAX_WAITING_BYTES - 1000));
        assert!(Weighed::pack(vec![7; 1000], &total).is_none());
        assert!(Weighed::pack(vec![7; 1000 - COMMAND_BYTES], &total).is_some());
        assert_eq!(total.load(Ordering::Relaxed), MAX_WAITING_BYTES - 1000);
    }
}
