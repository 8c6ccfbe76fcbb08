//! What one member does with the inputs of its raft thread, and with what is committed.
//!
//! Everything here is decided from values: events, the time, what the applied state says. There is no socket, no clock,
//! no thread and no randomness, so the same inputs give the same outputs: the simulator (docs/simulation.md) drives whole
//! clusters of these on virtual time. The shells are [`crate::server::driver`] and [`crate::server::apply`].
//!
//! | module | decides |
//! |---|---|
//! | here | the order of a round; leadership; compaction |
//! | [`proposals`] | which entries go into one message, and which wait for a leader |
//! | [`reads`] | when the leader is asked to confirm that it leads, and which reads that answers |
//! | [`duties`] | what a member proposes on its own |
//! | [`compaction`] | how much of the log is kept |
//! | [`backlog`] | how much may wait to be applied, and what happens when it does |
//! | [`apply`] | what applied entries lead to: answers, events, checkpoints |
//!
//! # The order of calls
//! The shell hands in everything that waits ([`Replica::propose`], [`Replica::read`], [`Replica::step`], ...), which changes
//! nothing outside; then one [`Replica::round`] sends, writes and says what follows; then it tells how far the state is
//! applied ([`Replica::applied`]), which answers reads; then it takes the [`Work`] for which the apply thread has room. It
//! comes back when there is input, or at [`Replica::next_tick`].

pub mod apply;
pub mod backlog;
pub mod compaction;
pub mod duties;
pub mod proposals;
pub mod reads;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};

use crate::complaints::{Complaints, Say};
use crate::log::LogStore;
use crate::machine::Position;
use crate::node::{Change, ChangeRefused, Core, CoreError, Leadership, Shell, Wrong};
use crate::voters::Voters;
use crate::wire::command::{Command, Envelope, RequestId};
use backlog::{Backlog, Unapplied};
use compaction::Tail;
use duties::Duties;
use proposals::Proposals;
pub use proposals::{Proposal, Refused};
pub use reads::Asker;
use reads::Reads;

/// Settings of one member.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This member's id.
    pub member: u64,
    /// Length of a tick.
    pub tick: Duration,
    /// Drawn at random at every start: no question of this start repeats one of an earlier.
    pub start: u32,
    /// The cluster version that the leader sets once.
    pub cluster_version: &'static str,
    /// How often the leader lets members compare their states; `None` for never.
    pub check_period: Option<Duration>,
    /// Entries kept in the log after a compaction, for followers a little behind.
    pub catch_up_entries: u64,
    /// How much may be committed and not applied before no more is taken: [`backlog::MAX_UNAPPLIED`].
    pub max_unapplied: Unapplied,
    /// How many nodes one entry lets expire: [`duties::EXPIRE_MOST`].
    pub expire_most: u32,
}

/// Entries kept in the log after a compaction, as etcd: see [`Settings::catch_up_entries`].
pub const CATCH_UP_ENTRIES: u64 = 5000;

/// The time, read once for a whole round.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// By the clock for timeouts, which never jumps.
    pub monotonic: Instant,
    /// By the wall clock, in nanoseconds of Unix time, for what expires.
    pub wall_ns: i64,
}

/// What is to be done with the applied state, in this order.
#[derive(Debug)]
pub enum Work {
    /// Apply these committed entries.
    Apply(Vec<Entry>),
    /// Take the state for a follower far behind, and bring it to [`Replica::provide_snapshot`].
    MakeSnapshot,
}

/// What the replica needs from outside in the middle of a round.
pub trait Outside {
    /// Puts messages on their way to other members. Must not wait; losing them is allowed.
    fn send(&mut self, messages: Vec<Message>);

    /// Carries out `before`, and then replaces the applied state by a snapshot, durably, before it returns.
    ///
    /// # Errors
    /// A text for the operator; the member stops.
    fn install(&mut self, before: VecDeque<Work>, snapshot: &Snapshot) -> Result<(), String>;

    /// When the next key of the applied state expires, in nanoseconds of Unix time, if any does. Must not wait.
    fn next_expiry(&self) -> Option<i64>;

    /// Whether the applied state says which version the cluster has. Must not wait.
    fn has_version(&self) -> bool;

    /// The next comparison of states, if there is anything to compare: [`Checks::next`](crate::machine::Checks::next).
    ///
    /// # Errors
    /// [`Busy`]: it would have to wait.
    fn check(&self) -> Result<Option<Command>, Busy>;

    /// What this member has found out about itself and the applied state does not say:
    /// [`Checks::news`](crate::machine::Checks::news).
    ///
    /// # Errors
    /// [`Busy`]: it would have to wait.
    fn news(&self) -> Result<Option<Command>, Busy>;
}

