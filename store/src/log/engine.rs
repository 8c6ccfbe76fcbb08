//! The log on disk, in raft-engine, with the newest entries kept in memory as well.
//!
//! A raft group of the engine is one *generation* of the log. A snapshot starts the next generation and
//! cleans the last one in the same atomic batch, so nothing of an old log can show up in a new one. Beside
//! the entries a generation holds four values: `hard` (the hard state, protobuf), `trunc` (index and term of the last
//! entry dropped, 16 bytes), `last` (index of the last entry, 8 bytes) and `snap` (index and term of a snapshot that is
//! about to start the next generation, 16 bytes; empty when it is not after all).
//!
//! raft-engine moves old entries to other files, and after a restart they may be there again although they were dropped
//! or replaced: the record that did so is in a file that is gone. So nothing but `trunc` and `last` says which entries
//! there are, and what else the engine finds is dropped with the next record.
//!
//! Every record is synced before the next one is written, on which `scan` relies. A hard state that need not be synced
//! is therefore not written at all before the next record; a crash may lose it, as it might have before.

use std::path::Path;
use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::cache::Cache;
use super::disk::{Disk, OsDisk, is_full};
use super::files::LogFiles;
use super::scan::{self, Report};
use super::{LogError, LogStore};
use crate::machine::Position;

const KEY_HARD: &[u8] = b"hard";
const KEY_TRUNCATED: &[u8] = b"trunc";
const KEY_LAST: &[u8] = b"last";
const KEY_INSTALLING: &[u8] = b"snap";

/// Tells raft-engine where an entry's index is.
struct RaftEntries;

impl MessageExt for RaftEntries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// Sizes that decide when raft-engine begins and removes files, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// A file that is this long is followed by the next.
    pub file: u64,
    /// With more than this in files, those that are no longer needed go.
    pub purge: u64,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { file: 16 << 20, purge: 32 << 20 }
    }
}

/// What was dropped and is there again.
#[derive(Debug, Default)]
struct Ghosts {
    /// Whole generations.
    generations: Vec<u64>,
    /// Entries of this generation before this index.
    before: Option<u64>,
}

impl Ghosts {
    fn drop(&self, generation: u64, batch: &mut LogBatch) {
        for &old in &self.generations {
            batch.add_command(old, Command::Clean);
        }
        if let Some(index) = self.before {
            batch.add_command(generation, Command::Compact { index });
        }
    }
}

/// Asked when there is no room for a write. Makes room or waits for it, and returns whether to try again.
pub type WhenFull = Box<dyn FnMut() -> bool + Send>;

/// The log of one member.
pub struct EngineLog<D: Disk = OsDisk> {
    engine: Engine<LogFiles<D>>,
    files: LogFiles<D>,
    when_full: WhenFull,
    report: Report,
    dir: String,
    generation: u64,
    hard_state: HardState,
    /// The hard state is not in the engine yet.
    unwritten: bool,
    /// The last record holds what must not be lost, see [`EngineLog::close`].
    exposed: bool,
    truncated: Position,
    last: u64,
    installing: Option<Position>,
    /// What the engine has found and should not have; goes with the next record.
    ghosts: Ghosts,
    cache: Cache,
}

impl EngineLog {
    /// Opens the log in `dir`, which must be there. What a crash left of an unfinished write is dropped; it was never
    /// acknowledged.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be read or is damaged.
    pub fn open(dir: &Path) -> Result<EngineLog, LogError> {
        EngineLog::open_on(OsDisk, dir, Sizes::default())
    }
}

