//! The data path's TAP queues, sockets and self-test on the real kernel, each test in network namespaces of its own.
//!
//! ```text
//!   here: lo, a0 10.99.0.2/24 fd99::2/64 ──── veth ──── b0 10.99.0.3/24 fd99::3/64, lo :there
//! ```

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use overlay::datapath::engine::Queue;
use overlay::datapath::holder::Holder;
use overlay::datapath::io::Sockets;
use overlay::datapath::selftest::{self, DeviceFault, Report, Setup, UnderlayFault};
use overlay::datapath::socket::{
    self, DATAGRAM_BUFFER_BYTES, Message, Receive, Refusal, SENDERS, SocketError, Transmit,
};
use overlay::datapath::tap::{self, FRAME_BUFFER_BYTES, HEADER_BYTES, Tap, TapError, TapOffloads};
use overlay::datapath::wait::{EventFd, Ready, wait};
use overlay::types::Vni;

const PORT: u16 = 8472;

/// Runs `body` on a thread with a network namespace of its own, which goes when the thread ends.
fn in_own_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own (these tests need root)");
        sh("ip link set lo up");
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The namespace on the other end of a veth pair; goes when it is closed.
struct There(File);

impl There {
    fn new(mtu: u16) -> Self {
        let current = || File::open("/proc/thread-self/ns/net").unwrap();
        let here = current();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let there = Self(current());
        setns(&here, CloneFlags::CLONE_NEWNET).unwrap();
        // The path is that of this process in the child's eyes, so the file must be given by the process's id.
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&there.0));
        sh(&format!("ip link add a0 mtu {mtu} type veth peer name b0 mtu {mtu} netns {path}"));
        let up = |device: &str, host: u8| {
            sh(&format!(
                "ip addr add 10.99.0.{host}/24 dev {device} && ip addr add fd99::{host}/64 dev {device} nodad && \
                 ip link set lo up && ip link set {device} up"
            ));
        };
        up("a0", 2);
        there.enter(|| up("b0", 3));
        there
    }

    /// Does something in that namespace. Sockets stay in the one they were made in.
    fn enter<T>(&self, body: impl FnOnce() -> T) -> T {
        let here = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
        let result = body();
        setns(&here, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }
}

/// Runs a shell command in this thread's namespace and returns what it prints.
fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tries until it yields something.
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::yield_now();
    }
}

/// Opens the sockets. A child of another test may still have the port that we had, between fork and exec.
fn sockets(local: impl Into<IpAddr>, queues: usize) -> Vec<(Receive, Vec<Transmit>)> {
    let local = local.into();
    eventually("the port", || {
        socket::open(local, PORT, queues)
            .inspect_err(|error| assert!(matches!(error, SocketError::PortTaken { .. }), "{error}"))
            .ok()
    })
}

/// Opens the device, which such a child may still have as well.
fn device(name: &str, queues: usize) -> (Vec<Tap>, TapOffloads, bool) {
    eventually("the device", || {
        tap::open(name, queues)
            .inspect_err(|error| assert!(matches!(error, TapError::InUse { .. }), "{error}"))
            .ok()
    })
}

/// Bytes that differ from place to place.
fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..=250).cycle().map(|n: u8| n ^ seed).take(bytes).collect()
}

fn one(sockets: Vec<(Receive, Vec<Transmit>)>) -> (Receive, Vec<Transmit>) {
    sockets.into_iter().next().unwrap()
}

/// A datagram as it was on the wire: bytes, ECN bits, sender, and whether it came in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Datagram {
    bytes: Vec<u8>,
    ecn: u8,
    from: SocketAddr,
    run: bool,
}

/// Receives this many datagrams.
fn collect(receive: &mut Receive, count: usize) -> Vec<Datagram> {
    let mut buffers: Vec<Box<[u8]>> = (0..8).map(|_| vec![0; DATAGRAM_BUFFER_BYTES].into()).collect();
    let (mut seen, mut out) = (Vec::new(), Vec::new());
    eventually(&format!("{count} datagrams"), || {
        receive.receive(&mut buffers, &mut out).unwrap();
        for (what, buffer) in out.iter().zip(&buffers) {
            let length = what.segment.map_or(what.len, usize::from);
            seen.extend(buffer[..what.len].chunks(length.max(1)).map(|bytes| Datagram {
                bytes: bytes.to_vec(),
                ecn: what.ecn,
                from: what.from,
                run: what.segment.is_some(),
            }));
        }
        (seen.len() >= count).then_some(())
    });
    assert_eq!(receive.receive(&mut buffers, &mut out).unwrap(), 0, "more than {count} datagrams");
    seen
}

