#![allow(clippy::unwrap_used, reason = "tests")]

//! What a crash at any point of taking over a snapshot leaves on disk.

use std::sync::mpsc::sync_channel;

use super::*;
use crate::machine::{Machine, Position};
use crate::membership::{Member, Membership};
use crate::snapshot::Snapshot;
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

    fn has_grown(&self) -> bool {
        self.0.has_grown()
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.0.sync()
    }
}

/// A double whose disk is full as long as it is said so.
struct Full(MemState, Arc<std::sync::atomic::AtomicBool>);

impl Full {
    fn check(&self) -> Result<(), StateError> {
        if self.1.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StateError::Damaged { dir: "memory".to_owned(), what: "no space left".to_owned() });
        }
        Ok(())
    }
}

impl StateStore for Full {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        self.0.load()
    }

    fn replace(&mut self, identity: Identity, whole: &Snapshot) -> Result<(), StateError> {
        self.check()?;
        self.0.replace(identity, whole)
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        self.check()?;
        self.0.write(delta)
    }

    fn has_grown(&self) -> bool {
        self.0.has_grown()
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.check()?;
        self.0.sync()
    }
}

/// The disk is full for a while: the member goes on, the log is not compacted, and then the image is whole again.
#[test]
fn a_full_disk_loses_nothing_and_is_over_when_there_is_room() {
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let start = machine(10);
    let mut state = Full(MemState::default(), Arc::clone(&full));
    state.replace(identity, &start.freeze()).unwrap();
    let shared = Arc::new(Shared::new(identity, "test".to_owned(), start));
    shared.machine.write().tree.take_dirty();
    let set = |n: u64| {
        let mut machine = shared.machine.write();
        let op = Op::Set {
            path: format!("/1/k{n}"),
            dir: false,
            value: "v".into(),
            expires_ns: None,
            refresh: false,
        };
        machine.tree.apply(&op).unwrap();
        machine.applied.index += 1;
    };
    let (_, queue) = sync_channel(1);
    let (inputs, _inputs_queue) = sync_channel(1);
    let (written, applied) = (shared.machine.read().tree.index(), shared.machine.read().applied.index);
    let mut imager = Imager {
        state,
        identity,
        shared: Arc::clone(&shared),
        jobs: queue,
        inputs,
        written,
        applied,
        retry: None,
    };
    for at_sync in [false, true] {
        set(100);
        if at_sync {
            assert!(imager.write(false).is_some());
        }
        full.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(imager.checkpoint(), None);
        assert!(shared.image_fault.lock().as_ref().unwrap().contains("no space left"));
        let mut last = Duration::ZERO;
        for n in 200..210 {
            set(n);
            assert_eq!(imager.write(true), None, "not yet time, or still full");
            assert_eq!(
                shared.machine.read().tree.dirty_len(),
                0,
                "what will be written anew is not remembered"
            );
            let retry = imager.retry.as_mut().unwrap();
            assert!(retry.pause >= last && retry.pause <= MAX_PAUSE);
            last = retry.pause;
            retry.at = now();
        }
        full.store(false, std::sync::atomic::Ordering::SeqCst);
        let index = shared.machine.read().applied.index;
        assert_eq!(imager.checkpoint(), Some(index));
        assert!(shared.image_fault.lock().is_none() && imager.retry.is_none());
        set(300);
        assert!(imager.checkpoint().is_some());
        let (_, stored) = imager.state.load().unwrap().unwrap();
        assert_eq!(stored.snapshot(), shared.machine.read().snapshot());
    }
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
    let (written, applied) = {
        let machine = shared.machine.read();
        (machine.tree.index(), machine.applied.index)
    };
    let state = Watched(double, Arc::clone(&seen));
    let imager = Imager {
        state,
        identity,
        shared: Arc::clone(&shared),
        jobs: queue,
        inputs,
        written,
        applied,
        retry: None,
    };
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
