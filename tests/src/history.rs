//! What clients asked of a cluster and what they were told, with the times: the history that is checked afterwards.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http::Reply;
use crate::key_model::{Answer, Ask, Key, Operation, Seen};
use crate::linear::{Call, Stuck, Verdict, check};

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Answered, with the store's index (`X-Etcd-Index`) at that moment.
    Answered(Answer, u64),
    /// It has certainly had no effect.
    Failed(String),
    /// It may have had an effect, or may have one later.
    Unknown(String),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Record {
    /// Who asked.
    pub client: usize,
    /// Which member was asked.
    pub member: usize,
    /// The key, below `/v2/keys`.
    pub key: String,
    /// What was asked.
    pub ask: Ask,
    /// When, in nanoseconds since the run began.
    pub invoked_ns: u64,
    /// When the answer was there, or the client gave up.
    pub returned_ns: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// Reads a reply to `ask`. What is not one of the answers that settle it is an unknown outcome, for a read none.
///
/// # Errors
/// When a reply says that it settles the request and then makes no sense.
pub fn outcome(ask: Ask, reply: &Reply) -> Result<Outcome> {
    let body = reply.json()?;
    let index = reply.header("X-Etcd-Index").and_then(|text| text.parse().ok());
    let answer = match (reply.status, body["errorCode"].as_u64()) {
        (200 | 201, None) => {
            let node = &body["node"];
            let at = node["modifiedIndex"].as_u64().with_context(|| format!("no modifiedIndex: {body}"))?;
            match ask {
                Ask::Get => Answer::Found(seen(node)?),
                _ => Answer::Changed { index: at, prev: body.get("prevNode").map(seen).transpose()? },
            }
        }
        (404, Some(100)) => Answer::Absent,
        (412, Some(101)) => Answer::Mismatch,
        (412, Some(105)) => Answer::Exists,
        _ if ask == Ask::Get => return Ok(Outcome::Failed(reply.text())),
        _ => return Ok(Outcome::Unknown(format!("status {}: {}", reply.status, reply.text().trim_end()))),
    };
    Ok(Outcome::Answered(answer, index.with_context(|| format!("no X-Etcd-Index: {body}"))?))
}

/// A node's value and index.
///
/// # Errors
/// When it holds no number as value.
pub fn seen(node: &Value) -> Result<Seen> {
    let value = node["value"].as_str().and_then(|text| text.parse().ok());
    let index = node["modifiedIndex"].as_u64();
    value.zip(index).map(|(value, index)| Seen { value, index }).with_context(|| format!("node {node}"))
}

/// What the checks have gone through.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that certainly had no effect.
    pub failed: usize,
    /// Requests of unknown outcome.
    pub unknown: usize,
    /// Keys.
    pub keys: usize,
}

/// Counts the requests by outcome, and the keys.
pub fn counts(history: &[Record]) -> Counts {
    let mut counts = Counts { keys: by_key(history).len(), ..Counts::default() };
    for record in history {
        match record.outcome {
            Outcome::Answered(..) => counts.answered += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Unknown(_) => counts.unknown += 1,
        }
    }
    counts
}

fn by_key(history: &[Record]) -> BTreeMap<&str, Vec<&Record>> {
    let mut keys: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in history {
        keys.entry(&record.key).or_default().push(record);
    }
    keys
}

/// Checks that the history of every key is linearizable.
///
/// # Errors
/// The first key for which it is not (or that `limit` steps did not decide), with the calls around the place.
pub fn check_linearizable(history: &[Record], limit: u64) -> Result<()> {
    for (key, records) in by_key(history) {
        let calls: Vec<(Call<Operation>, &Record)> =
            records.into_iter().filter_map(|record| Some((call(record)?, record))).collect();
        let (calls, records): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        let (what, stuck) = match check(&Key::default(), &calls, limit) {
            Verdict::Linearizable => continue,
            Verdict::NotLinearizable(stuck) => ("is not linearizable", stuck),
            Verdict::Undecided(stuck) => ("was not decided in time", stuck),
        };
        bail!("the history of {key} {what}:\n{}", around(&records, &stuck));
    }
    Ok(())
}

