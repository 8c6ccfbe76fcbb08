//! Plans against a model of the kernel.

use proptest::prelude::*;

use super::*;

fn mac(n: u8) -> VtepMac {
    VtepMac::locally_administered([2, 0, 0, 0, 0, n])
}

fn subnet(n: u8) -> Subnet {
    Subnet::new([172, 17, n, 0].into(), 24).unwrap()
}

fn peer(n: u8) -> Peer {
    Peer { mac: mac(n), public_ip: [10, 99, 0, n].into() }
}

fn vxlan_spec() -> VxlanSpec {
    VxlanSpec {
        vni: Vni::DEFAULT,
        port: None,
        parent: 2,
        local: [10, 99, 0, 1].into(),
        gbp: false,
        learning: false,
    }
}

/// A VXLAN device with these peers.
fn desired(peers: &[u8]) -> Desired {
    let link = LinkSpec {
        name: "flannel.1".into(),
        kind: KindSpec::Vxlan(vxlan_spec()),
        mtu: Mtu::try_from(1450).unwrap(),
        mac: mac(1),
    };
    Desired {
        link,
        address: Some([172, 17, 1, 0].into()),
        peers: peers.iter().map(|n| (subnet(*n), peer(*n))).collect(),
    }
}

/// The same as a TAP.
fn as_tap(mut desired: Desired) -> Desired {
    desired.link.kind = KindSpec::Tap;
    desired
}

fn vxlan(spec: &VxlanSpec) -> VxlanState {
    VxlanState {
        vni: spec.vni.get(),
        port: spec.port.unwrap_or(8472),
        parent: spec.parent,
        local: Some(spec.local),
        gbp: spec.gbp,
        learning: spec.learning,
        ..VxlanState::default()
    }
}

const TAP: TapState = TapState { multi_queue: true, persist: true, vnet_hdr: true, queues: 0 };

/// A device just made. A TAP has an address and an MTU of the kernel's choice.
fn created(spec: &LinkSpec) -> LinkState {
    let (kind, mac, mtu) = match &spec.kind {
        KindSpec::Vxlan(options) => (KindState::Vxlan(vxlan(options)), spec.mac, spec.mtu.get().into()),
        KindSpec::Tap => (KindState::Tap(TAP), mac(99), 1500),
    };
    LinkState { index: 9, kind, mac: Some(mac), mtu, up: false }
}

/// What the kernel does with a change.
fn apply(spec: &LinkSpec, change: &Change, state: &mut Observed) {
    match change {
        Change::DeleteLink(_) => *state = Observed::default(),
        Change::CreateLink => {
            assert!(state.link.is_none(), "name taken");
            state.link = Some(created(spec));
        }
        Change::SetMac(mac) => state.link.as_mut().unwrap().mac = Some(*mac),
        Change::SetMtu(mtu) => state.link.as_mut().unwrap().mtu = mtu.get().into(),
        Change::RemoveAddress(ip, len) => assert!(state.addresses.remove(&(*ip, *len))),
        Change::AddAddress(ip) => assert!(state.addresses.insert((*ip, 32))),
        Change::SetUp => state.link.as_mut().unwrap().up = true,
        Change::RemoveRoute(r) => assert!(state.routes.remove(r)),
        Change::SetNeighbour(ip, mac) => drop(state.neighbours.insert(*ip, *mac)),
        Change::SetFdb(mac, ip) => {
            assert!(matches!(spec.kind, KindSpec::Vxlan(_)), "a TAP's FDB entries have no destination");
            state.fdb.insert(*mac, *ip);
        }
        Change::SetRoute(to) => {
            assert!(state.link.as_ref().unwrap().up, "network is down");
            state.routes.insert(Route::to_peer(*to));
        }
        Change::RemoveNeighbour(ip) => assert!(state.neighbours.remove(ip).is_some()),
        Change::RemoveFdb(mac, ip) => assert_eq!(state.fdb.remove(mac), Some(*ip)),
    }
}

fn settle(desired: &Desired, mut state: Observed) -> Observed {
    for change in plan(desired, &state) {
        apply(&desired.link, &change, &mut state);
    }
    assert_eq!(plan(desired, &state), vec![], "one pass is enough");
    state
}

#[test]
fn from_nothing_the_route_comes_last() {
    let want = desired(&[3]);
    let expected = vec![
        Change::CreateLink,
        Change::AddAddress([172, 17, 1, 0].into()),
        Change::SetUp,
        Change::SetNeighbour([172, 17, 3, 0].into(), mac(3)),
        Change::SetFdb(mac(3), [10, 99, 0, 3].into()),
        Change::SetRoute(subnet(3)),
    ];
    assert_eq!(plan(&want, &Observed::default()), expected);
}

#[test]
fn a_tap_gets_its_mac_and_mtu_and_no_fdb_entries() {
    let expected = vec![
        Change::CreateLink,
        Change::SetMac(mac(1)),
        Change::SetMtu(Mtu::try_from(1450).unwrap()),
        Change::AddAddress([172, 17, 1, 0].into()),
        Change::SetUp,
        Change::SetNeighbour([172, 17, 3, 0].into(), mac(3)),
        Change::SetRoute(subnet(3)),
    ];
    assert_eq!(plan(&as_tap(desired(&[3])), &Observed::default()), expected);
}

