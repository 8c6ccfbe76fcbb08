//! Clients: each does one thing after another to a few keys, on any member, and gives up after a while.
//!
//! An operation whose answer never came may have happened or not. The world knows: what was never applied is left out of
//! the history, and what was applied had happened by then, which holds for a store that reads through a quorum and keeps
//! the search small.

use std::collections::BTreeMap;

use store::tree::{Code, Event, Op as TreeOp};
use store::wire::command::{Command, RequestId};

use crate::checks::{Broken, Checks};
use crate::dice::Dice;
use crate::linear::{Call, Op, Ret, is_linearizable};
use crate::report::Report;
use crate::time::{MILLI, Nanos, SECOND};

/// Plain keys, and keys that expire.
const KEYS: [&str; 4] = ["/1/a", "/1/b", "/1/c/d", "/1/e"];
const TTL_KEYS: [&str; 2] = ["/1/t", "/1/u"];
/// How long a client waits.
pub(crate) const TIMEOUT: Nanos = 1500 * MILLI;

/// An operation and what is known of it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) client: usize,
    /// The member that was asked.
    pub(crate) at: u64,
    pub(crate) key: &'static str,
    pub(crate) call: Call,
    pub(crate) begun: Nanos,
    /// When and what it was told; nothing if it gave up.
    pub(crate) told: Option<(Nanos, Ret)>,
    /// The request that carries it, if it writes.
    pub(crate) request: Option<RequestId>,
    /// It was refused: it must never happen.
    pub(crate) refused: bool,
}

/// All clients and what they have done.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) ops: Vec<Asked>,
    /// The operation that each waits for.
    pub(crate) waiting: Vec<Option<usize>>,
    /// The value that was last seen of each key.
    seen: BTreeMap<&'static str, u64>,
}

impl Clients {
    pub(crate) fn new(count: usize) -> Clients {
        Clients { waiting: vec![None; count], ..Clients::default() }
    }

    /// What a client does next. Returns its number.
    pub(crate) fn ask(&mut self, client: usize, at: u64, now: Nanos, dice: &mut Dice) -> usize {
        let op = self.ops.len();
        let value = op as u64;
        let key = if dice.per_mille(250) { dice.pick(&TTL_KEYS) } else { dice.pick(&KEYS) };
        let seen = self.seen.get(key).copied().unwrap_or(0);
        let call = match dice.below(20) {
            0..7 => Call::Get,
            7..12 => Call::Set(value),
            12..14 => Call::Create(value),
            14..17 => Call::Swap(seen, value),
            17 => Call::DeleteIf(seen),
            _ => Call::Delete,
        };
        let (told, request, refused) = (None, None, false);
        self.ops.push(Asked { client, at, key, call, begun: now, told, request, refused });
        self.waiting[client] = Some(op);
        op
    }

    /// The command of an operation that writes, as the API would make it at `wall_ns`.
    pub(crate) fn command(&self, op: usize, wall_ns: i64, dice: &mut Dice) -> Option<Command> {
        let asked = &self.ops[op];
        let path = asked.key.to_owned();
        let expires_ns = TTL_KEYS.contains(&asked.key).then(|| {
            let ttl = dice.between(SECOND / 2, 4 * SECOND);
            wall_ns + i64::try_from(ttl).unwrap_or(i64::MAX)
        });
        let op = match asked.call {
            Call::Get | Call::Expire(_) => return None,
            Call::Set(value) => {
                TreeOp::Set { path, dir: false, value: value.to_string(), expires_ns, refresh: false }
            }
            Call::Create(value) => {
                TreeOp::Create { path, dir: false, value: value.to_string(), expires_ns, in_order: false }
            }
            Call::Swap(old, new) => TreeOp::CompareAndSwap {
                path,
                prev_value: Some(old.to_string()),
                prev_index: None,
                value: new.to_string(),
                expires_ns,
                refresh: false,
            },
            Call::Delete => TreeOp::Delete { path, dir: false, recursive: false },
            Call::DeleteIf(old) => {
                TreeOp::CompareAndDelete { path, prev_value: Some(old.to_string()), prev_index: None }
            }
        };
        Some(Command::V2(op))
    }

    /// A write that must come through, by a client of its own.
    pub(crate) fn probe(&mut self, at: u64, now: Nanos) -> usize {
        let (op, client) = (self.ops.len(), self.waiting.len());
        let (key, call) = (KEYS[0], Call::Set(op as u64));
        let (told, request, refused) = (None, None, false);
        self.ops.push(Asked { client, at, key, call, begun: now, told, request, refused });
        self.waiting.push(Some(op));
        op
    }

