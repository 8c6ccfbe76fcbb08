//! Snapshots over real sockets, in the clear, through a relay that can damage and cut them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::config::Url;
use crate::machine::Machine;
use crate::membership::{Member, Membership};
use crate::node::Leadership;
use crate::server::driver::Input;
use crate::server::handle::{Shared, now};
use crate::state::Identity;
use crate::tree::Op;

/// A long time for what should take milliseconds.
const SOON: Duration = Duration::from_secs(20);
/// What precedes the first chunk on a connection: hello and offer.
const PREAMBLE_BYTES: u64 = 150;

/// What a relay does to the connections, one after the other; the last holds for all others.
#[derive(Clone, Copy)]
enum Relay {
    Passes,
    /// Cuts the connection after so many bytes from the sender.
    Cuts(u64),
    /// Turns a bit of the byte at this place.
    Damages(u64),
    /// Takes nothing more after so many bytes, and says nothing.
    Stalls(u64),
}

/// A follower that receives, a leader that sends, a relay in between.
struct Stage {
    shared: Arc<Shared>,
    inputs: Receiver<Input>,
    peers: Peers,
    reports: Receiver<Input>,
    ids: Vec<u64>,
    machine: Machine,
    /// Bytes that the relay has passed on, for each connection.
    passed: Arc<parking_lot::Mutex<Vec<Arc<AtomicU64>>>>,
    _dir: tempfile::TempDir,
}

async fn stage(relays: &'static [Relay]) -> Stage {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let urls = [format!("http://{address}"), "http://127.0.0.1:9".to_owned()];
    let members: Vec<Member> =
        urls.iter().map(|url| Member::bootstrap(url, std::slice::from_ref(url), "t")).collect();
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let empty = Machine::bootstrap(Membership::bootstrap(members.clone()));
    let identity = Identity { cluster_id: empty.membership.cluster_id, member_id: ids[0] };
    let shared = Arc::new(Shared::new(identity, "test".to_owned(), empty));
    let dir = tempfile::tempdir().unwrap();
    let (sender, inputs) = sync_channel(16);
    let table: BTreeMap<_, _> = [(ids[1], Arc::default())].into();
    let spool = Spool::open(dir.path(), 0).unwrap();
    let acceptor = Acceptor::new(Arc::clone(&shared), Arc::new(table), sender, spool);
    tokio::spawn(accept(listener, None, Arc::new(acceptor)));

    let passed = Arc::default();
    let url = Url::parse(&format!("http://{}", relay(address, relays, Arc::clone(&passed)).await)).unwrap();
    let link = PeerLink { id: ids[0], urls: vec![url], stats: Arc::default() };
    let dialler = Dialler { cluster: identity.cluster_id, me: ids[1], tls: None };
    let (sender, reports) = sync_channel(1024);
    let peers = Peers::start(vec![link], dialler, sender, tokio::runtime::Handle::current());
    let mut machine = Machine::bootstrap(Membership::bootstrap(members));
    for n in 0..300 {
        let op = Op::Set {
            path: format!("/1/k{n}"),
            dir: false,
            value: format!("{n:05000}"),
            expires_ns: None,
            refresh: false,
        };
        machine.tree.apply(&op).unwrap();
    }
    machine.applied.index = 500;
    Stage { shared, inputs, peers, reports, ids, machine, passed, _dir: dir }
}

async fn relay(
    to: SocketAddr,
    relays: &'static [Relay],
    passed: Arc<parking_lot::Mutex<Vec<Arc<AtomicU64>>>>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = 0;
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut hello = [0; crate::wire::peer::HELLO_BYTES];
            if from.read_exact(&mut hello).await.is_err() {
                continue;
            }
            let mut into = TcpStream::connect(to).await.unwrap();
            into.write_all(&hello).await.unwrap();
            // The link for messages is not what is tested here.
            let is_snapshot = hello[29] == 2;
            let what = if is_snapshot { relays[connections.min(relays.len() - 1)] } else { Relay::Passes };
            let count = Arc::new(AtomicU64::new(0));
            if is_snapshot {
                connections += 1;
                passed.lock().push(Arc::clone(&count));
            }
            tokio::spawn(pass(from, into, what, count));
        }
    });
    address
}

async fn pass(from: TcpStream, into: TcpStream, what: Relay, count: Arc<AtomicU64>) {
    let (mut from_read, mut from_write) = from.into_split();
    let (mut into_read, mut into_write) = into.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut into_read, &mut from_write).await });
    let mut buffer = vec![0; 8192];
    loop {
        let done = count.load(Ordering::Relaxed);
        match what {
            Relay::Cuts(at) if done >= at => break,
            Relay::Stalls(at) if done >= at => std::future::pending().await,
            _ => {}
        }
        let Ok(got @ 1..) = from_read.read(&mut buffer).await else { break };
        if let Relay::Damages(at) = what
            && let Some(byte) =
                at.checked_sub(done).and_then(|at| buffer[..got].get_mut(usize::try_from(at).unwrap()))
        {
            *byte ^= 0x20;
        }
        if into_write.write_all(&buffer[..got]).await.is_err() {
            break;
        }
        count.fetch_add(got as u64, Ordering::Relaxed);
    }
    // What was passed on arrives before the end does.
    let _ = into_write.shutdown().await;
    let _ = back.await;
}

