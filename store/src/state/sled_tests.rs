#![allow(clippy::unwrap_used, reason = "tests")]

//! What is written to sled is what is read again, after a restart and from an earlier version.

use super::*;
use crate::membership::Member;
use crate::small_disk::on_tmpfs;
use crate::state::mem::MemState;
use crate::tree::Op;

const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

fn machine() -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    Machine::bootstrap(Membership::bootstrap(vec![member]))
}

fn open(dir: &Path) -> SledState {
    SledState::open(dir).unwrap()
}

fn set(path: String, value: String) -> Op {
    Op::Set { path, dir: false, value, expires_ns: None, refresh: false }
}

/// The image and its double stay alike over many random changes and restarts, and alike with the machine.
#[test]
fn deltas_add_up_to_the_machine_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let mut live = machine();
    let mut double = MemState::default();
    double.replace(identity, &live.freeze()).unwrap();
    open(dir.path()).replace(identity, &live.freeze()).unwrap();
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
    let other = machine();
    open(dir.path()).replace(identity, &other.freeze()).unwrap();
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

/// However many events come between two writes, those of the history are there.
#[test]
fn the_history_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = machine();
    let mut state = open(dir.path());
    state.replace(IDENTITY, &live.freeze()).unwrap();
    live.tree.take_dirty();
    for times in [1, 999, 0, 1, 30, 970, 1000, 1001, 1, 5000, 3, 500, 1500] {
        state.write(&change(&mut live, times)).unwrap();
        let (_, loaded) = state.load().unwrap().unwrap();
        assert_eq!(loaded.snapshot(), live.snapshot(), "{times} more");
    }
}

/// An image as an earlier version wrote it; in version 2 with a large write that a crash interrupted after its journal.
fn write_old(dir: &Path, version: u8, live: &mut Machine) {
    let db = sled::Config::new().path(dir).flush_every_ms(None).open().unwrap();
    let meta = |live: &Machine, version| {
        encode(&old::Meta {
            version,
            identity: IDENTITY,
            applied: live.applied,
            index: live.tree.index(),
            membership: live.membership.clone().into(),
            nodes: live.tree.len() as u64,
        })
    };
    for (path, node) in live.tree.stored_nodes() {
        db.insert(node_key(&path), encode(&node)).unwrap();
    }
    db.insert(KEY_META, meta(live, version)).unwrap();
    if version == 2 {
        let mut journal: Vec<(Vec<u8>, Option<Vec<u8>>)> = vec![(node_key("/1/gone"), None)];
        db.insert(node_key("/1/gone"), vec![]).unwrap();
        for n in 0..600 {
            live.tree.apply(&set(format!("/1/later{n}"), "v".to_owned())).unwrap();
        }
        for (path, node) in live.tree.stored_nodes() {
            journal.push((node_key(&path), Some(encode(&node))));
        }
        for (n, record) in journal.chunks(100).enumerate() {
            db.insert([b"j", &u32::try_from(n).unwrap().to_be_bytes()[..]].concat(), encode(&record))
                .unwrap();
        }
        db.insert(KEY_META, meta(live, version)).unwrap();
    }
    for event in live.tree.history().iter() {
        db.insert(event_key(event.index()), encode(&**event)).unwrap();
    }
    db.flush().unwrap();
}

#[test]
fn images_of_earlier_versions_are_read_and_written_anew() {
    for version in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let mut live = machine();
        change(&mut live, 700);
        write_old(dir.path(), version, &mut live);
        let mut state = open(dir.path());
        assert_eq!(state.load().unwrap().unwrap().1.snapshot(), live.snapshot(), "version {version}");
        live.tree.take_dirty();
        for times in [1, 400, 2000] {
            state.write(&change(&mut live, times)).unwrap();
        }
        state.sync().unwrap();
        drop(state);
        let (who, loaded) = open(dir.path()).load().unwrap().unwrap();
        assert_eq!((who, loaded.snapshot()), (IDENTITY, live.snapshot()));
        assert!(
            !dir.path().join("db").exists() && !dir.path().join("blobs").exists(),
            "the old files are gone"
        );
    }
}

