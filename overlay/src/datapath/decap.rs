//! From the wire to the device: datagrams as the sockets give them (perhaps several glued together by `UDP_GRO`)
//! become frames for the TAP, packets of a flow put together. Pure: buffers in, a list of writes out.
//!
//! Three kinds of sender need care, because between namespaces of one machine packets arrive as the sender's kernel
//! left them, never cut and never checksummed by hardware:
//! - checksums that hold only the pseudo-header's sum are passed on as "still to be computed";
//! - a kernel vxlan device sends TCP super-frames of up to 64 KiB as one datagram: these are handed on as such;
//! - an inner UDP super-frame also comes as one datagram, with the *inner* segment size in the control message.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

pub use super::assemble::Write;
use super::assemble::{Assembler, At};
use super::counters::Drop;
use super::frame::{Frame, Network, be16, put16};
use super::pieces::Pieces;
use super::table::Table;
use crate::types::{Mtu, Vni, VtepMac};
use crate::wire::vxlan;

/// A buffer for the longest datagram, glued or not.
pub const BUFFER_BYTES: usize = 65_536;
/// ECN codepoints (RFC 3168 section 5).
const ECT_1: u8 = 1;
const CE: u8 = 3;

/// What a decapsulator needs to know.
#[derive(Debug, Clone, Copy)]
pub struct DecapSettings {
    /// The network; other ones are dropped.
    pub vni: Vni,
    /// The device's MTU.
    pub mtu: Mtu,
    /// The device's hardware address, which nobody else's frames come from.
    pub mac: VtepMac,
    /// Whether frames must come from a known VTEP's hardware address and that VTEP's underlay address.
    pub source_check: bool,
    /// Whether the TAP takes UDP super-frames (Linux 6.2 and later).
    pub udp_super_frames: bool,
}

/// What the socket says of a receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// Which buffer.
    pub buffer: u32,
    /// Bytes in it.
    pub bytes: usize,
    /// The sender on the underlay.
    pub from: SocketAddr,
    /// Size of the pieces that were glued together (`UDP_GRO`); the last may be shorter.
    pub segment: Option<u16>,
    /// ECN bits of the outer header.
    pub ecn: u8,
}

/// A frame that was accepted from a known peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// The peer's index in the table.
    pub peer: u32,
    /// Packets in it, as they would have been on the wire.
    pub packets: usize,
    /// Length of all these packets in bytes, each with its headers from Ethernet's on.
    pub bytes: usize,
}

/// Decapsulates batch by batch.
pub struct Decap {
    settings: DecapSettings,
    assembler: Assembler,
    drops: Vec<(Drop, Option<u32>)>,
    /// Where what was dropped lies, in the same order.
    refused: Vec<At>,
    received: Vec<Arrived>,
    /// The sender of the last packet: the next one is most likely its as well.
    sender: Option<([u8; 6], IpAddr, u32)>,
}

impl Decap {
    /// With everything allocated that it will ever need.
    pub fn new(settings: DecapSettings) -> Self {
        Self {
            settings,
            assembler: Assembler::new(settings.mtu.get().into(), settings.udp_super_frames),
            drops: Vec::with_capacity(4096),
            refused: Vec::with_capacity(4096),
            received: Vec::with_capacity(4096),
            sender: None,
        }
    }

    /// Begins a batch; what was there is forgotten.
    pub fn clear(&mut self) {
        self.assembler.clear();
        self.drops.clear();
        self.refused.clear();
        self.received.clear();
    }

    /// The table has changed: who sent the last packet is to be looked up anew.
    pub fn table_changed(&mut self) {
        self.sender = None;
    }

    /// What to write, in the order of each flow; complete after [`Decap::finish`].
    pub fn writes(&self) -> &[Write] {
        self.assembler.writes()
    }

    /// The slices of the writes.
    pub fn pieces(&self) -> &Pieces {
        self.assembler.pieces()
    }

    /// Packets dropped in this batch, with the peer if it is known.
    pub fn drops(&self) -> &[(Drop, Option<u32>)] {
        &self.drops
    }

    /// What [`Decap::drops`] tells of, in the same order: the buffer, and its bytes in it. Some lie behind a VXLAN header.
    pub fn refused(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        self.refused.iter().map(|at| (at.buffer, at.start..at.start + at.bytes))
    }

    /// Frames accepted in this batch from known peers, in the order they came.
    pub fn received(&self) -> &[Arrived] {
        &self.received
    }

    /// Takes the datagrams in a receive buffer. The buffers must stay as they are until the batch is written.
    pub fn push<B: AsRef<[u8]> + AsMut<[u8]>>(&mut self, table: &Table, buffers: &mut [B], got: Datagram) {
        let bytes = &buffers[got.buffer as usize].as_ref()[..got.bytes];
        let whole = is_one_packet(bytes);
        let size = got.segment.map(usize::from).filter(|s| *s > 0 && !whole).unwrap_or(got.bytes).max(1);
        // `UDP_GRO` tells an inner super-frame's segment size for lack of an outer one.
        let inner = got.segment.filter(|_| whole);
        if bytes.is_empty() {
            self.drops.push((Drop::BadVxlan, None));
            self.refused.push(At { buffer: got.buffer, start: 0, bytes: 0 });
        }
        for start in (0..got.bytes).step_by(size) {
            let at = At { buffer: got.buffer, start, bytes: size.min(got.bytes - start) };
            if let Err(dropped) = self.datagram(table, buffers, at, &got, inner) {
                self.drops.push(dropped);
                self.refused.push(at);
            }
        }
    }

