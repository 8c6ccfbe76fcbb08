//! Which messages of other members are refused before the `raft` crate sees them.
//!
//! The crate trusts its peers: on what it calls impossible it panics, and some of that it takes for something else. A
//! member must not stop because another one is broken, or because whoever reached its peer port without TLS wants it to.
//! Nothing here refuses what a correct member sends.

use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};

use super::change;

/// Where this member stands when a message arrives.
pub(super) struct Stand<'a> {
    /// Its term.
    pub(super) term: u64,
    /// Whether it leads.
    pub(super) leads: bool,
    /// Index of the last entry that it knows to be committed.
    pub(super) committed: u64,
    /// Index of its last entry.
    pub(super) last_index: u64,
    /// The term of an entry that it has.
    pub(super) term_of: &'a dyn Fn(u64) -> u64,
}

/// Terms and indices grow one by one, so none gets here; calculating with greater ones could overflow.
const HIGHEST: u64 = 1 << 62;

/// Why a message is refused, or `None` if it is not.
pub(super) fn wrong_with(message: &Message, stand: &Stand<'_>) -> Option<&'static str> {
    let asks = matches!(message.get_msg_type(), MessageType::MsgPropose | MessageType::MsgReadIndex);
    if asks && message.entries.is_empty() {
        return Some("it proposes or asks nothing");
    }
    // A message without a term passes the crate's checks as one of this member's own.
    if asks == (message.term != 0) {
        return Some("it has a term where it must have none, or none where it must have one");
    }
    if let Some(why) = message.entries.iter().find_map(|entry| wrong_kind(entry, asks)) {
        return Some(why);
    }
    let numbers = [message.term, message.log_term, message.index, message.commit, message.reject_hint];
    if numbers.into_iter().any(|number| number > HIGHEST) || message.request_snapshot != 0 {
        return Some("no member of this version sends the like");
    }
    match message.get_msg_type() {
        MessageType::MsgTransferLeader => Some("only a leader itself hands over"),
        MessageType::MsgAppend => wrong_append(message, stand),
        MessageType::MsgSnapshot => wrong_snapshot(message, stand),
        MessageType::MsgHeartbeat if message.commit > stand.last_index => Some(
            "it commits entries that this member does not have: its raft log has been lost or belongs to another member",
        ),
        MessageType::MsgAppendResponse if stand.leads && message.term == stand.term => {
            let beyond = message.index.max(message.reject_hint) > stand.last_index;
            beyond.then_some("it speaks of entries that the leader does not have")
        }
        _ => None,
    }
}

/// Only the leader proposes changes of the members. Raft takes what it cannot read for a damaged log and stops.
fn wrong_kind(entry: &Entry, asks: bool) -> Option<&'static str> {
    match entry.entry_type {
        EntryType::EntryNormal => None,
        EntryType::EntryConfChangeV2 if !asks && change::decode(&entry.data).is_some() => None,
        EntryType::EntryConfChangeV2 if !asks => Some("it changes the members in a way that cannot be read"),
        EntryType::EntryConfChangeV2 | EntryType::EntryConfChange => {
            Some("it changes the members, which only a leader does, and in one way")
        }
    }
}

