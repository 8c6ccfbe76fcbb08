//! The raft thread: one loop that takes inputs, ticks, and carries out what [`Core`] says.
//!
//! It owns the log and is the only one to write it. It never waits for a socket: messages go to bounded
//! queues and are dropped when a peer is slow, which raft expects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType, Snapshot};
use tokio::sync::oneshot;

use super::apply::Task;
use super::handle::{Refusal, Shared, now, now_ns};
use super::peers::Peers;
use crate::log::LogStore;
use crate::node::{Core, CoreError, Dropped, Shell};
use crate::wire::command::{Command, Envelope, RequestId};

/// Inputs that may wait for the raft thread.
pub const INPUT_QUEUE: usize = 16 * 1024;
/// Inputs taken before the log is written: one write and one sync for all of them.
const MAX_BATCH: usize = 1024;
/// Proposals kept while there is no leader to send them to.
const MAX_HELD: usize = 4096;
/// Bytes of entries in one proposal, unless a single one is larger.
const MAX_PROPOSAL_BYTES: usize = 1 << 20;
/// Batches that wait for the apply thread beyond its queue before proposals have to wait.
const MAX_BACKLOG: usize = 64;
/// How often the leader lets keys expire, as etcd.
const SYNC_PERIOD: Duration = Duration::from_millis(500);
/// Entries kept in the log after a compaction, for followers a little behind, as etcd.
const CATCH_UP_ENTRIES: u64 = 5000;
/// How long a request to confirm the leader may go unanswered before it is sent again.
const READ_RETRY: Duration = Duration::from_millis(300);

/// What the raft thread is told.
pub enum Input {
    /// Replicate an entry.
    Propose(Proposal),
    /// Answer when a read of the applied state is linearizable.
    Read(oneshot::Sender<()>),
    /// A message from another member.
    Peer(Box<Message>),
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
    /// Look at the applied index and the snapshot slot again.
    Wake,
    /// Hand leadership to another member.
    HandOver,
    /// Stop.
    Stop,
}

/// Settings of the loop.
pub struct Settings {
    /// Length of a tick.
    pub tick: Duration,
    /// Drawn at random at every start: no question of this start repeats one of an earlier.
    pub start: u32,
    /// The cluster version that the leader sets once.
    pub cluster_version: &'static str,
}

/// An entry that somebody waits for.
pub struct Proposal {
    /// The request's number.
    pub number: u64,
    /// The entry.
    pub data: Bytes,
    /// When nobody waits for it any more.
    pub deadline: Instant,
}

/// Everything the raft thread owns.
pub struct Driver<L: LogStore> {
    core: Core<L>,
    inputs: Receiver<Input>,
    outbox: Outbox,
    shared: Arc<Shared>,
    settings: Settings,
    /// Proposals taken in this round; they are proposed together.
    fresh: Vec<Proposal>,
    /// Proposals that wait for a leader.
    held: Vec<Proposal>,
    reads: Reads,
    told_applied: u64,
    last_sync: Instant,
    version_proposed: bool,
    stopping: bool,
}

/// Where messages and committed entries go.
struct Outbox {
    peers: Peers,
    tasks: SyncSender<Task>,
    /// Tasks that the apply thread has no room for yet. The raft thread does not wait for it: heartbeats must go on.
    backlog: VecDeque<Task>,
}

/// The apply thread has ended.
struct Gone;

impl Outbox {
    fn flush(&mut self) -> Result<(), Gone> {
        while let Some(task) = self.backlog.pop_front() {
            match self.tasks.try_send(task) {
                Ok(()) => {}
                Err(TrySendError::Full(task)) => {
                    self.backlog.push_front(task);
                    return Ok(());
                }
                Err(TrySendError::Disconnected(_)) => return Err(Gone),
            }
        }
        Ok(())
    }
}

impl Shell for Outbox {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            self.peers.send(message);
        }
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let stopped = || "the apply thread has stopped".to_owned();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let task = Task::Install { data: snapshot.get_data().to_vec(), done: sender };
        for task in self.backlog.drain(..).chain([task]) {
            self.tasks.send(task).map_err(|_| stopped())?;
        }
        receiver.recv().map_err(|_| stopped())?
    }
}

