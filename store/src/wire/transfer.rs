//! How a snapshot travels: offered, fetched from where the receiver stands, in chunks that are checked one by one.
//!
//! ```text
//! sender:    offer   = index:u64 term:u64 total:u64 crc:u32 message[..]     kind 2, once
//! receiver:  have    = offset:u64                                           kind 4, the answer, and then again and again
//! sender:    chunk   = offset:u64 crc:u32 data[1..=131072]                  kind 3, repeated
//! receiver:  done    =                                                      kind 5, in the end
//!            refused = code:u8                                              kind 6, instead, at any time
//! ```
//!
//! The bytes of a snapshot are what [`crate::snapshot`] writes, and are the same whoever writes them: `index` and `term`
//! (the state's position), `total` (bytes) and `crc` (of all of them) say which they are. So a receiver that has kept the
//! beginning goes on from there, also after a restart of either side and with another leader. `message` is raft's
//! `MsgSnapshot` without data, which the receiver steps once it has everything.
//!
//! A chunk's `crc` covers its offset and its data. All are CRC-32 as in IEEE 802.3. A chunk that is damaged or out of
//! place is refused and ends the connection; the sender dials again and is told where to go on. `have` acknowledges: the
//! sender keeps at most [`WINDOW_BYTES`] on their way beyond it. It is also sent every second without news, as a sign of life.

/// Data in one chunk, at most.
pub const CHUNK_BYTES: usize = 128 << 10;
/// What precedes the data in a chunk.
pub const CHUNK_HEAD_BYTES: usize = 12;
/// Bytes sent beyond what the receiver says it has: enough for a gigabit over 30 ms.
pub const WINDOW_BYTES: u64 = 4 << 20;
/// Length of an offer, at most; its message holds the members' ids and little else.
pub const MAX_OFFER_BYTES: usize = 64 << 10;

/// Which snapshot: two with the same id have the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotId {
    /// Raft index of the state.
    pub index: u64,
    /// Raft term of that index.
    pub term: u64,
    /// Bytes.
    pub total: u64,
    /// Checksum of all of them.
    pub crc: u32,
}

/// What a sender offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The snapshot.
    pub id: SnapshotId,
    /// Raft's message, encoded.
    pub message: Vec<u8>,
}

/// A piece of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub data: &'a [u8],
}

/// Why a receiver does not take a snapshot, or not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The sender's term is over.
    OldTerm,
    /// A chunk or an offer was not as it must be. Dialling again helps.
    Damaged,
    /// All has arrived, and it is not what was offered, or holds no state. It begins anew.
    Unsound,
    /// The receiver has no room for it, or cannot write it.
    NoRoom,
    /// Another connection for a snapshot has come since.
    Superseded,
}

/// Why what a peer sent for a transfer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Too short or too long for what it is.
    #[error("a frame of the transfer has a wrong length")]
    Length,
    /// The chunk's bytes are not those that its sender read.
    #[error(
        "the chunk of the snapshot at byte {offset} is damaged: its checksum is {found:08x}, not {wanted:08x}"
    )]
    Checksum {
        /// Where it says it begins.
        offset: u64,
        /// What came with it.
        wanted: u32,
        /// What its bytes give.
        found: u32,
    },
    /// Not the chunk that comes next.
    #[error("a chunk of the snapshot begins at byte {offset}, where byte {wanted} must be next")]
    Order {
        /// Where it begins.
        offset: u64,
        /// What is wanted.
        wanted: u64,
    },
    /// More than was offered.
    #[error("the chunk of the snapshot at byte {offset} ends after byte {total}, which was to be the last")]
    Beyond {
        /// Where it begins.
        offset: u64,
        /// What was offered.
        total: u64,
    },
    /// All chunks are there, and together they are not what was offered.
    #[error("the snapshot is damaged: its checksum is {found:08x}, not {wanted:08x}")]
    Whole {
        /// What was offered.
        wanted: u32,
        /// What has come.
        found: u32,
    },
    /// The receiver claims to have more than there is, or has lost what it had.
    #[error("the receiver says that it has {have} bytes, after {before}, of {total}")]
    Have {
        /// What it says.
        have: u64,
        /// What it said before.
        before: u64,
        /// What there is.
        total: u64,
    },
    /// No code that we know.
    #[error("refusal {0} is unknown")]
    Refusal(u8),
}

impl Offer {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let SnapshotId { index, term, total, crc } = self.id;
        let head = [index.to_be_bytes(), term.to_be_bytes(), total.to_be_bytes()].concat();
        [&head[..], &crc.to_be_bytes(), &self.message].concat()
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`TransferError::Length`].
    pub fn decode(body: &[u8]) -> Result<Offer, TransferError> {
        let (index, rest) = number(body)?;
        let (term, rest) = number(rest)?;
        let (total, rest) = number(rest)?;
        let (crc, message) = rest.split_first_chunk().ok_or(TransferError::Length)?;
        let id = SnapshotId { index, term, total, crc: u32::from_be_bytes(*crc) };
        Ok(Offer { id, message: message.to_vec() })
    }
}

impl<'a> Chunk<'a> {
    /// What precedes its data: offset and checksum.
    pub fn head(&self) -> [u8; CHUNK_HEAD_BYTES] {
        let mut head = [0; CHUNK_HEAD_BYTES];
        head[..8].copy_from_slice(&self.offset.to_be_bytes());
        head[8..].copy_from_slice(&self.crc().to_be_bytes());
        head
    }

