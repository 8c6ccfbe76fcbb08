use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::Peer;
use super::super::packets::{
    self, ACK, CWR, FIN, PSH, Packet, SYN, VNET_BYTES, be16, header_checksum, normal,
};
use super::*;
use crate::types::VtepMac;

const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];
const MTU: usize = 1450;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fn settings() -> DecapSettings {
    DecapSettings {
        vni: Vni::DEFAULT,
        mtu: Mtu::try_from(MTU as u64).unwrap(),
        mac: VtepMac::try_from(OURS).unwrap(),
        source_check: true,
        udp_super_frames: true,
    }
}

/// Peers with the hardware addresses 2:0:0:0:0:1 and following, at 192.0.2.1 and following.
fn table() -> Table {
    let peer = |n: u8| {
        let mac = VtepMac::try_from([2, 0, 0, 0, 0, n]).unwrap();
        (format!("10.5.{n}.0/24").parse().unwrap(), Peer { mac, public_ip: [192, 0, 2, n].into() })
    };
    Table::build((1..4).map(peer), &Table::default())
}

fn underlay(last: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, last), 50_000).into()
}

fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&HEADER, frame].concat()
}

struct Rig {
    decap: Decap,
    table: Table,
    buffers: Vec<Vec<u8>>,
}

impl Rig {
    fn new(settings: DecapSettings) -> Self {
        Self { decap: Decap::new(settings), table: table(), buffers: Vec::new() }
    }

    /// What the socket gives: bytes, `UDP_GRO`, sender, ECN bits.
    fn push(&mut self, bytes: Vec<u8>, segment: Option<u16>, from: SocketAddr, ecn: u8) {
        let buffer = u32::try_from(self.buffers.len()).unwrap();
        let datagram = Datagram { buffer, bytes: bytes.len(), from, segment, ecn };
        self.buffers.push(bytes);
        self.decap.push(&self.table, &mut self.buffers, datagram);
    }

    /// One datagram of the first peer.
    fn datagram(&mut self, frame: &[u8]) {
        self.push(vxlan(frame), None, underlay(1), 0);
    }

    /// Datagrams of the first peer that the kernel glued together.
    fn run(&mut self, frames: &[Vec<u8>]) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| vxlan(frame)).collect();
        let segment = u16::try_from(8 + frames[0].len()).unwrap();
        self.push(bytes, Some(segment), underlay(1), 0);
    }

    /// Ends the batch; returns its writes, after a look at what every write must keep to.
    fn writes(&mut self) -> Vec<Vec<u8>> {
        self.decap.finish(&self.buffers);
        let whole = |write: &Write| {
            let slices: Vec<&[u8]> = self.decap.pieces().slices(write.chain, &self.buffers).collect();
            assert!(slices.len() <= 1024, "{} slices", slices.len());
            assert!(slices[0].len() >= VNET_BYTES, "the header is in the first one");
            let bytes = slices.concat();
            assert_eq!(bytes.len(), write.chain.bytes);
            let wire = packets::on_the_wire(&bytes);
            let packets = wire.len();
            assert_eq!((packets, wire.concat().len()), (write.packets, write.bytes));
            let network = bytes.len() - VNET_BYTES - packets::network_at(&bytes[VNET_BYTES..]);
            assert!(packets == 1 || network <= 65_535, "{network} bytes of IP");
            assert!(bytes[1] != 5 || packets <= 64, "{packets} datagrams");
            bytes
        };
        let writes = self.decap.writes().iter().map(whole).collect();
        self.decap.clear();
        self.buffers.clear();
        writes
    }

    /// Ends the batch; returns what leaves the device's other side.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        self.writes().iter().flat_map(|write| packets::on_the_wire(write)).collect()
    }

    fn drops(&self) -> &[(Drop, Option<u32>)] {
        self.decap.drops()
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

/// Packets of one flow: sizes of their payloads, sequence numbers and identifications in order.
fn flow(first: &Packet, sizes: &[usize]) -> Vec<Packet> {
    let mut next = first.clone();
    let each = |(n, bytes): (usize, &usize)| {
        let packet = Packet { payload: payload(*bytes, n), ..next.clone() };
        next.sequence = next.sequence.wrapping_add(u32::try_from(*bytes).unwrap());
        next.id = next.id.wrapping_add(1);
        packet
    };
    sizes.iter().enumerate().map(each).collect()
}

fn frames(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::frame).collect()
}

