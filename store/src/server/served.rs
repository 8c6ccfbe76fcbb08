//! An answer on its way to a client: what it holds is held until the client has taken it, and no longer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::crowd::Guest;
use super::handle::now;
use super::http::Answer;
use super::limits::OWN_BYTES;
use super::shares::{ClientRoom, Share};

/// A request under way, until it is dropped.
pub(super) struct Asked {
    guest: Arc<Guest>,
    is_http2: bool,
}

impl Asked {
    /// A request has come in on that connection.
    pub(super) fn new(guest: Arc<Guest>, is_http2: bool) -> Asked {
        guest.pulse.lock().begin();
        Asked { guest, is_http2 }
    }

    /// An answer of that length leaves now.
    fn due(&self, bytes: usize) -> Due {
        let mut pulse = self.guest.pulse.lock();
        let id = pulse.answer(now(), bytes);
        if pulse.is_sooner() {
            self.guest.hurry.notify_one();
        }
        Due { guest: Arc::clone(&self.guest), id }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.guest.pulse.lock().end(now());
    }
}

/// An answer that has to be taken in time, until it is dropped.
struct Due {
    guest: Arc<Guest>,
    id: u64,
}

impl Drop for Due {
    fn drop(&mut self) {
        self.guest.pulse.lock().answered(self.id);
    }
}

/// Bytes that hold something else until the last of them has been sent.
struct Holding<T> {
    bytes: Bytes,
    _held: T,
}

impl<T> AsRef<[u8]> for Holding<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The same bytes, holding `held` as long as there are any of them.
fn holding<T: Send + 'static>(bytes: Bytes, held: T) -> Bytes {
    Bytes::from_owner(Holding { bytes, _held: held })
}

/// Bytes that keep their share of the room until they are sent.
pub(super) fn sharing(bytes: impl Into<Bytes>, share: Share) -> Bytes {
    if share.is_none() { bytes.into() } else { holding(bytes.into(), share) }
}

/// A body with its share of the room. `estimate` is what it may come to; where it turns out so much larger that it
/// does not fit, it is made again when it does.
pub(super) async fn fitted(room: &ClientRoom, estimate: usize, make: impl Fn() -> String) -> Bytes {
    let mut needed = estimate;
    loop {
        let mut share = room.share(needed).await;
        let body = make();
        if room.grow(&mut share, body.len()) {
            return sharing(body, share);
        }
        needed = body.len();
    }
}

/// The body of an answer, with what it occupies.
pub(super) struct Served {
    answer: Answer,
    asked: Asked,
    /// An HTTP/2 client may leave an answer of any length where it is, so each of them is due, also one without a body.
    _due: Option<Due>,
    /// What is due of an answer that comes in pieces.
    pieces: Option<u64>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Served {
    /// `turn` is the request's place among all requests.
    pub(super) fn new(answer: Answer, asked: Asked, turn: Option<OwnedSemaphorePermit>) -> Served {
        let (mut due, mut pieces, mut turn) = (None, None, turn);
        let answer = match answer {
            Answer::Full(Some(bytes)) if bytes.len() > OWN_BYTES => {
                let due = asked.due(bytes.len());
                pieces = Some(due.id);
                Answer::Full(Some(holding(bytes, due)))
            }
            // The stream takes it whole as soon as its window is open at all, and keeps what does not fit.
            Answer::Full(Some(bytes)) if asked.is_http2 && !bytes.is_empty() => {
                let due = asked.due(bytes.len());
                Answer::Full(Some(holding(bytes, (due, turn.take()))))
            }
            Answer::Full(bytes) if asked.is_http2 => {
                due = Some(asked.due(0));
                Answer::Full(bytes)
            }
            other => other,
        };
        Served { answer, asked, _due: due, pieces, _turn: turn }
    }
}

impl Body for Served {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let is_watch = matches!(self.answer, Answer::Watch(_));
        let Some(bytes) = ready!(self.answer.poll_bytes(cx)) else { return Poll::Ready(None) };
        if let Some(id) = self.pieces {
            // Asked for only when the client has made room for the one before.
            self.asked.guest.pulse.lock().moved(id, now());
        }
        let bytes = if is_watch && (bytes.len() > OWN_BYTES || self.asked.is_http2) {
            let due = self.asked.due(bytes.len());
            holding(bytes, due)
        } else {
            bytes
        };
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size().map_or_else(SizeHint::default, |bytes| SizeHint::with_exact(bytes as u64))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::server::crowd::{Crowd, Place};
    use crate::server::pulse::{Late, Pulse};
    use crate::server::shares::Room;

    fn place() -> Place {
        Crowd::new(1).enter(Pulse::new(now(), false)).unwrap().0
    }

    fn late(place: &Place) -> Option<Late> {
        place.guest.pulse.lock().deadline().map(|(_, late)| late)
    }

    fn next(served: &mut Served) -> Option<Bytes> {
        match Pin::new(served).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("an answer that is there is not waited for"),
        }
    }

    #[test]
    fn a_large_answer_is_due_until_its_last_byte_is_gone() {
        let place = place();
        let asked = Asked::new(Arc::clone(&place.guest), false);
        let length = 1 << 20;
        let mut served = Served::new(Answer::full(vec![b'x'; length]), asked, None);
        assert_eq!(late(&place), Some(Late::Answer));
        let chunks: Vec<Bytes> = std::iter::from_fn(|| next(&mut served)).collect();
        assert!(chunks.len() > 1 && chunks.iter().map(Bytes::len).sum::<usize>() == length);
        drop(served);
        assert!(place.guest.pulse.lock().spare().is_none(), "it still has to be sent");
        drop(chunks);
        assert!(place.guest.pulse.lock().spare().is_some());
    }

    #[tokio::test]
    async fn a_body_that_turns_out_larger_waits_again() {
        let room = Room::new(&[(64 << 10, 64 << 10)]);
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|address| room.of(address.into()));
        let held = other.share(32 << 10).await;
        let make = || "<".repeat(60 << 10);
        let mut fitting = std::pin::pin!(fitted(&one, 20 << 10, make));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(fitting.as_mut().poll(&mut cx).is_pending());
        drop(held);
        let body = fitting.await;
        assert!(!other.grow(&mut Share::default(), 20 << 10), "it holds its share");
        drop(body);
        assert!(other.grow(&mut Share::default(), 64 << 10));
    }

    #[test]
    fn a_small_answer_is_due_where_it_may_stay() {
        for (is_http2, expected) in [(false, None), (true, Some(Late::Answer))] {
            let place = place();
            let asked = Asked::new(Arc::clone(&place.guest), is_http2);
            let mut served = Served::new(Answer::full("{}"), asked, None);
            assert_eq!(late(&place), expected);
            let bytes = next(&mut served).unwrap();
            drop(served);
            // A window of one byte is enough for the stream to take all, and to keep it.
            assert_eq!(late(&place), expected.or(Some(Late::Idle)));
            drop(bytes);
            assert_eq!(late(&place), Some(Late::Idle));
        }
    }
}
