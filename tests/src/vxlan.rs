//! VXLAN datagrams and frames made by hand, as somebody would who wants to put frames into an overlay.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, bind, send, setsockopt, socket, sockopt,
};

use crate::ns::Namespace;

/// flannel's port.
pub const PORT: u16 = 8472;

/// A UDP packet inside an Ethernet frame.
#[derive(Debug, Clone, Copy)]
pub struct Inner<'a> {
    /// Source of the frame.
    pub from_mac: [u8; 6],
    /// Destination of the frame.
    pub to_mac: [u8; 6],
    /// Source of the packet.
    pub from: Ipv4Addr,
    /// Destination of the packet.
    pub to: Ipv4Addr,
    /// Destination port.
    pub port: u16,
    /// The former type-of-service byte: DSCP and, in the lowest two bits, ECN.
    pub tos: u8,
    /// What the packet carries.
    pub payload: &'a [u8],
}

impl Inner<'_> {
    /// The datagram for the overlay's port (RFC 7348 section 5) in the network `vni`, which is below 2^24.
    pub fn encapsulated(&self, vni: u32) -> Vec<u8> {
        let mut bytes = vec![0x08, 0, 0, 0];
        bytes.extend((vni << 8).to_be_bytes());
        bytes.extend(self.frame());
        bytes
    }

    /// The Ethernet frame by itself.
    pub fn frame(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.to_mac);
        bytes.extend(self.from_mac);
        bytes.extend([0x08, 0x00]);
        let udp_len = 8 + self.payload.len();
        let mut ip = vec![0x45, self.tos];
        ip.extend(length(20 + udp_len));
        // Identification 0, not to be cut, 64 hops, UDP, checksum to come.
        ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        ip.extend(self.from.octets());
        ip.extend(self.to.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(ip);
        // Source port 9 (discard); checksum 0 is "none" (RFC 768).
        bytes.extend([0, 9]);
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(length(udp_len));
        bytes.extend([0, 0]);
        bytes.extend(self.payload);
        bytes
    }
}

/// Sends a hand-made datagram to the overlay's port of `to` in the network 1, from the address that the namespace has.
///
/// # Errors
/// When it cannot be sent.
pub fn inject(from: &Namespace, to: Ipv4Addr, outer_tos: u8, inner: &Inner<'_>) -> Result<()> {
    let socket = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    setsockopt(&socket, sockopt::Ipv4Tos, &i32::from(outer_tos))?;
    socket.send_to(&inner.encapsulated(1), (to, PORT))?;
    Ok(())
}

/// Sends a frame through the overlay's device as if the host's stack had made it.
///
/// # Errors
/// When there is no device, or it cannot be sent.
pub fn put_on_device(ns: &Namespace, frame: &[u8]) -> Result<()> {
    ns.enter(|| -> Result<()> {
        let device = nix::ifaddrs::getifaddrs()?
            .filter(|i| i.interface_name == "flannel.1")
            .find_map(|i| i.address.and_then(|a| a.as_link_addr().copied()))
            .context("no flannel.1")?;
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind(raw.as_raw_fd(), &device)?;
        send(raw.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    })?
}

/// Who has `target`? (RFC 826, broadcast.)
pub fn arp_request(from_mac: [u8; 6], from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(from_mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(from_mac);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// Two bytes; payloads here are short.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 1071 over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Reads `02:00:00:00:00:01`.
///
/// # Errors
/// When it is not six bytes in hexadecimal.
pub fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).with_context(|| format!("MAC {text}")))
        .collect::<Result<_>>()?;
    ensure!(bytes.len() == 6, "MAC {text}");
    bytes.try_into().map_err(|_| anyhow::anyhow!("MAC {text}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_header_checksum_is_the_one_of_rfc_1071() {
        // The header's own example of many a text book.
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&header), 0xb861);
    }

    #[test]
    fn the_layout_is_rfc_7348s() {
        let inner = Inner {
            from_mac: [2, 0, 0, 0, 0, 1],
            to_mac: mac("02:00:00:00:00:02").unwrap(),
            from: [10, 0, 1, 2].into(),
            to: [10, 0, 2, 2].into(),
            port: 7,
            tos: 2,
            payload: b"abc",
        };
        let bytes = inner.encapsulated(0x01_02_03);
        assert_eq!(bytes[..8], [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(bytes[8..22], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(bytes[22..26], [0x45, 2, 0, 31]);
        assert_eq!(bytes[42..], *b"\0\x09\0\x07\0\x0b\0\0abc");
        assert!(mac("02:00").is_err() && mac("x").is_err());
    }
}
