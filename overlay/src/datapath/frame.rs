//! Where the headers of an Ethernet frame lie, and which flow it belongs to. Pure; looks at fixed offsets only and
//! never trusts a length it has not checked against the frame.
//!
//! What is not understood is not an error: VXLAN carries any Ethernet frame, so such a frame is opaque
//! ([`Network::Other`]) and passes through as it is.

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_BYTES: usize = 14;
/// VLAN tags looked through (IEEE 802.1Q, and 802.1ad outside of it).
const TAGS: usize = 2;
/// IPv6 extension headers looked through. A packet with more is carried, but its transport is not looked for.
const EXTENSIONS: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
/// Address Resolution Protocol, RFC 826.
pub const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_TAG: u16 = 0x8100;
const TYPE_SERVICE_TAG: u16 = 0x88a8;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// What the frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// An IPv4 packet (RFC 791) whose header and lengths are sound.
    V4,
    /// An IPv6 packet (RFC 8200) whose header and lengths are sound.
    V6,
    /// Anything else.
    Other,
}

/// What the IP packet carries, where it is whole and its header is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP with a sound data offset.
    Tcp,
    /// UDP.
    Udp,
    /// Anything else, or a fragment.
    Other,
}

/// The layout of one frame. Offsets count from the frame's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub network: Network,
    /// EtherType behind the tags.
    pub ethertype: u16,
    /// Offset of what the EtherType announces; the IP header where it is IP.
    pub network_at: usize,
    /// What IP carries.
    pub transport: Transport,
    /// The last "next header" or the protocol field; 0 if not IP.
    pub protocol: u8,
    /// Offset of what IP carries.
    pub transport_at: usize,
    /// Offset of the transport's payload; `transport_at` where the transport is not known.
    pub payload_at: usize,
    /// Offset behind the last byte of the IP packet; what follows in the frame is padding.
    pub end: usize,
    /// Type of service or traffic class; the low two bits are ECN (RFC 3168).
    pub tos: u8,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// A hash over addresses, protocol and ports: equal for all packets of a flow in one direction. Fragments leave
    /// out the ports, which only the first one has.
    pub flow: u32,
}

/// Reads a big-endian 16-bit number; the caller knows that it is there.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a big-endian 32-bit number; the caller knows that it is there.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes a big-endian 16-bit number; the caller knows that there is room.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

impl Frame {
    /// Finds the headers. `None` if there is not even an Ethernet header.
    pub fn parse(frame: &[u8]) -> Option<Frame> {
        let (ethertype, network_at) = ethernet(frame)?;
        let mut found = Frame {
            network: Network::Other,
            ethertype,
            network_at,
            transport: Transport::Other,
            protocol: 0,
            transport_at: network_at,
            payload_at: network_at,
            end: frame.len(),
            tos: 0,
            fragment: false,
            flow: 0,
        };
        let ip = match ethertype {
            TYPE_IPV4 => found.ipv4(frame),
            TYPE_IPV6 => found.ipv6(frame),
            _ => None,
        };
        if let Some(addresses) = ip {
            found.transport(frame);
            found.flow = found.hash(frame, addresses);
        } else {
            found.flow = hash(0, &frame[..12]);
        }
        Some(found)
    }

