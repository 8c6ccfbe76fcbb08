//! Virtual time: nanoseconds since the run began.

/// A point in virtual time, or a span of it.
pub(crate) type Nanos = u64;

/// A microsecond.
pub(crate) const MICRO: Nanos = 1_000;
/// A millisecond.
pub(crate) const MILLI: Nanos = 1_000_000;
/// A second.
pub(crate) const SECOND: Nanos = 1_000_000_000;

/// `12.345678` for people.
pub(crate) fn show(time: Nanos) -> String {
    format!("{}.{:06}", time / SECOND, time % SECOND / MICRO)
}
