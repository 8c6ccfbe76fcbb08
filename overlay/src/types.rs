//! The overlay's values as types that cannot hold an illegal one: subnets, VNIs, VTEP addresses, MTUs.
//!
//! Everything is parsed once at the edge (flags, JSON, netlink) into these; the rest of the crate passes them on
//! without checking again. Pure: no IO.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a value was refused. The text names the value; callers add which flag, file or key it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// Not `a.b.c.d/len`. The words are Go's, which flannel's users know from its log.
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
    /// A VNI has 24 bits (RFC 7348 section 5).
    #[error("VNI {0} is out of range (0 to 16777215)")]
    Vni(u64),
    /// Not a 48-bit hardware address.
    #[error("address {0}: invalid MAC address")]
    Mac(String),
    /// Nobody can be reached under a multicast or all-zero hardware address.
    #[error("MAC address {0} is not a unicast address")]
    MacNotUnicast(VtepMac),
    /// IPv4 needs 68 bytes (RFC 791), a link's MTU has at most 65535 here.
    #[error("MTU {0} is out of range (68 to 65535)")]
    Mtu(u64),
    /// Not a data path.
    #[error("unknown data path {0:?}: must be kernel, rust or auto")]
    Datapath(String),
}

/// An IPv4 network: a base address without host bits, and a prefix length of 0 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: u32,
    len: u8,
}

impl Subnet {
    /// Every address there is, 0.0.0.0/0.
    pub const ANY: Subnet = Subnet { base: 0, len: 0 };

    /// The network of prefix length `len` that contains `address`; host bits are masked away. `None` if `len` > 32.
    pub fn containing(address: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then(|| Self { base: u32::from(address) & mask(len), len })
    }

    /// The network with exactly this base; `None` if `base` has host bits set or `len` > 32.
    pub fn new(base: Ipv4Addr, len: u8) -> Option<Self> {
        Self::containing(base, len).filter(|subnet| subnet.base() == base)
    }

    /// First address of the network, the one flannel gives to `flannel.1`.
    pub fn base(self) -> Ipv4Addr {
        self.base.into()
    }

    /// Prefix length, 0 to 32.
    #[allow(clippy::len_without_is_empty, reason = "a prefix length, not a count")]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Last address of the network.
    pub fn last(self) -> Ipv4Addr {
        (self.base | !mask(self.len)).into()
    }

    /// The first host address (base + 1), the one the container bridge takes.
    pub fn first_host(self) -> Ipv4Addr {
        self.base.wrapping_add(1).into()
    }

    /// Whether `address` lies in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.len) == self.base
    }

    /// Whether the whole of `other` lies in this network.
    pub fn contains_subnet(self, other: Subnet) -> bool {
        self.len <= other.len && self.contains(other.base())
    }

    /// Whether the two networks have an address in common.
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains_subnet(other) || other.contains_subnet(self)
    }
}

fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.len)
    }
}

impl FromStr for Subnet {
    type Err = TypeError;

    /// Parses `a.b.c.d/len`; host bits are masked away, as Go's `ParseCIDR` users do.
    fn from_str(text: &str) -> Result<Self, TypeError> {
        let bad = || TypeError::Cidr(text.to_owned());
        let (address, len) = text.split_once('/').ok_or_else(bad)?;
        if len.is_empty() || len.len() > 2 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let address = address.parse().map_err(|_| bad())?;
        Subnet::containing(address, len.parse().map_err(|_| bad())?).ok_or_else(bad)
    }
}

impl Serialize for Subnet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A VXLAN network identifier, 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// flannel's default network.
    pub const DEFAULT: Vni = Vni(1);

    /// The identifier as a number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The identifier that these octets are, in transmission order; 24 bits cannot be out of range.
    pub fn from_octets([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }
}

impl TryFrom<u64> for Vni {
    type Error = TypeError;

    fn try_from(value: u64) -> Result<Self, TypeError> {
        u32::try_from(value).ok().filter(|v| *v < 1 << 24).map(Vni).ok_or(TypeError::Vni(value))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hardware address of a VXLAN tunnel endpoint: 48 bits, unicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepMac([u8; 6]);

impl VtepMac {
    /// Makes a locally administered unicast address of 48 random bits (IEEE 802: bit 1 of the first octet set,
    /// bit 0 clear).
    pub fn locally_administered(random: [u8; 6]) -> Self {
        let mut bytes = random;
        bytes[0] = (bytes[0] | 0x02) & 0xfe;
        Self(bytes)
    }

    /// The six octets in transmission order.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for VtepMac {
    type Error = TypeError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, TypeError> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] { Err(TypeError::MacNotUnicast(mac)) } else { Ok(mac) }
    }
}

impl FromStr for VtepMac {
    type Err = TypeError;

    /// Accepts what Go's `net.ParseMAC` does for 48 bits: `aa:bb:cc:dd:ee:ff`, `aa-bb-...`, `aabb.ccdd.eeff`.
    fn from_str(text: &str) -> Result<Self, TypeError> {
        let bad = || TypeError::Mac(text.to_owned());
        let (separator, digits) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let groups: Vec<&str> = text.split(separator).collect();
        if groups.len() * digits != 12 || groups.iter().any(|g| g.len() != digits || !g.is_ascii()) {
            return Err(bad());
        }
        let mut bytes = [0u8; 6];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let group = groups[i * 2 / digits];
            let pair = &group[i * 2 % digits..][..2];
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        VtepMac::try_from(bytes)
    }
}