impl<D: Disk> EngineLog<D> {
    /// As [`EngineLog::open`], on a disk and with sizes of the caller's choice.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be read or is damaged.
    pub fn open_on(disk: D, dir: &Path, sizes: Sizes) -> Result<EngineLog<D>, LogError> {
        let name = dir.display().to_string();
        let files =
            LogFiles::open(disk, dir).map_err(|source| LogError::Io { path: name.clone(), source })?;
        let report = scan::check(&files)?;
        let config = Config {
            dir: name.clone(),
            // What a crash may leave is gone by now.
            recovery_mode: RecoveryMode::AbsoluteConsistency,
            recovery_threads: 1,
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(sizes.file),
            purge_threshold: ReadableSize(sizes.purge),
            // `files` does that.
            enable_log_recycle: false,
            ..Config::default()
        };
        let fail = |source| LogError::Engine { dir: name.clone(), source };
        let engine = Engine::open_with_file_system(config, Arc::new(files.clone())).map_err(fail)?;
        let damaged =
            |what: &str| LogError::Damaged { path: name.clone(), offset: None, what: what.to_owned() };
        let generation = engine.raft_groups().into_iter().max().unwrap_or(0);
        let (hard_state, truncated) = match engine.get(generation, KEY_TRUNCATED) {
            None if report.records > 0 => return Err(damaged("it has entries, but not their start")),
            None => (HardState::default(), Position::default()),
            Some(bytes) => {
                let truncated = decode_position(&bytes).ok_or_else(|| damaged("its start is unreadable"))?;
                let hard_state = engine.get_message(generation, KEY_HARD).map_err(fail)?;
                (hard_state.unwrap_or_default(), truncated)
            }
        };
        let installing = match engine.get(generation, KEY_INSTALLING).filter(|bytes| !bytes.is_empty()) {
            None => None,
            Some(bytes) => {
                Some(decode_position(&bytes).ok_or_else(|| damaged("its note of a snapshot is unreadable"))?)
            }
        };
        let span = engine.first_index(generation).zip(engine.last_index(generation));
        let last = match engine.get(generation, KEY_LAST) {
            // Written by an earlier version.
            None => span.map_or(truncated.index, |(_, last)| last.max(truncated.index)),
            Some(bytes) => {
                bytes.try_into().map(u64::from_be_bytes).map_err(|_| damaged("its end is unreadable"))?
            }
        };
        let needed = truncated.index < last;
        if needed && span.is_none_or(|(first, end)| first > truncated.index + 1 || end < last) {
            return Err(damaged(&format!("entries are missing between {} and {last}", truncated.index + 1)));
        }
        let ghosts = Ghosts {
            generations: engine.raft_groups().into_iter().filter(|&group| group < generation).collect(),
            before: span.and_then(|(first, end)| {
                let start = if needed { truncated.index + 1 } else { end + 1 };
                Some(start).filter(|&start| first < start)
            }),
        };
        Ok(EngineLog {
            engine,
            files,
            when_full: Box::new(|| false),
            report,
            dir: name,
            generation,
            hard_state,
            unwritten: false,
            exposed: false,
            truncated,
            last,
            installing,
            ghosts,
            cache: Cache::default(),
        })
    }

    /// What was found and put right when it was opened.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Sets what is asked when there is no room for a write. Until then such a write fails with
    /// [`LogError::NoSpace`].
    pub fn when_full(&mut self, when_full: WhenFull) {
        self.when_full = when_full;
    }

    /// The log is damaged although every record in it is whole: names where it ends.
    pub fn damaged(&self, what: impl Into<String>) -> LogError {
        let (path, offset) = match &self.report.end {
            Some((path, offset)) => (path.display().to_string(), Some(*offset)),
            None => (self.dir.clone(), None),
        };
        LogError::Damaged { path, offset, what: what.into() }
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.truncated == Position::default() && self.last == 0
    }

    fn fail(&self) -> impl Fn(raft_engine::Error) -> LogError + use<D> {
        let dir = self.dir.clone();
        move |source| LogError::Engine { dir: dir.clone(), source }
    }

