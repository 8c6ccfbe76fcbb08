//! The rust data path's device and what keeps it, on a veth as underlay in a network namespace of the test's own
//! thread. What it does with packets is tested elsewhere.
//!
//! ```text
//!   up0 (veth) 10.99.0.2/24 ·· UDP 8472 ·· engine ·· flannel.N (tap)
//! ```

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod namespace;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;

use namespace::{external, in_own_namespace, peers, sh};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use overlay::config::DatapathOptions;
use overlay::datapath::DataPath;
use overlay::datapath::status::{Kind, Report};
use overlay::net::carrier::Carrier;
use overlay::net::netlink::Netlink;
use overlay::net::tap::{Local, RustVxlan};
use overlay::types::{DatapathChoice, Subnet, Vni};
use overlay::wire::handover::Handover;
use overlay::wire::netconf::VxlanConfig;

const VXLAN: VxlanConfig =
    VxlanConfig { vni: Vni::DEFAULT, port: None, gbp: false, learning: false, mtu: None, datapath: None };

/// Everything to see of the device that flannel's users look at.
const LOOK: &str = "ip -o link show flannel.1 | cut -d: -f2-; ip -4 -o addr show flannel.1 | cut -d: -f2-; \
                    ip route show dev flannel.1; ip -4 neigh show dev flannel.1";

fn local(choice: DatapathChoice, dir: &Path) -> Local {
    let options = DatapathOptions { choice: Some(choice), ..DatapathOptions::default() };
    Local { options, handover: dir.join("handover.json") }
}

fn own() -> Subnet {
    "10.32.77.0/24".parse().unwrap()
}

/// Opens a data path as the daemon does, an earlier run's resumed first.
async fn open_with(config: &VxlanConfig, local: Local) -> Result<Carrier, String> {
    let netlink = Netlink::open().unwrap();
    let external = external(&netlink).await;
    let resumed = Carrier::resume(&netlink, &external, &local).await;
    let opened = Carrier::open(netlink, config, &external, local, [2, 0, 0, 0, 0, 1], resumed).await;
    opened.map_err(|e| e.to_string())
}

async fn open(choice: DatapathChoice, dir: &Path) -> Carrier {
    open_with(&VXLAN, local(choice, dir)).await.unwrap()
}

/// The same, with our subnet and these many peers.
async fn running(choice: DatapathChoice, dir: &Path, count: u16) -> Carrier {
    let mut vxlan = open(choice, dir).await;
    vxlan.configure(own()).await.unwrap();
    vxlan.sync(&peers(count)).await.unwrap();
    vxlan
}

async fn resume(dir: &Path) -> Option<RustVxlan> {
    let netlink = Netlink::open().unwrap();
    let external = external(&netlink).await;
    RustVxlan::resume(netlink, &external, local(DatapathChoice::Rust, dir)).await
}

fn report(vxlan: &Carrier) -> Report {
    vxlan.source().report()
}

fn is_running(vxlan: &Carrier) -> bool {
    report(vxlan).engine.is_some_and(|engine| engine.running)
}

fn index() -> Vec<String> {
    sh("ip -o link show flannel.1 | cut -d: -f1")
}