impl fmt::Display for VtepMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if n == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// The largest packet a link carries, in bytes, link header not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u16);

/// What VXLAN over IPv4 adds to a packet: outer IPv4, UDP, VXLAN and inner Ethernet headers, in bytes.
pub const VXLAN_OVERHEAD_BYTES: u16 = 20 + 8 + 8 + 14;
const _: () = assert!(VXLAN_OVERHEAD_BYTES == 50); // what flannel takes off the uplink's MTU

impl Mtu {
    /// The MTU in bytes.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The MTU of a VXLAN device whose outer packets leave through a link of this MTU.
    ///
    /// # Errors
    /// When less than the 68 bytes IPv4 needs would be left.
    pub fn inside_vxlan(self) -> Result<Mtu, TypeError> {
        Mtu::try_from(u64::from(self.0.saturating_sub(VXLAN_OVERHEAD_BYTES)))
    }
}

impl TryFrom<u64> for Mtu {
    type Error = TypeError;

    fn try_from(value: u64) -> Result<Self, TypeError> {
        u16::try_from(value).ok().filter(|v| *v >= 68).map(Mtu).ok_or(TypeError::Mtu(value))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is to carry the overlay's packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DatapathChoice {
    /// The kernel's VXLAN device.
    Kernel,
    /// This program: a TAP device and UDP sockets.
    Rust,
    /// The kernel where it has VXLAN devices, else this program.
    #[default]
    Auto,
}

impl FromStr for DatapathChoice {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        match text {
            "kernel" => Ok(Self::Kernel),
            "rust" => Ok(Self::Rust),
            "auto" => Ok(Self::Auto),
            other => Err(TypeError::Datapath(other.to_owned())),
        }
    }
}

impl fmt::Display for DatapathChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Rust => "rust",
            Self::Auto => "auto",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subnets_mask_host_bits_and_refuse_noise() {
        assert_eq!("10.3.7.9/16".parse::<Subnet>().unwrap().to_string(), "10.3.0.0/16");
        assert_eq!("0.0.0.0/0".parse::<Subnet>().unwrap().last(), Ipv4Addr::BROADCAST);
        for bad in
            ["10.3.0.0", "10.3.0.0/33", "10.3.0/16", "10.3.0.0/", "10.3.0.0/+8", "10.3.0.0/016", "::/0"]
        {
            assert_eq!(bad.parse::<Subnet>(), Err(TypeError::Cidr(bad.into())), "{bad}");
        }
    }

    #[test]
    fn macs_read_as_go_reads_them_and_print_in_lower_case() {
        for text in ["62:3B:27:aa:b8:86", "62-3b-27-AA-b8-86", "623b.27aa.b886"] {
            assert_eq!(text.parse::<VtepMac>().unwrap().to_string(), "62:3b:27:aa:b8:86");
        }
        for bad in [
            "",
            "62:3b",
            "62:3b:27:aa:b8:8g",
            "62:3b:27:aa:b8:86:00",
            "+2:3b:27:aa:b8:86",
            "é2:3b:27:aa:b8:86",
        ] {
            assert!(bad.parse::<VtepMac>().is_err(), "{bad}");
        }
        assert!(matches!("ff:ff:ff:ff:ff:ff".parse::<VtepMac>(), Err(TypeError::MacNotUnicast(_))));
    }

    #[test]
    fn data_paths_have_three_names() {
        for choice in [DatapathChoice::Kernel, DatapathChoice::Rust, DatapathChoice::Auto] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "Kernel".parse::<DatapathChoice>().unwrap_err().to_string();
        assert_eq!(error, r#"unknown data path "Kernel": must be kernel, rust or auto"#);
    }

    #[test]
    fn the_overhead_is_flannels() {
        let inner = |outer: u64| Mtu::try_from(outer).unwrap().inside_vxlan().map(Mtu::get);
        assert_eq!((inner(1500), inner(9000)), (Ok(1450), Ok(8950)));
        assert!(inner(100).is_err());
    }

    proptest! {
        #[test]
        fn text_forms_round_trip(a: u32, len in 0u8..=32, mac: [u8; 6]) {
            let subnet = Subnet::containing(a.into(), len).unwrap();
            prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
            prop_assert!(subnet.contains(a.into()) && subnet.contains(subnet.last()));
            let mac = VtepMac::locally_administered(mac);
            prop_assert_eq!(mac.to_string().parse::<VtepMac>(), Ok(mac));
        }

        #[test]
        fn overlap_is_having_an_address_in_common(a: u32, b: u32, la in 0u8..=32, lb in 0u8..=32) {
            let (x, y) = (Subnet::containing(a.into(), la).unwrap(), Subnet::containing(b.into(), lb).unwrap());
            let common = x.base() <= y.last() && y.base() <= x.last();
            prop_assert_eq!(x.overlaps(y), common);
            prop_assert_eq!(y.overlaps(x), common);
        }

        #[test]
        fn parsers_never_panic(text in "\\PC{0,24}") {
            let _ = (text.parse::<Subnet>(), text.parse::<VtepMac>());
        }
    }
}