    /// Writes one record and syncs it. As long as there is no room for it and `when_full` says so it is tried again:
    /// a write that fails for want of room leaves nothing behind.
    fn write(
        &mut self,
        fill: impl Fn(&mut LogBatch) -> Result<(), raft_engine::Error>,
    ) -> Result<(), LogError> {
        loop {
            let mut batch = LogBatch::with_capacity(4);
            self.ghosts.drop(self.generation, &mut batch);
            fill(&mut batch).map_err(self.fail())?;
            let written = self.engine.write(&mut batch, true);
            self.check_synced()?;
            match written {
                Ok(_) => {
                    self.ghosts = Ghosts::default();
                    return Ok(());
                }
                Err(raft_engine::Error::Io(error)) if is_full(&error) => {
                    if !self.files.drop_spares() && !(self.when_full)() {
                        return Err(LogError::NoSpace { dir: self.dir.clone() });
                    }
                }
                Err(error) => return Err(self.fail()(error)),
            }
        }
    }

    fn check_synced(&self) -> Result<(), LogError> {
        let failed = |failure: super::files::SyncFailure| LogError::Sync {
            path: failure.path.display().to_string(),
            why: failure.why,
        };
        self.files.failure().map_or(Ok(()), |failure| Err(failed(failure)))
    }

    /// Writes what is not written yet, in a record of its own behind all others: should the disk damage the last record,
    /// which cannot be told from a write that was cut short, nothing is lost.
    fn close(&mut self) -> Result<(), LogError> {
        if self.unwritten || self.exposed {
            let (generation, hard_state) = (self.generation, self.hard_state.clone());
            self.when_full = Box::new(|| false);
            self.write(|batch| batch.put_message(generation, KEY_HARD.to_vec(), &hard_state))?;
            (self.unwritten, self.exposed) = (false, false);
        }
        Ok(())
    }
}

impl<D: Disk> Drop for EngineLog<D> {
    fn drop(&mut self) {
        if self.files.failure().is_some() || std::thread::panicking() {
            return;
        }
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the raft log is not closed in good order; it holds everything");
        }
    }
}

impl<D: Disk> LogStore for EngineLog<D> {
    fn hard_state(&self) -> HardState {
        self.hard_state.clone()
    }

    fn truncated(&self) -> Position {
        self.truncated
    }

    fn last_index(&self) -> u64 {
        self.last
    }

    fn term(&self, index: u64) -> Result<Option<u64>, LogError> {
        if index == self.truncated.index {
            return Ok(Some(self.truncated.term));
        }
        if index < self.truncated.index || index > self.last {
            return Ok(None);
        }
        if let Some(entry) = self.cache.from(index).next() {
            return Ok(Some(entry.term));
        }
        let entry = self.engine.get_entry::<RaftEntries>(self.generation, index).map_err(self.fail())?;
        Ok(entry.map(|entry| entry.term))
    }

    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::new();
        let mut from = from;
        if self.cache.from(from).next().is_none() {
            let disk_to = self.cache.first().map_or(to, |first| first.min(to));
            let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
            self.engine
                .fetch_entries_to::<RaftEntries>(self.generation, from, disk_to, Some(limit), &mut entries)
                .map_err(self.fail())?;
            from += entries.len() as u64;
            if from < disk_to {
                return Ok(entries);
            }
        }
        let mut bytes: u64 = entries.iter().map(|entry| u64::from(entry.compute_size())).sum();
        let count = usize::try_from(to - from).unwrap_or(usize::MAX);
        for entry in self.cache.from(from).take(count) {
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), LogError> {
        let hard_state = hard_state.or(Some(&self.hard_state).filter(|_| self.unwritten)).cloned();
        if entries.is_empty() && !sync {
            self.unwritten |= hard_state.is_some();
        } else {
            let generation = self.generation;
            self.write(|batch| {
                batch.add_entries::<RaftEntries>(generation, &entries)?;
                if let Some(last) = entries.last() {
                    batch.put(generation, KEY_LAST.to_vec(), last.index.to_be_bytes().to_vec())?;
                }
                let Some(hard_state) = &hard_state else { return Ok(()) };
                batch.put_message(generation, KEY_HARD.to_vec(), hard_state)
            })?;
            (self.unwritten, self.exposed) = (false, true);
        }
        self.hard_state = hard_state.unwrap_or_else(|| std::mem::take(&mut self.hard_state));
        if let Some(last) = entries.last() {
            self.last = last.index;
        }
        self.cache.add(entries);
        Ok(())
    }

