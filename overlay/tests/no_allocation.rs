//! Once warm, the engine allocates nothing: neither the pure halves, batch by batch, nor a whole worker with a TAP and
//! sockets. All in one test, because the allocations of the whole process are counted.
//!
//! ```text
//!   own namespace: 10.5.1.0 [TAP weft-na] engine [8472] lo 127.0.0.1 ──── 127.0.0.2 [9999] the peer
//! ```

#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod packets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use overlay::datapath::Peer;
use overlay::datapath::capture::Capture;
use overlay::datapath::decap::{Datagram, Decap, DecapSettings};
use overlay::datapath::encap::{BUFFER_BYTES, Encap, EncapSettings};
use overlay::datapath::engine::{Engine, Queue, Settings};
use overlay::datapath::io::Sockets;
use overlay::datapath::table::{Shared, Table};
use overlay::datapath::{socket, tap};
use overlay::types::{Mtu, Vni, VtepMac};
use packets::Packet;

/// Counts what is asked of the system's allocator.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it is; counting touches nothing but an atomic.
#[allow(unsafe_code, reason = "an allocator cannot be written without; only for this test")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `GlobalAlloc`, which is the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

/// How many allocations there are while it runs, in any thread.
fn allocations(body: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    body();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn table() -> Table {
    let peer = Peer { mac: VtepMac::try_from(THEIRS).unwrap(), public_ip: PEER };
    Table::build([("10.5.2.0/24".parse().unwrap(), peer)].into_iter(), &Table::default())
}

fn mtu() -> Mtu {
    Mtu::try_from(1450).unwrap()
}

/// Of everything a little: super-frames, small packets, tags, what is answered and what is dropped.
fn traffic() -> Vec<Packet> {
    let mut traffic = Vec::new();
    for n in 0..60u16 {
        let payload = vec![1; if n % 20 == 0 { 40_000 } else { usize::from(n % 7) * 180 }];
        let packet =
            Packet { tcp: n % 2 == 0, v6: n % 3 == 0, port: n % 5, id: n, payload, ..Packet::default() };
        traffic.push(Packet { tags: vec![5; usize::from(n % 4 == 3)], ..packet });
    }
    traffic.push(Packet { destination: [2, 9, 9, 9, 9, 9], ..Packet::default() });
    traffic.push(Packet { payload: vec![0; 3000], ..Packet::default() });
    traffic
}

#[test]
fn once_warm_nothing_is_allocated() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "it counts");
    encapsulation();
    decapsulation();
    if let Err(panic) = std::thread::spawn(a_worker).join() {
        std::panic::resume_unwind(panic);
    }
}

fn encapsulation() {
    let mac = VtepMac::try_from(OURS).unwrap();
    let mut encap = Encap::new(EncapSettings {
        vni: Vni::DEFAULT,
        mtu: mtu(),
        mac,
        sockets: 8,
        segments: 64,
        inject: false,
    });
    let table = table();
    let frames: Vec<Vec<u8>> = traffic()
        .iter()
        .map(|packet| if packet.payload.len() > 10_000 { packet.super_frame(1300) } else { packet.partial() })
        .collect();
    let mut buffers = vec![vec![0; BUFFER_BYTES]; frames.len()];
    let mut datagrams = 0;
    let mut batch = || {
        encap.clear();
        for (n, frame) in frames.iter().enumerate() {
            buffers[n][..frame.len()].copy_from_slice(frame);
            encap.push(&table, &mut buffers[n], u32::try_from(n).unwrap(), frame.len());
        }
        datagrams = encap.sends().iter().map(|send| usize::from(send.datagrams)).sum();
    };
    batch();
    assert_eq!(allocations(|| (0..10).for_each(|_| batch())), 0, "encapsulation");
    assert!(datagrams > 130, "{datagrams}");
}

