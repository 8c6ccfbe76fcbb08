//! Replays what the fuzzer has found interesting for the parsers, without the fuzzer; and mutations of it.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "parsers/properties.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/store")
}

fn corpus() -> &'static [Vec<u8>] {
    static CORPUS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    CORPUS.get_or_init(read_corpus)
}

fn read_corpus() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= properties::READERS.len(), "the corpus is there");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn the_readers_hold_for_their_corpus() {
    let corpus = corpus();
    for reader in 0..properties::READERS.len() {
        assert!(
            corpus.iter().any(|input| input.first().is_some_and(|&b| usize::from(b) == reader)),
            "{reader}"
        );
    }
    for input in corpus {
        properties::store(input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_readers_hold_for_mutations(
        pick: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let corpus = corpus();
        let mut input = pick.get(corpus).clone();
        for (at, value) in changes {
            let at = at.index(input.len());
            input[at] = value;
        }
        properties::store(&input);
    }
}

/// The one input that cannot be written by hand.
#[test]
#[ignore = "writes a snapshot into the corpus: run it by name when the form of snapshots changes"]
fn write_seeds() {
    const SNAPSHOT: u8 = 4;
    fs::write(folder().join("seed-snapshot"), [&[SNAPSHOT], &properties::machine().snapshot()[..]].concat())
        .unwrap();
}
