//! Against the definition of RFC 1071, word by word, and against etherparse.

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use proptest::prelude::*;

use super::*;

/// RFC 1071 section 4.1, with the carry added at once.
fn naive(data: &[u8]) -> u16 {
    data.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// Bytes without a pattern that 16-, 32- or 64-bit words could hide.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn every_length_at_every_alignment() {
    let data = noise(400);
    for start in 0..16 {
        for end in start..data.len() {
            let piece = &data[start..end];
            assert_eq!(Sum::default().add(piece).fold(), naive(piece), "bytes {start}..{end}");
        }
    }
}

#[test]
fn long_and_extreme_data() {
    for length in [1499, 1500, 9000, 65_483, 65_507, 65_535, 1 << 20] {
        for data in [noise(length), vec![0xff; length], vec![0; length]] {
            assert_eq!(Sum::default().add(&data).fold(), naive(&data), "{length} bytes of {:#x}", data[0]);
        }
    }
}

#[test]
fn nothing_sums_to_zero_and_only_zeros_do() {
    assert_eq!((Sum::default().fold(), Sum::default().checksum()), (0, 0xffff));
    assert_eq!(Sum::default().add(&[0; 99]).add_u16(0).add_u32(0).fold(), 0);
    // The other zero of one's complement: what a packet with a right checksum sums to.
    assert_eq!(Sum::default().add_u16(0xffff).fold(), 0xffff);
    assert_eq!(Sum::default().add_u16(0xfffe).add_u16(1).fold(), 0xffff);
}

#[test]
fn no_number_of_additions_overflows() {
    let full = vec![0xff; 65_536];
    let mut sum = Sum::default();
    for _ in 0..5_000 {
        sum = sum.add(&full[..64]).add_u32(u32::MAX).add_u16(u16::MAX);
    }
    assert_eq!(sum.add(&full).fold(), 0xffff);
    assert_eq!(Sum(u64::MAX).add(&full).add_u32(1).fold(), 1); // whatever was there before
}

#[test]
fn numbers_are_summed_as_they_are_sent() {
    let sum = Sum::default().add_u16(0x1234).add_u32(0x5678_9abc);
    assert_eq!(sum.fold(), naive(&[0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc]));
}

proptest! {
    #[test]
    fn agrees_with_the_definition_and_with_etherparse(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let sum = Sum::default().add(&data);
        prop_assert_eq!(sum.fold(), naive(&data));
        // etherparse, too, gives its result in the machine's order.
        let theirs = u16::from_be(Sum16BitWords::new().add_slice(&data).ones_complement());
        prop_assert_eq!(sum.checksum(), theirs);
    }

    #[test]
    fn pieces_may_be_added_in_any_order(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        cut in any::<prop::sample::Index>(),
    ) {
        let (a, b) = data.split_at(cut.index(data.len() + 1) & !1);
        prop_assert_eq!(Sum::default().add(a).add(b).fold(), naive(&data));
        prop_assert_eq!(Sum::default().add(b).add(a).fold(), naive(&data));
    }

    #[test]
    fn a_packet_with_its_checksum_sums_to_all_ones(mut data in proptest::collection::vec(any::<u8>(), 2..200)) {
        data[..2].fill(0);
        let checksum = Sum::default().add(&data).checksum();
        data[..2].copy_from_slice(&checksum.to_be_bytes());
        prop_assert_eq!(Sum::default().add(&data).fold(), 0xffff);
    }

    #[test]
    fn pseudo_headers_are_etherparses(
        src4: [u8; 4], dst4: [u8; 4], src6: [u8; 16], dst6: [u8; 16],
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let tcp = TcpHeader::new(1, 2, 3, 4);
        let length = u32::try_from(tcp.header_len() + payload.len()).unwrap();
        let finish = |pseudo: Sum| pseudo.add(&tcp.to_bytes()).add(&payload).checksum();
        let ip = Ipv4Header::new(0, 64, IpNumber::TCP, src4, dst4).unwrap();
        prop_assert_eq!(finish(pseudo_v4(src4, dst4, 6, length)), tcp.calc_checksum_ipv4(&ip, &payload).unwrap());
        prop_assert_eq!(
            finish(pseudo_v6(src6, dst6, 6, length)),
            tcp.calc_checksum_ipv6_raw(src6, dst6, &payload).unwrap()
        );

        let udp = UdpHeader { source_port: 5, destination_port: 6, length: 8, checksum: 0 };
        let theirs = udp.calc_checksum_ipv4_raw(src4, dst4, &[]).unwrap();
        let ours = pseudo_v4(src4, dst4, 17, 8).add(&udp.to_bytes()).checksum();
        prop_assert_eq!(if ours == 0 { 0xffff } else { ours }, theirs);
    }
}
