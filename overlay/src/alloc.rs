//! Picks a free subnet for this host. Pure: the range, what is taken and a random number go in, a subnet comes out.
//!
//! As flannel does it: walk from `SubnetMin` to `SubnetMax` in steps of one subnet, gather the first 100 that
//! overlap no lease, and take one of them at random, so that hosts which start together rarely collide and the used
//! part of a large network stays compact.

use std::net::Ipv4Addr;

use crate::types::Subnet;

/// How many free subnets are gathered before one is drawn.
pub const CANDIDATES: usize = 100;

/// Where subnets may be leased: bases from `min` to `max` (both included), all of prefix length `len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First base that may be leased, aligned to `len`.
    pub min: Ipv4Addr,
    /// Last base that may be leased, aligned to `len`.
    pub max: Ipv4Addr,
    /// Prefix length of every subnet.
    pub len: u8,
}

impl Range {
    /// Whether a lease of `subnet` fits the configuration of today: same length, base within the range.
    pub fn fits(&self, subnet: Subnet) -> bool {
        subnet.len() == self.len && (self.min..=self.max).contains(&subnet.base())
    }
}

/// Draws one of the first [`CANDIDATES`] free subnets of `range`; `None` when every one is taken.
///
/// `taken` may be in any order and may contain subnets of other lengths. The same inputs give the same subnet.
/// Cost: one step per free candidate and per taken subnet, whatever the size of the range.
pub fn choose(range: &Range, taken: &[Subnet], random: u64) -> Option<Subnet> {
    let free = free(range, taken);
    let count = u64::try_from(free.len()).ok().filter(|n| *n > 0)?;
    free.get(usize::try_from(random % count).ok()?).copied()
}

fn free(range: &Range, taken: &[Subnet]) -> Vec<Subnet> {
    let mut intervals: Vec<(u64, u64)> =
        taken.iter().map(|s| (u64::from(u32::from(s.base())), u64::from(u32::from(s.last())))).collect();
    intervals.sort_unstable();
    let mut intervals = intervals.into_iter().peekable();

    // u64, because the step past 255.255.255.255 must not wrap round.
    let step = 1u64 << (32 - u32::from(range.len.min(32)));
    let (mut base, max) = (u64::from(u32::from(range.min)), u64::from(u32::from(range.max)));
    let mut found = Vec::new();
    while base <= max && found.len() < CANDIDATES {
        // Intervals are sorted by their start, so one that starts later may still end earlier: skip while behind.
        while intervals.next_if(|(_, last)| *last < base).is_some() {}
        match intervals.peek() {
            Some((first, last)) if *first < base + step => {
                let past = (last - base) / step + 1;
                base += past * step;
            }
            _ => {
                let address = u32::try_from(base).ok().map(Ipv4Addr::from);
                found.extend(address.and_then(|a| Subnet::new(a, range.len)));
                base += step;
            }
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(min: &str, max: &str, len: u8) -> Range {
        Range { min: min.parse().unwrap(), max: max.parse().unwrap(), len }
    }

    fn subnets(list: &[&str]) -> Vec<Subnet> {
        list.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn a_full_range_has_nothing_and_an_inverted_one_neither() {
        let small = range("10.3.0.4", "10.3.0.12", 30);
        assert_eq!(choose(&small, &subnets(&["10.3.0.0/28"]), 7), None);
        assert_eq!(choose(&range("10.3.9.0", "10.3.1.0", 24), &[], 7), None);
    }

    #[test]
    fn leases_of_other_lengths_block_what_they_overlap() {
        let r = range("10.3.1.0", "10.3.4.0", 24);
        let taken = subnets(&["10.3.2.128/25", "10.3.3.0/30", "10.3.4.0/23"]);
        for random in 0..10 {
            assert_eq!(choose(&r, &taken, random), Some("10.3.1.0/24".parse().unwrap()));
        }
    }

    #[test]
    fn the_end_of_the_address_space_does_not_wrap() {
        let r = range("255.255.254.0", "255.255.255.0", 24);
        assert_eq!(free(&r, &[]).len(), 2);
        assert_eq!(free(&r, &subnets(&["255.255.254.0/23"])), vec![]);
    }

    #[test]
    fn only_the_first_hundred_are_candidates() {
        let r = range("172.17.1.0", "172.17.255.0", 24);
        let last = (0..1000).map(|n| choose(&r, &[], n).unwrap()).max();
        assert_eq!(last, Some("172.17.100.0/24".parse().unwrap()));
    }

    proptest! {
        /// The walk with interval skipping agrees with the plain walk the specification describes.
        #[test]
        fn agrees_with_the_plain_walk(
            base: u32, len in 18u8..=30, count in 0u32..300,
            taken in prop::collection::vec((0u32..300, 0i32..300, 14u8..=32), 0..40), random: u64,
        ) {
            let step = 1u32 << (32 - len);
            let min = base & 0xf000_0000 | (base & !(step - 1) & 0x0fff_ffff);
            let Some(max) = count.checked_mul(step).and_then(|d| min.checked_add(d)) else { return Ok(()) };
            let r = Range { min: min.into(), max: max.into(), len };
            let taken: Vec<Subnet> = taken.into_iter().filter_map(|(n, off, l)| {
                let at = min.checked_add(n.checked_mul(step)?)?.checked_add_signed(off)?;
                Subnet::containing(at.into(), l)
            }).collect();

            let mut plain = Vec::new();
            let mut at = min;
            loop {
                let candidate = Subnet::new(at.into(), len).unwrap();
                if !taken.iter().any(|t| t.overlaps(candidate)) && plain.len() < CANDIDATES { plain.push(candidate) }
                match at.checked_add(step) { Some(next) if next <= max => at = next, _ => break }
            }
            prop_assert_eq!(&free(&r, &taken), &plain);
            match choose(&r, &taken, random) {
                None => prop_assert!(plain.is_empty()),
                Some(s) => {
                    prop_assert!(r.fits(s));
                    prop_assert!(taken.iter().all(|t| !t.overlaps(s)));
                }
            }
        }
    }
}
