//! The raft thread: one loop that moves inputs into the [`Replica`], which decides, and carries out what it says.
//!
//! It owns the log and is the only one to write it. It writes messages to the connections itself and never waits for one:
//! what that does not take goes to a bounded queue, and is dropped when a peer is slow, which raft expects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Instant;

use parking_lot::RwLockReadGuard;
use raft::eraftpb::{Message, Snapshot};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::apply::Task;
use super::handle::{Refusal, Shared, left, now, now_ns};
use super::peers::{Arrived, Delivery, Peers};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::node::{Core, CoreError, Leadership};
use crate::replica::{Asker, Busy, Now, Outside, Proposal, Refused, Replica, Settings, Work};
use crate::wire::command::Command;

/// Inputs that may wait for the raft thread.
pub const INPUT_QUEUE: usize = 16 * 1024;
/// Inputs taken before the log is written: one write and one sync for all of them.
const MAX_BATCH: usize = 1024;

/// What the raft thread is told.
pub enum Input {
    /// Replicate an entry.
    Propose(Proposal),
    /// Answer when a read of the applied state is linearizable.
    Read(oneshot::Sender<()>),
    /// A message from another member.
    Peer(Box<Delivery>),
    /// A snapshot from the leader.
    Snapshot(Box<Arrived>),
    /// A member cannot be reached.
    Unreachable(u64),
    /// How sending a snapshot ended.
    SnapshotSent {
        /// The member it was for.
        to: u64,
        /// Whether it arrived.
        sent: bool,
    },
    /// The image on disk stands at this index: the log before it can go.
    Durable(u64),
    /// As [`Input::Durable`], and the disk is low.
    Shrink(u64),
    /// Look at the applied index and the snapshot slot again.
    Wake,
    /// Hand leadership to another member, one of these if they are given.
    HandOver(Option<Vec<u64>>),
    /// Stop.
    Stop,
}

impl Asker for oneshot::Sender<()> {
    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

/// Everything the raft thread owns.
pub struct Driver<L: LogStore> {
    replica: Replica<L, oneshot::Sender<()>>,
    inputs: Receiver<Input>,
    outbox: Outbox,
    shared: Arc<Shared>,
    stopping: bool,
    /// Room for what peers have sent, of the messages in this round.
    taken: Vec<OwnedSemaphorePermit>,
}

/// Where messages and committed entries go, and where the applied state is looked at.
struct Outbox {
    peers: Peers,
    tasks: SyncSender<Task>,
    shared: Arc<Shared>,
    /// Snapshots that raft is told of in this round; it may want one of them.
    arrived: Vec<Arrived>,
}

impl Outbox {
    /// The applied state, unless it is being changed: that may take longer than heartbeats can wait.
    fn machine(&self) -> Result<RwLockReadGuard<'_, Machine>, Busy> {
        self.shared.machine.try_read().ok_or(Busy)
    }
}

/// The apply thread has ended.
struct Gone;

impl Outside for Outbox {
    fn send(&mut self, messages: Vec<Message>) {
        self.peers.send(messages);
    }

    fn install(&mut self, before: VecDeque<Work>, snapshot: &Snapshot) -> Result<(), String> {
        let stopped = || "the apply thread has stopped".to_owned();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let index = snapshot.get_metadata().index;
        let at = self.arrived.iter().position(|arrived| arrived.machine.applied.index == index);
        let arrived = self.arrived.swap_remove(at.ok_or("raft wants a snapshot that has not come")?);
        let task = Task::Install { machine: Box::new(arrived.machine), done: sender };
        for task in before.into_iter().map(Task::Work).chain([task]) {
            self.tasks.send(task).map_err(|_| stopped())?;
        }
        receiver.recv().map_err(|_| stopped())?
    }

    fn next_expiry(&self) -> Option<i64> {
        self.shared.next_expiry()
    }

    fn has_version(&self) -> bool {
        self.shared.has_version.load(Ordering::Acquire)
    }

    fn check(&self) -> Result<Option<Command>, Busy> {
        Ok(self.machine()?.checks.next())
    }

    fn news(&self) -> Result<Option<Command>, Busy> {
        let machine = self.machine()?;
        let me = self.shared.member_id;
        Ok(machine.checks.news(me, &machine.alarms).or_else(|| self.shared.room.news(me, &machine.alarms)))
    }
}

impl<L: LogStore> Driver<L> {
    /// Puts the thread's things together; [`Driver::run`] is the thread.
    pub fn new(
        core: Core<L>,
        inputs: Receiver<Input>,
        peers: Peers,
        tasks: SyncSender<Task>,
        shared: Arc<Shared>,
        settings: Settings,
    ) -> Driver<L> {
        let applied = shared.applied.load(Ordering::Acquire);
        let replica = Replica::new(core, applied, settings, now());
        let outbox = Outbox { peers, tasks, shared: Arc::clone(&shared), arrived: Vec::new() };
        Driver { replica, inputs, outbox, shared, stopping: false, taken: Vec::new() }
    }

