//! A delta as it is stored.

use serde::{Deserialize, Serialize, Serializer};

use super::Delta;
use crate::machine::{Alarms, Position};
use crate::membership::Membership;
use crate::tree::image::StoredNode;
use crate::tree::{Digest, Event};

/// What is read.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    /// Where the image stands afterwards.
    pub(super) applied: Position,
    /// The tree's index there.
    pub(super) index: u64,
    /// The members there.
    pub(super) membership: Membership,
    /// The alarms there.
    pub(super) alarms: Alarms,
    /// The digest of the state there.
    pub(super) digest: Digest,
    /// The number of nodes there. Not used: the digest says more.
    #[expect(dead_code, reason = "part of what is stored")]
    len: u64,
    /// Changed nodes; `None` for those that are gone.
    pub(super) nodes: Vec<(String, Option<StoredNode>)>,
    /// New events.
    pub(super) events: Vec<Event>,
    /// Index of the oldest event to keep.
    pub(super) first_event: u64,
}

/// What is written: a [`Record`] on loan from the delta.
#[derive(Serialize)]
pub(super) struct RecordRef<'a> {
    applied: Position,
    index: u64,
    membership: &'a Membership,
    alarms: &'a Alarms,
    digest: Digest,
    len: u64,
    #[serde(serialize_with = "nodes")]
    nodes: &'a Delta,
    #[serde(serialize_with = "events")]
    events: &'a Delta,
    first_event: u64,
}

impl<'a> From<&'a Delta> for RecordRef<'a> {
    fn from(delta: &'a Delta) -> RecordRef<'a> {
        let whole = delta.whole();
        RecordRef {
            applied: whole.applied(),
            index: whole.tree().index(),
            membership: whole.membership(),
            alarms: whole.alarms(),
            digest: whole.digest(),
            len: whole.tree().len() as u64,
            nodes: delta,
            events: delta,
            first_event: delta.first_event(),
        }
    }
}

fn nodes<S: Serializer>(delta: &Delta, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(delta.nodes())
}

fn events<S: Serializer>(delta: &Delta, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(delta.events().iter().map(|event| &**event))
}
