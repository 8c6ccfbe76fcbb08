//! The sending side: a [lane](super::lane) and its task for each other member, and a connection for each snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::super::driver::Input;
use super::super::handle::now;
use super::REDIAL;
use super::dial::{Dialler, LinkError, PeerLink, dial};
use super::lane::Lane;
use super::send::{Parcel, deliver};
use crate::complaints::{Complaints, Say};
use crate::config::Url;
use crate::snapshot::Snapshot;
use crate::wire::peer::Purpose;

/// A link that lasts so long is no part of what went wrong before. Longer than it takes to notice that the other side gives
/// and takes nothing.
const SETTLED: Duration = Duration::from_secs(10);
/// Pause before the raft thread's queue is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The sending side of all links.
pub struct Peers {
    links: BTreeMap<u64, Link>,
    dialler: Dialler,
    inputs: SyncSender<Input>,
    runtime: tokio::runtime::Handle,
    /// The snapshot that raft's messages speak of.
    parcel: Mutex<Option<Arc<Parcel>>>,
}

struct Link {
    lane: Arc<Lane>,
    /// Dials, and looks after the lane.
    keeper: AbortHandle,
    peer: PeerLink,
    /// The snapshot on its way.
    sending: Mutex<Option<AbortHandle>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
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
        for peer in others {
            let (id, urls, lane) = (peer.id, peer.urls.clone(), Arc::<Lane>::default());
            let keeper = keep_linked(id, urls, dialler.clone(), Arc::clone(&lane), inputs.clone());
            let keeper = runtime.spawn(keeper).abort_handle();
            let link = Link { lane, keeper, peer, sending: Mutex::default() };
            links.insert(id, link);
        }
        Peers { links, dialler, inputs, runtime, parcel: Mutex::default() }
    }

    /// Puts messages on their way; drops those for which a peer is too slow.
    pub fn send(&self, messages: Vec<Message>) {
        for message in messages {
            self.enqueue(message);
        }
        for link in self.links.values() {
            link.lane.push();
        }
    }

    fn enqueue(&self, message: Message) {
        let Some(link) = self.links.get(&message.to) else { return };
        match message.get_msg_type() {
            MessageType::MsgSnapshot => return self.send_snapshot(link, message),
            MessageType::MsgAppend => link.peer.stats.append_sent(),
            _ => {}
        }
        let to = message.to;
        if !link.lane.enqueue(message) {
            link.peer.stats.dropped();
            let _ = self.inputs.try_send(Input::Unreachable(to));
        }
    }

    /// Keeps this snapshot for messages that speak of it.
    pub fn keep_snapshot(&self, snapshot: Snapshot) {
        *self.parcel.lock() = Some(Arc::new(Parcel::new(snapshot)));
    }

    /// Lets go of the snapshot unless it is the one at `index`; those on their way are not affected.
    pub fn forget_snapshot_except(&self, index: Option<u64>) {
        self.parcel.lock().take_if(|parcel| Some(parcel.index()) != index);
    }

    /// Has the snapshot brought to a follower, and raft told how that ended: it sends nothing else to it until then.
    fn send_snapshot(&self, link: &Link, message: Message) {
        let (to, inputs) = (message.to, self.inputs.clone());
        let index = message.get_snapshot().get_metadata().index;
        let parcel = self.parcel.lock().clone().filter(|parcel| parcel.index() == index);
        let (peer, dialler) = (link.peer.clone(), self.dialler.clone());
        let task = self.runtime.spawn(async move {
            let parcel = parcel.ok_or(LinkError::Refused("the snapshot has been dropped"))?;
            deliver(&parcel, &message, &peer, &dialler).await
        });
        // Of two for the same follower the first is stale: this member has led, has not, and leads again.
        if let Some(before) = link.sending.lock().replace(task.abort_handle()) {
            before.abort();
        }
        self.runtime.spawn(async move {
            let peer = format!("{to:x}");
            let sent = match task.await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(%peer, index, %error, "cannot send a snapshot");
                    false
                }
                Err(ended) if ended.is_cancelled() => return,
                Err(ended) => {
                    tracing::error!(%peer, index, %ended, "cannot send a snapshot");
                    false
                }
            };
            insist(&inputs, Input::SnapshotSent { to, sent }).await;
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

/// Dials a peer for ever, and looks after its lane while linked.
async fn keep_linked(id: u64, urls: Vec<Url>, dialler: Dialler, lane: Arc<Lane>, inputs: SyncSender<Input>) {
    let mut words = Words { peer: format!("{id:x}"), complaints: Complaints::new() };
    loop {
        match dial(id, &urls, &dialler, Purpose::Messages).await {
            Ok((stream, url)) => {
                let told = words.linked(now(), &url);
                let mut link = std::pin::pin!(lane.serve(stream));
                let error = if let Ok(error) = timeout(SETTLED, &mut link).await {
                    error
                } else {
                    words.settled(&url, told);
                    link.await
                };
                words.say(now(), "lost the link to peer", &url, &error);
            }
            Err((url, error)) => words.say(now(), "cannot link to peer", &url, &error),
        }
        let _ = inputs.try_send(Input::Unreachable(id));
        tokio::time::sleep(REDIAL).await;
    }
}

/// What the log is told of a link. A peer that takes the hello and then ends the connection would otherwise fill it.
struct Words {
    peer: String,
    complaints: Complaints<&'static str>,
}

impl Words {
    /// There is a link; `false` if that is not worth saying yet.
    fn linked(&mut self, now: Instant, url: &Url) -> bool {
        let said = self.complaints.admit(now, &"linked", "");
        if let Some(Say { held_back }) = said {
            tracing::info!(peer = self.peer, %url, held_back, "linked to peer");
        }
        said.is_some()
    }

    /// It lasts: whatever happens now is news. `told` is what [`Words::linked`] said.
    fn settled(&mut self, url: &Url, told: bool) {
        self.complaints.clear();
        if !told {
            tracing::info!(peer = self.peer, %url, "linked to peer");
        }
    }

    /// There is none any more, or not yet.
    fn say(&mut self, now: Instant, what: &'static str, url: &Url, error: &LinkError) {
        if let Some(Say { held_back }) = self.complaints.admit(now, &what, &error.to_string()) {
            tracing::warn!(peer = self.peer, %url, %error, held_back, "{what}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::told::Told;

    #[test]
    fn a_link_that_lasts_is_told_and_makes_everything_news() {
        let (told, start) = (Told::listen(), now());
        let url = Url::parse("http://192.0.2.1:2380").unwrap();
        let mut words = Words { peer: "7".to_owned(), complaints: Complaints::new() };
        for second in 0..5 {
            let at = start + Duration::from_secs(second);
            assert_eq!(words.linked(at, &url), second == 0);
            words.say(at, "lost the link to peer", &url, &LinkError::End);
        }
        assert_eq!((told.times("linked to peer"), told.times("lost the link")), (1, 1));
        // The last that the log says must be how it is.
        let last = words.linked(start + Duration::from_secs(5), &url);
        words.settled(&url, last);
        assert_eq!(told.times("linked to peer"), 2);
        words.say(start + Duration::from_secs(20), "lost the link to peer", &url, &LinkError::End);
        assert!(words.linked(start + Duration::from_secs(21), &url));
        assert_eq!((told.times("linked to peer"), told.times("lost the link")), (3, 2));
    }
}
