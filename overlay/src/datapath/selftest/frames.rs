//! The frames of the self-test: how they are made and known again. Pure.

use std::net::Ipv4Addr;

use super::super::checksum::pseudo_v4;
use super::super::frame::{ETHERNET_BYTES, TCP, TYPE_ARP, UDP};
use super::super::vnet::{self, Gso, Vnet};
use crate::types::{Vni, VtepMac};
use crate::wire::vxlan;

/// Local experimental EtherType 1 (IEEE 802), which nobody listens to.
const TYPE_EXPERIMENTAL: u16 = 0x88b5;
const TYPE_IPV4: u16 = 0x0800;
/// Datagrams in the burst through the underlay.
pub(super) const BURST: usize = 3;
/// Length of each, VXLAN header included.
pub(super) const DATAGRAM_BYTES: usize = vxlan::HEADER_BYTES + ETHERNET_BYTES + 46;

/// A station that does not exist; a frame to it is no business of the kernel's (`PACKET_OTHERHOST`).
pub(super) fn stranger(nonce: u64) -> VtepMac {
    let mut octets = [0; 6];
    octets.copy_from_slice(&nonce.to_be_bytes()[..6]);
    VtepMac::locally_administered(octets)
}

fn ethernet(to: [u8; 6], from: VtepMac, ethertype: u16) -> [u8; ETHERNET_BYTES] {
    let mut header = [0; ETHERNET_BYTES];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from.octets());
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

/// One datagram of the burst: VXLAN header, a frame with the nonce and its number.
pub(super) fn datagram(vni: Vni, nonce: u64, number: u8) -> [u8; DATAGRAM_BYTES] {
    let mut bytes = [0; DATAGRAM_BYTES];
    let (header, frame) = bytes.split_at_mut(vxlan::HEADER_BYTES);
    header.copy_from_slice(&vxlan::encode(vni));
    let station = stranger(nonce);
    frame[..ETHERNET_BYTES].copy_from_slice(&ethernet(station.octets(), station, TYPE_EXPERIMENTAL));
    frame[ETHERNET_BYTES..ETHERNET_BYTES + 8].copy_from_slice(&nonce.to_be_bytes());
    frame[ETHERNET_BYTES + 8] = number;
    bytes
}

/// The number of a datagram, if it is one of ours.
pub(super) fn number(bytes: &[u8], vni: Vni, nonce: u64) -> Option<u8> {
    let number = *bytes.get(vxlan::HEADER_BYTES + ETHERNET_BYTES + 8)?;
    (usize::from(number) < BURST && bytes == datagram(vni, nonce, number)).then_some(number)
}

/// An ARP probe (RFC 5227 section 2.1.1) for `target`, behind an empty virtio-net header. With the sender's address
/// 0.0.0.0 it leaves no trace in anybody's neighbour table.
pub(super) fn arp_probe(target: Ipv4Addr, nonce: u64) -> Vec<u8> {
    let station = stranger(nonce);
    let mut bytes = Vnet::default().encode().to_vec();
    bytes.extend(ethernet([0xff; 6], station, TYPE_ARP));
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(station.octets());
    bytes.extend([0; 4]);
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes
}

/// Whether a frame read from the TAP is the answer: an ARP reply to our station from the one who has `target`.
pub(super) fn is_arp_reply(bytes: &[u8], target: Ipv4Addr, nonce: u64) -> bool {
    let Some(frame) = bytes.get(vnet::LEN..) else { return false };
    let station = stranger(nonce).octets();
    frame.len() >= ETHERNET_BYTES + 28
        && frame[..6] == station
        && frame[12..14] == TYPE_ARP.to_be_bytes()
        && frame[20..22] == [0, 2]
        && frame[28..32] == target.octets()
        && frame[32..38] == station
}

/// Payload of each segment of a super-frame, in bytes, and of the whole one.
const SEGMENT_BYTES: u16 = 100;
const PAYLOAD_BYTES: u16 = 250;
const IPV4_BYTES: u16 = 20;

/// A TCP super-frame (one ACK, no SYN) between documentation addresses (RFC 5737), to a station that does not exist.
pub(super) fn tcp_super_frame(nonce: u64) -> Vec<u8> {
    let mut header = [0; 20];
    header[12] = 5 << 4;
    header[13] = 0x10;
    super_frame(nonce, Gso::TcpV4, TCP, &mut header, 16)
}

