//! The v2 keyspace: a tree of directories and files, with one index, expiry times and the last events.
//!
//! Everything here is a pure function of the operations applied: no clock, no socket, no file. The same
//! operations in the same order give the same tree, the same index and the same events on every member.
//! The rules are those of etcd's v2 store (sections 4 to 8 of its API), including the order in which it
//! checks things, because the error that a client sees depends on it.
//!
//! | module | holds |
//! |---|---|
//! | [`path`] | cleaning and splitting of key paths |
//! | [`node`] | files and directories, and how they look from outside |
//! | [`children`] | the children of a directory, cheap to copy for a snapshot |
//! | [`frozen`] | the tree standing still, for a snapshot; a part of it, for a look |
//! | [`event`] | what happened to a node, and the history of the last events |
//! | [`hash`] | a hash of all nodes, kept up with each change |
//! | [`ops`] | the operations: set, create, update, compare-and-swap, delete, expire |
//! | [`watch`] | who wants to hear of which event |
//! | [`image`] | the tree as a list of stored nodes, for disk and for snapshots |

pub mod children;
pub mod event;
pub mod frozen;
pub mod hash;
pub mod image;
pub mod node;
pub mod ops;
pub mod path;
pub mod watch;

use std::collections::{BTreeSet, HashSet};

pub use event::{Action, Event, History};
pub use frozen::{FrozenNode, Shown};
pub use hash::Digest;
pub use node::{Node, NodeView};
pub use ops::{Op, Outcome};
pub use watch::{Hub, Sink, WatchRequest};

/// Events kept for watchers that ask for an old index, as etcd keeps.
pub const HISTORY_EVENTS: usize = 1000;

/// Why the tree refused an operation: one of etcd's error codes with its cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {} ({cause})", .code.number(), .code.message())]
pub struct TreeError {
    /// Which rule was broken.
    pub code: Code,
    /// The path or the comparison at fault; empty where there is none.
    pub cause: String,
    /// The index of the tree when it refused.
    pub index: u64,
}

/// The error codes that the tree itself gives (etcd v2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 100: there is no such key.
    KeyNotFound,
    /// 101: the given value or index is not the stored one.
    CompareFailed,
    /// 102: a directory where a file is wanted.
    NotAFile,
    /// 104: a file where a directory is wanted.
    NotADirectory,
    /// 105: the key is there already.
    AlreadyExists,
    /// 107: the root cannot be changed.
    RootIsReadOnly,
    /// 108: a directory with children cannot be removed without `recursive`.
    DirectoryNotEmpty,
    /// 209: the key has too many names or bytes; see [`path::MAX_NAMES`].
    KeyTooLong,
    /// 401: the events asked for are no longer kept.
    EventCleared,
}

impl Code {
    /// etcd's number.
    pub const fn number(self) -> u32 {
        match self {
            Code::KeyNotFound => 100,
            Code::CompareFailed => 101,
            Code::NotAFile => 102,
            Code::NotADirectory => 104,
            Code::AlreadyExists => 105,
            Code::RootIsReadOnly => 107,
            Code::DirectoryNotEmpty => 108,
            Code::KeyTooLong => 209,
            Code::EventCleared => 401,
        }
    }

    /// etcd's text.
    pub const fn message(self) -> &'static str {
        match self {
            Code::KeyNotFound => "Key not found",
            Code::CompareFailed => "Compare failed",
            Code::NotAFile => "Not a file",
            Code::NotADirectory => "Not a directory",
            Code::AlreadyExists => "Key already exists",
            Code::RootIsReadOnly => "Root is read only",
            Code::DirectoryNotEmpty => "Directory not empty",
            Code::KeyTooLong => "Invalid field",
            Code::EventCleared => "The event in requested index is outdated and cleared",
        }
    }
}

/// The tree.
///
/// Invariants: `expiries` holds exactly the nodes that have an expiry time; every directory on the way to
/// a node exists; the events in `history` end at `index` whenever there has been one; `sum` is that of all
/// nodes but the root.
#[derive(Debug)]
pub struct Tree {
    root: Node,
    index: u64,
    /// Number of nodes without the root.
    len: usize,
    sum: hash::Sum,
    expiries: BTreeSet<(i64, String)>,
    history: History,
    /// Paths that may differ from the stored image; drained by whoever writes it.
    dirty: HashSet<String>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// An empty tree at index 0, with the directories `/0` (the cluster's own data) and `/1` (the users' keys).
    pub fn new() -> Tree {
        let mut root = Node::dir(0, None);
        let mut sum = hash::Sum::default();
        for (name, path) in [("0", "/0"), ("1", "/1")] {
            let dir = Node::dir(0, None);
            sum.add(path, &dir);
            root.insert(name, dir);
        }
        Tree {
            root,
            index: 0,
            len: 2,
            sum,
            expiries: BTreeSet::new(),
            history: History::new(HISTORY_EVENTS),
            dirty: HashSet::from(["/0".to_owned(), "/1".to_owned()]),
        }
    }

    /// The index of the last change.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Number of nodes, the cluster's own and directories among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing; never so, for a tree has directories from the start.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hash of every node's path, indexes, expiry time and value. Does not walk: costs nothing.
    pub fn digest(&self) -> Digest {
        self.sum.digest()
    }

    /// The last events.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether any key has an expiry time.
    pub fn has_expiries(&self) -> bool {
        !self.expiries.is_empty()
    }

    /// When the next key expires, in nanoseconds of Unix time, if any does.
    pub fn next_expiry(&self) -> Option<i64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    fn error(&self, code: Code, cause: impl Into<String>) -> TreeError {
        TreeError { code, cause: cause.into(), index: self.index }
    }

    /// Walks to `path`, which must be clean.
    fn find(&self, path: &str) -> Result<&Node, TreeError> {
        let mut node = &self.root;
        for (end, name) in path::components(path) {
            let Some(children) = node.children() else {
                return Err(self.error(Code::NotADirectory, path::parent(&path[..end])));
            };
            node = children.get(name).ok_or_else(|| self.error(Code::KeyNotFound, &path[..end]))?;
        }
        Ok(node)
    }

    /// Whether `path` is one of the directories that every tree has.
    fn is_read_only(path: &str) -> bool {
        matches!(path, "/" | "/0" | "/1")
    }
}

#[cfg(test)]
mod tests;
