//! Request and response: one byte to the other container and back over TCP, again and again.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use weft_tests::flows::Path;
use weft_tests::wait::wait_for;

/// Rounds in this time do not count.
const WARM_UP: Duration = Duration::from_millis(200);
/// No round trip takes longer without the path being broken.
const LIMIT: Duration = Duration::from_secs(5);

/// Percentiles of the round trip in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RoundTrip {
    /// The median.
    pub(super) p50_us: f64,
    /// One in a hundred takes longer.
    pub(super) p99_us: f64,
}

/// Runs for `length`. Client and server are threads of this program whose sockets belong to the containers.
///
/// # Errors
/// When no connection comes about, or it breaks.
pub(super) fn run(path: Path<'_>, length: Duration) -> Result<RoundTrip> {
    let listener = path.to.enter(|| TcpListener::bind((path.address, 0)))??;
    listener.set_nonblocking(true)?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener));
        let measured = path.from.enter(|| ask(target, length))?;
        let served = server.join().map_err(|_| anyhow!("the server of the ping-pong panicked"))?;
        let measured = measured.with_context(|| format!("ping-pong with {target}"))?;
        served.context("server of the ping-pong")?;
        percentiles(measured)
    })
}

fn serve(listener: &TcpListener) -> Result<()> {
    let (mut stream, _) = wait_for("a TCP connection", LIMIT, || Ok(listener.accept()?))?;
    prepare(&stream)?;
    let mut byte = [0_u8; 1];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn ask(target: SocketAddr, length: Duration) -> Result<Vec<u32>> {
    let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
    prepare(&stream)?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + length;
    let mut taken = Vec::with_capacity(1 << 18);
    let mut byte = [0x5a_u8; 1];
    let mut sent = Instant::now();
    while sent < end {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let now = Instant::now();
        if sent >= begin {
            taken.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
        }
        sent = now;
    }
    Ok(taken)
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(())
}

/// Of nanoseconds, which need not be sorted.
fn percentiles(mut taken_ns: Vec<u32>) -> Result<RoundTrip> {
    taken_ns.sort_unstable();
    let at = |percent: usize| taken_ns.get(taken_ns.len() * percent / 100).map(|&ns| f64::from(ns) / 1000.0);
    let (p50_us, p99_us) = at(50).zip(at(99)).context("not one byte came back")?;
    Ok(RoundTrip { p50_us, p99_us })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn percentiles_of_all_rounds() {
        let out = percentiles((1..=100).rev().map(|n| n * 1000).collect()).unwrap();
        assert_eq!(out, RoundTrip { p50_us: 51.0, p99_us: 100.0 });
        assert!(percentiles(Vec::new()).is_err());
    }
}
