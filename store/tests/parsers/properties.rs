//! What must hold for any bytes that reach a member from a client, from another member or from its own disk. The first
//! byte chooses the reader, the rest is what it reads. The fuzz target `store` feeds this, and `parsers_corpus.rs` what
//! that found.

#[path = "raft.rs"]
mod raft_messages;

use std::collections::BTreeMap;

use hyper::HeaderMap;
use store::client::{Member as ClientMember, Node as ClientNode, Response};
use store::config::{Config, Url};
use store::machine::{Done, Machine, Position};
use store::membership::{Member, Membership};
use store::tree::{NodeView, Op, path};
use store::wire::command::{Command, Envelope, RequestId};
use store::wire::peer::{self, Hello, Verdict};
use store::wire::transfer::{self, Chunk, Incoming, Offer, Refusal, SnapshotId, TransferError, Window};
use store::wire::v2;
use store::wire::v2_request::{self, Method, Request};

/// The readers, in the order of the first byte.
pub(crate) const READERS: [fn(&[u8]); 9] = [
    v2_request,
    hello_and_heads,
    raft_messages::step,
    commands,
    snapshot,
    transfer,
    client_answer,
    urls_and_flags,
    client_json,
];

/// One input.
pub(crate) fn store(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    READERS[usize::from(first) % READERS.len()](rest);
}

/// Some time in 2026, nanoseconds.
const NOW_NS: i64 = 1_795_000_000_000_000_000;
const ID: RequestId = RequestId { member: 1, number: 1 };

/// Takes a byte off the front; 0 at the end.
fn byte(data: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = data.split_first() else { return 0 };
    *data = rest;
    first
}

/// A machine with a file, a directory with a file in it, and a key that expires.
pub(crate) fn machine() -> Machine {
    let members = (1..=3).map(|n| Member::bootstrap(&format!("n{n}"), &[format!("http://h{n}:2380")], "t"));
    let mut machine = Machine::bootstrap(Membership::bootstrap(members.collect()));
    for (path, expires_ns) in [("/1/a", None), ("/1/d/b", None), ("/1/e", Some(NOW_NS + 5_000_000_000))] {
        let op = Op::Set { path: path.into(), dir: false, value: "1".into(), expires_ns, refresh: false };
        apply(&mut machine, Command::V2(op));
    }
    machine
}

/// Applies a command as every member does: through its bytes.
fn apply(machine: &mut Machine, command: Command) -> Option<Done> {
    let bytes = Envelope { id: ID, command }.encode();
    let position = Position { index: machine.applied.index + 1, term: 2 };
    let applied = machine.apply(position, &bytes).expect("what we encode we decode");
    applied.expect("a command was in it").result.ok()
}

