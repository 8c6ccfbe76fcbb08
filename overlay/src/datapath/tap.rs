//! The TAP device: opened, or adopted when an earlier process left it, one file per queue.
//!
//! The device is persistent, so that it, its addresses and its routes outlive a restart of the daemon. It always has
//! `IFF_MULTI_QUEUE`, because a device keeps that for its life and a restart may want another number of queues.
//! Each frame is preceded by the 10 bytes of the virtio-net header ([`HEADER_BYTES`]), little-endian.
//!
//! Limits: the kernel hands out at most 64 KiB in one frame (`gso_max_size` of a TAP), so [`FRAME_BUFFER_BYTES`] is
//! enough for every read. A device that is down takes no frame (`EIO`); that is not the end of it. One that was
//! deleted answers `EBADFD`.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

use nix::libc;
use nix::unistd::geteuid;

use super::holder::{self, Holder};
use super::{sys, vnet};

/// Length of the virtio-net header before each frame, in bytes.
pub const HEADER_BYTES: usize = vnet::LEN;
const HEADER_BYTES_INT: i32 = 10;
const _: () = assert!(HEADER_BYTES == 10);

/// A buffer of this many bytes takes every read: header, Ethernet, two VLAN tags, 64 KiB.
pub const FRAME_BUFFER_BYTES: usize = HEADER_BYTES + 14 + 8 + 65536;

/// Most queues of one device.
pub const MAX_QUEUES: usize = 16;

/// `(uid_t) -2`, whom nobody is.
const NOBODY_AT_ALL: u32 = u32::MAX - 1;

const DEVICE_FILE: &str = "/dev/net/tun";

/// Why there is no TAP device; each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name for an interface.
    #[error("{0:?} cannot be the name of a device: 1 to 15 bytes without '/', '%' and blanks")]
    Name(String),
    /// 1 to [`MAX_QUEUES`].
    #[error("{0} queues: a TAP device here has 1 to {MAX_QUEUES}; change -datapath-queues")]
    Queues(usize),
    /// No driver.
    #[error(
        "{DEVICE_FILE}: {0}; load the module (modprobe tun), in a container also pass the device in \
         (--device {DEVICE_FILE})"
    )]
    NoDriver(io::Error),
    /// No right to.
    #[error(
        "TAP device {name}: {source}; run as root or with CAP_NET_ADMIN, in a container with --device {DEVICE_FILE}"
    )]
    Denied {
        /// The device.
        name: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Another data path uses the device.
    #[error("TAP device {name} is in use by {holder}; stop it, or give this one another VNI")]
    InUse {
        /// The device.
        name: String,
        /// Who uses it.
        holder: Holder,
    },
    /// There is a device of this name that is not a TAP device with several queues.
    #[error(
        "{0}: a device of this name and another kind is there (ip -d link show {0}); remove it with: ip link del {0}"
    )]
    OtherKind(String),
    /// Anything else.
    #[error("TAP device {name}: {call}: {source}")]
    Kernel {
        /// The device.
        name: String,
        /// What was asked of the kernel.
        call: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl TapError {
    /// Whether somebody else has the device.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

/// What the kernel may leave to us in frames read from the TAP, from the least to the most; each includes those before
/// it. It takes the same in frames written, with one exception: before Linux 6.2 no UDP super-frames;
/// [`super::selftest`] finds that out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum TapOffloads {
    /// Whole frames only, with checksums.
    #[default]
    Nothing,
    /// Checksums (`TUN_F_CSUM`).
    Checksum,
    /// TCP super-frames, IPv4 and IPv6 (`TUN_F_TSO4`, `TUN_F_TSO6`).
    Tcp,
    /// Also those with CWR set (`TUN_F_TSO_ECN`).
    TcpEcn,
    /// UDP super-frames (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    TcpUdp,
}

impl TapOffloads {
    /// From the most to the least.
    const LADDER: [Self; 5] = [Self::TcpUdp, Self::TcpEcn, Self::Tcp, Self::Checksum, Self::Nothing];

    fn bits(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Checksum => libc::TUN_F_CSUM,
            Self::Tcp => Self::Checksum.bits() | libc::TUN_F_TSO4 | libc::TUN_F_TSO6,
            Self::TcpEcn => Self::Tcp.bits() | libc::TUN_F_TSO_ECN,
            Self::TcpUdp => Self::TcpEcn.bits() | libc::TUN_F_USO4 | libc::TUN_F_USO6,
        }
    }
}

