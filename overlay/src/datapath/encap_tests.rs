use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Peer;
use super::super::packets::{self, ACK, CWR, FIN, PSH, Packet, be16};
use super::*;

const VXLAN_OF_NETWORK_1: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];

fn settings() -> EncapSettings {
    EncapSettings {
        vni: Vni::DEFAULT,
        mtu: Mtu::try_from(65_535).unwrap(),
        mac: VtepMac::try_from([2, 0, 0, 0, 0, 1]).unwrap(),
        sockets: 8,
        segments: 64,
        inject: false,
    }
}

/// Peers with the hardware addresses 2:0:0:0:0:2 and following.
fn table() -> Table {
    let peer = |n: u8| {
        let mac = VtepMac::try_from([2, 0, 0, 0, 0, n + 2]).unwrap();
        (format!("10.5.{n}.0/24").parse().unwrap(), Peer { mac, public_ip: [192, 0, 2, n].into() })
    };
    Table::build((0..3).map(peer), &Table::default())
}

struct Rig {
    encap: Encap,
    table: Table,
    buffers: Vec<Vec<u8>>,
}

impl Rig {
    fn new(settings: EncapSettings) -> Self {
        Self { encap: Encap::new(settings), table: table(), buffers: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) -> Pushed {
        let index = u32::try_from(self.buffers.len()).unwrap();
        let mut buffer = bytes.to_vec();
        buffer.resize(BUFFER_BYTES.max(bytes.len()), 0xee); // what an earlier frame left
        self.buffers.push(buffer);
        self.encap.push(&self.table, &mut self.buffers[index as usize], index, bytes.len())
    }

    /// The inner frames of every send, in order, after a look at what every send must keep to.
    fn sent(&self) -> Vec<(Send, Vec<Vec<u8>>)> {
        let cut = |send: &Send| {
            let bytes: Vec<u8> =
                self.encap.pieces().slices(send.chain, &self.buffers).flatten().copied().collect();
            assert_eq!(bytes.len(), send.chain.bytes);
            assert!(bytes.len() <= 65_507, "{} bytes", bytes.len());
            assert!((1..=self.encap.settings.segments).contains(&send.datagrams), "{send:?}");
            assert!(
                send.chain.pieces <= 1024
                    && self.encap.pieces().slices(send.chain, &self.buffers).count() <= 1024
            );
            let datagrams: Vec<&[u8]> = bytes.chunks(send.segment.into()).collect();
            assert_eq!(datagrams.len(), usize::from(send.datagrams), "only the last may be shorter");
            let inner = datagrams.iter().map(|datagram| {
                assert_eq!(datagram[..8], VXLAN_OF_NETWORK_1);
                datagram[8..].to_vec()
            });
            (*send, inner.collect())
        };
        self.encap.sends().iter().map(cut).collect()
    }

    fn frames(&self) -> Vec<Vec<u8>> {
        self.sent().into_iter().flat_map(|(_, frames)| frames).collect()
    }
}

fn payload(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 + seed * 7).to_le_bytes()[0]).collect()
}

fn tcp(bytes: usize) -> Packet {
    Packet { tcp: true, payload: payload(bytes, 1), ..Packet::default() }
}

fn udp(bytes: usize) -> Packet {
    Packet { payload: payload(bytes, 2), ..Packet::default() }
}

/// What is done for a packet before it reaches the TAP.
#[derive(Debug, Clone, Copy)]
enum Left {
    Nothing,
    Checksum,
    Segments(u16),
}

