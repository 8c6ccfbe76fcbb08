#![allow(clippy::unwrap_used, clippy::case_sensitive_file_extension_comparisons, reason = "tests")]

//! Power loss with the real engine: after every call that it makes to its files, everything is laid out that may be left,
//! and a new log is opened on that. Full disks and disks that do not sync as well.

use std::path::Path;

use raft::eraftpb::{Entry, HardState};

use super::disk::OsDisk;
use super::engine::{EngineLog, Sizes};
use super::test_disk::{TestDisk, temp_dir};
use super::{LogError, LogStore};
use crate::machine::Position;

/// Small files, so that a short run begins, ends, removes and reuses many.
const SIZES: Sizes = Sizes { file: 4 << 10, purge: 16 << 10 };

/// What the log holds, as plainly as can be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Model {
    pub(super) hard_state: HardState,
    pub(super) truncated: Position,
    pub(super) entries: Vec<Entry>,
    pub(super) installing: Option<Position>,
}

/// A call of the log.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Append(Vec<Entry>, Option<HardState>, bool),
    Reset(Position),
    Mark(Option<Position>),
    Compact(u64),
}

impl Model {
    fn last(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    fn apply(&mut self, call: &Call) {
        match call {
            Call::Append(entries, hard_state, _) => {
                if let Some(first) = entries.first() {
                    self.entries.retain(|entry| entry.index < first.index);
                }
                self.entries.extend(entries.iter().cloned());
                self.hard_state = hard_state.as_ref().unwrap_or(&self.hard_state).clone();
            }
            Call::Reset(position) => {
                self.entries.clear();
                (self.truncated, self.installing) = (*position, None);
                self.hard_state.commit = self.hard_state.commit.min(position.index);
            }
            Call::Mark(position) => self.installing = *position,
            Call::Compact(index) => {
                if let Some(entry) = self.entries.iter().find(|entry| entry.index == *index) {
                    self.truncated = Position { index: *index, term: entry.term };
                    self.entries.retain(|entry| entry.index > *index);
                }
            }
        }
    }

    pub(super) fn of<D: super::disk::Disk>(log: &EngineLog<D>) -> Model {
        let (truncated, last) = (log.truncated(), log.last_index());
        let entries = if last > truncated.index {
            log.entries(truncated.index + 1, last + 1, u64::MAX).unwrap()
        } else {
            Vec::new()
        };
        Model { hard_state: log.hard_state(), truncated, entries, installing: log.installing() }
    }
}

pub(super) fn carry_out<D: super::disk::Disk>(log: &mut EngineLog<D>, call: &Call) -> Result<(), LogError> {
    match call.clone() {
        Call::Append(entries, hard_state, sync) => log.append(entries, hard_state.as_ref(), sync),
        Call::Reset(position) => log.reset(position, None),
        Call::Mark(position) => log.mark_install(position),
        Call::Compact(index) => log.compact(index),
    }
}

/// Numbers drawn from a seed (Knuth's MMIX generator; its high bits are good enough for this).
#[derive(Clone)]
pub(super) struct Draw(pub(super) u64);

impl Draw {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Calls as raft makes them: appends, tails that a new leader overwrites, hard states with and without a sync,
/// compactions, and now and then a snapshot, some of which are given up.
pub(super) fn workload(seed: u64, length: usize) -> Vec<Call> {
    let mut draw = Draw(seed);
    let mut model = Model::default();
    let mut calls = vec![Call::Reset(Position { index: 3, term: 1 })];
    model.apply(&calls[0]);
    let mut term = 1;
    while calls.len() < length {
        let last = model.last();
        let call = match (model.installing, draw.below(20)) {
            (Some(position), kind) => {
                if kind < 15 {
                    Call::Reset(position)
                } else {
                    Call::Mark(None)
                }
            }
            (None, 0) => Call::Mark(Some(Position { index: last + draw.below(5), term })),
            (_, 1..=4) if !model.entries.is_empty() => {
                Call::Compact(model.truncated.index + 1 + draw.below(model.entries.len() as u64))
            }
            (_, 5..=8) => {
                let sync = draw.below(2) == 0;
                term += u64::from(sync);
                let hard_state = HardState { term, vote: 1, commit: last, ..HardState::default() };
                Call::Append(Vec::new(), Some(hard_state), sync)
            }
            (_, kind) => {
                // A new leader's entries replace the end of what is there.
                let back = if kind == 9 { draw.below(model.entries.len() as u64 + 1) } else { 0 };
                term += u64::from(back > 0);
                let from = last + 1 - back;
                let size = usize::try_from(draw.below(900)).unwrap();
                let entry = |index| Entry { index, term, data: vec![b'v'; size].into(), ..Entry::default() };
                let entries: Vec<Entry> = (from..=from + draw.below(3)).map(entry).collect();
                let hard_state = HardState { term, commit: from - 1, ..HardState::default() };
                Call::Append(entries, Some(hard_state).filter(|_| draw.below(2) == 0), true)
            }
        };
        model.apply(&call);
        calls.push(call);
    }
    calls
}

/// What must be there after a power loss.
struct Step {
    /// Calls to the disk when the log's call had returned.
    disk_calls: usize,
    /// What the log held then.
    now: Model,
    /// The same, without the hard state that need not be synced yet.
    synced: Model,
}

/// Carries `calls` out, opening the log anew now and then.
fn run(disk: &TestDisk, dir: &Path, calls: &[Call]) -> Vec<Step> {
    let open = || EngineLog::open_on(disk.clone(), dir, SIZES).unwrap();
    let mut log = open();
    let mut steps = vec![Step { disk_calls: disk.calls(), now: Model::default(), synced: Model::default() }];
    for (number, call) in calls.iter().enumerate() {
        carry_out(&mut log, call).unwrap();
        let mut now = steps[number].now.clone();
        now.apply(call);
        let unsynced = matches!(call, Call::Append(entries, _, false) if entries.is_empty());
        let synced = if unsynced { steps[number].synced.clone() } else { now.clone() };
        assert_eq!(Model::of(&log), now);
        if number % 40 == 39 {
            drop(log);
            log = open();
            assert_eq!(Model::of(&log), now, "after it was closed and opened");
        }
        steps.push(Step { disk_calls: disk.calls(), now, synced });
    }
    steps
}

/// Opens what a power loss after `calls` calls to the disk leaves, and checks it. On a thread of its own: raft-engine
/// keeps the last block that a thread has read, and does not ask of which directory it was.
fn check(disk: &TestDisk, steps: &[Step], calls: usize, survives: &mut dyn FnMut() -> bool) {
    let dir = temp_dir();
    disk.lay_out(calls, dir.path(), survives);
    let checked = std::thread::scope(|scope| scope.spawn(|| check_layout(dir.path(), steps, calls)).join());
    checked.unwrap_or_else(|_| panic!("after {calls} calls, see above"));
}

fn check_layout(dir: &Path, steps: &[Step], calls: usize) {
    let mut log =
        EngineLog::open_on(OsDisk, dir, SIZES).unwrap_or_else(|error| panic!("after {calls} calls: {error}"));
    let found = Model::of(&log);
    let done = steps.iter().rposition(|step| step.disk_calls <= calls);
    let next = done.map_or(0, |done| done + 1);
    let mut allowed = Vec::new();
    if let Some(done) = done {
        allowed.extend([&steps[done].synced, &steps[done].now]);
    }
    allowed.extend(steps.get(next).map(|step| &step.now));
    let blank = Model::default();
    if done.is_none() {
        allowed.push(&blank);
    }
    if !allowed.contains(&&found) {
        let brief = |model: &Model| (model.truncated, model.last(), model.hard_state.clone());
        let allowed: Vec<_> = allowed.into_iter().map(brief).collect();
        panic!("after {calls} calls: found {:?}, allowed {allowed:?}", brief(&found));
    }
    // And it goes on from there.
    let next = Entry { index: log.last_index() + 1, term: 99, ..Entry::default() };
    if log.is_empty() {
        log.reset(Position { index: next.index - 1, term: 99 }, None).unwrap();
    }
    log.append(vec![next.clone()], None, true).unwrap();
    drop(log);
    let log = EngineLog::open_on(OsDisk, dir, SIZES).unwrap();
    assert_eq!(log.term(next.index).unwrap(), Some(99), "after {calls} calls and a further write");
}

#[test]
fn nothing_acknowledged_is_lost_at_whatever_call_the_power_goes() {
    let (disk, dir) = (TestDisk::default(), temp_dir());
    let steps = run(&disk, dir.path(), &workload(1, 100));
    let mut draw = Draw(2);
    let calls = disk.calls();
    assert!(calls > 300, "a workload of {calls} calls says little");
    for at in 0..=calls {
        check(&disk, &steps, at, &mut || false);
        check(&disk, &steps, at, &mut || draw.below(2) == 0);
    }
}

/// With `WEFT_POWER_SEEDS` in the environment, for so many workloads.
#[test]
#[expect(clippy::print_stdout, reason = "a failure shows at which seed it was")]
fn nothing_acknowledged_is_lost_in_workloads_drawn_at_random() {
    let seeds = std::env::var("WEFT_POWER_SEEDS").map_or(12, |seeds| seeds.parse().unwrap());
    for seed in 10..10 + seeds {
        println!("seed {seed}");
        let (disk, dir) = (TestDisk::default(), temp_dir());
        let steps = run(&disk, dir.path(), &workload(seed, 120));
        let mut draw = Draw(seed);
        for _ in 0..40 {
            let at = usize::try_from(draw.below(disk.calls() as u64 + 1)).unwrap();
            let chance = 1 + draw.below(8);
            check(&disk, &steps, at, &mut || draw.below(chance) == 0);
        }
    }
}

#[test]
fn the_workload_uses_files_again_and_moves_what_is_old() {
    let (disk, dir) = (TestDisk::default(), temp_dir());
    run(&disk, dir.path(), &workload(2, 160));
    let names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.ends_with(".spare")), "{names:?}");
    let first = names.iter().filter(|name| name.ends_with(".raftlog")).min().unwrap();
    assert!(first.as_str() > "0000000000000004.raftlog", "{names:?}");
    let moved: Vec<&String> = names.iter().filter(|name| name.ends_with(".rewrite")).collect();
    let moved = moved.iter().map(|name| std::fs::metadata(dir.path().join(name)).unwrap().len()).sum::<u64>();
    assert!(moved > 100, "nothing was moved");
}

