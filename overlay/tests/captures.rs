//! The engine beside the kernel, byte for byte: what a kernel's vxlan device made of real traffic, recorded by
//! `captures/make.sh`, against what the engine makes of the same frames; and back.
//!
//! On the way out there are no differences to allow for: inner frames, VXLAN headers, ECN bits and DF of the outer
//! headers are compared whole. Outer ports and identifications are not the engine's. On the way in there is one, where
//! packets are put together ([`packets::normal`]): identifications of packets with DF are counted up anew.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod packets;

use std::net::{Ipv4Addr, SocketAddr};

use overlay::datapath::Peer;
use overlay::datapath::decap::{Datagram, Decap, DecapSettings};
use overlay::datapath::encap::{BUFFER_BYTES, Encap, EncapSettings, Pushed};
use overlay::datapath::table::Table;
use overlay::types::{Mtu, Vni, VtepMac};

const SENDER: ([u8; 6], Ipv4Addr) = ([2, 0x97, 0, 0, 0, 1], Ipv4Addr::new(10, 98, 0, 1));
const RECEIVER: ([u8; 6], Ipv4Addr) = ([2, 0x97, 0, 0, 0, 2], Ipv4Addr::new(10, 98, 0, 2));
const MTU: u64 = 1450;

/// The packets of a capture in the classic format, little-endian, and their link type.
fn pcap(file: &[u8]) -> (u32, Vec<&[u8]>) {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_c3d4);
    let (mut packets, mut at) = (Vec::new(), 24);
    while at < file.len() {
        let (kept, length) = (word(at + 8) as usize, word(at + 12) as usize);
        assert_eq!(kept, length, "cut off");
        packets.push(&file[at + 16..at + 16 + kept]);
        at += 16 + kept;
    }
    (word(20), packets)
}

/// Frames as a TAP would have delivered them, behind their virtio-net headers.
fn device(file: &'static [u8]) -> Vec<&'static [u8]> {
    let (link, packets) = pcap(file);
    assert_eq!(link, 147);
    packets
}

/// A datagram that the kernel sent.
struct Sent {
    tos: u8,
    bytes: &'static [u8],
}

impl Sent {
    /// The inner frame, and behind it the outer header's type of service.
    fn inner(&self) -> Vec<u8> {
        [&self.bytes[8..], &[self.tos]].concat()
    }
}

fn underlay(file: &'static [u8]) -> Vec<Sent> {
    let (link, packets) = pcap(file);
    assert_eq!(link, 1);
    let sent = |packet: &'static [u8]| {
        let ip = &packet[14..];
        assert_eq!((ip[0], ip[9], &ip[12..16]), (0x45, 17, &SENDER.1.octets()[..]));
        assert_eq!(packets::be16(ip, 6), 0, "neither DF nor a fragment");
        assert_eq!((packets::be16(ip, 22), packets::be16(ip, 26)), (8472, 0), "port, no checksum");
        Sent { tos: ip[1], bytes: &ip[28..] }
    };
    packets.into_iter().map(sent).collect()
}

fn table((mac, underlay): ([u8; 6], Ipv4Addr)) -> Table {
    let peer = Peer { mac: VtepMac::try_from(mac).unwrap(), public_ip: underlay };
    Table::build([("10.97.9.0/24".parse().unwrap(), peer)].into_iter(), &Table::default())
}

/// What the engine makes of these frames: datagrams, and the ECN bits that each is sent with.
fn encapsulated(frames: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
    let mut encap = Encap::new(EncapSettings {
        vni: Vni::DEFAULT,
        mtu: Mtu::try_from(MTU).unwrap(),
        mac: VtepMac::try_from(SENDER.0).unwrap(),
        sockets: 8,
        segments: 64,
        inject: false,
    });
    let table = table(RECEIVER);
    let mut buffers = vec![vec![0; BUFFER_BYTES]; frames.len()];
    for (n, frame) in frames.iter().enumerate() {
        buffers[n][..frame.len()].copy_from_slice(frame);
        let pushed = encap.push(&table, &mut buffers[n], u32::try_from(n).unwrap(), frame.len());
        // Multicast goes nowhere with the kernel's device either.
        assert_eq!(pushed == Pushed::Queued, frame[packets::VNET_BYTES] & 1 == 0, "{pushed:?}");
    }
    let cut = |send: &overlay::datapath::encap::Send| {
        let bytes: Vec<u8> = encap.pieces().slices(send.chain, &buffers).flatten().copied().collect();
        let ecn = send.ecn;
        bytes.chunks(send.segment.into()).map(|datagram| (ecn, datagram.to_vec())).collect::<Vec<_>>()
    };
    encap.sends().iter().flat_map(cut).collect()
}

