//! What stands behind the last whole record of the changes: the remains of a write, or damage. Pure.
//!
//! Records are synced at a checkpoint only, so a power loss may leave any part of those since then, also a whole record
//! behind one that is not. What is found here is therefore for people. Whether anything is lost, the raft log decides: it
//! holds what was not synced, see [`crate::node::fit`].

use std::fmt;

use super::changes::{HEAD_BYTES, first};
use crate::machine::Position;

/// The search for records behind a flaw checks at most this many bytes for each byte of the file.
const SEARCH_FACTOR: usize = 4;

/// What is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Where it begins in the file.
    pub(super) offset: usize,
    /// Its length in bytes.
    pub(super) bytes: usize,
    /// Where a whole record stands in it that can follow on the last one before it.
    pub(super) next: Option<usize>,
}

impl Tail {
    /// Looks at what is in `bytes` from `offset` on, where no whole record begins; the last before it leads to `applied`.
    /// `None` if there is nothing.
    pub(super) fn find(bytes: &[u8], offset: usize, applied: Position) -> Option<Tail> {
        let rest = bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let follows = |at: &usize| {
            rest.get(*at..).and_then(first).is_some_and(|(record, _)| record.applied.index >= applied.index)
        };
        let stated = head(rest).map(|length| HEAD_BYTES + length).filter(follows);
        let next = stated.or_else(|| search(rest, applied).find(follows)).map(|at| offset + at);
        Some(Tail { offset, bytes: rest.len(), next })
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.next {
            Some(next) => {
                write!(f, "the record at byte {} is damaged, a whole one follows at byte {next}", self.offset)
            }
            None => write!(f, "the {} bytes from byte {} on are no whole record", self.bytes, self.offset),
        }
    }
}

/// The length that a record says it has, if that fits.
fn head(bytes: &[u8]) -> Option<usize> {
    let length = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    (length <= bytes.len().checked_sub(HEAD_BYTES)?).then_some(length)
}

/// Where records may begin whose body begins with a position at or after `applied`.
fn search(bytes: &[u8], applied: Position) -> impl Iterator<Item = usize> {
    let mut budget = bytes.len().saturating_mul(SEARCH_FACTOR);
    (1..bytes.len()).filter(move |&at| {
        let Some(length) = head(&bytes[at..]) else { return false };
        let body = &bytes[at + HEAD_BYTES..][..length];
        let position = postcard::take_from_bytes::<Position>(body);
        let may = position.is_ok_and(|(position, _)| position.index >= applied.index && length <= budget);
        budget -= if may { length } else { 0 };
        may
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::path::Path;

    use super::super::changes::Changes;
    use super::*;
    use crate::machine::Machine;
    use crate::membership::{Member, Membership};
    use crate::state::Delta;
    use crate::tree::Op;

    /// Adds a record; returns where it ends.
    fn push(changes: &mut Changes, machine: &mut Machine, value_bytes: usize) -> usize {
        let since = machine.tree.index();
        let (path, value) = ("/1/k".to_owned(), "v".repeat(value_bytes));
        machine.tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
        machine.applied.index += 1000;
        changes.push(&Delta::take(machine, since), u64::MAX).unwrap();
        usize::try_from(changes.length()).unwrap()
    }

    fn machine() -> Machine {
        let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
        Machine::bootstrap(Membership::bootstrap(vec![member]))
    }

    fn tail(path: &Path) -> Option<Tail> {
        Changes::open(path).unwrap().tail().map(|(_, tail)| tail)
    }

    #[test]
    fn damage_is_told_from_a_torn_end_and_both_stay_until_the_next_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("changes-1");
        Changes::create(&path).unwrap();
        let (mut changes, mut machine) = (Changes::open(&path).unwrap(), machine());
        let ends = [10, 300, 20].map(|bytes| push(&mut changes, &mut machine, bytes));
        let whole = std::fs::read(&path).unwrap();
        assert_eq!((tail(&path), whole.len()), (None, ends[2]));
        for cut in [ends[1] + 1, ends[1] + 30, ends[2] - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let torn = Tail { offset: ends[1], bytes: cut - ends[1], next: None };
            assert_eq!(tail(&path), Some(torn), "cut at {cut}");
        }
        // The length of the second record, its checksum, its body: the third is found behind it.
        for at in [ends[0], ends[0] + 3, ends[0] + 10, ends[0] + 40, ends[1] - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let found = Tail { offset: ends[0], bytes: ends[2] - ends[0], next: Some(ends[1]) };
            assert_eq!(tail(&path), Some(found), "byte {at}");
            assert!(std::fs::read(&path).unwrap() == damaged, "opening has changed the file");
        }
        let mut changes = Changes::open(&path).unwrap();
        let end = push(&mut changes, &mut machine, 5);
        assert_eq!((changes.read().unwrap().len(), tail(&path)), (2, None));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), end as u64);
    }

    #[test]
    fn the_search_ends_in_what_was_made_to_be_searched() {
        // At every fourth byte something that may be a record of half the file.
        let bytes = (1_u32 << 19).to_be_bytes().repeat(1 << 18);
        let mut checked = 0;
        for at in search(&bytes, Position::default()) {
            checked += head(&bytes[at..]).unwrap();
        }
        assert!(checked > bytes.len() && checked <= SEARCH_FACTOR * bytes.len(), "{checked}");
    }
}
