//! Reachability, measured from inside a namespace: ICMP echo through a raw socket and one TCP exchange.
//!
//! No `ping` program. The packets are built and read by pure functions; [`ping`] and [`tcp_exchange`] move them.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpNumber, Ipv4Slice};
use socket2::{Domain, Protocol, Socket, Type};

use super::fabric::Namespace;

/// What a series of echo requests brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Echoes {
    /// Requests sent.
    pub(crate) sent: u16,
    /// Round-trip times of those answered in time, in the order sent.
    pub(crate) round_trips: Vec<Duration>,
}

impl Echoes {
    /// The middle round-trip time; none when nothing came back.
    pub(crate) fn median(&self) -> Option<Duration> {
        let mut sorted = self.round_trips.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// Whether every request was answered.
    pub(crate) fn complete(&self) -> bool {
        self.round_trips.len() == usize::from(self.sent)
    }
}

/// Sends `count` echo requests of `payload_len` bytes to `target`, one after the other, each given `timeout`.
///
/// # Errors
/// When no raw socket can be had (needs `CAP_NET_RAW`) or there is no route. Silence is no error.
pub(crate) fn ping(
    target: Ipv4Addr,
    count: u16,
    payload_len: usize,
    timeout: Duration,
) -> io::Result<Echoes> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.connect(&SocketAddr::from((target, 0)).into())?;
    // Every raw socket of the namespace sees every reply: the id tells ours apart from those of another thread.
    let id: u16 = rand::random();
    let mut echoes = Echoes::default();
    let mut buffer = vec![0; 65536];
    for seq in 0..count {
        let started = Instant::now();
        socket.send(&echo_request(id, seq, payload_len))?;
        echoes.sent += 1;
        while let Some(left) = timeout.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            match (&socket).read(&mut buffer) {
                Ok(len) if is_reply(&buffer[..len], id, seq, payload_len) => {
                    echoes.round_trips.push(started.elapsed());
                    break;
                }
                Ok(_) => {}
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(err) => return Err(err),
            }
        }
    }
    Ok(echoes)
}

/// An echo request (RFC 792) with a payload of `payload_len` counting bytes.
fn echo_request(id: u16, seq: u16, payload_len: usize) -> Vec<u8> {
    let payload = pattern(payload_len);
    let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq }), &payload);
    [header.to_bytes().as_slice(), &payload].concat()
}

/// Whether `packet`, an IPv4 packet as a raw socket hands it out, is the whole reply to [`echo_request`].
fn is_reply(packet: &[u8], id: u16, seq: u16, payload_len: usize) -> bool {
    let Ok(ip) = Ipv4Slice::from_slice(packet) else { return false };
    if ip.payload_ip_number() != IpNumber::ICMP {
        return false;
    }
    let Ok(icmp) = Icmpv4Slice::from_slice(ip.payload().payload) else { return false };
    icmp.icmp_type() == Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq })
        && icmp.payload() == pattern(payload_len).as_slice()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().take(len).collect()
}

/// Sends `len` bytes from `client` to `address` in `server` and the same bytes back; the time for both ways.
///
/// # Errors
/// When there is no connection within `timeout`, it stalls for as long, or other bytes come back.
pub(crate) fn tcp_exchange(
    server: &Namespace,
    client: &Namespace,
    address: Ipv4Addr,
    len: usize,
    timeout: Duration,
) -> Result<Duration> {
    // Sockets stay in the namespace they were made in: only making them needs a thread there.
    let listener =
        server.run(|| TcpListener::bind((address, 0)))?.with_context(|| format!("listen on {address}"))?;
    let target: SocketAddr = listener.local_addr()?;
    let started = Instant::now();
    let stream = client
        .run(|| TcpStream::connect_timeout(&target, timeout))?
        .with_context(|| format!("connect from {} to {} ({target})", client.name(), server.name()))?;
    let sent = pattern(len);
    // The connection stands, so accept does not block.
    let echo = thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut received = vec![0; len];
        stream.read_exact(&mut received)?;
        stream.write_all(&received)
    });
    let back =
        exchange(stream, &sent, timeout).with_context(|| format!("exchange {len} bytes with {target}"));
    let served = echo.join().map_err(|_| anyhow::anyhow!("the echo thread for {target} panicked"))?;
    let back = back?;
    served.with_context(|| format!("echo of {len} bytes at {target}"))?;
    ensure!(back == sent, "{target} sent other bytes back than it was given");
    Ok(started.elapsed())
}

fn exchange(mut stream: TcpStream, sent: &[u8], timeout: Duration) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::with_capacity(sent.len());
    stream.take(sent.len() as u64 + 1).read_to_end(&mut back)?;
    Ok(back)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use etherparse::PacketBuilder;

    use super::*;

    fn reply(icmp_type: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([172, 17, 9, 2], [172, 17, 71, 2], 62).icmpv4(icmp_type);
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    #[test]
    fn a_request_is_an_echo_request_with_a_right_checksum() {
        let bytes = echo_request(7, 9, 33);
        let icmp = Icmpv4Slice::from_slice(&bytes).unwrap();
        assert_eq!(icmp.icmp_type(), Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 9 }));
        assert_eq!(icmp.payload().len(), 33);
        assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
    }

    #[test]
    fn only_the_whole_reply_with_our_id_and_number_counts() {
        let echo = |id, seq| Icmpv4Type::EchoReply(IcmpEchoHeader { id, seq });
        let whole = reply(echo(7, 9), &pattern(33));
        assert!(is_reply(&whole, 7, 9, 33));
        assert!(!is_reply(&reply(echo(8, 9), &pattern(33)), 7, 9, 33), "someone else's id");
        assert!(!is_reply(&reply(echo(7, 8), &pattern(33)), 7, 9, 33), "an earlier number");
        assert!(!is_reply(&reply(echo(7, 9), &pattern(32)), 7, 9, 33), "cut short");
        assert!(!is_reply(&reply(echo(7, 9), &[0; 33]), 7, 9, 33), "other bytes");
        let own = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: 7, seq: 9 });
        assert!(!is_reply(&reply(own, &pattern(33)), 7, 9, 33), "the request itself, as loopback shows it");
        for len in 0..whole.len() {
            assert!(!is_reply(&whole[..len], 7, 9, 33), "first {len} bytes");
        }
    }

    #[test]
    fn the_median_is_of_what_came_back() {
        let ms = Duration::from_millis;
        assert_eq!(Echoes::default().median(), None);
        let echoes = Echoes { sent: 4, round_trips: vec![ms(9), ms(1), ms(2)] };
        assert_eq!(echoes.median(), Some(ms(2)));
        assert!(!echoes.complete());
    }
}
