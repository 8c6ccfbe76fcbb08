//! raft-engine's file format (version 0.4), as far as it takes to tell a torn tail from damage. Pure.
//!
//! A file begins with a magic text, the version (8 bytes) and, from version 2 on, the alignment (8 bytes, always 0
//! here). Records follow without a gap; numbers are in network order unless said otherwise:
//!
//! ```text
//! | length << 8 | compression : 8 | where the footer begins : 8 | entries | CRC-32 of them | footer | CRC-32 of it |
//! ```
//!
//! The entries and their checksum may be missing. Both checksums are little-endian. From version 2 on the footer's is
//! combined (exclusive or) with the low half of the file's number: a record that an earlier use of the file left behind
//! is signed with another number, and so does not count as one of this file.

/// Length of a record's header.
const RECORD_HEADER: usize = 16;
const CHECKSUM: usize = 4;
const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// Length of a file's header in version 2, the longest.
pub(super) const FILE_HEADER: usize = MAGIC.len() + 16;
/// The search for records behind a flaw checks at most this many bytes for each byte of the file. Only data made for it
/// looks like the beginning of a record so often.
const SEARCH_FACTOR: usize = 64;

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    /// Whole records, from the beginning.
    pub(super) records: usize,
    /// Where the last of them ends; 0 if the file's header is not whole.
    pub(super) end: usize,
    /// Why what stands there is no record; `None` at the end of the file.
    pub(super) flaw: Option<&'static str>,
    /// What is behind the whole records.
    pub(super) behind: Behind,
}

/// What is behind the last whole record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behind {
    /// Nothing.
    Nothing,
    /// Zeros: room that was taken ahead of need.
    Blank,
    /// What an earlier use of the file left, and perhaps the first part of a record whose header does not tell.
    Old,
    /// Something else: part of a record.
    Part,
    /// A whole record of this file, here.
    Record(usize),
}

/// Reads a file with the number `number` to its end.
pub(super) fn read(bytes: &[u8], number: u64) -> Content {
    let (mut end, signature) = match file_header(bytes) {
        Ok((len, true)) => (len, low_half(number)),
        Ok((len, false)) => (len, 0),
        Err(flaw) => {
            let behind = behind(bytes, 0, low_half(number));
            return Content { records: 0, end: 0, flaw: Some(flaw), behind };
        }
    };
    let mut records = 0;
    while end < bytes.len() {
        match record(&bytes[end..]) {
            Ok(found) if found.signature == signature => {
                end += found.len;
                records += 1;
            }
            other => {
                let flaw = other.err().unwrap_or("the checksum of its footer does not match");
                return Content { records, end, flaw: Some(flaw), behind: behind(bytes, end, signature) };
            }
        }
    }
    Content { records, end, flaw: None, behind: Behind::Nothing }
}

/// The signature of a file's records.
fn low_half(number: u64) -> u32 {
    let [.., a, b, c, d] = number.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// The length of the file's header, and whether records are signed.
fn file_header(bytes: &[u8]) -> Result<(usize, bool), &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a file of the raft log does")?;
    match (number_at(rest, 0), number_at(rest, 8)) {
        (Some(1), _) => Ok((MAGIC.len() + 8, false)),
        (Some(2), Some(0)) => Ok((FILE_HEADER, true)),
        _ => Err("its version is unknown"),
    }
}

/// A whole record.
struct Found {
    len: usize,
    signature: u32,
}

/// The record at the beginning of `bytes`.
fn record(bytes: &[u8]) -> Result<Found, &'static str> {
    let (footer, len) = frame(bytes).ok_or("the header of a record makes no sense")?;
    let signature = checksum(&bytes[footer..len]);
    let entries = &bytes[RECORD_HEADER..footer];
    if !entries.is_empty() && checksum(entries) != 0 {
        return Err("the checksum of its entries does not match");
    }
    Ok(Found { len, signature })
}

/// Where the footer of the record at the beginning of `bytes` begins, and how long the record is. Entries are never
/// compressed.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let (len, footer) = (number_at(bytes, 0)?, number_at(bytes, 8)?);
    let (len, compression) = (usize::try_from(len >> 8).ok()?, len & 0xff);
    let footer = usize::try_from(footer).ok()?;
    let entries = footer.checked_sub(RECORD_HEADER)?;
    let sane = compression == 0
        && len <= bytes.len()
        && len.checked_sub(footer)? > CHECKSUM
        && (entries == 0 || entries > CHECKSUM);
    sane.then_some((footer, len))
}

