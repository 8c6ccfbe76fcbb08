//! TCP from container to container on two hosts: over our overlay, over a kernel vxlan device made by hand, and
//! host to host over the plain underlay; in turns, all on this machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use weft_tests::cluster::Server;
use weft_tests::fabric::{Container, Fabric, ping};
use weft_tests::flows::Path;
use weft_tests::programs;
use weft_tests::stage::{Stage, Unit};
use weft_tests::wait::wait_for;

use crate::report::{Machine, Report, median};
use crate::traffic;

/// flannel's MTU on an underlay of 1500.
const MTU: u32 = 1450;
/// The subnets of the two hosts in the setting by hand.
const BY_HAND: [&str; 2] = ["172.18.1", "172.18.2"];

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct OverlayArgs {
    /// How often each path has its turn; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Length of one TCP measurement in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// A path and what it is called in the table.
struct Named<'a> {
    name: &'static str,
    path: Path<'a>,
}

/// What came out of one turn.
struct Measured {
    round: u32,
    path: &'static str,
    gbit_per_second: f64,
    round_trip_us: f64,
}

/// Runs the whole comparison.
///
/// # Errors
/// When not root, a program is missing, or a path carries no traffic.
pub(crate) fn run(args: &OverlayArgs) -> Result<Report> {
    programs::tool("iperf3")?;
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Weft)?;
    let (_daemons, ours) = our_overlay(&fabric, &stage)?;
    let hand = Fabric::new(&[Ipv4Addr::new(192, 168, 31, 65), Ipv4Addr::new(192, 168, 31, 66)])?;
    let reference = vxlan_by_hand(&hand)?;
    let named =
        |name, from, to, address: Ipv4Addr| Named { name, path: Path { from, to, address: address.into() } };
    let paths = [
        named("our overlay", &ours[0].ns, &ours[1].ns, ours[1].address),
        named("kernel vxlan by hand", &reference[0].ns, &reference[1].ns, reference[1].address),
        named("plain underlay, host to host", &hand.hosts[0].ns, &hand.hosts[1].ns, hand.hosts[1].address),
    ];
    let mut measured = Vec::new();
    for Named { name, path } in &paths {
        wait_for("the first echo", Duration::from_secs(15), || ping(path.from, path.address, 56))
            .with_context(|| *name)?;
    }
    for round in 1..=args.rounds {
        for path in &paths {
            eprintln!("round {round} of {}: {}", args.rounds, path.name);
            measured.push(one_turn(args, round, path).with_context(|| path.name)?);
        }
    }
    Ok(report(args, &measured))
}

/// The guide's two nodes with our programs, a container on each.
fn our_overlay(fabric: &Fabric, stage: &Stage<'_>) -> Result<(Vec<Unit>, Vec<Container>)> {
    let mut daemons = stage.start_stores()?;
    stage.write_network_config()?;
    let mut containers = Vec::new();
    for host in [1, 2] {
        daemons.push(stage.start_overlay(host)?);
        let env = stage.subnet_env(host)?;
        fabric.hosts[host].add_docker0(&env.bip, env.mtu)?;
        containers.push(fabric.hosts[host].add_container(&format!("ours{host}"), &env.bip, env.mtu)?);
    }
    Ok((daemons, containers))
}

/// The same by `ip` and `bridge` alone: what flannel's kernel backend amounts to.
fn vxlan_by_hand(fabric: &Fabric) -> Result<Vec<Container>> {
    let macs = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    let mut containers = Vec::new();
    for (n, host) in fabric.hosts.iter().enumerate() {
        let (subnet, peer) = (BY_HAND[n], 1 - n);
        host.ns.ip(&format!(
            "link add flannel.1 address {} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
            macs[n], host.address
        ))?;
        host.ns.ip(&format!("address add {subnet}.0/32 dev flannel.1"))?;
        host.ns.ip("link set flannel.1 up")?;
        let (base, mac) = (format!("{}.0", BY_HAND[peer]), macs[peer]);
        host.ns.ip(&format!("neigh add {base} lladdr {mac} dev flannel.1 nud permanent"))?;
        let underlay = fabric.hosts[peer].address;
        host.ns.run("bridge", &format!("fdb add {mac} dev flannel.1 dst {underlay} self permanent"))?.ok()?;
        host.ns.ip(&format!("route add {base}/24 via {base} dev flannel.1 onlink"))?;
        // flannel's packet filter rules: connection tracking has its price, and flannel pays it too.
        for rule in [
            "-t nat -A POSTROUTING -s 172.18.0.0/16 -d 172.18.0.0/16 -j RETURN".to_owned(),
            "-t nat -A POSTROUTING -s 172.18.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE".to_owned(),
            format!("-t nat -A POSTROUTING ! -s 172.18.0.0/16 -d {subnet}.0/24 -j RETURN"),
            "-t nat -A POSTROUTING ! -s 172.18.0.0/16 -d 172.18.0.0/16 -j MASQUERADE".to_owned(),
            "-A FORWARD -s 172.18.0.0/16 -j ACCEPT".to_owned(),
            "-A FORWARD -d 172.18.0.0/16 -j ACCEPT".to_owned(),
        ] {
            host.ns.run("iptables", &format!("--wait {rule}"))?.ok()?;
        }
        let bip = format!("{subnet}.1/24");
        host.add_docker0(&bip, MTU)?;
        containers.push(host.add_container(&format!("hand{n}"), &bip, MTU)?);
    }
    Ok(containers)
}

fn one_turn(args: &OverlayArgs, round: u32, path: &Named<'_>) -> Result<Measured> {
    Ok(Measured {
        round,
        path: path.name,
        gbit_per_second: traffic::tcp(path.path, 1, args.seconds)?.gbit_per_second,
        round_trip_us: traffic::flood_ping_us(path.path)?,
    })
}

fn report(args: &OverlayArgs, measured: &[Measured]) -> Report {
    let of = |path: &str, value: fn(&Measured) -> f64| {
        median(measured.iter().filter(|m| m.path == path).map(value))
    };
    let mut names: Vec<&str> = Vec::new();
    for m in measured {
        if !names.contains(&m.path) {
            names.push(m.path);
        }
    }
    let reference = of("kernel vxlan by hand", |m| m.gbit_per_second);
    let rows = names.iter().map(|name| {
        let speed = of(name, |m| m.gbit_per_second);
        vec![
            (*name).to_owned(),
            format!("{speed:.2}"),
            format!("{:.2}", speed / reference),
            format!("{:.0} us", of(name, |m| m.round_trip_us)),
        ]
    });
    let rounds = measured.iter().map(|m| {
        json!({
            "round": m.round, "path": m.path, "gbit_per_second": m.gbit_per_second,
            "round_trip_us": m.round_trip_us,
        })
    });
    Report {
        method: vec![
            format!(
                "one TCP stream of iperf3 for {} s and a flood ping of 2000, {} rounds in turns, medians",
                args.seconds, args.rounds
            ),
            "hosts and containers are namespaces on one machine, joined by veth and a bridge; the device by hand has \
             flannel's routes, entries and packet filter rules"
                .to_owned(),
        ],
        machine: Machine::here(),
        columns: ["", "Gbit/s", "of kernel vxlan", "round trip"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        rounds: json!(rounds.collect::<Vec<_>>()),
    }
}
