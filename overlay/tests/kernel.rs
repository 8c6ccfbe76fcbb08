//! The kernel data path by itself, on a veth as underlay in a network namespace of the test's own thread.
//!
//! ```text
//!   up0 (veth) 10.99.0.2/24 ── flannel.N (vxlan)
//! ```

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod namespace;

use std::collections::BTreeMap;
use std::time::Instant;

use namespace::{external, in_own_namespace, peers, sh};
use overlay::datapath::DataPath;
use overlay::net::netlink::Netlink;
use overlay::net::vxlan::KernelVxlan;
use overlay::types::Vni;
use overlay::wire::netconf::VxlanConfig;

const VXLAN: VxlanConfig =
    VxlanConfig { vni: Vni::DEFAULT, port: None, gbp: false, learning: false, mtu: None, datapath: None };

async fn open(config: &VxlanConfig) -> Result<KernelVxlan, String> {
    let netlink = Netlink::open().unwrap();
    let external = external(&netlink).await;
    KernelVxlan::open(netlink, config, &external, [2, 0, 0, 0, 0, 1]).await.map_err(|e| e.to_string())
}

#[test]
fn a_second_device_of_the_same_vni_is_named_as_the_obstacle() {
    in_own_namespace(|| async {
        sh("ip link add other type vxlan id 1 dstport 8472 local 10.99.0.2 dev up0");
        let error = open(&VXLAN).await.map(drop).unwrap_err();
        assert!(error.contains("another device already has VNI 1 on UDP port 8472"), "{error}");
    });
}

#[test]
fn a_device_of_another_type_is_replaced_and_all_options_are_set() {
    in_own_namespace(|| async {
        sh("ip link add flannel.9 type bridge");
        let config = VxlanConfig {
            vni: Vni::try_from(9).unwrap(),
            port: Some(4789),
            gbp: true,
            learning: true,
            ..VXLAN
        };
        let vxlan = open(&config).await.unwrap();
        assert_eq!(
            (vxlan.device(), vxlan.mtu().get(), vxlan.mac().to_string().as_str()),
            ("flannel.9", 1550, "02:00:00:00:00:01")
        );
        let link = sh("ip -d link show flannel.9").join("\n");
        for words in [
            "vxlan id 9 local 10.99.0.2 dev up0",
            "dstport 4789 ttl auto",
            "gbp",
            "mtu 1550",
            "02:00:00:00:00:01",
        ] {
            assert!(link.contains(words), "{words}: {link}");
        }
        assert!(!link.contains("nolearning"), "{link}");
        // 3 is NET_ADDR_SET, given at creation: systemd's MACAddressPolicy leaves such an address alone.
        let path = "/sys/class/net/flannel.9/addr_assign_type";
        assert_eq!(sh(&format!("unshare -m sh -c 'mount -t sysfs sysfs /sys && cat {path}'")), ["3"]);
    });
}

#[test]
fn what_is_amiss_on_the_device_is_put_right_and_what_is_not_ours_stays() {
    in_own_namespace(|| async {
        let mut vxlan = open(&VXLAN).await.unwrap();
        vxlan.configure("10.32.77.0/24".parse().unwrap()).await.unwrap();
        let want = peers(3);
        assert_eq!(vxlan.sync(&want).await.unwrap(), 9);
        assert_eq!(vxlan.sync(&want).await.unwrap(), 0);
        let look = || {
            sh(
                "ip -4 -o addr show flannel.1 | cut -d: -f2-; ip route show dev flannel.1; ip -4 neigh show dev flannel.1; bridge fdb show dev flannel.1",
            )
        };
        let good = look();
        for damage in [
            "ip addr add 10.32.78.0/24 dev flannel.1",
            "ip addr del 10.32.77.0/32 dev flannel.1",
            "ip route del 10.32.1.0/24",
            "ip route replace 10.32.1.0/24 via 10.99.0.9",
            "ip route add 10.32.99.0/24 via 10.32.99.0 dev flannel.1 onlink",
            "ip neigh flush dev flannel.1 nud permanent",
            "ip neigh replace 10.32.1.0 lladdr 02:00:00:00:00:66 dev flannel.1 nud permanent",
            "ip neigh add 10.32.98.0 lladdr 02:00:00:00:00:66 dev flannel.1 nud permanent",
            "bridge fdb replace 02:00:00:01:00:01 dev flannel.1 dst 10.99.0.66 self permanent",
            "bridge fdb add 02:00:00:00:00:66 dev flannel.1 dst 10.99.0.66",
            "bridge fdb del 02:00:00:01:00:01 dev flannel.1",
            "ip link set flannel.1 down",
            "ip link del flannel.1",
        ] {
            sh(damage);
            assert!(vxlan.sync(&want).await.unwrap() > 0, "{damage}: nothing was found");
            assert_eq!(look(), good, "{damage}");
        }
        // Not flannel's form, so not ours.
        sh(
            "ip route add 192.0.2.0/24 dev flannel.1; bridge fdb add 02:00:00:00:00:77 dev flannel.1 dst 10.99.0.77 self dynamic",
        );
        assert_eq!(vxlan.sync(&want).await.unwrap(), 0);
        assert_eq!(look().len(), good.len() + 2);
    });
}

