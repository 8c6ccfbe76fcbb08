#![allow(clippy::unwrap_used, clippy::case_sensitive_file_extension_comparisons, reason = "tests")]

//! Damage in real files of the log: every byte that is changed is noticed, or nothing synced depends on it.

use std::fs;
use std::path::{Path, PathBuf};

use raft::eraftpb::Entry;

use super::disk::OsDisk;
use super::engine::{EngineLog, Sizes};
use super::power_tests::{Call, Model, carry_out, workload};
use super::test_disk::temp_dir;
use super::{LogError, LogStore as _};
use crate::machine::Position;

const SIZES: Sizes = Sizes { file: 4 << 10, purge: 16 << 10 };

fn open(dir: &Path) -> Result<EngineLog, LogError> {
    EngineLog::open_on(OsDisk, dir, SIZES)
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = temp_dir();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "raftlog" || ending == "rewrite"));
    files.sort();
    files
}

fn is_appended(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "raftlog")
}

/// A log with several files of both kinds, as a member leaves it that stopped in good order, or that was killed.
fn written(killed: bool) -> (tempfile::TempDir, Model) {
    for seed in 1.. {
        let dir = temp_dir();
        let mut log = open(dir.path()).unwrap();
        // It must end in an append: the record whose loss would hurt.
        let mut calls = workload(seed, 160);
        while !matches!(calls.last(), Some(Call::Append(entries, _, true)) if !entries.is_empty()) {
            calls.pop();
        }
        for call in &calls {
            carry_out(&mut log, call).unwrap();
        }
        let model = Model::of(&log);
        let moved =
            fs::metadata(dir.path().join("0000000000000001.rewrite")).is_ok_and(|file| file.len() > 100);
        if !moved || log_files(dir.path()).len() < 5 {
            continue;
        }
        if killed {
            return (copy(dir.path()), model);
        }
        drop(log);
        return (dir, model);
    }
    unreachable!("some seed gives such a log")
}

/// Whether `found` is `whole` but for the last append.
fn lacks_only_the_end(found: &Model, whole: &Model) -> bool {
    found.truncated == whole.truncated && whole.entries.starts_with(&found.entries)
}

/// Flips a bit of every so many bytes, one at a time, and opens the log: `check` is told the file and the byte.
fn flip_bytes(dir: &Path, every: usize, mut check: impl FnMut(Result<EngineLog, LogError>, &Path, usize)) {
    let mut copied = copy(dir);
    for file in log_files(dir) {
        let bytes = fs::read(&file).unwrap();
        for at in (0..bytes.len()).step_by(every) {
            let damaged = copied.path().join(file.file_name().unwrap());
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&damaged, changed).unwrap();
            let opened = open(copied.path());
            let refused = opened.is_err();
            check(opened, &damaged, at);
            if refused {
                fs::write(&damaged, &bytes).unwrap();
            } else {
                copied = copy(dir);
            }
        }
    }
}

fn names(error: &LogError, file: &Path, at: usize) {
    let LogError::Damaged { path, offset: Some(offset), .. } = error else {
        panic!("byte {at} of {}: {error}", file.display())
    };
    assert_eq!(Path::new(path), file);
    assert!(*offset <= at as u64, "byte {at} is damaged, and {offset} is named");
}

#[test]
fn a_log_that_was_closed_loses_nothing_to_any_changed_byte() {
    let (dir, model) = written(false);
    flip_bytes(dir.path(), 1, |opened, file, at| match opened {
        Err(error) => names(&error, file, at),
        // The last record repeats the hard state; it is all that may go.
        Ok(log) => {
            assert_eq!(Model::of(&log).entries, model.entries, "byte {at} of {}", file.display());
            assert!(log.report().repairs.iter().any(|repair| repair.path == file && repair.torn));
        }
    });
}

#[test]
fn a_log_of_a_killed_member_loses_nothing_without_saying_so() {
    let (dir, model) = written(true);
    flip_bytes(dir.path(), 3, |opened, file, at| match opened {
        Err(error) => names(&error, file, at),
        Ok(log) => {
            let found = Model::of(&log);
            let torn = log.report().repairs.iter().any(|repair| repair.path == file && repair.torn);
            let harmless = found == model;
            assert!(harmless || torn, "byte {at} of {}: a silent loss", file.display());
            assert!(lacks_only_the_end(&found, &model), "byte {at} of {}", file.display());
        }
    });
}

#[test]
fn a_file_that_is_cut_or_missing_is_damage_unless_it_is_the_end() {
    let (dir, model) = written(false);
    let files = log_files(dir.path());
    let appended: Vec<&PathBuf> = files.iter().filter(|path| is_appended(path)).collect();
    let (last, earlier) = appended.split_last().unwrap();
    for file in earlier {
        let len = fs::metadata(file).unwrap().len();
        let copied = copy(dir.path());
        let cut = copied.path().join(file.file_name().unwrap());
        fs::File::options().write(true).open(&cut).unwrap().set_len(len - 1).unwrap();
        names(&open(copied.path()).err().unwrap(), &cut, usize::try_from(len).unwrap());
    }
    for file in &earlier[1..] {
        let copied = copy(dir.path());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        fs::remove_file(copied.path().join(&name)).unwrap();
        let error = open(copied.path()).err().unwrap().to_string();
        assert!(error.contains(&name) && error.contains("missing"), "{error}");
    }
    // The last record in part, at every length: reported with what is left and what goes.
    let bytes = fs::read(last).unwrap();
    let copied = copy(dir.path());
    let cut = copied.path().join(last.file_name().unwrap());
    fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let log = open(copied.path()).unwrap();
    let [repair] = &log.report().repairs[..] else { panic!("{:?}", log.report()) };
    let end = repair.end.unwrap();
    assert!(repair.torn && repair.path == cut && end + repair.dropped == bytes.len() as u64 - 1);
    assert_eq!(Model::of(&log).entries, model.entries);
}

#[test]
fn entries_without_their_start_are_damage() {
    let dir = temp_dir();
    let mut log = EngineLog::open_on(OsDisk, dir.path(), Sizes { purge: 1 << 30, ..SIZES }).unwrap();
    log.reset(Position { index: 3, term: 1 }, None).unwrap();
    let entry = |index| Entry { index, term: 1, data: vec![1; 500].into(), ..Entry::default() };
    for index in 4..=60 {
        log.append(vec![entry(index)], None, true).unwrap();
    }
    drop(log);
    let files: Vec<PathBuf> = log_files(dir.path()).into_iter().filter(|path| is_appended(path)).collect();
    assert!(files.len() > 4);
    // The first held what the log begins with; nothing tells that it was there but that this is missing.
    fs::remove_file(&files[0]).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("it has entries, but not their start"), "{error}");
}

#[test]
fn a_log_opened_for_writing_again_goes_on_after_a_torn_tail() {
    let (dir, model) = written(true);
    let last =
        log_files(dir.path()).into_iter().rfind(|path| path.to_string_lossy().ends_with(".raftlog")).unwrap();
    let mut log = open(dir.path()).unwrap();
    assert_eq!(Model::of(&log), model);
    let next = Entry { index: log.last_index() + 1, term: 90, ..Default::default() };
    log.append(vec![next.clone()], None, true).unwrap();
    drop(log);
    assert!(last.exists());
    assert_eq!(open(dir.path()).unwrap().term(next.index).unwrap(), Some(90));
}
