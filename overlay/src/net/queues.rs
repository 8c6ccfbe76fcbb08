//! The device's queues and the underlay's sockets: opened and tested, before the workers have them.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::device::DeviceError;
use super::netlink::Netlink;
use super::sysctl;
use crate::datapath::engine::Queue;
use crate::datapath::inject::{self, Inject, InjectError};
use crate::datapath::io::Sockets;
use crate::datapath::selftest;
use crate::datapath::socket::{self, SocketError};
use crate::datapath::status::{Feature, TCP_INJECT};
use crate::datapath::tap::{self, TapError, TapOffloads};
use crate::types::Vni;

/// How long a device or a port may be taken before that counts. A process that is being started holds our closed files
/// until it runs its program (we start `iptables`); an overlayd that was stopped may need a moment to go.
const TAKEN: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(10);

/// The hardware address of the self-test's station; locally administered.
const TEST_STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Opens something; tries again for a moment while it fails because somebody else has it.
pub(super) async fn patiently<T, E>(
    open: impl Fn() -> Result<T, E>,
    is_taken: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + TAKEN;
    loop {
        match open() {
            Err(error) if is_taken(&error) && Instant::now() < deadline => sleep(RETRY).await,
            outcome => return outcome,
        }
    }
}

/// Where outer packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Underlay {
    /// The network.
    pub(super) vni: Vni,
    /// UDP port, ours and the peers'.
    pub(super) port: u16,
    /// Our address.
    pub(super) local: Ipv4Addr,
}

/// What is open and not yet read.
pub(super) struct Opened {
    pub(super) queues: Vec<Queue>,
    offloads: TapOffloads,
    /// What the self-test said, where there was one.
    tested: Option<selftest::Report>,
    /// Why super-frames are not sent whole.
    injection: Result<(), String>,
}

/// The name of the injecting device.
pub(super) fn injecting_device(vni: Vni) -> String {
    format!("weft.{vni}")
}

/// The injecting device `name`, up, with its program, and tested.
async fn injecting(name: &str, netlink: &Netlink, vni: Vni, queues: usize) -> Result<Vec<Inject>, String> {
    let taken = |error: &InjectError| matches!(error, InjectError::Taken(_));
    let device = patiently(|| inject::Device::open(name, queues), taken).await;
    let device = device.map_err(|error| error.to_string())?;
    sysctl::no_ipv6(name).unwrap_or_else(|error| debug!(device = name, %error, "IPv6 left as it is"));
    let link = netlink.link(name).await.map_err(|error| error.to_string())?;
    let index = link.ok_or_else(|| format!("{name} is gone"))?.index;
    netlink.bring_up(name, index).await.map_err(|error| error.to_string())?;
    let queues = device.attach(index).map_err(|error| error.to_string())?;
    let target = selftest::INJECTION_TARGET;
    netlink.set_neighbour(name, index, target, TEST_STATION).await.map_err(|error| error.to_string())?;
    selftest::injection(&queues, index, vni, rand::random())?;
    Ok(queues)
}

impl Opened {
    /// Opens the queues of the device, which is there, and their sockets.
    pub(super) async fn open(device: &str, underlay: Underlay, queues: usize) -> Result<Self, DeviceError> {
        let (taps, offloads, _) = patiently(|| tap::open(device, queues), TapError::is_in_use).await?;
        let sockets = patiently(
            || socket::open(underlay.local, underlay.port, queues),
            |e| matches!(e, SocketError::PortTaken { .. }),
        )
        .await?;
        let queue = |(tap, (receive, transmit))| Queue { tap, sockets: Sockets::new(receive, transmit) };
        let queues = taps.into_iter().zip(sockets).map(queue).collect();
        Ok(Self {
            queues,
            offloads,
            tested: None,
            injection: Err("not asked for (-datapath-inject)".to_owned()),
        })
    }

