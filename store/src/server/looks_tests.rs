#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::mpsc::{Receiver, sync_channel};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::machine::Machine;
use crate::membership::{Member, Membership};
use crate::server::driver::Input;
use crate::server::handle::Shared;
use crate::server::limits::Limits;
use crate::server::shares::Room;
use crate::state::Identity;
use crate::tree::Op;

/// A member with one small key and one large directory; nobody takes what it proposes.
fn member() -> (Handle, Receiver<Input>) {
    let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
    let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
    let mut set = |path: &str, value: String| {
        let op = Op::Set { path: path.to_owned(), dir: false, value, expires_ns: None, refresh: false };
        machine.tree.apply(&op).unwrap();
    };
    set("/1/small", "v".to_owned());
    for n in 0..20 {
        set(&format!("/1/middle/{n}"), "v".repeat(10 << 10));
        set(&format!("/1/large/{n}"), "v".repeat(100 << 10));
    }
    let identity = Identity { cluster_id: 1, member_id: 2 };
    let shared = Arc::new(Shared::new(identity, "test".to_owned(), machine));
    let (inputs, queue) = sync_channel(16);
    let limits = Arc::new(Limits::new(16));
    (Handle::new(shared, inputs, limits, 1, Duration::from_millis(1)), queue)
}

fn get(path: &str) -> Get {
    Get { path: path.to_owned(), recursive: true }
}

fn room(bytes: usize) -> ClientRoom {
    // One address may have a quarter of a lane, or all of it for one thing.
    Room::new(&[(64 << 20, bytes)]).of(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[tokio::test]
async fn answers_of_every_size_are_those_of_the_tree() {
    let (handle, _queue) = member();
    let room = room(64 << 20);
    for (path, bytes) in [("/1/small", 0), ("/1/middle", 200 << 10), ("/1/large", 2000 << 10)] {
        let (index, body) = look(&handle, &room, &get(path)).await.unwrap();
        let (_, node) = handle.look(&get(path)).unwrap();
        assert!(index > 1 && body.len() > bytes, "{path}");
        assert_eq!(body, v2::get_body(&node, 0, 0), "{path}");
    }
    assert_eq!(look(&handle, &room, &get("/1/none")).await.unwrap_err().status(), 404);
}

#[tokio::test]
async fn what_is_large_waits_for_those_of_its_size_and_nobody_else_does() {
    let (handle, _queue) = member();
    let room = room(64 << 20);
    let turn = handle.limits().turns.take(usize::MAX).await.unwrap();
    let large = get("/1/large");
    let mut waiting = pin!(look(&handle, &room, &large));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    for path in ["/1/middle", "/1/small"] {
        assert!(look(&handle, &room, &get(path)).await.is_ok(), "{path}");
    }
    drop(turn);
    assert!(waiting.await.unwrap().1.len() > 2000 << 10);
}

#[tokio::test]
async fn a_small_answer_is_made_at_once() {
    let (handle, _queue) = member();
    let (room, small) = (room(64 << 20), get("/1/small"));
    let made = pin!(look(&handle, &room, &small)).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(made, Poll::Ready(Ok(_))));
}

#[tokio::test]
async fn what_waits_for_room_holds_no_turn() {
    let (handle, _queue) = member();
    let room = room(4 << 20);
    let held = room.share(4 << 20).await;
    let large = get("/1/large");
    let mut waiting = pin!(look(&handle, &room, &large));
    // It looks, finds no room, and gives the turn back.
    let turn = loop {
        tokio::select! {
            biased;
            made = &mut waiting => panic!("there is no room, but {:?}", made.map(|(_, body)| body.len())),
            () = tokio::task::yield_now() => {}
        }
        if handle.limits().turns.0[1].1.available_permits() == 1 {
            break handle.limits().turns.take(usize::MAX).await;
        }
    };
    drop((turn, held));
    assert!(waiting.await.is_ok());
}
