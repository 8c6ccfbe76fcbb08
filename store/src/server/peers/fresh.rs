//! A member without a raft log asks before it starts.
//!
//! Raft lets a member forget nothing: one whose data directory was lost, and that came back empty under its old
//! id, could vote a second time in a term and take part in a majority for entries that it once helped to commit
//! and no longer has. An empty log alone does not tell a new member from such a one; the others can. So a fresh
//! member asks them (a hello with that purpose), and starts only when as many have welcomed it as make a majority
//! together with it, and every other has been tried once. One that answers `AlreadyBootstrapped` ends it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::handle::now;
use super::dial::{Dialler, LinkError, PeerLink, dial};
use super::{DIAL_TIMEOUT, REDIAL};
use crate::complaints::{Complaints, Say};
use crate::config::Url;
use crate::wire::peer::Purpose;

/// How often the log says what is waited for.
const TELL: Duration = Duration::from_secs(10);

/// This member has been in its cluster before, with data that it no longer has.
#[derive(Debug, thiserror::Error)]
#[error(
    "member {member:x} has already been bootstrapped (says member {by:x} at {url}), but its data directory is empty: \
     what it had is lost, or --data-dir (or --wal-dir) is another one now, or not mounted. It must not come back empty \
     under its old id: it has forgotten what it voted for and acknowledged, and writes could be lost. If its latest \
     data directory still exists, start with that; an older copy will not do. Otherwise leave it stopped: the other \
     members go on while they are a majority, but this release cannot replace a member at run time; to be complete \
     again, start a new cluster (other --initial-cluster-token, empty data directories) and copy the keys into it"
)]
pub struct AlreadyBootstrapped {
    /// This member.
    pub member: u64,
    /// Who knows.
    pub by: u64,
    /// Where that one answered.
    pub url: Url,
}

enum Answer {
    Welcome(u64),
    Failed(u64),
    Refused(AlreadyBootstrapped),
}

/// Who has answered what. Pure.
#[derive(Debug)]
struct Tally {
    others: BTreeSet<u64>,
    tried: BTreeSet<u64>,
    welcome: BTreeSet<u64>,
}

impl Tally {
    fn new(others: impl Iterator<Item = u64>) -> Tally {
        Tally { others: others.collect(), tried: BTreeSet::new(), welcome: BTreeSet::new() }
    }

    /// Welcomes that make a majority together with this member.
    fn needed(&self) -> usize {
        self.others.len().div_ceil(2)
    }

    /// Enough, and nobody who might object has been passed over.
    fn is_decided(&self) -> bool {
        self.welcome.len() >= self.needed() && self.tried == self.others
    }

    fn missing(&self) -> String {
        let ids = self.others.difference(&self.welcome).map(|id| format!("{id:x}"));
        ids.collect::<Vec<_>>().join(", ")
    }
}

/// Asks the `others` until this member may start; at once if there are none.
///
/// # Errors
/// [`AlreadyBootstrapped`]: it must end.
pub async fn until_welcome(others: &[PeerLink], dialler: &Dialler) -> Result<(), AlreadyBootstrapped> {
    let mut tally = Tally::new(others.iter().map(|other| other.id));
    if tally.is_decided() {
        return Ok(());
    }
    let (answers, mut heard) = mpsc::channel(others.len());
    let mut asking = JoinSet::new();
    for other in others {
        asking.spawn(ask(other.clone(), dialler.clone(), answers.clone()));
    }
    let mut tell = tokio::time::interval(TELL);
    loop {
        tokio::select! {
            answer = heard.recv() => match answer {
                Some(Answer::Refused(refused)) => return Err(refused),
                Some(Answer::Welcome(id)) => {
                    tally.tried.insert(id);
                    tally.welcome.insert(id);
                }
                Some(Answer::Failed(id)) => {
                    tally.tried.insert(id);
                }
                None => unreachable!("a sender is kept here"),
            },
            _ = tell.tick() => tracing::info!(
                welcomed_by = tally.welcome.len(),
                needed = tally.needed(),
                no_answer_yet = tally.missing(),
                "this member has no raft log yet: asking the other members whether it may start"
            ),
        }
        if tally.is_decided() {
            return Ok(());
        }
    }
}

/// Asks one member until it says welcome or that this one has been there.
async fn ask(other: PeerLink, dialler: Dialler, answers: mpsc::Sender<Answer>) {
    let PeerLink { id, urls, .. } = other;
    let peer = format!("{id:x}");
    let mut complaints = Complaints::new();
    loop {
        let answer = match dial(id, &urls, &dialler, Purpose::MayStart).await {
            Ok(_) => Answer::Welcome(id),
            Err((url, LinkError::AlreadyBootstrapped)) => {
                Answer::Refused(AlreadyBootstrapped { member: dialler.me, by: id, url })
            }
            Err((url, error)) => {
                if let Some(Say { held_back }) = complaints.admit(now(), &id, &error.to_string()) {
                    tracing::warn!(%peer, %url, %error, held_back, "cannot reach peer");
                }
                Answer::Failed(id)
            }
        };
        let done = !matches!(answer, Answer::Failed(_));
        if answers.send(answer).await.is_err() || done {
            return;
        }
        tokio::time::sleep(REDIAL).await;
    }
}

const _: () = assert!(DIAL_TIMEOUT.as_millis() < TELL.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(others: u64, welcome: &[u64], failed: &[u64]) -> Tally {
        let mut tally = Tally::new(1..=others);
        tally.welcome.extend(welcome);
        tally.tried.extend(welcome.iter().chain(failed));
        tally
    }

    #[test]
    fn alone_it_starts_at_once() {
        assert!(tally(0, &[], &[]).is_decided());
    }

    #[test]
    fn a_majority_with_this_member_is_needed() {
        for (others, needed) in [(1, 1), (2, 1), (3, 2), (4, 2), (6, 3)] {
            assert_eq!(tally(others, &[], &[]).needed(), needed, "{others} others");
        }
        assert!(!tally(4, &[1], &[2, 3, 4]).is_decided());
        assert!(tally(4, &[1, 3], &[2, 4]).is_decided());
    }

    #[test]
    fn whoever_might_object_is_asked_first() {
        assert!(!tally(2, &[1], &[]).is_decided(), "2 has not been tried");
        assert!(tally(2, &[1], &[2]).is_decided());
        assert!(tally(2, &[1, 2], &[]).is_decided());
    }
}
