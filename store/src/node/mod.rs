//! Drives the `raft` crate: messages, ticks and proposals in, ordered effects out.
//!
//! This is the only module that knows `raft`'s state machine. It owns the log through [`LogStore`] and
//! reaches nothing else: no socket, no clock, no thread. [`Core::process`] keeps the order that Raft's
//! safety rests on:
//!
//! 1. messages that depend on nothing new leave (a leader's appends: followers persist while it does),
//! 2. entries and hard state are written and synced,
//! 3. messages that depend on them leave,
//! 4. committed entries and confirmed reads are handed on.

mod change;
mod logger;
mod refuse;
mod start;
mod storage;

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, ReadState, SnapshotStatus, StateRole};

pub use change::{Change, ChangeRefused, Step};
use logger::Warnings;
use refuse::Stand;
pub use start::{Fit, Misfit, fit};
use storage::RaftStorage;
pub use storage::SnapshotRequest;

use crate::log::{LogError, LogStore};
use crate::machine::Position;
use crate::voters::Voters;

/// Settings of one member.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Its id.
    pub id: u64,
    /// Ticks without a leader before an election; at least five times `heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Fixes the election timeout for replayable runs: it is drawn from these ticks and one more.
    pub fixed_election_ticks: Option<usize>,
}

/// Largest append message.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;
/// Append messages on their way to one follower.
const MAX_IN_FLIGHT: usize = 256;
/// Entries that a leader takes before they are committed.
const MAX_UNCOMMITTED_BYTES: u64 = 64 << 20;
/// Entries handed on at once.
const MAX_COMMITTED_BYTES: u64 = 16 << 20;

/// Why the core cannot go on. Both stop the member.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The raft crate refused its own input.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// Log and applied state do not belong together.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// A committed entry is no change of the members although it says so.
    #[error("raft entry {0} should change the members and cannot be read; the raft log is damaged")]
    Change(u64),
    /// A snapshot could not be taken over.
    #[error("taking over a snapshot: {0}")]
    Install(String),
}

/// What [`Core::process`] needs done on the way.
pub trait Shell {
    /// Puts messages on their way to other members. Must not wait; losing them is allowed.
    fn send(&mut self, messages: Vec<Message>);

    /// Replaces the applied state by a snapshot, durably, before it returns.
    ///
    /// # Errors
    /// A text for the operator; the member stops.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), String>;
}

/// A proposal that could not even be sent: there is no leader, or it has too much to do. It is safe to try
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped;

/// Why a message from another member is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong(pub &'static str);

/// Who leads, as far as this member knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader's id; 0 if none is known.
    pub leader: u64,
    /// Whether this member leads.
    pub leads: bool,
    /// The term.
    pub term: u64,
}

/// What one round of [`Core::process`] gives, in the order in which it must be carried out.
#[derive(Debug, Default)]
pub struct Effects {
    /// Entries to apply, in order. One that changes the members has the configuration that this led to as its context
    /// ([`Voters::decode`]), or none if it changed nothing.
    pub committed: Vec<Entry>,
    /// Reads that are linearizable once the entry at their index is applied.
    pub reads: Vec<ReadState>,
}

/// One member of the group.
pub struct Core<L: LogStore> {
    raw: RawNode<RaftStorage<L>>,
    warnings: Arc<Warnings>,
}

