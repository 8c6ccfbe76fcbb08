//! The protocol between members.
//!
//! Members cannot be mixed with etcd's, so the framing is our own. Each member dials every other one and sends
//! on the connections that it dialled; the accepting side only answers the hello. With `https` peer URLs all
//! of it runs inside mutual TLS.
//!
//! ```text
//! dialler:   hello   = "WEFT" version:u8 cluster:u64 from:u64 to:u64 purpose:u8   (30 bytes)
//! acceptor:  verdict = "WEFT" version:u8 code:u8                                  (6 bytes)
//! dialler:   frame   = length:u32 kind:u8 body[length - 1]     repeated
//! acceptor:  frame                                             repeated, purpose 2 only
//!
//! purpose 0  messages: what raft sends, for as long as both are there
//! purpose 1  the dialler's raft log is still empty; it asks whether it may start and sends no frames
//! purpose 2  one snapshot
//!
//! kind 0  keep-alive, empty: sent after a second without another frame
//! kind 1  a raft message (eraftpb.Message, protobuf), at most 16 MiB; purpose 0
//! kind 2 to 6  the parts of a snapshot: see crate::wire::transfer; purpose 2
//! ```
//!
//! Integers are in network order.

use super::transfer;

/// Opens every hello and verdict.
pub const MAGIC: [u8; 4] = *b"WEFT";
/// The version of the protocol.
pub const VERSION: u8 = 2;
/// Length of a hello.
pub const HELLO_BYTES: usize = 30;
/// Length of a verdict.
pub const VERDICT_BYTES: usize = 6;
/// The largest frame that is accepted: entries of a message of 1 MiB, or a single larger entry, which is a form of at
/// most 10 MiB with its key; and as much again as a margin.
pub const MAX_FRAME_BYTES: u32 = 16 << 20;
/// Length of what precedes a frame's body: length and kind.
pub const FRAME_HEAD_BYTES: usize = 5;

const _: () = assert!(HELLO_BYTES == MAGIC.len() + 1 + 3 * 8 + 1);
const _: () = assert!(VERDICT_BYTES == MAGIC.len() + 2);

/// Who dials whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The cluster of the dialling member.
    pub cluster: u64,
    /// The dialling member.
    pub from: u64,
    /// The member it means to reach.
    pub to: u64,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages of raft.
    Messages,
    /// A question whether the dialling member may start: its raft log is still empty, as it is new or has lost its data.
    MayStart,
    /// One snapshot.
    Snapshot,
}

/// What the accepting member makes of a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Frames may follow.
    Welcome,
    /// The dialler speaks another version of the protocol.
    OtherVersion,
    /// The dialler belongs to another cluster.
    OtherCluster,
    /// The dialler is no member that this one knows.
    UnknownMember,
    /// The dialler meant to reach another member: two members' addresses are mixed up.
    NotMe,
    /// The dialler comes with an empty raft log, but has been a running member before.
    AlreadyBootstrapped,
    /// The dialler's certificate does not carry the address that it dials from.
    BadCertificateName,
}

/// Why bytes from a peer are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Whoever is there does not speak this protocol.
    #[error(
        "the other side does not speak Weft's peer protocol (an etcd cannot be a member of this cluster)"
    )]
    Magic,
    /// Another version of the protocol.
    #[error("the other side speaks version {0} of the peer protocol, this one {VERSION}")]
    Version(u8),
    /// No purpose that we know.
    #[error("a hello for purpose {0}, which is unknown")]
    Purpose(u8),
    /// No verdict that we know.
    #[error("verdict {0} is unknown")]
    Verdict(u8),
    /// A frame without even a kind.
    #[error("empty frame")]
    Empty,
    /// A frame above [`MAX_FRAME_BYTES`], or above what its kind can need.
    #[error("frame of {0} bytes is above the limit")]
    TooLarge(u32),
    /// No kind that we know.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the link is alive.
    KeepAlive,
    /// A raft message.
    Raft,
    /// What a snapshot is and how large.
    Offer,
    /// A piece of it.
    Chunk,
    /// How much of it the acceptor has.
    Have,
    /// The acceptor has all of it, and it is sound.
    Done,
    /// The acceptor does not want it, or not so.
    Refused,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::KeepAlive, Kind::Raft, Kind::Offer, Kind::Chunk, Kind::Have, Kind::Done, Kind::Refused];

    const fn code(self) -> u8 {
        match self {
            Kind::KeepAlive => 0,
            Kind::Raft => 1,
            Kind::Offer => 2,
            Kind::Chunk => 3,
            Kind::Have => 4,
            Kind::Done => 5,
            Kind::Refused => 6,
        }
    }

    /// The largest body: so much and no more can a peer make us hold.
    const fn max_body_bytes(self) -> usize {
        match self {
            Kind::Raft => MAX_FRAME_BYTES as usize - 1,
            Kind::Chunk => transfer::CHUNK_HEAD_BYTES + transfer::CHUNK_BYTES,
            Kind::Offer => transfer::MAX_OFFER_BYTES,
            Kind::KeepAlive | Kind::Have | Kind::Done | Kind::Refused => 8,
        }
    }
}

