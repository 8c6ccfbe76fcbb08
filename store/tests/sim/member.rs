//! One member: the production replica and machine in a shell made of doubles.
//!
//! It does what `server::driver`, `server::apply` and `server::image` do, in the same order, but time is handed in, the
//! threads are events of the world, and what leaves the member is collected with the time at which it leaves.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType, Snapshot};
use store::log::LogStore as _;
use store::machine::{Done, Machine, Position};
use store::node::{Core, CoreConfig};
use store::replica::apply::{Answer, Applying};
use store::replica::backlog::Unapplied;
use store::replica::{Asker, Busy, Now, Outside, Proposal, Refused, Replica, Settings, Work};
use store::state::Delta;
use store::tree::Hub;
use store::wire::command::{Command, Envelope, RequestId};

use crate::checks::{Broken, Checks, hash};
use crate::dice::Dice;
use crate::disk::{SimImage, SimLog};
use crate::mutant::Mutant;
use crate::time::{MICRO, MILLI, Nanos};
use crate::watchers::Sink;

/// Length of a tick.
pub(crate) const TICK: Nanos = 20 * MILLI;
/// Entries between checkpoints, and entries kept: few, so that followers often need a snapshot.
const SNAPSHOT_COUNT: u64 = 60;
const CATCH_UP_ENTRIES: u64 = 25;
/// Batches that wait for the apply thread: few, so that the backlog is used.
const TASK_QUEUE: usize = 3;
/// Entries that may wait to be applied: few, so that they are refused.
const MAX_UNAPPLIED: Unapplied = Unapplied { entries: 40, bytes: 1 << 20 };
/// Keys that expire at once.
const EXPIRE_MOST: u32 = 2;
/// Wall time at the beginning of a run: 2020.
const EPOCH_NS: i64 = 1_577_836_800_000_000_000;

/// A client's read, by its operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader(pub(crate) usize);

impl Asker for Reader {
    fn is_gone(&self) -> bool {
        false
    }
}

/// What a member is told from outside.
pub(crate) enum Input {
    Propose(Proposal),
    Read(Reader),
    Peer(Message),
    Unreachable(u64),
    SnapshotSent { to: u64, sent: bool },
    Durable(u64),
    HandOver,
    Wake,
}

/// What a round or a batch led to.
#[derive(Default)]
pub(crate) struct Results {
    /// Messages and when each leaves.
    pub(crate) leaving: Vec<(Nanos, Message)>,
    /// Answers to operations.
    pub(crate) answers: Vec<(usize, Answer)>,
    /// Operations that were refused.
    pub(crate) refused: Vec<usize>,
    /// Reads that may look now.
    pub(crate) reads: Vec<usize>,
    /// The image must be made durable.
    pub(crate) checkpoint: bool,
    /// Watches were ended.
    pub(crate) installed: bool,
    /// Appends that were not taken, as too much waited to be applied.
    pub(crate) not_taken: u64,
    /// Proposals of others that waited for the same reason.
    pub(crate) kept: u64,
    /// Entries that let no more expire than they were allowed to.
    pub(crate) in_parts: u64,
    /// Leadership was given away for the same reason.
    pub(crate) given_away: bool,
}

/// A member that runs.
pub(crate) struct Running {
    pub(crate) replica: Replica<SimLog, Reader>,
    pub(crate) body: Body,
    pub(crate) inputs: VecDeque<Input>,
    /// When its raft thread wakes next.
    pub(crate) wakes: Nanos,
    /// Until when its raft thread is kept.
    pub(crate) busy: Nanos,
}

/// Everything beside the raft thread.
pub(crate) struct Body {
    id: u64,
    pub(crate) machine: Machine,
    applying: Applying,
    /// What the apply thread is to do, and from when on: a round hands it on when it has written and synced.
    pub(crate) tasks: VecDeque<(Nanos, Work)>,
    /// Operations that wait for the request with this number.
    pub(crate) waiters: BTreeMap<u64, usize>,
    pub(crate) hub: Hub<Sink>,
    reads_wait: bool,
    next_number: u64,
    snapshot: Option<(Position, Vec<u8>)>,
    written: u64,
    /// Up to which index committed entries have been applied, or a snapshot has taken their place.
    handed: u64,
    /// Up to which index entries were applied before they were committed (the planted bug).
    early: u64,
    mutant: Option<Mutant>,
}

