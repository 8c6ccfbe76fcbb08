//! What must survive: `kill -9` of the leader under writes, of all three members at once, and a cut cable.
//!
//! Three members with the guide's flags over TLS, each in its own namespace on one underlay. A write counts as
//! acknowledged when its answer has arrived; from then on every member must have it for good. A write that
//! failed may be there or not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use weft_tests::cluster::{Cluster, Member, Server};
use weft_tests::fabric::Fabric;
use weft_tests::http::Request;
use weft_tests::process::one_at_a_time;
use weft_tests::tutorial::make_certificates;
use weft_tests::v2::Endpoint;
use weft_tests::wait::wait_for;

const ALL: [usize; 3] = [0, 1, 2];
/// Election, catching up and replay on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Writers that never stop at a failure, and what they were promised.
struct Load {
    round: usize,
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    promises: Mutex<Vec<(String, String)>>,
}

impl Load {
    fn new(round: usize) -> Self {
        Self {
            round,
            stop: AtomicBool::new(false),
            acknowledged: AtomicUsize::new(0),
            promises: Mutex::default(),
        }
    }

    /// Writes one key after the other, moving on to the next member when one does not take a write.
    fn write(&self, writer: usize, endpoints: &[Endpoint<'_>]) {
        let mut at = writer;
        let mut promised = Vec::new();
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let (key, value) = (format!("/load/{}-{writer}/{n}", self.round), format!("{writer}-{n}"));
            if endpoints[at % endpoints.len()].set(&key, &value).is_ok() {
                promised.push((key, value));
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                at += 1;
            }
        }
        self.promises.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(promised);
    }

    /// Waits until `more` further writes are acknowledged.
    fn wait_more(&self, more: usize) -> Result<()> {
        let mut last = self.acknowledged.load(Ordering::Relaxed);
        let goal = last + more;
        // However slow the disk is, as long as it goes on.
        while last < goal {
            last = wait_for("another acknowledged write", SOON, || {
                let now = self.acknowledged.load(Ordering::Relaxed);
                ensure!(now > last, "{now} on the way to {goal}");
                Ok(now)
            })?;
        }
        Ok(())
    }

