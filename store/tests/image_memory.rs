//! What writing the image costs in memory. Alone in a process, whose resident memory is then that of the image.

#![allow(clippy::unwrap_used, reason = "tests")]

use store::machine::Machine;
use store::membership::{Member, Membership};
use store::state::sled::SledState;
use store::state::{Delta, Identity, StateStore};
use store::tree::Op;

/// Changed keys per write of the image: as many as ten thousand writes a second change between two of them.
const KEYS: usize = 32_000;
/// Writes until a new image has been made twice, in which all of the state goes through the engine.
const WARM_UP: usize = 15;
/// Writes that must not take more: a new image is made twice again.
const WRITES: usize = 14;
/// What all of it may take, in KiB: the keys, their state in the engine and one write of all of them.
const LIMIT_KIB: u64 = 80 << 10;
/// What they may take all the same, in KiB: the allocator is not exact.
const ALLOWED_KIB: u64 = 16 << 10;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn writing_the_image_takes_little_memory_and_no_more_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
    let mut state = SledState::open(dir.path()).unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut renewed = 0;
    state.replace(identity, &machine.freeze()).unwrap();
    machine.tree.take_dirty();
    let mut before = 0;
    for round in 0..WARM_UP + WRITES {
        let since = machine.tree.index();
        for n in 0..KEYS {
            let (path, value) = (format!("/1/d{}/k{n}", n % 64), format!("{round:0128}"));
            let op = Op::Set { path, dir: false, value, expires_ns: None, refresh: false };
            machine.tree.apply(&op).unwrap();
            machine.applied.index += 1;
        }
        let delta = Delta::take(&mut machine, since);
        state.write(&delta).unwrap();
        if state.has_grown() {
            state.replace(identity, &machine.freeze()).unwrap();
            renewed += 1;
        }
        if round + 1 == WARM_UP {
            before = resident_kib();
        }
    }
    assert!(before <= LIMIT_KIB, "{WARM_UP} writes took {before} KiB");
    assert!(renewed >= 4, "a new image was made {renewed} times");
    let after = resident_kib();
    assert!(after <= before + ALLOWED_KIB, "{WRITES} writes took it from {before} to {after} KiB");
}
