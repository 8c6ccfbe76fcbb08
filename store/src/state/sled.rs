//! The image in sled 0.34.
//!
//! One sled tree, so that one batch is one atomic step; `writes` makes one of many. Keys: `n` + path for a node,
//! `e` + index of the first (8 bytes, network order) for some events that follow each other, `m` for the rest (identity,
//! position, index, membership). Values are postcard; events stand one after the other. sled's own `flush` never calls
//! `fsync` (docs/adr/0002); `files` does.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sled::{Db, IVec, Mode};

use super::files::Files;
use super::writes::{WriteError, Writes, resume};
use super::{Delta, Identity, StateError, StateStore};
use crate::machine::{Machine, Position};
use crate::membership::Membership;
use crate::tree::image::StoredNode;
use crate::tree::{Event, Tree};

const KEY_META: &[u8] = b"m";
/// The version of the image that this build writes. In version 1 each event has a record of its own, which can be read
/// as it is.
const VERSION: u8 = 2;
/// Bytes after which a record of events is full. An operation costs sled much the same whatever it holds, but a record must
/// not be so large that rewriting its page is dear.
const EVENT_RECORD_BYTES: usize = 4 << 10;
/// sled's page cache. The state lives in memory as a tree, so this only serves the writer.
const CACHE_BYTES: u64 = 2 << 20;

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

/// The image on disk.
pub struct SledState {
    db: Db,
    files: Files,
    identity: Option<Identity>,
    /// A write has failed: nothing may follow it until the next start has put it right.
    failed: bool,
}

impl SledState {
    /// Opens the image in `dir`, made if it is not there, and finishes a write that a crash interrupted.
    ///
    /// # Errors
    /// [`StateError`] if sled cannot.
    pub fn open(dir: &Path) -> Result<SledState, StateError> {
        let files = Files::prepare(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .mode(Mode::LowSpace)
            .flush_every_ms(None);
        let db =
            config.open().map_err(|source| StateError::Engine { dir: dir.display().to_string(), source })?;
        files.sync()?;
        let mut state = SledState { db, files, identity: None, failed: false };
        // What another version has begun is not for this one to finish; loading refuses it.
        let meta = state.db.get(KEY_META).map_err(state.fail())?;
        if meta.is_some_and(|meta| meta.first() == Some(&VERSION)) {
            let resumed = resume(&state.db, || state.files.settle(&state.db));
            state.done(resumed)?;
        }
        Ok(state)
    }

    fn commit(&mut self, writes: Writes, meta: &Meta) -> Result<(), StateError> {
        if self.failed {
            return Err(self.damaged("an earlier write of it failed; restart this member"));
        }
        let committed = writes.commit(&self.db, (KEY_META, encode(meta)), || self.files.settle(&self.db));
        self.done(committed)
    }

    /// After a failure sled would wait without end when it is dropped, for a page that no one will write, and might
    /// write half a batch. So it is never dropped.
    fn done(&mut self, written: Result<(), WriteError>) -> Result<(), StateError> {
        written.map_err(|error| {
            self.failed = true;
            std::mem::forget(self.db.clone());
            match error {
                WriteError::Engine(source) => self.fail()(source),
                WriteError::Sync(error) => error,
                WriteError::Damaged => self.damaged(error.to_string()),
            }
        })
    }

    fn fail(&self) -> impl Fn(sled::Error) -> StateError + use<> {
        let dir = self.files.dir().display().to_string();
        move |source| StateError::Engine { dir: dir.clone(), source }
    }

    fn damaged(&self, what: impl Into<String>) -> StateError {
        StateError::Damaged { dir: self.files.dir().display().to_string(), what: what.into() }
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, bytes: &[u8], what: &str) -> Result<T, StateError> {
        postcard::from_bytes(bytes).map_err(|_| self.damaged(format!("{what} is unreadable")))
    }

    fn read_events(&self, mut record: &[u8], into: &mut Vec<Event>) -> Result<(), StateError> {
        while !record.is_empty() {
            let (event, rest) =
                postcard::take_from_bytes(record).map_err(|_| self.damaged("an event is unreadable"))?;
            into.push(event);
            record = rest;
        }
        Ok(())
    }

    /// What `delta` comes to.
    fn changes(&mut self, delta: &Delta) -> Result<(Writes, Meta), StateError> {
        let identity = if let Some(identity) = self.identity {
            identity
        } else {
            let meta = self.db.get(KEY_META).map_err(self.fail())?;
            let meta = meta.ok_or_else(|| self.damaged("a change came before the first image"))?;
            self.read::<Meta>(&meta, "its description")?.identity
        };
        self.identity = Some(identity);
        let mut writes = Writes::default();
        for (path, node) in &delta.nodes {
            match node {
                Some(node) => writes.insert(node_key(path), encode(node)),
                None => writes.remove(node_key(path)),
            }
        }
        for key in self.outlived_events(delta)? {
            writes.remove(key.to_vec());
        }
        for (first, record) in event_records(&delta.events) {
            writes.insert(event_key(first), record);
        }
        let meta = Meta {
            version: VERSION,
            identity,
            applied: delta.applied,
            index: delta.index,
            membership: delta.membership.clone(),
            nodes: delta.len as u64,
        };
        Ok((writes, meta))
    }

    /// Keys of the records that hold nothing but events which `delta` says to drop.
    fn outlived_events(&self, delta: &Delta) -> Result<Vec<IVec>, StateError> {
        let begun = self.db.range(event_key(0)..=event_key(delta.first_event)).keys();
        let mut keys: Vec<IVec> = begun.collect::<Result<_, _>>().map_err(self.fail())?;
        // The last that begins before the oldest event to keep holds it, unless it is a new one.
        if delta.events.first().is_none_or(|event| event.index() > delta.first_event) {
            keys.pop();
        }
        Ok(keys)
    }
}

impl StateStore for SledState {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        let Some(meta) = self.db.get(KEY_META).map_err(self.fail())? else { return Ok(None) };
        let meta: Meta = self.read(&meta, "its description")?;
        if !(1..=VERSION).contains(&meta.version) {
            return Err(self.damaged(format!("version {}, this program reads 1 to {VERSION}", meta.version)));
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
            self.read_events(&value, &mut events)?;
        }
        let tree = Tree::from_stored(meta.index, nodes, events).map_err(|e| self.damaged(e.to_string()))?;
        Ok(Some((
            meta.identity,
            Machine::new(tree, meta.membership, crate::machine::Alarms::default(), meta.applied),
        )))
    }

