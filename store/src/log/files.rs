//! The file system that raft-engine is given.
//!
//! It does what the engine leaves open (0.4.2, read in its source and seen in a trace of its calls):
//!
//! - The engine syncs the directory when it goes on to a new file, but neither after it makes its first files nor after
//!   it removes one. Here every change of a name is synced before the next call.
//! - It panics when a sync fails. Here the failure is kept, and [`LogFiles::failure`] tells the log, which must not go
//!   on: the kernel may have dropped what it could not write, and a second sync would succeed.
//! - It starts another file for each write that finds no room, if the error's text says so in its own words. Here the
//!   error keeps the system's words, so the write just fails and can be tried again.
//! - It keeps files that it no longer needs under their old names and may remove newer ones before them, which looks
//!   after a crash as if a file were missing. Here such a file becomes a *spare* at once, `NUMBER.spare`, and the next
//!   new file is made of it: writing over blocks that the file has already spares the disk a commit of its journal.
//! - It writes several records of a `.rewrite` file before it syncs, and the header of its first files together with the
//!   first record. Here each is synced, so that in every file of the log only the last record can be one that a power
//!   loss cut short (see `scan`).

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};

use super::disk::{Disk, is_full};

/// How the names of files end that hold records as they come.
pub(super) const APPEND: &str = ".raftlog";
/// How the names of files end that hold records moved there from old files.
pub(super) const REWRITE: &str = ".rewrite";
const SPARE: &str = ".spare";
/// Files kept to be used again.
const MAX_SPARES: usize = 4;
/// What room taken ahead is filled with, in whole pieces.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The files of one log.
pub(super) struct LogFiles<D>(Arc<Inner<D>>);

struct Inner<D> {
    disk: D,
    dir: PathBuf,
    /// Number and path of files that wait to be used again. All their records are signed with their old number, so such a
    /// file must not get that number again.
    spares: Mutex<BTreeMap<u64, PathBuf>>,
    failure: Mutex<Option<SyncFailure>>,
}

/// A sync that failed.
#[derive(Debug, Clone)]
pub(super) struct SyncFailure {
    /// The file.
    pub(super) path: PathBuf,
    /// What the system said.
    pub(super) why: String,
}

impl<D> Clone for LogFiles<D> {
    fn clone(&self) -> LogFiles<D> {
        LogFiles(Arc::clone(&self.0))
    }
}

impl<D: Disk> LogFiles<D> {
    /// The files in `dir`, which must be there.
    ///
    /// # Errors
    /// As readdir(3).
    pub(super) fn open(disk: D, dir: &Path) -> io::Result<LogFiles<D>> {
        let mut spares = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if let Some(number) = numbered(&path, SPARE) {
                spares.insert(number, path);
            }
        }
        let (dir, spares, failure) = (dir.to_owned(), Mutex::new(spares), Mutex::default());
        Ok(LogFiles(Arc::new(Inner { disk, dir, spares, failure })))
    }

    pub(super) fn disk(&self) -> &D {
        &self.0.disk
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The first sync that failed.
    pub(super) fn failure(&self) -> Option<SyncFailure> {
        self.0.failure.lock().clone()
    }

    /// Removes the spare files. Returns whether there was one.
    pub(super) fn drop_spares(&self) -> bool {
        let spares = std::mem::take(&mut *self.0.spares.lock());
        let mut any = false;
        for path in spares.into_values() {
            any |= self.0.disk.remove(&path).is_ok();
        }
        any
    }
}

impl<D: Disk> Inner<D> {
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)
    }

    /// Makes a spare file the new file `path`, if there is one that can be.
    fn reuse(&self, path: &Path) -> io::Result<()> {
        let Some(number) = numbered(path, APPEND) else { return Ok(()) };
        let mut spares = self.spares.lock();
        while let Some((old, spare)) = spares.pop_first() {
            if old < number {
                return self.disk.rename(&spare, path);
            }
            self.disk.remove(&spare)?;
        }
        Ok(())
    }

    fn opened(self: &Arc<Self>, file: D::File, path: &Path) -> OpenFile<D> {
        OpenFile { files: Arc::clone(self), file, path: path.to_owned() }
    }
}

