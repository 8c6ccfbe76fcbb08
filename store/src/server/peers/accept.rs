//! The receiving side: who comes in, and what a connection from a member brings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use parking_lot::Mutex;
use raft::eraftpb::MessageType;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::super::driver::Input;
use super::super::handle::{Shared, now};
use super::super::stats::PeerStats;
use super::super::tls;
use super::dial::{LinkError, Stream, tune};
use super::door::{Door, Waiting};
use super::frames::read_frame;
use super::inbox::{Inbox, MAX_BYTES};
use super::receive::Reception;
use super::spool::Spool;
use super::{DIAL_TIMEOUT, REDIAL, WRITE_BUFFER};
use crate::complaints::{Complaints, Say};
use crate::config::Url;
use crate::membership::Membership;
use crate::wire::peer::{HELLO_BYTES, Hello, Kind, PeerError, Purpose, Verdict};
use crate::wire::raft_message;

/// Connections that one member may have: its link, snapshots, and old ones whose end has not been noticed yet.
const MAX_PER_MEMBER: usize = 8;
/// Time in which the other side of a failed handshake may fetch the alert.
const LINGER: Duration = Duration::from_millis(200);

/// What accepting needs to know, shared by all listeners.
pub struct Acceptor {
    shared: Arc<Shared>,
    members: Arc<BTreeMap<u64, Arc<PeerStats>>>,
    pub(super) inbox: Inbox,
    reception: Reception,
    door: Arc<Mutex<Door>>,
    slots: BTreeMap<u64, Arc<Semaphore>>,
    /// Members that have been here with a raft log: an empty one is not what they had.
    seen: Mutex<BTreeSet<u64>>,
    complaints: Mutex<Complaints<IpAddr>>,
}

impl Acceptor {
    /// For the member of `shared`: messages from the others, `members`, go to `inputs`, snapshots through `spool`.
    pub fn new(
        shared: Arc<Shared>,
        members: Arc<BTreeMap<u64, Arc<PeerStats>>>,
        inputs: SyncSender<Input>,
        spool: Spool,
    ) -> Acceptor {
        let places = addresses(&shared.machine.read().membership, shared.member_id);
        let slot = |id: &u64| (*id, Arc::new(Semaphore::new(MAX_PER_MEMBER)));
        Acceptor {
            slots: members.keys().map(slot).collect(),
            door: Arc::new(Mutex::new(Door::new(places))),
            seen: Mutex::default(),
            complaints: Mutex::new(Complaints::new()),
            reception: Reception::new(spool),
            shared,
            members,
            inbox: Inbox::new(inputs, MAX_BYTES),
        }
    }

    /// What to answer to who is not welcome, and the same in words for our own log.
    fn judge(&self, hello: &Hello) -> Result<(), (Verdict, &'static str)> {
        if hello.cluster != self.shared.cluster_id {
            return Err((Verdict::OtherCluster, "it belongs to another cluster"));
        }
        if hello.to != self.shared.member_id {
            return Err((Verdict::NotMe, "it means to reach another member"));
        }
        if !self.members.contains_key(&hello.from) {
            return Err((Verdict::UnknownMember, "it is no member of this cluster"));
        }
        if hello.purpose != Purpose::MayStart {
            self.seen.lock().insert(hello.from);
        } else if self.has_run(hello.from) {
            return Err((
                Verdict::AlreadyBootstrapped,
                "it comes with an empty data directory but has already been bootstrapped: it must not vote again \
                 under its old id",
            ));
        }
        Ok(())
    }

    /// Whether a member has had a raft log before: it has published itself, or has been here with one.
    fn has_run(&self, id: u64) -> bool {
        let machine = self.shared.machine.read();
        machine.membership.member(id).is_some_and(|member| !member.name.is_empty())
            || self.seen.lock().contains(&id)
    }