    /// What the log holds that no checkpoint has covered: see [`Replica::log_since_checkpoint`].
    pub fn log_since_checkpoint(&self) -> (u64, u64) {
        self.replica.log_since_checkpoint()
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// What makes it impossible to go on; the member must end.
    pub fn run(mut self) -> Result<(), CoreError> {
        while !self.stopping {
            match self.inputs.recv_timeout(left(self.replica.next_tick())) {
                Ok(input) => {
                    self.take(input);
                    for _ in 1..MAX_BATCH {
                        let Ok(input) = self.inputs.try_recv() else { break };
                        self.take(input);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let time = Now { monotonic: now(), wall_ns: now_ns() };
            let outcome = self.replica.round(time, &mut self.outbox)?;
            self.shared.room.is_written();
            self.outbox.arrived.clear();
            self.taken.clear();
            self.refuse(&outcome.refused);
            if let Some(new) = outcome.leadership {
                self.show_leadership(new, time.monotonic);
            }
            self.look_at_applied();
            let Ok(()) = self.hand_on() else { break };
        }
        Ok(())
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose(proposal) => self.replica.propose(proposal),
            Input::Read(sender) => self.replica.read(sender),
            Input::Peer(delivery) => {
                self.taken.extend(delivery.room);
                self.replica.step(delivery.message);
            }
            Input::Snapshot(arrived) => {
                self.replica.step(arrived.message.clone());
                self.outbox.arrived.push(*arrived);
            }
            Input::Unreachable(id) => self.replica.report_unreachable(id),
            Input::SnapshotSent { to, sent } => self.replica.report_snapshot(to, sent),
            Input::Durable(index) => {
                self.show_applied();
                self.replica.durable(index);
            }
            Input::Shrink(index) => {
                self.show_applied();
                self.replica.shrink(index);
            }
            Input::Wake => {}
            Input::HandOver(among) => self.replica.hand_over(among.as_deref()),
            Input::Stop => self.stopping = true,
        }
    }

    fn refuse(&self, refused: &[(u64, Refused)]) {
        for (number, why) in refused {
            let waiter = self.shared.waiters.lock().remove(number);
            if let Some(waiter) = waiter {
                let Refused::Overload = why;
                let _ = waiter.send(Err(Refusal::Overload));
            }
        }
    }

    fn show_leadership(&self, new: Leadership, time: Instant) {
        self.shared.leadership.send_modify(|(old, since)| {
            if old.leader != new.leader {
                *since = time;
            }
            *old = new;
        });
        let leader = format_args!("{:x}", new.leader);
        match (new.leader, new.leads) {
            (0, _) => tracing::warn!(term = new.term, "no leader"),
            (_, true) => tracing::info!(term = new.term, "this member leads"),
            (_, false) => tracing::info!(term = new.term, %leader, "following"),
        }
    }

    fn look_at_applied(&mut self) {
        if let Some(snapshot) = self.shared.snapshot.lock().take() {
            let position = snapshot.applied();
            self.outbox.peers.keep_snapshot(snapshot);
            // The state travels apart from raft's message.
            self.replica.provide_snapshot(position, Vec::new());
        }
        self.outbox.peers.forget_snapshot_except(self.replica.snapshot_index());
        // Raised before the index is read: an index that is published after that finds it raised.
        self.shared.reads_wait.store(self.replica.waits_for_apply(), Ordering::SeqCst);
        self.show_applied();
    }

    /// What is durable is applied, and the log can only go as far as raft knows that.
    fn show_applied(&mut self) {
        let applied = self.shared.applied.load(Ordering::SeqCst);
        for sender in self.replica.applied(applied) {
            let _ = sender.send(());
        }
    }

    /// As much work as the apply thread has room for.
    fn hand_on(&mut self) -> Result<(), Gone> {
        while let Some(work) = self.replica.next_work() {
            match self.outbox.tasks.try_send(Task::Work(work)) {
                Err(TrySendError::Full(Task::Work(work))) => {
                    self.replica.no_room_for(work);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err(Gone),
                Ok(()) | Err(TrySendError::Full(Task::Install { .. })) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::super::peers::Dialler;
    use super::*;
    use crate::membership::{Member, Membership};
    use crate::state::Identity;

    #[test]
    fn the_raft_thread_does_not_wait_while_the_state_is_changed() {
        let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
        let identity = Identity { cluster_id: 1, member_id: member.id };
        let machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
        let shared = Arc::new(Shared::new(identity, "n1".to_owned(), machine));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (inputs, _inputs) = sync_channel(1);
        let (tasks, _tasks) = sync_channel(1);
        let dialler = Dialler { cluster: 1, me: identity.member_id, tls: None };
        let peers = Peers::start(Vec::new(), dialler, inputs, runtime.handle().clone());
        let outbox = Outbox { peers, tasks, shared: Arc::clone(&shared), arrived: Vec::new() };
        assert_eq!((outbox.check(), outbox.news(), outbox.has_version()), (Ok(None), Ok(None), false));
        // On this very thread: it would wait for ever.
        let mut machine = shared.machine.write();
        assert_eq!((outbox.check(), outbox.news()), (Err(Busy), Err(Busy)));
        let op = crate::tree::Op::Set {
            path: "/1/k".to_owned(),
            dir: false,
            value: String::new(),
            expires_ns: Some(7),
            refresh: false,
        };
        machine.tree.apply(&op).unwrap();
        machine.membership.version = "3.2.0".to_owned();
        assert_eq!((outbox.next_expiry(), outbox.has_version()), (None, false), "as it was shown last");
        shared.note(&machine);
        assert_eq!((outbox.next_expiry(), outbox.has_version()), (Some(7), true));
    }
}
