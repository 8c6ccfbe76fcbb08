//! Passes the raft crate's slog records on to tracing.

use std::fmt::Write as _;

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, o};

struct ToTracing {
    member: u64,
}

/// A logger whose records show up in tracing with the member's id. The crate calls a great deal of routine
/// "info"; its info is our debug.
pub(super) fn to_tracing(member: u64) -> Logger {
    Logger::root(ToTracing { member }.fuse(), o!())
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
        let mut fields = Fields(String::new());
        let _ = record.kv().serialize(record, &mut fields);
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
