//! One worker: a thread that owns one queue of the device and its sockets, and carries packets both ways.
//!
//! ```text
//! loop: read the TAP until it is empty or the batch full -> encapsulate -> send
//!       receive what is there                            -> decapsulate -> write to the TAP
//!       neither had anything: look again for the spin budget, then sleep until there is
//! ```
//!
//! Everything it needs it allocates at the start. It holds no lock while it works: the table is an immutable snapshot
//! that it exchanges between batches, its counters are written by nobody else.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock to bound its spinning")]

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::libc;

use super::answer::Answered;
use super::capture::{Capture, Direction};
use super::counters::{Counters, Drop, bump};
use super::decap::{self, Datagram, Decap, DecapSettings};
use super::encap::{self, Encap, EncapSettings, Pushed};
use super::io::{Sleep, Wire};
use super::outbox::{Batch, Outbox};
use super::pieces::recycle;
use super::socket::{Received, Refusal};
use super::spin::Spin;
use super::table::{Shared, Table};
use super::vnet::{LEN as VNET_BYTES, Vnet};
use super::wait::EventFd;
use crate::wire::vxlan;

/// Frames read from the TAP before they are sent.
const TAP_BATCH: usize = 64;
/// Bytes read from the TAP before they are sent: waiting for more would only delay the first.
const TAP_BATCH_BYTES: usize = 128 * 1024;
/// Receive buffers offered at least and at most; small packets want many, glued ones few.
const RECEIVE_MIN: usize = 8;
const RECEIVE_MAX: usize = 32;
/// "Fragmentation needed" messages a worker sends within a second at most.
const TOO_BIG_PER_S: u32 = 200;
/// Receives after which a busy worker asks what the socket has lost; one that is to sleep asks anyway.
const LOOK_FOR_LOSS: u32 = 256;
/// A broken socket is tried again after this long.
const BROKEN: Duration = Duration::from_millis(10);
/// Frames that the kernel could not hand over, one after the other, until the device counts as broken.
const UNREADABLE: u32 = 1000;

/// What all workers of an engine share.
pub(crate) struct Common {
    pub(crate) table: Arc<Shared>,
    pub(crate) capture: Arc<Capture>,
    pub(crate) stop: Arc<AtomicBool>,
    /// Set by a worker that can send no super-frame whole any more.
    pub(crate) cuts: Arc<AtomicBool>,
}

/// See the module.
pub(crate) struct Worker<P, W> {
    port: P,
    wire: W,
    common: Common,
    counters: Arc<Counters>,
    wake: Arc<EventFd>,
    spin: Spin,
    table: Arc<Table>,
    generation: u64,
    encap: Encap,
    decap: Decap,
    frames: Vec<Box<[u8]>>,
    datagrams: Vec<Box<[u8]>>,
    received: Vec<Received>,
    offered: usize,
    /// What the socket had lost when it was last asked.
    overflows: u32,
    /// Receives since.
    unasked: u32,
    outbox: Outbox,
    slices: Vec<IoSlice<'static>>,
    too_big: Bucket,
    /// Frames in a row that could not be read.
    unreadable: u32,
    /// Whether receiving failed the last time.
    deaf: bool,
}

/// At most so many a second.
struct Bucket {
    since: Instant,
    used: u32,
}

impl Bucket {
    fn take(&mut self) -> bool {
        let now = Instant::now();
        if now - self.since >= Duration::from_secs(1) {
            (self.since, self.used) = (now, 0);
        }
        self.used += 1;
        self.used <= TOO_BIG_PER_S
    }
}

impl<P: Sleep<W>, W: Wire> Worker<P, W> {
    pub(crate) fn new(
        (port, wire): (P, W),
        encap: EncapSettings,
        decap: DecapSettings,
        (spin, peer_port): (Duration, u16),
        common: Common,
        (counters, wake): (Arc<Counters>, Arc<EventFd>),
    ) -> Self {
        let buffers = |count: usize, bytes: usize| (0..count).map(|_| vec![0; bytes].into()).collect();
        let generation = common.table.generation();
        Self {
            port,
            wire,
            counters,
            wake,
            spin: Spin::new(spin),
            table: common.table.current(),
            generation,
            common,
            outbox: Outbox::new(peer_port, vxlan::encode(encap.vni)),
            encap: Encap::new(encap),
            decap: Decap::new(decap),
            frames: buffers(TAP_BATCH, encap::BUFFER_BYTES),
            datagrams: buffers(RECEIVE_MAX, decap::BUFFER_BYTES),
            received: Vec::with_capacity(RECEIVE_MAX),
            offered: RECEIVE_MIN,
            overflows: 0,
            unasked: 0,
            slices: Vec::with_capacity(1024),
            too_big: Bucket { since: Instant::now(), used: 0 },
            unreadable: 0,
            deaf: false,
        }
    }

