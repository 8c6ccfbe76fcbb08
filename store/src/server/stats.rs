//! Counters, and the bodies of `/v2/stats/*` (etcd v2 API, section 10).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::handle::{Shared, now};
use crate::tree::Op;
use crate::wire::{json, v2::rfc3339};

/// What is counted for operations on the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Looks.
    Gets,
    /// Sets.
    Sets,
    /// Deletes.
    Delete,
    /// Updates.
    Update,
    /// Creates.
    Create,
    /// Compare-and-swaps.
    CompareAndSwap,
    /// Compare-and-deletes.
    CompareAndDelete,
}

impl From<&Op> for Kind {
    fn from(op: &Op) -> Kind {
        match op {
            Op::Set { .. } => Kind::Sets,
            Op::Create { .. } => Kind::Create,
            Op::Update { .. } => Kind::Update,
            Op::CompareAndSwap { .. } => Kind::CompareAndSwap,
            Op::Delete { .. } => Kind::Delete,
            Op::CompareAndDelete { .. } => Kind::CompareAndDelete,
        }
    }
}

/// Kinds in the order and with the names of the body.
const KINDS: [(Kind, &str); 7] = [
    (Kind::Gets, "gets"),
    (Kind::Sets, "sets"),
    (Kind::Delete, "delete"),
    (Kind::Update, "update"),
    (Kind::Create, "create"),
    (Kind::CompareAndSwap, "compareAndSwap"),
    (Kind::CompareAndDelete, "compareAndDelete"),
];

/// Operations that this member answered.
#[derive(Debug, Default)]
pub struct StoreStats {
    counts: [[AtomicU64; 2]; KINDS.len()],
    expired: AtomicU64,
}

