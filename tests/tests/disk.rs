//! Full and stalled disks under real members: each has its data on a small file system of its own, which is filled, and
//! frozen with fsfreeze(8) as a disk would stall that answers no more.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::command;
use weft_tests::http::Request;
use weft_tests::process::one_at_a_time;
use weft_tests::programs;
use weft_tests::volume::Volume;
use weft_tests::wait::wait_for;

const ALL: [usize; 3] = [0, 1, 2];
const SOON: Duration = Duration::from_secs(30);

/// Three members, each on a volume of its own.
fn on_volumes(volumes: &[Volume]) -> Result<Cluster<'static>> {
    let mut cluster = Cluster::on_loopback(Server::Weft, volumes.len())?;
    for (member, volume) in cluster.members.iter_mut().zip(volumes) {
        let data_dir = volume.path().join("data");
        member.set_flag("data-dir", &data_dir.display().to_string())?;
        member.data_dir = data_dir;
    }
    cluster.start()?;
    Ok(cluster)
}

fn volumes() -> Result<Vec<Volume>> {
    ALL.iter().map(|_| Volume::new()).collect()
}

/// Writes `count` keys of `size` bytes to one member; all must be acknowledged.
fn write(cluster: &Cluster<'_>, to: usize, name: &str, count: usize, size: usize) -> Result<()> {
    for n in 0..count {
        let value = format!("{n}-{}", "v".repeat(size));
        cluster.members[to].endpoint().set(&format!("/{name}/{n}"), &value)?;
    }
    Ok(())
}

/// Waits until a member has all that [`write`] wrote, in its own state.
fn has_all(cluster: &Cluster<'_>, member: usize, name: &str, count: usize) -> Result<()> {
    let endpoint = cluster.members[member].endpoint();
    wait_for(&format!("all of /{name} on {}", cluster.members[member].name), SOON, || {
        for n in (0..count).rev() {
            let value = endpoint.value(&format!("/{name}/{n}"), false)?;
            ensure!(value.starts_with(&format!("{n}-")), "/{name}/{n}: {value:.20}");
        }
        Ok(())
    })
}

/// Waits until a member says that it has too little room, and why.
fn is_short_of_room(cluster: &Cluster<'_>, member: usize) -> Result<()> {
    wait_for("an alarm", SOON, || {
        let reply = cluster.members[member].endpoint().get("/health")?;
        let text = reply.text();
        ensure!(reply.status == 503 && text.contains("no space: "), "{}: {text}", reply.status);
        Ok(())
    })
}

/// Waits until another member tells of it too; `cli health`, which asks them all, shows one alarm and not two.
fn is_told_once(cluster: &Cluster<'_>, full: usize, other: usize) -> Result<()> {
    let other = cluster.members[other].endpoint();
    wait_for("an alarm that all know of", SOON, || {
        let said = other.get("/health")?.json()?;
        ensure!(said["alarms"][0]["alarm"] == "NOSPACE" && said["health"] == "true", "{said}");
        Ok(())
    })?;
    let own = cluster.members[full].endpoint().get("/health")?.json()?;
    ensure!(own["alarms"].as_array().is_some_and(|alarms| alarms.len() == 1), "{own}");
    let mut cli = Command::new(programs::ours("cli")?);
    cli.args(["health", "-o", "json", "--endpoints", &format!("http://{}", other.address)]);
    // While another leader is being found nobody is healthy.
    wait_for("one alarm and two healthy members", SOON, || {
        let report: serde_json::Value = serde_json::from_str(command::run(&mut cli)?.exits(1)?)?;
        ensure!(report["alarms"].as_array().is_some_and(|alarms| alarms.len() == 1), "{report}");
        ensure!(report["members_healthy"] == 2, "{report}");
        Ok(())
    })
}

