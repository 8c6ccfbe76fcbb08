//! The image in sled 0.34.
//!
//! One sled tree, so that one batch is one atomic step. Keys: `n` + path for a node, `e` + index (8 bytes,
//! network order) for an event, `m` for the rest (identity, position, index, membership). Values are
//! postcard. sled's own `flush` never calls `fsync` (docs/adr/0002), so [`SledState::sync`] opens its
//! files a second time and does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sled::{Batch, Db, IVec, Mode};

use super::{Delta, Identity, StateError, StateStore};
use crate::machine::{Machine, Position};
use crate::membership::Membership;
use crate::tree::image::StoredNode;
use crate::tree::{Event, Tree};

const KEY_META: &[u8] = b"m";
/// The version of the image that this build writes.
const VERSION: u8 = 1;
/// sled's page cache. The state lives in memory as a tree, so this only serves the writer.
const CACHE_BYTES: u64 = 2 << 20;
/// Operations of a batch for which one round of collecting is enough: a round frees up to 512 objects
/// (crossbeam-epoch: 8 bags of 64), and an operation leaves about 2.
const OPERATIONS_PER_ROUND: usize = 64;

#[derive(Serialize, Deserialize)]
struct Meta {
    version: u8,
    identity: Identity,
    applied: Position,
    index: u64,
    membership: Membership,
    /// Number of nodes stored, so that a missing one does not go unnoticed.
    nodes: u64,
}

/// A batch that knows how large it is.
#[derive(Default)]
struct Writes {
    batch: Batch,
    operations: usize,
}

impl Writes {
    fn insert(&mut self, key: impl Into<IVec>, value: &impl Serialize) {
        self.batch.insert(key.into(), encode(value));
        self.operations += 1;
    }

    fn remove(&mut self, key: impl Into<IVec>) {
        self.batch.remove(key.into());
        self.operations += 1;
    }

    /// Carries it out in one step, and frees what sled replaced in memory.
    ///
    /// sled leaves the old version of every page it touches to crossbeam-epoch, which frees a little at every 128th
    /// access. A batch is one access, however large: without the rounds here a member whose clients write many keys
    /// would grow without end.
    fn apply(self, db: &Db) -> sled::Result<()> {
        let applied = db.apply_batch(self.batch);
        // What was left last is free only after the epoch has moved on twice.
        for _ in 0..self.operations / OPERATIONS_PER_ROUND + 3 {
            sled::pin().flush();
        }
        applied
    }
}

/// The image on disk.
pub struct SledState {
    db: Db,
    dir: PathBuf,
    identity: Option<Identity>,
}

impl SledState {
    /// Opens the image in `dir`, made if it is not there.
    ///
    /// # Errors
    /// [`StateError`] if sled cannot.
    pub fn open(dir: &Path) -> Result<SledState, StateError> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .mode(Mode::LowSpace)
            .flush_every_ms(None);
        let db =
            config.open().map_err(|source| StateError::Engine { dir: dir.display().to_string(), source })?;
        Ok(SledState { db, dir: dir.to_owned(), identity: None })
    }

    fn fail(&self) -> impl Fn(sled::Error) -> StateError + use<> {
        let dir = self.dir.display().to_string();
        move |source| StateError::Engine { dir: dir.clone(), source }
    }

    fn damaged(&self, what: impl Into<String>) -> StateError {
        StateError::Damaged { dir: self.dir.display().to_string(), what: what.into() }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, bytes: &[u8], what: &str) -> Result<T, StateError> {
        postcard::from_bytes(bytes).map_err(|_| self.damaged(format!("{what} is unreadable")))
    }
}

