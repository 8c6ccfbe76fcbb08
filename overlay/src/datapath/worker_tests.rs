use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Condvar, Mutex};
use std::thread::JoinHandle;

use nix::errno::Errno;

use super::super::Peer;
use super::super::io::Port;
use super::super::packets::{self, Packet, VNET_BYTES};
use super::super::socket::Message;
use super::super::split::Pieces;
use super::super::table::Uplink;
use super::super::wait::wait;
use super::*;
use crate::types::{Mtu, Vni, VtepMac};

const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];
const MTU: u16 = 1450;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Long enough for a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(20);

/// What a worker sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    socket: u32,
    to: SocketAddr,
    segment: Option<u16>,
    ecn: u8,
    bytes: Vec<u8>,
}

/// Bytes, `UDP_GRO`, sender, ECN bits.
type Arriving = (Vec<u8>, Option<u16>, SocketAddr, u8);
/// Why something is refused, if it is.
type Refuse<T> = Option<fn(&T) -> Option<Errno>>;

/// The kernel's side of both the device and the sockets.
#[derive(Default)]
struct Kernel {
    to_read: VecDeque<io::Result<Vec<u8>>>,
    written: Vec<Vec<u8>>,
    to_receive: VecDeque<io::Result<Arriving>>,
    sent: Vec<Sent>,
    /// Whether the worker sleeps, having found nothing to do.
    asleep: bool,
    refuse: Refuse<Sent>,
    refuse_write: Refuse<[u8]>,
    /// Whether super-frames can be sent whole; they are among `sent` then, without a socket.
    injects: bool,
    overflows: u32,
}

struct Shore {
    kernel: Mutex<Kernel>,
    changed: Condvar,
    work: EventFd,
}

impl Shore {
    /// Does something on the kernel's side, and lets everybody look.
    fn with<T>(&self, change: impl FnOnce(&mut Kernel) -> T) -> T {
        let result = change(&mut self.kernel.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn wait(&self, what: &str, condition: impl Fn(&Kernel) -> bool) {
        let kernel = self.kernel.lock().unwrap();
        let (_kernel, timeout) = self.changed.wait_timeout_while(kernel, LIMIT, |k| !condition(k)).unwrap();
        assert!(!timeout.timed_out(), "not within {LIMIT:?}: {what}");
    }
}

/// The worker's side of it.
#[derive(Clone)]
struct Memory(Arc<Shore>);

impl Port for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(bytes) = self.0.with(|kernel| kernel.to_read.pop_front()) else { return Ok(None) };
        let bytes = bytes?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(Some(bytes.len()))
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.0.with(|kernel| {
            if let Some(errno) = kernel.refuse_write.and_then(|refuse| refuse(&bytes)) {
                return Err(errno.into());
            }
            kernel.written.push(bytes);
            Ok(())
        })
    }
}

impl Wire for Memory {
    fn sockets(&self) -> u32 {
        4
    }

    fn receive(&mut self, buffers: &mut [Box<[u8]>], out: &mut Vec<Received>) -> io::Result<usize> {
        out.clear();
        self.0.with(|kernel| {
            for buffer in buffers {
                let Some(next) = kernel.to_receive.pop_front() else { break };
                let (bytes, segment, from, ecn) = next?;
                buffer[..bytes.len()].copy_from_slice(&bytes);
                out.push(Received { len: bytes.len(), from, segment, ecn });
            }
            Ok(out.len())
        })
    }

    fn overflows(&self) -> u32 {
        self.0.with(|kernel| kernel.overflows)
    }

