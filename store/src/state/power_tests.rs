//! The image after a power loss: of what was written since the last sync any part may be on disk.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::membership::Member;
use crate::tree::Op;

/// Writes of the image, and a sync after every fourth.
const WRITES: u64 = 12;
/// Operations between two of them.
const OPERATIONS: u64 = 1500;
/// Keys that they are spread over.
const KEYS: u64 = 2500;
/// What the kernel writes at once.
const BLOCK: usize = 4096;
const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

/// Files below a directory, by their relative paths.
type Content = BTreeMap<PathBuf, Vec<u8>>;

/// How the disk is found.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// What lies within the old length of a file is there, what lies beyond is not; nor are new files.
    Growth,
    /// Some blocks are there and some are not; some new files are there, some files that were removed are there again.
    Blocks,
    /// The same of the last few blocks; all before them are there.
    Tail,
}

fn content(dir: &Path) -> Content {
    fn walk(dir: &Path, base: &Path, into: &mut Content) {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        // sled's log last: what it refers to is there then.
        paths.sort_by_key(|path| path.ends_with("db"));
        for path in paths {
            if path.is_dir() {
                walk(&path, base, into);
            } else {
                into.insert(path.strip_prefix(base).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut content = Content::new();
    walk(dir, dir, &mut content);
    content
}

/// Says yes and no.
struct Coin(u64);

impl Coin {
    fn toss(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.is_multiple_of(2)
    }
}

/// What may be left of `now` if `durable` was the last that was synced.
fn lose(durable: &Content, now: &Content, loss: Loss, coin: &mut Coin) -> Content {
    let mut left = Content::new();
    for (path, old) in durable.iter().filter(|(path, _)| !now.contains_key(*path)) {
        if coin.toss() {
            left.insert(path.clone(), old.clone());
        }
    }
    for (path, new) in now {
        let old = durable.get(path);
        let mut file = new.clone();
        match loss {
            Loss::Growth => match old {
                Some(old) => file.truncate(old.len()),
                None => continue,
            },
            Loss::Blocks if old.is_none() && coin.toss() => continue,
            Loss::Blocks | Loss::Tail => {
                let old = old.map_or(&[][..], Vec::as_slice);
                let from =
                    if matches!(loss, Loss::Tail) { (file.len() / BLOCK).saturating_sub(20) } else { 0 };
                for (n, block) in file.chunks_mut(BLOCK).enumerate().skip(from) {
                    if coin.toss() {
                        let end = (n * BLOCK + block.len()).min(old.len());
                        let kept = old.get(n * BLOCK..end).unwrap_or(&[]);
                        block[..kept.len()].copy_from_slice(kept);
                        block[kept.len()..].fill(0);
                    }
                }
            }
        }
        left.insert(path.clone(), file);
    }
    left
}

/// What a start finds in `content`.
fn start(content: &Content) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in content {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap().join("blobs")).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let found = SledState::open(dir.path()).and_then(|state| state.load());
    found.map(|found| found.expect("an image").1.snapshot()).map_err(|error| error.to_string())
}

fn fresh() -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    Machine::bootstrap(Membership::bootstrap(vec![member]))
}

/// Small values most of all, and some that take several chunks.
fn apply(machine: &mut Machine, n: u64) {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let path = format!("/1/d{}/k{}", mixed % 7, mixed % KEYS);
    let length = if mixed.is_multiple_of(97) { 10_000 } else { 100 };
    let value = format!("{n:0length$}");
    machine.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
    machine.applied.index = n;
}

/// Whatever is lost of the changes that were not synced, the next start finds a state that there has been, and none older
/// than the last that was synced; also when it then goes on and the power is lost again.
#[test]
fn a_power_loss_leaves_a_state_since_the_last_sync() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = fresh();
    let mut state = SledState::open(dir.path()).unwrap();
    state.replace(IDENTITY, &live.freeze()).unwrap();
    live.tree.take_dirty();
    let mut coin = Coin(0x2545_F491_4F6C_DD1D);
    let mut durable = content(dir.path());
    let mut since_sync = vec![live.snapshot()];
    let mut seen = std::collections::BTreeSet::new();
    for write in 0..WRITES {
        let since = live.tree.index();
        let first = live.applied.index + 1;
        (first..first + OPERATIONS).for_each(|n| apply(&mut live, n));
        state.write(&Delta::take(&mut live, since)).unwrap();
        since_sync.push(live.snapshot());
        let now = content(dir.path());
        for loss in [Loss::Growth, Loss::Blocks, Loss::Blocks, Loss::Tail, Loss::Tail] {
            let found = start(&lose(&durable, &now, loss, &mut coin)).unwrap();
            let which = since_sync.iter().position(|state| *state == found);
            seen.insert(which.unwrap_or_else(|| panic!("write {write}, {loss:?}: a state that never was")));
        }
        if write % 4 == 3 {
            state.sync().unwrap();
            durable = content(dir.path());
            since_sync = vec![live.snapshot()];
            assert!(start(&durable).unwrap() == live.snapshot());
        }
    }
    assert!(seen.len() > 2, "nothing was lost, or all: {seen:?}");
}

/// A new image takes the place of the old one: the power loss finds the old until `current` names the new, of which
/// nothing is missing then.
#[test]
fn a_power_loss_leaves_the_old_image_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = fresh();
    let mut state = SledState::open(dir.path()).unwrap();
    state.replace(IDENTITY, &live.freeze()).unwrap();
    let durable = content(dir.path());
    let before = live.snapshot();
    (10..3000).for_each(|n| apply(&mut live, n));
    let after = live.snapshot();
    let mut coin = Coin(77);
    // Filled, but not yet named.
    let image = Image::make(dir.path(), 2, IDENTITY, &live.freeze()).unwrap();
    for loss in [Loss::Growth, Loss::Blocks, Loss::Blocks, Loss::Blocks] {
        let found = start(&lose(&durable, &content(dir.path()), loss, &mut coin));
        assert!(found.as_ref() == Ok(&before), "{loss:?}");
    }
    // Named: the new image was synced before, the name may be there or not.
    let filled = content(dir.path());
    files::set_current(dir.path(), 2).unwrap();
    drop(image);
    let mut seen = [false; 2];
    for _ in 0..20 {
        let mut left = filled.clone();
        if coin.toss() {
            left.insert("current".into(), content(dir.path())[Path::new("current")].clone());
        }
        let found = start(&left).unwrap();
        assert!(found == before || found == after);
        seen[usize::from(found == after)] = true;
    }
    assert_eq!(seen, [true, true]);
}
