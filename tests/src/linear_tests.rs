#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::key_model::{Answer, Ask, Key, Operation, Seen};

const LIMIT: u64 = 1_000_000;

/// A call from `invoked` to `returned`.
fn call(invoked: u64, returned: u64, ask: Ask, answer: Answer) -> Call<Operation> {
    Call { operation: (ask, Some(answer)), invoked, returned: Some(returned) }
}

/// A call of which nobody knows what came.
fn lost(invoked: u64, ask: Ask) -> Call<Operation> {
    Call { operation: (ask, None), invoked, returned: None }
}

fn found(value: u64, index: u64) -> Answer {
    Answer::Found(Seen { value, index })
}

fn changed(index: u64, prev: Option<(u64, u64)>) -> Answer {
    Answer::Changed { index, prev: prev.map(|(value, index)| Seen { value, index }) }
}

fn verdict(calls: &[Call<Operation>]) -> Verdict {
    check(&Key::default(), calls, LIMIT)
}

fn accepts(calls: &[Call<Operation>]) {
    assert_eq!(verdict(calls), Verdict::Linearizable, "{calls:#?}");
}

fn rejects(calls: &[Call<Operation>]) -> Stuck {
    match verdict(calls) {
        Verdict::NotLinearizable(stuck) => stuck,
        other => panic!("{other:?}: {calls:#?}"),
    }
}

#[test]
fn what_one_client_does_is_linearizable() {
    accepts(&[]);
    accepts(&[
        call(1, 2, Ask::Get, Answer::Absent),
        call(3, 4, Ask::Create(1), changed(5, None)),
        call(5, 6, Ask::Create(2), Answer::Exists),
        call(7, 8, Ask::SwapIndex { prev: 5, value: 3 }, changed(6, Some((1, 5)))),
        call(9, 10, Ask::SwapValue { prev: 1, value: 4 }, Answer::Mismatch),
        call(11, 12, Ask::Delete, changed(7, Some((3, 6)))),
        call(13, 14, Ask::Delete, Answer::Absent),
        call(15, 16, Ask::Set(5), changed(8, None)),
    ]);
}

#[test]
fn concurrent_reads_may_see_either_side_of_a_write_but_not_go_back() {
    let set = call(1, 10, Ask::Set(1), changed(5, None));
    let old = |from, to| call(from, to, Ask::Get, Answer::Absent);
    let new = |from, to| call(from, to, Ask::Get, found(1, 5));
    accepts(&[set.clone(), old(2, 3), new(4, 5)]);
    accepts(&[set.clone(), new(2, 4), old(3, 5)]);
    assert_eq!(rejects(&[set, new(2, 3), old(4, 5)]).blocked, 2);
}

#[test]
fn a_stale_read_is_refused() {
    let stale = [
        call(1, 2, Ask::Set(1), changed(5, None)),
        call(3, 4, Ask::Set(2), changed(6, Some((1, 5)))),
        call(5, 6, Ask::Get, found(1, 5)),
    ];
    assert_eq!(rejects(&stale), Stuck { ordered: 2, tail: vec![0, 1], blocked: 2 });
}

#[test]
fn a_lost_write_is_refused() {
    rejects(&[call(1, 2, Ask::Set(1), changed(5, None)), call(3, 4, Ask::Get, Answer::Absent)]);
    // Also when it shows only in what the next write says of the one before.
    rejects(&[
        call(1, 2, Ask::Set(1), changed(5, None)),
        call(3, 4, Ask::Set(2), changed(6, Some((1, 5)))),
        call(5, 6, Ask::Set(3), changed(7, Some((1, 5)))),
    ]);
}

#[test]
fn a_swap_that_two_have_won_is_refused() {
    let swap = |value, index| call(3, 8, Ask::SwapIndex { prev: 5, value }, changed(index, Some((1, 5))));
    rejects(&[call(1, 2, Ask::Set(1), changed(5, None)), swap(2, 6), swap(3, 7)]);
    let swap = |value, index| call(3, 8, Ask::SwapValue { prev: 1, value }, changed(index, Some((1, 5))));
    rejects(&[call(1, 2, Ask::Set(1), changed(5, None)), swap(2, 6), swap(3, 7)]);
}

