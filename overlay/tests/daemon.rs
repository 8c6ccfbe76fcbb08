//! overlayd on two hosts against Debian's etcd: what it leaves in the kernel, the store and the file system, compared
//! with what flanneld v0.10 leaves, and how it takes what goes wrong.

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use support::{Hosts, PREFIX, eventually, lines};

/// What the tests write themselves for hosts that do not exist lies below `SubnetMin`, where no host leases at random.
const CONFIG: &str =
    r#"{ "Network": "172.17.0.0/16", "SubnetMin": "172.17.100.0", "Backend": {"Type": "vxlan"}}"#;
const SOON: Duration = Duration::from_secs(30);

fn peer(host: u8) -> String {
    format!(
        r#"{{"PublicIP":"10.99.0.{host}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:{host}"}}}}"#
    )
}

#[test]
fn two_hosts_are_left_as_flannel_leaves_them() {
    let hosts = Hosts::new(CONFIG);
    let socket_path = hosts.dir.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let env = [("NOTIFY_SOCKET", socket_path.to_str().unwrap()), ("FLANNELD_HEALTHZ_PORT", "8089")];
    let mut first = hosts.overlayd(0, &["--ip-masq"], &env);
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..length]).trim_end(), "READY=1");
    // The file is there when readiness is announced.
    let a = hosts.subnet(0);
    let base = a.strip_suffix(".0").unwrap();
    let text = format!(
        "FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET={base}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    assert_eq!(std::fs::read_to_string(hosts.env_file(0)).unwrap(), text);
    let (second, b) = hosts.ready(1, &[]);
    assert_ne!(a, b);

    // The store.
    let (mac_a, mac_b) = (hosts.mac(0), hosts.mac(1));
    let lease =
        format!(r#"{{"PublicIP":"10.99.0.2","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac_a}"}}}}"#);
    assert_eq!(hosts.get(&format!("subnets/{a}-24")), Some(lease));
    let extended = hosts.etcdctl(&["-o", "extended", "get", &format!("{PREFIX}/subnets/{a}-24")]);
    let ttl: u32 = extended.lines().find_map(|l| l.strip_prefix("TTL: ")).unwrap().trim().parse().unwrap();
    assert!((86_300..=86_400).contains(&ttl), "{ttl}");

    // The device, field by field.
    let link = hosts.ip(0, &["-d", "link", "show", "flannel.1"]);
    for words in [
        "mtu 1450 qdisc noqueue",
        "vxlan id 1 local 10.99.0.2 dev eth0 srcport 0 0 dstport 8472 nolearning",
        "UP,LOWER_UP",
    ] {
        assert!(link.contains(words), "{words}: {link}");
    }
    for unwanted in ["l2miss", "l3miss", " proxy", " rsc", "gbp"] {
        assert!(!link.contains(unwanted), "{unwanted}: {link}");
    }
    let addresses = hosts.ip(0, &["-4", "-o", "addr", "show", "flannel.1"]);
    assert!(addresses.contains(&format!("inet {a}/32 scope global flannel.1")), "{addresses}");
    assert!(!addresses.contains("brd") && addresses.lines().count() == 1, "{addresses}");

    // One route, one neighbour, one FDB entry for the peer.
    eventually("host 0 programs host 1", SOON, || (!hosts.routes(0).is_empty()).then_some(()));
    assert_eq!(hosts.routes(0), [format!("{b}/24 via {b} onlink")]);
    assert_eq!(hosts.neighbours(0), [format!("{b} lladdr {mac_b} PERMANENT")]);
    assert_eq!(hosts.fdb(0), [format!("{mac_b} dst 10.99.0.3 self permanent")]);
    let details = hosts.ip(0, &["-d", "route", "show", "dev", "flannel.1"]);
    assert!(
        details.contains("unicast") && details.contains("proto boot") && details.contains("scope global"),
        "{details}"
    );
    hosts.ping(0, &b);
    hosts.ping(1, &a);

    // Packet filter rules: host 0 masquerades, host 1 does not.
    let nat = eventually("nat rules", SOON, || {
        let nat = hosts.exec(0, &["iptables", "-t", "nat", "-S", "POSTROUTING"]);
        (nat.lines().count() == 5).then_some(nat)
    });
    let expected = format!(
        "-P POSTROUTING ACCEPT\n-A POSTROUTING -s 172.17.0.0/16 -d 172.17.0.0/16 -j RETURN\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE\n\
         -A POSTROUTING ! -s 172.17.0.0/16 -d {a}/24 -j RETURN\n\
         -A POSTROUTING ! -s 172.17.0.0/16 -d 172.17.0.0/16 -j MASQUERADE\n"
    );
    assert_eq!(nat, expected);
    let forward =
        "-P FORWARD ACCEPT\n-A FORWARD -s 172.17.0.0/16 -j ACCEPT\n-A FORWARD -d 172.17.0.0/16 -j ACCEPT\n";
    for host in [0, 1] {
        eventually("forward rules", SOON, || {
            (hosts.exec(host, &["iptables", "-S", "FORWARD"]) == forward).then_some(())
        });
    }
    assert_eq!(hosts.exec(1, &["iptables", "-t", "nat", "-S", "POSTROUTING"]), "-P POSTROUTING ACCEPT\n");

    // Health.
    assert_eq!(hosts.exec(0, &["curl", "-s", "http://127.0.0.1:8089/healthz"]), "flanneld is running");
    assert_eq!(hosts.exec(0, &["curl", "-s", "http://127.0.0.1:8089/readyz"]), "flanneld is ready");

    // A stop tears nothing down, and a restart disturbs nothing: same subnet, same MAC.
    let before = (hosts.routes(0), hosts.neighbours(0), hosts.fdb(0));
    first.signal("-TERM");
    assert_eq!(first.exit_code(), 0);
    assert!(first.log().contains("Exiting cleanly..."), "{}", first.log());
    assert_eq!((hosts.routes(0), hosts.neighbours(0), hosts.fdb(0)), before);
    hosts.ping(1, &a);
    let (_again, subnet) = hosts.ready(0, &["--ip-masq"]);
    assert_eq!((subnet, hosts.mac(0)), (a, mac_a));
    assert_eq!((hosts.routes(0), hosts.neighbours(0), hosts.fdb(0)), before);
    assert!(!second.log().contains("peer changed"), "{}", second.log());
}

#[test]
fn the_mesh_is_probed_on_request() {
    let hosts = Hosts::new(CONFIG);
    let (_first, a) = hosts.ready(0, &[]);
    let (second, b) = hosts.ready(1, &[]);
    hosts.set("subnets/172.17.45.0-24", &peer(44));
    eventually("all peers programmed", SOON, || {
        (hosts.routes(0).len() == 2 && hosts.routes(1).len() == 2).then_some(())
    });
    let ask = |id: &str, request: &str| {
        hosts.set(&format!("mesh/requests/{id}"), request);
        [&a, &b]
            .map(|subnet| eventually("report", SOON, || hosts.get(&format!("mesh/results/{id}/{subnet}-24"))))
    };
    for report in ask("0123456789abcdef", r#"{"version":1,"count":3,"interval_ms":20,"timeout_ms":3000}"#) {
        let report: overlay::mesh::Report = serde_json::from_str(&report).unwrap();
        let (dead, alive) = (
            report.probes.iter().find(|p| p.public_ip.octets()[3] == 44),
            report.probes.iter().find(|p| p.public_ip.octets()[3] != 44),
        );
        let (dead, alive) = (dead.unwrap(), alive.unwrap());
        assert_eq!((alive.sent, alive.received, &alive.error), (3, 3, &None));
        let rtt = alive.rtt_us.unwrap();
        assert!(0 < rtt.min && rtt.min <= rtt.median && rtt.median <= rtt.max, "{rtt:?}");
        assert_eq!((dead.sent, dead.received, dead.rtt_us), (3, 0, None));
        assert!(dead.error.is_some());
    }
    // What is not understood is answered with the reason, not ignored.
    for report in ask("0123456789abcdee", r#"{"version":9,"count":3,"interval_ms":20,"timeout_ms":300}"#) {
        assert!(report.contains("version 9 is not supported"), "{report}");
    }
    // Who asked has cleared up before the report was due: nothing is left behind.
    let late = "0123456789abcdec";
    hosts.set(
        &format!("mesh/requests/{late}"),
        r#"{"version":1,"count":1,"interval_ms":0,"timeout_ms":6000}"#,
    );
    eventually("the probing", SOON, || second.log().contains(late).then_some(()));
    hosts.etcdctl(&["rm", &format!("{PREFIX}/mesh/requests/{late}")]);
    // Longer than the daemons wait for the answer of the one who is not there.
    std::thread::sleep(Duration::from_secs(8));
    let left = hosts.etcdctl(&["ls", &format!("{PREFIX}/mesh/results")]);
    assert!(!left.contains(late), "{left}");
    // A daemon that does not answer shows as such.
    second.freeze();
    hosts.set(
        "mesh/requests/0123456789abcded",
        r#"{"version":1,"count":2,"interval_ms":20,"timeout_ms":200}"#,
    );
    let report = eventually("report", SOON, || hosts.get(&format!("mesh/results/0123456789abcded/{a}-24")));
    assert!(report.contains(r#""sent":2,"received":0"#) && !report.contains(r#""received":2"#), "{report}");
    second.signal("-CONT");
}

#[test]
fn leases_come_change_and_go_and_odd_keys_do_no_harm() {
    let mut hosts = Hosts::new(CONFIG);
    // Left behind by something that crashed: a stale peer in the kernel.
    let (mut first, a) = hosts.ready(0, &[]);
    first.signal("-KILL");
    first.child.wait().unwrap();
    hosts.bridge(
        0,
        &["fdb", "add", "02:00:00:00:00:99", "dev", "flannel.1", "dst", "10.99.0.99", "self", "permanent"],
    );
    hosts.ip(
        0,
        &[
            "neigh",
            "add",
            "172.17.99.0",
            "lladdr",
            "02:00:00:00:00:99",
            "dev",
            "flannel.1",
            "nud",
            "permanent",
        ],
    );
    hosts.ip(0, &["route", "add", "172.17.99.0/24", "via", "172.17.99.0", "dev", "flannel.1", "onlink"]);
    let (mut first, again) = hosts.ready(0, &[]);
    assert_eq!(again, a);
    let left = (hosts.routes(0), hosts.neighbours(0), hosts.fdb(0));
    assert_eq!(left, (vec![], vec![], vec![]), "{}", first.log());

    // What wedges flannel's watch.
    hosts.set("subnets/README", "hello");
    hosts.set("subnets/172.17.40.0-24", "{bad");
    hosts.set("subnets/0.0.0.0-0", &peer(66));
    hosts.set("subnets/172.17.41.0-24", &peer(41));
    eventually("the peer after the odd keys", SOON, || (hosts.routes(0).len() == 1).then_some(()));
    assert_eq!(hosts.routes(0), ["172.17.41.0/24 via 172.17.41.0 onlink"]);
    assert!(hosts.ip(0, &["route", "get", "8.8.8.8"]).contains("via 10.99.0.1 dev eth0"));

    // A peer that moved leaves no stale FDB entry behind.
    hosts.set("subnets/172.17.41.0-24", &peer(42));
    eventually("the moved peer", SOON, || {
        (hosts.neighbours(0) == ["172.17.41.0 lladdr 02:00:00:00:00:42 PERMANENT"]).then_some(())
    });
    eventually("the old entry goes", SOON, || {
        (hosts.fdb(0) == ["02:00:00:00:00:42 dst 10.99.0.42 self permanent"]).then_some(())
    });

    // Expiry.
    hosts.etcdctl(&["set", "--ttl", "1", &format!("{PREFIX}/subnets/172.17.41.0-24"), &peer(42)]);
    eventually("the expired peer goes", SOON, || {
        let left = [hosts.routes(0), hosts.neighbours(0), hosts.fdb(0)];
        left.iter().all(Vec::is_empty).then_some(())
    });

    // While the store is away nothing is withdrawn, and what happened meanwhile is seen afterwards.
    hosts.set("subnets/172.17.43.0-24", &peer(43));
    eventually("a peer", SOON, || (hosts.routes(0).len() == 1).then_some(()));
    hosts.stop_etcd();
    eventually("the complaint", SOON, || {
        first.log().contains("Watch subnets: client: etcd cluster is unavailable").then_some(())
    });
    assert_eq!(hosts.routes(0).len(), 1);
    hosts.start_etcd();
    hosts.set("subnets/172.17.44.0-24", &peer(44));
    eventually("the watch goes on", SOON, || (hosts.routes(0).len() == 2).then_some(()));

    // An externally shortened TTL is renewed.
    let key = format!("{PREFIX}/subnets/{a}-24");
    let value = hosts.get(&format!("subnets/{a}-24")).unwrap();
    hosts.etcdctl(&["set", "--ttl", "20", &key, &value]);
    eventually("renewal", SOON, || {
        hosts.etcdctl(&["-o", "extended", "get", &key]).contains("TTL: 86").then_some(())
    });

    // The lost lease ends the daemon with a failure, and forwarding stays.
    let before = hosts.routes(0);
    hosts.etcdctl(&["rm", &key]);
    assert_eq!(first.exit_code(), 1);
    assert!(first.log().contains("Lease has been revoked. Shutting down daemon."), "{}", first.log());
    assert_eq!(hosts.routes(0), before);

    // Somebody took the subnet meanwhile: it is not taken back, and the rules follow the new one.
    hosts.set(&format!("subnets/{a}-24"), &peer(77));
    let (mut first, other) = hosts.ready(0, &["--ip-masq"]);
    assert_ne!(other, a);
    assert!(first.log().contains("held by another host now"), "{}", first.log());
    assert!(hosts.routes(0).contains(&format!("{a}/24 via {a} onlink")));
    eventually("masquerade rules", SOON, || {
        let nat = hosts.exec(0, &["iptables", "-t", "nat", "-S", "POSTROUTING"]);
        (nat.contains(&format!("-d {other}/24 -j RETURN")) && !nat.contains(&format!("-d {a}/24")))
            .then_some(())
    });

    // Another host writes itself over our lease.
    hosts.set(&format!("subnets/{other}-24"), &peer(78));
    assert_eq!(first.exit_code(), 1);
    assert!(first.log().contains("is now held by 10.99.0.78"), "{}", first.log());

    // Deleting the whole directory is understood, too.
    let (mut first, _) = hosts.ready(0, &[]);
    hosts.etcdctl(&["rm", "-r", &format!("{PREFIX}/subnets")]);
    assert_eq!(first.exit_code(), 1);
}

#[test]
fn the_device_is_repaired_and_an_earlier_one_adopted() {
    let hosts = Hosts::new(CONFIG);
    // A device of another underlay and one learning: recreated. The MTU in subnet.env and on the device agree.
    hosts.ip(
        0,
        &[
            "link",
            "add",
            "flannel.1",
            "type",
            "vxlan",
            "id",
            "1",
            "dstport",
            "8472",
            "local",
            "10.99.0.2",
            "dev",
            "eth0",
            "learning",
        ],
    );
    let (first, a) = hosts.ready(0, &[]);
    assert!(
        first.log().contains("already exists with incompatable configuration: learning"),
        "{}",
        first.log()
    );
    let (_second, b) = hosts.ready(1, &[]);
    eventually("peer", SOON, || (hosts.routes(0).len() == 1).then_some(()));
    // All there is to see of the device, without its index; `None` while there is no device.
    let whole = || {
        let script = "ip -d link show flannel.1 && ip -4 -o addr show flannel.1";
        let (status, text, _) = hosts.try_exec(0, &["sh", "-c", script]);
        let text: Vec<String> =
            text.lines().map(|l| l.split_once(": ").map_or(l, |(_, rest)| rest).to_owned()).collect();
        status.success().then(|| (text, hosts.routes(0), hosts.neighbours(0), hosts.fdb(0)))
    };
    let before = whole();
    assert!(before.is_some());
    for damage in [
        vec!["link", "set", "flannel.1", "address", "02:11:22:33:44:55"],
        vec!["link", "set", "flannel.1", "mtu", "1300"],
        vec!["link", "set", "flannel.1", "down"],
        vec!["addr", "flush", "dev", "flannel.1"],
        vec!["link", "del", "flannel.1"],
    ] {
        hosts.ip(0, &damage);
        eventually(&format!("repair of {damage:?}"), SOON, || (whole() == before).then_some(()));
    }
    hosts.ping(0, &b);
    hosts.ping(1, &a);
}

#[test]
fn hosts_of_both_data_paths_share_a_network_and_a_restart_is_short() {
    let mut hosts = Hosts::new(CONFIG);
    let (first, a) = hosts.ready(0, &["-datapath", "rust"]);
    let (_second, b) = hosts.ready(1, &["-datapath=kernel"]);
    assert!(first.log().contains("data path rust (rust was asked for)"), "{}", first.log());
    let peers = || (hosts.routes(0), hosts.neighbours(0), hosts.fdb(0));
    eventually("peer", SOON, || (hosts.routes(0).len() == 1).then_some(()));
    assert_eq!(hosts.routes(0), [format!("{b}/24 via {b} onlink")]);
    hosts.ping(0, &b);
    hosts.ping(1, &a);

    // What it says of itself, to root only.
    let socket = hosts.dir.path().join("run0/overlayd.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&socket.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let socket = socket.to_str().unwrap();
    let report = || hosts.exec(0, &["curl", "-s", "--unix-socket", socket, "http://overlayd/v1/datapath"]);
    for words in [r#""datapath":"rust""#, r#""device":"flannel.1""#, r#""peers":1"#, r#""running":true"#] {
        assert!(report().contains(words), "{words}: {}", report());
    }

    // A restart while the other side sends a packet every 10 ms: hardly more are lost than it takes.
    let (device, mac, before) = (hosts.ip(0, &["-o", "link", "show", "flannel.1"]), hosts.mac(0), peers());
    let stream = hosts.background_ping(1, &a, 500);
    let mut first = first;
    let begin = Instant::now();
    first.signal("-TERM");
    assert_eq!(first.exit_code(), 0);
    let (mut first, again) = hosts.ready(0, &["-datapath", "rust"]);
    let took = begin.elapsed();
    let received = stream.received();
    eprintln!("restart: {received} of 500 echoes at intervals of 10 ms came back; it took {took:?}");
    // What is lost without any carrying on is all from here to the end of the stream.
    let lost = u128::from(500 - received);
    assert!(lost <= took.as_millis() / 10 + 50, "{received} of 500, {took:?}\n{}", first.log());
    assert!(first.log().contains("carrying packets for the 1 peers of the earlier run"), "{}", first.log());
    assert_eq!((again, hosts.mac(0)), (a.clone(), mac));
    let index = |text: &str| text.split(':').next().map(str::to_owned);
    assert_eq!(index(&hosts.ip(0, &["-o", "link", "show", "flannel.1"])), index(&device));
    assert_eq!(peers(), before);

    // The store is away and the process is killed: the next one carries packets before it knows a thing.
    hosts.stop_etcd();
    first.signal("-KILL");
    first.child.wait().unwrap();
    let first = hosts.overlayd(0, &["-datapath", "rust"], &[]);
    eventually("carrying on", SOON, || first.log().contains("carrying packets").then_some(()));
    hosts.ping(1, &a);
    hosts.start_etcd();
    eventually("readiness", SOON, || first.log().contains(": ready subnet=").then_some(()));
    hosts.ping(1, &a);
}

#[test]
fn a_store_made_anew_is_noticed_and_the_subnet_leased_again() {
    let mut hosts = Hosts::new(CONFIG);
    // Far ahead of where the new store will be.
    for n in 0..20 {
        hosts.set("subnets/README", &n.to_string());
    }
    let (mut first, a) = hosts.ready(0, &[]);
    hosts.stop_etcd();
    std::fs::remove_dir_all(hosts.dir.path().join("etcd")).unwrap();
    hosts.start_etcd();
    hosts.set("config", CONFIG);
    assert_eq!(first.exit_code(), 1);
    assert!(first.log().contains("its key is gone from the store"), "{}", first.log());
    // As the service manager would.
    let (_again, subnet) = hosts.ready(0, &[]);
    assert_eq!(subnet, a);
    assert!(hosts.get(&format!("subnets/{a}-24")).is_some());
}

#[test]
fn a_reservation_is_kept_without_ttl() {
    let hosts = Hosts::new(CONFIG);
    hosts.set("subnets/172.17.188.0-24", r#"{"PublicIP":"10.99.0.2"}"#);
    let (first, a) = hosts.ready(0, &[]);
    assert_eq!(a, "172.17.188.0");
    assert!(
        first.log().contains("Found lease (172.17.188.0/24) for current IP (10.99.0.2), reusing"),
        "{}",
        first.log()
    );
    let lease = hosts.etcdctl(&["-o", "extended", "get", &format!("{PREFIX}/subnets/172.17.188.0-24")]);
    assert!(lease.contains("TTL: 0") && lease.contains(&hosts.mac(0)), "{lease}");
}

#[test]
fn another_subnet_length_gives_up_the_old_lease_in_one_start() {
    let hosts = Hosts::new(CONFIG);
    let (mut first, a) = hosts.ready(0, &[]);
    first.signal("-INT");
    assert_eq!(first.exit_code(), 0);
    hosts.set(
        "config",
        r#"{"Network":"172.17.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#,
    );
    let first = hosts.overlayd(0, &[], &[]);
    eventually("ready", SOON, || first.log().contains(": ready subnet=").then_some(()));
    assert!(first.log().contains("but not compatible with current config, deleting"), "{}", first.log());
    assert_eq!(hosts.get(&format!("subnets/{a}-24")), None);
    let env = std::fs::read_to_string(hosts.env_file(0)).unwrap();
    assert!(env.lines().nth(1).is_some_and(|l| l.ends_with("/26")), "{env}");
    let link = hosts.ip(0, &["-d", "link", "show", "flannel.7"]);
    assert!(link.contains("vxlan id 7") && link.contains("dstport 4789"), "{link}");
}

#[test]
fn nftables_keeps_the_rules_where_asked_to() {
    let hosts = Hosts::new(r#"{"Network":"172.17.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#);
    let (first, a) = hosts.ready(0, &["--ip-masq", "-iptables-resync=1"]);
    assert!(first.log().contains("kept with nftables"), "{}", first.log());
    let table = || hosts.try_exec(0, &["nft", "list", "table", "ip", "flannel-ipv4"]).1;
    let complete = || {
        let text = table();
        (text.contains("masquerade")
            && text.contains(&format!("ip daddr {a}/24 return"))
            && text.contains("hook forward"))
        .then_some(text)
    };
    let before = eventually("the table", SOON, complete);
    hosts.exec(0, &["nft", "flush", "table", "ip", "flannel-ipv4"]);
    eventually("repair after a flush", SOON, complete);
    hosts.exec(0, &["nft", "delete", "table", "ip", "flannel-ipv4"]);
    assert_eq!(eventually("repair after a delete", SOON, complete), before);
}

#[test]
fn failures_have_codes_and_name_what_is_at_fault() {
    let hosts = Hosts::new(r#"{"Network":"172.17.0.0/16","Backend":{"Type":"host-gw"}}"#);
    for (args, code, words) in [
        (vec!["-bogus"], 2, "flag provided but not defined: -bogus"),
        (vec!["-kube-subnet-mgr"], 2, "-kube-subnet-mgr of flanneld is not supported"),
        (vec!["-ip-masq", "true"], 2, "unexpected argument"),
        (
            vec!["-subnet-lease-renew-margin=0"],
            2,
            "Invalid subnet-lease-renew-margin option, out of acceptable range",
        ),
        (vec!["-version"], 0, "v0."),
        (vec!["-help"], 0, "-etcd-endpoints"),
        (vec!["-iface", "eth9"], 1, "Could not find valid interface matching eth9"),
        (vec!["-etcd-cafile", "/nonexistent/ca.pem"], 1, "/nonexistent/ca.pem"),
        (vec!["-healthz-ip", "10.1.2.3", "-healthz-port", "80"], 1, "cannot listen on 10.1.2.3:80"),
        (vec![], 1, "backend type host-gw is not supported by overlayd"),
    ] {
        let mut daemon = hosts.overlayd(0, &args, &[]);
        assert_eq!(daemon.exit_code(), code, "{args:?}: {}", daemon.log());
        assert!(daemon.log().contains(words), "{args:?}: {}", daemon.log());
    }
    // Nothing was touched.
    assert_eq!(lines(&hosts.etcdctl(&["ls", PREFIX])), [format!("{PREFIX}/config")]);
    assert!(!hosts.ip(0, &["link"]).contains("flannel"));

    // A config that may get better is waited for; SIGTERM ends the wait cleanly.
    hosts.set("config", "{}");
    let mut daemon = hosts.overlayd(0, &[], &[]);
    eventually("complaint", SOON, || {
        daemon.log().contains("please define a correct Network parameter").then_some(())
    });
    daemon.signal("-TERM");
    assert_eq!(daemon.exit_code(), 0);

    // An unwritable subnet file is a failure.
    hosts.set("config", CONFIG);
    let mut daemon = hosts.overlayd(0, &["-subnet-file", "/proc/no/subnet.env"], &[]);
    assert_eq!(daemon.exit_code(), 1);
    assert!(daemon.log().contains("flag -subnet-file: /proc/no/subnet.env"), "{}", daemon.log());
}
