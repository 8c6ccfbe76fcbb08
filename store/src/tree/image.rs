//! The tree as a list of stored nodes: for the image on disk and for snapshots.

use std::sync::Arc;

use super::children::Children;
use super::event::{Event, History};
use super::frozen::StoredRef;
use super::node::{Kind, Node};
use super::{HISTORY_EVENTS, Tree, path};

/// A node without its children.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoredNode {
    /// Index of the creation.
    pub created: u64,
    /// Index of the last write.
    pub modified: u64,
    /// When it goes, in nanoseconds of Unix time.
    pub expires_ns: Option<i64>,
    /// The value of a file; `None` for a directory.
    pub value: Option<String>,
}

impl From<&Node> for StoredNode {
    fn from(node: &Node) -> StoredNode {
        StoredNode {
            created: node.created,
            modified: node.modified,
            expires_ns: node.expires_ns,
            value: node.value().map(str::to_owned),
        }
    }
}

impl From<StoredRef<'_>> for StoredNode {
    fn from(node: StoredRef<'_>) -> StoredNode {
        let StoredRef { created, modified, expires_ns, value } = node;
        StoredNode { created, modified, expires_ns, value: value.map(str::to_owned) }
    }
}

/// Why stored nodes do not make a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A node came before the directory that holds it, or below a file.
    #[error("stored key {0} has no directory to be in")]
    Orphan(String),
    /// The events do not end at the tree's index, or leave some out.
    #[error("stored events have a gap before index {0}")]
    Gap(u64),
}

impl Tree {
    /// Every node but the root, directories before what they hold.
    pub fn stored_nodes(&self) -> Vec<(String, StoredNode)> {
        fn walk(node: &Node, at: &str, into: &mut Vec<(String, StoredNode)>) {
            for (name, child) in node.children().into_iter().flatten() {
                let path = path::join(at, name);
                into.push((path.clone(), child.into()));
                walk(child, &path, into);
            }
        }
        let mut nodes = Vec::new();
        walk(&self.root, "/", &mut nodes);
        nodes
    }

    /// The node at a clean path as it is stored; `None` if there is none.
    pub fn stored_node(&self, path: &str) -> Option<StoredNode> {
        self.find(path).ok().map(StoredNode::from)
    }

    /// Takes the list of paths that changed since it was last taken, in order.
    pub fn take_dirty(&mut self) -> Vec<String> {
        let mut paths: Vec<String> = std::mem::take(&mut self.dirty).into_iter().collect();
        paths.sort_unstable();
        paths
    }

    /// How many paths have changed since the list was last taken.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Puts a tree together again. Nodes may come in any order in which directories precede their content.
    ///
    /// # Errors
    /// [`ImageError`] if what is given is no tree.
    pub fn from_stored(
        index: u64,
        nodes: impl IntoIterator<Item = (String, StoredNode)>,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Tree, ImageError> {
        let mut tree = Tree { index, history: History::new(HISTORY_EVENTS), ..Tree::new() };
        tree.dirty.clear();
        for (at, stored) in nodes {
            let kind = match stored.value {
                Some(value) => Kind::File(value.into()),
                None => Kind::Dir(Children::default()),
            };
            let StoredNode { created, modified, expires_ns, .. } = stored;
            let node = Node { created, modified, expires_ns, kind };
            tree.sum.add(&at, &node);
            let name = path::name(&at);
            let Some(children) = tree.find_mut(path::parent(&at)).and_then(Node::children_mut) else {
                return Err(ImageError::Orphan(at));
            };
            match children.insert(name, node) {
                Some(old) => tree.sum.remove(&at, &old),
                None => tree.len += 1,
            }
            if let Some(expires) = expires_ns {
                tree.expiries.insert((expires, at));
            }
        }
        let mut last = None;
        for event in events {
            if last.is_some_and(|last| event.index() != last + 1) {
                return Err(ImageError::Gap(event.index()));
            }
            last = Some(event.index());
            tree.history.push(Arc::new(event));
        }
        if last.is_some_and(|last| last != index) {
            return Err(ImageError::Gap(index));
        }
        Ok(tree)
    }
}
