//! The operations that change the tree.
//!
//! Each either fails and changes nothing, or succeeds, adds exactly one to the index and yields one event.
//! The order of the checks is etcd's.

use std::sync::Arc;

use super::event::{Action, Event};
use super::node::{Kind, Node, NodeView};
use super::{Code, Tree, TreeError, path};

/// One operation, as it is replicated. Paths are full (`/1/...` for users' keys); expiry times are absolute,
/// in nanoseconds of Unix time, so that every member gets the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Op {
    /// Makes or replaces a file, or makes a directory.
    Set {
        /// The key.
        path: String,
        /// A directory and not a file.
        dir: bool,
        /// The file's value.
        value: String,
        /// When it goes.
        expires_ns: Option<i64>,
        /// Keep the value, change only the expiry time, wake no watcher.
        refresh: bool,
    },
    /// Makes a file or directory where nothing is.
    Create {
        /// The key, or with `in_order` the directory to make it in.
        path: String,
        /// A directory and not a file.
        dir: bool,
        /// The file's value.
        value: String,
        /// When it goes.
        expires_ns: Option<i64>,
        /// Name it after the new index, with 20 digits.
        in_order: bool,
    },
    /// Changes a file, or the expiry time of a directory.
    Update {
        /// The key.
        path: String,
        /// The new value; must be empty for a directory.
        value: String,
        /// When it goes.
        expires_ns: Option<i64>,
        /// Keep the value, wake no watcher.
        refresh: bool,
    },
    /// Writes a file if it is as expected.
    CompareAndSwap {
        /// The key.
        path: String,
        /// The value it must have.
        prev_value: Option<String>,
        /// The modified index it must have.
        prev_index: Option<u64>,
        /// The new value.
        value: String,
        /// When it goes.
        expires_ns: Option<i64>,
        /// Keep the value, wake no watcher.
        refresh: bool,
    },
    /// Removes a file or a directory.
    Delete {
        /// The key.
        path: String,
        /// Allow an empty directory.
        dir: bool,
        /// Allow a directory with all that is in it.
        recursive: bool,
    },
    /// Removes a file if it is as expected.
    CompareAndDelete {
        /// The key.
        path: String,
        /// The value it must have.
        prev_value: Option<String>,
        /// The modified index it must have.
        prev_index: Option<u64>,
    },
}

/// A successful change: the event, and every path that went with it (for those who watch below a removed
/// directory).
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What happened.
    pub event: Arc<Event>,
    /// All removed paths, children before their directory.
    pub removed: Vec<String>,
}

impl Tree {
    /// Carries out one operation.
    ///
    /// # Errors
    /// The rule that it breaks; the tree is as before.
    pub fn apply(&mut self, op: &Op) -> Result<Outcome, TreeError> {
        match op {
            Op::Set { path, dir, value, expires_ns, refresh } => {
                self.set(&path::clean(path), *dir, value, *expires_ns, *refresh)
            }
            Op::Create { path, dir, value, expires_ns, in_order } => {
                let path = if *in_order { format!("{path}/{:020}", self.index + 1) } else { path.clone() };
                let path = path::clean(&path);
                let (node, prev) = self.place(&path, *dir, value, *expires_ns, false)?;
                Ok(self.commit(Action::Create, node, prev, false))
            }
            Op::Update { path, value, expires_ns, refresh } => {
                self.update(&path::clean(path), value, *expires_ns, *refresh)
            }
            Op::CompareAndSwap { path, prev_value, prev_index, value, expires_ns, refresh } => {
                let path = path::clean(path);
                self.check_writable(&path)?;
                let prev = self.compare(&path, prev_value.as_deref(), *prev_index)?;
                let value = if *refresh { prev.value.clone().unwrap_or_default() } else { value.clone() };
                Ok(self.rewrite(Action::CompareAndSwap, &path, Some(value), *expires_ns, prev, *refresh))
            }
            Op::Delete { path, dir, recursive } => self.delete(&path::clean(path), *dir, *recursive),
            Op::CompareAndDelete { path, prev_value, prev_index } => {
                let path = path::clean(path);
                let prev = self.compare(&path, prev_value.as_deref(), *prev_index)?;
                Ok(self.remove(Action::CompareAndDelete, prev))
            }
        }
    }

