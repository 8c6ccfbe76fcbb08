//! What stands before an encapsulated super-frame that is given to the kernel as one piece: the virtio-net header of a
//! device with tunnel offloads, the outer Ethernet, IPv4 and UDP headers, and VXLAN's. The kernel cuts it, writing outer and inner headers of each segment. Pure.
//!
//! ```text
//! 0        10            12     16       18    20                 22                24
//! vnet.rs | num_buffers | hash | report | pad | outer_th_offset | inner_nh_offset |      struct virtio_net_hdr_v1_hash_tunnel
//! 24 Ethernet 14 | IPv4 20 | UDP 8 | VXLAN 8 | inner frame                               from here the offsets count
//! ```
//!
//! The Ethernet header is written anew by the kernel when it knows the next hop; until then the last four bytes of its
//! destination tell the program on the device ([`super::bpf`]) through which interface the packet goes. The first two
//! are those of a unicast address: for multicast there is no next hop.
//!
//! Outer headers are as the sockets' datagrams have them: DF clear, TTL 64, and a UDP checksum, to be filled in by whoever
//! cuts. With a checksum of zero a receiving kernel would not glue the segments together. The numbers are those of virtio 1.4 section 5.1.6 and Linux 6.17's `virtio_net.h`.

use std::net::SocketAddrV4;

use super::checksum::{Sum, pseudo_v4};
use super::frame::{ETHERNET_BYTES, Frame, Network, Transport, UDP, put16};
use super::vnet::{Gso, LEN as VNET_BYTES, Vnet};
use crate::wire::vxlan;

/// Length of the virtio-net header with tunnel fields.
pub const VNET_TUNNEL_BYTES: usize = 24;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Where the outer IPv4 header begins.
pub const IPV4_AT: usize = VNET_TUNNEL_BYTES + ETHERNET_BYTES;
const UDP_AT: usize = IPV4_AT + IPV4_BYTES;
const VXLAN_AT: usize = UDP_AT + UDP_BYTES;
/// All that is written before the inner frame.
pub const HEADER_BYTES: usize = VXLAN_AT + vxlan::HEADER_BYTES;
/// What encapsulation adds to the inner frame, Ethernet header included.
const OUTER_BYTES: u16 = 50;
const _: () = assert!(HEADER_BYTES - VNET_TUNNEL_BYTES == 50);
/// What an outer IPv4 packet holds besides the inner frame.
const OUTER_IP_BYTES: usize = OUTER_BYTES as usize - ETHERNET_BYTES;
/// The longest inner frame: an IPv4 packet has at most 65,535 bytes.
const FRAME_MAX_BYTES: usize = 65_535 - OUTER_IP_BYTES;

/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4`.
const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the outer checksum is to be filled in.
const UDP_TUNNEL_CSUM: u8 = 8;
const TTL: u8 = 64;
const LOCALLY_ADMINISTERED: u8 = 2;
/// Where in the Ethernet header the interface's index is, 32 bits in the machine's order.
pub(super) const INTERFACE_AT: usize = 2;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// A super-frame that the kernel can cut with its outer headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnelled {
    vnet: Vnet,
    /// Inner bytes of all segments as on the wire, Ethernet header included.
    pub wire_bytes: usize,
}

impl Tunnelled {
    /// A frame that the TAP gave to us with `vnet`, if it is one that can be left whole: TCP in an untagged IPv4 packet,
    /// whose segments with their outer headers have room in `underlay_mtu`.
    pub fn new(vnet: &Vnet, layout: &Frame, frame_bytes: usize, underlay_mtu: u16) -> Option<Self> {
        let (headers, payload) = (layout.payload_at, layout.payload_bytes());
        let size = usize::from(vnet.gso_size);
        let plain = (vnet.gso, layout.network, layout.transport) == (Gso::TcpV4, Network::V4, Transport::Tcp)
            && layout.network_at == ETHERNET_BYTES
            && layout.end == frame_bytes
            && vnet.needs_csum
            && usize::from(vnet.csum_start) == layout.transport_at
            && vnet.csum_offset == 16;
        let fits = frame_bytes <= FRAME_MAX_BYTES
            && size > 0
            && headers - ETHERNET_BYTES + size + usize::from(OUTER_BYTES) <= usize::from(underlay_mtu);
        if !(plain && fits && payload > size) {
            return None;
        }
        let wire_bytes = payload + payload.div_ceil(size) * headers;
        let vnet = Vnet { hdr_len: u16::try_from(headers).ok()?, ..*vnet };
        Some(Self { vnet, wire_bytes })
    }

    /// Everything before the inner frame. `header` is VXLAN's, `id` the outer packet's IPv4 identification (the kernel
    /// counts on from it), `interface` the index of the one that it leaves through.
    pub fn headers(
        &self,
        (from, to): (SocketAddrV4, SocketAddrV4),
        header: [u8; vxlan::HEADER_BYTES],
        (ecn, id): (u8, u16),
        interface: u32,
        frame_bytes: usize,
    ) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let vnet = Vnet {
            hdr_len: self.vnet.hdr_len + OUTER_BYTES,
            csum_start: self.vnet.csum_start + OUTER_BYTES,
            ..self.vnet
        };
        out[..VNET_BYTES].copy_from_slice(&vnet.encode());
        out[0] |= UDP_TUNNEL_CSUM;
        out[1] |= GSO_UDP_TUNNEL_IPV4;
        let offset = |at: usize| u16::try_from(at - VNET_TUNNEL_BYTES).unwrap_or(0).to_le_bytes(); // below 64
        out[20..22].copy_from_slice(&offset(UDP_AT));
        out[22..24].copy_from_slice(&offset(HEADER_BYTES + ETHERNET_BYTES));

        let ethernet = &mut out[VNET_TUNNEL_BYTES..IPV4_AT];
        ethernet[0] = LOCALLY_ADMINISTERED;
        ethernet[INTERFACE_AT..6].copy_from_slice(&interface.to_ne_bytes());
        ethernet[12..].copy_from_slice(&ETHERTYPE_IPV4);

        let udp_bytes = UDP_BYTES + vxlan::HEADER_BYTES + frame_bytes;
        let short = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX); // checked by `new`
        let ip = &mut out[IPV4_AT..UDP_AT];
        ip[0] = 0x45;
        ip[1] = ecn;
        put16(ip, 2, short(IPV4_BYTES + udp_bytes));
        put16(ip, 4, id);
        ip[8] = TTL;
        ip[9] = UDP;
        ip[12..16].copy_from_slice(&from.ip().octets());
        ip[16..].copy_from_slice(&to.ip().octets());
        let sum = Sum::default().add(ip).checksum();
        put16(ip, 10, sum);

        let udp = &mut out[UDP_AT..VXLAN_AT];
        put16(udp, 0, from.port());
        put16(udp, 2, to.port());
        put16(udp, 4, short(udp_bytes));
        // As for any checksum that is to be filled in: the sum of the pseudo-header, not inverted.
        let pseudo = pseudo_v4(from.ip().octets(), to.ip().octets(), UDP, short(udp_bytes).into());
        put16(udp, 6, pseudo.fold());
        out[VXLAN_AT..].copy_from_slice(&header);
        out
    }
}
