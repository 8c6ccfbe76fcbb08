//! overlayd's own data plane over its life: restarts, peers that move, thousands of them, strangers, and nothing to do.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use weft_tests::fabric::{Fabric, HOSTS, ping};
use weft_tests::flannel;
use weft_tests::flows::Path;
use weft_tests::flows::pulse::Pulse;
use weft_tests::flows::tcp::{Flow, both_ways, transfer};
use weft_tests::flows::udp::Mailbox;
use weft_tests::nodes::Overlay;
use weft_tests::ns::Namespace;
use weft_tests::process::{CPU_TICK, one_at_a_time};
use weft_tests::scene::{A, B, K, RUST, SOON, Scene, TRIO};
use weft_tests::tcpdump::Watch;
use weft_tests::vxlan::{self, Inner, inject};
use weft_tests::wait::wait_for;

/// Bytes that show that TCP works.
const A_LITTLE: u64 = 4 << 20;

#[test]
fn a_restart_keeps_the_device_and_interrupts_for_less_than_a_second() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let mut scene = Scene::new(&fabric, &TRIO)?;
    let mut killed = scene.nodes.remove(A);
    let before = index(&killed.host.ns)?;
    // A machine that is busy with something else may take longer once, but not always.
    let mut gaps = Vec::new();
    while gaps.len() < 3 && !gaps.iter().any(|gap| *gap < Duration::from_secs(1)) {
        gaps.push(Pulse::during(scene.path(B, A), |pulse| {
            pulse.wait_more(20, SOON)?;
            killed.kill9()?;
            killed.start()?;
            pulse.wait_more(20, SOON)
        })?);
    }
    eprintln!("a restart interrupted for {gaps:?}");
    ensure!(gaps.iter().any(|gap| *gap < Duration::from_secs(1)), "nothing came back for {gaps:?}");
    let flows = [Flow::new(scene.path(A, B)), Flow::new(scene.path(K, A))];
    Flow::during(&flows, || {
        flows.iter().try_for_each(|f| f.wait_more(A_LITTLE)).context("before the restart")?;
        killed.kill9()?;
        killed.start()?;
        flows.iter().try_for_each(|f| f.wait_more(A_LITTLE)).context("after the restart")
    })?;
    ensure!(index(&killed.host.ns)? == before, "the device is another one");
    Ok(())
}

fn index(ns: &Namespace) -> Result<i64> {
    let links: serde_json::Value = serde_json::from_str(&ns.ip("-j link show dev flannel.1")?)?;
    links[0]["ifindex"].as_i64().context("ifindex of flannel.1")
}

#[test]
fn transfers_survive_a_peer_that_moves() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let mut scene = Scene::new(&fabric, &TRIO)?;
    let mut moving = scene.nodes.remove(B);
    let base = moving.env.base;
    let flows = [Flow::new(scene.path(A, B)), Flow::new(scene.path(B, K))];
    Flow::during(&flows, || {
        let flowing = |when: &'static str| flows.iter().try_for_each(|f| f.wait_more(A_LITTLE)).context(when);
        flowing("before anything")?;
        moving.kill9()?;
        let ns = &moving.host.ns;
        ns.ip("address flush dev eth0")?;
        ns.ip("address add 192.168.31.75/24 dev eth0")?;
        ns.ip("route add default via 192.168.31.1")?;
        moving.start()?;
        ensure!(moving.env.base == base, "it has another subnet: {:?}", moving.env);
        flowing("at another address")?;
        let mac = flannel::mac(ns)?;
        moving.kill9()?;
        ns.ip("link del flannel.1")?;
        moving.start()?;
        ensure!(moving.env.base == base, "it has another subnet: {:?}", moving.env);
        ensure!(flannel::mac(ns)? != mac, "the MAC is still {mac}");
        flowing("with another MAC")
    })
}

#[test]
fn five_thousand_peers_are_taken_in() -> Result<()> {
    const PEERS: u16 = 5_000;
    let _turn = one_at_a_time();
    let fabric = Fabric::new(&HOSTS[..2])?;
    let overlay = Overlay::new(
        &fabric,
        // The network config may choose the data path as well.
        r#"{"Network": "10.64.0.0/10", "Backend": {"Type": "vxlan", "Datapath": "rust"}}"#,
    )?;
    let store = overlay.store();
    // Eight at a time: each write waits for the disk.
    std::thread::scope(|scope| {
        let lease = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let key = format!("/coreos.com/network/subnets/10.{}.{low}.0-24", 96 + high);
            let value = format!(
                r#"{{"PublicIP":"10.200.{high}.{low}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}}}"#
            );
            store.set(&key, &value).map(drop)
        };
        let writers: Vec<_> =
            (0..8).map(|w| scope.spawn(move || (w..PEERS).step_by(8).try_for_each(lease))).collect();
        writers.into_iter().try_for_each(|w| w.join().map_err(|_| anyhow!("a writer panicked"))?)
    })?;
    let mut nodes = vec![overlay.node(0, &[])?, overlay.node(1, &[])?];
    let boxes = [nodes[0].container("box0")?, nodes[1].container("box1")?];
    wait_for("the first echo", SOON, || ping(&boxes[0].ns, boxes[1].address, 56))?;
    let path = Path { from: &boxes[0].ns, to: &boxes[1].ns, address: boxes[1].address.into() };
    transfer(path, A_LITTLE)?;
    for node in &mut nodes {
        let status = node.datapath_status()?;
        ensure!(status["datapath"] == "rust", "{status}");
        ensure!(status["peers"] == PEERS + 1, "{} peers", status["peers"]);
        let megabytes = node.process()?.peak_kib()? / 1024;
        eprintln!("{} peers: {megabytes} MiB at most", PEERS + 1);
        ensure!(megabytes < 48, "{megabytes} MiB resident");
    }
    Ok(())
}

