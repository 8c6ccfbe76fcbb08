//! Where a snapshot is kept while it arrives: one file in the data directory, `member/snap-in`.
//!
//! ```text
//! name   = INDEX-TERM-TOTAL-CRC.part      (hexadecimal: the snapshot's id)
//! record = length:u32 offset:u64 crc:u32 data[length - 12]      repeated: the chunks as they came
//! ```
//!
//! The file is a convenience and no promise: it is not synced, and at every start it is read from the beginning up to the
//! first record that is not as it was written. There is at most one, not larger than what was offered and a little more,
//! and it goes when the state has been read from it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tokio::sync::OwnedMutexGuard;

use crate::machine::Machine;
use crate::server::space::LOW;
use crate::snapshot::{self, SnapshotError};
use crate::state::room::{PERCENT, free_bytes, image_bytes};
use crate::wire::transfer::{CHUNK_BYTES, CHUNK_HEAD_BYTES, Chunk, Incoming, SnapshotId, TransferError};

/// The directory.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    /// What the image of a state takes on disk, in percent of the snapshot's bytes: more than usual once there was no room
    /// for one with many small values, so that the next is refused before it has been sent.
    image_percent: u64,
}

/// Why a snapshot cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{dir} has {free} bytes left, and a snapshot of {total} bytes needs {needed}, for itself, the image of the state \
         that is read from it, and the log",
        dir = dir.display()
    )]
    NoRoom { dir: PathBuf, free: u64, total: u64, needed: u64 },
    #[error(transparent)]
    Chunk(#[from] TransferError),
    #[error("{path}: {source}", path = path.display())]
    State { path: PathBuf, source: SnapshotError },
    #[error("the snapshot holds the state at index {found}, not at {offered} as was offered")]
    Position { found: u64, offered: u64 },
}

impl Spool {
    /// Makes the directory, and removes from it what is of no use: everything but the newest beginning of a snapshot
    /// that would bring the state beyond `applied`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(dir: &Path, applied: u64) -> io::Result<Spool> {
        fs::create_dir_all(dir)?;
        let mut kept: Option<SnapshotId> = None;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| parse_name(name.to_str()?));
            match id.filter(|id| id.index > applied) {
                Some(id) if kept.is_none_or(|kept| id > kept) => {
                    if let Some(older) = kept.replace(id) {
                        fs::remove_file(dir.join(name(older)))?;
                    }
                }
                _ => fs::remove_file(path)?,
            }
        }
        Ok(Spool { dir: dir.to_owned(), image_percent: PERCENT })
    }

    /// Where this snapshot is kept.
    fn path(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(name(id))
    }

    /// Forgets every snapshot but this one.
    fn clear_others(&self, id: SnapshotId) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path != self.path(id) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn name(id: SnapshotId) -> String {
    let SnapshotId { index, term, total, crc } = id;
    format!("{index:016x}-{term:016x}-{total:016x}-{crc:08x}.part")
}

