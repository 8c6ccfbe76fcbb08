//! How much of the raft log is kept: by entries, as etcd, and by bytes, for entries may be as large as 10 MiB.
//!
//! ```text
//!  dropped | for followers a little behind | since the last checkpoint | not committed
//! ---------+-------------------------------+---------------------------+--------------
//!   at most: catch_up_entries                --snapshot-count             64 MiB
//!            CATCH_UP_BYTES                  CHECKPOINT_BYTES
//! ```
//!
//! A follower that is there and further behind holds the log up, at most for [`HELD_BYTES`]: above all one that is being
//! sent a snapshot, which is of no use if the entries after it are gone when it arrives. docs/snapshots.md says what this
//! comes to on disk.

use std::collections::VecDeque;

use crate::log::{LogError, LogStore};

/// Bytes of entries after which the image is made durable, so that the log before it can go. Of the size of the log's
/// files, and so large that with values of a kilobyte or two `--snapshot-count` (100,000) comes about as soon.
pub const CHECKPOINT_BYTES: u64 = 128 << 20;
/// Bytes of entries kept for followers a little behind. One that missed more is brought up by a snapshot.
pub const CATCH_UP_BYTES: u64 = 64 << 20;
/// Bytes of entries kept for followers that are there and further behind, or are being sent a snapshot.
pub const HELD_BYTES: u64 = 512 << 20;
/// What an entry takes beside its data: in the log's index in memory, and on disk.
const ENTRY_BYTES: u64 = 64;
/// The sizes of entries are kept in sums of about that many bytes.
const STEP_BYTES: u64 = 256 << 10;
/// Bytes read from the log at once, when it is measured.
const READ_BYTES: u64 = 4 << 20;

/// What an entry with so much data counts for.
pub(super) fn entry_bytes(data: &[u8]) -> u64 {
    data.len() as u64 + ENTRY_BYTES
}

/// The sizes of the committed entries that the log holds.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Indexes in order, each with the bytes of all entries up to it; the first is where the log begins.
    sums: VecDeque<(u64, u64)>,
    last: u64,
    total: u64,
}

