//! From the device to the wire: frames as the TAP gives them (with a virtio-net header, perhaps super-frames) become
//! VXLAN datagrams, grouped so that one send carries many. Pure: buffers in, a list of sends out.
//!
//! Where the kernel's vxlan device does something observable, this does the same: the outer ECN bits come from the
//! inner packet (RFC 6040), outer packets have no DF bit, frames to nobody are counted and dropped. Departure: frames
//! longer than the device's MTU that must not be fragmented are answered with "fragmentation needed".
//!
//! Grouping: datagrams to the same peer through the same socket leave in one send as long as all have the same
//! length (the last may be shorter); the kernel cuts it again (`UDP_SEGMENT`). The socket is chosen by the flow, so
//! its source port tells receivers and routers the flows apart (RFC 7348 section 5), and packets of a flow stay in
//! order. Where the kernel takes encapsulated super-frames whole ([`super::inject`]) one of TCP is a send by itself.

use super::answer::{self, Answered};
use super::checksum::Sum;
use super::counters::Drop;
use super::frame::{Frame, Network, Transport, put16};
use super::pieces::{Chain, Pieces, Place};
use super::segment::{self, Cut};
use super::table::Table;
use super::tunnel::Tunnelled;
use super::vnet::{Gso, LEN as VNET_BYTES, Vnet};
use crate::types::{Mtu, Vni, VtepMac};
use crate::wire::vxlan;

/// A buffer that the TAP reads into: virtio-net header, Ethernet header with two tags, the longest IP packet.
pub const BUFFER_BYTES: usize = VNET_BYTES + 22 + 65_535;
/// The most that one send takes over IPv4: the longest UDP payload. IPv6 would take 20 bytes more.
const SEND_BYTES: usize = 65_507;
/// Segments of one super-frame: what the longest one makes at the kernel's `TCP_MIN_SND_MSS` of 48 bytes. UDP's may be
/// shorter, but there the kernel allows 128 of them (`UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: usize = 65_535 / 48;
/// Headers of a super-frame, in bytes. Longer ones do not occur; IPv6 extension headers would have to be many.
const HEADERS_MAX_BYTES: usize = 256;
/// What the headers of one super-frame take in the arena at most.
const ARENA_WORST_BYTES: usize = SEGMENTS_MAX * (HEADERS_MAX_BYTES + vxlan::HEADER_BYTES);
const ARENA_BYTES: usize = ARENA_WORST_BYTES + 64 * 1024;
/// Sends looked back at to find one to append to.
const LOOK_BACK: usize = 16;

/// What an encapsulator needs to know.
#[derive(Debug, Clone, Copy)]
pub struct EncapSettings {
    /// The network.
    pub vni: Vni,
    /// The device's MTU, of inner IP packets.
    pub mtu: Mtu,
    /// The device's hardware address: where answers come from.
    pub mac: VtepMac,
    /// Transmit sockets to spread flows over, at least 1.
    pub sockets: u32,
    /// Datagrams that one send may carry: 64 with `UDP_SEGMENT`, 1 without.
    pub segments: u16,
    /// Whether super-frames can be sent whole, to peers with an uplink.
    pub inject: bool,
}

/// One send: datagrams to one peer, as one piece that the kernel cuts.
#[derive(Debug, Clone, Copy)]
pub struct Send {
    /// The peer's index in the table.
    pub peer: u32,
    /// Which transmit socket.
    pub socket: u32,
    /// ECN bits of the outer header.
    pub ecn: u8,
    /// Length of each datagram in bytes, but perhaps of the last.
    pub segment: u16,
    /// Datagrams.
    pub datagrams: u16,
    /// The bytes. Of a super-frame that is sent whole, the inner frame without anything before it.
    pub chain: Chain,
    /// Set for a super-frame that is sent whole; `segment` is without meaning then.
    pub tunnelled: Option<Tunnelled>,
    /// Whether a shorter one ended it.
    closed: bool,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is among the sends.
    Queued,
    /// It was answered: [`Encap::reply`] goes back into the device.
    Answered(Answered),
    /// It was too long, and its sender is told: [`Encap::reply`] goes back into the device.
    TooBig,
    /// It is dropped.
    Dropped(Drop),
}

/// Encapsulates batch by batch.
pub struct Encap {
    settings: EncapSettings,
    header: [u8; vxlan::HEADER_BYTES],
    pieces: Pieces,
    sends: Vec<Send>,
    reply: Vec<u8>,
}

/// Where a frame goes, and how.
#[derive(Clone, Copy)]
struct Way {
    peer: u32,
    socket: u32,
    ecn: u8,
}

