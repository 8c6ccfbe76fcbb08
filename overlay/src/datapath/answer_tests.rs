//! Replies as etherparse reads them; one table for each rule on when there must be none; noise.

use etherparse::{
    ArpOperation, ArpPacketSlice, Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv4Header,
    Ipv6FragmentHeader, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, icmpv4,
};
use proptest::prelude::*;

use super::*;
use crate::datapath::Peer;
use crate::datapath::table::{Entry, link_local};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xff; 6];
const OWN4: [u8; 4] = [172, 17, 1, 0];
const PEER4: [u8; 4] = [172, 17, 2, 0];

/// The next hop that ICMP errors come from.
const HOP4: Ipv4Addr = Ipv4Addr::new(172, 17, 2, 0);
const MTU: u16 = 1400;

/// One tag, none, two: what stands between the hardware addresses and the type.
const TAGS: [&[u8]; 3] = [&[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 9, 0x81, 0, 0xe0, 5]];

fn own() -> VtepMac {
    OWN.try_into().unwrap()
}

fn ll(mac: [u8; 6]) -> [u8; 16] {
    link_local(mac.try_into().unwrap()).octets()
}

/// A peer, and by an oddity of the store also ourselves.
fn table() -> Table {
    let entry = |base: [u8; 4], mac: [u8; 6]| {
        let subnet = crate::types::Subnet::new(base.into(), 24).unwrap();
        Entry::new(subnet, Peer { mac: mac.try_into().unwrap(), public_ip: [192, 0, 2, 1].into() })
    };
    Table::from_entries([entry(OWN4, OWN), entry(PEER4, PEER)])
}

fn ask(frame: &[u8]) -> Option<(Answered, Vec<u8>)> {
    let mut out = vec![0xee; 3]; // left over from the last one
    let answered = answer(frame, &table(), own(), &mut out);
    assert_eq!(answered.is_none(), out.is_empty());
    answered.map(|kind| (kind, out))
}

/// Puts tags into an untagged frame.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Takes the tags, which must be these, out of a frame.
fn untagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    assert_eq!(frame[12..][..tags.len()], *tags, "the reply's tags are the question's");
    [&frame[..12], &frame[12 + tags.len()..]].concat()
}

// --- ARP ---

fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let ethernet: [&[u8]; 3] = [&ALL, &OWN, &[0x08, 0x06]];
    let packet: [&[u8]; 5] = [&[0, 1, 8, 0, 6, 4, 0, 1], &OWN, &sender, &[0; 6], &target];
    [ethernet.concat(), packet.concat()].concat()
}

#[test]
fn an_arp_request_for_a_peer_gets_its_mac_through_any_tags() {
    for tags in TAGS {
        let (kind, reply) = ask(&tagged(&arp_request(OWN4, PEER4), tags)).unwrap();
        assert_eq!(kind, Answered::Arp);
        let reply = untagged(&reply, tags);
        assert_eq!((&reply[..6], &reply[6..12], &reply[12..14]), (&OWN[..], &PEER[..], &[8, 6][..]));
        let arp = ArpPacketSlice::from_slice(&reply[14..]).unwrap();
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&PEER[..], &PEER4[..]));
        assert_eq!((arp.target_hw_addr(), arp.target_protocol_addr()), (&OWN[..], &OWN4[..]));
        assert_eq!(reply.len(), 14 + 28);
    }
}

#[test]
fn an_arp_request_may_be_padded_or_unicast() {
    let mut padded = arp_request(OWN4, PEER4);
    padded.resize(60, 0);
    assert_eq!(ask(&padded), ask(&arp_request(OWN4, PEER4)));
    let mut unicast = arp_request(OWN4, PEER4);
    unicast[..6].copy_from_slice(&PEER);
    assert_eq!(ask(&unicast), ask(&padded));
}