    fn replace(&mut self, identity: Identity, machine: &Machine) -> Result<(), StateError> {
        let mut writes = Writes::default();
        for key in self.db.iter().keys() {
            let key = key.map_err(self.fail())?;
            if key != KEY_META {
                writes.remove(key.to_vec());
            }
        }
        for (path, node) in machine.tree.stored_nodes() {
            writes.insert(node_key(&path), encode(&node));
        }
        for (first, record) in event_records(machine.tree.history().iter().map(|event| &**event)) {
            writes.insert(event_key(first), record);
        }
        let meta = Meta {
            version: VERSION,
            identity,
            applied: machine.applied,
            index: machine.tree.index(),
            membership: machine.membership.clone(),
            nodes: machine.tree.len() as u64,
        };
        self.commit(writes, &meta)?;
        self.identity = Some(identity);
        self.sync()
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        let (writes, meta) = self.changes(delta)?;
        self.commit(writes, &meta)
    }

    fn sync(&mut self) -> Result<(), StateError> {
        let flushed = self.db.flush().map_err(WriteError::from);
        let synced = flushed.and_then(|_| Ok(self.files.sync()?));
        self.done(synced)
    }
}

fn node_key(path: &str) -> Vec<u8> {
    [b"n", path.as_bytes()].concat()
}

fn event_key(index: u64) -> Vec<u8> {
    [b"e", &index.to_be_bytes()[..]].concat()
}

/// Events that follow each other as records: the index of the first, and what they hold.
fn event_records<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<(u64, Vec<u8>)> {
    let mut records: Vec<(u64, Vec<u8>)> = Vec::new();
    for event in events {
        match records.last_mut() {
            Some((_, record)) if record.len() < EVENT_RECORD_BYTES => record.extend(encode(event)),
            _ => records.push((event.index(), encode(event))),
        }
    }
    records
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("stored values have no length that postcard cannot write")
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "power_tests.rs"]
mod power_tests;
