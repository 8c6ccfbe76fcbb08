//! Sending a snapshot, on a connection of its own: heartbeats do not wait behind it.
//!
//! The bytes are made while they are sent, from a state that stands still ([`Snapshot`]): however many followers want it
//! and however large it is, a transfer holds a few chunks. One that breaks is begun again where the receiver stands, for
//! as long as it gets on; raft is told how it ended in any case, for it sends that follower nothing else until then.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OnceCell, mpsc};
use tokio::time::timeout;

use super::super::handle::now;
use super::dial::{Dialler, LinkError, PeerLink, dial};
use super::frames::{read_frame, send_frame};
use super::{KEEP_ALIVE, REDIAL, STALL};
use crate::complaints::{Complaints, Say};
use crate::snapshot::Snapshot;
use crate::wire::peer::{Kind, Purpose};
use crate::wire::transfer::{
    CHUNK_BYTES, Chunk, Offer, Refusal, SnapshotId, WINDOW_BYTES, Window, decode_have,
};

/// Chunks made ahead of the connection.
const CHUNKS_AHEAD: usize = 4;
/// A transfer that gets no further for that long, over all its connections, is given up. Raft asks for another one when
/// the follower is heard of again, which goes on where this one ended if it is the same snapshot.
const GIVE_UP: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 20 });

const _: () = assert!((CHUNKS_AHEAD * CHUNK_BYTES) as u64 <= WINDOW_BYTES);

/// A snapshot for any number of followers.
#[derive(Debug)]
pub(super) struct Parcel {
    snapshot: Snapshot,
    id: OnceCell<SnapshotId>,
}

impl Parcel {
    pub(super) fn new(snapshot: Snapshot) -> Parcel {
        Parcel { snapshot, id: OnceCell::new() }
    }

    /// Raft index of the state.
    pub(super) fn index(&self) -> u64 {
        self.snapshot.applied().index
    }

    /// Its length and checksum, found by writing it once to nowhere.
    async fn id(self: &Arc<Self>) -> Result<SnapshotId, LinkError> {
        let measure = || async {
            let parcel = Arc::clone(self);
            let measured = tokio::task::spawn_blocking(move || {
                let mut measure = BufWriter::with_capacity(CHUNK_BYTES, Measure::default());
                parcel.snapshot.write_to(&mut measure)?;
                measure.into_inner().map_err(io::IntoInnerError::into_error)
            });
            let Measure { total, crc } =
                measured.await.map_err(|error| LinkError::Io(error.to_string()))??;
            let position = self.snapshot.applied();
            Ok(SnapshotId { index: position.index, term: position.term, total, crc: crc.finalize() })
        };
        self.id.get_or_try_init(measure).await.copied()
    }

    /// Chunks from `offset` on, made in a thread of its own as fast as they are taken.
    fn chunks(self: &Arc<Self>, offset: u64) -> mpsc::Receiver<(u64, Vec<u8>)> {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let parcel = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut cut = Cut { skip: offset, offset, chunk: Vec::with_capacity(CHUNK_BYTES), to: sender };
            // It only fails when nobody takes the chunks any more.
            let _ = parcel.snapshot.write_to(&mut cut).and_then(|()| cut.flush());
        });
        chunks
    }
}

/// Counts and sums.
#[derive(Default)]
struct Measure {
    total: u64,
    crc: crc32fast::Hasher,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.total += bytes.len() as u64;
        self.crc.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts what is written into chunks.
struct Cut {
    /// Bytes still to be left out.
    skip: u64,
    /// Where the next chunk begins.
    offset: u64,
    chunk: Vec<u8>,
    to: mpsc::Sender<(u64, Vec<u8>)>,
}

impl Write for Cut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        let rest = &bytes[skipped..];
        let fits = rest.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&rest[..fits]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(skipped + fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
            let (offset, length) = (self.offset, chunk.len() as u64);
            self.to.blocking_send((offset, chunk)).map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.offset += length;
        }
        Ok(())
    }
}

/// How far the receiver has ever been, and since when.
struct Progress {
    have: u64,
    at: Instant,
}

/// Brings a snapshot to a follower.
///
/// # Errors
/// Why that was given up.
pub(super) async fn deliver(
    parcel: &Arc<Parcel>,
    message: &Message,
    link: &PeerLink,
    dialler: &Dialler,
) -> Result<(), LinkError> {
    let message = message.write_to_bytes().map_err(|error| LinkError::Io(error.to_string()))?;
    let offer = Offer { id: parcel.id().await?, message };
    let mut progress = Progress { have: 0, at: now() };
    let mut complaints = Complaints::new();
    loop {
        let Err(error) = attempt(parcel, &offer, link, dialler, &mut progress).await else { return Ok(()) };
        let for_good = matches!(&error, LinkError::Declined(why) if !why.may_retry());
        if for_good || now() - progress.at >= GIVE_UP {
            return Err(error);
        }
        if let Some(Say { held_back }) = complaints.admit(now(), &link.id, &error.to_string()) {
            let peer = format_args!("{:x}", link.id);
            tracing::warn!(%peer, %error, held_back, received = progress.have, "a snapshot is held up; trying again");
        }
        tokio::time::sleep(REDIAL).await;
    }
}

