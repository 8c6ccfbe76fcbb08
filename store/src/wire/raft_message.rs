//! Raft messages as they come from another member.
//!
//! The protobuf crate skips an unknown group by recursion, as deep as the sender nests it (RUSTSEC-2024-0437): a frame of
//! a few kilobytes would exhaust the stack. raft's messages have no groups, so one that has any is refused before the
//! crate sees it.

use protobuf::Message as _;
use raft::eraftpb::Message;

/// Why bytes are no raft message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not protobuf's wire format, or with a group in it.
    #[error("a raft message is damaged")]
    Form,
    /// Not the fields of a raft message.
    #[error("a raft message is damaged: {0}")]
    Fields(String),
}

/// Reads a message.
///
/// # Errors
/// [`MessageError`].
pub fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    check(bytes, MESSAGE).ok_or(MessageError::Form)?;
    Message::parse_from_bytes(bytes).map_err(|error| MessageError::Fields(error.to_string()))
}

/// The fields of a message that are messages themselves (raft-proto 0.7, `eraftpb.proto`).
struct Shape(&'static [(u32, &'static Shape)]);

const FLAT: &Shape = &Shape(&[]);
/// `entries`, and `snapshot` with its `metadata` and the `conf_state` of that.
const MESSAGE: &Shape = &Shape(&[(7, FLAT), (9, &Shape(&[(2, &Shape(&[(1, FLAT)]))]))]);

/// Goes through the fields (protobuf's encoding: a varint of number and wire type, then the value).
fn check(mut rest: &[u8], shape: &Shape) -> Option<()> {
    while !rest.is_empty() {
        let tag = u32::try_from(varint(&mut rest)?).ok()?;
        let length = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                continue;
            }
            1 => 8,
            5 => 4,
            2 => usize::try_from(u32::try_from(varint(&mut rest)?).ok()?).ok()?,
            _ => return None,
        };
        let (value, after) = rest.split_at_checked(length)?;
        rest = after;
        if let Some((_, inner)) = shape.0.iter().find(|(field, _)| *field == tag >> 3) {
            // Depth is that of the shapes, not what the sender likes.
            if tag & 7 == 2 {
                check(value, inner)?;
            }
        }
    }
    Some(())
}

/// A number in groups of seven bits, the lowest first; ten bytes at most.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..10 {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use raft::eraftpb::{Entry, MessageType};

    use super::*;

    fn sample(term: u64, data: &[u8]) -> Message {
        let mut message = Message { term, index: u64::MAX, reject: true, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.mut_entries().push(Entry { term, data: data.to_vec().into(), ..Entry::default() });
        message.mut_entries().push(Entry::default());
        let meta = message.mut_snapshot().mut_metadata();
        meta.index = 7;
        meta.mut_conf_state().voters = vec![1, u64::MAX];
        message
    }

    #[test]
    fn groups_are_refused_at_every_depth() {
        // Deep enough to exhaust the stack of this thread many times over.
        let group = vec![0x0b; 1 << 20];
        assert_eq!(decode(&group), Err(MessageError::Form));
        let within = |field: u8, inner: &[u8]| {
            let length =
                [inner.len() & 0x7f | 0x80, (inner.len() >> 7) & 0x7f].map(|b| u8::try_from(b).unwrap());
            [&[field << 3 | 2], &length[..], inner].concat()
        };
        let deep = vec![0x1b; 9000];
        for message in [
            within(7, &deep),
            within(9, &deep),
            within(9, &within(2, &deep)),
            within(9, &within(2, &within(1, &deep))),
        ] {
            assert_eq!(decode(&message), Err(MessageError::Form));
        }
        // In a field of bytes they are no groups.
        assert_eq!(decode(&within(12, &deep)).unwrap().context.len(), 9000);
    }

    proptest! {
        #[test]
        fn messages_read_back(term: u64, data in prop::collection::vec(any::<u8>(), 0..300)) {
            let message = sample(term, &data);
            prop_assert_eq!(decode(&message.write_to_bytes().unwrap()), Ok(message));
        }

        #[test]
        fn noise_never_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&data);
        }
    }
}
