//! The table against a linear search, the hash against the MACs that occur, publication against readers.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;

fn mac(n: u64) -> VtepMac {
    let bytes = n.to_be_bytes();
    VtepMac::locally_administered(*bytes.last_chunk().unwrap())
}

fn subnet(n: u32) -> Subnet {
    Subnet::new((0x0a00_0000 + (n << 8)).into(), 24).unwrap()
}

fn peer(n: u32) -> Peer {
    Peer { mac: mac(n.into()), public_ip: (0xc0a8_0000 + n).into() }
}

fn build(peers: &[(u32, Peer)], previous: &Table) -> Table {
    Table::build(peers.iter().map(|(n, peer)| (subnet(*n), *peer)), previous)
}

#[test]
fn an_entry_is_what_the_lease_says() {
    let table = build(
        &[(7, Peer { mac: "62:3b:27:aa:b8:86".parse().unwrap(), public_ip: [192, 0, 2, 9].into() })],
        &Table::default(),
    );
    let index = table.by_mac([0x62, 0x3b, 0x27, 0xaa, 0xb8, 0x86]).unwrap();
    let entry = table.entry(index);
    assert_eq!(entry.subnet.to_string(), "10.0.7.0/24");
    assert_eq!(entry.underlay, IpAddr::from([192, 0, 2, 9]));
    assert_eq!(entry.vtep4, Ipv4Addr::from([10, 0, 7, 0]));
    assert_eq!(entry.vtep6, Some("fe80::603b:27ff:feaa:b886".parse().unwrap()));
    assert_eq!(table.by_vtep4([10, 0, 7, 0].into()), Some(index));
    assert_eq!(table.by_vtep6("fe80::603b:27ff:feaa:b886".parse().unwrap()), Some(index));
    // Neither the other addresses of the subnet nor the underlay's are a VTEP's.
    assert_eq!((table.by_vtep4([10, 0, 7, 1].into()), table.by_vtep4([192, 0, 2, 9].into())), (None, None));
}

#[test]
fn an_empty_table_knows_nobody() {
    let table = Table::default();
    assert!(table.is_empty());
    assert_eq!(table.by_mac([0; 6]), None);
    assert_eq!(table.by_vtep4(Ipv4Addr::UNSPECIFIED), None);
    assert_eq!(table.by_vtep6(Ipv6Addr::UNSPECIFIED), None);
}

#[test]
fn counters_stay_with_the_subnet() {
    let first = build(&[(1, peer(1)), (2, peer(2))], &Table::default());
    first.entry(0).counters.sent(3, 300);
    first.entry(1).counters.sent(5, 500);
    // 1 came back with another MAC and address, 2 left, 3 has taken over the MAC of 2.
    let second = build(&[(1, peer(9)), (3, peer(2))], &first);
    let sent = |table: &Table, n| {
        let entry = table.iter().find(|entry| entry.subnet == subnet(n)).unwrap();
        entry.counters.sent_frames.load(Relaxed)
    };
    assert_eq!((sent(&second, 1), sent(&second, 3)), (3, 0));
    // What a worker still counts on the old table is not lost.
    first.entry(0).counters.sent(1, 100);
    assert_eq!(sent(&second, 1), 4);
    // Who was away starts anew.
    assert_eq!(sent(&build(&[(2, peer(2))], &second), 2), 0);
}

#[test]
fn of_two_with_the_same_mac_or_address_the_later_is_found() {
    let same_mac = [(1, peer(1)), (2, Peer { public_ip: [192, 0, 2, 2].into(), ..peer(1) })];
    let table = build(&same_mac, &Table::default());
    assert_eq!((table.len(), table.by_mac(mac(1).octets())), (2, Some(1)));
    assert_eq!(table.by_vtep6(link_local(mac(1))), Some(1));
    assert_eq!((table.by_vtep4(subnet(1).base()), table.by_vtep4(subnet(2).base())), (Some(0), Some(1)));

    let twice = [Entry::new(subnet(1), peer(1)), Entry::new(subnet(1), peer(2))];
    let table = Table::from_entries(twice);
    assert_eq!((table.len(), table.by_vtep4(subnet(1).base())), (2, Some(1)));
    assert_eq!((table.by_mac(mac(1).octets()), table.by_mac(mac(2).octets())), (Some(0), Some(1)));
}