fn refuses_writes(cluster: &Cluster<'_>, member: usize) -> Result<()> {
    let refused = cluster.members[member].endpoint().set("/refused", "x");
    let text = format!("{:#}", refused.err().context("a member without room takes a write")?);
    ensure!(text.contains("no space: ") && text.contains("MiB free"), "{text}");
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_and_is_left_behind_without_a_restart() -> Result<()> {
    let _turn = one_at_a_time();
    let volumes = volumes()?;
    let mut cluster = on_volumes(&volumes)?;
    let full = cluster.wait_leader(&ALL)?;
    let other = (full + 1) % 3;
    write(&cluster, full, "before", 5, 10)?;
    let reserve = volumes[full].path().join("data/member/log/reserve");
    ensure!(reserve.metadata().context("reserve")?.len() == 16 << 20);

    // Little room: no writes through this member, and another one leads. It follows nevertheless.
    volumes[full].fill(20 << 20)?;
    is_short_of_room(&cluster, full)?;
    refuses_writes(&cluster, full)?;
    is_told_once(&cluster, full, other)?;
    wait_for("another leader", SOON, || {
        let leader = cluster.wait_leader(&ALL)?;
        ensure!(leader != full, "the member without room still leads");
        Ok(())
    })?;
    write(&cluster, other, "low", 5, 10)?;
    has_all(&cluster, full, "low", 5)?;

    // None at all: first the reserve goes, then the member waits; the others go on, and it answers reads.
    volumes[full].fill(0)?;
    write(&cluster, other, "none", 300, 100_000)?;
    cluster.members[full].process()?.wait_for_log("let go of the reserve", SOON)?;
    has_all(&cluster, full, "before", 5)?;
    let behind = cluster.members[full].endpoint().value("/none/299", false);
    ensure!(behind.is_err(), "it has taken more than there was room for: the test has tested nothing");
    refuses_writes(&cluster, full)?;
    ensure!(cluster.members[full].process()?.is_running()?);

    // Room again: nobody starts anything.
    volumes[full].clear()?;
    cluster.members[full].wait_healthy(SOON)?;
    has_all(&cluster, full, "none", 300)?;
    write(&cluster, full, "after", 5, 10)?;
    wait_for("the reserve", SOON, || {
        ensure!(reserve.metadata()?.len() == 16 << 20);
        Ok(())
    })?;
    let log = cluster.members[full].process()?.log();
    ensure!(log.matches("client writes are refused").count() == 1, "said once: {log}");
    ensure!(log.contains("there is space again"), "{log}");

    // And what it has it has on disk.
    cluster.members[full].kill9()?;
    cluster.members[full].start()?;
    cluster.members[full].wait_healthy(SOON)?;
    has_all(&cluster, full, "none", 300)?;
    has_all(&cluster, full, "after", 5)
}

#[test]
fn when_all_disks_are_full_reads_go_on_until_there_is_room() -> Result<()> {
    let _turn = one_at_a_time();
    let volumes = volumes()?;
    let mut cluster = on_volumes(&volumes)?;
    write(&cluster, 0, "kept", 5, 10)?;
    for volume in &volumes {
        volume.fill(10 << 20)?;
    }
    for n in ALL {
        is_short_of_room(&cluster, n)?;
        refuses_writes(&cluster, n)?;
        ensure!(cluster.members[n].endpoint().value("/kept/0", true)?.starts_with("0-"));
    }
    for volume in &volumes {
        volume.clear()?;
    }
    cluster.wait_healthy()?;
    for n in ALL {
        write(&cluster, n, &format!("again-{n}"), 5, 10)?;
    }
    Ok(())
}

/// A few keys are written again and again, so that log and image together would take more than the disk has: the member
/// makes room before there is an alarm, or soon after.
#[test]
fn a_disk_that_a_member_fills_by_itself_it_also_empties() -> Result<()> {
    const MIB: usize = 768;
    let _turn = one_at_a_time();
    let volumes = [Volume::with_mib(MIB as u64)?];
    let mut cluster = on_volumes(&volumes)?;
    cluster.wait_healthy()?;
    let endpoint = cluster.members[0].endpoint();
    let value = "v".repeat(1 << 20);
    let mut written = 0;
    while written < 450 {
        let Err(error) = endpoint.set(&format!("/k{}", written % 4), &value) else {
            written += 1;
            continue;
        };
        ensure!(format!("{error:#}").contains("no space"), "{error:#}");
        cluster.members[0].wait_healthy(SOON).with_context(|| format!("after {written} writes"))?;
    }

    endpoint.set("/k0", "last")?;
    cluster.members[0].kill9()?;
    cluster.members[0].start()?;
    cluster.members[0].wait_healthy(SOON)?;
    ensure!(endpoint.value("/k0", false)? == "last" && endpoint.value("/k1", false)? == value);
    Ok(())
}

#[test]
fn deletes_are_taken_and_durable_while_writes_are_refused() -> Result<()> {
    let _turn = one_at_a_time();
    let volumes = [Volume::new()?];
    let mut cluster = on_volumes(&volumes)?;
    cluster.wait_healthy()?;
    write(&cluster, 0, "kept", 3, 100_000)?;
    volumes[0].fill(20 << 20)?;
    is_short_of_room(&cluster, 0)?;
    refuses_writes(&cluster, 0)?;
    let endpoint = cluster.members[0].endpoint();
    let delete = Request { method: "DELETE", target: "/v2/keys/kept/1", ..Request::default() };
    let reply = endpoint.send(&delete)?;
    ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
    refuses_writes(&cluster, 0)?;
    cluster.members[0].kill9()?;
    volumes[0].clear()?;
    cluster.members[0].start()?;
    cluster.members[0].wait_healthy(SOON)?;
    ensure!(endpoint.get("/v2/keys/kept/1")?.status == 404, "it was deleted");
    ensure!(endpoint.value("/kept/2", false)?.starts_with("2-"));
    Ok(())
}

#[test]
fn a_leader_whose_disk_stalls_is_replaced_and_takes_part_again() -> Result<()> {
    let _turn = one_at_a_time();
    let volumes = volumes()?;
    let mut cluster = on_volumes(&volumes)?;
    let stalled = cluster.wait_leader(&ALL)?;
    let rest: Vec<usize> = ALL.into_iter().filter(|&n| n != stalled).collect();
    write(&cluster, stalled, "before", 20, 10)?;
    {
        let _frozen = volumes[stalled].freeze()?;
        // A write that the leader cannot sync makes it stall; it may be acknowledged by the others under the next.
        let next = wait_for("another leader", SOON, || {
            let _ = cluster.members[rest[0]].endpoint().set("/probe", "x");
            cluster.wait_leader(&rest)
        })?;
        ensure!(next != stalled);
        write(&cluster, rest[0], "meanwhile", 50, 10)?;
        has_all(&cluster, stalled, "before", 20).context("reads of a stalled member")?;
        ensure!(cluster.members[stalled].process()?.is_running()?);
    }
    cluster.members[stalled].wait_healthy(SOON)?;
    for name in [("before", 20), ("meanwhile", 50)] {
        has_all(&cluster, stalled, name.0, name.1)?;
    }
    write(&cluster, stalled, "after", 20, 10)?;
    for n in ALL {
        has_all(&cluster, n, "after", 20)?;
    }
    Ok(())
}