    /// Tells the log, not more often than useful. Who it is about: as the hello said, else by the address.
    fn complain(&self, from: SocketAddr, id: Option<u64>, error: &LinkError) {
        let why = error.to_string();
        let Some(Say { held_back }) = self.complaints.lock().admit(now(), &from.ip(), &why) else { return };
        let known = self.door.lock().members_at(from.ip()).to_vec();
        let peer = match (id, known.as_slice()) {
            (Some(id), _) => format!("{id:x}"),
            (None, []) => "unknown".to_owned(),
            (None, ids) => ids.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(" or "),
        };
        tracing::warn!(%from, %peer, error = why, held_back, "connection from a peer refused or lost");
    }

    /// The raft thread has more to do than it can: raft sends again what matters.
    fn tell_dropped(&self, from: SocketAddr, id: u64) {
        let why = "this member does not keep up with what the others send";
        let Some(Say { held_back }) = self.complaints.lock().admit(now(), &from.ip(), why) else { return };
        tracing::warn!(%from, peer = format_args!("{id:x}"), error = why, held_back, "message from a peer dropped");
    }
}

/// Which other members are at which address, by their peer URLs. A host name stands for no address here: what it
/// resolves to may change.
fn addresses(membership: &Membership, me: u64) -> BTreeMap<IpAddr, Vec<u64>> {
    let mut places: BTreeMap<IpAddr, Vec<u64>> = BTreeMap::new();
    for member in membership.members().filter(|member| member.id != me) {
        let urls = member.peer_urls.iter().filter_map(|url| Url::parse(url).ok());
        let ips: BTreeSet<IpAddr> = urls.filter_map(|url| url.host().parse().ok()).collect();
        for ip in ips {
            places.entry(ip.to_canonical()).or_default().push(member.id);
        }
    }
    places
}

/// Accepts peers on one listener for ever; inside TLS if `tls` is there.
pub async fn accept(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, acceptor: Arc<Acceptor>) {
    let mut complaints = Complaints::new();
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(Say { held_back }) = complaints.admit(now(), &(), &error.to_string()) {
                    tracing::warn!(%error, held_back, "cannot accept a peer");
                }
                tokio::time::sleep(REDIAL).await;
                continue;
            }
        };
        let (waiting, leaving) = Waiting::enter(&acceptor.door, from.ip());
        if let Some(leaving) = leaving {
            leaving.has_left().await;
        }
        tune(&tcp);
        let (tls, acceptor) = (tls.clone(), Arc::clone(&acceptor));
        tokio::spawn(async move {
            let mut id = None;
            match serve(tcp, from, tls, &acceptor, waiting, &mut id).await {
                Ok(()) => tracing::debug!(%from, "peer closed its connection"),
                Err(error) => acceptor.complain(from, id, &error),
            }
        });
    }
}

async fn serve(
    tcp: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    acceptor: &Acceptor,
    waiting: Waiting,
    id: &mut Option<u64>,
) -> Result<(), LinkError> {
    let greeted = tokio::select! {
        // Who has just said hello need not go.
        biased;
        greeted = timeout(DIAL_TIMEOUT, greet(tcp, from, tls, acceptor, id)) => greeted,
        () = waiting.is_needed() => {
            let why = "closed: too many connections have not said hello yet, and this is the oldest of them";
            return Err(LinkError::Refused(why));
        }
    };
    drop(waiting);
    // A fresh member has only asked whether it may start.
    let Some(Greeted { stream, hello, slot: _slot }) =
        greeted.map_err(|_| LinkError::Timeout(DIAL_TIMEOUT))??
    else {
        return Ok(());
    };
    if hello.purpose == Purpose::Snapshot {
        let Acceptor { reception, shared, inbox, .. } = acceptor;
        return reception.receive(stream, hello.from, shared, inbox.inputs()).await;
    }
    let mut stream = BufReader::with_capacity(WRITE_BUFFER, stream);
    let stats = acceptor.members.get(&hello.from).cloned();
    loop {
        let Some((kind, body)) = read_frame(&mut stream).await? else { return Ok(()) };
        match kind {
            Kind::Raft => {}
            Kind::KeepAlive => continue,
            Kind::Offer | Kind::Chunk | Kind::Have | Kind::Done | Kind::Refused => {
                return Err(LinkError::Refused("it sends a part of a snapshot among messages"));
            }
        }
        let message = raft_message::decode(&body).map_err(|error| LinkError::Io(error.to_string()))?;
        if message.from != hello.from || message.to != acceptor.shared.member_id {
            return Err(LinkError::Refused("it sends messages in another member's name"));
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            return Err(LinkError::Refused("it sends a snapshot among messages"));
        }
        if let (Some(stats), MessageType::MsgAppendResponse) = (&stats, message.get_msg_type()) {
            stats.append_answered();
        }
        if !acceptor.inbox.put(message, body.len()).await {
            acceptor.tell_dropped(from, hello.from);
        }
    }
}

