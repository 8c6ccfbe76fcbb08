//! overlayd's own data plane from container to container: with its like, and both ways with the kernel's vxlan
//! device. What a packet may be, and how it must arrive.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use weft_tests::fabric::{Fabric, HOSTS, ping};
use weft_tests::flannel;
use weft_tests::flows::Path;
use weft_tests::flows::tcp::{both_ways, transfer};
use weft_tests::flows::udp::{datagrams, segmented_datagrams};
use weft_tests::ns::Namespace;
use weft_tests::process::one_at_a_time;
use weft_tests::scene::{A, B, K, KERNEL, Scene, TRIO};
use weft_tests::tcpdump::Watch;
use weft_tests::vxlan::{self, Inner, arp_request, put_on_device};

/// What an overlay on an underlay of 1500 has room for.
const MTU: u32 = 1450;
/// IPv4 and ICMP or UDP.
const HEADERS: u32 = 28;
/// Bytes of a transfer that meets everything: slow start, full windows, coalescing, the end.
const BULK: u64 = 32 << 20;
/// Bytes that show that TCP works at all.
const A_LITTLE: u64 = 4 << 20;

#[test]
fn tcp_arrives_unchanged_with_and_without_offloads() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &TRIO)?;
    for (at_a, at_peer) in [("on", "on"), ("off", "off"), ("off", "on")] {
        scene.offloads(A, at_a)?;
        for (peer, name) in [(B, "Rust"), (K, "kernel")] {
            scene.offloads(peer, at_peer)?;
            both_ways(scene.path(A, peer), scene.path(peer, A), BULK)
                .with_context(|| format!("Rust and {name}, offloads {at_a} and {at_peer}"))?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_every_size_arrive_cut_or_not() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &TRIO)?;
    let fits = usize::try_from(MTU - HEADERS)?;
    let sizes =
        [0, 1, 2, 17, 63, 64, 512, fits - 1, fits, fits + 1, fits + 8, 2 * fits, 9_000, 30_001, 65_507];
    for offloads in ["on", "off"] {
        for node in [A, B, K] {
            scene.offloads(node, offloads)?;
        }
        for (from, to) in [(A, B), (A, K), (K, A)] {
            let place = || format!("from {from} to {to}, offloads {offloads}");
            datagrams(scene.path(from, to), sizes).with_context(place)?;
            for (segment, count) in [(1_000, 30), (u16::try_from(fits)?, 45), (100, 64), (1, 64)] {
                segmented_datagrams(scene.path(from, to), segment, count).with_context(place)?;
            }
        }
    }
    Ok(())
}

#[test]
fn jumbo_frames_fill_an_underlay_of_9000() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::with_mtu(&HOSTS, 9000)?;
    let scene = Scene::new(&fabric, &TRIO)?;
    let mtu = 8950;
    for node in &scene.nodes {
        ensure!(node.env.mtu == mtu, "MTU of {} is {}", node.host.address, node.env.mtu);
    }
    let fits = usize::try_from(mtu - HEADERS)?;
    for (from, to) in [(A, B), (A, K), (K, A)] {
        let path = scene.path(from, to);
        ping(path.from, path.address, mtu - HEADERS).context("a full-sized packet")?;
        datagrams(path, [1, fits, fits + 1, 40_000])?;
        segmented_datagrams(path, u16::try_from(fits)?, 7)?;
    }
    both_ways(scene.path(A, B), scene.path(B, A), BULK)?;
    both_ways(scene.path(A, K), scene.path(K, A), BULK)
}

#[test]
fn what_does_not_fit_is_refused_with_the_mtu() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &TRIO)?;
    for (from, to) in [(A, B), (A, K), (K, A)] {
        let path = scene.path(from, to);
        ping(path.from, path.address, MTU - HEADERS).context("the largest packet that fits")?;
        let refused = format!("-n -M do -c 1 -W 2 -s {} {}", MTU - HEADERS + 1, path.address);
        let out = path.from.run("ping", &refused)?;
        ensure!(format!("{out}").contains("message too long, mtu=1450"), "{out}");
        // A container that does not know: the host tells it.
        let port = format!("veth{}", scene.boxes[from].address.octets()[3]);
        scene.nodes[from].host.ns.ip(&format!("link set {port} mtu 1500"))?;
        path.from.ip("link set eth0 mtu 1500")?;
        let too_big = format!("-n -M do -c 1 -W 2 -s {} {}", 1500 - HEADERS, path.address);
        let out = path.from.run("ping", &too_big)?;
        ensure!(format!("{out}").contains("Frag needed and DF set (mtu = 1450)"), "{out}");
        // What may be cut is cut on the way; TCP learns what fits.
        path.from.ip("route flush cache")?;
        let uncut = format!("-n -M dont -c 2 -i 0.05 -W 2 -s {} {}", 1500 - HEADERS, path.address);
        path.from.run("ping", &uncut)?.ok()?;
        transfer(path, A_LITTLE).context("path MTU discovery")?;
        path.from.ip(&format!("link set eth0 mtu {MTU}"))?;
    }
    Ok(())
}

