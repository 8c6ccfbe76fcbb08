//! What the data path counts: per worker ([`Counters`]), per peer ([`PeerCounters`]), and the plain numbers that go to
//! whoever asks ([`Snapshot`], [`PeerSnapshot`]). Pure; no locks.
//!
//! Each worker writes only its own [`Counters`], so no counter of it needs a locked instruction: [`bump`] is a load and
//! a store. Readers add the workers' snapshots up. [`PeerCounters`] are shared by all workers and use atomic additions.
//! Everything is relaxed: a snapshot is not one instant, but no count is lost and each only grows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// Adds to a counter that only the calling thread writes. Two threads adding to the same counter in this way would lose
/// counts.
#[inline]
pub fn bump(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

macro_rules! drops {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $hint:literal;)+) => {
        /// Why a frame or datagram went no further. Each has a stable name (in JSON and on the command line) and a hint
        /// for the operator.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Drop {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Drop {
            /// Every reason, in order of declaration.
            pub const ALL: &'static [Drop] = &[$(Drop::$variant),+];

            /// The reason's name, `snake_case`.
            pub fn name(self) -> &'static str {
                match self { $(Drop::$variant => $name,)+ }
            }

            /// What it means and what to look at, one line for the operator.
            pub fn hint(self) -> &'static str {
                match self { $(Drop::$variant => $hint,)+ }
            }
        }
    };
}

drops! {
    /// A frame from the TAP or inside a datagram that is too short for its own headers, or whose lengths contradict each
    /// other. Look at what sends it: `cli overlay datapath --pcap`.
    Malformed = "malformed", "frame shorter than its headers say: find its sender with --pcap";
    /// A unicast frame to a hardware address that is no peer's. Usual for moments around a peer's restart or expiry;
    /// lasting, the neighbour entries of the device and the leases disagree.
    UnknownDestination = "unknown_destination", "no peer has this VTEP MAC: compare `ip neigh show dev flannel.1` with the leases";
    /// A broadcast or multicast frame that is not answered locally. The overlay is routed and floods nothing, as with
    /// flannel; DHCP, mDNS and IPv6 router solicitations of the host end here.
    Flood = "flood", "broadcast and multicast do not cross the overlay: harmless unless an application needs them";
    /// The TAP delivered a frame with a segmentation type that was not asked for, or could not deliver it. A fault of the kernel or of another
    /// program that changed the device's offloads.
    UnknownGso = "unknown_gso", "the TAP's offloads were changed by somebody else: restart overlayd";
    /// A datagram on the overlay's port that is no VXLAN (RFC 7348 section 5): too short, or without the VNI flag.
    /// Something else sends to this port; a firewall should keep it out.
    BadVxlan = "bad_vxlan", "not VXLAN: find who sends to the overlay's UDP port";
    /// VXLAN of another network. Two overlays share the port, or a node has another `VNI` in its network config.
    WrongVni = "wrong_vni", "VXLAN of another VNI: compare the network configs of the nodes";
    /// The inner source is no peer's VTEP MAC; without the source check only if it is our own or no host's. Usual for moments after a peer joined, before its lease was seen;
    /// lasting, somebody injects frames, or a node sends whose lease has expired.
    UnknownSource = "unknown_source", "sender has no lease: check the time of its last renewal, or who it is";
    /// The inner source is a peer's, the datagram came from another address than this peer's underlay address. NAT or a
    /// second address between the nodes, or somebody injects frames. `-datapath-source-check=false` lets them in.
    SpoofedSource = "spoofed_source", "peer's frames from another address: NAT, a wrong -public-ip, or an intruder";
    /// Outer header marked "congestion experienced", inner not capable of ECN: RFC 6040 section 4.2 demands the drop. A
    /// router marks although the tunnel said it could not bear it.
    EcnMismatch = "ecn_mismatch", "a router on the underlay sets ECN marks on packets that forbid it";
    /// A packet that does not fit the device's MTU and may not be cut. Its sender was told, rate limited
    /// (`too_big_signalled`). Lasting: the sender, or a firewall before it, ignores the ICMP.
    TooBig = "too_big", "packet exceeds the overlay's MTU: container MTU too large, or ICMP blocked";
    /// The kernel refused to send a datagram: no route to the peer, a firewall (`EPERM`), the uplink down, or the MTU of
    /// the underlay has shrunk.
    SendFailed = "send_failed", "the kernel refused the datagram: check route, firewall and link to the peer";
    /// The socket's send buffer or the uplink's queue was full. Normal under overload: the uplink is the bottleneck.
    SendFull = "send_full", "uplink slower than the load: normal in bursts, else see its queue and `net.core.wmem_max`";
    /// Datagrams came faster than the worker took them, and the receiving socket's buffer ran full. One stands for a
    /// whole run where the kernel had glued datagrams together. The machine, or the one worker, is the bottleneck.
    ReceiveFull = "receive_full", "datagrams arrive faster than they are carried: more -datapath-queues, or a faster CPU";
    /// The host gave packets to the TAP faster than the worker read them, and the device's queue (`txqueuelen`) ran full.
    /// The kernel counts these, for the device as a whole, so they are in the total only, and no peer's. The machine, or
    /// the one worker, is the bottleneck.
    QueueFull = "queue_full", "packets leave faster than they are carried: more -datapath-queues, or a faster CPU";
    /// The TAP's queue was full. The host's stack does not keep up with what arrives.
    TapFull = "tap_full", "the host's network stack is overloaded: look at softirq time";
    /// The TAP refused a frame: the device is down (`EIO`), or the kernel found the frame or its offload header
    /// inconsistent (`EINVAL`).
    TapFailed = "tap_failed", "the device refused the frame: see whether the device is up (`ip link`)";
}