/// Offset of the transport header and of its checksum field.
fn transport(packet: &Packet) -> (usize, usize) {
    let (_, start, offset) = packet.unfilled();
    (start, start + offset)
}

mod traps {
    use super::*;

    /// Kinds of packet between which nothing here may differ.
    fn kinds(bytes: usize) -> Vec<Packet> {
        let mut kinds = Vec::new();
        for v6 in [false, true] {
            for tags in [vec![], vec![5], vec![6, 7]] {
                for options in [vec![], vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]] {
                    kinds.push(Packet { tags: tags.clone(), v6, options, ..tcp(bytes) });
                }
                kinds.push(Packet { tags, v6, ..udp(bytes) });
            }
        }
        kinds
    }

    #[test]
    fn trap_1_an_unfilled_checksum_is_left_to_the_kernel() {
        for packet in kinds(200) {
            let mut rig = Rig::new(settings());
            rig.datagram(&packet.unfilled().0);
            assert_eq!(rig.writes(), [packet.partial()]);
        }
    }

    #[test]
    fn trap_1_also_where_there_is_no_payload_and_with_any_flags() {
        for flags in [SYN, SYN | ACK, ACK, FIN | ACK, 4] {
            let packet = Packet { flags, ..tcp(0) };
            let mut rig = Rig::new(settings());
            rig.datagram(&packet.unfilled().0);
            assert_eq!(rig.writes(), [packet.partial()], "{flags:#x}");
        }
    }

    #[test]
    fn trap_2_a_tcp_super_frame_in_one_datagram_is_handed_on_as_one() {
        for mut packet in kinds(60_000).into_iter().filter(|packet| packet.tcp) {
            packet.flags = ACK | PSH | FIN | CWR;
            let segment = MTU - (packet.headers_bytes() - packet.network_at());
            let mut expected = packet.super_frame(u16::try_from(segment).unwrap());
            expected[1] |= 0x80; // CWR may only stay on the first
            for frame in [packet.unfilled().0, packet.frame()] {
                let mut rig = Rig::new(settings());
                rig.datagram(&frame);
                assert_eq!(rig.writes(), [expected.clone()]);
            }
        }
    }

    #[test]
    fn trap_2_but_a_packet_that_fits_the_mtu_is_a_packet() {
        for mut packet in kinds(0) {
            packet.payload = payload(MTU - (packet.headers_bytes() - packet.network_at()), 1);
            let mut rig = Rig::new(settings());
            rig.datagram(&packet.unfilled().0);
            assert_eq!(rig.writes(), [packet.partial()]);
        }
    }

    #[test]
    fn trap_2_a_damaged_super_frame_is_not_repaired() {
        let packet = tcp(10_000);
        for at in [24, 26, 51, 54, 9000] {
            let mut frame = packet.frame();
            frame[at] ^= 1; // header checksum, address, checksum, payload
            let mut rig = Rig::new(settings());
            rig.datagram(&frame);
            assert_eq!(rig.frames(), [frame], "byte {at}");
        }
    }

    #[test]
    fn trap_3_a_udp_super_frame_comes_with_the_inner_segment_size() {
        for packet in kinds(9_001).into_iter().filter(|packet| !packet.tcp) {
            for frame in [packet.unfilled().0, packet.frame()] {
                let mut rig = Rig::new(settings());
                rig.push(vxlan(&frame), Some(1000), underlay(1), 0);
                assert_eq!(rig.writes(), [packet.super_frame(1000)]);
            }
        }
    }

    #[test]
    fn trap_3_is_cut_for_a_tap_that_takes_no_udp_super_frames() {
        for packet in kinds(9_001).into_iter().filter(|packet| !packet.tcp) {
            let mut rig = Rig::new(DecapSettings { udp_super_frames: false, ..settings() });
            rig.push(vxlan(&packet.unfilled().0), Some(1000), underlay(1), 0);
            let writes = rig.writes();
            assert!(writes.iter().all(|write| write[..VNET_BYTES] == [0; VNET_BYTES]));
            let frames: Vec<_> = writes.iter().map(|write| write[VNET_BYTES..].to_vec()).collect();
            assert_eq!(frames, packets::on_the_wire(&packet.super_frame(1000)));
        }
    }

    #[test]
    fn trap_3_is_not_a_run_of_datagrams_of_that_size() {
        let run = flow(&udp(0), &[958; 9]);
        let mut rig = Rig::new(settings());
        rig.run(&frames(&run));
        assert_eq!(rig.frames(), frames(&run));
        // And one datagram is one whatever the kernel says its size is.
        rig.push(vxlan(&run[0].frame()), Some(1008), underlay(1), 0);
        assert_eq!(rig.writes(), [run[0].whole()]);
    }

    #[test]
    fn super_frames_do_not_overtake_their_flow() {
        for (small, big, segment) in [(tcp(700), tcp(20_000), None), (udp(700), udp(20_000), Some(900))] {
            let mut rig = Rig::new(settings());
            rig.datagram(&small.frame());
            rig.push(vxlan(&big.unfilled().0), segment, underlay(1), 0);
            rig.datagram(&small.frame());
            let writes = rig.writes();
            assert_eq!(writes.len(), 3);
            assert_eq!((&writes[0], &writes[2]), (&small.whole(), &small.whole()));
        }
    }

    #[test]
    fn fragments_do_not_overtake_the_datagrams_before_them() {
        let run = flow(&udp(0), &[500, 500, 500, 900]);
        let mut wire = frames(&run);
        wire[2][20..22].copy_from_slice(&[0x20, 0]);
        header_checksum(&mut wire[2], 14);
        let mut rig = Rig::new(settings());
        for frame in &wire {
            rig.datagram(frame);
        }
        let found = rig.frames();
        assert_eq!((&found[2], &found[3]), (&wire[2], &wire[3]));
    }

    #[test]
    fn trap_10_udp_without_a_checksum_is_never_put_together() {
        let bare = |mut packet: Packet| {
            packet.payload[0] = 1;
            let field = transport(&packet).1;
            let mut frame = packet.frame();
            frame[field..field + 2].fill(0);
            frame
        };
        let run: Vec<_> = flow(&udp(0), &[500; 8]).into_iter().map(bare).collect();
        let mut rig = Rig::new(settings());
        rig.run(&run);
        let expected: Vec<_> = run.iter().map(|frame| [&[0; VNET_BYTES][..], frame].concat()).collect();
        assert_eq!(rig.writes(), expected);
        // Nor is such a super-frame cut: nobody could tell how.
        let mut rig = Rig::new(settings());
        let giant = bare(udp(5000));
        rig.push(vxlan(&giant), Some(1000), underlay(1), 0);
        assert_eq!(rig.writes(), [[&[0; VNET_BYTES][..], &giant].concat()]);
    }

    #[test]
    fn trap_10_a_push_or_a_shorter_packet_ends_a_run() {
        let mut run = flow(&tcp(0), &[1000; 9]);
        run[3].flags |= PSH;
        let mut rig = Rig::new(settings());
        rig.run(&frames(&run));
        let sizes = |writes: &[Vec<u8>]| writes.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(&rig.writes()), [64 + 4000, 64 + 5000]);

        let run = flow(&tcp(0), &[1000, 1000, 400, 400, 1000]);
        for packet in &run {
            rig.datagram(&packet.frame());
        }
        assert_eq!(sizes(&rig.writes()), [64 + 2400, 64 + 400, 64 + 1000]);
    }
}

