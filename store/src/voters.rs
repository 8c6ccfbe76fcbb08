//! Who votes: raft's configuration, as part of the replicated state.
//!
//! A change of the members takes effect on a member when it applies the entry. So the configuration goes with the applied
//! state, into images and snapshots, and a member that starts again goes on with the one that its state had.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The configuration (Raft thesis, chapter 4). Joint while two sets of voters must both agree.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Voters {
    /// Those who vote.
    pub voters: BTreeSet<u64>,
    /// Those who get everything and do not vote.
    pub learners: BTreeSet<u64>,
    /// In a joint configuration those who voted before it, and still do.
    pub outgoing: BTreeSet<u64>,
    /// Those of `outgoing` that will be learners afterwards.
    pub learners_next: BTreeSet<u64>,
    /// Whether the leader ends the joint configuration by itself.
    pub auto_leave: bool,
}

impl From<Vec<u64>> for Voters {
    fn from(voters: Vec<u64>) -> Voters {
        Voters { voters: voters.into_iter().collect(), ..Voters::default() }
    }
}

impl Voters {
    /// Whether two sets of voters must agree.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether this member alone decides.
    pub fn is_only(&self, id: u64) -> bool {
        self.voters.len() == 1 && self.voters.contains(&id) && !self.is_joint()
    }

    /// Whether this member gets the log, as a voter or a learner.
    pub fn has(&self, id: u64) -> bool {
        [&self.voters, &self.learners, &self.outgoing].iter().any(|ids| ids.contains(&id))
    }

    /// Whether raft can work with it: somebody votes, nobody is two things at once that exclude each other,
    /// and nobody is 0, which is raft's word for no member.
    pub fn is_sound(&self) -> bool {
        let apart = |a: &BTreeSet<u64>, b: &BTreeSet<u64>| a.is_disjoint(b);
        !self.voters.is_empty()
            && apart(&self.learners, &self.voters)
            && apart(&self.learners, &self.outgoing)
            && apart(&self.learners, &self.learners_next)
            && apart(&self.learners_next, &self.voters)
            && self.learners_next.is_subset(&self.outgoing)
            && (self.is_joint() || !self.auto_leave)
            && !self.has(0)
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a set of ids has no length that postcard cannot write")
    }

    /// Reads them; `None` if they are not such.
    pub fn decode(bytes: &[u8]) -> Option<Voters> {
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_raft_cannot_work_with_is_not_sound() {
        let plain = Voters::from(vec![1, 2, 3]);
        let joint = Voters {
            outgoing: [3, 4].into(),
            learners_next: [4].into(),
            learners: [5].into(),
            auto_leave: true,
            ..plain.clone()
        };
        assert!(plain.is_sound() && joint.is_sound() && joint.is_joint() && joint.has(4));
        assert_eq!(Voters::decode(&joint.encode()).unwrap(), joint);
        for wrong in [
            Voters::default(),
            Voters { auto_leave: true, ..plain.clone() },
            Voters { learners: [3].into(), ..plain.clone() },
            Voters { learners: [4].into(), ..joint.clone() },
            Voters { learners_next: [5].into(), ..joint.clone() },
            Voters { learners_next: [3].into(), ..joint.clone() },
            Voters { voters: [0, 1].into(), ..plain.clone() },
            Voters { learners: [0].into(), ..plain },
            Voters { outgoing: [0, 4].into(), ..joint },
        ] {
            assert!(!wrong.is_sound(), "{wrong:?}");
        }
    }
}
