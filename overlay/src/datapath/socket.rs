//! The sockets on the underlay: per queue one that receives at the VXLAN port, and several that send.
//!
//! Sending has sockets of its own because the outer source port must vary with the inner flow, so that the underlay
//! can spread flows over paths and queues (RFC 7348 section 4, "source port"): each has an ephemeral port, and the
//! worker picks one by the flow's hash. Nothing is expected to arrive there.
//!
//! Both ends are batched twice: many datagrams in one call (`sendmmsg`, `recvmmsg`), and many equal datagrams of one
//! peer in one buffer (`UDP_SEGMENT` since Linux 4.18, `UDP_GRO` since 5.0).

use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::holder::{self, Holder};
use super::pieces::recycle;
use super::split::Pieces;
use super::sys;

/// Sending sockets of one queue, and so outer source ports.
pub const SENDERS: usize = 8;

/// Most datagrams in one message with [`Message::segment`] (`UDP_MAX_SEGMENTS` before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;

/// Most bytes in one message over IPv4, whatever its segments (65,535 less IPv4's 20 and UDP's 8).
pub const MAX_MESSAGE_BYTES: usize = 65_507;

/// Most slices in one message.
pub const MAX_SLICES: usize = sys::MAX_SLICES;

/// A receive buffer of this many bytes takes every datagram and every run of datagrams.
pub const DATAGRAM_BUFFER_BYTES: usize = 65_536;

/// Asked for behind the receiving socket: 70 ms at 1 Gbit/s.
const RECEIVE_QUEUE_BYTES: usize = 8 << 20;
/// Asked for behind each sending socket.
const SEND_QUEUE_BYTES: usize = 4 << 20;
/// Errors of earlier datagrams that one call of [`Receive::receive`] passes over.
const STALE_ERRORS: usize = 16;

/// Why there is no socket; each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody has the port.
    #[error(
        "UDP port {port} is taken by {holder}; stop it or remove the device, or give this network another port \
         (Backend.Port in the network config)"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        holder: Holder,
    },
    /// The address to send from is not ours.
    #[error(
        "{0} is not an address of this machine (any more), so nothing can be sent from it; see -iface and -public-ip"
    )]
    NotLocal(IpAddr),
    /// Anything else.
    #[error("underlay socket ({address}): {call}: {source}")]
    Kernel {
        /// Where it is bound, or was to be.
        address: SocketAddr,
        /// What was asked of the kernel.
        call: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// One datagram to send, or a run of datagrams of equal length to one peer.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The peer; of the family of the socket.
    pub to: SocketAddr,
    /// The bytes, gathered; [`MAX_SLICES`] and [`MAX_MESSAGE_BYTES`] at most.
    pub parts: &'a [IoSlice<'a>],
    /// The kernel cuts the bytes into datagrams of this many bytes, the last one perhaps shorter, [`MAX_SEGMENTS`] at
    /// most. `None`: one datagram.
    pub segment: Option<u16>,
    /// The two ECN bits of the outer header (RFC 6040); the others are not looked at.
    pub ecn: u8,
}

/// A datagram received, or a run of datagrams of equal length that came from one peer one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer; 0 when the datagram did not fit into it.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// What the kernel says of the run (`UDP_GRO`): the length of each datagram but the last. `None`: one datagram.
    pub segment: Option<u16>,
    /// The two ECN bits of the outer header.
    pub ecn: u8,
}

/// What a refused message means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No room now: the message is dropped, as a network card with a full queue would.
    Full,
    /// The kernel does not cut this message (segments longer than the interface's MTU, no checksum offload, `IPsec`, an
    /// old kernel): [`Transmit::send_plain`] sends it without the kernel's help.
    Segmentation,
    /// This message cannot be sent: no route, forbidden by a packet filter, too long.
    Unsendable,
}

impl Refusal {
    /// Whether it only says that there is no room now.
    pub fn is_full(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
    }

    /// Classifies the error with which [`Transmit::send`] refused a message.
    pub fn of(error: &io::Error, message: &Message<'_>) -> Self {
        match error.raw_os_error() {
            _ if Self::is_full(error) => Self::Full,
            Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
                if message.segment.is_some() =>
            {
                Self::Segmentation
            }
            _ => Self::Unsendable,
        }
    }
}

