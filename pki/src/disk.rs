//! PEM files: keys that only their owner reads, whole files or none, and nothing overwritten by accident.
//!
//! Every file is written beside its place, synced, and then put there in one step; all of them are written
//! before the first is put in place. Two files cannot be replaced in one step: a crash in the middle of an
//! overwriting run can leave a new key beside an old certificate (`inspect` shows it), and running it again
//! mends that.

use std::fs::{self, File as StdFile, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest file that is read; a bundle of every CA there is has a quarter of that.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody (0644, less the umask): certificates and requests.
    Public,
    /// The owner only (0600): private keys.
    Secret,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub contents: String,
    /// For whom.
    pub access: Access,
}

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Files are in the way and may not be replaced; nothing was written.
    #[error("already there: {}", .paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    Exists {
        /// Every file that is in the way.
        paths: Vec<PathBuf>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// The file is too large to be what was asked for.
    #[error("{}: larger than {MAX_FILE_BYTES} bytes; this is no PEM or JSON file of a certificate", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { path, action, source }
}

/// Reads a file of at most a mebibyte.
///
/// # Errors
/// It cannot be opened or read, or is larger.
pub fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    let file = StdFile::open(path).map_err(failed(path, "open it"))?;
    read_from(file, path)
}

/// Reads a stream of at most a mebibyte; `name` is what to call it in an error.
///
/// # Errors
/// It cannot be read, or is larger.
pub fn read_from(stream: impl Read, name: &Path) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    stream.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed(name, "read it"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DiskError::TooLarge { path: name.to_owned() });
    }
    Ok(bytes)
}

/// The paths where something is already, be it a dangling link.
pub fn existing<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<PathBuf> {
    paths.into_iter().filter(|p| p.symlink_metadata().is_ok()).map(Path::to_owned).collect()
}

/// Creates a directory and those above it where they are missing.
///
/// # Errors
/// The operating system refused, or a file is in the way.
pub fn create_dir(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).map_err(failed(path, "create the directory"))
}

/// Writes all files, or none where one is in the way and `overwrite` is false.
///
/// # Errors
/// [`DiskError::Exists`] lists every file in the way; another error leaves no half-written file behind.
pub fn write_all(files: &[File], overwrite: bool) -> Result<(), DiskError> {
    if !overwrite {
        let paths = existing(files.iter().map(|f| f.path.as_path()));
        if !paths.is_empty() {
            return Err(DiskError::Exists { paths });
        }
    }
    let staged = files.iter().map(Staged::write).collect::<Result<Vec<_>, _>>()?;
    let mut placed: Vec<&Path> = Vec::new();
    for (stage, file) in staged.iter().zip(files) {
        if let Err(error) = stage.place(&file.path, overwrite) {
            if !overwrite {
                // None of these was there before, so this leaves the directory as it was.
                for path in placed {
                    let _ = fs::remove_file(path);
                }
            }
            return Err(error);
        }
        placed.push(&file.path);
    }
    drop(staged);
    let mut directories: Vec<&Path> = files.iter().map(|f| directory(&f.path)).collect();
    directories.dedup();
    for path in directories {
        StdFile::open(path).and_then(|d| d.sync_all()).map_err(failed(path, "sync the directory"))?;
    }
    Ok(())
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file written and synced beside its place; removed on drop.
struct Staged(PathBuf);

impl Staged {
    fn write(file: &File) -> Result<Self, DiskError> {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let mode = match file.access {
            Access::Public => 0o644,
            Access::Secret => 0o600,
        };
        let (mut handle, staged) = Self::create(directory(&file.path), &name, mode)?;
        handle
            .write_all(file.contents.as_bytes())
            .and_then(|()| handle.sync_all())
            .map_err(failed(&staged.0, "write it"))?;
        Ok(staged)
    }

    /// A new file of our own. One of the same name can be left from a run that was killed, above all in a
    /// container, where every run has the same process number.
    fn create(dir: &Path, name: &str, mode: u32) -> Result<(StdFile, Self), DiskError> {
        const ATTEMPTS: u32 = 100;
        let mut attempt = 0;
        loop {
            let path = dir.join(format!(".{name}.{}.{attempt}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
                Ok(handle) => return Ok((handle, Self(path))),
                Err(e) if e.kind() == ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
                Err(e) => return Err(failed(&path, "create it")(e)),
            }
        }
    }

    fn place(&self, path: &Path, overwrite: bool) -> Result<(), DiskError> {
        if overwrite {
            return fs::rename(&self.0, path).map_err(failed(path, "put it in place"));
        }
        match fs::hard_link(&self.0, path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                Err(DiskError::Exists { paths: vec![path.to_owned()] })
            }
            // A file system without hard links, such as FAT: renaming replaces, so look once more. Somebody
            // could put a file there between the two calls; no better way exists on such a file system.
            Err(_) if path.symlink_metadata().is_err() => {
                fs::rename(&self.0, path).map_err(failed(path, "put it in place"))
            }
            Err(e) => Err(failed(path, "put it in place")(e)),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already after a rename.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
