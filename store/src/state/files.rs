//! The files of sled 0.34 made durable, which it does not do itself (docs/adr/0002).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sled::Db;

use super::StateError;

/// How sled names a snapshot of its index that it has not finished.
const UNFINISHED: &str = ".generating";

/// The directory of a sled database.
pub(super) struct Files {
    dir: PathBuf,
    /// The newest of the large pages in files of their own that is known to be durable. Their names are numbers that
    /// grow.
    newest_blob: Option<u64>,
}

impl Files {
    /// Before sled opens `dir`. A snapshot of the index that a crash left unfinished goes: sled would take it for the
    /// newest one and find it corrupt at every start. What a killed process wrote is made durable, for sled builds on it.
    ///
    /// # Errors
    /// [`StateError::Sync`].
    pub(super) fn prepare(dir: &Path) -> Result<Files, StateError> {
        let files = Files { dir: dir.to_owned(), newest_blob: None };
        if dir.exists() {
            for path in entries(dir)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.starts_with("snap.") && name.ends_with(UNFINISHED) {
                    fs::remove_file(&path).map_err(fail(&path))?;
                }
            }
            files.sync()?;
        }
        Ok(files)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes everything durable that sled has written.
    ///
    /// # Errors
    /// [`StateError::Sync`].
    pub(super) fn sync(&self) -> Result<(), StateError> {
        sync_tree(&self.dir)
    }

    /// Makes a batch durable: the log, and the large pages that are new.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn settle(&mut self, db: &Db) -> Result<(), StateError> {
        let dir = || self.dir.display().to_string();
        db.flush().map_err(|source| StateError::Engine { dir: dir(), source })?;
        let log = self.dir.join("db");
        File::open(&log).and_then(|file| file.sync_data()).map_err(fail(&log))?;
        let blobs = self.dir.join("blobs");
        let mut newest = self.newest_blob;
        for path in entries(&blobs)? {
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if number > self.newest_blob {
                sync_file(&path)?;
                newest = newest.max(number);
            }
        }
        if newest > self.newest_blob {
            sync_file(&blobs)?;
            self.newest_blob = newest;
        }
        Ok(())
    }
}

/// Syncs every file below `dir`, and the directories themselves.
fn sync_tree(dir: &Path) -> Result<(), StateError> {
    for path in entries(dir)? {
        if path.is_dir() { sync_tree(&path)? } else { sync_file(&path)? }
    }
    sync_file(dir)
}

/// A file that is gone needs no sync: sled removes old snapshots and pages whenever it likes.
fn sync_file(path: &Path) -> Result<(), StateError> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(fail(path)(error)),
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, StateError> {
    let entries = fs::read_dir(dir).map_err(fail(dir))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(fail(dir))).collect()
}

fn fail(path: &Path) -> impl Fn(std::io::Error) -> StateError + use<> {
    let path = path.display().to_string();
    move |source| StateError::Sync { path: path.clone(), source }
}
