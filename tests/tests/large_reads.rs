//! Clients that fetch a large directory over and over keep a member busy, but not so that the others miss it.

#![expect(clippy::disallowed_methods, reason = "bounds real answers by real time")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::http::{self, Request};
use weft_tests::process::one_at_a_time;
use weft_tests::v2::Endpoint;

const ALL: [usize; 3] = [0, 1, 2];
const MIB: usize = 1 << 20;
/// What a large read fetches: a second of work for a program that is not optimized.
const DIRECTORY_MIB: usize = 20;
const READERS: usize = 12;
/// Large reads that are answered while others write.
const READS: usize = 30;
/// For all of it, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// For one request: longer than the member's own limit.
const LIMIT: Duration = Duration::from_secs(30);

/// What the readers got.
#[derive(Default)]
struct Reads {
    answered: AtomicUsize,
    refused: AtomicUsize,
    stop: AtomicBool,
}

impl Reads {
    /// Fetches the directory until it is to stop.
    fn read(&self, endpoint: Endpoint<'_>) -> Result<()> {
        let request = Request { target: "/v2/keys/d?recursive=true", ..Request::default() };
        while !self.stop.load(Ordering::Relaxed) {
            let reply = http::send(endpoint.ns, endpoint.address, &request, LIMIT)?;
            match reply.status {
                200 if reply.body.len() > DIRECTORY_MIB * MIB => {
                    self.answered.fetch_add(1, Ordering::Relaxed)
                }
                503 if reply.text().contains("etcdserver: too many requests: ") => {
                    self.refused.fetch_add(1, Ordering::Relaxed)
                }
                status => bail!("status {status}, {} bytes: {:.200}", reply.body.len(), reply.text()),
            };
        }
        Ok(())
    }
}

/// The term that a member is in.
fn term(endpoint: &Endpoint<'_>) -> Result<u64> {
    let reply = endpoint.get("/v2/keys/small")?;
    let term = reply.header("X-Raft-Term").context("X-Raft-Term")?;
    Ok(term.parse()?)
}

/// Writes until enough large reads are answered. Every write is carried out, under the same leader.
fn write_meanwhile(endpoint: &Endpoint<'_>, reads: &Reads, term_before: u64) -> Result<()> {
    let begun = Instant::now();
    for write in 1.. {
        endpoint.set("/small", &write.to_string())?;
        ensure!(term(endpoint)? == term_before, "the leader was deposed, of which write {write} knows");
        let answered = reads.answered.load(Ordering::Relaxed);
        if answered >= READS {
            break;
        }
        let refused = reads.refused.load(Ordering::Relaxed);
        ensure!(begun.elapsed() < PATIENCE, "{answered} large reads answered and {refused} refused");
    }
    Ok(())
}

#[test]
fn large_reads_do_not_depose_the_leader() -> Result<()> {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::on_loopback(Server::Weft, 3)?;
    cluster.start()?;
    let leader = cluster.wait_leader(&ALL)?;
    let endpoint = cluster.members[leader].endpoint();
    let value = "v".repeat(MIB);
    for n in 0..DIRECTORY_MIB {
        endpoint.set(&format!("/d/{n}"), &value)?;
    }
    endpoint.set("/small", "0")?;
    let (term_before, reads) = (term(&endpoint)?, Reads::default());
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(|| reads.read(endpoint))).collect();
        let written = write_meanwhile(&endpoint, &reads, term_before);
        reads.stop.store(true, Ordering::Relaxed);
        let read =
            readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?);
        written.and(read.collect::<Result<Vec<()>>>().map(drop))
    })?;
    ensure!(term(&endpoint)? == term_before && cluster.wait_leader(&ALL)? == leader, "another leader");
    Ok(())
}