impl StoreStats {
    /// Counts an operation.
    pub fn count(&self, kind: Kind, success: bool) {
        if let Some(at) = KINDS.iter().position(|(k, _)| *k == kind) {
            self.counts[at][usize::from(!success)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts expired keys.
    pub fn expired(&self, keys: usize) {
        self.expired.fetch_add(keys as u64, Ordering::Relaxed);
    }

    /// The body of `/v2/stats/store`.
    pub fn body(&self, watchers: usize) -> String {
        let mut out = "{".to_owned();
        for ((_, name), [success, fail]) in KINDS.iter().zip(&self.counts) {
            let (success, fail) = (success.load(Ordering::Relaxed), fail.load(Ordering::Relaxed));
            let _ = write!(out, "\"{name}Success\":{success},\"{name}Fail\":{fail},");
        }
        let expired = self.expired.load(Ordering::Relaxed);
        let _ = write!(out, "\"expireCount\":{expired},\"watchers\":{watchers}}}");
        out
    }
}

/// What passes between this member and one other.
#[derive(Debug, Default)]
pub struct PeerStats {
    inner: Mutex<PeerCounts>,
}

#[derive(Debug, Default, Clone)]
struct PeerCounts {
    appends_sent: u64,
    appends_answered: u64,
    failed: u64,
    /// When the append was sent that waits longest for its answer.
    waiting: Option<Instant>,
    latency: Latency,
}

/// Milliseconds between an append and its answer.
#[derive(Debug, Default, Clone)]
struct Latency {
    current: f64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
    count: f64,
}

impl PeerStats {
    /// An append has been put on its way.
    pub fn append_sent(&self) {
        let mut counts = self.inner.lock();
        counts.appends_sent += 1;
        counts.waiting.get_or_insert_with(now);
    }

    /// An append has been answered.
    pub fn append_answered(&self) {
        let mut counts = self.inner.lock();
        counts.appends_answered += 1;
        if let Some(sent) = counts.waiting.take() {
            counts.latency.add(now().duration_since(sent).as_secs_f64() * 1000.0);
        }
    }

    /// A message could not be sent.
    pub fn dropped(&self) {
        let mut counts = self.inner.lock();
        counts.failed += 1;
        counts.waiting = None;
    }
}

impl Latency {
    fn add(&mut self, ms: f64) {
        self.min = if self.count == 0.0 { ms } else { self.min.min(ms) };
        self.max = self.max.max(ms);
        self.current = ms;
        self.sum += ms;
        self.squares += ms * ms;
        self.count += 1.0;
    }

    fn average(&self) -> f64 {
        if self.count == 0.0 { 0.0 } else { self.sum / self.count }
    }

    fn deviation(&self) -> f64 {
        if self.count == 0.0 {
            0.0
        } else {
            (self.squares / self.count - self.average().powi(2)).max(0.0).sqrt()
        }
    }
}

/// The body of `/v2/stats/leader`: this member leads.
pub fn leader_body<'a>(me: u64, followers: impl Iterator<Item = (u64, &'a PeerStats)>) -> String {
    let mut out = format!("{{\"leader\":\"{me:x}\",\"followers\":{{");
    for (at, (id, stats)) in followers.enumerate() {
        let counts = stats.inner.lock().clone();
        let latency = &counts.latency;
        let _ = write!(
            out,
            "{}\"{id:x}\":{{\"latency\":{{\"current\":{:.6},\"average\":{:.6},\"standardDeviation\":{:.6},\
             \"minimum\":{:.6},\"maximum\":{:.6}}},\"counts\":{{\"fail\":{},\"success\":{}}}}}",
            if at > 0 { "," } else { "" },
            latency.current,
            latency.average(),
            latency.deviation(),
            latency.min,
            latency.max,
            counts.failed,
            counts.appends_answered,
        );
    }
    out.push_str("}}");
    out
}

/// The body of `/v2/stats/self`.
pub fn self_body<'a>(shared: &Shared, peers: impl Iterator<Item = &'a PeerStats>) -> String {
    let (leadership, since) = *shared.leadership.borrow();
    let (mut sent, mut answered) = (0, 0);
    for peer in peers {
        let counts = peer.inner.lock();
        sent += counts.appends_sent;
        answered += counts.appends_answered;
    }
    let up = now().duration_since(since);
    let mut out = "{\"name\":".to_owned();
    json::write_string(&mut out, &shared.name);
    let _ = write!(
        out,
        ",\"id\":\"{:x}\",\"state\":\"{}\",\"startTime\":\"{}\",\"leaderInfo\":{{\"leader\":\"{}\",\"uptime\":\"{}\",\
         \"startTime\":\"{}\"}},\"recvAppendRequestCnt\":{},\"sendAppendRequestCnt\":{sent}}}",
        shared.member_id,
        if leadership.leads { "StateLeader" } else { "StateFollower" },
        time(shared.started),
        if leadership.leader == 0 { String::new() } else { format!("{:x}", leadership.leader) },
        go_duration(up),
        time(super::handle::wall_clock().checked_sub(up).unwrap_or(shared.started)),
        answered,
    );
    out
}

fn time(at: SystemTime) -> String {
    let ns = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    rfc3339(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// A duration as Go prints it: `1h2m3.5s`, `714.669125ms`.
pub fn go_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    let fraction = |ns: u128, unit: u128, name: &str| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", ns / unit, ns % unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => fraction(ns, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(ns, 1_000_000, "ms"),
        _ => {
            let (hours, minutes) = (ns / 3_600_000_000_000, ns / 60_000_000_000 % 60);
            let seconds = fraction(ns % 60_000_000_000, 1_000_000_000, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, _) => format!("{minutes}m{seconds}"),
                _ => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        for (ns, want) in [
            (0, "0s"),
            (714_669_125, "714.669125ms"),
            (1_500, "1.5µs"),
            (2_000_000_000, "2s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(ns)), want);
        }
    }

    #[test]
    fn counts_show_by_name() {
        let stats = StoreStats::default();
        stats.count(Kind::Sets, true);
        stats.count(Kind::Gets, false);
        assert!(
            stats.body(2).starts_with("{\"getsSuccess\":0,\"getsFail\":1,\"setsSuccess\":1,\"setsFail\":0,")
        );
        assert!(stats.body(2).ends_with("\"expireCount\":0,\"watchers\":2}"));
    }
}
