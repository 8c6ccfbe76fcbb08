//! The file format of captures: pcapng (draft-ietf-opsawg-pcapng), as tcpdump and Wireshark read it.
//!
//! It is chosen over the classic format for three things that the classic one has no place for: the direction of each
//! frame (`epb_flags`), how many frames are missing before it (`epb_dropcount`), and an end that tells a finished
//! capture from one that broke off. A file is one section with one interface:
//!
//! ```text
//! Section Header | Interface Description | Enhanced Packet ... | Interface Statistics
//! ```
//!
//! and each block is
//!
//! ```text
//! type u32 | length u32 | body, padded to 4 bytes | length u32 again
//! ```
//!
//! All numbers are little endian here; the section header says so to readers. Times are nanoseconds since 1970. Pure:
//! functions append to a buffer, and [`Scanner`] finds the blocks in a stream again.

use std::time::Duration;

/// The link type of frames that begin with an Ethernet header (`LINKTYPE_ETHERNET`).
pub const LINKTYPE_ETHERNET: u16 = 1;

/// The longest block that [`Scanner`] takes for one: a frame of 64 KB and its options, with room to spare.
pub const MAX_BLOCK_BYTES: usize = 1 << 20;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Options are a code and a length of 16 bits each, then the value, padded to 4 bytes. Codes of different blocks
/// overlap.
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    pub(super) const SHB_USERAPPL: u16 = 4;
    pub(super) const IF_NAME: u16 = 2;
    pub(super) const IF_DESCRIPTION: u16 = 3;
    pub(super) const IF_TSRESOL: u16 = 9;
    pub(super) const EPB_FLAGS: u16 = 2;
    pub(super) const EPB_DROPCOUNT: u16 = 4;
    pub(super) const ISB_IFDROP: u16 = 5;
    pub(super) const ISB_USRDELIV: u16 = 8;
}

/// `if_tsresol`: times count units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Which way a frame went, seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It came from a peer and goes to the device.
    Inbound,
    /// It came from the device and goes to a peer.
    Outbound,
}

impl Direction {
    /// The two lowest bits of `epb_flags`.
    fn flags(self) -> u32 {
        match self {
            Self::Inbound => 1,
            Self::Outbound => 2,
        }
    }
}

/// Appends the two blocks that a file begins with. `name` and `description` are of the interface, `application` is the
/// program; texts longer than 255 bytes are cut. `snaplen` is the most bytes that are kept of a frame.
pub fn begin(out: &mut Vec<u8>, application: &str, name: &str, description: &str, snaplen: u32) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER.to_le_bytes());
        out.extend(1u16.to_le_bytes()); // version 1.0
        out.extend(0u16.to_le_bytes());
        out.extend((-1i64).to_le_bytes()); // the section's length is not known yet
        text(out, option::SHB_USERAPPL, application);
        push_option(out, option::END, &[]);
    });
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(LINKTYPE_ETHERNET.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(snaplen.to_le_bytes());
        text(out, option::IF_NAME, name);
        text(out, option::IF_DESCRIPTION, description);
        push_option(out, option::IF_TSRESOL, &[NANOSECONDS]);
        push_option(out, option::END, &[]);
    });
}

/// Appends one frame. `time` is since 1970, `length` the frame's own length, `data` what is kept of it, `missing` how many
/// frames were lost since the frame before, and `comment` what there is to say of it, perhaps nothing; it is cut after
/// 255 bytes.
pub fn packet(
    out: &mut Vec<u8>,
    direction: Direction,
    time: Duration,
    length: u32,
    data: &[u8],
    missing: u64,
    comment: &str,
) {
    block(out, ENHANCED_PACKET, |out| {
        out.extend(0u32.to_le_bytes()); // the first and only interface
        timestamp(out, time);
        out.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend_from_slice(data);
        pad(out, data.len());
        push_option(out, option::EPB_FLAGS, &direction.flags().to_le_bytes());
        if missing > 0 {
            push_option(out, option::EPB_DROPCOUNT, &missing.to_le_bytes());
        }
        if !comment.is_empty() {
            text(out, option::COMMENT, comment);
        }
        push_option(out, option::END, &[]);
    });
}

/// How many bytes [`packet`] appends for `kept` bytes of a frame.
pub fn packet_bytes(kept: usize, missing: u64, comment: &str) -> usize {
    let dropcount = if missing > 0 { 12 } else { 0 };
    let comment = if comment.is_empty() { 0 } else { 4 + cut(comment).len().next_multiple_of(4) };
    8 + 20 + kept.next_multiple_of(4) + 8 + dropcount + comment + 4 + 4
}

/// Appends the block that ends a finished capture: how many frames are in it and how many are missing.
pub fn end(out: &mut Vec<u8>, time: Duration, delivered: u64, missing: u64) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(0u32.to_le_bytes());
        timestamp(out, time);
        push_option(out, option::ISB_IFDROP, &missing.to_le_bytes());
        push_option(out, option::ISB_USRDELIV, &delivered.to_le_bytes());
        push_option(out, option::END, &[]);
    });
}

