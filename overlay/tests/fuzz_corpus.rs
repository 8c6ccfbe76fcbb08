//! Replays what the fuzzer has found interesting (`tests/fuzz/corpus`), without the fuzzer; and mutations of it.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod packets;
#[path = "packets/properties.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};

use packets::{ACK, FIN, PSH, Packet};
use proptest::prelude::*;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus of {target} is there");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

#[test]
fn encap_holds_for_its_corpus() {
    for input in corpus("encap") {
        properties::encap(&input);
    }
}

#[test]
fn decap_holds_for_its_corpus() {
    for input in corpus("decap") {
        properties::decap(&input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn both_hold_for_mutations(
        pick: usize, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..8), cut in 0usize..400, both: usize,
    ) {
        for (target, property) in [("encap", properties::encap as fn(&[u8])), ("decap", properties::decap)] {
            let corpus = corpus(target);
            let mut input = corpus[pick % corpus.len()].clone();
            input.truncate(input.len().saturating_sub(cut / 4).max(10));
            input.extend(&corpus[both % corpus.len()]);
            for (at, value) in &flips {
                let length = input.len();
                input[at % length] = *value;
            }
            property(&input);
        }
    }
}

/// What the fuzzer starts from: one input for each kind of packet and each path that the engine has.
#[test]
#[ignore = "writes the first inputs of the corpus: run it by name when the properties' input format changes"]
fn write_seeds() {
    let mut kinds = Vec::new();
    for v6 in [false, true] {
        for tcp in [false, true] {
            for tags in [vec![], vec![5], vec![6, 7]] {
                let options =
                    if tcp && tags.is_empty() { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] };
                kinds.push(Packet { tags, v6, tcp, options, payload: vec![0x55; 120], ..Packet::default() });
            }
        }
    }
    let entry = |kind: u8, head: &[u8], bytes: &[u8], times: u8| {
        let [low, high] = u16::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[kind], head, &[low, high, times], bytes].concat()
    };
    for (n, kind) in kinds.iter().enumerate() {
        let kind = Packet { flags: if n % 2 == 0 { ACK } else { ACK | PSH | FIN }, ..kind.clone() };
        let out = [kind.whole(), kind.partial(), kind.super_frame(50)];
        let entries: Vec<u8> = out.iter().flat_map(|bytes| entry(1, &[], bytes, 0)).collect();
        let long = entry(3, &[], &kind.super_frame(1000), 100);
        fs::write(folder("encap").join(format!("seed-{n:02}")), [&[7, 1, 3], &entries[..], &long].concat())
            .unwrap();

        let next = Packet { sequence: kind.sequence + 120, id: kind.id + 1, ..kind.clone() };
        let vxlan = |frame: &[u8]| [&[8, 0, 0, 0, 0, 0, 1, 0], frame].concat();
        let (first, second) = (vxlan(&kind.frame()), vxlan(&next.frame()));
        let run = [entry(1, &[0; 3], &first, 0), entry(9, &[0; 3], &second, 0)].concat();
        let single = entry(1, &[u8::try_from(n % 4).unwrap(), 0, 0], &vxlan(&kind.unfilled().0), 0);
        let giant = entry(1 | 2 | 4 | 16, &[0, 100, 0], &first, 60);
        fs::write(folder("decap").join(format!("seed-{n:02}")), [&[3, 3], &run[..], &giant].concat())
            .unwrap();
        fs::write(folder("decap").join(format!("seed-{n:02}-ecn")), [&[0, 1], &single[..], &giant].concat())
            .unwrap();
    }
}
