#![allow(clippy::unwrap_used, reason = "tests")]

//! Every crash point of a snapshot that is taken over, and logs that have lost what was in them.

use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};

use super::super::{Core, CoreConfig, Shell};
use super::*;
use crate::log::mem::MemLog;

const OLD: Position = Position { index: 6, term: 1 };
const NEW: Position = Position { index: 20, term: 2 };

/// A log with the entries 4 to 6, all committed.
fn log() -> MemLog {
    let mut log = MemLog::new(Position { index: 3, term: 1 });
    let entries = (4..=OLD.index).map(|index| Entry { index, term: 1, ..Entry::default() });
    let hard_state = HardState { term: 1, commit: OLD.index, ..HardState::default() };
    log.append(entries.collect(), Some(&hard_state), true).unwrap();
    log
}

fn start(log: MemLog, applied: Position) -> Result<Core<MemLog>, CoreError> {
    let config = CoreConfig { id: 1, election_ticks: 10, heartbeat_ticks: 1, fixed_election_ticks: Some(10) };
    Core::new(&config, vec![1, 2, 3], applied, log)
}

fn misfit(log: MemLog, applied: Position) -> Misfit {
    match start(log, applied).err() {
        Some(CoreError::Misfit(misfit)) => misfit,
        other => panic!("{other:?}"),
    }
}

/// Where the process ends.
#[derive(Clone, Copy, PartialEq)]
enum Crash {
    WhileTheStateIsReplaced,
    Not,
}

impl Shell for Crash {
    fn send(&mut self, _: Vec<Message>) {}

    fn install(&mut self, _: &Snapshot) -> Result<(), String> {
        if *self == Crash::Not { Ok(()) } else { Err("the power is gone".to_owned()) }
    }
}

/// What a power loss leaves of the log of a member that takes over a snapshot.
fn take_over(mut crash: Crash) -> MemLog {
    let mut core = start(log(), OLD).unwrap();
    let mut message = Message { from: 2, to: 1, term: 2, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let meta = message.mut_snapshot().mut_metadata();
    (meta.index, meta.term) = (NEW.index, NEW.term);
    meta.set_conf_state(ConfState { voters: vec![1, 2, 3], ..ConfState::default() });
    core.step(message).unwrap();
    assert_eq!(core.process(&mut crash).is_err(), crash != Crash::Not);
    let mut left = core.log().clone();
    left.crash();
    left
}

fn bounds(log: &MemLog) -> (Position, u64, Option<Position>) {
    (log.truncated(), log.last_index(), log.installing())
}

#[test]
fn a_snapshot_taken_over_is_old_or_new_at_every_crash() {
    let during = take_over(Crash::WhileTheStateIsReplaced);
    assert_eq!(during.installing(), Some(NEW), "the mark is durable before the state is touched");
    // The state was not replaced yet: the log goes on, and what it loses from here on is no snapshot's doing.
    let went_on = start(during.clone(), OLD).unwrap();
    let mut log = went_on.log().clone();
    log.crash();
    assert_eq!(bounds(&log), (Position { index: 3, term: 1 }, OLD.index, None));
    assert_eq!(misfit(log, NEW), Misfit::Short { last: OLD.index, held: NEW.index, how: "applied" });
    // It was: the log begins anew.
    let anew = start(during, NEW).unwrap();
    let mut log = anew.log().clone();
    log.crash();
    assert_eq!(bounds(&log), (NEW, NEW.index, None));
    assert_eq!(log.hard_state().term, 1, "what was voted for is not forgotten");
    // The log as well.
    let after = take_over(Crash::Not);
    assert_eq!(bounds(&after), (NEW, NEW.index, None));
    start(after, NEW).unwrap();
}

#[test]
fn the_mark_excuses_nothing_but_its_own_snapshot() {
    let marked = take_over(Crash::WhileTheStateIsReplaced);
    for applied in
        [Position { index: 19, term: 2 }, Position { index: 21, term: 2 }, Position { index: 20, term: 1 }]
    {
        let held = applied.index;
        assert_eq!(misfit(marked.clone(), applied), Misfit::Short { last: OLD.index, held, how: "applied" });
    }
}

#[test]
fn a_log_that_has_lost_entries_is_refused() {
    let at = |index, term| Position { index, term };
    assert_eq!(misfit(log(), at(8, 1)), Misfit::Short { last: 6, held: 8, how: "applied" });
    assert_eq!(misfit(log(), at(5, 2)), Misfit::Other { index: 5, log: 1, applied: 2 });
    assert_eq!(misfit(log(), at(2, 1)), Misfit::Gap { log: 3, applied: 2 });
    let mut short = log();
    let hard_state = HardState { term: 1, commit: 9, ..HardState::default() };
    short.append(Vec::new(), Some(&hard_state), true).unwrap();
    assert_eq!(misfit(short, OLD), Misfit::Short { last: 6, held: 9, how: "committed" });
    let texts = [misfit(log(), at(8, 1)).to_string(), misfit(log(), at(5, 2)).to_string()];
    assert!(texts[0].contains("ends with entry 6") && texts[1].contains("entry 5"), "{texts:?}");
}

#[test]
fn a_log_in_which_nothing_was_ever_written_begins_where_the_state_stands() {
    let core = start(MemLog::default(), OLD).unwrap();
    assert_eq!(core.log().truncated(), OLD);
}