/// A request as the checker takes it; `None` if it had no effect and tells nothing.
fn call(record: &Record) -> Option<Call<Operation>> {
    let (answer, returned) = match record.outcome {
        Outcome::Answered(answer, _) => (Some(answer), Some(record.returned_ns)),
        Outcome::Unknown(_) if record.ask != Ask::Get => (None, None),
        Outcome::Unknown(_) | Outcome::Failed(_) => return None,
    };
    Some(Call { operation: (record.ask, answer), invoked: record.invoked_ns, returned })
}

/// The best order's last calls, and those that overlap with the one that had to follow.
fn around(records: &[&Record], stuck: &Stuck) -> String {
    let blocked = records[stuck.blocked];
    let overlaps = |r: &Record| r.invoked_ns <= blocked.returned_ns && r.returned_ns >= blocked.invoked_ns;
    let mut text = format!("{} calls could be put in order, the last of them:\n", stuck.ordered);
    text.extend(stuck.tail.iter().map(|&n| format!("  {}\n", line(records[n]))));
    text.extend(["then must come\n  ", &line(blocked), "\nat the same time:\n"]);
    text.extend(records.iter().filter(|r| overlaps(r)).map(|r| format!("  {}\n", line(r))));
    text
}

/// A request on one line.
fn line(record: &Record) -> String {
    let Record { client, member, key, ask, invoked_ns, returned_ns, outcome } = record;
    json!({
        "client": client, "member": member, "key": key, "ask": format!("{ask:?}"), "invoked_ns": invoked_ns,
        "returned_ns": returned_ns, "outcome": format!("{outcome:?}"),
    })
    .to_string()
}

/// Checks what holds across keys: an index belongs to one change, and the store's index never goes back in time.
///
/// # Errors
/// The requests that contradict each other.
pub fn check_indices(history: &[Record]) -> Result<()> {
    let mut changes: BTreeMap<u64, &Record> = BTreeMap::new();
    let mut ends: Vec<(u64, u64, &Record)> = Vec::new();
    for record in history {
        let Outcome::Answered(answer, store) = record.outcome else { continue };
        let reached = match answer {
            Answer::Changed { index, .. } => {
                if let Some(other) = changes.insert(index, record) {
                    bail!("two changes have index {index}:\n  {}\n  {}", line(other), line(record));
                }
                index
            }
            _ => store,
        };
        ends.push((record.returned_ns, reached, record));
    }
    ends.sort_by_key(|end| end.0);
    let mut begins = ends.clone();
    begins.sort_by_key(|(_, _, record)| record.invoked_ns);
    let mut before = ends.into_iter().peekable();
    let mut highest: Option<(u64, &Record)> = None;
    for (_, reached, record) in begins {
        while let Some((_, index, earlier)) = before.next_if(|end| end.0 < record.invoked_ns) {
            if highest.is_none_or(|(most, _)| index > most) {
                highest = Some((index, earlier));
            }
        }
        let Some((most, earlier)) = highest else { continue };
        let is_change = matches!(record.outcome, Outcome::Answered(Answer::Changed { .. }, _));
        let ok = if is_change { reached > most } else { reached >= most };
        ensure!(ok, "the store's index went back:\n  {}\nand later\n  {}", line(earlier), line(record));
    }
    Ok(())
}

/// The acknowledged changes: index to key.
pub fn acknowledged(history: &[Record]) -> BTreeMap<u64, &str> {
    let changes = history.iter().filter_map(|record| match record.outcome {
        Outcome::Answered(Answer::Changed { index, .. }, _) => Some((index, record.key.as_str())),
        _ => None,
    });
    changes.collect()
}