    /// Works until it is told to stop (`Ok`) or its device is gone.
    ///
    /// # Errors
    /// Why the device cannot be read any more.
    pub(crate) fn run(mut self) -> io::Result<()> {
        // Since when there has been nothing, and when that was last seen.
        let mut idle: Option<(Instant, Instant)> = None;
        while !self.common.stop.load(Ordering::Relaxed) {
            if self.round()? {
                if let Some((since, last)) = idle.take() {
                    self.spin.found();
                    self.spun(last - since);
                }
                continue;
            }
            let now = Instant::now();
            let since = idle.map_or(now, |(since, _)| since);
            idle = Some((since, now));
            if now - since < self.spin.budget() {
                bump(&self.counters.spins, 1);
                std::thread::yield_now();
                continue;
            }
            if now > since {
                self.spin.in_vain();
            }
            self.spun(now - since);
            idle = None;
            self.sleep(now)?;
        }
        Ok(())
    }

    fn spun(&self, time: Duration) {
        bump(&self.counters.spin_ns, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn sleep(&mut self, now: Instant) -> io::Result<()> {
        self.count_overflows();
        bump(&self.counters.polls, 1);
        if self.port.sleep(&self.wire, &self.wake, None)? {
            self.wake.clear();
        }
        bump(&self.counters.wakeups, 1);
        self.spin.woken_after(now.elapsed());
        Ok(())
    }

    /// Counts what the socket has lost since it was last asked.
    fn count_overflows(&mut self) {
        if std::mem::take(&mut self.unasked) == 0 {
            return;
        }
        let overflows = self.wire.overflows();
        let lost = overflows.wrapping_sub(self.overflows);
        if lost > 0 {
            self.overflows = overflows;
            self.counters.count_drop(Drop::ReceiveFull, lost.into());
        }
    }

    /// Both ways once; returns whether there was anything.
    fn round(&mut self) -> io::Result<bool> {
        if self.common.table.refresh(&mut self.generation, &mut self.table) {
            self.decap.table_changed();
        }
        let out = self.outwards()?;
        let inwards = self.inwards();
        Ok(out || inwards)
    }

    fn outwards(&mut self) -> io::Result<bool> {
        self.encap.clear();
        let (mut frames, mut bytes, mut lost) = (0, 0, false);
        while frames < TAP_BATCH && bytes < TAP_BATCH_BYTES && self.encap.has_room() {
            bump(&self.counters.tap_reads, 1);
            let length = match self.port.read(&mut self.frames[frames]) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) if self.is_of_one_frame(&error) => {
                    lost = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            self.unreadable = 0;
            self.one_frame(frames, length);
            frames += 1;
            bytes += length;
        }
        self.counters.tap_batch.record(frames);
        if !self.encap.sends().is_empty() {
            self.send();
        }
        Ok(frames > 0 || lost)
    }

    /// Whether an error in reading concerns that one frame, which is gone then: the kernel says `EINVAL` of a
    /// segmentation that it cannot put into the virtio-net header (`virtio_net_hdr_from_skb`).
    fn is_of_one_frame(&mut self, error: &io::Error) -> bool {
        self.unreadable += 1;
        let alone = error.raw_os_error() == Some(libc::EINVAL) && self.unreadable < UNREADABLE;
        if alone {
            self.counters.count_drop(Drop::UnknownGso, 1);
        }
        alone
    }

    fn one_frame(&mut self, index: usize, length: usize) {
        let buffer = &mut self.frames[index];
        let place = u32::try_from(index).unwrap_or(0);
        let destination = mac_at(buffer[..length].iter(), VNET_BYTES);
        let pushed = self.encap.push(&self.table, buffer, place, length);
        if self.common.capture.is_on() {
            let frame = &self.frames[index][VNET_BYTES.min(length)..length];
            self.captured(pushed, frame);
        }
        match pushed {
            Pushed::Queued => {}
            Pushed::Dropped(reason) => {
                self.counters.count_drop(reason, 1);
                self.dropped_of(destination, 1);
            }
            Pushed::Answered(answered) => {
                bump(
                    match answered {
                        Answered::Arp => &self.counters.answered_arp,
                        Answered::Nd => &self.counters.answered_nd,
                    },
                    1,
                );
                self.reply();
            }
            Pushed::TooBig => {
                self.counters.count_drop(Drop::TooBig, 1);
                self.dropped_of(destination, 1);
                if self.too_big.take() {
                    bump(&self.counters.too_big_signalled, 1);
                    self.reply();
                }
            }
        }
    }

    /// Shows a frame of the device's, and what became of it, to whoever captures.
    #[cold]
    fn captured(&self, pushed: Pushed, frame: &[u8]) {
        let (capture, out) = (&self.common.capture, Direction::Outbound);
        let reason = match pushed {
            Pushed::Queued | Pushed::Answered(_) => return capture.frame(out, SystemTime::now, &[frame]),
            Pushed::Dropped(reason) => reason,
            Pushed::TooBig => Drop::TooBig,
        };
        capture.dropped(out, SystemTime::now, || format!("dropped: {reason}"), frame);
    }

    /// Shows what was refused of the peers' to whoever captures, without the VXLAN header where it has one.
    #[cold]
    fn captured_refused(&self) {
        for ((reason, _), (buffer, range)) in self.decap.drops().iter().zip(self.decap.refused()) {
            let bytes = &self.datagrams[buffer as usize][range];
            let frame = vxlan::decode(bytes).map_or(bytes, |(_, frame)| frame);
            let from = self.received[buffer as usize].from;
            let comment = || format!("dropped: {reason}, from {from}");
            self.common.capture.dropped(Direction::Inbound, SystemTime::now, comment, frame);
        }
    }

    /// Counts dropped frames with the peer that has this MAC, if one has.
    fn dropped_of(&self, mac: Option<[u8; 6]>, frames: u64) {
        if let Some(peer) = mac.and_then(|mac| self.table.by_mac(mac)) {
            self.table.entry(peer).counters.count_drop(frames);
        }
    }

    /// Gives a frame of our own making to the device.
    fn reply(&mut self) {
        bump(&self.counters.tap_writes, 1);
        let header = Vnet::default().encode();
        let parts = [IoSlice::new(&header), IoSlice::new(self.encap.reply())];
        if self.port.write(&parts).is_err() {
            self.counters.count_drop(Drop::TapFailed, 1);
        }
    }

    fn send(&mut self) {
        let batch = Batch { encap: &self.encap, frames: &self.frames, table: &self.table };
        if let Err(error) = self.outbox.send(&mut self.wire, &batch, &self.counters) {
            tracing::warn!(
                "super-frames cannot be sent whole any more and are cut; where the device is at fault, until it is made \
                 right, else until overlayd restarts: {error}"
            );
            self.encap.set_inject(false);
            self.common.cuts.store(true, Ordering::Relaxed);
        }
    }

    fn inwards(&mut self) -> bool {
        bump(&self.counters.receives, 1);
        let offered = self.offered;
        let got = match self.wire.receive(&mut self.datagrams[..offered], &mut self.received) {
            Ok(got) => {
                self.deaf = false;
                got
            }
            Err(error) => {
                if !std::mem::replace(&mut self.deaf, true) {
                    tracing::warn!("nothing can be received from the underlay at the moment: {error}");
                }
                std::thread::sleep(BROKEN);
                0
            }
        };
        if got == 0 {
            return false;
        }
        self.unasked += 1;
        if self.unasked >= LOOK_FOR_LOSS {
            self.count_overflows();
        }
        self.counters.receive_batch.record(got);
        self.decap.clear();
        let mut bytes = 0;
        for (buffer, received) in self.received.iter().enumerate() {
            bytes += received.len;
            let datagram = Datagram {
                buffer: u32::try_from(buffer).unwrap_or(0),
                bytes: received.len,
                from: received.from,
                segment: received.segment,
                ecn: received.ecn,
            };
            self.decap.push(&self.table, &mut self.datagrams, datagram);
        }
        self.decap.finish(&self.datagrams);
        // Small packets come in crowds; glued ones fill the cache after a few.
        if got == offered && bytes < got * 4096 {
            self.offered = (offered * 2).min(RECEIVE_MAX);
        } else if bytes > RECEIVE_MIN * 32 * 1024 {
            self.offered = RECEIVE_MIN;
        }
        self.write();
        true
    }

    fn write(&mut self) {
        for (reason, peer) in self.decap.drops() {
            self.counters.count_drop(*reason, 1);
            if let Some(peer) = peer {
                self.table.entry(*peer).counters.count_drop(1);
            }
        }
        if self.common.capture.is_on() {
            self.captured_refused();
        }
        // Runs of the same peer are counted in one go.
        for run in self.decap.received().chunk_by(|a, b| a.peer == b.peer) {
            let (packets, bytes) = run.iter().fold((0, 0), |(p, b), a| (p + a.packets, b + a.bytes));
            self.table.entry(run[0].peer).counters.received(packets as u64, bytes as u64);
        }
        let mut slices = recycle(std::mem::take(&mut self.slices));
        for write in self.decap.writes() {
            slices.clear();
            self.decap.pieces().gather(write.chain, &self.datagrams, &mut slices);
            bump(&self.counters.tap_writes, 1);
            self.counters.segments_per_tap_write.record(write.packets);
            if self.common.capture.is_on() {
                let mut parts: Vec<&[u8]> = slices.iter().map(|s| &**s).collect();
                parts[0] = &parts[0][VNET_BYTES..];
                self.common.capture.frame(Direction::Inbound, SystemTime::now, &parts);
            }
            if let Err(error) = self.port.write(&slices) {
                let full = Refusal::is_full(&error);
                let reason = if full { Drop::TapFull } else { Drop::TapFailed };
                self.counters.count_drop(reason, write.packets as u64);
                let source = mac_at(slices.iter().flat_map(|slice| slice.iter()), VNET_BYTES + 6);
                self.dropped_of(source, write.packets as u64);
            } else {
                self.counters.decap.add(write.packets as u64, write.bytes as u64);
            }
        }
        self.slices = recycle(slices);
    }
}

/// The six bytes at an offset, if there are so many.
fn mac_at<'a>(bytes: impl Iterator<Item = &'a u8>, at: usize) -> Option<[u8; 6]> {
    let mut bytes = bytes.skip(at);
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = *bytes.next()?;
    }
    Some(mac)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "worker_tests.rs"]
mod tests;
