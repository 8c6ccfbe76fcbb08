//! Many changes of a sled tree in one step, in little memory.
//!
//! sled keeps the old version of every page that a batch touches until the batch is done, about 5 KiB for each operation.
//! So more than a [`PIECE`] is written twice: first to a journal, which is one batch of few and large records, then piece
//! by piece to its place; at last the journal goes. A crash before the journal is whole leaves the old state. A crash after
//! that leaves the journal, and [`resume`] carries it out again. Every operation says what is there afterwards, so that
//! once more does no harm.
//!
//! After every batch the caller makes its files durable. sled writes new pages over the place of those that a finished
//! batch replaced, and takes a batch for finished when it has written it, not when the disk has it. Were there two
//! batches between two syncs, a power loss could take the new version of a page and leave nothing of the old one: also
//! of what an earlier sync had covered.

use std::collections::BTreeMap;

use sled::{Batch, Db};

use super::StateError;

/// Operations that go into one batch: more take more memory, fewer more syncs.
const PIECE: usize = 512;
/// Bytes after which a record of the journal is full. sled keeps up to 17 on a page, and a page of more than 128 KiB in a
/// file of its own, whose loss in a crash it does not notice.
const RECORD_BYTES: usize = 6 << 10;
/// Operations after which one round of collecting is enough: a round frees up to 512 objects (crossbeam-epoch: 8 bags of
/// 64), and an operation leaves about 2.
const OPERATIONS_PER_ROUND: usize = 64;
/// What the journal's keys begin with; the number of the record follows (4 bytes, network order).
const JOURNAL: &[u8] = b"j";

/// A key and its new value, `None` if it goes.
type Operation = (Vec<u8>, Option<Vec<u8>>);

/// Why changes could not be made, or a journal not be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] sled::Error),
    /// A batch could not be made durable.
    #[error(transparent)]
    Sync(#[from] StateError),
    /// The journal is not what [`Writes::commit`] wrote.
    #[error("its journal is unreadable")]
    Damaged,
}

/// Changes that are to be made together. No key begins as the journal's.
#[derive(Debug, Default)]
pub(super) struct Writes {
    // In the order of the keys: neighbours share pages.
    operations: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Writes {
    /// Sets `key` to `value`.
    pub(super) fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.operations.insert(key, Some(value));
    }

    /// Removes `key`.
    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.operations.insert(key, None);
    }

    /// Makes the changes, all or none. `head` is a key and its value that is set with the first batch: what reads it
    /// without [`resume`] can tell from it that there may be more to do. `sync` makes durable what is there, after every
    /// batch.
    ///
    /// # Errors
    /// [`WriteError`]; the next start finds the old state or the new one. Nothing else may be written before that, for
    /// the journal may be there.
    pub(super) fn commit(
        self,
        db: &Db,
        head: (&[u8], Vec<u8>),
        sync: impl FnMut() -> Result<(), StateError>,
    ) -> Result<(), WriteError> {
        self.plan(head).carry_out(db, sync)
    }

    /// What a crash after so many batches leaves.
    #[cfg(test)]
    pub(super) fn commit_first(self, batches: usize, db: &Db, head: (&[u8], Vec<u8>)) {
        let done = self.plan(head).steps().take(batches).try_for_each(|step| step.apply(db));
        done.expect("sled writes");
    }

    fn plan(self, (key, value): (&[u8], Vec<u8>)) -> Plan {
        let mut operations: Vec<Operation> = self.operations.into_iter().collect();
        if operations.len() < PIECE {
            operations.push((key.to_vec(), Some(value)));
            return Plan { first: None, operations, records: 0 };
        }
        let mut first = Step::default();
        let mut records = 0;
        for record in records_of(&operations) {
            first.insert(&journal_key(records), &encode(record));
            records += 1;
        }
        first.insert(key, &value);
        Plan { first: Some(first), operations, records }
    }
}

/// Finishes what a crash interrupted; `sync` as for [`Writes::commit`].
///
/// # Errors
/// [`WriteError`].
pub(super) fn resume(db: &Db, sync: impl FnMut() -> Result<(), StateError>) -> Result<(), WriteError> {
    let mut plan = Plan { first: None, operations: Vec::new(), records: 0 };
    for record in db.scan_prefix(JOURNAL).values() {
        let operations: Vec<Operation> = postcard::from_bytes(&record?).map_err(|_| WriteError::Damaged)?;
        plan.operations.extend(operations);
        plan.records += 1;
    }
    if plan.records > 0 {
        tracing::info!(operations = plan.operations.len(), "finishing an interrupted write of the state");
    }
    plan.carry_out(db, sync)
}

/// How a change is made.
struct Plan {
    /// The batch with the journal, unless that is there already or one batch is all.
    first: Option<Step>,
    /// What changes.
    operations: Vec<Operation>,
    /// Records of the journal.
    records: u32,
}

