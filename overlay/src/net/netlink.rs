//! rtnetlink: reads links, addresses, routes, neighbours and FDB entries, and applies single [`Change`]s.
//!
//! The messages are flannel v0.10's as observed (fact sheet, vxlan backend), plus MTU and MAC at creation, which
//! newer flannels send too: a MAC given at creation is one that systemd's persistent-MAC policy leaves alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use nix::errno::Errno;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, LinkUnspec, LinkVxlan, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tracing::warn;

use super::decode::{
    entry, has_several_hops, interface, is_main, is_permanent, is_plain, link_state, local_address,
    output_interface, path_mtu, route,
};
use crate::iface::Interface;
use crate::plan::{Change, KindSpec, KindState, LinkSpec, LinkState, Observed, Route, VxlanSpec};
use crate::types::Subnet;

/// A netlink request that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused. `what` says what was asked.
    #[error("{what}: {}{}", errno.desc(), hint(*errno))]
    Kernel {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The answer could not be had or understood.
    #[error("{what}: {why}")]
    Other {
        /// What was asked for.
        what: String,
        /// What went wrong.
        why: String,
    },
    /// No netlink socket.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => " (overlayd needs CAP_NET_ADMIN: run it as root)",
        Errno::EOPNOTSUPP => " (does the kernel have the vxlan module?)",
        _ => "",
    }
}

impl NetlinkError {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Other { .. } | Self::Socket(_) => None,
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => {
            NetlinkError::Kernel { what: what.into(), errno: Errno::from_raw(-message.raw_code()) }
        }
        other => NetlinkError::Other { what: what.into(), why: other.to_string() },
    }
}

/// How the host sends its own IPv4 packets, as far as routes through one device are left out.
#[derive(Debug, Default)]
pub struct Routing {
    /// A number that changes when anything of it does.
    pub state: u64,
    /// The MTUs of the interfaces that routes lead through.
    pub mtus: BTreeMap<u32, u32>,
    /// Whether a rule looks at more of a packet than its addresses.
    pub has_choosy_rules: bool,
    /// Where a route has several next hops.
    pub several_hops: Vec<Subnet>,
}

impl Routing {
    /// Whether all packets between two addresses surely take the same way, if they go to `address`.
    pub fn is_plain_towards(&self, address: Ipv4Addr) -> bool {
        !self.has_choosy_rules && !self.several_hops.iter().any(|subnet| subnet.contains(address))
    }
}

/// A netlink socket of the network namespace in which it was opened.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
    /// What the kernel calls a VXLAN device; a test of a kernel that has none calls it otherwise.
    vxlan: InfoKind,
}

