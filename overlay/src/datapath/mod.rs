//! The seam between the daemon and whatever carries packets, the kernel's VXLAN device ([`crate::net::vxlan`]) or the
//! data plane in user space that is in this module ([`crate::net::tap`] puts it behind the seam).
//!
//! A data path is told the whole truth each time ([`DataPath::sync`] gets every peer), never a difference. It finds
//! out itself what to change, so repeating a call is harmless and repairs what others broke.

mod abi;
pub mod answer;
mod assemble;
mod bpf;
pub mod capture;
pub mod checksum;
mod coalesce;
pub mod counters;
pub mod decap;
pub mod encap;
pub mod engine;
pub mod frame;
pub mod holder;
pub mod inject;
pub mod io;
mod outbox;
pub mod pcapng;
pub mod pieces;
pub mod recording;
pub mod segment;
pub mod selftest;
pub mod socket;
mod spin;
mod split;
pub mod status;
mod sys;
pub mod table;
pub mod tap;
mod thread;
pub mod tunnel;
pub mod vnet;
pub mod wait;
mod worker;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "../../tests/packets/mod.rs"]
mod packets;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::Ipv4Addr;

use crate::types::{Mtu, Subnet, VtepMac};

/// Another host of the overlay, as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Hardware address of its VTEP.
    pub mac: VtepMac,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
}

/// What carries the overlay's packets.
pub trait DataPath: Send {
    /// What can go wrong; the text says what to do about it.
    type Error: fmt::Display + Send;

    /// The device's name.
    fn device(&self) -> &str;

    /// The hardware address to advertise.
    fn mac(&self) -> VtepMac;

    /// The MTU for containers.
    fn mtu(&self) -> Mtu;

    /// Gives the device our subnet's base address and brings it up. Called once, after the lease is acquired.
    fn configure(&mut self, own: Subnet) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Makes exactly these peers reachable and repairs whatever differs; returns how many changes that took.
    fn sync(
        &mut self,
        peers: &BTreeMap<Subnet, Peer>,
    ) -> impl Future<Output = Result<usize, Self::Error>> + Send;

    /// What keeps this process from carrying packets for good, so that only another one can; `None` while nothing does.
    fn fatal(&self) -> Option<&'static str> {
        None
    }
}