impl Plan {
    fn carry_out(
        mut self,
        db: &Db,
        mut sync: impl FnMut() -> Result<(), StateError>,
    ) -> Result<(), WriteError> {
        for step in self.steps() {
            step.apply(db)?;
            sync()?;
        }
        Ok(())
    }

    /// The batches in order, each made when its turn comes.
    fn steps(&mut self) -> impl Iterator<Item = Step> {
        let pieces = self.operations.chunks(PIECE).map(|piece| {
            let mut step = Step::default();
            for (key, value) in piece {
                match value {
                    Some(value) => step.insert(key, value),
                    None => step.remove(key),
                }
            }
            step
        });
        let records = self.records;
        let clear = (records > 0).then(|| {
            let mut step = Step::default();
            (0..records).for_each(|number| step.remove(&journal_key(number)));
            step
        });
        self.first.take().into_iter().chain(pieces).chain(clear)
    }
}

/// A batch that knows how large it is.
#[derive(Default)]
struct Step {
    batch: Batch,
    operations: usize,
}

impl Step {
    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.batch.insert(key, value);
        self.operations += 1;
    }

    fn remove(&mut self, key: &[u8]) {
        self.batch.remove(key);
        self.operations += 1;
    }

    /// Carries it out, and frees what sled replaced in memory.
    ///
    /// sled leaves old versions to crossbeam-epoch, which frees a little at every 128th access. A batch is one access,
    /// however large: without the rounds here a member whose clients write many keys would grow without end.
    fn apply(self, db: &Db) -> sled::Result<()> {
        db.apply_batch(self.batch)?;
        for _ in 0..=self.operations / OPERATIONS_PER_ROUND {
            sled::pin().flush();
        }
        Ok(())
    }
}

/// Groups the operations as they are recorded.
fn records_of(operations: &[Operation]) -> impl Iterator<Item = &[Operation]> {
    let mut bytes = 0;
    operations.chunk_by(move |(key, value), _| {
        bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        let full = bytes >= RECORD_BYTES;
        if full {
            bytes = 0;
        }
        !full
    })
}

fn journal_key(record: u32) -> Vec<u8> {
    [JOURNAL, &record.to_be_bytes()].concat()
}

fn encode(operations: &[Operation]) -> Vec<u8> {
    postcard::to_stdvec(operations).expect("operations have no length that postcard cannot write")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"m";

    fn fresh() -> Db {
        sled::Config::new().temporary(true).open().unwrap()
    }

    fn content(db: &Db) -> BTreeMap<Vec<u8>, Vec<u8>> {
        db.iter().map(|item| item.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// Replaces some keys, removes some and makes some.
    fn change(from: usize, to: usize) -> Writes {
        let mut writes = Writes::default();
        for n in from..to {
            writes.insert(format!("n{n:05}").into_bytes(), vec![u8::try_from(to % 251).unwrap(); n % 300]);
            writes.remove(format!("n{:05}", n + to).into_bytes());
        }
        writes
    }

    /// Wherever it is cut off, the next start finds the old state or the new one and no journal.
    #[test]
    fn a_change_that_is_cut_off_is_made_whole_or_not_at_all() {
        let change = || change(400, 1300);
        let steps = change().plan((HEAD, vec![2])).steps().count();
        assert!(steps > 4, "a journal, pieces and the end of the journal");
        for cut in 0..=steps {
            let db = fresh();
            super::tests::change(0, 1000).commit(&db, (HEAD, vec![1]), || Ok(())).unwrap();
            let old = content(&db);
            let mut new = old.clone();
            for (key, value) in change().operations {
                match value {
                    Some(value) => new.insert(key, value),
                    None => new.remove(&key),
                };
            }
            new.insert(HEAD.to_vec(), vec![2]);
            change().commit_first(cut, &db, (HEAD, vec![2]));
            resume(&db, || Ok(())).unwrap();
            assert!(
                content(&db) == if cut == 0 { old } else { new },
                "cut off after {cut} of {steps} batches"
            );
        }
    }

    #[test]
    fn little_is_one_batch() {
        assert_eq!(Writes::default().plan((HEAD, vec![1])).steps().count(), 1);
        assert_eq!(change(0, 100).plan((HEAD, vec![1])).steps().count(), 1);
    }

    #[test]
    fn a_record_is_full_at_its_size_and_takes_one_large_value_whole() {
        let operation = |bytes| (b"n".to_vec(), Some(vec![0; bytes]));
        let operations: Vec<Operation> =
            [100, RECORD_BYTES, 100, 3 * RECORD_BYTES, RECORD_BYTES / 2, RECORD_BYTES / 2, 1]
                .map(operation)
                .into();
        let sizes: Vec<usize> = records_of(&operations).map(<[Operation]>::len).collect();
        assert_eq!(sizes, [2, 2, 2, 1]);
    }

    #[test]
    fn a_journal_that_cannot_be_read_is_reported() {
        let db = fresh();
        db.insert(journal_key(0), vec![9, 9]).unwrap();
        assert_eq!(resume(&db, || Ok(())).unwrap_err().to_string(), "its journal is unreadable");
    }
}