/// The number in a name that ends so.
pub(super) fn numbered(path: &Path, ending: &str) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(ending)?.parse().ok()
}

impl<D: Disk> FileSystem for LogFiles<D> {
    type Handle = OpenFile<D>;
    type Reader = Cursor<D>;
    type Writer = Cursor<D>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<OpenFile<D>> {
        let path = path.as_ref();
        self.0.reuse(path)?;
        let file = self.0.disk.create(path)?;
        self.0.sync_dir()?;
        Ok(self.0.opened(file, path))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<OpenFile<D>> {
        let path = path.as_ref();
        let file = self.0.disk.open(path, permission == Permission::ReadWrite)?;
        Ok(self.0.opened(file, path))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let path = path.as_ref();
        let mut spares = self.0.spares.lock();
        match numbered(path, APPEND) {
            Some(number) if spares.len() < MAX_SPARES => {
                let spare = self.0.dir.join(format!("{number:016}{SPARE}"));
                self.0.disk.rename(path, &spare)?;
                spares.insert(number, spare);
            }
            _ => self.0.disk.remove(path)?,
        }
        self.0.sync_dir()
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.0.disk.rename(from.as_ref(), to.as_ref())?;
        self.0.sync_dir()
    }

    fn new_reader(&self, handle: Arc<OpenFile<D>>) -> io::Result<Cursor<D>> {
        Ok(Cursor { handle, offset: 0 })
    }

    fn new_writer(&self, handle: Arc<OpenFile<D>>) -> io::Result<Cursor<D>> {
        Ok(Cursor { handle, offset: 0 })
    }
}

/// A file that the engine holds open.
pub(super) struct OpenFile<D: Disk> {
    files: Arc<Inner<D>>,
    file: D::File,
    path: PathBuf,
}

impl<D: Disk> OpenFile<D> {
    fn set_len(&self, len: usize) -> io::Result<()> {
        self.files.disk.set_len(&self.file, len as u64)
    }

    fn take_room(&self, offset: u64, size: u64) -> io::Result<()> {
        let OpenFile { files, file, .. } = self;
        files.disk.allocate(file, offset, size)?;
        let pieces = size / ZEROS.len() as u64;
        (0..pieces)
            .try_for_each(|piece| files.disk.write_at(file, &ZEROS, offset + piece * ZEROS.len() as u64))
    }
}

impl<D: Disk> Handle for OpenFile<D> {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.set_len(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        let len = self.files.disk.len(&self.file)?;
        usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge.into())
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.files.disk.sync(&self.file) {
            let failure = SyncFailure { path: self.path.clone(), why: error.to_string() };
            self.files.failure.lock().get_or_insert(failure);
        }
        Ok(())
    }
}

/// A place in an open file.
pub(super) struct Cursor<D: Disk> {
    handle: Arc<OpenFile<D>>,
    offset: usize,
}

impl<D: Disk> Read for Cursor<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let OpenFile { files, file, .. } = &*self.handle;
        let read = files.disk.read_at(file, buffer, self.offset as u64)?;
        self.offset += read;
        Ok(read)
    }
}

impl<D: Disk> Write for Cursor<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let OpenFile { files, file, path } = &*self.handle;
        files.disk.write_at(file, bytes, self.offset as u64)?;
        let is_header = self.offset == 0;
        self.offset += bytes.len();
        if is_header || numbered(path, REWRITE).is_some() {
            self.handle.sync()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Disk> Seek for Cursor<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => (self.offset as u64).checked_add_signed(by),
            SeekFrom::End(by) => (self.handle.file_size()? as u64).checked_add_signed(by),
        };
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        self.offset = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(at)
    }
}

impl<D: Disk> WriteExt for Cursor<D> {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.handle.set_len(offset)?;
        self.offset = offset;
        Ok(())
    }

    /// Ahead of need; if there is no room, the write itself will say so.
    ///
    /// What is taken far ahead is also written to, with zeros: a block that was only allocated has to be marked as
    /// written when the first record comes into it, and the sync of that record waits for the mark, too.
    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        match self.handle.take_room(offset as u64, size as u64) {
            Err(error) if is_full(&error) => Ok(()),
            taken => taken,
        }
    }
}
