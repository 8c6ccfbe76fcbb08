//! An image in memory that knows what is durable, for tests of what a crash leaves.

use std::collections::BTreeMap;

use super::{Delta, Identity, StateError, StateStore};
use crate::machine::{Alarms, Machine, Position};
use crate::membership::Membership;
use crate::tree::image::StoredNode;
use crate::tree::{Digest, Event, Tree};

/// The double. [`MemState::crash`] forgets what was not synced.
#[derive(Debug, Clone, Default)]
pub struct MemState {
    now: Option<Content>,
    synced: Option<Content>,
}

#[derive(Debug, Clone)]
struct Content {
    identity: Identity,
    applied: Position,
    index: u64,
    membership: Membership,
    alarms: Alarms,
    digest: Digest,
    nodes: BTreeMap<String, StoredNode>,
    events: BTreeMap<u64, Event>,
}

impl MemState {
    /// Loses what was written since the last sync.
    pub fn crash(&mut self) {
        self.now = self.synced.clone();
    }
}

impl StateStore for MemState {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        let Some(content) = self.now.clone() else { return Ok(None) };
        let tree = Tree::from_stored(content.index, content.nodes, content.events.into_values());
        let tree = tree.map_err(|e| StateError::Damaged { dir: "memory".to_owned(), what: e.to_string() })?;
        let machine = Machine::new(tree, content.membership, content.alarms, content.applied);
        if machine.digest() != content.digest {
            let (found, wanted) = (machine.digest(), content.digest);
            return Err(StateError::Digest { dir: "memory".to_owned(), found, wanted });
        }
        Ok(Some((content.identity, machine)))
    }

    fn replace(&mut self, identity: Identity, machine: &Machine) -> Result<(), StateError> {
        self.now = Some(Content {
            identity,
            applied: machine.applied,
            index: machine.tree.index(),
            membership: machine.membership.clone(),
            alarms: machine.alarms.clone(),
            digest: machine.digest(),
            nodes: machine.tree.stored_nodes().into_iter().collect(),
            events: machine.tree.history().iter().map(|event| (event.index(), (**event).clone())).collect(),
        });
        self.sync()
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        let Some(content) = &mut self.now else {
            return Err(StateError::Damaged {
                dir: "memory".to_owned(),
                what: "nothing to change yet".to_owned(),
            });
        };
        content.applied = delta.applied;
        content.index = delta.index;
        content.membership = delta.membership.clone();
        content.alarms = delta.alarms.clone();
        content.digest = delta.digest;
        for (path, node) in &delta.nodes {
            match node {
                Some(node) => content.nodes.insert(path.clone(), node.clone()),
                None => content.nodes.remove(path),
            };
        }
        content.events.extend(delta.events.iter().map(|event| (event.index(), event.clone())));
        content.events = content.events.split_off(&delta.first_event);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.synced = self.now.clone();
        Ok(())
    }
}
