//! The header that a TAP with `IFF_VNET_HDR` puts before each frame: `struct virtio_net_hdr` of
//! `linux/virtio_net.h`, 10 bytes, little endian on every machine ([`crate::datapath`] asks for that with
//! `TUNSETVNETLE`). Pure.
//!
//! ```text
//! 0       1          2         4          6            8             10
//! flags | gso_type | hdr_len | gso_size | csum_start | csum_offset |
//! ```
//!
//! Reading, it says what the kernel left undone (a checksum, a segmentation); writing, what the kernel may still do.

/// Length of the header in bytes; `TUNSETVNETHDRSZ` sets it.
pub const LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, a flag beside the type.
const GSO_ECN: u8 = 0x80;

/// How a frame is to be cut into segments.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Gso {
    /// Not at all: the frame is one packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of `gso_size` bytes of payload each, over IPv4 or IPv6.
    UdpL4,
}

/// The header's meaning. `Default` is a complete, checksummed, single packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Vnet {
    /// The checksum field holds only the pseudo-header's sum: whoever sends it on must sum from `csum_start` to the end
    /// and put the complement at `csum_start + csum_offset`.
    pub needs_csum: bool,
    /// The checksums were verified by whoever received the packet.
    pub data_valid: bool,
    /// Segmentation.
    pub gso: Gso,
    /// TCP only: the packet has CWR set, and only the first segment may keep it (RFC 3168 section 6.1.2).
    pub ecn: bool,
    /// Length of all headers, Ethernet to TCP or UDP, in bytes. A hint of the kernel when read, exact when written; more
    /// than the frame is refused with `EINVAL`.
    pub hdr_len: u16,
    /// Payload of each segment in bytes; without meaning for [`Gso::None`].
    pub gso_size: u16,
    /// Where summing starts, counted from the Ethernet header; without meaning unless `needs_csum`.
    pub csum_start: u16,
    /// Where the checksum field is, counted from `csum_start`: 16 in TCP, 6 in UDP.
    pub csum_offset: u16,
}

/// A kind of segmentation that was never asked for with `TUNSETOFFLOAD`: UFO (3), tunnels (0x20, 0x40), or an ECN mark
/// on what is not TCP. The frame cannot be sent as it is; drop and count it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown gso type {0:#04x} in a virtio-net header")]
pub struct Unknown(
    /// The byte `gso_type`.
    pub u8,
);

impl Vnet {
    /// Reads a header. Unknown flag bits are ignored, as virtio 1.2 section 5.1.6.4.1 demands.
    ///
    /// # Errors
    /// [`Unknown`] when the segmentation is none of [`Gso`].
    #[inline]
    pub fn decode(bytes: &[u8; LEN]) -> Result<Vnet, Unknown> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let (gso, ecn) = match gso_type {
            0 => (Gso::None, false),
            GSO_UDP_L4 => (Gso::UdpL4, false),
            tcp => match tcp & !GSO_ECN {
                GSO_TCPV4 => (Gso::TcpV4, tcp & GSO_ECN != 0),
                GSO_TCPV6 => (Gso::TcpV6, tcp & GSO_ECN != 0),
                _ => return Err(Unknown(gso_type)),
            },
        };
        Ok(Vnet {
            needs_csum: flags & F_NEEDS_CSUM != 0,
            data_valid: flags & F_DATA_VALID != 0,
            gso,
            ecn,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// Writes the header. `ecn` is written only with TCP, because the kernel refuses it alone.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u8; LEN] {
        let ecn = if self.ecn { GSO_ECN } else { 0 };
        let gso_type = match self.gso {
            Gso::None => 0,
            Gso::TcpV4 => GSO_TCPV4 | ecn,
            Gso::TcpV6 => GSO_TCPV6 | ecn,
            Gso::UdpL4 => GSO_UDP_L4,
        };
        let flags =
            if self.needs_csum { F_NEEDS_CSUM } else { 0 } | if self.data_valid { F_DATA_VALID } else { 0 };
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        // As recorded from a TAP: a TCP super-frame over IPv4, 20 bytes of options.
        let bytes = [1, 1, 0x42, 0, 0x82, 0x05, 0x22, 0, 0x10, 0];
        let meaning = Vnet {
            needs_csum: true,
            data_valid: false,
            gso: Gso::TcpV4,
            ecn: false,
            hdr_len: 66,
            gso_size: 1410,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(Vnet::decode(&bytes), Ok(meaning));
        assert_eq!(meaning.encode(), bytes);
        assert_eq!(Vnet::default().encode(), [0; LEN]);
    }

    #[test]
    fn exactly_the_offloads_asked_for_are_known() {
        let known = [
            (0, Gso::None, false),
            (1, Gso::TcpV4, false),
            (4, Gso::TcpV6, false),
            (5, Gso::UdpL4, false),
            (0x81, Gso::TcpV4, true),
            (0x84, Gso::TcpV6, true),
        ];
        for byte in 0..=u8::MAX {
            let decoded = Vnet::decode(&[0, byte, 0, 0, 0, 0, 0, 0, 0, 0]);
            let expected = known
                .iter()
                .find(|(known, ..)| *known == byte)
                .map_or(Err(Unknown(byte)), |(_, gso, ecn)| {
                    Ok(Vnet { gso: *gso, ecn: *ecn, ..Vnet::default() })
                });
            assert_eq!(decoded, expected);
        }
    }

    #[test]
    fn a_mark_of_ecn_is_never_written_beside_what_is_not_tcp() {
        for gso in [Gso::None, Gso::UdpL4] {
            let written = Vnet { gso, ecn: true, ..Vnet::default() }.encode();
            assert_eq!(Vnet::decode(&written), Ok(Vnet { gso, ..Vnet::default() }));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back_but_for_unknown_flags(mut bytes: [u8; LEN], gso_type in 0u8..8, ecn: bool) {
            bytes[1] = gso_type | if ecn { GSO_ECN } else { 0 };
            if let Ok(vnet) = Vnet::decode(&bytes) {
                bytes[0] &= F_NEEDS_CSUM | F_DATA_VALID;
                prop_assert_eq!(vnet.encode(), bytes);
            }
        }
    }
}
