//! TCP super-frames that leave whole, past the host's routing and packet filter: that they do, and that they do not
//! where that would be wrong.

use anyhow::{Context, Result, ensure};
use weft_tests::command::{self, Output};
use weft_tests::fabric::Fabric;
use weft_tests::flows::tcp::{Flow, both_ways, transfer};
use weft_tests::ns::Namespace;
use weft_tests::process::one_at_a_time;
use weft_tests::scene::{A, B, K, KERNEL, RUST, SOON, Scene};
use weft_tests::wait::wait_for;

/// Bytes of a transfer in which super-frames are certain.
const BULK: u64 = 32 << 20;
const A_LITTLE: u64 = 4 << 20;
/// Flags of a node that has everything cut before it leaves.
const WITHOUT: &[&str] = &["-datapath=rust", "-datapath-inject=false"];

/// The first release that cuts tunnels' super-frames for a TAP (`TUN_F_UDP_TUNNEL_GSO`).
const FIRST: (u32, u32) = (6, 17);

/// Whether this kernel can do it; what overlayd says of it must fit.
fn possible(scene: &Scene<'_>, node: usize) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse().ok());
    let version: (u32, u32) = numbers.next().zip(numbers.next()).with_context(|| release.clone())?;
    let status = scene.nodes[node].datapath_status()?;
    let features = status["engine"]["features"].as_array().context("no features")?;
    let feature = features.iter().find(|feature| feature["name"] == "tcp_inject").context("no tcp_inject")?;
    ensure!(feature["on"] == (version >= FIRST), "Linux {release}: {feature}");
    ensure!(
        feature["on"] == true || feature["note"].to_string().contains("older than Linux 6.17"),
        "{feature}"
    );
    Ok(version >= FIRST)
}

/// How many super-frames left whole during a transfer.
fn injected(scene: &Scene<'_>, (from, to): (usize, usize), bytes: u64) -> Result<u64> {
    let before = scene.counted(from, "injects")?;
    transfer(scene.path(from, to), bytes).with_context(|| format!("from {from} to {to}"))?;
    Ok(scene.counted(from, "injects")? - before)
}

/// Waits until transfers use it, or use it no more; each of them must arrive.
fn settles(scene: &Scene<'_>, way: (usize, usize), used: bool) -> Result<()> {
    wait_for(if used { "super-frames to leave whole" } else { "all to be cut" }, SOON, || {
        let count = injected(scene, way, A_LITTLE)?;
        ensure!((count > 0) == used, "{count} super-frames left whole");
        Ok(())
    })
}

#[test]
fn super_frames_leave_whole_and_arrive_unchanged() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, WITHOUT, KERNEL])?;
    let possible = possible(&scene, A)?;
    if possible {
        settles(&scene, (A, B), true)?;
        settles(&scene, (A, K), true)?;
    }
    for peer in [B, K] {
        both_ways(scene.path(A, peer), scene.path(peer, A), BULK)?;
        let count = injected(&scene, (A, peer), BULK)?;
        // At most 64 KB go at once, and a good part of them should.
        ensure!((count > BULK / 65_536 / 4) == possible, "{count} super-frames left whole to {peer}");
    }
    // Who does not want it has neither the device nor the effect.
    ensure!(
        injected(&scene, (B, A), BULK)? == 0 && injected(&scene, (B, K), BULK)? == 0,
        "flag without effect"
    );
    let devices = |node: usize| scene.nodes[node].host.ns.ip("-o link show");
    ensure!(!devices(B)?.contains("weft.1"), "{}", devices(B)?);
    ensure!(devices(A)?.contains("weft.1") == possible, "{}", devices(A)?);
    ensure!(scene.dropped(A, "send_failed")? == 0, "some could not be sent");
    Ok(())
}

#[test]
fn what_may_not_leave_whole_is_cut() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, RUST, KERNEL])?;
    if !possible(&scene, A)? {
        return transfer(scene.path(A, B), BULK);
    }
    let ns = &scene.nodes[A].host.ns;
    let peer = scene.nodes[B].host.address;
    settles(&scene, (A, B), true)?;

    // A policy for others: whom it concerns is not looked at.
    let policy = "src 203.0.113.1/32 dst 203.0.113.2/32 dir out";
    ns.ip(&format!("xfrm policy add {policy} tmpl proto esp mode transport"))?;
    settles(&scene, (A, B), false).context("with an IPsec policy")?;
    ns.ip(&format!("xfrm policy delete {policy}"))?;
    settles(&scene, (A, B), true).context("without the IPsec policy")?;

    // The segments do not fit: the sockets have them fragmented.
    ns.ip(&format!("route add {peer}/32 dev eth0 mtu 1400"))?;
    settles(&scene, (A, B), false).context("on a route with a smaller MTU")?;
    settles(&scene, (A, K), true).context("on the other route")?;
    ns.ip(&format!("route delete {peer}/32"))?;
    settles(&scene, (A, B), true).context("on the first route again")?;

    // Where the sockets' packets go is chosen by more than we can ask for.
    ns.ip("rule add fwmark 7 lookup main")?;
    settles(&scene, (A, B), false).context("with a rule for marks")?;
    ns.ip("rule delete fwmark 7")?;
    settles(&scene, (A, B), true).context("without the rule")?;
    ns.ip(&format!("route add {peer}/32 nexthop dev eth0 nexthop via {peer} dev eth0 onlink"))?;
    settles(&scene, (A, B), false).context("with two next hops")?;
    settles(&scene, (A, K), true).context("on the route with one")
}

