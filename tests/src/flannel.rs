//! What flanneld v0.10 leaves on a host, checked item by item on the guide's two nodes (hosts 1 and 2).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fabric::{Container, Fabric, ROUTER, ping, tcp_exchange};
use crate::ns::Namespace;
use crate::stage::{Stage, SubnetEnv};
use crate::wait::wait_for;

/// Watches bring the peers' changes within milliseconds; this is the patience of a busy machine.
pub const SOON: Duration = Duration::from_secs(45);

/// `subnet.env` byte for byte in flannel's form.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn checked_subnet_env(stage: &Stage<'_>, host: usize) -> Result<SubnetEnv> {
    let env = stage.subnet_env(host)?;
    let expected = format!(
        "FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET={}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        env.bip
    );
    let text = std::fs::read_to_string(stage.hosts[host].file("/run/flannel/subnet.env"))?;
    ensure!(text == expected, "subnet.env is\n{text}instead of\n{expected}");
    let third = env.base.octets()[2];
    ensure!(
        env.base == Ipv4Addr::new(172, 17, third, 0) && third >= 1 && env.bip.ends_with(".1/24"),
        "{env:?}"
    );
    Ok(env)
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

/// The MAC of the namespace's `flannel.1`.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn mac(ns: &Namespace) -> Result<String> {
    let links = json(&ns.ip("-j link show dev flannel.1")?)?;
    links[0]["address"].as_str().map(str::to_owned).context("MAC of flannel.1")
}

/// The device as flanneld v0.10 makes it (fact sheet, section 11).
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn device_is_flannels(fabric: &Fabric, host: usize, env: &SubnetEnv) -> Result<()> {
    let host = &fabric.hosts[host];
    let link = &json(&host.ns.ip("-d -j link show dev flannel.1")?)?[0];
    let data = &link["linkinfo"]["info_data"];
    for (what, got, expected) in [
        ("kind", &link["linkinfo"]["info_kind"], Value::from("vxlan")),
        ("MTU", &link["mtu"], Value::from(1450)),
        ("VNI", &data["id"], Value::from(1)),
        ("lower device", &data["link"], Value::from("eth0")),
        ("local address", &data["local"], Value::from(host.address.to_string())),
        ("port", &data["port"], Value::from(8472)),
        ("learning", &data["learning"], Value::from(false)),
    ] {
        ensure!(*got == expected, "flannel.1 on {}: {what} is {got}, not {expected}: {link}", host.address);
    }
    for absent in ["proxy", "rsc", "l2miss", "l3miss", "gbp", "group"] {
        ensure!(data[absent].is_null() || data[absent] == false, "flannel.1: {absent} is on: {data}");
    }
    let up = link["flags"].as_array().is_some_and(|f| f.contains(&Value::from("UP")));
    ensure!(up, "flannel.1 is down: {link}");
    let addresses = host.ns.ip("-o -4 address show dev flannel.1")?;
    ensure!(addresses.lines().count() == 1, "one address expected: {addresses}");
    ensure!(addresses.contains(&format!("inet {}/32 ", env.base)), "{addresses}");
    Ok(())
}

/// Devices, leases and peers' entries of both nodes.
///
/// # Errors
/// What differs.
pub fn both_nodes_are_right(stage: &Stage<'_>, fabric: &Fabric, envs: &[SubnetEnv; 2]) -> Result<()> {
    ensure!(envs[0].base != envs[1].base, "both nodes lease {}", envs[0].base);
    device_is_flannels(fabric, 1, &envs[0])?;
    device_is_flannels(fabric, 2, &envs[1])?;
    leases_are_flannels(stage, fabric, envs)?;
    peer_entries(fabric, 1, &[(2, &envs[1])])?;
    peer_entries(fabric, 2, &[(1, &envs[0])])
}

/// The leases in the store: flannel's key, JSON in its order, a TTL of a day.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn leases_are_flannels(stage: &Stage<'_>, fabric: &Fabric, envs: &[SubnetEnv; 2]) -> Result<()> {
    for (host, env) in [1, 2].into_iter().zip(envs) {
        let key = format!("/coreos.com/network/subnets/{}-24", env.base);
        let out = stage.etcdctl(0, &["-o", "extended", "get", &key])?;
        let value = format!(
            r#"{{"PublicIP":"{}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{}"}}}}"#,
            fabric.hosts[host].address,
            mac(&fabric.hosts[host].ns)?
        );
        let text = out.ok()?;
        ensure!(text.trim_end().ends_with(&value), "lease {key}: expected {value}\n{out}");
        let ttl = text.lines().find_map(|l| l.strip_prefix("TTL: ")).context("TTL line")?;
        let ttl: u32 = ttl.parse()?;
        ensure!((86_000..=86_400).contains(&ttl), "TTL {ttl}");
    }
    let out = stage.etcdctl(0, &["ls", "/coreos.com/network/subnets"])?;
    ensure!(out.ok()?.lines().count() == 2, "two leases expected: {out}");
    Ok(())
}

