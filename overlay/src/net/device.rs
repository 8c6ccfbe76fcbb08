//! A device and what hangs on it, brought to where the plan wants it: observe, [`plan`], apply, and look again until
//! nothing is left to do. Which kind of device that is, its owner knows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use tracing::{debug, info, warn};

use super::netlink::{Netlink, NetlinkError};
use super::queues::patiently;
use super::sysctl;
use crate::datapath::socket::SocketError;
use crate::datapath::tap::{self, TapError};
use crate::plan::{Change, Desired, KindSpec, KindState, LinkSpec, LinkState, incompatibility, plan};
use crate::types::{Mtu, TypeError};

/// How often state is observed and put right in one call. One pass is the rule; a second one is needed when bringing
/// the device up or replacing it made the kernel drop what hung on it.
const PASSES: usize = 3;

/// What can go wrong with the device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The external interface's MTU leaves no room.
    #[error("external interface {0}: no room for VXLAN's 50 bytes: {1}")]
    Mtu(String, TypeError),
    /// The interface below is gone.
    #[error("the external interface {0} is gone; it is used again when it is back")]
    NoParent(String),
    /// The config asks for what only the kernel's device can do.
    #[error(
        "Backend.{0} is not supported by the rust data path: remove it from the network config, or use the kernel's \
         (-datapath kernel)"
    )]
    KernelOnly(&'static str),
    /// No TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// No sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The engine does not start.
    #[error("the data path's workers cannot be started: {0}")]
    Engine(std::io::Error),
    /// Nothing can be sent.
    #[error(
        "{0} is no address of this host any more, so no packets leave it; they do when the address is back"
    )]
    NoLocalAddress(Ipv4Addr),
    /// Somebody changes the device as fast as we repair it.
    #[error("{device} does not stay as configured; still to do after {PASSES} passes: {left}")]
    Unsettled {
        /// The device.
        device: String,
        /// What was left to do.
        left: String,
    },
}

/// A device as it should be, and the kernel it is in.
pub(super) struct Device {
    pub(super) netlink: Netlink,
    pub(super) desired: Desired,
}

impl Device {
    /// Finds the device an earlier run left, or makes a new one; brings it to the MAC and MTU of `link`. An existing
    /// device that fits is kept. One of ours that does not (the host's address has changed, or what carries packets) is
    /// made anew, but with its old MAC: to the other hosts, and in the lease, this host is then the same one still.
    ///
    /// Its address and the peers of an earlier run stay as they are until there are others.
    pub(super) async fn open(netlink: Netlink, mut link: LinkSpec) -> Result<Self, DeviceError> {
        let existing = netlink.link(&link.name).await?;
        let ours = existing.filter(|e| matches!(e.kind, KindState::Vxlan(_) | KindState::Tap(_)));
        if let Some(mac) = ours.and_then(|e| e.mac) {
            debug!(device = link.name, %mac, "keeping the existing device's MAC address");
            link.mac = mac;
        }
        let device = Self { netlink, desired: Desired { link, address: None, peers: BTreeMap::new() } };
        device.settle(device_only).await?;
        if let Err(error) = sysctl::ignore_router_advertisements(device.name()) {
            debug!(device = device.name(), %error, "accept_ra left as it is");
        }
        Ok(device)
    }

    pub(super) fn name(&self) -> &str {
        &self.desired.link.name
    }

    /// The device as it is, if it is there and of our kind.
    pub(super) async fn state(&self) -> Result<Option<LinkState>, DeviceError> {
        let link = self.netlink.link(self.name()).await?;
        Ok(link.filter(|state| incompatibility(&self.desired.link, state).is_none()))
    }

    /// Brings up the device with this address and no other.
    pub(super) async fn address(&mut self, address: Ipv4Addr) -> Result<(), DeviceError> {
        self.desired.address = Some(address);
        self.settle(device_only).await.map(drop)
    }

    /// Makes all `wanted` changes that there are to make; returns how many there were.
    pub(super) async fn settle(&self, wanted: fn(&Change) -> bool) -> Result<usize, DeviceError> {
        let mut made = 0;
        let mut errors = Vec::new();
        for _ in 0..PASSES {
            let observed = self.netlink.observe(self.name()).await?;
            let changes: Vec<Change> = plan(&self.desired, &observed).into_iter().filter(wanted).collect();
            if changes.is_empty() {
                return Ok(made);
            }
            errors.clear();
            let mut index = observed.link.map_or(0, |link| link.index);
            let is_new = changes.contains(&Change::CreateLink);
            for change in changes {
                self.announce(&change, is_new);
                match self.apply(index, &change).await {
                    Ok(()) => made += 1,
                    // Without its device nothing else can succeed; a failing entry must not keep the others out.
                    Err(e) if device_only(&change) => return Err(e),
                    Err(e) => errors.push(e),
                }
                if change == Change::CreateLink {
                    let link = self.netlink.link(self.name()).await?;
                    index = link.map_or(0, |link| link.index);
                }
            }
        }
        if let Some(error) = errors.into_iter().next() {
            return Err(error);
        }
        let observed = self.netlink.observe(self.name()).await?;
        let left: Vec<Change> = plan(&self.desired, &observed).into_iter().filter(wanted).collect();
        if left.is_empty() {
            return Ok(made);
        }
        Err(DeviceError::Unsettled { device: self.name().to_owned(), left: format!("{left:?}") })
    }

    async fn apply(&self, index: u32, change: &Change) -> Result<(), DeviceError> {
        let link = &self.desired.link;
        if (change, &link.kind) == (&Change::CreateLink, &KindSpec::Tap) {
            // Persistent, so it stays when this is dropped.
            let opened = patiently(|| tap::open(&link.name, 1), TapError::is_in_use).await;
            return Ok(opened.map(drop)?);
        }
        Ok(self.netlink.apply(link, index, change).await?)
    }

    fn announce(&self, change: &Change, is_new: bool) {
        let device = self.name();
        match change {
            Change::DeleteLink(why) => {
                warn!(
                    device,
                    "{device:?} already exists with incompatable configuration: {why}; recreating device"
                );
            }
            Change::CreateLink => {
                info!(device, mac = %self.desired.link.mac, mtu = %self.desired.link.mtu, "creating device");
            }
            Change::SetMac(mac) if !is_new => {
                warn!(device, %mac, "MAC address differs from the lease's, setting it back");
            }
            Change::SetMtu(mtu) if !is_new => info!(device, %mtu, "setting MTU"),
            Change::RemoveAddress(ip, len) => info!(device, "removing address {ip}/{len}"),
            other => debug!(device, change = ?other, "programming"),
        }
    }
}

/// The MTU inside for an underlay of `outer`, which is the external interface's unless the config names one.
pub(super) fn inner_mtu(outer: Mtu, interface: &str) -> Result<Mtu, DeviceError> {
    outer.inside_vxlan().map_err(|e| DeviceError::Mtu(interface.to_owned(), e))
}

/// The changes to the device itself, without those to what hangs on it.
pub(super) fn device_only(change: &Change) -> bool {
    matches!(
        change,
        Change::DeleteLink(_)
            | Change::CreateLink
            | Change::SetMac(_)
            | Change::SetMtu(_)
            | Change::RemoveAddress(..)
            | Change::AddAddress(_)
            | Change::SetUp
    )
}
