//! Chooses the external interface: the one whose address other hosts send the encapsulated packets to. Pure; the
//! lists come from [`crate::net::netlink`].
//!
//! In order: each `-iface` (an IPv4 address picks the interface that carries it and that address; else a name), each
//! `-iface-regex` (against every address, then against names), `-iface-can-reach`; with none of them the first IPv4
//! default route. Departure from flannel v0.10: a regular expression sees all addresses of an interface, not only the
//! first one.

use std::net::Ipv4Addr;

use crate::config::InterfaceChoice;
use crate::types::{Mtu, TypeError};

/// A network interface with its IPv4 addresses in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// The interface to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Its MTU.
    pub mtu: Mtu,
    /// The address outer packets come from.
    pub address: Ipv4Addr,
}

/// Why no interface could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// Nothing was asked for, and no default route shows the way.
    #[error(
        "Failed to find any valid interface to use: failed to get default interface: Unable to find default route (name one with -iface)"
    )]
    NoDefaultRoute,
    /// The default route's interface has no usable address.
    #[error("Failed to find any valid interface to use: {0} (name one with -iface)")]
    Default(String),
    /// Nothing that was asked for exists. Holds why, one entry for each wish.
    #[error("Failed to find interface to use that matches the interfaces and/or regexes provided: {}", .0.join("; "))]
    NoMatch(Vec<String>),
    /// The interface cannot carry the overlay.
    #[error("failed to determine MTU for {0} interface: {1}")]
    Mtu(String, TypeError),
}

/// Picks the interface; `default` and `reach` are the indexes of the default route's interface and of the one that
/// leads to `-iface-can-reach`.
///
/// # Errors
/// When nothing fits; each wish that was not met is named.
pub fn select(
    choice: &InterfaceChoice,
    interfaces: &[Interface],
    default: Option<u32>,
    reach: Option<u32>,
) -> Result<External, InterfaceError> {
    let by_index = |index: u32| interfaces.iter().find(|i| i.index == index);
    if choice.names.is_empty() && choice.regexes.is_empty() && choice.can_reach.is_none() {
        let interface = default.and_then(by_index).ok_or(InterfaceError::NoDefaultRoute)?;
        let address = best_address(interface).map_err(InterfaceError::Default)?;
        return external(interface, address);
    }
    let mut misses = Vec::new();
    let names = choice.names.iter().map(|name| (name.clone(), by_name(interfaces, name)));
    let regexes = choice.regexes.iter().map(|regex| (regex.to_string(), by_regex(interfaces, regex)));
    let reached = choice.can_reach.iter().map(|ip| {
        let found = reach.and_then(by_index).ok_or_else(|| "no route leads there".to_owned());
        (ip.to_string(), found.and_then(|i| best_address(i).map(|a| (i, a))))
    });
    for (wish, found) in names.chain(regexes).chain(reached) {
        match found {
            Ok((interface, address)) => return external(interface, address),
            Err(why) => misses.push(format!("Could not find valid interface matching {wish}: {why}")),
        }
    }
    Err(InterfaceError::NoMatch(misses))
}

type Found<'a> = Result<(&'a Interface, Ipv4Addr), String>;

fn by_name<'a>(interfaces: &'a [Interface], wish: &str) -> Found<'a> {
    if let Ok(address) = wish.parse::<Ipv4Addr>() {
        let carrier = interfaces.iter().find(|i| i.addresses.contains(&address));
        return carrier.map(|i| (i, address)).ok_or_else(|| "no interface with given IP found".to_owned());
    }
    let interface = interfaces.iter().find(|i| i.name == wish);
    let interface = interface.ok_or_else(|| "no such network interface".to_owned())?;
    best_address(interface).map(|address| (interface, address))
}

fn by_regex<'a>(interfaces: &'a [Interface], regex: &regex::Regex) -> Found<'a> {
    let addresses = interfaces.iter().flat_map(|i| i.addresses.iter().map(move |a| (i, *a)));
    let usable = addresses.filter(|(_, a)| !a.is_loopback());
    if let Some(found) = usable.into_iter().find(|(_, a)| regex.is_match(&a.to_string())) {
        return Ok(found);
    }
    let interface = interfaces.iter().find(|i| regex.is_match(&i.name));
    let interface = interface.ok_or_else(|| "no address and no name matches".to_owned())?;
    best_address(interface).map(|address| (interface, address))
}