/// What a member starts with.
pub(crate) struct Start<'a> {
    pub(crate) id: u64,
    pub(crate) election_ticks: usize,
    pub(crate) log: &'a SimLog,
    pub(crate) image: &'a SimImage,
    pub(crate) drawn: u32,
    pub(crate) now: Nanos,
    pub(crate) base: Instant,
    pub(crate) mutant: Option<Mutant>,
}

/// The point in time for a virtual time.
pub(crate) fn at(base: Instant, time: Nanos) -> Instant {
    base + Duration::from_nanos(time)
}

impl Running {
    pub(crate) fn start(start: &Start<'_>) -> Result<Running, Broken> {
        let mut machine = start.image.load()?;
        if start.mutant == Some(Mutant::TtlLostOnRestart) {
            machine = crate::mutant::without_expiries(machine)?;
        }
        let config = CoreConfig {
            id: start.id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            fixed_election_ticks: Some(start.election_ticks),
        };
        let voters = machine.membership.voters.clone();
        let core = Core::new(&config, voters, machine.applied, start.log.clone())
            .map_err(|error| format!("member {} cannot start: {error}", start.id))?;
        let settings = Settings {
            member: start.id,
            tick: Duration::from_nanos(TICK),
            start: start.drawn,
            cluster_version: "3.2.0",
            check_period: Some(Duration::from_millis(400)),
            catch_up_entries: CATCH_UP_ENTRIES,
            max_unapplied: MAX_UNAPPLIED,
            expire_most: EXPIRE_MOST,
        };
        let replica = Replica::new(core, machine.applied.index, settings, at(start.base, start.now));
        let body = Body {
            id: start.id,
            applying: Applying::new(start.id, SNAPSHOT_COUNT, machine.applied.index),
            tasks: VecDeque::new(),
            waiters: BTreeMap::new(),
            hub: Hub::default(),
            reads_wait: false,
            next_number: u64::from(start.drawn) << 32,
            snapshot: None,
            written: machine.tree.index(),
            handed: machine.applied.index,
            early: machine.applied.index,
            mutant: start.mutant,
            machine,
        };
        Ok(Running { replica, body, inputs: VecDeque::new(), wakes: Nanos::MAX, busy: start.now })
    }

    /// Puts a command on its way; `op` hears of it.
    pub(crate) fn propose(&mut self, command: Command, op: Option<usize>, deadline: Instant) -> RequestId {
        let number = self.body.next_number;
        self.body.next_number += 1;
        let id = RequestId { member: self.body.id, number };
        let data = Bytes::from(Envelope { id, command }.encode());
        if let Some(op) = op {
            self.body.waiters.insert(number, op);
        }
        self.inputs.push_back(Input::Propose(Proposal { number, data, deadline }));
        id
    }

    /// One round of the raft thread, as in `server::driver`.
    pub(crate) fn round(&mut self, around: &mut Around<'_>) -> Result<Results, Broken> {
        around.log.begin(around.now);
        let mut results = Results::default();
        let mut told_to = false;
        while let Some(input) = self.inputs.pop_front() {
            told_to |= matches!(input, Input::HandOver);
            self.count(&input, &mut results);
            self.take(input);
        }
        let now = Now {
            monotonic: at(around.base, around.now),
            wall_ns: wall_ns(around.now, around.clock_offset_ns),
        };
        let outcome = {
            let mut surroundings =
                Surroundings { body: &mut self.body, around: &mut *around, results: &mut results };
            let round = self.replica.round(now, &mut surroundings);
            round.map_err(|error| format!("member {}: {error}", surroundings.body.id))?
        };
        around.checks.leadership(self.body.id, self.replica.leadership());
        let hands_over =
            |(_, message): &(Nanos, Message)| message.get_msg_type() == MessageType::MsgTimeoutNow;
        results.given_away = !told_to && self.replica.is_behind() && results.leaving.iter().any(hands_over);
        for (number, Refused::Overload) in outcome.refused {
            results.refused.extend(self.body.waiters.remove(&number));
        }
        if let Some((position, data)) = self.body.snapshot.take() {
            self.replica.provide_snapshot(position, data);
        }
        self.body.reads_wait = self.replica.waits_for_apply();
        let applied = self.body.handed;
        results.reads.extend(self.replica.applied(applied).into_iter().map(|Reader(op)| op));
        while let Some(work) = self.replica.next_work() {
            if self.body.tasks.len() >= TASK_QUEUE {
                self.replica.no_room_for(work);
                break;
            }
            self.body.tasks.push_back((around.log.clock(), work));
        }
        if self.body.mutant == Some(Mutant::ApplyBeforeCommit) {
            self.apply_what_is_not_committed(around, &mut results)?;
        }
        self.busy = around.log.clock();
        Ok(results)
    }