/// The checksum of all but the last four bytes, exclusive or the one that these hold: 0 if it is right and unsigned, or else the
/// signature.
fn checksum(block: &[u8]) -> u32 {
    let (data, stored) = block.split_at(block.len() - CHECKSUM);
    let stored = stored.iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    crc32fast::hash(data) ^ stored
}

fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What is in `bytes` from `end` on, where no record of this file begins.
fn behind(bytes: &[u8], end: usize, signature: u32) -> Behind {
    let rest = &bytes[end..];
    if rest.is_empty() {
        return Behind::Nothing;
    }
    if rest.iter().all(|&byte| byte == 0) {
        return Behind::Blank;
    }
    let mut old = false;
    let mut budget = bytes.len().saturating_mul(SEARCH_FACTOR);
    // What begins right here is flawed, whatever its footer says.
    for at in 1..rest.len() {
        let Some((footer, len)) = frame(&rest[at..]) else { continue };
        if budget < len {
            // Not looked at to its end: it may be one.
            return Behind::Record(end + at);
        }
        budget -= len - footer;
        let found = checksum(&rest[at + footer..at + len]);
        if found == signature {
            return Behind::Record(end + at);
        }
        // Numbers grow.
        old |= found < signature && record(&rest[at..]).is_ok();
    }
    if old && frame(rest).is_none() { Behind::Old } else { Behind::Part }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn file(version: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_be_bytes());
        if version == 2 {
            bytes.extend([0; 8]);
        }
        bytes
    }

    fn add(bytes: &mut Vec<u8>, entries: &[u8], signature: u32) {
        let footer = [1, 2, 3, 4];
        let block = if entries.is_empty() { 0 } else { entries.len() + CHECKSUM };
        let len = RECORD_HEADER + block + footer.len() + CHECKSUM;
        bytes.extend(((len as u64) << 8).to_be_bytes());
        bytes.extend(((RECORD_HEADER + block) as u64).to_be_bytes());
        if !entries.is_empty() {
            bytes.extend(entries);
            bytes.extend(crc32fast::hash(entries).to_le_bytes());
        }
        bytes.extend(footer);
        bytes.extend((crc32fast::hash(&footer) ^ signature).to_le_bytes());
    }

    #[test]
    fn whole_records_are_counted_in_both_versions() {
        for (version, signature) in [(1, 0), (2, 7)] {
            let mut bytes = file(version);
            add(&mut bytes, b"entries", signature);
            add(&mut bytes, b"", signature);
            let content = read(&bytes, (9 << 32) + 7);
            let end = bytes.len();
            assert_eq!(content, Content { records: 2, end, flaw: None, behind: Behind::Nothing });
        }
    }

    #[test]
    fn what_stands_behind_the_last_record_is_told_apart() {
        let mut bytes = file(2);
        add(&mut bytes, b"entries", 7);
        let end = bytes.len();
        let behind = |rest: &[u8]| {
            let content = read(&[&bytes, rest].concat(), 7);
            assert_eq!((content.records, content.end), (1, end));
            assert!(content.flaw.is_some());
            content.behind
        };
        let (mut own, mut old) = (Vec::new(), Vec::new());
        add(&mut own, b"more", 7);
        add(&mut old, b"more", 3);
        assert_eq!(behind(&[0; 100]), Behind::Blank);
        assert_eq!(behind(&own[..own.len() - 1]), Behind::Part);
        assert_eq!(behind(&[b"rest of one", &old[..]].concat()), Behind::Old);
        assert_eq!(behind(&[&[9; 30][..], &own].concat()), Behind::Record(end + 30));
        // A damaged record before a whole one.
        own[20] ^= 1;
        assert_eq!(behind(&own), Behind::Part);
        let damaged = own.len();
        add(&mut own, b"", 7);
        assert_eq!(behind(&own), Behind::Record(end + damaged));
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let mut bytes = file(2);
        add(&mut bytes, b"entries", 7);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert_ne!(read(&damaged, 7).flaw, None, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn the_search_ends_in_what_was_made_to_be_searched() {
        let mut bytes = file(2);
        // The beginning of a long record at every sixteenth byte.
        let long = (1 << 19_u64) << 8_u64;
        for _ in 0..1 << 16 {
            bytes.extend(u64::to_be_bytes(long));
            bytes.extend(u64::to_be_bytes(16));
        }
        assert!(matches!(read(&bytes, 7).behind, Behind::Record(_)));
    }
}
