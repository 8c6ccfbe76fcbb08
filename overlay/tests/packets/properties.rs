//! What must hold for any bytes whatever, for the fuzzer (`tests/fuzz`) and for the replay of its corpus
//! (`tests/fuzz_corpus.rs`).
//!
//! Both inputs begin with a few bytes of settings; then follow entries, each with a head and as many bytes as that says
//! (or are left). What a fuzzer would find only by chance is put right where a bit of the head says so: addresses of
//! known peers and checksums.

#![allow(dead_code, unreachable_pub, reason = "used by several programs, each of which needs another part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use overlay::datapath::Peer;
use overlay::datapath::decap::{self, Datagram, Decap, DecapSettings};
use overlay::datapath::encap::{self, Encap, EncapSettings, Pushed};
use overlay::datapath::frame::{Frame, Network, Transport};
use overlay::datapath::table::{Table, Uplink};
use overlay::datapath::tunnel::Tunnelled;
use overlay::types::{Mtu, Vni, VtepMac};

use crate::packets::{self, VNET_BYTES, be16};

/// Entries of an input that are looked at; more would only make the fuzzer slow.
const ENTRIES: usize = 16;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Peers with the hardware addresses 2:0:0:0:0:2 and following, at 192.0.2.2 and following.
fn table() -> Table {
    let peer = |n: u8| {
        let mac = VtepMac::try_from([2, 0, 0, 0, 0, n]).unwrap();
        (format!("10.5.{n}.0/24").parse().unwrap(), Peer { mac, public_ip: [192, 0, 2, n].into() })
    };
    Table::build((2..5).map(peer), &Table::default())
}

/// Takes `N` bytes; zeros where nothing is left.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let (head, rest) = data.split_at(N.min(data.len()));
    *data = rest;
    let mut out = [0; N];
    out[..head.len()].copy_from_slice(head);
    out
}

/// Takes the bytes of an entry, repeated to make long ones out of short inputs.
fn body(data: &mut &[u8], [low, high, times]: [u8; 3]) -> Vec<u8> {
    let (bytes, rest) = data.split_at(usize::from(u16::from_le_bytes([low, high & 0x0f])).min(data.len()));
    *data = rest;
    // The headers stay single: what is repeated is the payload behind most of them.
    let (head, tail) = bytes.split_at(bytes.len().min(100));
    let mut out = [head, &tail.repeat(usize::from(times) + 1)].concat();
    out.truncate(decap::BUFFER_BYTES - 64);
    out
}

fn mtu(byte: u8) -> Mtu {
    Mtu::try_from([68, 576, 1280, 1450, 8950, 65_535][usize::from(byte) % 6]).unwrap()
}