/// How many bytes [`end`] appends.
pub const END_BYTES: usize = 8 + 12 + 12 + 12 + 4 + 4;

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start + 4).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(length);
    out[start + 4..start + 8].copy_from_slice(&length);
}

/// The upper half first, whatever the byte order.
fn timestamp(out: &mut Vec<u8>, time: Duration) {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
    out.extend_from_slice(&nanoseconds[4..]);
    out.extend_from_slice(&nanoseconds[..4]);
}

fn push_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    debug_assert!(value.len() <= 255, "no option of ours is longer");
    out.extend(code.to_le_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

fn text(out: &mut Vec<u8>, code: u16, value: &str) {
    push_option(out, code, cut(value).as_bytes());
}

/// At most 255 bytes, and whole letters.
fn cut(value: &str) -> &str {
    let mut length = value.len().min(255);
    while !value.is_char_boundary(length) {
        length -= 1;
    }
    &value[..length]
}

fn pad(out: &mut Vec<u8>, written: usize) {
    out.extend_from_slice(&[0; 3][..written.next_multiple_of(4) - written]);
}

/// Why a stream is no capture of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// It begins with something else.
    #[error("the stream is not pcapng")]
    NotPcapng,
    /// A block's length is not one that a block can have, or its two lengths differ.
    #[error("a block of the capture is damaged: its length reads {0}")]
    Length(u32),
}

/// Finds the blocks in a stream that comes in pieces, and keeps count. It never holds more than one block that is not
/// complete yet.
#[derive(Debug, Default)]
pub struct Scanner {
    pending: Vec<u8>,
    begun: bool,
    /// Frames seen.
    pub packets: u64,
    /// Frames missing between those seen, and once the end is there, after them.
    pub missing: u64,
    /// Whether the block that ends a capture was there.
    pub complete: bool,
}

