//! Whose an address is.

use std::net::{IpAddr, Ipv6Addr};

/// The bits of an IPv6 address that tell hosts apart: whoever has one address has all of its network (RFC 4291 section
/// 2.5.4).
const V6_NETWORK: u128 = !(u64::MAX as u128);

/// What all addresses have in common that a single host may have: of IPv6 the network, otherwise the address.
pub(super) fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & V6_NETWORK).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_host_and_mapped_addresses_are_those_of_ipv4() {
        let is =
            |address: &str, expected: &str| assert_eq!(host(address.parse().unwrap()).to_string(), expected);
        is("192.0.2.1", "192.0.2.1");
        is("::ffff:192.0.2.1", "192.0.2.1");
        is("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::");
        is("2001:db8:1:3::", "2001:db8:1:3::");
    }
}
