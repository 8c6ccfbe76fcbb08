//! What has changed since the image was written: records at the end of one plain file.
//!
//! ```text
//! record = length:u32 checksum[16] body[length]    (network order; the body is a `Record` in postcard)
//! ```
//!
//! The body is written first and its length and checksum last, so that it is in memory nowhere.
//!
//! Records count up to the first that is not whole: a power loss may leave any part of what was not synced. So what is read
//! is always a state that there has been, and none older than the last that was synced, unless the disk has changed what was.
//! What is not whole stays where it is until the next record is added: by then it is known that the raft log has it.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::files::{fail, missing};
use super::record::{Record, RecordRef};
use super::room::KEEP_FREE;
use super::seal::{CHECKSUM_BYTES, unseal};
use super::tail::Tail;
use super::{Delta, StateError};
use crate::machine::Position;
use crate::tree::hash::Hasher;

/// Bytes of a record's length.
const LENGTH_BYTES: usize = 4;
/// Bytes before a record's body.
pub(super) const HEAD_BYTES: usize = LENGTH_BYTES + CHECKSUM_BYTES;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The file, open at its end.
pub(super) struct Changes {
    path: PathBuf,
    file: File,
    length: u64,
    /// Records can be added: an attempt that failed has left nothing behind the last one.
    whole: bool,
    /// What is not whole behind that.
    tail: Option<Tail>,
}

impl Changes {
    /// Makes the file of a new image.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn create(path: &Path) -> Result<(), StateError> {
        File::create(path).and_then(|file| file.sync_all()).map_err(fail(path))
    }

    /// Opens the file, and changes nothing.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn open(path: &Path) -> Result<Changes, StateError> {
        let failed = fail(path);
        let mut file = match File::options().read(true).write(true).open(path) {
            // It is made, and durable, before its image is named the current one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(missing(path, "the image beside it was not written without it"));
            }
            opened => opened.map_err(&failed)?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&failed)?;
        let (records, length) = read(&bytes);
        let applied = records.last().map_or(Position::default(), |record| record.applied);
        let tail = Tail::find(&bytes, length, applied);
        file.seek(SeekFrom::Start(length as u64)).map_err(&failed)?;
        Ok(Changes { path: path.to_owned(), file, length: length as u64, whole: true, tail })
    }

    /// The file, and what in it is not whole.
    pub(super) fn tail(&self) -> Option<(&Path, Tail)> {
        self.tail.map(|tail| (&*self.path, tail))
    }

    /// Cuts off what is not whole. Durable: no old record may come to stand behind a new one.
    fn cut(&mut self) -> io::Result<()> {
        if self.tail.is_some() {
            self.back()?;
            self.file.sync_all()?;
            self.tail = None;
        }
        Ok(())
    }

    /// All records.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn read(&self) -> Result<Vec<Record>, StateError> {
        let bytes = std::fs::read(&self.path).map_err(fail(&self.path))?;
        Ok(read(&bytes).0)
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether records can be added.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Adds a record of at most `budget` bytes. It need not be durable yet.
    ///
    /// # Errors
    /// [`StateError::File`], also where it takes more; the file is as before, if [`Changes::is_whole`].
    pub(super) fn push(&mut self, delta: &Delta, budget: u64) -> Result<(), StateError> {
        if let Err(error) = self.cut() {
            self.whole = false;
            return Err(fail(&self.path)(error));
        }
        match self.append(&delta.into(), budget) {
            Ok(length) => self.length += length,
            Err(error) => {
                // What is there is not whole otherwise, and will be cut off at the next start.
                self.whole = self.back().is_ok();
                return Err(fail(&self.path)(error));
            }
        }
        Ok(())
    }

    /// Bytes of the record.
    fn append(&self, record: &RecordRef<'_>, budget: u64) -> io::Result<u64> {
        let mut file = &self.file;
        file.write_all(&[0; HEAD_BYTES])?;
        let body = Body { file, length: 0, budget, hasher: Hasher::default(), failed: None };
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, body);
        let written = postcard::to_io(record, &mut writer).map_err(io::Error::other);
        let written = written.and_then(Write::flush);
        let (body, _) = writer.into_parts();
        written.map_err(|error| body.failed.unwrap_or(error))?;
        let length = u32::try_from(body.length).map_err(io::Error::other)?;
        let head = [length.to_be_bytes().as_slice(), &body.hasher.finish().bytes()].concat();
        self.file.write_all_at(&head, self.length)?;
        Ok(head.len() as u64 + u64::from(length))
    }

    fn back(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(drop)
    }

    /// Makes all records durable.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn sync(&self) -> Result<(), StateError> {
        self.file.sync_all().map_err(fail(&self.path))
    }
}

/// Takes the body of a record.
struct Body<'a> {
    file: &'a File,
    length: u64,
    /// The most it may be.
    budget: u64,
    hasher: Hasher,
    /// Why the file takes no more: postcard does not say.
    failed: Option<io::Error>,
}

impl Write for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let within = self.length + bytes.len() as u64 <= self.budget;
        let written = if within { self.file.write(bytes) } else { Err(no_room()) };
        let written = match written {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(error);
                return Err(io::ErrorKind::Other.into());
            }
            written => written?,
        };
        self.hasher.write(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn no_room() -> io::Error {
    let kept = KEEP_FREE >> 20;
    io::Error::new(
        io::ErrorKind::StorageFull,
        format!("no space beside the {kept} MiB that the raft log needs"),
    )
}

/// The records that are whole, and where the last of them ends.
fn read(bytes: &[u8]) -> (Vec<Record>, usize) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((record, after)) = first(rest) {
        records.push(record);
        rest = after;
    }
    (records, bytes.len() - rest.len())
}

/// The record at the beginning of `bytes`, and what is behind it.
pub(super) fn first(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (sealed, rest) = rest.split_at_checked(length.checked_add(CHECKSUM_BYTES)?)?;
    Some((postcard::from_bytes(unseal(sealed)?).ok()?, rest))
}