fn decapsulation() {
    let settings = DecapSettings {
        vni: Vni::DEFAULT,
        mtu: mtu(),
        mac: VtepMac::try_from(OURS).unwrap(),
        source_check: true,
        udp_super_frames: true,
    };
    let mut decap = Decap::new(settings);
    let table = table();
    let from = SocketAddr::from((PEER, 5000));
    let datagram = |packet: &Packet| {
        let packet = Packet { source: THEIRS, destination: OURS, ..packet.clone() };
        [&[8, 0, 0, 0, 0, 0, 1, 0], &packet.frame()[..]].concat()
    };
    let datagrams: Vec<Vec<u8>> = traffic().iter().map(datagram).collect();
    let mut buffers = datagrams.clone();
    let mut writes = 0;
    let mut batch = || {
        decap.clear();
        for (n, datagram) in datagrams.iter().enumerate() {
            buffers[n].copy_from_slice(datagram);
            let buffer = u32::try_from(n).unwrap();
            let got = Datagram { buffer, bytes: datagram.len(), from, segment: None, ecn: 0 };
            decap.push(&table, &mut buffers, got);
        }
        decap.finish(&buffers);
        writes = decap.writes().len();
    };
    batch();
    assert_eq!(allocations(|| (0..10).for_each(|_| batch())), 0, "decapsulation");
    assert!(writes > 10, "{writes}");
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A worker with everything it has in earnest. Traffic goes both ways in batches; each is awaited before the next.
fn a_worker() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own (this test needs root)");
    sh("ip link set lo up");
    let (taps, _, _) = tap::open("weft-na", 1).unwrap();
    sh(
        "ip link set weft-na address 02:00:00:00:00:01 mtu 1450 up && ip addr add 10.5.1.0/32 dev weft-na && \
        ip route add 10.5.2.0/24 dev weft-na && \
        ip neigh add 10.5.2.1 lladdr 02:00:00:00:00:02 dev weft-na nud permanent",
    );
    let sockets = socket::open(Ipv4Addr::LOCALHOST, 8472, 1).unwrap();
    let queue = |(tap, (receive, transmit))| Queue { tap, sockets: Sockets::new(receive, transmit) };
    let settings = Settings {
        vni: Vni::DEFAULT,
        port: 9999,
        mac: VtepMac::try_from(OURS).unwrap(),
        mtu: mtu(),
        spin: Duration::from_micros(50),
        cpus: vec![],
        source_check: true,
        cut_sends: true,
        udp_super_frames: true,
    };
    let queues = taps.into_iter().zip(sockets).map(queue).collect();
    let (table, capture) = (Arc::new(Shared::new(table())), Arc::new(Capture::new()));
    let engine = Engine::start(&settings, queues, &table, &capture).unwrap();

    let open = |address: (Ipv4Addr, u16)| {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let (peer, app) = (open((PEER, 9999)), open((Ipv4Addr::new(10, 5, 1, 0), 7777)));
    // To the container's side as the peer's datagrams do.
    let inbound: Vec<Vec<u8>> = (0..40u16)
        .map(|n| {
            let packet = Packet {
                source: THEIRS,
                destination: OURS,
                id: n,
                payload: vec![3; 400],
                ..Packet::default()
            };
            let mut frame = packet.frame();
            frame[30..34].copy_from_slice(&[10, 5, 1, 0]);
            frame[36..38].copy_from_slice(&7777u16.to_be_bytes());
            frame[40..42].fill(0);
            packets::header_checksum(&mut frame, 14);
            [&[8, 0, 0, 0, 0, 0, 1, 0], &frame[..]].concat()
        })
        .collect();
    let (payload, mut buffer) = (vec![5; 12_000], vec![0; 65_536]);
    let mut round = || {
        for (segment, count) in [(0, 30), (1000, 1)] {
            setsockopt(&app, sockopt::UdpGsoSegment, &segment).unwrap();
            for _ in 0..count {
                let bytes = if segment > 0 { &payload[..] } else { &payload[..500] };
                app.send_to(bytes, (Ipv4Addr::new(10, 5, 2, 1), 9)).unwrap();
            }
        }
        for _ in 0..30 + 12 {
            peer.recv_from(&mut buffer).expect("a datagram at the peer");
        }
        for datagram in &inbound {
            peer.send_to(datagram, (Ipv4Addr::LOCALHOST, 8472)).unwrap();
        }
        for _ in &inbound {
            app.recv_from(&mut buffer).expect("a datagram behind the device");
        }
    };
    (0..20).for_each(|_| round());
    assert_eq!(allocations(|| (0..50).for_each(|_| round())), 0, "a worker");

    assert!(engine.is_running());
    let counters = engine.counters();
    drop(engine);
    let counted = counters[0].snapshot();
    assert!(counted.encap.frames >= 70 * 42 && counted.decap.frames >= 70 * 40, "{counted:?}");
}