impl Drop {
    /// The number of reasons.
    pub const COUNT: usize = Drop::ALL.len();

    /// The reason of this name.
    pub fn from_name(name: &str) -> Option<Drop> {
        Drop::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

impl std::fmt::Display for Drop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Traffic one way. Encap: from the device to the underlay; decap: the reverse.
#[derive(Debug, Default)]
pub struct Direction {
    /// Frames as they are on the wire: segments.
    pub frames: AtomicU64,
    /// What crossed the system calls: a super-frame of many segments counts once.
    pub super_frames: AtomicU64,
    /// Inner bytes, Ethernet header included, headers of segments as on the wire.
    pub bytes: AtomicU64,
}

impl Direction {
    /// Counts one super-frame of `frames` segments and `bytes` in all. Only the worker that owns it may call this.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64) {
        bump(&self.frames, frames);
        bump(&self.super_frames, 1);
        bump(&self.bytes, bytes);
    }

    fn snapshot(&self) -> DirectionSnapshot {
        DirectionSnapshot {
            frames: self.frames.load(Relaxed),
            super_frames: self.super_frames.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// How often a batch had which size: bucket `i` counts sizes from 2^i to 2^(i+1) - 1, the last everything from 64.
#[derive(Debug, Default)]
pub struct Histogram([AtomicU64; Histogram::BUCKETS]);

impl Histogram {
    /// Number of buckets: 1, 2, 4, 8, 16, 32, 64 and more.
    pub const BUCKETS: usize = 7;

    /// Counts one batch; an empty one is not a batch. Only the worker that owns it may call this.
    #[inline]
    pub fn record(&self, size: usize) {
        if let Some(log2) = size.checked_ilog2() {
            bump(&self.0[(log2 as usize).min(Self::BUCKETS - 1)], 1);
        }
    }

    fn snapshot(&self) -> [u64; Self::BUCKETS] {
        std::array::from_fn(|i| self.0[i].load(Relaxed))
    }
}

/// Declares the counters once and both the atomic and the plain form from it.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:tt,)+) => {
        /// What one worker counts. Only that worker writes; anybody may read.
        ///
        /// The alignment keeps two workers' counters off each other's cache lines: 128 bytes, because processors fetch
        /// lines of 64 in pairs.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $field: counters!(@atomic $kind),)+
            /// Frames dropped, by reason, indexed as [`Drop::ALL`].
            pub drops: [AtomicU64; Drop::COUNT],
        }

        /// [`Counters`] as plain numbers, of one worker or summed over several. The names are stable.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Snapshot {
            $($(#[doc = $doc])+ pub $field: counters!(@plain $kind),)+
            /// Frames dropped, by [`Drop::name`]; every reason is there, also those that never occurred.
            pub drops: BTreeMap<String, u64>,
        }

        impl Counters {
            /// The numbers as they are now.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $($field: counters!(@load $kind self.$field),)+
                    drops: Drop::ALL
                        .iter()
                        .map(|reason| (reason.name().to_owned(), self.drops[*reason as usize].load(Relaxed)))
                        .collect(),
                }
            }
        }

        impl Snapshot {
            /// Adds another worker's numbers.
            pub fn add(&mut self, other: &Snapshot) {
                $(counters!(@add $kind self.$field, other.$field);)+
                for (name, frames) in &other.drops {
                    let sum = self.drops.entry(name.clone()).or_default();
                    *sum = sum.wrapping_add(*frames);
                }
            }
        }
    };
    (@atomic count) => { AtomicU64 };
    (@plain count) => { u64 };
    (@load count $from:expr) => { $from.load(Relaxed) };
    (@add count $to:expr, $from:expr) => { $to = $to.wrapping_add($from) };
    (@atomic direction) => { Direction };
    (@plain direction) => { DirectionSnapshot };
    (@load direction $from:expr) => { $from.snapshot() };
    (@add direction $to:expr, $from:expr) => { $to.add(&$from) };
    (@atomic histogram) => { Histogram };
    (@plain histogram) => { [u64; Histogram::BUCKETS] };
    (@load histogram $from:expr) => { $from.snapshot() };
    (@add histogram $to:expr, $from:expr) => {
        for (to, from) in $to.iter_mut().zip($from) {
            *to = to.wrapping_add(from);
        }
    };
}

