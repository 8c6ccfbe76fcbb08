//! Whether what clients saw of one key could have happened one at a time (linearizability: Herlihy and Wing 1990).
//!
//! The search is Wing and Gong's with Lowe's memory of what was tried, as in Porcupine: an operation may come next if none
//! of those left has ended before it began; a set of operations done and the state they left is tried once. The key is a
//! register with etcd's conditions, and every write is told what it replaced.

use std::collections::HashSet;

use crate::time::Nanos;

/// What is done to a key. Values are numbers, each written once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A read through a quorum.
    Get,
    /// Write, whatever is there.
    Set(u64),
    /// Write if nothing is there.
    Create(u64),
    /// Write the second if the first is there.
    Swap(u64, u64),
    /// Remove.
    Delete,
    /// Remove if this is there.
    DeleteIf(u64),
    /// The key's time is over; it held this.
    Expire(u64),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ret {
    /// What was read.
    Read(Option<u64>),
    /// Done; this was there before.
    Done(Option<u64>),
    /// Something is there already (error 105).
    Exists,
    /// Nothing is there (error 100).
    Missing,
    /// Something else is there (error 101).
    Differs,
    /// Nobody was told.
    Unknown,
}

/// One operation on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) call: Call,
    pub(crate) ret: Ret,
    pub(crate) begun: Nanos,
    pub(crate) ended: Nanos,
}

/// What the key holds: a value or nothing.
type Held = Option<u64>;

/// What the key holds after the operation, if that can have come to `ret` in this state.
fn step(state: Held, call: Call, ret: Ret) -> Option<Held> {
    let (after, due) = match (call, state) {
        (Call::Get, _) => (state, Ret::Read(state)),
        (Call::Set(new), _) => (Some(new), Ret::Done(state)),
        (Call::Create(new), None) => (Some(new), Ret::Done(None)),
        (Call::Create(_), Some(_)) => (state, Ret::Exists),
        (Call::Swap(..) | Call::Delete | Call::DeleteIf(_), None) => (None, Ret::Missing),
        (Call::Swap(old, new), Some(now)) if old == now => (Some(new), Ret::Done(state)),
        (Call::DeleteIf(old), Some(now)) if old == now => (None, Ret::Done(state)),
        (Call::Swap(..) | Call::DeleteIf(_), Some(_)) => (state, Ret::Differs),
        (Call::Delete, Some(_)) => (None, Ret::Done(state)),
        (Call::Expire(old), _) => (None, if state == Some(old) { Ret::Done(state) } else { Ret::Differs }),
    };
    let unknown = ret == Ret::Unknown && !(matches!(call, Call::Expire(_)) && due == Ret::Differs);
    (unknown || due == ret).then_some(after)
}

/// Whether there is an order. The key holds nothing at first.
pub(crate) fn is_linearizable(ops: &[Op]) -> bool {
    let mut ops = ops.to_vec();
    ops.sort_by_key(|op| (op.begun, op.ended));
    let mut tried: HashSet<(Vec<u64>, Option<u64>)> = HashSet::new();
    let mut stack = vec![(vec![0; ops.len() / 64 + 1], None)];
    while let Some((done, state)) = stack.pop() {
        let is_done = |at: usize| done[at / 64] >> (at % 64) & 1 == 1;
        let mut first_end = Nanos::MAX;
        let mut left = false;
        let mut next = Vec::new();
        for (at, op) in ops.iter().enumerate().filter(|(at, _)| !is_done(*at)) {
            if op.begun > first_end {
                break;
            }
            left = true;
            first_end = first_end.min(op.ended);
            next.push(at);
        }
        if !left {
            return true;
        }
        for at in next.into_iter().rev().filter(|at| ops[*at].begun <= first_end) {
            if let Some(after) = step(state, ops[at].call, ops[at].ret) {
                let mut done = done.clone();
                done[at / 64] |= 1 << (at % 64);
                if tried.insert((done.clone(), after)) {
                    stack.push((done, after));
                }
            }
        }
    }
    false
}

#[test]
fn it_knows_good_histories_from_bad_ones() {
    let op = |call, ret, begun, ended| Op { call, ret, begun, ended };
    let (set, get) = (Call::Set, Call::Get);
    let history = [
        op(set(1), Ret::Done(None), 0, 5),
        op(get, Ret::Read(Some(1)), 2, 3),
        op(set(2), Ret::Unknown, 6, 20),
        op(get, Ret::Read(Some(1)), 7, 8),
        op(get, Ret::Read(Some(2)), 9, 10),
        op(Call::Swap(2, 3), Ret::Done(Some(2)), 11, 12),
        op(Call::Expire(3), Ret::Unknown, 11, 18),
        op(Call::Create(4), Ret::Exists, 13, 14),
        op(get, Ret::Read(None), 19, 21),
    ];
    assert!(is_linearizable(&history));
    for (at, ret) in [(3, Ret::Read(None)), (5, Ret::Differs), (7, Ret::Done(None)), (8, Ret::Read(Some(3)))]
    {
        let mut broken = history;
        broken[at].ret = ret;
        assert!(!is_linearizable(&broken), "{at}");
    }
    let stale = [
        op(set(1), Ret::Done(None), 0, 1),
        op(set(2), Ret::Done(Some(1)), 2, 3),
        op(get, Ret::Read(Some(1)), 4, 5),
    ];
    assert!(!is_linearizable(&stale));
}
