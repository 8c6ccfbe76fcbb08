//! From decapsulated frames to writes for the TAP: packets of a flow are put together ([`super::coalesce`]), what a
//! sender's kernel never cut is handed on as a super-frame, everything else goes as it came. Pure.

use super::coalesce::{self, Checksum, Run};
use super::frame::{Frame, Network, Transport, put16};
use super::pieces::{Chain, Pieces, Place};
use super::segment::{self, CWR, Cut, PSH, TCP_FLAGS, checksum_field};
use super::vnet::{Gso, LEN as VNET_BYTES, Vnet};

/// Flows put together at the same time.
const PENDING: usize = 16;

/// One write to the TAP.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// virtio-net header and frame.
    pub chain: Chain,
    /// Packets in it, as they are (or would have been) on the wire.
    pub packets: usize,
    /// Length of all these packets in bytes, each with its headers from Ethernet's on.
    pub bytes: usize,
}

/// A frame inside a receive buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Which buffer.
    pub(crate) buffer: u32,
    /// Where the frame begins.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) bytes: usize,
}

impl At {
    pub(crate) fn of<B: AsRef<[u8]>>(self, buffers: &[B]) -> &[u8] {
        &buffers[self.buffer as usize].as_ref()[self.start..self.start + self.bytes]
    }
}

/// A run that may still grow. Its chain holds the payloads.
struct Pending {
    run: Run,
    first: At,
    unfilled: bool,
    chain: Chain,
}

/// Assembles batch by batch.
pub(crate) struct Assembler {
    mtu_bytes: usize,
    udp_super_frames: bool,
    pieces: Pieces,
    writes: Vec<Write>,
    pending: Vec<Pending>,
}

