//! The tree standing still, for a snapshot that is written while the tree goes on.

use std::sync::Arc;

use super::event::Event;
use super::node::Node;
use super::{Tree, path};

/// A tree as it was. It shares with the tree what has not changed since.
#[derive(Debug)]
pub struct FrozenTree {
    root: Node,
    index: u64,
    len: usize,
    events: Vec<Arc<Event>>,
}

/// A node without its children, as it is stored: what [`super::image::StoredNode`] is, on loan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct StoredRef<'a> {
    /// Index of the creation.
    pub created: u64,
    /// Index of the last write.
    pub modified: u64,
    /// When it goes, in nanoseconds of Unix time.
    pub expires_ns: Option<i64>,
    /// The value of a file; `None` for a directory.
    pub value: Option<&'a str>,
}

impl<'a> From<&'a Node> for StoredRef<'a> {
    fn from(node: &'a Node) -> StoredRef<'a> {
        let Node { created, modified, expires_ns, .. } = *node;
        StoredRef { created, modified, expires_ns, value: node.value() }
    }
}

impl Tree {
    /// The tree as it is now. Costs next to nothing for a tree of any size.
    pub fn freeze(&self) -> FrozenTree {
        let events = self.history.iter().cloned().collect();
        FrozenTree { root: self.root.clone(), index: self.index, len: self.len, events }
    }
}

impl FrozenTree {
    /// The index of the last change.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of nodes without the root.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing; never so, for a tree has directories from the start.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The last events, oldest first.
    pub fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    /// The node at a clean path; `None` if there is none.
    pub fn get(&self, path: &str) -> Option<StoredRef<'_>> {
        let mut node = &self.root;
        for (_, name) in path::components(path) {
            node = node.children()?.get(name)?;
        }
        Some(node.into())
    }

    /// Shows every node but the root with its path, directories before what they hold, in order.
    ///
    /// # Errors
    /// The first that `show` returns.
    pub fn for_each<E>(&self, show: &mut impl FnMut(&str, StoredRef<'_>) -> Result<(), E>) -> Result<(), E> {
        walk(&self.root, "/", show)
    }
}

fn walk<E>(
    node: &Node,
    at: &str,
    show: &mut impl FnMut(&str, StoredRef<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for (name, child) in node.children().into_iter().flatten() {
        let path = path::join(at, name);
        show(&path, child.into())?;
        walk(child, &path, show)?;
    }
    Ok(())
}
