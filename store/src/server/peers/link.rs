//! The sending side: a task and a bounded queue for each other member, and a connection for each snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::driver::Input;
use super::super::handle::now;
use super::super::stats::PeerStats;
use super::complaints::{Complaints, Say};
use super::dial::{Dialler, LinkError, PeerLink, Stream, dial};
use super::{REDIAL, SILENCE, SNAPSHOT_TIMEOUT, WRITE_BUFFER};
use crate::config::Url;
use crate::wire::peer::{self, Kind};

/// Messages that may wait for one peer.
const QUEUE: usize = 4096;
/// A link without other traffic says that often that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Pause before the raft thread's queue is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The sending side of all links.
pub struct Peers {
    links: BTreeMap<u64, Link>,
    dialler: Dialler,
    inputs: SyncSender<Input>,
    runtime: tokio::runtime::Handle,
}

struct Link {
    queue: mpsc::Sender<Message>,
    urls: Vec<Url>,
    stats: Arc<PeerStats>,
}

impl Peers {
    /// Starts a dialling task for each of `others`.
    pub fn start(
        others: Vec<PeerLink>,
        dialler: Dialler,
        inputs: SyncSender<Input>,
        runtime: tokio::runtime::Handle,
    ) -> Peers {
        let mut links = BTreeMap::new();
        for PeerLink { id, urls, stats } in others {
            let (queue, messages) = mpsc::channel(QUEUE);
            runtime.spawn(keep_linked(id, urls.clone(), dialler.clone(), messages, inputs.clone()));
            links.insert(id, Link { queue, urls, stats });
        }
        Peers { links, dialler, inputs, runtime }
    }

    /// Puts a message on its way; drops it if the peer is too slow.
    pub fn send(&self, message: Message) {
        let Some(link) = self.links.get(&message.to) else { return };
        match message.get_msg_type() {
            MessageType::MsgSnapshot => return self.send_snapshot(link, message),
            MessageType::MsgAppend => link.stats.append_sent(),
            _ => {}
        }
        let to = message.to;
        if link.queue.try_send(message).is_err() {
            link.stats.dropped();
            let _ = self.inputs.try_send(Input::Unreachable(to));
        }
    }

    /// A snapshot goes over a connection of its own, so that heartbeats are not stuck behind it.
    fn send_snapshot(&self, link: &Link, message: Message) {
        let (urls, dialler, inputs) = (link.urls.clone(), self.dialler.clone(), self.inputs.clone());
        self.runtime.spawn(async move {
            let to = message.to;
            let send = async {
                let (mut stream, url) = dial(to, &urls, &dialler, false).await.map_err(|(_, error)| error)?;
                tracing::info!(peer = format_args!("{to:x}"), %url, "sending a snapshot");
                write_message(&mut stream, &message).await?;
                stream.shutdown().await?;
                Ok::<(), LinkError>(())
            };
            let result = timeout(SNAPSHOT_TIMEOUT, send).await;
            let result = result.unwrap_or(Err(LinkError::Timeout(SNAPSHOT_TIMEOUT)));
            if let Err(error) = &result {
                tracing::warn!(peer = format_args!("{to:x}"), %error, "cannot send a snapshot");
            }
            drop(message);
            // Raft sends nothing else to this member until it knows.
            insist(&inputs, Input::SnapshotSent { to, sent: result.is_ok() }).await;
        });
    }
}

/// Tells the raft thread something that must not be lost; tries again while its queue is full, and gives up
/// when the thread has ended.
pub async fn insist(inputs: &SyncSender<Input>, mut input: Input) {
    while let Err(TrySendError::Full(back)) = inputs.try_send(input) {
        input = back;
        tokio::time::sleep(RETRY).await;
    }
}

/// Dials a peer for ever, and sends what is in its queue while linked.
async fn keep_linked(
    id: u64,
    urls: Vec<Url>,
    dialler: Dialler,
    mut messages: mpsc::Receiver<Message>,
    inputs: SyncSender<Input>,
) {
    let peer = format!("{id:x}");
    let mut complaints = Complaints::new();
    loop {
        let Some(dialled) = meanwhile_discarding(&mut messages, dial(id, &urls, &dialler, false)).await
        else {
            return;
        };
        match dialled {
            Ok((stream, url)) => {
                tracing::info!(%peer, %url, "linked to peer");
                complaints.clear();
                match forward(stream, &mut messages).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%peer, %url, %error, "lost the link to peer"),
                }
            }
            Err((url, error)) => {
                if let Some(Say { held_back }) = complaints.admit(now(), &id, &error.to_string()) {
                    tracing::warn!(%peer, %url, %error, held_back, "cannot link to peer");
                }
            }
        }
        let _ = inputs.try_send(Input::Unreachable(id));
        if meanwhile_discarding(&mut messages, tokio::time::sleep(REDIAL)).await.is_none() {
            return;
        }
    }
}

/// Awaits `work` and throws away what comes for a peer that is not linked: it would be stale by the time that
/// it is, and as long as the outage lasts it would fill memory. `None` when the queue's owner is gone.
async fn meanwhile_discarding<T>(
    messages: &mut mpsc::Receiver<Message>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            message = messages.recv() => drop(message?),
            result = &mut work => return Some(result),
        }
    }
}

/// Sends until the queue's owner is gone (`Ok`) or the link breaks.
async fn forward(stream: Box<dyn Stream>, messages: &mut mpsc::Receiver<Message>) -> Result<(), LinkError> {
    let mut stream = BufWriter::with_capacity(WRITE_BUFFER, stream);
    loop {
        let write = async {
            match timeout(KEEP_ALIVE, messages.recv()).await {
                Ok(None) => return Ok(false),
                Ok(Some(message)) => {
                    write_message(&mut stream, &message).await?;
                    while let Ok(message) = messages.try_recv() {
                        write_message(&mut stream, &message).await?;
                    }
                }
                Err(_) => stream.write_all(&peer::frame_head(Kind::KeepAlive, 0)?).await?,
            }
            stream.flush().await?;
            Ok::<bool, LinkError>(true)
        };
        match timeout(KEEP_ALIVE + SILENCE, write).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(LinkError::Timeout(SILENCE)),
        }
    }
}

async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), LinkError> {
    let body = message.write_to_bytes().map_err(|error| LinkError::Io(error.to_string()))?;
    stream.write_all(&peer::frame_head(Kind::Raft, body.len())?).await?;
    stream.write_all(&body).await?;
    Ok(())
}
