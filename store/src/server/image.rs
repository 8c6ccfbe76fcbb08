//! The image thread: what changed in memory goes to disk in batches, apart from the path of a request.
//!
//! The image may be as old as it likes, for the raft log holds what it lacks. Only before the log is compacted
//! must it be durable: that is a checkpoint.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use super::driver::Input;
use super::handle::Shared;
use crate::machine::Machine;
use crate::state::{Delta, Identity, StateError, StateStore};

/// Jobs that may wait for the image thread.
pub const JOB_QUEUE: usize = 8;
/// How often changes are written. Longer means that more changes of one key, and more events that have left the
/// history again, cost nothing; a restart applies what came since from the log.
const PERIOD: Duration = Duration::from_secs(3);

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
}

impl<S: StateStore> Imager<S> {
    /// Runs until the apply thread is gone; writes what is left then.
    ///
    /// # Errors
    /// [`StateError`]; the member must end.
    pub fn run(mut self) -> Result<(), StateError> {
        loop {
            match self.jobs.recv_timeout(PERIOD) {
                Ok(Job::Write(done)) => {
                    self.write(false)?;
                    let _ = done.send(());
                }
                Ok(Job::Checkpoint) => {
                    if let Some(index) = self.write(true)? {
                        self.state.sync()?;
                        // If the raft thread is too busy to hear it, the next checkpoint tells it.
                        let _ = self.inputs.try_send(Input::Durable(index));
                    }
                }
                Ok(Job::Replace(machine, done)) => {
                    self.replace(*machine)?;
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.write(false)?;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.write(true)?.is_some() { self.state.sync() } else { Ok(()) }
    }

    /// On disk first: a crash at any point leaves the old state or the new one, each whole.
    fn replace(&mut self, mut machine: Machine) -> Result<(), StateError> {
        self.state.replace(self.identity, &machine)?;
        machine.tree.take_dirty();
        self.written = machine.tree.index();
        self.applied = machine.applied.index;
        let mut shown = self.shared.machine.write();
        *shown = machine;
        // Watchers may have missed events: ending their watches makes them look again.
        self.shared.hub.lock().clear();
        Ok(())
    }

    /// Writes what changed; returns the raft index that the image then stands at. Entries without effect (a
    /// new leader's) move the image only with `always`. With little room on the disk nothing is written (`None`).
    fn write(&mut self, always: bool) -> Result<Option<u64>, StateError> {
        if self.shared.room.is_low() {
            // The log holds it, and what room is left is the log's.
            return Ok(None);
        }
        let delta = {
            let mut machine = self.shared.machine.write();
            if !always && machine.tree.index() == self.written && machine.tree.dirty_len() == 0 {
                return Ok(Some(self.applied));
            }
            Delta::take(&mut machine, self.written)
        };
        self.state.write(&delta)?;
        self.written = delta.index;
        self.applied = delta.applied.index;
        Ok(Some(self.applied))
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