    /// Removes what is due at `now_ns`, earliest first, each with its own index and event, until `most` nodes have gone; a
    /// directory goes with all that is in it in one event, and may exceed that. What is left is
    /// [still due](Tree::next_expiry).
    pub fn expire(&mut self, now_ns: i64, most: usize) -> Vec<Outcome> {
        let (mut outcomes, mut gone) = (Vec::new(), 0);
        while gone < most
            && let Some((_, path)) = self.expiries.first().filter(|(at, _)| *at <= now_ns).cloned()
        {
            let Ok(prev) = self.find(&path).map(|node| node.view(&path)) else {
                unreachable!("an expiry time is kept only for a node of the tree: {path}");
            };
            let outcome = self.remove(Action::Expire, prev);
            gone += outcome.removed.len();
            outcomes.push(outcome);
        }
        outcomes
    }

    fn check_writable(&self, path: &str) -> Result<(), TreeError> {
        if path::is_too_long(path) {
            return Err(self.error(Code::KeyTooLong, path::too_long_cause()));
        }
        if Tree::is_read_only(path) { Err(self.error(Code::RootIsReadOnly, "/")) } else { Ok(()) }
    }

    fn set(
        &mut self,
        path: &str,
        dir: bool,
        value: &str,
        expires_ns: Option<i64>,
        refresh: bool,
    ) -> Result<Outcome, TreeError> {
        let kept = if refresh { Some(self.find(path)?.value().unwrap_or_default().to_owned()) } else { None };
        let (node, prev) = self.place(path, dir, kept.as_deref().unwrap_or(value), expires_ns, true)?;
        Ok(self.commit(Action::Set, node, prev, refresh))
    }

    fn update(
        &mut self,
        path: &str,
        value: &str,
        expires_ns: Option<i64>,
        refresh: bool,
    ) -> Result<Outcome, TreeError> {
        self.check_writable(path)?;
        let prev = self.find(path)?.view(path);
        if prev.dir && !value.is_empty() {
            return Err(self.error(Code::NotAFile, path));
        }
        let value = match (&prev.value, refresh) {
            (None, _) => None,
            (Some(kept), true) => Some(kept.clone()),
            (Some(_), false) => Some(value.to_owned()),
        };
        Ok(self.rewrite(Action::Update, path, value, expires_ns, prev, refresh))
    }

    fn delete(&mut self, path: &str, dir: bool, recursive: bool) -> Result<Outcome, TreeError> {
        self.check_writable(path)?;
        let node = self.find(path)?;
        if let Some(children) = node.children() {
            if !dir && !recursive {
                return Err(self.error(Code::NotAFile, path));
            }
            if !children.is_empty() && !recursive {
                return Err(self.error(Code::DirectoryNotEmpty, path));
            }
        }
        let prev = node.view(path);
        Ok(self.remove(Action::Delete, prev))
    }

    /// The file at `path`, if it is as expected.
    fn compare(
        &self,
        path: &str,
        prev_value: Option<&str>,
        prev_index: Option<u64>,
    ) -> Result<NodeView, TreeError> {
        let node = self.find(path)?;
        let Some(stored) = node.value() else { return Err(self.error(Code::NotAFile, path)) };
        let value_differs = prev_value.filter(|&wanted| wanted != stored);
        let index_differs = prev_index.filter(|&wanted| wanted != node.modified);
        let cause = match (value_differs, index_differs) {
            (None, None) => return Ok(node.view(path)),
            (Some(value), None) => format!("[{value} != {stored}]"),
            (None, Some(index)) => format!("[{index} != {}]", node.modified),
            (Some(value), Some(index)) => format!("[{value} != {stored}] [{index} != {}]", node.modified),
        };
        Err(self.error(Code::CompareFailed, cause))
    }