impl Hello {
    /// Its bytes.
    pub fn encode(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5..13].copy_from_slice(&self.cluster.to_be_bytes());
        bytes[13..21].copy_from_slice(&self.from.to_be_bytes());
        bytes[21..29].copy_from_slice(&self.to.to_be_bytes());
        bytes[29] = match self.purpose {
            Purpose::Messages => 0,
            Purpose::MayStart => 1,
            Purpose::Snapshot => 2,
        };
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`PeerError::Magic`], [`PeerError::Version`] or [`PeerError::Purpose`].
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, PeerError> {
        check_head(bytes)?;
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        let purpose = match bytes[29] {
            0 => Purpose::Messages,
            1 => Purpose::MayStart,
            2 => Purpose::Snapshot,
            other => return Err(PeerError::Purpose(other)),
        };
        Ok(Hello { cluster: number(5), from: number(13), to: number(21), purpose })
    }
}

impl Verdict {
    const ALL: [Verdict; 7] = [
        Verdict::Welcome,
        Verdict::OtherVersion,
        Verdict::OtherCluster,
        Verdict::UnknownMember,
        Verdict::NotMe,
        Verdict::AlreadyBootstrapped,
        Verdict::BadCertificateName,
    ];

    const fn code(self) -> u8 {
        match self {
            Verdict::Welcome => 0,
            Verdict::OtherVersion => 1,
            Verdict::OtherCluster => 2,
            Verdict::UnknownMember => 3,
            Verdict::NotMe => 4,
            Verdict::AlreadyBootstrapped => 5,
            Verdict::BadCertificateName => 6,
        }
    }

    /// What it means for the dialler, and what to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Verdict::Welcome => "accepted",
            Verdict::OtherVersion => {
                "it speaks another version of the peer protocol; upgrade the older member"
            }
            Verdict::OtherCluster => {
                "it belongs to another cluster; compare --initial-cluster and --initial-cluster-token"
            }
            Verdict::UnknownMember => "it does not know this member; compare --initial-cluster",
            Verdict::NotMe => {
                "another member answers at this URL; compare the peer URLs in --initial-cluster"
            }
            Verdict::AlreadyBootstrapped => {
                "this member has already been bootstrapped, but comes with an empty data directory"
            }
            Verdict::BadCertificateName => {
                "the other side refuses our certificate: it is not valid for the address that this member dials from \
                 (SAN missing); reissue --peer-cert-file with that address among its hosts"
            }
        }
    }

    /// Its bytes.
    pub fn encode(self) -> [u8; VERDICT_BYTES] {
        let mut bytes = [0; VERDICT_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.code();
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`PeerError`] if it is none.
    pub fn decode(bytes: &[u8; VERDICT_BYTES]) -> Result<Verdict, PeerError> {
        check_head(bytes)?;
        let code = bytes[5];
        Verdict::ALL.into_iter().find(|verdict| verdict.code() == code).ok_or(PeerError::Verdict(code))
    }
}

fn check_head(bytes: &[u8]) -> Result<(), PeerError> {
    if bytes[..4] != MAGIC {
        return Err(PeerError::Magic);
    }
    if bytes[4] != VERSION {
        return Err(PeerError::Version(bytes[4]));
    }
    Ok(())
}

