//! The injecting device: a second TAP, `weft.<VNI>`, into which encapsulated super-frames are written whole. They do not
//! enter the host's stack there: a program on the device ([`super::bpf`]) sends them on at once, out of the interface
//! towards the peer, where they are cut. A card that cuts only what the kernel's vxlan device gives it leaves that to the
//! processor.
//!
//! ```text
//! one write: headers | super-frame ──▶ weft.1 ──▶ program ──▶ next hop's neighbour entry ──▶ uplink, which cuts
//! ```
//!
//! A datagram sent through a socket is cut in the same place, but is not known to be a tunnel's: a receiving kernel then
//! takes segment by segment, and so do we. It also saves writing the headers of each segment.
//!
//! What it takes: Linux 6.17 (`TUN_F_UDP_TUNNEL_GSO`), BPF, and the right to both. Without it everything goes through the
//! sockets. What injected packets do not see is the host's own `OUTPUT` and `POSTROUTING` chains and its `IPsec` policies;
//! with policies nothing is injected.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::libc;

use super::{bpf, sys, tap, tunnel};

/// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM`, Linux 6.17. `libc` does not have them.
const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;
/// Bytes of a queue that are under way at most, as with a sending socket.
const SEND_QUEUE_BYTES: i32 = 4 << 20;

/// Why nothing can be injected. That is no fault: what it is for goes through the sockets then.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// The kernel does not cut tunnels' super-frames for a TAP.
    #[error("the kernel is older than Linux 6.17")]
    OldKernel,
    /// There is a device of this name.
    #[error(
        "there is a device {0} already, or somebody is just letting go of it; remove it with: ip link del {0}"
    )]
    Taken(String),
    /// No device.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// Anything else.
    #[error("{call}: {source}")]
    Kernel {
        /// What was asked of the kernel.
        call: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> InjectError {
    move |source| InjectError::Kernel { call, source }
}

/// The device before its program is on it.
#[derive(Debug)]
pub struct Device {
    files: Vec<File>,
}

/// One queue of the device. The device and its program go with the last one.
#[derive(Debug)]
pub struct Inject {
    file: File,
    _program: Arc<OwnedFd>,
}

impl Device {
    /// Makes the device. It must be brought up then, and given its program.
    ///
    /// # Errors
    /// See [`InjectError`]; nothing is left behind.
    pub fn open(name: &str, queues: usize) -> Result<Self, InjectError> {
        let mut files = Vec::with_capacity(queues);
        for queue in 0..queues {
            let file = tap::open_file(name)?;
            let exclusive = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
            tap::attach(&file, name, exclusive).map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => InjectError::Taken(name.to_owned()),
                _ => failed("TUNSETIFF")(source),
            })?;
            if queue == 0 {
                tap::keep_others_out(&file).map_err(failed("TUNSETOWNER"))?;
            }
            files.push(file);
        }
        let bytes = i32::try_from(tunnel::VNET_TUNNEL_BYTES).unwrap_or(0); // 24
        let offloads = libc::TUN_F_CSUM
            | libc::TUN_F_TSO4
            | libc::TUN_F_TSO6
            | libc::TUN_F_TSO_ECN
            | TUN_F_UDP_TUNNEL_GSO
            | TUN_F_UDP_TUNNEL_GSO_CSUM;
        sys::tun_set_header(files[0].as_fd(), bytes).map_err(failed("TUNSETVNETHDRSZ"))?;
        sys::tun_set_little_endian(files[0].as_fd()).map_err(failed("TUNSETVNETLE"))?;
        sys::tun_set_offload(files[0].as_fd(), offloads).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => InjectError::OldKernel,
            _ => failed("TUNSETOFFLOAD")(source),
        })?;
        for file in &files {
            sys::tun_set_send_buffer(file.as_fd(), SEND_QUEUE_BYTES).map_err(failed("TUNSETSNDBUF"))?;
        }
        Ok(Self { files })
    }

    /// Puts the program on the device, whose index is given.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn attach(self, interface: u32) -> Result<Vec<Inject>, InjectError> {
        let program = Arc::new(bpf::attach(interface).map_err(failed("a BPF program on the device"))?);
        let queue = |file| Inject { file, _program: Arc::clone(&program) };
        Ok(self.files.into_iter().map(queue).collect())
    }
}

impl AsFd for Inject {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Inject {
    /// Reads what the host sends through the device, which only the self-test makes it do; `None` when there is nothing.
    ///
    /// # Errors
    /// `EBADFD`: the device was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        tap::read_frame(&self.file, buffer)
    }

    /// Writes one super-frame, [`tunnel::HEADER_BYTES`] first.
    ///
    /// # Errors
    /// `WouldBlock`: no room now. `EIO`: the device is down. `EBADFD`: it was deleted. `EINVAL`: the kernel finds header
    /// and frame inconsistent.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        tap::write_frame(&self.file, parts)
    }
}
