//! The data path that was chosen: one of the two behind one name, so that the main loop need not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::device::DeviceError;
use super::netlink::Netlink;
use super::tap::{Local, RustVxlan};
use super::vxlan::KernelVxlan;
use crate::datapath::status::Source;
use crate::datapath::{DataPath, Peer};
use crate::iface::External;
use crate::types::{DatapathChoice, Mtu, Subnet, VtepMac};
use crate::wire::netconf::VxlanConfig;

/// What carries the overlay's packets.
pub enum Carrier {
    /// The kernel's VXLAN device.
    Kernel(KernelVxlan),
    /// Our own data path.
    Rust(Box<RustVxlan>),
}

impl Carrier {
    /// Carries packets as an earlier run of the rust data path did, before anything is known but the flags. `None`
    /// where there was none, or the flag says that there shall be none now.
    pub async fn resume(netlink: &Netlink, external: &External, local: &Local) -> Option<RustVxlan> {
        match local.options.choice {
            Some(DatapathChoice::Kernel) => None,
            _ => RustVxlan::resume(netlink.clone(), external, local.clone()).await,
        }
    }

    /// Opens the data path that the flag, else the config, else `auto` names. `random` makes the MAC of a new device.
    ///
    /// # Errors
    /// Those of the data path chosen: [`KernelVxlan::open`], [`RustVxlan::open`].
    pub async fn open(
        netlink: Netlink,
        config: &VxlanConfig,
        external: &External,
        local: Local,
        random: [u8; 6],
        resumed: Option<RustVxlan>,
    ) -> Result<Self, DeviceError> {
        let wanted = local.options.choice.or(config.datapath).unwrap_or_default();
        let rust = match wanted {
            DatapathChoice::Kernel => false,
            DatapathChoice::Rust => true,
            // Asked before the device is touched: the one that an earlier run left may be ours.
            DatapathChoice::Auto => !netlink.has_vxlan().await?,
        };
        if rust && wanted == DatapathChoice::Auto {
            warn!(
                "the kernel has no VXLAN devices (is the module vxlan there?): packets are carried by the rust data path"
            );
        }
        if rust {
            let vxlan = RustVxlan::open(netlink, config, external, local, random, resumed).await?;
            info!(device = vxlan.device(), "data path rust ({wanted} was asked for)");
            return Ok(Self::Rust(Box::new(vxlan)));
        }
        // Its UDP port is the one that the kernel's device will have.
        drop(resumed);
        let vxlan = KernelVxlan::open(netlink, config, external, random).await?;
        info!(device = vxlan.device(), "data path kernel ({wanted} was asked for)");
        Ok(Self::Kernel(vxlan))
    }

    /// The view of it that the status server has.
    pub fn source(&self) -> Arc<dyn Source> {
        match self {
            Self::Kernel(vxlan) => vxlan.source(),
            Self::Rust(vxlan) => vxlan.source(),
        }
    }
}

impl DataPath for Carrier {
    type Error = DeviceError;

    fn device(&self) -> &str {
        match self {
            Self::Kernel(vxlan) => vxlan.device(),
            Self::Rust(vxlan) => vxlan.device(),
        }
    }

    fn mac(&self) -> VtepMac {
        match self {
            Self::Kernel(vxlan) => vxlan.mac(),
            Self::Rust(vxlan) => vxlan.mac(),
        }
    }

    fn mtu(&self) -> Mtu {
        match self {
            Self::Kernel(vxlan) => vxlan.mtu(),
            Self::Rust(vxlan) => vxlan.mtu(),
        }
    }

    async fn configure(&mut self, own: Subnet) -> Result<(), DeviceError> {
        match self {
            Self::Kernel(vxlan) => vxlan.configure(own).await,
            Self::Rust(vxlan) => vxlan.configure(own).await,
        }
    }

    async fn sync(&mut self, peers: &BTreeMap<Subnet, Peer>) -> Result<usize, DeviceError> {
        match self {
            Self::Kernel(vxlan) => vxlan.sync(peers).await,
            Self::Rust(vxlan) => vxlan.sync(peers).await,
        }
    }
}
