//! The demo's network: a fabric, three hosts plugged into it, and a container behind each host's bridge.

use anyhow::{Context, Result};

use super::control::Held;
use super::fabric::Namespace;
use super::topology::{Attachment, DOCKER_BRIDGE, FABRIC_BRIDGE, GATEWAY, HOSTS, Host, UPLINK};

/// MTU of the fabric, that of plain Ethernet.
const FABRIC_MTU: u32 = 1500;

/// A host with its namespaces.
#[derive(Debug)]
pub(crate) struct Site {
    /// The plan of it.
    pub(crate) host: Host,
    /// The host's network.
    pub(crate) net: Namespace,
    /// Its container's network.
    pub(crate) container: Namespace,
}

/// All namespaces; they go when this is dropped and the programs inside have ended.
#[derive(Debug)]
pub(crate) struct Lab {
    fabric: Namespace,
    /// The hosts, in the order of [`HOSTS`].
    pub(crate) sites: Vec<Site>,
}

impl Lab {
    /// Makes the namespaces and joins the hosts to the fabric. Containers stay apart until [`Site::attach`].
    ///
    /// # Errors
    /// When the kernel refuses a namespace, device, address or setting; the message says which.
    pub(crate) fn build() -> Result<Self> {
        let fabric = Namespace::new("fabric")?;
        fabric.add_bridge(FABRIC_BRIDGE, FABRIC_MTU)?;
        fabric.add_address(FABRIC_BRIDGE, GATEWAY)?;
        let sites = HOSTS.iter().map(|host| Site::build(&fabric, *host)).collect::<Result<_>>()?;
        Ok(Self { fabric, sites })
    }

    /// Every namespace, for those who look from outside.
    ///
    /// # Errors
    /// When a namespace's file cannot be read.
    pub(crate) fn held(&self) -> Result<Vec<Held>> {
        let sites = self.sites.iter().flat_map(|site| [&site.net, &site.container]);
        std::iter::once(&self.fabric)
            .chain(sites)
            .map(|net| {
                let inode = net.inode().with_context(|| format!("{}: cannot be read", net.name()))?;
                Ok(Held { name: net.name().to_owned(), fd: net.raw_fd(), inode })
            })
            .collect()
    }
}

impl Site {
    fn build(fabric: &Namespace, host: Host) -> Result<Self> {
        let net = Namespace::new(host.name)?;
        let container = Namespace::new(host.container)?;
        fabric.plug(FABRIC_BRIDGE, host.name, &net, UPLINK, FABRIC_MTU)?;
        net.add_address(UPLINK, host.cidr())?;
        net.add_default_route(GATEWAY.address)?;
        // What dockerd does at its start; without it a host passes nothing on to its containers.
        net.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { host, net, container })
    }

    /// Puts the container behind a bridge called `docker0`, with the addresses and the MTU dockerd would take from
    /// `subnet.env`.
    ///
    /// # Errors
    /// When the kernel refuses a device, address or route.
    pub(crate) fn attach(&self, attachment: &Attachment) -> Result<()> {
        self.net.add_bridge(DOCKER_BRIDGE, attachment.mtu)?;
        self.net.add_address(DOCKER_BRIDGE, attachment.bridge)?;
        self.net.plug(DOCKER_BRIDGE, self.host.container, &self.container, UPLINK, attachment.mtu)?;
        self.container.add_address(UPLINK, attachment.container())?;
        self.container.add_default_route(attachment.bridge.address)
    }
}