#[test]
fn a_key_created_twice_and_an_index_that_goes_back_are_refused() {
    rejects(&[call(1, 9, Ask::Create(1), changed(5, None)), call(2, 8, Ask::Create(2), changed(6, None))]);
    rejects(&[
        call(1, 2, Ask::Set(1), changed(5, None)),
        call(3, 4, Ask::Delete, changed(6, Some((1, 5)))),
        call(5, 6, Ask::Set(2), changed(6, None)),
    ]);
    rejects(&[call(1, 2, Ask::Set(1), changed(5, None)), call(3, 4, Ask::Get, found(1, 6))]);
}

#[test]
fn a_request_without_answer_may_take_effect_late_or_never_but_once() {
    let before = call(1, 2, Ask::Set(1), changed(5, None));
    let late = lost(3, Ask::Set(2));
    let read = |from: u64, value, index| call(from, from + 1, Ask::Get, found(value, index));
    accepts(&[before.clone(), late.clone(), read(4, 1, 5)]);
    accepts(&[before.clone(), late.clone(), read(4, 1, 5), read(90, 2, 6), read(92, 2, 6)]);
    rejects(&[before.clone(), late.clone(), read(4, 2, 6), read(6, 1, 5)]);
    rejects(&[before.clone(), late.clone(), read(4, 2, 6), read(6, 2, 7)]);
    // Not before it was sent, and not with an index that was taken.
    rejects(&[before.clone(), read(3, 2, 6), lost(5, Ask::Set(2))]);
    rejects(&[before.clone(), late.clone(), read(4, 2, 5)]);
    // A swap without answer takes effect only where it matches.
    let swap = lost(3, Ask::SwapIndex { prev: 4, value: 2 });
    rejects(&[before.clone(), swap, read(4, 2, 6)]);
    let swap = lost(3, Ask::SwapIndex { prev: 5, value: 2 });
    accepts(&[before, swap, read(4, 2, 6)]);
}

#[test]
fn one_unknown_delete_explains_one_disappearance() {
    let set = |from: u64, value, index| call(from, from + 1, Ask::Set(value), changed(index, None));
    let late = lost(3, Ask::Delete);
    accepts(&[set(1, 1, 5), late.clone(), set(10, 2, 9)]);
    rejects(&[set(1, 1, 5), late.clone(), set(10, 2, 9), set(20, 3, 12)]);
    accepts(&[set(1, 1, 5), late.clone(), late, set(10, 2, 9), set(20, 3, 12)]);
}

/// Every fifth call is of unknown outcome, and every second of those takes effect, a little later.
fn with_unknowns(size: u64) -> Vec<Call<Operation>> {
    let mut calls = Vec::new();
    let mut now = None;
    for n in 1..=size {
        let (at, index) = (n * 10, n * 2);
        if n % 5 == 0 {
            calls.push(lost(at, Ask::Set(n)));
        } else {
            calls.push(call(at, at + 15, Ask::Set(n), changed(index, now)));
        }
        if n % 5 != 0 || n % 10 == 0 {
            now = Some((n, index));
        }
    }
    calls
}

#[test]
fn a_long_history_with_many_unknowns_is_quick() {
    assert_eq!(check(&Key::default(), &with_unknowns(4000), 100_000), Verdict::Linearizable);
    let mut calls = with_unknowns(300);
    calls.push(call(90_000, 90_001, Ask::Get, found(1, 2)));
    assert!(matches!(check(&Key::default(), &calls, 10_000_000), Verdict::NotLinearizable(_)));
}

#[test]
fn a_search_that_is_too_long_is_given_up() {
    let calls: Vec<_> = (1..=20).map(|n| call(1, 100, Ask::Set(n), changed(n + 50, Some((99, 9))))).collect();
    assert!(matches!(check(&Key::default(), &calls, 10), Verdict::Undecided(_)));
}

