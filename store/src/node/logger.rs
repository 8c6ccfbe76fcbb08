//! Passes the raft crate's slog records on to tracing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, o};

/// Ticks within which the same warning of the crate is passed on [`BURST`] times: half a minute of 100 ms.
const WINDOW: u64 = 300;
/// So often is the same warning passed on at once. Those that matter come a few at a time, those that a peer causes as
/// fast as it can send.
const BURST: u64 = 5;

/// What the crate has warned of lately, by the line of its source that did: some two dozen. Time is counted in ticks.
#[derive(Debug, Default)]
pub(super) struct Warnings(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    now: u64,
    by_place: BTreeMap<(&'static str, u32), Count>,
}

#[derive(Debug, Default)]
struct Count {
    since: u64,
    said: u64,
    held_back: u64,
}

impl Warnings {
    /// A tick has passed.
    pub(super) fn tick(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).now += 1;
    }

    /// Whether to pass on a warning from this place; if so, how many were held back before it.
    fn admit(&self, file: &'static str, line: u32) -> Option<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = kept.now;
        let count = kept.by_place.entry((file, line)).or_default();
        if now - count.since >= WINDOW {
            (count.since, count.said) = (now, 0);
        }
        if count.said >= BURST {
            count.held_back += 1;
            return None;
        }
        count.said += 1;
        Some(std::mem::take(&mut count.held_back))
    }
}

struct ToTracing {
    member: u64,
    warnings: Arc<Warnings>,
}

/// A logger whose records show up in tracing with the member's id. The crate calls a great deal of routine
/// "info"; its info is our debug.
pub(super) fn to_tracing(member: u64, warnings: &Arc<Warnings>) -> Logger {
    Logger::root(ToTracing { member, warnings: Arc::clone(warnings) }.fuse(), o!())
}

struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), Never> {
        let verbose = !matches!(record.level(), Level::Critical | Level::Error | Level::Warning);
        if verbose && !tracing::enabled!(target: "raft", tracing::Level::DEBUG) {
            return Ok(());
        }
        let held_back = match record.level() {
            // The last words before a panic are always said.
            Level::Error | Level::Warning => self.warnings.admit(record.file(), record.line()),
            _ => Some(0),
        };
        let Some(held_back) = held_back else { return Ok(()) };
        let mut fields = Fields(String::new());
        let _ = record.kv().serialize(record, &mut fields);
        if held_back > 0 {
            let _ = write!(fields.0, " held_back={held_back}");
        }
        let (message, fields, member) = (record.msg(), fields.0, format_args!("{:x}", self.member));
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", member, "{message}{fields}"),
            Level::Warning => tracing::warn!(target: "raft", member, "{message}{fields}"),
            Level::Info | Level::Debug => tracing::debug!(target: "raft", member, "{message}{fields}"),
            Level::Trace => tracing::trace!(target: "raft", member, "{message}{fields}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_that_goes_on_is_said_a_few_times_in_a_window() {
        let warnings = Warnings::default();
        let said = |line| (0..1000).filter_map(|_| warnings.admit("raft.rs", line)).collect::<Vec<_>>();
        assert_eq!(said(1), [0; 5]);
        assert_eq!(said(2), [0; 5], "another one is news");
        (0..WINDOW).for_each(|_| warnings.tick());
        assert_eq!(said(1), [995, 0, 0, 0, 0]);
    }
}
