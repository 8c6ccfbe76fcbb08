//! What rtnetlink's messages say, in the terms of [`crate::plan`] and [`crate::iface`]. Pure.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoTun, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::packet_core::Nla;

use crate::iface::Interface;
use crate::plan::{KindState, LinkState, Route, TapState, VxlanState};
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
        kind: KindState::Other("device".to_owned()),
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
                // The kind comes before its options.
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => state.kind = KindState::Other(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(options)) => {
                            state.kind = KindState::Vxlan(vxlan_state(options));
                        }
                        LinkInfo::Data(InfoData::Tun(options)) => state.kind = tun_state(options),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    state
}

/// `IFLA_TUN_*` of Linux's `if_link.h`, as kernels from 4.17 report them: numbers of 8 bits, the counts of queues
/// of 32.
fn tun_state(options: &[InfoTun]) -> KindState {
    const TYPE: u16 = 3;
    const VNET_HDR: u16 = 5;
    const PERSIST: u16 = 6;
    const MULTI_QUEUE: u16 = 7;
    const NUM_QUEUES: u16 = 8;
    const NUM_DISABLED_QUEUES: u16 = 9;
    const IFF_TAP: u8 = 2; // of linux/if_tun.h

    let mut tap = TapState::default();
    let mut is_tap = false;
    for option in options {
        let mut value = vec![0; option.value_len()];
        option.emit_value(&mut value);
        let first = value.first().copied().unwrap_or_default();
        let number = <[u8; 4]>::try_from(value).map_or(0, u32::from_ne_bytes);
        match option.kind() {
            TYPE => is_tap = first == IFF_TAP,
            VNET_HDR => tap.vnet_hdr = first != 0,
            PERSIST => tap.persist = first != 0,
            MULTI_QUEUE => tap.multi_queue = first != 0,
            NUM_QUEUES | NUM_DISABLED_QUEUES => tap.queues = tap.queues.saturating_add(number),
            _ => {}
        }
    }
    if is_tap { KindState::Tap(tap) } else { KindState::Other("tun".to_owned()) }
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

/// Whether packets may go to one next hop or another, be it by a list in the route or by a group of next hop objects.
pub(super) fn has_several_hops(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.len() > 1,
        RouteAttribute::NhId(_) => output_interface(route).is_none(),
        _ => false,
    })
}

/// Whether a rule looks at a packet's addresses at most, so that all packets between two of them fare the same.
pub(super) fn is_plain(rule: &RuleMessage) -> bool {
    rule.header.tos == 0
        && rule.attributes.iter().all(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Destination(_)
                    | RuleAttribute::Source(_)
                    | RuleAttribute::Goto(_)
                    | RuleAttribute::Priority(_)
                    | RuleAttribute::SuppressPrefixLen(_)
                    | RuleAttribute::Table(_)
                    | RuleAttribute::Protocol(_)
            )
        })
}

/// What the route says about the longest packet, if it says anything.
pub(super) fn path_mtu(route: &RouteMessage) -> Option<u32> {
    let metrics = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
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

#[cfg(test)]
mod tests {
    use netlink_packet_route::IpProtocol;
    use netlink_packet_route::link::InfoKind;
    use netlink_packet_route::route::RouteNextHop;
    use rtnetlink::packet_core::DefaultNla;

    use super::*;

    fn tun(options: &[(u16, &[u8])]) -> KindState {
        let data = options.iter().map(|(kind, value)| InfoTun::Other(DefaultNla::new(*kind, value.to_vec())));
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Tun),
            LinkInfo::Data(InfoData::Tun(data.collect())),
        ]));
        link_state(&link).kind
    }

    #[test]
    fn routes_with_several_next_hops_are_known() {
        let route = |attributes: &[RouteAttribute]| {
            let mut route = RouteMessage::default();
            route.attributes.extend_from_slice(attributes);
            has_several_hops(&route)
        };
        let hop = RouteNextHop::default();
        assert!(!route(&[]) && !route(&[RouteAttribute::Oif(3)]));
        assert!(!route(&[RouteAttribute::MultiPath(vec![hop.clone()])]));
        assert!(route(&[RouteAttribute::MultiPath(vec![hop.clone(), hop])]));
        // A next hop object of its own, and a group of them.
        assert!(!route(&[RouteAttribute::Oif(3), RouteAttribute::NhId(7)]));
        assert!(route(&[RouteAttribute::NhId(7)]));
    }

    #[test]
    fn rules_that_look_at_more_than_addresses_are_known() {
        let rule = |attributes: &[RuleAttribute], tos| {
            let mut rule = RuleMessage::default();
            rule.header.tos = tos;
            rule.attributes.extend_from_slice(attributes);
            is_plain(&rule)
        };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let plain = [RuleAttribute::Table(100), RuleAttribute::Priority(5), RuleAttribute::Source(address)];
        assert!(rule(&[], 0) && rule(&plain, 0) && rule(&[RuleAttribute::Destination(address)], 0));
        assert!(!rule(&plain, 8));
        for choosy in [
            RuleAttribute::FwMark(7),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::Oifname("eth1".to_owned()),
            RuleAttribute::L3MDev(true),
            RuleAttribute::Other(DefaultNla::new(99, vec![])),
        ] {
            assert!(!rule(&[RuleAttribute::Table(100), choosy.clone()], 0), "{choosy:?}");
        }
    }

    #[test]
    fn taps_are_told_from_other_tunnels() {
        let queues = |n: u32| n.to_ne_bytes();
        let tap =
            tun(&[(3, &[2]), (4, &[0]), (5, &[1]), (6, &[1]), (7, &[1]), (8, &queues(2)), (9, &queues(1))]);
        assert_eq!(
            tap,
            KindState::Tap(TapState { multi_queue: true, persist: true, vnet_hdr: true, queues: 3 })
        );
        assert_eq!(tun(&[(3, &[2]), (8, &[1])]), KindState::Tap(TapState::default()));
        assert_eq!(tun(&[(3, &[1]), (7, &[1])]), KindState::Other("tun".into()));
        assert_eq!(tun(&[(3, &[])]), KindState::Other("tun".into()));
    }
}