#[test]
fn the_device_is_as_flannel_leaves_it_but_for_its_kind() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut vxlan = open(DatapathChoice::Rust, dir.path()).await;
        assert_eq!(
            (vxlan.device(), vxlan.mtu().get(), vxlan.mac().to_string().as_str()),
            ("flannel.1", 1550, "02:00:00:00:00:01")
        );
        vxlan.configure(own()).await.unwrap();
        // One neighbour and one route each.
        assert_eq!(vxlan.sync(&peers(2)).await.unwrap(), 4);
        assert_eq!(vxlan.sync(&peers(2)).await.unwrap(), 0);
        let link = sh("ip -d link show flannel.1").join("\n");
        for words in [
            "mtu 1550",
            "link/ether 02:00:00:00:00:01",
            "UP,LOWER_UP",
            "tun type tap pi off vnet_hdr on multi_queue",
            "persist on",
        ] {
            assert!(link.contains(words), "{words}: {link}");
        }
        let addresses = sh("ip -4 -o addr show flannel.1");
        assert!(
            addresses.len() == 1 && addresses[0].contains("inet 10.32.77.0/32 scope global"),
            "{addresses:?}"
        );
        assert!(!addresses[0].contains("brd"), "{addresses:?}");
        assert_eq!(
            sh("ip route show dev flannel.1"),
            ["10.32.0.0/24 via 10.32.0.0 onlink", "10.32.1.0/24 via 10.32.1.0 onlink"]
        );
        assert_eq!(
            sh("ip -4 neigh show dev flannel.1"),
            ["10.32.0.0 lladdr 02:00:00:01:00:00 PERMANENT", "10.32.1.0 lladdr 02:00:00:01:00:01 PERMANENT"]
        );
        assert!(sh("bridge fdb show dev flannel.1").iter().all(|entry| !entry.contains("dst")));

        let report = report(&vxlan);
        assert_eq!((report.datapath, report.port, report.subnet, report.peers), (Kind::Rust, 8472, own(), 2));
        let engine = report.engine.unwrap();
        assert!(engine.running && engine.workers.len() == 1, "{engine:?}");
        let test = engine.features.iter().find(|feature| feature.name == "self_test").unwrap();
        assert!(test.on, "{test:?}");
        assert_eq!(
            engine.peers.iter().map(|p| p.subnet).collect::<Vec<_>>(),
            peers(2).into_keys().collect::<Vec<_>>()
        );
    });
}

#[test]
fn the_kinds_replace_each_other() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let kind = || sh("ip -d -o link show flannel.1 | grep -o 'vxlan id 1\\|tun type tap'");
        let mac = "02:11:22:33:44:55";
        sh(&format!("ip link add flannel.1 address {mac} type vxlan id 7 dstport 4789 dev up0"));
        for (choice, expected) in [
            (DatapathChoice::Kernel, "vxlan id 1"),
            (DatapathChoice::Rust, "tun type tap"),
            (DatapathChoice::Kernel, "vxlan id 1"),
            (DatapathChoice::Rust, "tun type tap"),
            // This kernel has VXLAN devices.
            (DatapathChoice::Auto, "vxlan id 1"),
        ] {
            let vxlan = running(choice, dir.path(), 2).await;
            assert_eq!(kind(), [expected]);
            assert_eq!(vxlan.mac().to_string(), mac, "it is in the lease and in the peers' tables");
            assert!(sh("ip link show flannel.1").join(" ").contains(mac));
            assert_eq!(sh("ip route show dev flannel.1").len(), 2);
            assert_eq!(
                sh("bridge fdb show dev flannel.1 | grep dst || true").is_empty(),
                expected != "vxlan id 1"
            );
            assert_eq!(report(&vxlan).engine.is_some(), expected != "vxlan id 1");
            let handover = dir.path().join("handover.json");
            assert_eq!(
                handover.exists(),
                expected != "vxlan id 1",
                "it grows old where the kernel has taken over"
            );
        }
        // Where the flag says nothing, the config does.
        let config = VxlanConfig { datapath: Some(DatapathChoice::Rust), ..VXLAN };
        let silent = Local { options: DatapathOptions::default(), ..local(DatapathChoice::Rust, dir.path()) };
        let vxlan = open_with(&config, silent).await.unwrap();
        assert_eq!(kind(), ["tun type tap"]);
        drop(vxlan);
        let vxlan = open_with(&config, local(DatapathChoice::Kernel, dir.path())).await.unwrap();
        assert_eq!((kind(), report(&vxlan).datapath), (vec!["vxlan id 1".to_owned()], Kind::Kernel));
    });
}

