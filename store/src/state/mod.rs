//! The applied state on disk: an image of the machine and the position it stands for, always together.
//!
//! The image may lag behind the log, which is the durable truth: at start the entries after the image's
//! position are applied again. Before entries are dropped from the log the image is made durable.

mod changes;
mod delta;
mod faults;
mod files;
pub mod mem;
mod old;
mod record;
mod seal;
pub mod sled;

pub use self::delta::Delta;
use crate::machine::Machine;
use crate::snapshot::Snapshot;
use crate::tree::Digest;

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
    fn replace(&mut self, identity: Identity, state: &Snapshot) -> Result<(), StateError>;

    /// Writes a delta in one step. It need not be durable yet.
    ///
    /// # Errors
    /// [`StateError`].
    fn write(&mut self, delta: &Delta) -> Result<(), StateError>;

    /// Whether the deltas take so much that everything should be replaced by the state as it is.
    fn has_grown(&self) -> bool;

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`StateError`].
    fn sync(&mut self) -> Result<(), StateError>;
}
