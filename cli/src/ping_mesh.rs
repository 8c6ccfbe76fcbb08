//! `cli ping-mesh`: every node probes every other over the overlay, and one command shows it all.
//!
//! Nothing here touches the overlay. A request goes into the store, each node's overlayd carries it out and writes
//! a report back (see [`overlay::mesh`]), and the [`verdict`] on leases and reports is a pure function.

mod show;
mod verdict;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use overlay::{
    mesh::{self, Report, Request},
    registry::Registry,
    types::Subnet,
    wire::lease::{Lease, parse_subnet_key},
};
use store::client::{Client, ClientError, DeleteOptions, GetOptions, PutOptions};

use crate::{
    args::{Format, StoreArgs},
    connect::{self, ConnectError},
    exit::Exit,
};

/// How much longer than the probes take the reports are waited for.
const GRACE: Duration = Duration::from_secs(3);

/// Probes every node from every other over the overlay and shows the matrix
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cli ping-mesh
  cli ping-mesh --endpoints https://192.168.31.63:2379 --ca-file ca.pem
  cli ping-mesh --count 20 --interval-ms 50 -o json

Rows probe, columns answer; a cell holds the median round trip and what was lost. The probes are
made by the nodes' overlayd: `no report` means that none is at work there, or a flanneld.