    /// The operations that wait for this member.
    pub(crate) fn waiting_at(&self, at: u64) -> Vec<usize> {
        self.waiting.iter().flatten().copied().filter(|op| self.ops[*op].at == at).collect()
    }

    /// An answer has come. Returns the client, if it still waits.
    pub(crate) fn told(&mut self, op: usize, ret: Ret, now: Nanos) -> Option<usize> {
        let asked = &mut self.ops[op];
        let client = asked.client;
        if self.waiting[client] != Some(op) {
            return None;
        }
        asked.told = Some((now, ret));
        if let Ret::Read(Some(value)) | Ret::Done(Some(value)) = ret {
            self.seen.insert(asked.key, value);
        }
        self.waiting[client] = None;
        Some(client)
    }

    /// A client waits no longer. Returns it, if it did.
    pub(crate) fn give_up(&mut self, op: usize) -> Option<usize> {
        let client = self.ops[op].client;
        let waits = self.waiting[client] == Some(op);
        if waits {
            self.waiting[client] = None;
        }
        waits.then_some(client)
    }

    /// Holds what was told against what can have happened.
    pub(crate) fn check(&self, checks: &Checks, report: &mut Report) -> Result<(), Broken> {
        let mut histories: BTreeMap<&str, Vec<Op>> = BTreeMap::new();
        for (number, asked) in self.ops.iter().enumerate() {
            let applied = asked.request.and_then(|id| checks.requests.get(&id));
            if asked.refused && applied.is_some() {
                return Err(format!("operation {number} was refused and happened all the same"));
            }
            let (ended, ret) = match (asked.told, applied) {
                (Some((_, ret)), None) if asked.request.is_some() => {
                    return Err(format!("operation {number} was answered ({ret:?}) but never applied"));
                }
                (Some(told), _) => told,
                (None, Some((_, applied))) => {
                    report.hit("clients: gave up on what happened");
                    ((*applied).max(asked.begun), Ret::Unknown)
                }
                (None, None) => continue,
            };
            let op = Op { call: asked.call, ret, begun: asked.begun, ended };
            histories.entry(asked.key).or_default().push(op);
            report.hit(name(asked.call, ret));
        }
        for (key, value, seen) in &checks.expired {
            let value: u64 = value.parse().map_err(|_| format!("{key} expired with the value {value:?}"))?;
            let Some(asked) = usize::try_from(value).ok().and_then(|at| self.ops.get(at)) else {
                return Err(format!("{key} expired with {value}, which nobody wrote"));
            };
            let op = Op { call: Call::Expire(value), ret: Ret::Unknown, begun: asked.begun, ended: *seen };
            histories.entry(asked.key).or_default().push(op);
            report.hit("expired keys");
        }
        let bad = histories.iter().find(|(_, ops)| !is_linearizable(ops));
        bad.map_or(Ok(()), |(key, ops)| {
            let ops: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
            Err(format!("the history of {key} is not linearizable:\n{}", ops.join("\n")))
        })
    }
}

/// What is counted.
fn name(call: Call, ret: Ret) -> &'static str {
    match (call, ret) {
        (_, Ret::Unknown) => "op: unknown outcome",
        (Call::Get, _) => "op: quorum get",
        (Call::Set(_), _) => "op: set",
        (Call::Create(_), Ret::Exists) => "op: create, exists",
        (Call::Create(_), _) => "op: create",
        (Call::Swap(..) | Call::DeleteIf(_), Ret::Differs | Ret::Missing) => "op: compare, refused",
        (Call::Swap(..), _) => "op: compare and swap",
        (Call::DeleteIf(_), _) => "op: compare and delete",
        (Call::Delete | Call::Expire(_), _) => "op: delete",
    }
}

/// What an answer of the store says.
pub(crate) fn ret(answer: &store::replica::apply::Answer) -> Result<Ret, Broken> {
    match answer {
        Ok(Some(event)) => Ok(Ret::Done(previous(event)?)),
        Ok(None) => Err("a write was answered without an event".to_owned()),
        Err(error) if error.code == Code::KeyNotFound => Ok(Ret::Missing),
        Err(error) if error.code == Code::AlreadyExists => Ok(Ret::Exists),
        Err(error) if error.code == Code::CompareFailed => Ok(Ret::Differs),
        Err(error) => Err(format!("a write was answered {error}")),
    }
}

fn previous(event: &Event) -> Result<Option<u64>, Broken> {
    let value = event.prev.as_ref().and_then(|node| node.value.as_deref());
    value.map(number).transpose()
}

/// The number that a stored value is.
pub(crate) fn number(value: &str) -> Result<u64, Broken> {
    value.parse().map_err(|_| format!("the value {value:?} was never written"))
}
