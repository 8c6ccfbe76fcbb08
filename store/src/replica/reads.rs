//! Reads on their way to being linearizable, by ReadIndex (Raft thesis, section 6.4).
//!
//! The leader is asked to confirm that it still leads; its answer is an index, and a read of the state applied up to there
//! shows everything that was acknowledged before the question. All reads that come while one question is out share the
//! next one.
//!
//! ```text
//! waiting --ask--> asked --confirm--> confirmed --done--> given back
//!                  | ^
//!                  +-+ asked again after RETRY: question and answer may get lost
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::log::LogStore;
use crate::node::Core;

/// How long a question may go unanswered before it is asked again.
const RETRY: Duration = Duration::from_millis(300);

/// Whoever asked for a read.
pub trait Asker {
    /// Whether nobody waits for it any more.
    fn is_gone(&self) -> bool;
}

#[derive(Debug)]
pub(super) struct Reads<R> {
    member: u64,
    sequence: u64,
    waiting: Vec<R>,
    asked: Option<Question<R>>,
    confirmed: VecDeque<(u64, Vec<R>)>,
}

#[derive(Debug)]
struct Question<R> {
    sequence: u64,
    at: Instant,
    askers: Vec<R>,
}

impl<R: Asker> Reads<R> {
    /// `start` tells the questions of this start from those of an earlier one, which may still be out.
    pub(super) fn new(member: u64, start: u32) -> Reads<R> {
        let sequence = u64::from(start) << 32;
        Reads { member, sequence, waiting: Vec::new(), asked: None, confirmed: VecDeque::new() }
    }

    pub(super) fn take(&mut self, asker: R) {
        self.waiting.push(asker);
    }

    /// Asks, if it is time to. Returns whether it has.
    pub(super) fn ask<L: LogStore>(&mut self, core: &mut Core<L>, now: Instant) -> bool {
        self.waiting.retain(|asker| !asker.is_gone());
        if let Some(question) = &mut self.asked {
            let again = now.duration_since(question.at) >= RETRY;
            if again {
                question.at = now;
                core.read_index(context(self.member, question.sequence));
            }
            return again;
        }
        let ask = !self.waiting.is_empty() && core.leadership().leader != 0;
        if ask {
            self.sequence += 1;
            let askers = std::mem::take(&mut self.waiting);
            self.asked = Some(Question { sequence: self.sequence, at: now, askers });
            core.read_index(context(self.member, self.sequence));
        }
        ask
    }

    /// The leader has answered the question with this context: a state applied up to `index` serves.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let sequence = context.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        if let Some(question) = self.asked.take_if(|asked| Some(asked.sequence) == sequence) {
            self.confirmed.push_back((index, question.askers));
        }
    }

    pub(super) fn wait_for_apply(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// The reads that a state applied up to `applied` serves.
    pub(super) fn done(&mut self, applied: u64) -> Vec<R> {
        let mut done = Vec::new();
        while self.confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            done.extend(self.confirmed.pop_front().into_iter().flat_map(|(_, askers)| askers));
        }
        done
    }
}

/// Tells the questions of different members, and of one member at different times, apart.
fn context(member: u64, sequence: u64) -> Vec<u8> {
    [member.to_be_bytes(), sequence.to_be_bytes()].concat()
}
