//! The files of the image: sled's made durable, which sled 0.34 does not do itself (docs/adr/0002), and which of several
//! databases is the image.
//!
//! ```text
//! member/state/current     the number of the image and a checksum; replaced by rename
//! member/state/image-7/    sled's files, not written to any more
//! member/state/changes-7   what has changed since
//! ```
//!
//! A new image is made beside the old one; `current` then changes in one step.
//! What is not `current` is removed by the next start that finds that all is well, at the latest.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::StateError;
use super::seal::{seal, unseal};
use crate::log::disk::{Disk as _, OsDisk};

/// How sled names a snapshot of its index that it has not finished.
const UNFINISHED: &str = ".generating";
const CURRENT: &str = "current";
const CURRENT_NEW: &str = "current.new";
const ROOM: &str = "room";
const IMAGE: &str = "image-";
const CHANGES: &str = "changes-";
/// What sled 0.34 keeps in its directory, but for snapshots of its index.
const SLED_FILES: [&str; 3] = ["db", "conf", "blobs"];

/// The directory of a sled database.
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Before sled opens `dir`. A snapshot of the index that a crash left unfinished goes: sled would take it for the
    /// newest one and find it corrupt at every start. What a killed process wrote is made durable, for sled builds on it.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn prepare(dir: &Path) -> Result<Files, StateError> {
        let files = Files { dir: dir.to_owned() };
        if dir.exists() {
            for path in entries(dir)? {
                let name = name_of(&path);
                if name.starts_with("snap.") && name.ends_with(UNFINISHED) {
                    fs::remove_file(&path).map_err(fail(&path))?;
                }
            }
            files.sync()?;
        }
        Ok(files)
    }

    /// Makes everything durable that sled has written.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub(super) fn sync(&self) -> Result<(), StateError> {
        sync_tree(&self.dir)
    }
}

/// The directory of image `number`.
pub(super) fn image_dir(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{IMAGE}{number}"))
}

/// Bytes of all files in the directory of a database.
///
/// # Errors
/// [`StateError::File`].
pub(super) fn size(dir: &Path) -> Result<u64, StateError> {
    let mut bytes = 0;
    for path in entries(dir)? {
        bytes += if path.is_dir() {
            size(&path)?
        } else {
            // sled may have removed it since.
            path.metadata().map_or(0, |metadata| metadata.len())
        };
    }
    Ok(bytes)
}

/// The file of what has changed since image `number` was written.
pub(super) fn changes_file(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{CHANGES}{number}"))
}

/// The number of the image; `None` if none was ever finished. What a killed process has named is made durable: the raft
/// log may be begun anew for it.
///
/// # Errors
/// [`StateError`]: unreadable, not what [`set_current`] wrote, or gone although an image has been in use.
pub(super) fn current(dir: &Path) -> Result<Option<u64>, StateError> {
    sync_file(dir)?;
    let path = dir.join(CURRENT);
    let sealed = match fs::read(&path) {
        Ok(sealed) => sealed,
        Err(error) if error.kind() == ErrorKind::NotFound => return check_unused(dir).map(|()| None),
        Err(error) => return Err(fail(&path)(error)),
    };
    let number = unseal(&sealed).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    number.map(Some).ok_or_else(|| StateError::Damaged {
        dir: path.display().to_string(),
        what: "it does not name an image: the disk has changed it. Leave this member stopped and keep the directory"
            .to_owned(),
    })
}

/// Nothing but images that were never named the current one: those have no changes.
fn check_unused(dir: &Path) -> Result<(), StateError> {
    for (number, path) in images(dir)? {
        if path == changes_file(dir, number) && path.metadata().map_err(fail(&path))?.len() > 0 {
            return Err(unnamed(dir, &format!("{IMAGE}{number} has been in use")));
        }
    }
    Ok(())
}

/// `current` is gone, and should not be, for this reason.
pub(super) fn unnamed(dir: &Path, why: &str) -> StateError {
    let found = images(dir).unwrap_or_default().into_iter();
    let mut found: Vec<u64> = found.filter(|(_, path)| path.is_dir()).map(|(number, _)| number).collect();
    found.sort_unstable();
    let found: Vec<String> = found.into_iter().map(|number| format!("{IMAGE}{number}")).collect();
    let found = if found.is_empty() { "no image".to_owned() } else { found.join(", ") };
    missing(&dir.join(CURRENT), &format!("it names the image, and {why}; found in the directory: {found}"))
}

/// A file that should be there is gone.
pub(super) fn missing(path: &Path, why: &str) -> StateError {
    StateError::Damaged {
        dir: path.display().to_string(),
        what: format!("missing although {why}. Nothing was changed. {ADVICE}"),
    }
}

