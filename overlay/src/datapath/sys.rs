//! The system calls that no safe crate wraps as they are needed here, each as a safe function. The only module of this
//! crate with `unsafe`.
//!
//! * TUN/TAP `ioctl`s: no crate of the tree has them.
//! * `sendmmsg` and `recvmmsg`: `nix` has them with one set of control messages for the whole batch, but here each
//!   datagram has its own segment size and ECN bits; and nothing may be allocated per call.
//! * Leave to fragment (`IP_MTU_DISCOVER`), which neither `nix` nor `socket2` knows.
//! * `bpf`: loading a dozen instructions and attaching them. The crates for it load what a BPF compiler has made.
//!
//! Everything else (`read`, `writev`, `ppoll`, eventfd, affinity, the other socket options) comes from the standard
//! library, `nix` and `socket2`.

#![allow(unsafe_code, reason = "the one module for it; each block says why it is sound")]

use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::libc;

use super::abi::{Control, Name, number};
use super::bpf::Instruction;
use super::socket::{Message, Received};

/// Most datagrams (or runs of equal datagrams) in one system call.
pub(super) const BATCH: usize = 64;

/// Most slices in one message or one write (`UIO_MAXIOV`).
pub(super) const MAX_SLICES: usize = 1024;

/// `struct ifreq` as `TUNSETIFF` uses it: a name, then flags in a union that is 24 bytes long at most.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());

/// Whether this process has a thread of this number (`gettid`). `/proc` would say so, too, but may count as another PID
/// namespace does.
pub(super) fn is_thread_of_ours(thread: i32) -> bool {
    // SAFETY: tgkill takes numbers, no pointers; signal 0 is sent to nobody.
    let outcome = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, 0) };
    outcome == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Ends this thread as a fault of the kernel does: nothing is dropped, and the standard library is not told.
#[cfg(test)]
pub(super) fn end_this_thread() {
    // SAFETY: the call does not return. What the thread has borrowed stays as it is, for it is not freed either: the
    // standard library frees a thread's stack and its half of the handle at the end that is never reached.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Attaches an open `/dev/net/tun` to the device `name` (at most 15 bytes), which is made if it is not there.
pub(super) fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: u16) -> io::Result<()> {
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    if name.is_empty() || name.len() >= request.name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is at least as large as and aligned for;
    // it lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, ptr::from_mut(&mut request)) }).map(drop)
}

/// Sets which offloads the device may ask of us (`TUN_F_*`). `EINVAL`: the kernel does not know one of them.
pub(super) fn tun_set_offload(tun: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) }).map(drop)
}

/// Keeps the device when the last process that has it open is gone.
pub(super) fn tun_set_persistent(tun: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes a number, no pointer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) }).map(drop)
}

/// Sets the length of the header before each frame, in bytes.
pub(super) fn tun_set_header(tun: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, ptr::from_ref(&bytes)) }).map(drop)
}

/// Makes the numbers in that header little-endian on every machine.
pub(super) fn tun_set_little_endian(tun: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int, which lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETLE, ptr::from_ref(&on)) }).map(drop)
}

/// `SO_MEMINFO` (Linux 4.12), how many numbers it gives, and which of them is the count of dropped datagrams.
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_NUMBERS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// How many datagrams the socket has dropped because its buffer was full, since it was made, modulo 2^32.
pub(super) fn dropped_by(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut numbers = [0u32; MEMINFO_NUMBERS];
    let mut bytes =
        libc::socklen_t::try_from(size_of_val(&numbers)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `bytes` bytes to `numbers`, which has as many, and how many to `bytes`; both live
    // until the call returns.
    check(unsafe {
        let (level, to) = (libc::SOL_SOCKET, numbers.as_mut_ptr().cast());
        libc::getsockopt(socket.as_raw_fd(), level, SO_MEMINFO, to, &raw mut bytes)
    })?;
    Ok(numbers[MEMINFO_DROPS])
}

/// `_IOW('T', 212, int)`, which `libc` does not have.
const TUNSETSNDBUF: libc::Ioctl = 0x4004_54d4u32 as libc::Ioctl;

/// Makes the device one that only this user may attach to, and whoever has `CAP_NET_ADMIN`. `EINVAL`: there is no such
/// user in this user namespace.
pub(super) fn tun_set_owner(tun: BorrowedFd<'_>, user: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes a number, no pointer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user)) }).map(drop)
}

/// Bounds what the queue's frames that are under way take of the kernel's memory, in bytes.
pub(super) fn tun_set_send_buffer(tun: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int, which lives until the call returns.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETSNDBUF, ptr::from_ref(&bytes)) }).map(drop)
}

