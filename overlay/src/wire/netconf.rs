//! The network configuration, the JSON under `<prefix>/config`, checked as flannel v0.10 checks it: the same defaults,
//! the same order, the same words.
//!
//! Departures: `Network` must be given (`{}` makes v0.10 lease from 0.0.1.0 upwards; newer flannels refuse it too),
//! and what is asked for but not supported here is refused by name.

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

use super::gojson;
pub use super::gojson::JsonError;
use crate::alloc::Range;
use crate::types::{DatapathChoice, Mtu, Subnet, TypeError, Vni};

/// The checked configuration of the whole overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay's address space.
    pub network: Subnet,
    /// Where in it subnets are leased, and how large they are.
    pub range: Range,
    /// How packets travel.
    pub backend: Backend,
    /// `EnableNFTables`: keep the packet filter rules with nftables even where `iptables` is installed.
    pub nftables: bool,
}

/// The data path asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's VXLAN device.
    Vxlan(VxlanConfig),
}

/// Options of the `vxlan` backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// `VNI`, 1 unless given.
    pub vni: Vni,
    /// `Port`, UDP; `None` (0 or absent) leaves it to the kernel, which means 8472.
    pub port: Option<u16>,
    /// `GBP`: the group based policy extension.
    pub gbp: bool,
    /// `Learning`: let the device learn from what it receives (flannel 0.12 and later).
    pub learning: bool,
    /// `MTU` of the external interface, where it should not be the interface's own (newer flannels).
    pub mtu: Option<Mtu>,
    /// `Datapath`: what carries packets on hosts whose flag `-datapath` does not say. flannel ignores the key, so
    /// hosts of both kinds can share one config.
    pub datapath: Option<DatapathChoice>,
}

impl VxlanConfig {
    /// Linux's port for VXLAN where the config names none (IANA's is 4789).
    pub const DEFAULT_PORT: u16 = 8472;