    fn send(&mut self, socket: u32, messages: &[Message<'_>]) -> (usize, Option<io::Error>) {
        self.0.with(|kernel| {
            for (n, message) in messages.iter().enumerate() {
                let bytes = message.parts.iter().flat_map(|part| part.iter().copied()).collect();
                let sent = Sent { socket, to: message.to, segment: message.segment, ecn: message.ecn, bytes };
                if let Some(errno) = kernel.refuse.and_then(|refuse| refuse(&sent)) {
                    return (n, Some(errno.into()));
                }
                kernel.sent.push(sent);
            }
            (messages.len(), None)
        })
    }

    fn send_plain(&mut self, socket: u32, message: &Message<'_>) -> (usize, Option<io::Error>) {
        let mut pieces = Pieces::new(message.parts);
        for done in 0.. {
            let mut parts = Vec::new();
            if pieces.next(message.segment.unwrap().into(), &mut parts) == 0 {
                return (done, None);
            }
            if let (0, error) = self.send(socket, &[Message { parts: &parts, segment: None, ..*message }]) {
                return (done, error);
            }
        }
        unreachable!("a message has an end")
    }

    fn source(&self, socket: u32) -> Option<SocketAddrV4> {
        let port = 50_000 + u16::try_from(socket).unwrap();
        self.0.with(|kernel| kernel.injects).then(|| SocketAddrV4::new([192, 0, 2, 1].into(), port))
    }

    fn inject(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let to = ([bytes[54], bytes[55], bytes[56], bytes[57]], packets::be16(&bytes, 60));
        let sent = Sent { socket: WHOLE, to: to.into(), segment: None, ecn: bytes[39], bytes };
        self.0.with(|kernel| {
            if let Some(errno) = kernel.refuse.and_then(|refuse| refuse(&sent)) {
                return Err(errno.into());
            }
            kernel.sent.push(sent);
            Ok(())
        })
    }
}

/// The peer that there is no direct way to.
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));

/// In place of a socket.
const WHOLE: u32 = u32::MAX;

impl Sleep<Memory> for Memory {
    fn sleep(&self, _wire: &Memory, wake: &EventFd, timeout: Option<Duration>) -> io::Result<bool> {
        let idle = self.0.with(|kernel| {
            kernel.asleep = kernel.to_read.is_empty() && kernel.to_receive.is_empty();
            kernel.asleep
        });
        if !idle {
            return Ok(false);
        }
        let ready = wait(&self.0.work, &self.0.work, wake, timeout)?;
        self.0.work.clear();
        self.0.with(|kernel| kernel.asleep = false);
        Ok(ready.woken)
    }
}

/// A worker on its thread, and the other side of everything it has. It is stopped when dropped.
struct Rig {
    shore: Arc<Shore>,
    table: Arc<Shared>,
    capture: Arc<Capture>,
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Peers with the hardware addresses 2:0:0:0:0:2 and following, at 192.0.2.2 and following.
fn table(count: u8) -> Table {
    let peer = |n: u8| {
        let mac = VtepMac::try_from([2, 0, 0, 0, 0, n]).unwrap();
        (format!("10.5.{n}.0/24").parse().unwrap(), Peer { mac, public_ip: [192, 0, 2, n].into() })
    };
    Table::build((2..2 + count).map(peer), &Table::default())
}

impl Rig {
    fn new(spin: Duration) -> Self {
        Self::with(spin, false)
    }

    fn with(spin: Duration, inject: bool) -> Self {
        let shore = Arc::new(Shore {
            kernel: Mutex::new(Kernel { injects: inject, ..Kernel::default() }),
            changed: Condvar::new(),
            work: EventFd::new().unwrap(),
        });
        let uplink = |peer| (peer != FAR).then_some(Uplink { interface: 7, mtu: 1500 });
        let (table, capture) =
            (Arc::new(Shared::new(table(2).with_uplinks(uplink))), Arc::new(Capture::new()));
        let (stop, wake) = (Arc::new(AtomicBool::new(false)), Arc::new(EventFd::new().unwrap()));
        let counters = Arc::new(Counters::default());
        let mtu = Mtu::try_from(u64::from(MTU)).unwrap();
        let mac = VtepMac::try_from(OURS).unwrap();
        let encap = EncapSettings { vni: Vni::DEFAULT, mtu, mac, sockets: 4, segments: 64, inject };
        let decap = DecapSettings { vni: Vni::DEFAULT, mtu, mac, source_check: true, udp_super_frames: true };
        let common = Common {
            table: table.clone(),
            capture: capture.clone(),
            stop: stop.clone(),
            cuts: Arc::default(),
        };
        let ends = (Memory(shore.clone()), Memory(shore.clone()));
        let told = (counters.clone(), wake.clone());
        let thread =
            std::thread::spawn(move || Worker::new(ends, encap, decap, (spin, 8472), common, told).run());
        Self { shore, table, capture, stop, wake, counters, thread: Some(thread) }
    }