/// What an operator sees of the device.
fn look() -> String {
    sh(
        "ip -o link show flannel.1 | cut -d: -f1; ip -4 -o addr show flannel.1; ip route show dev flannel.1 | cut -d' ' -f1-3",
    )
}

#[test]
fn a_restart_adopts_the_device_with_all_that_hangs_on_it() {
    in_own_namespace(|| {
        let (taps, offloads, adopted) = device("flannel.1", 1);
        assert_eq!((taps.len(), adopted), (1, false));
        eprintln!("offloads here: {offloads}");
        sh("ip addr add 10.32.5.0/32 dev flannel.1 && ip link set flannel.1 up && \
            ip route add 10.32.6.0/24 via 10.32.6.0 dev flannel.1 onlink");
        let link = sh("ip -d link show flannel.1");
        for words in ["tun type tap pi off vnet_hdr on", "multi_queue", "numqueues 1", "persist on"] {
            assert!(link.contains(words), "{words}: {link}");
        }
        let before = look();
        drop(taps);
        for queues in [4, 1, 2] {
            let (taps, again, adopted) = device("flannel.1", queues);
            assert_eq!((taps.len(), again, adopted), (queues, offloads, true));
            assert_eq!(look(), before);
        }
    });
}

#[test]
fn a_device_in_use_and_a_device_of_another_kind_are_named() {
    in_own_namespace(|| {
        let taps = device("flannel.1", 2);
        let error = tap::open("flannel.1", 1).unwrap_err();
        let TapError::InUse { holder: Holder::Process { id, .. }, .. } = &error else { panic!("{error}") };
        assert_eq!(*id, std::process::id());
        assert!(
            error.to_string().starts_with(&format!("TAP device flannel.1 is in use by process {id} (")),
            "{error}"
        );
        drop(taps);
        for (device, make) in [
            ("flannel.2", "ip link add flannel.2 type vxlan id 2 dstport 8472 local 127.0.0.1"),
            ("flannel.3", "ip tuntap add dev flannel.3 mode tap"),
            ("flannel.4", "ip tuntap add dev flannel.4 mode tun multi_queue"),
        ] {
            sh(make);
            let error = tap::open(device, 1).unwrap_err();
            assert!(matches!(&error, TapError::OtherKind(name) if name == device), "{device}: {error}");
            assert!(error.to_string().contains(&format!("ip link del {device}")), "{error}");
            // Nothing is held after a failure.
            sh(&format!("ip link del {device}"));
            let (_, _, adopted) = self::device(device, 1);
            assert!(!adopted);
        }
    });
}

#[test]
fn without_the_driver_the_module_is_named() {
    in_own_namespace(|| {
        unshare(CloneFlags::CLONE_FS).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        sh("mount --make-rprivate / && mount -t tmpfs none /dev/net");
        let error = tap::open("flannel.1", 1).unwrap_err();
        assert!(matches!(error, TapError::NoDriver(_)), "{error}");
        assert!(error.to_string().contains("modprobe tun"), "{error}");
    });
}

/// A device that is up, with 10.32.5.1/24 and a neighbour 10.32.5.9; and a socket bound to port 7000 at it.
fn device_with_neighbour() -> (Vec<Tap>, TapOffloads, UdpSocket) {
    let (taps, offloads, _) = device("flannel.1", 1);
    sh("ip addr add 10.32.5.1/24 dev flannel.1 && ip link set flannel.1 up && \
        ip neigh add 10.32.5.9 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent");
    let inner = UdpSocket::bind("10.32.5.1:7000").unwrap();
    inner.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (taps, offloads, inner)
}

/// Reads frames until one is UDP over IPv4; header and frame.
fn read_udp(tap: &Tap) -> (Vec<u8>, Vec<u8>) {
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    eventually("a UDP frame from the TAP", || {
        let len = tap.read(&mut buffer).unwrap()?;
        let (header, frame) = buffer[..len].split_at(HEADER_BYTES);
        (frame[12..14] == [8, 0] && frame[23] == 17).then(|| (header.to_vec(), frame.to_vec()))
    })
}