mod passes_untouched {
    use super::*;

    fn check(frame: &[u8]) {
        let mut rig = Rig::new(settings());
        rig.datagram(&tcp(100).frame());
        rig.datagram(frame);
        rig.datagram(frame);
        let writes = rig.writes();
        let whole = [&[0; VNET_BYTES][..], frame].concat();
        assert_eq!(writes.iter().filter(|write| **write == whole).count(), 2, "{frame:02x?}");
        assert_eq!(writes.len(), 3);
    }

    #[test]
    fn what_is_not_ip() {
        let mut frame = udp(20).frame();
        for ethertype in [0x0806, 0x8847, 0x88cc, 0, 46, 0xffff] {
            frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
            check(&frame);
        }
        check(&frame[..14]);
    }

    #[test]
    fn wrong_checksums() {
        for packet in [tcp(100), udp(100), Packet { v6: true, ..tcp(100) }, Packet { v6: true, ..udp(100) }] {
            let mut frame = packet.frame();
            frame[transport(&packet).1 + 1] ^= 1;
            check(&frame);
            let mut frame = packet.frame();
            *frame.last_mut().unwrap() ^= 0x80;
            check(&frame);
        }
        let mut frame = tcp(100).frame();
        frame[24] ^= 1; // of the IPv4 header
        check(&frame);
    }