    /// Makes the queues send super-frames whole, if that is possible here.
    pub(super) async fn inject(&mut self, netlink: &Netlink, underlay: Underlay) {
        let name = injecting_device(underlay.vni);
        self.injection = match injecting(&name, netlink, underlay.vni, self.queues.len()).await {
            Ok(queues) => {
                let mut pairs = self.queues.iter_mut().zip(queues);
                pairs
                    .try_for_each(|(queue, inject)| queue.sockets.set_inject(inject))
                    .map_err(|e| e.to_string())
            }
            Err(why) => Err(why),
        };
        if let Err(why) = &self.injection {
            info!(device = name, "TCP is cut before it leaves this host: {why}");
        }
    }

    /// Sends frames through both sides, and says what comes of it. What does not work then is no reason to stay away: a
    /// packet filter may let pass what comes from others. The device is up and has `address`.
    pub(super) fn test(&mut self, device: &str, underlay: Underlay, address: Ipv4Addr) {
        let setup = selftest::Setup {
            vni: underlay.vni,
            local: underlay.local.into(),
            port: underlay.port,
            device,
            address,
            nonce: rand::random(),
        };
        let report = selftest::run(&setup, &mut self.queues);
        if report.is_good() {
            info!(device, "self-test: {report}");
        } else {
            warn!(device, "self-test: {report}");
        }
        self.tested = Some(report);
    }

    /// What the test found of a side that works; `None` without a test, or where that side failed it.
    fn underlay(&self) -> Option<selftest::Underlay> {
        self.tested.as_ref().and_then(|report| report.underlay.as_ref().ok()).copied()
    }

    fn device(&self) -> Option<selftest::Device> {
        self.tested.as_ref().and_then(|report| report.device.as_ref().ok()).copied()
    }

    /// Whether the sockets cut sends (`UDP_SEGMENT`).
    pub(super) fn cuts_sends(&self) -> bool {
        let known = self.queues.iter().flat_map(|q| &q.sockets.transmit).all(socket::Transmit::segmentation);
        known && self.underlay().is_none_or(|found| found.segmentation)
    }

    /// Whether the device takes UDP super-frames.
    pub(super) fn takes_udp(&self) -> bool {
        self.device().map_or(self.offloads >= TapOffloads::TcpUdp, |found| found.udp)
    }

    /// Whether super-frames are sent whole.
    pub(super) fn injects(&self) -> bool {
        self.injection.is_ok()
    }

    /// What there is to say of kernel and device.
    pub(super) fn features(&self) -> Vec<Feature> {
        let receive = self.queues.first().map(|q| &q.sockets.receive);
        let coalescing = receive.is_some_and(socket::Receive::coalescing);
        let queue_kib = receive.map_or(0, socket::Receive::queue_bytes) / 1024;
        let feature = |name, on: bool, without: &str| Feature::new(name, on, if on { "" } else { without });
        let tap = |name, level, without| feature(name, self.offloads >= level, without);
        let mut features = vec![
            tap("tap_checksum", TapOffloads::Checksum, "the kernel fills in checksums"),
            tap("tap_tcp", TapOffloads::Tcp, "the kernel cuts TCP into packets"),
            tap("tap_tcp_ecn", TapOffloads::TcpEcn, "the kernel cuts TCP with CWR into packets"),
            tap("tap_udp", TapOffloads::TcpUdp, "the kernel cuts UDP into packets (Linux before 6.2)"),
            feature("tap_udp_write", self.takes_udp(), "UDP is handed to the device packet by packet"),
            feature("udp_segment", self.cuts_sends(), "every datagram is sent by itself"),
            Feature::new(
                TCP_INJECT,
                self.injects(),
                self.injection.as_ref().err().map_or("", String::as_str),
            ),
            feature("udp_gro", coalescing, "every datagram is received by itself"),
            Feature::new("receive_queue", true, &format!("{queue_kib} KiB")),
        ];
        features.push(match &self.tested {
            Some(report) => Feature::new("self_test", report.is_good(), &report.to_string()),
            None => Feature::new("self_test", false, "not made: packets went on as before a restart"),
        });
        features
    }
}