    /// Frames that the host sends through the device, all there at once.
    fn host_sends(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.shore.with(|kernel| kernel.to_read.extend(frames.into_iter().map(Ok)));
        self.shore.work.wake();
    }

    /// Frames that arrive from the first peer, one datagram each.
    fn peer_sends(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        let datagram =
            |frame: Vec<u8>| Ok(([&HEADER, &frame[..]].concat(), None, ([192, 0, 2, 2], 5000).into(), 0));
        self.shore.with(|kernel| kernel.to_receive.extend(frames.into_iter().map(datagram)));
        self.shore.work.wake();
    }

    /// Waits until the worker has nothing left to do and sleeps.
    fn settle(&self) {
        let idle = |k: &Kernel| k.asleep && k.to_read.is_empty() && k.to_receive.is_empty();
        self.shore.wait("the worker sleeps", idle);
    }

    fn sent(&self) -> Vec<Sent> {
        self.settle();
        self.shore.with(|kernel| std::mem::take(&mut kernel.sent))
    }

    fn written(&self) -> Vec<Vec<u8>> {
        self.settle();
        self.shore.with(|kernel| std::mem::take(&mut kernel.written))
    }

    fn stop(&mut self) -> Option<io::Result<()>> {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.wake();
        self.thread.take().map(|thread| thread.join().unwrap())
    }

    fn dropped(&self, reason: Drop) -> u64 {
        self.counters.snapshot().dropped(reason)
    }
}

impl std::ops::Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// The inner frames of what was sent.
fn inner(sent: &[Sent]) -> Vec<Vec<u8>> {
    let cut = |sent: &Sent| {
        let length = sent.segment.map_or(sent.bytes.len(), usize::from);
        sent.bytes.chunks(length).map(|datagram| datagram[8..].to_vec()).collect::<Vec<_>>()
    };
    sent.iter().flat_map(cut).collect()
}

fn out(packet: Packet) -> Packet {
    Packet { source: OURS, destination: [2, 0, 0, 0, 0, 2], ..packet }
}

fn back(packet: Packet) -> Packet {
    Packet { source: [2, 0, 0, 0, 0, 2], destination: OURS, ..packet }
}

fn tcp(bytes: usize) -> Packet {
    Packet { tcp: true, payload: vec![7; bytes], ..Packet::default() }
}

fn udp(bytes: usize) -> Packet {
    Packet { payload: vec![9; bytes], ..Packet::default() }
}

#[test]
fn a_super_frame_leaves_as_datagrams_to_its_peer() {
    let rig = Rig::new(Duration::ZERO);
    let packet = out(Packet { tos: 2, ..tcp(10_000) });
    rig.host_sends([packet.super_frame(1400)]);
    let sent = rig.sent();
    assert_eq!(inner(&sent), packets::on_the_wire(&packet.super_frame(1400)));
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].to, sent[0].segment, sent[0].ecn), (([192, 0, 2, 2], 8472).into(), Some(1462), 2));
    let counted = rig.counters.snapshot();
    let bytes = 10_000 + 8 * 54;
    assert_eq!((counted.encap.frames, counted.encap.super_frames, counted.encap.bytes), (8, 1, bytes));
    let peer = rig.table.current().entry(0).counters.snapshot();
    assert_eq!((peer.sent_frames, peer.sent_bytes, peer.dropped), (8, bytes, 0));
    assert_eq!(counted.dropped_total(), 0);
}

#[test]
fn datagrams_of_a_flow_arrive_as_one_super_frame() {
    let rig = Rig::new(Duration::ZERO);
    let packet = back(tcp(10_000));
    let frames = packets::on_the_wire(&packet.super_frame(1400));
    rig.peer_sends(frames.clone());
    let written = rig.written();
    assert_eq!(written.iter().flat_map(|write| packets::on_the_wire(write)).collect::<Vec<_>>(), frames);
    let counted = rig.counters.snapshot();
    assert_eq!((counted.decap.frames, counted.decap.super_frames), (8, written.len() as u64));
    let peer = rig.table.current().entry(0).counters.snapshot();
    assert_eq!((peer.received_frames, peer.received_bytes), (8, 10_000 + 8 * 54));
}

