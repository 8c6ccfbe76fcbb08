//! Under real faults every answer must make sense: the whole history is linearizable, nothing acknowledged is lost,
//! the members end up equal, and watches are ordered and gap-free or say that they are not.
//!
//! Three members over TLS, each in a namespace of its own; clients that read through a quorum, write, create, swap and
//! delete a few keys through all members; a follower for each member; and a schedule of faults from a seed: see
//! [`weft_tests::faults`]. The short form runs with the other tests; the long one is
//!
//! ```sh
//! WEFT_FAULT_ROUNDS=100 cargo test -p weft-tests --test linear -- --nocapture
//! ```
//!
//! `WEFT_FAULT_SEED` repeats a schedule. It does not repeat a run: threads, disks and the network take their own time.

#![expect(
    clippy::disallowed_methods,
    reason = "faults last for a real while, and the checker's time is told"
)]
#![expect(clippy::print_stdout, reason = "a long run says where it is and what it was")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use weft_tests::cluster::{Cluster, Server};
use weft_tests::dice::Dice;
use weft_tests::fabric::Fabric;
use weft_tests::faults::{Victim, schedule};
use weft_tests::follow::{Follower, Seen as Followed, check_followers};
use weft_tests::history::{self, Outcome, Record};
use weft_tests::key_model::{Answer, Ask};
use weft_tests::load::{DIRECTORY, Load};
use weft_tests::tutorial::make_certificates;
use weft_tests::v2::Endpoint;
use weft_tests::wait::wait_for;

const ALL: [usize; 3] = [0, 1, 2];
/// Clients: one beside each member, and as many that ask all members.
const CLIENTS: usize = 6;
/// Rounds of the short form: every kind of fault once.
const ROUNDS: usize = 11;
const SOON: Duration = Duration::from_secs(60);
/// Steps that the checker may take for one key; a linearizable history takes about one for each call.
const CHECK_STEPS: u64 = 20_000_000;

/// What a run was.
struct Run {
    history: Vec<Record>,
    followed: Vec<Followed>,
    /// The index that all members and followers have reached.
    last: u64,
    /// The directory as each member has it at that index.
    left: Vec<Value>,
}

fn setting(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text}: not a number"))).transpose()
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs()) % 1_000_000
}

#[test]
fn every_history_under_faults_is_linearizable() -> Result<()> {
    let rounds = setting("WEFT_FAULT_ROUNDS")?.map_or(Ok(ROUNDS), usize::try_from)?;
    let seed = setting("WEFT_FAULT_SEED")?.unwrap_or_else(fresh_seed);
    println!("{rounds} rounds; WEFT_FAULT_SEED={seed}");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("linear-{seed}"));
    let fabric = Fabric::tutorial()?;
    let certs = tempfile::tempdir()?;
    make_certificates(certs.path())?;
    let mut cluster = Cluster::on_fabric(&fabric, Server::Weft, certs.path())?;
    for member in &mut cluster.members {
        // Elections fit into a round, and a member that was away for one may need a snapshot.
        for flag in ["--heartbeat-interval=50", "--election-timeout=500", "--snapshot-count=100"] {
            member.push_flag(flag);
        }
    }
    cluster.start()?;
    let mut victim = Victim { fabric: &fabric, cluster: &mut cluster };
    let load = Load::new(ALL.len());
    let outcome = run(&mut victim, &load, seed, rounds);
    let outcome = outcome.map_err(|error| (error, load.take_history())).and_then(|run| {
        let begin = Instant::now();
        check(&run).map_err(|error| (error, run.history.clone()))?;
        report(&run, begin.elapsed());
        Ok(())
    });
    outcome.map_err(|(error, history)| {
        let place = keep(&history, &cluster, &kept);
        error.context(format!("WEFT_FAULT_SEED={seed}, {rounds} rounds; history and logs: {place}"))
    })
}

/// Saves what a failure is understood from.
fn keep(history: &[Record], cluster: &Cluster<'_>, place: &Path) -> String {
    let saved = std::fs::create_dir_all(place).map_err(Into::into).and_then(|()| {
        history::write(history, &place.join("history.jsonl"))?;
        cluster.members.iter().try_for_each(|member| member.keep_log(place))
    });
    match saved {
        Ok(()) => place.display().to_string(),
        Err(error) => format!("could not be kept: {error:#}"),
    }
}

/// Runs the faults while clients and followers are at work, then brings everything to an end.
fn run(victim: &mut Victim<'_, '_>, load: &Load, seed: u64, rounds: usize) -> Result<Run> {
    let endpoints = ALL.map(|n| victim.cluster.members[n].endpoint());
    let followers = ALL.map(|_| Follower::default());
    let from = victim.wait_level()? + 1;
    let (ended, endpoints) = (AtomicBool::new(false), &endpoints);
    let stopped = || ended.load(Ordering::Relaxed);
    let follow = |n: usize| followers[n].follow(&endpoints[n], DIRECTORY, from, stopped);
    let follow = &follow;
    let mut run = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || load.client(n, seed, ALL.get(n).copied(), endpoints)))
            .collect();
        let following: Vec<_> = ALL.into_iter().map(|n| scope.spawn(move || follow(n))).collect();
        let suffered = faults(victim, load, seed, rounds);
        load.stop();
        let asked: Vec<_> = clients.into_iter().map(ScopedJoinHandle::join).collect();
        let left = suffered.and_then(|()| end(victim, &followers));
        ended.store(true, Ordering::Relaxed);
        let followed: Vec<_> = following.into_iter().map(ScopedJoinHandle::join).collect();
        let panicked = |_| anyhow!("a client panicked");
        asked.into_iter().try_for_each(|client| client.map_err(panicked)?)?;
        let (last, left) = left?;
        let followed = followed.into_iter().map(|seen| seen.map_err(panicked)?).collect::<Result<_>>()?;
        Ok::<Run, anyhow::Error>(Run { history: Vec::new(), followed, last, left })
    })?;
    run.history = load.take_history();
    let reads = final_reads(&run, load.now_ns())?;
    run.history.extend(reads);
    Ok(run)
}

