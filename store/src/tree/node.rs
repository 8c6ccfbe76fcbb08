//! Files and directories, and how they look from outside.

use std::sync::Arc;

use super::children::Children;

/// A file or a directory of the tree. A clone shares the value or the children with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Index of the operation that made it.
    pub created: u64,
    /// Index of the operation that last wrote it.
    pub modified: u64,
    /// When it goes, in nanoseconds of Unix time; `None` for ever.
    pub expires_ns: Option<i64>,
    /// What it holds.
    pub kind: Kind,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A value.
    File(Arc<str>),
    /// Children by name.
    Dir(Children),
}

/// A node as clients see it, by its full path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeView {
    /// Full path from the root of the tree.
    pub path: String,
    /// The value of a file; `None` for directories and for what was removed.
    pub value: Option<String>,
    /// Whether it is a directory.
    pub dir: bool,
    /// When it goes, in nanoseconds of Unix time.
    pub expires_ns: Option<i64>,
    /// Children shown.
    pub nodes: Vec<NodeView>,
    /// Index of the last write.
    pub modified: u64,
    /// Index of the creation.
    pub created: u64,
}

impl Node {
    /// A file made at `index`.
    pub fn file(index: u64, value: &str, expires_ns: Option<i64>) -> Node {
        Node { created: index, modified: index, expires_ns, kind: Kind::File(value.into()) }
    }

    /// An empty directory made at `index`.
    pub fn dir(index: u64, expires_ns: Option<i64>) -> Node {
        Node { created: index, modified: index, expires_ns, kind: Kind::Dir(Children::default()) }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }

    /// The children of a directory.
    pub fn children(&self) -> Option<&Children> {
        match &self.kind {
            Kind::Dir(children) => Some(children),
            Kind::File(_) => None,
        }
    }

    /// The children of a directory, to be changed.
    pub fn children_mut(&mut self) -> Option<&mut Children> {
        match &mut self.kind {
            Kind::Dir(children) => Some(children),
            Kind::File(_) => None,
        }
    }

    /// The value of a file.
    pub fn value(&self) -> Option<&str> {
        match &self.kind {
            Kind::File(value) => Some(value),
            Kind::Dir(_) => None,
        }
    }

    /// Puts a child into a directory; a file has no place for one.
    pub(super) fn insert(&mut self, name: &str, child: Node) {
        if let Some(children) = self.children_mut() {
            children.insert(name, child);
        }
    }

    /// The node at `at` as clients see it in events: without its children.
    pub fn view(&self, at: &str) -> NodeView {
        NodeView {
            path: at.to_owned(),
            value: self.value().map(str::to_owned),
            dir: self.is_dir(),
            expires_ns: self.expires_ns,
            nodes: Vec::new(),
            modified: self.modified,
            created: self.created,
        }
    }
}