/// The head of a frame with a body of `body_bytes`.
///
/// # Errors
/// [`PeerError::TooLarge`].
pub fn frame_head(kind: Kind, body_bytes: usize) -> Result<[u8; FRAME_HEAD_BYTES], PeerError> {
    let length = u32::try_from(body_bytes).unwrap_or(u32::MAX).saturating_add(1);
    if body_bytes > kind.max_body_bytes() {
        return Err(PeerError::TooLarge(length));
    }
    let mut head = [0; FRAME_HEAD_BYTES];
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4] = kind.code();
    Ok(head)
}

/// The kind of a frame and the length of its body.
///
/// # Errors
/// [`PeerError`] if the head is not one that we would write.
pub fn parse_frame_head(head: [u8; FRAME_HEAD_BYTES]) -> Result<(Kind, usize), PeerError> {
    let [a, b, c, d, code] = head;
    let length = u32::from_be_bytes([a, b, c, d]);
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == code).ok_or(PeerError::Kind(code))?;
    let body = length.checked_sub(1).ok_or(PeerError::Empty)?;
    match usize::try_from(body) {
        Ok(body) if body <= kind.max_body_bytes() => Ok((kind, body)),
        _ => Err(PeerError::TooLarge(length)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_as_documented() {
        let hello = Hello { cluster: 1, from: 2, to: 0x0102_0304_0506_0708, purpose: Purpose::MayStart };
        assert_eq!(
            hello.encode(),
            *b"WEFT\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\x01"
        );
        for (purpose, byte) in [(Purpose::Messages, 0), (Purpose::Snapshot, 2)] {
            let other = Hello { purpose, ..hello }.encode();
            assert_eq!((&other[..29], other[29]), (&hello.encode()[..29], byte));
        }
        let mut neither = hello.encode();
        neither[29] = 3;
        assert_eq!(Hello::decode(&neither), Err(PeerError::Purpose(3)));
        assert_eq!(Verdict::NotMe.encode(), *b"WEFT\x02\x04");
        assert_eq!(Verdict::AlreadyBootstrapped.encode(), *b"WEFT\x02\x05");
        assert_eq!(Verdict::BadCertificateName.encode(), *b"WEFT\x02\x06");
        assert_eq!(frame_head(Kind::Raft, 3).unwrap(), [0, 0, 0, 4, 1]);
        let codes = Kind::ALL.map(|kind| frame_head(kind, 0).unwrap()[4]);
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn an_http_server_is_no_peer() {
        assert_eq!(Verdict::decode(b"HTTP/1"), Err(PeerError::Magic));
    }

    #[test]
    fn too_large_frames_are_refused_before_anything_is_read() {
        assert_eq!(parse_frame_head([0xff, 0xff, 0xff, 0xff, 1]), Err(PeerError::TooLarge(u32::MAX)));
        assert_eq!(parse_frame_head([0, 0, 0, 0, 1]), Err(PeerError::Empty));
        assert_eq!(parse_frame_head([1, 0, 0, 1, 1]), Err(PeerError::TooLarge((16 << 20) + 1)));
        assert_eq!(parse_frame_head([1, 0, 0, 0, 1]), Ok((Kind::Raft, (16 << 20) - 1)));
        assert_eq!(parse_frame_head([0, 2, 0, 14, 3]), Err(PeerError::TooLarge((128 << 10) + 14)));
        assert_eq!(parse_frame_head([0, 0, 0, 10, 5]), Err(PeerError::TooLarge(10)));
        assert_eq!(parse_frame_head([0, 0, 0, 1, 7]), Err(PeerError::Kind(7)));
        assert!(frame_head(Kind::Raft, 16 << 20).is_err());
    }

    proptest! {
        #[test]
        fn hellos_and_heads_read_back(cluster: u64, from: u64, to: u64, fresh: bool, body in 0usize..(16 << 20) - 1, noise: [u8; HELLO_BYTES]) {
            let purpose = if fresh { Purpose::MayStart } else { Purpose::Snapshot };
            let hello = Hello { cluster, from, to, purpose };
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            let head = frame_head(Kind::Raft, body).unwrap();
            prop_assert_eq!(parse_frame_head(head), Ok((Kind::Raft, body)));
            let _ = Hello::decode(&noise);
        }

        #[test]
        fn verdicts_read_back(code in 0usize..Verdict::ALL.len()) {
            let verdict = Verdict::ALL[code];
            prop_assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
        }
    }
}