impl Encap {
    /// With everything allocated that it will ever need.
    pub fn new(settings: EncapSettings) -> Self {
        Self {
            settings,
            header: vxlan::encode(settings.vni),
            pieces: Pieces::with_capacity(4096, ARENA_BYTES),
            sends: Vec::with_capacity(256),
            reply: Vec::with_capacity(2048),
        }
    }

    /// Begins a batch; what was there is forgotten.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.sends.clear();
    }

    /// Whether super-frames are sent whole from now on; see [`EncapSettings::inject`].
    pub fn set_inject(&mut self, inject: bool) {
        self.settings.inject = inject;
    }

    /// Whether another frame surely fits; if not, send first.
    pub fn has_room(&self) -> bool {
        self.pieces.arena_bytes() <= ARENA_BYTES - ARENA_WORST_BYTES
    }

    /// What to send, in the order of each flow.
    pub fn sends(&self) -> &[Send] {
        &self.sends
    }

    /// The slices of the sends.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The Ethernet frame to write to the device, after [`Pushed::Answered`] or [`Pushed::TooBig`].
    pub fn reply(&self) -> &[u8] {
        &self.reply
    }

    /// Takes the frame that buffer `index` holds in its first `length` bytes, virtio-net header first. The buffer
    /// must stay as it is until the batch is sent.
    pub fn push(&mut self, table: &Table, buffer: &mut [u8], index: u32, length: usize) -> Pushed {
        let Some((head, frame)) = buffer[..length].split_first_chunk_mut::<VNET_BYTES>() else {
            return Pushed::Dropped(Drop::Malformed);
        };
        let Ok(vnet) = Vnet::decode(head) else { return Pushed::Dropped(Drop::UnknownGso) };
        let Some(layout) = Frame::parse(frame) else { return Pushed::Dropped(Drop::Malformed) };
        if frame[0] & 1 == 1 {
            let answered = answer::answer(frame, table, self.settings.mac, &mut self.reply);
            return answered.map_or(Pushed::Dropped(Drop::Flood), Pushed::Answered);
        }
        let mac = [frame[0], frame[1], frame[2], frame[3], frame[4], frame[5]];
        let Some(peer) = table.by_mac(mac) else { return Pushed::Dropped(Drop::UnknownDestination) };
        let way = Way { peer, socket: layout.flow % self.settings.sockets, ecn: outer_ecn(layout.tos) };
        if vnet.gso == Gso::None || layout.payload_bytes() == 0 {
            self.single(table, &vnet, &layout, (head, frame), index, way)
        } else {
            self.super_frame(table, &vnet, &layout, frame, index, way)
        }
    }

    fn single(
        &mut self,
        table: &Table,
        vnet: &Vnet,
        layout: &Frame,
        (head, frame): (&mut [u8; VNET_BYTES], &mut [u8]),
        index: u32,
        way: Way,
    ) -> Pushed {
        if layout.network_bytes() > usize::from(self.settings.mtu.get()) && self.signal(table, way, frame) {
            return Pushed::TooBig;
        }
        if frame.len() + vxlan::HEADER_BYTES > SEND_BYTES {
            return Pushed::Dropped(Drop::TooBig);
        }
        if vnet.needs_csum && !fill_checksum(frame, vnet.csum_start.into(), vnet.csum_offset.into()) {
            return Pushed::Dropped(Drop::Malformed);
        }
        // The VXLAN header goes where the virtio-net header was, so the datagram is one piece.
        head[VNET_BYTES - vxlan::HEADER_BYTES..].copy_from_slice(&self.header);
        let start = VNET_BYTES - vxlan::HEADER_BYTES;
        self.datagram(way, (0, 0), (index, start, vxlan::HEADER_BYTES + frame.len()));
        Pushed::Queued
    }

    fn super_frame(
        &mut self,
        table: &Table,
        vnet: &Vnet,
        layout: &Frame,
        frame: &[u8],
        index: u32,
        way: Way,
    ) -> Pushed {
        let kind = matches!(
            (vnet.gso, layout.network, layout.transport),
            (Gso::TcpV4, Network::V4, Transport::Tcp)
                | (Gso::TcpV6, Network::V6, Transport::Tcp)
                | (Gso::UdpL4, Network::V4 | Network::V6, Transport::Udp)
        );
        let size = usize::from(vnet.gso_size);
        if !kind || layout.payload_at > HEADERS_MAX_BYTES || size == 0 {
            return Pushed::Dropped(Drop::UnknownGso);
        }
        let payload = &frame[layout.payload_at..layout.end];
        if payload.len().div_ceil(size) > SEGMENTS_MAX {
            return Pushed::Dropped(Drop::UnknownGso);
        }
        let on_the_wire = layout.payload_at - layout.network_at + size.min(payload.len());
        if on_the_wire > usize::from(self.settings.mtu.get()) && self.signal(table, way, frame) {
            return Pushed::TooBig;
        }
        let headers = &frame[..layout.payload_at];
        if vxlan::HEADER_BYTES + headers.len() + size.min(payload.len()) > SEND_BYTES {
            return Pushed::Dropped(Drop::TooBig);
        }
        if self.settings.inject
            && let Some(uplink) = table.entry(way.peer).uplink
            && let Some(tunnelled) = Tunnelled::new(vnet, layout, frame.len(), uplink.mtu)
        {
            let mut chain = Chain::EMPTY;
            self.pieces.push(&mut chain, Place::Buffer(index), VNET_BYTES, frame.len());
            let Way { peer, socket, ecn } = way;
            let datagrams = u16::try_from(payload.len().div_ceil(size)).unwrap_or(u16::MAX); // at most SEGMENTS_MAX
            self.sends.push(Send {
                peer,
                socket,
                ecn,
                segment: 0,
                datagrams,
                chain,
                tunnelled: Some(tunnelled),
                closed: true,
            });
            return Pushed::Queued;
        }
        for (n, part) in payload.chunks(size).enumerate() {
            let cut = Cut { index: n, offset: n * size, last: n * size + part.len() == payload.len() };
            let (at, written) = self.pieces.store(&[&self.header, headers]);
            segment::rewrite(&mut written[vxlan::HEADER_BYTES..], layout, cut, part);
            let head = (at, vxlan::HEADER_BYTES + headers.len());
            self.datagram(way, head, (index, VNET_BYTES + layout.payload_at + cut.offset, part.len()));
        }
        Pushed::Queued
    }

    /// Appends a datagram to the last send of its way if it fits there, else begins a new one.
    fn datagram(&mut self, way: Way, head: (usize, usize), body: (u32, usize, usize)) {
        let bytes = head.1 + body.2;
        let same = |s: &&mut Send| (s.peer, s.socket) == (way.peer, way.socket);
        let last = self.sends.iter_mut().rev().take(LOOK_BACK).find(same).filter(|send| {
            !send.closed
                && send.ecn == way.ecn
                && send.datagrams < self.settings.segments
                && bytes <= usize::from(send.segment)
                && send.chain.bytes + bytes <= SEND_BYTES
        });
        let mut fresh = Send {
            peer: way.peer,
            socket: way.socket,
            ecn: way.ecn,
            segment: u16::try_from(bytes).unwrap_or(u16::MAX), // at most SEND_BYTES
            datagrams: 0,
            chain: Chain::EMPTY,
            tunnelled: None,
            closed: false,
        };
        let (send, new) = match last {
            Some(send) => (send, false),
            None => (&mut fresh, true),
        };
        self.pieces.push(&mut send.chain, Place::Arena, head.0, head.1);
        self.pieces.push(&mut send.chain, Place::Buffer(body.0), body.1, body.2);
        send.datagrams += 1;
        send.closed = bytes < usize::from(send.segment);
        if new {
            self.sends.push(fresh);
        }
    }

    /// The error comes from the peer's VTEP, which would be the next hop: from one of its own addresses the host would
    /// not take it.
    fn signal(&mut self, table: &Table, way: Way, frame: &[u8]) -> bool {
        let Self { settings, reply, .. } = self;
        answer::too_big(frame, settings.mtu.get(), settings.mac, table.entry(way.peer).vtep4, reply)
    }
}

/// RFC 6040 section 4.1, normal mode, as Linux does it: the inner bits, but "congestion experienced" goes out as
/// ECT(0), since the inner header keeps it.
fn outer_ecn(tos: u8) -> u8 {
    match tos & 3 {
        3 => 2,
        bits => bits,
    }
}

/// Completes a checksum that the kernel left to us: the field holds the pseudo-header's sum.
fn fill_checksum(frame: &mut [u8], start: usize, offset: usize) -> bool {
    let field = start + offset;
    if start >= frame.len() || field + 2 > frame.len() {
        return false;
    }
    let checksum = Sum::default().add(&frame[start..]).checksum();
    put16(frame, field, if checksum == 0 { 0xffff } else { checksum });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "encap_tests.rs"]
mod tests;
