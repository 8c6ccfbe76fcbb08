#![allow(clippy::unwrap_used, reason = "tests")]

//! What a crash at any point of taking over a snapshot leaves on disk, and what a full one leads to.

use std::io::ErrorKind;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

use super::*;
use crate::machine::{Machine, Position};
use crate::membership::{Member, Membership};
use crate::snapshot::Snapshot;
use crate::state::Usage;
use crate::state::mem::MemState;
use crate::tree::Op;

fn machine(keys: u64) -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
    for n in 0..keys {
        let op = Op::Set {
            path: format!("/1/k{n}"),
            dir: false,
            value: n.to_string(),
            expires_ns: None,
            refresh: false,
        };
        machine.tree.apply(&op).unwrap();
        machine.applied = Position { index: machine.applied.index + 1, term: 1 };
    }
    machine
}

/// Remembers the state that each step would leave after a crash.
struct Watched(MemState, Arc<parking_lot::Mutex<Vec<Vec<u8>>>>);

impl Watched {
    fn note(&self) {
        let (_, machine) = self.0.load().unwrap().unwrap();
        self.1.lock().push(machine.snapshot());
    }
}

impl StateStore for Watched {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        self.0.load()
    }

    fn replace(&mut self, identity: Identity, whole: &Snapshot) -> Result<(), StateError> {
        self.0.replace(identity, whole)?;
        self.note();
        Ok(())
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        self.0.write(delta)?;
        self.note();
        Ok(())
    }

    fn takes_changes(&self) -> bool {
        self.0.takes_changes()
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.0.sync()
    }
}

/// What is wrong with a disk.
#[derive(Default)]
struct Wrong {
    no_room_for_changes: AtomicBool,
    no_room_for_an_image: AtomicBool,
    sync_fails: AtomicBool,
    image_is_due: AtomicBool,
}

/// A double on a disk with which something is wrong.
struct Faulty(MemState, Arc<Wrong>, bool);

fn fail_if(wrong: &AtomicBool, kind: ErrorKind) -> Result<(), StateError> {
    if wrong.load(Ordering::SeqCst) {
        return Err(StateError::File { path: "memory".to_owned(), source: kind.into() });
    }
    Ok(())
}

impl StateStore for Faulty {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        self.0.load()
    }

    fn replace(&mut self, identity: Identity, whole: &Snapshot) -> Result<(), StateError> {
        fail_if(&self.1.no_room_for_an_image, ErrorKind::StorageFull)?;
        self.2 = false;
        self.1.image_is_due.store(false, Ordering::SeqCst);
        self.0.replace(identity, whole)
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        assert!(!self.2, "it takes no changes");
        fail_if(&self.1.no_room_for_changes, ErrorKind::StorageFull)?;
        self.0.write(delta)
    }

    fn takes_changes(&self) -> bool {
        !self.2
    }

    fn usage(&self) -> Usage {
        let plain = self.0.usage();
        let is_due = self.1.image_is_due.load(Ordering::SeqCst);
        if is_due { Usage { changes: 1 << 30, free: 0, ..plain } } else { plain }
    }

    fn sync(&mut self) -> Result<(), StateError> {
        let synced = fail_if(&self.1.sync_fails, ErrorKind::Other);
        self.2 |= synced.is_err();
        synced.and_then(|()| self.0.sync())
    }
}

/// An image thread that is driven by hand.
struct Stage {
    imager: Imager<Faulty>,
    shared: Arc<Shared>,
    wrong: Arc<Wrong>,
    told: Receiver<Input>,
}

impl Stage {
    fn new() -> Stage {
        let wrong = Arc::new(Wrong::default());
        let start = machine(10);
        let mut double = MemState::default();
        double.replace(IDENTITY, &start.freeze()).unwrap();
        let shared = Arc::new(Shared::new(IDENTITY, "test".to_owned(), start));
        shared.machine.write().tree.take_dirty();
        let (_, jobs) = sync_channel(1);
        let (inputs, told) = sync_channel(64);
        let state = Faulty(double, Arc::clone(&wrong), false);
        let imager = Imager::new(state, IDENTITY, Arc::clone(&shared), jobs, inputs);
        Stage { imager, shared, wrong, told }
    }

    fn set(&self, path: &str) -> u64 {
        let mut machine = self.shared.machine.write();
        let path = path.to_owned();
        let op = Op::Set { path, dir: false, value: "v".into(), expires_ns: None, refresh: false };
        machine.tree.apply(&op).unwrap();
        machine.applied.index += 1;
        self.shared.applied.store(machine.applied.index, Ordering::SeqCst);
        machine.applied.index
    }

