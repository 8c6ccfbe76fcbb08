//! The log on disk, in raft-engine, with the newest entries kept in memory as well.
//!
//! A raft group of the engine is one *generation* of the log. A snapshot starts the next generation and
//! cleans the last one in the same atomic batch, so nothing of an old log can show up in a new one. Beside
//! the entries a generation holds two values: `hard` (the hard state, protobuf) and `trunc` (index and term
//! of the last entry dropped, 16 bytes).

use std::collections::VecDeque;
use std::path::Path;

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::{LogError, LogStore};
use crate::machine::Position;

const KEY_HARD: &[u8] = b"hard";
const KEY_TRUNCATED: &[u8] = b"trunc";
/// Entries kept in memory: followers that keep up are served from here.
const CACHE_ENTRIES: usize = 4096;
/// And their size.
const CACHE_BYTES: usize = 4 << 20;

/// Tells raft-engine where an entry's index is.
struct RaftEntries;

impl MessageExt for RaftEntries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The log of one member.
pub struct EngineLog {
    engine: Engine,
    dir: String,
    generation: u64,
    hard_state: HardState,
    truncated: Position,
    last: u64,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
}

impl EngineLog {
    /// Opens the log in `dir`, made if it is not there. A torn tail (a write that a crash cut short) is
    /// dropped; it was never acknowledged.
    ///
    /// # Errors
    /// [`LogError`] if it cannot be read.
    pub fn open(dir: &Path) -> Result<EngineLog, LogError> {
        let name = dir.display().to_string();
        let config = Config {
            dir: name.clone(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 1,
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize::mb(16),
            purge_threshold: ReadableSize::mb(64),
            enable_log_recycle: true,
            ..Config::default()
        };
        let fail = |source| LogError::Engine { dir: name.clone(), source };
        let engine = Engine::open(config).map_err(fail)?;
        let damaged = |what: &str| LogError::Damaged { dir: name.clone(), what: what.to_owned() };
        let generation = engine.raft_groups().into_iter().max().unwrap_or(0);
        let (hard_state, truncated) = match engine.get(generation, KEY_TRUNCATED) {
            None => (HardState::default(), Position::default()),
            Some(bytes) => {
                let truncated = decode_position(&bytes).ok_or_else(|| damaged("its start is unreadable"))?;
                let hard_state = engine.get_message(generation, KEY_HARD).map_err(fail)?;
                (hard_state.unwrap_or_default(), truncated)
            }
        };
        let last = engine.last_index(generation).unwrap_or(truncated.index);
        if engine.first_index(generation).is_some_and(|first| first > truncated.index + 1) {
            return Err(damaged("entries are missing after its start"));
        }
        let cache = VecDeque::new();
        Ok(EngineLog { engine, dir: name, generation, hard_state, truncated, last, cache, cache_bytes: 0 })
    }

    /// Whether nothing was ever written.
    pub fn is_empty(&self) -> bool {
        self.truncated == Position::default() && self.last == 0
    }

    fn fail(&self) -> impl Fn(raft_engine::Error) -> LogError + use<> {
        let dir = self.dir.clone();
        move |source| LogError::Engine { dir: dir.clone(), source }
    }

    fn put_hard_state(&self, batch: &mut LogBatch, hard_state: &HardState) -> Result<(), LogError> {
        batch.put_message(self.generation, KEY_HARD.to_vec(), hard_state).map_err(self.fail())
    }

    fn remember(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            while self.cache.back().is_some_and(|last| last.index >= first.index) {
                self.forget(VecDeque::pop_back);
            }
        }
        for entry in entries {
            self.cache_bytes += entry.data.len();
            self.cache.push_back(entry);
        }
        while self.cache.len() > CACHE_ENTRIES || (self.cache_bytes > CACHE_BYTES && self.cache.len() > 1) {
            self.forget(VecDeque::pop_front);
        }
    }

    fn forget(&mut self, pop: fn(&mut VecDeque<Entry>) -> Option<Entry>) {
        if let Some(entry) = pop(&mut self.cache) {
            self.cache_bytes -= entry.data.len();
        }
    }

    fn cached(&self, index: u64) -> Option<usize> {
        let first = self.cache.front()?.index;
        usize::try_from(index.checked_sub(first)?).ok().filter(|&at| at < self.cache.len())
    }
}

