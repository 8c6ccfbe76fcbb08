//! What other members have sent and the raft thread has not dealt with yet, bounded by bytes.
//!
//! The raft thread's queue has places; a message may have 16 MiB. So each large one takes room for as long as it waits,
//! from all connections together. When there is none its connection waits, and so does its sender: in time for that one
//! to refuse its own clients. Not for long, though. A raft thread that stands still, as before a disk that does not
//! answer, must not make the other members give up their connections; after [`PATIENCE`] the message is dropped,
//! which raft expects, and what is behind it gets its turn.
//!
//! Small messages need no room, heartbeats and votes among them: what other connections bring cannot delay them. Behind a
//! large message on their own connection they wait for as long as it does. That is no longer than they would have waited in
//! the queue: the raft thread takes as many as are there before it works on them.

use std::mem::size_of;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use raft::eraftpb::{Entry, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::super::driver::Input;

/// Bytes of all large messages that wait for the raft thread, or that it is working on.
pub(super) const MAX_BYTES: usize = 256 << 20;
/// What a message may have without asking: with each place of the queue taken by such a one they come to 256 MiB.
const SMALL_BYTES: usize = 16 << 10;
/// How long a message waits for room.
const PATIENCE: Duration = Duration::from_millis(250);
/// Unit of room.
const UNIT: usize = 4 << 10;

/// The way to the raft thread for messages of other members.
pub(super) struct Inbox {
    inputs: SyncSender<Input>,
    room: Arc<Semaphore>,
    units: usize,
    patience: Duration,
}

/// A message on its way to the raft thread, and the room that it takes.
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Given back when dropped.
    pub room: Option<OwnedSemaphorePermit>,
}

impl Inbox {
    /// For large messages of so many bytes together.
    pub(super) fn new(inputs: SyncSender<Input>, bytes: usize) -> Inbox {
        let units = bytes / UNIT;
        Inbox { inputs, room: Arc::new(Semaphore::new(units)), units, patience: PATIENCE }
    }

    /// Where other inputs go.
    pub(super) fn inputs(&self) -> &SyncSender<Input> {
        &self.inputs
    }

    /// Passes on a message that came as so many `bytes`, when there is room for it; `false` if it was dropped for want of room.
    pub(super) async fn put(&self, message: Message, bytes: usize) -> bool {
        // An empty entry is two bytes of a frame and much more here.
        let bytes = bytes + message.entries.len() * size_of::<Entry>();
        let Ok(room) = self.room(bytes).await else { return false };
        match self.inputs.try_send(Input::Peer(Box::new(Delivery { message, room }))) {
            Err(TrySendError::Full(_)) => {
                tokio::task::yield_now().await;
                false
            }
            // Where the thread has ended, nobody needs to hear of it.
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
        }
    }

    async fn room(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, NoRoom> {
        if bytes <= SMALL_BYTES {
            return Ok(None);
        }
        // What is larger than all of it goes alone.
        let units = u32::try_from(bytes.div_ceil(UNIT).min(self.units)).unwrap_or(u32::MAX);
        let share = timeout(self.patience, Arc::clone(&self.room).acquire_many_owned(units)).await;
        // It is never closed.
        share.map_err(|_| NoRoom)?.map(Some).map_err(|_| NoRoom)
    }
}

/// The message has to be dropped.
struct NoRoom;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    const EVER: Duration = Duration::from_secs(3600);
    const MOMENT: Duration = Duration::from_millis(10);

    /// Room for two messages of 64 KiB.
    fn inbox(queue: usize, patience: Duration) -> (Inbox, Receiver<Input>) {
        let (inputs, received) = sync_channel(queue);
        (Inbox { patience, ..Inbox::new(inputs, 128 << 10) }, received)
    }

    fn message(term: u64) -> Message {
        Message { term, ..Message::default() }
    }

    fn next(received: &Receiver<Input>) -> Delivery {
        match received.try_recv().unwrap() {
            Input::Peer(delivery) => *delivery,
            _ => panic!("another input"),
        }
    }

    #[tokio::test]
    async fn large_messages_wait_for_room_and_small_ones_do_not() {
        let (inbox, received) = inbox(16, EVER);
        assert!(inbox.put(message(1), 64 << 10).await && inbox.put(message(2), 64 << 10).await);
        let third = inbox.put(message(3), 64 << 10);
        tokio::pin!(third);
        tokio::select! {
            biased;
            _ = &mut third => panic!("there is no room for it"),
            put = inbox.put(message(4), SMALL_BYTES) => assert!(put, "a heartbeat passes"),
        }
        // The raft thread has it, and the room with it, until it is done.
        let first = next(&received);
        tokio::select! {
            biased;
            _ = &mut third => panic!("the first still takes room"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        assert!(third.await);
        let terms: Vec<u64> = (0..3).map(|_| next(&received).message.term).collect();
        assert_eq!(terms, [2, 4, 3]);
    }

    #[tokio::test]
    async fn a_thread_that_stands_still_makes_nobody_wait_for_long() {
        let (inbox, received) = inbox(16, MOMENT);
        assert!(inbox.put(message(1), 1 << 30).await, "what is larger than the room goes alone");
        assert!(!inbox.put(message(2), 64 << 10).await);
        assert!(inbox.put(message(3), SMALL_BYTES).await, "what is behind it gets its turn");
        assert_eq!(next(&received).message.term, 1);
        assert!(inbox.put(message(4), 64 << 10).await);
    }

    #[tokio::test]
    async fn what_finds_no_place_in_the_queue_gives_its_room_back() {
        let (inbox, received) = inbox(1, EVER);
        assert!(inbox.put(message(1), 64 << 10).await);
        for _ in 0..10 {
            assert!(!inbox.put(message(2), 64 << 10).await);
        }
        drop(received);
        assert_eq!(inbox.room.available_permits(), inbox.units);
    }

    #[tokio::test]
    async fn many_empty_entries_are_large() {
        let (inbox, _received) = inbox(16, MOMENT);
        let mut many = message(1);
        many.set_entries(vec![Entry::default(); 2000].into());
        assert!(inbox.put(many.clone(), 4000).await);
        assert!(!inbox.put(many, 4000).await, "8 KiB of frames are {} KiB", 2 * size_of::<Entry>() * 2);
    }
}