/// What the engine writes to the TAP when it receives these datagrams, `glued` of equal length at a time at most.
fn decapsulated(sent: &[Sent], glued: usize) -> Vec<Vec<u8>> {
    let mut decap = Decap::new(DecapSettings {
        vni: Vni::DEFAULT,
        mtu: Mtu::try_from(MTU).unwrap(),
        mac: VtepMac::try_from(RECEIVER.0).unwrap(),
        source_check: true,
        udp_super_frames: true,
    });
    let table = table(SENDER);
    let from = SocketAddr::from((SENDER.1, 40_000));
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    let mut described: Vec<Datagram> = Vec::new();
    for Sent { tos, bytes } in sent {
        if let (Some(buffer), Some(last)) = (buffers.last_mut(), described.last_mut()) {
            let length = last.segment.map_or(last.bytes, usize::from);
            let whole = last.bytes.is_multiple_of(length);
            if whole && bytes.len() <= length && last.ecn == *tos && last.bytes / length < glued {
                buffer.extend(*bytes);
                (last.segment, last.bytes) = (u16::try_from(length).ok(), buffer.len());
                continue;
            }
        }
        let buffer = u32::try_from(buffers.len()).unwrap();
        described.push(Datagram { buffer, bytes: bytes.len(), from, segment: None, ecn: *tos });
        buffers.push(bytes.to_vec());
    }
    for datagram in described {
        decap.push(&table, &mut buffers, datagram);
    }
    decap.finish(&buffers);
    assert_eq!(decap.drops(), []);
    let bytes = |write: &overlay::datapath::decap::Write| {
        decap.pieces().slices(write.chain, &buffers).collect::<Vec<_>>().concat()
    };
    decap.writes().iter().map(bytes).collect()
}

/// Compares both ways; returns the frames on the device and what would be written to one at the other end.
fn check(device_file: &'static [u8], underlay_file: &'static [u8]) -> (Vec<&'static [u8]>, Vec<Vec<u8>>) {
    let (frames, sent) = (device(device_file), underlay(underlay_file));
    let ours = encapsulated(&frames);
    for (_, datagram) in &ours {
        assert_eq!(datagram[..8], sent[0].bytes[..8], "the VXLAN header");
    }
    let ours: Vec<_> = ours.into_iter().map(|(ecn, datagram)| [&datagram[8..], &[ecn]].concat()).collect();
    let theirs: Vec<_> = sent.iter().map(Sent::inner).collect();
    packets::assert_same_flows(&ours, &theirs);

    let theirs: Vec<_> = sent.iter().map(|datagram| datagram.bytes[8..].to_vec()).collect();
    for glued in [1, 2, 64] {
        let writes = decapsulated(&sent, glued);
        let back: Vec<_> = writes.iter().flat_map(|write| packets::on_the_wire(write)).collect();
        let [back, theirs] =
            [&back, &theirs].map(|all| all.iter().map(|f| packets::normal(f)).collect::<Vec<_>>());
        packets::assert_same_flows(&back, &theirs);
    }
    (frames, decapsulated(&sent, 64))
}

macro_rules! recorded {
    ($name:literal) => {
        check(
            include_bytes!(concat!("captures/", $name, ".device.pcap")),
            include_bytes!(concat!("captures/", $name, ".underlay.pcap")),
        )
    };
}

/// How many frames have this "gso type" in their virtio-net header.
fn count(frames: &[impl AsRef<[u8]>], gso: u8) -> usize {
    frames.iter().filter(|frame| frame.as_ref()[1] == gso).count()
}

#[test]
fn tcp_over_ipv4() {
    let (frames, writes) = recorded!("tcp4");
    let super_frames: Vec<_> = frames.iter().filter(|frame| frame[1] == 1).collect();
    assert_eq!(super_frames.len(), 2);
    assert!(
        super_frames.iter().all(|frame| writes.iter().any(|write| write == **frame)),
        "as they were at the start"
    );
}

#[test]
fn tcp_over_ipv6() {
    let (frames, writes) = recorded!("tcp6");
    let super_frames: Vec<_> = frames.iter().filter(|frame| frame[1] == 4).collect();
    assert_eq!(super_frames.len(), 2);
    assert!(
        super_frames.iter().all(|frame| writes.iter().any(|write| write == **frame)),
        "as they were at the start"
    );
}

#[test]
fn congestion_marks_and_cwr() {
    let (frames, _) = recorded!("ecn");
    assert_eq!((count(&frames, 1), count(&frames, 0x81)), (1, 1));
}

#[test]
fn udp_super_frames_and_every_ecn_codepoint() {
    let (frames, writes) = recorded!("udp_gso");
    assert_eq!(count(&frames, 5), 6);
    assert!(count(&writes, 5) >= 4);
}

#[test]
fn vlan_tags_and_flags_of_super_frames() {
    let (frames, _) = recorded!("crafted");
    assert_eq!((count(&frames, 0x81), count(&frames, 0x84), count(&frames, 5)), (2, 2, 4));
}

#[test]
fn ip_fragments() {
    let (frames, writes) = recorded!("fragments");
    assert_eq!(frames.len(), writes.len());
}

#[test]
fn icmp() {
    let (frames, _) = recorded!("ping");
    assert_eq!(frames.len(), 5);
}
