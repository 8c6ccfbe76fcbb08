//! Three members of ours and three of Debian's etcd under the same load, in turns.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use weft_tests::cluster::{Cluster, Server};
use weft_tests::command;

use crate::load::{self, KEYS, Operation, Outcome, VALUE_BYTES};
use crate::report::{Machine, Report, median};

const WARM_UP: Duration = Duration::from_millis(500);
const SERVERS: [Server; 2] = [Server::Weft, Server::Debian];
const OPERATIONS: [(Operation, &str); 3] =
    [(Operation::Put, "put"), (Operation::Get, "get"), (Operation::QuorumGet, "quorum get")];

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// How often both clusters have their turn; the table shows medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Length of one measurement in seconds, after half a second of warming up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Numbers of connections to measure at.
    #[arg(long, default_values_t = [1, 64], value_delimiter = ',', value_parser = connections)]
    connections: Vec<usize>,
    /// Measure only these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Operation>,
}

impl StoreArgs {
    fn operations(&self) -> impl Iterator<Item = (Operation, &'static str)> + '_ {
        OPERATIONS.into_iter().filter(|(it, _)| self.only.is_empty() || self.only.contains(it))
    }
}

fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("a number from 1 to 1024".to_owned()),
    }
}

/// One measurement of one cluster.
#[derive(Debug)]
struct Measured {
    round: u32,
    server: Server,
    operation: &'static str,
    connections: usize,
    outcome: Outcome,
    /// Processor time of the members for each request, warming up included, in microseconds.
    cpu_us: f64,
}

/// Resident memory of one member at the end of a round.
#[derive(Debug)]
struct Resident {
    round: u32,
    server: Server,
    kib: f64,
}

/// Runs the whole comparison.
///
/// # Errors
/// When a program is missing, a cluster does not start, or a request fails.
pub(crate) fn run(args: &StoreArgs) -> Result<Report> {
    let mut measured = Vec::new();
    let mut resident = Vec::new();
    for round in 1..=args.rounds {
        for server in SERVERS {
            eprintln!("round {round} of {}: {}", args.rounds, name(server));
            one_turn(args, round, server, &mut measured, &mut resident)
                .with_context(|| format!("round {round}, {}", name(server)))?;
        }
    }
    let mut version = Command::new(Server::Debian.program()?);
    let version = command::run(version.arg("--version"))?.stdout;
    Ok(Report {
        method: vec![
            format!(
                "three members each on loopback without TLS, in turns on fresh data; {} rounds of {} s, medians",
                args.rounds, args.seconds
            ),
            format!(
                "rival: Debian's {} with --enable-v2=true, otherwise its defaults",
                version.lines().next().unwrap_or_default()
            ),
            format!(
                "connections are dealt out to all members, the leader first (so 1 connection is to the leader); \
                 {KEYS} keys per connection, values of {VALUE_BYTES} bytes, closed loop"
            ),
            "cpu is the processor time of all three members for each request".to_owned(),
        ],
        machine: Machine::here(),
        columns: [
            "", "ours /s", "etcd /s", "ratio", "ours p50", "etcd p50", "ours p99", "etcd p99", "ours cpu",
            "etcd cpu",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: rows(args, &measured, &resident),
        rounds: rounds(&measured, &resident),
    })
}

/// Starts one cluster on fresh data, measures everything, stops it.
fn one_turn(
    args: &StoreArgs,
    round: u32,
    server: Server,
    measured: &mut Vec<Measured>,
    resident: &mut Vec<Resident>,
) -> Result<()> {
    let mut cluster = Cluster::on_loopback(server, 3)?;
    cluster.start()?;
    let leader = cluster.wait_leader(&[0, 1, 2])?;
    let targets: Vec<SocketAddr> =
        (0..3).map(|n| cluster.members[(leader + n) % 3].endpoint().address).collect();
    for &connections in &args.connections {
        load::fill(&targets, connections).context("writing the keys")?;
        for (operation, name) in args.operations() {
            let length = Duration::from_secs(args.seconds);
            let before = cpu_time(&mut cluster)?;
            let outcome = load::run(&targets, operation, connections, WARM_UP, length)
                .with_context(|| format!("{name} at {connections} connections"))?;
            let busy = cpu_time(&mut cluster)?.saturating_sub(before);
            let cpu_us = busy.as_secs_f64() * 1e6 / (outcome.per_second * (WARM_UP + length).as_secs_f64());
            measured.push(Measured { round, server, operation: name, connections, outcome, cpu_us });
        }
    }
    for member in &mut cluster.members {
        let kib = f64::from(u32::try_from(member.process()?.resident_kib()?)?);
        resident.push(Resident { round, server, kib });
    }
    Ok(())
}

fn cpu_time(cluster: &mut Cluster) -> Result<Duration> {
    cluster.members.iter_mut().map(|member| member.process()?.cpu_time()).sum()
}

fn name(server: Server) -> &'static str {
    match server {
        Server::Weft => "ours",
        Server::Debian => "etcd",
    }
}

fn rows(args: &StoreArgs, measured: &[Measured], resident: &[Resident]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (_, operation) in args.operations() {
        for &connections in &args.connections {
            let of = |server: Server, value: fn(&Measured) -> f64| {
                let all = measured.iter().filter(|m| {
                    m.server == server && m.operation == operation && m.connections == connections
                });
                median(all.map(value))
            };
            let per_second: fn(&Measured) -> f64 = |m| m.outcome.per_second;
            let (ours, theirs) = (of(Server::Weft, per_second), of(Server::Debian, per_second));
            let milliseconds = |server, value| format!("{:.2} ms", of(server, value) / 1000.0);
            rows.push(vec![
                format!("{operation}, {connections} connection{}", if connections == 1 { "" } else { "s" }),
                format!("{ours:.0}"),
                format!("{theirs:.0}"),
                format!("{:.2}", ours / theirs),
                milliseconds(Server::Weft, |m| m.outcome.p50_us),
                milliseconds(Server::Debian, |m| m.outcome.p50_us),
                milliseconds(Server::Weft, |m| m.outcome.p99_us),
                milliseconds(Server::Debian, |m| m.outcome.p99_us),
                format!("{:.0} us", of(Server::Weft, |m| m.cpu_us)),
                format!("{:.0} us", of(Server::Debian, |m| m.cpu_us)),
            ]);
        }
    }
    let of = |server| median(resident.iter().filter(|r| r.server == server).map(|r| r.kib)) / 1024.0;
    let (ours, theirs) = (of(Server::Weft), of(Server::Debian));
    rows.push(vec![
        "resident memory of a member".to_owned(),
        format!("{ours:.1} MiB"),
        format!("{theirs:.1} MiB"),
        format!("{:.2}", ours / theirs),
    ]);
    rows
}

fn rounds(measured: &[Measured], resident: &[Resident]) -> serde_json::Value {
    let measured = measured.iter().map(|m| {
        json!({
            "round": m.round, "server": name(m.server), "operation": m.operation, "connections": m.connections,
            "per_second": m.outcome.per_second, "p50_us": m.outcome.p50_us, "p99_us": m.outcome.p99_us,
            "cpu_us": m.cpu_us,
        })
    });
    let resident =
        resident.iter().map(|r| json!({"round": r.round, "server": name(r.server), "resident_kib": r.kib}));
    json!({ "load": measured.collect::<Vec<_>>(), "memory": resident.collect::<Vec<_>>() })
}