#[test]
fn a_super_frame_of_the_peers_kernel_counts_as_the_packets_it_is() {
    let rig = Rig::new(Duration::ZERO);
    rig.peer_sends([back(tcp(14_100)).unfilled().0]);
    rig.settle();
    let peer = rig.table.current().entry(0).counters.snapshot();
    let counted = rig.counters.snapshot().decap;
    assert_eq!((counted.frames, peer.received_frames), (10, 10));
    assert_eq!((counted.bytes, peer.received_bytes), (14_100 + 10 * 54, 14_100 + 10 * 54));
}

#[test]
fn every_flow_keeps_its_order_through_many_batches_both_ways() {
    let rig = Rig::new(Duration::from_micros(50));
    let (mut there, mut here) = (Vec::new(), Vec::new());
    for id in 0..600 {
        let one = Packet { id, port: id % 7, ..udp(usize::from(id % 3) * 50 + 10) };
        there.push(out(one.clone()));
        here.push(Packet { dont_fragment: false, ..back(one) });
    }
    for (there, here) in there.chunks(150).zip(here.chunks(150)) {
        rig.host_sends(there.iter().map(Packet::partial));
        rig.peer_sends(here.iter().map(Packet::frame));
    }
    packets::assert_same_flows(&inner(&rig.sent()), &there.iter().map(Packet::frame).collect::<Vec<_>>());
    let written: Vec<_> = rig.written().iter().flat_map(|write| packets::on_the_wire(write)).collect();
    packets::assert_same_flows(&written, &here.iter().map(Packet::frame).collect::<Vec<_>>());
    let counted = rig.counters.snapshot();
    assert_eq!((counted.encap.frames, counted.decap.frames, counted.dropped_total()), (600, 600, 0));
    assert!(counted.sends < 200 && counted.receives < 300, "batched: {counted:?}");
}

#[test]
fn what_is_too_long_is_answered_at_a_bounded_rate() {
    let rig = Rig::new(Duration::ZERO);
    rig.host_sends([out(udp(3000)).partial()]);
    let written = rig.written();
    assert_eq!(written.len(), 1);
    assert_eq!(written[0][..VNET_BYTES], [0; VNET_BYTES]);
    assert_eq!(written[0][VNET_BYTES..][..6], OURS);
    assert_eq!(written[0][VNET_BYTES + 34..][..2], [3, 4]);
    assert!(rig.sent().is_empty());
    let counted = rig.counters.snapshot();
    assert_eq!((counted.dropped(Drop::TooBig), counted.too_big_signalled, counted.tap_writes), (1, 1, 1));
    assert_eq!(rig.table.current().entry(0).counters.snapshot().dropped, 1);

    let mut bucket = Bucket { since: Instant::now(), used: 0 };
    assert_eq!((0..1000).filter(|_| bucket.take()).count(), TOO_BIG_PER_S as usize);
    bucket.since -= Duration::from_secs(1);
    assert!(bucket.take());
}

#[test]
fn a_question_for_a_peers_address_is_answered() {
    let rig = Rig::new(Duration::ZERO);
    let mut request = vec![0; VNET_BYTES];
    request.extend([0xff; 6]);
    request.extend(OURS);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(OURS);
    request.extend([10, 5, 1, 0, 0, 0, 0, 0, 0, 0, 10, 5, 3, 0]);
    rig.host_sends([request]);
    let written = rig.written();
    assert_eq!(written.len(), 1);
    assert_eq!(written[0][VNET_BYTES..][..6], OURS);
    assert_eq!(written[0][VNET_BYTES + 22..][..10], [2, 0, 0, 0, 0, 3, 10, 5, 3, 0]);
    assert_eq!((rig.counters.snapshot().answered_arp, rig.counters.snapshot().dropped_total()), (1, 0));
}

mod whole {
    use super::*;

    /// Three packets of one flow, the one in the middle a super-frame of 8.
    fn flow(packet: &Packet) -> [Vec<u8>; 3] {
        [100, 10_000, 200].map(|bytes| {
            let packet = Packet { payload: tcp(bytes).payload, ..packet.clone() };
            if bytes == 10_000 { packet.super_frame(1400) } else { packet.partial() }
        })
    }