/// Exchanges source and destination of an Ethernet frame with IPv4; no checksum changes by that.
fn turn_round(frame: &mut [u8]) {
    frame[..12].rotate_left(6);
    frame[26..34].rotate_left(4);
}

#[test]
fn frames_pass_in_both_directions_also_as_super_frames() {
    in_own_namespace(|| {
        let (taps, offloads, inner) = device_with_neighbour();
        inner.send_to(&pattern(100, 0), "10.32.5.9:7000").unwrap();
        let (header, frame) = read_udp(&taps[0]);
        assert_eq!(frame.len(), 14 + 20 + 8 + 100);
        if offloads >= TapOffloads::Checksum {
            // NEEDS_CSUM, no segmentation, summing begins at UDP and the sum goes to its offset 6.
            assert_eq!((header[0], header[1], &header[6..]), (1, 0, &[34, 0, 6, 0][..]));
        }
        if offloads < TapOffloads::TcpUdp {
            return;
        }
        // A run of 5 x 1000 + 500 bytes leaves the kernel as one frame, and comes back cut.
        setsockopt(&inner, sockopt::UdpGsoSegment, &1000).unwrap();
        let payload = pattern(5500, 7);
        inner.send_to(&payload, "10.32.5.9:7000").unwrap();
        let (header, mut frame) = read_udp(&taps[0]);
        let (segmentation, segment) = (header[1], u16::from_le_bytes([header[4], header[5]]));
        assert_eq!((segmentation, segment, frame.len()), (5, 1000, 14 + 20 + 8 + 5500));
        turn_round(&mut frame);
        let parts: Vec<IoSlice<'_>> = header.chunks(3).chain(frame.chunks(97)).map(IoSlice::new).collect();
        taps[0].write(&parts).unwrap();
        let (mut got, mut buffer) = (Vec::new(), [0; 2000]);
        for expected in [1000, 1000, 1000, 1000, 1000, 500] {
            assert_eq!(inner.recv(&mut buffer).unwrap(), expected);
            got.extend_from_slice(&buffer[..expected]);
        }
        assert_eq!(got, payload);
    });
}

#[test]
fn a_device_that_is_down_is_told_from_one_that_is_gone() {
    in_own_namespace(|| {
        let (taps, _, _) = device_with_neighbour();
        let frame = vec![0; HEADER_BYTES + 60];
        let slices = vec![IoSlice::new(&[]); 1025];
        assert_eq!(taps[0].write(&slices).unwrap_err().kind(), ErrorKind::InvalidInput);
        taps[0].write(&[IoSlice::new(&frame)]).unwrap();
        sh("ip link set flannel.1 down");
        let error = taps[0].write(&[IoSlice::new(&frame)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        // Nor is there anything to read, or a reason not to sleep.
        let mut buffer = vec![0; FRAME_BUFFER_BYTES];
        while taps[0].read(&mut buffer).unwrap().is_some() {}
        let (receive, _) = one(sockets(LOOPBACK, 1));
        let (wake, moment) = (EventFd::new().unwrap(), Duration::from_millis(5));
        assert_eq!(wait(&taps[0], &receive, &wake, Some(moment)).unwrap(), Ready::default());
        sh("ip link set flannel.1 up");
        taps[0].write(&[IoSlice::new(&frame)]).unwrap();
        sh("ip link del flannel.1");
        let error = eventually("the end of the device", || taps[0].read(&mut buffer).err());
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD), "{error}");
        let error = taps[0].write(&[IoSlice::new(&frame)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADFD), "{error}");
    });
}

