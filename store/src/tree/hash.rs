//! A hash of state that is the same on every member and in every version of the store.
//!
//! [`Hasher`] is SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012; the 128 bits as in the authors'
//! reference code) under a key that never changes. [`Sum`] adds the hashes of a tree's nodes modulo 2^128: the order does
//! not matter, and a node that changes costs two hashes, not a walk.
//!
//! This finds faults, not attacks: members trust each other. The values are compared between members and kept on disk, so
//! what goes into them may only change together with the version of the image; tests keep them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::node::{Node, NodeView};

/// What two states have in common exactly if they are equal, but for a chance of about one in 2^128.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Digest(u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Digest {
    /// Its bytes, as the hash gives them.
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

/// The key: the first 16 bytes, as two numbers in network order, of the text "weft state digest".
const KEY: [u64; 2] = [0x7765_6674_2073_7461, 0x7465_2064_6967_6573];

/// Hashes bytes as they come.
#[derive(Debug, Clone)]
pub struct Hasher {
    v: [u64; 4],
    /// Bytes that do not make a word yet, the first in the lowest place.
    tail: u64,
    /// Bytes so far.
    len: u64,
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher::with_key(KEY)
    }
}

impl Hasher {
    fn with_key([k0, k1]: [u64; 2]) -> Hasher {
        let v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        Hasher { v, tail: 0, len: 0 }
    }

    /// Adds bytes. How they are divided among calls makes no difference.
    pub fn write(&mut self, mut bytes: &[u8]) {
        let held = self.len % 8;
        self.len += bytes.len() as u64;
        if held > 0 {
            for at in held..8 {
                let Some((&byte, rest)) = bytes.split_first() else { return };
                self.tail |= u64::from(byte) << (8 * at);
                bytes = rest;
            }
            self.word(self.tail);
            self.tail = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        for (at, &byte) in rest.iter().enumerate() {
            self.tail |= u64::from(byte) << (8 * at);
        }
    }

    /// Adds a number.
    pub fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    /// The hash of all bytes.
    pub fn finish(mut self) -> Digest {
        self.word(self.len << 56 | self.tail);
        self.v[2] ^= 0xee;
        let low = self.half();
        self.v[1] ^= 0xdd;
        Digest(u128::from(low) | u128::from(self.half()) << 64)
    }

    fn half(&mut self) -> u64 {
        (0..4).for_each(|_| self.round());
        self.v.iter().fold(0, |half, v| half ^ v)
    }

    fn word(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32).wrapping_add(d);
        c = c.wrapping_add(b);
        d = d.rotate_left(21) ^ a;
        b = b.rotate_left(17) ^ c;
        self.v = [a, b, c.rotate_left(32), d];
    }
}

/// The hash of a tree's nodes: the sum of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u128);

impl Sum {
    /// A node is at `path` now.
    pub(super) fn add(&mut self, path: &str, node: &Node) {
        self.0 = self.0.wrapping_add(of_node(path, node).0);
    }

    /// A node is no longer at `path`, or will be another.
    pub(super) fn remove(&mut self, path: &str, node: &Node) {
        self.0 = self.0.wrapping_sub(of_node(path, node).0);
    }

    /// The same for the node that looks like `view`.
    pub(super) fn remove_view(&mut self, view: &NodeView) {
        let NodeView { path, value, expires_ns, modified, created, .. } = view;
        let digest = hash(path, [*created, *modified], *expires_ns, value.as_deref());
        self.0 = self.0.wrapping_sub(digest.0);
    }

    /// The sum for a directory and all that is in it, by a walk.
    #[cfg(test)]
    fn of_subtree(path: &str, node: &Node) -> Sum {
        let mut sum = Sum::default();
        sum.add(path, node);
        for (name, child) in node.children().into_iter().flatten() {
            let below = Sum::of_subtree(&super::path::join(path, name), child);
            sum.0 = sum.0.wrapping_add(below.0);
        }
        sum
    }

    /// The sum as a value.
    pub fn digest(self) -> Digest {
        Digest(self.0)
    }
}

fn of_node(path: &str, node: &Node) -> Digest {
    hash(path, [node.created, node.modified], node.expires_ns, node.value())
}