/// `BPF_PROG_LOAD` and `BPF_LINK_CREATE` of `enum bpf_cmd`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: u32 = 46;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes what follows as zero.
#[repr(C, align(8))]
struct LoadProgram {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C, align(8))]
struct CreateLink {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

/// Loads a program for packets that come in at a device; the kernel checks it.
pub(super) fn bpf_load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..11].copy_from_slice(b"weft_inject");
    let attributes = LoadProgram {
        kind: SCHED_CLS,
        instructions: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        code: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
        interface: 0,
        expected_attach: TCX_INGRESS,
    };
    // SAFETY: `code` and `license` point to `program`, whose length is given, and to a constant that ends with a zero;
    // both live until the call returns and are only read. `Instruction` is laid out as the kernel's `bpf_insn`.
    unsafe { bpf(BPF_PROG_LOAD, &attributes) }
}

/// Puts a program on what comes in at the device of this index; it stays as long as the returned file is open.
pub(super) fn bpf_attach_ingress(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let program = u32::try_from(program.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = CreateLink { program, interface, attach: TCX_INGRESS, flags: 0 };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf(BPF_LINK_CREATE, &attributes) }
}

/// One `bpf` call that makes a file.
///
/// # Safety
/// Addresses in `attributes` must be good for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes of the attributes as they have; what they point to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<T>()) };
    let file = i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    check(file)?;
    // SAFETY: the kernel has just made this file for us, nobody else knows of it. It closes on exec.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// Lets the kernel and routers fragment what the socket sends (no DF bit, no path MTU kept), as the kernel's VXLAN
/// device does.
pub(super) fn allow_fragments(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, option, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
    };
    // SAFETY: both options read one int, which lives until the call returns; its length is given.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, ptr::from_ref(&value).cast(), INT_BYTES)
    })
    .map(drop)
}

const INT_BYTES: libc::socklen_t = 4;
const _: () = assert!(size_of::<libc::c_int>() == 4);

