//! A member whose state on disk was altered so that it passes every check of its own is found by the others.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use store::machine::Machine;
use store::state::StateStore as _;
use store::state::sled::SledState;
use store::tree::Tree;
use weft_tests::cluster::{Cluster, Server};
use weft_tests::process::one_at_a_time;
use weft_tests::wait::wait_for;
use weft_tests::{command, programs};

const ALL: [usize; 3] = [0, 1, 2];
/// Two periods of the check are two seconds; the rest is for a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Gives one key another value in the stored state, and writes the digest to match.
fn alter(data_dir: &Path) -> Result<()> {
    let mut state = SledState::open(&data_dir.join("member/state"))?;
    let (identity, machine) = state.load()?.context("the member has a state")?;
    let mut nodes = machine.tree.stored_nodes();
    let (_, node) = nodes.iter_mut().find(|(path, _)| path == "/1/altered").context("the key is there")?;
    node.value = Some("wrong".to_owned());
    let events = machine.tree.history().iter().map(|event| (**event).clone());
    let tree = Tree::from_stored(machine.tree.index(), nodes, events)?;
    let altered = Machine::new(tree, machine.membership, machine.alarms, machine.applied);
    state.replace(identity, &altered.freeze())?;
    Ok(())
}

#[test]
fn a_state_that_was_altered_on_disk_raises_an_alarm_that_every_member_tells() -> Result<()> {
    let _one = one_at_a_time();
    let mut cluster = Cluster::on_loopback(Server::Weft, 3)?;
    for member in &mut cluster.members {
        member.push_flag("--experimental-corrupt-check-time=1s");
    }
    cluster.start()?;
    let leader = cluster.wait_leader(&ALL)?;
    let (bad, good) = ((leader + 1) % 3, (leader + 2) % 3);
    for n in 0..20 {
        cluster.members[leader].endpoint().set(if n == 7 { "/altered" } else { "/other" }, &n.to_string())?;
    }
    // As long as nothing is wrong the checks leave the body as it is in etcd.
    let body = cluster.members[good].endpoint().get("/health")?;
    ensure!(body.status == 200 && body.text() == "{\"health\": \"true\"}", "{}", body.text());

    // Its image is written when it stops.
    cluster.members[bad].process()?.terminate(SOON)?;
    alter(&cluster.members[bad].data_dir)?;
    cluster.members[bad].start()?;
    // Nothing of its own tells it.
    wait_for("the altered member to serve", SOON, || {
        ensure!(cluster.members[bad].endpoint().value("/altered", false)? != "7", "it is not altered");
        Ok(())
    })?;

    let reason = wait_for("the alarm at a member that is right", SOON, || {
        cluster.members[leader].endpoint().set("/other", "again")?;
        let health = cluster.members[good].endpoint().get("/health")?;
        let json = health.json()?;
        ensure!(health.status == 200 && json["health"] == "true", "{}", health.text());
        json["reason"].as_str().map(str::to_owned).context("no reason yet")
    })?;
    ensure!(reason.matches("ALARM CORRUPT of member").count() == 1, "one member alone: {reason}");
    let own = cluster.members[bad].endpoint().get("/health")?;
    ensure!(own.status == 503 && own.json()?["health"] == "false", "{}", own.text());
    let log = cluster.members[bad].process()?.wait_for_log("state differs from the leader's", SOON)?;
    ensure!(log.contains("own_digest") && log.contains("leader_digest"), "both digests: {log}");

    let endpoint = format!("http://{}", cluster.members[good].endpoint().address);
    for (format, wanted) in
        [("simple", "cluster is unhealthy"), ("json", "\"alarms\":[{\"alarm\":\"ALARM CORRUPT")]
    {
        let mut cli = Command::new(programs::ours("cli")?);
        let output = command::run(cli.args(["health", "--endpoints", &endpoint, "-o", format]))?;
        let text = output.exits(1)?;
        ensure!(text.contains(wanted) && text.contains("docs/consistency.md"), "{text}");
    }
    Ok(())
}
