//! What a member proposes on its own: as leader its time, so that keys expire, the cluster's version, and checks of the
//! state; and what it has found out about itself.

use std::time::{Duration, Instant};

use super::Now;
use crate::wire::command::Command;

/// How often the leader lets keys expire, as etcd.
const SYNC_PERIOD: Duration = Duration::from_millis(500);
/// How often a member proposes what it has found out, until the applied state says it.
const NEWS_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Duties {
    cluster_version: &'static str,
    last_sync: Instant,
    check_period: Option<Duration>,
    last_check: Instant,
    last_news: Instant,
    version_is_settled: bool,
}

impl Duties {
    pub(super) fn new(cluster_version: &'static str, check_period: Option<Duration>, now: Instant) -> Duties {
        Duties {
            cluster_version,
            last_sync: now,
            check_period,
            last_check: now,
            last_news: now,
            version_is_settled: false,
        }
    }

    /// Another term, or another leader: what was proposed may never be committed.
    pub(super) fn forget(&mut self) {
        self.version_is_settled = false;
    }

    /// The leader's time, when keys may be due by it.
    pub(super) fn sync(&mut self, now: Now, has_expiries: bool) -> Option<Command> {
        let due = has_expiries && now.monotonic - self.last_sync >= SYNC_PERIOD;
        due.then(|| {
            self.last_sync = now.monotonic;
            Command::Sync { now_ns: now.wall_ns }
        })
    }

    /// A check, when it is time for one; `next` is the check if there is anything to compare.
    pub(super) fn check(&mut self, now: Now, next: impl FnOnce() -> Option<Command>) -> Option<Command> {
        if now.monotonic - self.last_check < self.check_period? {
            return None;
        }
        self.last_check = now.monotonic;
        next()
    }

    /// What this member has found out, when it is time to say it (again).
    pub(super) fn news(&mut self, now: Now, news: impl FnOnce() -> Option<Command>) -> Option<Command> {
        if now.monotonic - self.last_news < NEWS_PERIOD {
            return None;
        }
        self.last_news = now.monotonic;
        news()
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
