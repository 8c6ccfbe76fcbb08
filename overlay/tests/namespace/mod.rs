//! A network namespace for a test's own thread, with a veth as underlay.
//!
//! ```text
//!   up0 (veth) 10.99.0.2/24
//! ```

use std::collections::BTreeMap;
use std::future::Future;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use overlay::config::InterfaceChoice;
use overlay::datapath::Peer;
use overlay::iface::{self, External};
use overlay::net::netlink::Netlink;
use overlay::types::{Subnet, VtepMac};

/// Runs `body` on a thread with a network namespace of its own, which goes when the thread ends.
pub(crate) fn in_own_namespace<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own (these tests need root)");
        sh(
            "ip link set lo up && ip link add up0 mtu 1600 type veth peer name up1 && ip link set up0 up && ip link set up1 up && ip addr add 10.99.0.2/24 dev up0",
        );
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a shell command in this thread's namespace and returns what it prints, lines sorted.
pub(crate) fn sh(command: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&output.stdout).lines().map(|l| l.trim().to_owned()).collect();
    lines.sort();
    lines
}

pub(crate) async fn external(netlink: &Netlink) -> External {
    let choice = InterfaceChoice { names: vec!["up0".into()], ..InterfaceChoice::default() };
    iface::select(&choice, &netlink.interfaces().await.unwrap(), None, None).unwrap()
}

pub(crate) fn peers(count: u16) -> BTreeMap<Subnet, Peer> {
    (0..count)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            let subnet = Subnet::new([10, 32 + high, low, 0].into(), 24).unwrap();
            let mac = VtepMac::locally_administered([2, 0, 0, 1, high, low]);
            (subnet, Peer { mac, public_ip: [10, 99, high, low].into() })
        })
        .collect()
}