fn packet() -> impl Strategy<Value = Packet> {
    let flow = (0u8..3, any::<bool>(), any::<bool>(), 0u16..3, 1u8..3, 0u16..3);
    let bytes = prop_oneof![3 => 0usize..3000, 1 => 3000usize..65_300];
    let header = (any::<u8>(), any::<u16>(), any::<u32>(), 0usize..=10, any::<usize>(), 0u8..8);
    (flow, bytes, header).prop_map(
        |((peer, v6, tcp, tags, host, port), bytes, (tos, id, sequence, options, seed, flags))| {
            let mut packet = Packet { v6, host, tos, id, tcp, port, sequence, ..Packet::default() };
            packet.destination[5] = peer + 2;
            packet.tags = (0x6000..0x6000 + tags).collect();
            packet.options = vec![1; if tcp { options * 4 } else { 0 }];
            packet.flags = [FIN, PSH, CWR]
                .iter()
                .enumerate()
                .fold(ACK, |all, (n, f)| all | if flags >> n & 1 == 1 { *f } else { 0 });
            let most = 65_535 - (packet.headers_bytes() - packet.network_at());
            packet.payload = payload(bytes.min(most), seed & 0xff);
            packet
        },
    )
}

fn left() -> impl Strategy<Value = Left> {
    prop_oneof![
        1 => Just(Left::Nothing),
        1 => Just(Left::Checksum),
        1 => (1u16..48).prop_map(Left::Segments),
        2 => (48u16..600).prop_map(Left::Segments),
        4 => (1300u16..1461).prop_map(Left::Segments),
        1 => (1461u16..=65_535).prop_map(Left::Segments),
    ]
}

/// Whether one datagram is too long, or there are more segments than a kernel ever asks for.
fn refused(packet: &Packet, left: Left) -> Option<Drop> {
    let bytes = packet.payload.len();
    match left {
        Left::Segments(size) if bytes > 0 => {
            let size = usize::from(size);
            if bytes.div_ceil(size) > SEGMENTS_MAX {
                return Some(Drop::UnknownGso);
            }
            (8 + packet.headers_bytes() + size.min(bytes) > 65_507).then_some(Drop::TooBig)
        }
        _ => (8 + packet.headers_bytes() + bytes > 65_507).then_some(Drop::TooBig),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn what_is_sent_is_what_a_kernel_would_have_sent(
        inputs in prop::collection::vec((packet(), left()), 1..6), sockets in 1u32..9, cut_sends: bool,
    ) {
        let mut rig = Rig::new(EncapSettings { sockets, segments: if cut_sends { 64 } else { 1 }, ..settings() });
        let mut expected = Vec::new();
        for (packet, left) in &inputs {
            let bytes = match left {
                Left::Nothing => packet.whole(),
                Left::Checksum => packet.partial(),
                Left::Segments(size) => packet.super_frame(*size),
            };
            let pushed = rig.push(&bytes);
            if let Some(reason) = refused(packet, *left) {
                prop_assert_eq!(pushed, Pushed::Dropped(reason));
                continue;
            }
            prop_assert_eq!(pushed, Pushed::Queued);
            // Without payload there is nothing to cut.
            let bytes = if packet.payload.is_empty() { packet.partial() } else { bytes };
            expected.extend(packets::on_the_wire(&bytes));
        }
        let mut ways = BTreeMap::new();
        for (send, frames) in rig.sent() {
            prop_assert!(send.socket < sockets);
            for frame in frames {
                packets::assert_sound(&frame);
                let at = packets::network_at(&frame);
                let tos = if frame[at] >> 4 == 6 { be16(&frame, at) >> 4 } else { frame[at + 1].into() };
                prop_assert_eq!(send.ecn, [0, 1, 2, 2][usize::from(tos & 3)]);
                prop_assert_eq!(send.peer, u32::from(frame[5]) - 2);
                let way = ways.entry(packets::key(&frame)).or_insert(send.socket);
                prop_assert_eq!(*way, send.socket, "a flow has one socket");
            }
        }
        packets::assert_same_flows(&rig.frames(), &expected);
    }

    #[test]
    fn noise_is_dropped_or_sent_and_never_panics(
        head: [u8; 10], gso in 0u8..8, noise in prop::collection::vec(any::<u8>(), 0..300), known: bool, kind in 0usize..5,
    ) {
        let mut bytes = [&head[..], &noise].concat();
        bytes[1] = gso;
        if known && noise.len() > 16 {
            bytes[10..16].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
            let (ethertype, first) = [(0x0800, 0x45), (0x86dd, 0x60), (0x8100, 0), (0x0800, 0x4f), (0x0806, 0)][kind];
            put16(&mut bytes, 22, ethertype);
            bytes[24] = first;
        }
        let mut rig = Rig::new(settings());
        let pushed = rig.push(&bytes);
        prop_assert_eq!(pushed == Pushed::Queued, !rig.sent().is_empty());
    }

    #[test]
    fn valid_super_frames_with_flipped_bytes_never_panic(
        packet in packet(), left in left(), flips in prop::collection::vec((0usize..120, any::<u8>()), 1..6),
        cut in 0usize..2000,
    ) {
        let mut bytes = match left {
            Left::Segments(size) => packet.super_frame(size),
            _ => packet.partial(),
        };
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 20).max(cut.min(12)));
        let mut rig = Rig::new(settings());
        let pushed = rig.push(&bytes);
        prop_assert_eq!(pushed == Pushed::Queued, !rig.sent().is_empty());
    }

    #[test]
    fn one_more_frame_never_outgrows_what_was_allocated(
        inputs in prop::collection::vec((packet(), 1u16..200), 1..20),
    ) {
        let mut rig = Rig::new(settings());
        for (packet, size) in inputs {
            if !rig.encap.has_room() {
                rig.encap.clear();
                rig.buffers.clear();
            }
            rig.push(&packet.super_frame(size));
            prop_assert!(rig.encap.pieces().arena_bytes() <= ARENA_BYTES);
        }
    }
}