/// What a batch of `sendmmsg` or `recvmmsg` needs besides the payloads; allocated once.
struct Batch {
    headers: Box<[libc::mmsghdr]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: mmsghdr is a C structure of integers and raw pointers, for which all zeros are valid (null, empty).
        let empty: libc::mmsghdr = unsafe { mem::zeroed() };
        Self {
            headers: vec![empty; BATCH].into(),
            names: vec![Name::EMPTY; BATCH].into(),
            controls: vec![Control::EMPTY; BATCH].into(),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

/// Sends batches of datagrams through one socket. Keeps memory only, no state.
#[derive(Debug)]
pub(super) struct Sender(Batch);

// SAFETY: the raw pointers in the headers are set anew by each call before the kernel follows them, and never followed
// otherwise, so it does not matter which thread made the call before.
unsafe impl Send for Sender {}

impl Sender {
    pub(super) fn new() -> Self {
        Self(Batch::new())
    }

    /// Sends messages in one system call, the first [`BATCH`] of them at most; returns how many the kernel took. An
    /// error concerns the first message; `EINTR` is retried.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> io::Result<usize> {
        let Batch { headers, names, controls } = &mut self.0;
        let slots = headers.iter_mut().zip(names.iter_mut().zip(controls.iter_mut()));
        let mut count = 0;
        for (message, (header, (name, control))) in messages.iter().zip(slots) {
            let header = &mut header.msg_hdr;
            header.msg_namelen = name.set(message.to);
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_iov = message.parts.as_ptr().cast::<libc::iovec>().cast_mut();
            header.msg_iovlen = message.parts.len() as _;
            let length = write_control(control, message);
            header.msg_control = if length == 0 { ptr::null_mut() } else { ptr::from_mut(control).cast() };
            header.msg_controllen = length as _;
            count += 1;
        }
        loop {
            // SAFETY: `headers` has at least `count` entries, filled above. Each points to an address and control
            // messages in `self`, which this call borrows mutably, with their lengths, and to the slices of a message,
            // which `messages` borrows; `IoSlice` has the layout of `iovec` (its documentation). All of them live
            // until the call returns. The kernel writes nothing but `msg_len`.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT as _)
            };
            match check(sent) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }
}

/// Writes what the kernel is to know about one message; returns the length, 0 when there is nothing to say.
fn write_control(control: &mut Control, message: &Message<'_>) -> usize {
    let mut length = 0;
    if let Some(segment) = message.segment {
        length = control.push(length, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    if message.ecn & ECN != 0 {
        let (level, kind) = match message.to {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        length = control.push(length, level, kind, &i32::from(message.ecn & ECN).to_ne_bytes());
    }
    length
}

/// The two ECN bits of the traffic class (RFC 3168 section 5).
const ECN: u8 = 0b11;

/// Receives batches of datagrams from one socket.
#[derive(Debug)]
pub(super) struct Receiver {
    batch: Batch,
    slices: Box<[libc::iovec]>,
}

// SAFETY: as for `Sender`.
unsafe impl Send for Receiver {}

impl Receiver {
    pub(super) fn new() -> Self {
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self { batch: Batch::new(), slices: vec![empty; BATCH].into() }
    }

    /// Receives what is there in one system call, one datagram per buffer and [`BATCH`] at most, and describes the
    /// n-th buffer in the n-th entry of `out`. Does not wait: `WouldBlock` if there is nothing.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: &mut [Box<[u8]>],
        out: &mut Vec<Received>,
    ) -> io::Result<()> {
        out.clear();
        let Batch { headers, names, controls } = &mut self.batch;
        let slots = headers.iter_mut().zip(names.iter_mut().zip(controls.iter_mut()));
        let mut count = 0;
        for ((buffer, slice), (header, (name, control))) in
            buffers.iter_mut().zip(&mut self.slices).zip(slots)
        {
            *slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut header.msg_hdr;
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = Name::CAPACITY;
            header.msg_iov = slice;
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(control).cast();
            header.msg_controllen = Control::CAPACITY as _;
            count += 1;
        }
        // SAFETY: `headers` has at least `count` entries, filled above. Each points to room for an address and for
        // control messages and to one slice, all in `self`, which this call borrows mutably, with their lengths; the
        // slice covers exactly one of `buffers`, borrowed mutably too and each used once. All of them live until the
        // call returns. No time limit is given.
        let received = check(unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags, ptr::null_mut())
        })?;
        for (header, (name, control)) in headers.iter().zip(names.iter().zip(controls.iter())).take(received)
        {
            out.push(describe(header, name, control));
        }
        Ok(())
    }
}

fn describe(header: &libc::mmsghdr, name: &Name, control: &Control) -> Received {
    let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let from = name.get(header.msg_hdr.msg_namelen).unwrap_or(nobody);
    // One that did not fit is of no use; nobody sends an empty one, so that length says it.
    let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
    let len = if whole { header.msg_len as usize } else { 0 };
    let mut received = Received { len, from, segment: None, ecn: 0 };
    #[allow(clippy::unnecessary_cast, reason = "u32 with musl")]
    let controls = header.msg_hdr.msg_controllen as usize;
    for (level, kind, data) in control.iter(controls) {
        let Some(value) = number(data) else { continue };
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => received.segment = u16::try_from(value).ok().filter(|s| *s > 0),
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                received.ecn = value.to_le_bytes()[0] & ECN;
            }
            _ => {}
        }
    }
    received
}

/// A count from a system call, or its error.
fn check(result: libc::c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The layouts that the casts above rely on.
const _: () = {
    assert!(size_of::<IoSlice<'_>>() == size_of::<libc::iovec>());
    assert!(align_of::<IoSlice<'_>>() == align_of::<libc::iovec>());
};