    fn is(&self, wrong: impl Fn(&Wrong) -> &AtomicBool, so: bool) {
        wrong(&self.wrong).store(so, Ordering::SeqCst);
    }

    /// A pause has passed, and something is looked after.
    fn later(&mut self) {
        self.imager.changes_pause.hurry(now());
        self.imager.whole_pause.hurry(now());
        self.imager.write(false);
        self.imager.settle();
    }

    fn told(&self) -> Vec<(&'static str, u64)> {
        let name = |input| match input {
            Input::Durable(index) => ("durable", index),
            Input::Shrink(index) => ("shrink", index),
            _ => panic!("the image thread says nothing else"),
        };
        self.told.try_iter().map(name).collect()
    }

    fn is_unwell(&self) -> bool {
        self.shared.image_fault.lock().is_some()
    }

    fn has_all(&self) -> bool {
        let (_, stored) = self.imager.state.load().unwrap().unwrap();
        stored.snapshot() == self.shared.machine.read().snapshot()
    }
}

const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

/// The disk is full for a while: the member goes on, the log is not compacted beyond what is there, and then the image has
/// everything, the checkpoint that was owed is made, and the raft thread hears of it.
#[test]
fn a_full_disk_loses_nothing_and_is_over_when_there_is_room() {
    let mut stage = Stage::new();
    let before = stage.set("/1/before");
    stage.imager.write(false);
    stage.is(|wrong| &wrong.no_room_for_changes, true);
    stage.set("/1/lost");
    stage.imager.checkpoint();
    assert_eq!(stage.told(), [("durable", before)], "what is written is made durable all the same");
    assert!(stage.is_unwell());
    for n in 0..10 {
        stage.set(&format!("/1/more{n}"));
        stage.later();
    }
    assert_eq!(stage.shared.machine.read().tree.dirty_len(), 0, "they are not in the tree's keeping");
    assert!(stage.told().is_empty() && !stage.imager.changes_pause.is_over(now()));
    stage.is(|wrong| &wrong.no_room_for_changes, false);
    stage.imager.settle();
    assert!(stage.is_unwell(), "not yet time");
    stage.later();
    assert!(stage.has_all() && !stage.is_unwell());
    let index = stage.shared.applied.load(Ordering::SeqCst);
    assert_eq!(stage.told(), [("durable", index)], "although nobody asks again");
    stage.later();
    assert!(stage.told().is_empty());
}

/// After a sync that failed nobody knows what is on disk: everything is written anew.
#[test]
fn after_a_failed_sync_everything_is_written() {
    let mut stage = Stage::new();
    stage.is(|wrong| &wrong.sync_fails, true);
    stage.is(|wrong| &wrong.no_room_for_an_image, true);
    stage.set("/1/a");
    stage.imager.checkpoint();
    stage.later();
    assert!(stage.is_unwell() && stage.told().is_empty());
    stage.is(|wrong| &wrong.sync_fails, false);
    stage.is(|wrong| &wrong.no_room_for_an_image, false);
    let index = stage.set("/1/b");
    stage.later();
    assert!(stage.has_all() && !stage.is_unwell());
    assert_eq!(stage.told(), [("durable", index)]);
}

/// A new image is due and does not fit: changes are written as before, and checkpoints made.
#[test]
fn an_image_that_does_not_fit_holds_nothing_up() {
    let mut stage = Stage::new();
    stage.is(|wrong| &wrong.image_is_due, true);
    stage.is(|wrong| &wrong.no_room_for_an_image, true);
    for n in 0..5 {
        let index = stage.set(&format!("/1/new{n}"));
        stage.later();
        assert!(stage.has_all() && !stage.is_unwell());
        stage.imager.checkpoint();
        assert_eq!(stage.told(), [("shrink", index)], "the log is to make room for it");
    }
    stage.is(|wrong| &wrong.no_room_for_an_image, false);
    let index = stage.set("/1/last");
    stage.later();
    assert!(stage.has_all());
    assert_eq!(stage.told(), [("shrink", index)]);
    stage.wrong.image_is_due.store(true, Ordering::SeqCst);
    let index = stage.set("/1/more");
    stage.imager.room = Scarcity::Enough;
    stage.imager.write_whole();
    stage.imager.tell();
    assert_eq!(stage.told(), [("durable", index)], "an image is a checkpoint");
}