    /// Reads one and checks it.
    ///
    /// # Errors
    /// [`TransferError::Length`] or [`TransferError::Checksum`].
    pub fn decode(body: &'a [u8]) -> Result<Chunk<'a>, TransferError> {
        let (offset, rest) = number(body)?;
        let (wanted, data) = rest.split_first_chunk().ok_or(TransferError::Length)?;
        if data.is_empty() || data.len() > CHUNK_BYTES {
            return Err(TransferError::Length);
        }
        let chunk = Chunk { offset, data };
        let (wanted, found) = (u32::from_be_bytes(*wanted), chunk.crc());
        if wanted == found { Ok(chunk) } else { Err(TransferError::Checksum { offset, wanted, found }) }
    }

    fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.offset.to_be_bytes());
        hasher.update(self.data);
        hasher.finalize()
    }
}

/// The body of a `have`.
pub fn encode_have(offset: u64) -> [u8; 8] {
    offset.to_be_bytes()
}

/// Reads a `have`.
///
/// # Errors
/// [`TransferError::Length`].
pub fn decode_have(body: &[u8]) -> Result<u64, TransferError> {
    match number(body)? {
        (offset, []) => Ok(offset),
        _ => Err(TransferError::Length),
    }
}

impl Refusal {
    const ALL: [Refusal; 5] =
        [Refusal::OldTerm, Refusal::Damaged, Refusal::Unsound, Refusal::NoRoom, Refusal::Superseded];

    /// Its body.
    pub const fn code(self) -> u8 {
        match self {
            Refusal::OldTerm => 0,
            Refusal::Damaged => 1,
            Refusal::Unsound => 2,
            Refusal::NoRoom => 3,
            Refusal::Superseded => 4,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`TransferError::Length`] or [`TransferError::Refusal`].
    pub fn decode(body: &[u8]) -> Result<Refusal, TransferError> {
        let &[code] = body else { return Err(TransferError::Length) };
        Refusal::ALL.into_iter().find(|refusal| refusal.code() == code).ok_or(TransferError::Refusal(code))
    }

    /// In words, for the sender's log.
    pub const fn advice(self) -> &'static str {
        match self {
            Refusal::OldTerm => "it knows of a later term",
            Refusal::Damaged => "a chunk arrived damaged or out of place; its log says which",
            Refusal::Unsound => "the snapshot as a whole is not what was offered; its log says why",
            Refusal::NoRoom => "it cannot write the snapshot to its data directory; its log says why",
            Refusal::Superseded => "another connection has brought a snapshot since",
        }
    }

    /// Whether the sender may try again with the same snapshot.
    pub const fn may_retry(self) -> bool {
        matches!(self, Refusal::Damaged | Refusal::Unsound)
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), TransferError> {
    let (number, rest) = bytes.split_first_chunk().ok_or(TransferError::Length)?;
    Ok((u64::from_be_bytes(*number), rest))
}

/// What a receiver has of a snapshot: chunks one after the other, from the beginning.
#[derive(Debug, Clone)]
pub struct Incoming {
    id: SnapshotId,
    have: u64,
    crc: crc32fast::Hasher,
}

impl Incoming {
    /// Nothing yet.
    pub fn new(id: SnapshotId) -> Incoming {
        Incoming { id, have: 0, crc: crc32fast::Hasher::new() }
    }

    /// The snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Bytes taken: everything before this.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Whether all is there.
    pub fn is_whole(&self) -> bool {
        self.have == self.id.total
    }

    /// Takes the chunk that comes next.
    ///
    /// # Errors
    /// [`TransferError::Order`] or [`TransferError::Beyond`], with nothing changed; [`TransferError::Whole`] if it was the
    /// last and the whole is not what was offered: then nothing of it is of use.
    pub fn take(&mut self, chunk: &Chunk<'_>) -> Result<(), TransferError> {
        let Chunk { offset, data } = *chunk;
        if offset != self.have {
            return Err(TransferError::Order { offset, wanted: self.have });
        }
        let end = offset.saturating_add(data.len() as u64);
        if end > self.id.total {
            return Err(TransferError::Beyond { offset, total: self.id.total });
        }
        self.crc.update(data);
        self.have = end;
        let found = self.crc.clone().finalize();
        if self.is_whole() && found != self.id.crc {
            return Err(TransferError::Whole { wanted: self.id.crc, found });
        }
        Ok(())
    }
}

/// How far a sender may go ahead of its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    total: u64,
    sent: u64,
    have: u64,
}

impl Window {
    /// The receiver has said what it has in answer to the offer of `total` bytes.
    ///
    /// # Errors
    /// [`TransferError::Have`].
    pub fn open(total: u64, have: u64) -> Result<Window, TransferError> {
        let mut window = Window { total, sent: have.min(total), have: 0 };
        window.acknowledged(have)?;
        Ok(window)
    }

    /// Whether a chunk may be sent now.
    pub fn is_open(&self) -> bool {
        self.sent - self.have < WINDOW_BYTES
    }

    /// Whether everything was sent.
    pub fn is_spent(&self) -> bool {
        self.sent == self.total
    }

    /// A chunk of `bytes` was sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The receiver has everything before `have`. Returns whether that is news.
    ///
    /// # Errors
    /// [`TransferError::Have`] if it cannot be.
    pub fn acknowledged(&mut self, have: u64) -> Result<bool, TransferError> {
        if have < self.have || have > self.sent {
            return Err(TransferError::Have { have, before: self.have, total: self.total });
        }
        let news = have > self.have;
        self.have = have;
        Ok(news)
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
