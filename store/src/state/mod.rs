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
pub mod room;
mod seal;
pub mod sled;
mod tail;

pub use self::delta::Delta;
pub use self::room::Usage;
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
    /// There is too little room for what was to be written, and what the log needs. Nothing was changed.
    #[error(
        "applied state in {dir}: no space: {free_mib} MiB are free, {needed_mib} are needed",
        free_mib = free >> 20,
        needed_mib = needed.div_ceil(1 << 20)
    )]
    NoRoom {
        /// Where it lies.
        dir: String,
        /// Bytes that are free.
        free: u64,
        /// Bytes that have to be, at least.
        needed: u64,
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

impl StateError {
    /// Whether it is only that the disk has no room.
    pub fn is_full(&self) -> bool {
        match self {
            StateError::NoRoom { .. } => true,
            StateError::File { source, .. }
            | StateError::Engine { source: ::sled::Error::Io(source), .. } => {
                crate::log::disk::is_full(source)
            }
            StateError::Engine { .. } | StateError::Damaged { .. } | StateError::Digest { .. } => false,
        }
    }
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
    /// [`StateError`]; what was there before is untouched. If [`StateStore::takes_changes`] then, the same changes can be
    /// written with later ones.
    fn write(&mut self, delta: &Delta) -> Result<(), StateError>;

    /// Whether deltas can be written. If not, everything has to be replaced first.
    fn takes_changes(&self) -> bool;

    /// What it takes on disk, and what is free there.
    fn usage(&self) -> Usage;

    /// Whether everything should be replaced by the state as it is: the deltas take much, or room gets short.
    fn has_grown(&self) -> bool {
        self.usage().is_image_due()
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`StateError`].
    fn sync(&mut self) -> Result<(), StateError>;
}