/// Settings: sockets, whether sends are cut (bit 0) and super-frames sent whole (bit 1), MTU. Entry: kind, length (2), repetitions; kind bit 0: to a known peer,
/// bits 1 and 2: length fields are put right.
pub fn encap(mut data: &[u8]) {
    let [sockets, cut_super_frames, mtu_index] = take(&mut data);
    let segments = if cut_super_frames & 1 == 1 { 64 } else { 1 };
    let sockets = u32::from(sockets % 8) + 1;
    let mac = VtepMac::try_from(OURS).unwrap();
    let mut engine = Encap::new(EncapSettings {
        vni: Vni::DEFAULT,
        mtu: mtu(mtu_index),
        mac,
        sockets,
        segments,
        inject: cut_super_frames & 2 == 2,
    });
    let uplink = Uplink { interface: 7, mtu: mtu(mtu_index.rotate_left(4)).get() };
    let table = table().with_uplinks(|_| Some(uplink));
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    let mut expected: BTreeMap<(u32, u32), Vec<Vec<u8>>> = BTreeMap::new();
    while !data.is_empty() && buffers.len() < ENTRIES && engine.has_room() {
        let [kind, length @ ..] = take::<4>(&mut data);
        let mut bytes = body(&mut data, length);
        if kind & 1 == 1 && bytes.len() > VNET_BYTES + 14 {
            bytes[VNET_BYTES..][..6].copy_from_slice(&[2, 0, 0, 0, 0, 2 + (kind >> 6) % 3]);
        }
        if kind & 2 == 2 && bytes.len() > VNET_BYTES {
            settle_lengths(&mut bytes[VNET_BYTES..]);
        }
        let (given, length) = (bytes.clone(), bytes.len());
        bytes.resize(encap::BUFFER_BYTES, 0xee);
        let index = u32::try_from(buffers.len()).unwrap();
        let pushed = engine.push(&table, &mut bytes, index, length);
        buffers.push(bytes);
        if pushed == Pushed::Queued {
            let frame = &given[VNET_BYTES..];
            let peer = table.by_mac(frame[..6].try_into().unwrap()).unwrap();
            let way = (peer, Frame::parse(frame).unwrap().flow % sockets);
            expected.entry(way).or_default().extend(sent(&given));
        } else if !matches!(pushed, Pushed::Dropped(_)) {
            assert!(Frame::parse(engine.reply()).is_some(), "an answer is a frame");
        }
    }
    let mut found: BTreeMap<(u32, u32), Vec<Vec<u8>>> = BTreeMap::new();
    for send in engine.sends() {
        let slices: Vec<&[u8]> = engine.pieces().slices(send.chain, &buffers).collect();
        let bytes = slices.concat();
        assert!(slices.len() <= 1024 && bytes.len() <= 65_507 && bytes.len() == send.chain.bytes, "{send:?}");
        if let Some(tunnelled) = send.tunnelled {
            assert!(cut_super_frames & 2 == 2);
            let frames = whole(&tunnelled, &bytes, uplink.mtu);
            assert_eq!(frames.len(), usize::from(send.datagrams));
            found.entry((send.peer, send.socket)).or_default().extend(frames);
            continue;
        }
        assert!((1..=segments).contains(&send.datagrams), "{send:?}");
        let datagrams: Vec<&[u8]> = bytes.chunks(send.segment.into()).collect();
        assert_eq!(datagrams.len(), usize::from(send.datagrams));
        let frames = found.entry((send.peer, send.socket)).or_default();
        for datagram in datagrams {
            assert_eq!(datagram[..8], [8, 0, 0, 0, 0, 0, 1, 0]);
            frames.push(datagram[8..].to_vec());
        }
    }
    assert!(found == expected, "{found:02x?}\n{expected:02x?}");
}

/// What the kernel makes of a super-frame that it is to cut with its outer headers.
fn whole(tunnelled: &Tunnelled, frame: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let (from, to) = ("192.0.2.9:50000".parse().unwrap(), "192.0.2.2:8472".parse().unwrap());
    let headers = tunnelled.headers((from, to), [8, 0, 0, 0, 0, 0, 1, 0], (2, 77), 7, frame.len());
    assert_eq!(headers[0], 1 | 8, "both checksums are to be filled in");
    assert_eq!(headers[1] & !0x80, 0x21, "TCP over IPv4 in a tunnel");
    let packet = [&headers[24..], frame].concat();
    let (ip, udp) = (&packet[14..34], &packet[34..42]);
    assert_eq!(ip[..2], [0x45, 2]);
    assert_eq!(usize::from(be16(ip, 2)), packet.len() - 14);
    assert_eq!((be16(ip, 4), be16(ip, 6), ip[9]), (77, 0, 17));
    assert_eq!(packets::ones_sum(&[ip]), 0xffff, "the header's checksum");
    assert_eq!(ip[12..], [192, 0, 2, 9, 192, 0, 2, 2]);
    assert_eq!((be16(udp, 0), be16(udp, 2)), (50_000, 8472));
    assert_eq!(usize::from(be16(udp, 4)), packet.len() - 34);
    assert_eq!(be16(udp, 6), packets::ones_sum(&[&ip[12..], &[0, 17], &udp[4..6]]), "pseudo-header's sum");
    assert_eq!(packet[42..50], [8, 0, 0, 0, 0, 0, 1, 0]);
    // The offsets in the header are those of what they name.
    let le = |at: usize| u16::from_le_bytes([headers[at], headers[at + 1]]);
    let layout = Frame::parse(frame).unwrap();
    let within = |at: u16| usize::from(at) - 50;
    assert_eq!((le(20), within(le(22))), (34, layout.network_at));
    assert_eq!((within(le(2)), within(le(6)), le(8)), (layout.payload_at, layout.transport_at, 16));
    let size = usize::from(le(4));
    let frames = cut(frame, &layout, size);
    assert_eq!(tunnelled.wire_bytes, frames.iter().map(Vec::len).sum::<usize>());
    assert!(frames.iter().all(|frame| frame.len() + 36 <= usize::from(mtu)));
    frames
}