    /// Runs `scene` while three writers write, then returns what was acknowledged.
    fn during(
        round: usize,
        endpoints: &[Endpoint<'_>],
        scene: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Vec<(String, String)>> {
        let load = Self::new(round);
        std::thread::scope(|scope| {
            for writer in ALL {
                let load = &load;
                scope.spawn(move || load.write(writer, endpoints));
            }
            let outcome = scene(&load);
            load.stop.store(true, Ordering::Relaxed);
            outcome
        })?;
        Ok(load.promises.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Every promise is kept by every member: at first asked through the leader, then on its own.
fn promises_are_kept(cluster: &Cluster<'_>, promises: &[(String, String)]) -> Result<()> {
    ensure!(!promises.is_empty(), "no write was acknowledged at all: the test has tested nothing");
    for n in ALL {
        let member = &cluster.members[n];
        // One quorum read on the member itself: what it answers after is at least as new.
        wait_for("a quorum read", SOON, || member.endpoint().value(&promises[0].0, true))?;
        let tree = member.endpoint().get("/v2/keys/load?recursive=true")?.json()?;
        let mut found = std::collections::BTreeMap::new();
        collect(&tree["node"], &mut found);
        let lost: Vec<_> = promises
            .iter()
            .filter(|(k, v)| found.get(k.as_str()) != Some(&v.as_str()))
            .map(|(k, _)| k)
            .collect();
        ensure!(
            lost.is_empty(),
            "{} has lost {} of {} acknowledged writes, e.g. {:?}",
            member.name,
            lost.len(),
            promises.len(),
            &lost[..lost.len().min(5)]
        );
    }
    same_index_everywhere(cluster)
}

fn collect<'a>(node: &'a serde_json::Value, found: &mut std::collections::BTreeMap<&'a str, &'a str>) {
    if let (Some(key), Some(value)) = (node["key"].as_str(), node["value"].as_str()) {
        found.insert(key, value);
    }
    for child in node["nodes"].as_array().into_iter().flatten() {
        collect(child, found);
    }
}

/// The store's index is replicated state: once all have applied everything, it is the same.
fn same_index_everywhere(cluster: &Cluster<'_>) -> Result<()> {
    wait_for("the same index everywhere", SOON, || {
        let mut indices = Vec::new();
        for n in ALL {
            let reply = cluster.members[n].endpoint().get("/v2/keys/")?;
            indices.push(reply.header("X-Etcd-Index").context("X-Etcd-Index")?.to_owned());
        }
        ensure!(indices[0] == indices[1] && indices[1] == indices[2], "{indices:?}");
        Ok(())
    })
}

fn started(fabric: &Fabric) -> Result<(Cluster<'_>, tempfile::TempDir)> {
    let certs = tempfile::tempdir()?;
    make_certificates(certs.path())?;
    let mut cluster = Cluster::on_fabric(fabric, Server::Weft, certs.path())?;
    cluster.start()?;
    Ok((cluster, certs))
}

#[test]
fn no_acknowledged_write_is_lost_when_the_leader_is_killed() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (mut cluster, _certs) = started(&fabric)?;
    let endpoints = ALL.map(|n| cluster.members[n].endpoint());
    let mut promises = Vec::new();
    // Twice: the second time the log has been replayed once already.
    for round in 0..2 {
        let leader = cluster.wait_leader(&ALL)?;
        let rest: Vec<usize> = ALL.into_iter().filter(|&n| n != leader).collect();
        promises.extend(Load::during(round, &endpoints, |load| {
            load.wait_more(100)?;
            cluster.members[leader].kill9()?;
            load.wait_more(100).context("after the leader was killed")?;
            let next = cluster.wait_leader(&rest)?;
            ensure!(next != leader, "the killed member leads");
            cluster.members[leader].start()?;
            cluster.members[leader].wait_healthy(SOON).context("the killed member again")?;
            load.wait_more(100)
        })?);
        promises_are_kept(&cluster, &promises)?;
    }
    Ok(())
}

#[test]
fn no_acknowledged_write_is_lost_when_all_members_are_killed_at_once() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (mut cluster, _certs) = started(&fabric)?;
    let endpoints = ALL.map(|n| cluster.members[n].endpoint());
    // What each has published about itself has come to all.
    same_index_everywhere(&cluster)?;
    let ids = cluster.members[0].endpoint().get("/v2/members")?.json()?;
    let promises = Load::during(0, &endpoints, |load| {
        load.wait_more(300)?;
        for member in &mut cluster.members {
            member.kill9()?;
        }
        Ok(())
    })?;
    for n in ALL {
        let refused = cluster.members[n].endpoint().get("/version");
        ensure!(refused.is_err(), "{} still answers", cluster.members[n].name);
    }
    cluster.start()?;
    promises_are_kept(&cluster, &promises)?;
    history_is_kept(&cluster)?;
    ensure!(cluster.members[2].endpoint().get("/v2/members")?.json()? == ids, "the membership has changed");
    // And it goes on from there.
    cluster.members[1].endpoint().set("/load/after", "all")?;
    same_index_everywhere(&cluster)
}

/// Watches from the past find their events again: the history is part of the state.
fn history_is_kept(cluster: &Cluster<'_>) -> Result<()> {
    for n in ALL {
        let endpoint = cluster.members[n].endpoint();
        let index = endpoint.get("/v2/keys/load")?.header("X-Etcd-Index").context("X-Etcd-Index")?.to_owned();
        let index: u64 = index.parse()?;
        let past = index - 100;
        let reply = endpoint.get(&format!("/v2/keys/load?wait=true&recursive=true&waitIndex={past}"))?;
        let event = reply.json()?;
        ensure!(event["action"] == "set" && event["node"]["modifiedIndex"] == past, "{n}: {event}");
    }
    Ok(())
}

#[test]
fn a_member_that_was_away_for_longer_than_the_log_gets_a_snapshot() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let certs = tempfile::tempdir()?;
    make_certificates(certs.path())?;
    let mut cluster = Cluster::on_fabric(&fabric, Server::Weft, certs.path())?;
    for member in &mut cluster.members {
        member.push_flag("--snapshot-count=50");
    }
    cluster.start()?;
    let endpoints = ALL.map(|n| cluster.members[n].endpoint());
    let leader = cluster.wait_leader(&ALL)?;
    let away = (leader + 1) % 3;
    // What it had and what is gone by the time it is back: both must be right in the end.
    endpoints[away].set("/load/old", "to be deleted")?;
    same_index_everywhere(&cluster)?;
    cluster.members[away].kill9()?;
    let delete = Request { method: "DELETE", target: "/v2/keys/load/old", ..Request::default() };
    ensure!(endpoints[leader].send(&delete)?.status == 200);
    let promises = Load::during(0, &endpoints, |load| load.wait_more(600))?;
    cluster.members[away].start()?;
    cluster.members[away].wait_healthy(SOON)?;
    promises_are_kept(&cluster, &promises)?;
    let gone = endpoints[away].get("/v2/keys/load/old")?;
    ensure!(gone.status == 404, "a deleted key is back: {}", gone.text());
    // And a crash right after leaves it with the same.
    cluster.members[away].kill9()?;
    cluster.members[away].start()?;
    cluster.members[away].wait_healthy(SOON)?;
    promises_are_kept(&cluster, &promises)
}

/// Starts a member whose data directory has been wiped, and checks that it ends by itself and says why.
fn is_turned_away(member: &mut Member<'_>, id: &str) -> Result<()> {
    member.start()?;
    let status = member.process()?.wait_exit(SOON).context("a wiped member must not run")?;
    let log = member.process()?.log();
    ensure!(status.code() == Some(1), "exit code 1 is a failure that a service manager sees: {status}");
    let text = format!("member {id} has already been bootstrapped");
    let line =
        log.lines().rfind(|line| line.contains(&text)).with_context(|| format!("`{text}` in {log}"))?;
    for advice in ["data directory", "must not come back", "cannot replace a member"] {
        ensure!(line.contains(advice), "`{advice}` is not in: {line}");
    }
    Ok(())
}

/// A member that has forgotten its votes and its log under its old id could make acknowledged writes disappear.
#[test]
fn a_member_whose_data_was_wiped_does_not_come_back_under_its_old_id() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (mut cluster, _certs) = started(&fabric)?;
    let leader = cluster.wait_leader(&ALL)?;
    let (a, b) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[leader].endpoint().set("/load/kept", "1")?;
    let members = cluster.members[leader].endpoint().get("/v2/members")?.json()?;
    let name = cluster.members[a].name.clone();
    let list = members["members"].as_array().context("members")?;
    let id = list.iter().find(|m| m["name"] == name.as_str()).and_then(|m| m["id"].as_str());
    let id = id.with_context(|| format!("{name} in {members}"))?.to_owned();

