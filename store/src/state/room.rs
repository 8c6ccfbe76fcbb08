//! Room on the disk: what an image takes, what it leaves to the log, and when another is due.

use std::io::{self, Write};
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::StateError;
use crate::snapshot::Snapshot;

/// What the image leaves free of the disk, in bytes: for the log, which cannot do without.
pub const KEEP_FREE: u64 = 16 << 20;

/// What a new image takes for each byte of the same state as a snapshot, in percent: measured are 107 to 235 with values
/// of 1 KB to 1 MB, and [`NODE_BYTES`] more for each node.
pub const PERCENT: u64 = 250;
/// What sled takes for each node beside that, in bytes.
const NODE_BYTES: u64 = 200;
/// What an empty database takes, in bytes.
const EMPTY_BYTES: u64 = 1 << 20;

/// Changes may take this many bytes before a new image is made, or as much as the image, if that is more: so on average a
/// change is written no more than about twice.
const MIN_GROWN_BYTES: u64 = 32 << 20;
/// Where room gets short, changes may take this many bytes, or a quarter of the image, if that is more.
const MIN_TIGHT_BYTES: u64 = 8 << 20;
/// Room is short with less free than another image, in bytes, and this: later there would be none for it.
const TIGHT_MARGIN: u64 = 96 << 20;

/// What the image takes on disk, and what is free there, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The image, without its changes.
    pub image: u64,
    /// What has changed since.
    pub changes: u64,
    /// Free; the largest number where it is not known.
    pub free: u64,
}

impl Usage {
    /// Whether a new image should take the place of the old one and its changes: they have grown, or will soon leave no
    /// room for another. Pure.
    pub fn is_image_due(self) -> bool {
        let tight = self.is_tight() && self.changes > MIN_TIGHT_BYTES.max(self.image / 4);
        tight || self.changes > MIN_GROWN_BYTES.max(self.image)
    }

    /// Whether there will soon be no room for another image. Pure.
    pub fn is_tight(self) -> bool {
        // A state that has grown takes its place and that of its changes; one that has not takes less.
        self.free < self.image.saturating_add(self.changes).saturating_add(TIGHT_MARGIN)
    }
}

/// Bytes that a new image of a state takes at most, of which a snapshot has so many bytes and which has so many nodes.
pub fn image_bytes(snapshot_bytes: u64, nodes: u64) -> u64 {
    (snapshot_bytes / 100 * PERCENT)
        .saturating_add(nodes.saturating_mul(NODE_BYTES))
        .saturating_add(EMPTY_BYTES)
}

/// Bytes that a new image of `state` takes at most. Goes through all of it.
pub fn image_bytes_of(state: &Snapshot) -> u64 {
    let mut count = Count(0);
    state.write_to(&mut count).expect("counting does not fail");
    image_bytes(count.0, state.tree().len() as u64)
}

struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that are free for us in the file system of `dir`; `None` where that cannot be measured.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = statvfs(dir).ok()?;
    #[allow(clippy::useless_conversion, reason = "narrower on some platforms")]
    Some(u64::from(stat.blocks_available()).saturating_mul(stat.fragment_size().into()))
}

/// Whether `needed` bytes can be written to `dir`, which has `free`, and [`KEEP_FREE`] is left.
///
/// # Errors
/// [`StateError::NoRoom`].
pub(super) fn check(dir: &Path, free: u64, needed: u64) -> Result<(), StateError> {
    let needed = needed.saturating_add(KEEP_FREE);
    if free >= needed {
        return Ok(());
    }
    Err(StateError::NoRoom { dir: dir.display().to_string(), free, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn is_due(image_mib: u64, changes_mib: u64, free_mib: u64) -> bool {
        let usage = Usage { image: image_mib * MIB, changes: changes_mib * MIB, free: free_mib * MIB };
        usage.is_image_due()
    }

    #[test]
    fn an_image_is_due_when_its_changes_are_larger() {
        assert!(!is_due(1, 32, 9000) && is_due(1, 33, 9000));
        assert!(!is_due(160, 160, 9000) && is_due(160, 161, 9000));
    }

    /// On a disk of 480 MiB an image of 160 MiB is due before its changes and the log leave no room for another.
    #[test]
    fn an_image_is_due_earlier_where_there_would_be_no_room_for_it_later() {
        assert!(!is_due(160, 40, 240), "not for every little change");
        assert!(is_due(160, 41, 240));
        assert!(!is_due(160, 41, 9000));
        assert!(!is_due(1, 8, 40) && is_due(1, 9, 40));
    }
}
