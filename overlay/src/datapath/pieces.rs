//! Packets as chains of slices, so that payload is never copied: headers we write lie in an arena, everything else
//! stays in the buffer it was read into. Pure; everything is reused from batch to batch.

use std::io::IoSlice;

/// Where a slice lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the buffer of this number.
    Buffer(u32),
    /// In the arena.
    Arena,
}

const END: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Piece {
    place: Place,
    start: u32,
    bytes: u32,
    next: u32,
}

/// A list of slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    first: u32,
    last: u32,
    /// Length in bytes.
    pub bytes: usize,
    /// Number of slices.
    pub pieces: usize,
}

impl Chain {
    /// Without slices.
    pub const EMPTY: Chain = Chain { first: END, last: END, bytes: 0, pieces: 0 };
}

/// All slices of a batch and the arena.
#[derive(Debug)]
pub struct Pieces {
    pieces: Vec<Piece>,
    arena: Vec<u8>,
}

impl Pieces {
    /// Room for this many slices and bytes of headers; more than that grows.
    pub fn with_capacity(pieces: usize, arena_bytes: usize) -> Self {
        Self { pieces: Vec::with_capacity(pieces), arena: Vec::with_capacity(arena_bytes) }
    }

    /// Forgets everything; chains made before are void.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.arena.clear();
    }

    /// Bytes in the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Appends to the arena; returns where it begins, and the bytes to change.
    pub fn store(&mut self, parts: &[&[u8]]) -> (usize, &mut [u8]) {
        let at = self.arena.len();
        for part in parts {
            self.arena.extend_from_slice(part);
        }
        (at, &mut self.arena[at..])
    }

    /// Appends a slice to a chain; an empty one adds nothing.
    ///
    /// # Panics
    /// When an offset does not fit 32 bits: buffers are 64 KiB.
    pub fn push(&mut self, chain: &mut Chain, place: Place, start: usize, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let small = |n: usize| u32::try_from(n).expect("buffers are far smaller than 4 GiB");
        let index = small(self.pieces.len());
        self.pieces.push(Piece { place, start: small(start), bytes: small(bytes), next: END });
        match self.pieces.get_mut(chain.last as usize) {
            Some(last) if chain.pieces > 0 => last.next = index,
            _ => chain.first = index,
        }
        chain.last = index;
        chain.bytes += bytes;
        chain.pieces += 1;
    }

    /// Appends one chain to another; the appended one is void then.
    pub fn append(&mut self, chain: &mut Chain, tail: Chain) {
        if tail.pieces == 0 {
            return;
        }
        match self.pieces.get_mut(chain.last as usize) {
            Some(last) if chain.pieces > 0 => last.next = tail.first,
            _ => chain.first = tail.first,
        }
        chain.last = tail.last;
        chain.bytes += tail.bytes;
        chain.pieces += tail.pieces;
    }

    /// The slices of a chain, in order.
    pub fn slices<'a, B: AsRef<[u8]>>(
        &'a self,
        chain: Chain,
        buffers: &'a [B],
    ) -> impl Iterator<Item = &'a [u8]> {
        let mut next = chain.first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(next as usize)?;
            next = piece.next;
            let (start, end) = (piece.start as usize, (piece.start + piece.bytes) as usize);
            Some(match piece.place {
                Place::Buffer(n) => &buffers[n as usize].as_ref()[start..end],
                Place::Arena => &self.arena[start..end],
            })
        })
    }

    /// Appends the slices of a chain to `out`.
    pub fn gather<'a, B: AsRef<[u8]>>(&'a self, chain: Chain, buffers: &'a [B], out: &mut Vec<IoSlice<'a>>) {
        out.extend(self.slices(chain, buffers).map(IoSlice::new));
    }
}

/// The allocation of an emptied vector, for elements that borrow from elsewhere.
pub(crate) fn recycle<'a>(mut slices: Vec<IoSlice<'_>>) -> Vec<IoSlice<'a>> {
    slices.clear();
    // Collecting from the vector's own iterator into the same layout keeps its allocation.
    slices.into_iter().map(|_| IoSlice::new(&[])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_may_grow_in_turns_and_keep_their_order() {
        let buffers = [b"abcdef".to_vec(), b"xyz".to_vec()];
        let mut pieces = Pieces::with_capacity(8, 8);
        let (mut one, mut two) = (Chain::EMPTY, Chain::EMPTY);
        let (at, bytes) = pieces.store(&[b"h", b"?"]);
        bytes[1] = b'i';
        pieces.push(&mut one, Place::Arena, at, 2);
        pieces.push(&mut two, Place::Buffer(1), 1, 2);
        pieces.push(&mut one, Place::Buffer(0), 2, 3);
        pieces.push(&mut two, Place::Buffer(0), 0, 0);
        pieces.push(&mut two, Place::Buffer(0), 0, 1);
        let text = |chain| pieces.slices(chain, &buffers).collect::<Vec<_>>().concat();
        assert_eq!((text(one), text(two)), (b"hicde".to_vec(), b"yza".to_vec()));
        assert_eq!((one.bytes, one.pieces, two.bytes, two.pieces), (5, 2, 3, 2));
        assert_eq!(pieces.slices(Chain::EMPTY, &buffers).count(), 0);
    }

    #[test]
    fn recycling_keeps_the_allocation() {
        let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(100);
        slices.push(IoSlice::new(b"x"));
        let (pointer, capacity) = (slices.as_ptr() as usize, slices.capacity());
        let again = recycle(slices);
        assert!(again.is_empty());
        assert_eq!((again.as_ptr() as usize, again.capacity()), (pointer, capacity));
    }
}
