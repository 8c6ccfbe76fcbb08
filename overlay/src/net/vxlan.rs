//! The kernel's VXLAN device as a [`DataPath`]: observe, [`plan`], apply, and look again until nothing is left to do.

use std::collections::BTreeMap;

use tracing::{debug, info, warn};

use super::netlink::{Netlink, NetlinkError};
use super::sysctl;
use crate::datapath::{DataPath, Peer};
use crate::iface::External;
use crate::plan::{Change, Desired, LinkSpec, incompatibility, plan};
use crate::types::{Mtu, Subnet, TypeError, VtepMac};
use crate::wire::netconf::VxlanConfig;

/// How often state is observed and put right in one call. One pass is the rule; a second one is needed when bringing
/// the device up or replacing it made the kernel drop what hung on it.
const PASSES: usize = 3;

/// What can go wrong with the device.
#[derive(Debug, thiserror::Error)]
pub enum VxlanError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The external interface's MTU leaves no room.
    #[error("external interface {0}: no room for VXLAN's 50 bytes: {1}")]
    Mtu(String, TypeError),
    /// The interface below is gone.
    #[error("the external interface {0} is gone; it is used again when it is back")]
    NoParent(String),
    /// Somebody changes the device as fast as we repair it.
    #[error("{device} does not stay as configured; still to do after {PASSES} passes: {left}")]
    Unsettled {
        /// The device.
        device: String,
        /// What was left to do.
        left: String,
    },
}

/// A `flannel.<VNI>` device and what hangs on it.
pub struct KernelVxlan {
    netlink: Netlink,
    desired: Desired,
    /// Name of the external interface. One that is made anew has another index, and took our device with it.
    parent: String,
}

impl KernelVxlan {
    /// Finds the device an earlier run left, or makes a new one. An existing device that fits keeps its MAC, so that
    /// a restart disturbs nothing; `random` makes the MAC of a new one.
    ///
    /// # Errors
    /// When the kernel refuses, or the external interface is too narrow.
    pub async fn open(
        netlink: Netlink,
        config: &VxlanConfig,
        external: &External,
        random: [u8; 6],
    ) -> Result<Self, VxlanError> {
        let too_narrow = |e| VxlanError::Mtu(external.name.clone(), e);
        let mtu = config.mtu.unwrap_or(external.mtu).inside_vxlan().map_err(too_narrow)?;
        let mut link = LinkSpec {
            name: format!("flannel.{}", config.vni),
            vni: config.vni,
            port: config.port,
            parent: external.index,
            local: external.address,
            gbp: config.gbp,
            learning: config.learning,
            mtu,
            mac: VtepMac::locally_administered(random),
        };
        let existing = netlink.link(&link.name).await?.filter(|e| incompatibility(&link, e).is_none());
        if let Some(mac) = existing.and_then(|e| e.mac) {
            debug!(device = link.name, %mac, "keeping the existing device");
            link.mac = mac;
        }
        let desired = Desired { link, address: None, peers: BTreeMap::new() };
        let mut vxlan = Self { netlink, desired, parent: external.name.clone() };
        // Peers of an earlier run stay programmed until the first full sync: forwarding goes on meanwhile.
        vxlan.settle(device_only).await?;
        if let Err(error) = sysctl::ignore_router_advertisements(vxlan.device()) {
            debug!(device = vxlan.device(), %error, "accept_ra left as it is");
        }
        Ok(vxlan)
    }

    /// By its index as long as that lives, so that renaming it is no matter; then by its name.
    async fn find_parent(&mut self) -> Result<(), VxlanError> {
        if self.netlink.has_link(self.desired.link.parent).await? {
            return Ok(());
        }
        let found = self.netlink.link(&self.parent).await?;
        let found = found.ok_or_else(|| VxlanError::NoParent(self.parent.clone()))?;
        info!(interface = self.parent, index = found.index, "the external interface was made anew");
        self.desired.link.parent = found.index;
        Ok(())
    }

    async fn settle(&mut self, wanted: fn(&Change) -> bool) -> Result<usize, VxlanError> {
        let mut made = 0;
        let mut errors = Vec::new();
        self.find_parent().await?;
        for _ in 0..PASSES {
            let observed = self.netlink.observe(&self.desired.link.name).await?;
            let changes: Vec<Change> = plan(&self.desired, &observed).into_iter().filter(wanted).collect();
            if changes.is_empty() {
                return Ok(made);
            }
            errors.clear();
            let mut index = observed.link.map_or(0, |link| link.index);
            for change in changes {
                self.announce(&change);
                match self.netlink.apply(&self.desired.link, index, &change).await {
                    Ok(()) => made += 1,
                    // Without its device nothing else can succeed; a failing entry must not keep the others out.
                    Err(e) if device_only(&change) => return Err(e.into()),
                    Err(e) => errors.push(e),
                }
                if change == Change::CreateLink {
                    let link = self.netlink.link(&self.desired.link.name).await?;
                    index = link.map_or(0, |link| link.index);
                }
            }
        }
        if let Some(error) = errors.into_iter().next() {
            return Err(error.into());
        }
        let observed = self.netlink.observe(&self.desired.link.name).await?;
        let left: Vec<Change> = plan(&self.desired, &observed).into_iter().filter(wanted).collect();
        if left.is_empty() {
            return Ok(made);
        }
        Err(VxlanError::Unsettled { device: self.device().to_owned(), left: format!("{left:?}") })
    }

    fn announce(&self, change: &Change) {
        let device = self.device();
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
            Change::SetMac(mac) => {
                warn!(device, %mac, "MAC address differs from the lease's, setting it back");
            }
            Change::SetMtu(mtu) => info!(device, %mtu, "setting MTU"),
            Change::RemoveAddress(ip, len) => info!(device, "removing address {ip}/{len}"),
            other => debug!(device, change = ?other, "programming"),
        }
    }
}

fn device_only(change: &Change) -> bool {
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

impl DataPath for KernelVxlan {
    type Error = VxlanError;

    fn device(&self) -> &str {
        &self.desired.link.name
    }

    fn mac(&self) -> VtepMac {
        self.desired.link.mac
    }

    fn mtu(&self) -> Mtu {
        self.desired.link.mtu
    }

    async fn configure(&mut self, own: Subnet) -> Result<(), VxlanError> {
        self.desired.address = Some(own.base());
        self.settle(device_only).await.map(drop)
    }

    async fn sync(&mut self, peers: &BTreeMap<Subnet, Peer>) -> Result<usize, VxlanError> {
        self.desired.peers.clone_from(peers);
        self.settle(|_| true).await
    }
}
