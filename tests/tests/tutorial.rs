//! The hand-installation guide from its first file to its last ping, with our programs in place of cfssl, etcd
//! and flanneld: its unit files, environment files and commands are run as they are (see `weft_tests::tutorial`).
//!
//! ```text
//!  etcd01 192.168.31.63     etcd02 192.168.31.65     etcd03 192.168.31.66
//!                           flanneld                 flanneld
//!                           docker0 + container      docker0 + container
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Server;
use weft_tests::fabric::Fabric;
use weft_tests::flannel;
use weft_tests::process::one_at_a_time;
use weft_tests::stage::{Stage, SubnetEnv};
use weft_tests::wait::wait_for;

#[test]
fn every_step_of_the_guide_works() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let stage = Stage::new(&fabric, Server::Weft)?;

    let _stores = stage.start_stores().context("etcd chapter: systemctl start etcd")?;
    cluster_is_healthy(&stage)?;
    stage.write_network_config().context("flannel chapter: etcdctl set")?;

    let _first = stage.start_overlay(1).context("systemctl start flanneld on the first node")?;
    let _second = stage.start_overlay(2).context("systemctl start flanneld on the second node")?;
    let envs = [flannel::checked_subnet_env(&stage, 1)?, flannel::checked_subnet_env(&stage, 2)?];
    flannel::both_nodes_are_right(&stage, &fabric, &envs)?;
    flannel::rules_are_flannels(&fabric, 1, &envs[0])?;
    flannel::rules_are_flannels(&fabric, 2, &envs[1])?;

    docker_options(&stage, &envs)?;
    flannel::containers_reach_each_other(&fabric, &envs)?;
    operator_commands(&stage)
}

/// The guide's check of the store, by Debian's etcdctl: its wording, one line per member, exit status 0.
fn cluster_is_healthy(stage: &Stage<'_>) -> Result<()> {
    let out = stage.etcdctl(0, &["cluster-health"])?;
    let text = out.ok()?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.last() == Some(&"cluster is healthy"), "{out}");
    // The ids follow from the peer URLs and the token alone; these are SHA-1 sums made by other means.
    for expected in [
        "member b46624837acedac9 is healthy: got healthy result from https://192.168.31.63:2379",
        "member fd9073b56d4868cb is healthy: got healthy result from https://192.168.31.65:2379",
        "member 72130f86e474b7bb is healthy: got healthy result from https://192.168.31.66:2379",
    ] {
        ensure!(lines.contains(&expected), "no line `{expected}` in {out}");
    }
    ensure!(lines.len() == 4, "{out}");
    // Each member answers alone, and on both of its listen URLs.
    for endpoint in ["https://192.168.31.65:2379", "https://192.168.31.66:2379", "http://127.0.0.1:2379"] {
        let ca = ["--cacert", "/opt/etcd/ssl/ca.pem"];
        let url = format!("{endpoint}/health");
        let words = [&["curl", "-sS", "-f"], &ca[..], &[&url]].concat();
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let out = weft_tests::command::run(&mut stage.hosts[0].command(&words)?)?;
        ensure!(out.ok()?.contains("true"), "{out}");
    }
    Ok(())
}

/// The unit's `ExecStartPost`, which writes its output onto its own input.
fn docker_options(stage: &Stage<'_>, envs: &[SubnetEnv; 2]) -> Result<()> {
    for (host, env) in [1, 2].into_iter().zip(envs) {
        stage.run_docker_opts(host)?;
        let bip = &env.bip;
        let expected = format!(
            "DOCKER_OPT_BIP=\"--bip={bip}\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n\
             DOCKER_NETWORK_OPTIONS=\" --bip={bip} --ip-masq=false --mtu=1450\"\n"
        );
        let text = std::fs::read_to_string(stage.hosts[host].file("/run/flannel/subnet.env"))?;
        ensure!(text == expected, "docker options are\n{text}instead of\n{expected}");
    }
    Ok(())
}

/// Our own operator tools on the same cluster.
fn operator_commands(stage: &Stage<'_>) -> Result<()> {
    let out = stage.cli(0, &["health"])?;
    ensure!(out.ok()?.trim_end().ends_with("cluster is healthy"), "{out}");
    let out = wait_for("a whole mesh", Duration::from_secs(60), || {
        let out = stage.cli(0, &["ping-mesh"])?;
        out.ok()?;
        Ok(out)
    })?;
    let text = out.ok()?;
    for host in ["192.168.31.65", "192.168.31.66"] {
        ensure!(text.contains(host), "no {host} in the matrix: {out}");
    }
    let out = stage.cli(0, &["ping-mesh", "-o", "json"])?;
    let report: serde_json::Value = serde_json::from_str(out.ok()?).context("ping-mesh -o json")?;
    ensure!(report.is_object() || report.is_array(), "{report}");
    Ok(())
}