#[test]
fn what_is_amiss_is_put_right() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut vxlan = running(DatapathChoice::Rust, dir.path(), 3).await;
        let want = peers(3);
        let good = sh(LOOK);
        for damage in [
            "ip addr add 10.32.78.0/24 dev flannel.1",
            "ip addr del 10.32.77.0/32 dev flannel.1",
            "ip route del 10.32.1.0/24",
            "ip route add 10.32.99.0/24 via 10.32.99.0 dev flannel.1 onlink",
            "ip neigh flush dev flannel.1 nud permanent",
            "ip neigh add 10.32.98.0 lladdr 02:00:00:00:00:66 dev flannel.1 nud permanent",
            "ip link set flannel.1 address 02:11:22:33:44:55",
            "ip link set flannel.1 mtu 1300",
            "ip link set flannel.1 down",
            "ip link del flannel.1",
            "ip link del flannel.1; ip tuntap add flannel.1 mode tap multi_queue",
            "ip link del flannel.1; ip tuntap add flannel.1 mode tap",
            "ip link del flannel.1; ip link add flannel.1 type bridge",
            // Goes with its last user then, and frames no longer begin with a header.
            "ip tuntap del flannel.1 mode tap multi_queue",
        ] {
            sh(damage);
            assert!(vxlan.sync(&want).await.unwrap() > 0, "{damage}: nothing was found");
            assert_eq!(sh(LOOK), good, "{damage}");
            assert!(is_running(&vxlan), "{damage}");
            assert_eq!(vxlan.sync(&want).await.unwrap(), 0, "{damage}");
        }
        let link = sh("ip -d link show flannel.1").join("\n");
        assert!(link.contains("vnet_hdr on") && link.contains("persist on"), "{link}");
        assert_eq!(
            report(&vxlan).engine.unwrap().workers.len(),
            1,
            "one worker, however often it was started"
        );
    });
}

#[test]
fn a_restart_adopts_the_device_and_carries_on_before_the_store_answers() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let first = running(DatapathChoice::Rust, dir.path(), 2).await;
        let (mac, device) = (first.mac(), index());
        sh("ip addr add 10.99.0.7/24 dev up0");
        drop(first);
        let before = sh("ip route show dev flannel.1; ip -4 neigh show dev flannel.1");
        assert!(before.iter().filter(|line| line.contains("PERMANENT")).count() == 2, "{before:?}");

        let resumed = resume(dir.path()).await.expect("the device and the file are there");
        let report = resumed.source().report();
        assert_eq!((report.peers, report.subnet, report.mac), (2, own(), mac.to_string()));
        assert!(report.engine.is_some_and(|engine| engine.running));
        assert!(sh("ip link show flannel.1").join(" ").contains("LOWER_UP"));

        // The store has answered; the flags differ.
        let netlink = Netlink::open().unwrap();
        let external = external(&netlink).await;
        let local = local(DatapathChoice::Rust, dir.path());
        let opened = Carrier::open(netlink, &VXLAN, &external, local, [9; 6], Some(resumed)).await;
        let mut second = opened.map_err(|e| e.to_string()).unwrap();
        second.configure(own()).await.unwrap();
        assert_eq!((second.mac(), index()), (mac, device.clone()));
        assert_eq!(sh("ip route show dev flannel.1").len(), 2, "peers stay until the first sync");
        second.sync(&peers(1)).await.unwrap();
        assert_eq!(sh("ip route show dev flannel.1").len(), 1);
        drop(second);

        // Another subnet, or another MTU, on the same device.
        let mut third = open(DatapathChoice::Rust, dir.path()).await;
        third.configure("10.32.78.0/24".parse().unwrap()).await.unwrap();
        third.sync(&peers(1)).await.unwrap();
        assert!(sh("ip -4 -o addr show flannel.1")[0].contains("inet 10.32.78.0/32"));
        drop(third);
        let narrow = VxlanConfig { mtu: Some(1400u64.try_into().unwrap()), ..VXLAN };
        let fourth = open_with(&narrow, self::local(DatapathChoice::Rust, dir.path())).await.unwrap();
        assert_eq!((fourth.mtu().get(), fourth.mac(), index()), (1350, mac, device));
        assert!(sh("ip link show flannel.1").join(" ").contains("mtu 1350"));
    });
}

#[test]
fn only_what_fits_the_device_is_resumed() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        assert!(resume(dir.path()).await.is_none(), "no file");
        drop(running(DatapathChoice::Rust, dir.path(), 2).await);
        let file = dir.path().join("handover.json");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(Handover::parse(&text).unwrap().peers, peers(2));
        for (from, to) in [("02:00:00:00:00:01", "02:00:00:00:00:02"), ("10.99.0.2", "10.99.0.3"), ("}", "")]
        {
            std::fs::write(&file, text.replace(from, to)).unwrap();
            assert!(resume(dir.path()).await.is_none(), "{from} -> {to}");
        }
        std::fs::write(&file, &text).unwrap();
        assert!(resume(dir.path()).await.is_some());
        sh("ip link del flannel.1");
        assert!(resume(dir.path()).await.is_none(), "no device");
        sh("ip link add flannel.1 type bridge");
        assert!(resume(dir.path()).await.is_none(), "another device");
    });
}

