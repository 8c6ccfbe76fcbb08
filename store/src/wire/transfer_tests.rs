#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn id(bytes: &[u8]) -> SnapshotId {
    SnapshotId { index: 7, term: 2, total: bytes.len() as u64, crc: crc32fast::hash(bytes) }
}

fn encode(chunk: &Chunk<'_>) -> Vec<u8> {
    [&chunk.head()[..], chunk.data].concat()
}

#[test]
fn the_bytes_are_as_documented() {
    let id = SnapshotId { index: 1, term: 2, total: 3, crc: 0x0405_0607 };
    assert_eq!(
        Offer { id, message: b"mm".to_vec() }.encode(),
        *b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\x04\x05\x06\x07mm"
    );
    // CRC-32 of eight zeros and "123456789", from zlib.
    let chunk = Chunk { offset: 0, data: b"123456789" };
    assert_eq!(encode(&chunk), *b"\0\0\0\0\0\0\0\0\xe4\x12\xdc\x35123456789");
    assert_eq!(encode_have(0x0102), *b"\0\0\0\0\0\0\x01\x02");
    assert_eq!(Refusal::ALL.map(Refusal::code), [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_no_transfer_is_refused() {
    assert_eq!(Offer::decode(&[0; 27]), Err(TransferError::Length));
    assert_eq!(Chunk::decode(&[0; 11]), Err(TransferError::Length));
    assert_eq!(Chunk::decode(&Chunk { offset: 5, data: &[] }.head()), Err(TransferError::Length));
    assert_eq!(Chunk::decode(&vec![0; CHUNK_HEAD_BYTES + CHUNK_BYTES + 1]), Err(TransferError::Length));
    assert_eq!(decode_have(&[0; 7]), Err(TransferError::Length));
    assert_eq!(decode_have(&[0; 9]), Err(TransferError::Length));
    assert_eq!(Refusal::decode(&[5]), Err(TransferError::Refusal(5)));
    assert_eq!(Refusal::decode(&[]), Err(TransferError::Length));
}

#[test]
fn a_whole_that_is_not_what_was_offered_is_refused() {
    let mut incoming = Incoming::new(SnapshotId { crc: 1, ..id(b"abc") });
    let whole = incoming.take(&Chunk { offset: 0, data: b"abc" });
    assert_eq!(whole, Err(TransferError::Whole { wanted: 1, found: crc32fast::hash(b"abc") }));
}

#[test]
fn a_sender_waits_when_the_window_is_full_and_does_not_believe_everything() {
    let total = 3 * WINDOW_BYTES;
    let mut window = Window::open(total, 100).unwrap();
    let mut sent = 100;
    while window.is_open() {
        window.sent(CHUNK_BYTES);
        sent += CHUNK_BYTES as u64;
    }
    assert_eq!(sent, 100 + WINDOW_BYTES);
    assert_eq!(window.acknowledged(100), Ok(false));
    assert!(!window.is_open());
    assert_eq!(window.acknowledged(101), Ok(true));
    assert!(window.is_open());
    assert!(window.acknowledged(100).is_err(), "it has lost something");
    assert!(window.acknowledged(sent + 1).is_err(), "it has more than was sent");
    assert!(Window::open(10, 11).is_err(), "it has more than there is");
    assert!(Window::open(10, 10).is_ok());
}

/// What may happen to a frame on its way.
#[derive(Debug, Clone)]
enum Fate {
    Arrives,
    Lost,
    Twice,
    /// After the next one.
    Late,
    /// One bit of this byte is turned.
    Damaged(prop::sample::Index),
    /// Only so much of it arrives.
    Cut(prop::sample::Index),
    /// The connection breaks here.
    Breaks,
}

fn fate() -> impl Strategy<Value = Fate> {
    let at = any::<prop::sample::Index>();
    prop_oneof![
        20 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Late),
        1 => at.clone().prop_map(Fate::Damaged),
        1 => at.prop_map(Fate::Cut),
        1 => Just(Fate::Breaks),
    ]
}

/// One connection: sends from where the receiver stands. Ends at the first frame that is refused.
fn connection(
    bytes: &[u8],
    step: usize,
    fates: &mut impl Iterator<Item = Fate>,
    into: &mut Incoming,
    held: &mut Vec<u8>,
) {
    let from = usize::try_from(into.have()).unwrap();
    let mut arriving: Vec<Vec<u8>> = Vec::new();
    for (at, data) in bytes[from..].chunks(step).enumerate() {
        let frame = encode(&Chunk { offset: (from + at * step) as u64, data });
        let late = arriving.pop();
        match fates.next().unwrap_or(Fate::Arrives) {
            Fate::Arrives => arriving.push(frame),
            Fate::Lost => {}
            Fate::Twice => arriving.extend([frame.clone(), frame]),
            Fate::Late => {
                arriving.extend(late);
                arriving.push(frame);
                continue;
            }
            Fate::Damaged(index) => {
                let (mut frame, index) = (frame, index);
                let at = index.index(frame.len());
                frame[at] ^= 0x10;
                arriving.push(frame);
            }
            Fate::Cut(index) => arriving.push(frame[..index.index(frame.len())].to_vec()),
            Fate::Breaks => return,
        }
        arriving.extend(late);
        for frame in arriving.drain(..) {
            let before = into.have();
            let Ok(chunk) = Chunk::decode(&frame) else { return };
            if into.take(&chunk).is_err() {
                assert_eq!(into.have(), before, "what is refused changes nothing");
                return;
            }
            held.extend_from_slice(chunk.data);
        }
    }
}

proptest! {
    /// However chunks are lost, damaged, repeated and reordered, and connections break: what has been taken is the
    /// beginning of the snapshot, and as long as some arrive it gets whole.
    #[test]
    fn nothing_but_the_snapshot_is_ever_taken(
        bytes in prop::collection::vec(any::<u8>(), 1..600),
        step in 1usize..50,
        fates in prop::collection::vec(fate(), 0..200),
    ) {
        let mut fates = fates.into_iter();
        let (mut incoming, mut held) = (Incoming::new(id(&bytes)), Vec::new());
        for _ in 0..=201 {
            connection(&bytes, step, &mut fates, &mut incoming, &mut held);
            prop_assert_eq!(&held[..], &bytes[..held.len()]);
            prop_assert_eq!(incoming.have(), held.len() as u64);
        }
        prop_assert!(incoming.is_whole());
    }

    /// A receiver that was restarted takes what it kept as it took it the first time, at every prefix.
    #[test]
    fn it_goes_on_from_every_prefix(bytes in prop::collection::vec(any::<u8>(), 1..300), step in 1usize..40, kept in any::<prop::sample::Index>()) {
        let chunks: Vec<Chunk> = bytes.chunks(step).enumerate()
            .map(|(n, data)| Chunk { offset: (n * step) as u64, data }).collect();
        let kept = kept.index(chunks.len() + 1);
        let mut incoming = Incoming::new(id(&bytes));
        for chunk in &chunks[..kept] {
            incoming.take(chunk).unwrap();
        }
        prop_assert_eq!(incoming.have(), bytes.len().min(kept * step) as u64);
        for chunk in &chunks[kept..] {
            prop_assert!(!incoming.is_whole());
            incoming.take(chunk).unwrap();
        }
        prop_assert!(incoming.is_whole());
        let more = incoming.take(&Chunk { offset: bytes.len() as u64, data: b"x" });
        prop_assert_eq!(more, Err(TransferError::Beyond { offset: bytes.len() as u64, total: bytes.len() as u64 }));
    }

    #[test]
    fn frames_read_back_and_noise_is_no_panic(offer: (u64, u64, u64, u32), message: Vec<u8>, have: u64, noise: Vec<u8>) {
        let (index, term, total, crc) = offer;
        let offer = Offer { id: SnapshotId { index, term, total, crc }, message };
        prop_assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
        prop_assert_eq!(decode_have(&encode_have(have)), Ok(have));
        let (_, _, _) = (Offer::decode(&noise), Chunk::decode(&noise), Refusal::decode(&noise));
    }
}