/// The applied state is being changed. A round does not wait for that, as heartbeats would too; the next tick looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What a round leads to, beside messages and writes, which have happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Proposals that are refused, by their numbers.
    pub refused: Vec<(u64, Refused)>,
    /// Who leads, if that has changed.
    pub leadership: Option<Leadership>,
}

/// One member: everything that its raft thread decides. `R` stands for whoever asked for a read.
pub struct Replica<L: LogStore, R> {
    core: Core<L>,
    settings: Settings,
    proposals: Proposals,
    reads: Reads<R>,
    duties: Duties,
    backlog: Backlog,
    leadership: Leadership,
    applied: u64,
    tail: Tail,
    complaints: Complaints<u64>,
    /// When the last round was.
    now: Instant,
    /// What waited for the state to be applied further can go on.
    again: bool,
    next_tick: Instant,
}

impl<L: LogStore, R: Asker> Replica<L, R> {
    /// A member whose state is applied up to `applied`. Reads the log, to know how large it is.
    pub fn new(core: Core<L>, applied: u64, settings: Settings, now: Instant) -> Replica<L, R> {
        let tail = Tail::measure(core.log(), applied).unwrap_or_else(|error| {
            tracing::error!(%error, "the size of the raft log is not known");
            Tail::default()
        });
        Replica {
            tail,
            reads: Reads::new(settings.member, settings.start),
            proposals: Proposals::default(),
            duties: Duties::new(&settings, now),
            backlog: Backlog::new(settings.max_unapplied, now),
            leadership: Leadership::default(),
            applied,
            complaints: Complaints::new(),
            now,
            again: false,
            next_tick: now + settings.tick,
            core,
            settings,
        }
    }

    /// When the next round is due even without input: at once, if what was applied lets something go on.
    pub fn next_tick(&self) -> Instant {
        if self.again { self.now } else { self.next_tick }
    }

    /// Who leads, as far as this member knows.
    pub fn leadership(&self) -> Leadership {
        self.core.leadership()
    }

    /// The log.
    pub fn log(&self) -> &L {
        self.core.log()
    }

    /// Takes an entry to replicate. It is proposed in the next round, together with the others.
    pub fn propose(&mut self, proposal: Proposal) {
        self.proposals.take(proposal);
    }

    /// Proposes a change of the members, in which nobody is waited for: it is done when [`Replica::voters`] says so.
    ///
    /// # Errors
    /// [`ChangeRefused`]: it has not been proposed.
    pub fn change_members(&mut self, change: &Change) -> Result<(), ChangeRefused> {
        self.core.change_members(change)
    }

    /// The configuration that is in force at this member.
    pub fn voters(&self) -> Voters {
        self.core.voters()
    }

    /// Takes a read that wants to be linearizable; [`Replica::applied`] gives it back when it is.
    pub fn read(&mut self, asker: R) {
        self.reads.take(asker);
    }

    /// Takes a message from another member. An entry that cannot be read would stop every member once it is
    /// committed, so a proposal of one must not get that far. While [too much waits to be applied](backlog) no entries
    /// are taken.
    pub fn step(&mut self, message: Message) {
        let (from, kind) = (message.from, message.get_msg_type());
        let is_proposal = kind == MessageType::MsgPropose;
        if is_proposal && message.entries.iter().any(|entry| Envelope::decode(&entry.data).is_err()) {
            self.complain(from, "it proposes what is no command");
            return;
        }
        let unapplied = self.unapplied();
        let appends = kind == MessageType::MsgAppend && !message.entries.is_empty();
        if appends && !self.backlog.takes(&message.entries, unapplied) {
            return;
        }
        if is_proposal && self.core.leadership().leads && self.backlog.is_full(unapplied) {
            if !self.backlog.keep(message) {
                tracing::debug!(from = format_args!("{from:x}"), "a proposal is dropped: applying is behind");
            }
            return;
        }
        if let Err(Wrong(why)) = self.core.step(message) {
            self.complain(from, why);
        }
    }

    /// What a peer keeps sending is not said every time. The last round is time enough for that.
    fn complain(&mut self, from: u64, why: &str) {
        if let Some(Say { held_back }) = self.complaints.admit(self.now, &from, why) {
            tracing::warn!(from = format_args!("{from:x}"), why, held_back, "raft message refused");
        }
    }

    /// Whether so much is committed and not applied that this member takes no more entries.
    pub fn is_behind(&self) -> bool {
        self.backlog.is_full(self.unapplied())
    }

