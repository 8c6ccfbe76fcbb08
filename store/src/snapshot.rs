//! The whole state in one piece, for a member that is too far behind: taken in no time, written and read as a stream.
//!
//! ```text
//! snapshot = version:u8 record..    record = length:u32 body[length]    (postcard; lengths in network order)
//! records:   one Head, the events, the nodes (directories before what they hold)
//! ```
//!
//! [`Snapshot`] is the state standing still: it shares everything with the machine that goes on, so that taking it costs
//! the same for any keyspace, and it is written without another copy of it in memory. Reading builds the machine record
//! by record. What is written is a function of the state alone: two members write the same bytes for the same index.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::machine::{Alarms, Machine, Position};
use crate::membership::Membership;
use crate::tree::frozen::{FrozenTree, StoredRef};
use crate::tree::image::{ImageError, StoredNode};
use crate::tree::{Digest, Event, Tree};

/// The version of snapshots that this build writes and reads. They are not kept: only members that speak the same
/// version of the peer protocol exchange them.
const VERSION: u8 = 3;
/// The largest record. An event shows a node before and after, so it may hold two values, each at most 10 MiB.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// The state at one position, standing still.
#[derive(Debug)]
pub struct Snapshot {
    membership: Membership,
    alarms: Alarms,
    applied: Position,
    digest: Digest,
    tree: FrozenTree,
}

/// The first record.
#[derive(Serialize, Deserialize)]
struct Head {
    membership: Membership,
    alarms: Alarms,
    applied: Position,
    digest: Digest,
    index: u64,
    events: u64,
    nodes: u64,
}

/// Why a snapshot is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Written by another version of the store.
    #[error("snapshot of version {0}, this program reads version {VERSION}")]
    Version(u8),
    /// Not what an encoder wrote.
    #[error("damaged snapshot: the record at byte {offset} is unreadable")]
    Damaged {
        /// Where in the snapshot.
        offset: u64,
    },
    /// It does not end where it should.
    #[error("damaged snapshot: something follows its last record at byte {offset}")]
    Trailing {
        /// Where.
        offset: u64,
    },
    /// It cannot be read.
    #[error("reading the snapshot at byte {offset}: {error}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        error: String,
    },
    /// It holds another state than it says.
    #[error("damaged snapshot: the digest of its state is {found}, not {wanted}")]
    Digest {
        /// The digest that came with it.
        wanted: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// It holds no tree.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Machine {
    /// The state as it is now. Costs next to nothing, and changes made afterwards do not show in it; each of them copies
    /// what it changes for as long as the snapshot is kept.
    pub fn freeze(&self) -> Snapshot {
        Snapshot {
            membership: self.membership.clone(),
            alarms: self.alarms.clone(),
            applied: self.applied,
            digest: self.digest(),
            tree: self.tree.freeze(),
        }
    }

    /// The whole state as the bytes of a snapshot.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.freeze().write_to(&mut bytes).expect("memory takes everything");
        bytes
    }

    /// The state from the bytes of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing of it is used.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Machine, SnapshotError> {
        read(bytes)
    }
}

impl Snapshot {
    /// The position of the state.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// The members.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The alarms.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// What the state is, in one number: [`Machine::digest`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The v2 keyspace.
    pub fn tree(&self) -> &FrozenTree {
        &self.tree
    }

    /// Writes the bytes. Takes no more memory than the largest record.
    ///
    /// # Errors
    /// What `to` says.
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        let mut buffer = Vec::new();
        to.write_all(&[VERSION])?;
        let head = Head {
            membership: self.membership.clone(),
            alarms: self.alarms.clone(),
            applied: self.applied,
            digest: self.digest,
            index: self.tree.index(),
            events: self.tree.events().len() as u64,
            nodes: self.tree.len() as u64,
        };
        write_record(to, &mut buffer, &head)?;
        for event in self.tree.events() {
            write_record(to, &mut buffer, &**event)?;
        }
        self.tree
            .for_each(&mut |path: &str, node: StoredRef<'_>| write_record(to, &mut buffer, &(path, node)))
    }
}

fn write_record(to: &mut impl Write, buffer: &mut Vec<u8>, record: &impl Serialize) -> io::Result<()> {
    buffer.clear();
    *buffer = postcard::to_extend(record, std::mem::take(buffer)).map_err(io::Error::other)?;
    let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(buffer)
}

/// Reads a snapshot to its end.
///
/// # Errors
/// [`SnapshotError`].
pub fn read(from: impl Read) -> Result<Machine, SnapshotError> {
    let mut records = Records { from, offset: 0, buffer: Vec::new(), error: None };
    let mut version = [0];
    records.fill(&mut version)?;
    if version[0] != VERSION {
        return Err(SnapshotError::Version(version[0]));
    }
    let head: Head = records.next()?;
    let events = (0..head.events).map(|_| records.next()).collect::<Result<Vec<Event>, _>>()?;
    let nodes = (0..head.nodes).map_while(|_| records.next_or_stop::<(String, StoredNode)>());
    let tree = Tree::from_stored(head.index, nodes, events);
    // What could not be read explains best what is wrong with the tree.
    records.error.take().map_or(Ok(()), Err)?;
    records.end()?;
    let machine = Machine::new(tree?, head.membership, head.alarms, head.applied);
    let found = machine.digest();
    if found == head.digest { Ok(machine) } else { Err(SnapshotError::Digest { wanted: head.digest, found }) }
}

/// Reads records one after the other.
struct Records<R> {
    from: R,
    offset: u64,
    buffer: Vec<u8>,
    error: Option<SnapshotError>,
}

impl<R: Read> Records<R> {
    fn next<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, SnapshotError> {
        let at = self.offset;
        let damaged = SnapshotError::Damaged { offset: at };
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_RECORD_BYTES {
            return Err(damaged);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        // Grows with what arrives: a length alone costs no memory.
        let got = (&mut self.from).take(length as u64).read_to_end(&mut buffer);
        let got = got.map_err(|error| self.failed(&error))?;
        self.offset += got as u64;
        self.buffer = buffer;
        if got != length {
            return Err(damaged);
        }
        match postcard::take_from_bytes(&self.buffer) {
            Ok((record, [])) => Ok(record),
            Ok(_) | Err(_) => Err(damaged),
        }
    }

    fn next_or_stop<T: for<'a> Deserialize<'a>>(&mut self) -> Option<T> {
        self.next().map_err(|error| self.error = Some(error)).ok()
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        match self.from.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SnapshotError::Damaged { offset: self.offset })
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn end(&mut self) -> Result<(), SnapshotError> {
        match self.from.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(SnapshotError::Trailing { offset: self.offset }),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> SnapshotError {
        SnapshotError::Read { offset: self.offset, error: error.to_string() }
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
