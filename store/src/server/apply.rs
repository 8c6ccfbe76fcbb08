//! The apply thread: committed entries to the machine, in order; events to watchers, answers to requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use raft::eraftpb::Entry;

use super::driver::Input;
use super::handle::{Refusal, Shared};
use super::image::Job;
use crate::machine::{Done, Machine, Verdict};
use crate::replica::Work;
use crate::replica::apply::{Applying, Batch, EntryError};

/// Batches of entries that may wait for the apply thread.
pub const TASK_QUEUE: usize = 64;

/// What the apply thread is told.
pub enum Task {
    /// What the replica wants done with the state.
    Work(Work),
    /// Replace the state by this snapshot, durably.
    Install {
        /// The state.
        machine: Box<Machine>,
        /// Told when it is on disk, or why not.
        done: SyncSender<Result<(), String>>,
    },
}

/// Why applying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// An entry that this program cannot read.
    #[error(transparent)]
    Entry(#[from] EntryError),
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
    /// Told when the last checkpoint is done.
    pub checkpointed: Option<Receiver<()>>,
    /// What is decided here.
    pub applying: Applying,
}

impl Applier {
    /// Runs until the raft thread is gone.
    ///
    /// # Errors
    /// [`ApplyError`]; the member must end.
    pub fn run(mut self) -> Result<(), ApplyError> {
        while let Ok(task) = self.tasks.recv() {
            match task {
                Task::Work(Work::Apply(entries)) => self.apply(entries)?,
                Task::Work(Work::MakeSnapshot) => self.make_snapshot(),
                Task::Install { machine, done } => {
                    let _ = done.send(self.install(machine));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>) -> Result<(), ApplyError> {
        let batch = {
            let mut machine = self.shared.machine.write();
            let publish = |done: &Done| publish(&self.shared, done);
            let batch = self.applying.apply(&mut machine, entries, publish)?;
            self.shared.note(&machine);
            batch
        };
        if self.shared.reads_wait.load(Ordering::SeqCst) {
            let _ = self.inputs.try_send(Input::Wake);
        }
        let Batch { answers, checkpoint, write_image } = batch;
        {
            let mut waiters = self.shared.waiters.lock();
            for (number, answer) in answers {
                if let Some(waiter) = waiters.remove(&number) {
                    let _ = waiter.send(answer.map_err(Refusal::Tree));
                }
            }
        }
        if checkpoint {
            self.checkpoint()?;
        }
        if write_image {
            self.write_image()?;
        }
        Ok(())
    }

    /// Has a checkpoint made. Waits for the one before, for the log grows until that is done.
    fn checkpoint(&mut self) -> Result<(), ApplyError> {
        if let Some(before) = self.checkpointed.take() {
            // If the image thread has ended, sending says so.
            let _ = before.recv();
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        for job in [Job::Checkpoint, Job::Write(sender)] {
            self.jobs.send(job).map_err(|_| ApplyError::Image)?;
        }
        self.checkpointed = Some(receiver);
        Ok(())
    }

    fn make_snapshot(&self) {
        let taken = self.shared.machine.read().freeze();
        // Through a slot, not the queue: the raft thread may be waiting for this one.
        *self.shared.snapshot.lock() = Some(taken);
        let _ = self.inputs.try_send(Input::Wake);
    }

    fn write_image(&self) -> Result<(), ApplyError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.jobs.send(Job::Write(sender)).map_err(|_| ApplyError::Image)?;
        receiver.recv().map_err(|_| ApplyError::Image)
    }

    fn install(&mut self, machine: Box<Machine>) -> Result<(), String> {
        tracing::info!(index = machine.applied.index, "taking over a snapshot");
        self.applying.installed(machine.applied.index);
        // The image thread writes it to disk first and only then shows it: were it shown first, a write of what
        // changed could put its position beside the old keys.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let stopped = || "the image thread has stopped".to_owned();
        self.jobs.send(Job::Replace(machine, sender)).map_err(|_| stopped())?;
        receiver.recv().map_err(|_| stopped())?;
        self.shared.note(&self.shared.machine.read());
        Ok(())
    }
}

/// Events to those who watch.
fn publish(shared: &Shared, done: &Done) {
    let outcomes = done.outcomes();
    if !outcomes.is_empty() {
        let mut hub = shared.hub.lock();
        for outcome in outcomes {
            hub.notify(outcome);
        }
    }
    match done {
        Done::Expired(expired) => shared.stats.expired(expired.len()),
        Done::Checked(Verdict::Differs(mismatch)) => {
            tracing::error!(
                raft_index = mismatch.index,
                own_digest = %mismatch.own,
                leader_digest = %mismatch.leader,
                "this member's state differs from the leader's; see docs/consistency.md"
            );
        }
        Done::Alarm { member, kind, raised } => {
            let member = format_args!("{member:x}");
            if *raised {
                tracing::error!(%member, %kind, "alarm raised");
            } else {
                tracing::warn!(%member, %kind, "alarm cleared");
            }
        }
        Done::V2(_) | Done::Cluster(_) | Done::Checked(_) | Done::Ignored => {}
    }
}