impl<L: LogStore> Core<L> {
    /// A member whose applied state stands at `applied`, in the configuration that this state has. One that is to join
    /// has the empty one until it is sent a snapshot.
    ///
    /// # Errors
    /// [`CoreError`] if the log does not go with the applied state.
    pub fn new(
        config: &CoreConfig,
        voters: impl Into<Voters>,
        applied: Position,
        mut log: L,
    ) -> Result<Core<L>, CoreError> {
        match fit(&log, applied)? {
            Fit::Continues if log.installing().is_some() => log.mark_install(None)?,
            Fit::Continues => {}
            Fit::Begins => log.reset(applied, None)?,
        }
        let fixed = config.fixed_election_ticks;
        let raft_config = Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: applied.index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: fixed.unwrap_or(0),
            max_election_tick: fixed.map_or(0, |ticks| ticks + 1),
            read_only_option: ReadOnlyOption::Safe,
            batch_append: true,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            ..Config::default()
        };
        let storage = RaftStorage::new(log, change::to_conf_state(&voters.into()), applied);
        let warnings = Arc::new(Warnings::default());
        let raw = RawNode::new(&raft_config, storage, &logger::to_tracing(config.id, &warnings))?;
        Ok(Core { raw, warnings })
    }

    /// One tick of time has passed.
    pub fn tick(&mut self) {
        self.warnings.tick();
        self.raw.tick();
        let in_use =
            self.raw.raft.prs().iter().any(|(_, progress)| progress.state == ProgressState::Snapshot);
        self.raw.mut_store().tick(in_use);
    }

    /// Takes a message from another member. What is wrong with it is the sender's affair.
    ///
    /// # Errors
    /// [`Wrong`] if no correct member sends it: it is ignored, and worth a word in the log, but not one for each.
    pub fn step(&mut self, message: Message) -> Result<(), Wrong> {
        if let Some(why) = self.wrong_with(&message) {
            return Err(Wrong(why));
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, "raft message ignored");
        }
        Ok(())
    }

    fn wrong_with(&self, message: &Message) -> Option<&'static str> {
        let raft = &self.raw.raft;
        let stand = Stand {
            term: raft.term,
            leads: raft.state == StateRole::Leader,
            committed: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            term_of: &|index| raft.raft_log.term(index).unwrap_or(0),
        };
        refuse::wrong_with(message, &stand)
    }

    /// Proposes entries, all in one message; a follower passes it on to the leader.
    ///
    /// # Errors
    /// [`Dropped`]: none of them has been proposed.
    pub fn propose(&mut self, entries: impl IntoIterator<Item = Bytes>) -> Result<(), Dropped> {
        if self.leadership().leader == 0 {
            return Err(Dropped);
        }
        let entries = entries.into_iter().map(|data| Entry { data, ..Entry::default() });
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(entries.collect::<Vec<_>>().into());
        self.raw.step(message).map_err(|_| Dropped)
    }

    /// Proposes a change of the members. It takes effect when it is applied.
    ///
    /// # Errors
    /// [`ChangeRefused`]: it has not been proposed.
    pub fn change_members(&mut self, change: &Change) -> Result<(), ChangeRefused> {
        if !self.leadership().leads {
            return Err(ChangeRefused::NotLeader);
        }
        if self.raw.raft.has_pending_conf() {
            return Err(ChangeRefused::Pending);
        }
        let change = change.to_raft();
        change::check(self.raw.raft.prs(), &change)?;
        let proposed = self.raw.propose_conf_change(Vec::new(), change);
        proposed.map_err(|error| ChangeRefused::Invalid(error.to_string()))
    }

    /// The configuration that is in force.
    pub fn voters(&self) -> Voters {
        change::from_conf_state(&self.raw.raft.prs().conf().to_conf_state())
    }

    /// Asks the leader to confirm that it still leads; the answer comes as a [`ReadState`] with this context,
    /// or never: ask again.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Starts an election now.
    pub fn campaign(&mut self) {
        if let Err(error) = self.raw.campaign() {
            tracing::debug!(%error, "no campaign");
        }
    }

    /// Hands leadership to the follower that has the most of the log, of all or `among` some. Returns whom, if there is one.
    pub fn hand_over(&mut self, among: Option<&[u64]>) -> Option<u64> {
        if !self.leadership().leads {
            return None;
        }
        let (me, members) = (self.raw.raft.id, self.raw.raft.prs());
        let fits = |id: &u64| {
            *id != me
                && members.conf().voters().contains(*id)
                && among.is_none_or(|wanted| wanted.contains(id))
        };
        let fitting = members.iter().filter(|(id, _)| fits(id));
        let (&to, _) = fitting.max_by_key(|(_, progress)| (progress.recent_active, progress.matched))?;
        self.raw.transfer_leader(to);
        Some(to)
    }

    /// Another member could not be reached.
    pub fn report_unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// How the sending of a snapshot ended.
    pub fn report_snapshot(&mut self, id: u64, sent: bool) {
        self.raw.report_snapshot(id, if sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Who leads.
    pub fn leadership(&self) -> Leadership {
        let raft = &self.raw.raft;
        Leadership { leader: raft.leader_id, leads: raft.state == StateRole::Leader, term: raft.term }
    }

    /// The log.
    pub fn log(&self) -> &L {
        &self.raw.store().log
    }

    /// Index of the last entry, written or not.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Whether a follower needs a snapshot that nobody has made yet.
    pub fn wanted_snapshot(&mut self) -> Option<SnapshotRequest> {
        self.raw.mut_store().take_request()
    }

    /// The last entry that every follower has, of those that are there or are being sent a snapshot: what comes after is
    /// still needed. `None` if there is none, or this member does not lead.
    pub fn needed_after(&self) -> Option<u64> {
        let me = self.raw.raft.id;
        let followers = self.raw.raft.prs().iter().filter(|(id, _)| self.leadership().leads && **id != me);
        let needed = followers.filter_map(|(_, progress)| match progress.state {
            ProgressState::Snapshot => Some(progress.pending_snapshot),
            ProgressState::Replicate => Some(progress.matched),
            ProgressState::Probe => progress.recent_active.then_some(progress.matched),
        });
        needed.min()
    }

    /// Index of the snapshot that was provided, while followers may be sent it.
    pub fn snapshot_index(&self) -> Option<u64> {
        self.raw.store().snapshot_index()
    }

    /// Provides the snapshot that was wanted: the applied state at `position`. The messages to followers carry `data`,
    /// which may be empty where the state goes another way.
    pub fn provide_snapshot(&mut self, position: Position, data: Vec<u8>) {
        self.raw.mut_store().provide(position, data);
    }

    /// Drops entries up to `index`, keeping some for followers that are a little behind. The applied state up
    /// to `index` must be durable.
    ///
    /// # Errors
    /// [`CoreError`].
    pub fn compact(&mut self, index: u64) -> Result<(), CoreError> {
        Ok(self.raw.mut_store().compact(index)?)
    }

    /// Gives back room that the log keeps for later: the disk is low.
    pub fn shrink(&mut self) {
        self.raw.mut_store().shrink();
    }

    /// Carries out what is due, in the order that the module's text gives. Returns `None` when nothing is due.
    ///
    /// # Errors
    /// [`CoreError`]; the member must stop.
    pub fn process(&mut self, shell: &mut impl Shell) -> Result<Option<Effects>, CoreError> {
        if !self.raw.has_ready() {
            return Ok(None);
        }
        let mut ready = self.raw.ready();
        self.send(shell, ready.take_messages());
        let mut installed = None;
        let mut effects = Effects { reads: ready.take_read_states(), ..Effects::default() };
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let must_sync = ready.must_sync();
        if *ready.snapshot() != Snapshot::default() {
            let snapshot = ready.snapshot().clone();
            let meta = snapshot.get_metadata();
            let position = Position { index: meta.index, term: meta.term };
            // The applied state before the log: see `start`.
            self.raw.mut_store().announce(position)?;
            shell.install(&snapshot).map_err(CoreError::Install)?;
            installed = Some(position.index);
            self.raw.mut_store().install(position, meta.get_conf_state().clone(), hard_state.as_ref())?;
        }
        let store = self.raw.mut_store();
        if !entries.is_empty() || hard_state.is_some() {
            store.log.append(entries, hard_state.as_ref(), must_sync)?;
        }
        self.send(shell, ready.take_persisted_messages());
        effects.committed = ready.take_committed_entries();
        let mut light = self.raw.advance_append(ready);
        self.send(shell, light.take_messages());
        if let Some(index) = installed {
            self.applied_to(index);
        }
        effects.committed.extend(light.take_committed_entries());
        for entry in &mut effects.committed {
            self.reconfigure(entry)?;
        }
        Ok(Some(effects))
    }

    /// Carries out a change of the members that is committed, before any entry after it is.
    fn reconfigure(&mut self, entry: &mut Entry) -> Result<(), CoreError> {
        entry.context.clear();
        if entry.get_entry_type() == EntryType::EntryNormal {
            return Ok(());
        }
        let change = change::decode(&entry.data).ok_or(CoreError::Change(entry.index))?;
        match self.raw.apply_conf_change(&change) {
            Ok(conf_state) => {
                let voters = change::from_conf_state(&conf_state);
                tracing::info!(index = entry.index, ?voters, "the members have changed");
                entry.context = voters.encode().into();
                self.raw.mut_store().reconfigured(entry.index, conf_state);
            }
            // The same on every member, for it follows from the configuration before.
            Err(error) => tracing::warn!(index = entry.index, %error, "the members stay as they are"),
        }
        if self.leadership().leads && !self.raw.raft.promotable() {
            // The crate leaves this to us. Those who are left elect a leader of their own.
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, 0);
        }
        Ok(())
    }

    /// Tells raft how far the applied state stands.
    pub fn applied_to(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
    }

    fn send(&self, shell: &mut impl Shell, mut messages: Vec<Message>) {
        for message in &mut messages {
            self.mend_append(message);
        }
        if !messages.is_empty() {
            shell.send(messages);
        }
    }

    /// Puts the beginning of an append right. The raft crate adds entries to an append that has not left yet, and if that
    /// one had none so far it does not look whether they follow on it. A follower would take them for later ones,
    /// and say that it has entries which it does not have.
    fn mend_append(&self, message: &mut Message) {
        let Some(first) = message.entries.first().map(|entry| entry.index) else { return };
        if message.get_msg_type() == MessageType::MsgAppend && first != message.index + 1 {
            let before = first.saturating_sub(1);
            match self.raw.raft.raft_log.term(before) {
                Ok(term) if term > 0 || before == 0 => (message.index, message.log_term) = (before, term),
                // Without entries it is a probe, which is right.
                _ => message.entries.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
