//! The replicated state machine: every committed entry goes through [`Machine::apply`], on every member alike.
//!
//! It holds the v2 keyspace and the membership, with the raft index up to which they are applied; a v3
//! keyspace will stand beside them. Errors of an operation are part of the replicated result and equal on all
//! members. An entry that cannot be read is not: the member must stop.

use serde::{Deserialize, Serialize};

use crate::membership::Membership;
use crate::tree::image::{ImageError, StoredNode};
use crate::tree::{Event, Op, Outcome, Tree, TreeError};
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
    /// How far the log is applied.
    pub applied: Position,
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
    /// A member published itself that is not (or no longer) in the cluster.
    Ignored,
}

impl Done {
    /// The changes of the tree, in order.
    pub fn outcomes(&self) -> &[Outcome] {
        match self {
            Done::V2(outcome) | Done::Cluster(outcome) => std::slice::from_ref(outcome),
            Done::Expired(outcomes) => outcomes,
            Done::Ignored => &[],
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
        Machine { tree, membership, applied }
    }

    /// Applies the entry at `position`. An empty entry (a new leader's) only moves the position.
    ///
    /// # Errors
    /// [`DecodeError`] if the entry is not readable; nothing has changed and the member must stop.
    pub fn apply(&mut self, position: Position, data: &[u8]) -> Result<Option<Applied>, DecodeError> {
        let envelope = if data.is_empty() { None } else { Some(Envelope::decode(data)?) };
        self.applied = position;
        Ok(envelope.map(|Envelope { id, command }| Applied { id, result: self.command(command) }))
    }

    fn command(&mut self, command: Command) -> Result<Done, TreeError> {
        match command {
            Command::V2(op) => self.tree.apply(&op).map(Done::V2),
            Command::Sync { now_ns } => Ok(Done::Expired(self.tree.expire(now_ns))),
            Command::Publish { member, name, client_urls } => {
                let Some(member) = self.membership.publish(member, name, client_urls) else {
                    return Ok(Done::Ignored);
                };
                let path = format!("/0/members/{:x}/attributes", member.id);
                let value = member.attributes();
                self.tree.apply(&set(path, value)).map(Done::Cluster)
            }
            // Leaders that follow each other quickly may both have proposed it.
            Command::SetClusterVersion(version) if version == self.membership.version => Ok(Done::Ignored),
            Command::SetClusterVersion(version) => {
                self.membership.version.clone_from(&version);
                self.tree.apply(&set("/0/version".to_owned(), version)).map(Done::Cluster)
            }
        }
    }

    /// The whole state in one piece, for a member that is too far behind.
    pub fn snapshot(&self) -> Vec<u8> {
        let snapshot = Snapshot {
            membership: self.membership.clone(),
            applied: self.applied,
            index: self.tree.index(),
            nodes: self.tree.stored_nodes(),
            events: self.tree.history().iter().map(|event| (**event).clone()).collect(),
        };
        postcard::to_extend(&snapshot, vec![SNAPSHOT_VERSION])
            .expect("a snapshot has no length that postcard cannot write")
    }

    /// The state from such a piece.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing of it is used.
    pub fn from_snapshot(data: &[u8]) -> Result<Machine, SnapshotError> {
        let (&version, body) = data.split_first().ok_or(SnapshotError::Damaged)?;
        if version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version(version));
        }
        let snapshot: Snapshot = postcard::from_bytes(body).map_err(|_| SnapshotError::Damaged)?;
        let tree = Tree::from_stored(snapshot.index, snapshot.nodes, snapshot.events)?;
        Ok(Machine { tree, membership: snapshot.membership, applied: snapshot.applied })
    }
}

fn set(path: String, value: String) -> Op {
    Op::Set { path, dir: false, value, expires_ns: None, refresh: false }
}

/// The version of snapshots that this build writes.
const SNAPSHOT_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Snapshot {
    membership: Membership,
    applied: Position,
    index: u64,
    nodes: Vec<(String, StoredNode)>,
    events: Vec<Event>,
}

/// Why a snapshot is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Written by another version of the store.
    #[error("snapshot of version {0}, this program reads version {SNAPSHOT_VERSION}")]
    Version(u8),
    /// Not what an encoder wrote.
    #[error("damaged snapshot")]
    Damaged,
    /// It holds no tree.
    #[error(transparent)]
    Image(#[from] ImageError),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::membership::Member;

    fn cluster() -> Membership {
        Membership::bootstrap(
            (1..=3)
                .map(|n| Member::bootstrap(&format!("n{n}"), &[format!("http://h{n}:2380")], "t"))
                .collect(),
        )
    }

    fn apply(machine: &mut Machine, command: Command) -> Applied {
        let id = RequestId { member: 1, number: machine.applied.index };
        let position = Position { index: machine.applied.index + 1, term: 2 };
        machine.apply(position, &Envelope { id, command }.encode()).unwrap().unwrap()
    }

    /// etcd's index after n joins, n publishes and the version is 2n + 1.
    #[test]
    fn the_first_user_write_of_three_members_gets_index_8() {
        let mut machine = Machine::bootstrap(cluster());
        assert_eq!(machine.applied, Position { index: 3, term: 1 });
        for id in machine.membership.ids() {
            let client_urls = vec![format!("http://c{id}:2379")];
            apply(&mut machine, Command::Publish { member: id, name: "n".into(), client_urls });
        }
        apply(&mut machine, Command::SetClusterVersion("3.2.0".into()));
        assert_eq!(machine.tree.index(), 7);
        let applied = apply(&mut machine, Command::V2(set("/1/a".into(), "1".into())));
        assert_eq!(applied.result.unwrap().outcomes()[0].event.index(), 8);
        assert_eq!(machine.membership.client_urls().len(), 3);
    }

    #[test]
    fn a_snapshot_gives_the_same_machine() {
        let mut machine = Machine::bootstrap(cluster());
        for n in 0..1200 {
            let op = Op::Set {
                path: format!("/1/d{}/k{n}", n % 7),
                dir: false,
                value: n.to_string(),
                expires_ns: (n % 3 == 0).then_some(i64::from(n)),
                refresh: false,
            };
            apply(&mut machine, Command::V2(op));
        }
        let copy = Machine::from_snapshot(&machine.snapshot()).unwrap();
        assert_eq!(copy.snapshot(), machine.snapshot());
        assert_eq!(copy.tree.history().first_index(), Some(1203 - 999));
        assert_eq!(copy.tree.has_expiries(), machine.tree.has_expiries());
        assert_eq!(Machine::from_snapshot(&[9]).unwrap_err(), SnapshotError::Version(9));
        assert_eq!(Machine::from_snapshot(&machine.snapshot()[..99]).unwrap_err(), SnapshotError::Damaged);
    }

    #[test]
    fn an_unreadable_entry_changes_nothing() {
        let mut machine = Machine::bootstrap(cluster());
        let before = machine.snapshot();
        assert!(machine.apply(Position { index: 4, term: 2 }, &[7]).is_err());
        assert_eq!(machine.snapshot(), before);
    }
}
