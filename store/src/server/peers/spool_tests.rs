#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::Mutex;

use super::*;
use crate::membership::{Member, Membership};
use crate::tree::Op;

fn machine(keys: u64, bytes: usize) -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
    for n in 0..keys {
        let (path, value) = (format!("/1/k{n}"), format!("{n:0bytes$}"));
        machine.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
    }
    machine.applied.index = 1000 + keys;
    machine
}

fn id(machine: &Machine, bytes: &[u8]) -> SnapshotId {
    let position = machine.applied;
    SnapshotId {
        index: position.index,
        term: position.term,
        total: bytes.len() as u64,
        crc: crc32fast::hash(bytes),
    }
}

fn body(bytes: &[u8], offset: u64) -> Vec<u8> {
    let from = usize::try_from(offset).unwrap();
    let data = &bytes[from..bytes.len().min(from + 1000)];
    let chunk = Chunk { offset, data };
    [&chunk.head()[..], data].concat()
}

/// What a start of the member finds.
fn begin(dir: &Path, id: SnapshotId) -> Result<Arriving, SpoolError> {
    let spool = Arc::new(Mutex::new(Spool::open(dir, 0).unwrap()));
    Arriving::begin(spool.try_lock_owned().unwrap(), id)
}

fn take_until(arriving: &mut Arriving, bytes: &[u8], end: u64) {
    while arriving.incoming().have() < end {
        arriving.take(&body(bytes, arriving.incoming().have())).unwrap();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a crash leaves of the file, and whichever bit is turned in it: it goes on with the sound beginning, and
    /// the state is the one that was sent.
    #[test]
    fn it_goes_on_after_a_crash(stop in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(), turned in prop::option::of(any::<prop::sample::Index>())) {
        let machine = machine(40, 200);
        let bytes = machine.snapshot();
        let id = id(&machine, &bytes);
        let dir = tempfile::tempdir().unwrap();
        let mut arriving = begin(dir.path(), id).unwrap();
        take_until(&mut arriving, &bytes, stop.index(bytes.len() + 1) as u64);
        let (had, path) = (arriving.incoming().have(), arriving.path.clone());
        drop(arriving);
        let mut left = fs::read(&path).unwrap();
        left.truncate(cut.index(left.len() + 1));
        let whole = left.len();
        if let (Some(at), false) = (turned, left.is_empty()) {
            let at = at.index(left.len());
            left[at] ^= 4;
        }
        fs::write(&path, &left).unwrap();
        let mut arriving = begin(dir.path(), id).unwrap();
        let have = arriving.incoming().have();
        prop_assert!(have <= had);
        if turned.is_none() {
            prop_assert!(have + 1016 * (have / 1000 + 1) > 0 && have >= (whole as u64 / 1016) * 1000 || have == had);
        }
        take_until(&mut arriving, &bytes, id.total);
        prop_assert_eq!(arriving.finish().unwrap().snapshot(), bytes);
        prop_assert!(files(dir.path()).is_empty(), "what has been read is removed");
    }
}

#[test]
fn a_damaged_chunk_is_refused_with_its_offset_and_changes_nothing() {
    let machine = machine(40, 200);
    let bytes = machine.snapshot();
    let dir = tempfile::tempdir().unwrap();
    let mut arriving = begin(dir.path(), id(&machine, &bytes)).unwrap();
    take_until(&mut arriving, &bytes, 2000);
    let mut damaged = body(&bytes, 2000);
    damaged[500] ^= 1;
    let error = arriving.take(&damaged).unwrap_err();
    assert!(matches!(error, SpoolError::Chunk(TransferError::Checksum { offset: 2000, .. })), "{error}");
    assert!(error.to_string().contains("byte 2000"), "{error}");
    take_until(&mut arriving, &bytes, bytes.len() as u64);
    assert_eq!(arriving.finish().unwrap().snapshot(), bytes);
}

#[test]
fn what_is_not_what_was_offered_is_forgotten() {
    let machine = machine(10, 200);
    let bytes = machine.snapshot();
    let right = id(&machine, &bytes);
    let dir = tempfile::tempdir().unwrap();
    let mut arriving = begin(dir.path(), SnapshotId { crc: 1, ..right }).unwrap();
    let error = loop {
        if let Err(error) = arriving.take(&body(&bytes, arriving.incoming().have())) {
            break error;
        }
    };
    assert!(matches!(error, SpoolError::Chunk(TransferError::Whole { wanted: 1, .. })), "{error}");
    assert!(files(dir.path()).is_empty());

    let mut arriving = begin(dir.path(), SnapshotId { index: 77, ..right }).unwrap();
    take_until(&mut arriving, &bytes, right.total);
    let error = arriving.finish().unwrap_err();
    assert!(matches!(error, SpoolError::Position { found: 1010, offered: 77 }), "{error}");

    let junk = vec![9; 3000];
    let mut arriving = begin(dir.path(), id(&machine, &junk)).unwrap();
    take_until(&mut arriving, &junk, 3000);
    let error = arriving.finish().unwrap_err();
    assert!(matches!(error, SpoolError::State { source: SnapshotError::Version(9), .. }), "{error}");
    assert!(files(dir.path()).is_empty());
}

#[test]
fn there_is_at_most_one_file() {
    let machine = machine(10, 200);
    let bytes = machine.snapshot();
    let newer = id(&machine, &bytes);
    let older = SnapshotId { index: 5, ..newer };
    let dir = tempfile::tempdir().unwrap();
    let mut arriving = begin(dir.path(), older).unwrap();
    take_until(&mut arriving, &bytes, 1000);
    drop(arriving);
    drop(begin(dir.path(), newer).unwrap());
    assert_eq!(files(dir.path()), [dir.path().join(name(newer))], "the other one goes when another is begun");
    fs::write(dir.path().join(name(older)), b"x").unwrap();
    fs::write(dir.path().join("else"), b"x").unwrap();
    Spool::open(dir.path(), 0).unwrap();
    assert_eq!(files(dir.path()), [dir.path().join(name(newer))], "and the newest is kept at a start");
    Spool::open(dir.path(), newer.index).unwrap();
    assert!(files(dir.path()).is_empty(), "unless the state is as new");
}

#[test]
fn a_snapshot_for_which_there_is_no_room_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let huge = SnapshotId { index: 9, term: 1, total: 1 << 50, crc: 0 };
    let error = begin(dir.path(), huge).unwrap_err();
    assert!(matches!(error, SpoolError::NoRoom { total, .. } if total == 1 << 50), "{error}");
    assert!(files(dir.path()).is_empty());
}

