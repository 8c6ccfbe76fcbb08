//! The tree standing still, for a snapshot that is written while the tree goes on, and a part of it for an answer.

use std::sync::Arc;

use super::children::Children;
use super::event::Event;
use super::node::Node;
use super::{Tree, TreeError, path};

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

/// A node as it was, and with it what is below it. It shares with the tree what has not changed since.
#[derive(Debug, Clone)]
pub struct FrozenNode {
    path: String,
    node: Node,
    depth: Depth,
}

/// How much of a directory is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The node alone.
    Node,
    /// The node and its visible children, those without theirs.
    Children,
    /// The whole visible subtree.
    All,
}

/// A node of a [`FrozenNode`], on loan, with the children that are to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The node itself.
    pub node: &'a Node,
    depth: Depth,
}

impl Tree {
    /// Looks at `path`. A directory shows its visible children, with `recursive` the whole visible subtree. Costs as
    /// much as finding the node, whatever is below it.
    ///
    /// # Errors
    /// [`Code::KeyNotFound`](super::Code::KeyNotFound) with the deepest missing path,
    /// [`Code::NotADirectory`](super::Code::NotADirectory) with the file on the way.
    pub fn look(&self, path: &str, recursive: bool) -> Result<FrozenNode, TreeError> {
        let path = path::clean(path);
        let node = self.find(&path)?.clone();
        Ok(FrozenNode { path, node, depth: if recursive { Depth::All } else { Depth::Children } })
    }
}

impl FrozenNode {
    /// Its clean path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The node that was looked at.
    pub fn shown(&self) -> Shown<'_> {
        Shown { node: &self.node, depth: self.depth }
    }
}

impl<'a> Shown<'a> {
    /// The children that are to be shown, in order of their names: none that are hidden.
    pub fn children(self) -> impl Iterator<Item = (&'a str, Shown<'a>)> {
        self.below().into_iter().flat_map(|(depth, children)| {
            let shown = children.iter().filter(|(name, _)| !path::is_hidden_name(name));
            shown.map(move |(name, node)| (name, Shown { node, depth }))
        })
    }

    /// How many children [`Shown::children`] goes through, with those that it leaves out.
    pub fn entries(self) -> usize {
        self.below().map_or(0, |(_, children)| children.len())
    }

    fn below(self) -> Option<(Depth, &'a Children)> {
        let depth = match self.depth {
            Depth::Node => return None,
            Depth::Children => Depth::Node,
            Depth::All => Depth::All,
        };
        Some((depth, self.node.children()?))
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
