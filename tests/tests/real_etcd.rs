//! The overlay against Debian's `etcd-server` over TLS: the same units and checks as with our store, and what
//! happens to leases behind the daemon's back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Server;
use weft_tests::fabric::Fabric;
use weft_tests::flannel::{self, SOON};
use weft_tests::process::one_at_a_time;
use weft_tests::stage::Stage;
use weft_tests::wait::wait_for;

#[test]
fn the_overlay_runs_on_debians_etcd() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Debian)?;
    let _stores = stage.start_stores()?;
    wait_for("etcd to be healthy", Duration::from_secs(30), || {
        let out = stage.etcdctl(0, &["cluster-health"])?;
        let lines = out.ok()?.lines().filter(|l| l.contains(" is healthy")).count();
        ensure!(lines == 4, "{out}");
        Ok(())
    })?;
    // Our operator tool sees what etcdctl sees.
    let out = stage.cli(0, &["health"])?;
    ensure!(out.ok()?.contains("member b46624837acedac9 is healthy"), "{out}");

    stage.write_network_config()?;
    let _first = stage.start_overlay(1)?;
    let mut second = stage.start_overlay(2)?;
    let envs = [flannel::checked_subnet_env(&stage, 1)?, flannel::checked_subnet_env(&stage, 2)?];
    flannel::both_nodes_are_right(&stage, &fabric, &envs)?;
    flannel::containers_reach_each_other(&fabric, &envs)?;
    wait_for("a whole mesh", Duration::from_secs(60), || stage.cli(0, &["ping-mesh"])?.ok().map(drop))?;

    // A restart keeps subnet, device and routes.
    let mac = flannel::mac(&fabric.hosts[2].ns)?;
    let status = second.process.terminate(Duration::from_secs(10))?;
    ensure!(status.success(), "SIGTERM: {status}\n{}", second.process.log_tail());
    let mut second = stage.start_overlay(2).context("restart")?;
    ensure!(flannel::checked_subnet_env(&stage, 2)? == envs[1], "another subnet after a restart");
    ensure!(flannel::mac(&fabric.hosts[2].ns)? == mac, "another MAC after a restart");
    flannel::both_nodes_are_right(&stage, &fabric, &envs)?;

    // A revoked lease ends its daemon with a failure, so that systemd restarts it, and its peers forget it.
    stage.etcdctl(0, &["rm", &format!("/coreos.com/network/subnets/{}-24", envs[1].base)])?.ok()?;
    let status = second.process.wait_exit(SOON)?;
    ensure!(status.code() == Some(1), "lost lease: {status}\n{}", second.process.log_tail());
    flannel::peer_entries(&fabric, 1, &[])
}