    fn sockets(sent: &[Sent]) -> Vec<u32> {
        sent.iter().map(|sent| sent.socket).collect()
    }

    #[test]
    fn a_super_frame_leaves_in_its_place_in_the_flow() {
        let rig = Rig::with(Duration::ZERO, true);
        let [before, super_frame, after] = flow(&out(tcp(0)));
        rig.host_sends([before, super_frame.clone(), after]);
        let sent = rig.sent();
        let socket = sent[0].socket;
        assert_eq!(sockets(&sent), [socket, WHOLE, socket]);
        assert_eq!(sent[1].to, sent[0].to);
        // The flow has one source port, however it leaves.
        assert_eq!(u32::from(packets::be16(&sent[1].bytes, 58)), 50_000 + socket);
        assert_eq!(sent[1].bytes[26..30], 7u32.to_ne_bytes());
        assert_eq!(sent[1].bytes[66..74], HEADER);
        assert_eq!(sent[1].bytes[74..], super_frame[VNET_BYTES..]);
        let counted = rig.counters.snapshot();
        let peer = rig.table.current().entry(0).counters.snapshot();
        let bytes = 100 + 10_000 + 200 + 10 * 54;
        assert_eq!((counted.injects, counted.encap.frames, counted.encap.bytes), (1, 10, bytes));
        assert_eq!((peer.sent_frames, peer.sent_bytes, counted.dropped_total()), (10, bytes, 0));
    }

    #[test]
    fn without_a_direct_way_to_the_peer_it_is_cut() {
        let rig = Rig::with(Duration::ZERO, true);
        let mut packet = out(tcp(10_000));
        packet.destination[5] = 3;
        rig.host_sends([packet.super_frame(1400)]);
        let sent = rig.sent();
        assert_eq!((sent.len(), sent[0].segment), (1, Some(8 + 54 + 1400)));
        assert_eq!(rig.counters.snapshot().injects, 0);
    }

    #[test]
    fn a_full_device_loses_a_frame_and_a_broken_one_is_given_up() {
        let rig = Rig::with(Duration::ZERO, true);
        let super_frame = out(tcp(10_000)).super_frame(1400);
        for (errno, reason) in [(Errno::EAGAIN, Drop::SendFull), (Errno::EIO, Drop::SendFailed)] {
            rig.shore.with(|kernel| {
                kernel.refuse = match errno {
                    Errno::EIO => Some(|sent| (sent.socket == WHOLE).then_some(Errno::EIO)),
                    _ => Some(|sent| (sent.socket == WHOLE).then_some(Errno::EAGAIN)),
                };
            });
            rig.host_sends([super_frame.clone()]);
            assert!(rig.sent().is_empty());
            assert_eq!(rig.dropped(reason), 8);
            rig.shore.with(|kernel| kernel.refuse = None);
            rig.host_sends([super_frame.clone()]);
            let sent = rig.sent();
            assert_eq!((sent.len(), sent[0].socket == WHOLE), (1, errno == Errno::EAGAIN));
        }
        assert_eq!(rig.table.current().entry(0).counters.snapshot().dropped, 16);
    }
}

mod refusals {
    use super::*;

    fn uncut(sent: &Sent) -> Option<Errno> {
        sent.segment.map(|_| Errno::EIO)
    }

