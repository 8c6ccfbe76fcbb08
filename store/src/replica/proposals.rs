//! Entries on their way into the log: which go together, which wait for a leader, which are refused.

use std::time::Instant;

use bytes::Bytes;

use crate::log::LogStore;
use crate::node::{Core, Dropped};

/// Proposals kept while there is no leader to send them to.
const MAX_HELD: usize = 4096;
/// Bytes of entries in one proposal, unless a single one is larger.
const MAX_PROPOSAL_BYTES: usize = 1 << 20;

/// An entry that somebody waits for.
#[derive(Debug)]
pub struct Proposal {
    /// The request's number.
    pub number: u64,
    /// The entry.
    pub data: Bytes,
    /// When nobody waits for it any more.
    pub deadline: Instant,
}

/// Why a proposal is not made. It has no effect, then or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait for a leader.
    Overload,
}

/// Proposals that raft has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// Taken since the last round; they are proposed together.
    fresh: Vec<Proposal>,
    /// Those that wait for a leader.
    held: Vec<Proposal>,
}

impl Proposals {
    pub(super) fn take(&mut self, proposal: Proposal) {
        self.fresh.push(proposal);
    }

    /// Proposes what was taken, perhaps long ago, while applying was behind; returns what is refused.
    pub(super) fn propose_fresh<L: LogStore>(
        &mut self,
        core: &mut Core<L>,
        now: Instant,
    ) -> Vec<(u64, Refused)> {
        let fresh = std::mem::take(&mut self.fresh);
        self.propose(core, fresh, now)
    }

    /// Tries again with what waited for a leader.
    pub(super) fn retry_held<L: LogStore>(
        &mut self,
        core: &mut Core<L>,
        now: Instant,
    ) -> Vec<(u64, Refused)> {
        let held = std::mem::take(&mut self.held);
        self.propose(core, held, now)
    }

    /// Proposes as few and as large messages as raft takes, but not what nobody waits for any more; what raft refuses waits
    /// for a leader.
    fn propose<L: LogStore>(
        &mut self,
        core: &mut Core<L>,
        mut proposals: Vec<Proposal>,
        now: Instant,
    ) -> Vec<(u64, Refused)> {
        proposals.retain(|proposal| proposal.deadline > now);
        let mut rest = proposals.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|proposal| {
                bytes += proposal.data.len();
                bytes <= MAX_PROPOSAL_BYTES
            });
            let (batch, others) = rest.split_at(fits.count().max(1));
            if core.propose(batch.iter().map(|proposal| proposal.data.clone())) == Err(Dropped) {
                break;
            }
            rest = others;
        }
        let taken = proposals.len() - rest.len();
        self.hold(proposals.into_iter().skip(taken))
    }

    fn hold(&mut self, dropped: impl Iterator<Item = Proposal>) -> Vec<(u64, Refused)> {
        let mut refused = Vec::new();
        for proposal in dropped {
            if self.held.len() < MAX_HELD {
                self.held.push(proposal);
            } else {
                refused.push((proposal.number, Refused::Overload));
            }
        }
        refused
    }
}
