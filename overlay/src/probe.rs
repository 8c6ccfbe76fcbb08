//! The daemon's part of `cli ping-mesh`: answers echoes on the device's address, and carries out the requests that
//! appear in the store. What the messages mean is in [`crate::mesh`].
//!
//! Echoes are answered only on the overlay address, only to addresses of the overlay, at most [`REPLIES_PER_S`] a
//! second, and with exactly as many bytes as came in: nothing here amplifies. Requests come only through the store,
//! so whoever may write there may ask.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use store::client::{Client, ClientError, GetOptions, Node, PutOptions};
use tokio::net::UdpSocket;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::mesh::{self, ECHO_BYTES, Echo, PORT, Probe, Report, Request, Round, Target, VERSION};
use crate::types::Subnet;

/// The most echoes answered in a second.
pub const REPLIES_PER_S: u32 = 5_000;
/// Requests carried out at the same time; more are refused with a warning.
const CONCURRENT: usize = 4;
/// Datagrams sent back to back before a pause of a millisecond, so that a large mesh does not flood its uplink.
const BURST: usize = 64;
/// Requests remembered so as not to be carried out twice.
const REMEMBERED: usize = 256;
const RETRY: Duration = Duration::from_secs(1);
/// How long a quiet watch is trusted; requests live for a minute. The listing that follows goes through consensus,
/// and so to a member that is not frozen or cut off.
const RESYNC: Duration = Duration::from_secs(30);

/// Who we are in the mesh.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Our subnet; its base is the address to bind.
    pub subnet: Subnet,
    /// Our address on the underlay.
    pub public_ip: Ipv4Addr,
    /// Our host's name.
    pub hostname: String,
    /// The overlay network, whose addresses are answered.
    pub network: Subnet,
}

/// Answers echoes for ever; binds again when the address comes and goes.
pub async fn respond(me: Identity) {
    let address = SocketAddrV4::new(me.subnet.base(), PORT);
    let mut complained = false;
    loop {
        match UdpSocket::bind(address).await {
            Ok(socket) => {
                complained = false;
                debug!(%address, "answering mesh echoes");
                if let Err(error) = answer(&socket, me.network).await {
                    warn!(%address, "mesh echo socket: {error}");
                }
            }
            Err(error) if !complained => {
                complained = true;
                warn!(
                    "cannot answer mesh echoes on {address}/udp, `cli ping-mesh` will not reach this host: {error}"
                );
            }
            Err(_) => {}
        }
        sleep(RETRY * 5).await;
    }
}

async fn answer(socket: &UdpSocket, network: Subnet) -> io::Result<()> {
    let mut buffer = [0u8; ECHO_BYTES + 1];
    let (mut second, mut answered) = (Instant::now(), 0);
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The answer to a peer that has gone came back as an ICMP error.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => return Err(e),
        };
        let SocketAddr::V4(from) = from else { continue };
        let echo = Echo::decode(&buffer[..length]).filter(|e| !e.reply && network.contains(*from.ip()));
        let Some(echo) = echo else { continue };
        let now = Instant::now();
        if now - second >= Duration::from_secs(1) {
            (second, answered) = (now, 0);
        }
        answered += 1;
        if answered > REPLIES_PER_S {
            continue;
        }
        let reply = Echo { reply: true, ..echo }.encode();
        if let Err(error) = socket.send_to(&reply, from).await {
            debug!(%from, %error, "mesh echo not answered");
        }
    }
}

/// Carries out requests from the store for ever. `targets` holds the present leases without our own, `None` until
/// they are known.
pub async fn serve(client: Client, prefix: String, me: Identity, mut targets: Receiver<Option<Vec<Target>>>) {
    // Before the leases are known there is nobody to probe, and a report would say so.
    if targets.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let dir = mesh::requests_dir(&prefix);
    let mut cursor = None;
    let mut known: VecDeque<u64> = VecDeque::new();
    let mut running = JoinSet::new();
    loop {
        let nodes = match requests(&client, &dir, &mut cursor).await {
            Ok(nodes) => nodes,
            Err(error) => {
                debug!("Watch mesh requests: {error}");
                if error.api_code() == Some(401) {
                    cursor = None; // the store has forgotten where we were
                } else {
                    sleep(RETRY).await;
                }
                continue;
            }
        };
        for node in nodes {
            let (Some(id), Some(text)) = (mesh::parse_id(&node.key), node.value) else { continue };
            if known.contains(&id) {
                continue;
            }
            known.push_back(id);
            if known.len() > REMEMBERED {
                known.pop_front();
            }
            while running.try_join_next().is_some() {}
            if running.len() >= CONCURRENT {
                warn!(
                    id = mesh::format_id(id),
                    "mesh request ignored: {CONCURRENT} are being carried out already"
                );
                continue;
            }
            let targets = targets.borrow().clone().unwrap_or_default();
            running.spawn(carry_out(client.clone(), prefix.clone(), me.clone(), id, text, targets));
        }
    }
}

