//! Kernel parameters under `/proc/sys/net`, those of the network namespace we run in.

use std::{fs, io};

/// Whether the kernel forwards IPv4 packets between interfaces; without it no container is reached. `None` when that
/// cannot be read.
pub fn ipv4_forwarding() -> Option<bool> {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok().map(|text| text.trim() != "0")
}

/// Keeps `device` from taking IPv6 addresses and routes from router advertisements that come through the tunnel, as
/// newer flannels do.
///
/// # Errors
/// When the parameter cannot be written; a kernel without IPv6 does not have it.
pub fn ignore_router_advertisements(device: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0")
}

/// Keeps `device` without IPv6 addresses.
///
/// # Errors
/// As [`ignore_router_advertisements`].
pub fn no_ipv6(device: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1")
}

/// This machine's host name; empty when it cannot be read.
pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}
