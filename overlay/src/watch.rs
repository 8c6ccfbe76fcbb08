//! What the store's events mean: leases, losses of leases, and odd keys; and which of the leases are peers to program.
//!
//! Departures from flannel v0.10, all of them defects there: an odd key or value never stops the watch, it is
//! reported and passed over; deleting the whole directory is understood; a resync reports changed values as well as
//! missing keys, because the table is replaced, not compared by subnet; a renewal that changes nothing is no change.

use std::collections::BTreeMap;

use store::client::{Node, Response};

use crate::datapath::Peer;
use crate::types::{Subnet, VtepMac};
use crate::wire::lease::{Lease, LeaseValue, leases_dir, parse_subnet_key};

/// A key below the leases' directory that is of no use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Odd {
    /// The key.
    pub key: String,
    /// The subnet it names, if it names one.
    pub subnet: Option<Subnet>,
    /// What is wrong with it.
    pub why: String,
}

/// One event, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A lease was written.
    Put(Lease),
    /// A lease was deleted or has expired.
    Gone(Subnet),
    /// A key was written that is no lease. If it names a subnet, that subnet has no usable lease any more.
    Odd(Odd),
    /// The directory of all leases was deleted.
    AllGone,
    /// Nothing that concerns leases.
    Nothing,
}

/// Everything below the leases' directory at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The leases.
    pub leases: Vec<Lease>,
    /// Everything else.
    pub odd: Vec<Odd>,
    /// The store's index at that moment; the watch goes on after it.
    pub index: u64,
}

/// Reads a node as a lease.
///
/// # Errors
/// The node as [`Odd`] when key or value is not a lease's.
pub fn lease(node: &Node) -> Result<Lease, Odd> {
    let odd = |subnet, why: String| Odd { key: node.key.clone(), subnet, why };
    let Some(subnet) = parse_subnet_key(&node.key) else {
        return Err(odd(None, "the name is not <a.b.c.d>-<length>".to_owned()));
    };
    if node.dir {
        return Err(odd(Some(subnet), "is a directory".to_owned()));
    }
    let value = LeaseValue::parse(node.value.as_deref().unwrap_or_default());
    let value = value.map_err(|e| odd(Some(subnet), e.to_string()))?;
    // A TTL of zero or less is one that is running out this moment.
    let ttl_s = node.ttl.map(|s| u64::try_from(s).unwrap_or(0));
    Ok(Lease { subnet, value, ttl_s, modified_index: node.modified_index })
}

/// Reads the answer to a recursive GET of the leases' directory.
pub fn listing(response: &Response) -> Listing {
    let mut listing = Listing { index: response.etcd_index, ..Listing::default() };
    for node in response.node.iter().flat_map(|dir| &dir.nodes) {
        match lease(node) {
            Ok(lease) => listing.leases.push(lease),
            Err(odd) => listing.odd.push(odd),
        }
    }
    listing
}

/// Reads the answer to a watch of the leases' directory below `prefix`.
pub fn event(prefix: &str, response: &Response) -> Event {
    let Some(node) = &response.node else { return Event::Nothing };
    let removed = matches!(response.action.as_str(), "delete" | "expire" | "compareAndDelete");
    let dir = leases_dir(prefix);
    let Some(name) = node.key.strip_prefix(&dir).and_then(|rest| rest.strip_prefix('/')) else {
        // The directory itself or one above it.
        return if removed { Event::AllGone } else { Event::Nothing };
    };
    if name.contains('/') {
        return Event::Nothing; // only what is directly below counts
    }
    if removed {
        return parse_subnet_key(&node.key).map_or(Event::Nothing, Event::Gone);
    }
    match lease(node) {
        Ok(lease) => Event::Put(lease),
        Err(odd) => Event::Odd(odd),
    }
}

/// A lease that is not programmed, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Skipped {
    /// Its subnet.
    pub subnet: Subnet,
    /// Why.
    pub why: String,
}