fn wrong_append(message: &Message, stand: &Stand<'_>) -> Option<&'static str> {
    let (mut index, mut term) = (message.index, message.log_term);
    let follows = message.entries.iter().all(|entry| {
        index += 1;
        let follows = entry.index == index && (term..=message.term).contains(&entry.term);
        term = entry.term;
        follows
    });
    // The crate takes an entry that it does not have for one of term 0, and so an append after it for right.
    if !follows || (message.log_term == 0 && message.index > 0) {
        return Some("it appends entries that do not follow each other or on an entry of no term");
    }
    let later = message.index >= stand.committed;
    (later && message.log_term < (stand.term_of)(stand.committed))
        .then_some("it appends behind committed entries of a later term")
}

/// Ids in a configuration; fewer when those that are there twice are gone.
fn count(state: &ConfState) -> usize {
    let lists = [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next];
    lists.iter().map(|ids| ids.len()).sum()
}

fn wrong_snapshot(message: &Message, stand: &Stand<'_>) -> Option<&'static str> {
    let meta = message.get_snapshot().get_metadata();
    let voters = change::from_conf_state(meta.get_conf_state());
    if count(meta.get_conf_state()) != count(&change::to_conf_state(&voters)) || !voters.is_sound() {
        return Some("its snapshot is of a set of members that cannot be");
    }
    if meta.index > HIGHEST || meta.term > message.term {
        return Some("its snapshot is of a term or index that cannot be");
    }
    (meta.index > stand.committed && meta.term < (stand.term_of)(stand.committed))
        .then_some("its snapshot is of an earlier term than committed entries before it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(message: &Message) -> Option<&'static str> {
        let term_of = |index: u64| if index < 3 { 1 } else { 4 };
        let stand = Stand { term: 5, leads: true, committed: 6, last_index: 9, term_of: &term_of };
        wrong_with(message, &stand)
    }

    fn message(kind: MessageType, term: u64) -> Message {
        let mut message = Message { term, ..Message::default() };
        message.set_msg_type(kind);
        message
    }

    fn append(log_term: u64, index: u64, entries: &[(u64, u64)]) -> Message {
        let entry = |&(term, index)| Entry { term, index, ..Entry::default() };
        let entries = entries.iter().map(entry).collect::<Vec<_>>().into();
        Message { log_term, index, entries, ..message(MessageType::MsgAppend, 5) }
    }

    fn snapshot(term: u64, index: u64, voters: &[u64]) -> Message {
        let mut message = message(MessageType::MsgSnapshot, 5);
        let meta = message.mut_snapshot().mut_metadata();
        (meta.term, meta.index) = (term, index);
        meta.mut_conf_state().voters = voters.to_vec();
        message
    }

    fn change(kind: MessageType, term: u64, data: &[u8]) -> Message {
        let mut entry = Entry { term: 4, index: 7, data: data.to_vec().into(), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let mut message = message(kind, term);
        (message.log_term, message.index) = (4, 6);
        message.set_entries(vec![entry].into());
        message
    }

    #[test]
    fn what_members_send_passes() {
        for right in [
            append(4, 6, &[(4, 7), (5, 8)]),
            append(4, 99, &[]),
            append(1, 2, &[(4, 3)]),
            snapshot(4, 20, &[3, 1, 2]),
            snapshot(1, 2, &[1, 2, 3]),
            snapshot(4, 20, &[2, 4]),
            change(MessageType::MsgAppend, 5, &[]),
            message(MessageType::MsgRequestVote, 6),
            Message { commit: 9, ..message(MessageType::MsgHeartbeat, 5) },
            Message { index: 9, ..message(MessageType::MsgAppendResponse, 5) },
            Message { index: 50, ..message(MessageType::MsgAppendResponse, 4) },
        ] {
            assert_eq!(why(&right), None, "{right:?}");
        }
    }

    #[test]
    fn what_would_stop_the_member_is_refused() {
        for (wrong, text) in [
            (append(4, 6, &[(4, 8)]), "do not follow"),
            (append(4, 6, &[(6, 7)]), "do not follow"),
            (append(4, 6, &[(3, 7)]), "do not follow"),
            (append(0, 30, &[]), "no term"),
            (append(3, 7, &[]), "later term"),
            (append(4, u64::MAX, &[(5, 0)]), "the like"),
            (snapshot(4, 20, &[1, 2, 2]), "members that cannot be"),
            (snapshot(4, 20, &[]), "members that cannot be"),
            (change(MessageType::MsgPropose, 0, &[]), "only a leader"),
            (change(MessageType::MsgAppend, 5, &[0xff; 9]), "cannot be read"),
            (snapshot(6, 20, &[1, 2, 3]), "cannot be"),
            (snapshot(3, 20, &[1, 2, 3]), "earlier term"),
            (message(MessageType::MsgPropose, 0), "nothing"),
            (message(MessageType::MsgAppend, 0), "none where it must have one"),
            (message(MessageType::MsgTransferLeader, 5), "hands over"),
            (message(MessageType::MsgRequestVote, u64::MAX), "the like"),
            (Message { commit: 10, ..message(MessageType::MsgHeartbeat, 5) }, "does not have"),
            (Message { index: 10, ..message(MessageType::MsgAppendResponse, 5) }, "does not have"),
            (
                Message { reject: true, reject_hint: 10, ..message(MessageType::MsgAppendResponse, 5) },
                "not have",
            ),
            (Message { request_snapshot: 1, ..message(MessageType::MsgAppendResponse, 5) }, "the like"),
        ] {
            let told = why(&wrong);
            assert!(told.is_some_and(|told| told.contains(text)), "{told:?}: {wrong:?}");
        }
    }
}
