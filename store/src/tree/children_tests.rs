#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn node(n: u64) -> Node {
    Node::file(n, &n.to_string(), None)
}

/// What the invariants say.
fn assert_sound(children: &Children) {
    assert!(children.chunks.iter().all(|chunk| (1..=CHUNK_ENTRIES).contains(&chunk.nodes.len())));
    for two in children.chunks.windows(2) {
        assert!(two[0].nodes.keys().all(|name| **name < *two[1].from), "{:?}", two[1].from);
        assert!(two[1].nodes.keys().all(|name| **name >= *two[1].from), "{:?}", two[1].from);
    }
    assert!(children.iter().is_sorted_by(|(a, _), (b, _)| a < b));
}

fn assert_same(children: &Children, model: &BTreeMap<String, Node>) {
    assert_sound(children);
    assert!(children.iter().eq(model.iter().map(|(name, node)| (name.as_str(), node))));
    assert_eq!(children.is_empty(), model.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16),
    Make(u16),
    Change(u16),
    Remove(u16),
    /// Removes every name below.
    Thin(u16),
    Clone,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0u16..2000;
    prop_oneof![
        6 => name.clone().prop_map(Step::Insert),
        2 => name.clone().prop_map(Step::Make),
        2 => name.clone().prop_map(Step::Change),
        4 => name.clone().prop_map(Step::Remove),
        1 => name.prop_map(Step::Thin),
        1 => Just(Step::Clone),
    ]
}

proptest! {
    /// It does what a plain map does, and no clone sees what happens after it was taken.
    #[test]
    fn it_is_a_map_and_clones_stand_still(filled in 0u16..2000, steps in prop::collection::vec(step(), 0..60)) {
        let (mut children, mut model) = (Children::default(), BTreeMap::new());
        let mut clones = Vec::new();
        for n in 0..filled {
            children.insert(&format!("k{n:04}"), node(0));
            model.insert(format!("k{n:04}"), node(0));
        }
        for (n, step) in steps.into_iter().enumerate() {
            let new = node(n as u64 + 1);
            match step {
                Step::Insert(k) => {
                    let name = format!("k{k:04}");
                    prop_assert_eq!(children.insert(&name, new.clone()), model.insert(name, new));
                }
                Step::Make(k) => {
                    let name = format!("k{k:04}");
                    let made = children.get_or_insert_with(&name, || new.clone()).clone();
                    prop_assert_eq!(&made, model.entry(name).or_insert(new));
                }
                Step::Change(k) => {
                    let name = format!("k{k:04}");
                    prop_assert_eq!(children.get(&name), model.get(&name));
                    let (one, other) = (children.get_mut(&name), model.get_mut(&name));
                    prop_assert_eq!(one.is_some(), other.is_some());
                    if let (Some(one), Some(other)) = (one, other) {
                        (*one, *other) = (new.clone(), new);
                    }
                }
                Step::Remove(k) => {
                    let name = format!("k{k:04}");
                    prop_assert_eq!(children.remove(&name), model.remove(&name));
                }
                Step::Thin(k) => {
                    for name in (0..k).map(|k| format!("k{k:04}")) {
                        prop_assert_eq!(children.remove(&name), model.remove(&name));
                    }
                }
                Step::Clone => clones.push((children.clone(), model.clone())),
            }
            assert_same(&children, &model);
        }
        for (children, model) in &clones {
            assert_same(children, model);
        }
    }
}

#[test]
fn names_in_order_fill_their_chunks_and_removal_joins_them() {
    let mut children = Children::default();
    for n in 0..20 * CHUNK_ENTRIES {
        children.insert(&format!("{n:05}"), node(0));
    }
    assert_eq!(children.chunks.len(), 20);
    for n in (0..20 * CHUNK_ENTRIES).filter(|n| n % 16 != 0) {
        children.remove(&format!("{n:05}"));
    }
    assert_sound(&children);
    assert_eq!(children.iter().count(), 20 * CHUNK_ENTRIES / 16);
    assert!(children.chunks.len() <= 5, "{} chunks", children.chunks.len());
}

#[test]
fn a_change_copies_one_chunk_and_shares_the_others() {
    let mut children = Children::default();
    for n in 0..10 * CHUNK_ENTRIES {
        children.insert(&format!("{n:05}"), node(0));
    }
    let clone = children.clone();
    assert!(Arc::ptr_eq(&children.chunks, &clone.chunks), "a clone copies nothing");
    *children.get_mut("00100").unwrap() = node(1);
    children.remove("00600");
    children.insert("00700+", node(1));
    let both = children.chunks.iter().zip(clone.chunks.iter());
    assert_eq!(both.filter(|(a, b)| Arc::ptr_eq(&a.nodes, &b.nodes)).count(), 8);
    assert_eq!((clone.get("00100"), clone.get("00600")), (Some(&node(0)), Some(&node(0))));
    assert_eq!(clone.get("00700+"), None);
}
