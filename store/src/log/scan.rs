//! What a crash left of the log's files is put right before raft-engine reads them; damage is told apart from it.
//!
//! Each record is synced before the next one is written, and a file before the next one is begun (`files`). So a power
//! loss can only cut short the last record of the last file, which nobody has been told of: that is a *torn tail*, and it
//! goes. Whatever else does not match its checksum was whole once and has been promised: that is damage, and opening
//! fails. raft-engine would drop everything behind a damaged record of its last file, and would not look at entries
//! before they are read.
//!
//! The last record itself may also be damaged after it was whole. That looks as a torn tail does, and is reported as one.
//! A member that stops in good order therefore writes a last record that nobody needs.

use std::path::{Path, PathBuf};

use super::LogError;
use super::disk::Disk;
use super::files::{APPEND, LogFiles, REWRITE, numbered};
use super::record::{Behind, Content, FILE_HEADER, read};

/// A tail that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The file.
    pub path: PathBuf,
    /// Its length now; `None` if it was removed.
    pub end: Option<u64>,
    /// Bytes dropped.
    pub dropped: u64,
    /// Whether there may have been part of a record among them.
    pub torn: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whole records in all files.
    pub records: usize,
    /// What was cut off.
    pub repairs: Vec<Repair>,
    /// The file to which records are added, and where the last of them ends in it; `None` in a new directory.
    pub end: Option<(PathBuf, u64)>,
}

/// Checks all files of the log and cuts off torn tails.
///
/// # Errors
/// [`LogError::Damaged`] with the file and the byte, or [`LogError::Io`].
pub(super) fn check<D: Disk>(files: &LogFiles<D>) -> Result<Report, LogError> {
    let mut report = Report::default();
    let rewritten = queue(files, REWRITE)?;
    // A file that was begun and got no record may stand behind one that was then gone on with.
    let begun = rewritten.iter().rposition(|file| !file.is_empty()).unwrap_or(0);
    for (at, file) in rewritten.iter().enumerate().rev() {
        if at > begun {
            file.remove(files, &mut report)?;
        }
    }
    let appended = queue(files, APPEND)?;
    for files_of_queue in [&rewritten[..rewritten.len().min(begun + 1)], &appended] {
        let Some((last, earlier)) = files_of_queue.split_last() else { continue };
        if let Some(file) = earlier.iter().find(|file| file.content.flaw.is_some()) {
            return Err(file.damaged("a later file was begun only when this one was whole"));
        }
        report.records += files_of_queue.iter().map(|file| file.content.records).sum::<usize>();
        last.repair(files, &mut report)?;
    }
    let ends = appended.iter().rfind(|file| file.content.end > 0);
    report.end = ends.map(|file| (file.path.clone(), file.content.end as u64));
    Ok(report)
}

/// One file.
struct LogFile {
    path: PathBuf,
    len: u64,
    content: Content,
}

/// The files of one kind, in order.
fn queue<D: Disk>(files: &LogFiles<D>, ending: &str) -> Result<Vec<LogFile>, LogError> {
    let dir = files.dir();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(LogError::io(dir))? {
        let path = entry.map_err(LogError::io(dir))?.path();
        found.extend(numbered(&path, ending).map(|number| (number, path)));
    }
    found.sort();
    if let Some(pair) = found.windows(2).find(|pair| pair[0].0 + 1 != pair[1].0) {
        let what = format!("file {:016}{ending} is missing", pair[0].0 + 1);
        return Err(LogError::Damaged { path: dir.display().to_string(), offset: None, what });
    }
    found.into_iter().map(|(number, path)| LogFile::read(files.disk(), number, path)).collect()
}

impl LogFile {
    fn read(disk: &impl Disk, number: u64, path: PathBuf) -> Result<LogFile, LogError> {
        let load = || {
            let file = disk.open(&path, false)?;
            let mut bytes = vec![0; usize::try_from(disk.len(&file)?).unwrap_or(usize::MAX)];
            let read = disk.read_at(&file, &mut bytes, 0)?;
            bytes.truncate(read);
            Ok(bytes)
        };
        let bytes = load().map_err(LogError::io(&path))?;
        Ok(LogFile { len: bytes.len() as u64, content: read(&bytes, number), path })
    }

    /// Whether it holds no record, and nothing that may have been one.
    fn is_empty(&self) -> bool {
        self.content.records == 0 && !matches!(self.content.behind, Behind::Record(_) | Behind::Part)
    }

    fn damaged(&self, why: &str) -> LogError {
        let flaw = self.content.flaw.unwrap_or("it goes on where it should end");
        let what = format!("{flaw}; no crash leaves that, for {why}");
        LogError::Damaged {
            path: self.path.display().to_string(),
            offset: Some(self.content.end as u64),
            what,
        }
    }

    /// Cuts the last file of a queue behind its last whole record.
    fn repair<D: Disk>(&self, files: &LogFiles<D>, report: &mut Report) -> Result<(), LogError> {
        let Content { end, flaw, behind, .. } = self.content;
        if let Behind::Record(at) = behind {
            return Err(self.damaged(&format!("a whole record follows at byte {at}")));
        }
        if end == 0 {
            if self.len > FILE_HEADER as u64 {
                return Err(self.damaged("a file gets its first record when its header is on disk"));
            }
            return self.remove(files, report);
        }
        if flaw.is_none() {
            return Ok(());
        }
        let cut = || {
            let file = files.disk().open(&self.path, true)?;
            files.disk().set_len(&file, end as u64)?;
            files.disk().sync(&file)
        };
        cut().map_err(LogError::io(&self.path))?;
        self.note(Some(end as u64), report);
        Ok(())
    }

    fn remove<D: Disk>(&self, files: &LogFiles<D>, report: &mut Report) -> Result<(), LogError> {
        let removed = files.disk().remove(&self.path).and_then(|()| files.disk().sync_dir(files.dir()));
        removed.map_err(LogError::io(&self.path))?;
        self.note(None, report);
        Ok(())
    }

    fn note(&self, end: Option<u64>, report: &mut Report) {
        let torn = matches!(self.content.behind, Behind::Part | Behind::Old);
        let (offset, dropped) = (end.unwrap_or(0), self.len - end.unwrap_or(0));
        let file = self.path.display();
        match self.content.behind {
            Behind::Part => tracing::warn!(
                %file, offset, dropped,
                "the raft log ends in part of a record, as a crash in the middle of a write leaves it; dropped"
            ),
            Behind::Old => tracing::info!(
                %file, offset, dropped,
                "the raft log was not closed; dropped what an earlier use of its file left behind its last record"
            ),
            _ => {
                tracing::debug!(%file, offset, dropped, "the raft log was not closed; dropped room it had not used");
            }
        }
        report.repairs.push(Repair { path: self.path.clone(), end, dropped, torn });
    }
}

impl LogError {
    fn io(path: &Path) -> impl Fn(std::io::Error) -> LogError + use<> {
        let path = path.display().to_string();
        move |source| LogError::Io { path: path.clone(), source }
    }
}
