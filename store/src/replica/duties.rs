//! What a leader proposes on its own: its time, so that keys expire, and the cluster's version.

use std::time::{Duration, Instant};

use super::Now;
use crate::wire::command::Command;

/// How often the leader lets keys expire, as etcd.
const SYNC_PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Duties {
    cluster_version: &'static str,
    last_sync: Instant,
    version_is_settled: bool,
}

impl Duties {
    pub(super) fn new(cluster_version: &'static str, now: Instant) -> Duties {
        Duties { cluster_version, last_sync: now, version_is_settled: false }
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

    /// The cluster's version, unless it is set or on its way.
    pub(super) fn version(&mut self, is_set: impl FnOnce() -> bool) -> Option<Command> {
        self.version_is_settled = self.version_is_settled || is_set();
        (!self.version_is_settled).then(|| Command::SetClusterVersion(self.cluster_version.to_owned()))
    }

    pub(super) fn version_is_proposed(&mut self) {
        self.version_is_settled = true;
    }
}