/// The definition itself: any order that time allows, without memory and without short cuts.
fn by_definition(calls: &[Call<Operation>], model: Key, state: <Key as Model>::State, done: u32) -> bool {
    let rest = || (0..calls.len()).filter(|n| done & (1 << n) == 0);
    if rest().all(|n| calls[n].returned.is_none()) {
        return true;
    }
    rest().filter(|&n| rest().all(|m| calls[m].returned.is_none_or(|end| calls[n].invoked <= end))).any(|n| {
        let after = model.step(&state, &calls[n].operation);
        after.is_some_and(|after| by_definition(calls, model, after, done | 1 << n))
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Get),
        (1..4_u64).prop_map(Ask::Set),
        (1..4_u64).prop_map(Ask::Create),
        (1..4_u64, 1..4_u64).prop_map(|(prev, value)| Ask::SwapValue { prev, value }),
        (1..5_u64, 1..4_u64).prop_map(|(prev, value)| Ask::SwapIndex { prev, value }),
        Just(Ask::Delete),
    ]
}

/// What a correct key would answer.
fn carry_out(ask: Ask, now: &mut Option<Seen>, index: &mut u64) -> Answer {
    let refused = match (ask, *now) {
        (Ask::Get, Some(seen)) => Some(Answer::Found(seen)),
        (Ask::Get | Ask::Delete | Ask::SwapValue { .. } | Ask::SwapIndex { .. }, None) => {
            Some(Answer::Absent)
        }
        (Ask::Create(_), Some(_)) => Some(Answer::Exists),
        (Ask::SwapValue { prev, .. }, Some(seen)) if seen.value != prev => Some(Answer::Mismatch),
        (Ask::SwapIndex { prev, .. }, Some(seen)) if seen.index != prev => Some(Answer::Mismatch),
        _ => None,
    };
    refused.unwrap_or_else(|| {
        *index += 1;
        let prev = std::mem::replace(now, ask.value().map(|value| Seen { value, index: *index }));
        Answer::Changed { index: *index, prev }
    })
}

/// Calls that a correct key has answered at `at`, each somewhere between its begin and its end.
fn correct(asks: Vec<(Ask, u64, u64, bool, bool)>) -> Vec<Call<Operation>> {
    let (mut now, mut index) = (None, 0);
    let mut calls = Vec::new();
    for (n, (ask, before, after, unanswered, in_vain)) in asks.into_iter().enumerate() {
        let at = 10 * (n as u64 + 10);
        let answer = (!(unanswered && in_vain)).then(|| carry_out(ask, &mut now, &mut index));
        let answer = answer.filter(|_| !unanswered);
        let returned = (!unanswered).then_some(at + after);
        calls.push(Call { operation: (ask, answer), invoked: at - before, returned });
    }
    calls
}

fn asks() -> impl Strategy<Value = Vec<(Ask, u64, u64, bool, bool)>> {
    prop::collection::vec((ask(), 0..40_u64, 0..40_u64, prop::bool::weighted(0.25), any::<bool>()), 1..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn what_a_correct_key_answers_is_accepted(asks in asks()) {
        accepts(&correct(asks));
    }

    /// One answer or time is changed: most such histories are not linearizable, and the two must agree on which.
    #[test]
    fn the_checker_agrees_with_the_definition(
        asks in asks(), pick: prop::sample::Index, kind in 0..5_u8, value in 1..4_u64, index in 1..6_u64, at in 0..200_u64,
    ) {
        let mut calls = correct(asks);
        let changed = pick.index(calls.len());
        let it = &mut calls[changed];
        let seen = Seen { value, index };
        match (kind, &mut it.operation.1) {
            (0, Some(Answer::Found(now))) => *now = seen,
            (0 | 1, Some(Answer::Changed { prev, .. })) => *prev = Some(seen),
            (2, Some(Answer::Changed { prev, .. })) => *prev = None,
            (3, Some(Answer::Changed { index: now, .. })) => *now = index,
            (4, Some(answer)) => *answer = Answer::Absent,
            _ => {
                let length = it.returned.map(|returned| returned - it.invoked);
                it.invoked = at;
                it.returned = length.map(|length| at + length);
            }
        }
        let model = Key { try_all: true };
        let expected = by_definition(&calls, model, model.initial(), 0);
        for model in [Key::default(), model] {
            let verdict = check(&model, &calls, LIMIT);
            prop_assert_eq!(verdict == Verdict::Linearizable, expected, "{:?}: {:?}", verdict, calls);
            prop_assert!(!matches!(verdict, Verdict::Undecided(_)));
        }
    }
}
