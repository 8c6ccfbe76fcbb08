//! What is on its way to one peer.
//!
//! The raft thread writes to the connection itself, for as long as that takes something: to wake another thread first would
//! make every message later and dearer. What the connection does not take at once waits in a bounded queue, and the link's
//! task writes it when there is room.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::dial::{LinkError, Stream};
use super::split::split;
use super::{KEEP_ALIVE, SILENCE, WRITE_BUFFER};
use crate::wire::peer::{FRAME_HEAD_BYTES, Kind, frame_head};

/// Messages that may wait for one peer.
pub(super) const QUEUE: usize = 4096;
/// And the bytes of the entries in them, unless it is only one message.
pub(super) const QUEUE_BYTES: usize = 64 << 20;
/// Bytes written at one go: whoever writes holds up the other.
const TURN_BYTES: usize = 4 * WRITE_BUFFER;

/// The way to one peer. One thread sends on it, and one task looks after it.
#[derive(Default)]
pub(super) struct Lane {
    inner: Mutex<Inner>,
    /// The task has something to do.
    turn: Notify,
}

#[derive(Default)]
struct Inner {
    /// The connection, while there is one.
    stream: Option<Box<dyn Stream>>,
    queue: VecDeque<Message>,
    /// Of the entries in the queue.
    queued_bytes: usize,
    /// Messages as they are sent; the connection has taken those before `taken`.
    frames: Vec<u8>,
    taken: usize,
    /// The connection takes nothing for now: the task waits for it, and nobody else tries.
    blocked: bool,
    /// What the connection has taken in its life.
    total: u64,
    /// That, when the task looked last.
    seen: u64,
    /// Why the connection is of no use any more.
    fault: Option<LinkError>,
}

impl Lane {
    /// Puts a message into the queue; `false` if there is no room for it. What comes while there is no connection is thrown
    /// away: it would be stale by the time that there is one, and as long as an outage lasts it would fill memory.
    pub(super) fn enqueue(&self, message: Message) -> bool {
        let mut inner = self.inner.lock();
        if inner.stream.is_none() || inner.fault.is_some() {
            return true;
        }
        let bytes = entry_bytes(&message);
        let fits = inner.queued_bytes == 0 || inner.queued_bytes + bytes <= QUEUE_BYTES;
        if !fits || inner.queue.len() >= QUEUE {
            return false;
        }
        inner.queued_bytes += bytes;
        inner.queue.push_back(message);
        true
    }

    /// Writes what is queued, as far as the connection takes it at once. The task sees to the rest.
    pub(super) fn push(&self) {
        let mut inner = self.inner.lock();
        if inner.blocked || inner.fault.is_some() || inner.is_idle() {
            return;
        }
        match inner.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(error)) => inner.fault = Some(error),
            Poll::Pending => {}
        }
        drop(inner);
        self.turn.notify_one();
    }

    /// Sends on this connection from now on, until it breaks.
    pub(super) async fn serve(&self, stream: Box<dyn Stream>) -> LinkError {
        *self.inner.lock() = Inner { stream: Some(stream), ..Inner::default() };
        let _closed = Closed(self);
        loop {
            if timeout(KEEP_ALIVE, self.turn.notified()).await.is_err()
                && let Err(error) = self.inner.lock().keep_alive()
            {
                return error;
            }
            if let Err(error) = self.drain().await {
                return error;
            }
        }
    }

    /// Writes what is queued, however long it takes, as long as the connection takes something all along.
    async fn drain(&self) -> Result<(), LinkError> {
        let mut total = self.inner.lock().total;
        loop {
            let written = std::future::poll_fn(|cx| self.inner.lock().poll(cx));
            if let Ok(written) = timeout(SILENCE, written).await {
                return written;
            }
            let now = self.inner.lock().total;
            if now == total {
                return Err(LinkError::Timeout(SILENCE));
            }
            total = now;
        }
    }
}

/// Forgets the connection and what was queued for it when its task lets go of it.
struct Closed<'a>(&'a Lane);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        *self.0.inner.lock() = Inner::default();
    }
}

impl Inner {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.frames.is_empty()
    }

    /// Something to send if nothing was sent since the last time.
    fn keep_alive(&mut self) -> Result<(), LinkError> {
        if self.total == self.seen && self.is_idle() {
            self.frames.extend(frame_head(Kind::KeepAlive, 0)?);
        }
        self.seen = self.total;
        Ok(())
    }

    /// Writes everything; pending when the connection takes no more for now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        if let Some(error) = self.fault.take() {
            return Poll::Ready(Err(error));
        }
        let written = self.poll_write(cx);
        self.blocked = written.is_pending();
        written
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        let end = self.total + TURN_BYTES as u64;
        loop {
            if self.total >= end {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.fill()?;
            let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
            let mut stream = Pin::new(stream);
            if self.frames.is_empty() {
                return stream.poll_flush(cx).map_err(LinkError::from);
            }
            let count = ready!(stream.as_mut().poll_write(cx, &self.frames[self.taken..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.taken += count;
            self.total += count as u64;
            if self.taken == self.frames.len() {
                self.frames.clear();
                // A large message does not keep its room.
                self.frames.shrink_to(2 * WRITE_BUFFER);
                self.taken = 0;
            }
        }
    }

    /// Some messages from the queue as frames.
    fn fill(&mut self) -> Result<(), LinkError> {
        while self.frames.len() < WRITE_BUFFER
            && let Some(message) = self.queue.pop_front()
        {
            self.queued_bytes -= entry_bytes(&message);
            for message in split(message) {
                let start = self.frames.len();
                self.frames.extend([0; FRAME_HEAD_BYTES]);
                message.write_to_vec(&mut self.frames).map_err(|error| LinkError::Io(error.to_string()))?;
                let head = start + FRAME_HEAD_BYTES;
                let length = self.frames.len() - head;
                self.frames[start..head].copy_from_slice(&frame_head(Kind::Raft, length)?);
            }
        }
        Ok(())
    }
}

fn entry_bytes(message: &Message) -> usize {
    message.entries.iter().map(|entry| entry.data.len()).sum()
}
