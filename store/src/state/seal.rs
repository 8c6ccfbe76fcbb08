//! Checksums of what is written.

use crate::tree::hash::Hasher;

/// Bytes of a checksum.
pub(super) const CHECKSUM_BYTES: usize = 16;

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = Hasher::default();
    hasher.write(bytes);
    hasher.finish().bytes()
}

/// Puts a checksum before `bytes`.
pub(super) fn seal(bytes: &[u8]) -> Vec<u8> {
    [&checksum(bytes), bytes].concat()
}

/// What [`seal`] was given; `None` if it is not that any more.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (sum, bytes) = sealed.split_first_chunk::<CHECKSUM_BYTES>()?;
    (checksum(bytes) == *sum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_finds_every_flipped_bit() {
        let sealed = seal(b"some bytes");
        assert_eq!(unseal(&sealed), Some(b"some bytes".as_slice()));
        for bit in 0..sealed.len() * 8 {
            let mut other = sealed.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&other), None, "bit {bit}");
        }
        assert_eq!(unseal(&sealed[..15]), None);
    }
}
