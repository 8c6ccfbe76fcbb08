//! The image thread: what changed in memory goes to disk in batches, apart from the path of a request.
//!
//! The image may be as old as it likes, for the raft log holds what it lacks. Only before the log is compacted
//! must it be durable: that is a checkpoint.
//!
//! A write that fails, because the disk is full or bad, does not end the member: nothing is lost, for the log is not
//! compacted meanwhile, and `/health` says it. After a while the whole state is written anew beside the old image, which no
//! more is written to; until then what changed need not be remembered.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::driver::Input;
use super::handle::{Shared, now};
use crate::machine::Machine;
use crate::state::{Delta, Identity, StateError, StateStore};

/// Jobs that may wait for the image thread.
pub const JOB_QUEUE: usize = 8;
/// How often changes are written. Longer means that more changes of one key, and more events that have left the
/// history again, cost nothing; a restart applies what came since from the log.
const PERIOD: Duration = Duration::from_secs(3);

/// The longest pause between two attempts to write the image anew; the first is [`PERIOD`].
const MAX_PAUSE: Duration = Duration::from_secs(60);

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
    /// The image.
    pub state: S,
    /// Whose it is.
    pub identity: Identity,
    /// The shared state.
    pub shared: Arc<Shared>,
    /// Where jobs come from.
    pub jobs: Receiver<Job>,
    /// The raft thread.
    pub inputs: SyncSender<Input>,
    /// The tree's index that the image stands at.
    pub written: u64,
    /// The raft index that the image stands at.
    pub applied: u64,
    /// Since a write has failed: when it is to be written anew.
    pub retry: Option<Retry>,
}

/// When to try again.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    at: Instant,
    pause: Duration,
}

impl<S: StateStore> Imager<S> {
    /// Runs until the apply thread is gone; writes what is left then.
    ///
    /// # Errors
    /// [`StateError`] if a snapshot from the leader cannot be put on disk; the member must end.
    pub fn run(mut self) -> Result<(), StateError> {
        loop {
            match self.jobs.recv_timeout(PERIOD) {
                Ok(Job::Write(done)) => {
                    self.write(false);
                    let _ = done.send(());
                }
                Ok(Job::Checkpoint) => {
                    if let Some(index) = self.checkpoint() {
                        // If the raft thread is too busy to hear it, the next checkpoint tells it.
                        let _ = self.inputs.try_send(Input::Durable(index));
                    }
                }
                Ok(Job::Replace(machine, done)) => {
                    self.replace(*machine)?;
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.write(false);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.checkpoint();
        Ok(())
    }

    /// On disk first: a crash at any point leaves the old state or the new one, each whole.
    fn replace(&mut self, mut machine: Machine) -> Result<(), StateError> {
        self.state.replace(self.identity, &machine.freeze())?;
        machine.tree.take_dirty();
        self.written = machine.tree.index();
        self.applied = machine.applied.index;
        self.succeeded();
        let mut shown = self.shared.machine.write();
        *shown = machine;
        // Watchers may have missed events: ending their watches makes them look again.
        self.shared.hub.lock().clear();
        Ok(())
    }

    /// Writes what changed and makes it durable; returns the raft index that it then stands at.
    fn checkpoint(&mut self) -> Option<u64> {
        let index = self.write(true)?;
        match self.state.sync() {
            Ok(()) => Some(index),
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Writes what changed; returns the raft index that the image then stands at, if that worked. Entries without
    /// effect (a new leader's) move the image only with `always`.
    fn write(&mut self, always: bool) -> Option<u64> {
        if self.shared.room.is_low() {
            // The log holds it, and what room is left is the log's.
            return None;
        }
        if let Some(retry) = self.retry {
            return self.write_anew(retry);
        }
        let delta = {
            let mut machine = self.shared.machine.write();
            if !always && machine.tree.index() == self.written && machine.tree.dirty_len() == 0 {
                return Some(self.applied);
            }
            Delta::take(&mut machine, self.written)
        };
        match self.state.write(&delta) {
            Ok(()) => {
                self.written = delta.whole().tree().index();
                self.applied = delta.whole().applied().index;
                if self.state.has_grown() { self.write_whole() } else { Some(self.applied) }
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// After a failure: writes everything, when it is time.
    fn write_anew(&mut self, retry: Retry) -> Option<u64> {
        if now() < retry.at {
            self.shared.machine.write().tree.take_dirty();
            return None;
        }
        let written = self.write_whole();
        if let Some(raft_index) = written {
            tracing::info!(raft_index, "the image of the applied state is written again");
        }
        written
    }

    /// Writes everything. The state stands still for it without a copy, and the member goes on.
    fn write_whole(&mut self) -> Option<u64> {
        let whole = {
            let mut machine = self.shared.machine.write();
            machine.tree.take_dirty();
            machine.freeze()
        };
        match self.state.replace(self.identity, &whole) {
            Ok(()) => {
                self.written = whole.tree().index();
                self.applied = whole.applied().index;
                self.succeeded();
                Some(self.applied)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn failed(&mut self, error: &StateError) {
        let pause = self.retry.map_or(PERIOD, |retry| MAX_PAUSE.min(retry.pause * 2));
        self.retry = Some(Retry { at: now() + pause, pause });
        tracing::error!(
            %error,
            again_in = ?pause,
            "cannot write the image of the applied state; nothing is lost, the raft log keeps what it lacks; see to room on \
             the disk"
        );
        *self.shared.image_fault.lock() = Some(error.to_string());
    }

    fn succeeded(&mut self) {
        self.retry = None;
        *self.shared.image_fault.lock() = None;
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
