//! `cli ping-mesh` tells the truth: a working mesh, a path that drops packets, a node that is silent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Server;
use weft_tests::fabric::Fabric;
use weft_tests::process::one_at_a_time;
use weft_tests::stage::Stage;
use weft_tests::wait::wait_for;

#[test]
fn ping_mesh_shows_what_works_and_what_does_not() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Weft)?;
    let _stores = stage.start_stores()?;

    let out = stage.cli(0, &["ping-mesh"])?;
    ensure!(out.code != Some(0), "there is no network config yet: {out}");

    stage.write_network_config()?;
    let mut overlays = Vec::new();
    for host in 0..3 {
        overlays.push(stage.start_overlay(host)?);
    }
    // From any host, one that runs no container included; its peers may still be programming their routes.
    wait_for("a whole mesh", Duration::from_secs(20), || {
        let out = stage.cli(1, &["ping-mesh"])?;
        let text = out.ok()?;
        for host in &fabric.hosts {
            ensure!(text.contains(&host.address.to_string()), "no {} in {out}", host.address);
        }
        Ok(())
    })?;

    // One direction of one path loses everything: 63 can no longer send to 66 over the overlay.
    let rule = "OUTPUT -p udp --dport 8472 -d 192.168.31.66 -j DROP";
    fabric.hosts[0].ns.run("iptables", &format!("-I {rule}"))?.ok()?;
    let out = stage.cli(1, &["ping-mesh"])?;
    let text = out.exits(1)?;
    ensure!(text.contains("192.168.31.63") && text.contains("192.168.31.66"), "{out}");
    let out = stage.cli(1, &["ping-mesh", "-o", "json"])?;
    let report: serde_json::Value =
        serde_json::from_str(out.exits(1)?).context("-o json of a broken mesh")?;
    ensure!(!report.is_null());
    fabric.hosts[0].ns.run("iptables", &format!("-D {rule}"))?.ok()?;
    wait_for("the mended mesh", Duration::from_secs(60), || stage.cli(1, &["ping-mesh"])?.ok().map(drop))?;

    // A daemon that is gone sends no report; its lease and its kernel device are still there.
    overlays[2].process.kill9()?;
    let out = stage.cli(1, &["ping-mesh"])?;
    ensure!(out.exits(1)?.contains("no report"), "{out}");
    Ok(())
}
