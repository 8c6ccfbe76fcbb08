//! Packets for tests, and what a kernel makes of a frame with a virtio-net header. Uses etherparse and plain loops and
//! nothing of the code under test, so that the two can be held against each other.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "used by several test programs, each of which needs another part"
)]

use etherparse::{
    IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice,
    UdpHeader,
};

/// Length of a virtio-net header in bytes.
pub const VNET_BYTES: usize = 10;

/// Bits of the TCP header's flags.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;
/// See [`FIN`].
pub const CWR: u8 = 0x80;

/// A TCP or UDP packet. The default is a UDP datagram over IPv4 without payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub source: [u8; 6],
    pub destination: [u8; 6],
    /// VLAN tags, the outer one first; the first of two is a service tag.
    pub tags: Vec<u16>,
    pub v6: bool,
    /// Last byte of the source address.
    pub host: u8,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub dont_fragment: bool,
    pub tcp: bool,
    pub port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
    pub flags: u8,
    /// TCP options; a multiple of four bytes, 40 at most.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            source: [2, 0, 0, 0, 0, 1],
            destination: [2, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            v6: false,
            host: 1,
            tos: 0,
            ttl: 64,
            id: 0x1234,
            dont_fragment: true,
            tcp: false,
            port: 4000,
            sequence: 1,
            acknowledgment: 7,
            window: 512,
            flags: ACK,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Packet {
    /// The Ethernet frame, checksums right.
    pub fn frame(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.port, 80, self.sequence, self.window);
        tcp.acknowledgment_number = self.acknowledgment;
        [tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack, tcp.urg, tcp.ece, tcp.cwr] =
            std::array::from_fn(|bit| self.flags >> bit & 1 == 1);
        tcp.set_options_raw(&self.options).unwrap();
        let transport_bytes = if self.tcp { tcp.header_len() } else { 8 } + self.payload.len();
        let mut udp = UdpHeader {
            source_port: self.port,
            destination_port: 53,
            length: u16::try_from(transport_bytes).unwrap(),
            checksum: 0,
        };
        let mut out = self.link();
        if self.v6 {
            let ip = self.ipv6(transport_bytes);
            settle(&mut tcp, |tcp| tcp.calc_checksum_ipv6(&ip, &self.payload).unwrap());
            udp.checksum = udp.calc_checksum_ipv6(&ip, &self.payload).unwrap();
            ip.write(&mut out).unwrap();
        } else {
            let ip = self.ipv4(transport_bytes);
            settle(&mut tcp, |tcp| tcp.calc_checksum_ipv4(&ip, &self.payload).unwrap());
            udp.checksum = udp.calc_checksum_ipv4(&ip, &self.payload).unwrap();
            out.extend(ip.to_bytes());
        }
        if self.tcp {
            out.extend(tcp.to_bytes());
        } else {
            out.extend(udp.to_bytes());
        }
        out.extend(&self.payload);
        out
    }

    fn link(&self) -> Vec<u8> {
        let network = if self.v6 { 0x86dd } else { 0x0800 };
        let mut types: Vec<u16> = self.tags.iter().map(|_| 0x8100).collect();
        if types.len() > 1 {
            types[0] = 0x88a8;
        }
        types.push(network);
        let mut out = [self.destination, self.source].concat();
        out.extend(types[0].to_be_bytes());
        for (tag, next) in self.tags.iter().zip(&types[1..]) {
            out.extend(tag.to_be_bytes());
            out.extend(next.to_be_bytes());
        }
        out
    }

    fn protocol(&self) -> IpNumber {
        if self.tcp { IpNumber::TCP } else { IpNumber::UDP }
    }

    fn ipv4(&self, payload_bytes: usize) -> Ipv4Header {
        let length = u16::try_from(payload_bytes).unwrap();
        let mut ip =
            Ipv4Header::new(length, self.ttl, self.protocol(), [10, 1, 1, self.host], [10, 1, 2, 1]).unwrap();
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        ip.dscp = etherparse::IpDscp::try_new(self.tos >> 2).unwrap();
        ip.ecn = etherparse::IpEcn::try_new(self.tos & 3).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        ip
    }

    fn ipv6(&self, payload_bytes: usize) -> Ipv6Header {
        let mut address = [0xfd; 16];
        address[15] = self.host;
        Ipv6Header {
            traffic_class: self.tos,
            flow_label: Ipv6FlowLabel::try_new(0x1_2345).unwrap(),
            payload_length: u16::try_from(payload_bytes).unwrap(),
            next_header: self.protocol(),
            hop_limit: self.ttl,
            source: address,
            destination: [0xfd; 16],
        }
    }

    /// Length of all headers in bytes.
    pub fn headers_bytes(&self) -> usize {
        let transport = if self.tcp { 20 + self.options.len() } else { 8 };
        self.network_at() + if self.v6 { 40 } else { 20 } + transport
    }

    /// Offset of the IP header.
    pub fn network_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// As the kernel hands it to a TAP when it leaves cutting it into segments of `size` bytes to the reader.
    pub fn super_frame(&self, size: u16) -> Vec<u8> {
        let gso = match (self.tcp, self.v6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        };
        let (frame, start, offset) = self.unfilled();
        vnet(gso, self.headers_bytes(), size.into(), start, offset, &frame)
    }

    /// As the kernel hands it to a TAP when it leaves only the checksum to the reader.
    pub fn partial(&self) -> Vec<u8> {
        let (frame, start, offset) = self.unfilled();
        vnet(0, 0, 0, start, offset, &frame)
    }

    /// The frame with only the pseudo-header's sum in the checksum field; where the transport header is, and where
    /// in it the field.
    pub fn unfilled(&self) -> (Vec<u8>, usize, usize) {
        let mut frame = self.frame();
        let start = self.network_at() + if self.v6 { 40 } else { 20 };
        let offset = if self.tcp { 16 } else { 6 };
        let sum = pseudo_sum(&frame, self.network_at(), start);
        frame[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
        (frame, start, offset)
    }

    /// As the kernel hands it to a TAP when there is nothing left to do.
    pub fn whole(&self) -> Vec<u8> {
        [&[0; VNET_BYTES][..], &self.frame()].concat()
    }
}

/// Writes TCP's checksum, and avoids the one that has two forms, of which kernels write now one, now the other.
fn settle(tcp: &mut TcpHeader, checksum: impl Fn(&TcpHeader) -> u16) {
    if matches!(checksum(tcp), 0 | 0xffff) {
        tcp.urgent_pointer = 1; // not looked at without the flag
    }
    tcp.checksum = checksum(tcp);
}

/// A frame behind a virtio-net header that asks for its checksum.
pub fn vnet(gso: u8, hdr_len: usize, size: usize, start: usize, offset: usize, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![1, gso];
    for number in [hdr_len, size, start, offset] {
        out.extend(u16::try_from(number).unwrap().to_le_bytes());
    }
    out.extend(frame);
    out
}

/// Adds 16-bit words as RFC 1071 has it, one by one.
pub fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The sum of TCP's or UDP's pseudo-header, given where the IP header and the transport header are. The IP packet
/// ends where its length says.
pub fn pseudo_sum(frame: &[u8], network_at: usize, transport_at: usize) -> u16 {
    let ip = &frame[network_at..];
    let (addresses, end, protocol) = if ip[0] >> 4 == 4 {
        (&ip[12..20], network_at + usize::from(be16(ip, 2)), ip[9])
    } else {
        (
            &ip[8..40],
            network_at + 40 + usize::from(be16(ip, 4)),
            last_next_header(ip, transport_at - network_at),
        )
    };
    let length = u32::try_from(end - transport_at).unwrap().to_be_bytes();
    ones_sum(&[addresses, &[0, protocol], &length])
}

fn last_next_header(ip: &[u8], transport_at: usize) -> u8 {
    let (mut next, mut at) = (ip[6], 40);
    while at < transport_at {
        let bytes = if next == 44 { 8 } else { (usize::from(ip[at + 1]) + 1) * 8 };
        (next, at) = (ip[at], at + bytes);
    }
    next
}

/// Reads a big-endian number.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where the EtherType's header begins, looking through VLAN tags.
pub fn network_at(frame: &[u8]) -> usize {
    let mut at = 14;
    while matches!(be16(frame, at - 2), 0x8100 | 0x88a8) && frame.len() >= at + 4 && at < 22 {
        at += 4;
    }
    at
}

/// What a kernel sends on the wire for a frame with a virtio-net header: checksum filled in, super-frame cut. Panics
/// where it would answer `EINVAL`.
///
/// The rules are those of Linux' `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment`: identifications count
/// up; FIN and PSH stay on the last segment, CWR on the first.
pub fn on_the_wire(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (head, frame) = bytes.split_at(VNET_BYTES);
    let field = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let (hdr_len, size, start, offset) = (field(2), field(4), field(6), field(8));
    assert!(hdr_len <= frame.len() && frame.len() >= 14, "EINVAL: hdr_len {hdr_len} of {}", frame.len());
    let needs_checksum = head[0] & 1 == 1;
    assert!(
        !needs_checksum || start + offset + 2 <= frame.len(),
        "EINVAL: {start} + {offset} of {}",
        frame.len()
    );
    if head[1] == 0 {
        let mut frame = frame.to_vec();
        if needs_checksum {
            fill(&mut frame, start, offset);
        }
        return vec![frame];
    }
    assert!(needs_checksum && size > 0, "EINVAL: a super-frame with flags {} and size {size}", head[0]);
    let at = network_at(frame);
    let v6 = frame[at] >> 4 == 6;
    let tcp = match (head[1] & 0x7f, v6, offset) {
        (1, false, 16) | (4, true, 16) => true,
        (5, _, 6) => false,
        other => panic!("EINVAL: gso type, IPv6, checksum offset {other:?}"),
    };
    let headers_bytes = start + if tcp { usize::from(frame[start + 12] >> 4) * 4 } else { 8 };
    assert_eq!(hdr_len, headers_bytes, "hdr_len is exact when written");
    let (headers, payload) = frame.split_at(headers_bytes);
    assert_eq!(
        be16(frame, start + offset),
        pseudo_sum(frame, at, start),
        "the field holds the pseudo-header's sum"
    );
    let parts: Vec<&[u8]> = payload.chunks(size).collect();
    let segment = |(n, part): (usize, &&[u8])| {
        let mut out = [headers, *part].concat();
        let length = u16::try_from(out.len() - at).unwrap();
        if v6 {
            put16(&mut out, at + 4, length - 40);
        } else {
            put16(&mut out, at + 2, length);
            let id = be16(&out, at + 4).wrapping_add(u16::try_from(n).unwrap());
            put16(&mut out, at + 4, id);
            header_checksum(&mut out, at);
        }
        if tcp {
            let sequence = u32::from_be_bytes(out[start + 4..start + 8].try_into().unwrap());
            let sequence = sequence.wrapping_add(u32::try_from(n * size).unwrap());
            out[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            if n + 1 < parts.len() {
                out[start + 13] &= !(FIN | PSH);
            }
            if n > 0 {
                out[start + 13] &= !CWR;
            }
        } else {
            let udp_bytes = u16::try_from(out.len() - start).unwrap();
            put16(&mut out, start + 4, udp_bytes);
        }
        let sum = pseudo_sum(&out, at, start);
        put16(&mut out, start + offset, sum);
        fill(&mut out, start, offset);
        if tcp && be16(&out, start + offset) == 0xffff {
            put16(&mut out, start + offset, 0); // unlike `skb_checksum_help`, `gso_make_checksum` leaves it alone
        }
        out
    };
    parts.iter().enumerate().map(segment).collect()
}

/// Completes a checksum whose field holds the pseudo-header's sum.
pub fn fill(frame: &mut [u8], start: usize, offset: usize) {
    let sum = !ones_sum(&[&frame[start..]]);
    // As the kernel's `skb_checksum_help`, for TCP too.
    put16(frame, start + offset, if sum == 0 { 0xffff } else { sum });
}

/// Panics unless etherparse finds the frame sound and agrees with each of its checksums.
pub fn assert_sound(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let transport = sliced.transport.unwrap();
    let expected = match (sliced.net.unwrap(), &transport) {
        (NetSlice::Ipv4(ip), transport) => {
            let header = ip.header();
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "IPv4 checksum");
            let (from, to) = (header.source(), header.destination());
            match transport {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv4(from, to),
                TransportSlice::Udp(udp) => udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload()),
                other => panic!("{other:?}"),
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Tcp(tcp) => tcp.calc_checksum_ipv6(from, to),
                TransportSlice::Udp(udp) => udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload()),
                other => panic!("{other:?}"),
            }
        }
        (other, _) => panic!("{other:?}"),
    };
    let found = match transport {
        TransportSlice::Udp(udp) => {
            assert_ne!(udp.checksum(), 0, "zero means none");
            udp.checksum()
        }
        TransportSlice::Tcp(tcp) => tcp.checksum(),
        other => panic!("{other:?}"),
    };
    // Both are zero in one's complement.
    let zero = |sum| if sum == 0xffff { 0 } else { sum };
    assert_eq!(zero(found), zero(expected.unwrap()), "transport checksum of {frame:02x?}");
}

