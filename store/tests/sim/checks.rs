//! The checkers: they watch all members from outside and know nothing of how they work.
//!
//! Each keeps what was once true and must stay so. The first contradiction ends the run.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};
use store::machine::{Machine, Verdict};
use store::node::Leadership;
use store::tree::{Digest, Event};
use store::wire::command::RequestId;

use crate::time::{Nanos, show};

/// A rule that was broken.
pub(crate) type Broken = String;

/// What the cluster as a whole has done.
#[derive(Default)]
pub(crate) struct Checks {
    /// Who led in which term.
    leaders: BTreeMap<u64, u64>,
    /// For whom a member voted in a term.
    votes: BTreeMap<(u64, u64), u64>,
    /// What was applied at a raft index: a hash of the entry and of what came of it.
    entries: BTreeMap<u64, u64>,
    /// The digest of the state after a raft index.
    states: BTreeMap<u64, Digest>,
    /// A hash of all the state's bytes after a raft index.
    whole_states: BTreeMap<u64, u64>,
    compared: u64,
    /// What happened at an index of the tree.
    pub(crate) events: BTreeMap<u64, Arc<Event>>,
    /// At which raft index and when a request was first applied.
    pub(crate) requests: BTreeMap<RequestId, (u64, Nanos)>,
    /// The last entry that a member said to have, and its term.
    acked: BTreeMap<u64, (u64, u64)>,
    /// When each key's value went, by its time being over: the value and when this was first seen.
    pub(crate) expired: Vec<(String, String, Nanos)>,
    broken: Option<Broken>,
}

/// FNV-1a, 64 bits: enough to tell states apart that do not try to deceive.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.iter()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

impl Checks {
    /// The first rule that was broken, if any.
    pub(crate) fn broken(&mut self) -> Result<(), Broken> {
        self.broken.take().map_or(Ok(()), Err)
    }

    pub(crate) fn break_rule(&mut self, what: impl FnOnce() -> Broken) {
        self.broken.get_or_insert_with(what);
    }

    fn agree(&mut self, same: bool, what: impl FnOnce() -> Broken) {
        if !same {
            self.break_rule(what);
        }
    }

    /// A member says who leads.
    pub(crate) fn leadership(&mut self, member: u64, now: Leadership) {
        if now.leads {
            let first = *self.leaders.entry(now.term).or_insert(member);
            self.agree(first == member, || {
                format!("members {first} and {member} both lead in term {}", now.term)
            });
        }
    }

    /// A message leaves a member. `term_of` is the term of the last entry that it says to have.
    pub(crate) fn leaves(&mut self, message: &Message, term_of: impl Fn(u64) -> Option<u64>) {
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse if !message.reject => {
                let (from, term, to) = (message.from, message.term, message.to);
                let first = *self.votes.entry((from, term)).or_insert(to);
                self.agree(first == to, || {
                    format!("member {from} votes for both {first} and {to} in term {term}")
                });
            }
            MessageType::MsgAppendResponse if !message.reject => {
                if let Some(term) = term_of(message.index) {
                    self.acked.insert(message.from, (message.index, term));
                }
            }
            _ => {}
        }
    }

    /// A member starts again with this log: `term_of` an index, `truncated` and `last` index.
    pub(crate) fn restarts(
        &mut self,
        member: u64,
        (truncated, last): (u64, u64),
        term_of: impl Fn(u64) -> Option<u64>,
    ) {
        let Some(&(index, term)) = self.acked.get(&member) else { return };
        // A later leader may have replaced it, by fewer entries.
        let replaced = term_of(last).is_some_and(|found| found > term);
        let has = replaced || index <= truncated || term_of(index).is_some_and(|found| found >= term);
        self.agree(has, || {
            format!(
                "member {member} said it had entry {index} of term {term}, but its log ends at {last} after a crash"
            )
        });
    }

    /// A member has applied an entry: `outcome` is all that came of it, as bytes.
    pub(crate) fn applied(&mut self, member: u64, index: u64, entry: u64, outcome: u64) {
        let both = entry ^ outcome.rotate_left(1);
        let first = *self.entries.entry(index).or_insert(both);
        self.agree(first == both, || {
            format!(
                "member {member} applied entry {index} with another content or outcome than the first to apply it"
            )
        });
    }

    /// A member's state after an entry, by its digest.
    pub(crate) fn state(&mut self, member: u64, machine: &Machine) {
        let (index, digest) = (machine.applied.index, machine.digest());
        let first = *self.states.entry(index).or_insert(digest);
        self.agree(first == digest, || {
            format!("member {member}'s state after entry {index} is not the others'")
        });
    }

    /// A member's state after an entry, byte by byte.
    pub(crate) fn whole_state(&mut self, member: u64, machine: &Machine) {
        let (index, bytes) = (machine.applied.index, hash(&[&machine.snapshot()]));
        let first = *self.whole_states.entry(index).or_insert(bytes);
        self.agree(first == bytes, || {
            format!("member {member}'s whole state after entry {index} is not the others'")
        });
    }

    /// The store has compared states itself.
    pub(crate) fn compared(&mut self, member: u64, verdict: Verdict) {
        match verdict {
            Verdict::Unknown => {}
            Verdict::Equal => self.compared += 1,
            Verdict::Differs(mismatch) => {
                self.break_rule(|| format!("member {member} finds by itself: {mismatch}"));
            }
        }
    }

    /// Comparisons by the store itself that found states equal.
    pub(crate) fn comparisons(&self) -> u64 {
        self.compared
    }

    /// A member has applied a request. Numbers are used once, so a second index is a second application.
    pub(crate) fn request(&mut self, id: RequestId, index: u64, now: Nanos) {
        let (first, _) = *self.requests.entry(id).or_insert((index, now));
        self.agree(first == index, || {
            format!(
                "request {} of member {} was applied at {first} and again at {index}",
                id.number, id.member
            )
        });
    }

    /// A change of the tree on a member.
    pub(crate) fn event(&mut self, member: u64, event: &Arc<Event>, now: Nanos) {
        let index = event.index();
        if let Some(first) = self.events.get(&index) {
            let same = **first == **event;
            self.agree(same, || {
                format!("member {member} has another event {index} than the first to see it")
            });
            return;
        }
        if event.action == store::tree::Action::Expire {
            let value = event.prev.as_ref().and_then(|prev| prev.value.clone()).unwrap_or_default();
            self.expired.push((event.node.path.clone(), value, now));
        }
        let next = self.events.last_key_value().map_or(index, |(last, _)| last + 1);
        self.agree(index == next, || format!("event {index} comes where {next} should, at {}", show(now)));
        self.events.insert(index, Arc::clone(event));
    }

    /// Entries that were applied by any member.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Terms that had a leader.
    pub(crate) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }
}
