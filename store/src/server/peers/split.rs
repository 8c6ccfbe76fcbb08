//! Large appends in several messages.
//!
//! raft puts all entries that one round adds for a follower into one message, whatever they come to. A frame has a bound,
//! and what is behind it in the queue should not wait for tens of megabytes; so such a message is cut. To raft it is as if
//! it had sent them one after the other. Pure.

use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};

/// Entries in one message, unless a single one is larger.
const MAX_ENTRY_BYTES: usize = 1 << 20;

/// The message, or several that say the same.
pub(super) fn split(mut message: Message) -> Vec<Message> {
    if message.get_msg_type() != MessageType::MsgAppend || bytes(&message.entries) <= MAX_ENTRY_BYTES {
        return vec![message];
    }
    let entries = message.take_entries().into_vec();
    let mut parts: Vec<Message> = Vec::new();
    let mut room = 0;
    for entry in entries {
        let size = entry_bytes(&entry);
        if size > room || parts.is_empty() {
            let before = parts.last().and_then(|part| part.entries.last());
            let (index, log_term) =
                before.map_or((message.index, message.log_term), |last| (last.index, last.term));
            parts.push(Message { index, log_term, ..message.clone() });
            room = MAX_ENTRY_BYTES.max(size);
        }
        room -= size;
        parts.last_mut().expect("one was just pushed if there was none").mut_entries().push(entry);
    }
    parts
}

fn bytes(entries: &[Entry]) -> usize {
    entries.iter().map(entry_bytes).sum()
}

/// What an entry takes in a message, with its tag and length.
fn entry_bytes(entry: &Entry) -> usize {
    usize::try_from(entry.compute_size()).unwrap_or(usize::MAX / 2) + 6
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::peer::MAX_FRAME_BYTES;

    fn append(sizes: &[usize]) -> Message {
        let mut message =
            Message { from: 1, to: 2, term: 9, index: 4, log_term: 1, commit: 3, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        let entries = sizes.iter().zip(5..).map(|(&size, index)| Entry {
            index,
            term: 1 + index / 3,
            data: vec![1; size].into(),
            ..Entry::default()
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }

    #[test]
    fn what_is_small_or_no_append_is_left_alone() {
        let small = append(&[1000, 2000]);
        assert_eq!(split(small.clone()), [small]);
        let mut proposal = append(&[2 << 20, 2 << 20]);
        proposal.set_msg_type(MessageType::MsgPropose);
        assert_eq!(split(proposal.clone()), [proposal]);
    }

    proptest! {
        #[test]
        fn parts_follow_each_other_and_fit(sizes in prop::collection::vec(0usize..3 << 20, 1..12)) {
            let message = append(&sizes);
            let parts = split(message.clone());
            let (mut index, mut term) = (message.index, message.log_term);
            for part in &parts {
                prop_assert_eq!((part.index, part.log_term), (index, term), "it begins where the one before ends");
                prop_assert!(part.entries.len() == 1 || bytes(&part.entries) <= MAX_ENTRY_BYTES);
                prop_assert!(part.compute_size() < MAX_FRAME_BYTES);
                let rest = Message { index: message.index, log_term: message.log_term, entries: message.entries.clone(), ..part.clone() };
                prop_assert_eq!(&rest, &message, "nothing else differs");
                let last = part.entries.last().unwrap();
                (index, term) = (last.index, last.term);
            }
            let entries: Vec<Entry> = parts.into_iter().flat_map(|mut part| part.take_entries().into_vec()).collect();
            prop_assert_eq!(&entries, &message.entries.to_vec());
        }
    }
}