#[test]
fn the_external_interface_may_be_renamed_and_made_anew() {
    in_own_namespace(|| async {
        let mut vxlan = open(&VXLAN).await.unwrap();
        vxlan.configure("10.32.77.0/24".parse().unwrap()).await.unwrap();
        let want = peers(2);
        vxlan.sync(&want).await.unwrap();
        let look = || {
            sh(
                "ip -d -o link show flannel.1 | grep -o 'dev up[0-9]'; ip route show dev flannel.1; ip -4 neigh show dev flannel.1; bridge fdb show dev flannel.1",
            )
        };
        let good = look();
        // Renamed, and another takes its name.
        sh(
            "ip link set up0 down; ip link set up0 name up7; ip link set up7 up; ip link add up0 type veth peer name up9",
        );
        assert_eq!(vxlan.sync(&want).await.unwrap(), 0);
        sh("ip link del up0; ip link set up7 down; ip link set up7 name up0; ip link set up0 up");
        assert_eq!(vxlan.sync(&want).await.unwrap(), 0);
        // The kernel deletes our device with the one below.
        sh("ip link del up0");
        let error = vxlan.sync(&want).await.unwrap_err().to_string();
        assert!(error.contains("external interface up0 is gone"), "{error}");
        sh(
            "ip link add up0 mtu 1600 type veth peer name up1 && ip link set up0 up && ip link set up1 up && ip addr add 10.99.0.2/24 dev up0",
        );
        assert!(vxlan.sync(&want).await.unwrap() > 0);
        assert_eq!(look(), good);
    });
}

#[test]
fn an_earlier_device_is_adopted_with_its_peers_until_the_first_sync() {
    in_own_namespace(|| async {
        let mut vxlan = open(&VXLAN).await.unwrap();
        vxlan.configure("10.32.77.0/24".parse().unwrap()).await.unwrap();
        vxlan.sync(&peers(2)).await.unwrap();
        sh("ip link set flannel.1 mtu 1300");
        let netlink = Netlink::open().unwrap();
        let external = external(&netlink).await;
        let mut again = KernelVxlan::open(netlink, &VXLAN, &external, [2, 0, 0, 0, 0, 99]).await.unwrap();
        assert_eq!(again.mac(), vxlan.mac());
        again.configure("10.32.77.0/24".parse().unwrap()).await.unwrap();
        assert_eq!(sh("ip route show dev flannel.1").len(), 2);
        assert!(sh("ip link show flannel.1").join(" ").contains("mtu 1550"));
        again.sync(&peers(1)).await.unwrap();
        assert_eq!(sh("ip route show dev flannel.1").len(), 1);
    });
}

#[test]
fn a_host_whose_address_changes_keeps_the_mac_in_its_lease() {
    in_own_namespace(|| async {
        let vxlan = open(&VXLAN).await.unwrap();
        let mac = vxlan.mac();
        drop(vxlan);
        sh("ip addr flush dev up0; ip addr add 10.99.0.3/24 dev up0");
        let netlink = Netlink::open().unwrap();
        let external = external(&netlink).await;
        let again = KernelVxlan::open(netlink, &VXLAN, &external, [2, 0, 0, 0, 0, 99]).await.unwrap();
        let link = sh("ip -d link show flannel.1").join(" ");
        assert!(link.contains("local 10.99.0.3") && link.contains(&mac.to_string()), "{link}");
        assert_eq!(again.mac(), mac);
    });
}

#[test]
fn two_thousand_peers_are_programmed_in_seconds() {
    in_own_namespace(|| async {
        let mut vxlan = open(&VXLAN).await.unwrap();
        vxlan.configure("10.64.0.0/24".parse().unwrap()).await.unwrap();
        let start = Instant::now();
        assert_eq!(vxlan.sync(&peers(2000)).await.unwrap(), 6000);
        let first = start.elapsed();
        let start = Instant::now();
        assert_eq!(vxlan.sync(&peers(2000)).await.unwrap(), 0);
        eprintln!("2000 peers: programmed in {first:?}, compared in {:?}", start.elapsed());
        assert!(first.as_secs() < 60, "{first:?}");
        assert_eq!(vxlan.sync(&BTreeMap::new()).await.unwrap(), 6000);
        assert!(sh("ip route show dev flannel.1; bridge fdb show dev flannel.1").is_empty());
    });
}

#[test]
fn interfaces_default_route_and_reachability_are_seen() {
    in_own_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.default_interface().await.unwrap(), None);
        assert_eq!(netlink.interface_towards([8, 8, 8, 8].into()).await.unwrap(), None);
        sh("ip addr add 10.99.0.7/24 dev up0; ip route add default via 10.99.0.1");
        let external = external(&netlink).await;
        assert_eq!(external.address, std::net::Ipv4Addr::new(10, 99, 0, 2));
        assert_eq!(netlink.default_interface().await.unwrap(), Some(external.index));
        assert_eq!(netlink.interface_towards([8, 8, 8, 8].into()).await.unwrap(), Some(external.index));
        let up0 = netlink.interfaces().await.unwrap().into_iter().find(|i| i.name == "up0").unwrap();
        assert_eq!((up0.mtu, up0.addresses.len()), (1600, 2));
    });
}
