//! Cuts gathered bytes into pieces of equal length without copying: what the kernel does with `UDP_SEGMENT`, for
//! when it does not.

use std::io::IoSlice;

/// Takes the next piece of at most `length` bytes from a list of slices.
pub(super) struct Pieces<'a> {
    parts: &'a [IoSlice<'a>],
    /// Bytes of the first part that are gone already.
    taken: usize,
}

impl<'a> Pieces<'a> {
    /// Starts at the first byte of `parts`.
    pub(super) fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { parts, taken: 0 }
    }

    /// Appends the slices of the next piece to `out`; returns its length, 0 when nothing is left. Only the last piece
    /// is shorter than `length`.
    pub(super) fn next(&mut self, length: usize, out: &mut Vec<IoSlice<'a>>) -> usize {
        let mut missing = length;
        while let Some((part, rest)) = self.parts.split_first() {
            let part: &'a [u8] = &part[self.taken..];
            let take = part.len().min(missing);
            if take > 0 {
                out.push(IoSlice::new(&part[..take]));
            }
            missing -= take;
            if take < part.len() {
                self.taken += take;
                break;
            }
            self.taken = 0;
            self.parts = rest;
        }
        length - missing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_same_bytes_cut_at_equal_lengths(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            length in 1usize..50,
        ) {
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
            let whole: Vec<u8> = parts.concat();
            let mut pieces = Pieces::new(&slices);
            let mut seen = Vec::new();
            loop {
                let mut out = Vec::new();
                let got = pieces.next(length, &mut out);
                prop_assert!(out.iter().all(|slice| !slice.is_empty()));
                let bytes: Vec<u8> = out.iter().flat_map(|slice| slice.iter().copied()).collect();
                prop_assert_eq!(bytes.len(), got);
                if got == 0 {
                    break;
                }
                seen.push(bytes);
            }
            let expected: Vec<Vec<u8>> = whole.chunks(length).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