#[test]
fn images_of_later_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_old(dir.path(), 9, &mut machine());
    let refused = SledState::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("version 9, this program reads 1 to 3"), "{refused}");
    let dir = tempfile::tempdir().unwrap();
    let mut state = open(dir.path());
    state.replace(IDENTITY, &machine().freeze()).unwrap();
    with_database(&dir.path().join("image-1"), |database| {
        let meta = database.db.get(KEY_META).unwrap().unwrap();
        database.db.insert(KEY_META, [&[4], &meta[1..]].concat()).unwrap();
        Ok(())
    })
    .unwrap();
    let refused = state.load().unwrap_err().to_string();
    assert!(refused.contains("version 4, this program reads 1 to 3"), "{refused}");
}

/// A member is killed while sled opens the image: what it had not finished is not taken for the newest.
#[test]
fn an_unfinished_snapshot_of_the_index_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let live = machine();
    open(dir.path()).replace(IDENTITY, &live.freeze()).unwrap();
    let unfinished = dir.path().join("image-1/snap.7FFFFFFFFFFFFFFF.generating");
    std::fs::write(&unfinished, b"").unwrap();
    assert_eq!(open(dir.path()).load().unwrap().unwrap().1.snapshot(), live.snapshot());
    assert!(!unfinished.exists());
}

/// Nothing follows a write that failed, for what it held is lost; but everything can be written anew.
#[test]
fn after_a_failed_write_a_new_image_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = machine();
    let mut state = open(dir.path());
    state.replace(IDENTITY, &live.freeze()).unwrap();
    live.tree.take_dirty();
    state.write(&change(&mut live, 10)).unwrap();
    state.image.as_mut().unwrap().failed = true;
    let refused = state.write(&change(&mut live, 1)).unwrap_err().to_string();
    assert!(refused.contains("written anew"), "{refused}");
    state.replace(IDENTITY, &live.freeze()).unwrap();
    state.write(&change(&mut live, 7)).unwrap();
    state.sync().unwrap();
    drop(state);
    assert_eq!(open(dir.path()).load().unwrap().unwrap().1.snapshot(), live.snapshot());
    assert!(!dir.path().join("image-1").exists() && !dir.path().join("changes-1").exists());
}

/// The name of a new image cannot be written: the old one is as it was, and nothing is left of the new one.
#[test]
fn an_image_that_cannot_be_named_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = machine();
    let mut state = open(dir.path());
    state.replace(IDENTITY, &live.freeze()).unwrap();
    live.tree.take_dirty();
    let in_the_way = dir.path().join("current.new");
    std::fs::create_dir(&in_the_way).unwrap();
    state.write(&change(&mut live, 10)).unwrap();
    assert!(state.replace(IDENTITY, &live.freeze()).is_err());
    assert!(!dir.path().join("image-2").exists() && !dir.path().join("changes-2").exists());
    state.write(&change(&mut live, 10)).unwrap();
    assert_eq!(state.load().unwrap().unwrap().1.snapshot(), live.snapshot());
    std::fs::remove_dir(&in_the_way).unwrap();
    // Killed in the middle of trying for room, which is then not there for another try.
    std::fs::write(dir.path().join("room"), b"taken").unwrap();
    state.free_bytes = |dir| Some(if dir.join("room").exists() { 0 } else { u64::MAX });
    state.replace(IDENTITY, &live.freeze()).unwrap();
}

