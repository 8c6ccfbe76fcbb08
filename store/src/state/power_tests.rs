//! The image after a power loss: of what was written since the last sync any part may be on disk.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::membership::Member;
use crate::tree::Op;

/// Large writes of the image. sled begins to write over old pages at about the fourth.
const WRITES: u64 = 9;
/// Operations between two of them.
const OPERATIONS: u64 = 1500;
/// Keys that they are spread over.
const KEYS: u64 = 2500;
/// What the kernel writes at once.
const BLOCK: usize = 4096;

type Content = BTreeMap<PathBuf, Vec<u8>>;

/// How the disk is found.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// What lies within the old length of a file is there, what lies beyond is not.
    Growth,
    /// Some blocks are there and some are not.
    Blocks,
}

fn content(dir: &Path) -> Content {
    let log = dir.join("db");
    let others = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let others = others.filter(|path| path.is_file() && *path != log);
    let relative = |path: &Path| path.strip_prefix(dir).unwrap().to_owned();
    let files = others.chain([log.clone()]);
    files.map(|path| (relative(&path), std::fs::read(&path).unwrap())).collect()
}

/// What may be left of `now` if `durable` was the last that was synced.
fn lose(durable: &Content, now: &Content, loss: Loss, random: &mut u64) -> Content {
    let mut left = now.clone();
    let log = left.get_mut(Path::new("db")).unwrap();
    let old = &durable[Path::new("db")];
    match loss {
        Loss::Growth => log.truncate(old.len()),
        Loss::Blocks => {
            for (n, block) in log.chunks_mut(BLOCK).enumerate() {
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                if random.is_multiple_of(2) {
                    let end = (n * BLOCK + block.len()).min(old.len());
                    let kept = old.get(n * BLOCK..end).unwrap_or(&[]);
                    block[..kept.len()].copy_from_slice(kept);
                    block[kept.len()..].fill(0);
                }
            }
        }
    }
    left
}

/// What a start finds in `content`.
fn start(content: &Content) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("blobs")).unwrap();
    for (path, bytes) in content {
        std::fs::write(dir.path().join(path), bytes).unwrap();
    }
    SledState::open(dir.path()).unwrap().load().unwrap().expect("an image").1.snapshot()
}

fn fresh() -> Machine {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    Machine::bootstrap(Membership::bootstrap(vec![member]))
}

fn apply(machine: &mut Machine, n: u64) {
    let mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let path = format!("/1/d{}/k{}", mixed % 7, mixed % KEYS);
    let value = format!("{n:0100}");
    machine.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
    machine.applied.index = n;
}

/// Whatever batch of a large write the power loss hits, the next start finds the state before the write or after it.
#[test]
fn a_power_loss_leaves_the_state_before_a_write_or_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut live = fresh();
    let mut sled = SledState::open(dir.path()).unwrap();
    sled.replace(Identity { cluster_id: 1, member_id: 2 }, &live).unwrap();
    live.tree.take_dirty();
    let mut random = 0x2545_F491_4F6C_DD1D;
    let mut durable = content(dir.path());
    let mut overwrites = 0;
    for write in 0..WRITES {
        let before = live.snapshot();
        let since = live.tree.index();
        let first = live.applied.index + 1;
        (first..first + OPERATIONS).for_each(|n| apply(&mut live, n));
        let (writes, meta) = sled.changes(&Delta::take(&mut live, since)).unwrap();
        let after = live.snapshot();
        let mut batch = 0;
        let written = writes.commit(&sled.db, (KEY_META, encode(&meta)), || {
            sled.db.flush().unwrap();
            assert!(
                std::fs::read_dir(dir.path().join("blobs")).unwrap().next().is_none(),
                "all is in the log"
            );
            let now = content(dir.path());
            let (old, new) = (&durable[Path::new("db")], &now[Path::new("db")]);
            overwrites += usize::from(new.get(..old.len()).is_none_or(|kept| kept != old));
            for loss in [Loss::Growth, Loss::Blocks] {
                let found = start(&lose(&durable, &now, loss, &mut random));
                assert!(found == before || found == after, "write {write}, batch {batch}, {loss:?}");
            }
            batch += 1;
            durable = now;
            Ok(())
        });
        written.unwrap();
        assert!(batch > 2, "a journal, pieces and the end of the journal");
    }
    assert!(overwrites > 10, "sled wrote over old pages {overwrites} times: that is what is dangerous");
}
