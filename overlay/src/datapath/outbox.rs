//! Hands a batch of sends to the sockets, counts what became of them, and where the kernel refuses to cut a send
//! itself, sends its datagrams one by one. Super-frames that go out whole are injected, in their place among the others.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddrV4};

use super::counters::{Counters, Drop, bump};
use super::encap::{Encap, Send};
use super::io::Wire;
use super::pieces::recycle;
use super::socket::{Message, Refusal};
use super::sys::BATCH;
use super::table::Table;
use super::tunnel::Tunnelled;
use crate::wire::vxlan;

/// What is to be sent.
pub(crate) struct Batch<'a> {
    pub(crate) encap: &'a Encap,
    pub(crate) frames: &'a [Box<[u8]>],
    pub(crate) table: &'a Table,
}

/// Keeps the allocations between batches.
pub(crate) struct Outbox {
    slices: Vec<IoSlice<'static>>,
    messages: Vec<Message<'static>>,
    port: u16,
    header: [u8; vxlan::HEADER_BYTES],
    /// Counts injected packets, for their IPv4 identification.
    id: u16,
}

impl Outbox {
    /// To peers' `port`, with this VXLAN header.
    pub(crate) fn new(port: u16, header: [u8; vxlan::HEADER_BYTES]) -> Self {
        Self { slices: Vec::with_capacity(4096), messages: Vec::with_capacity(256), port, header, id: 0 }
    }

    /// Sends everything, in the order of each flow: a flow has one socket.
    ///
    /// # Errors
    /// Why a super-frame could not be injected, if that is to be given up.
    pub(crate) fn send<W: Wire>(
        &mut self,
        wire: &mut W,
        batch: &Batch<'_>,
        counters: &Counters,
    ) -> io::Result<()> {
        let sends = batch.encap.sends();
        let mut broken = Ok(());
        let mut slices = recycle(std::mem::take(&mut self.slices));
        for send in sends {
            batch.encap.pieces().gather(send.chain, batch.frames, &mut slices);
        }
        for socket in 0..wire.sockets() {
            let mine = |send: &&Send| send.socket == socket;
            if !sends.iter().any(|send| mine(&send)) {
                continue;
            }
            let mut messages = recycle_messages(std::mem::take(&mut self.messages));
            let mut plain = sends.iter().filter(mine).filter(|send| send.tunnelled.is_none());
            let mut at = 0;
            for send in sends {
                let parts = &slices[at..at + send.chain.pieces];
                at += send.chain.pieces;
                if send.socket != socket {
                    continue;
                }
                match send.tunnelled {
                    None => messages.push(self.message(send, batch.table, parts)),
                    Some(tunnelled) => {
                        hand_over(wire, socket, &messages, plain.by_ref(), batch.table, counters);
                        messages.clear();
                        let outcome = self.inject(wire, send, &tunnelled, batch.table, parts, counters);
                        broken = broken.and(outcome);
                    }
                }
            }
            hand_over(wire, socket, &messages, plain, batch.table, counters);
            self.messages = recycle_messages(messages);
        }
        self.slices = recycle(slices);
        broken
    }

