//! The way to a peer over a pipe of a bounded length.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dial::LinkError;
use super::frames::read_frame;
use super::lane::{Lane, QUEUE, QUEUE_BYTES};
use super::{KEEP_ALIVE, SILENCE};
use crate::wire::peer::{FRAME_HEAD_BYTES, Kind};

/// A long time for what should take milliseconds.
const SOON: Duration = Duration::from_secs(10);

/// A lane whose other end is `far`.
struct Stage {
    lane: Arc<Lane>,
    task: JoinHandle<LinkError>,
    far: DuplexStream,
}

/// The pipe holds so many bytes. What is sent from now on is sent.
async fn stage(pipe: usize) -> Stage {
    let (near, far) = duplex(pipe);
    let lane = Arc::<Lane>::default();
    let served = Arc::clone(&lane);
    let task = tokio::spawn(async move { served.serve(Box::new(near)).await });
    tokio::task::yield_now().await;
    Stage { lane, task, far }
}

impl Stage {
    /// As the raft thread sends.
    fn send(&self, message: Message) -> bool {
        let fits = self.lane.enqueue(message);
        self.lane.push();
        fits
    }

    /// The next message that arrives.
    async fn next(&mut self) -> Message {
        loop {
            match timeout(SOON, read_frame(&mut self.far)).await.unwrap().unwrap().unwrap() {
                (Kind::KeepAlive, _) => {}
                (_, body) => return <Message as protobuf::Message>::parse_from_bytes(&body).unwrap(),
            }
        }
    }
}

/// A message of this term with an entry of so many bytes.
fn message(term: u64, bytes: usize) -> Message {
    let mut message = Message { term, index: 1, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    message.mut_entries().push(Entry { index: 2, data: vec![7; bytes].into(), ..Entry::default() });
    message
}

#[tokio::test]
async fn what_the_connection_takes_is_on_its_way_at_once() {
    let mut stage = stage(1 << 10).await;
    // Two in one go; the task has had no chance to run since.
    assert!(stage.lane.enqueue(message(1, 10)) && stage.send(message(2, 10)));
    stage.task.abort();
    let mut arrived = Vec::new();
    stage.far.read_buf(&mut arrived).await.unwrap();
    let lengths = 2 * FRAME_HEAD_BYTES + protobuf::Message::compute_size(&message(1, 10)) as usize * 2;
    assert_eq!(arrived.len(), lengths);
}

#[tokio::test]
async fn what_it_does_not_take_follows_in_order() {
    let mut stage = stage(64).await;
    for term in 1..=300 {
        // Some larger than all that is written at one go, some that are cut.
        assert!(stage.send(message(term, if term % 100 == 0 { 3 << 20 } else { 100 })));
        if term % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for term in 1..=300 {
        let got = stage.next().await;
        assert_eq!(
            (got.term, got.entries[0].data.len()),
            (term, if term % 100 == 0 { 3 << 20 } else { 100 })
        );
    }
    // It is free again: no task is needed.
    assert!(stage.send(message(301, 1)));
    stage.task.abort();
    assert_eq!(stage.next().await.term, 301);
}

#[tokio::test]
async fn what_waits_is_bounded() {
    let many = stage(64).await;
    let taken = (0..2 * QUEUE).take_while(|_| many.send(message(1, 1))).count();
    assert!((QUEUE..QUEUE + QUEUE / 2).contains(&taken), "{taken}: some are made ready for the connection");

    let large = stage(64).await;
    let taken = (0..1000).take_while(|_| large.send(message(1, 1 << 20))).count();
    assert!((QUEUE_BYTES >> 20..=(QUEUE_BYTES >> 20) + 1).contains(&taken), "{taken}");
    // One that is larger than everything goes when nothing else waits.
    let single = stage(64).await;
    assert!(single.send(message(1, QUEUE_BYTES + 1)));
}

#[tokio::test]
async fn nothing_is_kept_without_a_connection() {
    let lane = Arc::<Lane>::default();
    for _ in 0..2 * QUEUE {
        assert!(lane.enqueue(message(1, 1000)));
    }
    lane.push();
    let (near, mut far) = duplex(1 << 20);
    let served = Arc::clone(&lane);
    let task = tokio::spawn(async move { served.serve(Box::new(near)).await });
    tokio::task::yield_now().await;
    lane.enqueue(message(2, 0));
    lane.push();
    // Both what was before and what comes after the connection.
    task.abort();
    let _ = task.await;
    assert!(lane.enqueue(message(3, 0)));
    lane.push();
    let mut arrived = Vec::new();
    far.read_to_end(&mut arrived).await.unwrap();
    let length = FRAME_HEAD_BYTES + protobuf::Message::compute_size(&message(2, 0)) as usize;
    assert_eq!(arrived.len(), length);
}

#[tokio::test]
async fn a_quiet_link_says_that_it_is_alive_and_a_busy_one_need_not() {
    let mut stage = stage(1 << 16).await;
    let begun = crate::server::handle::now();
    let (kind, _) = timeout(SOON, read_frame(&mut stage.far)).await.unwrap().unwrap().unwrap();
    assert_eq!(kind, Kind::KeepAlive);
    assert!(begun.elapsed() >= KEEP_ALIVE);
    for term in 1..25 {
        assert!(stage.send(message(term, 1)));
        tokio::time::sleep(KEEP_ALIVE / 10).await;
    }
    for _ in 1..25 {
        let (kind, _) = read_frame(&mut stage.far).await.unwrap().unwrap();
        assert_eq!(kind, Kind::Raft);
    }
}

/// However much it has to take, a peer has time as long as it takes something.
#[tokio::test]
async fn who_takes_nothing_is_given_up_and_who_takes_little_is_not() {
    let mut slow = stage(64).await;
    let stuck = stage(64).await;
    assert!(slow.send(message(1, 1 << 20)) && stuck.send(message(1, 1 << 20)));
    let given_up = timeout(SILENCE + SOON, stuck.task);
    let little = async {
        for _ in 0..(SILENCE.as_secs() + 3) * 4 {
            slow.far.read_exact(&mut [0; 64]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    let (error, ()) = tokio::join!(given_up, little);
    assert!(matches!(error, Ok(Ok(LinkError::Timeout(SILENCE)))), "{error:?}");
    assert!(!slow.task.is_finished());
}

#[tokio::test]
async fn a_broken_connection_ends_the_service() {
    let Stage { lane, task, far } = stage(64).await;
    drop(far);
    // Found by whoever sends, and told to the task.
    assert!(lane.enqueue(message(1, 1)));
    lane.push();
    let error = timeout(SOON, task).await.unwrap().unwrap();
    assert!(matches!(error, LinkError::Io(_)), "{error}");
    assert!(lane.enqueue(message(2, 1)), "thrown away");
}
