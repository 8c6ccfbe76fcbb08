//! What the overlay answers by itself, because no multicast crosses it: ARP requests and neighbour solicitations for
//! peers' VTEPs, and the ICMP errors that path MTU discovery needs. Pure: a frame read from the device in, the frame to
//! write back to it out, without a virtio-net header. All checksums are complete.
//!
//! Answers go only to the host's own stack, through the device. They repeat the VLAN tags of what they answer. How
//! often an ICMP error may be sent (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)) is the caller's business.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, pseudo_v6};
use super::frame::{Frame, ICMPV6, Network, TYPE_ARP};
use super::table::Table;
use crate::types::VtepMac;

/// What kind of question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// An ARP request, with an ARP reply.
    Arp,
    /// A neighbour solicitation, with a neighbour advertisement.
    Nd,
}

const IPV6_HEADER_BYTES: usize = 40;
/// The longest ICMPv4 error, its IP header included (RFC 1812 section 4.3.2.3).
const ERROR_V4_MAX_BYTES: usize = 576;
/// The longest ICMPv6 error, and the least MTU of IPv6 (RFC 4443 section 2.4 (c), RFC 8200 section 5).
const ERROR_V6_MAX_BYTES: usize = 1280;

/// Answers a question about a peer's VTEP: an ARP request (RFC 826) for its IPv4 address, or a neighbour solicitation
/// (RFC 4861) for its IPv6 address. The reply comes from the peer's hardware address, as if the peer had sent it.
///
/// `own` is the hardware address of the device: about our own addresses nothing is said, or the host would see a
/// duplicate. For the same reason probes and announcements (RFC 5227, RFC 4862 section 5.4) get no answer.
///
/// `out` holds the reply afterwards; it is empty if there is none.
pub fn answer(frame: &[u8], table: &Table, own: VtepMac, out: &mut Vec<u8>) -> Option<Answered> {
    out.clear();
    let layout = Frame::parse(frame)?;
    match (layout.ethertype, layout.network) {
        (TYPE_ARP, _) => arp(frame, layout.network_at, table, own, out).map(|()| Answered::Arp),
        (_, Network::V6) => neighbour(frame, &layout, table, own, out).map(|()| Answered::Nd),
        _ => None,
    }
}

/// Hardware type Ethernet, protocol IPv4, addresses of 6 and 4 bytes; the operation follows (RFC 826).
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

/// Offsets in the packet: sender's hardware address 8 and protocol address 14, target's 18 and 24; 28 bytes in all.
fn arp(frame: &[u8], at: usize, table: &Table, own: VtepMac, out: &mut Vec<u8>) -> Option<()> {
    let packet: &[u8; 28] = frame.get(at..)?.first_chunk()?;
    if packet[..6] != ARP_HEAD || packet[6..8] != ARP_REQUEST {
        return None;
    }
    let asker = VtepMac::try_from(octets::<6>(packet, 8)?).ok()?.octets();
    let (sender, target) = (octets::<4>(packet, 14)?, octets::<4>(packet, 24)?);
    if sender == target || sender == [0; 4] {
        return None; // an announcement or a probe
    }
    let peer = known(table, table.by_vtep4(target.into())?, own)?;
    ethernet(out, asker, peer, &frame[12..at]);
    for part in [&ARP_HEAD[..], &ARP_REPLY, &peer, &target, &asker, &sender] {
        out.extend_from_slice(part);
    }
    Some(())
}

const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// "Solicited" and "override", not "router" (RFC 4861 section 4.4).
const SOLICITED_OVERRIDE: u8 = 0x60;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// The rules of validity are those of RFC 4861 section 7.1.1; a multicast target is no VTEP's. A solicitation behind extension headers is left alone.
fn neighbour(frame: &[u8], layout: &Frame, table: &Table, own: VtepMac, out: &mut Vec<u8>) -> Option<()> {
    let (header, message) =
        frame.get(layout.network_at..layout.end)?.split_first_chunk::<IPV6_HEADER_BYTES>()?;
    if header[6] != ICMPV6 || header[7] != 255 || !message.starts_with(&[NEIGHBOUR_SOLICITATION, 0]) {
        return None;
    }
    let (source, destination) = (octets::<16>(header, 8)?, octets::<16>(header, 24)?);
    let target = octets::<16>(message, 8)?;
    if !is_host_v6(source) {
        return None; // without one it is a probe
    }
    let length = u32::try_from(message.len()).ok()?;
    if pseudo_v6(source, destination, ICMPV6, length).add(message).fold() != 0xffff {
        return None;
    }
    let asker = link_layer_address(message.get(24..)?, octets(frame, 6)?)?;
    let asker = VtepMac::try_from(asker).ok()?.octets();
    let peer = known(table, table.by_vtep6(target.into())?, own)?;

    ethernet(out, asker, peer, &frame[12..layout.network_at]);
    let mut advertisement = [0; 32];
    advertisement[0] = NEIGHBOUR_ADVERTISEMENT;
    advertisement[4] = SOLICITED_OVERRIDE;
    advertisement[8..24].copy_from_slice(&target);
    advertisement[24..26].copy_from_slice(&[TARGET_LINK_LAYER_ADDRESS, 1]);
    advertisement[26..].copy_from_slice(&peer);
    icmp_v6(out, target, source, 255, &mut advertisement, &[]);
    Some(())
}

