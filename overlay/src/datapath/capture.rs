//! Captures of what the engine sees, on request and within limits: `cli overlay datapath --pcap`.
//!
//! Workers offer every frame to [`Capture::frame`]. While nobody captures, that is one relaxed load of an atomic. While
//! somebody does, the worker copies at most `snaplen` bytes into a bounded queue; what does not fit is counted, and the
//! count travels with the next frame that does. A worker never waits: not for the reader, not for a lock.
//!
//! There is one capture at a time, held by its [`Reader`], and it ends when that is dropped. A file is made of it by
//! [`super::recording`].
//!
//! The engine moves super-frames, TCP or UDP of up to 64 KB in one, and a capture shows them as they are: not cut into
//! what goes over the wire, and with checksums that a network card would fill in, as in any capture on a device with
//! offloads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

pub use super::pcapng::Direction;

/// Frames that may wait for the reader.
const QUEUE_FRAMES: usize = 16_384;

/// Bytes of frames that may wait for the reader. That much memory is used only when the reader is so late.
const QUEUE_BYTES: usize = 8 << 20;

/// Somebody captures already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "another capture is running; there is one at a time: wait for its end, or stop its `cli overlay datapath --pcap`"
)]
pub struct Busy;

/// The place where workers leave what is to be captured; all of them share one.
#[derive(Debug, Default)]
pub struct Capture {
    on: AtomicBool,
    session: RwLock<Option<Session>>,
}

/// What is there while a capture runs.
#[derive(Debug)]
struct Session {
    queue: Sender<Frame>,
    snaplen: usize,
    gauge: Arc<Gauge>,
}

/// What both ends of the queue keep count of.
#[derive(Debug, Default)]
struct Gauge {
    /// Bytes in the queue.
    queued: AtomicUsize,
    /// Frames that found no place since the last one that did.
    missing: AtomicU64,
}

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which way it went.
    pub direction: Direction,
    /// When, since 1970.
    pub time: Duration,
    /// Its own length, from the Ethernet header on.
    pub length: usize,
    /// What is kept of it.
    pub data: Vec<u8>,
    /// Frames that found no place since the one before.
    pub missing: u64,
    /// What became of it where it went no further, else empty.
    pub comment: String,
}

impl Capture {
    /// One that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether anybody captures: one relaxed load, so a worker may see the answer a moment late.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Offers a frame, which consists of `parts` one after the other and begins with the Ethernet header (a vnet header
    /// does not belong to it). `time` is only asked for while somebody captures. Never blocks; what finds no place is
    /// counted.
    #[inline]
    pub fn frame(&self, direction: Direction, time: impl FnOnce() -> SystemTime, parts: &[&[u8]]) {
        if self.is_on() {
            self.offer(direction, time(), String::new(), parts);
        }
    }

    /// The same for a frame that goes no further; `comment` says why, and is only asked for while somebody captures.
    #[inline]
    pub fn dropped(
        &self,
        direction: Direction,
        time: impl FnOnce() -> SystemTime,
        comment: impl FnOnce() -> String,
        frame: &[u8],
    ) {
        if self.is_on() {
            self.offer(direction, time(), comment(), &[frame]);
        }
    }

    #[cold]
    fn offer(&self, direction: Direction, time: SystemTime, comment: String, parts: &[&[u8]]) {
        // Held by somebody only while a capture begins or ends, and then this frame is none of its.
        let Ok(session) = self.session.try_read() else { return };
        if let Some(session) = &*session {
            session.offer(direction, time, comment, parts);
        }
    }

    /// Begins a capture of at most `snaplen` bytes of each frame.
    ///
    /// # Errors
    /// [`Busy`] while another [`Reader`] exists.
    pub fn start(self: &Arc<Self>, snaplen: usize) -> Result<Reader, Busy> {
        let mut session = self.session.write().unwrap_or_else(PoisonError::into_inner);
        if session.is_some() {
            return Err(Busy);
        }
        let (queue, received) = mpsc::channel(QUEUE_FRAMES);
        let gauge = Arc::new(Gauge::default());
        *session = Some(Session { queue, snaplen, gauge: gauge.clone() });
        self.on.store(true, Ordering::Relaxed);
        Ok(Reader { capture: self.clone(), queue: received, gauge })
    }
}

impl Session {
    fn offer(&self, direction: Direction, time: SystemTime, comment: String, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let kept = length.min(self.snaplen);
        let place = match self.queue.try_reserve() {
            Ok(place) if self.gauge.admit(kept) => place,
            Ok(_) | Err(TrySendError::Full(())) => return self.gauge.miss(),
            // It has just been stopped.
            Err(TrySendError::Closed(())) => return,
        };
        let mut data = Vec::with_capacity(kept);
        for part in parts {
            data.extend_from_slice(&part[..part.len().min(kept - data.len())]);
        }
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let missing = self.gauge.missing.swap(0, Ordering::Relaxed);
        place.send(Frame { direction, time, length, data, missing, comment });
    }
}

impl Gauge {
    fn miss(&self) {
        self.missing.fetch_add(1, Ordering::Relaxed);
    }

