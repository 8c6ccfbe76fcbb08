#![allow(clippy::unwrap_used, reason = "tests")]

//! What is written to sled is what is read again, after a restart and from an earlier version.

use super::*;
use crate::membership::Member;
use crate::state::mem::MemState;
use crate::tree::Op;

fn machine() -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    Machine::bootstrap(Membership::bootstrap(vec![member]))
}

/// sled's own threads may hold a closed database, and its lock, for a moment longer.
fn open(dir: &Path) -> SledState {
    let mut tries = 0;
    loop {
        match SledState::open(dir) {
            Ok(state) => return state,
            Err(error) if tries > 200 => panic!("{error}"),
            Err(_) => tries += 1,
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The image and its double stay alike over many random changes and restarts, and alike with the machine.
#[test]
fn deltas_add_up_to_the_machine_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    let mut double = MemState::default();
    double.replace(identity, &live).unwrap();
    open(dir.path()).replace(identity, &live).unwrap();
    live.tree.take_dirty();
    for round in 0u64..20 {
        let since = live.tree.index();
        for n in 0..100 {
            let path = format!("/1/d{}/k{}", (round + n) % 5, n % 17);
            let op = match (round * 7 + n) % 5 {
                0 => Op::Delete { path: "/1/d1".into(), dir: true, recursive: true },
                1 => Op::Delete { path, dir: false, recursive: false },
                _ => Op::Set { path, dir: false, value: n.to_string(), expires_ns: Some(9), refresh: false },
            };
            let _ = live.tree.apply(&op);
            live.applied.index += 1;
        }
        let delta = Delta::take(&mut live, since);
        double.write(&delta).unwrap();
        {
            let mut sled = open(dir.path());
            sled.write(&delta).unwrap();
            sled.sync().unwrap();
        }
        let (who, loaded) = open(dir.path()).load().unwrap().unwrap();
        assert_eq!(who, identity);
        assert_eq!(loaded.snapshot(), live.snapshot(), "round {round}");
        assert_eq!(double.load().unwrap().unwrap().1.snapshot(), live.snapshot());
    }
    {
        let sled = open(dir.path());
        sled.db.remove(node_key("/0/members")).unwrap();
        let refused = sled.load().unwrap_err().to_string();
        assert!(refused.contains("keys are stored where"), "{refused}");
    }
    let other = machine();
    open(dir.path()).replace(identity, &other).unwrap();
    assert_eq!(open(dir.path()).load().unwrap().unwrap().1.snapshot(), other.snapshot());
}

/// Changes one key so many times; what changed.
fn change(live: &mut Machine, times: usize) -> Delta {
    let since = live.tree.index();
    for n in 0..times {
        let op = Op::Set {
            path: "/1/k".into(),
            dir: false,
            value: format!("{n:0100}"),
            expires_ns: None,
            refresh: false,
        };
        live.tree.apply(&op).unwrap();
        live.applied.index += 1;
    }
    Delta::take(live, since)
}

/// However many events come between two writes, the image holds those of the history and at most a record more.
#[test]
fn events_that_left_the_history_leave_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    let mut sled = open(dir.path());
    sled.replace(identity, &live).unwrap();
    live.tree.take_dirty();
    for times in [1, 999, 0, 1, 30, 970, 1000, 1001, 1, 5000, 3, 500, 1500] {
        let delta = change(&mut live, times);
        sled.write(&delta).unwrap();
        let (_, loaded) = sled.load().unwrap().unwrap();
        assert_eq!(loaded.snapshot(), live.snapshot(), "{times} more");
        let mut stored = Vec::new();
        for record in sled.db.scan_prefix(b"e") {
            let (key, record) = record.unwrap();
            let before = stored.len();
            sled.read_events(&record, &mut stored).unwrap();
            assert_eq!(*key, event_key(stored[before].index()), "a record is found by its first event");
            assert!(record.len() < 2 * EVENT_RECORD_BYTES && stored.len() > before);
        }
        let kept = live.tree.history().iter().count();
        assert!((kept..kept + 40).contains(&stored.len()), "{} stored, {kept} kept", stored.len());
    }
}

/// Version 1 has a record for every event.
#[test]
fn an_image_of_version_1_is_read_and_written_on() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    change(&mut live, 700);
    let mut sled = open(dir.path());
    sled.replace(identity, &live).unwrap();
    for key in sled.db.scan_prefix(b"e").keys() {
        sled.db.remove(key.unwrap()).unwrap();
    }
    for event in live.tree.history().iter() {
        sled.db.insert(event_key(event.index()), encode(&**event)).unwrap();
    }
    let meta = sled.db.get(KEY_META).unwrap().unwrap();
    let meta = Meta { version: 1, ..sled.read(&meta, "meta").unwrap() };
    sled.db.insert(KEY_META, encode(&meta)).unwrap();
    assert_eq!(sled.load().unwrap().unwrap().1.snapshot(), live.snapshot());
    for times in [1, 400, 2000] {
        let delta = change(&mut live, times);
        sled.write(&delta).unwrap();
        assert_eq!(sled.load().unwrap().unwrap().1.snapshot(), live.snapshot(), "{times} more");
    }
    sled.db.insert(KEY_META, encode(&Meta { version: VERSION + 1, ..meta })).unwrap();
    assert!(sled.load().unwrap_err().to_string().contains("version 3, this program reads 1 to 2"));
}