    fn message<'a>(&self, send: &Send, table: &Table, parts: &'a [IoSlice<'a>]) -> Message<'a> {
        Message {
            to: (table.entry(send.peer).underlay, self.port).into(),
            parts,
            segment: (send.datagrams > 1).then_some(send.segment),
            ecn: send.ecn,
        }
    }

    fn inject<W: Wire>(
        &mut self,
        wire: &mut W,
        send: &Send,
        tunnelled: &Tunnelled,
        table: &Table,
        parts: &[IoSlice<'_>],
        counters: &Counters,
    ) -> io::Result<()> {
        let entry = table.entry(send.peer);
        let outcome = match (wire.source(send.socket), entry.underlay, entry.uplink, parts) {
            (Some(from), IpAddr::V4(peer), Some(uplink), [frame]) => {
                let ends = (from, SocketAddrV4::new(peer, self.port));
                // From the socket's port on, so that two workers hardly ever use the same numbers at once.
                let marks = (send.ecn, self.id.wrapping_add(from.port()));
                self.id = self.id.wrapping_add(send.datagrams);
                let headers = tunnelled.headers(ends, self.header, marks, uplink.interface, frame.len());
                wire.inject(&[IoSlice::new(&headers), *frame])
            }
            _ => Err(ErrorKind::Unsupported.into()),
        };
        match outcome {
            Ok(()) => {
                bump(&counters.injects, 1);
                count_sent(send, send.datagrams.into(), tunnelled.wire_bytes, table, counters);
                Ok(())
            }
            Err(error) if Refusal::is_full(&error) => {
                dropped(send, send.datagrams.into(), Refusal::Full, table, counters);
                Ok(())
            }
            Err(error) => {
                dropped(send, send.datagrams.into(), Refusal::Unsendable, table, counters);
                Err(error)
            }
        }
    }
}

fn hand_over<'a, W: Wire>(
    wire: &mut W,
    socket: u32,
    mut messages: &[Message<'_>],
    mut sends: impl Iterator<Item = &'a Send>,
    table: &Table,
    counters: &Counters,
) {
    while !messages.is_empty() {
        bump(&counters.sends, messages.len().div_ceil(BATCH) as u64);
        let (taken, error) = wire.send(socket, messages);
        for send in sends.by_ref().take(taken) {
            sent(send, send.datagrams.into(), table, counters);
        }
        messages = &messages[taken..];
        let (Some(error), Some(refused)) = (error, messages.first()) else { continue };
        let Some(send) = sends.next() else { return };
        messages = &messages[1..];
        if Refusal::of(&error, refused) == Refusal::Segmentation {
            bump(&counters.gso_fallbacks, 1);
            bump(&counters.sends, u64::from(send.datagrams).div_ceil(BATCH as u64));
            let (taken, error) = wire.send_plain(socket, refused);
            sent(send, taken, table, counters);
            let lost = usize::from(send.datagrams) - taken.min(send.datagrams.into());
            if let Some(error) = error {
                let plain = Message { segment: None, ..*refused };
                dropped(send, lost, Refusal::of(&error, &plain), table, counters);
            }
        } else {
            dropped(send, send.datagrams.into(), Refusal::of(&error, refused), table, counters);
        }
    }
}

fn sent(send: &Send, datagrams: usize, table: &Table, counters: &Counters) {
    if datagrams == 0 {
        return;
    }
    // All but the last are equally long; how a part of them adds up need not be exact.
    let all = usize::from(send.datagrams);
    let bytes = (send.chain.bytes - all * vxlan::HEADER_BYTES) * datagrams / all;
    count_sent(send, datagrams, bytes, table, counters);
}

/// `bytes` of inner frames, as they are on the wire.
fn count_sent(send: &Send, datagrams: usize, bytes: usize, table: &Table, counters: &Counters) {
    counters.encap.add(datagrams as u64, bytes as u64);
    counters.segments_per_send.record(datagrams);
    table.entry(send.peer).counters.sent(datagrams as u64, bytes as u64);
}

fn dropped(send: &Send, datagrams: usize, why: Refusal, table: &Table, counters: &Counters) {
    let reason = if why == Refusal::Full { Drop::SendFull } else { Drop::SendFailed };
    counters.count_drop(reason, datagrams as u64);
    table.entry(send.peer).counters.count_drop(datagrams as u64);
}

/// As [`recycle`].
fn recycle_messages<'a>(mut messages: Vec<Message<'_>>) -> Vec<Message<'a>> {
    messages.clear();
    let none = || Message { to: ([0, 0, 0, 0], 0).into(), parts: &[], segment: None, ecn: 0 };
    messages.into_iter().map(|_| none()).collect()
}