Exit codes: 0 every node reaches every other; 1 something is not reachable, or fewer than two nodes;
2 usage")]
pub(crate) struct PingMeshArgs {
    /// Where overlayd keeps its network in the store
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network")]
    prefix: String,
    /// Probes from each node to each other
    #[arg(long, value_name = "N", default_value_t = 3)]
    count: u32,
    /// Milliseconds between two probes to the same node
    #[arg(long, value_name = "MS", default_value_t = 100)]
    interval_ms: u64,
    /// Milliseconds to wait for answers after the last probe
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    timeout_ms: u64,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// What nodes have reported, by their subnet; the error where a report cannot be read.
type Reports = BTreeMap<Subnet, Result<Report, String>>;

/// Why there is no matrix.
#[derive(Debug, thiserror::Error)]
enum MeshError {
    #[error("{0}")]
    Arguments(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{what}: {source}")]
    Store { what: String, source: ClientError },
    #[error("{what}: no answer within {limit:?}; raise --total-timeout to wait longer")]
    Slow { what: String, limit: Duration },
}

/// Runs `cli ping-mesh`.
///
/// # Errors
/// Those of `out` and `err`; everything else is printed and in the exit code.
pub(crate) async fn run(
    args: &PingMeshArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    let (leases, reports) = match gather(args).await {
        Ok(gathered) => gathered,
        Err(error) => {
            writeln!(err, "Error:  {error}")?;
            return Ok(match error {
                MeshError::Arguments(_) | MeshError::Connect(ConnectError::Settings(_)) => Exit::Usage,
                MeshError::Connect(ConnectError::Sync(_))
                | MeshError::Store { .. }
                | MeshError::Slow { .. } => Exit::Failure,
            });
        }
    };
    let mesh = verdict::judge(&leases, &reports);
    match args.store.output {
        Format::Json => show::json(out, &mesh)?,
        Format::Simple | Format::Extended => show::text(out, &mesh, &args.prefix)?,
    }
    Ok(if mesh.is_complete() { Exit::Success } else { Exit::Failure })
}

async fn gather(args: &PingMeshArgs) -> Result<(Vec<Lease>, Reports), MeshError> {
    let request = Request {
        version: mesh::VERSION,
        count: args.count,
        interval_ms: args.interval_ms,
        timeout_ms: args.timeout_ms,
    };
    request
        .check()
        .map_err(|e| MeshError::Arguments(format!("--count, --interval-ms, --timeout-ms: {e}")))?;
    if args.store.output == Format::Extended {
        let text = "--output extended is for key commands; ping-mesh has simple and json";
        return Err(MeshError::Arguments(text.to_owned()));
    }
    if !args.prefix.starts_with('/') {
        return Err(MeshError::Arguments(format!("--prefix {}: a key begins with /", args.prefix)));
    }
    let limit = connect::total_timeout(&args.store);
    let slow = |what: String| MeshError::Slow { what, limit };
    let client = match tokio::time::timeout(limit, connect::synced_client(&args.store)).await {
        Ok(client) => client?,
        Err(_) => return Err(slow("the list of members".to_owned())),
    };
    let what = format!("the leases under {}/subnets", args.prefix.trim_end_matches('/'));
    let listing = match tokio::time::timeout(limit, Registry::new(client.clone(), &args.prefix).list()).await
    {
        Ok(Ok(listing)) => listing,
        Ok(Err(source)) => return Err(MeshError::Store { what, source }),
        Err(_) => return Err(slow(what)),
    };
    if listing.leases.len() < 2 {
        return Ok((listing.leases, Reports::new()));
    }
    let id = mesh::format_id(rand::random());
    let answered = ask(&client, &args.prefix, &id, &request, &listing.leases).await;
    // Their TTL would remove them too; this only spares the store. The answer does not depend on it.
    let recursive = DeleteOptions { recursive: true, ..DeleteOptions::default() };
    // The request goes first: a daemon that is late finds it gone, and writes nothing.
    let cleaning = async {
        let _ = client.delete(&mesh::request_key(&args.prefix, &id), recursive.clone()).await;
        let _ = client.delete(&mesh::results_dir(&args.prefix, &id), recursive.clone()).await;
    };
    let _ = tokio::time::timeout(limit, cleaning).await;
    let what = format!("the probes' request and reports under {}/mesh", args.prefix.trim_end_matches('/'));
    let reports = answered.map_err(|source| MeshError::Store { what, source })?;
    Ok((listing.leases, reports))
}

/// Writes the request and collects reports until every one of `leases` has sent its own or time is up.
async fn ask(
    client: &Client,
    prefix: &str,
    id: &str,
    request: &Request,
    leases: &[Lease],
) -> Result<Reports, ClientError> {
    let ttl = Some(mesh::TTL_S);
    let results = mesh::results_dir(prefix, id);
    client.put(&results, PutOptions { dir: true, ttl, ..PutOptions::default() }).await?;
    let value = serde_json::to_string(request).ok();
    client.put(&mesh::request_key(prefix, id), PutOptions { value, ttl, ..PutOptions::default() }).await?;
    let probing = u64::from(request.count) * request.interval_ms + request.timeout_ms;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(probing) + GRACE;
    let mut reports = Reports::new();
    loop {
        let listing = client.get(&results, GetOptions { recursive: true, quorum: true, sorted: true });
        let listing = match listing.await {
            // An election, for one, passes while there is time.
            Err(error @ ClientError::Unavailable { .. }) if tokio::time::Instant::now() < deadline => {
                tracing::debug!("reading {results}: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
            other => other?,
        };
        for node in listing.node.iter().flat_map(|dir| &dir.nodes) {
            if let Some(subnet) = parse_subnet_key(&node.key) {
                reports.insert(subnet, read(node.value.as_deref().unwrap_or_default()));
            }
        }
        // Counting is not enough: a node that has joined since reports as well.
        if leases.iter().all(|lease| reports.contains_key(&lease.subnet)) {
            return Ok(reports);
        }
        let change = client.watch_once(&results, Some(listing.etcd_index + 1), true);
        match tokio::time::timeout_at(deadline, change).await {
            // What was silent until now stays silent.
            Err(_) => return Ok(reports),
            Ok(Ok(_)) => {}
            // The endpoint went away or the history has gone past us: the next listing tells.
            Ok(Err(error)) => {
                tracing::debug!("watching {results}: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

fn read(text: &str) -> Result<Report, String> {
    let report: Report = serde_json::from_str(text).map_err(|e| format!("its report cannot be read: {e}"))?;
    if report.version == mesh::VERSION {
        Ok(report)
    } else {
        Err(format!(
            "its report has version {}, not {}: use the same release of cli and overlayd",
            report.version,
            mesh::VERSION
        ))
    }
}
