//! The echo datagrams between the daemons. Pure: a codec.
//!
//! A datagram is [`ECHO_BYTES`] bytes, numbers in network order; anything else is not answered:
//!
//! ```text
//! 0      4         5      6          8              16        20     24
//! "WEFT" | version | kind | reserved | request id   | sequence | zero
//! ```

/// Length of an echo datagram.
pub const ECHO_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"WEFT";

/// An echo datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Whether this answers another.
    pub reply: bool,
    /// The request it belongs to.
    pub id: u64,
    /// Which probe of the request, from 0.
    pub sequence: u32,
}

impl Echo {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; ECHO_BYTES] {
        let mut bytes = [0; ECHO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = 1;
        bytes[5] = u8::from(self.reply);
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Reads a datagram; `None` for anything that is not exactly one of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ECHO_BYTES] = bytes.try_into().ok()?;
        let (id, rest) = bytes[8..].split_first_chunk::<8>()?;
        let (sequence, _) = rest.split_first_chunk::<4>()?;
        let echo = Self {
            reply: bytes[5] == 1,
            id: u64::from_be_bytes(*id),
            sequence: u32::from_be_bytes(*sequence),
        };
        // One form per meaning: what we would not send we do not answer.
        (echo.encode() == *bytes).then_some(echo)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn echoes_round_trip(reply: bool, id: u64, sequence: u32) {
            let echo = Echo { reply, id, sequence };
            prop_assert_eq!(Echo::decode(&echo.encode()), Some(echo));
        }

        #[test]
        fn noise_is_no_echo(mut bytes in prop::collection::vec(any::<u8>(), 0..64), flip in 0usize..24) {
            let _ = Echo::decode(&bytes);
            // What differs in one reserved or fixed byte is not ours.
            bytes = Echo { reply: false, id: 1, sequence: 2 }.encode().to_vec();
            if !(8..20).contains(&flip) {
                bytes[flip] ^= 0x80;
                prop_assert_eq!(Echo::decode(&bytes), None);
            }
        }
    }
}
