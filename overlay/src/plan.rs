//! What to change in the kernel so that it looks as the leases say. Pure: two states in, an ordered list of changes
//! out; applying the list to the observed state leaves nothing to do.
//!
//! For each peer flannel v0.10 leaves one permanent neighbour (subnet base -> VTEP MAC), one permanent FDB entry
//! (VTEP MAC -> underlay address) and one onlink route (subnet via subnet base). The route comes last, or the kernel
//! would start to resolve the gateway by itself.
//!
//! The device is a kernel VXLAN device, or a TAP whose frames our own data path carries. On a TAP everything looks the
//! same except that there are no FDB entries: which underlay address stands behind a MAC is in the data path's table.
//!
//! Departures from v0.10, which only ever adds what events bring: entries without a lease are removed whenever seen
//! (left by a crash, a missed event, an earlier VTEP); a changed MTU, a changed MAC or a device taken down or deleted
//! is put right. What does not have flannel's form (a route of another gateway, an entry that is not permanent) is
//! somebody else's and stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::datapath::Peer;
use crate::types::{Mtu, Subnet, Vni, VtepMac};

/// The device as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Device name, `flannel.<VNI>`.
    pub name: String,
    /// What kind of device it is.
    pub kind: KindSpec,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its hardware address.
    pub mac: VtepMac,
}

/// The kind of device wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KindSpec {
    /// The kernel's VXLAN device.
    Vxlan(VxlanSpec),
    /// A persistent TAP of several queues, read and written by our own data path.
    Tap,
}

/// The options wanted of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port; `None` leaves it to the kernel.
    pub port: Option<u16>,
    /// Interface index of the underlay.
    pub parent: u32,
    /// Source address of outer packets.
    pub local: Ipv4Addr,
    /// Group based policy extension.
    pub gbp: bool,
    /// Whether the device learns from what it receives.
    pub learning: bool,
}

/// How everything should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The device.
    pub link: LinkSpec,
    /// Its one address, a /32; `None` before there is a lease.
    pub address: Option<Ipv4Addr>,
    /// The peers; VTEP addresses and bases must be as [`crate::watch::peers`] leaves them, without clashes.
    pub peers: BTreeMap<Subnet, Peer>,
}

/// The options of a VXLAN device as the kernel reports them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VxlanState {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Interface index of the underlay, 0 if none.
    pub parent: u32,
    /// Source address of outer packets.
    pub local: Option<Ipv4Addr>,
    /// Multicast group or default remote.
    pub group: Option<Ipv4Addr>,
    /// Group based policy extension.
    pub gbp: bool,
    /// Whether the device learns.
    pub learning: bool,
    /// Whether it reports unknown destinations.
    pub l2miss: bool,
}

/// The options of a TAP as the kernel reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TapState {
    /// Whether it takes more than one queue. Fixed when it is made.
    pub multi_queue: bool,
    /// Whether it stays when nobody has it open.
    pub persist: bool,
    /// Whether frames carry a virtio-net header. Follows whoever opened a queue last.
    pub vnet_hdr: bool,
    /// How many queues processes have open.
    pub queues: u32,
}

/// The kind of a device, with the options of those we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KindState {
    /// A VXLAN device.
    Vxlan(VxlanState),
    /// A TAP.
    Tap(TapState),
    /// Any other, by its name.
    Other(String),
}

impl KindState {
    /// The kind's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Tap(_) => "tap",
            Self::Other(name) => name,
        }
    }
}

/// A device as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Interface index.
    pub index: u32,
    /// Its kind and options.
    pub kind: KindState,
    /// Hardware address, if it is a unicast one.
    pub mac: Option<VtepMac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// A route of the main table through our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub to: Subnet,
    /// Next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the next hop counts as reachable although no route leads to it.
    pub onlink: bool,
}

impl Route {
    /// The route flannel makes to a peer's subnet.
    pub fn to_peer(to: Subnet) -> Self {
        Self { to, gateway: Some(to.base()), onlink: true }
    }
}

/// How everything is. The sets hold what belongs to our device only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The device of our name.
    pub link: Option<LinkState>,
    /// IPv4 addresses with prefix length.
    pub addresses: BTreeSet<(Ipv4Addr, u8)>,
    /// Routes of the main table.
    pub routes: BTreeSet<Route>,
    /// Permanent IPv4 neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, VtepMac>,
    /// Permanent FDB entries of the device itself. The kernel keeps one destination for each unicast address.
    pub fdb: BTreeMap<VtepMac, Ipv4Addr>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Delete the device of our name, for the reason given.
    DeleteLink(String),
    /// Create the device: a VXLAN device with its MAC and MTU; a TAP gets those in steps of their own.
    CreateLink,
    /// Set its hardware address.
    SetMac(VtepMac),
    /// Set its MTU.
    SetMtu(Mtu),
    /// Remove an address.
    RemoveAddress(Ipv4Addr, u8),
    /// Add the address, as /32.
    AddAddress(Ipv4Addr),
    /// Bring it up.
    SetUp,
    /// Remove a route.
    RemoveRoute(Route),
    /// Create or replace a permanent neighbour.
    SetNeighbour(Ipv4Addr, VtepMac),
    /// Create or replace a permanent FDB entry.
    SetFdb(VtepMac, Ipv4Addr),
    /// Create or replace the route to a peer's subnet.
    SetRoute(Subnet),
    /// Remove a neighbour.
    RemoveNeighbour(Ipv4Addr),
    /// Remove an FDB entry.
    RemoveFdb(VtepMac, Ipv4Addr),
}

