//! Sends frames through the real path before the workers run, so that what does not work is said at start and not
//! found out by users: a burst from one of the sending sockets to our own port, and an ARP probe through the device.
//!
//! ```text
//!   Transmit ── 3 datagrams, UDP_SEGMENT ──▶ lo ──▶ packet filter ──▶ Receive     a burst of our VNI, a random nonce
//!   Tap ── ARP probe for the device's own address ──▶ kernel ── ARP reply ──▶ Tap
//!   Tap ── super-frames for a station that does not exist ──▶ kernel, which drops them unseen
//! ```
//!
//! It proves that the port is ours and open to local datagrams and that the device works in both directions. It does not
//! prove that a packet filter lets datagrams of other hosts in. What else arrives meanwhile is lost; that is some
//! milliseconds, and 0.2 s for each half that fails.

mod frames;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::libc;

use super::engine::Queue;
use super::frame::Frame;
use super::inject::Inject;
use super::io::Sockets;
use super::socket::{DATAGRAM_BUFFER_BYTES, Message, Received, Refusal};
use super::tap::{FRAME_BUFFER_BYTES, Tap};
use super::tunnel::{self, Tunnelled};
use super::vnet::{self, Vnet};
use super::wait;
use crate::types::Vni;
use crate::wire::vxlan::{self, LINUX_PORT};

/// How long each half waits for what it sent.
pub const DEADLINE: Duration = Duration::from_millis(200);
/// How often the ARP probe is repeated: the kernel may need a moment after the device came up.
const REPEAT: Duration = Duration::from_millis(20);
const INJECTION_REPEAT: Duration = Duration::from_millis(2);
/// The mark that is to survive: ECT(0) (RFC 3168 section 5).
const ECN: u8 = 0b10;

/// What the test needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Our network.
    pub vni: Vni,
    /// The address that the sending sockets are bound to.
    pub local: IpAddr,
    /// The port that the receiving sockets listen at.
    pub port: u16,
    /// The device's name.
    pub device: &'a str,
    /// The device's own address; the device is up.
    pub address: Ipv4Addr,
    /// Random, so that nobody else's frame is taken for ours.
    pub nonce: u64,
}

/// What works on the underlay's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Underlay {
    /// The kernel cut the burst into datagrams (`UDP_SEGMENT`); otherwise they were sent one by one.
    pub segmentation: bool,
    /// The burst arrived in one buffer (`UDP_GRO`). Not so is no fault: it depends on the path.
    pub coalescing: bool,
    /// The outer header's ECN bits arrived as they were sent.
    pub ecn: bool,
}

/// Why the underlay's side does not work.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayFault {
    /// Sending failed.
    #[error(
        "a datagram from {from} to {to} cannot be sent: {source}; check that a local packet filter lets it out \
         (iptables -S OUTPUT; nft list ruleset), and that lo is up"
    )]
    Send {
        /// Our address.
        from: IpAddr,
        /// Our address and port.
        to: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
    /// Not everything came back.
    #[error(
        "{got} of {} datagrams sent from {from} to {to} came back within {} ms: check that a local packet filter accepts \
         UDP port {} (iptables -S INPUT; nft list ruleset), and that lo is up",
        frames::BURST,
        DEADLINE.as_millis(),
        to.port()
    )]
    Lost {
        /// How many did.
        got: usize,
        /// Our address.
        from: IpAddr,
        /// Our address and port.
        to: SocketAddr,
    },
    /// Receiving failed.
    #[error("receiving at {to}: {source}")]
    Receive {
        /// Our address and port.
        to: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
}

/// What works on the device's side, beside reading and writing frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The kernel takes TCP super-frames.
    pub tcp: bool,
    /// The kernel takes UDP super-frames (Linux 6.2).
    pub udp: bool,
}

/// Why the device's side does not work.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The device takes no frame.
    #[error("device {device} takes no frame: {source}{}", down(source))]
    Write {
        /// The device.
        device: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// No answer.
    #[error(
        "the kernel does not answer ARP for {address} on device {device} within {} ms: check that the device has this \
         address (ip addr show {device}), that net.ipv4.conf.{device}.arp_ignore and arptables allow it, and that the \
         device belongs to no bridge",
        DEADLINE.as_millis()
    )]
    Silent {
        /// The device.
        device: String,
        /// Its address.
        address: Ipv4Addr,
    },
    /// Reading failed.
    #[error("device {device} cannot be read: {source}")]
    Read {
        /// The device.
        device: String,
        /// The kernel's word.
        source: io::Error,
    },
}

fn down(source: &io::Error) -> &'static str {
    if source.raw_os_error() == Some(libc::EIO) { " (it is down; somebody else manages it?)" } else { "" }
}

/// What the test found out. As text: a sentence for each side, what works or what to check.
#[derive(Debug)]
pub struct Report {
    /// The sockets.
    pub underlay: Result<Underlay, UnderlayFault>,
    /// The TAP device.
    pub device: Result<Device, DeviceFault>,
}

