//! The data path in user space as a [`DataPath`]: a TAP in place of the kernel's VXLAN device, sockets in place of its
//! encapsulation, and the engine between them. Address, routes and neighbours are the kernel's as with the other.
//!
//! The TAP is persistent and outlives us with all that hangs on it. What outlives us in the kernel's FDB otherwise is
//! kept in a file ([`crate::wire::handover`]), so that a successor carries packets before it has asked the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::device::{Device, DeviceError, device_only, inner_mtu};
use super::netlink::Netlink;
use super::queues::{Opened, Underlay, injecting_device};
use super::uplinks::Uplinks;
use super::view::{RustView, View};
use crate::config::DatapathOptions;
use crate::datapath::engine::{Engine, Settings};
use crate::datapath::status::{Kind, Source};
use crate::datapath::table::Table;
use crate::datapath::{DataPath, Peer};
use crate::file::write_atomically;
use crate::iface::External;
use crate::plan::{Desired, KindSpec, KindState, LinkSpec, LinkState};
use crate::types::{Mtu, Subnet, VtepMac};
use crate::wire::handover::Handover;
use crate::wire::netconf::VxlanConfig;

/// What this host says about its data path.
#[derive(Debug, Clone)]
pub struct Local {
    /// The flags.
    pub options: DatapathOptions,
    /// Where the next process finds what we know.
    pub handover: PathBuf,
}

/// A `flannel.<VNI>` TAP, what hangs on it, and the engine that carries its packets.
pub struct RustVxlan {
    device: Device,
    underlay: Underlay,
    local: Local,
    own: Option<Subnet>,
    opened: Option<Opened>,
    /// The interface index of the device that the engine reads.
    index: u32,
    uplinks: Uplinks,
    /// Whether super-frames were sent whole when the engine was started.
    injects: bool,
    /// What the file says.
    handed_over: Option<Handover>,
    view: Arc<RustView>,
}

impl RustVxlan {
    /// Finds the device an earlier run left, or makes a new one, and opens its queues and sockets. An existing TAP keeps
    /// its MAC; `random` makes the MAC of a new one. Packets are carried from [`DataPath::configure`] on; until then
    /// they wait in the kernel's queues. What `resumed` carries already goes on where it fits the config.
    ///
    /// # Errors
    /// When the config asks for what only the kernel's device can do, the external interface is too narrow, the UDP
    /// port is taken, there is no `/dev/net/tun`, or the kernel refuses otherwise.
    pub async fn open(
        netlink: Netlink,
        config: &VxlanConfig,
        external: &External,
        local: Local,
        random: [u8; 6],
        resumed: Option<Self>,
    ) -> Result<Self, DeviceError> {
        for (key, on) in [("GBP", config.gbp), ("Learning", config.learning)] {
            if on {
                return Err(DeviceError::KernelOnly(key));
            }
        }
        let underlay = Underlay { vni: config.vni, port: config.udp_port(), local: external.address };
        let link = LinkSpec {
            name: format!("flannel.{}", config.vni),
            kind: KindSpec::Tap,
            mtu: inner_mtu(config.mtu.unwrap_or(external.mtu), &external.name)?,
            mac: VtepMac::locally_administered(random),
        };
        if let Some(resumed) = resumed {
            if (resumed.underlay, resumed.mtu()) == (underlay, link.mtu) {
                return Ok(resumed);
            }
            info!(device = resumed.device(), "the network config has changed, starting anew");
        }
        let device = Device::open(netlink, link).await?;
        let mut vxlan = Self::new(device, underlay, local);
        vxlan.opened = Some(vxlan.open_queues().await?);
        Ok(vxlan)
    }

    /// Carries packets as an earlier run did, if it left a device and a file that fit each other and `external`.
    /// Changes nothing but who reads the device.
    pub async fn resume(netlink: Netlink, external: &External, local: Local) -> Option<Self> {
        let text = std::fs::read_to_string(&local.handover).ok()?;
        let handover = Handover::parse(&text)
            .inspect_err(|error| warn!(file = %local.handover.display(), "the peers of the earlier run cannot be read: {error}"))
            .ok()
            .filter(|handover| handover.local == external.address)?;
        let link = LinkSpec {
            name: handover.device.clone(),
            kind: KindSpec::Tap,
            mtu: handover.mtu,
            mac: handover.mac,
        };
        let device = Device { netlink, desired: Desired { link, address: None, peers: BTreeMap::new() } };
        let state = device.state().await.ok()??;
        if state.mac != Some(handover.mac) {
            return None;
        }
        let underlay = Underlay { vni: handover.vni, port: handover.port, local: handover.local };
        let (peers, subnet) = (handover.peers.clone(), handover.subnet);
        let mut vxlan = Self::new(device, underlay, local);
        vxlan.handed_over = Some(handover);
        vxlan.publish(&peers);
        let opened = vxlan.open_queues().await;
        // Without a self-test: it would lose what waits, and these queues worked before.
        if let Err(error) = opened.and_then(|opened| vxlan.start(opened)) {
            warn!(device = vxlan.device(), "packets wait for the store's answer: {error}");
            return None;
        }
        vxlan.set_subnet(subnet);
        info!(
            device = vxlan.device(),
            peers = peers.len(),
            "carrying packets for the {} peers of the earlier run until the store answers",
            peers.len()
        );
        Some(vxlan)
    }