    cluster.members[a].kill9()?;
    std::fs::remove_dir_all(&cluster.members[a].data_dir)?;
    is_turned_away(&mut cluster.members[a], &id).context("both others run")?;
    // The empty log that it left behind makes no difference at the next attempt.
    is_turned_away(&mut cluster.members[a], &id).context("again")?;
    // Who takes a write without a quorum may keep it when the others come back, so it is the leader who goes.
    let down = cluster.wait_leader(&[leader, b])?;
    let b = if down == leader { b } else { leader };
    cluster.members[b].endpoint().set("/load/kept", "2")?;
    ensure!(cluster.members[down].endpoint().value("/load/kept", true)? == "2");
    let refused = cluster.members[b].process()?.wait_for_log("but has already been bootstrapped", SOON)?;
    ensure!(refused.contains(&format!("peer={id}")), "the others' log names it: {refused}");

    // The dangerous case: with the third down, the wiped one and the other would be a majority.
    cluster.members[down].kill9()?;
    is_turned_away(&mut cluster.members[a], &id).context("one other runs")?;
    let write = cluster.members[b].endpoint().set("/load/kept", "3");
    ensure!(write.is_err(), "one of three has taken a write");
    cluster.members[down].start()?;
    cluster.members[down].wait_healthy(SOON)?;
    ensure!(cluster.members[b].endpoint().value("/load/kept", true)? == "2");
    Ok(())
}

/// A new member waits for as many others as it needs, says so, and can be stopped meanwhile.
#[test]
fn a_new_member_waits_for_a_majority_and_can_be_stopped() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let certs = tempfile::tempdir()?;
    make_certificates(certs.path())?;
    let mut cluster = Cluster::on_fabric(&fabric, Server::Weft, certs.path())?;
    cluster.members[0].start()?;
    cluster.members[0].process()?.wait_for_log("asking the other members", SOON)?;
    ensure!(cluster.members[0].endpoint().get("/health").is_err(), "it serves clients before it is a member");
    let status = cluster.members[0].process()?.terminate(Duration::from_secs(5))?;
    ensure!(status.code() == Some(143), "128 + SIGTERM, as etcd: {status}");

    // Started again it is still new; and two of three are enough.
    cluster.members[0].start()?;
    cluster.members[1].start()?;
    for n in [0, 1] {
        cluster.members[n].wait_healthy(SOON)?;
    }
    cluster.members[0].endpoint().set("/load/x", "1")?;
    cluster.members[2].start()?;
    cluster.members[2].wait_healthy(SOON).context("the third joins later")?;
    ensure!(cluster.members[2].endpoint().value("/load/x", true)? == "1");
    same_index_everywhere(&cluster)
}