impl Report {
    /// Whether both sides carry frames.
    pub fn is_good(&self) -> bool {
        self.underlay.is_ok() && self.device.is_ok()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.underlay {
            Ok(underlay) => write!(f, "{underlay}; ")?,
            Err(fault) => write!(f, "underlay FAILS: {fault}; ")?,
        }
        match &self.device {
            Ok(device) => device.fmt(f),
            Err(fault) => write!(f, "device FAILS: {fault}"),
        }
    }
}

impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = if self.segmentation { "segmented by the kernel" } else { "sent one by one" };
        let came = if self.coalescing { "in one buffer" } else { "one by one" };
        let ecn = if self.ecn { "" } else { ", without its ECN mark" };
        write!(f, "underlay works: a burst, {sent}, came back {came}{ecn}")
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |taken| if taken { "taken" } else { "refused" };
        write!(
            f,
            "device works: TCP super-frames are {}, UDP super-frames are {}",
            word(self.tcp),
            word(self.udp)
        )
    }
}

/// Tests both sides with the sockets and the device that the workers will get. Blocks for milliseconds when all is
/// well, for twice [`DEADLINE`] at most.
///
/// # Panics
/// Without queues or sending sockets.
pub fn run(setup: &Setup<'_>, queues: &mut [Queue]) -> Report {
    Report { underlay: underlay(setup, queues), device: device(setup, queues) }
}

fn underlay(setup: &Setup<'_>, queues: &mut [Queue]) -> Result<Underlay, UnderlayFault> {
    let to = SocketAddr::new(setup.local, setup.port);
    let segmentation = send_burst(&mut queues[0].sockets, setup, to)
        .map_err(|source| UnderlayFault::Send { from: setup.local, to, source })?;
    let receiving = |source| UnderlayFault::Receive { to, source };
    let mut buffers: Vec<Box<[u8]>> = (0..frames::BURST).map(|_| buffer(DATAGRAM_BUFFER_BYTES)).collect();
    let mut seen = Seen::default();
    let timer = Timer::start(DEADLINE);
    loop {
        let mut received = Vec::new();
        for queue in &mut *queues {
            queue.sockets.receive.receive(&mut buffers, &mut received).map_err(receiving)?;
            received.iter().zip(&buffers).for_each(|(what, buffer)| seen.add(what, buffer, setup));
        }
        if seen.count() == frames::BURST {
            let Seen { coalescing, marked, .. } = seen;
            return Ok(Underlay { segmentation, coalescing, ecn: marked == frames::BURST });
        }
        let Some(left) = timer.left() else {
            return Err(UnderlayFault::Lost { got: seen.count(), from: setup.local, to });
        };
        let sockets: Vec<BorrowedFd<'_>> = queues.iter().map(|queue| queue.sockets.receive.as_fd()).collect();
        wait::readable(&sockets, left).map_err(receiving)?;
    }
}

/// Sends the burst as one message, or as single datagrams when the kernel does not cut it; returns whether it did.
fn send_burst(sockets: &mut Sockets, setup: &Setup<'_>, to: SocketAddr) -> io::Result<bool> {
    let transmit = &mut sockets.transmit[0];
    let datagrams = [0, 1, 2].map(|number| frames::datagram(setup.vni, setup.nonce, number));
    let parts = datagrams.each_ref().map(|bytes| IoSlice::new(bytes));
    let segment = u16::try_from(frames::DATAGRAM_BYTES).ok();
    let message = Message { to, parts: &parts, segment, ecn: ECN };
    if transmit.segmentation() {
        match transmit.send(&[message]) {
            (_, None) => return Ok(true),
            (_, Some(error)) if Refusal::of(&error, &message) == Refusal::Segmentation => {}
            (_, Some(error)) => return Err(error),
        }
    }
    let (_, error) = transmit.send_plain(&message);
    error.map_or(Ok(false), Err)
}

/// What came back of the burst.
#[derive(Default)]
struct Seen {
    numbers: [bool; frames::BURST],
    marked: usize,
    coalescing: bool,
}

impl Seen {
    fn add(&mut self, what: &Received, buffer: &[u8], setup: &Setup<'_>) {
        let bytes = &buffer[..what.len];
        let length = what.segment.map_or(bytes.len(), usize::from).max(1);
        for datagram in bytes.chunks(length) {
            if let Some(number) = frames::number(datagram, setup.vni, setup.nonce) {
                self.numbers[usize::from(number)] = true;
                self.marked += usize::from(what.ecn == ECN);
                self.coalescing |= what.segment.is_some();
            }
        }
    }

    fn count(&self) -> usize {
        self.numbers.iter().filter(|seen| **seen).count()
    }
}