    fn new(device: Device, underlay: Underlay, local: Local) -> Self {
        let view = View::new(Kind::Rust, &device.desired.link, underlay.vni, underlay.port, underlay.local);
        let view = Arc::new(RustView::new(view, &local.options));
        Self {
            device,
            underlay,
            local,
            own: None,
            opened: None,
            index: 0,
            uplinks: Uplinks::default(),
            injects: false,
            handed_over: None,
            view,
        }
    }

    /// The injecting device, and the interfaces through which packets leave from there, which change as routes do;
    /// `None` if there is not to be any.
    pub fn injecting(&self) -> Option<(String, watch::Receiver<BTreeSet<u32>>)> {
        self.local.options.inject.then(|| (injecting_device(self.underlay.vni), self.uplinks.watched()))
    }

    /// The view of it that the status server has.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.view) as Arc<dyn Source>
    }

    /// Opens the queues of the device, which is there, and their sockets.
    async fn open_queues(&mut self) -> Result<Opened, DeviceError> {
        let mut opened = Opened::open(self.device.name(), self.underlay, self.local.options.queues).await?;
        if self.local.options.inject {
            opened.inject(&self.device.netlink, self.underlay).await;
        }
        self.index = self.device.state().await?.map_or(0, |state| state.index);
        Ok(opened)
    }

    /// Starts the engine. There is none running.
    fn start(&mut self, opened: Opened) -> Result<(), DeviceError> {
        let options = &self.local.options;
        let settings = Settings {
            vni: self.underlay.vni,
            port: self.underlay.port,
            mac: self.mac(),
            mtu: self.mtu(),
            spin: options.spin,
            cpus: options.cpus.clone(),
            source_check: options.source_check,
            cut_sends: opened.cuts_sends(),
            udp_super_frames: opened.takes_udp(),
        };
        let features = opened.features();
        self.injects = opened.injects();
        let engine = Engine::start(&settings, opened.queues, &self.view.table, &self.view.capture)
            .map_err(DeviceError::Engine)?;
        for feature in &features {
            debug!(device = self.device(), feature = feature.name, on = feature.on, "{}", feature.note);
        }
        self.view.start(engine, features);
        Ok(())
    }

    /// Opens, tests and starts, with the device up and nothing running.
    async fn begin(&mut self, own: Subnet) -> Result<(), DeviceError> {
        let mut opened = match self.opened.take() {
            Some(opened) => opened,
            None => self.open_queues().await?,
        };
        opened.test(self.device.name(), self.underlay, own.base());
        self.start(opened)
    }

    fn set_subnet(&mut self, own: Subnet) {
        self.own = Some(own);
        self.view.view.set_subnet(own);
    }

    /// Starts the engine anew where that is needed; returns how many changes it took.
    async fn keep_running(&mut self) -> Result<usize, DeviceError> {
        if self.view.was_killed() {
            return Ok(0); // see `fatal`
        }
        let state = self.device.state().await?;
        let mut trouble = trouble(state.as_ref(), self.index, self.view.is_running());
        if trouble.is_none() && self.injects {
            let link = self.device.netlink.link(&injecting_device(self.underlay.vni)).await?;
            trouble = (!link.is_some_and(|link| link.up)).then_some("the injecting device is down or gone");
        }
        let Some(trouble) = trouble else { return Ok(0) };
        let Some(own) = self.own else { return Ok(0) };
        warn!(device = self.device(), "{trouble}; starting the data path anew");
        // The queues go first: what is made anew could not be opened while they exist.
        self.view.stop();
        let changes = self.device.settle(device_only).await?;
        self.begin(own).await?;
        Ok(changes + 1)
    }

    fn publish(&mut self, peers: &BTreeMap<Subnet, Peer>) {
        if self.device.desired.peers != *peers {
            self.device.desired.peers.clone_from(peers);
            self.publish_table();
            self.view.view.set_peers(peers.len());
        }
    }

    fn publish_table(&self) {
        let (table, peers) = (&self.view.table, &self.device.desired.peers);
        let built = Table::build(peers.iter().map(|(s, p)| (*s, *p)), &table.current());
        table.publish(built.with_uplinks(|peer| self.uplinks.find(peer)));
    }

    /// Sees which way packets leave that do not pass the host's routing.
    async fn look_for_uplinks(&mut self) -> Result<(), DeviceError> {
        if !self.local.options.inject {
            return Ok(());
        }
        let peers = self.device.desired.peers.values().map(|peer| peer.public_ip).collect();
        let netlink = &self.device.netlink;
        let refreshed = self.uplinks.refresh(netlink, self.index, self.underlay.local, &peers).await;
        // Also what was found out before something failed counts, above all that the host now encrypts.
        if !matches!(refreshed, Ok(false)) {
            self.publish_table();
        }
        refreshed?;
        Ok(())
    }

    /// Leaves what we know for the next process.
    fn hand_over(&mut self) {
        let Some(subnet) = self.own else { return };
        let link = &self.device.desired.link;
        let handover = Handover {
            device: link.name.clone(),
            vni: self.underlay.vni,
            port: self.underlay.port,
            local: self.underlay.local,
            mac: link.mac,
            mtu: link.mtu,
            subnet,
            peers: self.device.desired.peers.clone(),
        };
        if self.handed_over.as_ref() != Some(&handover) {
            match write_atomically(&self.local.handover, &handover.render()) {
                Ok(()) => self.handed_over = Some(handover),
                Err(error) => warn!(
                    "{}: a restart will interrupt the overlay until the store answers: {error}",
                    self.local.handover.display()
                ),
            }
        }
    }
}

