//! `subnet.env`, the file through which the container runtime learns its subnet and MTU, byte for byte flannel's.
//!
//! ```text
//! FLANNEL_NETWORK=172.17.0.0/16
//! FLANNEL_SUBNET=172.17.11.1/24
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=true
//! ```
//!
//! The file is also our memory of the subnet we had. Departure: where `mk-docker-opts.sh -d` was pointed at this very
//! file (the usual unit does that) the `FLANNEL_*` lines are gone; then the subnet is read from Docker's `--bip`,
//! which is the same value, so that a host whose lease ran out still comes back with its old subnet.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::types::{Mtu, Subnet};

/// The contents of `subnet.env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole overlay network.
    pub network: Subnet,
    /// This host's subnet.
    pub subnet: Subnet,
    /// MTU for containers.
    pub mtu: Mtu,
    /// Whether we masquerade, so that the runtime must not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// The text of the file: four lines, no quotes. The subnet is written as its first host address, the bridge's.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "FLANNEL_NETWORK={}", self.network);
        let _ = writeln!(text, "FLANNEL_SUBNET={}/{}", self.subnet.first_host(), self.subnet.len());
        let _ = writeln!(text, "FLANNEL_MTU={}", self.mtu);
        let _ = writeln!(text, "FLANNEL_IPMASQ={}", self.ip_masq);
        text
    }
}

/// What an earlier run left in `subnet.env`, as far as it is of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Previous {
    /// The overlay network then.
    pub network: Option<Subnet>,
    /// The subnet we had.
    pub subnet: Option<Subnet>,
}

impl Previous {
    /// Reads a `subnet.env` or what `mk-docker-opts.sh` made of it. Unusable text gives nothing.
    pub fn parse(text: &str) -> Self {
        let variables = variables(text);
        let subnet = |name: &str| variables.get(name).and_then(|v| v.parse::<Subnet>().ok());
        let from_bip = || variables.values().find_map(|v| bip(v));
        Self { network: subnet("FLANNEL_NETWORK"), subnet: subnet("FLANNEL_SUBNET").or_else(from_bip) }
    }
}

fn bip(value: &str) -> Option<Subnet> {
    value.split_whitespace().find_map(|word| word.strip_prefix("--bip=")?.parse().ok())
}

/// Splits a file of `NAME=value` lines (blank lines, `#` comments, `export`, and quotes round a value allowed).
///
/// Lines of another form are skipped; of two lines for one name the later counts.
pub fn variables(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(variable).collect()
}

fn variable(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let value = value.trim();
    let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(value);
    is_name.then(|| (name.to_owned(), unquoted.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_flannels() {
        let env = SubnetEnv {
            network: "172.17.0.0/16".parse().unwrap(),
            subnet: "172.17.11.0/24".parse().unwrap(),
            mtu: Mtu::try_from(1450).unwrap(),
            ip_masq: true,
        };
        let text = "FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET=172.17.11.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(env.render(), text);
        assert_eq!(Previous::parse(text), Previous { network: Some(env.network), subnet: Some(env.subnet) });
    }

    #[test]
    fn the_subnet_survives_mk_docker_opts_writing_over_the_file() {
        let text = "DOCKER_OPT_BIP=\"--bip=172.17.34.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n";
        let subnet = Some("172.17.34.0/24".parse().unwrap());
        assert_eq!(Previous::parse(text), Previous { network: None, subnet });
        let combined = "X=\" --bip=172.17.34.1/24 --mtu=1450\"\n";
        assert_eq!(Previous::parse(combined).subnet, subnet);
    }

    #[test]
    fn unusable_text_is_nothing() {
        for text in ["", "FLANNEL_SUBNET=here", "FLANNEL_SUBNET", "\0\0", "A=--bip=x"] {
            assert_eq!(Previous::parse(text), Previous::default(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(net: u32, len in 1u8..=28, sub in 1u8..=30, mtu in 68u64..=65535, ip_masq: bool) {
            let network = Subnet::containing(net.into(), len).unwrap();
            let subnet = Subnet::containing(net.into(), sub).unwrap();
            let env = SubnetEnv { network, subnet, mtu: Mtu::try_from(mtu).unwrap(), ip_masq };
            let previous = Previous::parse(&env.render());
            prop_assert_eq!(previous, Previous { network: Some(network), subnet: Some(subnet) });
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,80}") {
            let _ = Previous::parse(&text);
        }
    }
}