impl Tail {
    /// Measures the log up to `applied`, by reading it.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) fn measure(log: &impl LogStore, applied: u64) -> Result<Tail, LogError> {
        let mut tail = Tail::starting(log.truncated().index);
        let end = applied.min(log.last_index()) + 1;
        while tail.last + 1 < end {
            let entries = log.entries(tail.last + 1, end, READ_BYTES)?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                tail.push(entry.index, entry_bytes(&entry.data));
            }
        }
        Ok(tail)
    }

    fn starting(index: u64) -> Tail {
        Tail { sums: VecDeque::from([(index, 0)]), last: index, total: 0 }
    }

    /// An entry is committed. One that does not follow on the last comes after a snapshot, where the log begins anew.
    pub(super) fn push(&mut self, index: u64, bytes: u64) {
        if index != self.last + 1 {
            *self = Tail::starting(index.saturating_sub(1));
        }
        self.total += bytes;
        self.last = index;
        // The last sum grows until it is a step beyond the one before.
        let before = self.sums.len().checked_sub(2).map(|at| self.sums[at].1);
        match self.sums.back_mut() {
            Some(sum) if before.is_some_and(|before| self.total - before <= STEP_BYTES) => {
                *sum = (index, self.total);
            }
            _ => self.sums.push_back((index, self.total)),
        }
    }

    /// The last entry.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Bytes of the entries after `index`, and at most a step more.
    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        let at = self.sums.partition_point(|(sum, _)| *sum <= index);
        let before = at.checked_sub(1).and_then(|at| self.sums.get(at)).or(self.sums.front());
        before.map_or(0, |(_, bytes)| self.total - bytes)
    }

    /// The least index after which there are at most so many bytes.
    fn within(&self, bytes: u64) -> u64 {
        let at = self.sums.partition_point(|(_, before)| self.total - before > bytes);
        self.sums.get(at).map_or(self.last, |(index, _)| *index)
    }

    /// The log begins after `index` now.
    pub(super) fn forget(&mut self, index: u64) {
        // The sum at or before it stays: it is where counting begins.
        while self.sums.get(1).is_some_and(|(next, _)| *next <= index) {
            self.sums.pop_front();
        }
    }

    /// As [`Tail::upto`] where the disk is low: only [`CATCH_UP_BYTES`] are kept, and only for a follower that needs them.
    pub(super) fn upto_when_low(&self, durable: u64, needed: Option<u64>) -> u64 {
        needed.map_or(durable, |needed| durable.min(needed.max(self.within(CATCH_UP_BYTES))))
    }

    /// Up to where the log can go when the state at `durable` is on disk: `entries` and [`CATCH_UP_BYTES`] are kept, and
    /// more for a follower that needs what comes after `needed`.
    pub(super) fn upto(&self, durable: u64, entries: u64, needed: Option<u64>) -> u64 {
        let plain = durable.saturating_sub(entries).max(self.within(CATCH_UP_BYTES)).min(durable);
        match needed {
            Some(needed) => plain.min(needed.max(self.within(HELD_BYTES))),
            None => plain,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::Entry;

    use super::*;
    use crate::log::mem::MemLog;
    use crate::machine::Position;

    const MIB: u64 = 1 << 20;

    fn tail(first: u64, sizes: impl IntoIterator<Item = u64>) -> Tail {
        let mut tail = Tail::starting(first - 1);
        for (bytes, index) in sizes.into_iter().zip(first..) {
            tail.push(index, bytes);
        }
        tail
    }

    #[test]
    fn small_entries_are_counted_and_large_ones_weighed() {
        let small = tail(1, std::iter::repeat_n(100, 20_000));
        assert_eq!(small.upto(20_000, 5000, None), 15_000);
        assert_eq!(small.upto(4000, 5000, None), 0);
        let large = tail(1, std::iter::repeat_n(MIB, 1000));
        assert_eq!(large.upto(1000, 5000, None), 1000 - 64);
        assert_eq!(large.upto(900, 5000, None), 900, "nothing after what is durable is dropped");
    }

    #[test]
    fn who_is_behind_holds_the_log_up_and_not_for_ever() {
        let log = tail(1, std::iter::repeat_n(MIB, 1000));
        assert_eq!(log.upto(1000, 5000, Some(990)), 936, "it is not that far behind");
        assert_eq!(log.upto(1000, 5000, Some(700)), 700);
        assert_eq!(log.upto(1000, 5000, Some(3)), 1000 - 512);
        assert_eq!(log.upto(1000, 5000, Some(0)), 1000 - 512);
    }

    #[test]
    fn where_the_disk_is_low_only_what_somebody_needs_is_kept() {
        let log = tail(1, std::iter::repeat_n(MIB, 1000));
        assert_eq!(log.upto_when_low(900, None), 900);
        assert_eq!(log.upto_when_low(1000, Some(990)), 990);
        assert_eq!(log.upto_when_low(900, Some(990)), 900, "nothing after what is durable is dropped");
        assert_eq!(log.upto_when_low(1000, Some(3)), 1000 - 64);
    }

    #[test]
    fn a_snapshot_begins_it_anew() {
        let mut log = tail(1, [MIB; 50]);
        log.push(900, MIB);
        assert_eq!((log.bytes_after(0), log.bytes_after(899), log.bytes_after(900)), (MIB, MIB, 0));
    }

    #[test]
    fn the_log_is_measured_at_a_start() {
        let mut log = MemLog::new(Position { index: 10, term: 1 });
        let entries =
            (11..=60).map(|index| Entry { index, data: vec![0; 1 << 20].into(), ..Entry::default() });
        log.append(entries.collect(), None, true).unwrap();
        let tail = Tail::measure(&log, 50).unwrap();
        assert_eq!(tail.bytes_after(10), 40 * (MIB + ENTRY_BYTES), "what is not applied comes again");
        assert_eq!(Tail::measure(&MemLog::default(), 0).unwrap().bytes_after(0), 0);
    }

    proptest! {
        /// Against plain sums: what is kept is never above the bound, and below it by a step and an entry at most.
        #[test]
        fn it_is_right_within_a_step(
            sizes in prop::collection::vec(0u64..2 * MIB, 1..200),
            forget in 0u64..200,
            bound in 0u64..100 * MIB,
        ) {
            let mut tail = tail(1, sizes.iter().copied());
            let last = sizes.len() as u64;
            tail.forget(forget.min(last));
            let after = |index: u64| sizes[usize::try_from(index).unwrap()..].iter().sum::<u64>();
            for index in forget.min(last)..=last {
                prop_assert!((after(index)..=after(index) + STEP_BYTES + 2 * MIB).contains(&tail.bytes_after(index)));
            }
            let kept = tail.within(bound);
            prop_assert!(after(kept) <= bound);
            if kept > forget {
                prop_assert!(after(kept) + STEP_BYTES + 2 * MIB > bound);
            }
        }

        #[test]
        fn it_takes_little_memory(count in 1u64..3000) {
            let tail = tail(1, std::iter::repeat_n(1000, usize::try_from(count).unwrap()));
            prop_assert!(tail.sums.len() as u64 <= count * 1000 / STEP_BYTES * 2 + 4, "{}", tail.sums.len());
        }
    }
}