#[test]
fn other_arp_is_not_answered() {
    let good = arp_request(OWN4, PEER4);
    assert!(ask(&good).is_some());
    let changed = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let cases = [
        ("a reply", changed(20, &[0, 2])),
        ("reverse ARP", changed(20, &[0, 3])),
        ("not Ethernet", changed(14, &[0, 6])),
        ("not IPv4", changed(16, &[0x86, 0xdd])),
        ("hardware addresses of another length", changed(18, &[8])),
        ("protocol addresses of another length", changed(19, &[16])),
        ("for ourselves", changed(38, &OWN4)),
        ("for a host of the peer's subnet", changed(38, &[172, 17, 2, 1])),
        ("for nobody", changed(38, &[10, 0, 0, 1])),
        ("a probe, without a sender", changed(28, &[0; 4])),
        ("an announcement, sender and target the same", changed(28, &PEER4)),
        ("from a group", changed(22, &ALL)),
        ("from nobody", changed(22, &[0; 6])),
        ("of another type", changed(12, &[0x08, 0x35])),
        ("behind three tags", tagged(&good, &[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3])),
    ];
    for (what, frame) in cases {
        assert_eq!(ask(&frame), None, "{what}");
    }
    for length in 0..good.len() {
        assert_eq!(ask(&good[..length]), None, "{length} bytes of it");
    }
}

// --- neighbour discovery ---

/// An ICMPv6 packet in an Ethernet frame from us to all, checksum filled in.
fn icmp6(source: [u8; 16], destination: [u8; 16], hops: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let length = u16::try_from(message.len()).unwrap();
    let checksum = pseudo_v6(source, destination, ICMPV6, length.into()).add(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let header = Ipv6Header {
        payload_length: length,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit: hops,
        source,
        destination,
        ..Ipv6Header::default()
    };
    let ethernet: [&[u8]; 5] = [&ALL, &OWN, &[0x86, 0xdd], &header.to_bytes(), &message];
    ethernet.concat()
}

/// The solicited-node multicast address (RFC 4291 section 2.7.1).
fn solicited_node(target: [u8; 16]) -> [u8; 16] {
    let mut address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    address[13..].copy_from_slice(&target[13..]);
    address
}

fn solicitation_from(source: [u8; 16], target: [u8; 16], options: &[u8]) -> Vec<u8> {
    let message: [&[u8]; 3] = [&[135, 0, 0, 0, 0, 0, 0, 0], &target, options];
    icmp6(source, solicited_node(target), 255, &message.concat())
}

fn solicitation(target: [u8; 16], options: &[u8]) -> Vec<u8> {
    solicitation_from(ll(OWN), target, options)
}

const SLLA: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];

