//! Hands a batch of sends to the sockets, counts what became of them, and where the kernel refuses to cut a send
//! itself, sends its datagrams one by one.

use std::io::IoSlice;

use super::counters::{Counters, Drop, bump};
use super::encap::{Encap, Send};
use super::io::Wire;
use super::pieces::recycle;
use super::socket::{Message, Refusal};
use super::sys::BATCH;
use super::table::Table;
use crate::wire::vxlan::HEADER_BYTES;

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
}

impl Outbox {
    /// To peers' `port`.
    pub(crate) fn new(port: u16) -> Self {
        Self { slices: Vec::with_capacity(4096), messages: Vec::with_capacity(256), port }
    }

    /// Sends everything, in the order of each flow: a flow has one socket.
    pub(crate) fn send<W: Wire>(&mut self, wire: &mut W, batch: &Batch<'_>, counters: &Counters) {
        let sends = batch.encap.sends();
        let mut slices = recycle(std::mem::take(&mut self.slices));
        for send in sends {
            batch.encap.pieces().gather(send.chain, batch.frames, &mut slices);
        }
        for socket in 0..wire.sockets() {
            let mine = || sends.iter().filter(|send| send.socket == socket);
            if mine().next().is_none() {
                continue;
            }
            let mut messages = recycle_messages(std::mem::take(&mut self.messages));
            let mut at = 0;
            for send in sends {
                let parts = &slices[at..at + send.chain.pieces];
                at += send.chain.pieces;
                if send.socket == socket {
                    messages.push(self.message(send, batch.table, parts));
                }
            }
            hand_over(wire, socket, &messages, mine(), batch.table, counters);
            self.messages = recycle_messages(messages);
        }
        self.slices = recycle(slices);
    }

    fn message<'a>(&self, send: &Send, table: &Table, parts: &'a [IoSlice<'a>]) -> Message<'a> {
        Message {
            to: (table.entry(send.peer).underlay, self.port).into(),
            parts,
            segment: (send.datagrams > 1).then_some(send.segment),
            ecn: send.ecn,
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
    let bytes = (send.chain.bytes - all * HEADER_BYTES) * datagrams / all;
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