/// What a frame behind a virtio-net header is on the wire. Of a super-frame's header only type and size count: where
/// the headers end is seen in the frame.
fn sent(given: &[u8]) -> Vec<Vec<u8>> {
    let layout = Frame::parse(&given[VNET_BYTES..]).unwrap();
    if given[1] == 0 || layout.payload_bytes() == 0 {
        let mut single = given.to_vec();
        single[1..4].fill(0);
        return packets::on_the_wire(&single);
    }
    cut(&given[VNET_BYTES..], &layout, be16(&[given[5], given[4]], 0).into())
}

/// What a kernel makes of a frame when told to cut it.
fn cut(frame: &[u8], layout: &Frame, size: usize) -> Vec<Vec<u8>> {
    let mut frame = frame[..layout.end].to_vec();
    let offset = if layout.transport == Transport::Tcp { 16 } else { 6 };
    let gso = match (layout.transport, layout.network) {
        (Transport::Tcp, Network::V4) => 1,
        (Transport::Tcp, _) => 4,
        _ => 5,
    };
    let sum = packets::pseudo_sum(&frame, layout.network_at, layout.transport_at);
    frame[layout.transport_at + offset..][..2].copy_from_slice(&sum.to_be_bytes());
    packets::on_the_wire(&packets::vnet(gso, layout.payload_at, size, layout.transport_at, offset, &frame))
}

/// Makes the lengths in the headers fit the frame.
fn settle_lengths(frame: &mut [u8]) {
    let end = frame.len();
    if end < 14 {
        return;
    }
    let at = packets::network_at(frame);
    let length = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    match be16(frame, at - 2) {
        0x0800 if end >= at + 28 => {
            frame[at] = 0x45;
            frame[at + 2..at + 4].copy_from_slice(&length(end - at));
            if frame[at + 9] == 17 {
                frame[at + 24..at + 26].copy_from_slice(&length(end - at - 20));
            }
        }
        0x86dd if end >= at + 48 => {
            frame[at] = 0x60;
            frame[at + 4..at + 6].copy_from_slice(&length(end - at - 40));
            if frame[at + 6] == 17 {
                frame[at + 44..at + 46].copy_from_slice(&length(end - at - 40));
            }
        }
        _ => {}
    }
}

/// Makes IPv4's and the transport's checksums right, or leaves only the pseudo-header's sum.
fn settle_checksums(frame: &mut [u8], unfilled: bool) {
    let Some(layout) = Frame::parse(frame).filter(|layout| layout.transport != Transport::Other) else {
        return;
    };
    if layout.network == Network::V4 {
        packets::header_checksum(frame, layout.network_at);
    }
    let offset = if layout.transport == Transport::Tcp { 16 } else { 6 };
    let sum = packets::pseudo_sum(frame, layout.network_at, layout.transport_at);
    frame[layout.transport_at + offset..][..2].copy_from_slice(&sum.to_be_bytes());
    if !unfilled {
        packets::fill(&mut frame[..layout.end], layout.transport_at, offset);
    }
}

/// Settings: bit 0 source check, bit 1 UDP super-frames; MTU. Entry: kind, ECN bits, segment size (2), length (2),
/// repetitions; kind bit 0: VXLAN of ours from a known peer, bit 1: lengths and checksums are put right, bit 2:
/// checksums are left unfilled, bit 3: the datagram follows the one before it in the same buffer, bit 4: the segment
/// size counts.
pub fn decap(mut data: &[u8]) {
    let [flags, mtu_index] = take(&mut data);
    let settings = DecapSettings {
        vni: Vni::DEFAULT,
        mtu: mtu(mtu_index),
        mac: VtepMac::locally_administered([0xfe; 6]),
        source_check: flags & 1 == 1,
        udp_super_frames: flags & 2 == 2,
    };
    let mut engine = Decap::new(settings);
    let table = table();
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    let mut described: Vec<Datagram> = Vec::new();
    for _ in 0..ENTRIES {
        let [kind, ecn, low, high, length @ ..] = take::<7>(&mut data);
        let mut bytes = body(&mut data, length);
        if kind & 1 == 1 && bytes.len() > 8 + 14 {
            bytes[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 1, 0]);
            bytes[14..20].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        }
        if kind & 2 == 2 && bytes.len() > 8 + 14 {
            settle_lengths(&mut bytes[8..]);
            settle_checksums(&mut bytes[8..], kind & 4 == 4);
        }
        if let (8, Some(buffer), Some(last)) = (kind & 8, buffers.last_mut(), described.last_mut())
            && buffer.len() + bytes.len() <= decap::BUFFER_BYTES
        {
            last.segment = last.segment.or(u16::try_from(buffer.len()).ok());
            buffer.extend(bytes);
            last.bytes = buffer.len();
        } else {
            let segment = Some(u16::from_le_bytes([low, high])).filter(|_| kind & 16 == 16);
            let from = SocketAddr::from(([192, 0, 2, 2 + (kind >> 7)], 5000));
            let buffer = u32::try_from(buffers.len()).unwrap();
            described.push(Datagram { buffer, bytes: bytes.len(), from, segment, ecn: ecn & 3 });
            buffers.push(bytes);
        }
        if data.is_empty() {
            break;
        }
    }
    let expected: Vec<Vec<u8>> = described
        .iter()
        .flat_map(|got| received(settings, &table, &buffers[got.buffer as usize], got))
        .collect();
    for got in &described {
        engine.push(&table, &mut buffers, *got);
    }
    engine.finish(&buffers);
    let mut found = Vec::new();
    for write in engine.writes() {
        let slices: Vec<&[u8]> = engine.pieces().slices(write.chain, &buffers).collect();
        let bytes = slices.concat();
        assert!(slices.len() <= 1024 && slices[0].len() >= VNET_BYTES && bytes.len() == write.chain.bytes);
        let wire = packets::on_the_wire(&bytes);
        assert_eq!((wire.len(), wire.concat().len()), (write.packets, write.bytes));
        found.extend(wire);
    }
    if described.iter().all(|got| got.ecn == 0) {
        let normal = |frames: &[Vec<u8>]| frames.iter().map(|f| packets::normal(f)).collect::<Vec<_>>();
        packets::assert_same_flows(&normal(&found), &normal(&expected));
    } else {
        assert!(found.len() <= expected.len(), "marks may drop, never add");
    }
}

