//! Cuts a super-frame (TCP or UDP that the kernel left unsegmented) into frames as they go on the wire: the headers
//! of each, with lengths, identification, sequence number, flags and checksums as the kernel's own segmentation
//! makes them (checked against captures of it). Pure.

use super::checksum::{Sum, pseudo_v4, pseudo_v6};
use super::frame::{Frame, Network, TCP, Transport, UDP, be16, be32, put16};

const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;
/// Offset of the flags in a TCP header.
pub(crate) const TCP_FLAGS: usize = 13;
/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Which part of a super-frame's payload a frame gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the frame, from 0.
    pub index: usize,
    /// Where its payload begins in the whole payload, in bytes.
    pub offset: usize,
    /// Whether it is the last one.
    pub last: bool,
}

/// Turns a copy of the super-frame's headers (everything before the payload) into those of one frame.
///
/// `layout` is the super-frame's; its transport is TCP or UDP.
pub fn rewrite(headers: &mut [u8], layout: &Frame, cut: Cut, payload: &[u8]) {
    if layout.transport == Transport::Tcp {
        let tcp = &mut headers[layout.transport_at..];
        let sequence = be32(tcp, 4).wrapping_add(u32::try_from(cut.offset).unwrap_or(0));
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !cut.last {
            tcp[TCP_FLAGS] &= !(FIN | PSH);
        }
        if cut.index > 0 {
            tcp[TCP_FLAGS] &= !CWR; // RFC 3168 section 6.1.2: answered once
        }
    }
    let identification = u16::try_from(cut.index & 0xffff).unwrap_or(0);
    network_header(headers, layout, payload.len(), identification);
    let sum = transport_sum(headers, layout, payload.len()).add(payload);
    put_transport_checksum(headers, layout, sum.checksum());
}

/// Writes the lengths for this much payload, adds to the IPv4 identification, and puts the IPv4 checksum right.
pub(crate) fn network_header(headers: &mut [u8], layout: &Frame, payload_bytes: usize, identification: u16) {
    let at = layout.network_at;
    let length = |n: usize| u16::try_from(n).unwrap_or(u16::MAX); // a cut is shorter than what it was cut from
    match layout.network {
        Network::V4 => {
            put16(headers, at + 2, length(layout.payload_at - at + payload_bytes));
            let id = be16(headers, at + 4).wrapping_add(identification);
            put16(headers, at + 4, id);
            put16(headers, at + 10, 0);
            let sum = Sum::default().add(&headers[at..layout.transport_at]).checksum();
            put16(headers, at + 10, sum);
        }
        Network::V6 => put16(headers, at + 4, length(layout.payload_at - at - 40 + payload_bytes)),
        Network::Other => {}
    }
    if layout.transport == Transport::Udp {
        put16(headers, layout.transport_at + 4, length(8 + payload_bytes));
    }
}

/// The sum over pseudo-header and transport header, the checksum field taken as zero.
fn transport_sum(headers: &[u8], layout: &Frame, payload_bytes: usize) -> Sum {
    let transport = &headers[layout.transport_at..layout.payload_at];
    let field = checksum_field(layout);
    let sum = pseudo(headers, layout, transport.len() + payload_bytes);
    sum.add(&transport[..field]).add(&transport[field + 2..])
}

/// Offset of the checksum in the transport's header.
pub(crate) fn checksum_field(layout: &Frame) -> usize {
    if layout.transport == Transport::Tcp { TCP_CHECKSUM } else { UDP_CHECKSUM }
}

/// The sum over the pseudo-header (RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1) for this length of the
/// transport's header and payload together.
pub(crate) fn pseudo(headers: &[u8], layout: &Frame, transport_bytes: usize) -> Sum {
    let protocol = if layout.transport == Transport::Tcp { TCP } else { UDP };
    let length = u32::try_from(transport_bytes).unwrap_or(u32::MAX);
    let ip = &headers[layout.network_at..];
    match layout.network {
        Network::V6 => pseudo_v6(array(ip, 8), array(ip, 24), protocol, length),
        _ => pseudo_v4(array(ip, 12), array(ip, 16), protocol, length),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Writes a checksum; for UDP zero would mean "none", so its other form is written (RFC 768).
fn put_transport_checksum(headers: &mut [u8], layout: &Frame, checksum: u16) {
    let checksum = if checksum == 0 && layout.transport == Transport::Udp { 0xffff } else { checksum };
    put16(headers, layout.transport_at + checksum_field(layout), checksum);
}
