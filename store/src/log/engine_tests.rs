#![allow(clippy::unwrap_used, reason = "tests")]

//! The log on disk answers as the log in memory does.

use super::*;
use crate::log::mem::MemLog;
use crate::log::test_disk::{TestDisk, temp_dir};

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
    assert_eq!(engine.installing(), mem.installing());
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
        Box::new(|log| log.mark_install(Some(Position { index: 9050, term: 3 })).unwrap()),
        Box::new(|log| log.mark_install(None).unwrap()),
        Box::new(|log| log.mark_install(Some(Position { index: 8050, term: 4 })).unwrap()),
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

/// raft-engine moves the few entries that keep an old file alive to another. Once the file is gone that says that they
/// were replaced, they are there again after a restart.
#[test]
fn entries_that_were_replaced_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = Sizes { file: 4 << 10, purge: 16 << 10 };
    let open = || EngineLog::open_on(OsDisk, dir.path(), sizes).unwrap();
    let mut log = open();
    // Entries of one index, one after the other, so that files are begun and few entries are in them.
    let fill = |log: &mut EngineLog, index| {
        for term in 10..40 {
            let data = vec![7; 1000].into();
            log.append(vec![Entry { index, term, data, ..Entry::default() }], None, true).unwrap();
        }
    };
    log.reset(Position { index: 3, term: 1 }, None).unwrap();
    log.append(entries(4..=20, 2), None, true).unwrap();
    fill(&mut log, 21);
    log.compact(5).unwrap();
    let moved = dir.path().join("0000000000000001.rewrite");
    assert!(moved.metadata().unwrap().len() > 1000, "nothing was moved: the test tests nothing");
    log.append(entries(10..=11, 41), None, true).unwrap();
    fill(&mut log, 12);
    log.compact(12).unwrap();
    assert!(
        !dir.path().join("0000000000000002.raftlog").exists(),
        "nothing was removed: the test tests nothing"
    );
    for _ in 0..2 {
        drop(log);
        log = open();
        assert_eq!((log.truncated().index, log.last_index()), (12, 12));
        assert_eq!(log.term(13).unwrap(), None);
    }
    log.append(entries(13..=13, 42), None, true).unwrap();
    drop(log);
    log = open();
    assert_eq!((log.truncated().index, log.last_index(), log.term(13).unwrap()), (12, 13, Some(42)));
    assert_eq!(indexes(&log.entries(13, 14, u64::MAX).unwrap()), [(13, 42)]);
}

/// A record that comes into blocks that were written before waits for nothing but itself.
#[test]
fn room_is_taken_ahead_and_written_to() {
    let (disk, dir) = (TestDisk::default(), temp_dir());
    let mut log = EngineLog::open_on(disk.clone(), dir.path(), Sizes::default()).unwrap();
    log.reset(Position { index: 3, term: 1 }, None).unwrap();
    let (len, unwritten) = disk.unwritten("0000000000000001.raftlog");
    assert!(len >= 1 << 20 && unwritten < len / 20, "{unwritten} of {len} bytes");
    log.append(entries(4..=1000, 2), None, true).unwrap();
    assert_eq!(disk.unwritten("0000000000000001.raftlog"), (len, unwritten), "one record fits");
}