/// The rounds.
fn faults(victim: &mut Victim<'_, '_>, load: &Load, seed: u64, rounds: usize) -> Result<()> {
    let mut dice = Dice::new(seed);
    let begin = Instant::now();
    for (round, fault) in schedule(&mut dice, rounds).into_iter().enumerate() {
        let context = || format!("round {round}, {fault:?}");
        load.wait_answers(&ALL, 10, SOON).with_context(context)?;
        lasts(dice.roll(400));
        let hold = dice.roll(1200);
        let meanwhile = |majority: &[usize]| {
            // The others go on while the fault lasts; where nobody can, it just lasts.
            load.wait_answers(majority, 10, SOON)?;
            lasts(hold);
            Ok(())
        };
        victim.suffer(fault, &mut dice, meanwhile).with_context(context)?;
        println!("{:6.1?} round {round}: {fault:?}", begin.elapsed());
    }
    load.wait_answers(&ALL, 10, SOON)
}

/// How long a fault or the peace between two of them lasts: part of the schedule, nothing waits for it.
fn lasts(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// No client is at work any more: all members and followers get to the same index, and show what they have there.
fn end(victim: &Victim<'_, '_>, followers: &[Follower; 3]) -> Result<(u64, Vec<Value>)> {
    let endpoints = ALL.map(|n| victim.cluster.members[n].endpoint());
    // What is still on its way is decided before this is; and followers have something to arrive at.
    let last = wait_for("the last write", SOON, || endpoints[0].set(&format!("{DIRECTORY}/last"), "0"))?;
    let last = last["node"]["modifiedIndex"].as_u64().with_context(|| format!("index of {last}"))?;
    victim.wait_level()?;
    for (n, follower) in followers.iter().enumerate() {
        wait_for("the follower to arrive", SOON, || {
            let reached = follower.reached();
            ensure!(reached >= last, "member {n}: {reached} of {last}");
            Ok(())
        })?;
    }
    let left = endpoints.iter().map(|endpoint| listing(endpoint)).collect::<Result<Vec<_>>>()?;
    Ok((last, left))
}

/// The directory as a member shows it through a quorum, which must be what it shows by itself.
fn listing(endpoint: &Endpoint<'_>) -> Result<Value> {
    let read = |quorum: bool| {
        let target = format!("/v2/keys{DIRECTORY}?recursive=true&sorted=true&quorum={quorum}");
        endpoint.get(&target)?.json()
    };
    let (quorum, local) = (read(true)?, read(false)?);
    ensure!(quorum == local, "through a quorum {quorum}, by itself {local}");
    Ok(quorum)
}

/// What is left in the end, as reads of every key that was ever asked for: they are part of the history.
fn final_reads(run: &Run, now_ns: u64) -> Result<Vec<Record>> {
    let keys: BTreeSet<&str> = run.history.iter().map(|record| record.key.as_str()).collect();
    let mut reads = Vec::new();
    for (member, listing) in run.left.iter().enumerate() {
        let nodes = listing["node"]["nodes"].as_array().with_context(|| format!("nodes of {listing}"))?;
        for &key in &keys {
            let node = nodes.iter().find(|node| node["key"] == key);
            let answer = node.map(history::seen).transpose()?.map_or(Answer::Absent, Answer::Found);
            reads.push(Record {
                client: CLIENTS,
                member,
                key: key.to_owned(),
                ask: Ask::Get,
                invoked_ns: now_ns,
                returned_ns: now_ns,
                outcome: Outcome::Answered(answer, run.last),
            });
        }
    }
    Ok(reads)
}

fn check(run: &Run) -> Result<()> {
    ensure!(run.left.windows(2).all(|pair| pair[0] == pair[1]), "the members differ: {:#?}", run.left);
    let acknowledged = history::acknowledged(&run.history);
    ensure!(!acknowledged.is_empty(), "no write was acknowledged at all: the test has tested nothing");
    history::check_indices(&run.history)?;
    history::check_linearizable(&run.history, CHECK_STEPS)?;
    check_followers(&run.followed, &acknowledged, run.last)
}

fn report(run: &Run, checked_in: Duration) {
    let counts = history::counts(&run.history);
    println!(
        "{} requests of {} keys: {} answered, {} had certainly no effect, {} of unknown outcome; checked in {checked_in:.1?}",
        run.history.len(),
        counts.keys,
        counts.answered,
        counts.failed,
        counts.unknown
    );
    for (n, followed) in run.followed.iter().enumerate() {
        let Followed { events, gaps, retries } = followed;
        println!("follower {n}: {} events, {} times error 401, {retries} retries", events.len(), gaps.len());
    }
}