    /// The UDP port that this comes to.
    pub fn udp_port(&self) -> u16 {
        self.port.unwrap_or(Self::DEFAULT_PORT)
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON it should be.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// `Network` is not `a.b.c.d/len`.
    #[error(transparent)]
    Network(#[from] TypeError),
    /// `Network` is missing.
    #[error("please define a correct Network parameter in the flannel config")]
    NoNetwork,
    /// Longer than 30 leaves no two hosts.
    #[error("SubnetLen must be less than /31")]
    SubnetLenTooLong,
    /// Fewer than four subnets.
    #[error("Network must be able to accommodate at least four subnets")]
    TooFewSubnets,
    /// No `SubnetLen` can be chosen.
    #[error("Network is too small. Minimum useful network prefix is /28")]
    NetworkTooSmall,
    /// `SubnetMin` or `SubnetMax` is elsewhere.
    #[error("{0} is not in the range of the Network")]
    OutsideNetwork(&'static str),
    /// `SubnetMin` or `SubnetMax` has bits below the subnet's length.
    #[error("{0} is not on a SubnetLen boundary: {1}")]
    NotAligned(&'static str, Ipv4Addr),
    /// `Backend` is not an object.
    #[error("error decoding Backend property of config: {0}")]
    BackendNotObject(&'static str),
    /// The backend's own options are wrong.
    #[error("error decoding VXLAN backend config: {0}")]
    Vxlan(String),
    /// A backend flannel has and we do not.
    #[error(
        "Error fetching backend: backend type {0} is not supported by overlayd; set Backend.Type to \"vxlan\""
    )]
    UnsupportedBackend(String),
    /// A backend nobody knows.
    #[error("Error fetching backend: unknown backend type: {0}; set Backend.Type to \"vxlan\"")]
    UnknownBackend(String),
    /// An option that flannel has and we do not.
    #[error("{0} is not supported by overlayd; remove it from the network config")]
    Unsupported(&'static str),
}

impl ConfigError {
    /// Whether waiting for a better configuration is pointless: flannel exits on these and waits on all others.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Vxlan(_) | Self::UnsupportedBackend(_) | Self::UnknownBackend(_))
    }
}

const OTHER_BACKENDS: [&str; 11] = [
    "udp",
    "host-gw",
    "ipip",
    "alloc",
    "extension",
    "wireguard",
    "ipsec",
    "aws-vpc",
    "gce",
    "ali-vpc",
    "tencent-vpc",
];

impl NetworkConfig {
    /// Parses and checks the value of the config key.
    ///
    /// # Errors
    /// The first rule that is broken, in flannel's order and words. [`ConfigError::is_fatal`] tells whether to wait.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let map = gojson::object(text)?;
        // Go decodes the whole object before any rule is checked, so wrong types come first.
        let network = gojson::string(&map, "Network")?.map(|s| s.parse::<Subnet>()).transpose()?;
        let subnet_len = gojson::unsigned(&map, "SubnetLen")?.filter(|len| *len > 0);
        let min = gojson::ipv4(&map, "SubnetMin")?.filter(|ip| !ip.is_unspecified());
        let max = gojson::ipv4(&map, "SubnetMax")?.filter(|ip| !ip.is_unspecified());
        let ipv4 = gojson::boolean(&map, "EnableIPv4")?.unwrap_or(true);
        let ipv6 = gojson::boolean(&map, "EnableIPv6")?.unwrap_or(false);
        let nftables = gojson::boolean(&map, "EnableNFTables")?.unwrap_or(false);

        if !ipv4 {
            return Err(ConfigError::Unsupported("EnableIPv4 false"));
        }
        if ipv6 {
            return Err(ConfigError::Unsupported("EnableIPv6 true"));
        }
        let network = network.filter(|n| n.len() > 0).ok_or(ConfigError::NoNetwork)?;
        let range = range(network, subnet_len, min, max)?;
        Ok(Self { network, range, backend: backend(&map)?, nftables })
    }
}

fn range(
    network: Subnet,
    subnet_len: Option<u64>,
    min: Option<Ipv4Addr>,
    max: Option<Ipv4Addr>,
) -> Result<Range, ConfigError> {
    let len = match subnet_len {
        Some(len) if len > 30 => return Err(ConfigError::SubnetLenTooLong),
        Some(len) if len < u64::from(network.len()) + 2 => return Err(ConfigError::TooFewSubnets),
        Some(len) => u8::try_from(len).map_err(|_| ConfigError::SubnetLenTooLong)?,
        None if network.len() > 28 => return Err(ConfigError::NetworkTooSmall),
        None if network.len() <= 22 => 24,
        None => network.len() + 2,
    };
    let size = 1u32 << (32 - len);
    for (name, bound) in [("SubnetMin", min), ("SubnetMax", max)] {
        if bound.is_some_and(|ip| !network.contains(ip)) {
            return Err(ConfigError::OutsideNetwork(name));
        }
    }
    // The first subnet is skipped, as flannel does: its base is the network's own address.
    let min = min.unwrap_or_else(|| (u32::from(network.base()) + size).into());
    let max = max.unwrap_or_else(|| (u32::from(network.last()) - (size - 1)).into());
    for (name, bound) in [("SubnetMin", min), ("SubnetMax", max)] {
        if Subnet::new(bound, len).is_none() {
            return Err(ConfigError::NotAligned(name, bound));
        }
    }
    Ok(Range { min, max, len })
}

fn backend(map: &Map<String, Value>) -> Result<Backend, ConfigError> {
    let options = match gojson::field(map, "Backend") {
        // flannel's default when there is no Backend at all.
        None => return Err(ConfigError::UnsupportedBackend("udp (the default without Backend)".into())),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(ConfigError::BackendNotObject(gojson::kind(other))),
    };
    let kind = gojson::string(options, "Type")
        .map_err(|_| ConfigError::BackendNotObject("a Type that is not a string"))?
        .unwrap_or_default()
        .to_lowercase();
    match kind.as_str() {
        "vxlan" => Ok(Backend::Vxlan(vxlan(options)?)),
        other if OTHER_BACKENDS.contains(&other) => Err(ConfigError::UnsupportedBackend(kind)),
        _ => Err(ConfigError::UnknownBackend(kind)),
    }
}

fn vxlan(options: &Map<String, Value>) -> Result<VxlanConfig, ConfigError> {
    let wrong = |e: &dyn std::fmt::Display| ConfigError::Vxlan(e.to_string());
    let unsigned = |name| gojson::unsigned(options, name).map_err(|e| wrong(&e));
    let boolean = |name| gojson::boolean(options, name).map(Option::unwrap_or_default).map_err(|e| wrong(&e));

    let vni = unsigned("VNI")?.map(Vni::try_from).transpose().map_err(|e| wrong(&e))?.unwrap_or(Vni::DEFAULT);
    let port =
        unsigned("Port")?.map(u16::try_from).transpose().map_err(|_| wrong(&"Port: must be 0 to 65535"))?;
    let mtu = unsigned("MTU")?.filter(|m| *m > 0).map(Mtu::try_from).transpose().map_err(|e| wrong(&e))?;
    let datapath =
        gojson::string(options, "Datapath").map_err(|e| wrong(&e))?.filter(|text| !text.is_empty());
    let datapath = datapath.map(|text| text.parse()).transpose();
    let datapath = datapath.map_err(|e: TypeError| wrong(&format!("Datapath: {e}")))?;
    if boolean("DirectRouting")? {
        return Err(wrong(&"DirectRouting true is not supported by overlayd; remove it"));
    }
    Ok(VxlanConfig {
        vni,
        port: port.filter(|p| *p > 0),
        gbp: boolean("GBP")?,
        learning: boolean("Learning")?,
        mtu,
        datapath,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_backend(rest: &str) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::parse(&format!(r#"{{{rest},"Backend":{{"Type":"vxlan"}}}}"#))
    }

    #[test]
    fn the_tutorials_config() {
        let config =
            NetworkConfig::parse(r#"{ "Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
        assert_eq!(config.network.to_string(), "172.17.0.0/16");
        let range = Range { min: [172, 17, 1, 0].into(), max: [172, 17, 255, 0].into(), len: 24 };
        assert_eq!(config.range, range);
        let vxlan = VxlanConfig {
            vni: Vni::DEFAULT,
            port: None,
            gbp: false,
            learning: false,
            mtu: None,
            datapath: None,
        };
        assert_eq!(config.backend, Backend::Vxlan(vxlan));
    }

    #[test]
    fn keys_match_without_regard_to_case_and_unknown_ones_are_ignored() {
        let text = r#"{"network":"10.3.7.9/16","SUBNETLEN":25,"other":[1],"backend":{"type":"VXLAN","vni":7,"port":4789,"dataPath":"rust"}}"#;
        let config = NetworkConfig::parse(text).unwrap();
        assert_eq!((config.network.to_string().as_str(), config.range.len), ("10.3.0.0/16", 25));
        let Backend::Vxlan(vxlan) = config.backend;
        assert_eq!((vxlan.vni.get(), vxlan.port), (7, Some(4789)));
        assert_eq!(vxlan.datapath, Some(DatapathChoice::Rust));
    }

    #[test]
    fn ranges_are_flannels() {
        for (network, min, max, len) in [
            ("10.3.0.0/16", "10.3.1.0", "10.3.255.0", 24),
            ("10.3.0.0/23", "10.3.0.128", "10.3.1.128", 25),
            ("10.3.0.0/28", "10.3.0.4", "10.3.0.12", 30),
            ("255.255.0.0/16", "255.255.1.0", "255.255.255.0", 24),
        ] {
            let config = with_backend(&format!(r#""Network":"{network}""#)).unwrap();
            assert_eq!(config.range, Range { min: min.parse().unwrap(), max: max.parse().unwrap(), len });
        }
    }

    #[test]
    fn errors_have_flannels_words_and_order() {
        for (rest, words) in [
            (r#""Network":"10.3.0.0""#, "invalid CIDR address: 10.3.0.0"),
            (r#""Network":"10.3.0.0/16","SubnetLen":31"#, "SubnetLen must be less than /31"),
            (
                r#""Network":"10.3.0.0/16","SubnetLen":17"#,
                "Network must be able to accommodate at least four subnets",
            ),
            (r#""Network":"10.3.0.0/29""#, "Network is too small. Minimum useful network prefix is /28"),
            (
                r#""Network":"10.3.0.0/16","SubnetMin":"10.4.0.0""#,
                "SubnetMin is not in the range of the Network",
            ),
            (
                r#""Network":"10.3.0.0/16","SubnetMax":"10.4.0.0""#,
                "SubnetMax is not in the range of the Network",
            ),
            (
                r#""Network":"10.3.0.0/16","SubnetMin":"10.3.0.5""#,
                "SubnetMin is not on a SubnetLen boundary: 10.3.0.5",
            ),
            (
                r#""Network":"10.3.0.0/16","SubnetMax":"10.3.0.5""#,
                "SubnetMax is not on a SubnetLen boundary: 10.3.0.5",
            ),
            (r#""Network":7"#, "Network: expected a string, found 7"),
            (r#""x":1"#, "please define a correct Network parameter in the flannel config"),
            (r#""Network":"0.0.0.0/0""#, "please define a correct Network parameter in the flannel config"),
            (
                r#""Network":"10.3.0.0/16","EnableIPv6":true"#,
                "EnableIPv6 true is not supported by overlayd; remove it from the network config",
            ),
        ] {
            let error = with_backend(rest).unwrap_err();
            assert_eq!(error.to_string(), words);
            assert!(!error.is_fatal(), "{words}");
        }
        assert_eq!(NetworkConfig::parse("{}").unwrap_err(), ConfigError::NoNetwork);
    }

    #[test]
    fn backends_are_refused_by_name() {
        for (backend, words, fatal) in [
            ("7", "error decoding Backend property of config: a number", false),
            ("{}", r#"Error fetching backend: unknown backend type: ; set Backend.Type to "vxlan""#, true),
            (
                r#"{"Type":"wormhole"}"#,
                r#"Error fetching backend: unknown backend type: wormhole; set Backend.Type to "vxlan""#,
                true,
            ),
            (
                r#"{"Type":"Host-GW"}"#,
                r#"Error fetching backend: backend type host-gw is not supported by overlayd; set Backend.Type to "vxlan""#,
                true,
            ),
            (
                "null",
                r#"Error fetching backend: backend type udp (the default without Backend) is not supported by overlayd; set Backend.Type to "vxlan""#,
                true,
            ),
            (
                r#"{"Type":"vxlan","VNI":"1"}"#,
                r#"error decoding VXLAN backend config: VNI: expected a whole number, not negative, found "1""#,
                true,
            ),
            (
                r#"{"Type":"vxlan","VNI":16777216}"#,
                "error decoding VXLAN backend config: VNI 16777216 is out of range (0 to 16777215)",
                true,
            ),
            (
                r#"{"Type":"vxlan","Port":65536}"#,
                "error decoding VXLAN backend config: Port: must be 0 to 65535",
                true,
            ),
            (
                r#"{"Type":"vxlan","Datapath":"ebpf"}"#,
                r#"error decoding VXLAN backend config: Datapath: unknown data path "ebpf": must be kernel, rust or auto"#,
                true,
            ),
            (
                r#"{"Type":"vxlan","Datapath":true}"#,
                "error decoding VXLAN backend config: Datapath: expected a string, found true",
                true,
            ),
            (
                r#"{"Type":"vxlan","DirectRouting":true}"#,
                "error decoding VXLAN backend config: DirectRouting true is not supported by overlayd; remove it",
                true,
            ),
        ] {
            let error = NetworkConfig::parse(&format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#))
                .unwrap_err();
            assert_eq!((error.to_string().as_str(), error.is_fatal()), (words, fatal));
        }
    }

    proptest! {
        #[test]
        fn every_accepted_config_has_an_aligned_range_inside_the_network(
            base: u32, len in 1u8..=32, subnet_len in prop::option::of(0u8..40),
        ) {
            let network = Subnet::containing(base.into(), len).unwrap();
            let rest = subnet_len.map(|l| format!(r#","SubnetLen":{l}"#)).unwrap_or_default();
            if let Ok(config) = with_backend(&format!(r#""Network":"{network}"{rest}"#)) {
                let range = config.range;
                prop_assert!(range.min <= range.max);
                for bound in [range.min, range.max] {
                    let subnet = Subnet::new(bound, range.len);
                    prop_assert!(subnet.is_some_and(|s| network.contains_subnet(s)));
                }
            }
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,80}") {
            let _ = NetworkConfig::parse(&text);
        }
    }
}