/// A member that may send.
struct Greeted {
    stream: Box<dyn Stream>,
    hello: Hello,
    /// Its place among the connections of the same member.
    slot: OwnedSemaphorePermit,
}

/// TLS if it is on, the hello and the verdict. `None` if it was welcome and is already done.
async fn greet(
    tcp: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    acceptor: &Acceptor,
    id: &mut Option<u64>,
) -> Result<Option<Greeted>, LinkError> {
    let mut unfit = None;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let stream = handshake(config, tcp).await?;
            let (_, session) = stream.get_ref();
            let certificate = session.peer_certificates().and_then(<[_]>::first);
            unfit = certificate.and_then(|certificate| tls::is_valid_for(certificate, from.ip()).err());
            Box::new(stream)
        }
    };
    let mut bytes = [0; HELLO_BYTES];
    let hello = match stream.read_exact(&mut bytes).await {
        Ok(_) => Hello::decode(&bytes),
        Err(error) => return Err(unfit.map_or_else(|| error.into(), LinkError::Io)),
    };
    *id = hello.as_ref().ok().map(|hello| hello.from).filter(|id| acceptor.members.contains_key(id));
    // TLS is up, so the other side can be told in words what is wrong with its certificate.
    let refused = match (unfit, &hello) {
        (Some(unfit), _) => Some((Verdict::BadCertificateName, LinkError::Io(unfit))),
        (None, Err(error @ PeerError::Version(_))) => Some((Verdict::OtherVersion, (*error).into())),
        (None, Err(error)) => return Err((*error).into()),
        (None, Ok(hello)) => {
            acceptor.judge(hello).err().map(|(verdict, why)| (verdict, LinkError::Refused(why)))
        }
    };
    if let Some((verdict, error)) = refused {
        answer(&mut stream, verdict).await?;
        let _ = stream.shutdown().await;
        return Err(error);
    }
    let hello = hello?;
    if hello.purpose == Purpose::MayStart {
        answer(&mut stream, Verdict::Welcome).await?;
        return Ok(None);
    }
    // An old connection of the same member may be in its last moments.
    let slots =
        acceptor.slots.get(&hello.from).ok_or(LinkError::Refused("it is no member of this cluster"))?;
    let slot = Arc::clone(slots).acquire_owned();
    let slot = slot.await.map_err(|_| LinkError::Refused("this member is ending"))?;
    answer(&mut stream, Verdict::Welcome).await?;
    Ok(Some(Greeted { stream, hello, slot }))
}

async fn answer(stream: &mut Box<dyn Stream>, verdict: Verdict) -> Result<(), LinkError> {
    stream.write_all(&verdict.encode()).await?;
    stream.flush().await?;
    Ok(())
}

/// TLS, and when it fails, a moment for the other side to read why: a connection that is closed while something
/// is unread is reset, and what was sent last may be lost with it.
async fn handshake(
    config: Arc<rustls::ServerConfig>,
    tcp: TcpStream,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>, LinkError> {
    match TlsAcceptor::from(config).accept(tcp).into_fallible().await {
        Ok(stream) => Ok(stream),
        Err((error, mut tcp)) => {
            let _ = tcp.shutdown().await;
            let mut rest = [0; 4096];
            let drain = async { while matches!(tcp.read(&mut rest).await, Ok(1..)) {} };
            let _ = timeout(LINGER, drain).await;
            Err(error.into())
        }
    }
}