#[test]
fn a_device_of_the_other_kind_is_replaced_with_all_that_hangs_on_it() {
    let (kernel, rust) = (desired(&[3, 4]), as_tap(desired(&[3, 4])));
    for (from, to, why) in
        [(&kernel, &rust, "link type: tap vs vxlan"), (&rust, &kernel, "link type: vxlan vs tap")]
    {
        let state = settle(from, Observed::default());
        let changes = plan(to, &state);
        assert_eq!(changes[0], Change::DeleteLink(why.into()));
        assert_eq!(changes[1..], plan(to, &Observed::default()));
        assert_eq!(settle(to, state), settle(to, Observed::default()));
    }
}

#[test]
fn a_peer_of_a_tap_that_moved_on_the_underlay_is_no_matter_for_the_kernel() {
    let mut want = as_tap(desired(&[3]));
    let state = settle(&want, Observed::default());
    want.peers.insert(subnet(3), Peer { public_ip: [10, 99, 0, 44].into(), ..peer(3) });
    assert_eq!(plan(&want, &state), vec![]);
}

#[test]
fn before_there_is_a_lease_only_the_device_is_made() {
    let want = Desired { address: None, ..desired(&[]) };
    assert_eq!(plan(&want, &Observed::default()), vec![Change::CreateLink]);
}

#[test]
fn a_peer_that_moved_leaves_nothing_stale_behind() {
    let state = settle(&desired(&[3, 4]), Observed::default());
    let mut want = desired(&[3, 4]);
    want.peers.insert(subnet(3), Peer { mac: mac(33), public_ip: [10, 99, 0, 33].into() });
    let changes = plan(&want, &state);
    let expected = vec![
        Change::SetNeighbour([172, 17, 3, 0].into(), mac(33)),
        Change::SetFdb(mac(33), [10, 99, 0, 33].into()),
        Change::RemoveFdb(mac(3), [10, 99, 0, 3].into()),
    ];
    assert_eq!(changes, expected);
    // Only the underlay address changes: one replacement, no gap.
    want.peers.insert(subnet(3), Peer { public_ip: [10, 99, 0, 44].into(), ..peer(3) });
    assert_eq!(plan(&want, &state), vec![Change::SetFdb(mac(3), [10, 99, 0, 44].into())]);
}

#[test]
fn a_departed_peer_loses_its_route_first() {
    let state = settle(&desired(&[3, 4]), Observed::default());
    let expected = vec![
        Change::RemoveRoute(Route::to_peer(subnet(3))),
        Change::RemoveNeighbour([172, 17, 3, 0].into()),
        Change::RemoveFdb(mac(3), [10, 99, 0, 3].into()),
    ];
    assert_eq!(plan(&desired(&[4]), &state), expected);
}

#[test]
fn routes_of_another_form_are_left_alone() {
    let mut state = settle(&desired(&[3]), Observed::default());
    let by_hand = Route { to: subnet(200), gateway: None, onlink: false };
    state.routes.insert(by_hand);
    assert_eq!(plan(&desired(&[3]), &state), vec![]);
}

#[test]
fn the_device_is_put_right_without_being_replaced() {
    let want = desired(&[]);
    let mut state = settle(&want, Observed::default());
    let link = state.link.as_mut().unwrap();
    (link.mac, link.mtu, link.up) = (Some(mac(77)), 1300, false);
    state.addresses = [([172, 17, 9, 0].into(), 32)].into();
    let expected = vec![
        Change::SetMac(mac(1)),
        Change::SetMtu(Mtu::try_from(1450).unwrap()),
        Change::RemoveAddress([172, 17, 9, 0].into(), 32),
        Change::AddAddress([172, 17, 1, 0].into()),
        Change::SetUp,
    ];
    assert_eq!(plan(&want, &state), expected);
}

