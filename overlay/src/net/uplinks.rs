//! Which way packets to each peer leave this host, for those that do not pass its routing ([`crate::datapath::inject`]).
//!
//! Looked up when a peer is new, and for all peers when the host's routes, rules or those interfaces have changed, of which
//! the kernel tells the daemon.
//!
//! There is a way only where the sockets' packets surely take it as well. A rule that looks at more than addresses (a
//! mark, a port, a user) and a route with several next hops may treat packets apart that differ in nothing we know, so
//! that with them everything goes through the sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use tokio::sync::watch;
use tracing::info;

use super::netlink::{Netlink, NetlinkError};
use super::xfrm;
use crate::datapath::table::Uplink;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    known: BTreeMap<Ipv4Addr, Option<Uplink>>,
    routing: u64,
    /// Whether the host has `IPsec` policies for what it sends.
    encrypts: bool,
    /// The interfaces that they lead through.
    used: watch::Sender<BTreeSet<u32>>,
}

impl Uplinks {
    /// The way to a peer, if packets may take it without the host's routing.
    pub(super) fn find(&self, peer: IpAddr) -> Option<Uplink> {
        match peer {
            IpAddr::V4(peer) if !self.encrypts => self.known.get(&peer).copied().flatten(),
            _ => None,
        }
    }

    /// The interfaces whose changes concern us.
    pub(super) fn watched(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.used.subscribe()
    }

    /// Looks up what is not known, or known no more; returns whether anything has changed. `own` is the index of the
    /// overlay's device.
    ///
    /// # Errors
    /// When the kernel cannot be asked. What was known may be out of date then.
    pub(super) async fn refresh(
        &mut self,
        netlink: &Netlink,
        own: u32,
        local: Ipv4Addr,
        peers: &BTreeSet<Ipv4Addr>,
    ) -> Result<bool, NetlinkError> {
        let encrypts = xfrm::has_policies();
        let mut changed = encrypts != self.encrypts;
        if changed {
            self.encrypts = encrypts;
            let how = if encrypts {
                "no super-frame is sent past them"
            } else {
                "super-frames are sent whole again"
            };
            info!("this host's IPsec policies have changed: {how}");
        }
        let routing = netlink.routing(own).await?;
        let stale = routing.state != self.routing;
        changed |= self.known.len() != peers.len();
        self.known.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if stale || !self.known.contains_key(peer) {
                let plain = routing.is_plain_towards(*peer);
                let way = if plain { netlink.way(local, *peer).await? } else { None };
                let uplink = way.and_then(|(interface, limit)| {
                    let mtu = (*routing.mtus.get(&interface)?).min(limit.unwrap_or(u32::MAX));
                    Some(Uplink { interface, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
                });
                changed |= self.known.insert(*peer, uplink) != Some(uplink);
            }
        }
        self.routing = routing.state;
        let used = self.known.values().flatten().map(|uplink| uplink.interface).collect();
        self.used.send_if_modified(|before| {
            let differs = *before != used;
            if differs {
                *before = used;
            }
            differs
        });
        Ok(changed)
    }
}