/// What has changed does not grow without end, and a new image is the old one with its changes.
#[test]
fn many_changes_become_a_new_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = machine();
    let mut state = open(dir.path());
    state.replace(IDENTITY, &live.freeze()).unwrap();
    live.tree.take_dirty();
    // Little room, so that it comes to that soon.
    state.free_bytes = |_| Some(KEEP_FREE + (6 << 20));
    let (mut longest, mut renewed) = (0, 0);
    for _ in 0..80 {
        state.write(&change(&mut live, 1000)).unwrap();
        longest = longest.max(state.usage().changes);
        if state.has_grown() {
            state.replace(IDENTITY, &live.freeze()).unwrap();
            assert!(!state.has_grown());
            renewed += 1;
        }
    }
    assert!((8 << 20..9 << 20).contains(&longest) && renewed > 1, "{longest} bytes, {renewed} times");
    assert_eq!(state.load().unwrap().unwrap().1.snapshot(), live.snapshot());
    assert!(!dir.path().join("image-1").exists());
    drop(state);
    assert_eq!(open(dir.path()).load().unwrap().unwrap().1.snapshot(), live.snapshot());
}

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// Writes values of 20 KB until there is no room. Returns why, the paths that were to be written, and the state before.
fn write_until_full(state: &mut SledState, live: &mut Machine) -> (String, Vec<String>, Vec<u8>) {
    let mut written = live.snapshot();
    loop {
        let since = live.tree.index();
        for n in 0..20 {
            live.tree.apply(&set(format!("/1/large{n}"), "v".repeat(20_000))).unwrap();
            live.applied.index += 1;
        }
        let delta = Delta::take(live, since);
        match state.write(&delta) {
            Ok(()) => written = live.snapshot(),
            Err(error) => {
                assert!(error.is_full());
                return (error.to_string(), delta.into_paths(), written);
            }
        }
    }
}

/// A disk that is full in the middle of a write, and in the middle of a new image: what is there stays readable, and it goes
/// on when there is room: with what was not written, or with everything.
#[test]
fn a_full_disk_leaves_what_was_there_and_room_ends_it() {
    on_tmpfs("size=96m", |disk| {
        let dir = disk.join("image");
        let mut live = machine();
        let mut state = open(&dir);
        // What is not seen before it comes, as with a quota.
        state.free_bytes = |_| None;
        state.replace(IDENTITY, &live.freeze()).unwrap();
        live.tree.take_dirty();
        let ballast = disk.join("ballast");
        std::fs::write(&ballast, vec![1; 84 << 20]).unwrap();
        let since = live.tree.index();
        let (error, paths, written) = write_until_full(&mut state, &mut live);
        assert!(error.contains("No space left"), "{error}");
        let (_, stored) = state.load().unwrap().unwrap();
        assert!(
            stored.snapshot() == written && stored.tree.index() > since,
            "the state before the failed write"
        );
        let error = state.replace(IDENTITY, &live.freeze()).unwrap_err();
        assert!(error.is_full(), "there is no room for another image either: {error}");
        assert!(state.load().unwrap().unwrap().1.snapshot() == written);
        std::fs::remove_file(ballast).unwrap();
        assert!(state.takes_changes());
        state.write(&Delta::take(&mut live, stored.tree.index()).with(paths)).unwrap();
        assert!(state.load().unwrap().unwrap().1.snapshot() == live.snapshot());
        state.replace(IDENTITY, &live.freeze()).unwrap();
        state.write(&change(&mut live, 3)).unwrap();
        assert!(state.load().unwrap().unwrap().1.snapshot() == live.snapshot());
    });
}

/// What the log needs is left to it, and no image is begun that would not fit.
#[test]
fn the_image_leaves_room_for_the_log() {
    on_tmpfs("size=64m", |disk| {
        let dir = disk.join("image");
        let mut live = machine();
        let mut state = open(&dir);
        state.replace(IDENTITY, &live.freeze()).unwrap();
        live.tree.take_dirty();
        let (error, _, written) = write_until_full(&mut state, &mut live);
        assert!(error.contains("no space beside the 16 MiB that the raft log needs"), "{error}");
        let free = room::free_bytes(disk).unwrap();
        assert!((KEEP_FREE..KEEP_FREE + (4 << 20)).contains(&free), "{free}");
        assert!(state.load().unwrap().unwrap().1.snapshot() == written);
        let error = state.replace(IDENTITY, &live.freeze()).unwrap_err();
        assert!(error.is_full() && error.to_string().contains("MiB are free"), "{error}");
        assert!(!dir.join("image-2").exists());
    });
}

