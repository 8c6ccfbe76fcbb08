//! Traffic whose every byte is checked: TCP of any length, UDP of any size, and a pulse that shows how long a path
//! was interrupted.
//!
//! Sockets are opened inside the namespaces, the threads belong to the test. Each byte of a stream is known from its
//! place in it, so that what is lost, doubled, swapped or damaged on the way is seen.

#![expect(clippy::disallowed_methods, reason = "measures how long real traffic is interrupted")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::ns::Namespace;
use crate::wait::wait_for;

/// No single step of a healthy transfer takes longer, interruptions by a restart included.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this a datagram is lost.
const LOST: Duration = Duration::from_secs(2);
/// A prime, so that no segment size divides it: a segment in another's place never has the right bytes.
const PERIOD: usize = 65_521;

/// One direction of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    /// The sender.
    pub from: &'a Namespace,
    /// The receiver.
    pub to: &'a Namespace,
    /// The receiver's address.
    pub address: Ipv4Addr,
}

/// Sends over TCP until `enough` says so of the bytes sent so far, and checks every byte that arrives. `progress`
/// follows the bytes received and checked. Returns their number.
///
/// # Errors
/// When the connection fails, stands still for 20 s, or a byte is not what was sent.
pub fn stream(path: Path<'_>, progress: &AtomicU64, enough: impl Fn(u64) -> bool) -> Result<u64> {
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
        Ok(received)
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

/// What a stream consists of, over and over: noise that is the same each time.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..PERIOD).map(step).collect()
    })
}

/// That `bytes` are the pattern's from `offset` on.
fn check(bytes: &[u8], offset: u64) -> Result<()> {
    let mut at = usize::try_from(offset % PERIOD as u64)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(PERIOD - at));
        if part != &pattern()[at..at + part.len()] {
            let differs = part.iter().zip(&pattern()[at..]).position(|(a, b)| a != b).unwrap_or_default();
            bail!("byte {} is not what was sent", offset + (bytes.len() - rest.len() + differs) as u64);
        }
        (rest, at) = (after, 0);
    }
    Ok(())
}

/// Two UDP sockets that know each other.
#[derive(Debug)]
struct Pair {
    near: UdpSocket,
    far: UdpSocket,
}

impl Pair {
    fn new(path: Path<'_>) -> Result<Self> {
        let far = path.to.enter(|| UdpSocket::bind((path.address, 0)))??;
        let target = far.local_addr()?;
        let near = path.from.enter(|| {
            let near = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            near.connect(target)?;
            std::io::Result::Ok(near)
        })??;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(LOST))?;
        }
        Ok(Self { near, far })
    }
}

/// Sends one datagram of each size to and fro, and checks its bytes on both sides. Nothing else is under way
/// meanwhile, so not one may be lost.
///
/// # Errors
/// When one does not come back whole.
pub fn datagrams(path: Path<'_>, sizes: impl IntoIterator<Item = usize>) -> Result<()> {
    let pair = Pair::new(path)?;
    let mut buffer = vec![0_u8; 65_536];
    for size in sizes {
        let place = |what: &str| format!("datagram of {size} bytes to {}: {what}", path.address);
        let payload = &pattern()[..size];
        pair.near.send(payload).with_context(|| place("sending"))?;
        let (got, from) = pair.far.recv_from(&mut buffer).with_context(|| place("on its way"))?;
        ensure!(&buffer[..got] == payload, place("changed on its way"));
        pair.far.send_to(payload, from).with_context(|| place("sending it back"))?;
        let got = pair.near.recv(&mut buffer).with_context(|| place("on its way back"))?;
        ensure!(&buffer[..got] == payload, place("changed on its way back"));
    }
    Ok(())
}

/// Hands the kernel super-frames to be cut into `count` datagrams of `segment` bytes (`UDP_SEGMENT`), and checks that
/// all arrive in order with their bytes.
///
/// # Errors
/// When one is missing or is not what was sent.
pub fn segmented_datagrams(path: Path<'_>, segment: u16, count: usize) -> Result<()> {
    let pair = Pair::new(path)?;
    setsockopt(&pair.near, sockopt::UdpGsoSegment, &i32::from(segment)).context("UDP_SEGMENT")?;
    let (size, mut buffer) = (usize::from(segment), vec![0_u8; 65_536]);
    // The last one is shorter, as the end of a message is.
    let whole = &pattern()[..size * count - size / 2];
    let sent = pair.near.send(whole).with_context(|| format!("{} bytes in one call", whole.len()))?;
    ensure!(sent == whole.len(), "{sent} of {} bytes sent", whole.len());
    for (n, expected) in whole.chunks(size).enumerate() {
        let place = format!("datagram {} of {count} with {segment} bytes to {}", n + 1, path.address);
        let got = pair.far.recv(&mut buffer).with_context(|| place.clone())?;
        ensure!(&buffer[..got] == expected, "{place}: {got} bytes, not what was sent");
    }
    Ok(())
}

