//! Changes of the members: what can be asked for, and how raft is told (Raft thesis, chapter 4).
//!
//! One voter at a time can come or go in a single step. More at once go through a joint configuration, in which the old
//! and the new voters must both agree, and which is left by a second entry: the leader adds it by itself, or whoever asked
//! for the change does.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use raft::{Changer, ProgressTracker};

use crate::voters::Voters;

/// One member's part in a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It votes from now on.
    AddVoter(u64),
    /// It gets everything and does not vote.
    AddLearner(u64),
    /// It is no member any more.
    Remove(u64),
}

/// A change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These steps; by way of a joint configuration that the leader leaves by itself, if they are more than one.
    Simple(Vec<Step>),
    /// These steps, into a joint configuration that stays until [`Change::LeaveJoint`].
    Joint(Vec<Step>),
    /// Out of the joint configuration.
    LeaveJoint,
}

/// Why a change is not proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Only the leader changes the members.
    #[error("this member does not lead")]
    NotLeader,
    /// Another change, or what was in the log at the beginning of the term, is not applied yet.
    #[error("another change of the members may be under way; try again when it is applied")]
    Pending,
    /// Raft's rules forbid it.
    #[error("{0}")]
    Invalid(String),
}

impl Change {
    pub(super) fn to_raft(&self) -> ConfChangeV2 {
        let (steps, transition) = match self {
            Change::Simple(steps) => (steps.as_slice(), ConfChangeTransition::Auto),
            Change::Joint(steps) => (steps.as_slice(), ConfChangeTransition::Explicit),
            Change::LeaveJoint => (&[][..], ConfChangeTransition::Auto),
        };
        let single = |step: &Step| {
            let (kind, id) = match *step {
                Step::AddVoter(id) => (ConfChangeType::AddNode, id),
                Step::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
                Step::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            single
        };
        let mut change = ConfChangeV2::default();
        change.set_transition(transition);
        change.set_changes(steps.iter().map(single).collect::<Vec<_>>().into());
        change
    }
}

/// Whether raft would carry the change out in this configuration.
pub(super) fn check(tracker: &ProgressTracker, change: &ConfChangeV2) -> Result<(), ChangeRefused> {
    let mut changer = Changer::new(tracker);
    let outcome = if change.leave_joint() {
        changer.leave_joint()
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, &change.changes)
    } else {
        changer.simple(&change.changes)
    };
    outcome.map(|_| ()).map_err(|error| ChangeRefused::Invalid(error.to_string()))
}

/// The change that an entry holds; `None` if it holds none.
pub(super) fn decode(data: &[u8]) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(data).ok()?;
    Some(change)
}

pub(super) fn to_conf_state(voters: &Voters) -> ConfState {
    let ids = |ids: &std::collections::BTreeSet<u64>| ids.iter().copied().collect();
    ConfState {
        voters: ids(&voters.voters),
        learners: ids(&voters.learners),
        voters_outgoing: ids(&voters.outgoing),
        learners_next: ids(&voters.learners_next),
        auto_leave: voters.auto_leave,
        ..ConfState::default()
    }
}

pub(super) fn from_conf_state(state: &ConfState) -> Voters {
    Voters {
        voters: state.voters.iter().copied().collect(),
        learners: state.learners.iter().copied().collect(),
        outgoing: state.voters_outgoing.iter().copied().collect(),
        learners_next: state.learners_next.iter().copied().collect(),
        auto_leave: state.auto_leave,
    }
}