    fn admit(&self, bytes: usize) -> bool {
        let more = |queued: usize| queued.checked_add(bytes).filter(|all| *all <= QUEUE_BYTES);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// The capture that runs. Dropping it ends the capture.
#[derive(Debug)]
pub struct Reader {
    capture: Arc<Capture>,
    queue: Receiver<Frame>,
    gauge: Arc<Gauge>,
}

impl Reader {
    /// Waits for frames and appends what has come, `most` at a time, to `frames`. Nothing comes only after
    /// [`Reader::stop`], when the queue is empty. Cancelling it loses nothing.
    pub async fn receive(&mut self, frames: &mut Vec<Frame>, most: usize) {
        let before = frames.len();
        self.queue.recv_many(frames, most).await;
        let bytes = frames[before..].iter().map(|frame| frame.data.len()).sum();
        self.gauge.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes no more frames; those in the queue can still be received, and no other capture can begin yet.
    pub fn stop(&mut self) {
        self.capture.on.store(false, Ordering::Relaxed);
        self.queue.close();
    }

    /// Frames that found no place since the last one in the queue.
    pub fn missing(&self) -> u64 {
        self.gauge.missing.load(Ordering::Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
        *self.capture.session.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn at(seconds: u64) -> impl FnOnce() -> SystemTime {
        move || UNIX_EPOCH + Duration::from_secs(seconds)
    }

    async fn next(reader: &mut Reader) -> Option<Frame> {
        let mut frames = Vec::new();
        reader.receive(&mut frames, 1).await;
        frames.pop()
    }

    #[test]
    fn nothing_is_copied_and_no_clock_is_read_while_it_is_off() {
        let capture = Capture::new();
        capture.frame(Direction::Inbound, || unreachable!("the clock"), &[&[0; 60]]);
        assert!(!capture.is_on());
    }

    #[tokio::test]
    async fn frames_arrive_in_order_cut_to_what_was_asked() {
        let capture = Arc::new(Capture::new());
        let mut reader = capture.start(5).unwrap();
        capture.frame(Direction::Outbound, at(1), &[b"abc", b"", b"defg"]);
        capture.frame(Direction::Inbound, at(2), &[b"xy"]);
        let first = next(&mut reader).await.unwrap();
        assert_eq!((first.length, first.data.as_slice()), (7, &b"abcde"[..]));
        assert_eq!((first.direction, first.time), (Direction::Outbound, Duration::from_secs(1)));
        let second = next(&mut reader).await.unwrap();
        assert_eq!((second.length, second.data.as_slice(), second.missing), (2, &b"xy"[..], 0));
    }

    #[tokio::test]
    async fn one_at_a_time_until_it_is_dropped() {
        let capture = Arc::new(Capture::new());
        let mut first = capture.start(100).unwrap();
        assert_eq!(capture.start(100).unwrap_err(), Busy);
        capture.frame(Direction::Inbound, at(1), &[b"x"]);
        first.stop();
        assert!(!capture.is_on());
        assert_eq!(capture.start(100).unwrap_err(), Busy, "its queue is still being read");
        assert!(next(&mut first).await.is_some());
        assert!(next(&mut first).await.is_none());
        drop(first);
        let _second = capture.start(100).unwrap();
        assert!(capture.is_on());
    }

    #[tokio::test]
    async fn what_finds_no_place_is_counted_with_the_next_that_does() {
        let capture = Arc::new(Capture::new());
        let mut reader = capture.start(QUEUE_BYTES).unwrap();
        let quarter = vec![0; QUEUE_BYTES / 4];
        for _ in 0..7 {
            capture.frame(Direction::Inbound, at(1), &[&quarter]);
        }
        assert_eq!(reader.missing(), 3, "four quarters fit");
        next(&mut reader).await.unwrap();
        capture.frame(Direction::Inbound, at(2), &[b"small"]);
        let mut rest = Vec::new();
        reader.receive(&mut rest, 100).await;
        assert_eq!(rest.iter().map(|frame| frame.missing).collect::<Vec<_>>(), [0, 0, 0, 3]);
        assert_eq!((reader.missing(), reader.gauge.queued.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_number_of_frames_is_bounded_too() {
        let capture = Arc::new(Capture::new());
        let reader = capture.start(100).unwrap();
        for _ in 0..QUEUE_FRAMES + 5 {
            capture.frame(Direction::Inbound, at(1), &[b"x"]);
        }
        assert_eq!(reader.missing(), 5);
    }

    #[test]
    fn workers_may_come_at_any_moment() {
        let capture = Arc::new(Capture::new());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        capture.frame(Direction::Inbound, at(1), &[b"abc"]);
                    }
                });
            }
            for _ in 0..200 {
                let mut reader = capture.start(2).unwrap();
                let mut frames = Vec::new();
                while frames.is_empty() {
                    if let Ok(frame) = reader.queue.try_recv() {
                        frames.push(frame);
                    }
                }
                assert_eq!((frames[0].length, frames[0].data.as_slice()), (3, &b"ab"[..]));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