/// The next requests: all of them where there is no cursor, else the one that comes next.
async fn requests(client: &Client, dir: &str, cursor: &mut Option<u64>) -> Result<Vec<Node>, ClientError> {
    let Some(index) = *cursor else {
        let listed = client.get(dir, GetOptions { recursive: true, sorted: true, quorum: true }).await;
        return match listed {
            Ok(response) => {
                *cursor = Some(response.etcd_index);
                Ok(response.node.unwrap_or_default().nodes)
            }
            Err(ClientError::Api { code: 100, index, .. }) => {
                *cursor = Some(index);
                Ok(vec![])
            }
            Err(error) => Err(error),
        };
    };
    match tokio::time::timeout(RESYNC, client.watch_once(dir, Some(index + 1), true)).await {
        Err(_) => {
            *cursor = None;
            Ok(vec![])
        }
        Ok(answer) => {
            let Some(response) = answer? else { return Ok(vec![]) };
            let node = response.node.unwrap_or_default();
            *cursor = Some(node.modified_index.max(index + 1));
            let is_new = matches!(response.action.as_str(), "set" | "create");
            Ok(if is_new { vec![node] } else { vec![] })
        }
    }
}

async fn carry_out(
    client: Client,
    prefix: String,
    me: Identity,
    id: u64,
    text: String,
    targets: Vec<Target>,
) {
    let name = mesh::format_id(id);
    let probes = match Request::parse(&text) {
        Ok(request) => {
            info!(id = name, peers = targets.len(), count = request.count, "probing the mesh");
            probe(&me, id, &request, targets.clone())
                .await
                .unwrap_or_else(|e| refused(&targets, &e.to_string()))
        }
        Err(error) => {
            warn!(id = name, "{error}");
            refused(&targets, &error.to_string())
        }
    };
    let report = Report {
        version: VERSION,
        subnet: me.subnet,
        public_ip: me.public_ip,
        hostname: me.hostname,
        probes,
    };
    let value = match serde_json::to_string(&report) {
        Ok(value) => value,
        Err(error) => return warn!(id = name, "mesh report: {error}"),
    };
    // Who asked is gone, and has cleared up: a late report would leave its directory behind for ever.
    let request = mesh::request_key(&prefix, &name);
    let asked = client.get(&request, GetOptions { quorum: true, ..GetOptions::default() }).await;
    if asked.is_err_and(|error| error.is_key_not_found()) {
        return debug!(id = name, "mesh report not wanted any more");
    }
    // Only once: after a restart the same request is seen again, and the first report was asked for.
    let options = PutOptions {
        value: Some(value),
        ttl: Some(mesh::TTL_S),
        prev_exist: Some(false),
        ..PutOptions::default()
    };
    match client.put(&mesh::result_key(&prefix, &name, me.subnet), options).await {
        Ok(_) => {}
        Err(error) if error.api_code() == Some(105) => debug!(id = name, "mesh report was there already"),
        Err(error) => warn!(id = name, "mesh report not written: {error}"),
    }
}

fn refused(targets: &[Target], why: &str) -> Vec<Probe> {
    let skipped = targets.iter().map(|t| Target { skip: Some(why.to_owned()), ..t.clone() });
    Round::new(0, skipped.collect()).finish()
}

/// Sends `count` probes to every target, all targets in each round, and gathers the answers.
async fn probe(me: &Identity, id: u64, request: &Request, targets: Vec<Target>) -> io::Result<Vec<Probe>> {
    let socket = UdpSocket::bind((me.subnet.base(), 0)).await?;
    let mut round = Round::new(id, targets);
    let addresses = round.addresses();
    let start = tokio::time::Instant::now();
    for sequence in 0..request.count {
        let due = start + Duration::from_millis(request.interval_ms) * sequence;
        gather(&socket, &mut round, due, false).await?;
        let echo = round.echo(sequence);
        for (n, to) in addresses.iter().enumerate() {
            if n % BURST == BURST - 1 {
                gather(&socket, &mut round, tokio::time::Instant::now() + Duration::from_millis(1), false)
                    .await?;
            }
            round.sent(*to, sequence, Instant::now());
            if let Err(error) = socket.send_to(&echo, (*to, PORT)).await {
                round.failed(*to, error.to_string());
            }
        }
    }
    let end = tokio::time::Instant::now() + Duration::from_millis(request.timeout_ms);
    gather(&socket, &mut round, end, true).await?;
    Ok(round.finish())
}

/// Receives until `deadline`, or until everything is answered when `stop_early`.
async fn gather(
    socket: &UdpSocket,
    round: &mut Round,
    deadline: tokio::time::Instant,
    stop_early: bool,
) -> io::Result<()> {
    let mut buffer = [0u8; ECHO_BYTES + 1];
    loop {
        if stop_early && round.is_complete() {
            return Ok(());
        }
        match timeout_at(deadline, socket.recv_from(&mut buffer)).await {
            Err(_) => return Ok(()),
            Ok(Ok((length, SocketAddr::V4(from)))) if from.port() == PORT => {
                round.received(*from.ip(), &buffer[..length], Instant::now());
            }
            Ok(Ok(_)) => {}
            // An ICMP error for one of the probes; its peer will show as not answering.
            Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(e)) => {
                debug!(error = %e, "mesh probe socket");
                sleep_until(deadline.min(tokio::time::Instant::now() + Duration::from_millis(10))).await;
            }
        }
    }
}