    #[test]
    fn what_the_kernel_does_not_cut_leaves_one_by_one() {
        let rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| kernel.refuse = Some(uncut));
        let packet = out(tcp(10_000));
        rig.host_sends([packet.super_frame(1400), out(udp(5)).partial()]);
        let sent = rig.sent();
        assert!(sent.iter().all(|sent| sent.segment.is_none()));
        let mut expected = packets::on_the_wire(&packet.super_frame(1400));
        expected.push(out(udp(5)).frame());
        packets::assert_same_flows(&inner(&sent), &expected);
        let counted = rig.counters.snapshot();
        assert_eq!((counted.gso_fallbacks, counted.encap.frames, counted.dropped_total()), (1, 9, 0));
        // Refused, one by one, and the other flow's; the latter two go out in one call each.
        assert_eq!(counted.sends, 3);
    }

    #[test]
    fn also_then_some_may_be_refused_and_are_counted() {
        let rig = Rig::new(Duration::ZERO);
        // The third segment and what follows.
        rig.shore.with(|kernel| {
            kernel.refuse = Some(|sent| uncut(sent).or((sent.bytes[8 + 40] >= 10).then_some(Errno::EAGAIN)));
        });
        rig.host_sends([out(tcp(10_000)).super_frame(1400)]);
        assert_eq!(rig.sent().len(), 2);
        assert_eq!((rig.counters.snapshot().encap.frames, rig.dropped(Drop::SendFull)), (2, 6));
        let peer = rig.table.current().entry(0).counters.snapshot();
        assert_eq!((peer.sent_frames, peer.dropped), (2, 6));
    }

    #[test]
    fn one_message_refused_does_not_hold_up_the_others() {
        let rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| {
            kernel.refuse = Some(|sent| match sent.bytes[8 + 35] {
                1 => Some(Errno::EPERM),
                2 => Some(Errno::ENOBUFS),
                _ => None,
            });
        });
        // The port is at 35; lengths differ, so that none is grouped with another.
        let frames = (0..5).map(|port| out(Packet { port, ..udp(100 + usize::from(port)) }).partial());
        rig.host_sends(frames);
        assert_eq!(rig.sent().len(), 3);
        assert_eq!((rig.dropped(Drop::SendFailed), rig.dropped(Drop::SendFull)), (1, 1));
        assert_eq!(rig.table.current().entry(0).counters.snapshot().dropped, 2);
    }

    #[test]
    fn a_device_that_takes_no_frame_is_counted() {
        let rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| {
            kernel.refuse_write = Some(|bytes| match bytes[VNET_BYTES + 35] {
                1 => Some(Errno::EIO),
                2 => Some(Errno::EAGAIN),
                3 => Some(Errno::ENOMEM),
                4 => Some(Errno::EINVAL),
                _ => None,
            });
        });
        rig.peer_sends((0..6).map(|port| back(Packet { port, ..udp(100) }).frame()));
        assert_eq!(rig.written().len(), 2);
        assert_eq!((rig.dropped(Drop::TapFailed), rig.dropped(Drop::TapFull)), (2, 2));
        assert_eq!(rig.counters.snapshot().decap.frames, 2);
        assert_eq!(rig.table.current().entry(0).counters.snapshot().dropped, 4);
    }

    #[test]
    fn what_the_full_socket_lost_is_counted_also_when_its_count_begins_anew() {
        let rig = Rig::new(Duration::ZERO);
        for (overflows, lost) in [(0, 0), (3, 3), (3, 3), (u32::MAX, u64::from(u32::MAX)), (1, (1 << 32) + 1)]
        {
            rig.shore.with(|kernel| kernel.overflows = overflows);
            rig.peer_sends([back(udp(7)).frame()]);
            rig.settle();
            assert_eq!(rig.dropped(Drop::ReceiveFull), lost);
        }
    }

    #[test]
    fn an_error_of_the_socket_does_not_end_the_worker() {
        let rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| kernel.to_receive.push_back(Err(Errno::EBADMSG.into())));
        rig.peer_sends([back(udp(7)).frame()]);
        assert_eq!(rig.written().len(), 1);
    }

    #[test]
    fn a_frame_that_cannot_be_read_is_counted_and_the_next_is_carried() {
        let rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| kernel.to_read.push_back(Err(Errno::EINVAL.into())));
        rig.host_sends([out(udp(7)).partial()]);
        assert_eq!((rig.sent().len(), rig.dropped(Drop::UnknownGso)), (1, 1));
    }

    #[test]
    fn a_device_of_which_nothing_can_be_read_ends_it() {
        let mut rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| kernel.to_read.extend((0..UNREADABLE).map(|_| Err(Errno::EINVAL.into()))));
        rig.shore.work.wake();
        let result = rig.thread.take().unwrap().join().unwrap();
        assert_eq!(result.unwrap_err().raw_os_error(), Some(Errno::EINVAL as i32));
    }

    #[test]
    fn a_device_that_is_gone_ends_it_with_the_reason() {
        let mut rig = Rig::new(Duration::ZERO);
        rig.shore.with(|kernel| kernel.to_read.push_back(Err(Errno::EBADFD.into())));
        rig.shore.work.wake();
        let result = rig.thread.take().unwrap().join().unwrap();
        assert_eq!(result.unwrap_err().raw_os_error(), Some(Errno::EBADFD as i32));
    }
}

