//! The data path that was chosen: one of the two behind one name, so that the main loop need not know.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::device::DeviceError;
use super::netlink::{self, Netlink};
use super::tap::{Local, RustVxlan};
use super::vxlan::KernelVxlan;
use super::xfrm;
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
        forget(&local.handover);
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

    /// Sends a word through `changed` whenever the kernel has changed something that concerns it, until nobody listens.
    pub fn watch(&self, changed: Sender<()>) -> impl Future<Output = ()> + Send + use<> {
        let mut devices = vec![self.device().to_owned()];
        let injecting = match self {
            Self::Kernel(_) => None,
            Self::Rust(vxlan) => vxlan.injecting(),
        };
        async move {
            let Some((device, uplinks)) = injecting else {
                return netlink::watch_kernel(devices, None, changed).await;
            };
            devices.push(device);
            tokio::join!(
                netlink::watch_kernel(devices, Some(uplinks), changed.clone()),
                xfrm::watch(changed)
            );
        }
    }
}

/// Removes what the rust data path left: from now on it grows old, and a TAP made later would have the same MAC.
fn forget(handover: &Path) {
    match std::fs::remove_file(handover) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            warn!("{} cannot be removed, and is out of date: {error}", handover.display());
        }
        _ => {}
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

    fn fatal(&self) -> Option<&'static str> {
        match self {
            Self::Kernel(vxlan) => vxlan.fatal(),
            Self::Rust(vxlan) => vxlan.fatal(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::config::DatapathOptions;
    use crate::types::Vni;

    /// Opens a data path in a network namespace of its own; says which one it became, and which the device shows.
    fn opened(choice: Option<DatapathChoice>, with_vxlan: bool) -> (&'static str, bool) {
        let body = async move {
            let external = External {
                name: "lo".to_owned(),
                index: 1,
                mtu: Mtu::try_from(1500).unwrap(),
                address: [127, 0, 0, 1].into(),
            };
            let config = VxlanConfig {
                vni: Vni::DEFAULT,
                port: None,
                gbp: false,
                learning: false,
                mtu: None,
                datapath: None,
            };
            let dir = tempfile::tempdir().unwrap();
            let options = DatapathOptions { choice, ..DatapathOptions::default() };
            let local = Local { options, handover: dir.path().join("handover.json") };
            let netlink = Netlink::open().unwrap();
            let netlink = if with_vxlan { netlink } else { netlink.without_vxlan() };
            let carrier = Carrier::open(netlink, &config, &external, local, [2; 6], None).await;
            let name = match carrier.map_err(|error| error.to_string()).unwrap() {
                Carrier::Kernel(_) => "kernel",
                Carrier::Rust(_) => "rust",
            };
            let link = Command::new("ip").args(["-d", "link", "show", "flannel.1"]).output().unwrap();
            (name, String::from_utf8_lossy(&link.stdout).contains("tun type tap"))
        };
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("a network namespace of its own (these tests need root)");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
        });
        thread.join().unwrap()
    }

    #[test]
    fn auto_is_the_kernel_where_it_can_and_the_rust_data_path_where_it_cannot() {
        assert_eq!(opened(None, true), ("kernel", false));
        assert_eq!(opened(None, false), ("rust", true));
        assert_eq!(opened(Some(DatapathChoice::Auto), false), ("rust", true));
        assert_eq!(opened(Some(DatapathChoice::Rust), true), ("rust", true));
        // Who asks for the kernel gets it or its error, nothing else.
        assert_eq!(opened(Some(DatapathChoice::Kernel), false), ("kernel", false));
    }
}