fn parse_name(text: &str) -> Option<SnapshotId> {
    let mut parts = text.strip_suffix(".part")?.split('-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let id =
        SnapshotId { index: number()?, term: number()?, total: number()?, crc: number()?.try_into().ok()? };
    (name(id) == text).then_some(id)
}

/// A snapshot that arrives. Whoever has this has the spool.
#[derive(Debug)]
pub(super) struct Arriving {
    incoming: Incoming,
    file: File,
    path: PathBuf,
    spool: OwnedMutexGuard<Spool>,
}

impl Arriving {
    /// Goes on with what is there of this snapshot, or begins it.
    ///
    /// # Errors
    /// [`SpoolError::Io`] or [`SpoolError::NoRoom`].
    pub(super) fn begin(spool: OwnedMutexGuard<Spool>, id: SnapshotId) -> Result<Arriving, SpoolError> {
        let path = spool.path(id);
        let fail = |source| SpoolError::Io { path: path.clone(), source };
        spool.clear_others(id).map_err(fail)?;
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        let mut arriving = Arriving { incoming: Incoming::new(id), file, path: path.clone(), spool };
        let end = arriving.scan().map_err(fail)?;
        arriving.file.set_len(end).map_err(fail)?;
        arriving.file.seek(SeekFrom::Start(end)).map_err(fail)?;
        match arriving.check_begin() {
            Ok(()) => Ok(arriving),
            Err(error) => {
                arriving.remove();
                Err(error)
            }
        }
    }

    /// What of it there is.
    pub(super) fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    /// Reads what was kept, up to the first record that is cut or damaged. Returns where that begins.
    fn scan(&mut self) -> io::Result<u64> {
        let mut records = Records { file: BufReader::new(&self.file), record: Vec::new() };
        let (mut incoming, mut end) = (self.incoming.clone(), 0);
        while let Some(chunk) = records.next()? {
            if incoming.take(&chunk).is_err() {
                break;
            }
            end += 4 + CHUNK_HEAD_BYTES as u64 + chunk.data.len() as u64;
            self.incoming = incoming.clone();
        }
        Ok(end)
    }

    /// A full disk would stop the raft log: better not to begin. The file is gone before the image is written.
    fn check_begin(&self) -> Result<(), SpoolError> {
        let total = self.incoming.id().total;
        let image = (total / 100).saturating_mul(self.spool.image_percent);
        self.check_room(total.max(image).saturating_sub(self.incoming.have()))
    }

    /// The log has filled the disk meanwhile, or the values are smaller than was thought: an install would have to wait,
    /// and this member with it.
    fn check_install(&mut self, machine: &Machine) -> Result<(), SpoolError> {
        let total = self.incoming.id().total;
        let image = image_bytes(total, machine.tree.len() as u64);
        self.check_room(image).inspect_err(|_| {
            self.spool.image_percent = image.saturating_mul(100).div_ceil(total.max(1)).max(PERCENT);
        })
    }

    fn check_room(&self, bytes: u64) -> Result<(), SpoolError> {
        let Some(free) = free_bytes(&self.spool.dir) else { return Ok(()) };
        let needed = bytes.saturating_add(LOW);
        if free >= needed {
            return Ok(());
        }
        Err(SpoolError::NoRoom { dir: self.spool.dir.clone(), free, total: self.incoming.id().total, needed })
    }

    /// Takes the body of a chunk.
    ///
    /// # Errors
    /// [`SpoolError`]. A damaged chunk leaves what was there; after anything else the file is gone.
    pub(super) fn take(&mut self, body: &[u8]) -> Result<(), SpoolError> {
        let chunk = Chunk::decode(body)?;
        if let Err(error) = self.incoming.take(&chunk) {
            if matches!(error, TransferError::Whole { .. }) {
                self.remove();
            }
            return Err(error.into());
        }
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        let written = self.file.write_all(&length).and_then(|()| self.file.write_all(body));
        written.map_err(|source| {
            // The log must not want for the room that this takes.
            self.remove();
            SpoolError::Io { path: self.path.clone(), source }
        })
    }

    /// The state that has arrived, once all is there. The file is gone afterwards.
    ///
    /// # Errors
    /// [`SpoolError`] if what came holds no state, or not the one that was offered, or if there is no room for its image.
    pub(super) fn finish(mut self) -> Result<Machine, SpoolError> {
        let read = self.read();
        self.remove();
        let machine = read?;
        self.check_install(&machine)?;
        Ok(machine)
    }

    fn read(&self) -> Result<Machine, SpoolError> {
        let fail = |source| SpoolError::Io { path: self.path.clone(), source };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let records = Records { file: BufReader::with_capacity(CHUNK_BYTES, file), record: Vec::new() };
        let machine = snapshot::read(BufReader::with_capacity(CHUNK_BYTES, Data { records, at: 0 }))
            .map_err(|source| SpoolError::State { path: self.path.clone(), source })?;
        let (found, id) = (machine.applied, self.incoming.id());
        if (found.index, found.term) == (id.index, id.term) {
            Ok(machine)
        } else {
            Err(SpoolError::Position { found: found.index, offered: id.index })
        }
    }

    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what is left of a snapshot");
        }
    }
}

/// The records of a file.
struct Records<F> {
    file: F,
    record: Vec<u8>,
}

impl<F: Read> Records<F> {
    /// The next chunk; `None` at the end, or where there is no sound record.
    fn next(&mut self) -> io::Result<Option<Chunk<'_>>> {
        let mut length = [0; 4];
        match self.file.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let length = u32::from_be_bytes(length);
        self.record.clear();
        if length as usize > CHUNK_HEAD_BYTES + CHUNK_BYTES {
            return Ok(None);
        }
        (&mut self.file).take(u64::from(length)).read_to_end(&mut self.record)?;
        let whole = self.record.len() == length as usize;
        Ok(if whole { Chunk::decode(&self.record).ok() } else { None })
    }
}

/// What the records hold, one after the other.
struct Data<F> {
    records: Records<F>,
    /// Bytes of the current record that have been read.
    at: usize,
}

impl<F: Read> Read for Data<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.records.record.len() {
            if self.records.next()?.is_none() {
                return Ok(0);
            }
            self.at = CHUNK_HEAD_BYTES;
        }
        let rest = &self.records.record[self.at..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