#[test]
fn a_write_that_finds_no_room_changes_nothing_and_can_be_tried_again() {
    let calls = workload(5, 120);
    for room in [0, 1, 60, 300, 1000] {
        let (disk, dir) = (TestDisk::default(), temp_dir());
        let mut log = EngineLog::open_on(disk.clone(), dir.path(), SIZES).unwrap();
        let mut model = Model::default();
        let mut refused = 0;
        for call in &calls {
            disk.set_room(Some(room));
            let first = carry_out(&mut log, call);
            if first.is_err() {
                assert!(matches!(first, Err(LogError::NoSpace { .. })), "{first:?}");
                refused += 1;
                assert_eq!(Model::of(&log), model, "a refused write has changed something");
                assert!(carry_out(&mut log, call).is_err(), "there is still no room");
                disk.set_room(None);
                carry_out(&mut log, call).unwrap();
            }
            disk.set_room(None);
            model.apply(call);
            assert_eq!(Model::of(&log), model);
        }
        assert!(refused > 0, "with room for {room} bytes at a time every write succeeded");
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(files < 30, "{files} files: refused writes have left some");
        drop(log);
        assert_eq!(Model::of(&EngineLog::open_on(OsDisk, dir.path(), SIZES).unwrap()), model);
    }
}

#[test]
fn a_write_that_finds_no_room_waits_for_it_and_is_lost_at_no_call() {
    let (disk, dir) = (TestDisk::default(), temp_dir());
    let mut log = EngineLog::open_on(disk.clone(), dir.path(), SIZES).unwrap();
    let (asked, free) = (std::sync::Arc::new(parking_lot::Mutex::new(0)), disk.clone());
    let count = std::sync::Arc::clone(&asked);
    log.when_full(Box::new(move || {
        let mut count = count.lock();
        *count += 1;
        // Room enough at the third time of asking.
        free.set_room(if *count % 3 == 0 { None } else { Some(10) });
        true
    }));
    let mut steps = vec![Step { disk_calls: disk.calls(), now: Model::default(), synced: Model::default() }];
    for call in workload(6, 60) {
        disk.set_room(Some(200));
        carry_out(&mut log, &call).unwrap();
        let last = steps.last().unwrap();
        let mut now = last.now.clone();
        now.apply(&call);
        let unsynced = matches!(&call, Call::Append(entries, _, false) if entries.is_empty());
        let synced = if unsynced { last.synced.clone() } else { now.clone() };
        assert_eq!(Model::of(&log), now);
        steps.push(Step { disk_calls: disk.calls(), now, synced });
    }
    assert!(*asked.lock() > 20);
    let mut draw = Draw(7);
    for at in (0..=disk.calls()).step_by(3) {
        check(&disk, &steps, at, &mut || draw.below(2) == 0);
    }
}

#[test]
fn a_sync_that_fails_ends_the_log_with_the_file_and_without_a_panic() {
    let (disk, dir) = (TestDisk::default(), temp_dir());
    let mut log = EngineLog::open_on(disk.clone(), dir.path(), SIZES).unwrap();
    log.reset(Position { index: 3, term: 1 }, None).unwrap();
    disk.break_syncs();
    let entry = Entry { index: 4, term: 1, ..Entry::default() };
    for _ in 0..2 {
        let error = log.append(vec![entry.clone()], None, true).unwrap_err();
        assert!(error.to_string().contains("0000000000000001.raftlog"), "{error}");
        assert_eq!(log.last_index(), 3, "what may not be on disk counts as written");
    }
}