#[test]
fn a_solicitation_for_a_peer_gets_an_advertisement_through_any_tags() {
    for (tags, options) in
        TAGS.into_iter().zip([&SLLA[..], &[], &[14, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1]])
    {
        let (kind, reply) = ask(&tagged(&solicitation(ll(PEER), options), tags)).unwrap();
        assert_eq!(kind, Answered::Nd);
        let reply = untagged(&reply, tags);
        assert_eq!((&reply[..6], &reply[6..12]), (&OWN[..], &PEER[..]));
        let packet = SlicedPacket::from_ethernet(&reply).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
        let header = ip.header();
        assert_eq!((header.source(), header.destination(), header.hop_limit()), (ll(PEER), ll(OWN), 255));
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
        assert!(icmp.is_checksum_valid(ll(PEER), ll(OWN)));
        let Icmpv6Type::NeighborAdvertisement(flags) = icmp.icmp_type() else {
            panic!("{:?}", icmp.icmp_type())
        };
        assert_eq!((flags.router, flags.solicited, flags.r#override), (false, true, true));
        // The target, then the "target link-layer address".
        let option: [&[u8]; 3] = [&ll(PEER), &[2, 1], &PEER];
        assert_eq!(icmp.payload(), option.concat());
    }
}

#[test]
fn the_advertisement_goes_to_the_link_layer_address_given_else_to_where_the_frame_came_from() {
    let other = [2, 7, 7, 7, 7, 7];
    let (_, reply) = ask(&solicitation(ll(PEER), &[1, 1, 2, 7, 7, 7, 7, 7])).unwrap();
    assert_eq!(reply[..6], other);
    let mut frame = solicitation(ll(PEER), &[]);
    frame[6..12].copy_from_slice(&other);
    assert_eq!(ask(&frame).unwrap().1[..6], other);
}

#[test]
fn other_neighbour_discovery_is_not_answered() {
    let target = ll(PEER);
    let message = |kind: u8, code: u8, target: &[u8]| [&[kind, code, 0, 0, 0, 0, 0, 0], target].concat();
    let to = solicited_node(target);
    let mut bad_checksum = solicitation(target, &SLLA);
    bad_checksum[56] ^= 1;
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut from_group = solicitation(target, &[]);
    from_group[6..12].copy_from_slice(&ALL);
    let mut behind_options = solicitation(target, &SLLA);
    behind_options[20] = 60;
    let cases = [
        ("hop limit 254: it crossed a router", icmp6(ll(OWN), to, 254, &message(135, 0, &target))),
        ("code 1", icmp6(ll(OWN), to, 255, &message(135, 1, &target))),
        ("an advertisement", icmp6(ll(OWN), to, 255, &message(136, 0, &target))),
        ("a router solicitation", icmp6(ll(OWN), to, 255, &message(133, 0, &target))),
        ("an echo request", icmp6(ll(OWN), to, 255, &message(128, 0, &target))),
        ("target cut short", icmp6(ll(OWN), to, 255, &message(135, 0, &target[..15]))),
        ("checksum wrong", bad_checksum),
        ("a probe, without a source", solicitation_from([0; 16], target, &[])),
        ("from a group", solicitation_from(group, target, &[])),
        ("for a group", solicitation(group, &[])),
        ("for ourselves", solicitation(ll(OWN), &SLLA)),
        ("for nobody", solicitation(ll([2, 0, 0, 0, 0, 3]), &SLLA)),
        ("option of length zero", solicitation(target, &[1, 0, 2, 0, 0, 0, 0, 1])),
        ("unknown option of length zero", solicitation(target, &[14, 0, 2, 0, 0, 0, 0, 1])),
        ("option longer than the message", solicitation(target, &[1, 2, 2, 0, 0, 0, 0, 1])),
        ("half an option", solicitation(target, &[1])),
        ("hardware address of a group given", solicitation(target, &[1, 1, 0xff, 0, 0, 0, 0, 1])),
        ("hardware address of a group as source", from_group),
        ("behind an extension header", behind_options),
    ];
    for (what, frame) in cases {
        assert_eq!(ask(&frame), None, "{what}");
    }
    let good = solicitation(target, &SLLA);
    assert!(ask(&good).is_some());
    for length in 0..good.len() {
        assert_eq!(ask(&good[..length]), None, "{length} bytes of it");
    }
}

// --- too big ---

fn tell(frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0xee; 3];
    let sent = too_big(frame, MTU, own(), HOP4, &mut out);
    assert_eq!(sent, !out.is_empty());
    sent.then_some(out)
}

const HOST4: [u8; 4] = [172, 17, 1, 9];
const FAR4: [u8; 4] = [172, 17, 2, 5];
const HOST6: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const FAR6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

/// An IPv4 packet with DF in a frame to the peer; `change` may alter the header before its checksum is made.
fn v4(protocol: u8, payload: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(length, 64, IpNumber(protocol), HOST4, FAR4).unwrap();
    header.dont_fragment = true;
    change(&mut header);
    header.set_payload_len(payload.len()).unwrap();
    header.header_checksum = header.calc_header_checksum();
    let parts: [&[u8]; 5] = [&PEER, &OWN, &[8, 0], &header.to_bytes(), payload];
    parts.concat()
}

fn v6(next: u8, payload: &[u8], source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: u16::try_from(payload.len()).unwrap(),
        next_header: IpNumber(next),
        hop_limit: 64,
        source,
        destination,
        ..Ipv6Header::default()
    };
    let parts: [&[u8]; 5] = [&PEER, &OWN, &[0x86, 0xdd], &header.to_bytes(), payload];
    parts.concat()
}

/// Checks everything about an ICMPv4 error for `frame` (untagged both), returns the quote.
fn check_v4(frame: &[u8], reply: &[u8]) -> Vec<u8> {
    assert_eq!((&reply[..6], &reply[6..12]), (&frame[6..12], &OWN[..]));
    let packet = SlicedPacket::from_ethernet(reply).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("no IPv4") };
    let header = ip.header().to_header();
    assert_eq!((header.source, header.destination[..].as_ref()), (HOP4.octets(), &frame[26..30]));
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert!(header.dont_fragment && !header.more_fragments && header.time_to_live == 64);
    assert_eq!(usize::from(header.total_len), reply.len() - 14);
    assert!(header.total_len <= 576);
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!("no ICMPv4") };
    assert_eq!(Sum::default().add(icmp.slice()).fold(), 0xffff, "checksum");
    let wanted = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: MTU };
    assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(wanted));
    icmp.payload().to_vec()
}