impl Netlink {
    /// Opens the socket. Must be called within a tokio runtime, which then serves it.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, vxlan: InfoKind::Vxlan })
    }

    /// As if the kernel had no VXLAN devices: asks for a kind that there is not.
    #[cfg(test)]
    pub(super) fn without_vxlan(self) -> Self {
        Self { vxlan: InfoKind::Other("weft-none".to_owned()), ..self }
    }

    /// All interfaces with their IPv4 addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn interfaces(&self) -> Result<Vec<Interface>, NetlinkError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        let mut interfaces: Vec<Interface> = links.iter().map(interface).collect();
        let addresses = self.handle.address().get().execute();
        let addresses: Vec<AddressMessage> =
            addresses.try_collect().await.map_err(failed("list addresses"))?;
        for message in &addresses {
            if let (Some((ip, _)), Some(interface)) =
                (local_address(message), interfaces.iter_mut().find(|i| i.index == message.header.index))
            {
                interface.addresses.push(ip);
            }
        }
        Ok(interfaces)
    }

    /// The interface of the first IPv4 default route in the main table.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn default_interface(&self) -> Result<Option<u32>, NetlinkError> {
        let routes = self.routes().await?;
        let default = routes.iter().find(|r| {
            is_main(r) && r.header.destination_prefix_length == 0 && r.header.kind == RouteType::Unicast
        });
        Ok(default.and_then(output_interface))
    }

    /// The interface through which the kernel would send to `address`.
    ///
    /// # Errors
    /// When the kernel cannot be asked; no route is `None`.
    pub async fn interface_towards(&self, address: Ipv4Addr) -> Result<Option<u32>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
        let what = format!("route to {address}");
        let answer = self.handle.route().get(query).execute().try_next().await.map_err(failed(what));
        match answer {
            Ok(route) => Ok(route.as_ref().and_then(output_interface)),
            Err(e) if matches!(e.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// How the kernel would send a packet from `local` to `address`: through which interface, and how long it may be
    /// as far as the route limits that.
    ///
    /// # Errors
    /// When the kernel cannot be asked; no route is `None`, and so is one that does not lead out of this host.
    pub async fn way(
        &self,
        local: Ipv4Addr,
        address: Ipv4Addr,
    ) -> Result<Option<(u32, Option<u32>)>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .source_prefix(local, 32)
            .build();
        let what = format!("route from {local} to {address}");
        let answer = self.handle.route().get(query).execute().try_next().await.map_err(failed(what));
        let route = match answer {
            Ok(route) => route,
            Err(e) if e.errno().is_some() => return Ok(None),
            Err(e) => return Err(e),
        };
        let Some(route) = route.filter(|route| route.header.kind == RouteType::Unicast) else {
            return Ok(None);
        };
        Ok(output_interface(&route).map(|interface| (interface, path_mtu(&route))))
    }

    /// How the host sends. Routes through the device of index `own` are left out.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn routing(&self, own: u32) -> Result<Routing, NetlinkError> {
        let mut routing = Routing::default();
        let mut state = DefaultHasher::new();
        let mut interfaces = BTreeSet::new();
        for message in self.routes().await? {
            let through = output_interface(&message);
            if through != Some(own) {
                interfaces.extend(through);
                format!("{message:?}").hash(&mut state);
                if has_several_hops(&message) {
                    routing.several_hops.extend(route(&message).map(|route| route.to));
                }
            }
        }
        let rules = self.handle.rule().get(rtnetlink::IpVersion::V4).execute();
        let rules: Vec<_> = rules.try_collect().await.map_err(failed("list rules"))?;
        routing.has_choosy_rules = !rules.iter().all(is_plain);
        format!("{rules:?}").hash(&mut state);
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        for link in links.iter().filter(|link| interfaces.contains(&link.header.index)) {
            let LinkState { index, mtu, up, .. } = link_state(link);
            (index, mtu, up).hash(&mut state);
            routing.mtus.insert(index, mtu);
        }
        routing.state = state.finish();
        Ok(routing)
    }

    /// Everything about the device called `name`.
    ///
    /// # Errors
    /// When the kernel cannot be asked; a device that does not exist is no error.
    pub async fn observe(&self, name: &str) -> Result<Observed, NetlinkError> {
        let Some(link) = self.link(name).await? else { return Ok(Observed::default()) };
        let index = link.index;

        let addresses = self.handle.address().get().set_link_index_filter(index).execute();
        let addresses: Vec<AddressMessage> =
            addresses.try_collect().await.map_err(failed("list addresses"))?;
        let neighbours = self.neighbours(AddressFamily::Inet, index).await?;
        let fdb = match link.kind {
            KindState::Vxlan(_) => self.neighbours(AddressFamily::Bridge, index).await?,
            KindState::Tap(_) | KindState::Other(_) => Vec::new(), // none of theirs has a destination
        };
        let routes = self.routes().await?;
        let ours = routes.iter().filter(|r| is_main(r) && output_interface(r) == Some(index));
        Ok(Observed {
            link: Some(link),
            addresses: addresses.iter().filter_map(local_address).collect(),
            routes: ours.filter_map(route).collect::<BTreeSet<_>>(),
            neighbours: neighbours
                .iter()
                .filter_map(entry)
                .map(|(mac, ip)| (ip, mac))
                .collect::<BTreeMap<_, _>>(),
            fdb: fdb.iter().filter_map(entry).collect(),
        })
    }

    /// Whether an interface has this address.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn has_address(&self, address: Ipv4Addr) -> Result<bool, NetlinkError> {
        let request = self.handle.address().get().set_address_filter(IpAddr::V4(address)).execute();
        let found: Vec<AddressMessage> = request.try_collect().await.map_err(failed("list addresses"))?;
        Ok(!found.is_empty())
    }

    /// The device called `name`, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn link(&self, name: &str) -> Result<Option<LinkState>, NetlinkError> {
        let what = format!("look up {name}");
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await.map_err(failed(what)) {
            Ok(link) => Ok(link.as_ref().map(link_state)),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Brings up the device `name` of this index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn bring_up(&self, name: &str, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(message).execute().await.map_err(failed(format!("{name}: set up")))
    }

    /// Makes a permanent neighbour entry at the device `name` of this index.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_neighbour(
        &self,
        name: &str,
        index: u32,
        ip: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let request = self.handle.neighbours().add(index, IpAddr::V4(ip)).kind(RouteType::Unicast);
        let request = request.link_layer_address(&mac).replace();
        request.execute().await.map_err(failed(format!("{name}: neighbour {ip}")))
    }

    /// Whether there is a device of this index.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn has_link(&self, index: u32) -> Result<bool, NetlinkError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        match links.try_next().await.map_err(failed(format!("look up interface {index}"))) {
            Ok(link) => Ok(link.is_some()),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the kernel has VXLAN devices; loads the module where there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or does not let us make devices.
    pub async fn has_vxlan(&self) -> Result<bool, NetlinkError> {
        self.has_kind(self.vxlan.clone()).await
    }

    /// Asks for a device without the options that a VXLAN device cannot do without: who knows the kind refuses them
    /// (`vxlan_validate`, EINVAL), who does not refuses the kind. Nothing is made.
    async fn has_kind(&self, kind: InfoKind) -> Result<bool, NetlinkError> {
        let what = format!("ask for {kind} devices");
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        match self.handle.link().add(message).execute().await.map_err(failed(what)) {
            Err(e) if e.errno() == Some(Errno::EINVAL) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EOPNOTSUPP) => Ok(false),
            other => other.map(|()| true),
        }
    }

    async fn neighbours(
        &self,
        family: AddressFamily,
        index: u32,
    ) -> Result<Vec<NeighbourMessage>, NetlinkError> {
        let request = self.handle.neighbours().get().set_address_family(family).execute();
        let all: Vec<NeighbourMessage> = request.try_collect().await.map_err(failed("list neighbours"))?;
        Ok(all.into_iter().filter(|n| n.header.ifindex == index && is_permanent(n.header.state)).collect())
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        self.handle.route().get(query).execute().try_collect().await.map_err(failed("list routes"))
    }

    /// Makes one change to the device of `spec`, whose interface index is `index` (unused by
    /// [`Change::CreateLink`]). Removing what is gone already succeeds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn apply(&self, spec: &LinkSpec, index: u32, change: &Change) -> Result<(), NetlinkError> {
        let what = format!("{}: {change:?}", spec.name);
        let link = |message| self.handle.link().change(message).execute();
        let outcome = match change {
            Change::CreateLink => {
                return match &spec.kind {
                    KindSpec::Vxlan(options) => self.create(spec, options).await,
                    KindSpec::Tap => {
                        Err(NetlinkError::Other { what, why: "a TAP is made at /dev/net/tun".to_owned() })
                    }
                };
            }
            Change::DeleteLink(_) => self.handle.link().del(index).execute().await,
            Change::SetMac(mac) => {
                link(LinkUnspec::new_with_index(index).address(mac.octets().to_vec()).build()).await
            }
            Change::SetMtu(mtu) => {
                link(LinkUnspec::new_with_index(index).mtu(mtu.get().into()).build()).await
            }
            Change::SetUp => link(LinkUnspec::new_with_index(index).up().build()).await,
            Change::AddAddress(ip) => {
                // flannel sends no broadcast address; the library would, for anything but a /32.
                self.handle.address().add(index, IpAddr::V4(*ip), 32).execute().await
            }
            Change::RemoveAddress(ip, len) => {
                let message = self.handle.address().add(index, IpAddr::V4(*ip), *len).message_mut().clone();
                self.handle.address().del(message).execute().await
            }
            Change::SetNeighbour(ip, mac) => {
                let request = self.handle.neighbours().add(index, IpAddr::V4(*ip)).kind(RouteType::Unicast);
                request.link_layer_address(&mac.octets()).replace().execute().await
            }
            Change::SetFdb(mac, ip) => {
                let request = self.handle.neighbours().add_bridge(index, &mac.octets());
                request.flags(NeighbourFlags::Own).destination(IpAddr::V4(*ip)).replace().execute().await
            }
            Change::RemoveNeighbour(ip) => {
                let message = self.handle.neighbours().add(index, IpAddr::V4(*ip)).message_mut().clone();
                self.handle.neighbours().del(message).execute().await
            }
            Change::RemoveFdb(mac, ip) => {
                let request = self.handle.neighbours().add_bridge(index, &mac.octets());
                let mut request = request.flags(NeighbourFlags::Own).destination(IpAddr::V4(*ip));
                self.handle.neighbours().del(request.message_mut().clone()).execute().await
            }
            Change::SetRoute(to) => {
                let message = route_message(index, &Route::to_peer(*to));
                self.handle.route().add(message).replace().execute().await
            }
            Change::RemoveRoute(route) => {
                self.handle.route().del(route_message(index, route)).execute().await
            }
        };
        match outcome.map_err(failed(what)) {
            Err(e)
                if is_removal(change)
                    && matches!(e.errno(), Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    async fn create(&self, spec: &LinkSpec, options: &VxlanSpec) -> Result<(), NetlinkError> {
        let mut link = LinkVxlan::new(&spec.name, options.vni.get())
            .dev(options.parent)
            .local(options.local)
            .ttl(0)
            .tos(0)
            .learning(options.learning)
            .proxy(false)
            .rsc(false)
            .l2miss(false)
            .l3miss(false);
        if let Some(port) = options.port {
            link = link.port(port);
        }
        if options.gbp {
            link = link.gbp();
        }
        let link = link.txqueuelen(0).mtu(spec.mtu.get().into()).address(spec.mac.octets().to_vec());
        let port = options.port.map_or_else(|| "8472".to_owned(), |p| p.to_string());
        let outcome = self.handle.link().add(link.build()).execute().await;
        outcome.map_err(failed(format!("create {}", spec.name))).map_err(|e| match e {
            NetlinkError::Kernel { what, errno: Errno::EEXIST } => NetlinkError::Other {
                what,
                why: format!(
                    "another device already has VNI {} on UDP port {port}: find it with `ip -d link show type vxlan` \
                     and delete it, or set another VNI in the network config",
                    options.vni
                ),
            },
            other => other,
        })
    }
}

/// Sends a word through `changed` whenever one of `devices` appears, changes or goes, or any interface's IPv4 address
/// does, until nobody listens. With `uplinks` also whenever one of these interfaces, an IPv4 route or a rule does.
///
/// Where the kernel's notifications cannot be had it says so and ends; changes are then found at the next comparison.
pub async fn watch_kernel(
    devices: Vec<String>,
    uplinks: Option<watch::Receiver<BTreeSet<u32>>>,
    changed: Sender<()>,
) {
    let mut groups = vec![MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    if uplinks.is_some() {
        groups.extend([MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Rule]);
    }
    let (connection, _handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(parts) => parts,
        Err(error) => {
            return warn!("no notifications from the kernel about {}: {error}", devices.join(" and "));
        }
    };
    // Served here rather than in a task of its own, so that it ends when this does.
    let listen = async {
        while let Some((message, _)) = messages.next().await {
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            let concerns_us = match &message {
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                    let used = |uplinks: &watch::Receiver<BTreeSet<u32>>| {
                        uplinks.borrow().contains(&link.header.index)
                    };
                    uplinks.as_ref().is_some_and(used) || devices.contains(&interface(link).name)
                }
                RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewRule(_)
                | RouteNetlinkMessage::DelRule(_) => true,
                _ => false,
            };
            if concerns_us && !tell(&changed) {
                return;
            }
        }
    };
    tokio::select! { () = connection => {}, () = listen => {} }
}

/// Sends a word, unless one is waiting already; returns whether anybody listens.
pub(super) fn tell(changed: &Sender<()>) -> bool {
    !matches!(changed.try_send(()), Err(TrySendError::Closed(())))
}

fn is_removal(change: &Change) -> bool {
    matches!(
        change,
        Change::DeleteLink(_) | Change::RemoveRoute(_) | Change::RemoveNeighbour(_) | Change::RemoveFdb(..)
    )
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.to.base(), route.to.len())
        .output_interface(index)
        .protocol(RouteProtocol::Boot);
    if let Some(gateway) = route.gateway {
        builder = builder.gateway(gateway);
    }
    if route.onlink { builder.onlink().build() } else { builder.build() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_may_go_several_ways_is_not_plain() {
        let [near, far] = [[192, 168, 31, 65], [10, 0, 0, 1]].map(Ipv4Addr::from);
        let mut routing = Routing::default();
        assert!(routing.is_plain_towards(near) && routing.is_plain_towards(far));
        routing.several_hops.push("10.0.0.0/8".parse().unwrap());
        assert!(routing.is_plain_towards(near) && !routing.is_plain_towards(far));
        routing.has_choosy_rules = true;
        assert!(!routing.is_plain_towards(near));
    }

    #[tokio::test]
    async fn the_kernel_says_which_kinds_of_device_it_has() {
        let netlink = Netlink::open().unwrap();
        let devices = async || {
            let all = netlink.interfaces().await.unwrap();
            all.iter().filter(|i| i.name.starts_with("vxlan")).count()
        };
        let before = devices().await;
        assert!(netlink.has_vxlan().await.unwrap(), "these tests need root and the vxlan module");
        assert!(!netlink.clone().without_vxlan().has_vxlan().await.unwrap());
        assert_eq!(devices().await, before, "the question made a device");
    }
}
