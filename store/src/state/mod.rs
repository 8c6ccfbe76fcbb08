//! The applied state on disk: an image of the machine and the position it stands for, always together.
//!
//! The image may lag behind the log, which is the durable truth: at start the entries after the image's
//! position are applied again. Before entries are dropped from the log the image is made durable.

mod changes;
mod faults;
mod files;
pub mod mem;
mod old;
mod seal;
pub mod sled;

use crate::machine::{Alarms, Machine, Position};
use crate::membership::Membership;
use crate::tree::image::StoredNode;
use crate::tree::{Digest, Event};

/// The version of the image that this build writes. Versions 1 and 2 are read by `old` and written anew.
const VERSION: u8 = 3;
/// The key of what is not in a record of its own, in every version.
const KEY_META: &[u8] = b"m";

/// Why the image could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The engine refused.
    #[error("applied state in {dir}: {source}")]
    Engine {
        /// Where it lies.
        dir: String,
        /// What it said.
        #[source]
        source: ::sled::Error,
    },
    /// A file could not be written, read or synced.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is stored makes no state.
    #[error("applied state in {dir}: {what}")]
    Damaged {
        /// Where it lies.
        dir: String,
        /// What is wrong.
        what: String,
    },
    /// What is stored is not what was written.
    #[error(
        "applied state in {dir}: its digest is {found} where {wanted} was written: the disk has changed or lost part of it. \
         Leave this member stopped and keep the directory: the others go on without it as long as they are a majority. \
         See docs/consistency.md"
    )]
    Digest {
        /// Where it lies.
        dir: String,
        /// The digest of what is there.
        found: Digest,
        /// The digest that was stored with it.
        wanted: Digest,
    },
}

/// Who wrote a data directory. Fixed at the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
}

/// What changed between two positions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Delta {
    /// Where the image stands afterwards.
    pub applied: Position,
    /// The tree's index there.
    pub index: u64,
    /// The members there.
    pub membership: Membership,
    /// The alarms there.
    pub alarms: Alarms,
    /// The digest of the state there.
    pub digest: Digest,
    /// The number of nodes there.
    pub len: u64,
    /// Changed nodes; `None` for those that are gone.
    pub nodes: Vec<(String, Option<StoredNode>)>,
    /// New events.
    pub events: Vec<Event>,
    /// Index of the oldest event to keep.
    pub first_event: u64,
}

impl Delta {
    /// Everything that changed in `machine` since this was last taken; `since` is the tree's index then.
    /// Marks the changes as taken.
    pub fn take(machine: &mut Machine, since: u64) -> Delta {
        let nodes = machine.tree.take_dirty();
        let nodes = nodes.into_iter().map(|path| {
            let node = machine.tree.stored_node(&path);
            (path, node)
        });
        let nodes = nodes.collect();
        let history = machine.tree.history();
        let mut events: Vec<Event> = history
            .iter()
            .rev()
            .take_while(|event| event.index() > since)
            .map(|event| (**event).clone())
            .collect();
        events.reverse();
        Delta {
            applied: machine.applied,
            index: machine.tree.index(),
            membership: machine.membership.clone(),
            alarms: machine.alarms.clone(),
            digest: machine.digest(),
            len: machine.tree.len() as u64,
            nodes,
            events,
            first_event: history.first_index().unwrap_or(0),
        }
    }
}

/// The image of one member's applied state.
pub trait StateStore {
    /// Who the image belongs to and what it holds; `None` if it was never written.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be read.
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError>;

    /// Replaces everything, durably and in one step.
    ///
    /// # Errors
    /// [`StateError`]; what was there before is untouched.
    fn replace(&mut self, identity: Identity, machine: &Machine) -> Result<(), StateError>;

    /// Writes a delta in one step. It need not be durable yet.
    ///
    /// # Errors
    /// [`StateError`].
    fn write(&mut self, delta: &Delta) -> Result<(), StateError>;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`StateError`].
    fn sync(&mut self) -> Result<(), StateError>;
}
