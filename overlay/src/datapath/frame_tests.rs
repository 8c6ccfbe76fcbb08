use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

#[test]
fn padding_behind_the_packet_is_not_part_of_it() {
    let mut frame = udp(b"hi");
    let end = frame.len();
    frame.resize(60, 0);
    let found = Frame::parse(&frame).unwrap();
    assert_eq!((found.end, found.payload_bytes(), found.transport), (end, 2, Transport::Udp));
}

#[test]
fn all_fragments_of_a_datagram_are_one_flow() {
    let mut first = udp(&[7; 64]);
    let mut later = first.clone();
    put16(&mut first, 20, 0x2000);
    put16(&mut later, 20, 8);
    later[34] ^= 0xff; // where the first fragment has its source port
    let (first, later) = (Frame::parse(&first).unwrap(), Frame::parse(&later).unwrap());
    assert!(first.fragment && later.fragment);
    assert_eq!((first.flow, first.transport), (later.flow, Transport::Other));
}

#[test]
fn flows_that_differ_in_any_one_field_spread_over_few_and_many_sockets() {
    // Offsets of a byte of: source and destination MAC, addresses, ports.
    for at in [0, 5, 6, 11, 26, 27, 28, 29, 30, 33, 34, 35, 36, 37] {
        for sockets in [2, 3, 8, 16u32] {
            let mut used = vec![0u32; sockets as usize];
            for value in 0..=u8::MAX {
                let mut frame = udp(b"hi");
                frame[at] = value;
                if at < 14 {
                    frame[12] = 0x99; // of what is not IP, the hardware addresses are the flow
                }
                used[(Frame::parse(&frame).unwrap().flow % sockets) as usize] += 1;
            }
            let mean = 256 / sockets;
            assert!(used.iter().all(|n| (mean / 3..mean * 2).contains(n)), "byte {at}: {used:?}");
        }
    }
}

#[test]
fn lengths_that_contradict_the_frame_make_it_opaque() {
    for (at, value) in [(16, 2000), (16, 10), (14, 0x4f00), (14, 0x6500)] {
        let mut frame = udp(b"hi");
        put16(&mut frame, at, value);
        let found = Frame::parse(&frame).unwrap();
        assert_eq!((found.network, found.network_bytes()), (Network::Other, 0), "{at} {value:x}");
    }
}

#[test]
fn a_packet_that_is_to_be_routed_by_others_keeps_its_transport_to_itself() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 64)
        .udp(1, 2)
        .write(&mut frame, b"hi")
        .unwrap();
    frame.splice(54..54, [17, 0, 4, 0, 0, 0, 0, 0]); // next header, length, type, segments left
    frame[20] = 43;
    put16(&mut frame, 18, 18);
    let found = Frame::parse(&frame).unwrap();
    assert_eq!((found.transport, found.transport_at), (Transport::Udp, 62));
    frame[57] = 1;
    let found = Frame::parse(&frame).unwrap();
    assert_eq!((found.network, found.transport, found.transport_at), (Network::V6, Transport::Other, 54));
}

proptest! {
    #[test]
    fn noise_gives_offsets_inside_the_frame(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..6) {
        if frame.len() > 20 {
            let (ethertype, first) = [(0x0800, 0x45), (0x86dd, 0x60), (0x8100, 0), (0x88a8, 0), (0x0800, 0x4f), (0, 0)][kind];
            put16(&mut frame, 12, ethertype);
            frame[14] = first;
        }
        match Frame::parse(&frame) {
            None => prop_assert!(frame.len() < ETHERNET_BYTES),
            Some(f) => {
                prop_assert!(f.network_at <= f.transport_at && f.transport_at <= f.payload_at);
                prop_assert!(f.payload_at <= f.end && f.end <= frame.len());
            }
        }
    }

    #[test]
    fn offsets_agree_with_etherparse(
        tags in 0usize..3, v6: bool, tcp: bool, options in 0usize..4, payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let start = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let id = |n: u16| etherparse::VlanId::try_new(n).unwrap();
        let mut frame = Vec::new();
        macro_rules! finish {
            ($b:expr) => {{
                let b = $b;
                if tcp {
                    let noop = vec![etherparse::TcpOptionElement::Noop; options * 4];
                    b.tcp(1, 2, 3, 4).options(&noop).unwrap().write(&mut frame, &payload).unwrap();
                } else {
                    b.udp(1, 2).write(&mut frame, &payload).unwrap();
                }
            }};
        }
        macro_rules! network {
            ($b:expr) => {{
                let b = $b;
                if v6 { finish!(b.ipv6([1; 16], [2; 16], 64)) } else { finish!(b.ipv4([1; 4], [2; 4], 64)) }
            }};
        }
        match tags {
            0 => network!(start),
            1 => network!(start.single_vlan(id(5))),
            _ => network!(start.double_vlan(id(5), id(6))),
        }
        let found = Frame::parse(&frame).unwrap();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let (transport, header_bytes) = match sliced.transport.unwrap() {
            TransportSlice::Tcp(t) => (Transport::Tcp, t.header_slice().len()),
            TransportSlice::Udp(_) => (Transport::Udp, 8),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(found.transport, transport);
        prop_assert_eq!(found.network, if v6 { Network::V6 } else { Network::V4 });
        prop_assert_eq!(found.network_at, 14 + 4 * tags);
        prop_assert_eq!(found.payload_at - found.transport_at, header_bytes);
        prop_assert_eq!(&frame[found.payload_at..found.end], &payload[..]);
    }
}