/// Why an existing device cannot be used, in flannel's words; `None` if it can.
///
/// As in flannel a port counts only if the configuration names one. Learning is compared as well (flannel keeps a
/// device that learns, and with it a way to poison the FDB). Of a TAP only what is fixed when it is made counts; the
/// rest is set whenever it is opened.
pub fn incompatibility(spec: &LinkSpec, state: &LinkState) -> Option<String> {
    match (&spec.kind, &state.kind) {
        (KindSpec::Vxlan(spec), KindState::Vxlan(state)) => vxlan_incompatibility(spec, state),
        (KindSpec::Vxlan(_), other) => Some(differs("link type", &"vxlan", &other.name())),
        (KindSpec::Tap, KindState::Tap(tap)) if tap.multi_queue => None,
        (KindSpec::Tap, KindState::Tap(_)) => Some(differs("multi_queue", &true, &false)),
        (KindSpec::Tap, other) => Some(differs("link type", &"tap", &other.name())),
    }
}

fn differs(what: &str, want: &dyn std::fmt::Display, have: &dyn std::fmt::Display) -> String {
    format!("{what}: {want} vs {have}")
}

fn vxlan_incompatibility(spec: &VxlanSpec, vxlan: &VxlanState) -> Option<String> {
    if vxlan.vni != spec.vni.get() {
        return Some(differs("vni", &spec.vni, &vxlan.vni));
    }
    if vxlan.parent != spec.parent {
        return Some(differs("vtep (external) interface", &spec.parent, &vxlan.parent));
    }
    if vxlan.local != Some(spec.local) {
        let have = vxlan.local.map_or_else(|| "none".to_owned(), |ip| ip.to_string());
        return Some(differs("vtep (external) IP", &spec.local, &have));
    }
    if let Some(group) = vxlan.group {
        return Some(differs("group address", &"none", &group));
    }
    if vxlan.l2miss {
        return Some(differs("l2miss", &false, &true));
    }
    if let Some(port) = spec.port.filter(|port| *port != vxlan.port) {
        return Some(differs("port", &port, &vxlan.port));
    }
    if vxlan.gbp != spec.gbp {
        return Some(differs("gbp", &spec.gbp, &vxlan.gbp));
    }
    if vxlan.learning != spec.learning {
        return Some(differs("learning", &spec.learning, &vxlan.learning));
    }
    None
}

/// The changes that turn `observed` into `desired`, in the order in which they must be made.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    let bare = Observed::default();
    let incompatible = observed.link.as_ref().and_then(|link| incompatibility(&desired.link, link));
    // Everything on a device goes with it.
    let (link, observed) = match (&observed.link, incompatible) {
        (Some(link), None) => (Some(link), observed),
        (Some(_), Some(why)) => {
            changes.push(Change::DeleteLink(why));
            (None, &bare)
        }
        (None, _) => (None, &bare),
    };
    device(desired, link, observed, &mut changes);
    entries(desired, observed, &mut changes);
    changes
}

fn device(desired: &Desired, link: Option<&LinkState>, observed: &Observed, changes: &mut Vec<Change>) {
    match link {
        None => {
            changes.push(Change::CreateLink);
            if desired.link.kind == KindSpec::Tap {
                changes.extend([Change::SetMac(desired.link.mac), Change::SetMtu(desired.link.mtu)]);
            }
        }
        Some(link) => {
            if link.mac != Some(desired.link.mac) {
                changes.push(Change::SetMac(desired.link.mac));
            }
            if link.mtu != u32::from(desired.link.mtu.get()) {
                changes.push(Change::SetMtu(desired.link.mtu));
            }
        }
    }
    let Some(address) = desired.address else { return };
    let stale = observed.addresses.iter().filter(|have| **have != (address, 32));
    changes.extend(stale.map(|(ip, len)| Change::RemoveAddress(*ip, *len)));
    if !observed.addresses.contains(&(address, 32)) {
        changes.push(Change::AddAddress(address));
    }
    if !link.is_some_and(|link| link.up) {
        changes.push(Change::SetUp);
    }
}

fn entries(desired: &Desired, observed: &Observed, changes: &mut Vec<Change>) {
    let peers = &desired.peers;
    let neighbours: BTreeMap<Ipv4Addr, VtepMac> = peers.iter().map(|(s, p)| (s.base(), p.mac)).collect();
    let fdb: BTreeMap<VtepMac, Ipv4Addr> = match desired.link.kind {
        KindSpec::Vxlan(_) => peers.values().map(|p| (p.mac, p.public_ip)).collect(),
        KindSpec::Tap => BTreeMap::new(),
    };

    // Routes of departed peers go first: nothing more is sent into the void.
    let ours = |r: &&Route| **r == Route::to_peer(r.to);
    let stale = observed.routes.iter().filter(ours).filter(|r| !peers.contains_key(&r.to));
    changes.extend(stale.map(|r| Change::RemoveRoute(*r)));

    for (ip, mac) in &neighbours {
        if observed.neighbours.get(ip) != Some(mac) {
            changes.push(Change::SetNeighbour(*ip, *mac));
        }
    }
    for (mac, ip) in &fdb {
        if observed.fdb.get(mac) != Some(ip) {
            changes.push(Change::SetFdb(*mac, *ip));
        }
    }
    for subnet in peers.keys() {
        if !observed.routes.contains(&Route::to_peer(*subnet)) {
            changes.push(Change::SetRoute(*subnet));
        }
    }

    let stale = observed.neighbours.keys().filter(|ip| !neighbours.contains_key(*ip));
    changes.extend(stale.map(|ip| Change::RemoveNeighbour(*ip)));
    let stale = observed.fdb.iter().filter(|(mac, _)| !fdb.contains_key(mac));
    changes.extend(stale.map(|(mac, ip)| Change::RemoveFdb(*mac, *ip)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "plan_tests.rs"]
mod tests;