/// The disk fills while a snapshot of small values arrives, whose image takes five times as much: it is refused before raft
/// hears of it, and the next before it is sent, until there is room. The disk is a small tmpfs, which takes root.
#[test]
fn a_snapshot_whose_image_has_no_room_is_refused() {
    crate::small_disk::on_tmpfs("size=64m", |disk| {
        let dir = disk.join("snap-in");
        let machine = machine(20_000, 20);
        let bytes = machine.snapshot();
        let id = id(&machine, &bytes);
        let spool = Arc::new(Mutex::new(Spool::open(&dir, 0).unwrap()));
        let begin = || Arriving::begin(Arc::clone(&spool).try_lock_owned().unwrap(), id);
        let mut arriving = begin().unwrap();
        take_until(&mut arriving, &bytes, id.total);
        let ballast = disk.join("ballast");
        let left = LOW + id.total * 3;
        let free = free_bytes(disk).unwrap();
        fs::write(&ballast, vec![1; usize::try_from(free - left).unwrap()]).unwrap();
        let error = arriving.finish().unwrap_err();
        assert!(matches!(error, SpoolError::NoRoom { .. }), "{error}");
        assert!(files(&dir).is_empty(), "the log has the room");
        let error = begin().unwrap_err();
        assert!(matches!(error, SpoolError::NoRoom { .. }), "it is known now: {error}");
        fs::remove_file(ballast).unwrap();
        let mut arriving = begin().unwrap();
        take_until(&mut arriving, &bytes, id.total);
        assert_eq!(arriving.finish().unwrap().snapshot(), bytes);
    });
}
