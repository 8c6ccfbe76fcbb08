//! Dialling and accepting over real sockets, in the clear.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::dial::{LinkError, dial};
use super::*;
use crate::config::Url;
use crate::machine::Machine;
use crate::membership::{Member, Membership};
use crate::server::driver::Input;
use crate::server::handle::Shared;
use crate::state::Identity;
use crate::wire::peer::{Hello, Kind, Purpose, VERDICT_BYTES, Verdict, frame_head};

/// A long time for what should take milliseconds.
const SOON: Duration = Duration::from_secs(10);

/// A cluster on paper: the first member listens, the others dial.
struct Stage {
    shared: Arc<Shared>,
    inputs: Receiver<Input>,
    address: SocketAddr,
    ids: Vec<u64>,
    _dir: tempfile::TempDir,
}

/// Members at `hosts`, the first of which accepts on a free port of the loopback address.
async fn stage(hosts: &[&str]) -> Stage {
    stage_with_room(hosts, inbox::MAX_BYTES).await
}

/// The same, with room for so many bytes of messages that have not been dealt with.
async fn stage_with_room(hosts: &[&str], bytes: usize) -> Stage {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut urls = vec![format!("http://{address}")];
    urls.extend(hosts.iter().map(|host| format!("http://{host}")));
    let members: Vec<Member> =
        urls.iter().map(|url| Member::bootstrap(url, std::slice::from_ref(url), "t")).collect();
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let machine = Machine::bootstrap(Membership::bootstrap(members));
    let identity = Identity { cluster_id: machine.membership.cluster_id, member_id: ids[0] };
    let shared = Arc::new(Shared::new(identity, "test".to_owned(), machine));
    let (sender, inputs) = sync_channel(16);
    let table: BTreeMap<_, _> = ids[1..].iter().map(|&id| (id, Arc::default())).collect();
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path(), 0).unwrap();
    let mut acceptor = Acceptor::new(Arc::clone(&shared), Arc::new(table), sender.clone(), spool);
    acceptor.inbox = inbox::Inbox::new(sender, bytes);
    tokio::spawn(accept(listener, None, Arc::new(acceptor)));
    Stage { shared, inputs, address, ids, _dir: dir }
}

impl Stage {
    fn dialler(&self, n: usize) -> Dialler {
        Dialler { cluster: self.shared.cluster_id, me: self.ids[n], tls: None }
    }

    fn link(&self) -> PeerLink {
        let url = Url::parse(&format!("http://{}", self.address)).unwrap();
        PeerLink { id: self.ids[0], urls: vec![url], stats: Arc::default() }
    }

    async fn dial(&self, n: usize, fresh: bool) -> Result<Box<dyn super::dial::Stream>, LinkError> {
        let link = self.link();
        let purpose = if fresh { Purpose::MayStart } else { Purpose::Messages };
        dial(link.id, &link.urls, &self.dialler(n), purpose).await.map(|(stream, _)| stream).map_err(|e| e.1)
    }

    fn publish(&self, n: usize) {
        self.shared.machine.write().membership.publish(self.ids[n], "published".to_owned(), Vec::new());
    }