/// A socket that sends. Its port is its own; what arrives there is not read.
#[derive(Debug)]
pub struct Transmit {
    socket: Socket,
    sender: sys::Sender,
    segmentation: bool,
    /// Memory of [`Transmit::send_plain`]'s slices between calls; always empty.
    slices: Vec<IoSlice<'static>>,
}

impl Transmit {
    fn open(local: IpAddr) -> Result<Self, SocketError> {
        let address = SocketAddr::new(local, 0);
        let failed = |call| move |source| SocketError::Kernel { address, call, source };
        let socket = udp(local).map_err(failed("socket"))?;
        socket.bind(&address.into()).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRNOTAVAIL) => SocketError::NotLocal(local),
            _ => failed("bind")(source),
        })?;
        sys::allow_fragments(socket.as_fd(), local.is_ipv6()).map_err(failed("IP_MTU_DISCOVER"))?;
        // The kernel rounds it up to the least it allows.
        socket.set_recv_buffer_size(0).map_err(failed("SO_RCVBUF"))?;
        if setsockopt(&socket, sockopt::SndBufForce, &SEND_QUEUE_BYTES).is_err() {
            socket.set_send_buffer_size(SEND_QUEUE_BYTES).map_err(failed("SO_SNDBUF"))?;
        }
        // Asks only whether the option is there; 0 is what it stands at.
        let segmentation = setsockopt(&socket, sockopt::UdpGsoSegment, &0).is_ok();
        Ok(Self { socket, sender: sys::Sender::new(), segmentation, slices: Vec::new() })
    }

    /// Whether the kernel knows [`Message::segment`]. It may still refuse single messages, see [`Refusal`].
    pub fn segmentation(&self) -> bool {
        self.segmentation
    }

    /// The outer source address and port.
    ///
    /// # Errors
    /// None in practice: the socket is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        local_addr(&self.socket)
    }

    /// Sends messages in their order. Returns how many of them the kernel took, and why it refused the one after
    /// these; `None` if it took all. What to do with that one says [`Refusal`]; those behind it were not tried. Never
    /// blocks and allocates nothing.
    pub fn send(&mut self, messages: &[Message<'_>]) -> (usize, Option<io::Error>) {
        let mut done = 0;
        while done < messages.len() {
            match self.sender.send(self.socket.as_fd(), &messages[done..]) {
                Ok(count) => done += count,
                Err(error) => return (done, Some(error)),
            }
        }
        (done, None)
    }

    /// Sends one message as the datagrams that it stands for, each by itself. Returns how many of them the kernel took,
    /// and why it refused the one after these; those behind it were not tried. A datagram longer than the MTU is
    /// fragmented by the kernel.
    pub fn send_plain(&mut self, message: &Message<'_>) -> (usize, Option<io::Error>) {
        let Some(length) = message.segment.map(usize::from).filter(|length| *length > 0) else {
            return self.send(&[Message { segment: None, ..*message }]);
        };
        let mut slices = recycle(std::mem::take(&mut self.slices));
        let mut pieces = Pieces::new(message.parts);
        let mut done = 0;
        let error = loop {
            let mut ends = [0; sys::BATCH];
            let mut count = 0;
            slices.clear();
            while count < ends.len() && pieces.next(length, &mut slices) > 0 {
                ends[count] = slices.len();
                count += 1;
            }
            if count == 0 {
                break None;
            }
            let datagrams: [Message<'_>; sys::BATCH] = std::array::from_fn(|n| {
                let start = n.checked_sub(1).map_or(0, |before| ends[before]);
                Message { parts: slices.get(start..ends[n]).unwrap_or_default(), segment: None, ..*message }
            });
            let (sent, error) = self.send(&datagrams[..count]);
            done += sent;
            if error.is_some() {
                break error;
            }
        };
        self.slices = recycle(slices);
        (done, error)
    }
}

impl AsFd for Transmit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A socket that receives at the VXLAN port.
#[derive(Debug)]
pub struct Receive {
    socket: Socket,
    receiver: sys::Receiver,
    coalescing: bool,
    queue_bytes: usize,
}