/// Echoes at a steady pace, to see for how long none came back.
#[derive(Debug)]
pub struct Pulse {
    stop: AtomicBool,
    echoes: AtomicU64,
}

impl Pulse {
    /// Time between two echoes: the measurement is no more exact than that.
    pub const INTERVAL: Duration = Duration::from_millis(10);

    /// How many have come back.
    pub fn echoes(&self) -> u64 {
        self.echoes.load(Ordering::Relaxed)
    }

    /// Waits until `more` further echoes have come back.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub fn wait_more(&self, more: u64, limit: Duration) -> Result<()> {
        let goal = self.echoes() + more;
        wait_for("echoes", limit, || {
            let now = self.echoes();
            ensure!(now >= goal, "{now} of {goal}");
            Ok(())
        })
    }

    /// Runs `scene` while echoes go to and fro; returns the longest time without one, the end included.
    ///
    /// # Errors
    /// When the scene fails, or not one echo came back.
    pub fn during(path: Path<'_>, scene: impl FnOnce(&Self) -> Result<()>) -> Result<Duration> {
        let pair = Pair::new(path)?;
        let pulse = Self { stop: AtomicBool::new(false), echoes: AtomicU64::new(0) };
        for socket in [&pair.near, &pair.far] {
            socket.set_read_timeout(Some(Self::INTERVAL))?;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| pulse.answer(&pair.far));
            let asking = scope.spawn(|| pulse.ask(&pair.near));
            let outcome = pulse.wait_more(1, PATIENCE).and_then(|()| scene(&pulse));
            pulse.stop.store(true, Ordering::Relaxed);
            let gap = asking.join().map_err(|_| anyhow!("the pulse panicked"))?;
            outcome.map(|()| gap)
        })
    }

    fn answer(&self, far: &UdpSocket) {
        let mut buffer = [0_u8; 16];
        while !self.stop.load(Ordering::Relaxed) {
            if let Ok((got, from)) = far.recv_from(&mut buffer) {
                far.send_to(&buffer[..got], from).ok();
            }
        }
    }

    /// Sends at its pace whatever happens, an error (no route for a moment) is a lost echo.
    fn ask(&self, near: &UdpSocket) -> Duration {
        let mut buffer = [0_u8; 16];
        let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
        let mut next = Instant::now();
        for n in 0_u64.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            near.send(&n.to_be_bytes()).ok();
            next += Self::INTERVAL;
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
                near.set_read_timeout(Some(left)).ok();
                if near.recv(&mut buffer).is_ok() {
                    let now = Instant::now();
                    longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                    last = Some(now);
                    self.echoes.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()))
    }
}

/// What arrives at a UDP port of a namespace, to be looked at by a test that sends by other means.
#[derive(Debug)]
pub struct Mailbox {
    socket: UdpSocket,
}

impl Mailbox {
    /// Opens a port at `address` inside `ns`.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn open(ns: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let socket = ns.enter(|| UdpSocket::bind((address, 0)))??;
        socket.set_read_timeout(Some(LOST))?;
        Ok(Self { socket })
    }

    /// Where it is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// The next datagram, as text; `None` when none comes within 2 s.
    ///
    /// # Errors
    /// When the socket breaks.
    pub fn next(&self) -> Result<Option<String>> {
        let mut buffer = [0_u8; 2048];
        match self.socket.recv(&mut buffer) {
            Ok(got) => Ok(Some(String::from_utf8_lossy(&buffer[..got]).into_owned())),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_in_the_wrong_place_is_found() {
        let twice = [pattern(), pattern()].concat();
        assert!(check(&twice[100..], 100).is_ok());
        assert!(check(&twice[100..], 100 + PERIOD as u64).is_ok());
        let mut changed = twice.clone();
        changed[PERIOD + 7] ^= 1;
        let error = check(&changed, 0).map_err(|e| e.to_string());
        assert_eq!(error, Err(format!("byte {} is not what was sent", PERIOD + 7)));
        // A segment that came twice, or two that changed places.
        assert!(check(&twice[1448..2896], 0).is_err());
    }
}