/// The hash of a node. A directory has no `value`. All lengths but the last are given before what they measure, so no two
/// nodes have the same bytes.
fn hash(path: &str, indexes: [u64; 2], expires_ns: Option<i64>, value: Option<&str>) -> Digest {
    let mut hasher = Hasher::default();
    hasher.write_u64(u64::from(value.is_some()) | u64::from(expires_ns.is_some()) << 1);
    hasher.write_u64(indexes[0]);
    hasher.write_u64(indexes[1]);
    hasher.write(&expires_ns.unwrap_or(0).to_le_bytes());
    hasher.write_u64(path.len() as u64);
    hasher.write(path.as_bytes());
    hasher.write(value.unwrap_or_default().as_bytes());
    hasher.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Op, Tree};

    /// From `vectors_sip128` of the reference code: key 00 01 .. 0f, input of that many bytes 00 01 02 ..
    #[test]
    fn the_hash_is_siphash() {
        for (len, want) in [
            (0u8, "a3817f04ba25a8e66df67214c7550293"),
            (1, "da87c1d86b99af44347659119b22fc45"),
            (15, "5493e99933b0a8117e08ec0f97cfc3d9"),
        ] {
            let mut hasher = Hasher::with_key([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
            hasher.write(&(0..len).collect::<Vec<u8>>());
            assert_eq!(Digest(hasher.finish().0.swap_bytes()).to_string(), want, "{len} bytes");
        }
    }

    /// Members of two versions compare these, and they lie on disks: they must stay.
    #[test]
    fn the_digests_of_nodes_and_trees_stay() {
        let nodes = [
            hash("/1/a", [3, 7], None, Some("v")),
            hash("/1/a", [3, 7], Some(-1), Some("")),
            hash("/1/a", [3, 7], None, None),
        ];
        let mut tree = Tree::new();
        let empty = tree.digest();
        let (path, value) = ("/1/dir/key".to_owned(), "value".to_owned());
        assert!(
            tree.apply(&Op::Set { path, dir: false, value, expires_ns: Some(9), refresh: false }).is_ok()
        );
        let seen: Vec<String> =
            nodes.into_iter().chain([empty, tree.digest()]).map(|digest| digest.to_string()).collect();
        assert_eq!(
            seen,
            [
                "2fb19d2dda609de9b6d89d1969dea48d",
                "37ef8f2a1fcd029a59027031a99da770",
                "5be239db0c59e2cf9f6db74125b95d29",
                "f8f85e49e4817a00d3006b2fa7c46c9b",
                "3385d913729ad8c2d1d4538899892319",
            ]
        );
    }

    /// The digest as a walk over the whole tree gives it.
    pub(in crate::tree) fn walked(tree: &Tree) -> Digest {
        let mut sum = Sum::of_subtree("/", &tree.root);
        sum.remove("/", &tree.root);
        sum.digest()
    }

    proptest! {
        #[test]
        fn pieces_hash_as_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..64) {
            let mut whole = Hasher::default();
            whole.write(&bytes);
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut pieces = Hasher::default();
            pieces.write(head);
            pieces.write(tail);
            prop_assert_eq!(whole.finish(), pieces.finish());
        }

        #[test]
        fn every_field_of_a_node_counts(
            path in "/1/[a-z]{0,9}",
            indexes in any::<[u64; 2]>(),
            expires_ns in any::<Option<i64>>(),
            value in proptest::option::of("[a-z]{0,20}"),
            by in 1u64..,
        ) {
            let value = value.as_deref();
            let all = [
                hash(&path, indexes, expires_ns, value),
                hash(&format!("{path}/"), indexes, expires_ns, value),
                hash(&path, [indexes[0].wrapping_add(by), indexes[1]], expires_ns, value),
                hash(&path, [indexes[0], indexes[1].wrapping_add(by)], expires_ns, value),
                hash(&path, indexes, expires_ns.map_or(Some(0), |_| None), value),
                hash(&path, indexes, Some(expires_ns.map_or(i64::MIN, |at| at.wrapping_add(1))), value),
                hash(&path, indexes, expires_ns, if value.is_some() { None } else { Some("") }),
                hash(&path, indexes, expires_ns, Some(&format!("{}.", value.unwrap_or_default()))),
            ];
            let distinct: std::collections::BTreeSet<Digest> = all.into_iter().collect();
            prop_assert_eq!(distinct.len(), all.len());
        }
    }
}