/// The same of UDP.
pub(super) fn udp_super_frame(nonce: u64) -> Vec<u8> {
    let mut header = [0; 8];
    header[4..6].copy_from_slice(&(8 + PAYLOAD_BYTES).to_be_bytes());
    super_frame(nonce, Gso::UdpL4, UDP, &mut header, 6)
}

fn super_frame(nonce: u64, gso: Gso, protocol: u8, transport: &mut [u8], checksum_at: u16) -> Vec<u8> {
    let (from, to) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let station = stranger(nonce);
    let transport_bytes = if gso == Gso::UdpL4 { 8 } else { 20 };
    let start = 14 + IPV4_BYTES;
    let header = Vnet {
        needs_csum: true,
        gso,
        hdr_len: start + transport_bytes,
        gso_size: SEGMENT_BYTES,
        csum_start: start,
        csum_offset: checksum_at,
        ..Vnet::default()
    };
    let at = usize::from(checksum_at);
    let sum = pseudo_v4(from, to, protocol, u32::from(transport_bytes + PAYLOAD_BYTES)).fold();
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());

    let mut ip = [0; IPV4_BYTES as usize];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(IPV4_BYTES + transport_bytes + PAYLOAD_BYTES).to_be_bytes());
    ip[8] = 1;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&from);
    ip[16..].copy_from_slice(&to);
    let sum = super::super::checksum::Sum::default().add(&ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut bytes = header.encode().to_vec();
    bytes.extend(ethernet(station.octets(), station, TYPE_IPV4));
    bytes.extend(ip);
    bytes.extend(&*transport);
    bytes.extend([0; PAYLOAD_BYTES as usize]);
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn only_our_own_datagrams_are_known_again() {
        let good = datagram(Vni::DEFAULT, NONCE, 2);
        assert_eq!(number(&good, Vni::DEFAULT, NONCE), Some(2));
        assert_eq!(number(&good, Vni::DEFAULT, NONCE + 1), None);
        assert_eq!(number(&good[..40], Vni::DEFAULT, NONCE), None);
        assert_eq!(number(&datagram(Vni::DEFAULT, NONCE, 3), Vni::DEFAULT, NONCE), None);
        assert_eq!(vxlan::decode(&good).unwrap().0, Vni::DEFAULT);
    }

    #[test]
    fn the_answer_to_the_probe_is_told_from_the_probe_and_from_others() {
        let target = Ipv4Addr::new(10, 32, 5, 0);
        let probe = arp_probe(target, NONCE);
        assert_eq!(probe.len(), vnet::LEN + 42);
        assert!(!is_arp_reply(&probe, target, NONCE));
        let mut reply = probe.clone();
        let frame = &mut reply[vnet::LEN..];
        frame[..6].copy_from_slice(&stranger(NONCE).octets());
        frame[21] = 2;
        frame[28..32].copy_from_slice(&target.octets());
        frame[32..38].copy_from_slice(&stranger(NONCE).octets());
        assert!(is_arp_reply(&reply, target, NONCE));
        assert!(!is_arp_reply(&reply, Ipv4Addr::new(10, 32, 6, 0), NONCE));
        assert!(!is_arp_reply(&reply, target, !NONCE));
        for len in 0..reply.len() {
            assert!(!is_arp_reply(&reply[..len], target, NONCE), "{len}");
        }
    }

    #[test]
    fn super_frames_are_sound_and_their_header_fits_them() {
        for (bytes, tcp) in [(tcp_super_frame(NONCE), true), (udp_super_frame(NONCE), false)] {
            let (header, frame) = bytes.split_first_chunk().unwrap();
            let header = Vnet::decode(header).unwrap();
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("{packet:?}") };
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            assert_eq!(usize::from(ip.header().total_len()) + ETHERNET_BYTES, frame.len());
            match packet.transport.unwrap() {
                TransportSlice::Tcp(_) => assert!(tcp),
                TransportSlice::Udp(udp) => assert!(!tcp && usize::from(udp.length()) == frame.len() - 34),
                other => panic!("{other:?}"),
            }
            assert_eq!(header.gso, if tcp { Gso::TcpV4 } else { Gso::UdpL4 });
            assert_eq!(usize::from(header.hdr_len) + usize::from(PAYLOAD_BYTES), frame.len());
        }
    }
}
