//! Images of versions 1 and 2, which are read once and written anew.
//!
//! They lie in the directory itself and have a record for each key: `n` + path for a node, `e` + index for events (one in
//! version 1, some that follow each other in version 2), `m` for the rest. They have neither alarms nor a digest.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sled::Db;

use super::StateError;
use super::faults::Faults;
use super::{Identity, KEY_META};
use crate::machine::{Alarms, Machine, Position};
use crate::membership::AllVote;
use crate::tree::image::StoredNode;
use crate::tree::{Event, Tree};

/// The newest version that is read here.
pub(super) const VERSION: u8 = 2;

/// What the keys of the journal of a large write begin with.
const JOURNAL: &[u8] = b"j";

/// An entry of the journal: a key and its new value, `None` if it goes.
type Operation = (Vec<u8>, Option<Vec<u8>>);

/// What is not in a record of its own.
#[derive(Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) version: u8,
    pub(super) identity: Identity,
    pub(super) applied: Position,
    pub(super) index: u64,
    pub(super) membership: AllVote,
    pub(super) nodes: u64,
}

/// Whether such an image lies in `dir`.
pub(super) fn is_there(dir: &Path) -> bool {
    dir.join("db").exists()
}

/// What it holds; `None` if it was never written.
///
/// # Errors
/// [`StateError`].
pub(super) fn load(db: &Db, faults: &Faults) -> Result<Option<(Identity, Machine)>, StateError> {
    let engine = |source| faults.engine(source);
    let Some(meta) = db.get(KEY_META).map_err(engine)? else { return Ok(None) };
    let unreadable = |what: &str| faults.damaged(format!("{what} is unreadable"));
    let meta: Meta = postcard::from_bytes(&meta).map_err(|_| unreadable("its description"))?;
    if !(1..=VERSION).contains(&meta.version) {
        return Err(faults.version(meta.version));
    }
    // What a crash left in the journal of version 2 has to come after what is in its place.
    let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for item in db.iter() {
        let (key, value) = item.map_err(engine)?;
        stored.insert(key.to_vec(), value.to_vec());
    }
    for item in db.scan_prefix(JOURNAL) {
        let (_, record) = item.map_err(engine)?;
        let operations: Vec<Operation> =
            postcard::from_bytes(&record).map_err(|_| unreadable("its journal"))?;
        for (key, value) in operations {
            match value {
                Some(value) => stored.insert(key, value),
                None => stored.remove(&key),
            };
        }
    }
    let starting = |prefix: u8| stored.iter().filter(move |(key, _)| key.first() == Some(&prefix));
    let mut nodes: Vec<(String, StoredNode)> = Vec::new();
    for (key, value) in starting(b'n') {
        let path = String::from_utf8_lossy(&key[1..]).into_owned();
        let node = postcard::from_bytes(value).map_err(|_| unreadable(&path))?;
        nodes.push((path, node));
    }
    if nodes.len() as u64 != meta.nodes {
        let found = nodes.len();
        return Err(faults.damaged(format!("{found} keys are stored where {} should be", meta.nodes)));
    }
    let mut events: Vec<Event> = Vec::new();
    for (_, record) in starting(b'e') {
        let mut rest = &record[..];
        while !rest.is_empty() {
            let (event, after) = postcard::take_from_bytes(rest).map_err(|_| unreadable("an event"))?;
            events.push(event);
            rest = after;
        }
    }
    let tree = Tree::from_stored(meta.index, nodes, events).map_err(|e| faults.damaged(e.to_string()))?;
    let machine = Machine::new(tree, meta.membership.into(), Alarms::default(), meta.applied);
    Ok(Some((meta.identity, machine)))
}