impl LogStore for EngineLog {
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
        if let Some(at) = self.cached(index) {
            return Ok(Some(self.cache[at].term));
        }
        let entry = self.engine.get_entry::<RaftEntries>(self.generation, index).map_err(self.fail())?;
        Ok(entry.map(|entry| entry.term))
    }

    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let mut entries = Vec::new();
        let mut from = from;
        if self.cached(from).is_none() {
            let disk_to = self.cache.front().map_or(to, |first| first.index.min(to));
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
        if let Some(at) = self.cached(from) {
            for entry in self.cache.range(at..).take(count) {
                bytes += u64::from(entry.compute_size());
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
        }
        Ok(entries)
    }

    fn append(
        &mut self,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), LogError> {
        let mut batch = LogBatch::with_capacity(2);
        batch.add_entries::<RaftEntries>(self.generation, &entries).map_err(self.fail())?;
        if let Some(hard_state) = hard_state {
            self.put_hard_state(&mut batch, hard_state)?;
            self.hard_state = hard_state.clone();
        }
        self.engine.write(&mut batch, sync || !entries.is_empty()).map_err(self.fail())?;
        if let Some(last) = entries.last() {
            self.last = last.index;
        }
        self.remember(entries);
        Ok(())
    }

    fn reset(&mut self, position: Position, hard_state: Option<&HardState>) -> Result<(), LogError> {
        let old = self.generation;
        self.generation += 1;
        let mut hard_state = hard_state.cloned().unwrap_or_else(|| self.hard_state.clone());
        // What is committed beyond the snapshot comes with entries, which are written next.
        hard_state.commit = hard_state.commit.min(position.index);
        let mut batch = LogBatch::with_capacity(3);
        batch
            .put(self.generation, KEY_TRUNCATED.to_vec(), encode_position(position).to_vec())
            .map_err(self.fail())?;
        self.put_hard_state(&mut batch, &hard_state)?;
        batch.add_command(old, Command::Clean);
        self.engine.write(&mut batch, true).map_err(self.fail())?;
        (self.hard_state, self.truncated, self.last) = (hard_state, position, position.index);
        self.cache.clear();
        self.cache_bytes = 0;
        Ok(())
    }

    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        let Some(term) = self.term(index)? else { return Ok(()) };
        if index <= self.truncated.index {
            return Ok(());
        }
        let position = Position { index, term };
        let mut batch = LogBatch::with_capacity(2);
        batch
            .put(self.generation, KEY_TRUNCATED.to_vec(), encode_position(position).to_vec())
            .map_err(self.fail())?;
        batch.add_command(self.generation, Command::Compact { index: index + 1 });
        self.engine.write(&mut batch, true).map_err(self.fail())?;
        self.truncated = position;
        while self.cache.front().is_some_and(|first| first.index <= index) {
            self.forget(VecDeque::pop_front);
        }
        self.engine.purge_expired_files().map_err(self.fail())?;
        Ok(())
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
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::log::mem::MemLog;

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { index, term, data: vec![7; 100].into(), ..Entry::default() }).collect()
    }

    fn indexes(entries: &[Entry]) -> Vec<(u64, u64)> {
        entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    type Step = Box<dyn Fn(&mut dyn LogStore)>;

    /// Everything that both logs are asked must be answered alike, before and after a restart.
    fn assert_alike(engine: &EngineLog, mem: &MemLog) {
        assert_eq!(engine.truncated(), mem.truncated());
        assert_eq!(engine.last_index(), mem.last_index());
        assert_eq!(engine.hard_state(), mem.hard_state());
        for index in 0..=mem.last_index() + 1 {
            assert_eq!(engine.term(index).unwrap(), mem.term(index).unwrap(), "term of {index}");
        }
        let (first, last) = (mem.truncated().index + 1, mem.last_index());
        for from in [first, first.midpoint(last), last] {
            if from >= first && from <= last {
                let all = engine.entries(from, last + 1, u64::MAX).unwrap();
                assert_eq!(indexes(&all), indexes(&mem.entries(from, last + 1, u64::MAX).unwrap()));
                assert_eq!(engine.entries(from, last + 1, 0).unwrap().len(), 1);
            }
        }
    }

    #[test]
    fn it_answers_as_the_log_in_memory_does_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut mem = MemLog::default();
        let hard = HardState { term: 2, vote: 1, commit: 5, ..HardState::default() };
        let steps: Vec<Step> = vec![
            Box::new(|log| log.reset(Position { index: 3, term: 1 }, None).unwrap()),
            Box::new(|log| log.append(entries(4..=9000, 2), None, true).unwrap()),
            Box::new(move |log| log.append(entries(8000..=8100, 3), Some(&hard), true).unwrap()),
            Box::new(|log| log.compact(5000).unwrap()),
            Box::new(|log| log.append(entries(8101..=8102, 3), None, true).unwrap()),
            Box::new(|log| log.reset(Position { index: 8050, term: 4 }, None).unwrap()),
            Box::new(|log| log.append(entries(8051..=8060, 4), None, true).unwrap()),
            Box::new(|log| log.compact(8060).unwrap()),
        ];
        for step in steps {
            {
                let mut engine = EngineLog::open(dir.path()).unwrap();
                assert_alike(&engine, &mem);
                step(&mut engine);
                step(&mut mem);
                assert_alike(&engine, &mem);
            }
            assert_alike(&EngineLog::open(dir.path()).unwrap(), &mem);
        }
    }
}
