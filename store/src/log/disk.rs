//! The few things that the log asks of a file system, so that tests can take its power away between any two of them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// A file system. What is written is safe from a power loss only after [`Disk::sync`] of the file, and a name only after
/// [`Disk::sync_dir`] of its directory.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: Send + Sync;

    /// Opens a file for reading and writing, made if it is not there.
    ///
    /// # Errors
    /// As open(2).
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// As open(2).
    fn open(&self, path: &Path, writable: bool) -> io::Result<Self::File>;

    /// Gives a file another name in the same directory, in place of what had that name.
    ///
    /// # Errors
    /// As rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As unlink(2).
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As fsync(2).
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Fills `buffer` from `offset` on; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// As pread(2).
    fn read_at(&self, file: &Self::File, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As pwrite(2); a part may be written then.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or lengthens it by zeros.
    ///
    /// # Errors
    /// As ftruncate(2).
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;

    /// Takes room for `len` bytes at `offset`, which read as zeros; the file becomes that long.
    ///
    /// # Errors
    /// As fallocate(2).
    fn allocate(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// As fdatasync(2); what was written since the last success may or may not be there then.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// As fstat(2).
    fn len(&self, file: &Self::File) -> io::Result<u64>;
}

/// The operating system's.
#[derive(Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        // Private, as everything below the data directory.
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<File> {
        File::options().read(true).write(writable).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn allocate(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = (offset.cast_signed(), len.cast_signed());
        match fallocate(file.as_fd(), FallocateFlags::empty(), offset, len) {
            // A file system that cannot; writing takes the room as it goes.
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn len(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }
}

/// Whether an error says that there is no room left.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