/// The "source link-layer address" among the options of a solicitation, `given` if it is not there. `None` if an option
/// has length zero or does not fit: such a message is invalid.
fn link_layer_address(mut options: &[u8], given: [u8; 6]) -> Option<[u8; 6]> {
    let mut address = given;
    while let [kind, length, ..] = *options {
        let (option, rest) = options.split_at_checked(usize::from(length) * 8).filter(|_| length > 0)?;
        if kind == SOURCE_LINK_LAYER_ADDRESS {
            address = octets(option, 2)?;
        }
        options = rest;
    }
    options.is_empty().then_some(address)
}

/// The hardware address of a peer that is not ourselves.
fn known(table: &Table, index: u32, own: VtepMac) -> Option<[u8; 6]> {
    let mac = table.entry(index).mac;
    (mac != own).then(|| mac.octets())
}

/// Tells the sender of a packet that it is too long: ICMPv4 "fragmentation needed" with the next hop's MTU (RFC 792,
/// RFC 1191 section 4) or ICMPv6 "packet too big" (RFC 4443 section 3.2). `mtu` is what would fit, in bytes of the IP
/// packet; IPv6 is never told less than 1280, which its senders would ignore. Whether the packet is too long is for the
/// caller to find out. The message goes to the hardware address the frame came from, and comes from `own`.
///
/// `from4` is the source of the ICMPv4 message. It must not be an address of this host: the kernel drops what comes
/// in from a device with one of its own addresses as source ("martian"). The VTEP of the peer that the frame was for is
/// right; it is the next hop, and reverse path filters find it behind this device. ICMPv6 messages carry the
/// destination of the packet as source, as those of the kernel's own tunnels do: a link-local address would not be
/// forwarded to a container.
///
/// Returns whether there is something to send; `out` holds it then and is empty otherwise. No error is sent about (RFC
/// 1122 section 3.2.2, RFC 4443 section 2.4 (e)): an IPv4 packet that may be fragmented, an ICMP error or redirect, a
/// fragment other than the first, a packet sent to a group (also by its hardware address), or one whose source does not
/// name one host.
pub fn too_big(frame: &[u8], mtu: u16, own: VtepMac, from4: Ipv4Addr, out: &mut Vec<u8>) -> bool {
    out.clear();
    error(frame, mtu, own, from4, out).is_some()
}

fn error(frame: &[u8], mtu: u16, own: VtepMac, from4: Ipv4Addr, out: &mut Vec<u8>) -> Option<()> {
    let layout = Frame::parse(frame)?;
    let sender = VtepMac::try_from(octets::<6>(frame, 6)?).ok()?.octets();
    let packet = frame.get(layout.network_at..layout.end)?;
    let head = &frame[12..layout.network_at];
    if frame[0] & 1 == 1 {
        return None; // to a group on the link
    }
    match layout.network {
        Network::V4 => {
            let to = addressee_v4(packet).filter(|_| is_host_v4(from4.octets()))?;
            ethernet(out, sender, own.octets(), head);
            fragmentation_needed(out, packet, mtu, from4.octets(), to);
        }
        Network::V6 => {
            let (from, to) = addressee_v6(packet)?;
            ethernet(out, sender, own.octets(), head);
            let mut message = [2, 0, 0, 0, 0, 0, 0, 0];
            message[4..].copy_from_slice(&u32::from(mtu).max(1280).to_be_bytes());
            let quote = &packet[..packet.len().min(ERROR_V6_MAX_BYTES - IPV6_HEADER_BYTES - message.len())];
            icmp_v6(out, from, to, 64, &mut message, quote);
        }
        Network::Other => return None,
    }
    Some(())
}

/// Whom to tell about this packet, if anybody may be told.
fn addressee_v4(packet: &[u8]) -> Option<[u8; 4]> {
    const DONT_FRAGMENT: u16 = 0x4000;
    const FRAGMENT_OFFSET: u16 = 0x1fff;
    let fragmentation = u16::from_be_bytes(octets(packet, 6)?);
    let (source, destination) = (octets::<4>(packet, 12)?, octets::<4>(packet, 16)?);
    let may_answer = fragmentation & DONT_FRAGMENT != 0
        && fragmentation & FRAGMENT_OFFSET == 0
        && is_host_v4(source)
        && is_host_v4(destination)
        && (packet[9] != 1 || is_icmp_query(packet));
    may_answer.then_some(source)
}