/// Writes the history, a line of JSON for each request.
///
/// # Errors
/// When the file cannot be written.
pub fn write(history: &[Record], path: &Path) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("{}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    for record in history {
        writeln!(out, "{}", line(record))?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::http;

    fn reply(status: u16, index: u64, body: &str) -> Reply {
        let text = format!(
            "HTTP/1.1 {status} X\r\nX-Etcd-Index: {index}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http::parse(text.as_bytes(), false).unwrap()
    }

    fn record(key: &str, invoked_ns: u64, returned_ns: u64, ask: Ask, outcome: Outcome) -> Record {
        Record { client: 1, member: 2, key: key.into(), ask, invoked_ns, returned_ns, outcome }
    }

    fn set(key: &str, invoked_ns: u64, value: u64, index: u64) -> Record {
        let answer = Answer::Changed { index, prev: None };
        record(key, invoked_ns, invoked_ns + 5, Ask::Set(value), Outcome::Answered(answer, index))
    }

    #[test]
    fn replies_are_read() {
        let node = r#"{"key":"/a","value":"7","modifiedIndex":9,"createdIndex":3}"#;
        let seen = Seen { value: 7, index: 9 };
        let found = reply(200, 12, &format!(r#"{{"action":"get","node":{node}}}"#));
        assert_eq!(outcome(Ask::Get, &found).unwrap(), Outcome::Answered(Answer::Found(seen), 12));
        let deleted =
            r#"{"action":"delete","node":{"key":"/a","modifiedIndex":11,"createdIndex":3},"prevNode":"#;
        let deleted = reply(200, 11, &format!("{deleted}{node}}}"));
        let changed = Answer::Changed { index: 11, prev: Some(seen) };
        assert_eq!(outcome(Ask::Delete, &deleted).unwrap(), Outcome::Answered(changed, 11));
        for (status, code, answer) in
            [(404, 100, Answer::Absent), (412, 101, Answer::Mismatch), (412, 105, Answer::Exists)]
        {
            let body = format!(r#"{{"errorCode":{code},"message":"","index":11}}"#);
            let settled = outcome(Ask::Create(1), &reply(status, 11, &body)).unwrap();
            assert_eq!(settled, Outcome::Answered(answer, 11));
        }
        let late = reply(500, 0, r#"{"errorCode":300,"message":"Raft Internal Error","index":0}"#);
        assert!(matches!(outcome(Ask::Set(1), &late).unwrap(), Outcome::Unknown(_)));
        assert!(matches!(outcome(Ask::Get, &late).unwrap(), Outcome::Failed(_)));
        assert!(outcome(Ask::Get, &reply(200, 1, r#"{"action":"get","node":{}}"#)).is_err());
    }

    #[test]
    fn keys_are_checked_one_by_one_and_a_failure_shows_its_surroundings() {
        let get = |key, at, value, index| {
            let answer = Outcome::Answered(Answer::Found(Seen { value, index }), index);
            record(key, at, at + 5, Ask::Get, answer)
        };
        let mut history = vec![set("/a", 10, 1, 5), set("/b", 12, 2, 6), get("/b", 30, 2, 6)];
        check_linearizable(&history, 1000).unwrap();
        history.push(get("/a", 40, 9, 3));
        let told = format!("{:#}", check_linearizable(&history, 1000).unwrap_err());
        assert!(told.contains("/a is not linearizable") && told.contains("value: 9"), "{told}");
        assert_eq!(acknowledged(&history), BTreeMap::from([(5, "/a"), (6, "/b")]));
    }

    #[test]
    fn indices_follow_time_across_keys() {
        check_indices(&[set("/a", 10, 1, 6), set("/b", 12, 2, 5), set("/c", 20, 3, 7)]).unwrap();
        let twice = check_indices(&[set("/a", 10, 1, 5), set("/b", 11, 2, 5)]).unwrap_err();
        assert!(format!("{twice}").contains("two changes have index 5"));
        let back = check_indices(&[set("/a", 10, 1, 6), set("/b", 20, 2, 5)]).unwrap_err();
        assert!(format!("{back}").contains("went back"));
        let stale = Outcome::Answered(Answer::Absent, 5);
        let old = [set("/a", 10, 1, 6), record("/b", 20, 25, Ask::Get, stale)];
        assert!(
            check_indices(&old).is_err(),
            "a quorum read of another key shows the store as it was before"
        );
    }
}
