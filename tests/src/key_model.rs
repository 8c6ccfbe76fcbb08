//! The model of one key of etcd's v2 API, for [`crate::linear`]: a value and the index of its last change.
//!
//! Most answers tell what was there before (`prevNode`), so they bind a history much tighter than the plain reads and
//! writes of a register would. A write of unknown outcome leaves a value with an index that nobody has seen yet; the
//! first answer that shows it settles it.

use crate::linear::Model;

/// A value and its `modifiedIndex`, as an answer shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The value; writers never write the same one twice.
    pub value: u64,
    /// Its `modifiedIndex`.
    pub index: u64,
}

/// What a client asks of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// A quorum read.
    Get,
    /// PUT of a value.
    Set(u64),
    /// PUT with `prevExist=false`.
    Create(u64),
    /// PUT with `prevValue`.
    SwapValue {
        /// The value that must be there.
        prev: u64,
        /// The new value.
        value: u64,
    },
    /// PUT with `prevIndex`.
    SwapIndex {
        /// The index that must be there.
        prev: u64,
        /// The new value.
        value: u64,
    },
    /// DELETE.
    Delete,
}

impl Ask {
    /// The value it writes.
    pub fn value(self) -> Option<u64> {
        match self {
            Ask::Set(value)
            | Ask::Create(value)
            | Ask::SwapValue { value, .. }
            | Ask::SwapIndex { value, .. } => Some(value),
            Ask::Get | Ask::Delete => None,
        }
    }
}

/// What the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A read found this.
    Found(Seen),
    /// There is no such key (error 100).
    Absent,
    /// The change was made at `index`; `prev` was there before.
    Changed {
        /// `modifiedIndex` of the change.
        index: u64,
        /// `prevNode`.
        prev: Option<Seen>,
    },
    /// The key is there already (error 105).
    Exists,
    /// The comparison failed (error 101).
    Mismatch,
}

/// A request and what came of it; `None` if that is not known.
pub type Operation = (Ask, Option<Answer>);

/// The index of the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Index {
    /// Known from an answer.
    At(u64),
    /// Above this, from a request whose outcome is not known.
    Above(u64),
}

impl Index {
    /// The least that it can be.
    fn least(self) -> u64 {
        match self {
            Index::At(index) => index,
            Index::Above(index) => index + 1,
        }
    }

    fn can_be(self, seen: u64) -> bool {
        match self {
            Index::At(index) => seen == index,
            Index::Above(index) => seen > index,
        }
    }
}

/// The state of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    value: Option<u64>,
    index: Index,
    /// Made by a request of unknown outcome, and no answer has been given on it yet. An unconditional one on top of it
    /// would make it pointless.
    fresh: bool,
}

impl State {
    fn shows(&self, seen: Seen) -> bool {
        self.value == Some(seen.value) && self.index.can_be(seen.index)
    }

    fn was(&self, prev: Option<Seen>) -> bool {
        prev.map_or(self.value.is_none(), |seen| self.shows(seen))
    }

    fn answered(&self) -> State {
        State { fresh: false, ..*self }
    }

    /// The state after `ask` was answered so, if it can have been.
    fn known(&self, ask: Ask, answer: Answer) -> Option<State> {
        let absent = self.value.is_none();
        match (ask, answer) {
            (Ask::Get, Answer::Found(seen)) if self.shows(seen) => {
                Some(State { value: self.value, index: Index::At(seen.index), fresh: false })
            }
            (Ask::Get | Ask::SwapValue { .. } | Ask::SwapIndex { .. } | Ask::Delete, Answer::Absent)
                if absent =>
            {
                Some(self.answered())
            }
            (Ask::Create(_), Answer::Exists) if !absent => Some(self.answered()),
            (Ask::SwapValue { prev, .. }, Answer::Mismatch) if !absent && self.value != Some(prev) => {
                Some(self.answered())
            }
            (Ask::SwapIndex { prev, .. }, Answer::Mismatch) if !absent && self.index != Index::At(prev) => {
                Some(self.answered())
            }
            (_, Answer::Changed { index, prev }) if self.was(prev) => {
                let before = prev.map_or(self.index.least(), |seen| seen.index);
                let allowed = match ask {
                    Ask::Set(_) => true,
                    Ask::Create(_) => prev.is_none(),
                    Ask::SwapValue { prev: wanted, .. } => prev.is_some_and(|seen| seen.value == wanted),
                    Ask::SwapIndex { prev: wanted, .. } => prev.is_some_and(|seen| seen.index == wanted),
                    Ask::Delete => prev.is_some(),
                    Ask::Get => false,
                };
                let after = State { value: ask.value(), index: Index::At(index), fresh: false };
                (allowed && index > before).then_some(after)
            }
            _ => None,
        }
    }

    /// The state if `ask` took effect now, without anybody having been told; `None` if it would change nothing.
    fn unknown(&self, ask: Ask) -> Option<State> {
        let index = match (ask, self.value) {
            (Ask::Set(_), _) | (Ask::Create(_), None) | (Ask::Delete, Some(_)) => self.index,
            (Ask::SwapValue { prev, .. }, Some(value)) if value == prev => self.index,
            (Ask::SwapIndex { prev, .. }, Some(_)) if self.index.can_be(prev) => Index::At(prev),
            _ => return None,
        };
        Some(State { value: ask.value(), index: Index::Above(index.least()), fresh: true })
    }
}

/// The model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Key {
    /// Tries requests of unknown outcome also where they are pointless. The checker's own test compares the two.
    pub try_all: bool,
}

impl Model for Key {
    type State = State;
    type Operation = Operation;

    fn initial(&self) -> State {
        State { value: None, index: Index::At(0), fresh: false }
    }

    fn step(&self, state: &State, &(ask, answer): &Operation) -> Option<State> {
        match answer {
            Some(answer) => state.known(ask, answer),
            None if state.fresh && !self.try_all && matches!(ask, Ask::Set(_) | Ask::Delete) => None,
            None => state.unknown(ask),
        }
    }
}