/// Where a sound IP packet lies in a frame.
struct Ip<'a> {
    at: usize,
    v4: bool,
    /// Without IPv6 extension headers.
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let at = network_at(frame);
        let ip = &frame[at..];
        let (v4, header_bytes, packet_bytes) = match (be16(frame, at - 2), ip.first()? >> 4) {
            (0x0800, 4) if ip.len() >= 20 => (true, usize::from(ip[0] & 15) * 4, usize::from(be16(ip, 2))),
            (0x86dd, 6) if ip.len() >= 40 => (false, 40, 40 + usize::from(be16(ip, 4))),
            _ => return None,
        };
        let sound = header_bytes >= 20 && (header_bytes..=ip.len()).contains(&packet_bytes);
        let (header, payload) = ip.get(..packet_bytes).filter(|_| sound)?.split_at(header_bytes);
        Some(Self { at, v4, header, payload })
    }
}

/// What tells one flow from another: Ethernet header, addresses, protocol, and the ports unless it is a fragment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Ethernet header and addresses.
    pub hosts: Vec<u8>,
    /// Both ports of TCP or UDP.
    pub ports: Option<Vec<u8>>,
}

/// The flow of a TCP or UDP packet without IPv6 extension headers, or of a fragment of one; of anything else its
/// Ethernet header.
pub fn key(frame: &[u8]) -> Key {
    let mut hosts = frame[..network_at(frame)].to_vec();
    let Some(ip) = Ip::of(frame) else { return Key { hosts, ports: None } };
    let (addresses, protocol) =
        if ip.v4 { (&ip.header[12..20], ip.header[9]) } else { (&ip.header[8..], ip.header[6]) };
    let fragment = ip.v4 && be16(ip.header, 6) & 0x3fff != 0;
    let tcp_header = ip.payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if protocol == 6 && !fragment && !(20..=ip.payload.len()).contains(&tcp_header) {
        return Key { hosts, ports: None }; // no receiver makes anything of it
    }
    if protocol == 17 && !fragment && ip.payload.len() < 8 {
        return Key { hosts, ports: None }; // nor of this
    }
    hosts.extend(addresses);
    hosts.push(protocol);
    let ports = ip.payload.get(..4).filter(|_| !fragment && matches!(protocol, 6 | 17)).map(<[u8]>::to_vec);
    Key { hosts, ports }
}