impl Scanner {
    /// Takes the next piece of the stream and appends the blocks that it completes to `out`, whole ones only, so that
    /// `out` can be written to a file that is readable at any time.
    ///
    /// # Errors
    /// When this cannot be a capture of ours. The complete blocks before that are in `out`.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ScanError> {
        self.pending.extend_from_slice(piece);
        let mut done = 0;
        let outcome = loop {
            match self.next(&self.pending[done..]) {
                Ok(Some(length)) => {
                    self.count(done, length);
                    done += length;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        out.extend(self.pending.drain(..done));
        outcome
    }

    /// The length of the block that `bytes` begins with; `None` if it is not all there.
    fn next(&self, bytes: &[u8]) -> Result<Option<usize>, ScanError> {
        let Some(kind) = number(bytes, 0) else { return Ok(None) };
        if !self.begun && kind != SECTION_HEADER {
            return Err(ScanError::NotPcapng);
        }
        let Some(stated) = number(bytes, 4) else { return Ok(None) };
        let length = usize::try_from(stated).unwrap_or(usize::MAX);
        if !(12..=MAX_BLOCK_BYTES).contains(&length) || length % 4 != 0 {
            return Err(ScanError::Length(stated));
        }
        match number(bytes, length - 4) {
            None => Ok(None),
            Some(again) if again == stated => Ok(Some(length)),
            Some(again) => Err(ScanError::Length(again)),
        }
    }

    fn count(&mut self, at: usize, length: usize) {
        self.begun = true;
        let block = &self.pending[at..at + length];
        match number(block, 0) {
            Some(ENHANCED_PACKET) => {
                self.packets += 1;
                let kept =
                    number(block, 20).and_then(|kept| usize::try_from(kept).ok()).unwrap_or(usize::MAX);
                let options = kept.checked_next_multiple_of(4).and_then(|kept| kept.checked_add(28));
                let missing = options.and_then(|at| value(block.get(at..length - 4)?, option::EPB_DROPCOUNT));
                self.missing = self.missing.saturating_add(missing.unwrap_or(0));
            }
            Some(INTERFACE_STATISTICS) => {
                let missing = block.get(20..length - 4).and_then(|it| value(it, option::ISB_IFDROP));
                self.missing = missing.unwrap_or(self.missing);
                self.complete = true;
            }
            _ => {}
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

/// The value of an option of 8 bytes.
fn value(mut options: &[u8], wanted: u16) -> Option<u64> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let code = u16::from_le_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if code == wanted && length == 8 {
            return rest.first_chunk().copied().map(u64::from_le_bytes);
        }
        options = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn small() -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, "overlayd", "flannel.1", "VXLAN 1", 262_144);
        packet(&mut out, Direction::Outbound, Duration::new(1, 2), 60, &[0xaa; 5], 0, "");
        packet(&mut out, Direction::Inbound, Duration::new(5, 6), 3, &[1, 2, 3], 7, "");
        end(&mut out, Duration::from_secs(9), 2, 11);
        out
    }

    #[test]
    fn every_byte_is_where_the_draft_says() {
        let expected: &[&[u8]] = &[
            // section header: magic, 1.0, unknown length, shb_userappl
            &[0x0a, 0x0d, 0x0d, 0x0a, 44, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0],
            &[255; 8],
            b"\x04\x00\x08\x00overlayd\0\0\0\0\x2c\0\0\0",
            // interface: Ethernet, snaplen, if_name, if_description, if_tsresol
            &[1, 0, 0, 0, 60, 0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 0],
            b"\x02\x00\x09\x00flannel.1\0\0\0\x03\x00\x07\x00VXLAN 1\0",
            &[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0],
            // frame: interface, time in two halves, kept, length, data, epb_flags
            &[6, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xca, 0x9a, 0x3b, 5, 0, 0, 0, 60, 0, 0, 0],
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0],
            // frame with epb_dropcount
            &[6, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 6, 0xf2, 0x05, 0x2a, 3, 0, 0, 0, 3, 0, 0, 0],
            &[1, 2, 3, 0, 2, 0, 4, 0, 1, 0, 0, 0, 4, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[60, 0, 0, 0],
            // statistics: interface, time, isb_ifdrop, isb_usrdeliv
            &[5, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0x1a, 0x71, 0x18],
            &[
                5, 0, 8, 0, 11, 0, 0, 0, 0, 0, 0, 0, 8, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 52, 0,
                0, 0,
            ],
        ];
        assert_eq!(small(), expected.concat());
    }

    #[test]
    fn a_comment_is_an_option_of_its_frame() {
        let mut out = Vec::new();
        packet(&mut out, Direction::Inbound, Duration::ZERO, 1, &[9], 2, "dropped");
        let expected: &[&[u8]] = &[
            &[
                6, 0, 0, 0, 72, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0,
                0,
            ],
            &[2, 0, 4, 0, 1, 0, 0, 0, 4, 0, 8, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            b"\x01\x00\x07\x00dropped\0\0\0\0\0\x48\0\0\0",
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn the_scanner_counts_what_was_written() {
        let (mut scanner, mut out) = (Scanner::default(), Vec::new());
        scanner.feed(&small(), &mut out).unwrap();
        assert_eq!((scanner.packets, scanner.missing, scanner.complete), (2, 11, true));
        assert_eq!(out, small());
        let mut broken_off = Scanner::default();
        broken_off.feed(&small()[..216], &mut Vec::new()).unwrap();
        assert_eq!((broken_off.packets, broken_off.missing, broken_off.complete), (2, 7, false));
    }

    #[test]
    fn foreign_and_damaged_streams_are_refused() {
        let scan = |bytes: &[u8]| Scanner::default().feed(bytes, &mut Vec::new());
        assert_eq!(scan(b"HTTP/1.1 200 OK"), Err(ScanError::NotPcapng));
        let mut damaged = small();
        damaged[4] = 45;
        assert_eq!(scan(&damaged), Err(ScanError::Length(45)));
        let mut damaged = small();
        damaged[40] = 48;
        assert_eq!(scan(&damaged), Err(ScanError::Length(48)));
        let mut endless = small();
        endless[4..8].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        assert_eq!(scan(&endless), Err(ScanError::Length(0x8000_0000)));
    }

    #[test]
    fn long_names_are_cut_between_letters() {
        let mut out = Vec::new();
        begin(&mut out, &"ü".repeat(200), "", "", 0);
        let mut scanner = Scanner::default();
        scanner.feed(&out, &mut Vec::new()).unwrap();
        assert!(out.windows(4).any(|w| w == [4, 0, 254, 0]), "127 letters of two bytes");
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_whole_blocks(cuts in proptest::collection::vec(1usize..40, 0..20)) {
            let bytes = small();
            let (mut scanner, mut out, mut rest) = (Scanner::default(), Vec::new(), &bytes[..]);
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                scanner.feed(piece, &mut out).unwrap();
                rest = after;
                prop_assert!([0, 44, 104, 156, 216, 268].contains(&out.len()), "{}", out.len());
            }
            prop_assert_eq!(out, bytes);
            prop_assert!(scanner.complete);
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>, at in 0usize..268, value: u8) {
            let _ = Scanner::default().feed(&noise, &mut Vec::new());
            let mut bytes = small();
            bytes[at] = value;
            let _ = Scanner::default().feed(&bytes, &mut Vec::new());
        }

        #[test]
        fn lengths_are_known_beforehand(data in proptest::collection::vec(any::<u8>(), 0..200), missing in 0u64..3, comment in ".{0,300}") {
            let mut out = Vec::new();
            packet(&mut out, Direction::Inbound, Duration::MAX, 9, &data, missing, &comment);
            prop_assert_eq!(out.len(), packet_bytes(data.len(), missing, &comment));
            out.clear();
            end(&mut out, Duration::ZERO, 0, missing);
            prop_assert_eq!(out.len(), END_BYTES);
        }
    }
}