    async fn next_input(&self) -> Input {
        let next = async {
            loop {
                match self.inputs.try_recv() {
                    Ok(input) => return input,
                    Err(TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(TryRecvError::Disconnected) => panic!("the acceptor is gone"),
                }
            }
        };
        timeout(SOON, next).await.expect("an input")
    }
}

#[tokio::test]
async fn a_new_member_is_welcome_until_it_has_published_itself() {
    let stage = stage(&["192.0.2.2:1", "192.0.2.3:1"]).await;
    assert!(stage.dial(1, true).await.is_ok());
    stage.publish(1);
    assert!(matches!(stage.dial(1, true).await, Err(LinkError::AlreadyBootstrapped)));
    assert!(stage.dial(1, false).await.is_ok(), "with its log it is welcome");
    assert!(stage.dial(2, true).await.is_ok(), "another one is not affected");
}

/// The membership may lag behind: that a member came with a log is remembered without it.
#[tokio::test]
async fn a_member_that_came_with_a_log_cannot_come_back_without() {
    let stage = stage(&["192.0.2.2:1"]).await;
    drop(stage.dial(1, false).await.unwrap());
    assert!(matches!(stage.dial(1, true).await, Err(LinkError::AlreadyBootstrapped)));
}

#[tokio::test]
async fn who_asks_whether_it_may_start_is_told_by_whom_and_why_not() {
    let stage = stage(&["192.0.2.2:1"]).await;
    timeout(SOON, until_welcome(&[stage.link()], &stage.dialler(1))).await.unwrap().unwrap();
    stage.publish(1);
    let refused = timeout(SOON, until_welcome(&[stage.link()], &stage.dialler(1))).await.unwrap();
    let text = refused.unwrap_err().to_string();
    assert!(text.starts_with(&format!("member {:x} has already been bootstrapped", stage.ids[1])), "{text}");
    assert!(text.contains(&format!("{:x} at http://{}", stage.ids[0], stage.address)), "{text}");
}

#[tokio::test]
async fn it_waits_for_members_that_are_not_there_yet() {
    let stage = stage(&["192.0.2.2:1", "192.0.2.3:1"]).await;
    let later = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let absent = PeerLink {
        id: stage.ids[2],
        urls: vec![Url::parse(&format!("http://{later}")).unwrap()],
        stats: Arc::default(),
    };
    let dialler = stage.dialler(1);
    // One of two others is enough for three, but not if it is the one that is absent.
    timeout(SOON, until_welcome(&[stage.link(), absent.clone()], &dialler)).await.unwrap().unwrap();
    let alone = timeout(Duration::from_millis(700), until_welcome(&[absent], &dialler)).await;
    assert!(alone.is_err(), "nobody has welcomed it");
}

/// So many connections from each of some loopback addresses.
async fn silent(stage: &Stage, addresses: std::ops::RangeInclusive<u8>, each: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for last in addresses {
        for _ in 0..each {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
            silent.push(socket.connect(stage.address).await.unwrap());
        }
    }
    silent
}

#[tokio::test]
async fn silent_connections_do_not_shut_a_member_out() {
    let stage = stage(&["127.0.0.1:9", "192.0.2.3:1"]).await;
    let mut silent = silent(&stage, 2..=40, 5).await;
    timeout(SOON, stage.dial(1, false)).await.unwrap().unwrap();
    let first = timeout(SOON, silent[0].read(&mut [0])).await.expect("the first make room");
    assert!(matches!(first, Ok(0) | Err(_)), "{first:?}");
    let last = timeout(Duration::from_millis(100), silent.last_mut().unwrap().read(&mut [0])).await;
    assert!(last.is_err(), "the last one waits for its hello: {last:?}");
}

/// It is a stranger by its address, and there is no place left for strangers.
#[tokio::test]
async fn silent_connections_do_not_shut_out_a_member_with_a_host_name() {
    let stage = stage(&["localhost:9"]).await;
    for _ in 0..3 {
        let _silent = silent(&stage, 2..=9, 9).await;
        timeout(SOON, stage.dial(1, false)).await.unwrap().unwrap();
    }
    // Nor those at its own address.
    let _silent = silent(&stage, 1..=1, 9).await;
    timeout(SOON, stage.dial(1, false)).await.unwrap().unwrap();
}

/// A snapshot that came past the checks of a transfer would stop the member.
#[tokio::test]
async fn a_snapshot_among_messages_ends_the_connection() {
    use protobuf::Message as _;
    let stage = stage(&["127.0.0.1:9"]).await;
    let mut message = Message { from: stage.ids[1], to: stage.ids[0], term: 7, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let body = message.write_to_bytes().unwrap();
    let mut link = stage.dial(1, false).await.unwrap();
    link.write_all(&[&frame_head(Kind::Raft, body.len()).unwrap()[..], &body].concat()).await.unwrap();
    let end = timeout(SOON, link.read(&mut [0])).await.expect("it is closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(matches!(stage.inputs.try_recv(), Err(TryRecvError::Empty)));
}

#[tokio::test]
async fn a_member_may_have_several_connections_and_no_more() {
    let stage = stage(&["127.0.0.1:9"]).await;
    let mut links = Vec::new();
    for _ in 0..8 {
        links.push(stage.dial(1, false).await.unwrap());
    }
    let (from, to) = (stage.ids[1], stage.ids[0]);
    let hello = Hello { cluster: stage.shared.cluster_id, from, to, purpose: Purpose::Messages };
    let mut waits = TcpStream::connect(stage.address).await.unwrap();
    waits.write_all(&hello.encode()).await.unwrap();
    let mut verdict = [0; VERDICT_BYTES];
    assert!(timeout(Duration::from_millis(300), waits.read_exact(&mut verdict)).await.is_err());
    links.pop();
    timeout(SOON, waits.read_exact(&mut verdict)).await.unwrap().unwrap();
    assert_eq!(Verdict::decode(&verdict), Ok(Verdict::Welcome));
}

#[tokio::test]
async fn messages_arrive_and_a_fresh_connection_brings_none() {
    use protobuf::Message as _;
    let stage = stage(&["127.0.0.1:9"]).await;
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    (message.from, message.to, message.term) = (stage.ids[1], stage.ids[0], 7);
    let frame = |message: &Message| {
        let body = message.write_to_bytes().unwrap();
        [&frame_head(Kind::Raft, body.len()).unwrap()[..], &body].concat()
    };
    let mut fresh = stage.dial(1, true).await.unwrap();
    let _ = fresh.write_all(&frame(&message)).await;
    message.term = 8;
    let mut link = stage.dial(1, false).await.unwrap();
    link.write_all(&frame(&message)).await.unwrap();
    link.flush().await.unwrap();
    let Input::Peer(got) = stage.next_input().await else { panic!("another input") };
    assert_eq!(got.message.term, 8, "what came on the fresh connection is not heard");
}

/// A raft thread that stands still: what waits for it is bounded, and heartbeats come through.
#[tokio::test]
async fn large_messages_that_wait_are_bounded() {
    use protobuf::Message as _;
    let stage = stage_with_room(&["127.0.0.1:9"], 128 << 10).await;
    let frame = |kind, term, bytes| {
        let (from, to) = (stage.ids[1], stage.ids[0]);
        let mut message = Message { from, to, term, ..Message::default() };
        message.set_msg_type(kind);
        if bytes > 0 {
            message.mut_entries().push(Entry { data: vec![7; bytes].into(), ..Entry::default() });
        }
        let body = message.write_to_bytes().unwrap();
        [&frame_head(Kind::Raft, body.len()).unwrap()[..], &body].concat()
    };
    let mut link = stage.dial(1, false).await.unwrap();
    for term in 1..=4 {
        link.write_all(&frame(MessageType::MsgPropose, term, 60_000)).await.unwrap();
    }
    link.write_all(&frame(MessageType::MsgHeartbeatResponse, 5, 0)).await.unwrap();
    let mut held = Vec::new();
    while held.last() != Some(&5) {
        let Input::Peer(delivery) = stage.next_input().await else { panic!("another input") };
        held.push(delivery.message.term);
        // The raft thread works on it.
        std::mem::forget(delivery.room);
    }
    assert_eq!(held, [1, 2, 5]);
}

#[tokio::test]
async fn a_listener_that_cannot_accept_says_so_once() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let told = crate::told::Told::listen();
    let stage = stage(&["127.0.0.1:9"]).await;
    // It does not listen, so that every accept fails.
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
    let listener = TcpListener::from_std(std::net::TcpListener::from(fd)).unwrap();
    let table = BTreeMap::from([(stage.ids[1], Arc::default())]);
    let dir = tempfile::tempdir().unwrap();
    let (sender, _inputs) = sync_channel(1);
    let spool = Spool::open(dir.path(), 0).unwrap();
    let acceptor = Acceptor::new(Arc::clone(&stage.shared), Arc::new(table), sender, spool);
    let accepting = accept(listener, None, Arc::new(acceptor));
    assert!(timeout(4 * REDIAL, accepting).await.is_err());
    assert_eq!(told.times("cannot accept a peer"), 1);
}

/// A member that takes the hello and then refuses what is sent.
#[tokio::test]
async fn a_link_that_is_lost_again_and_again_is_not_told_each_time() {
    let told = crate::told::Told::listen();
    let stage = stage(&["127.0.0.1:9"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (sender, _inputs) = sync_channel(1024);
    let (from, to) = (stage.ids[0], stage.ids[1]);
    let link = PeerLink { id: to, urls: vec![url], stats: Arc::default() };
    let peers = Peers::start(vec![link], stage.dialler(0), sender, tokio::runtime::Handle::current());
    for _ in 0..5 {
        // What is sent makes it notice that the other side is gone.
        let accepted = async {
            loop {
                peers.send(vec![Message { from, to, ..Message::default() }]);
                if let Ok(accepted) = timeout(Duration::from_millis(5), listener.accept()).await {
                    return accepted.unwrap().0;
                }
            }
        };
        let mut link = timeout(SOON, accepted).await.unwrap();
        link.read_exact(&mut [0; crate::wire::peer::HELLO_BYTES]).await.unwrap();
        link.write_all(&Verdict::Welcome.encode()).await.unwrap();
    }
    assert_eq!(told.times("linked to peer"), 1);
    // Twice if one end was noticed as a reset and another as a broken pipe.
    assert!((1..=2).contains(&told.times("lost the link")), "{}", told.times("lost the link"));
}

/// While a peer is away nothing is kept for it, and what is sent after it is back arrives.
#[tokio::test]
async fn nothing_is_kept_for_a_peer_that_is_away() {
    let stage = stage(&["127.0.0.1:9"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (sender, inputs) = sync_channel(1024);
    let to = stage.ids[1];
    let link = PeerLink {
        id: to,
        urls: vec![Url::parse(&format!("http://{address}")).unwrap()],
        stats: Arc::default(),
    };
    let peers = Peers::start(vec![link], stage.dialler(0), sender, tokio::runtime::Handle::current());
    let message = |term| {
        let mut message = Message { from: stage.ids[0], to, term, ..Message::default() };
        message.set_msg_type(MessageType::MsgHeartbeat);
        message
    };
    // More than the queue holds, in portions: none is refused, as each portion is thrown away meanwhile.
    for _ in 0..8 {
        (0..1000).for_each(|_| peers.send(vec![message(1)]));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let unreachable = inputs.try_iter().filter(|input| matches!(input, Input::Unreachable(_))).count();
    assert!((1..10).contains(&unreachable), "told of failed dials only, not of a full queue: {unreachable}");

    let listener = TcpListener::bind(address).await.unwrap();
    let (mut link, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    let mut hello = [0; crate::wire::peer::HELLO_BYTES];
    link.read_exact(&mut hello).await.unwrap();
    assert_eq!(Hello::decode(&hello).unwrap().purpose, Purpose::Messages);
    link.write_all(&Verdict::Welcome.encode()).await.unwrap();
    let mut term = 2;
    let mut head = [0; crate::wire::peer::FRAME_HEAD_BYTES];
    let got = loop {
        // It may take a moment until the other task knows that it is linked.
        peers.send(vec![message(term)]);
        if timeout(Duration::from_millis(50), link.read_exact(&mut head)).await.is_ok() {
            break crate::wire::peer::parse_frame_head(head).unwrap();
        }
        term += 1;
        assert!(term < 100, "no message arrives");
    };
    let mut body = vec![0; got.1];
    link.read_exact(&mut body).await.unwrap();
    let first = <Message as protobuf::Message>::parse_from_bytes(&body).unwrap();
    assert!(got.0 == Kind::Raft && first.term > 1, "a message from before the link: {first:?}");
}

#[tokio::test]
async fn what_must_be_told_waits_for_a_place_in_the_queue() {
    let (sender, inputs) = sync_channel(1);
    sender.try_send(Input::Wake).unwrap();
    let telling =
        tokio::spawn(async move { insist(&sender, Input::SnapshotSent { to: 3, sent: true }).await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(!telling.is_finished(), "the queue is full");
    assert!(matches!(inputs.try_recv(), Ok(Input::Wake)));
    timeout(SOON, telling).await.unwrap().unwrap();
    assert!(matches!(inputs.try_recv(), Ok(Input::SnapshotSent { to: 3, sent: true })));

    let (sender, inputs) = sync_channel(1);
    drop(inputs);
    timeout(SOON, insist(&sender, Input::Stop)).await.expect("gives up when the thread has ended");
}