/// However often a new image does not fit: nothing of the attempts is left, on disk or in this process.
#[test]
fn attempts_that_fail_leave_nothing() {
    fn open_files(disk: &Path) -> usize {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.starts_with(disk))).count()
    }
    fn many_attempts(disk: &Path) {
        let mut live = machine();
        let mut state = open(&disk.join("image"));
        state.free_bytes = |_| None;
        state.replace(IDENTITY, &live.freeze()).unwrap();
        for n in 0..300 {
            live.tree.apply(&set(format!("/1/large{n}"), "v".repeat(100_000))).unwrap();
        }
        let before = open_files(disk);
        for attempt in 0..20 {
            let error = state.replace(IDENTITY, &live.freeze()).unwrap_err();
            assert!(error.is_full(), "attempt {attempt}: {error}");
        }
        assert_eq!((open_files(disk), state.forgotten), (before, 0));
        assert!(!disk.join("image/image-2").exists());
    }
    on_tmpfs("size=24m", many_attempts);
}

/// The bytes that an image takes are not underestimated, nor so much overestimated that it is never made.
#[test]
fn what_an_image_takes_is_estimated() {
    for (keys, bytes) in [(20_000, 20), (5000, 1000), (800, 10_000), (100, 100_000), (12, 1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let mut live = machine();
        for n in 0..keys {
            live.tree.apply(&set(format!("/1/d{}/k{n}", n % 7), "v".repeat(bytes))).unwrap();
        }
        let mut state = open(dir.path());
        state.replace(IDENTITY, &live.freeze()).unwrap();
        let (taken, estimate) = (state.usage().image, room::image_bytes_of(&live.freeze()));
        assert!(
            (taken..taken * 3).contains(&estimate),
            "{keys} of {bytes}: {taken} bytes, estimate {estimate}"
        );
    }
}

/// A bit of any file flips between two runs: the next start gives a state that there has been, whole, or says that it
/// cannot. (An older one is what sled finds when the end of its log is damaged. The raft log has what it lacks, or the member
/// says that there is a gap.)
#[test]
fn a_flipped_bit_gives_a_state_that_has_been_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = machine();
    let mut right = vec![live.snapshot()];
    {
        let mut state = open(dir.path());
        state.replace(IDENTITY, &live.freeze()).unwrap();
        live.tree.take_dirty();
        for times in [40, 900, 30] {
            let since = live.tree.index();
            for n in 0..times {
                let op = set(format!("/1/d{}/k{n}", n % 7), format!("{n:0200}"));
                live.tree.apply(&op).unwrap();
                live.applied.index += 1;
            }
            state.write(&Delta::take(&mut live, since)).unwrap();
            right.push(live.snapshot());
        }
        state.sync().unwrap();
    }
    let files: Vec<PathBuf> = ["current", "changes-1", "image-1/db", "image-1/conf"].map(Into::into).into();
    let snapshots = std::fs::read_dir(dir.path().join("image-1")).unwrap().map(|entry| entry.unwrap().path());
    let snapshots = snapshots.filter(|path| path.to_string_lossy().contains("snap."));
    let relative = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().to_owned();
    let files: Vec<PathBuf> = files.into_iter().chain(snapshots.map(relative)).collect();
    let mut random: u64 = 0x9E37_79B9_7F4A_7C15;
    let (mut kept, mut refused) = (0, 0);
    for round in 0..FLIPS {
        let at = tempfile::tempdir().unwrap();
        let copied = at.path().join("image");
        copy(dir.path(), &copied);
        let file = copied.join(&files[round % files.len()]);
        let mut bytes = std::fs::read(&file).unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = usize::try_from(random >> 16).unwrap() % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, bytes).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = copied.clone();
        std::thread::spawn(move || {
            let loaded = SledState::open(&path).and_then(|state| {
                let loaded = state.load();
                std::mem::forget(state);
                loaded
            });
            let _ = sender.send(loaded.map(|found| found.map(|(_, machine)| machine.snapshot())));
        });
        let loaded = receiver.recv_timeout(std::time::Duration::from_secs(60));
        let what = format!("bit {bit} of {}", file.display());
        match loaded.unwrap_or_else(|error| panic!("{what}: {error}")) {
            Ok(found) => {
                let found = found.unwrap_or_else(|| panic!("{what}: nothing is found"));
                assert!(right.contains(&found), "{what}: a wrong state");
                kept += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(&copied.display().to_string()), "{what}: {error}");
                refused += 1;
            }
        }
    }
    assert!(kept > 0 && refused > 0, "{kept} starts with a state, {refused} refused");
}

/// Flips in one run of the test.
const FLIPS: usize = 120;
