//! Devices, addresses and routes of a [`Namespace`], through route-netlink: no `ip` program.
//!
//! Every error names the namespace, the device and what was tried.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::{AddressMessageBuilder, Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::fabric::Namespace;

/// An address with the length of its network's prefix, as in `192.168.31.63/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    /// The address itself, host bits and all.
    pub(crate) address: Ipv4Addr,
    /// Prefix length in bits.
    pub(crate) prefix_len: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl std::str::FromStr for Cidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, len) =
            text.split_once('/').with_context(|| format!("`{text}` is no address/length"))?;
        let address =
            address.parse().with_context(|| format!("`{text}` does not begin with an IPv4 address"))?;
        let prefix_len = len.parse().with_context(|| format!("`{text}` does not end in a prefix length"))?;
        if prefix_len > 32 {
            bail!("`{text}`: an IPv4 prefix length is at most 32");
        }
        Ok(Self { address, prefix_len })
    }
}

impl Namespace {
    /// Makes a bridge and brings it up; `mtu` 0 leaves the kernel's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn add_bridge(&self, device: &str, mtu: u32) -> Result<()> {
        self.netlink(async |handle| {
            let mut bridge = LinkBridge::new(device);
            if mtu != 0 {
                bridge = bridge.mtu(mtu);
            }
            Ok(handle.link().add(bridge.build()).execute().await?)
        })
        .with_context(|| format!("{}: cannot add bridge {device}", self.name()))
    }

    /// Joins this namespace's `bridge` to device `far` of the namespace `other` by a pair of virtual Ethernet
    /// devices; `near` is the end at the bridge. Both ends come up.
    ///
    /// # Errors
    /// When the bridge does not exist or the kernel refuses.
    pub(crate) fn plug(
        &self,
        bridge: &str,
        near: &str,
        other: &Namespace,
        far: &str,
        mtu: u32,
    ) -> Result<()> {
        let fd = other.raw_fd();
        self.netlink(async |handle| {
            let controller = index_of(&handle, bridge).await?;
            handle.link().add(veth(near, far, fd, mtu)).execute().await?;
            let attach = LinkUnspec::new_with_name(near).controller(controller).up().build();
            Ok(handle.link().set(attach).execute().await?)
        })
        .with_context(|| {
            format!("{}: cannot plug {near} between {bridge} and {}", self.name(), other.name())
        })?;
        other.set_up(far)
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn set_up(&self, device: &str) -> Result<()> {
        self.netlink(async |handle| {
            Ok(handle.link().set(LinkUnspec::new_with_name(device).up().build()).execute().await?)
        })
        .with_context(|| format!("{}: cannot bring up {device}", self.name()))
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// When there is no such device or it has the address already.
    pub(crate) fn add_address(&self, device: &str, cidr: Cidr) -> Result<()> {
        self.netlink(async |handle| {
            let index = index_of(&handle, device).await?;
            let message = AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(cidr.address, cidr.prefix_len)
                .build();
            let mut request = handle.address().add(index, cidr.address.into(), cidr.prefix_len);
            *request.message_mut() = message;
            Ok(request.execute().await?)
        })
        .with_context(|| format!("{}: cannot give {device} the address {cidr}", self.name()))
    }

    /// Sends everything without a better route to `gateway`.
    ///
    /// # Errors
    /// When no device reaches the gateway, or there is a default route already.
    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> Result<()> {
        self.netlink(async |handle| {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
            Ok(handle.route().add(route).execute().await?)
        })
        .with_context(|| format!("{}: cannot add a default route by {gateway}", self.name()))
    }
}

/// The request for a pair whose far end is born in another namespace, so that no name of it is ever taken here.
fn veth(near: &str, far: &str, far_namespace: RawFd, mtu: u32) -> LinkMessage {
    let end = |name: &str| {
        let builder = LinkUnspec::new_with_name(name);
        if mtu == 0 { builder } else { builder.mtu(mtu) }
    };
    let peer = end(far).setns_by_fd(far_namespace).build();
    let mut message = end(near).build();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    message
}

async fn index_of(handle: &Handle, device: &str) -> Result<u32> {
    let mut links = handle.link().get().match_name(device.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link.header.index),
        Ok(None) => bail!("there is no device {device}"),
        Err(err) => Err(err).with_context(|| format!("there is no device {device}")),
    }
}
