//! The image thread: what changed in memory goes to disk in batches, apart from the path of a request.
//!
//! The image may be as old as it likes, for the raft log holds what it lacks. Only before the log is compacted
//! must it be durable: that is a checkpoint.
//!
//! A write that fails, because the disk is full or bad, does not end the member: nothing is lost, for the log keeps what the
//! image lacks, and `/health` says it. What was not written goes with the next changes. Where that cannot be, after a sync
//! that failed or when there is too much of it, the whole state is written anew, beside the old image. So it is when the
//! changes have grown; if that fails, changes go on being added to the old image.
//!
//! When the disk is low (see `space`), or there will soon be no room for another image, this is what the member can do about
//! it: what changed is made durable at once, and the log is told to keep no more than it must.

mod pause;
mod unwritten;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use self::pause::Pause;
use self::unwritten::Unwritten;
use super::driver::Input;
use super::handle::{Shared, now};
use crate::machine::Machine;
use crate::state::{Delta, Identity, StateError, StateStore};

/// Jobs that may wait for the image thread.
pub const JOB_QUEUE: usize = 8;
/// How often changes are written. Longer means that more changes of one key, and more events that have left the
/// history again, cost nothing; a restart applies what came since from the log.
const PERIOD: Duration = Duration::from_secs(3);
/// The same where room is short.
const SHORT_PERIOD: Duration = Duration::from_millis(500);
/// How often it is tried to take over a snapshot for which there is no room.
const INSTALL_PAUSE: Duration = Duration::from_secs(1);

/// What the image thread is told.
pub enum Job {
    /// Write what changed, and say so.
    Write(SyncSender<()>),
    /// Write what changed, make it durable, and tell the raft thread up to where.
    Checkpoint,
    /// Replace the whole image by this state, durably, then show it to everyone, and say so.
    Replace(Box<Machine>, SyncSender<()>),
}

/// Everything the image thread owns.
pub struct Imager<S> {
    state: S,
    identity: Identity,
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    inputs: SyncSender<Input>,
    /// The tree's index that the image stands at.
    written: u64,
    /// The raft index that the image stands at.
    applied: u64,
    /// The raft index up to which the image is durable for certain, and what of it the raft thread has been told.
    durable: u64,
    told: u64,
    /// A checkpoint was asked for and has not been made.
    owed: bool,
    /// What has changed beyond `written`, as far as the tree does not remember it.
    unwritten: Unwritten,
    /// Before changes are written again.
    changes_pause: Pause,
    /// Before everything is written again.
    whole_pause: Pause,
    /// How much room there was when this was last looked at.
    room: Scarcity,
    /// A new image could not be written for another reason than want of room; changes go on.
    whole_fault: bool,
}

/// How scarce room on the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scarcity {
    /// It is not.
    Enough,
    /// There may soon be no room for another image.
    Tight,
    /// There is an alarm.
    Alarm,
}

impl<S: StateStore> Imager<S> {
    /// An image thread's things, for an image that holds what is in `shared`.
    pub fn new(
        state: S,
        identity: Identity,
        shared: Arc<Shared>,
        jobs: Receiver<Job>,
        inputs: SyncSender<Input>,
    ) -> Imager<S> {
        let (written, applied) = {
            let machine = shared.machine.read();
            (machine.tree.index(), machine.applied.index)
        };
        Imager {
            state,
            identity,
            shared,
            jobs,
            inputs,
            written,
            applied,
            durable: 0,
            told: 0,
            owed: false,
            unwritten: Unwritten::default(),
            changes_pause: Pause::default(),
            whole_pause: Pause::default(),
            room: Scarcity::Enough,
            whole_fault: false,
        }
    }

