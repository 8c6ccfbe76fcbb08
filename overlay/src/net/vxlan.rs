//! The kernel's VXLAN device as a [`DataPath`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::info;

use super::device::{Device, DeviceError, inner_mtu};
use super::netlink::Netlink;
use super::view::View;
use crate::datapath::status::{Kind, Source};
use crate::datapath::{DataPath, Peer};
use crate::iface::External;
use crate::plan::{KindSpec, LinkSpec, VxlanSpec};
use crate::types::{Mtu, Subnet, VtepMac};
use crate::wire::netconf::VxlanConfig;

/// A `flannel.<VNI>` device and what hangs on it.
pub struct KernelVxlan {
    device: Device,
    /// What the device was made with; the interface index is looked up again when that interface is gone.
    options: VxlanSpec,
    /// Name of the external interface. One that is made anew has another index, and took our device with it.
    parent: String,
    view: Arc<View>,
}

impl KernelVxlan {
    /// Finds the device an earlier run left, or makes a new one. An existing device that fits keeps its MAC, so that
    /// a restart disturbs nothing; `random` makes the MAC of a new one. Peers of an earlier run stay programmed until
    /// the first full sync: forwarding goes on meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses, or the external interface is too narrow.
    pub async fn open(
        netlink: Netlink,
        config: &VxlanConfig,
        external: &External,
        random: [u8; 6],
    ) -> Result<Self, DeviceError> {
        let options = VxlanSpec {
            vni: config.vni,
            port: config.port,
            parent: external.index,
            local: external.address,
            gbp: config.gbp,
            learning: config.learning,
        };
        let link = LinkSpec {
            name: format!("flannel.{}", config.vni),
            kind: KindSpec::Vxlan(options.clone()),
            mtu: inner_mtu(config.mtu.unwrap_or(external.mtu), &external.name)?,
            mac: VtepMac::locally_administered(random),
        };
        let device = Device::open(netlink, link).await?;
        let link = &device.desired.link;
        let view = View::new(Kind::Kernel, link, config.vni, config.udp_port(), external.address);
        Ok(Self { device, options, parent: external.name.clone(), view: Arc::new(view) })
    }

    /// The view of it that the status server has.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.view) as Arc<dyn Source>
    }

    /// By its index as long as that lives, so that renaming it is no matter; then by its name.
    async fn find_parent(&mut self) -> Result<(), DeviceError> {
        let netlink = &self.device.netlink;
        if netlink.has_link(self.options.parent).await? {
            return Ok(());
        }
        let found = netlink.link(&self.parent).await?;
        let found = found.ok_or_else(|| DeviceError::NoParent(self.parent.clone()))?;
        info!(interface = self.parent, index = found.index, "the external interface was made anew");
        self.options.parent = found.index;
        self.device.desired.link.kind = KindSpec::Vxlan(self.options.clone());
        Ok(())
    }
}

impl DataPath for KernelVxlan {
    type Error = DeviceError;

    fn device(&self) -> &str {
        self.device.name()
    }

    fn mac(&self) -> VtepMac {
        self.device.desired.link.mac
    }

    fn mtu(&self) -> Mtu {
        self.device.desired.link.mtu
    }

    async fn configure(&mut self, own: Subnet) -> Result<(), DeviceError> {
        self.view.set_subnet(own);
        self.find_parent().await?;
        self.device.address(own.base()).await
    }

    async fn sync(&mut self, peers: &BTreeMap<Subnet, Peer>) -> Result<usize, DeviceError> {
        self.find_parent().await?;
        self.device.desired.peers.clone_from(peers);
        self.view.set_peers(peers.len());
        self.device.settle(|_| true).await
    }
}
