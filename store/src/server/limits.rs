//! Every bound on what clients can make a member hold, and for how long; docs/limits.md has them as a table.
//!
//! Sizes are bytes. The times are so long that a client on a poor link keeps them, and so short that those who hold
//! places on purpose lose them before anyone else gives up.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::backlog::Untaken;
use super::crowd::{Crowd, MAX_LEAVING};
use super::handle::now;
use super::http::MAX_TURNED_AWAY;
use super::looks::Turns;
use super::peers::{Complaints, Say};
use super::shares::{ClientRoom, Room};
use crate::log::engine::Sizes;
use crate::replica::compaction::{CHECKPOINT_BYTES, HELD_BYTES};

/// Connections of clients at one time, if there are descriptors for them.
const MAX_CLIENTS: usize = 8192;
/// Descriptors of this member itself: standard streams, listeners, the runtime's own, locks, the state's files.
const OWN_FILES: usize = 64;
/// Connections at the other members' port that have not said who they are.
const STRANGERS: usize = 64;
/// And for each other member: eight connections, sixteen more that have not said hello, ours to it, a snapshot.
const MEMBER_FILES: usize = 32;

/// Time for the TLS handshake, from the first packet on.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for request line and headers, from their first byte on.
pub(super) const HEAD: Duration = Duration::from_secs(10);
/// Time without a request: so long that a client's own limit on idle connections (90 seconds in Go) comes first, and
/// no request meets a connection that is just being closed.
pub(super) const IDLE: Duration = Duration::from_secs(300);
/// Time in which a client must take at least one byte of what waits for it.
pub(super) const STALL: Duration = Duration::from_secs(20);

/// Bytes of request line and headers: the longest key, each byte escaped, is 12 KiB, and a value may stand in the
/// query too.
pub(super) const HEAD_BYTES: usize = 128 << 10;
/// The largest form, as in etcd.
pub(super) const MAX_FORM_BYTES: usize = 10 << 20;
/// What one request may bring or take without asking whether there is room for it.
pub(super) const OWN_BYTES: usize = 16 << 10;
/// The largest form, and bytes of those over [`OWN_BYTES`] at one time, while they arrive.
const FORMS: [(usize, usize); 1] = [(MAX_FORM_BYTES, 256 << 20)];
/// The same of answers and events until they are sent, of middle size and large: a list of a thousand keys does not
/// wait for somebody who fetches everything.
const ANSWERS: [(usize, usize); 2] = [(1 << 20, 64 << 20), (48 << 20, 192 << 20)];
/// An answer to GET up to this size is made by who serves the client, which takes less than a millisecond.
pub(super) const AT_ONCE_BYTES: usize = 64 << 10;
/// The answers to GET above that which are made at one time: up to some size, and larger.
pub(super) const LOOKS: [(usize, usize); 2] = [(ANSWERS[0].0, 2), (usize::MAX, 1)];
/// A large answer is handed over in pieces of that many bytes.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// Streams on one HTTP/2 connection, as Go's server and thus etcd allows.
pub(super) const MAX_STREAMS: u32 = 250;
/// Bytes that an HTTP/2 client may send before we have read them: for a stream, and for all of a connection.
pub(super) const WINDOW_BYTES: (u32, u32) = (64 << 10, 128 << 10);
/// Streams that an HTTP/2 client may open and reset before we have looked at them; more ends the connection.
pub(super) const MAX_PENDING_RESETS: usize = 20;

/// Events that may wait for one watcher; one that is further behind is cut off, as in etcd.
pub(super) const WATCHER_BACKLOG: usize = 100;
/// And their bytes, unless it is only one event.
pub(super) const WATCHER_BACKLOG_BYTES: usize = 4 << 20;

/// Bytes of the events that any of them has not taken, unless it is only one event: each counts once.
const MAX_UNTAKEN_BYTES: usize = 256 << 20;

/// Requests waiting for consensus at one time; more are refused.
pub(super) const MAX_WAITING: usize = 16 * 1024;
/// Bytes of commands on the way to the log, whether somebody still waits for them or not; more are refused.
pub(super) const MAX_WAITING_BYTES: usize = 256 << 20;

/// When the kernel asks a silent client's host whether it is still there, how often, and how many times in vain.
pub(super) const PROBES: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// Time in which a client's host must acknowledge what was sent.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Time for a form of which so many bytes have come: a grace, and then at least 64 KiB a second.
pub(super) const fn form_time(bytes: usize) -> Duration {
    allowance(10, 64 << 10, bytes)
}

/// Time to take an answer of that length: as long as a silent reader has, and then at least 256 KiB a second.
pub(super) const fn answer_time(bytes: usize) -> Duration {
    allowance(STALL.as_secs(), 256 << 10, bytes)
}

const fn allowance(grace_s: u64, bytes_a_second: u64, bytes: usize) -> Duration {
    Duration::from_secs(grace_s + bytes as u64 / bytes_a_second)
}

/// The bounds that depend on this process, and what is in use of them.
#[derive(Debug)]
pub struct Limits {
    /// Places for connections.
    pub(super) crowd: Arc<Crowd>,
    /// Requests under way, on all streams of all connections.
    pub(super) requests: Arc<Semaphore>,
    /// Watches.
    pub(super) watches: Arc<Semaphore>,
    /// How many watches there may be.
    pub(super) max_watches: usize,
    /// Events that watchers have still to take.
    pub(super) untaken: Arc<Untaken>,
    /// Forms that arrive.
    forms: Arc<Room>,
    /// Answers that leave.
    answers: Arc<Room>,
    /// Whose large answer is made.
    pub(super) turns: Turns,
    complaints: Mutex<Complaints<IpAddr>>,
}

