//! What rtnetlink's messages say, in the terms of [`crate::plan`] and [`crate::iface`]. Pure.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage};

use crate::iface::Interface;
use crate::plan::{LinkState, Route, VxlanState};
use crate::types::{Subnet, VtepMac};

/// The state is a set of bits: what `bridge fdb add` makes is `NOARP` as well as permanent.
pub(super) fn is_permanent(state: NeighbourState) -> bool {
    u16::from(state) & u16::from(NeighbourState::Permanent) != 0
}

pub(super) fn interface(link: &LinkMessage) -> Interface {
    let mut interface =
        Interface { index: link.header.index, name: String::new(), mtu: 0, addresses: Vec::new() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    interface
}

pub(super) fn link_state(link: &LinkMessage) -> LinkState {
    let mut state = LinkState {
        index: link.header.index,
        kind: Err("device".to_owned()),
        mac: None,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                let bytes = <[u8; 6]>::try_from(bytes.as_slice()).ok();
                state.mac = bytes.and_then(|b| VtepMac::try_from(b).ok());
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) if state.kind.is_err() => state.kind = Err(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(options)) => state.kind = Ok(vxlan_state(options)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    state
}

fn vxlan_state(options: &[InfoVxlan]) -> VxlanState {
    let mut state = VxlanState::default();
    for option in options {
        match option {
            InfoVxlan::Id(vni) => state.vni = *vni,
            InfoVxlan::Port(port) => state.port = *port,
            InfoVxlan::Link(index) => state.parent = *index,
            InfoVxlan::Local(ip) => state.local = Some(*ip),
            InfoVxlan::Group(ip) => state.group = Some(*ip),
            InfoVxlan::Gbp => state.gbp = true,
            InfoVxlan::Learning(on) => state.learning = *on,
            InfoVxlan::L2Miss(on) => state.l2miss = *on,
            _ => {}
        }
    }
    state
}

pub(super) fn local_address(message: &AddressMessage) -> Option<(Ipv4Addr, u8)> {
    let find = |want_local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) if want_local => Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) if !want_local => Some(*ip),
            _ => None,
        })
    };
    find(true).or_else(|| find(false)).map(|ip| (ip, message.header.prefix_len))
}

pub(super) fn is_main(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(route.header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN)
}

pub(super) fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let (mut to, mut gateway) = (Ipv4Addr::UNSPECIFIED, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            _ => {}
        }
    }
    let onlink = message.header.flags.contains(RouteFlags::Onlink);
    Some(Route { to: Subnet::new(to, message.header.destination_prefix_length)?, gateway, onlink })
}

/// A neighbour or FDB entry as (hardware address, IPv4 address); `None` for other kinds.
pub(super) fn entry(message: &NeighbourMessage) -> Option<(VtepMac, Ipv4Addr)> {
    let (mut mac, mut ip) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().and_then(|b| VtepMac::try_from(b).ok());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(*v4),
            // Of an FDB entry the library does not know the family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    Some((mac?, ip?))
}