#[test]
fn a_sleeper_is_woken_by_a_frame_a_datagram_a_call_and_the_end_of_the_device() {
    in_own_namespace(|| {
        let (taps, _, inner) = device_with_neighbour();
        let (mut receive, mut transmit) = one(sockets(LOOPBACK, 1));
        let wake = Arc::new(EventFd::new().unwrap());
        let mut buffer = vec![0; FRAME_BUFFER_BYTES];
        let mut drain = || while taps[0].read(&mut buffer).unwrap().is_some() {};
        let sleep = |receive: &Receive, timeout| wait(&taps[0], receive, &wake, timeout).unwrap();
        eventually("silence", || {
            drain();
            (sleep(&receive, Some(Duration::ZERO)) == Ready::default()).then_some(())
        });
        inner.send_to(&[0; 10], "10.32.5.9:7000").unwrap();
        assert!(sleep(&receive, None).tap);
        drain();
        let message =
            Message { to: (LOOPBACK, PORT).into(), parts: &[IoSlice::new(b"x")], segment: None, ecn: 0 };
        assert!(matches!(transmit[0].send(&[message]), (1, None)));
        assert!(sleep(&receive, None).socket);
        collect(&mut receive, 1);
        let waker = Arc::clone(&wake);
        let thread = std::thread::spawn(move || waker.wake());
        eventually("the call", || sleep(&receive, None).woken.then(&mut drain));
        thread.join().unwrap();
        assert!(wake.clear() && !wake.clear());
        sh("ip link del flannel.1");
        assert!(sleep(&receive, None).tap);
    });
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A message of each kind: alone and in runs, with each ECN value, in one slice and in many.
fn exchange(local: IpAddr, transmit: &mut Transmit, receive: &mut Receive) -> Vec<Datagram> {
    let payloads = [pattern(60, 1), pattern(1450 * 3 + 20, 2), pattern(64 * 90, 3), pattern(1400, 4)];
    let slices: Vec<Vec<IoSlice<'_>>> =
        payloads.iter().zip([60, 61, 7, 1]).map(|(p, n)| p.chunks(n).map(IoSlice::new).collect()).collect();
    let to = SocketAddr::new(local, PORT);
    let kinds = [(None, 0), (Some(1450), 1), (Some(90), 2), (None, 3)];
    let messages: Vec<Message<'_>> = slices
        .iter()
        .zip(kinds)
        .map(|(parts, (segment, ecn))| Message { to, parts: &parts[..parts.len().min(1024)], segment, ecn })
        .collect();
    let expected: Vec<(Vec<u8>, u8)> = messages
        .iter()
        .flat_map(|m| {
            let bytes: Vec<u8> = m.parts.iter().flat_map(|part| part.to_vec()).collect();
            let length = m.segment.map_or(bytes.len(), usize::from);
            bytes.chunks(length).map(|b| (b.to_vec(), m.ecn)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(expected.len(), 1 + 4 + 64 + 1);

    let (taken, error) = transmit.send(&messages);
    assert!(taken == 4 && error.is_none(), "{taken} {error:?}");
    let seen = collect(receive, expected.len());
    assert_eq!(seen.iter().map(|d| (d.bytes.clone(), d.ecn)).collect::<Vec<_>>(), expected);

    for message in &messages {
        let datagrams = expected.iter().filter(|(_, ecn)| *ecn == message.ecn).count();
        let (taken, error) = transmit.send_plain(message);
        assert!(taken == datagrams && error.is_none(), "{taken} of {datagrams}: {error:?}");
    }
    let plain = collect(receive, expected.len());
    assert_eq!(plain.iter().map(|d| (d.bytes.clone(), d.ecn)).collect::<Vec<_>>(), expected);
    let from = transmit.local_addr().unwrap();
    assert!(seen.iter().chain(&plain).all(|d| d.from == from), "{from}: {seen:?}");
    seen
}

#[test]
fn runs_of_datagrams_cross_loopback_and_a_veth_with_their_ecn_bits_in_both_families() {
    in_own_namespace(|| {
        let there = There::new(1500);
        let a0: [IpAddr; 2] = ["10.99.0.2".parse().unwrap(), "fd99::2".parse().unwrap()];
        let b0: [IpAddr; 2] = ["10.99.0.3".parse().unwrap(), "fd99::3".parse().unwrap()];
        for (here, peer) in a0.into_iter().zip(b0) {
            let (mut receive, mut transmit) = one(sockets(here, 1));
            assert!(receive.coalescing() && transmit.iter().all(Transmit::segmentation));
            assert_eq!(receive.queue_bytes(), 8 << 20);
            let seen = exchange(here, &mut transmit[0], &mut receive);
            assert!(seen.iter().any(|d| d.run), "loopback hands over runs");
            let (mut far, _) = one(there.enter(|| sockets(peer, 1)));
            exchange(peer, &mut transmit[1], &mut far);
            assert_eq!(far.overflows(), 0);
        }
    });
}

#[test]
fn what_a_full_socket_drops_is_known_without_receiving() {
    in_own_namespace(|| {
        let (mut receive, _) = one(sockets(LOOPBACK, 1));
        let sender = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        let sent = 40_000;
        // What does not fit is dropped without an error.
        (0..sent).for_each(|_| assert!(sender.send_to(&[7; 512], (LOOPBACK, PORT)).is_ok()));
        let dropped = receive.overflows();
        let mut buffers: Vec<Box<[u8]>> = (0..64).map(|_| vec![0; DATAGRAM_BUFFER_BYTES].into()).collect();
        let (mut got, mut out) = (0, Vec::new());
        while receive.receive(&mut buffers, &mut out).unwrap() > 0 {
            got += out.iter().map(|r| r.len.div_ceil(512)).sum::<usize>();
        }
        assert!(dropped > 0, "all of them fit");
        assert_eq!((got + dropped as usize, receive.overflows()), (sent, dropped));
    });
}

#[test]
fn the_sending_sockets_have_a_port_each() {
    in_own_namespace(|| {
        let opened = sockets(LOOPBACK, 3);
        let ports: BTreeSet<u16> =
            opened.iter().flat_map(|(_, t)| t).map(|t| t.local_addr().unwrap().port()).collect();
        assert_eq!((opened.len(), ports.len()), (3, 3 * SENDERS));
        assert!(!ports.contains(&PORT));
        for (receive, _) in &opened {
            assert_eq!(receive.local_addr().unwrap(), "0.0.0.0:8472".parse().unwrap());
        }
    });
}

#[test]
fn a_flow_stays_on_one_of_several_receiving_sockets() {
    in_own_namespace(|| {
        let mut opened = sockets(LOOPBACK, 4);
        let parts = [IoSlice::new(b"frame")];
        let message = Message { to: (LOOPBACK, PORT).into(), parts: &parts, segment: None, ecn: 0 };
        for _ in 0..5 {
            for transmit in opened.iter_mut().flat_map(|(_, transmit)| transmit) {
                assert!(matches!(transmit.send(&[message]), (1, None)));
            }
        }
        // On loopback everything has arrived when the sender is done.
        let mut buffers: Vec<Box<[u8]>> = (0..64).map(|_| vec![0; DATAGRAM_BUFFER_BYTES].into()).collect();
        let mut flows: BTreeMap<SocketAddr, Vec<usize>> = BTreeMap::new();
        for (number, (receive, _)) in opened.iter_mut().enumerate() {
            let mut out = Vec::new();
            while receive.receive(&mut buffers, &mut out).unwrap() > 0 {
                for datagram in &out {
                    flows.entry(datagram.from).or_default().push(number);
                }
            }
        }
        assert_eq!(flows.len(), 4 * SENDERS);
        assert!(flows.values().all(|seen| *seen == [seen[0]; 5]), "{flows:?}");
        let used: BTreeSet<usize> = flows.values().map(|seen| seen[0]).collect();
        assert!(used.len() > 1, "{flows:?}");
    });
}

#[test]
fn what_the_kernel_does_not_cut_is_sent_plain_and_fragmented() {
    in_own_namespace(|| {
        let there = There::new(1300);
        let local: IpAddr = "10.99.0.2".parse().unwrap();
        let mut transmit = one(sockets(local, 1)).1.remove(0);
        let mut far = one(there.enter(|| sockets([10, 99, 0, 3], 1))).0;
        let payload = pattern(1400 * 4 + 1, 9);
        let (to, small) = ("10.99.0.3:8472".parse().unwrap(), [0; 50]);
        let fits = Message { to, parts: &[IoSlice::new(&small)], segment: None, ecn: 0 };
        let message = Message { to, parts: &[IoSlice::new(&payload)], segment: Some(1400), ecn: 1 };
        let (taken, error) = transmit.send(&[fits, fits, message, fits]);
        let error = error.unwrap();
        assert_eq!((taken, Refusal::of(&error, &message)), (2, Refusal::Segmentation), "{error}");
        assert!(matches!(transmit.send_plain(&message), (5, None)));
        assert!(matches!(transmit.send(&[fits]), (1, None)));
        let seen = collect(&mut far, 8);
        let lengths: Vec<usize> = seen.iter().map(|d| d.bytes.len()).collect();
        assert_eq!(lengths, [50, 50, 1400, 1400, 1400, 1400, 1, 50]);
        assert_eq!(seen[2..7].iter().flat_map(|d| d.bytes.clone()).collect::<Vec<_>>(), payload);
    });
}

#[test]
fn what_cannot_be_sent_at_all_is_said() {
    in_own_namespace(|| {
        let mut transmit = one(sockets(LOOPBACK, 1)).1.remove(0);
        let parts = [IoSlice::new(b"x")];
        let lost = Message { to: "192.0.2.1:8472".parse().unwrap(), parts: &parts, segment: None, ecn: 0 };
        let (taken, error) = transmit.send(&[lost]);
        assert_eq!((taken, Refusal::of(&error.unwrap(), &lost)), (0, Refusal::Unsendable));
        let huge = pattern(65_508, 0);
        let parts = [IoSlice::new(&huge)];
        let huge = Message { to: (LOOPBACK, PORT).into(), parts: &parts, segment: None, ecn: 0 };
        let (taken, error) = transmit.send(&[huge]);
        assert_eq!((taken, Refusal::of(&error.unwrap(), &huge)), (0, Refusal::Unsendable));
        assert!(matches!(transmit.send(&[]), (0, None)));
    });
}

#[test]
fn a_full_queue_on_the_way_out_is_told_from_other_refusals() {
    in_own_namespace(|| {
        let _there = There::new(1500);
        // A link that passes 8 kbit/s from a queue far larger than the socket's share of memory.
        sh("tc qdisc add dev a0 root tbf rate 8kbit burst 2000 limit 100000000");
        let mut transmit = one(sockets([10, 99, 0, 2], 1)).1.remove(0);
        let payload = pattern(60_000, 0);
        let parts = [IoSlice::new(&payload)];
        let to = "10.99.0.3:8472".parse().unwrap();
        let message = Message { to, parts: &parts, segment: Some(1400), ecn: 0 };
        let error = (0..1000).find_map(|_| transmit.send(&[message]).1).expect("the queue never was full");
        assert_eq!(Refusal::of(&error, &message), Refusal::Full, "{error}");
    });
}

#[test]
fn a_port_that_is_taken_is_named_with_its_holder() {
    in_own_namespace(|| {
        for queues in [1, 2] {
            // A child of another test may still have it, between fork and exec.
            let other = eventually("the port", || UdpSocket::bind(("0.0.0.0", PORT)).ok());
            let error = socket::open(LOOPBACK, PORT, queues).unwrap_err();
            let SocketError::PortTaken { port: PORT, holder: Holder::Process { id, .. } } = &error else {
                panic!("{error}")
            };
            assert_eq!(*id, std::process::id());
            drop(other);
            let ours = sockets(LOOPBACK, queues);
            let error = socket::open(LOOPBACK, PORT, 2).unwrap_err();
            assert!(matches!(error, SocketError::PortTaken { .. }), "{error}");
            drop(ours);
        }
        sh("ip link add flannel.1 type vxlan id 1 dstport 8472 local 127.0.0.1 && ip link set flannel.1 up");
        let error = socket::open(LOOPBACK, PORT, 1).unwrap_err();
        assert!(matches!(error, SocketError::PortTaken { holder: Holder::Kernel, .. }), "{error}");
        assert!(
            error.to_string().contains("UDP port 8472 is taken by the kernel, most likely a VXLAN device"),
            "{error}"
        );
        let error = socket::open([10, 1, 1, 1], 8473, 1).unwrap_err();
        assert!(error.to_string().contains("10.1.1.1 is not an address of this machine"), "{error}");
    });
}

/// Opens everything for the data path and tests it; `prepare` is done when all is set up.
fn self_test(queues: usize, local: &str, prepare: &str) -> Report {
    let (taps, offloads, _) = device("flannel.1", queues);
    eprintln!("offloads: {offloads}");
    let opened = sockets(local.parse::<IpAddr>().unwrap(), queues);
    let mut queues: Vec<Queue> = taps
        .into_iter()
        .zip(opened)
        .map(|(tap, (receive, transmit))| Queue { tap, sockets: Sockets::new(receive, transmit) })
        .collect();
    sh("ip addr add 10.32.5.0/32 dev flannel.1 && ip link set flannel.1 up");
    sh(prepare);
    let setup = Setup {
        vni: Vni::DEFAULT,
        local: local.parse().unwrap(),
        port: PORT,
        device: "flannel.1",
        address: [10, 32, 5, 0].into(),
        nonce: 0x1234_5678_9abc_def0,
    };
    let report = selftest::run(&setup, &mut queues);
    eprintln!("{report}");
    report
}

#[test]
fn the_self_test_finds_everything_well() {
    for (queues, local) in [(1, "10.99.0.2"), (4, "10.99.0.2"), (1, "fd99::2")] {
        in_own_namespace(move || {
            let _there = There::new(1500);
            let report = self_test(queues, local, "true");
            assert!(report.is_good(), "{report}");
            let (underlay, device) = (report.underlay.unwrap(), report.device.unwrap());
            assert!(underlay.segmentation && underlay.coalescing && underlay.ecn, "{underlay:?}");
            assert!(device.tcp, "{device:?}");
        });
    }
}

#[test]
fn a_packet_filter_that_drops_the_port_is_found() {
    let filter = |chain: &str, verdict: &str| {
        format!(
            "nft add table inet t && nft add chain inet t c '{{ type filter hook {chain} priority 0; }}' && \
             nft add rule inet t c udp dport 8472 {verdict}"
        )
    };
    let (incoming, outgoing) = (filter("input", "drop"), filter("output", "drop"));
    in_own_namespace(move || {
        let report = self_test(1, "127.0.0.1", &incoming);
        assert!(matches!(report.underlay, Err(UnderlayFault::Lost { got: 0, .. })), "{report}");
        assert!(report.device.is_ok(), "{report}");
        let text = report.to_string();
        assert!(text.contains("accepts UDP port 8472 (iptables -S INPUT; nft list ruleset)"), "{text}");
    });
    in_own_namespace(move || {
        let report = self_test(1, "127.0.0.1", &outgoing);
        assert!(matches!(report.underlay, Err(UnderlayFault::Send { .. })), "{report}");
        assert!(report.to_string().contains("iptables -S OUTPUT"), "{report}");
    });
}

#[test]
fn a_loopback_that_is_down_is_named() {
    in_own_namespace(|| {
        let _there = There::new(1500);
        let report = self_test(1, "10.99.0.2", "ip link set lo down");
        assert!(report.underlay.is_err() && report.to_string().contains("lo is up"), "{report}");
    });
}

#[test]
fn a_device_that_is_down_or_has_another_address_is_found() {
    for (prepare, words) in [
        ("ip link set flannel.1 down", "device FAILS: device flannel.1 takes no frame: Input/output error"),
        ("ip addr del 10.32.5.0/32 dev flannel.1", "the device has this address (ip addr show flannel.1)"),
        ("sysctl -qw net.ipv4.conf.flannel/1.arp_ignore=8", "net.ipv4.conf.flannel.1.arp_ignore"),
    ] {
        in_own_namespace(move || {
            let report = self_test(2, "127.0.0.1", prepare);
            assert!(report.underlay.is_ok() && !report.is_good(), "{report}");
            let down = prepare.ends_with("down");
            assert_eq!(matches!(report.device, Err(DeviceFault::Write { .. })), down, "{report}");
            assert!(report.to_string().contains(words), "{report}");
        });
    }
}

#[test]
fn foreign_frames_do_not_disturb_the_self_test() {
    in_own_namespace(|| {
        sh("ip addr add 10.99.0.2/24 dev lo");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let noise = File::open("/proc/thread-self/ns/net").unwrap();
        let thread = std::thread::spawn(move || {
            setns(&noise, CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            while !stopped.load(Ordering::Relaxed) {
                // Not so many that they fill the receivers' queues, which nobody empties before the test.
                for _ in 0..8 {
                    let _ = socket.send_to(&[8, 0, 0, 0, 0, 0, 1, 0, 99], "127.0.0.1:8472");
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let report = self_test(2, "10.99.0.2", "true");
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        assert!(report.is_good(), "{report}");
    });
}