impl StateStore for SledState {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        let Some(meta) = self.db.get(KEY_META).map_err(self.fail())? else { return Ok(None) };
        let meta: Meta = self.read(&meta, "its description")?;
        if meta.version != VERSION {
            return Err(self.damaged(format!("version {}, this program reads {VERSION}", meta.version)));
        }
        let mut nodes: Vec<(String, StoredNode)> = Vec::new();
        for item in self.db.scan_prefix(b"n") {
            let (key, value) = item.map_err(self.fail())?;
            let path = String::from_utf8_lossy(&key[1..]).into_owned();
            let node = self.read(&value, &path)?;
            nodes.push((path, node));
        }
        if nodes.len() as u64 != meta.nodes {
            let found = nodes.len();
            return Err(self.damaged(format!("{found} keys are stored where {} should be", meta.nodes)));
        }
        let mut events: Vec<Event> = Vec::new();
        for item in self.db.scan_prefix(b"e") {
            let (_, value) = item.map_err(self.fail())?;
            events.push(self.read(&value, "an event")?);
        }
        let tree = Tree::from_stored(meta.index, nodes, events).map_err(|e| self.damaged(e.to_string()))?;
        Ok(Some((meta.identity, Machine { tree, membership: meta.membership, applied: meta.applied })))
    }

    fn replace(&mut self, identity: Identity, machine: &Machine) -> Result<(), StateError> {
        let mut batch = Writes::default();
        for key in self.db.iter().keys() {
            batch.remove(key.map_err(self.fail())?);
        }
        for (path, node) in machine.tree.stored_nodes() {
            batch.insert(node_key(&path), &node);
        }
        for event in machine.tree.history().iter() {
            batch.insert(event_key(event.index()), &**event);
        }
        let meta = Meta {
            version: VERSION,
            identity,
            applied: machine.applied,
            index: machine.tree.index(),
            membership: machine.membership.clone(),
            nodes: machine.tree.len() as u64,
        };
        batch.insert(KEY_META, &meta);
        batch.apply(&self.db).map_err(self.fail())?;
        self.identity = Some(identity);
        self.sync()
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        let identity = if let Some(identity) = self.identity {
            identity
        } else {
            let meta = self.db.get(KEY_META).map_err(self.fail())?;
            let meta = meta.ok_or_else(|| self.damaged("a change came before the first image"))?;
            self.read::<Meta>(&meta, "its description")?.identity
        };
        self.identity = Some(identity);
        let mut batch = Writes::default();
        for (path, node) in &delta.nodes {
            match node {
                Some(node) => batch.insert(node_key(path), node),
                None => batch.remove(node_key(path)),
            }
        }
        for item in self.db.range(event_key(0)..event_key(delta.first_event)).keys() {
            batch.remove(item.map_err(self.fail())?);
        }
        for event in &delta.events {
            batch.insert(event_key(event.index()), event);
        }
        let meta = Meta {
            version: VERSION,
            identity,
            applied: delta.applied,
            index: delta.index,
            membership: delta.membership.clone(),
            nodes: delta.len as u64,
        };
        batch.insert(KEY_META, &meta);
        batch.apply(&self.db).map_err(self.fail())
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.db.flush().map_err(self.fail())?;
        sync_tree(&self.dir)
    }
}

/// Syncs every file below `dir`, and the directories themselves.
fn sync_tree(dir: &Path) -> Result<(), StateError> {
    let fail = |path: &Path| {
        let path = path.display().to_string();
        move |source| StateError::Sync { path, source }
    };
    for entry in fs::read_dir(dir).map_err(fail(dir))? {
        let path = entry.map_err(fail(dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
            continue;
        }
        match File::open(&path) {
            Ok(file) => file.sync_all().map_err(fail(&path))?,
            // sled removes its old index snapshots whenever it likes.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(&path)(error)),
        }
    }
    File::open(dir).and_then(|file| file.sync_all()).map_err(fail(dir))
}

fn node_key(path: &str) -> Vec<u8> {
    [b"n", path.as_bytes()].concat()
}

fn event_key(index: u64) -> Vec<u8> {
    [b"e", &index.to_be_bytes()[..]].concat()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("stored values have no length that postcard cannot write")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
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
                    _ => Op::Set {
                        path,
                        dir: false,
                        value: n.to_string(),
                        expires_ns: Some(9),
                        refresh: false,
                    },
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
}
