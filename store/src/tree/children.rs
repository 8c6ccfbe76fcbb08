//! The children of a directory: a sorted map whose copies share what has not changed since.
//!
//! ```text
//! Children -> Arc<[ from chunk, from chunk, ... ]>        in order
//!                          |
//!                          +-> Arc<{ name: node, ... }>   1 to CHUNK_ENTRIES of them, in order
//! ```
//!
//! A clone takes one reference count, however large the directory is. The first change after it copies the list of
//! chunks (24 bytes for each, which has up to 512 children) and the chunk that is changed; the nodes in it are copied
//! without their values and subdirectories, which are shared as well. So a snapshot can be encoded from a clone while
//! the tree goes on changing, and what both hold in memory is what has changed in between.

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use super::node::Node;

/// Children in one chunk: few enough that copying one takes some 20 microseconds, and enough that the list of chunks
/// of a directory with a million children is copied in as many, and searched in the processor's cache.
const CHUNK_ENTRIES: usize = 512;
/// A chunk with fewer is joined to a neighbour if both fit well into one.
const FEW_ENTRIES: usize = CHUNK_ENTRIES / 4;
/// And that is what fits well: a chunk that has just been joined is not split by the next insertion.
const WELL_FILLED: usize = CHUNK_ENTRIES / 4 * 3;

/// A sorted map from names to nodes, cheap to clone.
///
/// Invariants: no chunk is empty or holds more than [`CHUNK_ENTRIES`]; names ascend within and across chunks.
#[derive(Debug, Clone, Default)]
pub struct Children {
    chunks: Arc<Vec<Chunk>>,
}

#[derive(Debug, Clone)]
struct Chunk {
    /// Above the names of the chunk before, and not above any in this one; of no meaning in the first. Here so that
    /// finding a chunk does not look into others.
    from: Arc<str>,
    nodes: Arc<BTreeMap<Box<str>, Node>>,
}

impl Children {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many there are. Counts chunks, of which there are few.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.nodes.len()).sum()
    }

    /// The child of this name.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.chunks.get(self.chunk_of(name))?.nodes.get(name)
    }

    /// The child of this name, to be changed: it and its neighbours are copied if a clone shares them.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Node> {
        let chunk = self.chunk_of(name);
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(chunk)?;
        Arc::make_mut(&mut chunk.nodes).get_mut(name)
    }

    /// Puts a child in; returns the one that it replaces.
    pub fn insert(&mut self, name: &str, node: Node) -> Option<Node> {
        let chunk = self.chunk_of(name);
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = make_room(chunks, chunk, name);
        Arc::make_mut(&mut chunks[chunk].nodes).insert(name.into(), node)
    }

    /// The child of this name, made by `make` if it is not there.
    pub fn get_or_insert_with(&mut self, name: &str, make: impl FnOnce() -> Node) -> &mut Node {
        let chunk = self.chunk_of(name);
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = make_room(chunks, chunk, name);
        Arc::make_mut(&mut chunks[chunk].nodes).entry(name.into()).or_insert_with(make)
    }

    /// Takes a child out.
    pub fn remove(&mut self, name: &str) -> Option<Node> {
        let chunk = self.chunk_of(name);
        let chunks = Arc::make_mut(&mut self.chunks);
        let node = Arc::make_mut(&mut chunks.get_mut(chunk)?.nodes).remove(name)?;
        join(chunks, chunk);
        Some(node)
    }

    /// Names and nodes in order of the names.
    pub fn iter(&self) -> Iter<'_> {
        Iter { chunks: self.chunks.iter(), nodes: btree_map::Iter::default() }
    }

    /// The last chunk that begins at or before the name, as no other can hold it; 0 if there is none.
    fn chunk_of(&self, name: &str) -> usize {
        if self.chunks.len() < 2 {
            return 0;
        }
        self.chunks.partition_point(|chunk| *chunk.from <= *name).saturating_sub(1)
    }
}

/// Sees to it that the chunk in which `name` belongs can take it; returns which one that is then. Behind the last name
/// of a full chunk a new one is begun, so that names that come in order leave full chunks behind.
fn make_room(chunks: &mut Vec<Chunk>, chunk: usize, name: &str) -> usize {
    let begin = |from: &str, nodes| Chunk { from: from.into(), nodes: Arc::new(nodes) };
    let Some(full) = chunks.get_mut(chunk) else {
        chunks.push(begin(name, BTreeMap::new()));
        return chunk;
    };
    if full.nodes.len() < CHUNK_ENTRIES || full.nodes.contains_key(name) {
        return chunk;
    }
    let last = full.nodes.last_key_value().is_none_or(|(last, _)| **last < *name);
    let right = match full.nodes.keys().nth(CHUNK_ENTRIES / 2).filter(|_| !last).cloned() {
        None => begin(name, BTreeMap::new()),
        Some(middle) => begin(&middle, Arc::make_mut(&mut full.nodes).split_off(&middle)),
    };
    let goes_right = *right.from <= *name;
    chunks.insert(chunk + 1, right);
    chunk + usize::from(goes_right)
}

/// Puts the invariant right, and keeps chunks filled, after something was taken from this one.
fn join(chunks: &mut Vec<Chunk>, chunk: usize) {
    let len = |chunk: usize| chunks.get(chunk).map_or(CHUNK_ENTRIES, |chunk| chunk.nodes.len());
    if len(chunk) == 0 {
        chunks.remove(chunk);
    } else if len(chunk) < FEW_ENTRIES {
        let fits = |first: &usize| len(*first) + len(first + 1) <= WELL_FILLED;
        let first = chunk.checked_sub(1).filter(fits).or_else(|| Some(chunk).filter(fits));
        if let Some(first) = first {
            let mut next = Arc::unwrap_or_clone(chunks.remove(first + 1).nodes);
            Arc::make_mut(&mut chunks[first].nodes).append(&mut next);
        }
    }
}

impl PartialEq for Children {
    fn eq(&self, other: &Children) -> bool {
        self.iter().eq(other)
    }
}

impl Eq for Children {}

/// Names and nodes of a directory, in order.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    chunks: std::slice::Iter<'a, Chunk>,
    nodes: btree_map::Iter<'a, Box<str>, Node>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a str, &'a Node);

    fn next(&mut self) -> Option<(&'a str, &'a Node)> {
        loop {
            if let Some((name, node)) = self.nodes.next() {
                return Some((name, node));
            }
            self.nodes = self.chunks.next()?.nodes.iter();
        }
    }
}

impl<'a> IntoIterator for &'a Children {
    type Item = (&'a str, &'a Node);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
#[path = "children_tests.rs"]
mod tests;