    #[test]
    fn fragments() {
        for fragment in [0x2000u16, 0x2010, 0x0010] {
            let mut frame = udp(1400).frame();
            frame[20..22].copy_from_slice(&fragment.to_be_bytes());
            header_checksum(&mut frame, 14);
            check(&frame);
        }
    }

    #[test]
    fn a_datagram_shorter_than_its_packet() {
        // UDP's own length leaves bytes over, which putting together would lose.
        let packet = udp(100);
        let mut frame = packet.frame();
        frame[38..40].copy_from_slice(&50u16.to_be_bytes());
        check(&frame);
    }

    #[test]
    fn padding_of_single_packets() {
        let mut frame = Packet { flags: SYN, ..tcp(1) }.frame();
        frame.resize(60, 0);
        check(&frame);
        let mut frame = udp(1).frame();
        frame.resize(60, 0);
        let mut rig = Rig::new(settings());
        rig.datagram(&frame);
        assert_eq!(rig.frames(), [frame]);
    }
}

mod ecn {
    use super::*;

    /// RFC 6040, figure 4: outgoing field by incoming inner (rows) and outer (columns: Not-ECT, ECT(1), ECT(0), CE,
    /// which is the order of their numbers). 9 is "drop".
    const TABLE: [[u8; 4]; 4] = [[0, 0, 0, 9], [1, 1, 1, 3], [2, 1, 2, 3], [3, 3, 3, 3]];

