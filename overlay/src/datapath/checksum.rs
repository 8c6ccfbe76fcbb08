//! The Internet checksum (RFC 1071): a running one's complement sum, and the pseudo-headers of TCP, UDP and ICMPv6.
//! Pure; called for every segment the data path cuts or joins.
//!
//! The sum is kept in the machine's byte order. One's complement addition does not care in which order the bytes of
//! each word are read, as long as the result is swapped back at the end (RFC 1071 section 2 (B)), so whole words are
//! loaded as they lie in memory and only [`Sum::fold`] looks at the order.

/// A running one's complement sum of 16-bit words.
///
/// ```
/// use overlay::datapath::checksum::Sum;
/// // The example of RFC 1071 section 3.
/// let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
/// assert_eq!((sum.fold(), sum.checksum()), (0xddf2, !0xddf2));
/// ```
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

/// Bytes per round of the wide loop: sixteen 32-bit words.
const ROUND: usize = 64;

impl Sum {
    /// Adds bytes that start at an even offset of what is summed. An odd last byte counts as the high half of a word
    /// whose low half is zero, so only the last piece may have an odd length.
    #[must_use]
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "the operator `+` would not say what is added")]
    pub fn add(self, data: &[u8]) -> Sum {
        let (rounds, rest) = data.split_at(data.len() - data.len() % ROUND);
        let mut sum = if rounds.is_empty() { 0 } else { wide(rounds) };
        let mut words = rest.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        sum += u64::from(match *words.remainder() {
            [] => 0,
            [a] => u32::from_ne_bytes([a, 0, 0, 0]),
            [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
            [a, b, c, ..] => u32::from_ne_bytes([a, b, c, 0]),
        });
        self.plus(sum)
    }

    /// Adds one word, given as a number (host order).
    #[must_use]
    #[inline]
    pub fn add_u16(self, v: u16) -> Sum {
        self.plus(u64::from(v.to_be()))
    }

    /// Adds two words, given as one number (host order), the high half first.
    #[must_use]
    #[inline]
    pub fn add_u32(self, v: u32) -> Sum {
        self.plus(u64::from(v.to_be()))
    }

    /// The sum folded to 16 bits, not complemented, as a number: what a packet with a checksum still to be filled in
    /// carries in its checksum field once it is written with `to_be_bytes`.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "folded until it fits")]
    pub fn fold(self) -> u16 {
        let sum = halve(halve(self.0)); // 32 bits, and at most one more after the first time
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(((sum >> 16) + (sum & 0xffff)) as u16)
    }

    /// The complement of [`Sum::fold`]: what a filled-in checksum field carries. A UDP checksum of zero must be written
    /// as 0xffff (RFC 768), which is the caller's business.
    #[must_use]
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Both operands are brought below 2^33 first, so no sequence of calls overflows.
    #[inline]
    fn plus(self, sum: u64) -> Sum {
        Sum(halve(self.0) + halve(sum))
    }
}

/// The sum of the two 32-bit halves: the same number modulo 2^16 - 1, zero only for zero.
#[inline]
fn halve(sum: u64) -> u64 {
    (sum >> 32) + (sum & 0xffff_ffff)
}

/// Sums whole rounds. Each lane takes every sixteenth word, which lets the compiler keep the lanes in vector registers;
/// a lane has 32 bits to spare, enough for 2^32 rounds.
fn wide(rounds: &[u8]) -> u64 {
    let mut lanes = [0u64; ROUND / 4];
    for round in rounds.chunks_exact(ROUND) {
        for (lane, word) in lanes.iter_mut().zip(round.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    lanes.into_iter().map(halve).sum()
}

/// The sum of the pseudo-header of TCP or UDP over IPv4 (RFC 9293 section 3.1, RFC 768). `l4_len` is the length of the
/// transport header and what follows it, in bytes.
#[must_use]
#[inline]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, l4_len: u32) -> Sum {
    Sum::default()
        .add_u32(u32::from_be_bytes(src))
        .add_u32(u32::from_be_bytes(dst))
        .add_u16(u16::from(protocol))
        .add_u32(l4_len)
}

/// The sum of the pseudo-header of TCP, UDP or ICMPv6 over IPv6 (RFC 8200 section 8.1). `next` is the protocol of the
/// transport header itself, whatever extension headers stand before it; `l4_len` as for [`pseudo_v4`].
#[must_use]
#[inline]
pub fn pseudo_v6(src: [u8; 16], dst: [u8; 16], next: u8, l4_len: u32) -> Sum {
    Sum::default().add(&src).add(&dst).add_u32(l4_len).add_u32(u32::from(next))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "checksum_tests.rs"]
mod tests;