    /// Runs until the apply thread is gone; writes what is left then.
    ///
    /// # Errors
    /// [`StateError`] if a snapshot from the leader cannot be put on disk, and not for want of room; the member must end.
    pub fn run(mut self) -> Result<(), StateError> {
        loop {
            match self.jobs.recv_timeout(if self.is_short() { SHORT_PERIOD } else { PERIOD }) {
                Ok(Job::Write(done)) => {
                    self.write(false);
                    let _ = done.send(());
                }
                Ok(Job::Checkpoint) => self.checkpoint(),
                Ok(Job::Replace(machine, done)) => {
                    if !self.install(*machine)? {
                        return Ok(());
                    }
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.write(false);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.settle();
        }
        self.checkpoint();
        Ok(())
    }

    /// On disk first: a crash at any point leaves the old state or the new one, each whole. Without room for it this
    /// waits: the leader has been told that the state has arrived, and the old one is of no use any more. Returns whether
    /// it is done; otherwise the member stops.
    fn install(&mut self, mut machine: Machine) -> Result<bool, StateError> {
        machine.tree.take_dirty();
        let whole = machine.freeze();
        while let Err(error) = self.state.replace(self.identity, &whole) {
            if !error.is_full() {
                return Err(error);
            }
            if self.shared.room.hold(Some(error.to_string())) {
                tracing::error!(%error, "cannot take over a snapshot; waiting for room on the disk");
            }
            if !self.shared.room.wait(INSTALL_PAUSE) {
                return Ok(false);
            }
        }
        self.shared.room.hold(None);
        self.is_written(whole.tree().index(), whole.applied().index);
        let old = {
            let mut shown = self.shared.machine.write();
            // Watchers may have missed events: ending their watches makes them look again.
            self.shared.hub.lock().clear();
            std::mem::replace(&mut *shown, machine)
        };
        // Taking a large state apart takes a while, and nobody is to wait for that.
        drop(old);
        Ok(true)
    }

    /// Does what is due, whatever happened last: what was owed, what makes room, and a new image.
    fn settle(&mut self) {
        let room = match (self.shared.room.is_low(), self.state.usage().is_tight()) {
            (true, _) => Scarcity::Alarm,
            (false, true) => Scarcity::Tight,
            (false, false) => Scarcity::Enough,
        };
        let before = std::mem::replace(&mut self.room, room);
        if (room == Scarcity::Alarm) != (before == Scarcity::Alarm) {
            self.changes_pause.hurry(now());
            self.whole_pause.hurry(now());
        }
        if self.is_short() && before == Scarcity::Enough {
            // The log is to keep less now.
            self.told = 0;
        }
        if self.owed || self.is_short() && self.shared.applied.load(Ordering::SeqCst) > self.durable {
            self.checkpoint();
        }
        let is_due = !self.takes_changes() || self.state.usage().is_image_due();
        if is_due && self.whole_pause.is_over(now()) {
            self.write_whole();
        }
        self.tell();
    }

    /// Whether room is short, and the log to keep no more than it must. So it is long before there is an alarm: what the log
    /// keeps for followers is then the room that a new image needs.
    fn is_short(&self) -> bool {
        self.room != Scarcity::Enough
    }

    /// Writes what changed and makes it durable. What cannot be written does not keep the rest from being made durable.
    fn checkpoint(&mut self) {
        self.owed = !self.write(true);
        if self.state.takes_changes() && self.applied > self.durable {
            match self.state.sync() {
                Ok(()) => self.durable = self.applied,
                Err(error) => {
                    self.owed = true;
                    self.changes_failed(&error);
                }
            }
        }
        self.tell();
    }

    /// Tells the raft thread how far the image is durable. If that is too busy to hear it, it is told later.
    fn tell(&mut self) {
        let input = if self.is_short() { Input::Shrink(self.durable) } else { Input::Durable(self.durable) };
        if self.durable > self.told && self.inputs.try_send(input).is_ok() {
            self.told = self.durable;
        }
    }

    /// Whether what changed is enough; otherwise everything has to be written.
    fn takes_changes(&self) -> bool {
        self.state.takes_changes() && !self.unwritten.are_too_many()
    }

    /// Writes what changed; returns whether the image then stands where the state stood. Entries without effect (a new
    /// leader's) move the image only with `always`.
    fn write(&mut self, always: bool) -> bool {
        let is_due = self.takes_changes() && self.changes_pause.is_over(now());
        let delta = {
            let mut machine = self.shared.machine.write();
            let tree = &mut machine.tree;
            let changed = tree.index() != self.written || tree.dirty_len() > 0 || !self.unwritten.is_empty();
            if !always && !changed {
                return true;
            }
            if !is_due {
                self.unwritten.add(tree.take_dirty());
                return false;
            }
            Delta::take(&mut machine, self.written).with(self.unwritten.take())
        };
        match self.state.write(&delta) {
            Ok(()) => {
                self.written = delta.whole().tree().index();
                self.applied = delta.whole().applied().index;
                self.changes_pause.succeed();
                if !self.whole_fault {
                    *self.shared.image_fault.lock() = None;
                }
                true
            }
            Err(error) => {
                self.unwritten.add(delta.into_paths());
                self.changes_failed(&error);
                false
            }
        }
    }

    /// Writes everything. The state stands still for it without a copy, and the member goes on.
    fn write_whole(&mut self) {
        let whole = {
            let mut machine = self.shared.machine.write();
            self.unwritten.add(machine.tree.take_dirty());
            machine.freeze()
        };
        match self.state.replace(self.identity, &whole) {
            Ok(()) => {
                if self.whole_pause.has_failed() || self.changes_pause.has_failed() {
                    let raft_index = whole.applied().index;
                    tracing::info!(raft_index, "the image of the applied state is written again");
                }
                self.is_written(whole.tree().index(), whole.applied().index);
            }
            Err(error) => self.whole_failed(&error),
        }
    }

    /// Everything is durable up to here.
    fn is_written(&mut self, tree_index: u64, raft_index: u64) {
        (self.written, self.applied, self.durable) = (tree_index, raft_index, raft_index);
        self.owed = false;
        self.unwritten.clear();
        self.changes_pause.succeed();
        self.whole_pause.succeed();
        self.whole_fault = false;
        *self.shared.image_fault.lock() = None;
    }

    fn changes_failed(&mut self, error: &StateError) {
        let pause = self.changes_pause.fail(now());
        self.report(error, pause);
    }

    fn whole_failed(&mut self, error: &StateError) {
        let pause = self.whole_pause.fail(now());
        self.whole_fault = !error.is_full();
        if self.takes_changes() && error.is_full() {
            tracing::warn!(
                %error,
                again_in = ?pause,
                "cannot write a new image of the applied state; changes are added to the old one; see to room on the disk"
            );
        } else {
            self.report(error, pause);
        }
    }

    fn report(&self, error: &StateError, pause: Duration) {
        tracing::error!(
            %error,
            again_in = ?pause,
            "cannot write the image of the applied state; nothing is lost, the raft log keeps what it lacks; see to room on \
             the disk"
        );
        *self.shared.image_fault.lock() = Some(error.to_string());
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