/// The whole way of a request: method, key, query and form, separated by newlines; parsed, replicated, applied,
/// answered, and the answer read by our own client.
fn v2_request(mut data: &[u8]) {
    let methods = [Method::Get, Method::Head, Method::Put, Method::Post, Method::Delete];
    let method = methods[usize::from(byte(&mut data)) % methods.len()];
    let mut parts = data.splitn(3, |&b| b == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (Ok(key), Ok(query)) = (std::str::from_utf8(part()), std::str::from_utf8(part())) else { return };
    let form = Some(part()).filter(|form| !form.is_empty());
    match v2_request::parse(method, key, query, form) {
        Err(error) => {
            assert!((400..500).contains(&error.status()), "{error:?}");
            let body: serde_json::Value = serde_json::from_str(&error.body()).expect("errors are JSON");
            assert_eq!(body["errorCode"], error.code);
        }
        Ok(Request::Get(get) | Request::QuorumGet(get)) => {
            assert!(matches!(method, Method::Get | Method::Head));
            is_users(&get.path);
            if let Ok(node) = machine().tree.look(&get.path, get.recursive) {
                let children = node.shown().children().count();
                let size = v2::get_size(&node);
                shows(&v2::get_body(&node, size, NOW_NS), &node.shown().node.view(node.path()), children);
            }
        }
        Ok(Request::Watch { path, .. }) => is_users(&path),
        Ok(Request::Write { write, .. }) => {
            assert!(!matches!(method, Method::Get | Method::Head));
            let mut machine = machine();
            let before = machine.tree.index();
            let op = write.into_op(NOW_NS);
            let done = apply(&mut machine, Command::V2(op));
            assert_eq!(machine.tree.index(), before + u64::from(done.is_some()), "a change is one index");
            for outcome in done.iter().flat_map(Done::outcomes) {
                is_users(&outcome.event.node.path);
                shows(&v2::event_body(&outcome.event, NOW_NS), &outcome.event.node, 0);
            }
            stays_itself(&machine);
        }
    }
}

/// A path that a client names stays among the users' keys.
fn is_users(full: &str) {
    assert_eq!(path::clean(full), full);
    assert!(full == v2::KEYS_ROOT || full.starts_with(&format!("{}/", v2::KEYS_ROOT)), "{full}");
}

/// Our client reads in an answer what our server wrote into it.
fn shows(body: &str, node: &NodeView, children: usize) {
    let response = answer(200, body.as_bytes()).expect("our answers are well-formed");
    let read = response.node.expect("it has a node");
    assert_eq!(
        (read.key.as_str(), &read.value),
        (v2::user_path(&node.path), &node.value.as_deref().map(str::to_owned))
    );
    assert_eq!((read.dir, read.modified_index), (node.dir, node.modified));
    assert_eq!(read.nodes.len(), children);
}

fn answer(status: u16, body: &[u8]) -> Result<Response, store::client::ClientError> {
    let mut headers = HeaderMap::new();
    headers.insert("x-etcd-index", 7_u64.into());
    Response::from_http("http://h:2379", status, headers, body.to_vec())
}

/// Snapshot and machine are the same, however often one is made of the other.
fn stays_itself(machine: &Machine) {
    let bytes = machine.snapshot();
    let copy = Machine::from_snapshot(&bytes).expect("what we write we read");
    assert_eq!(copy.digest(), machine.digest());
    assert_eq!(copy.snapshot(), bytes);
}

/// What opens a connection between members, and what precedes a frame: one form for each meaning.
fn hello_and_heads(data: &[u8]) {
    if let Some((bytes, _)) = data.split_first_chunk()
        && let Ok(hello) = Hello::decode(bytes)
    {
        assert_eq!(hello.encode(), *bytes);
    }
    if let Some((bytes, _)) = data.split_first_chunk()
        && let Ok(verdict) = Verdict::decode(bytes)
    {
        assert_eq!(verdict.encode(), *bytes);
    }
    if let Some((&head, _)) = data.split_first_chunk()
        && let Ok((kind, length)) = peer::parse_frame_head(head)
    {
        assert!(length < peer::MAX_FRAME_BYTES as usize);
        assert_eq!(peer::frame_head(kind, length), Ok(head));
    }
}

/// Entries of the log: what is read means the same when it is written again, and every machine takes it.
fn commands(data: &[u8]) {
    let mut machine = machine();
    let mut twin = Machine::from_snapshot(&machine.snapshot()).expect("what we write we read");
    for entry in data.split(|&b| b == 0xff) {
        let decoded = Envelope::decode(entry);
        if let Ok(envelope) = &decoded {
            assert_eq!(Envelope::decode(&envelope.encode()).as_ref(), Ok(envelope));
        }
        let position = Position { index: machine.applied.index + 1, term: 2 };
        for machine in [&mut machine, &mut twin] {
            let applied = machine.apply(position, entry);
            assert_eq!(applied.is_ok(), decoded.is_ok() || entry.is_empty());
        }
    }
    assert_eq!(machine.digest(), twin.digest(), "the same entries give the same state");
    stays_itself(&machine);
}

/// A snapshot that is accepted is the state that it says it is, and can be gone on from.
fn snapshot(data: &[u8]) {
    let Ok(mut machine) = Machine::from_snapshot(data) else { return };
    stays_itself(&machine);
    apply(&mut machine, Command::Sync { now_ns: NOW_NS });
    let op =
        Op::Set { path: "/1/a/b".into(), dir: false, value: "2".into(), expires_ns: None, refresh: false };
    apply(&mut machine, Command::V2(op));
    stays_itself(&machine);
}

/// The parts of a transfer: one form for each meaning; and a receiver never takes more than was offered, nor takes for
/// whole what is not.
fn transfer(mut data: &[u8]) {
    if let Ok(offer) = Offer::decode(data) {
        assert_eq!(offer.encode(), data);
    }
    if let Ok(chunk) = Chunk::decode(data) {
        assert_eq!([&chunk.head()[..], chunk.data].concat(), data);
    }
    if let Ok(have) = transfer::decode_have(data) {
        assert_eq!(transfer::encode_have(have), data);
    }
    if let Ok(refusal) = Refusal::decode(data) {
        assert_eq!([refusal.code()], data);
    }
    let total = u64::from(byte(&mut data));
    let mut incoming = Incoming::new(SnapshotId { index: 1, term: 1, total, crc: 0 });
    let mut window = Window::open(total, 0).expect("nothing of it is there yet");
    while !data.is_empty() {
        let (offset, length) = (u64::from(byte(&mut data)), usize::from(byte(&mut data)));
        let (piece, rest) = data.split_at(length.min(data.len()));
        data = rest;
        let before = incoming.have();
        match incoming.take(&Chunk { offset, data: piece }) {
            Ok(()) => assert_eq!(incoming.have(), before + piece.len() as u64),
            // All has come, but it is not what was offered: nothing of it is used.
            Err(TransferError::Whole { .. }) => return,
            Err(_) => assert_eq!(incoming.have(), before),
        }
        assert!(incoming.have() <= total);
        let _ = window.acknowledged(offset);
    }
    assert_eq!(incoming.is_whole(), incoming.have() == total);
}

/// What any server answers to our client: an error has a text, and what is understood is not more than was sent.
fn client_answer(mut data: &[u8]) {
    let status = 200 + 100 * u16::from(byte(&mut data) % 4);
    match answer(status, data) {
        Ok(response) => {
            assert_eq!((status, response.etcd_index), (200, 7));
            assert!(response.action.len() + response.node.map_or(0, |node| node.key.len()) <= data.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Nodes and members as the client knows them.
fn client_json(data: &[u8]) {
    let _ = serde_json::from_slice::<ClientNode>(data);
    if let Ok(member) = serde_json::from_slice::<ClientMember>(data) {
        assert!(member.name.len() + member.id.len() <= data.len());
    }
}

/// URLs mean the same when they are read again, and the command line and environment, a word a line, give a
/// configuration or an error with a text.
fn urls_and_flags(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for line in text.lines() {
        if let Ok(url) = Url::parse(line) {
            assert_eq!(Url::parse(url.text()).as_ref(), Ok(&url));
            assert!(!url.host().is_empty() || url.listen_addrs().is_some());
        }
        if let Err(error) = Response::from_http(line, 200, HeaderMap::new(), Vec::new()) {
            assert!(!error.to_string().is_empty());
        }
    }
    let is_variable = |line: &&str| !line.starts_with('-') && line.contains('=');
    let (variables, words): (Vec<&str>, Vec<&str>) = text.lines().partition(is_variable);
    let env: BTreeMap<String, String> = variables
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let args: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if let Err(error) = Config::read(&args, &env) {
        assert!(!error.to_string().is_empty() && [1, 2].contains(&error.exit_code()));
    }
}
