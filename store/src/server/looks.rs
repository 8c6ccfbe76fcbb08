//! Answers to GET, the large ones away from those who serve.
//!
//! A look takes the node as it is, with what is below it: some reference counts, under the lock on the machine for as
//! long as finding the node takes. From that the answer is made. A small one is made by the task that serves the client,
//! as handing it over would cost more. A large one takes seconds, in which no other client on the same thread would be
//! served, so it is made on a thread of its own, few at a time. While it waits for its turn, or for room for the answer,
//! it holds nothing of the tree.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::handle::{Handle, left, now, now_ns};
use super::limits::AT_ONCE_BYTES;
use super::served::sharing;
use super::shares::{ClientRoom, Share};
use crate::tree::FrozenNode;
use crate::wire::v2::{self, ApiError};
use crate::wire::v2_request::Get;

/// The tree's index and the body of the answer, or the bytes that there has to be room for.
type Made = Result<(u64, Bytes), usize>;

/// How many large answers are made at one time, by their size: a list of a thousand keys does not wait for somebody who
/// fetches everything.
#[derive(Debug)]
pub(super) struct Turns(Vec<(usize, Arc<Semaphore>)>);

impl Turns {
    /// Of those up to some size so many, the smaller first.
    pub(super) fn new(classes: &[(usize, usize)]) -> Turns {
        Turns(classes.iter().map(|&(largest, count)| (largest, Arc::new(Semaphore::new(count)))).collect())
    }

    /// What can be found out of a size without taking longer than what it decides is worth.
    fn within(&self) -> usize {
        self.0.first().map_or(0, |(largest, _)| *largest)
    }

    /// A turn for an answer of that size.
    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let (_, turns) = self.0.iter().find(|(largest, _)| bytes <= *largest)?;
        Arc::clone(turns).acquire_owned().await.ok()
    }
}

/// The tree's index and the body of the answer, which keeps its share of `room`.
///
/// # Errors
/// The tree's; 503 if there is no turn or no room for a large one within the time that a request may take.
pub(super) async fn look(handle: &Handle, room: &ClientRoom, get: &Get) -> Result<(u64, Bytes), ApiError> {
    let by = now() + handle.timeout();
    let turns = &handle.limits().turns;
    let mut share = Share::default();
    loop {
        let (index, node) = handle.look(get)?;
        let size = v2::get_size_within(&node, turns.within());
        let made = if let Some(size) = size.filter(|&size| size <= AT_ONCE_BYTES) {
            make(index, &node, size, room, share)
        } else {
            drop(node);
            let turn = timeout(left(by), turns.take(size.unwrap_or(usize::MAX))).await;
            let turn =
                turn.map_err(|_| ApiError::busy("too many large answers are made at the same time"))?;
            make_apart(handle.clone(), room.clone(), get.clone(), share, turn).await?
        };
        let needed = match made {
            Ok(made) => return Ok(made),
            Err(needed) => needed,
        };
        share = timeout(left(by), room.share(needed)).await.map_err(|_| {
            let what = format_args!("no room for an answer of {needed} bytes beside the others");
            ApiError::busy_with("no room for an answer", what)
        })?;
    }
}

/// Looks and makes the answer on a thread of its own. The turn ends when it is made, also if nobody waits any more.
async fn make_apart(
    handle: Handle,
    room: ClientRoom,
    get: Get,
    share: Share,
    turn: Option<OwnedSemaphorePermit>,
) -> Result<Made, ApiError> {
    let making = spawn_blocking(move || {
        let _turn = turn;
        let (index, node) = handle.look(&get)?;
        Ok(make(index, &node, v2::get_size(&node), &room, share))
    });
    // It ends without a result only if this member does.
    making.await.unwrap_or_else(|_| Err(ApiError::raft("etcdserver: server stopped")))
}

/// The answer of about that size, if `share` can be made large enough for it.
fn make(index: u64, node: &FrozenNode, size: usize, room: &ClientRoom, mut share: Share) -> Made {
    if !room.grow(&mut share, size) {
        return Err(size);
    }
    let body = v2::get_body(node, size, now_ns());
    if room.grow(&mut share, body.len()) { Ok((index, sharing(body, share))) } else { Err(body.len()) }
}

#[cfg(test)]
#[path = "looks_tests.rs"]
mod tests;