    #[test]
    fn every_combination_gives_the_rfcs_result_and_right_checksums() {
        for (inner, outer) in (0..16).map(|n| (n / 4, n % 4)) {
            for (v6, tags) in [(false, vec![]), (true, vec![]), (false, vec![9]), (true, vec![9, 8])] {
                for (dscp, id) in [(0u8, 1u16), (46, 0xffff), (63, 0x8000)] {
                    let packet =
                        |ecn: u8| Packet { tos: dscp << 2 | ecn, id, v6, tags: tags.clone(), ..tcp(0) };
                    let mut rig = Rig::new(settings());
                    rig.push(vxlan(&packet(inner).frame()), None, underlay(1), outer);
                    match TABLE[usize::from(inner)][usize::from(outer)] {
                        9 => {
                            assert_eq!(rig.drops(), [(Drop::EcnMismatch, Some(0))]);
                            assert!(rig.writes().is_empty());
                        }
                        ecn => assert_eq!(rig.writes(), [packet(ecn).whole()], "{inner} {outer}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_header_checksum_stays_wrong_by_as_much() {
        let (mut found, mut expected) =
            (Packet { tos: 2, ..udp(9) }.frame(), Packet { tos: 3, ..udp(9) }.frame());
        for frame in [&mut found, &mut expected] {
            let wrong = be16(frame, 24).wrapping_add(0x101);
            frame[24..26].copy_from_slice(&wrong.to_be_bytes());
        }
        let mut rig = Rig::new(settings());
        rig.push(vxlan(&found), None, underlay(1), CE);
        assert_eq!(rig.frames(), [expected]);
    }

    #[test]
    fn what_is_not_ip_has_no_mark_to_set_and_none_to_offend() {
        let mut frame = udp(20).frame();
        frame[12..14].copy_from_slice(&[8, 6]);
        let mut rig = Rig::new(settings());
        rig.push(vxlan(&frame), None, underlay(1), CE);
        assert_eq!(rig.frames(), [frame]);
    }

    #[test]
    fn marked_and_unmarked_packets_are_not_put_together() {
        let run = flow(&Packet { tos: 2, ..tcp(0) }, &[500; 4]);
        let mut rig = Rig::new(settings());
        for (packet, outer) in run.iter().zip([2, 2, CE, CE]) {
            rig.push(vxlan(&packet.frame()), None, underlay(1), outer);
        }
        assert_eq!(rig.writes().len(), 2);
    }
}

mod sources {
    use super::*;

    type Drops = Vec<(Drop, Option<u32>)>;

    const ARRIVED: Arrived = Arrived { peer: 1, packets: 1, bytes: 52 };

    /// What becomes of a frame: drops, writes, and what is counted for its peer.
    fn pushed(settings: DecapSettings, mac: u8, from: u8) -> (Drops, usize, Vec<Arrived>) {
        let mut rig = Rig::new(settings);
        let mut packet = udp(10);
        packet.source[5] = mac;
        rig.push(vxlan(&packet.frame()), None, underlay(from), 0);
        let (drops, received) = (rig.drops().to_vec(), rig.decap.received().to_vec());
        (drops, rig.writes().len(), received)
    }

    #[test]
    fn only_known_vteps_from_their_own_address_are_let_in() {
        assert_eq!(pushed(settings(), 2, 2), (vec![], 1, vec![ARRIVED]));
        assert_eq!(pushed(settings(), 9, 2), (vec![(Drop::UnknownSource, None)], 0, vec![]));
        assert_eq!(pushed(settings(), 2, 3), (vec![(Drop::SpoofedSource, Some(1))], 0, vec![]));
    }

    #[test]
    fn everybody_is_let_in_where_nobody_looks() {
        let settings = DecapSettings { source_check: false, ..settings() };
        assert_eq!(pushed(settings, 2, 3), (vec![], 1, vec![ARRIVED]));
        assert_eq!(pushed(settings, 9, 2), (vec![], 1, vec![]));
    }

    #[test]
    fn but_not_what_comes_from_ourselves_or_from_no_host() {
        for source_check in [true, false] {
            let mut rig = Rig::new(DecapSettings { source_check, ..settings() });
            for source in [OURS, [3, 0, 0, 0, 0, 1], [0xff; 6], [0; 6]] {
                rig.datagram(&Packet { source, ..udp(10) }.frame());
            }
            assert_eq!(rig.drops(), [(Drop::UnknownSource, None); 4], "source check {source_check}");
            assert!(rig.writes().is_empty());
        }
    }

    #[test]
    fn the_last_sender_is_remembered_only_together_with_its_address() {
        let mut rig = Rig::new(settings());
        let frame = udp(10).frame();
        for from in [1, 2, 1] {
            rig.push(vxlan(&frame), None, underlay(from), 0);
        }
        assert_eq!(rig.drops(), [(Drop::SpoofedSource, Some(0))]);
        assert_eq!(rig.decap.received(), [Arrived { peer: 0, ..ARRIVED }; 2]);
    }

    #[test]
    fn a_new_table_is_asked_anew() {
        let mut rig = Rig::new(settings());
        rig.datagram(&udp(10).frame());
        rig.writes();
        rig.table = Table::default();
        rig.decap.table_changed();
        rig.datagram(&udp(10).frame());
        assert_eq!(rig.drops(), [(Drop::UnknownSource, None)]);
    }

    #[test]
    fn every_datagram_of_a_run_is_looked_at() {
        let mut run = flow(&udp(0), &[100; 3]);
        run[1].source[5] = 2;
        let mut rig = Rig::new(settings());
        rig.run(&frames(&run));
        assert_eq!(rig.drops(), [(Drop::SpoofedSource, Some(1))]);
        assert_eq!(rig.frames().len(), 2);
    }
}

mod headers {
    use super::*;

    #[test]
    fn reserved_bits_are_ignored() {
        let frame = udp(10).frame();
        for header in [[0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0xff], [8, 1, 2, 3, 0, 0, 1, 4]] {
            let mut rig = Rig::new(settings());
            rig.push([&header[..], &frame].concat(), None, underlay(1), 0);
            assert_eq!(rig.frames(), std::slice::from_ref(&frame));
        }
    }

    #[test]
    fn what_is_not_ours_is_dropped_with_its_reason() {
        let frame = udp(10).frame();
        let with = |header: [u8; 8]| [&header[..], &frame].concat();
        let cases = [
            (with([0, 0, 0, 0, 0, 0, 1, 0]), Drop::BadVxlan),
            (vec![], Drop::BadVxlan),
            (HEADER[..7].to_vec(), Drop::BadVxlan),
            (with([8, 0, 0, 0, 0, 0, 2, 0]), Drop::WrongVni),
            (with([8, 0, 0, 0, 1, 0, 1, 0]), Drop::WrongVni),
            (HEADER.to_vec(), Drop::Malformed),
            (vxlan(&frame[..13]), Drop::Malformed),
        ];
        for (bytes, reason) in cases {
            let mut rig = Rig::new(settings());
            rig.push(bytes.clone(), None, underlay(1), 0);
            assert_eq!(rig.drops(), [(reason, None)], "{bytes:02x?}");
            assert!(rig.writes().is_empty());
        }
    }

    #[test]
    fn a_bad_datagram_in_a_run_takes_none_with_it() {
        let run = flow(&tcp(0), &[100; 4]);
        let mut bytes: Vec<u8> = run.iter().flat_map(|packet| vxlan(&packet.frame())).collect();
        let length = 8 + run[0].frame().len();
        bytes[2 * length] = 0;
        let mut rig = Rig::new(settings());
        rig.push(bytes, Some(u16::try_from(length).unwrap()), underlay(1), 0);
        assert_eq!(rig.drops(), [(Drop::BadVxlan, None)]);
        assert_eq!(rig.frames(), [run[0].frame(), run[1].frame(), run[3].frame()]);
    }
}

/// What sets a packet apart from the one before it.
#[derive(Debug, Clone, Copy)]
enum Twist {
    None,
    Flags(u8),
    Window,
    Acknowledgment,
    Options,
    Gap,
    Again,
    Identification,
    Fragmentable,
    HopLimit,
    Tos,
    Unfilled,
    NoChecksum,
    WrongChecksum,
    WrongHeaderChecksum,
    Fragment(u16),
    HeaderOptions,
    Padding,
}

fn twist() -> impl Strategy<Value = Twist> {
    let rare = prop_oneof![
        prop_oneof![Just(PSH), Just(FIN), Just(SYN), Just(CWR), Just(0x40), Just(0x20)]
            .prop_map(Twist::Flags),
        Just(Twist::Window),
        Just(Twist::Acknowledgment),
        Just(Twist::Options),
        Just(Twist::Gap),
        Just(Twist::Again),
        Just(Twist::Identification),
        Just(Twist::Fragmentable),
        Just(Twist::HopLimit),
        Just(Twist::Tos),
        Just(Twist::NoChecksum),
        Just(Twist::WrongChecksum),
        Just(Twist::WrongHeaderChecksum),
        prop_oneof![Just(0x2000u16), Just(0x2010), Just(0x10)].prop_map(Twist::Fragment),
        Just(Twist::HeaderOptions),
        Just(Twist::Padding),
    ];
    prop_oneof![12 => Just(Twist::None), 4 => Just(Twist::Unfilled), 4 => rare]
}

/// A flow's next packet: the frame on the wire, and as it is to leave the device.
fn step(next: &mut Packet, bytes: usize, twist: Twist) -> (Vec<u8>, Vec<u8>) {
    let mut packet = Packet { payload: payload(bytes, usize::from(next.id)), ..next.clone() };
    match twist {
        Twist::Flags(flags) => packet.flags |= flags,
        Twist::Window => packet.window += 1,
        Twist::Acknowledgment => packet.acknowledgment += 1,
        Twist::Options => packet.options = vec![1, 1, 1, 0],
        Twist::Gap => packet.sequence = packet.sequence.wrapping_add(1),
        Twist::Again => packet.sequence = packet.sequence.wrapping_sub(100),
        Twist::Identification => packet.id ^= 0x100,
        Twist::Fragmentable => packet.dont_fragment = false,
        Twist::HopLimit => packet.ttl -= 1,
        Twist::Tos => packet.tos ^= 4,
        _ => {}
    }
    next.sequence = packet.sequence.wrapping_add(u32::try_from(bytes).unwrap());
    next.id = packet.id.wrapping_add(1);
    let (at, (start, field)) = (packet.network_at(), transport(&packet));
    let mut frame = packet.frame();
    match twist {
        Twist::Unfilled => return (packet.unfilled().0, frame),
        Twist::NoChecksum if !packet.tcp => frame[field..field + 2].fill(0),
        Twist::WrongChecksum => frame[field] ^= 0x55,
        Twist::WrongHeaderChecksum if !packet.v6 => frame[at + 10] ^= 0x55,
        Twist::Fragment(word) if !packet.v6 => {
            frame[at + 6..at + 8].copy_from_slice(&word.to_be_bytes());
            header_checksum(&mut frame, at);
        }
        Twist::HeaderOptions if !packet.v6 => {
            frame.splice(start..start, [1, 1, 1, 0]);
            frame[at] = 0x46;
            let total = be16(&frame, at + 2) + 4;
            frame[at + 2..at + 4].copy_from_slice(&total.to_be_bytes());
            header_checksum(&mut frame, at);
        }
        Twist::Padding => frame.resize(frame.len() + 7, 0),
        _ => {}
    }
    (frame.clone(), frame)
}

fn normal_frames(frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    frames.into_iter().map(|frame| normal(&frame)).collect()
}

fn flows() -> impl Strategy<Value = Vec<Packet>> {
    let flow = (any::<bool>(), any::<bool>(), 0u16..3, 1u8..3, 0u16..3, 1u8..4, any::<u32>(), any::<bool>());
    prop::collection::vec(flow, 1..6).prop_map(|flows| {
        let each = |(v6, tcp, tags, host, port, peer, sequence, timestamps)| {
            let id = u32::to_le_bytes(sequence);
            let mut packet = Packet {
                v6,
                host,
                id: u16::from_le_bytes([id[0], id[1]]),
                tcp,
                port,
                sequence,
                ..Packet::default()
            };
            packet.source[5] = peer;
            packet.tags = (0x100..0x100 + tags).collect();
            packet.options =
                if timestamps && tcp { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { vec![] };
            packet
        };
        let mut flows: Vec<Packet> = flows.into_iter().map(each).collect();
        flows.sort_by_key(|flow| packets::key(&flow.frame()));
        flows.dedup_by_key(|flow| packets::key(&flow.frame()));
        flows
    })
}

/// Glues datagrams as the kernel does: those of one sender, of equal length but for the last.
fn glue(datagrams: &[(u8, Vec<u8>)], most: usize) -> Vec<(u8, Vec<u8>, Option<u16>)> {
    let mut runs: Vec<(u8, Vec<u8>, Option<u16>)> = Vec::new();
    let (mut count, mut open) = (0, false);
    for (from, bytes) in datagrams {
        if let Some((sender, run, segment)) = runs.last_mut().filter(|_| open && count < most) {
            let length = segment.map_or(run.len(), usize::from);
            if sender == from && bytes.len() <= length && run.len() + bytes.len() <= 65_507 {
                *segment = u16::try_from(length).ok();
                open = bytes.len() == length;
                run.extend(bytes);
                count += 1;
                continue;
            }
        }
        runs.push((*from, bytes.clone(), None));
        (count, open) = (1, true);
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn cutting_what_is_written_gives_back_what_came(
        mut flows in flows(),
        steps in prop::collection::vec(
            (0usize..6, prop_oneof![Just(0usize), Just(100), Just(1000), Just(1370), 1usize..60], 1usize..12, twist()), 1..40,
        ),
        most in 1usize..65, batch in 1usize..20, udp_super_frames: bool,
    ) {
        let mut rig = Rig::new(DecapSettings { udp_super_frames, ..settings() });
        let (mut datagrams, mut expected, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (flow, bytes, times, twist) in steps {
            let among = flows.len();
            let flow = &mut flows[flow % among];
            for n in 0..times {
                let (wire, device) = step(flow, bytes, if n == 0 { twist } else { Twist::None });
                datagrams.push((flow.source[5], vxlan(&wire)));
                expected.push(device);
            }
        }
        for runs in glue(&datagrams, most).chunks(batch) {
            for (from, bytes, segment) in runs {
                rig.push(bytes.clone(), *segment, underlay(*from), 0);
            }
            prop_assert_eq!(rig.drops(), []);
            found.extend(rig.frames());
        }
        let [found, expected] = [found, expected].map(normal_frames);
        packets::assert_same_flows(&found, &expected);
    }

    #[test]
    fn noise_never_panics(
        buffers in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..400), prop::option::of(any::<u16>()), any::<u8>(), any::<bool>(), 0usize..5), 1..6,
        ),
        source_check: bool, udp_super_frames: bool,
    ) {
        let mut rig = Rig::new(DecapSettings { source_check, udp_super_frames, ..settings() });
        for (mut bytes, segment, ecn, plausible, kind) in buffers {
            if plausible && bytes.len() > 40 {
                bytes[..8].copy_from_slice(&HEADER);
                bytes[14..20].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
                let (ethertype, first) = [(0x0800u16, 0x45), (0x86dd, 0x60), (0x8100, 0), (0x0800, 0x4f), (0, 0)][kind];
                bytes[20..22].copy_from_slice(&ethertype.to_be_bytes());
                bytes[22] = first;
            }
            rig.push(bytes, segment, underlay(1), ecn);
        }
        rig.writes();
    }

    #[test]
    fn valid_packets_with_flipped_bytes_never_panic(
        flows in flows(), bytes in 0usize..5000, flips in prop::collection::vec((0usize..160, any::<u8>()), 0..4),
        segment in prop_oneof![Just(None), (0u16..200).prop_map(Some), any::<u16>().prop_map(Some)],
        ecn: u8, cut in 0usize..6000, udp_super_frames: bool, unfilled: bool,
    ) {
        let mut rig = Rig::new(DecapSettings { udp_super_frames, ..settings() });
        for mut flow in flows {
            let twist = if unfilled { Twist::Unfilled } else { Twist::None };
            let (first, second) = (step(&mut flow, bytes, twist).0, step(&mut flow, bytes, twist).0);
            let mut all = [vxlan(&first), vxlan(&second)].concat();
            for (at, value) in &flips {
                let length = all.len();
                all[at % length] = *value;
            }
            all.truncate(all.len().saturating_sub(cut.saturating_sub(3000)));
            rig.push(all, segment, underlay(flow.source[5]), ecn);
        }
        rig.writes();
    }
}

/// Whatever bit of the second packet's headers is another one: putting together, if it happens, loses nothing.
#[test]
fn every_bit_of_the_headers_counts() {
    for first in [tcp(0), udp(0), Packet { v6: true, ..tcp(0) }, Packet { v6: true, tags: vec![5], ..udp(0) }]
    {
        let run =
            flow(&Packet { options: if first.tcp { vec![1; 4] } else { vec![] }, ..first }, &[64, 64, 64]);
        let (at, (start, field)) = (run[1].network_at(), transport(&run[1]));
        // Whose source is a group's address is not let in.
        for bit in (0..run[1].headers_bytes() * 8).filter(|bit| *bit != 6 * 8) {
            let mut changed = frames(&run);
            changed[1][bit / 8] ^= 1 << (bit % 8);
            let damaged = changed.clone();
            if !run[1].v6 {
                header_checksum(&mut changed[1], at);
            }
            let sound = Frame::parse(&changed[1])
                .is_some_and(|f| (f.transport_at, f.end) == (start, changed[1].len()));
            if sound {
                changed[1][field..field + 2].fill(0);
                let sum = packets::pseudo_sum(&changed[1], at, start);
                changed[1][field..field + 2].copy_from_slice(&sum.to_be_bytes());
                packets::fill(&mut changed[1], start, field - start);
            }
            for changed in [damaged, changed] {
                let mut rig = Rig::new(DecapSettings { source_check: false, ..settings() });
                rig.run(&changed);
                let [found, expected] = [rig.frames(), changed].map(normal_frames);
                packets::assert_same_flows(&found, &expected);
            }
        }
    }
}

#[test]
fn runs_end_at_the_limits_of_a_write() {
    // 1000 packets, or 65,535 bytes, or 64 datagrams.
    for (first, bytes, count) in
        [(tcp(0), 8, 2500), (tcp(0), 1000, 200), (udp(0), 8, 200), (udp(0), 1400, 100)]
    {
        let run = flow(&first, &vec![bytes; count]);
        let mut rig = Rig::new(settings());
        for part in run.chunks(40) {
            rig.run(&frames(part));
        }
        let writes = rig.writes();
        let most = if first.tcp { 1000 } else { 64 }.min((65_535 - 40) / bytes);
        assert!(writes.len() <= count.div_ceil(most - 1), "{} writes for {count} of {bytes}", writes.len());
        assert_eq!(
            writes.iter().flat_map(|write| packets::on_the_wire(write)).collect::<Vec<_>>(),
            frames(&run)
        );
    }
}

#[test]
fn a_sequence_number_that_wraps_is_contiguous() {
    let run =
        flow(&Packet { sequence: u32::MAX - 150, id: 0xfffe, dont_fragment: false, ..tcp(0) }, &[100; 5]);
    let mut rig = Rig::new(settings());
    rig.run(&frames(&run));
    let writes = rig.writes();
    assert_eq!((writes.len(), packets::on_the_wire(&writes[0])), (1, frames(&run)));
}

#[test]
fn twenty_flows_in_turns_keep_their_order() {
    let mut rig = Rig::new(settings());
    let mut expected = Vec::new();
    for turn in 0..4 {
        for port in 0..20 {
            let packet = &flow(&Packet { port, ..tcp(0) }, &[100; 4])[turn];
            rig.datagram(&packet.frame());
            expected.push(packet.frame());
        }
    }
    packets::assert_same_flows(&rig.frames(), &expected);
}