/// The frame without what may change where packets are put together: padding behind the IP packet is lost, and so are
/// identifications of packets that DF forbids to fragment, where they mean nothing (RFC 6864).
pub fn normal(frame: &[u8]) -> Vec<u8> {
    let Some(ip) = Ip::of(frame) else { return frame.to_vec() };
    let mut frame = frame[..ip.at + ip.header.len() + ip.payload.len()].to_vec();
    if ip.v4 && be16(ip.header, 6) == 0x4000 && ones_sum(&[ip.header]) == 0xffff {
        frame[ip.at + 4..ip.at + 6].fill(0);
        header_checksum(&mut frame, ip.at);
    }
    frame
}

/// Puts the checksum of the IPv4 header at an offset right.
pub fn header_checksum(frame: &mut [u8], at: usize) {
    put16(frame, at + 10, 0);
    let sum = !ones_sum(&[&frame[at..at + usize::from(frame[at] & 15) * 4]]);
    put16(frame, at + 10, sum);
}

/// Panics unless both lists hold the same packets, those of each flow in the same order; fragments in the order of
/// every flow between their hosts.
pub fn assert_same_flows(found: &[Vec<u8>], expected: &[Vec<u8>]) {
    let flows: std::collections::BTreeSet<Key> =
        expected.iter().chain(found).map(|frame| key(frame)).collect();
    for flow in &flows {
        let of = |frames: &[Vec<u8>]| -> Vec<Vec<u8>> {
            let same = |k: &Key| k.hosts == flow.hosts && (k.ports.is_none() || k.ports == flow.ports);
            frames.iter().filter(|frame| same(&key(frame))).cloned().collect()
        };
        let (found, expected) = (of(found), of(expected));
        for (n, (a, b)) in found.iter().zip(&expected).enumerate() {
            assert!(a == b, "packet {n} of {flow:?} differs:\n{a:02x?}\n{b:02x?}");
        }
        assert_eq!(found.len(), expected.len(), "packets of {flow:?}");
    }
}