/// One connection, from where the receiver stands.
async fn attempt(
    parcel: &Arc<Parcel>,
    offer: &Offer,
    link: &PeerLink,
    dialler: &Dialler,
    progress: &mut Progress,
) -> Result<(), LinkError> {
    let (stream, url) =
        dial(link.id, &link.urls, dialler, Purpose::Snapshot).await.map_err(|(_, error)| error)?;
    let (mut from, mut into) = tokio::io::split(stream);
    send_frame(&mut into, Kind::Offer, &[&offer.encode()]).await?;
    let have = loop {
        match reply(&mut from).await? {
            Reply::Have(have) => break have,
            Reply::Wait => {}
            Reply::Done => {
                return Err(LinkError::Refused("it says that it is done before anything was sent"));
            }
        }
    };
    let SnapshotId { index, total, .. } = offer.id;
    let peer = format!("{:x}", link.id);
    tracing::info!(%peer, %url, index, bytes = total, from = have, "sending a snapshot");
    let flow = Flow { window: Mutex::new(Window::open(total, have)?), opened: Notify::new() };
    let done = async {
        let hear = hear(&mut from, &flow, total, progress);
        tokio::pin!(hear);
        tokio::select! {
            heard = &mut hear => return heard,
            spoken = speak(&mut into, &flow, parcel.chunks(have), total) => spoken?,
        }
        // Everything is on its way; the receiver has the last word.
        hear.await
    };
    done.await?;
    let _ = into.shutdown().await;
    tracing::info!(%peer, %url, index, "the snapshot has arrived");
    Ok(())
}

/// What the two directions of a connection share.
struct Flow {
    window: Mutex<Window>,
    /// Told when the window has opened.
    opened: Notify,
}

/// Sends chunks while the window is open, and signs of life while it is not.
async fn speak(
    into: &mut (impl AsyncWrite + Unpin),
    flow: &Flow,
    mut chunks: mpsc::Receiver<(u64, Vec<u8>)>,
    total: u64,
) -> Result<(), LinkError> {
    let mut sent_to = None;
    loop {
        while !flow.window.lock().is_open() {
            if timeout(KEEP_ALIVE, flow.opened.notified()).await.is_err() {
                send_frame(into, Kind::KeepAlive, &[]).await?;
            }
        }
        let Ok(next) = timeout(KEEP_ALIVE, chunks.recv()).await else {
            send_frame(into, Kind::KeepAlive, &[]).await?;
            continue;
        };
        let Some((offset, data)) = next else {
            let whole = sent_to.is_none_or(|sent_to| sent_to == total);
            return if whole {
                Ok(())
            } else {
                Err(LinkError::Io("the snapshot could not be written".to_owned()))
            };
        };
        let chunk = Chunk { offset, data: &data };
        // Before it is sent, as the answer may come at once.
        flow.window.lock().sent(data.len());
        send_frame(into, Kind::Chunk, &[&chunk.head(), chunk.data]).await?;
        sent_to = Some(offset + data.len() as u64);
    }
}

/// Takes what the receiver says until it is done, and sees that it gets on.
async fn hear(
    from: &mut (impl AsyncRead + Unpin),
    flow: &Flow,
    total: u64,
    progress: &mut Progress,
) -> Result<(), LinkError> {
    let mut news = now();
    let mut all = false;
    loop {
        match reply(from).await? {
            Reply::Have(have) => {
                if flow.window.lock().acknowledged(have)? {
                    news = now();
                    flow.opened.notify_one();
                }
                if have > progress.have {
                    *progress = Progress { have, at: now() };
                }
                all = have == total;
            }
            // What it had last may have gone unsaid.
            Reply::Done if flow.window.lock().is_spent() => return Ok(()),
            Reply::Done => {
                return Err(LinkError::Refused("it says that it is done before it has everything"));
            }
            Reply::Wait => {}
        }
        // With everything it may take its time: it reads the state, and says every second that it is alive.
        if !all && now() - news >= STALL {
            return Err(LinkError::Stalled(STALL));
        }
    }
}

enum Reply {
    Have(u64),
    Done,
    Wait,
}

async fn reply(from: &mut (impl AsyncRead + Unpin)) -> Result<Reply, LinkError> {
    let (kind, body) = read_frame(from).await?.ok_or(LinkError::End)?;
    match kind {
        Kind::Have => Ok(Reply::Have(decode_have(&body)?)),
        Kind::Done => Ok(Reply::Done),
        Kind::KeepAlive => Ok(Reply::Wait),
        Kind::Refused => Err(LinkError::Declined(Refusal::decode(&body)?)),
        Kind::Raft | Kind::Offer | Kind::Chunk => {
            Err(LinkError::Refused("it answers a snapshot with something else"))
        }
    }
}