    /// Returns the bytes that hold both addresses.
    fn ipv4<'f>(&mut self, frame: &'f [u8]) -> Option<&'f [u8]> {
        let header = frame.get(self.network_at..).filter(|h| h.len() >= 20)?;
        let header_bytes = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(be16(header, 2));
        if header[0] >> 4 != 4 || header_bytes < 20 || total < header_bytes || total > header.len() {
            return None;
        }
        self.network = Network::V4;
        self.protocol = header[9];
        self.transport_at = self.network_at + header_bytes;
        self.end = self.network_at + total;
        self.tos = header[1];
        self.fragment = be16(header, 6) & 0x3fff != 0; // more fragments, or an offset
        Some(&header[12..20])
    }

    fn ipv6<'f>(&mut self, frame: &'f [u8]) -> Option<&'f [u8]> {
        let header = frame.get(self.network_at..).filter(|h| h.len() >= 40)?;
        let total = 40 + usize::from(be16(header, 4));
        if header[0] >> 4 != 6 || total > header.len() {
            return None;
        }
        self.network = Network::V6;
        self.end = self.network_at + total;
        self.tos = (header[0] << 4) | (header[1] >> 4);
        (self.protocol, self.transport_at) = (header[6], self.network_at + 40);
        for _ in 0..EXTENSIONS {
            let rest = &frame[self.transport_at..self.end];
            let length = match self.protocol {
                // On its way by others the packet has another destination in the checksum than in its header
                // (RFC 8200 section 8.1): nothing here may touch its transport.
                43 if rest.len() >= 8 && rest[3] > 0 => break,
                // hop by hop, routing, destination options: RFC 8200 section 4
                0 | 43 | 60 if rest.len() >= 8 => (usize::from(rest[1]) + 1) * 8,
                44 if rest.len() >= 8 => {
                    self.fragment |= be16(rest, 2) & 0xfff9 != 0; // an offset, or more fragments
                    8
                }
                _ => break,
            };
            if length > rest.len() {
                break;
            }
            self.protocol = rest[0];
            self.transport_at += length;
        }
        Some(&header[8..40])
    }

    fn transport(&mut self, frame: &[u8]) {
        self.payload_at = self.transport_at;
        let rest = &frame[self.transport_at..self.end];
        if self.fragment {
            return;
        }
        match self.protocol {
            TCP if rest.len() >= 20 => {
                let header_bytes = usize::from(rest[12] >> 4) * 4;
                if (20..=rest.len()).contains(&header_bytes) {
                    self.transport = Transport::Tcp;
                    self.payload_at += header_bytes;
                }
            }
            UDP if rest.len() >= 8 => {
                self.transport = Transport::Udp;
                self.payload_at += 8;
            }
            _ => {}
        }
    }

    fn hash(&self, frame: &[u8], addresses: &[u8]) -> u32 {
        let seed = hash(u32::from(self.protocol), addresses);
        match self.transport {
            Transport::Tcp | Transport::Udp => hash(seed, &frame[self.transport_at..self.transport_at + 4]),
            Transport::Other => seed,
        }
    }

    /// The IP packet's length in bytes; 0 if it is not IP.
    pub fn network_bytes(&self) -> usize {
        if self.network == Network::Other { 0 } else { self.end - self.network_at }
    }

    /// Length of the transport's payload in bytes.
    pub fn payload_bytes(&self) -> usize {
        self.end - self.payload_at
    }
}

/// The EtherType behind the tags and the offset of what follows it.
fn ethernet(frame: &[u8]) -> Option<(u16, usize)> {
    if frame.len() < ETHERNET_BYTES {
        return None;
    }
    let mut at = ETHERNET_BYTES;
    for _ in 0..TAGS {
        let ethertype = be16(frame, at - 2);
        if !matches!(ethertype, TYPE_TAG | TYPE_SERVICE_TAG) || frame.len() < at + 4 {
            break;
        }
        at += 4;
    }
    Some((be16(frame, at - 2), at))
}

/// Spreads well enough over a few sockets; not meant to resist somebody who wants collisions. A product carries only
/// upwards, so what differs in the high bits is folded down after each.
fn hash(seed: u32, bytes: &[u8]) -> u32 {
    let mut state = u64::from(seed) ^ 0x9e37_79b9_7f4a_7c15;
    for chunk in bytes.chunks_exact(4) {
        state = (state ^ u64::from(be32(chunk, 0))).wrapping_mul(0xff51_afd7_ed55_8ccd);
        state ^= state >> 32;
    }
    #[allow(clippy::cast_possible_truncation, reason = "the high half of a hash")]
    let high = (state.wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 32) as u32;
    high
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "frame_tests.rs"]
mod tests;