#[test]
fn incompatible_devices_are_named_in_flannels_words() {
    let link = |kind| LinkSpec { kind, ..desired(&[]).link };
    let spec = link(KindSpec::Vxlan(VxlanSpec { port: Some(8472), ..vxlan_spec() }));
    let good = vxlan(&vxlan_spec());
    let state = |kind| LinkState { index: 9, kind, mac: None, mtu: 1450, up: true };
    assert_eq!(incompatibility(&spec, &state(KindState::Vxlan(good.clone()))), None);
    let other = Ipv4Addr::new(239, 1, 1, 1);
    for (kind, words) in [
        (VxlanState { vni: 2, ..good.clone() }, "vni: 1 vs 2"),
        (VxlanState { parent: 3, ..good.clone() }, "vtep (external) interface: 2 vs 3"),
        (VxlanState { local: None, ..good.clone() }, "vtep (external) IP: 10.99.0.1 vs none"),
        (VxlanState { group: Some(other), ..good.clone() }, "group address: none vs 239.1.1.1"),
        (VxlanState { l2miss: true, ..good.clone() }, "l2miss: false vs true"),
        (VxlanState { port: 4789, ..good.clone() }, "port: 8472 vs 4789"),
        (VxlanState { gbp: true, ..good.clone() }, "gbp: false vs true"),
        (VxlanState { learning: true, ..good.clone() }, "learning: false vs true"),
    ] {
        assert_eq!(incompatibility(&spec, &state(KindState::Vxlan(kind))).as_deref(), Some(words));
    }
    let any_port = link(KindSpec::Vxlan(vxlan_spec()));
    let elsewhere = KindState::Vxlan(VxlanState { port: 4789, ..good.clone() });
    assert_eq!(incompatibility(&any_port, &state(elsewhere)), None);

    let tap = link(KindSpec::Tap);
    let unfit = KindState::Tap(TapState { multi_queue: false, ..TAP });
    let dummy = || KindState::Other("dummy".to_owned());
    for (spec, kind, words) in [
        (&spec, dummy(), "link type: vxlan vs dummy"),
        (&spec, KindState::Tap(TAP), "link type: vxlan vs tap"),
        (&tap, dummy(), "link type: tap vs dummy"),
        (&tap, KindState::Vxlan(good), "link type: tap vs vxlan"),
        (&tap, unfit, "multi_queue: true vs false"),
    ] {
        assert_eq!(incompatibility(spec, &state(kind)).as_deref(), Some(words));
    }
    // These follow whoever opens it.
    let idle = KindState::Tap(TapState { persist: false, vnet_hdr: false, ..TAP });
    assert_eq!(incompatibility(&tap, &state(idle)), None);
}

fn kind() -> impl Strategy<Value = KindState> {
    let with_vni = |vni| KindState::Vxlan(VxlanState { vni, ..vxlan(&vxlan_spec()) });
    let tap = |multi_queue| KindState::Tap(TapState { multi_queue, ..TAP });
    prop_oneof![
        (0u32..2).prop_map(with_vni),
        any::<bool>().prop_map(tap),
        Just(KindState::Other("bridge".into())),
    ]
}

fn observed() -> impl Strategy<Value = Observed> {
    let link = prop::option::of((any::<bool>(), 0u8..3, 1300u32..1302, kind()));
    let pair = || (2u8..8, 2u8..8);
    (
        link,
        prop::collection::vec(pair(), 0..8),
        prop::collection::vec(pair(), 0..8),
        prop::collection::vec((2u8..8, 0u8..3), 0..8),
    )
        .prop_map(|(link, neighbours, fdb, routes)| {
            let Some((up, m, mtu, kind)) = link else { return Observed::default() };
            let gateway = |to: u8, how: u8| match how {
                0 => Route::to_peer(subnet(to)),
                1 => Route { to: subnet(to), gateway: Some([172, 17, 99, 0].into()), onlink: true },
                _ => Route { to: subnet(to), gateway: None, onlink: false },
            };
            Observed {
                addresses: neighbours.iter().map(|(a, b)| ([172, 17, *a, 0].into(), 24 + b)).collect(),
                routes: routes.into_iter().map(|(to, how)| gateway(to, how)).collect(),
                neighbours: neighbours.into_iter().map(|(ip, m)| ([172, 17, ip, 0].into(), mac(m))).collect(),
                fdb: match &kind {
                    KindState::Vxlan(_) => {
                        fdb.into_iter().map(|(m, ip)| (mac(m), [10, 99, 0, ip].into())).collect()
                    }
                    KindState::Tap(_) | KindState::Other(_) => BTreeMap::new(),
                },
                link: Some(LinkState { index: 9, kind, mac: Some(mac(m)), mtu, up }),
            }
        })
}

proptest! {
    #[test]
    fn applying_a_plan_leaves_an_empty_plan(
        state in observed(), peers in prop::collection::btree_map(2u8..8, 2u8..8, 0..6), tap: bool,
    ) {
        // Each peer has its own MAC, as watch::peers guarantees.
        let mut want = if tap { as_tap(desired(&[])) } else { desired(&[]) };
        want.peers = peers.iter().map(|(n, ip)| (subnet(*n), Peer { mac: mac(*n), public_ip: [10, 99, 0, *ip].into() })).collect();
        let end = settle(&want, state);
        let expected: BTreeMap<Ipv4Addr, VtepMac> = want.peers.iter().map(|(s, p)| (s.base(), p.mac)).collect();
        prop_assert_eq!(end.neighbours, expected);
        let entries = want.peers.values().map(|p| (p.mac, p.public_ip)).filter(|_| !tap);
        prop_assert_eq!(end.fdb, entries.collect::<BTreeMap<_, _>>());
        prop_assert!(want.peers.keys().all(|s| end.routes.contains(&Route::to_peer(*s))));
        prop_assert_eq!(end.addresses.len(), 1);
        let link = end.link.unwrap();
        prop_assert_eq!((link.kind.name(), link.mac, link.mtu, link.up), (if tap { "tap" } else { "vxlan" }, Some(mac(1)), 1450, true));
    }
}