    fn installing(&self) -> Option<Position> {
        self.installing
    }

    fn mark_install(&mut self, position: Option<Position>) -> Result<(), LogError> {
        let generation = self.generation;
        // Nothing is removed: what removes may be gone before what it removed, see above.
        let value = position.map(encode_position).as_ref().map_or(&[][..], |bytes| bytes).to_vec();
        let hard_state = Some(self.hard_state.clone()).filter(|_| self.unwritten);
        self.write(|batch| {
            batch.put(generation, KEY_INSTALLING.to_vec(), value.clone())?;
            let Some(hard_state) = &hard_state else { return Ok(()) };
            batch.put_message(generation, KEY_HARD.to_vec(), hard_state)
        })?;
        (self.unwritten, self.exposed) = (false, true);
        self.installing = position;
        Ok(())
    }

    fn reset(&mut self, position: Position, hard_state: Option<&HardState>) -> Result<(), LogError> {
        let (old, new) = (self.generation, self.generation + 1);
        let mut hard_state = hard_state.unwrap_or(&self.hard_state).clone();
        // What is committed beyond the snapshot comes with entries, which are written next.
        hard_state.commit = hard_state.commit.min(position.index);
        self.write(|batch| {
            batch.put(new, KEY_TRUNCATED.to_vec(), encode_position(position).to_vec())?;
            batch.put(new, KEY_LAST.to_vec(), position.index.to_be_bytes().to_vec())?;
            batch.put_message(new, KEY_HARD.to_vec(), &hard_state)?;
            batch.add_command(old, Command::Clean);
            Ok(())
        })?;
        (self.unwritten, self.exposed) = (false, true);
        self.generation = new;
        (self.hard_state, self.truncated, self.last) = (hard_state, position, position.index);
        // The note of it has gone with the old generation.
        self.installing = None;
        self.cache = Cache::default();
        Ok(())
    }

    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        let Some(term) = self.term(index)? else { return Ok(()) };
        if index <= self.truncated.index {
            return Ok(());
        }
        let position = Position { index, term };
        let generation = self.generation;
        let hard_state = Some(self.hard_state.clone()).filter(|_| self.unwritten);
        self.write(|batch| {
            batch.put(generation, KEY_TRUNCATED.to_vec(), encode_position(position).to_vec())?;
            batch.add_command(generation, Command::Compact { index: index + 1 });
            let Some(hard_state) = &hard_state else { return Ok(()) };
            batch.put_message(generation, KEY_HARD.to_vec(), hard_state)
        })?;
        (self.unwritten, self.exposed) = (false, true);
        self.truncated = position;
        self.cache.drop_to(index);
        let purged = self.engine.purge_expired_files();
        self.check_synced()?;
        match purged {
            // The next compaction removes them.
            Err(raft_engine::Error::Io(error)) if is_full(&error) => {
                tracing::debug!("no room to remove old files of the raft log");
            }
            purged => drop(purged.map_err(self.fail())?),
        }
        Ok(())
    }

    fn shrink(&mut self) {
        self.files.drop_spares();
    }
}

fn encode_position(position: Position) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&position.index.to_be_bytes());
    bytes[8..].copy_from_slice(&position.term.to_be_bytes());
    bytes
}

fn decode_position(bytes: &[u8]) -> Option<Position> {
    let (index, term) = bytes.split_first_chunk::<8>()?;
    Some(Position { index: u64::from_be_bytes(*index), term: u64::from_be_bytes(term.try_into().ok()?) })
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
