//! What a member proposes on its own: as leader its time, so that keys expire, the cluster's version, and checks of the
//! state; and what it has found out about itself.

use std::time::{Duration, Instant};

use super::{Busy, Now, Settings};
use crate::wire::command::Command;

/// How often the leader lets keys expire, as etcd.
const SYNC_PERIOD: Duration = Duration::from_millis(500);
/// Nodes that one entry lets expire at most: some 10 ms during which the state is neither read nor changed otherwise.
pub const EXPIRE_MOST: u32 = 1000;
/// How often a member proposes what it has found out, until the applied state says it.
const NEWS_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Duties {
    cluster_version: &'static str,
    expire_most: u32,
    last_sync: Instant,
    expiry: Option<Expiry>,
    check_period: Option<Duration>,
    last_check: Instant,
    last_news: Instant,
    version_is_settled: bool,
}

/// An entry that lets keys expire, and is not applied yet.
#[derive(Debug)]
struct Expiry {
    index: u64,
    now_ns: i64,
}

impl Duties {
    pub(super) fn new(settings: &Settings, now: Instant) -> Duties {
        Duties {
            cluster_version: settings.cluster_version,
            expire_most: settings.expire_most,
            last_sync: now,
            expiry: None,
            check_period: settings.check_period,
            last_check: now,
            last_news: now,
            version_is_settled: false,
        }
    }

    /// Another term, or another leader: what was proposed may never be committed.
    pub(super) fn forget(&mut self) {
        self.version_is_settled = false;
        self.expiry = None;
    }

    /// What lets keys expire, with the leader's time: now and again when any has an expiry time, `next` being the first; and
    /// at once when an entry has not taken all that was due by it. That one's time then goes on, so that this ends
    /// whatever the clock does.
    pub(super) fn expire(&mut self, now: Now, applied: u64, next: Option<i64>) -> Option<Command> {
        if self.expiry.as_ref().is_some_and(|expiry| expiry.index > applied) {
            return None;
        }
        let before = self.expiry.take().map(|expiry| expiry.now_ns);
        let next = next?;
        let now_ns = match before.filter(|before| next <= *before) {
            Some(before) => before,
            None if now.monotonic - self.last_sync >= SYNC_PERIOD => now.wall_ns,
            None => return None,
        };
        self.last_sync = now.monotonic;
        Some(Command::Expire { now_ns, most: self.expire_most })
    }

    /// What was to expire by `now_ns` is proposed at this index.
    pub(super) fn expires_at(&mut self, index: u64, now_ns: i64) {
        self.expiry = Some(Expiry { index, now_ns });
    }

    /// Whether keys are on their way to expire: when they have, more may have to.
    pub(super) fn is_expiring(&self) -> bool {
        self.expiry.is_some()
    }

    /// A check, when it is time for one; `next` is the check if there is anything to compare.
    pub(super) fn check(
        &mut self,
        now: Now,
        next: impl FnOnce() -> Result<Option<Command>, Busy>,
    ) -> Option<Command> {
        if now.monotonic - self.last_check < self.check_period? {
            return None;
        }
        let next = next().ok()?;
        self.last_check = now.monotonic;
        next
    }

    /// What this member has found out, when it is time to say it (again).
    pub(super) fn news(
        &mut self,
        now: Now,
        news: impl FnOnce() -> Result<Option<Command>, Busy>,
    ) -> Option<Command> {
        if now.monotonic - self.last_news < NEWS_PERIOD {
            return None;
        }
        let news = news().ok()?;
        self.last_news = now.monotonic;
        news
    }

    /// The cluster's version, unless it is set or on its way.
    pub(super) fn version(&mut self, is_set: impl FnOnce() -> bool) -> Option<Command> {
        self.version_is_settled = self.version_is_settled || is_set();
        (!self.version_is_settled).then(|| Command::SetClusterVersion(self.cluster_version.to_owned()))
    }

    pub(super) fn version_is_proposed(&mut self) {
        self.version_is_settled = true;
    }
}
