//! Files that others read while we write them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Writes beside the file and renames, so that a reader sees the old or the new text, never half of it. Makes the
/// directory if there is none.
///
/// # Errors
/// When the path names no file, or the system refuses.
pub(crate) fn write_atomically(file: &Path, text: &str) -> io::Result<()> {
    let dir = file.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = file.file_name().ok_or_else(|| io::Error::other("is not a file name"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    let beside = dir.join(hidden);
    fs::create_dir_all(dir)?;
    fs::write(&beside, text)?;
    fs::rename(&beside, file)
}
