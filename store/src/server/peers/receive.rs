//! Taking a snapshot: into the spool, checked, read, and only then shown to raft.
//!
//! One transfer at a time has the spool. A later one takes its place if its term is not older: a sender dials again when
//! its last connection is broken, which this side may not have noticed yet.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::super::driver::Input;
use super::super::handle::Shared;
use super::KEEP_ALIVE;
use super::dial::{LinkError, Stream};
use super::frames::{read_frame, send_frame};
use super::link::insist;
use super::spool::{Arriving, Spool, SpoolError};
use crate::machine::Machine;
use crate::wire::peer::Kind;
use crate::wire::raft_message;
use crate::wire::transfer::{Offer, Refusal, SnapshotId, TransferError, encode_have};

/// A snapshot that has arrived, whole and sound.
pub struct Arrived {
    /// What raft is told.
    pub message: Message,
    /// The state.
    pub machine: Machine,
}

/// Where snapshots come in.
pub(super) struct Reception {
    spool: Arc<tokio::sync::Mutex<Spool>>,
    current: Mutex<Option<Transfer>>,
}

/// The transfer that came last.
struct Transfer {
    term: u64,
    /// Told to end.
    stop: Arc<Notify>,
}

/// Why a transfer has failed, and what the sender is told.
struct Failed(LinkError, Refusal);

impl From<TransferError> for Failed {
    fn from(error: TransferError) -> Failed {
        Failed(error.into(), Refusal::Damaged)
    }
}

impl From<SpoolError> for Failed {
    fn from(error: SpoolError) -> Failed {
        let refusal = match &error {
            SpoolError::Io { .. } | SpoolError::NoRoom { .. } => Refusal::NoRoom,
            SpoolError::Chunk(TransferError::Whole { .. })
            | SpoolError::State { .. }
            | SpoolError::Position { .. } => Refusal::Unsound,
            SpoolError::Chunk(_) => Refusal::Damaged,
        };
        Failed(LinkError::Spool(error), refusal)
    }
}

impl Reception {
    /// Snapshots go through `spool`.
    pub(super) fn new(spool: Spool) -> Reception {
        Reception { spool: Arc::new(tokio::sync::Mutex::new(spool)), current: Mutex::default() }
    }

    /// Takes the place of the transfer before.
    fn enter(&self, term: u64) -> Result<Arc<Notify>, Failed> {
        let mut current = self.current.lock();
        if let Some(before) = &*current {
            if before.term > term {
                let why = LinkError::Refused("it brings a snapshot of a term that is over");
                return Err(Failed(why, Refusal::OldTerm));
            }
            before.stop.notify_one();
        }
        let stop = Arc::new(Notify::new());
        *current = Some(Transfer { term, stop: Arc::clone(&stop) });
        Ok(stop)
    }

    /// Takes the snapshot that comes on `stream` from member `sender`, and brings it to the raft thread.
    ///
    /// # Errors
    /// [`LinkError`], which the sender has been told.
    pub(super) async fn receive(
        &self,
        stream: impl Stream,
        sender: u64,
        shared: &Shared,
        inputs: &SyncSender<Input>,
    ) -> Result<(), LinkError> {
        let (mut from, mut into) = tokio::io::split(stream);
        let Some(offer) = read_frame(&mut from).await? else { return Ok(()) };
        match self.take(offer, (&mut from, &mut into), sender, shared).await {
            Ok(arrived) => {
                insist(inputs, Input::Snapshot(Box::new(arrived))).await;
                send_frame(&mut into, Kind::Done, &[]).await?;
                Ok(into.shutdown().await?)
            }
            Err(Failed(error, refusal)) => {
                // It may be gone.
                let _ = send_frame(&mut into, Kind::Refused, &[&[refusal.code()]]).await;
                let _ = into.shutdown().await;
                Err(error)
            }
        }
    }

