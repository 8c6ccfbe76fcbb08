//! Names that must not change, sums, and the layout that keeps workers apart.

use std::collections::BTreeSet;

use super::*;

#[test]
fn reasons_have_distinct_names_that_other_programs_may_rely_on() {
    let names: Vec<&str> = Drop::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), Drop::COUNT);
    for (index, reason) in Drop::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, index, "{reason}: ALL must be in order of declaration");
        assert_eq!(Drop::from_name(reason.name()), Some(*reason));
        assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason}");
        assert!(!reason.hint().is_empty() && !reason.hint().contains('\n'), "{reason}");
    }
    assert_eq!(Drop::from_name("no_such_reason"), None);
    assert_eq!(format!("[{:>10}]", Drop::Flood), "[     flood]");
}

#[test]
fn the_json_is_stable() {
    let counters = Counters::default();
    counters.encap.add(44, 65_000);
    counters.segments_per_send.record(44);
    counters.count_drop(Drop::WrongVni, 2);
    let json = serde_json::to_value(counters.snapshot()).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "encap",
        "decap",
        "answered_arp",
        "answered_nd",
        "too_big_signalled",
        "tap_reads",
        "tap_writes",
        "sends",
        "injects",
        "receives",
        "polls",
        "wakeups",
        "spins",
        "spin_ns",
        "gso_fallbacks",
        "tap_batch",
        "receive_batch",
        "segments_per_send",
        "segments_per_tap_write",
        "drops",
    ];
    expected.sort_unstable();
    assert_eq!(keys.iter().copied().collect::<BTreeSet<_>>(), expected.into_iter().collect());
    assert_eq!(json["encap"], serde_json::json!({"frames": 44, "super_frames": 1, "bytes": 65_000}));
    assert_eq!(json["segments_per_send"], serde_json::json!([0, 0, 0, 0, 0, 1, 0]));
    assert_eq!(json["drops"]["wrong_vni"], 2);
    assert_eq!(json["drops"].as_object().unwrap().len(), Drop::COUNT);
    assert_eq!(serde_json::from_value::<Snapshot>(json).unwrap(), counters.snapshot());
}

#[test]
fn another_releases_json_is_read_as_far_as_it_is_known() {
    let json =
        r#"{"sends": 3, "gigaflops": 9, "drops": {"cosmic_ray": 4, "flood": 1}, "encap": {"frames": 5}}"#;
    let snapshot: Snapshot = serde_json::from_str(json).unwrap();
    assert_eq!((snapshot.sends, snapshot.encap.frames, snapshot.encap.bytes), (3, 5, 0));
    assert_eq!((snapshot.dropped(Drop::Flood), snapshot.dropped(Drop::TooBig)), (1, 0));
    assert_eq!(snapshot.dropped_total(), 5);
}

#[test]
fn buckets_are_powers_of_two() {
    for (size, bucket) in
        [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (31, 4), (32, 5), (63, 5), (64, 6), (usize::MAX, 6)]
    {
        let histogram = Histogram::default();
        histogram.record(size);
        let mut expected = [0; Histogram::BUCKETS];
        expected[bucket] = 1;
        assert_eq!(histogram.snapshot(), expected, "size {size}");
    }
    let histogram = Histogram::default();
    histogram.record(0);
    assert_eq!(histogram.snapshot(), [0; Histogram::BUCKETS]);
}

/// Every counter of a worker gets its own value, so that one that is left out or mixed up shows.
fn distinct() -> Counters {
    let counters = Counters::default();
    let mut value = 0;
    let mut set = |counter: &AtomicU64| {
        value += 1;
        counter.store(value, Relaxed);
    };
    for way in [&counters.encap, &counters.decap] {
        [&way.frames, &way.super_frames, &way.bytes].into_iter().for_each(&mut set);
    }
    let c = &counters;
    [&c.answered_arp, &c.answered_nd, &c.too_big_signalled, &c.tap_reads, &c.tap_writes]
        .into_iter()
        .for_each(&mut set);
    [&c.sends, &c.injects, &c.receives, &c.polls, &c.wakeups, &c.spins, &c.spin_ns, &c.gso_fallbacks]
        .into_iter()
        .for_each(&mut set);
    for histogram in [&c.tap_batch, &c.receive_batch, &c.segments_per_send, &c.segments_per_tap_write] {
        histogram.0.iter().for_each(&mut set);
    }
    c.drops.iter().for_each(&mut set);
    counters
}

/// All numbers in a JSON value, depth first.
fn numbers(value: &serde_json::Value) -> Vec<u64> {
    match value {
        serde_json::Value::Number(number) => vec![number.as_u64().unwrap()],
        serde_json::Value::Array(values) => values.iter().flat_map(numbers).collect(),
        serde_json::Value::Object(values) => values.values().flat_map(numbers).collect(),
        _ => vec![],
    }
}

#[test]
fn a_snapshot_has_every_counter_and_sums_of_snapshots_too() {
    let one = distinct().snapshot();
    let values: BTreeSet<u64> = numbers(&serde_json::to_value(&one).unwrap()).into_iter().collect();
    assert_eq!(values.len(), 6 + 5 + 8 + 4 * Histogram::BUCKETS + Drop::COUNT);
    assert!(!values.contains(&0));

    let mut sum = Snapshot::default();
    for _ in 0..3 {
        sum.add(&one);
    }
    let tripled: Vec<u64> = numbers(&serde_json::to_value(&one).unwrap()).iter().map(|n| n * 3).collect();
    assert_eq!(numbers(&serde_json::to_value(&sum).unwrap()), tripled);
    assert_eq!(
        sum.system_calls(),
        3 * (one.tap_reads + one.tap_writes + one.sends + one.injects + one.receives + one.polls)
    );
}

#[test]
fn two_workers_share_no_cache_line() {
    assert_eq!(std::mem::align_of::<Counters>(), 128);
    assert_eq!(std::mem::size_of::<Counters>() % 128, 0);
}

#[test]
fn workers_share_a_peers_counters_without_losing_any() {
    let peer = PeerCounters::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    peer.sent(1, 10);
                    peer.received(2, 20);
                    peer.count_drop(3);
                }
            });
        }
    });
    let expected = PeerSnapshot {
        sent_frames: 20_000,
        sent_bytes: 200_000,
        received_frames: 40_000,
        received_bytes: 400_000,
        dropped: 60_000,
    };
    assert_eq!(peer.snapshot(), expected);
}