#[test]
fn what_stands_in_the_way_is_named() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let try_open = async |config: VxlanConfig| {
            open_with(&config, local(DatapathChoice::Rust, dir.path())).await.map(drop).unwrap_err()
        };
        let error = try_open(VxlanConfig { gbp: true, ..VXLAN }).await;
        assert!(error.starts_with("Backend.GBP is not supported by the rust data path"), "{error}");
        let error = try_open(VxlanConfig { learning: true, ..VXLAN }).await;
        assert!(error.starts_with("Backend.Learning is not supported"), "{error}");
        assert!(
            sh("ip -o link").iter().all(|link| !link.contains("flannel")),
            "refused before anything is touched"
        );

        let taken = UdpSocket::bind("0.0.0.0:8472").unwrap();
        let error = try_open(VXLAN).await;
        assert!(error.contains("UDP port 8472 is taken by process"), "{error}");
        drop(taken);
        let vxlan = running(DatapathChoice::Rust, dir.path(), 0).await;
        let error = try_open(VXLAN).await;
        assert!(error.contains("flannel.1 is in use by process"), "{error}");
        assert!(is_running(&vxlan));
    });
}

#[test]
fn a_lost_underlay_address_is_said_and_the_rest_is_programmed() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut vxlan = running(DatapathChoice::Rust, dir.path(), 1).await;
        sh("ip addr del 10.99.0.2/24 dev up0");
        let error = vxlan.sync(&peers(2)).await.unwrap_err().to_string();
        assert!(error.contains("10.99.0.2 is no address of this host any more"), "{error}");
        assert_eq!(sh("ip route show dev flannel.1").len(), 2);
        // On another interface, even.
        sh("ip link add up7 type bridge; ip link set up7 up; ip addr add 10.99.0.2/32 dev up7");
        assert_eq!(vxlan.sync(&peers(2)).await.unwrap(), 0);
    });
}

#[test]
fn several_queues_have_a_worker_each() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let options = DatapathOptions { queues: 3, ..local(DatapathChoice::Rust, dir.path()).options };
        let three = Local { options, ..local(DatapathChoice::Rust, dir.path()) };
        let mut vxlan = open_with(&VXLAN, three).await.unwrap();
        vxlan.configure(own()).await.unwrap();
        vxlan.sync(&peers(1)).await.unwrap();
        assert_eq!(report(&vxlan).engine.unwrap().workers.len(), 3);
        assert!(sh("ip -d link show flannel.1").join(" ").contains("numqueues 3"));
        drop(vxlan);
        let device = index();
        let vxlan = running(DatapathChoice::Rust, dir.path(), 1).await;
        assert_eq!((index(), report(&vxlan).engine.unwrap().workers.len()), (device, 1));
    });
}

#[test]
fn a_sender_whose_packets_are_too_long_is_told_and_believes_it() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let vxlan = running(DatapathChoice::Rust, dir.path(), 2).await;
        // Now the kernel lets through what does not fit; only the next sync would mend that.
        sh("ip link set flannel.1 mtu 1600");
        sh("ip addr add fd99::1/64 dev flannel.1 nodad");
        sh("ip neigh add fd99::2 lladdr 02:00:00:01:00:01 dev flannel.1 nud permanent");
        for (ping, told) in [
            ("-s 1522 10.32.1.9", None),
            ("-s 1523 10.32.1.9", Some("Frag needed and DF set (mtu = 1550)")),
            ("-s 1502 fd99::2", None),
            ("-s 1503 fd99::2", Some("Packet too big: mtu=1550")),
        ] {
            // It ends when it is told; without that nobody answers.
            let wait = if told.is_some() { 20 } else { 1 };
            let said = sh(&format!("ping -n -c 1 -W {wait} -M do {ping} 2>&1 || true")).join("\n");
            match told {
                Some(text) => assert!(said.contains(text), "{ping}: {said}"),
                None => assert!(!said.contains("mtu"), "{ping}: {said}"),
            }
        }
        // The kernel has learnt it, so the next one does not even leave.
        let said = sh("ping -n -c 1 -W 1 -M do -s 1523 10.32.1.9 2>&1 || true").join("\n");
        assert!(said.contains("message too long, mtu=1550"), "{said}");
        let total = report(&vxlan).engine.unwrap().total;
        assert_eq!((total.too_big_signalled, total.drops["too_big"]), (2, 2));
    });
}