#[test]
fn another_interface_to_the_peer_is_taken() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, RUST])?;
    let possible = possible(&scene, A)?;
    let [a, b] = [A, B].map(|node| &scene.nodes[node].host);
    for (from, to) in [(a, b), (b, a)] {
        if to.ns.name() == b.ns.name() {
            from.ns.ip(&format!("link add alt0 type veth peer name alt0 netns {}", to.ns.name()))?;
            to.ns.ip("link set alt0 up")?;
        }
        from.ns.ip("link set alt0 up")?;
        from.ns.ip(&format!("route add {}/32 dev alt0 src {}", to.address, from.address))?;
    }
    let bytes = || -> Result<u64> {
        let links: serde_json::Value = serde_json::from_str(&a.ns.ip("-j -s link show dev alt0")?)?;
        links[0]["stats64"]["tx"]["bytes"].as_u64().context("no count of bytes")
    };
    wait_for("packets to take the other way", SOON, || {
        let before = bytes()?;
        let count = injected(&scene, (A, B), A_LITTLE)?;
        let through = bytes()? - before;
        ensure!(through > A_LITTLE, "{through} bytes went through alt0");
        ensure!((count > 0) == possible, "{count} super-frames left whole");
        Ok(())
    })
}

#[test]
fn a_device_that_is_deleted_or_set_down_is_made_right() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, RUST])?;
    if !possible(&scene, A)? {
        return transfer(scene.path(A, B), BULK);
    }
    settles(&scene, (A, B), true)?;
    for wrong in ["link delete weft.1", "link set weft.1 down"] {
        let flows = [Flow::new(scene.path(A, B))];
        Flow::during(&flows, || {
            flows[0].wait_more(A_LITTLE)?;
            scene.nodes[A].host.ns.ip(wrong)?;
            flows[0].wait_more(A_LITTLE).with_context(|| format!("after ip {wrong}"))
        })?;
        settles(&scene, (A, B), true).with_context(|| format!("after ip {wrong}"))?;
        possible(&scene, A).with_context(|| format!("after ip {wrong}"))?;
    }
    Ok(())
}

/// Outer packets that a host has sent, and datagrams that its programs have received, several at once counted as one.
fn traffic(ns: &Namespace) -> Result<(u64, u64)> {
    let links: serde_json::Value = serde_json::from_str(&ns.ip("-j -s link show dev eth0")?)?;
    let sent = links[0]["stats64"]["tx"]["packets"].as_u64().context("no count of packets")?;
    let table = ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    // A line of names, then one of numbers, "InDatagrams" the first.
    let received = table.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1);
    let received = received.and_then(|numbers| numbers.split_whitespace().next()).context("no UDP")?;
    Ok((sent, received.parse()?))
}

#[test]
fn an_uplink_that_cuts_nothing_has_the_kernel_cut() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST, RUST, KERNEL])?;
    let possible = possible(&scene, A)?;
    let ns = |node: usize| &scene.nodes[node].host.ns;
    let none = "tx off tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off";
    ns(A).run("ethtool", &format!("-K eth0 {none}"))?.ok()?;
    for peer in [B, K] {
        // A veth device glues together only what comes from one that cuts.
        ns(peer).run("ethtool", "-K eth0 gro on")?.ok()?;
        let port = &scene.nodes[peer].host.port;
        fabric.outside.run("ethtool", &format!("-K {port} tso off"))?.ok()?;
        settles(&scene, (A, peer), possible)?;
        let before = (traffic(ns(A))?, traffic(ns(peer))?);
        ensure!((injected(&scene, (A, peer), BULK)? > BULK / 65_536 / 4) == possible, "to {peer}");
        let after = (traffic(ns(A))?, traffic(ns(peer))?);
        let sent = after.0.0 - before.0.0;
        ensure!(sent > BULK / 1450, "only {sent} packets: they were not cut at the uplink of this test");
        let received = after.1.1 - before.1.1;
        ensure!(received < sent / 3, "{sent} packets came to {peer} as {received} datagrams");
    }
    Ok(())
}

#[test]
fn who_has_no_right_to_cannot_send_through_the_devices() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let scene = Scene::new(&fabric, &[RUST])?;
    let possible = possible(&scene, A)?;
    let ns = &scene.nodes[A].host.ns;
    // A device of the same kind without an owner, to see that the attempt could succeed.
    ns.ip("tuntap add dev open0 mode tap multi_queue vnet_hdr")?;
    let attempt = |device: &str| -> Result<Output> {
        let as_nobody = format!(
            "mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv --reuid=65534 \
             --regid=65534 --clear-groups ip tuntap del dev {device} mode tap multi_queue vnet_hdr"
        );
        let mut command = ns.command("unshare")?;
        command::run(command.args(["--mount", "--propagation=private", "sh", "-c", &as_nobody]))
    };
    // Whoever can attach to a device can do away with it.
    attempt("open0")?.ok().context("a device that is everybody's")?;
    ensure!(ns.ip("link show open0").is_err(), "the attempt does nothing");
    for device in ["flannel.1", "weft.1"].into_iter().filter(|&device| possible || device != "weft.1") {
        let refused = attempt(device)?;
        ensure!(refused.ok().is_err(), "{device} let somebody in");
        ensure!(refused.to_string().contains("Operation not permitted"), "{device}: {refused}");
    }
    Ok(())
}
