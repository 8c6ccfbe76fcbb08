//! A checker for linearizability: is there an order of the calls in which each takes effect at one moment between
//! its invocation and its return, and in which a single copy of the object would have given the same answers?
//!
//! The algorithm is Porcupine's (A. Athalye, "Porcupine: a fast linearizability checker", 2017): the search of
//! J. Wing and C. Gong ("Testing and verifying concurrent objects", 1993) with the memory of G. Lowe ("Testing for
//! linearizability", 2017), which never enters the same pair of "calls done" and "state" twice. Histories are checked
//! object by object, which linearizability allows (M. Herlihy and J. Wing, 1990; called P-compositionality by A. Horn
//! and D. Kroening, 2015): the caller partitions them.
//!
//! Calls whose outcome nobody knows may take effect at any time after their invocation, or never. They are tried only
//! where no call with a known outcome goes on, so a history with many of them stays cheap as long as answers tell
//! which write they saw. The latest goes first: it is the most likely to be the one that was seen.

use std::collections::HashSet;
use std::hash::Hash;

/// What a single copy of the object does.
pub trait Model {
    /// Everything that later answers depend on.
    type State: Clone + Eq + Hash;
    /// A call with its answer, or without one if its outcome is not known.
    type Operation;

    /// The state before the first call.
    fn initial(&self) -> Self::State;

    /// The state after `operation`, if it can have been answered like that in `state`. For one of unknown outcome,
    /// `None` says that it is not worth trying here: leaving it out leads to the same.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;
}

/// One call. Times are of one clock, in any unit.
#[derive(Debug, Clone)]
pub struct Call<O> {
    /// What was asked and answered.
    pub operation: O,
    /// When it was sent.
    pub invoked: u64,
    /// When the answer was there; `None` if the outcome is not known.
    pub returned: Option<u64>,
}

/// What the checker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    NotLinearizable(Stuck),
    /// The search was given up after its limit of steps.
    Undecided(Stuck),
}

/// How far the search got at best.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stuck {
    /// How many calls of known outcome were put in order.
    pub ordered: usize,
    /// The last of them, by their places in the history.
    pub tail: Vec<usize>,
    /// The call that had to come next, as it was the first of the rest to return.
    pub blocked: usize,
}

/// How many calls of the best order [`Stuck::tail`] names.
const TAIL: usize = 8;

/// Looks for an order of `calls`, in at most `limit` steps of the model.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Operation>], limit: u64) -> Verdict {
    Search::new(model, calls).run(limit)
}

/// Which calls have been put in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Set(Box<[u64]>);

impl Set {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)].into())
    }

    fn has(&self, call: usize) -> bool {
        self.0[call / 64] & (1 << (call % 64)) != 0
    }

    fn flip(&mut self, call: usize) {
        self.0[call / 64] ^= 1 << (call % 64);
    }
}

/// A moment of the history in which a call of known outcome begins or ends.
#[derive(Debug, Clone, Copy)]
struct Moment {
    call: usize,
    time: u64,
    /// Place of the call's end; `None` for an end.
    end: Option<usize>,
}