#[test]
fn what_the_devices_full_queue_dropped_is_counted() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let dropped = |vxlan: &Carrier| report(vxlan).engine.unwrap().total.drops["queue_full"];
        let vxlan = running(DatapathChoice::Rust, dir.path(), 2).await;
        assert_eq!(dropped(&vxlan), 0);
        // The host itself would send there now and then.
        sh("echo 1 > /proc/sys/net/ipv6/conf/flannel.1/disable_ipv6");
        // A TAP without a queue takes nothing.
        sh("ip link set flannel.1 txqueuelen 0");
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..100).for_each(|_| assert!(socket.send_to(b"x", "10.32.1.9:9").is_ok()));
        let (first, second) = (dropped(&vxlan), dropped(&vxlan));
        assert!(first == 100 && second == 100, "{first}, {second}");
        drop(vxlan);
        let vxlan = running(DatapathChoice::Rust, dir.path(), 2).await;
        assert_eq!(dropped(&vxlan), 0, "that was before");
    });
}

#[test]
fn workers_stay_on_the_cpus_given() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap();
        let mut cpus: Vec<usize> = (0..CpuSet::count()).filter(allowed).take(2).collect();
        cpus.reverse();
        let expected: BTreeMap<_, _> = (0..).map(|n| format!("datapath-{n}")).zip(cpus.clone()).collect();
        let options =
            DatapathOptions { queues: cpus.len(), cpus, ..local(DatapathChoice::Rust, dir.path()).options };
        let pinned = Local { options, ..local(DatapathChoice::Rust, dir.path()) };
        let mut vxlan = open_with(&VXLAN, pinned).await.unwrap();
        let before = threads();
        vxlan.configure(own()).await.unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let new = threads().into_iter().filter(|(id, _)| !before.contains_key(id));
            // Tests beside this one have workers too, but leave them to the scheduler.
            let seen = new.filter_map(|(_, (name, cpus))| Some((name, cpus.parse::<usize>().ok()?)));
            let seen: BTreeMap<_, _> = seen.filter(|(name, _)| name.starts_with("datapath-")).collect();
            if seen == expected {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{seen:?} instead of {expected:?}");
            std::thread::yield_now();
        }
    });
}

/// The threads of this process: id to name and CPUs it may run on.
fn threads() -> BTreeMap<String, (String, String)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let look = |thread: std::fs::DirEntry| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let id = thread.file_name().into_string().unwrap();
        Some((id, (name.trim().to_owned(), cpus.trim().to_owned())))
    };
    threads.filter_map(look).collect()
}

#[test]
fn five_thousand_peers_are_programmed_in_seconds() {
    in_own_namespace(|| async {
        let dir = tempfile::tempdir().unwrap();
        let mut vxlan = open(DatapathChoice::Rust, dir.path()).await;
        vxlan.configure("10.64.0.0/24".parse().unwrap()).await.unwrap();
        let start = std::time::Instant::now();
        assert_eq!(vxlan.sync(&peers(5000)).await.unwrap(), 10_000);
        let first = start.elapsed();
        let start = std::time::Instant::now();
        assert_eq!(vxlan.sync(&peers(5000)).await.unwrap(), 0);
        eprintln!("5000 peers: programmed in {first:?}, compared in {:?}", start.elapsed());
        assert!(first.as_secs() < 120, "{first:?}");
        assert_eq!(report(&vxlan).peers, 5000);
        assert_eq!(vxlan.sync(&BTreeMap::new()).await.unwrap(), 10_000);
        assert!(sh("ip route show dev flannel.1").is_empty());
    });
}
