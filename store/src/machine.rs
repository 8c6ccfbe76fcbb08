//! The replicated state machine: every committed entry goes through [`Machine::apply`], on every member alike.
//!
//! It holds the v2 keyspace, the membership and the alarms, with the raft index up to which they are applied; a v3
//! keyspace will stand beside them. [`Machine::digest`] says in one number what they are. Errors of an operation are part of the replicated result and equal on all
//! members. An entry that cannot be read is not: the member must stop.

mod alarm;
mod check;

use serde::{Deserialize, Serialize};

pub use self::alarm::{AlarmKind, Alarms, MAX_TEXT_BYTES};
pub use self::check::{Checks, Mark, Mismatch, Verdict};
use crate::membership::Membership;
pub use crate::snapshot::SnapshotError;
use crate::tree::hash::Hasher;
use crate::tree::{Digest, Op, Outcome, Tree, TreeError};
use crate::voters::Voters;
use crate::wire::command::{Command, DecodeError, Envelope, RequestId};

/// Where the applied state stands in the raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// Index of the last applied entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
}

/// The state that members share.
#[derive(Debug)]
pub struct Machine {
    /// The v2 keyspace.
    pub tree: Tree,
    /// The members.
    pub membership: Membership,
    /// What is wrong with which member.
    pub alarms: Alarms,
    /// How far the log is applied.
    pub applied: Position,
    /// This member's part in comparing states. It is no part of the state: not in snapshots, images and digests.
    pub checks: Checks,
}

/// What an applied entry gives.
#[derive(Debug)]
pub struct Applied {
    /// Who waits for it.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<Done, TreeError>,
}

/// A successful command.
#[derive(Debug)]
pub enum Done {
    /// An operation on the v2 keyspace.
    V2(Outcome),
    /// Keys that expired.
    Expired(Vec<Outcome>),
    /// A change of the membership's data.
    Cluster(Outcome),
    /// States were compared.
    Checked(Verdict),
    /// An alarm was raised or cleared.
    Alarm {
        /// Whose.
        member: u64,
        /// Which.
        kind: AlarmKind,
        /// Raised, not cleared.
        raised: bool,
    },
    /// A member published itself that is not (or no longer) in the cluster, or something was set that is so already.
    Ignored,
}

impl Done {
    /// The changes of the tree, in order.
    pub fn outcomes(&self) -> &[Outcome] {
        match self {
            Done::V2(outcome) | Done::Cluster(outcome) => std::slice::from_ref(outcome),
            Done::Expired(outcomes) => outcomes,
            Done::Checked(_) | Done::Alarm { .. } | Done::Ignored => &[],
        }
    }
}

impl Machine {
    /// The state of a new cluster: every member has joined, each with an event of its own as in etcd, where
    /// these are the first entries of the log. Every member starts from the same position.
    pub fn bootstrap(membership: Membership) -> Machine {
        let mut tree = Tree::new();
        for member in membership.members() {
            let op = Op::Create {
                path: format!("/0/members/{:x}/raftAttributes", member.id),
                dir: false,
                value: member.raft_attributes(),
                expires_ns: None,
                in_order: false,
            };
            tree.apply(&op).expect("the keys of a new tree are free");
        }
        // Names are known from --initial-cluster but shown only once a member has started.
        let mut membership = membership;
        for id in membership.ids() {
            membership.publish(id, String::new(), Vec::new());
        }
        let applied = Position { index: tree.index(), term: 1 };
        Machine::new(tree, membership, Alarms::default(), applied)
    }

    /// The state that consists of these.
    pub fn new(tree: Tree, membership: Membership, alarms: Alarms, applied: Position) -> Machine {
        Machine { tree, membership, alarms, applied, checks: Checks::default() }
    }

    /// What this state is, in one number: equal on all members at the same `applied`. Costs about as much as applying an
    /// entry, however large the state is.
    ///
    /// Of the history its first and last index stand for all of it: its events are what the operations gave.
    pub fn digest(&self) -> Digest {
        let history = self.tree.history();
        let last = history.iter().next_back().map(|event| event.index());
        let mut hasher = Hasher::default();
        let parts = (self.tree.digest(), self.tree.index(), history.first_index(), last);
        for part in [encode(&parts), encode(&self.membership), encode(&self.alarms), encode(&self.applied)] {
            hasher.write_u64(part.len() as u64);
            hasher.write(&part);
        }
        hasher.finish()
    }

    /// Applies the entry at `position`. An empty entry (a new leader's) only moves the position.
    ///
    /// # Errors
    /// [`DecodeError`] if the entry is not readable; nothing has changed and the member must stop.
    pub fn apply(&mut self, position: Position, data: &[u8]) -> Result<Option<Applied>, DecodeError> {
        let envelope = if data.is_empty() { None } else { Some(Envelope::decode(data)?) };
        self.applied = position;
        if !matches!(envelope, Some(Envelope { command: Command::Check(_), .. })) {
            self.checks.changed();
        }
        Ok(envelope.map(|Envelope { id, command }| Applied { id, result: self.command(command) }))
    }

    /// Applies the entry at `position` that has changed the configuration to `voters`, or to nothing else if `None`.
    pub fn reconfigure(&mut self, position: Position, voters: Option<Voters>) {
        self.applied = position;
        self.checks.changed();
        if let Some(voters) = voters {
            self.membership.voters = voters;
        }
    }

    fn command(&mut self, command: Command) -> Result<Done, TreeError> {
        match command {
            Command::V2(op) => self.tree.apply(&op).map(Done::V2),
            Command::Sync { now_ns } => Ok(Done::Expired(self.tree.expire(now_ns, usize::MAX))),
            Command::Expire { now_ns, most } => {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                Ok(Done::Expired(self.tree.expire(now_ns, most)))
            }
            Command::Publish { member, name, client_urls } => {
                let Some(member) = self.membership.publish(member, name, client_urls) else {
                    return Ok(Done::Ignored);
                };
                let path = format!("/0/members/{:x}/attributes", member.id);
                let value = member.attributes();
                self.tree.apply(&set(path, value)).map(Done::Cluster)
            }
            Command::Check(leader) => {
                let here = Mark { index: self.applied.index, digest: self.digest() };
                Ok(Done::Checked(self.checks.check(leader, here)))
            }
            Command::Alarm { member, kind, raise: raised, text } => {
                // Asked for again because the answer was slow, or for a member that is gone.
                let changes = self.alarms.get(member, kind).is_some() != raised;
                if !changes || self.membership.member(member).is_none() {
                    return Ok(Done::Ignored);
                }
                if raised {
                    self.alarms.raise(member, kind, text);
                } else {
                    self.alarms.clear(member, kind);
                }
                Ok(Done::Alarm { member, kind, raised })
            }
            // Leaders that follow each other quickly may both have proposed it.
            Command::SetClusterVersion(version) if version == self.membership.version => Ok(Done::Ignored),
            Command::SetClusterVersion(version) => {
                self.membership.version.clone_from(&version);
                self.tree.apply(&set("/0/version".to_owned(), version)).map(Done::Cluster)
            }
        }
    }
}

fn encode(part: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(part).expect("no part of the state has a length that postcard cannot write")
}

fn set(path: String, value: String) -> Op {
    Op::Set { path, dir: false, value, expires_ns: None, refresh: false }
}

#[cfg(test)]
mod tests;