/// The peers among `leases`: every usable VXLAN lease but our own.
///
/// Left out, with a reason, is what would do harm: a subnet outside `network` (one wrong key could otherwise take
/// over the host's default route), one that overlaps ours, a VTEP address that is ours or that another peer has, and
/// a subnet whose base address another peer has. Of two that clash the lower subnet stays.
pub fn peers<'a>(
    leases: impl IntoIterator<Item = &'a Lease>,
    own: Subnet,
    own_mac: VtepMac,
    network: Subnet,
) -> (BTreeMap<Subnet, Peer>, Vec<Skipped>) {
    let sorted: BTreeMap<Subnet, &Lease> = leases.into_iter().map(|l| (l.subnet, l)).collect();
    let mut peers: BTreeMap<Subnet, Peer> = BTreeMap::new();
    let mut skipped = Vec::new();
    for (subnet, lease) in sorted {
        if subnet == own {
            continue;
        }
        match peer(lease, own, own_mac, network, &peers) {
            Ok(peer) => drop(peers.insert(subnet, peer)),
            Err(why) => skipped.push(Skipped { subnet, why }),
        }
    }
    (peers, skipped)
}

fn peer(
    lease: &Lease,
    own: Subnet,
    own_mac: VtepMac,
    network: Subnet,
    others: &BTreeMap<Subnet, Peer>,
) -> Result<Peer, String> {
    let Lease { subnet, value, .. } = lease;
    if !value.is_vxlan() {
        return Err(format!("ignoring non-vxlan subnet({subnet}): type={}", value.backend_type));
    }
    if !network.contains_subnet(*subnet) {
        return Err(format!("is outside the overlay network {network}"));
    }
    if subnet.overlaps(own) {
        return Err(format!("overlaps this host's own subnet {own}"));
    }
    let mac = value.vtep_mac().map_err(|e| e.to_string())?;
    if mac == own_mac {
        return Err(format!(
            "carries this host's own VTEP address {mac}; does {} have a copy of this host?",
            value.public_ip
        ));
    }
    let peer = Peer { mac, public_ip: value.public_ip };
    for (other, p) in others {
        if p.mac == mac && p.public_ip != peer.public_ip {
            return Err(format!("carries the VTEP address {mac} of {other} at {}", p.public_ip));
        }
        if other.base() == subnet.base() {
            return Err(format!("has the base address of {other}"));
        }
    }
    Ok(peer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const PREFIX: &str = "/coreos.com/network";

    fn node(key: &str, value: Option<&str>) -> Node {
        let ttl = Some(86_400);
        Node { key: key.into(), value: value.map(Into::into), ttl, modified_index: 9, ..Node::default() }
    }

    fn seen(action: &str, key: &str, value: Option<&str>) -> Event {
        event(
            PREFIX,
            &Response { action: action.into(), node: Some(node(key, value)), ..Response::default() },
        )
    }

    fn vxlan(subnet: &str, ip: [u8; 4], mac: u8) -> Lease {
        let value = LeaseValue::vxlan(ip.into(), VtepMac::locally_administered([2, 0, 0, 0, 0, mac]));
        Lease { subnet: subnet.parse().unwrap(), value, ttl_s: Some(1), modified_index: 1 }
    }

    #[test]
    fn events_are_understood() {
        let key = "/coreos.com/network/subnets/172.17.30.0-24";
        let subnet: Subnet = "172.17.30.0/24".parse().unwrap();
        let value = r#"{"PublicIP":"10.99.0.3"}"#;
        for action in ["set", "create", "update", "compareAndSwap"] {
            assert!(
                matches!(seen(action, key, Some(value)), Event::Put(l) if l.subnet == subnet && l.modified_index == 9)
            );
        }
        for action in ["delete", "expire", "compareAndDelete"] {
            assert_eq!(seen(action, key, None), Event::Gone(subnet));
        }
        assert!(matches!(seen("set", key, Some("{")), Event::Odd(o) if o.subnet == Some(subnet)));
    }

    #[test]
    fn what_wedges_flannel_is_passed_over() {
        assert_eq!(seen("delete", "/coreos.com/network/subnets", None), Event::AllGone);
        assert_eq!(seen("expire", "/coreos.com", None), Event::AllGone);
        assert!(
            matches!(seen("set", "/coreos.com/network/subnets/README", Some("x")), Event::Odd(o) if o.subnet.is_none())
        );
        assert_eq!(seen("delete", "/coreos.com/network/subnets/README", None), Event::Nothing);
        assert_eq!(seen("set", "/coreos.com/network/subnets/a/172.17.1.0-24", Some("{}")), Event::Nothing);
        assert_eq!(event(PREFIX, &Response::default()), Event::Nothing);
    }

    #[test]
    fn a_listing_sorts_leases_from_the_rest() {
        let dir = Node {
            nodes: vec![
                node("/p/subnets/172.17.30.0-24", Some(r#"{"PublicIP":"10.99.0.3"}"#)),
                node("/p/subnets/x", Some("")),
                Node { dir: true, ..node("/p/subnets/172.17.31.0-24", None) },
                Node { ttl: None, ..node("/p/subnets/172.17.32.0-24", Some(r#"{"PublicIP":"10.99.0.4"}"#)) },
            ],
            ..Node::default()
        };
        let listing = listing(&Response { node: Some(dir), etcd_index: 77, ..Response::default() });
        assert_eq!((listing.leases.len(), listing.odd.len(), listing.index), (2, 2, 77));
        assert_eq!((listing.leases[0].ttl_s, listing.leases[1].ttl_s), (Some(86_400), None));
    }

    #[test]
    fn harmful_leases_are_left_out_with_a_reason() {
        let leases = [
            vxlan("172.17.5.0/24", [10, 0, 0, 5], 5),
            vxlan("172.17.6.0/24", [10, 0, 0, 6], 6),
            vxlan("172.17.7.0/24", [10, 0, 0, 6], 6), // one host with two subnets is fine
            vxlan("172.17.8.0/24", [10, 0, 0, 8], 6),
            vxlan("172.17.9.0/24", [10, 0, 0, 9], 1),
            vxlan("172.17.6.0/25", [10, 0, 0, 10], 10),
            vxlan("172.17.1.128/25", [10, 0, 0, 11], 11),
            vxlan("0.0.0.0/0", [10, 0, 0, 12], 12),
            Lease {
                value: LeaseValue::parse(r#"{"PublicIP":"10.0.0.13"}"#).unwrap(),
                ..vxlan("172.17.13.0/24", [0; 4], 13)
            },
            vxlan("172.17.1.0/24", [10, 0, 0, 1], 1),
        ];
        let own = "172.17.1.0/24".parse().unwrap();
        let own_mac = VtepMac::locally_administered([2, 0, 0, 0, 0, 1]);
        let (peers, skipped) = peers(&leases, own, own_mac, "172.17.0.0/16".parse().unwrap());
        let subnets: Vec<String> = peers.keys().map(ToString::to_string).collect();
        assert_eq!(subnets, ["172.17.5.0/24", "172.17.6.0/24", "172.17.7.0/24"]);
        let why: Vec<&str> = skipped.iter().map(|s| s.why.as_str()).collect();
        for (why, words) in why.iter().zip([
            "outside the overlay network",
            "overlaps this host's own subnet",
            "has the base address of 172.17.6.0/24",
            "carries the VTEP address 02:00:00:00:00:06 of 172.17.6.0/24",
            "carries this host's own VTEP address",
            "ignoring non-vxlan subnet",
        ]) {
            assert!(why.contains(words), "{why} / {words}");
        }
        assert_eq!(why.len(), 6);
    }
}