/// Checks everything about an ICMPv6 error for `frame` (untagged both), returns the quote.
fn check_v6(frame: &[u8], reply: &[u8], mtu: u32) -> Vec<u8> {
    assert_eq!((&reply[..6], &reply[6..12]), (&frame[6..12], &OWN[..]));
    let packet = SlicedPacket::from_ethernet(reply).unwrap();
    let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("no IPv6") };
    let header = ip.header();
    assert_eq!((&header.source()[..], &header.destination()[..]), (&frame[38..54], &frame[22..38]));
    assert_eq!((usize::from(header.payload_length()), header.hop_limit()), (reply.len() - 54, 64));
    assert!(reply.len() - 14 <= 1280);
    let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6") };
    assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu });
    icmp.payload().to_vec()
}

#[test]
fn the_sender_of_a_long_ipv4_packet_is_told_through_any_tags() {
    for tags in TAGS {
        for length in [0, 8, 527, 528, 529, 1481] {
            let frame = v4(17, &vec![7; length], |_| ());
            let reply = untagged(&tell(&tagged(&frame, tags)).unwrap(), tags);
            let quote = check_v4(&frame, &reply);
            assert_eq!(quote, frame[14..][..(20 + length).min(548)], "{length} bytes");
        }
    }
}

#[test]
fn the_sender_of_a_long_ipv6_packet_is_told_through_any_tags() {
    for tags in TAGS {
        for length in [0, 8, 1191, 1192, 1193, 1461] {
            let frame = v6(17, &vec![7; length], HOST6, FAR6);
            let reply = untagged(&tell(&tagged(&frame, tags)).unwrap(), tags);
            let quote = check_v6(&frame, &reply, MTU.into());
            assert_eq!(quote, frame[14..][..(40 + length).min(1232)], "{length} bytes");
        }
    }
}

#[test]
fn ipv6_is_never_told_less_than_every_link_must_carry() {
    let frame = v6(6, &[0; 1400], HOST6, FAR6);
    for (mtu, told) in [(68, 1280), (1279, 1280), (1280, 1280), (1281, 1281), (u16::MAX, 65_535)] {
        let mut out = vec![];
        assert!(too_big(&frame, mtu, own(), HOP4, &mut out));
        check_v6(&frame, &out, told);
    }
}

#[test]
fn padding_and_super_frames_are_quoted_rightly() {
    let frame = v4(17, &[7; 8], |_| ());
    let padded = [&frame[..], &[0; 18]].concat();
    assert_eq!(tell(&padded), tell(&frame));
    let super_frame = v4(6, &vec![0x50; 65_000], |_| ());
    assert_eq!(tell(&super_frame).unwrap().len(), 14 + 576);
    let options = v4(17, &[7; 600], |h| h.options = [1u8; 40].into());
    assert_eq!(check_v4(&options, &tell(&options).unwrap()), options[14..][..548]);
}

/// RFC 1122 section 3.2.2 and RFC 1191: the cases in which nothing may be sent, or nothing is wrong.
#[test]
fn no_error_about_these_ipv4_packets() {
    assert!(tell(&v4(17, &[0; 1400], |_| ())).is_some());
    let from = |a: [u8; 4]| v4(17, &[0; 1400], |h| h.source = a);
    let to = |a: [u8; 4]| v4(17, &[0; 1400], |h| h.destination = a);
    let to_mac = |mac: [u8; 6]| [&mac, &v4(17, &[0; 1400], |_| ())[6..]].concat();
    let from_mac = |mac: [u8; 6]| {
        let frame = v4(17, &[0; 1400], |_| ());
        [&frame[..6], &mac, &frame[12..]].concat()
    };
    let cases = [
        ("it may be fragmented", v4(17, &[0; 1400], |h| h.dont_fragment = false)),
        ("a later fragment", v4(17, &[0; 1400], |h| h.fragment_offset = 185.try_into().unwrap())),
        ("sent to a link-layer broadcast address", to_mac(ALL)),
        ("sent to a link-layer multicast address", to_mac([1, 0, 0x5e, 0, 0, 1])),
        ("to the broadcast address", to([255; 4])),
        ("to a multicast address", to([224, 0, 0, 1])),
        ("from the zero address", from([0; 4])),
        ("from network zero", from([0, 1, 2, 3])),
        ("from a loopback address", from([127, 0, 0, 1])),
        ("from a multicast address", from([239, 1, 2, 3])),
        ("from the broadcast address", from([255; 4])),
        ("from a class E address", from([240, 0, 0, 1])),
        ("from the hardware address of a group", from_mac(ALL)),
        ("from no hardware address", from_mac([0; 6])),
        ("ICMP without a type", v4(1, &[], |_| ())),
    ];
    for (what, frame) in cases {
        assert_eq!(tell(&frame), None, "{what}");
    }
    // The first fragment may be answered: it has the ports.
    assert!(tell(&v4(17, &[0; 1400], |h| h.more_fragments = true)).is_some());
    // Without an address to come from there is nothing to send.
    for none in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        assert!(!too_big(&v4(17, &[0; 1400], |_| ()), MTU, own(), none, &mut vec![]), "from {none}");
    }
}