/// The first global unicast address, else the last link-local one; never a loopback address.
fn best_address(interface: &Interface) -> Result<Ipv4Addr, String> {
    let global = |a: &&Ipv4Addr| {
        !(a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_unspecified() || a.is_broadcast())
    };
    let link_local = || interface.addresses.iter().rev().find(|a| a.is_link_local());
    interface
        .addresses
        .iter()
        .find(global)
        .or_else(link_local)
        .copied()
        .ok_or_else(|| format!("failed to find IPv4 address for interface {}", interface.name))
}

fn external(interface: &Interface, address: Ipv4Addr) -> Result<External, InterfaceError> {
    // The loopback device has 65536; no packet of ours is longer than 65535.
    let mtu = Mtu::try_from(u64::from(interface.mtu).min(65_535));
    let mtu = mtu.map_err(|e| InterfaceError::Mtu(interface.name.clone(), e))?;
    Ok(External { index: interface.index, name: interface.name.clone(), mtu, address })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use regex::Regex;

    use super::*;

    fn interfaces() -> Vec<Interface> {
        let interface = |index, name: &str, addresses: &[&str]| Interface {
            index,
            name: name.into(),
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        };
        vec![
            interface(1, "lo", &["127.0.0.1"]),
            interface(2, "eth0", &["169.254.1.1", "10.99.0.2", "10.99.0.3"]),
            interface(3, "eth1", &["192.168.31.65"]),
            interface(4, "eth2", &["169.254.1.2", "169.254.1.3"]),
            Interface { mtu: 0, ..interface(5, "tiny", &["10.5.0.1"]) },
        ]
    }

    fn pick(
        names: &[&str],
        regexes: &[&str],
        reach: Option<u32>,
    ) -> Result<(String, Ipv4Addr), InterfaceError> {
        let choice = InterfaceChoice {
            names: names.iter().map(|s| (*s).to_owned()).collect(),
            regexes: regexes.iter().map(|s| Regex::new(s).unwrap()).collect(),
            can_reach: reach.map(|_| [10, 1, 1, 1].into()),
        };
        select(&choice, &interfaces(), Some(3), reach).map(|e| (e.name, e.address))
    }

    #[allow(clippy::unnecessary_wraps, reason = "stands on the right of an assert_eq")]
    fn found(name: &str, address: [u8; 4]) -> Result<(String, Ipv4Addr), InterfaceError> {
        Ok((name.into(), address.into()))
    }

    #[test]
    fn the_default_route_decides_when_nothing_is_asked_for() {
        assert_eq!(pick(&[], &[], None), found("eth1", [192, 168, 31, 65]));
        let error = select(&InterfaceChoice::default(), &interfaces(), None, None);
        assert_eq!(error, Err(InterfaceError::NoDefaultRoute));
        let error = select(&InterfaceChoice::default(), &interfaces(), Some(1), None).unwrap_err();
        assert!(error.to_string().contains("failed to find IPv4 address for interface lo"), "{error}");
    }

    #[test]
    fn wishes_are_tried_in_order() {
        assert_eq!(pick(&["eth9", "eth0"], &[], None), found("eth0", [10, 99, 0, 2]));
        assert_eq!(pick(&["10.99.0.3", "eth1"], &[], None), found("eth0", [10, 99, 0, 3]));
        assert_eq!(pick(&["eth2"], &[], None), found("eth2", [169, 254, 1, 3]));
        assert_eq!(pick(&["lo"], &["eth1"], None), found("eth1", [192, 168, 31, 65]));
        assert_eq!(pick(&[], &[r"^10\.99\.0\.3$"], None), found("eth0", [10, 99, 0, 3]));
        assert_eq!(pick(&[], &["^eth[12]$"], None), found("eth1", [192, 168, 31, 65]));
        assert_eq!(pick(&["no"], &["no"], Some(2)), found("eth0", [10, 99, 0, 2]));
    }

    #[test]
    fn every_miss_is_named() {
        let error = pick(&["eth9", "1.2.3.4"], &["^x$"], None).unwrap_err().to_string();
        for words in [
            "matching eth9: no such network interface",
            "matching 1.2.3.4: no interface with given IP",
            "matching ^x$",
        ] {
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(pick(&["tiny"], &[], None), Err(InterfaceError::Mtu(..))));
    }
}
