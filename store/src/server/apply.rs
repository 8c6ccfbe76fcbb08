//! The apply thread: committed entries to the machine, in order; events to watchers, answers to requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use raft::eraftpb::Entry;

use super::driver::Input;
use super::handle::{Answer, Refusal, Shared};
use super::image::Job;
use crate::machine::{Applied, Machine, Position};
use crate::wire::command::DecodeError;

/// Batches of entries that may wait for the apply thread.
pub const TASK_QUEUE: usize = 64;
/// Changed paths that the image thread may be behind before applying waits for it.
const MAX_DIRTY_PATHS: usize = 100_000;

/// What the apply thread is told.
pub enum Task {
    /// Apply these.
    Entries(Vec<Entry>),
    /// Replace the state by this snapshot, durably.
    Install {
        /// The encoded state.
        data: Vec<u8>,
        /// Told when it is on disk, or why not.
        done: SyncSender<Result<(), String>>,
    },
    /// Encode the state and give it to the raft thread.
    MakeSnapshot,
}

/// Why applying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An entry that this program cannot read; going on would make this member differ from the others.
    #[error("raft entry {index} of term {term}: {source}; is another member newer? upgrade this one")]
    Entry {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// The image thread has stopped.
    #[error("the applied state is no longer written to disk")]
    Image,
}

/// Everything the apply thread owns.
pub struct Applier {
    /// The shared state.
    pub shared: Arc<Shared>,
    /// Where tasks come from.
    pub tasks: Receiver<Task>,
    /// The raft thread.
    pub inputs: SyncSender<Input>,
    /// The image thread.
    pub jobs: SyncSender<Job>,
    /// Entries between checkpoints.
    pub snapshot_count: u64,
    /// Index of the last checkpoint.
    pub checkpoint: u64,
}

impl Applier {
    /// Runs until the raft thread is gone.
    ///
    /// # Errors
    /// [`ApplyError`]; the member must end.
    pub fn run(mut self) -> Result<(), ApplyError> {
        while let Ok(task) = self.tasks.recv() {
            match task {
                Task::Entries(entries) => self.apply(entries)?,
                Task::Install { data, done } => {
                    let _ = done.send(self.install(&data));
                }
                Task::MakeSnapshot => {
                    let machine = self.shared.machine.read();
                    let made = (machine.applied, machine.snapshot());
                    drop(machine);
                    // Through a slot, not the queue: the raft thread may be waiting for this one.
                    *self.shared.snapshot.lock() = Some(made);
                    let _ = self.inputs.try_send(Input::Wake);
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), ApplyError> {
        let mut answers: Vec<(u64, Answer)> = Vec::with_capacity(entries.len());
        let (applied, dirty) =
            {
                let mut machine = self.shared.machine.write();
                for entry in entries {
                    let position = Position { index: entry.index, term: entry.term };
                    let applied = machine.apply(position, &entry.data).map_err(|source| {
                        ApplyError::Entry { index: entry.index, term: entry.term, source }
                    })?;
                    if let Some(applied) = applied {
                        self.publish(applied, &mut answers);
                    }
                }
                self.note(&machine);
                (machine.applied.index, machine.tree.dirty_len())
            };
        if self.shared.reads_wait.load(Ordering::SeqCst) {
            let _ = self.inputs.try_send(Input::Wake);
        }
        {
            let mut waiters = self.shared.waiters.lock();
            for (number, answer) in answers {
                if let Some(waiter) = waiters.remove(&number) {
                    let _ = waiter.send(answer);
                }
            }
        }
        if applied >= self.checkpoint + self.snapshot_count {
            self.checkpoint = applied;
            self.jobs.send(Job::Checkpoint).map_err(|_| ApplyError::Image)?;
        }
        if dirty > MAX_DIRTY_PATHS {
            self.write_image()?;
        }
        Ok(())
    }

    /// Events to those who watch, and the answer for whoever waits at this member.
    fn publish(&self, applied: Applied, answers: &mut Vec<(u64, Answer)>) {
        let Applied { id, result } = applied;
        let answer = result.map_err(Refusal::Tree).map(|done| {
            let outcomes = done.outcomes();
            if !outcomes.is_empty() {
                let mut hub = self.shared.hub.lock();
                for outcome in outcomes {
                    hub.notify(outcome);
                }
            }
            if let crate::machine::Done::Expired(expired) = &done {
                self.shared.stats.expired(expired.len());
            }
            outcomes.first().map(|outcome| Arc::clone(&outcome.event))
        });
        if id.member == self.shared.member_id {
            answers.push((id.number, answer));
        }
    }

    /// Shows the state's position to those who do not take its lock.
    fn note(&self, machine: &Machine) {
        self.shared.has_expiries.store(machine.tree.has_expiries(), Ordering::Release);
        self.shared.applied.store(machine.applied.index, Ordering::SeqCst);
    }

    fn write_image(&self) -> Result<(), ApplyError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.jobs.send(Job::Write(sender)).map_err(|_| ApplyError::Image)?;
        receiver.recv().map_err(|_| ApplyError::Image)
    }

    fn install(&mut self, data: &[u8]) -> Result<(), String> {
        let machine = Machine::from_snapshot(data).map_err(|error| error.to_string())?;
        tracing::info!(index = machine.applied.index, bytes = data.len(), "taking over a snapshot");
        self.checkpoint = machine.applied.index;
        // The image thread writes it to disk first and only then shows it: were it shown first, a write of what
        // changed could put its position beside the old keys.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let stopped = || "the image thread has stopped".to_owned();
        self.jobs.send(Job::Replace(Box::new(machine), sender)).map_err(|_| stopped())?;
        receiver.recv().map_err(|_| stopped())?;
        self.note(&self.shared.machine.read());
        Ok(())
    }
}
