//! TCP transfers of a given length, or until told to end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

use super::{PATIENCE, PERIOD, Path, check, pattern};
use crate::wait::wait_for;

/// Sends `bytes` (a little more may go) and checks each that arrives.
///
/// # Errors
/// As [`Flow::during`].
pub fn transfer(path: Path<'_>, bytes: u64) -> Result<()> {
    stream(path, &AtomicU64::new(0), |sent| sent >= bytes)
}

/// The same each way at the same time.
///
/// # Errors
/// As [`Flow::during`].
pub fn both_ways(there: Path<'_>, back: Path<'_>, bytes: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| transfer(there, bytes));
        let back = transfer(back, bytes);
        there.join().map_err(|_| anyhow!("a transfer panicked"))??;
        back
    })
}

/// A transfer that goes on until it is told to end.
#[derive(Debug)]
pub struct Flow<'a> {
    path: Path<'a>,
    /// Bytes received and checked.
    progress: AtomicU64,
}

impl<'a> Flow<'a> {
    /// Not running yet.
    pub fn new(path: Path<'a>) -> Self {
        Self { path, progress: AtomicU64::new(0) }
    }

    /// Waits until `more` further bytes have arrived.
    ///
    /// # Errors
    /// When they do not within 20 s.
    pub fn wait_more(&self, more: u64) -> Result<()> {
        let goal = self.progress.load(Ordering::Relaxed) + more;
        wait_for("bytes of a transfer", PATIENCE, || {
            let now = self.progress.load(Ordering::Relaxed);
            ensure!(now >= goal, "{now} of {goal}");
            Ok(())
        })
    }

    /// Runs `scene` while the flows flow.
    ///
    /// # Errors
    /// When the scene fails, or a connection does: it stands still for 20 s, or a byte is not what was sent.
    pub fn during(flows: &[Self], scene: impl FnOnce() -> Result<()>) -> Result<()> {
        let stop = AtomicBool::new(false);
        let stopped = || stop.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let running: Vec<_> = flows
                .iter()
                .map(|flow| scope.spawn(move || stream(flow.path, &flow.progress, |_| stopped())))
                .collect();
            let mut outcome = scene();
            stop.store(true, Ordering::Relaxed);
            for flow in running {
                let done = flow.join().map_err(|_| anyhow!("a transfer panicked"))?;
                if let Err(broken) = done {
                    outcome = outcome.and(Err(anyhow!("a transfer broke"))).context(format!("{broken:#}"));
                }
            }
            outcome
        })
    }
}

/// Sends until `enough` says so of the bytes sent so far, and checks every byte that arrives. `progress` follows the
/// bytes received and checked.
fn stream(path: Path<'_>, progress: &AtomicU64, enough: impl Fn(u64) -> bool) -> Result<()> {
    let listener = path.to.enter(|| TcpListener::bind((path.address, 0)))??;
    listener.set_nonblocking(true)?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener, progress));
        let sent = path.from.enter(|| TcpStream::connect_timeout(&target, PATIENCE))?;
        let sent = sent
            .context("connecting")
            .and_then(|stream| send(stream, enough))
            .with_context(|| format!("sending to {target}"));
        let received = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
        // The receiver's reason comes first: what it closed the sender cannot finish.
        let received = received.with_context(|| format!("receiving at {target}"))?;
        let sent = sent?;
        ensure!(received == sent, "{sent} bytes were sent to {target}, {received} arrived");
        Ok(())
    })
}

fn send(mut stream: TcpStream, enough: impl Fn(u64) -> bool) -> Result<u64> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut sent = 0_u64;
    while !enough(sent) {
        let from = usize::try_from(sent % PERIOD as u64)?;
        sent += stream.write(&pattern()[from..])? as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // Not closed before the other side has read it all.
    stream.set_read_timeout(Some(PATIENCE))?;
    ensure!(stream.read(&mut [0])? == 0, "the receiver sent something");
    Ok(sent)
}

fn receive(listener: &TcpListener, progress: &AtomicU64) -> Result<u64> {
    let (mut stream, _) = wait_for("a TCP connection", PATIENCE, || Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0_u8; PERIOD];
    let mut received = 0_u64;
    loop {
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            return Ok(received);
        }
        check(&buffer[..got], received)?;
        received += got as u64;
        progress.store(received, Ordering::Relaxed);
    }
}