    /// What is committed and not applied, here and in the queue of the apply thread.
    fn unapplied(&self) -> Unapplied {
        Unapplied {
            entries: self.tail.last().saturating_sub(self.applied),
            bytes: self.tail.bytes_after(self.applied),
        }
    }

    /// Another member could not be reached.
    pub fn report_unreachable(&mut self, id: u64) {
        self.core.report_unreachable(id);
    }

    /// How the sending of a snapshot ended.
    pub fn report_snapshot(&mut self, to: u64, sent: bool) {
        self.core.report_snapshot(to, sent);
    }

    /// Hands leadership to the member that has most of the log, of all or `among` some, if this one leads.
    pub fn hand_over(&mut self, among: Option<&[u64]>) {
        if let Some(to) = self.core.hand_over(among) {
            tracing::info!(to = format_args!("{to:x}"), "handing leadership over");
        }
    }

    /// The image on disk stands at `durable`: the log before it can go, but for what followers may still want.
    pub fn durable(&mut self, durable: u64) {
        let index = self.tail.upto(durable, self.settings.catch_up_entries, self.core.needed_after());
        self.compact(index);
    }

    /// As [`Replica::durable`] where the disk is low: what only might be of use goes too, and room that was kept for later.
    pub fn shrink(&mut self, durable: u64) {
        self.compact(self.tail.upto_when_low(durable, self.core.needed_after()));
        self.core.shrink();
    }

    /// Never beyond what raft knows to be applied: an election looks at what follows that.
    fn compact(&mut self, index: u64) {
        let index = index.min(self.applied);
        if index <= self.core.log().truncated().index {
            return;
        }
        match self.core.compact(index) {
            Ok(()) => {
                self.tail.forget(index);
                let (entries, bytes) = (self.tail.last().saturating_sub(index), self.tail.bytes_after(index));
                tracing::info!(index, entries, bytes, "compacted the raft log; what it keeps");
            }
            Err(error) => tracing::error!(%error, "cannot compact the raft log"),
        }
    }

    /// From where on the log counts towards the next checkpoint, and what it holds after that: see [`apply::Applying`].
    pub fn log_since_checkpoint(&self) -> (u64, u64) {
        let truncated = self.core.log().truncated().index;
        let index = self.applied.min(truncated + self.settings.catch_up_entries);
        (index, self.tail.bytes_after(truncated).saturating_sub(compaction::CATCH_UP_BYTES))
    }

