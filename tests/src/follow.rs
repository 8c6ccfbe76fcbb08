//! A client that follows a directory of one member by `waitIndex`, and the checks of what such clients saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::http::Request;
use crate::keepalive::Connection;
use crate::v2::Endpoint;

/// A watch that has no event for so long is asked again: its member may be gone without a word.
const PATIENCE: Duration = Duration::from_secs(3);
/// The rest after a failure.
const REST: Duration = Duration::from_millis(30);

/// Follows one member. All of it is read after the end.
#[derive(Debug, Default)]
pub struct Follower {
    /// Index of the latest event, or of the latest resync.
    reached: AtomicU64,
}

/// What a follower saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Events by index.
    pub events: BTreeMap<u64, Value>,
    /// Gaps that the store told of by error 401: from, to; both included.
    pub gaps: Vec<(u64, u64)>,
    /// Requests that failed and were repeated.
    pub retries: usize,
}

impl Follower {
    /// Index up to which it has followed.
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }

    /// Follows `directory` of the member at `endpoint` from index `from` until `stopped`.
    ///
    /// # Errors
    /// When an event comes twice or out of order, or an answer makes no sense.
    pub fn follow(
        &self,
        endpoint: &Endpoint<'_>,
        directory: &str,
        from: u64,
        stopped: impl Fn() -> bool,
    ) -> Result<Seen> {
        let mut connection = Connection::new(endpoint.ns, endpoint.address);
        let (mut seen, mut wait) = (Seen::default(), from);
        while !stopped() {
            let target = format!("/v2/keys{directory}?wait=true&recursive=true&waitIndex={wait}");
            let reply = connection.send(&Request { target: &target, ..Request::default() }, PATIENCE);
            let Ok(reply) = reply else {
                seen.retries += 1;
                std::thread::sleep(REST);
                continue;
            };
            let body = reply.json().with_context(|| format!("event after {wait}"))?;
            if reply.status == 200 {
                let index =
                    body["node"]["modifiedIndex"].as_u64().with_context(|| format!("event {body}"))?;
                ensure!(index >= wait, "asked for events from {wait}, got {body}");
                seen.events.insert(index, body);
                wait = index + 1;
            } else if body["errorCode"] == 401 {
                let Some(now) = resync(&mut connection, directory)? else { continue };
                ensure!(now >= wait, "history before {wait} is gone, yet the store stands at {now}");
                seen.gaps.push((wait, now));
                wait = now + 1;
            } else {
                bail!("watch from {wait}: status {}: {}", reply.status, reply.text());
            }
            self.reached.store(wait - 1, Ordering::Release);
        }
        Ok(seen)
    }
}

/// What a client does after error 401: it reads the directory and goes on from the index of that state.
fn resync(connection: &mut Connection<'_>, directory: &str) -> Result<Option<u64>> {
    let target = format!("/v2/keys{directory}?recursive=true");
    let Ok(reply) = connection.send(&Request { target: &target, ..Request::default() }, PATIENCE) else {
        return Ok(None);
    };
    let index = reply.header("X-Etcd-Index").context("no X-Etcd-Index")?;
    Ok(Some(index.parse().with_context(|| format!("X-Etcd-Index {index}"))?))
}

/// Checks that no follower missed an event up to `last` without being told, and that all saw the same. `acknowledged`
/// are the changes that clients know of, index to key.
///
/// # Errors
/// The event that one missed, or saw differently.
pub fn check_followers(followers: &[Seen], acknowledged: &BTreeMap<u64, &str>, last: u64) -> Result<()> {
    let mut all: BTreeMap<u64, &Value> = BTreeMap::new();
    for (n, follower) in followers.iter().enumerate() {
        for (index, event) in &follower.events {
            let first = all.entry(*index).or_insert(event);
            ensure!(*first == event, "member {n} shows event {index} as {event}, another one as {first}");
        }
    }
    for (n, follower) in followers.iter().enumerate() {
        let told = |index: u64| follower.gaps.iter().any(|&(from, to)| (from..=to).contains(&index));
        let must = all.keys().chain(acknowledged.keys()).filter(|&&index| index <= last);
        for index in must {
            ensure!(
                follower.events.contains_key(index) || told(*index),
                "the watch of member {n} skipped event {index} ({:?}, acknowledged for {:?})",
                all.get(index),
                acknowledged.get(index)
            );
        }
    }
    for (index, event) in &all {
        let key = event["node"]["key"].as_str();
        if let Some(acknowledged) = acknowledged.get(index) {
            ensure!(key == Some(acknowledged), "event {index} is {event}, a client was told {acknowledged}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::json;

    use super::*;

    fn saw(indices: &[u64], gaps: &[(u64, u64)]) -> Seen {
        let event = |index: &u64| (*index, json!({"node": {"key": "/a", "modifiedIndex": index}}));
        Seen { events: indices.iter().map(event).collect(), gaps: gaps.to_vec(), retries: 0 }
    }

    #[test]
    fn skipped_and_differing_events_are_found() {
        let acknowledged = BTreeMap::from([(3, "/a"), (5, "/a")]);
        check_followers(&[saw(&[3, 4, 5], &[]), saw(&[5], &[(2, 4)])], &acknowledged, 5).unwrap();
        let skipped =
            check_followers(&[saw(&[3, 4, 5], &[]), saw(&[3, 5], &[])], &acknowledged, 5).unwrap_err();
        assert!(format!("{skipped}").contains("member 1 skipped event 4"), "{skipped}");
        let lost = check_followers(&[saw(&[3, 4], &[]), saw(&[3, 4], &[])], &acknowledged, 5).unwrap_err();
        assert!(format!("{lost}").contains("member 0 skipped event 5"), "{lost}");
        let mut other = saw(&[3, 5], &[]);
        other.events.insert(5, json!({"node": {"key": "/b", "modifiedIndex": 5}}));
        assert!(check_followers(&[saw(&[3, 5], &[]), other], &acknowledged, 5).is_err());
        let other = BTreeMap::from([(3, "/b")]);
        assert!(check_followers(&[saw(&[3], &[])], &other, 3).is_err());
    }
}
