//! What has changed since the image was written: records at the end of one plain file.
//!
//! ```text
//! record = length:u32 checksum[16] body[length]    (network order; the body is a Delta in postcard)
//! ```
//!
//! Records count up to the first that is not whole: a power loss may leave any part of what was not synced. So what is read
//! is always a state that there has been, and none older than the last that was synced.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::files::fail;
use super::seal::{CHECKSUM_BYTES, seal, unseal};
use super::{Delta, StateError};

/// Bytes of a record's length.
const LENGTH_BYTES: usize = 4;

/// The file, open at its end.
pub(super) struct Changes {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Changes {
    /// Opens the file, made if it is not there, and cuts off what is not whole.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn open(path: &Path) -> Result<(Changes, Vec<Delta>), StateError> {
        let failed = fail(path);
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = opened.map_err(&failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&failed)?;
        let (deltas, length) = read(&bytes);
        if length < bytes.len() {
            let cut_bytes = bytes.len() - length;
            tracing::warn!(
                path = %path.display(),
                offset = length,
                cut_bytes,
                "the end of the image's changes is not whole and is cut off; the raft log has it"
            );
        }
        let mut changes = Changes { path: path.to_owned(), file, length: length as u64 };
        changes.back().map_err(&failed)?;
        Ok((changes, deltas))
    }

    /// Bytes in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Adds a record. It need not be durable yet.
    ///
    /// # Errors
    /// [`StateError::File`]; the file is as before.
    pub(super) fn push(&mut self, delta: &Delta) -> Result<(), StateError> {
        let record = record(delta);
        if let Err(error) = self.file.write_all(&record) {
            // If this fails too, what is there is not whole and will be cut off at the next start.
            let _ = self.back();
            return Err(fail(&self.path)(error));
        }
        self.length += record.len() as u64;
        Ok(())
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

fn record(delta: &Delta) -> Vec<u8> {
    let body = postcard::to_stdvec(delta).expect("no state has a length that postcard cannot write");
    let length = u32::try_from(body.len()).expect("what changes between two writes is far less than 4 GiB");
    [&length.to_be_bytes(), seal(&body).as_slice()].concat()
}

/// The records that are whole, and where the last of them ends.
fn read(bytes: &[u8]) -> (Vec<Delta>, usize) {
    let mut deltas = Vec::new();
    let mut rest = bytes;
    while let Some((delta, after)) = first(rest) {
        deltas.push(delta);
        rest = after;
    }
    (deltas, bytes.len() - rest.len())
}

fn first(bytes: &[u8]) -> Option<(Delta, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (sealed, rest) = rest.split_at_checked(length.checked_add(CHECKSUM_BYTES)?)?;
    Some((postcard::from_bytes(unseal(sealed)?).ok()?, rest))
}
