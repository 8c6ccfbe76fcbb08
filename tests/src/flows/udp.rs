//! UDP datagrams of any size, whole, in pieces or as super-frames.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Path, pattern};
use crate::ns::Namespace;

/// After this a datagram is lost.
const LOST: Duration = Duration::from_secs(2);

/// Two UDP sockets that know each other.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) near: UdpSocket,
    pub(super) far: UdpSocket,
}

impl Pair {
    pub(super) fn new(path: Path<'_>) -> Result<Self> {
        let far = path.to.enter(|| UdpSocket::bind((path.address, 0)))??;
        let target = far.local_addr()?;
        let near = path.from.enter(|| {
            let any: IpAddr = match target {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let near = UdpSocket::bind((any, 0))?;
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
