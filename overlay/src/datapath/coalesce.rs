//! Puts packets of a flow together again, as the kernel's GRO does, so that the network stack above sees one
//! super-frame instead of forty segments. Pure.
//!
//! The rule that makes this safe: cutting what was put together (same size, the last may be shorter) must give back
//! exactly the packets that came. So TCP joins only with equal headers, contiguous sequence numbers and no flag but
//! ACK (and PSH on the last); UDP only with equal headers and lengths; both only with sound checksums, IPv4 only
//! without options and with identifications that a cut would give, or with DF, where they mean nothing (RFC 6864).

use super::checksum::Sum;
use super::frame::{Frame, Network, Transport, be16, be32};
use super::segment::{PSH, TCP_FLAGS, checksum_field, pseudo};

const ACK: u8 = 0x10;
const DONT_FRAGMENT: u16 = 0x4000;
/// The longest IP packet; an IPv6 payload length would allow 40 bytes more.
const PACKET_MAX_BYTES: usize = 65_535;
/// A write gathers at most 1024 slices (`UIO_MAXIOV`), one of them for the headers.
const PACKETS_MAX: usize = 1000;
/// As the kernel's `UDP_MAX_SEGMENTS` before 6.9: it refuses to cut a datagram into more.
const UDP_SEGMENTS_MAX: usize = 64;

/// What the checksum of a TCP or UDP packet says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// Right.
    Valid,
    /// Only the pseudo-header's sum: the sender left it to hardware that the packet never met (a veth).
    Unfilled,
    /// UDP without one.
    Absent,
    /// Wrong.
    Bad,
}

/// Looks at the checksum of a whole TCP or UDP packet.
pub(crate) fn checksum(frame: &[u8], layout: &Frame) -> Checksum {
    let transport = &frame[layout.transport_at..layout.end];
    let pseudo = pseudo(frame, layout, transport.len());
    let field = be16(transport, checksum_field(layout));
    if layout.transport == Transport::Udp && field == 0 {
        return Checksum::Absent;
    }
    // Everything summed with its checksum gives all ones.
    if pseudo.add(transport).fold() == 0xffff {
        Checksum::Valid
    } else if field == pseudo.fold() {
        Checksum::Unfilled
    } else {
        Checksum::Bad
    }
}

/// Whether the IPv4 header's checksum is right and UDP's length that of its packet: else writing the headers anew
/// would make another packet of it.
pub(crate) fn sound(frame: &[u8], layout: &Frame) -> bool {
    let network = match layout.network {
        Network::V4 => Sum::default().add(&frame[layout.network_at..layout.transport_at]).fold() == 0xffff,
        Network::V6 => true,
        Network::Other => false,
    };
    let udp_bytes = || usize::from(be16(frame, layout.transport_at + 4));
    network && (layout.transport != Transport::Udp || udp_bytes() == layout.payload_bytes() + 8)
}

/// Packets that will be written as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Layout of the first packet.
    pub(crate) layout: Frame,
    /// Payload of each packet in bytes; the last may have less.
    pub(crate) size: usize,
    /// Payload of all in bytes.
    pub(crate) payload: usize,
    /// How many packets.
    pub(crate) packets: usize,
    /// Whether the last one carries PSH.
    pub(crate) push: bool,
    /// Nothing more may follow.
    pub(crate) closed: bool,
}

impl Run {
    /// Begins a run with a packet that others may join; `None` if none may.
    ///
    /// The caller has seen that the checksum is [`Checksum::Valid`] or [`Checksum::Unfilled`].
    pub(crate) fn begin(frame: &[u8], layout: Frame) -> Option<Run> {
        // Without options or extension headers.
        let plain = match layout.network {
            Network::V4 => layout.transport_at == layout.network_at + 20,
            Network::V6 => layout.transport_at == layout.network_at + 40,
            Network::Other => false,
        };
        let payload = layout.payload_bytes();
        if !plain || payload == 0 || !sound(frame, &layout) {
            return None;
        }
        let push = match layout.transport {
            Transport::Tcp => match frame[layout.transport_at + TCP_FLAGS] {
                ACK => false,
                flags if flags == ACK | PSH => true,
                _ => return None,
            },
            Transport::Udp => false,
            Transport::Other => return None,
        };
        Some(Run { layout, size: payload, payload, packets: 1, push, closed: push })
    }

    /// Whether this packet may join; `first` is the run's first one. If so it is counted in.
    pub(crate) fn join(&mut self, first: &[u8], frame: &[u8], next: &Run) -> bool {
        let payload = next.payload;
        let joins = !self.closed
            && payload <= self.size
            && self.layout.payload_at - self.layout.network_at + self.payload + payload <= PACKET_MAX_BYTES
            && self.same_headers(first, frame, &next.layout);
        if joins {
            self.payload += payload;
            self.packets += 1;
            self.push = next.push;
            let most = if self.layout.transport == Transport::Udp { UDP_SEGMENTS_MAX } else { PACKETS_MAX };
            self.closed = next.push || payload < self.size || self.packets == most;
        }
        joins
    }

    /// Whether the packet belongs to the same flow: then order between the two matters.
    pub(crate) fn same_flow(&self, first: &[u8], frame: &[u8], layout: &Frame) -> bool {
        let ours = &self.layout;
        (ours.flow, ours.transport) == (layout.flow, layout.transport)
            && self.same_hosts(first, frame, layout)
            && first[ours.transport_at..][..4] == frame[layout.transport_at..][..4]
    }

    /// Whether the packet goes from and to the same Ethernet and IP addresses.
    pub(crate) fn same_hosts(&self, first: &[u8], frame: &[u8], layout: &Frame) -> bool {
        let at = self.layout.network_at;
        let addresses = if self.layout.network == Network::V4 { at + 12..at + 20 } else { at + 8..at + 40 };
        (at, self.layout.network) == (layout.network_at, layout.network)
            && first[..at] == frame[..at]
            && first[addresses.clone()] == frame[addresses]
    }

    fn same_headers(&self, first: &[u8], frame: &[u8], layout: &Frame) -> bool {
        let ours = &self.layout;
        let lengths = (ours.network_at, ours.transport_at, ours.payload_at);
        if lengths != (layout.network_at, layout.transport_at, layout.payload_at) || ours.tos != layout.tos {
            return false;
        }
        let (a, b) = (&first[ours.network_at..], &frame[ours.network_at..]);
        let network = if ours.network == Network::V4 {
            let fragmenting = be16(a, 6);
            let expected = usize::from(be16(a, 4)) + self.packets;
            let identified = fragmenting & DONT_FRAGMENT != 0 || usize::from(be16(b, 4)) == expected & 0xffff;
            fragmenting == be16(b, 6) && a[8] == b[8] && identified
        } else {
            a[..4] == b[..4] && a[7] == b[7]
        };
        network && (ours.transport == Transport::Udp || self.same_tcp(first, frame))
    }

    /// Sequence contiguous; acknowledgement, data offset, window, urgent pointer and options equal.
    fn same_tcp(&self, first: &[u8], frame: &[u8]) -> bool {
        let header = self.layout.transport_at..self.layout.payload_at;
        let (a, b) = (&first[header.clone()], &frame[header]);
        let expected = be32(a, 4).wrapping_add(u32::try_from(self.payload).unwrap_or(0));
        be32(b, 4) == expected
            && a[8..TCP_FLAGS] == b[8..TCP_FLAGS]
            && a[14..16] == b[14..16]
            && a[18..] == b[18..]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "coalesce_tests.rs"]
mod tests;
