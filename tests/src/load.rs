//! Concurrent clients that read and write a few keys through all members and write down what they were told.

#![expect(clippy::disallowed_methods, reason = "the times of a history are real")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;
use crate::history::{self, Outcome, Record};
use crate::http::Request;
use crate::keepalive::{Connection, Lost};
use crate::key_model::{Answer, Ask, Seen};
use crate::v2::Endpoint;
use crate::wait::wait_for;

/// The directory of all keys.
pub const DIRECTORY: &str = "/lin";
/// Keys in use at the same time; few, so that clients meet.
const KEYS: u64 = 4;
/// Changes to a key's generation after which all clients turn to new keys.
const CALLS_PER_GENERATION: u64 = 4000;
/// How long a client waits for an answer: shorter than the store, which gives up after its election timeouts.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The longest that a client rests between requests, in milliseconds.
const REST_MS: u64 = 16;
/// Requests for which a client that may choose leaves out a member that did not answer.
const AVOIDED: u64 = 20;

/// What the clients share.
#[derive(Debug)]
pub struct Load {
    began: Instant,
    stop: AtomicBool,
    next_value: AtomicU64,
    calls: AtomicU64,
    answered: Vec<AtomicUsize>,
    history: Mutex<Vec<Record>>,
}

impl Load {
    /// A load for `members` members, that has not begun.
    pub fn new(members: usize) -> Self {
        Self {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            calls: AtomicU64::new(0),
            answered: (0..members).map(|_| AtomicUsize::new(0)).collect(),
            history: Mutex::default(),
        }
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Makes all clients end after their request.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether they have been told to.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until each of `members` has answered `more` further requests, within `limit`.
    ///
    /// # Errors
    /// When they have not.
    pub fn wait_answers(&self, members: &[usize], more: usize, limit: Duration) -> Result<()> {
        let now = |member: usize| self.answered[member].load(Ordering::Relaxed);
        let goals: Vec<usize> = members.iter().map(|&member| now(member) + more).collect();
        wait_for("answers of every member", limit, || {
            for (&member, &goal) in members.iter().zip(&goals) {
                ensure!(now(member) >= goal, "member {member}: {} of {goal}", now(member));
            }
            Ok(())
        })
    }

    /// What has been recorded so far, in no order.
    pub fn take_history(&self) -> Vec<Record> {
        std::mem::take(&mut *self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One client until [`Self::stop`]. It asks `home` alone, as a client beside a member does; without a home it
    /// asks all in turn and leaves out for a while the ones that do not answer.
    ///
    /// # Errors
    /// When an answer makes no sense.
    pub fn client(
        &self,
        client: usize,
        seed: u64,
        home: Option<usize>,
        endpoints: &[Endpoint<'_>],
    ) -> Result<()> {
        let mut client = Client {
            load: self,
            number: client,
            dice: Dice::new(seed ^ (client as u64) << 32),
            home,
            connections: endpoints.iter().map(|e| Connection::new(e.ns, e.address)).collect(),
            avoid: vec![0; endpoints.len()],
            last: BTreeMap::new(),
        };
        let mut records = Vec::new();
        let mut outcome = Ok(());
        while !self.stopped() && outcome.is_ok() {
            outcome = client.turn().map(|record| records.push(record));
            std::thread::sleep(Duration::from_millis(client.dice.roll(REST_MS)));
        }
        self.history.lock().unwrap_or_else(PoisonError::into_inner).extend(records);
        outcome
    }
}

struct Client<'a> {
    load: &'a Load,
    number: usize,
    dice: Dice,
    home: Option<usize>,
    connections: Vec<Connection<'a>>,
    avoid: Vec<u64>,
    /// What this client knows of each key.
    last: BTreeMap<String, Seen>,
}

impl Client<'_> {
    fn turn(&mut self) -> Result<Record> {
        let generation = self.load.calls.fetch_add(1, Ordering::Relaxed) / CALLS_PER_GENERATION;
        let key = format!("{DIRECTORY}/{generation}-{}", self.dice.roll(KEYS));
        let ask = self.choose(&key);
        let member = self.member();
        let invoked_ns = self.load.now_ns();
        let sent = send(&mut self.connections[member], &key, ask);
        let returned_ns = self.load.now_ns();
        let outcome = match sent {
            Ok(reply) => history::outcome(ask, &reply)
                .with_context(|| format!("{ask:?} of {key}: {}", reply.text()))?,
            Err(Lost::NotSent(why)) => Outcome::Failed(format!("{why:#}")),
            Err(Lost::Unknown(why)) => Outcome::Unknown(format!("{why:#}")),
        };
        self.learn(&key, ask, member, &outcome);
        Ok(Record { client: self.number, member, key, ask, invoked_ns, returned_ns, outcome })
    }

    fn choose(&mut self, key: &str) -> Ask {
        let value = self.load.next_value.fetch_add(1, Ordering::Relaxed);
        let known = self.last.get(key).copied();
        match (self.dice.roll(20), known) {
            (0..4, _) => Ask::Set(value),
            (4..6, _) => Ask::Create(value),
            (6..8, _) => Ask::Delete,
            (8..10, Some(seen)) => Ask::SwapValue { prev: seen.value, value },
            (10..12, Some(seen)) => Ask::SwapIndex { prev: seen.index, value },
            _ => Ask::Get,
        }
    }

    fn member(&mut self) -> usize {
        if let Some(home) = self.home {
            return home;
        }
        for avoid in &mut self.avoid {
            *avoid = avoid.saturating_sub(1);
        }
        let willing: Vec<usize> = (0..self.avoid.len()).filter(|&n| self.avoid[n] == 0).collect();
        if willing.is_empty() {
            self.dice.index(self.avoid.len())
        } else {
            willing[self.dice.index(willing.len())]
        }
    }

    fn learn(&mut self, key: &str, ask: Ask, member: usize, outcome: &Outcome) {
        let Outcome::Answered(answer, _) = *outcome else {
            self.avoid[member] = AVOIDED;
            return;
        };
        self.load.answered[member].fetch_add(1, Ordering::Relaxed);
        let seen = match (answer, ask.value()) {
            (Answer::Found(seen), _) => Some(seen),
            (Answer::Changed { index, .. }, Some(value)) => Some(Seen { value, index }),
            _ => None,
        };
        match seen {
            Some(seen) => drop(self.last.insert(key.to_owned(), seen)),
            None => drop(self.last.remove(key)),
        }
    }
}

fn send(connection: &mut Connection<'_>, key: &str, ask: Ask) -> Result<crate::http::Reply, Lost> {
    let form = ask.value().map(|value| format!("value={value}")).unwrap_or_default();
    let body = ask.value().map(|_| ("application/x-www-form-urlencoded", form.as_str()));
    let (method, query) = match ask {
        Ask::Get => ("GET", "?quorum=true".to_owned()),
        Ask::Set(_) => ("PUT", String::new()),
        Ask::Create(_) => ("PUT", "?prevExist=false".to_owned()),
        Ask::SwapValue { prev, .. } => ("PUT", format!("?prevValue={prev}")),
        Ask::SwapIndex { prev, .. } => ("PUT", format!("?prevIndex={prev}")),
        Ask::Delete => ("DELETE", String::new()),
    };
    let target = format!("/v2/keys{key}{query}");
    connection.send(&Request { method, target: &target, body, headers: &[] }, PATIENCE)
}