impl Assembler {
    /// For a device of this MTU; `udp_super_frames` tells whether the TAP takes those.
    pub(crate) fn new(mtu_bytes: usize, udp_super_frames: bool) -> Self {
        Self {
            mtu_bytes,
            udp_super_frames,
            pieces: Pieces::with_capacity(8192, 256 * 1024),
            writes: Vec::with_capacity(4096),
            pending: Vec::with_capacity(PENDING),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.writes.clear();
        self.pending.clear();
    }

    pub(crate) fn writes(&self) -> &[Write] {
        &self.writes
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Ends the batch: what waits for more packets waits no longer.
    pub(crate) fn finish<B: AsRef<[u8]>>(&mut self, buffers: &[B]) {
        let mut pending = std::mem::take(&mut self.pending);
        for pending in pending.drain(..) {
            self.emit(buffers, &pending);
        }
        self.pending = pending; // keeps its allocation
    }

    /// Takes a frame. `inner` is the segment size where the frame is a UDP super-frame. Returns how many packets it
    /// stands for.
    pub(crate) fn frame<B: AsRef<[u8]>>(
        &mut self,
        buffers: &[B],
        at: At,
        layout: &Frame,
        inner: Option<u16>,
    ) -> usize {
        let frame = at.of(buffers);
        if layout.transport == Transport::Other {
            if layout.fragment {
                // Of which flow it is only its first fragment says.
                self.end_runs(buffers, |run, first| run.same_hosts(first, frame, layout));
            }
            self.plain(at, Vnet::default());
            return 1;
        }
        let state = coalesce::checksum(frame, layout);
        let unfilled = state == Checksum::Unfilled;
        if unfilled || state == Checksum::Valid {
            if let Some(size) = self.super_frame_size(frame, layout, inner) {
                self.end_run_of(buffers, frame, layout);
                self.super_frame(buffers, at, layout, size);
                return layout.payload_bytes().div_ceil(size);
            }
            if let Some(run) = Run::begin(frame, *layout) {
                self.join_or_begin(buffers, at, run, unfilled);
                return 1;
            }
        }
        self.end_run_of(buffers, frame, layout);
        self.plain(at, if unfilled { partial(layout) } else { Vnet::default() });
        1
    }

    /// The size to cut this frame into, if the sender's kernel left it uncut.
    fn super_frame_size(&self, frame: &[u8], layout: &Frame, inner: Option<u16>) -> Option<usize> {
        match layout.transport {
            // Its headers will be written anew, and that shall not make a damaged one whole.
            _ if !coalesce::sound(frame, layout) => None,
            Transport::Udp => {
                inner.map(usize::from).filter(|size| (1..layout.payload_bytes()).contains(size))
            }
            // What size it had is not told; ours is what it will be cut to if at all.
            Transport::Tcp if layout.network_bytes() > self.mtu_bytes => {
                self.mtu_bytes.checked_sub(layout.payload_at - layout.network_at).filter(|size| *size > 0)
            }
            Transport::Tcp | Transport::Other => None,
        }
    }

    fn join_or_begin<B: AsRef<[u8]>>(&mut self, buffers: &[B], at: At, run: Run, unfilled: bool) {
        let frame = at.of(buffers);
        let body = (Place::Buffer(at.buffer), at.start + run.layout.payload_at, run.payload);
        let same = |p: &Pending| p.run.same_flow(p.first.of(buffers), frame, &run.layout);
        if let Some(n) = self.pending.iter().position(same) {
            let pending = &mut self.pending[n];
            if pending.run.join(pending.first.of(buffers), frame, &run) {
                pending.unfilled |= unfilled;
                return self.pieces.push(&mut pending.chain, body.0, body.1, body.2);
            }
            let ended = self.pending.remove(n);
            self.emit(buffers, &ended);
        }
        if run.closed || (run.layout.transport == Transport::Udp && !self.udp_super_frames) {
            return self.plain(at, if unfilled { partial(&run.layout) } else { Vnet::default() });
        }
        if self.pending.len() == PENDING {
            let oldest = self.pending.remove(0);
            self.emit(buffers, &oldest);
        }
        let mut chain = Chain::EMPTY;
        self.pieces.push(&mut chain, body.0, body.1, body.2);
        self.pending.push(Pending { run, first: at, unfilled, chain });
    }

    /// Nothing of a flow may be overtaken by a packet that cannot join.
    fn end_run_of<B: AsRef<[u8]>>(&mut self, buffers: &[B], frame: &[u8], layout: &Frame) {
        self.end_runs(buffers, |run, first| run.same_flow(first, frame, layout));
    }

    /// Ends the runs, each given with its first frame, for which this is true.
    fn end_runs<B: AsRef<[u8]>>(&mut self, buffers: &[B], which: impl Fn(&Run, &[u8]) -> bool) {
        while let Some(n) = self.pending.iter().position(|p| which(&p.run, p.first.of(buffers))) {
            let ended = self.pending.remove(n);
            self.emit(buffers, &ended);
        }
    }

    /// A frame as it came.
    fn plain(&mut self, at: At, vnet: Vnet) {
        let (start, _) = self.pieces.store(&[&vnet.encode()]);
        let mut chain = Chain::EMPTY;
        self.pieces.push(&mut chain, Place::Arena, start, VNET_BYTES);
        self.pieces.push(&mut chain, Place::Buffer(at.buffer), at.start, at.bytes);
        self.writes.push(Write { chain, packets: 1, bytes: at.bytes });
    }

    fn emit<B: AsRef<[u8]>>(&mut self, buffers: &[B], pending: &Pending) {
        let (run, layout) = (&pending.run, &pending.run.layout);
        if run.packets == 1 {
            let vnet = if pending.unfilled { partial(layout) } else { Vnet::default() };
            return self.plain(pending.first, vnet);
        }
        let headers = &pending.first.of(buffers)[..layout.payload_at];
        self.joined(headers, layout, run.size, run.push, pending.chain, run.packets);
    }

    fn super_frame<B: AsRef<[u8]>>(&mut self, buffers: &[B], at: At, layout: &Frame, size: usize) {
        if layout.transport == Transport::Udp && !self.udp_super_frames {
            return self.cut(buffers, at, layout, size);
        }
        let headers = &at.of(buffers)[..layout.payload_at];
        let payload = layout.payload_bytes();
        let mut chain = Chain::EMPTY;
        self.pieces.push(&mut chain, Place::Buffer(at.buffer), at.start + layout.payload_at, payload);
        self.joined(headers, layout, size, false, chain, payload.div_ceil(size));
    }

    /// Many packets as one: the first one's headers, the whole length, the checksum left to the kernel.
    fn joined(
        &mut self,
        headers: &[u8],
        layout: &Frame,
        size: usize,
        push: bool,
        body: Chain,
        packets: usize,
    ) {
        let tcp_flags = headers.get(layout.transport_at + TCP_FLAGS).copied().unwrap_or(0);
        let vnet = Vnet {
            ecn: layout.transport == Transport::Tcp && tcp_flags & CWR != 0,
            gso: match (layout.transport, layout.network) {
                (Transport::Tcp, Network::V6) => Gso::TcpV6,
                (Transport::Tcp, _) => Gso::TcpV4,
                _ => Gso::UdpL4,
            },
            gso_size: small(size),
            hdr_len: small(layout.payload_at),
            ..partial(layout)
        };
        let (at, written) = self.pieces.store(&[&vnet.encode(), headers]);
        let written = &mut written[VNET_BYTES..];
        segment::network_header(written, layout, body.bytes, 0);
        if push {
            written[layout.transport_at + TCP_FLAGS] |= PSH;
        }
        let transport_bytes = layout.payload_at - layout.transport_at + body.bytes;
        let pseudo = segment::pseudo(written, layout, transport_bytes);
        put16(written, layout.transport_at + checksum_field(layout), pseudo.fold());
        let mut chain = Chain::EMPTY;
        self.pieces.push(&mut chain, Place::Arena, at, VNET_BYTES + headers.len());
        self.pieces.append(&mut chain, body);
        self.writes.push(Write { chain, packets, bytes: packets * headers.len() + body.bytes });
    }

    /// A UDP super-frame for a kernel that does not take one: its datagrams one by one.
    fn cut<B: AsRef<[u8]>>(&mut self, buffers: &[B], at: At, layout: &Frame, size: usize) {
        let frame = at.of(buffers);
        let (headers, payload) = (&frame[..layout.payload_at], &frame[layout.payload_at..layout.end]);
        for (n, part) in payload.chunks(size).enumerate() {
            let offset = n * size;
            let cut = Cut { index: n, offset, last: offset + part.len() == payload.len() };
            let (start, written) = self.pieces.store(&[&Vnet::default().encode(), headers]);
            segment::rewrite(&mut written[VNET_BYTES..], layout, cut, part);
            let mut chain = Chain::EMPTY;
            self.pieces.push(&mut chain, Place::Arena, start, VNET_BYTES + headers.len());
            let body = at.start + layout.payload_at + offset;
            self.pieces.push(&mut chain, Place::Buffer(at.buffer), body, part.len());
            self.writes.push(Write { chain, packets: 1, bytes: headers.len() + part.len() });
        }
    }
}

/// "The checksum is still to be computed": the field holds the pseudo-header's sum.
fn partial(layout: &Frame) -> Vnet {
    Vnet {
        needs_csum: true,
        csum_start: small(layout.transport_at),
        csum_offset: small(checksum_field(layout)),
        ..Vnet::default()
    }
}

/// Offsets and lengths inside a frame; a frame has less than 64 KiB.
fn small(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
