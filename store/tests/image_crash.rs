//! The image under SIGKILL: whatever moment it hits, what is read again is a state that there has been, and none older
//! than the last that was made durable.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use store::machine::Machine;
use store::membership::{Member, Membership};
use store::state::sled::SledState;
use store::state::{Delta, Identity, StateStore};
use store::tree::Op;

/// Tells the second half of this test that it is the one to be killed, and where to write.
const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };
const DIR_VARIABLE: &str = "WEFT_TEST_IMAGE_DIR";
/// How often it is killed.
const KILLS: u64 = 25;
/// Operations between two writes of the image.
const OPERATIONS: u64 = 1500;
/// Keys that they are spread over.
const KEYS: u64 = 2500;
/// Writes of the image between two that are made durable.
const WRITES: u64 = 3;

fn fresh() -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    Machine::bootstrap(Membership::bootstrap(vec![member]))
}

/// Operation `n` of a sequence that is always the same.
fn apply(machine: &mut Machine, n: u64) {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let path = format!("/1/d{}/k{}", mixed % 7, mixed % KEYS);
    let op = if mixed.is_multiple_of(11) {
        Op::Delete { path, dir: false, recursive: false }
    } else {
        Op::Set { path, dir: false, value: format!("{n:0100}"), expires_ns: None, refresh: false }
    };
    let _ = machine.tree.apply(&op);
    machine.applied.index = n;
}

fn open(dir: &Path) -> SledState {
    SledState::open(dir).unwrap()
}

/// The half that is killed: writes the image again and again, and notes in the file `durable` what must not be lost.
#[test]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let dir = Path::new(&dir);
    let mut state = open(&dir.join("image"));
    let mut machine = if let Some((_, machine)) = state.load().unwrap() {
        machine
    } else {
        let machine = fresh();
        state.replace(IDENTITY, &machine.freeze()).unwrap();
        machine
    };
    machine.tree.take_dirty();
    loop {
        for _ in 0..WRITES {
            let since = machine.tree.index();
            let begin = machine.applied.index + 1;
            (begin..begin + OPERATIONS).for_each(|n| apply(&mut machine, n));
            state.write(&Delta::take(&mut machine, since)).unwrap();
            if state.has_grown() {
                state.replace(IDENTITY, &machine.freeze()).unwrap();
            }
        }
        state.sync().unwrap();
        let note = dir.join("durable.new");
        std::fs::write(&note, machine.applied.index.to_string()).unwrap();
        std::fs::rename(&note, dir.join("durable")).unwrap();
    }
}

#[test]
fn sigkill_leaves_a_state_that_there_has_been() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = fresh();
    let begun = expected.applied.index;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writes_until_it_is_killed"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // No condition to wait for: any moment will do, and different ones are wanted.
        std::thread::sleep(Duration::from_millis(150 + kill * 37 % 200));
        child.kill().unwrap();
        child.wait().unwrap();
        let durable = std::fs::read_to_string(dir.path().join("durable")).unwrap_or_default();
        let durable: u64 = durable.parse().unwrap_or(0);
        let image = dir.path().join("image");
        let Some((_, found)) = open(&image).load().unwrap() else {
            assert_eq!(durable, 0, "kill {kill}: everything is lost");
            continue;
        };
        assert!(found.applied.index >= durable, "kill {kill}: {} of {durable}", found.applied.index);
        let next = expected.applied.index.max(begun) + 1;
        (next..=found.applied.index).for_each(|n| apply(&mut expected, n));
        assert_eq!(found.applied, expected.applied, "kill {kill}: never older than what was read before");
        assert!(found.snapshot() == expected.snapshot(), "kill {kill}: the state at {}", found.applied.index);
    }
    assert!(expected.applied.index > begun, "nothing was written");
}