#[test]
fn everything_that_came_is_carried_or_counted_as_dropped() {
    let rig = Rig::new(Duration::ZERO);
    let mut stranger = back(udp(9));
    stranger.source[5] = 77;
    let mut nobody = out(udp(9));
    nobody.destination[5] = 77;
    let mut group = out(udp(9));
    group.destination[0] = 1;
    rig.peer_sends([stranger.frame(), back(udp(9)).frame(), vec![], vec![0; 13]]);
    rig.shore.with(|kernel| {
        let from = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 3), 1));
        let spoofed = [&HEADER, &back(udp(9)).frame()[..]].concat();
        let other = [&[8, 0, 0, 0, 0, 0, 2, 0], &back(udp(9)).frame()[..]].concat();
        kernel.to_receive.extend([
            Ok((spoofed, None, from, 0)),
            Ok((other, None, from, 0)),
            Ok((vec![0; 9], None, from, 0)),
            Ok((vec![], None, from, 0)),
            Ok(([&HEADER, &back(udp(9)).frame()[..]].concat(), None, ([192, 0, 2, 2], 1).into(), 3)),
        ]);
    });
    rig.host_sends([
        nobody.whole(),
        group.whole(),
        vec![0; 3],
        out(udp(9)).partial(),
        out(tcp(99)).super_frame(0),
    ]);
    assert_eq!((rig.written().len(), rig.sent().len()), (1, 1));
    let counted = rig.counters.snapshot();
    let drops: Vec<(&str, u64)> =
        counted.drops.iter().filter(|(_, n)| **n > 0).map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(
        drops,
        [
            ("bad_vxlan", 2),
            ("ecn_mismatch", 1),
            ("flood", 1),
            ("malformed", 3),
            ("spoofed_source", 1),
            ("unknown_destination", 1),
            ("unknown_gso", 1),
            ("unknown_source", 1),
            ("wrong_vni", 1),
        ]
    );
    let peer = rig.table.current().entry(0).counters.snapshot();
    assert_eq!(peer.dropped, 3, "spoofed, marked, and not to be cut");
}

#[test]
fn a_new_table_takes_effect_with_the_next_batch() {
    let rig = Rig::new(Duration::ZERO);
    rig.host_sends([out(udp(9)).partial()]);
    assert_eq!(rig.sent()[0].to, ([192, 0, 2, 2], 8472).into());
    let mac = VtepMac::try_from([2, 0, 0, 0, 0, 2]).unwrap();
    let moved = Peer { mac, public_ip: [198, 51, 100, 1].into() };
    let subnet = "10.5.2.0/24".parse().unwrap();
    rig.table.publish(Table::build([(subnet, moved)].into_iter(), &rig.table.current()));
    rig.host_sends([out(udp(9)).partial()]);
    assert_eq!(rig.sent()[0].to, ([198, 51, 100, 1], 8472).into());
    rig.peer_sends([back(udp(9)).frame()]);
    assert!(rig.written().is_empty());
    assert_eq!(rig.dropped(Drop::SpoofedSource), 1, "from where it was before");
    assert_eq!(
        rig.table.current().entry(0).counters.snapshot().sent_frames,
        2,
        "the peer keeps its counters"
    );
}

#[test]
fn carrying_what_was_found_while_spinning_is_not_spinning() {
    // It spins from the first packet on if that comes within four times as long.
    const CAP: Duration = Duration::from_secs(2);
    const CARRYING: Duration = Duration::from_secs(1);
    let rig = Rig::new(CAP);
    let start = Instant::now();
    // Soon after falling asleep, so that it spins from then on.
    rig.settle();
    rig.host_sends([out(udp(1)).partial()]);
    rig.shore.wait("the first is sent", |kernel| kernel.sent.len() == 1);
    rig.shore.with(|kernel| {
        kernel.refuse = Some(|_| {
            std::thread::sleep(CARRYING);
            None
        });
    });
    rig.host_sends([out(udp(2)).partial()]);
    assert_eq!(rig.sent().len(), 2);
    let spun = Duration::from_nanos(rig.counters.snapshot().spin_ns);
    let all = start.elapsed();
    assert!(!spun.is_zero() && spun + CARRYING <= all, "{spun:?} of {all:?}");
}