#[test]
fn keys_expire_under_a_new_leader_and_sigterm_hands_over() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (mut cluster, _certs) = started(&fabric)?;
    let leader = cluster.wait_leader(&ALL)?;
    let rest: Vec<usize> = ALL.into_iter().filter(|&n| n != leader).collect();
    let form = Some(("application/x-www-form-urlencoded", "value=1&ttl=10"));
    let set = Request { method: "PUT", target: "/v2/keys/load/short", body: form, ..Request::default() };
    ensure!(cluster.members[leader].endpoint().send(&set)?.status == 201);
    let before = cluster.members[rest[0]].endpoint().get("/v2/keys/load/short?quorum=true")?;
    ensure!(before.status == 200, "{}", before.text());

    cluster.members[leader].process()?.terminate(Duration::from_secs(10)).context("SIGTERM to the leader")?;
    let next = cluster.wait_leader(&rest)?;
    for &n in &rest {
        wait_for("the key to expire", SOON, || {
            let reply = cluster.members[n].endpoint().get("/v2/keys/load/short")?;
            ensure!(reply.status == 404, "{}", reply.text());
            Ok(())
        })?;
    }
    let indices = rest.iter().map(|&n| cluster.members[n].endpoint().get("/v2/keys/"));
    let indices: Vec<_> =
        indices.map(|r| Ok(r?.header("X-Etcd-Index").map(str::to_owned))).collect::<Result<_>>()?;
    ensure!(indices[0] == indices[1], "expired at different indices: {indices:?}");
    // A stop by SIGTERM is orderly: the log says so, and nothing waited for an election timeout.
    let log = cluster.members[next].process()?.log();
    ensure!(!log.contains("panicked"), "{log}");
    cluster.members[leader].start()?;
    cluster.members[leader].wait_healthy(SOON)?;
    same_index_everywhere(&cluster)
}

#[test]
fn a_member_that_is_cut_off_refuses_and_later_catches_up() -> Result<()> {
    let _turn = one_at_a_time();
    let fabric = Fabric::tutorial()?;
    let (mut cluster, _certs) = started(&fabric)?;
    for cut_the_leader in [false, true] {
        let leader = cluster.wait_leader(&ALL)?;
        let cut = if cut_the_leader { leader } else { (leader + 1) % 3 };
        let who = if cut_the_leader { "leader" } else { "follower" };
        let rest: Vec<usize> = ALL.into_iter().filter(|&n| n != cut).collect();
        let before = format!("before-{who}");
        cluster.members[rest[0]].endpoint().set("/load/x", &before)?;
        same_index_everywhere(&cluster)?;

        fabric.set_cable(cut, false)?;
        majority_goes_on(&cluster, &rest, &before, who).with_context(|| format!("the {who} is cut off"))?;
        minority_refuses(&cluster.members[cut].endpoint(), &before)
            .with_context(|| format!("cut-off {who}"))?;
        cluster.members[cut].process()?.wait_until("running on", SOON, |_| Ok(()))?;

        fabric.set_cable(cut, true)?;
        let latest = format!("during-{who}");
        wait_for("catching up", SOON, || {
            let value = cluster.members[cut].endpoint().value("/load/x", false)?;
            ensure!(value == latest, "it still says {value}");
            Ok(())
        })?;
        cluster.members[cut].wait_healthy(SOON)?;
        cluster.wait_leader(&ALL)?;
        let written = cluster.members[cut].endpoint().value("/load/minority", true);
        ensure!(written.is_err(), "the refused write came to be after all: {written:?}");
        same_index_everywhere(&cluster)?;
    }
    Ok(())
}

/// The two that see each other have a leader among them and take writes and quorum reads.
fn majority_goes_on(cluster: &Cluster<'_>, rest: &[usize], before: &str, who: &str) -> Result<()> {
    cluster.wait_leader(rest)?;
    let during = format!("during-{who}");
    for &n in rest {
        let endpoint = cluster.members[n].endpoint();
        ensure!(endpoint.value("/load/x", true)? == if n == rest[0] { before } else { &during });
        endpoint.set("/load/x", &during)?;
        ensure!(endpoint.value("/load/x", true)? == during);
    }
    Ok(())
}

/// Alone it answers plain reads from what it has, and nothing that needs the others.
fn minority_refuses(alone: &Endpoint<'_>, before: &str) -> Result<()> {
    let form = "application/x-www-form-urlencoded";
    let write = Request {
        method: "PUT",
        target: "/v2/keys/load/minority?prevExist=false",
        body: Some((form, "value=1")),
        ..Request::default()
    };
    let quorum = Request { target: "/v2/keys/load/x?quorum=true", ..Request::default() };
    let refused = |request: &Request<'_>| -> Result<()> {
        let reply = alone.send(request)?;
        let code = reply.json()?["errorCode"].clone();
        ensure!(reply.status == 500 && code == 300, "{}: {}: {}", request.target, reply.status, reply.text());
        Ok(())
    };
    // Both wait for their time-out of 7 s, so they do it together.
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| refused(&write));
        refused(&quorum).context("quorum read")?;
        writing.join().map_err(|_| anyhow!("panic"))?.context("write")
    })?;
    let plain = alone.value("/load/x", false)?;
    if plain != before {
        bail!("a plain read gives {plain}, not the {before} of before the cut");
    }
    let health = alone.get("/health")?;
    ensure!(health.status == 503, "health: {}: {}", health.status, health.text());
    Ok(())
}