impl fmt::Display for TapOffloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "none",
            Self::Checksum => "checksums",
            Self::Tcp => "checksums, TCP segmentation",
            Self::TcpEcn => "checksums, TCP segmentation with ECN",
            Self::TcpUdp => "checksums, TCP segmentation with ECN, UDP segmentation",
        })
    }
}

/// One queue of the TAP device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Held as long as any queue is, see [`claim`].
    _claim: Arc<UnixDatagram>,
}

impl Tap {
    /// Reads one frame behind its header; `None` when there is none now. What is longer than `buf` is cut off, which
    /// cannot happen with [`FRAME_BUFFER_BYTES`].
    ///
    /// # Errors
    /// `EBADFD`: the device was deleted. `EINVAL`: as for [`super::io::Port::read`].
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        read_frame(&self.file, buf)
    }

    /// Writes one frame, gathered from 1024 parts at most, the header first. It is taken whole or not at all.
    ///
    /// # Errors
    /// * `InvalidInput` without a system call: too many parts.
    /// * `EIO`: the device is down. `EBADFD`: it was deleted. `WouldBlock`: no room now.
    /// * `EINVAL`: header and frame do not fit together, or this kernel does not know the kind of super-frame.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // The standard library would silently leave out what is too much.
        if parts.len() > sys::MAX_SLICES {
            return Err(ErrorKind::InvalidInput.into());
        }
        write_frame(&self.file, parts)
    }
}

/// Reads one frame from a queue; `None` when there is none now.
pub(super) fn read_frame(mut queue: &File, buf: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match queue.read(buf) {
            Ok(len) => return Ok(Some(len)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes one frame to a queue, of [`sys::MAX_SLICES`] parts at most.
pub(super) fn write_frame(mut queue: &File, parts: &[IoSlice<'_>]) -> io::Result<()> {
    loop {
        match queue.write_vectored(parts) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the device `name` with this many queues: the one an earlier process left, or a new one. Returns the queues,
/// what the kernel agreed to leave to us, and whether the device was there before.
///
/// The device is made persistent last, so nothing is left behind by a failure. A new one is down.
///
/// # Errors
/// See [`TapError`].
pub fn open(name: &str, queues: usize) -> Result<(Vec<Tap>, TapOffloads, bool), TapError> {
    let bad = |c: char| c == '/' || c == '%' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(bad) || name == "." || name == ".." {
        return Err(TapError::Name(name.to_owned()));
    }
    if !(1..=MAX_QUEUES).contains(&queues) {
        return Err(TapError::Queues(queues));
    }
    let claim = Arc::new(claim(name)?);
    let first = open_file(name)?;
    let adopted = attach_first(&first, name)?;
    keep_others_out(&first).map_err(|error| refused(name, error))?;
    let mut files = vec![first];
    for _ in 1..queues {
        let file = open_file(name)?;
        attach(&file, name, 0).map_err(|error| refused(name, error))?;
        files.push(file);
    }
    let offloads = set_up(files[0].as_fd(), name)?;
    let taps = files.into_iter().map(|file| Tap { file, _claim: Arc::clone(&claim) }).collect();
    Ok((taps, offloads, adopted))
}

/// Makes sure that no other process of this kind uses the device: with `IFF_MULTI_QUEUE` the kernel would let it in
/// as one more queue. An abstract Unix socket belongs to the network namespace, as the device does, and goes with the
/// process.
fn claim(name: &str) -> Result<UnixDatagram, TapError> {
    let path = format!("weft/tap/{name}");
    let address = SocketAddr::from_abstract_name(&path);
    let socket = address.and_then(|address| UnixDatagram::bind_addr(&address));
    socket.map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => {
            TapError::InUse { name: name.to_owned(), holder: holder::of_abstract_socket(&path) }
        }
        _ => TapError::Kernel { name: name.to_owned(), call: "claiming it", source },
    })
}

pub(super) fn open_file(name: &str) -> Result<File, TapError> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(DEVICE_FILE).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(source),
        _ => refused(name, source),
    })
}

/// Attaches the first queue; returns whether the device was there.
fn attach_first(file: &File, name: &str) -> Result<bool, TapError> {
    match attach(file, name, libc::IFF_TUN_EXCL) {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            attach(file, name, 0).map_err(|error| refused(name, error))?;
            Ok(true)
        }
        Err(error) => Err(refused(name, error)),
    }
}