/// Exactly one onlink route, permanent neighbour and FDB entry per peer, and nothing else on the device.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn peer_entries(fabric: &Fabric, host: usize, peers: &[(usize, &SubnetEnv)]) -> Result<()> {
    let mut routes = Vec::new();
    let mut neighbours = Vec::new();
    let mut fdb = Vec::new();
    for (peer, env) in peers {
        let peer = &fabric.hosts[*peer];
        let mac = mac(&peer.ns)?;
        routes.push(format!("{0}/24 via {0} onlink", env.base));
        neighbours.push(format!("{} lladdr {mac} PERMANENT", env.base));
        fdb.push(format!("{mac} dst {} self permanent", peer.address));
    }
    let ns = &fabric.hosts[host].ns;
    wait_for("the peers' entries", SOON, || {
        for (what, expected, tool, args) in [
            ("routes", &routes, "ip", "route show dev flannel.1"),
            ("neighbours", &neighbours, "ip", "-4 neigh show dev flannel.1"),
            ("FDB", &fdb, "bridge", "fdb show dev flannel.1"),
        ] {
            let out = ns.run(tool, args)?;
            let got: Vec<&str> = out.ok()?.lines().map(str::trim).collect();
            ensure!(got == *expected, "{what} on {}: {got:?} instead of {expected:?}", ns.name());
        }
        Ok(())
    })
}

/// The packet filter rules (fact sheet, section 13), in their order.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn rules_are_flannels(fabric: &Fabric, host: usize, env: &SubnetEnv) -> Result<()> {
    let subnet = format!("{}/24", env.base);
    let network = "172.17.0.0/16";
    let nat = [
        format!("-A POSTROUTING -s {network} -d {network} -j RETURN"),
        format!("-A POSTROUTING -s {network} ! -d 224.0.0.0/4 -j MASQUERADE"),
        format!("-A POSTROUTING ! -s {network} -d {subnet} -j RETURN"),
        format!("-A POSTROUTING ! -s {network} -d {network} -j MASQUERADE"),
    ];
    let filter = [format!("-A FORWARD -s {network} -j ACCEPT"), format!("-A FORWARD -d {network} -j ACCEPT")];
    for (table, chain, expected) in
        [("nat", "-A POSTROUTING", &nat[..]), ("filter", "-A FORWARD", &filter[..])]
    {
        let out = fabric.hosts[host].ns.run("iptables-save", &format!("-t {table}"))?;
        let got: Vec<&str> = out.ok()?.lines().filter(|l| l.starts_with(chain)).collect();
        ensure!(got == expected, "{table} rules: {got:#?} instead of {expected:#?}");
    }
    Ok(())
}

/// The guide's last check, and more: container to container, to the other bridge, and out into the world.
///
/// # Errors
/// What is missing or differs from the fact sheet.
pub fn containers_reach_each_other(fabric: &Fabric, envs: &[SubnetEnv; 2]) -> Result<()> {
    let mut containers = Vec::new();
    for (host, env) in [1, 2].into_iter().zip(envs) {
        fabric.hosts[host].add_docker0(&env.bip, env.mtu)?;
        containers.push(fabric.hosts[host].add_container(&format!("box{host}"), &env.bip, env.mtu)?);
    }
    let (a, b): (&Container, &Container) = (&containers[0], &containers[1]);
    for (from, to) in [(a, b), (b, a)] {
        wait_for("the first echo", SOON, || ping(&from.ns, to.address, 56))?;
        // The largest packet that fits the overlay's MTU: 1450 less 20 (IP) and 8 (ICMP).
        ping(&from.ns, to.address, 1422).context("a full-sized packet")?;
        let seen = tcp_exchange(&from.ns, &to.ns, to.address)?;
        ensure!(seen == IpAddr::V4(from.address), "inside the overlay {} appears as {seen}", from.address);
    }
    let other_bridge: Ipv4Addr = envs[1].bip.split('/').next().unwrap_or_default().parse()?;
    ping(&fabric.hosts[1].ns, other_bridge, 56).context("the guide's ping of the other node's docker0")?;
    let seen = tcp_exchange(&a.ns, &fabric.outside, ROUTER).context("from a container to the outside")?;
    ensure!(seen == IpAddr::V4(fabric.hosts[1].address), "ip-masq: the outside sees {seen}");
    Ok(())
}