    async fn take(
        &self,
        offer: (Kind, Vec<u8>),
        (from, into): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
        sender: u64,
        shared: &Shared,
    ) -> Result<Arrived, Failed> {
        let (message, id) = check(offer, sender, shared)?;
        let stop = self.enter(message.term)?;
        let take = async {
            let have = watch::Sender::new(None);
            let tell = tell(into, have.subscribe());
            tokio::pin!(tell);
            let machine = tokio::select! {
                machine = self.fill(id, from, have) => machine,
                told = &mut tell => return Err(Failed(told.err().unwrap_or(LinkError::End), Refusal::Damaged)),
            };
            // It ends now, and what it is writing must not be cut: another frame follows.
            let _ = tell.await;
            machine
        };
        let machine = tokio::select! {
            machine = take => machine?,
            () = stop.notified() => {
                let why = LinkError::Refused("another connection has brought a snapshot since");
                return Err(Failed(why, Refusal::Superseded));
            }
        };
        Ok(Arrived { message, machine })
    }

    /// Takes chunks until all are there, and reads the state.
    async fn fill(
        &self,
        id: SnapshotId,
        from: &mut (impl AsyncRead + Unpin),
        have: watch::Sender<Option<u64>>,
    ) -> Result<Machine, Failed> {
        let spool = Arc::clone(&self.spool).lock_owned().await;
        let mut arriving = blocking(move || Arriving::begin(spool, id)).await?;
        have.send_replace(Some(arriving.incoming().have()));
        tracing::info!(id.index, bytes = id.total, from = arriving.incoming().have(), "receiving a snapshot");
        while !arriving.incoming().is_whole() {
            let gone = |error| Failed(error, Refusal::Damaged);
            let (kind, body) = read_frame(from).await.map_err(gone)?.ok_or_else(|| gone(LinkError::End))?;
            match kind {
                Kind::KeepAlive => {}
                Kind::Chunk => {
                    // The file may make us wait. With it goes the spool: should this be given up meanwhile, nobody else
                    // has it before the write has ended.
                    arriving = blocking(move || arriving.take(&body).map(|()| arriving)).await?;
                    have.send_replace(Some(arriving.incoming().have()));
                }
                Kind::Raft | Kind::Offer | Kind::Have | Kind::Done | Kind::Refused => {
                    return Err(gone(LinkError::Refused("it sends something else within a snapshot")));
                }
            }
        }
        blocking(move || arriving.finish()).await
    }
}

/// What is offered, if it is for us.
fn check(
    (kind, body): (Kind, Vec<u8>),
    sender: u64,
    shared: &Shared,
) -> Result<(Message, SnapshotId), Failed> {
    let refuse = |why| Failed(LinkError::Refused(why), Refusal::Damaged);
    if kind != Kind::Offer {
        return Err(refuse("it brings a snapshot without saying which"));
    }
    let Offer { id, message } = Offer::decode(&body)?;
    let message = raft_message::decode(&message)
        .map_err(|error| Failed(LinkError::Io(error.to_string()), Refusal::Damaged))?;
    let meta = message.get_snapshot().get_metadata();
    if message.from != sender || message.to != shared.member_id {
        return Err(refuse("it sends a snapshot in another member's name"));
    }
    let is_of = (meta.index, meta.term) == (id.index, id.term) && id.index > 0;
    if message.get_msg_type() != MessageType::MsgSnapshot || !is_of {
        return Err(refuse("it offers a snapshot with another message"));
    }
    if message.term < shared.leadership.borrow().0.term {
        return Err(Failed(
            LinkError::Refused("it brings a snapshot of a term that is over"),
            Refusal::OldTerm,
        ));
    }
    Ok((message, id))
}

/// Says what is there, when it has grown and every second; at first only that this side is alive.
async fn tell(
    into: &mut (impl AsyncWrite + Unpin),
    mut have: watch::Receiver<Option<u64>>,
) -> Result<(), LinkError> {
    loop {
        let now = *have.borrow_and_update();
        match now {
            Some(now) => send_frame(into, Kind::Have, &[&encode_have(now)]).await?,
            None => send_frame(into, Kind::KeepAlive, &[]).await?,
        }
        if let Ok(Err(_)) = timeout(KEEP_ALIVE, have.changed()).await {
            return Ok(());
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failed(LinkError::Io(error.to_string()), Refusal::NoRoom)),
    }
}
