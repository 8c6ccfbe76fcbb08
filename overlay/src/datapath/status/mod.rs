//! What the data path says about itself: the [`Report`] that `cli overlay datapath` shows.
//!
//! It goes over a Unix socket, as JSON ([`server`], [`client`]):
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/datapath` | a [`Report`] |
//! | `GET /v1/datapath/pcap?packets=N&bytes=N&seconds=N&snaplen=N` | a capture as a pcapng stream, see [`super::recording`] |
//!
//! Names in the JSON are stable; fields may be added. All counts begin at zero when overlayd starts.

pub mod client;
pub mod server;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::capture::Capture;
use super::counters::{Drop, PeerSnapshot, Snapshot};
use super::table::{Entry, Table};
use crate::types::Subnet;

/// Where the socket is unless a flag says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/flannel/overlayd.sock";

/// Who carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The kernel's vxlan device.
    Kernel,
    /// overlayd's own engine.
    Rust,
}

/// The data path, all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who carries the packets.
    pub datapath: Kind,
    /// The version of overlayd.
    pub version: String,
    /// The overlay's device.
    pub device: String,
    /// Its hardware address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port of the underlay.
    pub port: u16,
    /// This host's address on the underlay.
    pub underlay: Ipv4Addr,
    /// This host's subnet.
    pub subnet: Subnet,
    /// The number of peers.
    pub peers: usize,
    /// The engine's counters and settings. `None` where the kernel carries the packets and counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
}

/// What overlayd's own data path counts and has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Engine {
    /// False once a worker has given up; the log says why.
    pub running: bool,
    /// For how long it has counted, in milliseconds.
    pub uptime_ms: u64,
    /// Whether somebody captures.
    pub capturing: bool,
    /// How it was told to work.
    pub settings: Settings,
    /// What kernel and device can do, as found at start.
    pub features: Vec<Feature>,
    /// All workers together, and what was dropped before a worker saw it.
    pub total: Snapshot,
    /// Each worker, in the order of its queue.
    pub workers: Vec<Snapshot>,
    /// Each peer, in the order of the table.
    pub peers: Vec<PeerReport>,
}

/// How the engine was told to work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Queues, and workers.
    pub queues: usize,
    /// The longest time that a worker looks again before it sleeps, in microseconds (`-datapath-spin-us`).
    pub spin_us: u64,
    /// The processors that workers are pinned to, in their order; empty if they are not (`-datapath-cpus`).
    pub cpus: Vec<usize>,
    /// Whether only known VTEPs are heard, from their own underlay address (`-datapath-source-check`).
    pub source_check: bool,
    /// Whether TCP super-frames may be sent whole (`-datapath-inject`); whether they are says the feature `tcp_inject`.
    pub inject: bool,
}

/// The feature that super-frames are sent whole.
pub const TCP_INJECT: &str = "tcp_inject";

/// Something that the kernel or the device can do or cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Feature {
    /// Its name, such as `udp_segment`.
    pub name: String,
    /// Whether it is in use.
    pub on: bool,
    /// What is done instead, or why not; may be empty.
    pub note: String,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// The subnet that it leases.
    pub subnet: Subnet,
    /// Its address on the underlay.
    pub underlay: IpAddr,
    /// The hardware address of its VTEP.
    pub mac: String,
    /// What was counted for it.
    #[serde(flatten)]
    pub counters: PeerSnapshot,
}

impl Feature {
    /// A feature under its name.
    pub fn new(name: &str, on: bool, note: &str) -> Self {
        Self { name: name.to_owned(), on, note: note.to_owned() }
    }
}

impl From<&Entry> for PeerReport {
    fn from(entry: &Entry) -> Self {
        Self {
            subnet: entry.subnet,
            underlay: entry.underlay,
            mac: entry.mac.to_string(),
            counters: entry.counters.snapshot(),
        }
    }
}

impl Engine {
    /// Puts in what the workers counted, and their sum.
    #[must_use]
    pub fn with_workers(mut self, workers: Vec<Snapshot>) -> Self {
        self.total = Snapshot::default();
        for worker in &workers {
            self.total.add(worker);
        }
        self.workers = workers;
        self
    }

    /// Adds dropped packets that no worker has seen.
    #[must_use]
    pub fn with_dropped(mut self, reason: Drop, packets: u64) -> Self {
        let sum = self.total.drops.entry(reason.name().to_owned()).or_default();
        *sum = sum.wrapping_add(packets);
        self
    }

    /// Puts in the peers of the table.
    #[must_use]
    pub fn with_peers(mut self, table: &Table) -> Self {
        self.peers = table.iter().map(PeerReport::from).collect();
        self
    }
}

/// Where the [`server`] gets its answers; it is asked anew for each request.
pub trait Source: Send + Sync {
    /// The data path as it is now. Must not take long: it runs on the runtime's threads.
    fn report(&self) -> Report;

    /// Where the engine leaves frames for a capture; `None` where the kernel carries the packets.
    fn capture(&self) -> Option<Arc<Capture>>;
}

/// Reports and a source for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod doubles {
    use super::*;

    /// The report of a kernel data path.
    pub(crate) fn kernel() -> Report {
        Report {
            datapath: Kind::Kernel,
            version: "0.1.0".into(),
            device: "flannel.1".into(),
            mac: "62:3b:27:aa:b8:86".into(),
            mtu: 1450,
            vni: 1,
            port: 8472,
            underlay: [192, 168, 31, 63].into(),
            subnet: "172.17.63.0/24".parse().unwrap(),
            peers: 2,
            engine: None,
        }
    }

    /// Answers with the same report each time.
    pub(crate) struct Fixed {
        pub(crate) report: Report,
        pub(crate) capture: Option<Arc<Capture>>,
    }

    impl Source for Fixed {
        fn report(&self) -> Report {
            self.report.clone()
        }

        fn capture(&self) -> Option<Arc<Capture>> {
            self.capture.clone()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::datapath::Peer;
    use crate::datapath::counters::{Counters, bump};

    #[test]
    fn the_json_is_stable_and_reads_back() {
        let report = doubles::kernel();
        let text = r#"{"datapath":"kernel","version":"0.1.0","device":"flannel.1","mac":"62:3b:27:aa:b8:86","mtu":1450,"vni":1,"port":8472,"underlay":"192.168.31.63","subnet":"172.17.63.0/24","peers":2}"#;
        assert_eq!(serde_json::to_string(&report).unwrap(), text);
        assert_eq!(serde_json::from_str::<Report>(text).unwrap(), report);
    }

    #[test]
    fn workers_are_summed_and_peers_listed() {
        let workers = [Counters::default(), Counters::default()];
        workers[0].encap.add(2, 3000);
        workers[1].encap.add(1, 60);
        bump(&workers[1].drops[Drop::Flood as usize], 5);
        let peer = Peer { mac: "62:3b:27:aa:b8:87".parse().unwrap(), public_ip: [192, 168, 31, 65].into() };
        let table = Table::build([("172.17.65.0/24".parse().unwrap(), peer)].into_iter(), &Table::default());
        table.entry(0).counters.sent(7, 700);
        let engine = Engine { running: true, ..Engine::default() }
            .with_workers(workers.iter().map(Counters::snapshot).collect())
            .with_dropped(Drop::QueueFull, 3)
            .with_peers(&table);
        assert_eq!((engine.total.dropped(Drop::QueueFull), engine.total.dropped_total()), (3, 8));
        assert_eq!((engine.total.encap.frames, engine.total.encap.bytes), (3, 3060));
        assert_eq!((engine.workers.len(), engine.total.dropped(Drop::Flood)), (2, 5));
        let report = Report { datapath: Kind::Rust, engine: Some(engine), ..doubles::kernel() };
        let json = serde_json::to_value(&report).unwrap();
        let peer = &json["engine"]["peers"][0];
        assert_eq!((&peer["subnet"], &peer["sent_bytes"]), (&"172.17.65.0/24".into(), &700.into()));
        assert_eq!(json["engine"]["total"]["drops"]["flood"], 5);
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }

    #[test]
    fn a_newer_daemons_fields_and_an_older_ones_gaps_are_read() {
        let text = r#"{"datapath":"rust","version":"9","device":"d","mac":"m","mtu":1,"vni":1,"port":1,"underlay":"1.2.3.4",
            "subnet":"10.0.0.0/24","peers":0,"new":[],"engine":{"running":true,"total":{"sends":4,"news":1}}}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!(report.engine.unwrap().total.sends, 4);
    }
}