#[test]
fn five_thousand_peers_are_all_found() {
    let peers: Vec<_> = (0..5_000).map(|n| (n, peer(n))).collect();
    let table = build(&peers, &Table::default());
    assert_eq!(table.len(), 5_000);
    for (n, peer) in &peers {
        assert_eq!(table.entry(table.by_mac(peer.mac.octets()).unwrap()).subnet, subnet(*n));
        assert_eq!(table.by_vtep4(subnet(*n).base()), Some(*n));
    }
    for n in 5_000..10_000u32 {
        assert_eq!(table.by_mac(mac(n.into()).octets()), None);
    }
}

/// The table has 8192 places for 5,000 keys and takes the place from the low bits. Random places would leave
/// 8192 * (1 - e^(-5000/8192)), 3,742 of them in use; few less means short probes.
#[test]
fn macs_that_differ_in_any_byte_spread_over_the_table() {
    let hasher = BuildHasherDefault::<MacHasher>::default();
    for shift in [0, 8, 16, 24, 32] {
        let hashes: Vec<u64> =
            (0..5_000u64).map(|n| hasher.hash_one(mac_key(mac(n << shift).octets()))).collect();
        let keys: BTreeSet<_> = (0..5_000u64).map(|n| mac_key(mac(n << shift).octets())).collect();
        let places: BTreeSet<u64> = hashes.iter().map(|hash| hash % 8192).collect();
        let tags: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        let expected = keys.len() * 3_742 / 5_000 * 9 / 10;
        assert!(places.len() > expected, "{} of {expected} places with shift {shift}", places.len());
        assert_eq!(tags.len(), 128, "shift {shift}");
    }
}

#[test]
fn refresh_takes_what_was_published_and_only_then() {
    let shared = Shared::new(build(&[(1, peer(1))], &Table::default()));
    let (mut seen, mut table) = (shared.generation(), shared.current());
    assert!(!shared.refresh(&mut seen, &mut table));
    shared.publish(build(&[], &table));
    shared.publish(build(&[(1, peer(1)), (2, peer(2))], &table));
    assert_eq!(table.len(), 1, "a worker's copy does not change under its hands");
    assert!(shared.refresh(&mut seen, &mut table));
    assert_eq!((table.len(), seen), (2, 2));
    assert!(!shared.refresh(&mut seen, &mut table));
}

/// The table of round `n` has `n` peers. A reader never goes back and never sees less than the generation it read.
#[test]
fn readers_follow_a_writer() {
    const ROUNDS: u32 = 300;
    let shared = Shared::new(Table::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut seen, mut table) = (0, shared.current());
                while table.len() < ROUNDS as usize {
                    let before = table.len();
                    if shared.refresh(&mut seen, &mut table) {
                        assert!(table.len() >= before);
                        assert!(table.len() as u64 >= seen, "{} peers at generation {seen}", table.len());
                        assert!(table.iter().zip(0..).all(|(entry, n)| entry.subnet == subnet(n)));
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for n in 1..=ROUNDS {
            let peers: Vec<_> = (0..n).map(|n| (n, peer(n))).collect();
            shared.publish(build(&peers, &shared.current()));
        }
    });
}

proptest! {
    /// Few MACs and subnets, so that they clash often.
    #[test]
    fn lookups_are_a_linear_search_from_the_end(
        peers in proptest::collection::vec((0u32..12, 0u64..12, any::<u32>()), 0..30),
    ) {
        let entries: Vec<Entry> = peers
            .iter()
            .map(|(n, m, ip)| Entry::new(subnet(*n), Peer { mac: mac(*m), public_ip: (*ip).into() }))
            .collect();
        let table = Table::from_entries(entries.iter().cloned());
        let find = |wanted: &dyn Fn(&Entry) -> bool| {
            entries.iter().rposition(wanted).map(|at| u32::try_from(at).unwrap())
        };
        for n in 0..13 {
            let mac = mac(n.into());
            prop_assert_eq!(table.by_mac(mac.octets()), find(&|e| e.mac == mac));
            prop_assert_eq!(table.by_vtep4(subnet(n).base()), find(&|e| e.subnet == subnet(n)));
            prop_assert_eq!(table.by_vtep6(link_local(mac)), find(&|e| e.mac == mac));
        }
        prop_assert_eq!(table.len(), peers.len());
    }

    #[test]
    fn any_frame_may_ask(key: [u8; 6], four: u32, six: u128) {
        let table = build(&[(1, peer(1)), (2, peer(2))], &Table::default());
        let known = [peer(1), peer(2)].iter().any(|peer| peer.mac.octets() == key);
        prop_assert_eq!(table.by_mac(key).is_some(), known);
        let _ = (table.by_vtep4(four.into()), table.by_vtep6(six.into()));
    }
}