    /// Index of the snapshot that was brought last, while followers may be sent it.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.core.snapshot_index()
    }

    /// Brings the snapshot that [`Work::MakeSnapshot`] asked for: the state at `position`. The messages to followers
    /// carry `data`, which may be empty where the state goes another way.
    pub fn provide_snapshot(&mut self, position: Position, data: Vec<u8>) {
        self.core.provide_snapshot(position, data);
    }

    /// Carries out what is due: proposes what was taken, ticks, asks, sends, writes.
    ///
    /// # Errors
    /// [`CoreError`]; the member must stop.
    pub fn round(&mut self, now: Now, outside: &mut impl Outside) -> Result<Outcome, CoreError> {
        let mut refused = Vec::new();
        self.now = now.monotonic;
        self.backlog.settle();
        self.propose_version(outside);
        let behind = self.is_behind();
        if !behind || !self.core.leadership().leads {
            // A member that no longer leads passes them on to the one that does.
            for proposal in self.backlog.take_kept() {
                self.step(proposal);
            }
        }
        if !behind {
            refused.extend(self.proposals.propose_fresh(&mut self.core, now.monotonic));
        }
        if now.monotonic >= self.next_tick {
            // After a pause of the whole process one tick is enough: others' messages come first.
            self.next_tick = now.monotonic + self.settings.tick;
            self.core.tick();
            if !behind {
                refused.extend(self.proposals.retry_held(&mut self.core, now.monotonic));
            }
            self.propose_duties(now, outside);
            self.leave_if_stuck();
        } else if self.again {
            self.propose_expiry(now, outside);
        }
        self.again = false;
        let before = self.leadership;
        // An answered question makes room for the next, which is asked in the same round; and what waited for a leader
        // goes out as soon as there is one.
        loop {
            let busy = self.reads.ask(&mut self.core, now.monotonic) | self.process(outside)?;
            if self.watch_leadership() {
                self.propose_version(outside);
                refused.extend(self.proposals.retry_held(&mut self.core, now.monotonic));
            } else if !busy {
                break;
            }
        }
        if let Some(wanted) = self.core.wanted_snapshot() {
            tracing::info!(at_least = wanted.index, "a follower is far behind: making a snapshot");
            self.backlog.work.push_back(Work::MakeSnapshot);
        }
        let leadership = (self.leadership != before).then_some(self.leadership);
        Ok(Outcome { refused, leadership })
    }

    /// Whether something waits until more is applied: whoever applies must then see to another round.
    pub fn waits_for_apply(&self) -> bool {
        let held_up = !self.backlog.work.is_empty() || self.is_behind();
        held_up || self.reads.wait_for_apply() || self.duties.is_expiring()
    }

    /// The state is applied up to `index`. Returns the reads that are linearizable now.
    pub fn applied(&mut self, index: u64) -> Vec<R> {
        if index > self.applied {
            let behind = self.is_behind();
            self.applied = index;
            self.core.applied_to(index);
            self.again |= (behind && !self.is_behind()) || self.duties.is_expiring();
        }
        self.reads.done(index)
    }

    /// The next work for the apply thread.
    pub fn next_work(&mut self) -> Option<Work> {
        self.backlog.work.pop_front()
    }

    /// Takes back work for which there was no room after all; it is the next again.
    pub fn no_room_for(&mut self, work: Work) {
        self.backlog.work.push_front(work);
    }

    /// Returns whether there was anything to do.
    fn process(&mut self, outside: &mut impl Outside) -> Result<bool, CoreError> {
        let mut ordered = Ordered { outside, backlog: &mut self.backlog.work };
        let Some(effects) = self.core.process(&mut ordered)? else { return Ok(false) };
        for read in effects.reads {
            self.reads.confirm(&read.request_ctx, read.index);
        }
        for entry in &effects.committed {
            self.tail.push(entry.index, compaction::entry_bytes(&entry.data));
        }
        if !effects.committed.is_empty() {
            self.backlog.work.push_back(Work::Apply(effects.committed));
        }
        Ok(true)
    }

    /// Returns whether it has changed.
    fn watch_leadership(&mut self) -> bool {
        let new = self.core.leadership();
        let changed = new != self.leadership;
        if changed {
            self.leadership = new;
            self.duties.forget();
        }
        changed
    }

    /// A leader that takes no proposals because its state does not move on is none: others can.
    fn leave_if_stuck(&mut self) {
        let behind = self.is_behind();
        let stuck = self.backlog.is_stuck(behind, self.applied, self.now, self.settings.tick);
        if stuck && self.core.leadership().leads {
            tracing::warn!(
                applied = self.applied,
                "applying stands still; is the disk of the state stalled?"
            );
            self.hand_over(None);
        }
    }

    /// What is proposed at a tick, most of it by a leader.
    fn propose_duties(&mut self, now: Now, outside: &impl Outside) {
        if let Some(command) = self.duties.news(now, || outside.news()) {
            self.propose_own(command);
        }
        self.propose_expiry(now, outside);
        if !self.core.leadership().leads || self.is_behind() {
            return;
        }
        if let Some(command) = self.duties.check(now, || outside.check()) {
            self.propose_own(command);
        }
    }

    /// The leader lets keys expire.
    fn propose_expiry(&mut self, now: Now, outside: &impl Outside) {
        if !self.core.leadership().leads || self.is_behind() {
            return;
        }
        let Some(command) = self.duties.expire(now, self.applied, outside.next_expiry()) else { return };
        let Command::Expire { now_ns, .. } = command else { return };
        if self.propose_own(command) {
            self.duties.expires_at(self.core.last_index(), now_ns);
        }
    }

    /// The leader sets the cluster version, once; at the start of its term, so that the first write of a user comes
    /// after it, as in etcd.
    fn propose_version(&mut self, outside: &impl Outside) {
        if !self.core.leadership().leads {
            return;
        }
        if let Some(command) = self.duties.version(|| outside.has_version())
            && self.propose_own(command)
        {
            self.duties.version_is_proposed();
        }
    }

    /// Proposes something that nobody waits for: its number is no waiter's. Returns whether raft took it.
    fn propose_own(&mut self, command: Command) -> bool {
        let id = RequestId { member: 0, number: 0 };
        self.core.propose([Bytes::from(Envelope { id, command }.encode())]).is_ok()
    }
}

/// What the core sees of the outside: a snapshot comes after all the work that was there before it.
struct Ordered<'a, O> {
    outside: &'a mut O,
    backlog: &'a mut VecDeque<Work>,
}

impl<O: Outside> Shell for Ordered<'_, O> {
    fn send(&mut self, messages: Vec<Message>) {
        self.outside.send(messages);
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        self.outside.install(std::mem::take(self.backlog), snapshot)
    }
}

#[cfg(test)]
mod tests;