/// A member is killed in the middle of a large write.
#[test]
fn an_interrupted_write_is_finished_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    let before = live.snapshot();
    {
        let mut sled = open(dir.path());
        sled.replace(identity, &live).unwrap();
        live.tree.take_dirty();
        for n in 0..1000 {
            let (path, value) = (format!("/1/k{n}"), "v".to_owned());
            live.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
            live.applied.index += 1;
        }
        let delta = Delta::take(&mut live, 0);
        let (writes, meta) = sled.changes(&delta).unwrap();
        writes.commit_first(0, &sled.db, (KEY_META, encode(&meta)));
        assert_eq!(sled.load().unwrap().unwrap().1.snapshot(), before);
        let (writes, meta) = sled.changes(&delta).unwrap();
        writes.commit_first(2, &sled.db, (KEY_META, encode(&meta)));
        assert!(sled.load().is_err(), "what is half done is not taken for whole");
    }
    let sled = open(dir.path());
    assert_eq!(sled.load().unwrap().unwrap().1.snapshot(), live.snapshot());
}

/// A member is killed while sled opens the image: what it had not finished is not taken for the newest.
#[test]
fn an_unfinished_snapshot_of_the_index_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let live = machine();
    open(dir.path()).replace(Identity { cluster_id: 1, member_id: 2 }, &live).unwrap();
    let unfinished = dir.path().join("snap.7FFFFFFFFFFFFFFF.generating");
    std::fs::write(&unfinished, b"").unwrap();
    assert_eq!(open(dir.path()).load().unwrap().unwrap().1.snapshot(), live.snapshot());
    assert!(!unfinished.exists());
}

/// Nothing follows a write that failed: its journal may be there, and would be carried out over what follows.
#[test]
fn after_a_failed_write_there_is_no_other_and_the_next_start_puts_it_right() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    let copy = tempfile::tempdir().unwrap();
    let mut sled = open(dir.path());
    sled.replace(identity, &live).unwrap();
    live.tree.take_dirty();
    for n in 0..2000 {
        let (path, value) = (format!("/1/k{n}"), "v".to_owned());
        live.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
        live.applied.index += 1;
    }
    let after = live.snapshot();
    let (writes, meta) = sled.changes(&Delta::take(&mut live, 0)).unwrap();
    let mut syncs = 0;
    let failed = writes.commit(&sled.db, (KEY_META, encode(&meta)), || {
        sled.db.flush().unwrap();
        syncs += 1;
        if syncs < 3 { Ok(()) } else { Err(sled.damaged("the disk is full")) }
    });
    assert!(sled.done(failed).unwrap_err().to_string().contains("the disk is full"));
    let refused = sled.write(&change(&mut live, 1)).unwrap_err().to_string();
    assert!(refused.contains("restart"), "{refused}");
    let refused = sled.replace(identity, &live).unwrap_err().to_string();
    assert!(refused.contains("restart"), "{refused}");
    // The process ends: what it has written stays. (sled itself is not closed, nor its lock let go of.)
    let copied =
        std::process::Command::new("cp").arg("-a").arg(dir.path()).arg(copy.path().join("image")).status();
    assert!(copied.unwrap().success());
    assert_eq!(open(&copy.path().join("image")).load().unwrap().unwrap().1.snapshot(), after);
}
