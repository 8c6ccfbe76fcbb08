//! The load generator: keep-alive HTTP/1.1 connections that each send their next request when the answer to the
//! last is complete. Lean on purpose (it shares the processors with what it measures), and the same for everyone.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// No request takes longer without the run being worthless.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Keys that each connection works on, one after the other.
pub(crate) const KEYS: usize = 50;
/// Bytes of a value.
pub(crate) const VALUE_BYTES: usize = 128;

/// What the connections do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Operation {
    /// Set a key.
    Put,
    /// Read a key from the member asked.
    Get,
    /// Read a key through raft.
    QuorumGet,
}

/// What came out of one measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Requests answered per second.
    pub(crate) per_second: f64,
    /// Median latency in microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile of the latency in microseconds.
    pub(crate) p99_us: f64,
}

/// Writes every key that [`run`] will use with as many connections, so that reads find them: through the same
/// members, each of which has applied what it has acknowledged.
///
/// # Errors
/// When a connection breaks or a write is refused.
pub(crate) fn fill(targets: &[SocketAddr], connections: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for n in 0..connections {
            let target = targets[n % targets.len()];
            tasks.spawn(async move {
                let mut stream = TcpStream::connect(target).await?;
                let mut buffer = Vec::new();
                for key in 0..KEYS {
                    stream.write_all(&request(Operation::Put, n, key, target)).await?;
                    let done = tokio::time::timeout(REQUEST_LIMIT, answer(&mut stream, &mut buffer)).await;
                    done.context("no answer")??;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })
}

/// Runs `operation` for `length` after `warm_up`, on `connections` connections dealt out to `targets` in turn.
///
/// # Errors
/// When a connection breaks or an answer is no success: figures of a failing server are worth nothing.
pub(crate) fn run(
    targets: &[SocketAddr],
    operation: Operation,
    connections: usize,
    warm_up: Duration,
    length: Duration,
) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (latencies, took) = runtime.block_on(async {
        let begin = Instant::now() + warm_up;
        let end = begin + length;
        let mut tasks = JoinSet::new();
        for n in 0..connections {
            let target = targets[n % targets.len()];
            tasks.spawn(async move {
                connection(n, target, operation, begin, end)
                    .await
                    .with_context(|| format!("load on {target}"))
            });
        }
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        anyhow::Ok((latencies, length))
    })?;
    summary(latencies, took)
}

fn summary(mut latencies: Vec<u32>, took: Duration) -> Result<Outcome> {
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().map(f64::from);
    let (p50, p99) = (at(50), at(99));
    let (Some(p50_us), Some(p99_us)) = (p50, p99) else { bail!("not one request was answered in {took:?}") };
    let count = u32::try_from(latencies.len())?;
    Ok(Outcome { per_second: f64::from(count) / took.as_secs_f64(), p50_us, p99_us })
}

/// One connection's requests; returns the latencies (in microseconds) of those answered between `begin` and
/// `end`.
async fn connection(
    n: usize,
    target: SocketAddr,
    operation: Operation,
    begin: Instant,
    end: Instant,
) -> Result<Vec<u32>> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let requests: Vec<Vec<u8>> = (0..KEYS).map(|key| request(operation, n, key, target)).collect();
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    for request in requests.iter().cycle() {
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        stream.write_all(request).await?;
        tokio::time::timeout(REQUEST_LIMIT, answer(&mut stream, &mut buffer))
            .await
            .context("no answer")??;
        let now = Instant::now();
        if now >= begin && now < end {
            latencies.push(u32::try_from((now - sent).as_micros()).unwrap_or(u32::MAX));
        }
    }
    Ok(latencies)
}

fn request(operation: Operation, connection: usize, key: usize, target: SocketAddr) -> Vec<u8> {
    let path = format!("/v2/keys/bench/{connection}/{key}");
    let text = match operation {
        Operation::Put => {
            let body = format!("value={}", "v".repeat(VALUE_BYTES));
            let length = body.len();
            format!(
                "PUT {path} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
        }
        Operation::Get => format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n\r\n"),
        Operation::QuorumGet => format!("GET {path}?quorum=true HTTP/1.1\r\nHost: {target}\r\n\r\n"),
    };
    text.into_bytes()
}

/// Reads one answer, which must be a success.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed in the middle: {}", String::from_utf8_lossy(buffer));
        }
        if complete(buffer)? {
            return Ok(());
        }
    }
}

/// Whether the bytes are one whole answer, which must be 200 or 201.
fn complete(bytes: &[u8]) -> Result<bool> {
    let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(false) };
    let (status, body) = (bytes.get(9..12).unwrap_or_default(), &bytes[head + 4..]);
    if status != b"200" && status != b"201" {
        bail!("refused: {}", String::from_utf8_lossy(bytes));
    }
    let head = std::str::from_utf8(&bytes[..head])?;
    for line in head.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse()?;
            return Ok(body.len() >= length);
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(body.ends_with(b"0\r\n\r\n"));
        }
    }
    bail!("an answer without length: {head}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn an_answer_is_complete_at_its_length() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert!(complete(whole).unwrap());
        assert!(!complete(&whole[..whole.len() - 1]).unwrap());
        assert!(!complete(b"HTTP/1.1 200 OK\r\nCont").unwrap());
        assert!(
            complete(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
                .unwrap()
        );
        assert!(complete(b"HTTP/1.1 500 no\r\n\r\n").is_err());
    }

    #[test]
    fn percentiles_are_taken_from_all_requests() {
        let out = summary((1..=100).rev().collect(), Duration::from_secs(2)).unwrap();
        assert!((out.per_second - 50.0).abs() < 1e-9 && (out.p50_us - 51.0).abs() < 1e-9, "{out:?}");
        assert!((out.p99_us - 100.0).abs() < 1e-9, "{out:?}");
        assert!(summary(Vec::new(), Duration::from_secs(1)).is_err());
    }
}