/// The packets in a receive buffer that are let in, as they are to leave the device.
fn received(settings: DecapSettings, table: &Table, buffer: &[u8], got: &Datagram) -> Vec<Vec<u8>> {
    let whole = buffer.get(8..).and_then(Frame::parse).is_some_and(|layout| {
        buffer[0] & 8 == 8 && layout.network != Network::Other && layout.end == buffer.len() - 8
    });
    let size = got.segment.map_or(0, usize::from);
    let datagrams = buffer.chunks(if whole || size == 0 { buffer.len().max(1) } else { size });
    let ours = datagrams.filter(|datagram| {
        let peer = datagram.get(14..20).and_then(|mac| table.by_mac(mac.try_into().unwrap()));
        let known = peer.is_some_and(|peer| table.entry(peer).underlay == got.from.ip());
        datagram.len() >= 22
            && datagram[0] & 8 == 8
            && datagram[4..7] == [0, 0, 1]
            && (known || !settings.source_check)
            && datagram[14] & 1 == 0
            && ![[0; 6], settings.mac.octets()].iter().any(|mac| datagram[14..20] == *mac)
    });
    ours.flat_map(|datagram| packets_in(settings, &datagram[8..], if whole { size } else { 0 })).collect()
}

/// The packets that a frame stands for; `inner` is its segment size if it is a UDP super-frame.
fn packets_in(settings: DecapSettings, frame: &[u8], inner: usize) -> Vec<Vec<u8>> {
    let layout = Frame::parse(frame).unwrap();
    if layout.transport == Transport::Other {
        return vec![frame.to_vec()];
    }
    let tcp = layout.transport == Transport::Tcp;
    let offset = if tcp { 16 } else { 6 };
    let transport = &frame[layout.transport_at..layout.end];
    let pseudo = packets::pseudo_sum(frame, layout.network_at, layout.transport_at);
    let field = be16(transport, offset);
    let valid = packets::ones_sum(&[&pseudo.to_be_bytes(), transport]) == 0xffff;
    let unfilled = !valid && field == pseudo;
    if (!valid && !unfilled) || (!tcp && field == 0) {
        return vec![frame.to_vec()];
    }
    let header = &frame[layout.network_at..layout.transport_at];
    let sound = (layout.network != Network::V4 || packets::ones_sum(&[header]) == 0xffff)
        && (tcp || usize::from(be16(transport, 4)) == transport.len());
    let headers_bytes = layout.payload_at - layout.network_at;
    let size = match usize::from(settings.mtu.get()) {
        mtu if tcp && layout.network_bytes() > mtu => mtu.saturating_sub(headers_bytes),
        _ if !tcp && inner < layout.payload_bytes() => inner,
        _ => 0,
    };
    if sound && size > 0 {
        return cut(frame, &layout, size);
    }
    let mut frame = frame.to_vec();
    if unfilled {
        packets::fill(&mut frame, layout.transport_at, offset);
    }
    vec![frame]
}