    /// Ends the batch: what waits for more packets waits no longer.
    pub fn finish<B: AsRef<[u8]>>(&mut self, buffers: &[B]) {
        self.assembler.finish(buffers);
    }

    fn datagram<B: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        table: &Table,
        buffers: &mut [B],
        at: At,
        got: &Datagram,
        inner: Option<u16>,
    ) -> Result<(), (Drop, Option<u32>)> {
        let frame = match vxlan::decode(at.of(buffers)) {
            Ok((vni, frame)) if vni == self.settings.vni => frame,
            Ok(_) => return Err((Drop::WrongVni, None)),
            Err(_) => return Err((Drop::BadVxlan, None)),
        };
        let layout = Frame::parse(frame).ok_or((Drop::Malformed, None))?;
        let peer = self.sender_of(table, frame, got.from.ip())?;
        let bytes = at.bytes - vxlan::HEADER_BYTES;
        let at = At { start: at.start + vxlan::HEADER_BYTES, bytes, ..at };
        let tos = inner_tos(layout.tos, got.ecn, layout.network).ok_or((Drop::EcnMismatch, peer))?;
        if tos != layout.tos {
            let frame = &mut buffers[at.buffer as usize].as_mut()[at.start..at.start + bytes];
            mark(frame, &layout, tos);
        }
        let packets = self.assembler.frame(buffers, at, &Frame { tos, ..layout }, inner);
        if let Some(peer) = peer {
            let bytes = bytes + (packets - 1) * layout.payload_at;
            self.received.push(Arrived { peer, packets, bytes });
        }
        Ok(())
    }

    /// Which peer sent it; `None` for a stranger where strangers are let in. Our own address and what is no host's are
    /// nobody's even there, as with the kernel's device (`vxlan_set_mac`): such a frame loops, or poisons.
    fn sender_of(
        &mut self,
        table: &Table,
        frame: &[u8],
        from: IpAddr,
    ) -> Result<Option<u32>, (Drop, Option<u32>)> {
        let mac = [frame[6], frame[7], frame[8], frame[9], frame[10], frame[11]];
        if let Some((_, _, peer)) = self.sender.filter(|(m, ip, _)| (*m, *ip) == (mac, from)) {
            return Ok(Some(peer));
        }
        let Some(peer) = table.by_mac(mac) else {
            let possible = VtepMac::try_from(mac).is_ok_and(|mac| mac != self.settings.mac);
            let let_in = possible && !self.settings.source_check;
            return if let_in { Ok(None) } else { Err((Drop::UnknownSource, None)) };
        };
        if self.settings.source_check && table.entry(peer).underlay != from {
            return Err((Drop::SpoofedSource, Some(peer)));
        }
        self.sender = Some((mac, from, peer));
        Ok(Some(peer))
    }
}

/// Whether the buffer holds one VXLAN packet, however long: its inner IP packet fills it.
fn is_one_packet(bytes: &[u8]) -> bool {
    let Ok((_, frame)) = vxlan::decode(bytes) else { return false };
    Frame::parse(frame).is_some_and(|layout| layout.network != Network::Other && layout.end == frame.len())
}

/// The inner packet's type of service after decapsulation (RFC 6040 section 4.2, as Linux does it): congestion on
/// the way is passed on, or the packet dropped (`None`) if its sender would not understand the mark.
fn inner_tos(inner: u8, outer_ecn: u8, network: Network) -> Option<u8> {
    match (inner & 3, outer_ecn & 3) {
        _ if network == Network::Other => Some(inner),
        (0, CE) => None,
        (0, _) => Some(inner),
        (_, CE) => Some(inner | CE),
        (2, ECT_1) => Some((inner & !3) | ECT_1),
        _ => Some(inner),
    }
}

/// Writes a type of service. IPv4's checksum is updated, not computed anew, so that a wrong one stays wrong
/// (RFC 1624).
fn mark(frame: &mut [u8], layout: &Frame, tos: u8) {
    let ip = &mut frame[layout.network_at..];
    if layout.network == Network::V6 {
        ip[0] = (ip[0] & 0xf0) | (tos >> 4);
        ip[1] = (ip[1] & 0x0f) | (tos << 4);
        return;
    }
    let old = be16(ip, 0);
    ip[1] = tos;
    let sum = u32::from(!be16(ip, 10)) + u32::from(!old) + u32::from(be16(ip, 0));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    put16(ip, 10, !u16::try_from(folded).unwrap_or(u16::MAX));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "decap_tests.rs"]
mod tests;