#[test]
fn frames_of_strangers_are_dropped_and_counted_unless_the_check_is_off() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, &["-datapath=rust", "-datapath-source-check=false"]])?;
    let (peer, stranger) = (&fabric.hosts[B].ns, &fabric.hosts[2].ns);
    let macs = [flannel::mac(&fabric.hosts[A].ns)?, flannel::mac(peer)?];
    let macs = [vxlan::mac(&macs[0])?, vxlan::mac(&macs[1])?];
    let unknown = [2, 0, 0, 0, 0, 0x66];
    // Another known VTEP, at an address where nobody is.
    let other = [2, 0, 0, 0, 0, 0x99];
    scene.overlay.store().set(
        "/coreos.com/network/subnets/172.17.199.0-24",
        r#"{"PublicIP":"192.168.31.99","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:99"}}"#,
    )?;
    wait_for("the third lease", SOON, || {
        let peers = scene.nodes[A].datapath_status()?["peers"].clone();
        ensure!(peers == 2, "{peers} peers");
        Ok(())
    })?;

    let mailbox = Mailbox::open(&scene.boxes[A].ns, scene.boxes[A].address)?;
    let to_a = |from_mac, payload: &'static str| Inner {
        from_mac,
        to_mac: macs[A],
        from: scene.boxes[B].address,
        to: scene.boxes[A].address,
        port: mailbox.address().map_or(0, |a| a.port()),
        tos: 0,
        payload: payload.as_bytes(),
    };
    let counts =
        || Ok::<_, anyhow::Error>((scene.dropped(A, "unknown_source")?, scene.dropped(A, "spoofed_source")?));
    let before = counts()?;
    inject(stranger, HOSTS[A], 0, &to_a(unknown, "unknown MAC from an unknown address"))?;
    inject(peer, HOSTS[A], 0, &to_a(unknown, "unknown MAC from a known address"))?;
    inject(stranger, HOSTS[A], 0, &to_a(macs[B], "known MAC from an unknown address"))?;
    inject(peer, HOSTS[A], 0, &to_a(other, "known MAC from another peer's address"))?;
    inject(peer, HOSTS[A], 0, &to_a(macs[B], "genuine"))?;
    // They come one after the other, so what was let in before this one would be read before it.
    let first = mailbox.next()?;
    ensure!(first.as_deref() == Some("genuine"), "let in: {first:?}");
    let after = counts()?;
    ensure!((after.0 - before.0, after.1 - before.1) == (2, 2), "counted {before:?}, then {after:?}");

    congestion_on_the_underlay(&scene, peer, |tos, payload| Inner { tos, ..to_a(macs[B], payload) })?;

    let mailbox = Mailbox::open(&scene.boxes[B].ns, scene.boxes[B].address)?;
    let to_b = Inner {
        from_mac: unknown,
        to_mac: macs[B],
        from: scene.boxes[A].address,
        to: scene.boxes[B].address,
        port: mailbox.address()?.port(),
        tos: 0,
        payload: b"from a stranger",
    };
    inject(stranger, HOSTS[B], 0, &to_b)?;
    let first = mailbox.next()?;
    ensure!(first.as_deref() == Some("from a stranger"), "not let in without the check: {first:?}");
    Ok(())
}

/// RFC 6040, section 4.2: a mark made by the underlay goes on inside, and where it cannot, the packet is dropped.
fn congestion_on_the_underlay<'a>(
    scene: &Scene<'_>,
    peer: &Namespace,
    inner: impl Fn(u8, &'static str) -> Inner<'a>,
) -> Result<()> {
    let marked = inner(2, "capable");
    let filter = format!("udp port {} and ip[1] & 3 == 3", marked.port);
    let watch = Watch::start(&scene.boxes[A].ns, "eth0", &filter, 1)?;
    let before = scene.dropped(A, "ecn_mismatch")?;
    inject(peer, HOSTS[A], 3, &inner(0, "not capable"))?;
    inject(peer, HOSTS[A], 3, &marked)?;
    watch.seen().context("the mark inside")?;
    let dropped = scene.dropped(A, "ecn_mismatch")? - before;
    ensure!(dropped == 1, "{dropped} packets dropped for a mark they cannot bear");
    Ok(())
}

#[test]
fn an_idle_daemon_costs_nothing() -> Result<()> {
    const LENGTH: Duration = Duration::from_secs(3);
    let _turn = one_at_a_time();
    let fabric = Fabric::new(&HOSTS[..2])?;
    let mut scene = Scene::new(&fabric, &[RUST, RUST])?;
    both_ways(scene.path(A, B), scene.path(B, A), A_LITTLE)?;
    let mut used_within = |time: Duration| {
        let before = scene.nodes[A].process()?.cpu_time()?;
        std::thread::sleep(time);
        Ok::<_, anyhow::Error>(scene.nodes[A].process()?.cpu_time()?.saturating_sub(before))
    };
    wait_for("the daemon to come to rest", SOON, || {
        let used = used_within(Duration::from_millis(300))?;
        ensure!(used < CPU_TICK, "it used {used:?}");
        Ok(())
    })?;
    let used = used_within(LENGTH)?;
    eprintln!("idle for {LENGTH:?}: {used:?}");
    ensure!(used <= 2 * CPU_TICK, "{used:?} of processor time in {LENGTH:?} without a packet");
    Ok(())
}