/// Why the engine must be started anew; `None` if it need not.
fn trouble(state: Option<&LinkState>, index: u32, running: bool) -> Option<&'static str> {
    let Some(state) = state else { return Some("the device is gone") };
    let KindState::Tap(tap) = &state.kind else { return Some("the device is of another kind") };
    if state.index != index {
        Some("the device was made anew by somebody else")
    } else if !running {
        Some("a worker of the data path has stopped")
    } else if !tap.vnet_hdr || !tap.persist {
        Some("another process has opened the device and changed its settings")
    } else {
        None
    }
}

impl Drop for RustVxlan {
    fn drop(&mut self) {
        // The status server may still hold the view.
        self.view.stop();
    }
}

impl DataPath for RustVxlan {
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
        let state = self.device.state().await?;
        if state.is_none_or(|state| state.index != self.index) {
            // Deleted since; see keep_running.
            self.opened = None;
            self.view.stop();
        }
        self.device.address(own.base()).await?;
        self.set_subnet(own);
        if self.view.is_running() {
            return Ok(()); // resumed
        }
        self.view.stop();
        self.begin(own).await
    }

    async fn sync(&mut self, peers: &BTreeMap<Subnet, Peer>) -> Result<usize, DeviceError> {
        self.publish(peers);
        // First, whatever else may fail: nothing must leave where it should not.
        let looked = self.look_for_uplinks().await;
        let repaired = self.keep_running().await?;
        let changes = self.device.settle(|_| true).await?;
        looked?;
        self.hand_over();
        if !self.device.netlink.has_address(self.underlay.local).await? {
            return Err(DeviceError::NoLocalAddress(self.underlay.local));
        }
        Ok(repaired + changes)
    }

    fn fatal(&self) -> Option<&'static str> {
        self.view.was_killed().then_some(
            "the kernel has killed a worker of the data path, see its log (dmesg); ending, because only a new process \
             can take its place",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::TapState;

    #[test]
    fn what_makes_the_engine_start_anew() {
        let good = TapState { multi_queue: true, persist: true, vnet_hdr: true, queues: 1 };
        let state = |tap| LinkState { index: 7, kind: KindState::Tap(tap), mac: None, mtu: 1450, up: false };
        assert_eq!(trouble(Some(&state(good)), 7, true), None, "being down is not a reason");
        for (state, index, running) in [
            (None, 7, true),
            (Some(state(good)), 6, true),
            (Some(state(good)), 7, false),
            (Some(state(TapState { vnet_hdr: false, ..good })), 7, true),
            (Some(state(TapState { persist: false, ..good })), 7, true),
            (Some(LinkState { kind: KindState::Other("dummy".into()), ..state(good) }), 7, true),
        ] {
            assert!(trouble(state.as_ref(), index, running).is_some(), "{state:?}");
        }
    }
}
