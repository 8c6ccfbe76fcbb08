#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Frame, SizeHint};

use super::*;
use crate::server::limits::{Limits, OWN_BYTES};

/// Parts that come one after the other.
struct Parts {
    parts: VecDeque<Bytes>,
    declared: u64,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.parts.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.declared)
    }
}

fn parts(count: usize, bytes: usize) -> Parts {
    let parts = std::iter::repeat_n(Bytes::from(vec![b'v'; bytes]), count).collect();
    Parts { parts, declared: 0 }
}

fn room(limits: &Limits, last: u8) -> ClientRoom {
    limits.forms(SocketAddr::from(([192, 0, 2, last], 1)))
}

#[tokio::test]
async fn a_form_is_joined_and_limited_however_it_comes() {
    let room = room(&Limits::new(16), 1);
    let (read, share) = read_body(&room, parts(10, 1 << 20)).await.unwrap();
    assert_eq!((read.len(), share.is_none()), (10 << 20, false));
    let error = read_body(&room, parts(10 * 1024 + 1, 1 << 10)).await.unwrap_err();
    assert_eq!((error.status(), error.cause.as_str()), (400, "http: POST too large"));
    let declared = Parts { declared: (10 << 20) + 1, parts: VecDeque::new() };
    assert_eq!(read_body(&room, declared).await.unwrap_err(), error);
}

#[tokio::test]
async fn large_forms_have_a_limit_together_and_small_ones_go_on() {
    let limits = Limits::new(16);
    let mut held = Vec::new();
    for n in 0..25 {
        held.push(read_body(&room(&limits, n / 6), parts(10, 1 << 20)).await.unwrap());
    }
    let room = room(&limits, 9);
    let error = read_body(&room, parts(10, 1 << 20)).await.unwrap_err();
    assert_eq!(error.status(), 503);
    assert!(read_body(&room, parts(1, OWN_BYTES)).await.is_ok());
    held.pop();
    assert!(read_body(&room, parts(10, 1 << 20)).await.is_ok());
}