/// Attaches a queue of a device with virtio-net headers; `more` are further `IFF_*` flags.
pub(super) fn attach(file: &File, name: &str, more: i32) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | more;
    let flags = u16::try_from(flags).map_err(|_| ErrorKind::InvalidInput)?;
    sys::tun_attach(file.as_fd(), name, flags)
}

/// Lets nobody attach a queue but who has `CAP_NET_ADMIN`. A device with several queues and no owner is open to all who
/// may open [`DEVICE_FILE`], on most hosts everybody: they could take its packets, and send in its name.
pub(super) fn keep_others_out(tun: &File) -> io::Result<()> {
    match sys::tun_set_owner(tun.as_fd(), NOBODY_AT_ALL) {
        // A user namespace need not know that user.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            sys::tun_set_owner(tun.as_fd(), geteuid().as_raw())
        }
        outcome => outcome,
    }
}

/// What is set once for the whole device.
fn set_up(tun: BorrowedFd<'_>, name: &str) -> Result<TapOffloads, TapError> {
    let failed = |call| move |source| TapError::Kernel { name: name.to_owned(), call, source };
    sys::tun_set_header(tun, HEADER_BYTES_INT).map_err(failed("TUNSETVNETHDRSZ"))?;
    sys::tun_set_little_endian(tun).map_err(failed("TUNSETVNETLE"))?;
    let mut offloads = TapOffloads::Nothing;
    for wanted in TapOffloads::LADDER {
        match sys::tun_set_offload(tun, wanted.bits()) {
            Ok(()) => {
                offloads = wanted;
                break;
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(failed("TUNSETOFFLOAD")(error)),
        }
    }
    sys::tun_set_persistent(tun).map_err(failed("TUNSETPERSIST"))?;
    Ok(offloads)
}

/// What the kernel's refusal means.
fn refused(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Denied { name, source },
        // Not a TAP device, or one with a single queue; that one may also be busy.
        Some(libc::EINVAL | libc::EBUSY) => TapError::OtherKind(name),
        _ => TapError::Kernel { name, call: "attaching a queue", source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_down_to_nothing() {
        let bits: Vec<u32> = TapOffloads::LADDER.iter().map(|o| o.bits()).collect();
        assert_eq!(bits, [0x6f, 0x0f, 0x07, 0x01, 0]);
        assert!(TapOffloads::LADDER.is_sorted_by(|more, less| more > less));
    }

    #[test]
    fn impossible_names_and_numbers_are_refused_before_anything_is_touched() {
        for name in ["", "sixteen-letters-", "a/b", "tap%d", "a b", "a:b", "..", "a\0b"] {
            assert!(matches!(open(name, 1), Err(TapError::Name(_))), "{name:?}");
        }
        assert!(matches!(open("weft-none", 0), Err(TapError::Queues(0))));
        assert!(matches!(open("weft-none", 17), Err(TapError::Queues(17))));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (code, words) in [
            (libc::EPERM, "CAP_NET_ADMIN"),
            (libc::EACCES, "CAP_NET_ADMIN"),
            (libc::EINVAL, "ip link del flannel.1"),
            (libc::EBUSY, "ip link del flannel.1"),
            (libc::ENFILE, "attaching a queue: "),
        ] {
            let text = refused("flannel.1", io::Error::from_raw_os_error(code)).to_string();
            assert!(text.contains("flannel.1") && text.contains(words), "{text}");
        }
    }
}
