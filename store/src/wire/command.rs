//! Replicated commands: what an entry of the raft log holds.
//!
//! An entry's data is one version byte and then an [`Envelope`] in postcard's wire format, in which an enum
//! is its variant's number: variants are only ever appended. The bytes are kept by a test.

use serde::{Deserialize, Serialize};

use crate::machine::{AlarmKind, Mark};
use crate::tree::Op;

/// The version that this build writes.
pub const VERSION: u8 = 1;

/// Says which request an entry answers. Ids are unique among all requests of a member over all its starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    /// The member that took the request.
    pub member: u64,
    /// Its number there; the upper half is drawn anew at every start.
    pub number: u64,
}

/// A command and the request it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Where the answer goes.
    pub id: RequestId,
    /// What to do.
    pub command: Command,
}

/// What the members carry out in the same order. The v3 keyspace will get variants of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// An operation on the v2 keyspace.
    V2(Op),
    /// A member tells its name and where clients find it.
    Publish {
        /// The member.
        member: u64,
        /// Its name.
        name: String,
        /// Its advertised client URLs.
        client_urls: Vec<String>,
    },
    /// The version that all members have agreed on.
    SetClusterVersion(String),
    /// The leader's clock, nanoseconds of Unix time: what is due by then expires. Leaders write [`Command::Expire`] now;
    /// logs still hold this one.
    Sync {
        /// The leader's time.
        now_ns: i64,
    },
    /// Compare states: the leader's digest at an earlier check; `None` for a leader that has seen none.
    Check(Option<Mark>),
    /// Something is wrong with a member, or no longer is.
    Alarm {
        /// The member.
        member: u64,
        /// What is wrong.
        kind: AlarmKind,
        /// Raised, not cleared.
        raise: bool,
        /// For people: what exactly, and what to do. Not looked at when clearing.
        text: String,
    },
    /// What is due by the leader's clock expires, but not all at once: nobody waits for long then.
    Expire {
        /// The leader's time, nanoseconds of Unix time.
        now_ns: i64,
        /// After so many nodes no more go. In the entry, so that it is the same on all members, whatever their version.
        most: u32,
    },
}

/// Why the data of an entry is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of the store.
    #[error("command of version {0}, this program reads up to version {VERSION}")]
    Version(u8),
    /// Not what an encoder wrote.
    #[error("damaged command")]
    Damaged,
}

impl Envelope {
    /// The bytes of an entry.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = vec![VERSION];
        postcard::to_extend(self, bytes).expect("a command has no length that postcard cannot write")
    }

    /// Reads the bytes of an entry.
    ///
    /// # Errors
    /// [`DecodeError`]; a member that meets one stops, as going on would make it differ from the others.
    pub fn decode(data: &[u8]) -> Result<Envelope, DecodeError> {
        match data.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|_| DecodeError::Damaged),
            Some((&version, _)) => Err(DecodeError::Version(version)),
            None => Err(DecodeError::Damaged),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::hash::Hasher;

    fn sample() -> Vec<Command> {
        vec![
            Command::V2(Op::Set {
                path: "/1/a".into(),
                dir: false,
                value: "1".into(),
                expires_ns: Some(-2),
                refresh: false,
            }),
            Command::V2(Op::Create {
                path: "/1/q".into(),
                dir: true,
                value: String::new(),
                expires_ns: None,
                in_order: true,
            }),
            Command::V2(Op::Update {
                path: "/1/a".into(),
                value: "2".into(),
                expires_ns: None,
                refresh: true,
            }),
            Command::V2(Op::CompareAndSwap {
                path: "/1/a".into(),
                prev_value: Some("1".into()),
                prev_index: Some(300),
                value: "2".into(),
                expires_ns: None,
                refresh: false,
            }),
            Command::V2(Op::Delete { path: "/1/a".into(), dir: false, recursive: true }),
            Command::V2(Op::CompareAndDelete { path: "/1/a".into(), prev_value: None, prev_index: Some(1) }),
            Command::Publish { member: 1, name: "n1".into(), client_urls: vec!["http://a:1".into()] },
            Command::SetClusterVersion("3.2.0".into()),
            Command::Sync { now_ns: 1_000_000_000 },
            Command::Check(None),
            Command::Check(Some(Mark { index: 300, digest: Hasher::default().finish() })),
            Command::Alarm { member: 1, kind: AlarmKind::NoSpace, raise: true, text: "full".into() },
            Command::Alarm { member: 1, kind: AlarmKind::Corrupt, raise: false, text: String::new() },
            Command::Expire { now_ns: 1_000_000_000, most: 1000 },
        ]
    }

    /// Entries on disk and on the way between members of two versions must keep their bytes.
    #[test]
    fn the_bytes_of_each_command_stay() {
        let golden = [
            "0107090000042f312f61000131010300",
            "0107090001042f312f7101000001",
            "0107090002042f312f6101320001",
            "0107090003042f312f6101013101ac0201320000",
            "0107090004042f312f610001",
            "0107090005042f312f61000101",
            "0107090101026e31010a687474703a2f2f613a31",
            "0107090205332e322e30",
            "0107090380a8d6b907",
            "0107090400",
            "0107090401ac02f9f4de8efff0d8d2b382a987c7bd97f1e2c403",
            "010709050100010466756c6c",
            "0107090501010000",
            "0107090680a8d6b907e807",
        ];
        let id = RequestId { member: 7, number: 9 };
        let hex = |bytes: Vec<u8>| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        };
        let written: Vec<String> =
            sample().into_iter().map(|command| hex(Envelope { id, command }.encode())).collect();
        assert_eq!(written, golden);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for command in sample() {
            let envelope = Envelope { id: RequestId { member: u64::MAX, number: 1 << 40 }, command };
            assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
        }
    }

    #[test]
    fn other_versions_are_refused_by_number() {
        assert_eq!(Envelope::decode(&[2, 0, 0]), Err(DecodeError::Version(2)));
        assert_eq!(Envelope::decode(&[]), Err(DecodeError::Damaged));
    }

    proptest! {
        #[test]
        fn noise_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(&data);
        }

        #[test]
        fn any_strings_survive(path in ".*", value in ".*", expires_ns in any::<Option<i64>>(), number in any::<u64>()) {
            let command = Command::V2(Op::Set { path, dir: false, value, expires_ns, refresh: true });
            let envelope = Envelope { id: RequestId { member: 1, number }, command };
            prop_assert_eq!(Envelope::decode(&envelope.encode()).unwrap(), envelope);
        }
    }
}
