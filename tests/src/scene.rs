//! Nodes with a container each, as the data path's tests have them.
//!
//! ```text
//!   A 192.168.31.63       B 192.168.31.65       K 192.168.31.66
//!   -datapath=rust        -datapath=rust        -datapath=kernel
//!   docker0 + container   docker0 + container   docker0 + container
//! ```

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fabric::{Container, Fabric, ping};
use crate::flows::Path;
use crate::nodes::{Node, Overlay};
use crate::wait::wait_for;

/// Place of the first node with our own data plane.
pub const A: usize = 0;
/// Place of the second one.
pub const B: usize = 1;
/// Place of the node with the kernel's device.
pub const K: usize = 2;
/// Flags of a node with our own data plane.
pub const RUST: &[&str] = &["-datapath=rust"];
/// Flags of a node with the kernel's device.
pub const KERNEL: &[&str] = &["-datapath=kernel"];
/// Flags of all three.
pub const TRIO: [&[&str]; 3] = [RUST, RUST, KERNEL];
/// The patience of a busy machine.
pub const SOON: Duration = Duration::from_secs(45);

/// Above `SubnetMax` a test may write leases of hosts that do not exist; nobody leases them at random.
const NETWORK_CONFIG: &str =
    r#"{"Network": "172.17.0.0/16", "SubnetMax": "172.17.190.0", "Backend": {"Type": "vxlan"}}"#;

/// Nodes with a container each, all of which reach each other.
#[derive(Debug)]
pub struct Scene<'f> {
    /// The nodes, in the order of the fabric's hosts.
    pub nodes: Vec<Node<'f>>,
    /// The container of each.
    pub boxes: Vec<Container>,
    /// The store and the files.
    pub overlay: Overlay<'f>,
}

impl<'f> Scene<'f> {
    /// A node with these flags, `-datapath=` among them, on each of the fabric's first hosts.
    ///
    /// # Errors
    /// When one does not start, has another data path than it was told, or cannot be reached.
    pub fn new(fabric: &'f Fabric, flags: &[&[&str]]) -> Result<Self> {
        let overlay = Overlay::new(fabric, NETWORK_CONFIG)?;
        let mut scene = Self { nodes: Vec::new(), boxes: Vec::new(), overlay };
        for (host, flags) in flags.iter().enumerate() {
            let node = scene.overlay.node(host, flags)?;
            let status = node.datapath_status()?;
            let flag = format!("-datapath={}", status["datapath"].as_str().unwrap_or_default());
            ensure!(flags.contains(&flag.as_str()), "{flags:?} has become {flag}: {status}");
            scene.boxes.push(node.container(&format!("box{host}"))?);
            scene.nodes.push(node);
        }
        for from in 0..scene.boxes.len() {
            for to in (0..scene.boxes.len()).filter(|&to| to != from) {
                let Path { from, address, .. } = scene.path(from, to);
                wait_for("the first echo", SOON, || ping(from, address, 56))?;
            }
        }
        Ok(scene)
    }

    /// From the container at one place to the container at another.
    pub fn path(&self, from: usize, to: usize) -> Path<'_> {
        Path { from: &self.boxes[from].ns, to: &self.boxes[to].ns, address: self.boxes[to].address.into() }
    }

    /// What `ethtool -K` shall say on the container's `eth0` and on its other end.
    ///
    /// # Errors
    /// When ethtool fails.
    pub fn offloads(&self, at: usize, state: &str) -> Result<()> {
        let port = format!("veth{}", self.boxes[at].address.octets()[3]);
        for (ns, device) in [(&self.boxes[at].ns, "eth0"), (&self.nodes[at].host.ns, port.as_str())] {
            let args = format!("-K {device} tx {state} tso {state} gso {state} gro {state}");
            ns.run("ethtool", &args)?.ok()?;
        }
        Ok(())
    }

    /// A count of the engine's.
    ///
    /// # Errors
    /// When the daemon does not answer, or does not count that.
    pub fn counted(&self, node: usize, name: &str) -> Result<u64> {
        let status = self.nodes[node].datapath_status()?;
        let total = &status["engine"]["total"];
        total[name].as_u64().with_context(|| format!("{name} in {total}"))
    }

    /// The count of a drop reason.
    ///
    /// # Errors
    /// When the daemon does not answer, or knows no such reason.
    pub fn dropped(&self, node: usize, reason: &str) -> Result<u64> {
        let status = self.nodes[node].datapath_status()?;
        let drops = &status["engine"]["total"]["drops"];
        drops[reason].as_u64().with_context(|| format!("{reason} in {drops}"))
    }

    /// The address that the kernel gave the overlay's device.
    ///
    /// # Errors
    /// When there is none.
    pub fn link_local(&self, node: usize) -> Result<String> {
        let shown = self.nodes[node].host.ns.ip("-o -6 address show dev flannel.1 scope link")?;
        let address = shown.split_ascii_whitespace().skip_while(|w| *w != "inet6").nth(1);
        let address = address.and_then(|a| a.split('/').next()).context("no link-local address")?;
        Ok(address.to_owned())
    }
}