fn device(setup: &Setup<'_>, queues: &[Queue]) -> Result<Device, DeviceFault> {
    let device = || setup.device.to_owned();
    let taps: Vec<BorrowedFd<'_>> = queues.iter().map(|queue| queue.tap.as_fd()).collect();
    let probe = frames::arp_probe(setup.address, setup.nonce);
    let mut buffer = buffer(FRAME_BUFFER_BYTES);
    let timer = Timer::start(DEADLINE);
    while let Some(left) = timer.left() {
        write(&queues[0].tap, &probe).map_err(|source| DeviceFault::Write { device: device(), source })?;
        let pause = Timer::start(REPEAT.min(left));
        // Looks at least once: the answer may have come while we were not running.
        let mut left = Some(REPEAT.min(left));
        while let Some(span) = left {
            wait::readable(&taps, span).map_err(|source| DeviceFault::Read { device: device(), source })?;
            let answered = answered(setup, queues, &mut buffer);
            if answered.map_err(|source| DeviceFault::Read { device: device(), source })? {
                let takes = |frame: Vec<u8>| write(&queues[0].tap, &frame).is_ok();
                let tcp = takes(frames::tcp_super_frame(setup.nonce));
                return Ok(Device { tcp, udp: takes(frames::udp_super_frame(setup.nonce)) });
            }
            left = pause.left();
        }
    }
    Err(DeviceFault::Silent { device: device(), address: setup.address })
}

/// A station on the injecting device's link, for its test only; a documentation address (RFC 5737). It is to have a
/// neighbour entry, so that the kernel asks nobody where it is.
pub const INJECTION_TARGET: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Injects a super-frame into each queue for a station on the injecting device's own link, and sees that the program
/// sends it back to us, whole. Blocks for a moment when all is well, for [`DEADLINE`] per queue at most.
///
/// # Errors
/// What did not work, in words.
pub fn injection(queues: &[Inject], interface: u32, vni: Vni, nonce: u64) -> Result<(), String> {
    let words = |error: io::Error| format!("its self-test failed: {error}");
    let bytes = frames::tcp_super_frame(nonce);
    let frame = &bytes[vnet::LEN..];
    let ends =
        [(1, 1), (2, LINUX_PORT)].map(|(n, port)| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, n), port));
    let headers = bytes
        .first_chunk()
        .and_then(|head| Vnet::decode(head).ok())
        .zip(Frame::parse(frame))
        .and_then(|(vnet, layout)| Tunnelled::new(&vnet, &layout, frame.len(), u16::MAX))
        .map(|tunnelled| tunnelled.headers(ends.into(), vxlan::encode(vni), (0, 0), interface, frame.len()))
        .ok_or("its self-test has no frame")?;
    let expected = [&headers[tunnel::IPV4_AT..], frame].concat();
    let mut buffer = buffer(tunnel::HEADER_BYTES + FRAME_BUFFER_BYTES);
    let files: Vec<BorrowedFd<'_>> = queues.iter().map(AsFd::as_fd).collect();
    for queue in queues {
        let timer = Timer::start(DEADLINE);
        let mut arrived = false;
        while !arrived {
            let Some(left) = timer.left() else {
                return Err(format!(
                    "its self-test failed: nothing came back within {} ms",
                    DEADLINE.as_millis()
                ));
            };
            queue.write(&[IoSlice::new(&headers), IoSlice::new(frame)]).map_err(words)?;
            // Again, as the device's own queue may not be there yet when it has only just come up.
            let pause = Timer::start(INJECTION_REPEAT.min(left));
            let mut left = Some(INJECTION_REPEAT.min(left));
            while let Some(span) = left.filter(|_| !arrived) {
                wait::readable(&files, span).map_err(words)?;
                for queue in queues {
                    let length = queue.read(&mut buffer).map_err(words)?.unwrap_or(0);
                    arrived |= buffer[..length].get(tunnel::IPV4_AT..) == Some(&expected);
                }
                left = pause.left();
            }
        }
    }
    Ok(())
}

/// Reads a frame from each queue; the kernel may put the answer into any of them.
fn answered(setup: &Setup<'_>, queues: &[Queue], buffer: &mut [u8]) -> io::Result<bool> {
    for queue in queues {
        if let Some(len) = queue.tap.read(buffer)?
            && frames::is_arp_reply(&buffer[..len], setup.address, setup.nonce)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write(tap: &Tap, frame: &[u8]) -> io::Result<()> {
    tap.write(&[IoSlice::new(frame)])
}

fn buffer(bytes: usize) -> Box<[u8]> {
    vec![0; bytes].into()
}

/// How much of a span of time is left.
struct Timer(Instant);

impl Timer {
    #[expect(clippy::disallowed_methods, reason = "the test waits for answers of the kernel")]
    fn start(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// `None` when it is over.
    #[expect(clippy::disallowed_methods, reason = "see start")]
    fn left(&self) -> Option<Duration> {
        self.0.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}