#[test]
fn no_error_about_an_icmp_error() {
    for kind in 0..=u8::MAX {
        let query = matches!(kind, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43);
        let plain = v4(1, &[&[kind][..], &[0; 1400]].concat(), |_| ());
        let options = v4(1, &[&[kind][..], &[0; 1400]].concat(), |h| h.options = [1u8; 8].into());
        assert_eq!((tell(&plain).is_some(), tell(&options).is_some()), (query, query), "ICMPv4 type {kind}");

        let informational = kind >= 128 && kind != 137;
        let frame = v6(58, &[&[kind][..], &[0; 1400]].concat(), HOST6, FAR6);
        assert_eq!(tell(&frame).is_some(), informational, "ICMPv6 type {kind}");
    }
}

/// RFC 4443 section 2.4 (e).
#[test]
fn no_error_about_these_ipv6_packets() {
    let udp = |source, destination| v6(17, &[0; 1400], source, destination);
    assert!(tell(&udp(HOST6, FAR6)).is_some());
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let loopback = Ipv6Addr::LOCALHOST.octets();
    let to_mac = |mac: [u8; 6]| [&mac, &udp(HOST6, FAR6)[6..]].concat();
    let cases = [
        ("to a group", udp(HOST6, group)),
        ("sent to a link-layer multicast address", to_mac([0x33, 0x33, 0, 0, 0, 1])),
        ("sent to the link-layer broadcast address", to_mac(ALL)),
        ("from no address", udp([0; 16], FAR6)),
        ("from a group", udp(group, FAR6)),
        ("from the loopback address", udp(loopback, FAR6)),
        ("ICMPv6 without a type", v6(58, &[], HOST6, FAR6)),
        ("an extension header that is cut off", v6(60, &[58, 1, 0, 0, 0, 0, 0, 0], HOST6, FAR6)),
        ("an extension header that is not there", v6(0, &[], HOST6, FAR6)),
    ];
    for (what, frame) in cases {
        assert_eq!(tell(&frame), None, "{what}");
    }
}