/// Whether an ICMPv4 packet is known to be no error: echo, router discovery, timestamp, information, address mask,
/// extended echo. Redirects count as errors; so does, as in the kernel, what is not known.
fn is_icmp_query(packet: &[u8]) -> bool {
    let kind = packet.get(usize::from(packet[0] & 0x0f) * 4);
    matches!(kind, Some(0 | 8..=10 | 13..=18 | 42 | 43))
}

/// Appends the IPv4 packet behind the Ethernet header.
fn fragmentation_needed(out: &mut Vec<u8>, packet: &[u8], mtu: u16, from: [u8; 4], to: [u8; 4]) {
    let quote = &packet[..packet.len().min(ERROR_V4_MAX_BYTES - 28)];
    #[allow(clippy::cast_possible_truncation, reason = "at most 576")]
    let total = (28 + quote.len()) as u16;
    // Precedence "internetwork control" (RFC 1812 section 4.3.2.5). Not to be fragmented, so it needs no identification.
    let mut header = [0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[12..16].copy_from_slice(&from);
    header[16..].copy_from_slice(&to);
    let checksum = Sum::default().add(&header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut message = [3, 4, 0, 0, 0, 0, 0, 0];
    message[6..].copy_from_slice(&mtu.to_be_bytes());
    let checksum = Sum::default().add(&message).add(quote).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    for part in [&header[..], &message, quote] {
        out.extend_from_slice(part);
    }
}

/// From whom, and whom, to tell about this packet, if anybody may be told.
fn addressee_v6(packet: &[u8]) -> Option<([u8; 16], [u8; 16])> {
    let (source, destination) = (octets(packet, 8)?, octets(packet, 24)?);
    let may_answer = is_host_v6(source) && is_host_v6(destination) && !may_be_icmp_v6_error(packet);
    may_answer.then_some((destination, source))
}

/// Whether the packet is an ICMPv6 error or redirect, or nobody can tell: a fragment other than the first, or extension
/// headers that do not end within the packet (RFC 8200 section 4, RFC 4302 section 2).
fn may_be_icmp_v6_error(packet: &[u8]) -> bool {
    const REDIRECT: u8 = 137;
    let (mut next, mut at) = (packet[6], IPV6_HEADER_BYTES);
    while let Some(head) = packet.get(at..) {
        let length = match (next, head) {
            (0 | 43 | 60 | 135 | 139 | 140, [_, length, ..]) => (usize::from(*length) + 1) * 8,
            (44, [_, _, high, low, ..]) if u16::from_be_bytes([*high, *low]) & 0xfff8 == 0 => 8,
            (51, [_, length, ..]) => (usize::from(*length) + 2) * 4,
            (ICMPV6, [kind, ..]) => return *kind < 128 || *kind == REDIRECT,
            (0 | 43 | 44 | 51 | 60 | 135 | 139 | 140 | ICMPV6, _) => return true,
            _ => return false,
        };
        (next, at) = (head[0], at + length);
    }
    true
}

/// Appends an ICMPv6 packet: header, `message` with its checksum filled in, `quote`.
fn icmp_v6(out: &mut Vec<u8>, from: [u8; 16], to: [u8; 16], hops: u8, message: &mut [u8], quote: &[u8]) {
    #[allow(clippy::cast_possible_truncation, reason = "at most 1240")]
    let length = (message.len() + quote.len()) as u16;
    let sum = pseudo_v6(from, to, ICMPV6, length.into()).add(message).add(quote);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    let [high, low] = length.to_be_bytes();
    for part in [&[0x60, 0, 0, 0, high, low, ICMPV6, hops][..], &from, &to, message, quote] {
        out.extend_from_slice(part);
    }
}

/// Appends an Ethernet header; `head` is the tags and the type of the frame that is answered.
fn ethernet(out: &mut Vec<u8>, to: [u8; 6], from: [u8; 6], head: &[u8]) {
    for part in [&to[..], &from, head] {
        out.extend_from_slice(part);
    }
}

/// The `N` bytes at an offset, if they are there.
fn octets<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Whether an IPv4 address may be one host's: not of network 0 or loopback, not multicast, class E or broadcast (RFC
/// 1122 section 3.2.1.3). Broadcast addresses of subnets look like any other.
fn is_host_v4(address: [u8; 4]) -> bool {
    !matches!(address[0], 0 | 127 | 224..)
}

/// Whether an IPv6 address may be one host's on the network: not unspecified, loopback or multicast.
fn is_host_v6(address: [u8; 16]) -> bool {
    let address = Ipv6Addr::from(address);
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "answer_tests.rs"]
mod tests;
