//! An image in memory that knows what is durable, for tests of what a crash leaves.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::{Delta, Identity, StateError, StateStore, Usage};
use crate::machine::{Alarms, Machine, Position};
use crate::membership::Membership;
use crate::snapshot::Snapshot;
use crate::tree::frozen::StoredRef;
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

    fn replace(&mut self, identity: Identity, state: &Snapshot) -> Result<(), StateError> {
        let mut nodes = BTreeMap::new();
        let _ = state.tree().for_each(&mut |path, node: StoredRef<'_>| {
            nodes.insert(path.to_owned(), node.into());
            Ok::<(), Infallible>(())
        });
        self.now = Some(Content {
            identity,
            applied: state.applied(),
            index: state.tree().index(),
            membership: state.membership().clone(),
            alarms: state.alarms().clone(),
            digest: state.digest(),
            nodes,
            events: state.tree().events().iter().map(|event| (event.index(), (**event).clone())).collect(),
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
        let whole = delta.whole();
        content.applied = whole.applied();
        content.index = whole.tree().index();
        content.membership = whole.membership().clone();
        content.alarms = whole.alarms().clone();
        content.digest = whole.digest();
        for (path, node) in delta.nodes() {
            match node {
                Some(node) => content.nodes.insert(path.to_owned(), node.into()),
                None => content.nodes.remove(path),
            };
        }
        content.events.extend(delta.events().iter().map(|event| (event.index(), (**event).clone())));
        content.events = content.events.split_off(&delta.first_event());
        Ok(())
    }

    fn takes_changes(&self) -> bool {
        self.now.is_some()
    }

    fn usage(&self) -> Usage {
        Usage { image: 0, changes: 0, free: u64::MAX }
    }

    fn sync(&mut self) -> Result<(), StateError> {
        self.synced = self.now.clone();
        Ok(())
    }
}