    fn count(&self, input: &Input, results: &mut Results) {
        let Input::Peer(message) = input else { return };
        if self.replica.is_behind() {
            let kind = message.get_msg_type();
            let appends = kind == MessageType::MsgAppend && !message.entries.is_empty();
            let passed_on = kind == MessageType::MsgPropose && self.replica.leadership().leads;
            results.not_taken += u64::from(appends);
            results.kept += u64::from(passed_on);
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Propose(proposal) => self.replica.propose(proposal),
            Input::Read(reader) => self.replica.read(reader),
            Input::Peer(message) => self.replica.step(message),
            Input::Unreachable(id) => self.replica.report_unreachable(id),
            Input::SnapshotSent { to, sent } => self.replica.report_snapshot(to, sent),
            Input::Durable(index) => self.replica.durable(index),
            Input::HandOver => self.replica.hand_over(None),
            Input::Wake => {}
        }
    }

    /// The planted bug: what is in the log is applied at once.
    fn apply_what_is_not_committed(
        &mut self,
        around: &mut Around<'_>,
        results: &mut Results,
    ) -> Result<(), Broken> {
        let (from, to) = (self.body.machine.applied.index + 1, self.replica.log().last_index() + 1);
        if self.body.tasks.is_empty() && from < to && from > self.replica.log().truncated().index {
            let entries =
                self.replica.log().entries(from, to, u64::MAX).map_err(|error| error.to_string())?;
            self.body.early = to - 1;
            self.body.apply(entries, around, results)?;
        }
        Ok(())
    }
}

/// What surrounds a member while it does something.
pub(crate) struct Around<'a> {
    pub(crate) now: Nanos,
    pub(crate) base: Instant,
    pub(crate) clock_offset_ns: i64,
    pub(crate) log: SimLog,
    pub(crate) image: &'a mut SimImage,
    pub(crate) checks: &'a mut Checks,
    pub(crate) dice: &'a mut Dice,
}

/// A member's wall clock.
pub(crate) fn wall_ns(now: Nanos, clock_offset_ns: i64) -> i64 {
    EPOCH_NS + clock_offset_ns + i64::try_from(now).unwrap_or(i64::MAX)
}

struct Surroundings<'a, 'b> {
    body: &'a mut Body,
    around: &'a mut Around<'b>,
    results: &'a mut Results,
}

impl Outside for Surroundings<'_, '_> {
    fn send(&mut self, messages: Vec<Message>) {
        let at = self.around.log.clock();
        self.results.leaving.extend(messages.into_iter().map(|message| (at, message)));
    }

    fn install(&mut self, before: VecDeque<Work>, snapshot: &Snapshot) -> Result<(), String> {
        let tasks = std::mem::take(&mut self.body.tasks);
        for work in tasks.into_iter().map(|(_, work)| work).chain(before) {
            self.body.work(work, self.around, self.results)?;
        }
        let machine = Machine::from_snapshot(snapshot.get_data()).map_err(|error| error.to_string())?;
        let begun = self.around.log.clock();
        self.around.log.spend(self.around.dice.between(MILLI, 20 * MILLI));
        self.around.image.replace(&machine, begun, self.around.log.clock());
        self.body.installed(machine);
        self.around.checks.whole_state(self.body.id, &self.body.machine);
        self.results.installed = true;
        Ok(())
    }

    fn next_expiry(&self) -> Option<i64> {
        self.body.machine.tree.next_expiry()
    }