impl Limits {
    /// Raises the limit on open files as far as it may be and divides what it gives. A member that runs out of
    /// descriptors could no longer write, so clients do not get all of them. There are so many `others`.
    pub fn of_this_process(others: usize) -> Limits {
        let descriptors = match raise() {
            Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            Err(error) => {
                tracing::warn!(%error, "cannot read or raise the limit on open files");
                1024
            }
        };
        let limits = Limits::new(clients(descriptors, reserved(others)));
        let (clients, watches) = (limits.crowd.places(), limits.max_watches);
        if clients < MAX_CLIENTS {
            tracing::warn!(
                descriptors,
                clients,
                watches,
                "few open files are allowed (ulimit -n, LimitNOFILE=): clients are limited"
            );
        } else {
            tracing::info!(descriptors, clients, watches, "limits");
        }
        limits
    }

    /// For so many connections.
    pub(super) fn new(clients: usize) -> Limits {
        let max_watches = watches(clients);
        Limits {
            crowd: Crowd::new(clients),
            requests: Arc::new(Semaphore::new(2 * clients)),
            watches: Arc::new(Semaphore::new(max_watches)),
            max_watches,
            untaken: Arc::new(Untaken::new(MAX_UNTAKEN_BYTES)),
            forms: Room::new(&FORMS),
            answers: Room::new(&ANSWERS),
            turns: Turns::new(&LOOKS),
            complaints: Mutex::new(Complaints::new()),
        }
    }

    /// Room for forms from there.
    pub(super) fn forms(&self, from: SocketAddr) -> ClientRoom {
        self.forms.of(from.ip())
    }

    /// Room for answers and events to there.
    pub(super) fn answers(&self, from: SocketAddr) -> ClientRoom {
        self.answers.of(from.ip())
    }

    /// Tells the log that a client met a limit, once and then now and again.
    pub(super) fn tell(&self, from: SocketAddr, why: &'static str) {
        self.tell_limit(from, why, why);
    }

    /// The same with words in which there are numbers, for a `limit` without.
    pub(super) fn tell_limit(&self, from: SocketAddr, limit: &'static str, why: &str) {
        if let Some(Say { held_back }) = self.may_say(from, limit) {
            tracing::warn!(%from, error = why, held_back, "a client met a limit");
        }
    }

    /// Tells the log what a client did. It goes by `what` alone whether that is news: the client may have a say in the
    /// words of `why`, and could fill the log with ever new ones.
    pub(super) fn tell_of(&self, from: SocketAddr, what: &'static str, why: &str) {
        if let Some(Say { held_back }) = self.may_say(from, what) {
            tracing::warn!(%from, error = why, held_back, "{what}");
        }
    }

    /// Once for each address and cause, and then now and again.
    fn may_say(&self, from: SocketAddr, cause: &'static str) -> Option<Say> {
        self.complaints.lock().admit(now(), &from.ip().to_canonical(), cause)
    }
}

/// Sets the soft limit to the hard one and returns it.
fn raise() -> nix::Result<rlim_t> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Descriptors kept from clients in a cluster with so many `others`, also those of clients that have no place any more or
/// never had one.
fn reserved(others: usize) -> usize {
    let log = (HELD_BYTES + CHECKPOINT_BYTES).div_ceil(Sizes::default().file);
    let log = usize::try_from(log).unwrap_or(usize::MAX);
    OWN_FILES + log + STRANGERS + others * MEMBER_FILES + MAX_LEAVING + MAX_TURNED_AWAY
}

/// Connections for clients out of so many descriptors; a few always, as else nobody could be told anything.
fn clients(descriptors: usize, reserved: usize) -> usize {
    descriptors.saturating_sub(reserved).clamp(16, MAX_CLIENTS)
}

/// Watches among so many connections: they stay for ever, so that some places must be left for requests.
fn watches(clients: usize) -> usize {
    clients / 4 * 3
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::wire::v2::ApiError;

    #[test]
    fn the_member_keeps_its_own_descriptors() {
        assert_eq!([0, 2, 4].map(reserved), [264, 328, 392]);
        assert_eq!(clients(1024, 328), 696);
        assert_eq!(clients(usize::MAX, 328), MAX_CLIENTS);
        assert_eq!(clients(MAX_CLIENTS + 328, 328), MAX_CLIENTS);
        assert_eq!(clients(100, 328), 16);
    }

    #[test]
    fn watches_leave_places_for_requests() {
        assert_eq!(watches(16), 12);
        assert_eq!(watches(MAX_CLIENTS), 6144);
    }

    #[test]
    fn a_client_does_not_fill_the_log_with_other_numbers() {
        let limits = Limits::new(16);
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let say = |bytes: usize| {
            let error = ApiError::late(format!("{bytes} bytes within 10 seconds"));
            limits.may_say(from, error.limit().unwrap()).is_some()
        };
        assert!(say(1));
        assert!(!(2..100).any(say), "the same cause");
        assert!(limits.may_say(from, "another").is_some());
    }

    #[test]
    fn time_goes_with_the_length() {
        assert_eq!(form_time(0), Duration::from_secs(10));
        assert_eq!(form_time(MAX_FORM_BYTES), Duration::from_secs(170));
        assert_eq!(answer_time(1), STALL);
        assert_eq!(answer_time(100 << 20), Duration::from_secs(420));
    }
}