counters! {
    /// From the device to the underlay.
    encap: direction,
    /// From the underlay to the device.
    decap: direction,
    /// ARP requests answered locally.
    answered_arp: count,
    /// Neighbour solicitations answered locally.
    answered_nd: count,
    /// "Fragmentation needed" and "packet too big" messages written to the device.
    too_big_signalled: count,
    /// Reads of the TAP, those that found nothing included.
    tap_reads: count,
    /// Writes to the TAP.
    tap_writes: count,
    /// `sendmmsg` calls; that one stops short at a message that is refused, and is called again, does not count.
    sends: count,
    /// Super-frames that were sent whole, each a write to the injecting device.
    injects: count,
    /// `recvmmsg` calls, those that found nothing included.
    receives: count,
    /// `poll` calls: times the worker went to sleep.
    polls: count,
    /// `poll` calls that ended because something was there, not because time was up.
    wakeups: count,
    /// Looks for packets in vain after which the worker did not sleep but looked again.
    spins: count,
    /// Time spent so, in nanoseconds, without what it then carried.
    spin_ns: count,
    /// Datagrams or frames handled one by one because the kernel refused an offload.
    gso_fallbacks: count,
    /// Frames per round of TAP reads.
    tap_batch: histogram,
    /// Datagrams per `recvmmsg`.
    receive_batch: histogram,
    /// Segments per message sent.
    segments_per_send: histogram,
    /// Segments per TAP write.
    segments_per_tap_write: histogram,
}

impl Counters {
    /// Counts dropped frames. Only the worker that owns the counters may call this.
    #[inline]
    pub fn count_drop(&self, reason: Drop, frames: u64) {
        bump(&self.drops[reason as usize], frames);
    }
}

/// [`Direction`] as plain numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectionSnapshot {
    /// Frames as on the wire.
    pub frames: u64,
    /// What crossed the system calls.
    pub super_frames: u64,
    /// Inner bytes, Ethernet header included.
    pub bytes: u64,
}

impl DirectionSnapshot {
    /// Adds another worker's numbers.
    pub fn add(&mut self, other: &Self) {
        self.frames = self.frames.wrapping_add(other.frames);
        self.super_frames = self.super_frames.wrapping_add(other.super_frames);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

impl Snapshot {
    /// Frames dropped for this reason.
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops.get(reason.name()).copied().unwrap_or(0)
    }

    /// Frames dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.values().fold(0, |sum, frames| sum.wrapping_add(*frames))
    }

    /// System calls that moved or waited for packets.
    pub fn system_calls(&self) -> u64 {
        [self.tap_reads, self.tap_writes, self.sends, self.injects, self.receives, self.polls]
            .iter()
            .fold(0, |sum, calls| sum.wrapping_add(*calls))
    }
}

/// What is counted for one peer, by all workers. Survives a change of the peer's MAC or address.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Frames sent to it, as segments on the wire.
    pub sent_frames: AtomicU64,
    /// Their inner bytes, Ethernet header included.
    pub sent_bytes: AtomicU64,
    /// Frames received from it, as segments on the wire.
    pub received_frames: AtomicU64,
    /// Their inner bytes, Ethernet header included.
    pub received_bytes: AtomicU64,
    /// Frames to it or from it that were dropped.
    pub dropped: AtomicU64,
}

impl PeerCounters {
    /// Counts frames that were sent.
    #[inline]
    pub fn sent(&self, frames: u64, bytes: u64) {
        self.sent_frames.fetch_add(frames, Relaxed);
        self.sent_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts frames that were received.
    #[inline]
    pub fn received(&self, frames: u64, bytes: u64) {
        self.received_frames.fetch_add(frames, Relaxed);
        self.received_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts frames that were dropped.
    #[inline]
    pub fn count_drop(&self, frames: u64) {
        self.dropped.fetch_add(frames, Relaxed);
    }

    /// The numbers as they are now.
    pub fn snapshot(&self) -> PeerSnapshot {
        PeerSnapshot {
            sent_frames: self.sent_frames.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_frames: self.received_frames.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }
}

/// [`PeerCounters`] as plain numbers. The names are stable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerSnapshot {
    /// Frames sent to the peer, as segments on the wire.
    pub sent_frames: u64,
    /// Their inner bytes, Ethernet header included.
    pub sent_bytes: u64,
    /// Frames received from the peer, as segments on the wire.
    pub received_frames: u64,
    /// Their inner bytes, Ethernet header included.
    pub received_bytes: u64,
    /// Frames to it or from it that were dropped.
    pub dropped: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "counters_tests.rs"]
mod tests;