    fn has_version(&self) -> bool {
        !self.body.machine.membership.version.is_empty()
    }

    fn check(&self) -> Result<Option<Command>, Busy> {
        Ok(self.body.machine.checks.next())
    }

    fn news(&self) -> Result<Option<Command>, Busy> {
        Ok(self.body.machine.checks.news(self.body.id, &self.body.machine.alarms))
    }
}

impl Body {
    /// Does the next task of the apply thread, as in `server::apply`. Returns whether the raft thread wants to hear of it.
    pub(crate) fn next_task(
        &mut self,
        around: &mut Around<'_>,
        results: &mut Results,
    ) -> Result<bool, Broken> {
        let Some((_, work)) = self.tasks.pop_front() else { return Ok(false) };
        let wakes = matches!(work, Work::MakeSnapshot);
        self.work(work, around, results)?;
        Ok(wakes || self.reads_wait)
    }

    fn work(&mut self, work: Work, around: &mut Around<'_>, results: &mut Results) -> Result<(), Broken> {
        match work {
            Work::Apply(mut entries) => {
                self.handed = entries.last().map_or(self.handed, |entry| entry.index);
                entries.retain(|entry| entry.index > self.early);
                self.apply(entries, around, results)
            }
            Work::MakeSnapshot => {
                self.snapshot = Some((self.machine.applied, self.machine.snapshot()));
                Ok(())
            }
        }
    }

    /// One entry at a time, so that the checkers see each state.
    fn apply(
        &mut self,
        entries: Vec<raft::eraftpb::Entry>,
        around: &mut Around<'_>,
        results: &mut Results,
    ) -> Result<(), Broken> {
        for entry in entries {
            let (index, term, next) = (entry.index, entry.term, self.machine.applied.index + 1);
            if index != next {
                return Err(format!("member {} applies entry {index} where {next} is due", self.id));
            }
            let content = hash(&[&term.to_be_bytes(), &entry.data]);
            if let Ok(envelope) = Envelope::decode(&entry.data)
                && envelope.id.member != 0
            {
                around.checks.request(envelope.id, index, around.now);
            }
            let (hub, checks, id, mut outcome) = (&mut self.hub, &mut *around.checks, self.id, 0);
            let in_parts = &mut results.in_parts;
            let changed = |done: &Done| {
                if let Done::Expired(gone) = done {
                    *in_parts += u64::from(gone.len() == EXPIRE_MOST as usize);
                }
                if let Done::Checked(verdict) = done {
                    checks.compared(id, *verdict);
                }
                for change in done.outcomes() {
                    hub.notify(change);
                    checks.event(id, &change.event, around.now);
                    outcome = hash(&[&u64::to_be_bytes(outcome), &change.event.index().to_be_bytes()]);
                }
            };
            let batch = self
                .applying
                .apply(&mut self.machine, vec![entry], changed)
                .map_err(|error| error.to_string())?;
            around.checks.applied(self.id, index, content, outcome);
            around.checks.state(self.id, &self.machine);
            for (number, answer) in batch.answers {
                results.answers.extend(self.waiters.remove(&number).map(|op| (op, answer)));
            }
            results.checkpoint |= batch.checkpoint;
        }
        Ok(())
    }

    fn installed(&mut self, mut machine: Machine) {
        machine.tree.take_dirty();
        self.applying.installed(machine.applied.index);
        self.written = machine.tree.index();
        self.handed = machine.applied.index;
        self.early = self.early.max(machine.applied.index);
        self.machine = machine;
        self.hub.clear();
    }

    /// Writes what changed to the image, as `server::image`; returns the raft index that it then stands at.
    pub(crate) fn write_image(&mut self, image: &mut SimImage, sync: bool, now: Nanos, time: Nanos) -> u64 {
        image.settle(now);
        let delta = Delta::take(&mut self.machine, self.written);
        self.written = delta.whole().tree().index();
        let index = delta.whole().applied().index;
        image.write(delta, sync, now, now + time);
        index
    }
}

/// How long the apply thread takes for a batch.
pub(crate) fn apply_time(dice: &mut Dice) -> Nanos {
    if dice.per_mille(20) { dice.between(MILLI, 50 * MILLI) } else { dice.between(20 * MICRO, 400 * MICRO) }
}