#[test]
fn a_worker_that_sleeps_is_stopped() {
    for spin in [Duration::ZERO, Duration::from_micros(50)] {
        let mut rig = Rig::new(spin);
        rig.settle();
        assert!(rig.stop().unwrap().is_ok());
        // At once asleep, because nothing had come: it looked once and did not spin.
        let counted = rig.counters.snapshot();
        assert_eq!((counted.spins, counted.spin_ns), (0, 0));
        assert!(counted.polls == 1 && counted.receives <= 2, "{counted:?}");
    }
}

#[test]
fn a_worker_told_to_stop_before_it_sleeps_does_not_sleep() {
    let mut rig = Rig::new(Duration::ZERO);
    rig.wake.wake();
    assert!(rig.stop().unwrap().is_ok());
}

#[tokio::test]
async fn a_capture_shows_frames_of_both_ways_without_their_offload_header() {
    let rig = Rig::new(Duration::ZERO);
    let mut reader = rig.capture.start(100_000).unwrap();
    let (first, second) = (out(tcp(5000)), back(udp(20)));
    rig.host_sends([first.super_frame(1000)]);
    rig.settle();
    rig.peer_sends([second.frame()]);
    rig.settle();
    let mut frames = Vec::new();
    while frames.len() < 2 {
        reader.receive(&mut frames, 10).await;
    }
    assert_eq!((frames[0].direction, frames[1].direction), (Direction::Outbound, Direction::Inbound));
    assert_eq!((&frames[0].data, &frames[1].data), (&first.unfilled().0, &second.frame()));
    assert!(frames.iter().all(|frame| frame.comment.is_empty()));
    assert!(frames.iter().all(|frame| frame.time > Duration::from_secs(1 << 30)));
}

#[tokio::test]
async fn a_capture_shows_what_goes_no_further_and_why() {
    let rig = Rig::new(Duration::ZERO);
    let mut reader = rig.capture.start(100_000).unwrap();
    let nobodys = Packet { destination: [2, 0, 0, 0, 0, 77], ..out(udp(9)) };
    let strangers = Packet { source: [2, 0, 0, 0, 0, 77], ..back(udp(9)) };
    rig.host_sends([nobodys.whole(), out(udp(3000)).whole()]);
    rig.settle();
    let known = back(udp(1)).frame();
    // In one buffer, as the kernel glues them: the first is fine.
    let glued = [&HEADER, &back(udp(9)).frame()[..], &HEADER, &strangers.frame()[..]].concat();
    let segment = u16::try_from(glued.len() / 2).unwrap();
    rig.shore.with(|kernel| {
        let from = ([192, 0, 2, 2], 5000).into();
        kernel.to_receive.extend([
            Ok((glued, Some(segment), from, 0)),
            Ok((vec![7; 20], None, from, 0)),
            Ok(([&HEADER, &known[..]].concat(), None, ([192, 0, 2, 3], 5000).into(), 0)),
        ]);
    });
    rig.shore.work.wake();
    rig.settle();
    let mut frames = Vec::new();
    while frames.len() < 6 {
        reader.receive(&mut frames, 10).await;
    }
    let dropped: Vec<_> = frames.iter().filter(|f| !f.comment.is_empty()).collect();
    let expected = [
        ("dropped: unknown_destination", nobodys.frame()),
        ("dropped: too_big", out(udp(3000)).frame()),
        ("dropped: unknown_source, from 192.0.2.2:5000", strangers.frame()),
        ("dropped: bad_vxlan, from 192.0.2.2:5000", vec![7; 20]),
        ("dropped: spoofed_source, from 192.0.2.3:5000", known),
    ];
    assert_eq!(dropped.len(), expected.len());
    for (frame, (comment, data)) in dropped.iter().zip(&expected) {
        assert_eq!((frame.comment.as_str(), &frame.data), (*comment, data));
    }
}
