//! Two real `dockerd`, started by the guide's `docker.service` with the options that `cli docker-opts` left, and
//! a container on each.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Server;
use weft_tests::docker::Dockerd;
use weft_tests::fabric::Fabric;
use weft_tests::flannel;
use weft_tests::process::one_at_a_time;
use weft_tests::stage::Stage;
use weft_tests::wait::wait_for;

#[test]
fn containers_of_two_dockerds_reach_each_other() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Weft)?;
    let _stores = stage.start_stores()?;
    stage.write_network_config()?;
    let _overlays = [stage.start_overlay(1)?, stage.start_overlay(2)?];

    let mut docks = Vec::new();
    for host in [1, 2] {
        let env = flannel::checked_subnet_env(&stage, host)?;
        stage.run_docker_opts(host)?;
        let name = format!("dockerd-{}", fabric.hosts[host].address);
        let dockerd = Dockerd::start(&stage.hosts[host], &stage.log(&name)).context(name)?;
        let line = dockerd.command_line()?;
        let options = format!(" --bip={} --ip-masq=false --mtu=1450", env.bip);
        ensure!(line.ends_with(&options), "dockerd runs as `{line}`, not with `{options}`");
        bridge_fits_the_overlay(&fabric, host, &env.bip)?;
        dockerd.import_busybox()?;
        let address = dockerd.run_idle("box")?;
        ensure!(address.octets()[..3] == env.base.octets()[..3], "container {address} outside {}", env.bip);
        docks.push((dockerd, address));
    }
    let [(first, a), (second, b)] = &docks[..] else { anyhow::bail!("two dockerds were started") };
    for (from, to) in [(first, b), (second, a)] {
        let to = to.to_string();
        let out = wait_for("an echo across hosts", Duration::from_secs(45), || {
            from.exec("box", &["ping", "-c", "3", "-W", "2", &to])
        })?;
        ensure!(out.contains(" 0% packet loss"), "{out}");
        let mtu = from.exec("box", &["ip", "link", "show", "eth0"])?;
        ensure!(mtu.contains(" mtu 1450 "), "container's eth0: {mtu}");
    }
    tcp_between(first, *a, second, "from-first")?;
    tcp_between(second, *b, first, "from-second")
}

/// docker0 carries the first address of the lease, and the device of the overlay is beside it.
fn bridge_fits_the_overlay(fabric: &Fabric, host: usize, bip: &str) -> Result<()> {
    let addresses = fabric.hosts[host].ns.ip("-o -4 address show dev docker0")?;
    ensure!(addresses.contains(&format!("inet {bip} ")), "docker0 has {addresses}, not {bip}");
    let rules = fabric.hosts[host].ns.run("iptables-save", "-t nat")?;
    ensure!(
        !rules.ok()?.contains("! -o docker0 -j MASQUERADE"),
        "dockerd masquerades although it must not: {rules}"
    );
    Ok(())
}

/// `server` sends `text` to whoever connects; `client` must read it.
fn tcp_between(server: &Dockerd, address: Ipv4Addr, client: &Dockerd, text: &str) -> Result<()> {
    let serve = format!("echo {text} | nc -l -p 7000");
    server.docker(&["exec", "-d", "box", "sh", "-c", &serve])?;
    let address = address.to_string();
    let got = wait_for("TCP across hosts", Duration::from_secs(45), || {
        client.exec("box", &["sh", "-c", &format!("nc -w 3 {address} 7000 </dev/null")])
    })?;
    ensure!(got == text, "`{got}` arrived instead of `{text}`");
    Ok(())
}