#[test]
fn congestion_marks_vlans_and_captures_are_what_users_expect() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &TRIO)?;
    for (from, to) in [(A, B), (A, K), (K, A)] {
        // RFC 6040: the outer header repeats ECT, so that routers on the underlay may mark it.
        for (name, mark) in [("ECT(1)", 1), ("ECT(0)", 2), ("CE", 3)] {
            let path = scene.path(from, to);
            let inner = format!("icmp[icmptype] == icmp-echo and ip[1] & 3 == {mark}");
            let inner = Watch::start(path.to, "eth0", &inner, 2)?;
            path.from.run("ping", &format!("-n -c 2 -i 0.05 -W 2 -Q {mark} {}", path.address))?.ok()?;
            inner.seen().with_context(|| format!("{name} from {from} to {to}"))?;
        }
        let path = scene.path(from, to);
        let outer = format!("src host {} and udp port 8472 and ip[1] & 3 == 2", HOSTS[from]);
        let outer = Watch::start(&fabric.hosts[to].ns, "eth0", &outer, 2)?;
        path.from.run("ping", &format!("-n -c 2 -i 0.05 -W 2 -Q 2 {}", path.address))?.ok()?;
        outer.seen().with_context(|| format!("ECT(0) on the underlay from {from} to {to}"))?;
    }
    for node in [A, B] {
        let both = format!("icmp and host {}", scene.boxes[A].address);
        let device = Watch::start(&fabric.hosts[node].ns, "flannel.1", &both, 4)?;
        let path = scene.path(A, B);
        path.from.run("ping", &format!("-n -c 2 -i 0.05 -W 2 {}", path.address))?.ok()?;
        let log = device.seen()?;
        ensure!(log.contains("echo request") && log.contains("echo reply"), "{log}");
    }
    // What the device's stack does with a tag is its own affair; the overlay carries the frame as it is.
    for (from, to) in [(A, B), (A, K), (K, A)] {
        let filter = "vlan 5 and udp port 9";
        let tagged = Watch::start(&fabric.hosts[to].ns, "flannel.1", filter, 1)?;
        send_tagged(&fabric.hosts[from].ns, &fabric.hosts[to].ns)?;
        tagged.seen().with_context(|| format!("a tagged frame from {from} to {to}"))?;
    }
    Ok(())
}

/// Hands a frame with a VLAN tag (IEEE 802.1Q) to the overlay's device.
fn send_tagged(from: &Namespace, to: &Namespace) -> Result<()> {
    let inner = Inner {
        from_mac: vxlan::mac(&flannel::mac(from)?)?,
        to_mac: vxlan::mac(&flannel::mac(to)?)?,
        from: Ipv4Addr::new(10, 99, 5, 1),
        to: Ipv4Addr::new(10, 99, 5, 2),
        port: 9,
        tos: 0,
        payload: b"tagged",
    };
    let mut frame = inner.frame();
    frame.splice(12..12, [0x81, 0x00, 0, 5]);
    put_on_device(from, &frame)
}

#[test]
fn ipv6_crosses_and_neighbours_are_known_without_asking_them() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &TRIO)?;
    // Nobody has told the hosts each other's link-local addresses: the question is answered on the way out.
    let peer = scene.link_local(B)?;
    let out = fabric.hosts[A].ns.run("ping", &format!("-n -c 3 -i 0.05 -W 2 {peer}%flannel.1"))?;
    ensure!(out.ok()?.contains(" 0% packet loss"), "{out}");
    ensure!(scene.counted(A, "answered_nd")? > 0, "no neighbour solicitation was answered");

    let macs = [flannel::mac(&fabric.hosts[A].ns)?, flannel::mac(&fabric.hosts[B].ns)?];
    let heard = Watch::start(&fabric.hosts[A].ns, "flannel.1", "arp[6:2] == 2", 1)?;
    let request = arp_request(vxlan::mac(&macs[0])?, scene.nodes[A].env.base, scene.nodes[B].env.base);
    put_on_device(&fabric.hosts[A].ns, &request)?;
    let reply = heard.seen()?;
    ensure!(reply.contains(&format!("Reply {} is-at {}", scene.nodes[B].env.base, macs[1])), "{reply}");

    let address = |node: usize| Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::try_from(node).unwrap_or(0) + 1);
    for node in [A, B, K] {
        let ns = &fabric.hosts[node].ns;
        ns.ip(&format!("address add {}/64 dev flannel.1 nodad", address(node)))?;
        for peer in [A, B, K].into_iter().filter(|&p| p != node) {
            let mac = flannel::mac(&fabric.hosts[peer].ns)?;
            ns.ip(&format!("neigh replace {} lladdr {mac} dev flannel.1 nud permanent", address(peer)))?;
        }
    }
    for (from, to) in [(A, B), (A, K), (K, A)] {
        let (from, to, address) = (&fabric.hosts[from].ns, &fabric.hosts[to].ns, address(to).into());
        let path = Path { from, to, address };
        ping(from, address, MTU - 48).context("the largest packet that fits")?;
        transfer(path, A_LITTLE)?;
        datagrams(path, [1, 1000, 1402, 1403, 9000])?;
        segmented_datagrams(path, 1000, 30)?;
    }
    Ok(())
}

#[test]
fn several_queues_carry_the_same_with_and_without_spinning() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let sleeping: &[&str] = &["-datapath=rust", "-datapath-queues=4", "-datapath-spin-us=0"];
    let pinned: &[&str] =
        &["-datapath=rust", "-datapath-queues=2", "-datapath-cpus=0,0", "-datapath-spin-us=1000"];
    let scene = Scene::new(&fabric, &[sleeping, pinned, KERNEL])?;
    let workers = scene.nodes[A].datapath_status()?["engine"]["workers"].as_array().map(Vec::len);
    ensure!(workers == Some(4), "{workers:?} workers");
    for (from, to) in [(A, B), (A, K), (K, B)] {
        both_ways(scene.path(from, to), scene.path(to, from), BULK / 2)?;
        datagrams(scene.path(from, to), [1, 1400, 5000])?;
        segmented_datagrams(scene.path(from, to), 1000, 30)?;
    }
    Ok(())
}