/// Reads on their way to being linearizable. All that come while one question is out share the next.
#[derive(Default)]
struct Reads {
    waiting: Vec<oneshot::Sender<()>>,
    asked: Option<(u64, Instant, Vec<oneshot::Sender<()>>)>,
    confirmed: VecDeque<(u64, Vec<oneshot::Sender<()>>)>,
    sequence: u64,
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
        let told_applied = shared.applied.load(Ordering::Acquire);
        Driver {
            core,
            inputs,
            outbox: Outbox { peers, tasks, backlog: VecDeque::new() },
            shared,
            fresh: Vec::new(),
            held: Vec::new(),
            // Drawn at random, as a question from before a restart may still be out.
            reads: Reads { sequence: u64::from(settings.start) << 32, ..Reads::default() },
            settings,
            told_applied,
            last_sync: now(),
            version_proposed: false,
            stopping: false,
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// What makes it impossible to go on; the member must end.
    pub fn run(mut self) -> Result<(), CoreError> {
        let mut next_tick = now() + self.settings.tick;
        while !self.stopping {
            let wait = next_tick.saturating_duration_since(now());
            match self.inputs.recv_timeout(wait) {
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
            self.propose_version();
            if self.outbox.backlog.len() < MAX_BACKLOG {
                let fresh = std::mem::take(&mut self.fresh);
                self.propose(fresh);
            }
            let time = now();
            if time >= next_tick {
                // After a pause of the whole process one tick is enough: others' messages come first.
                next_tick = time + self.settings.tick;
                self.core.tick();
                self.on_tick(time);
            }
            let Ok(()) = self.carry_out(time)? else { return Ok(()) };
        }
        Ok(())
    }

    /// What raft has to say after this round's inputs, and what follows from it.
    fn carry_out(&mut self, time: Instant) -> Result<Result<(), Gone>, CoreError> {
        // An answered question makes room for the next, which is asked in the same round.
        while self.ask_for_reads(time) | self.process()? {}
        self.on_applied();
        self.watch_leadership(time);
        if let Some(wanted) = self.core.wanted_snapshot() {
            tracing::info!(at_least = wanted.index, "a follower is far behind: making a snapshot");
            self.outbox.backlog.push_back(Task::MakeSnapshot);
        }
        Ok(self.outbox.flush())
    }

    /// Returns whether there was anything to do.
    fn process(&mut self) -> Result<bool, CoreError> {
        let Some(effects) = self.core.process(&mut self.outbox)? else { return Ok(false) };
        for read in effects.reads {
            self.reads.confirm(&read.request_ctx, read.index);
        }
        if !effects.committed.is_empty() {
            self.outbox.backlog.push_back(Task::Entries(effects.committed));
        }
        Ok(true)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose(proposal) => self.fresh.push(proposal),
            Input::Read(sender) => self.reads.waiting.push(sender),
            Input::Peer(message) => self.step(*message),
            Input::Unreachable(id) => self.core.report_unreachable(id),
            Input::SnapshotSent { to, sent } => self.core.report_snapshot(to, sent),
            Input::Durable(index) => self.compact(index),
            Input::Wake => {}
            Input::HandOver => {
                if let Some(to) = self.core.hand_over() {
                    tracing::info!(to = format_args!("{to:x}"), "handing leadership over");
                }
            }
            Input::Stop => self.stopping = true,
        }
    }

    /// An entry that cannot be read stops every member once it is committed, so it must not get that far.
    fn step(&mut self, message: Message) {
        let is_proposal = message.get_msg_type() == MessageType::MsgPropose;
        if is_proposal && message.entries.iter().any(|entry| Envelope::decode(&entry.data).is_err()) {
            tracing::warn!(
                from = format_args!("{:x}", message.from),
                "a proposal that is no command is refused"
            );
            return;
        }
        self.core.step(message);
    }

    /// Proposes as few and as large messages as raft takes; what it refuses waits for a leader.
    fn propose(&mut self, proposals: Vec<Proposal>) {
        let mut rest = proposals.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|proposal| {
                bytes += proposal.data.len();
                bytes <= MAX_PROPOSAL_BYTES
            });
            let (batch, others) = rest.split_at(fits.count().max(1));
            if self.core.propose(batch.iter().map(|proposal| proposal.data.clone())) == Err(Dropped) {
                break;
            }
            rest = others;
        }
        let refused = rest.len();
        self.hold(proposals.into_iter().rev().take(refused).rev());
    }

    fn hold(&mut self, refused: impl Iterator<Item = Proposal>) {
        for proposal in refused {
            if self.held.len() < MAX_HELD {
                self.held.push(proposal);
            } else {
                let waiter = self.shared.waiters.lock().remove(&proposal.number);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Err(Refusal::Overload));
                }
            }
        }
    }

    fn retry_held(&mut self, time: Instant) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|proposal| proposal.deadline > time);
        self.propose(held);
    }

    fn on_tick(&mut self, time: Instant) {
        self.retry_held(time);
        if !self.core.leadership().leads {
            self.version_proposed = false;
            return;
        }
        if self.shared.has_expiries.load(Ordering::Acquire) && time - self.last_sync >= SYNC_PERIOD {
            self.last_sync = time;
            self.propose_own(Command::Sync { now_ns: now_ns() });
        }
        self.propose_version();
    }

    /// The leader sets the cluster version, once; at the start of its term, so that the first write of a user comes
    /// after it, as in etcd.
    fn propose_version(&mut self) {
        if self.version_proposed || !self.core.leadership().leads {
            return;
        }
        let command = Command::SetClusterVersion(self.settings.cluster_version.to_owned());
        let is_set = !self.shared.machine.read().membership.version.is_empty();
        self.version_proposed = is_set || self.propose_own(command);
    }

    /// Proposes something that nobody waits for: its number is no waiter's. Returns whether raft took it.
    fn propose_own(&mut self, command: Command) -> bool {
        let id = RequestId { member: 0, number: 0 };
        self.core.propose([Bytes::from(Envelope { id, command }.encode())]).is_ok()
    }

    /// Returns whether it has asked.
    fn ask_for_reads(&mut self, time: Instant) -> bool {
        let me = self.shared.member_id;
        self.reads.waiting.retain(|sender| !sender.is_closed());
        match &mut self.reads.asked {
            Some((sequence, at, _)) if time.duration_since(*at) >= READ_RETRY => {
                *at = time;
                self.core.read_index(read_context(me, *sequence));
                true
            }
            None if !self.reads.waiting.is_empty() && self.core.leadership().leader != 0 => {
                self.reads.sequence += 1;
                let sequence = self.reads.sequence;
                self.reads.asked = Some((sequence, time, std::mem::take(&mut self.reads.waiting)));
                self.core.read_index(read_context(me, sequence));
                true
            }
            Some(_) | None => false,
        }
    }

    fn on_applied(&mut self) {
        if let Some((position, data)) = self.shared.snapshot.lock().take() {
            self.core.provide_snapshot(position, data);
        }
        // Raised before the index is read: an index that is published after that finds it raised.
        let wait = !self.reads.confirmed.is_empty() || !self.outbox.backlog.is_empty();
        self.shared.reads_wait.store(wait, Ordering::SeqCst);
        let applied = self.shared.applied.load(Ordering::SeqCst);
        if applied > self.told_applied {
            self.told_applied = applied;
            self.core.applied_to(applied);
        }
        while self.reads.confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            for sender in self.reads.confirmed.pop_front().map(|(_, senders)| senders).unwrap_or_default() {
                let _ = sender.send(());
            }
        }
    }

    fn watch_leadership(&mut self, time: Instant) {
        let new = self.core.leadership();
        let changed = self.shared.leadership.send_if_modified(|(old, since)| {
            let changed = *old != new;
            if changed {
                if old.leader != new.leader {
                    *since = time;
                }
                *old = new;
            }
            changed
        });
        if changed {
            let leader = format_args!("{:x}", new.leader);
            match (new.leader, new.leads) {
                (0, _) => tracing::warn!(term = new.term, "no leader"),
                (_, true) => tracing::info!(term = new.term, "this member leads"),
                (_, false) => tracing::info!(term = new.term, %leader, "following"),
            }
            self.propose_version();
            self.retry_held(time);
        }
    }

    fn compact(&mut self, durable: u64) {
        let Some(index) = durable.checked_sub(CATCH_UP_ENTRIES) else { return };
        match self.core.compact(index) {
            Ok(()) => tracing::info!(index, "compacted the raft log"),
            Err(error) => tracing::error!(%error, "cannot compact the raft log"),
        }
    }
}

/// Tells the questions of different members, and of one member at different times, apart.
fn read_context(member: u64, sequence: u64) -> Vec<u8> {
    [member.to_be_bytes(), sequence.to_be_bytes()].concat()
}

impl Reads {
    fn confirm(&mut self, context: &[u8], index: u64) {
        let sequence = context.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        if let Some((_, _, senders)) = self.asked.take_if(|(asked, ..)| Some(*asked) == sequence) {
            self.confirmed.push_back((index, senders));
        }
    }
}