#[test]
fn most_segments_with_the_longest_headers_fit_the_arena() {
    // Hop-by-hop options make the headers as long as is accepted.
    let mut packet = udp(1);
    packet.v6 = true;
    let size = 48;
    let options = 192;
    packet.payload = payload(65_535 - 48 - options, 3);
    let mut bytes = packet.super_frame(size);
    let mut extension = vec![0; options];
    extension[..2].copy_from_slice(&[17, 23]);
    bytes[10 + 20] = 0;
    bytes.splice(10 + 54..10 + 54, extension);
    put16(&mut bytes, 10 + 18, 65_535 - 40);
    let layout = Frame::parse(&bytes[10..]).unwrap();
    assert_eq!((layout.payload_at, layout.transport), (HEADERS_MAX_BYTES - 2, Transport::Udp));
    let mut rig = Rig::new(settings());
    assert_eq!(rig.push(&bytes), Pushed::Queued);
    assert_eq!(rig.frames().len(), (65_535 - 48 - options).div_ceil(48));
    assert!(rig.encap.pieces().arena_bytes() <= ARENA_WORST_BYTES);
}

#[test]
fn flags_and_identifications_of_segments() {
    let mut packet = tcp(3000);
    packet.flags = ACK | PSH | FIN | CWR;
    packet.id = 0xffff;
    let mut rig = Rig::new(settings());
    assert_eq!(rig.push(&packet.super_frame(1000)), Pushed::Queued);
    let frames = rig.frames();
    let flags: Vec<u8> = frames.iter().map(|f| f[47]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    let ids: Vec<u16> = frames.iter().map(|f| be16(f, 18)).collect();
    assert_eq!(ids, [0xffff, 0, 1]);
    let sequences: Vec<u32> =
        frames.iter().map(|f| u32::from_be_bytes(f[38..42].try_into().unwrap())).collect();
    assert_eq!(sequences, [1, 1001, 2001]);
}

#[test]
fn a_full_super_frame_needs_two_sends_at_an_ethernet_mtu() {
    let mut rig = Rig::new(settings());
    rig.push(&tcp(46 * 1398).super_frame(1398));
    let sent = rig.sent();
    assert_eq!(
        sent.iter().map(|(s, _)| (s.datagrams, s.segment)).collect::<Vec<_>>(),
        [(44, 1460), (2, 1460)]
    );
}

#[test]
fn small_packets_of_one_peer_share_a_send_up_to_64() {
    let mut rig = Rig::new(settings());
    for _ in 0..65 {
        rig.push(&udp(64).partial());
    }
    assert_eq!(rig.sent().iter().map(|(s, _)| s.datagrams).collect::<Vec<_>>(), [64, 1]);
}

#[test]
fn a_shorter_one_ends_a_send_and_a_longer_one_begins_another() {
    let mut rig = Rig::new(settings());
    for bytes in [100, 100, 50, 50, 120] {
        rig.push(&udp(bytes).partial());
    }
    assert_eq!(
        rig.sent().iter().map(|(s, _)| (s.datagrams, s.segment)).collect::<Vec<_>>(),
        [(3, 150), (1, 100), (1, 170)]
    );
}

#[test]
fn sends_without_segmentation_hold_one_datagram() {
    let mut rig = Rig::new(EncapSettings { segments: 1, ..settings() });
    rig.push(&tcp(4000).super_frame(1000));
    assert_eq!(rig.sent().iter().map(|(s, _)| s.datagrams).collect::<Vec<_>>(), [1; 4]);
}

#[test]
fn packets_with_another_ecn_mark_leave_in_another_send_but_in_order() {
    let mut rig = Rig::new(settings());
    for tos in [2, 2, 3, 0, 1] {
        rig.push(&Packet { tos, ..udp(64) }.partial());
    }
    assert_eq!(
        rig.sent().iter().map(|(s, _)| (s.ecn, s.datagrams)).collect::<Vec<_>>(),
        [(2, 3), (0, 1), (1, 1)]
    );
}

#[test]
fn flows_spread_over_the_sockets() {
    let mut rig = Rig::new(settings());
    let mut used = [0; 8];
    for port in 0..800 {
        rig.push(&Packet { port, ..udp(8) }.partial());
    }
    for (send, frames) in rig.sent() {
        used[send.socket as usize] += frames.len();
    }
    assert!(used.iter().all(|n| (50..200).contains(n)), "{used:?}");
}

#[test]
fn frames_to_nobody_are_dropped_with_their_reason() {
    let mut rig = Rig::new(settings());
    let to = |destination| Packet { destination, ..udp(8) }.whole();
    assert_eq!(rig.push(&to([2, 0, 0, 0, 0, 99])), Pushed::Dropped(Drop::UnknownDestination));
    assert_eq!(rig.push(&to([0xff; 6])), Pushed::Dropped(Drop::Flood));
    assert_eq!(rig.push(&to([1, 0, 0x5e, 0, 0, 1])), Pushed::Dropped(Drop::Flood));
    let mut ufo = udp(100).super_frame(50);
    for gso in [2, 3, 0x20, 0x85] {
        ufo[1] = gso;
        assert_eq!(rig.push(&ufo), Pushed::Dropped(Drop::UnknownGso));
    }
    assert_eq!(rig.push(&[0; 9]), Pushed::Dropped(Drop::Malformed));
    assert_eq!(rig.push(&[0; 23]), Pushed::Dropped(Drop::Malformed));
    assert!(rig.sent().is_empty());
}

#[test]
fn a_super_frame_that_is_not_what_its_header_says_is_dropped() {
    let mut rig = Rig::new(settings());
    let mut as_v6 = tcp(3000).super_frame(1000);
    as_v6[1] = 4;
    let mut as_udp = tcp(3000).super_frame(1000);
    as_udp[1] = 5;
    let mut fragment = tcp(3000).super_frame(1000);
    fragment[10 + 20] = 0x20;
    let no_size = tcp(3000).super_frame(0);
    for bytes in [as_v6, as_udp, fragment, no_size] {
        assert_eq!(rig.push(&bytes), Pushed::Dropped(Drop::UnknownGso));
    }
}

#[test]
fn a_checksum_that_lies_outside_the_frame_is_malformed() {
    let mut rig = Rig::new(settings());
    for (start, offset) in [(34u16, 0xfff0u16), (0xffff, 0xffff), (0xffff, 0), (49, 0)] {
        let mut bytes = udp(8).partial();
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        assert_eq!(rig.push(&bytes), Pushed::Dropped(Drop::Malformed), "{start} {offset}");
    }
}

#[test]
fn an_unfilled_udp_checksum_that_comes_out_as_zero_is_written_as_ones() {
    let mut rig = Rig::new(settings());
    // The payload's last word is chosen so that everything adds up to all ones.
    let mut packet = udp(8);
    packet.payload[6..].fill(0);
    let rest = be16(&packet.frame(), 40);
    packet.payload[6..].copy_from_slice(&rest.to_be_bytes());
    rig.push(&packet.partial());
    packet.payload = [packet.payload.clone(), packet.payload.clone()].concat();
    rig.push(&packet.super_frame(8));
    assert_eq!(be16(&rig.frames()[0], 40), 0xffff);
    assert_eq!(be16(&rig.frames()[1], 40), 0xffff);
}

mod mtu {
    use super::*;

    fn rig() -> Rig {
        Rig::new(EncapSettings { mtu: Mtu::try_from(1450).unwrap(), ..settings() })
    }

    #[test]
    fn exactly_the_mtu_passes_and_one_byte_more_is_answered() {
        for packet in
            [tcp(1410), udp(1422), Packet { v6: true, ..tcp(1390) }, Packet { tags: vec![5], ..tcp(1410) }]
        {
            let longer = Packet { payload: payload(packet.payload.len() + 1, 1), ..packet.clone() };
            let size = u16::try_from(packet.payload.len()).unwrap();
            let longest = Packet { payload: payload(5000, 1), ..packet.clone() };
            let mut rig = rig();
            assert_eq!(rig.push(&packet.partial()), Pushed::Queued);
            assert_eq!(rig.push(&longest.super_frame(size)), Pushed::Queued);
            assert_eq!(rig.push(&longer.partial()), Pushed::TooBig);
            assert_eq!(rig.push(&longest.super_frame(size + 1)), Pushed::TooBig);
            // The last segment's size does not count, but a super-frame that is one segment has only that.
            assert_eq!(rig.push(&packet.super_frame(size + 1)), Pushed::Queued);
        }
    }

    #[test]
    fn the_answer_comes_from_the_peer_that_would_be_the_next_hop() {
        // An address of our own as source would make the host drop it as martian.
        let mut rig = rig();
        let mut packet = udp(3000);
        packet.destination[5] = 3;
        assert_eq!(rig.push(&packet.partial()), Pushed::TooBig);
        let reply = rig.encap.reply();
        assert_eq!(reply[..6], packet.source);
        assert_eq!(reply[26..30], [10, 5, 1, 0], "the VTEP of the peer");
        assert_eq!((reply[34], reply[35], be16(reply, 40)), (3, 4, 1450), "fragmentation needed");
    }

    #[test]
    fn what_may_be_fragmented_is_sent_as_it_is() {
        let mut rig = rig();
        let packet = Packet { dont_fragment: false, ..udp(3000) };
        assert_eq!(rig.push(&packet.partial()), Pushed::Queued);
        assert_eq!(rig.frames(), [packet.frame()]);
    }

    #[test]
    fn what_cannot_be_one_datagram_is_dropped() {
        let mut rig = rig();
        let packet = Packet { dont_fragment: false, ..udp(65_500) };
        assert_eq!(rig.push(&packet.partial()), Pushed::Dropped(Drop::TooBig));
        assert_eq!(rig.push(&packet.super_frame(65_480)), Pushed::Dropped(Drop::TooBig));
        assert!(rig.sent().is_empty());
    }
}
