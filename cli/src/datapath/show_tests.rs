//! Reports as they are printed.
#![allow(clippy::unwrap_used, reason = "tests")]

use overlay::datapath::counters::PeerSnapshot;
use overlay::datapath::status::{Feature, Settings};

use super::*;

pub(in crate::datapath) fn kernel() -> Report {
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

fn direction(frames: u64, super_frames: u64, bytes: u64) -> DirectionSnapshot {
    DirectionSnapshot { frames, super_frames, bytes }
}

fn peer(subnet: &str, counters: PeerSnapshot) -> PeerReport {
    let subnet: overlay::types::Subnet = subnet.parse().unwrap();
    let [.., third, _] = subnet.base().octets();
    PeerReport { subnet, underlay: [192, 168, 31, third].into(), mac: "62:3b:27:aa:b8:87".into(), counters }
}

pub(in crate::datapath) fn engine() -> Engine {
    let worker = Snapshot {
        encap: direction(1_234_567, 45_678, 1_790_000_000),
        decap: direction(600_000, 200_000, 40_000_000),
        answered_arp: 3,
        answered_nd: 1,
        too_big_signalled: 2,
        tap_reads: 60_000,
        tap_writes: 200_000,
        sends: 9000,
        receives: 30_000,
        polls: 4000,
        wakeups: 3990,
        spins: 90_000,
        spin_ns: 37_000_000_000,
        tap_batch: [1, 2, 3, 4, 5, 6, 7],
        receive_batch: [100_000, 0, 0, 0, 0, 0, 0],
        drops: [("flood".to_owned(), 12), ("too_big".to_owned(), 0), ("wrong_vni".to_owned(), 1234)].into(),
        ..Snapshot::default()
    };
    let busy = PeerSnapshot {
        sent_frames: 1_234_567,
        sent_bytes: 1_790_000_000,
        received_frames: 600_000,
        received_bytes: 40_000_000,
        dropped: 2,
    };
    let engine = Engine {
        running: true,
        uptime_ms: 3_700_000,
        settings: Settings { queues: 1, spin_us: 50, cpus: vec![], source_check: true, inject: true },
        features: vec![
            Feature::new("udp_segment", true, ""),
            Feature::new("udp_gro", false, "datagrams come one by one"),
        ],
        peers: vec![peer("172.17.65.0/24", busy), peer("172.17.66.0/24", PeerSnapshot::default())],
        ..Engine::default()
    };
    engine.with_workers(vec![worker])
}

fn shown(report: &Report) -> String {
    let mut out = Vec::new();
    text(&mut out, report).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_engines_report_lines_up() {
    let report = Report { datapath: Kind::Rust, engine: Some(engine()), ..kernel() };
    assert_eq!(
        shown(&report),
        "\
flannel.1: overlayd's own data path, running for 1 h 1 min (overlayd 0.1.0)
  subnet 172.17.63.0/24, underlay 192.168.31.63, UDP port 8472, VNI 1, MTU 1450, MAC 62:3b:27:aa:b8:86
  1 queue, spins at most 50 us, not pinned, source check on
  udp_segment            yes
  udp_gro                no (datagrams come one by one)

            packets     bytes  super-frames  packets each
  sent      1234567   1.79 GB         45678         27.03
  received   600000  40.00 MB        200000          3.00

  system calls    0.17 per packet: 303000 for 1834567
                  tap reads 60000, tap writes 200000, sends 9000, injected 0, receives 30000, polls 4000
  spinning        37.0 s, 1.0% of the time, 90000 looks
  sleeping        4000 times, 3990 of them ended by a packet
  answered        ARP 3, neighbour solicitations 1, packets too big 2

  batch sizes                         1  2-3  4-7  8-15  16-31  32-63  64+
  frames per round of tap reads       1    2    3     4      5      6    7
  datagrams per receive          100000    0    0     0      0      0    0
  segments per send                   0    0    0     0      0      0    0
  segments per tap write              0    0    0     0      0      0    0

  1246 packets dropped:
    flood        12  broadcast and multicast do not cross the overlay: harmless unless an application needs them
    wrong_vni  1234  VXLAN of another VNI: compare the network configs of the nodes

  2 peers
                         underlay     sent    bytes  received     bytes  dropped
    172.17.65.0/24  192.168.31.65  1234567  1.79 GB    600000  40.00 MB        2
    172.17.66.0/24  192.168.31.66        0      0 B         0       0 B        0
"
    );
}

#[test]
fn the_kernels_report_says_where_its_counters_are() {
    assert_eq!(
        shown(&kernel()),
        "\
flannel.1: the kernel's vxlan device (overlayd 0.1.0)
  subnet 172.17.63.0/24, underlay 192.168.31.63, UDP port 8472, VNI 1, MTU 1450, MAC 62:3b:27:aa:b8:86
  2 peers; the kernel carries the packets and counts them:
    packets, bytes, drops   ip -s -s link show flannel.1
    peers                   bridge fdb show dev flannel.1
    capture                 tcpdump -i flannel.1 -w FILE
"
    );
}

#[test]
fn a_quiet_and_a_stopped_engine_say_so() {
    let mut engine = Engine { running: true, ..Engine::default() };
    engine.settings.cpus = vec![0, 2];
    engine.total.drops.insert("new_reason".into(), 1);
    engine.total.gso_fallbacks = 5;
    engine.capturing = true;
    let mut report = Report { datapath: Kind::Rust, engine: Some(engine), ..kernel() };
    let text = shown(&report);
    for line in [
        "flannel.1: overlayd's own data path, running for 0.0 ms (overlayd 0.1.0)\n",
        "  0 queues, never spins, on CPU 0,2, source check OFF, a capture is running\n",
        "  system calls    - per packet: 0 for 0\n",
        "  fallbacks       5 sends cut by overlayd because the kernel refused to\n",
        "  1 packet dropped:\n    new_reason  1\n",
        "  0 peers\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    report.engine = Some(Engine::default());
    assert!(shown(&report).contains("NOT RUNNING: overlayd's log says why"));
    assert!(shown(&report).contains("  no packet was dropped\n"));
    report.engine = None;
    assert!(shown(&report).ends_with("  2 peers\n"));
}