/// Chains of extension headers before an error, an echo request and UDP.
#[test]
fn errors_are_found_behind_extension_headers() {
    /// The chain up to a header of this kind.
    type Chain<'a> = &'a dyn Fn(u8) -> Vec<u8>;
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let routing = |next: u8| vec![next, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let authentication = |next: u8| [&[next, 4], &[0u8; 22][..]].concat();
    let fragment = |next: u8, offset: u16, more: bool| {
        Ipv6FragmentHeader::new(IpNumber(next), offset.try_into().unwrap(), more, 7).to_bytes().to_vec()
    };
    let first = |next| fragment(next, 0, true);
    let later = |next| fragment(next, 185, false);
    let chains: [(&str, u8, Chain<'_>); 7] = [
        ("hop by hop", 0, &options),
        ("destination options", 60, &options),
        ("routing", 43, &routing),
        ("authentication", 51, &authentication),
        ("first fragment", 44, &first),
        ("hop by hop, fragment", 0, &|next| [options(44), first(next)].concat()),
        ("fragment, authentication, options", 44, &|next| {
            [first(51), authentication(60), options(next)].concat()
        }),
    ];
    for (what, next, chain) in chains {
        let behind = |upper: u8, message: &[u8]| v6(next, &[&chain(upper), message].concat(), HOST6, FAR6);
        assert_eq!(tell(&behind(58, &[2; 1400])), None, "an error behind {what}");
        assert_eq!(tell(&behind(58, &[137; 1400])), None, "a redirect behind {what}");
        assert!(tell(&behind(58, &[128; 1400])).is_some(), "an echo request behind {what}");
        assert!(tell(&behind(17, &[1; 1400])).is_some(), "UDP behind {what}");
    }
    // Of a later fragment nobody knows what it is part of.
    for upper in [58, 17] {
        assert_eq!(tell(&v6(44, &[later(upper), vec![200; 1400]].concat(), HOST6, FAR6)), None);
    }
    // No header after this one; encrypted.
    for next in [59, 50] {
        assert!(tell(&v6(next, &[0; 1400], HOST6, FAR6)).is_some());
    }
}

// --- noise ---

/// Whatever the reply is, it is whole.
fn check_any(frame: &[u8], reply: &[u8]) {
    let Ok(packet) = SlicedPacket::from_ethernet(reply) else { panic!("{reply:02x?} for {frame:02x?}") };
    match (packet.net, packet.transport) {
        (Some(NetSlice::Arp(arp)), None) => assert_eq!(arp.operation(), ArpOperation::REPLY),
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(Icmpv4Slice::from_slice(icmp.slice()).unwrap().type_u8(), 3);
            assert_eq!(Sum::default().add(icmp.slice()).fold(), 0xffff);
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
            assert!(matches!(Icmpv6Slice::from_slice(icmp.slice()).unwrap().type_u8(), 2 | 136));
        }
        other => panic!("{other:?} for {frame:02x?}"),
    }
    assert_eq!(reply[0] & 1, 0, "to one host");
    assert_eq!(reply[6] & 1, 0, "from one host");
}

/// Both questions at once; an answer is whole, and nobody answers an answer.
fn both(frame: &[u8]) -> bool {
    let replies = [ask(frame).map(|(_, reply)| reply), tell(frame)];
    for reply in replies.iter().flatten() {
        check_any(frame, reply);
        assert_eq!(ask(reply), None);
        if reply.get(12..14) == Some(&[8, 0]) || reply.get(20) == Some(&58) && reply[54] < 128 {
            assert_eq!(tell(reply), None, "an error about an error");
        }
    }
    replies.iter().any(Option::is_some)
}

fn examples() -> Vec<Vec<u8>> {
    let mut builder = vec![];
    PacketBuilder::ethernet2(OWN, PEER)
        .ipv6(HOST6, FAR6, 64)
        .icmpv6(Icmpv6Type::EchoRequest(etherparse::IcmpEchoHeader { id: 1, seq: 2 }))
        .write(&mut builder, &[0; 100])
        .unwrap();
    vec![
        arp_request(OWN4, PEER4),
        solicitation(ll(PEER), &SLLA),
        v4(17, &[0; 100], |_| ()),
        v4(1, &[8; 100], |h| h.options = [1u8; 12].into()),
        v6(44, &[&[60, 0, 0, 1, 0, 0, 0, 9, 17, 0][..], &[0; 90]].concat(), HOST6, FAR6),
        builder,
    ]
}

#[test]
fn all_examples_are_answered() {
    for frame in examples() {
        assert!(both(&frame), "{frame:02x?}");
    }
}

proptest! {
    #[test]
    fn noise_is_harmless(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        both(&frame);
    }

    #[test]
    fn noise_behind_a_plausible_head_is_harmless(
        kind in prop::sample::select(vec![[0x08, 0x00], [0x08, 0x06], [0x86, 0xdd]]),
        tags in prop::sample::select(TAGS.to_vec()),
        first in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00]),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let parts: [&[u8]; 6] = [&PEER, &OWN, tags, &kind, &[first], &rest];
        both(&parts.concat());
    }

    /// Valid frames with a few bytes changed, cut or padded: most still reach deep into the code.
    #[test]
    fn damaged_frames_are_harmless(
        frame in prop::sample::select(examples()),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        length in any::<prop::sample::Index>(),
        tags in prop::sample::select(TAGS.to_vec()),
    ) {
        let mut frame = tagged(&frame, tags);
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        let length = length.index(2 * frame.len());
        if length < frame.len() {
            frame.truncate(length);
        }
        both(&frame);
    }

    #[test]
    fn any_packet_with_df_is_quoted_from_its_beginning(
        protocol in any::<u8>().prop_filter("not ICMP", |p| *p != 1),
        payload in proptest::collection::vec(any::<u8>(), 0..1500),
        options in 0usize..=10,
    ) {
        let frame = v4(protocol, &payload, |h| h.options = vec![1u8; options * 4].as_slice().try_into().unwrap());
        let quote = check_v4(&frame, &tell(&frame).unwrap());
        prop_assert_eq!(&quote[..], &frame[14..][..quote.len()]);
        prop_assert_eq!(quote.len(), (frame.len() - 14).min(548));
    }
}