/// The alarm of a low disk: what can be made durable is, once, and the log is to keep little.
#[test]
fn a_low_disk_makes_the_log_short() {
    let mut stage = Stage::new();
    let index = stage.set("/1/a");
    stage.imager.checkpoint();
    assert_eq!(stage.told(), [("durable", index)]);
    stage.shared.room.hold(Some("low".to_owned()));
    stage.imager.settle();
    assert_eq!(stage.told(), [("shrink", index)]);
    stage.imager.settle();
    assert!(stage.told().is_empty());
    let index = stage.set("/1/b");
    stage.imager.settle();
    assert_eq!(stage.told(), [("shrink", index)]);
    stage.shared.room.hold(None);
    let index = stage.set("/1/c");
    stage.imager.settle();
    assert!(stage.told().is_empty(), "nothing is owed");
    stage.imager.checkpoint();
    assert_eq!(stage.told(), [("durable", index)]);
}

/// More paths than are remembered change while the disk is full.
#[test]
fn what_is_not_remembered_is_written_with_everything() {
    let mut stage = Stage::new();
    stage.is(|wrong| &wrong.no_room_for_changes, true);
    for round in 0..20 {
        let name = "n".repeat(250);
        let deep = format!("/1/{name}/{name}/{name}/{name}/{name}/{name}/{name}/{name}/{round}");
        for n in 0..2000 {
            stage.set(&format!("{deep}-{n}"));
        }
        stage.imager.write(false);
        assert_eq!(stage.shared.machine.read().tree.dirty_len(), 0);
    }
    assert!(stage.imager.unwritten.are_too_many());
    stage.is(|wrong| &wrong.no_room_for_changes, false);
    stage.later();
    assert!(stage.has_all() && !stage.imager.unwritten.are_too_many() && !stage.is_unwell());
}

/// A snapshot has come, and there is no room for it: the member waits, says so, and takes it over when there is.
#[test]
fn a_snapshot_waits_for_room() {
    let stage = Stage::new();
    let Stage { imager, shared, wrong, told: _told } = stage;
    wrong.no_room_for_an_image.store(true, Ordering::SeqCst);
    let new = machine(500);
    let state = new.snapshot();
    let (jobs, queue) = sync_channel(JOB_QUEUE);
    let imager = Imager { jobs: queue, ..imager };
    let thread = std::thread::spawn(move || imager.run());
    let (done, replaced) = sync_channel(1);
    jobs.send(Job::Replace(Box::new(new), done)).unwrap();
    let deadline = now() + Duration::from_secs(30);
    while !shared.room.is_low() {
        assert!(now() < deadline && !thread.is_finished(), "it says why it waits");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(replaced.try_recv().is_err(), "not yet");
    assert_ne!(shared.machine.read().snapshot(), state);
    wrong.no_room_for_an_image.store(false, Ordering::SeqCst);
    replaced.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(shared.machine.read().snapshot(), state);
    assert!(!shared.room.is_low());
    // And one that waits ends with the member.
    wrong.no_room_for_an_image.store(true, Ordering::SeqCst);
    let (done, replaced) = sync_channel(1);
    jobs.send(Job::Replace(Box::new(machine(600)), done)).unwrap();
    shared.room.stop();
    thread.join().unwrap().unwrap();
    assert!(replaced.recv().is_err());
}

/// A checkpoint was asked for just before a snapshot came: whatever is written in between must be the old state
/// or the new one, never the new position beside the old keys.
#[test]
fn a_crash_while_a_snapshot_is_taken_over_leaves_the_old_state_or_the_new() {
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let (old, new) = (machine(10), machine(500));
    let (old_state, new_state) = (old.snapshot(), new.snapshot());
    let mut double = MemState::default();
    double.replace(identity, &old.freeze()).unwrap();
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let shared = Arc::new(Shared::new(identity, "test".to_owned(), old));
    shared.machine.write().tree.take_dirty();
    let (jobs, queue) = sync_channel(JOB_QUEUE);
    let (inputs, inputs_queue) = sync_channel(8);
    let state = Watched(double, Arc::clone(&seen));
    let imager = Imager::new(state, identity, Arc::clone(&shared), queue, inputs);
    let thread = std::thread::spawn(move || imager.run());
    let (done, replaced) = sync_channel(1);
    jobs.send(Job::Checkpoint).unwrap();
    jobs.send(Job::Replace(Box::new(new), done)).unwrap();
    jobs.send(Job::Checkpoint).unwrap();
    replaced.recv().unwrap();
    assert_eq!(shared.machine.read().snapshot(), new_state, "shown once it is on disk");
    drop(jobs);
    thread.join().unwrap().unwrap();
    let seen = seen.lock();
    assert!(seen.len() >= 4);
    assert!(seen.iter().all(|state| *state == old_state || *state == new_state));
    assert_eq!(*seen.last().unwrap(), new_state);
    let durable: Vec<u64> = inputs_queue
        .try_iter()
        .map(|input| match input {
            Input::Durable(index) => index,
            _ => panic!("the image thread says nothing else"),
        })
        .collect();
    assert_eq!(durable, [11, 501]);
}