impl Stage {
    fn message(&self, term: u64) -> Message {
        let mut message = Message { from: self.ids[1], to: self.ids[0], term, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        let meta = message.mut_snapshot().mut_metadata();
        (meta.index, meta.term) = (self.machine.applied.index, self.machine.applied.term);
        message
    }

    fn send(&self, term: u64) {
        self.peers.keep_snapshot(self.machine.freeze());
        self.peers.send(vec![self.message(term)]);
    }

    async fn arrived(&self) -> Arrived {
        match next(&self.inputs, |input| matches!(input, Input::Snapshot(_))).await {
            Input::Snapshot(arrived) => *arrived,
            _ => unreachable!("only this was waited for"),
        }
    }

    async fn reported(&self) -> bool {
        match next(&self.reports, |input| matches!(input, Input::SnapshotSent { .. })).await {
            Input::SnapshotSent { sent, .. } => sent,
            _ => unreachable!("only this was waited for"),
        }
    }

    fn passed(&self) -> Vec<u64> {
        self.passed.lock().iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    async fn assert_arrives(&self) {
        let arrived = self.arrived().await;
        assert!(arrived.machine.snapshot() == self.machine.snapshot(), "another state has arrived");
        assert_eq!(arrived.message, self.message(arrived.message.term));
        assert!(self.reported().await, "raft is told that it has been sent");
    }
}

async fn next(inputs: &Receiver<Input>, wanted: impl Fn(&Input) -> bool) -> Input {
    let next = async {
        loop {
            match inputs.try_recv() {
                Ok(input) if wanted(&input) => return input,
                Ok(_) => {}
                Err(TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(TryRecvError::Disconnected) => panic!("the other end is gone"),
            }
        }
    };
    timeout(SOON, next).await.expect("an input")
}

#[tokio::test]
async fn a_snapshot_arrives_and_raft_is_told() {
    let stage = stage(&[Relay::Passes]).await;
    stage.send(3);
    stage.assert_arrives().await;
    assert_eq!(stage.passed().len(), 1);
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_was() {
    let stage = stage(&[Relay::Cuts(700_000), Relay::Cuts(400_000), Relay::Passes]).await;
    let total = stage.machine.snapshot().len() as u64;
    assert!(total > 1_400_000, "{total}");
    stage.send(3);
    stage.assert_arrives().await;
    let passed = stage.passed();
    assert_eq!(passed.len(), 3);
    let again = passed.iter().sum::<u64>() - total;
    // At most the chunk that was cut, twice, and what goes around the chunks.
    assert!(
        again < 2 * 131_072 + 2 * 16_384 + 3 * PREAMBLE_BYTES + 1_000,
        "{again} bytes were sent twice: {passed:?}"
    );
}

#[tokio::test]
async fn a_damaged_chunk_is_sent_again() {
    let stage = stage(&[Relay::Damages(300_000), Relay::Passes]).await;
    stage.send(3);
    stage.assert_arrives().await;
    let passed = stage.passed();
    assert_eq!(passed.len(), 2, "refused once");
    assert!(
        passed[1] < stage.machine.snapshot().len() as u64,
        "what was sound is not sent again: {passed:?}"
    );
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_reported_so_that_raft_goes_on() {
    let stage = stage(&[Relay::Cuts(300_000), Relay::Cuts(0)]).await;
    stage.send(3);
    assert!(!stage.reported().await);
    assert!(!stage.inputs.try_iter().any(|input| matches!(input, Input::Snapshot(_))));
    // And what it had is still there for the next attempt, but the relay lets nothing through.
    stage.send(3);
    assert!(!stage.reported().await);
}

#[tokio::test]
async fn a_transfer_that_stands_still_is_given_up() {
    let stage = stage(&[Relay::Stalls(300_000)]).await;
    stage.send(3);
    assert!(!stage.reported().await);
}

#[tokio::test]
async fn a_snapshot_of_an_old_term_is_refused_at_once() {
    let stage = stage(&[Relay::Passes]).await;
    stage.shared.leadership.send_replace((Leadership { leader: 0, leads: false, term: 9 }, now()));
    stage.send(8);
    assert!(!stage.reported().await);
    assert_eq!(stage.passed().len(), 1, "it is not tried again");
}

#[tokio::test]
async fn a_later_transfer_takes_the_place_of_one_that_hangs() {
    let stage = stage(&[Relay::Stalls(300_000), Relay::Passes]).await;
    stage.send(3);
    let half = async {
        while stage.passed().first().is_none_or(|passed| *passed < 300_000) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, half).await.unwrap();
    stage.send(4);
    let arrived = stage.arrived().await;
    assert_eq!(arrived.message.term, 4);
    assert!(stage.reported().await);
    assert!(stage.passed()[1] < stage.machine.snapshot().len() as u64, "it goes on where the other one was");
}

#[tokio::test]
async fn a_snapshot_that_was_dropped_is_reported() {
    let stage = stage(&[Relay::Passes]).await;
    stage.peers.keep_snapshot(stage.machine.freeze());
    stage.peers.forget_snapshot_except(Some(499));
    stage.peers.send(vec![stage.message(3)]);
    assert!(!stage.reported().await);
}
