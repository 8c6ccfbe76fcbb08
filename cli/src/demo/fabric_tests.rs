//! The fabric against the kernel: needs root. Every namespace here is anonymous and goes with its holder.
//!
//! ```text
//!   a: eth0 10.9.0.1/24 --- near | br0 | near --- eth0 10.9.0.2/24 :b
//!                               (hub)
//! ```
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::fabric::Namespace;
use super::lab::Lab;
use super::leftovers::processes_in;
use super::link::Cidr;
use super::probe::{ping, tcp_exchange};
use super::topology::{Attachment, GATEWAY};

const A: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const SECOND: Duration = Duration::from_secs(1);
/// For what must come.
const SOON: Duration = Duration::from_secs(20);

/// Whether this can run; says so when not.
fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: namespaces need root");
    }
    root
}

/// Waits until echoes come back: a bridge forwards to a port only a moment after it was plugged in.
fn reach(net: &Namespace, to: Ipv4Addr) {
    let answers = || net.run(|| ping(to, 1, 8, SECOND)).unwrap().unwrap().complete();
    assert!((0..20).any(|_| answers()), "nothing comes back from {to}");
}

fn pair() -> (Namespace, Namespace, Namespace) {
    let (hub, a, b) =
        (Namespace::new("hub").unwrap(), Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    hub.add_bridge("br0", 1400).unwrap();
    for (net, near, address) in [(&a, "near-a", A), (&b, "near-b", B)] {
        hub.plug("br0", near, net, "eth0", 1400).unwrap();
        net.add_address("eth0", Cidr { address, prefix_len: 24 }).unwrap();
    }
    (hub, a, b)
}

#[test]
fn two_namespaces_reach_each_other_over_a_bridge_and_the_host_sees_nothing_of_it() {
    if !privileged() {
        return;
    }
    let before = host_devices();
    let (hub, a, b) = pair();
    let full = usize::from(1400_u16 - 28);
    reach(&a, B);
    let echoes = a.run(|| ping(B, 3, full, SOON)).unwrap().unwrap();
    assert!(echoes.complete(), "{echoes:?}");
    tcp_exchange(&b, &a, B, 300_000, SOON).unwrap();
    let device = device(&a, "eth0");
    assert_eq!((device.mtu, device.addresses), (1400, vec![Cidr { address: A, prefix_len: 24 }]));
    let names: Vec<String> = devices(&hub).into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["lo", "br0", "near-a", "near-b"]);
    // Other programs may come and go on the host: what counts is that none of these names did.
    let ours = ["br0", "near-a", "near-b"].map(String::from);
    assert!(host_devices().difference(&before).all(|name| !ours.contains(name)));
}

#[test]
fn silence_and_refusal_are_told_apart_from_an_answer() {
    if !privileged() {
        return;
    }
    let (_hub, a, b) = pair();
    let nobody = Ipv4Addr::new(10, 9, 0, 77);
    let echoes = a.run(|| ping(nobody, 1, 8, Duration::from_millis(100))).unwrap().unwrap();
    assert_eq!((echoes.sent, echoes.median()), (1, None));
    let unreachable = a.run(|| ping(Ipv4Addr::new(192, 0, 2, 1), 1, 8, SECOND)).unwrap();
    assert!(unreachable.is_err(), "no route, yet {unreachable:?}");
    let refused = tcp_exchange(&b, &a, A, 1, SECOND).unwrap_err();
    assert!(format!("{refused:#}").contains("listen on 10.9.0.1"), "{refused:#}");
}

#[test]
fn errors_name_the_namespace_and_the_device() {
    if !privileged() {
        return;
    }
    let net = Namespace::new("lonely").unwrap();
    let missing = format!("{:#}", net.set_up("eth7").unwrap_err());
    assert!(missing.contains("lonely") && missing.contains("eth7"), "{missing}");
    let route = format!("{:#}", net.add_default_route(GATEWAY.address).unwrap_err());
    assert!(route.contains("lonely") && route.contains("192.168.31.1"), "{route}");
    let sysctl = format!("{:#}", net.sysctl("net/ipv4/no_such_thing", "1").unwrap_err());
    assert!(sysctl.contains("lonely") && sysctl.contains("no_such_thing"), "{sysctl}");
}

#[test]
fn a_process_lives_where_it_was_started_and_nothing_holds_the_namespace_after_it() {
    if !privileged() {
        return;
    }
    let net = Namespace::new("host").unwrap();
    let inode = BTreeSet::from([net.inode().unwrap()]);
    let mut child = net.spawn(Command::new("sleep").arg("60").stdin(Stdio::null())).unwrap();
    let found = processes_in(&inode);
    assert!(found.iter().any(|process| process.starts_with(&format!("{} ", child.id()))), "{found:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(processes_in(&inode), Vec::<String>::new());
    let missing = net.spawn(&mut Command::new("/no/such/program")).unwrap_err();
    assert!(format!("{missing:#}").contains("/no/such/program"), "{missing:#}");
}

#[test]
fn the_lab_joins_hosts_to_the_fabric_and_containers_to_their_hosts() {
    if !privileged() {
        return;
    }
    let lab = Lab::build().unwrap();
    assert_eq!(lab.held().unwrap().len(), 7);
    let (first, second) = (&lab.sites[0], &lab.sites[1]);
    reach(&first.net, second.host.address);
    let text = "FLANNEL_SUBNET=172.17.71.1/24\nFLANNEL_MTU=1450\n";
    let attachment = Attachment::parse(text).unwrap();
    first.attach(&attachment).unwrap();
    let inside = device(&first.container, "eth0");
    assert_eq!((inside.mtu, inside.addresses), (1450, vec![attachment.container()]));
    // Through docker0 and the host's forwarding to its own address on the fabric.
    let uplink = first.host.address;
    reach(&first.container, uplink);
    // Without an overlay the fabric knows no way back to a container.
    let lost =
        first.container.run(|| ping(GATEWAY.address, 1, 8, Duration::from_millis(200))).unwrap().unwrap();
    assert_eq!(lost.median(), None);
}

/// A device as the kernel lists it.
#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    mtu: u32,
    addresses: Vec<Cidr>,
}

/// The devices of a namespace in the kernel's order.
fn devices(net: &Namespace) -> Vec<Device> {
    net.netlink(async |handle| {
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let mut devices: Vec<Device> = links.iter().map(read_device).collect();
        let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
        for message in addresses {
            let prefix_len = message.header.prefix_len;
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            });
            let device = devices.iter_mut().find(|device| device.index == message.header.index);
            if let (Some(address), Some(device)) = (local, device) {
                device.addresses.push(Cidr { address, prefix_len });
            }
        }
        Ok(devices)
    })
    .unwrap()
}

fn read_device(message: &LinkMessage) -> Device {
    let mut device =
        Device { index: message.header.index, name: String::new(), mtu: 0, addresses: Vec::new() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(bytes) => device.mtu = *bytes,
            _ => {}
        }
    }
    device
}

fn device(net: &Namespace, name: &str) -> Device {
    devices(net).into_iter().find(|device| device.name == name).unwrap()
}

fn host_devices() -> BTreeSet<String> {
    nix::net::if_::if_nameindex()
        .unwrap()
        .iter()
        .map(|device| device.name().to_string_lossy().into_owned())
        .collect()
}