/// The next candidate.
#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// A moment in the list of those that remain.
    Known(usize),
    /// A place among the calls of unknown outcome.
    Unknown(usize),
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Operation>],
    moments: Vec<Moment>,
    /// The moments of calls that are not in order yet, as a doubly linked list; the last place is its head and tail.
    next: Vec<usize>,
    prev: Vec<usize>,
    /// Calls of unknown outcome, the latest first.
    unknown: Vec<usize>,
    done: Set,
    left: usize,
    seen: HashSet<(Set, M::State)>,
    stack: Vec<(Cursor, M::State)>,
    best: Stuck,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Call<M::Operation>]) -> Self {
        let (mut known, mut unknown): (Vec<usize>, Vec<usize>) =
            (0..calls.len()).partition(|&n| calls[n].returned.is_some());
        unknown.sort_by_key(|&n| std::cmp::Reverse(calls[n].invoked));
        known.sort_by_key(|&n| calls[n].invoked);
        // A call that begins when another ends is taken for concurrent with it: clocks have a grain.
        let mut order: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * known.len());
        for &n in &known {
            order.push((calls[n].invoked, false, n));
            order.extend(calls[n].returned.map(|returned| (returned, true, n)));
        }
        order.sort_unstable();
        let mut moments: Vec<Moment> = Vec::with_capacity(order.len());
        let mut begins = vec![0; calls.len()];
        for (at, &(time, is_end, call)) in order.iter().enumerate() {
            moments.push(Moment { call, time, end: None });
            if is_end {
                moments[begins[call]].end = Some(at);
            } else {
                begins[call] = at;
            }
        }
        let ring = moments.len() + 1;
        Search {
            model,
            calls,
            next: (1..ring).chain([0]).collect(),
            prev: [ring - 1].into_iter().chain(0..ring - 1).collect(),
            moments,
            done: Set::new(calls.len()),
            left: known.len(),
            unknown,
            seen: HashSet::new(),
            stack: Vec::new(),
            best: Stuck::default(),
        }
    }

    fn run(mut self, limit: u64) -> Verdict {
        let mut state = self.model.initial();
        let mut cursor = self.first();
        let mut steps = 0;
        while self.left > 0 {
            if steps == limit {
                return Verdict::Undecided(self.best);
            }
            let Some((call, following)) = self.candidate(cursor) else {
                // Nothing goes on from here: the last choice was wrong.
                let Some((choice, before)) = self.stack.pop() else {
                    return Verdict::NotLinearizable(self.best);
                };
                self.take_back(choice);
                state = before;
                cursor = self.after(choice);
                continue;
            };
            let Some(call) = call else {
                cursor = following;
                continue;
            };
            steps += 1;
            let after = self.model.step(&state, &self.calls[call].operation);
            let fresh = after.filter(|after| {
                self.done.flip(call);
                let fresh = self.seen.insert((self.done.clone(), after.clone()));
                self.done.flip(call);
                fresh
            });
            let Some(after) = fresh else {
                cursor = following;
                continue;
            };
            self.stack.push((cursor, std::mem::replace(&mut state, after)));
            self.choose(cursor);
            cursor = self.first();
        }
        Verdict::Linearizable
    }

    /// The first of the remaining moments, where every round of candidates begins.
    fn first(&self) -> Cursor {
        Cursor::Known(self.next[self.moments.len()])
    }

    /// The call at the cursor, if it has not been put in order, and the cursor after it. `None` at the end of the
    /// candidates: a call may come next only if it began before any other of the rest had ended.
    fn candidate(&self, cursor: Cursor) -> Option<(Option<usize>, Cursor)> {
        match cursor {
            Cursor::Known(at) if self.moments[at].end.is_some() => {
                Some((Some(self.moments[at].call), self.after(cursor)))
            }
            Cursor::Known(at) => {
                let began_late = |&call: &usize| self.calls[call].invoked > self.moments[at].time;
                Some((None, Cursor::Unknown(self.unknown.partition_point(began_late))))
            }
            Cursor::Unknown(at) => {
                let &call = self.unknown.get(at)?;
                Some((Some(call).filter(|&call| !self.done.has(call)), self.after(cursor)))
            }
        }
    }

    fn after(&self, cursor: Cursor) -> Cursor {
        match cursor {
            Cursor::Known(at) => Cursor::Known(self.next[at]),
            Cursor::Unknown(at) => Cursor::Unknown(at + 1),
        }
    }

    /// The first end among the remaining moments.
    fn first_end(&self) -> usize {
        let mut at = self.next[self.moments.len()];
        while self.moments[at].end.is_some() {
            at = self.next[at];
        }
        at
    }

    fn choose(&mut self, cursor: Cursor) {
        match cursor {
            Cursor::Unknown(at) => self.done.flip(self.unknown[at]),
            Cursor::Known(at) => {
                self.done.flip(self.moments[at].call);
                let end = self.moments[at].end.unwrap_or(at);
                for place in [at, end] {
                    let (prev, next) = (self.prev[place], self.next[place]);
                    self.next[prev] = next;
                    self.prev[next] = prev;
                }
                self.left -= 1;
                self.remember();
            }
        }
    }

    /// Undoes the latest [`Self::choose`].
    fn take_back(&mut self, cursor: Cursor) {
        match cursor {
            Cursor::Unknown(at) => self.done.flip(self.unknown[at]),
            Cursor::Known(at) => {
                self.done.flip(self.moments[at].call);
                let end = self.moments[at].end.unwrap_or(at);
                for place in [end, at] {
                    let (prev, next) = (self.prev[place], self.next[place]);
                    self.next[prev] = place;
                    self.prev[next] = place;
                }
                self.left += 1;
            }
        }
    }

    /// Keeps the best order so far, for the report of a failure.
    fn remember(&mut self) {
        let ordered = self.moments.len() / 2 - self.left;
        if ordered <= self.best.ordered || self.left == 0 {
            return;
        }
        let tail =
            self.stack[self.stack.len().saturating_sub(TAIL)..].iter().map(|(cursor, _)| match *cursor {
                Cursor::Known(at) => self.moments[at].call,
                Cursor::Unknown(at) => self.unknown[at],
            });
        self.best = Stuck { ordered, tail: tail.collect(), blocked: self.moments[self.first_end()].call };
    }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
mod tests;
