//! The VXLAN header (RFC 7348 section 5), which stands between the outer UDP header and the inner Ethernet frame.
//!
//! ```text
//!  0                   1                   2                   3
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |R|R|R|R|I|R|R|R|            Reserved                           |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                VXLAN Network Identifier (VNI) |   Reserved    |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```

use crate::types::Vni;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 8;
/// The UDP port of Linux and flannel; IANA's is 4789.
pub const LINUX_PORT: u16 = 8472;
const FLAG_VNI: u8 = 0x08;

/// Why a datagram is not VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VxlanHeaderError {
    /// Shorter than the header.
    #[error("{got} bytes are too short for a VXLAN header")]
    Short {
        /// How much there was.
        got: usize,
    },
    /// The I flag is not set.
    #[error("the VXLAN header has no network identifier")]
    NoVni,
}

/// The header of a network.
pub fn encode(vni: Vni) -> [u8; HEADER_BYTES] {
    let [_, a, b, c] = vni.get().to_be_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

/// Splits a UDP payload into its VNI and inner frame. Reserved bits are ignored, as the RFC demands.
///
/// # Errors
/// When it is too short, or has no VNI.
pub fn decode(payload: &[u8]) -> Result<(Vni, &[u8]), VxlanHeaderError> {
    let Some((head, inner)) = payload.split_first_chunk::<HEADER_BYTES>() else {
        return Err(VxlanHeaderError::Short { got: payload.len() });
    };
    if head[0] & FLAG_VNI == 0 {
        return Err(VxlanHeaderError::NoVni);
    }
    Ok((Vni::from_octets([head[4], head[5], head[6]]), inner))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_the_rfcs() {
        let vni = Vni::try_from(0x12_3456).unwrap();
        assert_eq!(encode(vni), [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    }

    #[test]
    fn too_short_or_without_a_vni_is_refused() {
        assert_eq!(decode(&[8, 0, 0, 0, 0, 0, 1]), Err(VxlanHeaderError::Short { got: 7 }));
        assert_eq!(decode(&[0xf7, 0, 0, 0, 0, 0, 1, 0]), Err(VxlanHeaderError::NoVni));
    }

    proptest! {
        #[test]
        fn reserved_bits_are_ignored(vni in 0u64..1 << 24, flags: u8, a: [u8; 3], b: u8, inner: Vec<u8>) {
            let vni = Vni::try_from(vni).unwrap();
            let mut datagram = encode(vni).to_vec();
            datagram[0] |= flags;
            datagram[1..4].copy_from_slice(&a);
            datagram[7] = b;
            datagram.extend(&inner);
            prop_assert_eq!(decode(&datagram), Ok((vni, &inner[..])));
        }
    }
}
