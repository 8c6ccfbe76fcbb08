//! Which way packets to each peer leave this host, for those that do not pass its routing ([`crate::datapath::inject`]).
//!
//! Looked up when a peer is new, and for all peers when the host's routes have changed; both are noticed when the daemon
//! compares the kernel with the leases, every 10 s at the latest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

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
}

impl Uplinks {
    /// The way to a peer, if packets may take it without the host's routing.
    pub(super) fn find(&self, peer: IpAddr) -> Option<Uplink> {
        match peer {
            IpAddr::V4(peer) if !self.encrypts => self.known.get(&peer).copied().flatten(),
            _ => None,
        }
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
        let (routing, mtus) = netlink.routing(own).await?;
        let stale = routing != self.routing;
        changed |= self.known.len() != peers.len();
        self.known.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if stale || !self.known.contains_key(peer) {
                let way = netlink.way(local, *peer).await?;
                let uplink = way.and_then(|(interface, limit)| {
                    let mtu = (*mtus.get(&interface)?).min(limit.unwrap_or(u32::MAX));
                    Some(Uplink { interface, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
                });
                changed |= self.known.insert(*peer, uplink) != Some(uplink);
            }
        }
        self.routing = routing;
        Ok(changed)
    }
}