    /// Puts a new node at `path`, with the directories on the way, at the next index.
    fn place(
        &mut self,
        path: &str,
        dir: bool,
        value: &str,
        expires_ns: Option<i64>,
        replace: bool,
    ) -> Result<(NodeView, Option<NodeView>), TreeError> {
        self.check_writable(path)?;
        let prev = match self.find(path) {
            Ok(node) if !replace => {
                debug_assert!(path != "/" && node.created <= self.index);
                return Err(self.error(Code::AlreadyExists, path));
            }
            Ok(node) if node.is_dir() => return Err(self.error(Code::NotAFile, path)),
            Ok(node) => Some(node.view(path)),
            Err(error) if error.code == Code::KeyNotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(prev) = &prev {
            self.forget_node(prev);
        }
        let next = self.index + 1;
        let node = if dir { Node::dir(next, expires_ns) } else { Node::file(next, value, expires_ns) };
        let view = node.view(path);
        self.sum.add(path, &node);
        if let Some(at) = expires_ns {
            self.expiries.insert((at, path.to_owned()));
        }
        if prev.is_some() {
            let Some(place) = self.find_mut(path) else { unreachable!("prev was read from {path}") };
            *place = node;
            return Ok((view, prev));
        }
        self.len += 1;
        let parent_path = path::parent(path);
        let mut parent = &mut self.root;
        for (end, name) in path::components(parent_path) {
            let Kind::Dir(children) = &mut parent.kind else {
                unreachable!("find has walked this way and met no file: {path}");
            };
            parent = children.get_or_insert_with(name, || {
                let made = Node::dir(next, None);
                self.sum.add(&parent_path[..end], &made);
                self.dirty.insert(parent_path[..end].to_owned());
                self.len += 1;
                made
            });
        }
        parent.insert(path::name(path), node);
        Ok((view, prev))
    }

    /// Writes value and expiry time of the node that looks like `prev`. A directory keeps its modified index,
    /// as in etcd; only the event shows the new one.
    fn rewrite(
        &mut self,
        action: Action,
        path: &str,
        value: Option<String>,
        expires_ns: Option<i64>,
        prev: NodeView,
        refresh: bool,
    ) -> Outcome {
        let next = self.index + 1;
        self.forget_node(&prev);
        if let Some(at) = expires_ns {
            self.expiries.insert((at, path.to_owned()));
        }
        let view =
            NodeView { value: value.clone(), expires_ns, modified: next, nodes: Vec::new(), ..prev.clone() };
        let mut sum = self.sum;
        let Some(node) = self.find_mut(path) else { unreachable!("prev was read from {path}") };
        node.expires_ns = expires_ns;
        if let Some(value) = value {
            node.kind = Kind::File(value.into());
            node.modified = next;
        }
        sum.add(path, node);
        self.sum = sum;
        self.commit(action, view, Some(prev), refresh)
    }

    /// Takes the node that looks like `prev` out of the tree with all that is below.
    fn remove(&mut self, action: Action, prev: NodeView) -> Outcome {
        let path = prev.path.clone();
        let mut removed = Vec::new();
        let name = path::name(&path);
        let node = self
            .find_mut(path::parent(&path))
            .and_then(Node::children_mut)
            .and_then(|children| children.remove(name));
        let Some(node) = node else { unreachable!("prev was read from {path}") };
        self.forget_subtree(&node, &path, &mut removed);
        let view = NodeView {
            path,
            value: None,
            dir: prev.dir,
            expires_ns: None,
            nodes: Vec::new(),
            modified: self.index + 1,
            created: prev.created,
        };
        let mut outcome = self.commit(action, view, Some(prev), false);
        outcome.removed = removed;
        outcome
    }

    fn forget_subtree(&mut self, node: &Node, path: &str, removed: &mut Vec<String>) {
        for (name, child) in node.children().into_iter().flatten() {
            self.forget_subtree(child, &path::join(path, name), removed);
        }
        if let Some(at) = node.expires_ns {
            self.expiries.remove(&(at, path.to_owned()));
        }
        self.sum.remove(path, node);
        self.dirty.insert(path.to_owned());
        self.len -= 1;
        removed.push(path.to_owned());
    }

    /// The node that looks like `node` is about to be another.
    fn forget_node(&mut self, node: &NodeView) {
        self.sum.remove_view(node);
        if let Some(at) = node.expires_ns {
            self.expiries.remove(&(at, node.path.clone()));
        }
    }

    pub(super) fn find_mut(&mut self, path: &str) -> Option<&mut Node> {
        path::components(path).try_fold(&mut self.root, |node, (_, name)| node.children_mut()?.get_mut(name))
    }

    /// Makes the change visible: next index, history, and the mark for the stored image.
    fn commit(&mut self, action: Action, node: NodeView, prev: Option<NodeView>, refresh: bool) -> Outcome {
        self.index += 1;
        if !self.dirty.contains(&node.path) {
            self.dirty.insert(node.path.clone());
        }
        let event = Arc::new(Event { action, node, prev, refresh });
        debug_assert_eq!(event.index(), self.index);
        self.history.push(Arc::clone(&event));
        Outcome { event, removed: Vec::new() }
    }
}