impl Receive {
    fn open(wildcard: IpAddr, port: u16, share: bool) -> Result<Self, SocketError> {
        let address = SocketAddr::new(wildcard, port);
        let failed = |call| move |source| SocketError::Kernel { address, call, source };
        let socket = udp(wildcard).map_err(failed("socket"))?;
        if share {
            socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
        }
        socket.bind(&address.into()).map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => SocketError::PortTaken { port, holder: holder::of_udp_port(port) },
            _ => failed("bind")(source),
        })?;
        if wildcard.is_ipv6() {
            socket.set_recv_tclass_v6(true).map_err(failed("IPV6_RECVTCLASS"))?;
        } else {
            socket.set_recv_tos_v4(true).map_err(failed("IP_RECVTOS"))?;
        }
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE_BYTES).is_err() {
            socket.set_recv_buffer_size(RECEIVE_QUEUE_BYTES).map_err(failed("SO_RCVBUF"))?;
        }
        // The kernel doubles what is asked for, and reports that.
        let queue_bytes = socket.recv_buffer_size().map_err(failed("SO_RCVBUF"))? / 2;
        let coalescing = setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        Ok(Self { socket, receiver: sys::Receiver::new(), coalescing, queue_bytes })
    }

    /// Whether the kernel knows [`Received::segment`].
    pub fn coalescing(&self) -> bool {
        self.coalescing
    }

    /// Room for datagrams that wait, in bytes of kernel memory: 8 MiB were asked for.
    pub fn queue_bytes(&self) -> usize {
        self.queue_bytes
    }

    /// How many datagrams the kernel has dropped because that room was full, from the socket's start, modulo 2^32. A
    /// system call.
    ///
    /// `SO_RXQ_OVFL` would say it with each datagram, but a kernel with hardened usercopy (seen with Linux 6.18) kills
    /// the thread for it when the datagram is another local namespace's TCP in the kernel's vxlan: the buffers of TCP are
    /// not meant to be read like that.
    pub fn overflows(&self) -> u32 {
        sys::dropped_by(self.socket.as_fd()).unwrap_or(0)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None in practice: the socket is bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        local_addr(&self.socket)
    }

    /// Receives what is there, one datagram (or run) per buffer and 64 at most; the n-th entry of `out` describes the
    /// n-th buffer. Returns how many, 0 when there is nothing now. Buffers are to have [`DATAGRAM_BUFFER_BYTES`].
    ///
    /// # Errors
    /// Those of the socket itself. Errors that earlier datagrams brought about (ICMP) are passed over.
    pub fn receive(&mut self, buffers: &mut [Box<[u8]>], out: &mut Vec<Received>) -> io::Result<usize> {
        let mut stale = 0;
        loop {
            match self.receiver.receive(self.socket.as_fd(), buffers, out) {
                Ok(()) => return Ok(out.len()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if stale < STALE_ERRORS && is_stale(&error) => stale += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Receive {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an error tells of a datagram sent before, not of the socket.
fn is_stale(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EACCES
                | libc::EPERM
        )
    )
}

/// Opens the sockets of `queues` queues: each one that receives at `port` on every address of `local`'s family, and
/// [`SENDERS`] that send from `local`. Datagrams are spread over the receiving sockets by their outer addresses and
/// ports, so that a flow stays on one.
///
/// # Errors
/// See [`SocketError`].
pub fn open(
    local: impl Into<IpAddr>,
    port: u16,
    queues: usize,
) -> Result<Vec<(Receive, Vec<Transmit>)>, SocketError> {
    let local = local.into();
    let wildcard: IpAddr =
        if local.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let mut sockets = Vec::with_capacity(queues);
    for queue in 0..queues {
        // The first one must find the port free: with SO_REUSEPORT it would share it with another process of ours.
        let receive = Receive::open(wildcard, port, queue > 0)?;
        if queue == 0 && queues > 1 {
            let shared = receive.socket.set_reuse_port(true);
            let address = SocketAddr::new(wildcard, port);
            shared.map_err(|source| SocketError::Kernel { address, call: "SO_REUSEPORT", source })?;
        }
        let transmit = (0..SENDERS).map(|_| Transmit::open(local)).collect::<Result<_, _>>()?;
        sockets.push((receive, transmit));
    }
    Ok(sockets)
}

fn udp(family: IpAddr) -> io::Result<Socket> {
    let domain = if family.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if family.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn local_addr(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| ErrorKind::AddrNotAvailable.into())
}
