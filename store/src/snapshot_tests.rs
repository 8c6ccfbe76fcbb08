#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::membership::Member;
use crate::tree::Op;
use crate::wire::command::{Command, Envelope, RequestId};

fn machine(keys: u64) -> Machine {
    let members = (1..=3).map(|n| Member::bootstrap(&format!("n{n}"), &[format!("http://h{n}:2380")], "t"));
    let mut machine = Machine::bootstrap(Membership::bootstrap(members.collect()));
    (0..keys).for_each(|n| set(&mut machine, n, &n.to_string()));
    machine
}

fn set(machine: &mut Machine, n: u64, value: &str) {
    let op = Op::Set {
        path: format!("/1/d{}/k{n}", n % 7),
        dir: false,
        value: value.to_owned(),
        expires_ns: n.is_multiple_of(3).then_some(1),
        refresh: false,
    };
    let command = Envelope { id: RequestId { member: 1, number: n }, command: Command::V2(op) };
    let position = Position { index: machine.applied.index + 1, term: 2 };
    machine.apply(position, &command.encode()).unwrap();
}

#[test]
fn a_snapshot_gives_the_same_machine() {
    let machine = machine(1200);
    let copy = Machine::from_snapshot(&machine.snapshot()).unwrap();
    assert_eq!(copy.snapshot(), machine.snapshot());
    assert_eq!(copy.digest(), machine.digest());
    assert_eq!(copy.tree.history().first_index(), machine.tree.history().first_index());
    assert_eq!(copy.tree.has_expiries(), machine.tree.has_expiries());
}

#[test]
fn it_stands_still_while_the_machine_goes_on() {
    let mut machine = machine(2000);
    let (before, frozen) = (machine.snapshot(), machine.freeze());
    for n in 0..3000 {
        set(&mut machine, n, "changed");
    }
    let delete = Op::Delete { path: "/1/d3".to_owned(), dir: true, recursive: true };
    machine.tree.apply(&delete).unwrap();
    let mut bytes = Vec::new();
    frozen.write_to(&mut bytes).unwrap();
    assert!(bytes == before, "the snapshot shows what came after it");
    assert_ne!(machine.snapshot(), before);
}

#[test]
fn what_is_no_snapshot_is_refused_with_its_place() {
    let bytes = machine(20).snapshot();
    assert_eq!(Machine::from_snapshot(&[9]).unwrap_err(), SnapshotError::Version(9));
    assert_eq!(Machine::from_snapshot(&[]).unwrap_err(), SnapshotError::Damaged { offset: 0 });
    let trailing = [&bytes[..], &[0]].concat();
    let offset = bytes.len() as u64;
    assert_eq!(Machine::from_snapshot(&trailing).unwrap_err(), SnapshotError::Trailing { offset });
    let mut long = bytes;
    long[1] = 0xff;
    assert_eq!(Machine::from_snapshot(&long).unwrap_err(), SnapshotError::Damaged { offset: 1 });
}

#[test]
fn no_prefix_of_a_snapshot_is_one() {
    let bytes = machine(20).snapshot();
    for cut in 0..bytes.len() {
        assert!(matches!(Machine::from_snapshot(&bytes[..cut]), Err(SnapshotError::Damaged { .. })), "{cut}");
    }
}

proptest! {
    /// The digest finds what the format does not; where it does not look (the events), there is the checksum of the
    /// transfer.
    #[test]
    fn a_turned_bit_gives_no_other_keys(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let machine = machine(50);
        let mut bytes = machine.snapshot();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Machine::from_snapshot(&bytes) {
            prop_assert_eq!(other.digest(), machine.digest());
        }
    }
}