/// What to do when something of the image is lost.
pub(super) const ADVICE: &str = "If it can be read elsewhere as it was when this member stopped, put that in its place. \
     Otherwise leave this member stopped and keep the directory: the others go on while they are a majority. See \
     docs/disk.md";

/// Makes image `number` the current one, durably and in one step. The image must be durable.
///
/// # Errors
/// [`NotSet`].
pub(super) fn set_current(dir: &Path, number: u64) -> Result<(), NotSet> {
    write_name(dir, number).map_err(NotSet::Untried)?;
    let path = dir.join(CURRENT);
    fs::rename(dir.join(CURRENT_NEW), &path).map_err(fail(&path)).map_err(NotSet::Unknown)?;
    sync_file(dir).map_err(NotSet::Unknown)
}

/// Why an image is not the current one for certain.
#[derive(Debug)]
pub(super) enum NotSet {
    /// The one before is, as it was.
    Untried(StateError),
    /// Either may be.
    Unknown(StateError),
}

fn write_name(dir: &Path, number: u64) -> Result<(), StateError> {
    let new = dir.join(CURRENT_NEW);
    // The directory of the image is on disk before the name of it is.
    sync_file(dir)?;
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&seal(&number.to_be_bytes()))?;
        file.sync_all()
    });
    written.map_err(fail(&new))
}

/// A number that no image in `dir` has.
///
/// # Errors
/// [`StateError::File`].
pub(super) fn free_number(dir: &Path) -> Result<u64, StateError> {
    Ok(images(dir)?.into_iter().map(|(number, _)| number).max().unwrap_or(0) + 1)
}

/// Removes every image but `current`, also one of an earlier version. What cannot be removed now is tried again at the next
/// start.
pub(super) fn remove_others(dir: &Path, current: u64) {
    let others = images(dir).unwrap_or_default().into_iter().filter(|(number, _)| *number != current);
    let mut paths: Vec<PathBuf> = others.map(|(_, path)| path).collect();
    paths.extend([CURRENT_NEW, ROOM].map(|name| dir.join(name)));
    let snapshots = entries(dir).unwrap_or_default().into_iter();
    paths.extend(snapshots.filter(|path| name_of(path).starts_with("snap.")));
    paths.extend(SLED_FILES.map(|name| dir.join(name)));
    for path in &paths {
        remove(path);
    }
}

/// Takes so much room and gives it back: a quota does not show before that.
///
/// # Errors
/// [`StateError::File`].
pub(super) fn try_room(dir: &Path, bytes: u64) -> Result<(), StateError> {
    let path = room_file(dir);
    let taken = OsDisk.create(&path).and_then(|file| OsDisk.allocate(&file, 0, bytes));
    let removed = match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    taken.and(removed).map_err(fail(&path))
}

fn room_file(dir: &Path) -> PathBuf {
    dir.join(ROOM)
}

/// Lets go of room that a killed process has left taken.
pub(super) fn free_room(dir: &Path) {
    remove(&room_file(dir));
}

/// Removes what there is of image `number`, as far as that is possible.
pub(super) fn remove_image(dir: &Path, number: u64) {
    remove(&image_dir(dir, number));
    remove(&changes_file(dir, number));
}

/// Removes a file or directory, if it is there.
fn remove(path: &Path) {
    if path.exists()
        && let Err(error) = try_remove(path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old image of the applied state");
    }
}

/// Removes a file or directory. Files are emptied first: a database that could not be closed still has them open, and their
/// space would not come free.
fn try_remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            try_remove(&entry?.path())?;
        }
        return fs::remove_dir(path);
    }
    match File::options().write(true).open(path).and_then(|file| file.set_len(0)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_file(path),
    }
}

fn images(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StateError> {
    let numbered = |path: PathBuf| {
        let name = name_of(&path);
        let number = name.strip_prefix(IMAGE).or_else(|| name.strip_prefix(CHANGES))?.parse().ok()?;
        Some((number, path))
    };
    Ok(entries(dir)?.into_iter().filter_map(numbered).collect())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Syncs every file below `dir`, and the directories themselves.
fn sync_tree(dir: &Path) -> Result<(), StateError> {
    for path in entries(dir)? {
        if path.is_dir() { sync_tree(&path)? } else { sync_file(&path)? }
    }
    sync_file(dir)
}

/// A file that is gone needs no sync: sled removes old snapshots whenever it likes.
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

/// An error at `path`.
pub(super) fn fail(path: &Path) -> impl Fn(std::io::Error) -> StateError + use<> {
    let path = path.display().to_string();
    move |source| StateError::File { path: path.clone(), source }
}
