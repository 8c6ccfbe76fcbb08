//! The life of this host's own lease: acquire it, renew it in time, notice when it is lost. Pure: no IO, no clock.
//!
//! The shell performs what [`Keeper::poll_request`] returns, one at a time and in order, hands the outcome to
//! [`Keeper::handle_reply`], passes on what the lease watch sees to [`Keeper::handle_seen`], and calls
//! [`Keeper::handle_timeout`] when [`Keeper::poll_timeout`] is due.
//!
//! | phase | on | then |
//! |---|---|---|
//! | acquire | `List` answered | own lease that fits: `Update`; that does not: `Delete`, list again; else `Create` |
//! | acquire | conflict, unknown outcome | list again, at most [`MAX_ROUNDS`] conflicts |
//! | held | expiry less margin | `Update` if the key is as we left it |
//! | held | conflict, or the store's index is behind our last write | `Read`: ours: adopt it; another's or gone: lost |
//! | held | store away | try again after 1 s, 2 s ... 60 s; forwarding goes on |
//! | held | key gone, or another's | lost; the daemon stops with a failure |
//!
//! Departures from flannel v0.10, all of them defects there: another host's live lease is never taken over through
//! `subnet.env`; a delete is followed by a fresh list; renewal compares, so a foreign owner is noticed and a vanished
//! key is not put back over somebody else's claim; expiry is counted from the TTL, so clock skew does not shift it; a
//! lost answer is looked up rather than fatal.

mod messages;

use std::time::{Duration, Instant};

use tracing::{info, warn};

pub use self::messages::{LeaseError, Loss, Reply, Request, Seen};
use crate::alloc::{self, Range};
use crate::types::{Subnet, VtepMac};
use crate::wire::lease::{Lease, LeaseValue, TTL_S};

/// How many lost races for a subnet are taken before giving up.
pub const MAX_ROUNDS: u32 = 10;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Who we are and what we may have.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The value to keep in the key.
    pub value: LeaseValue,
    /// Our VTEP address: a lease that carries it is ours even if our public address has changed.
    pub mac: VtepMac,
    /// The overlay network. A lease that is not within it takes nothing away: one wrong key (`0.0.0.0-0`) would
    /// otherwise keep every host from its subnet, as it does in flannel.
    pub network: Subnet,
    /// Where subnets are leased.
    pub range: Range,
    /// The subnet an earlier run had.
    pub previous: Option<Subnet>,
    /// How long before expiry to renew.
    pub renew_margin: Duration,
    /// Random, for the choice among free subnets.
    pub seed: u64,
}

/// A lease in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The subnet.
    pub subnet: Subnet,
    /// Index of our last write, or of an equal one by somebody else.
    pub modified_index: u64,
    /// When it runs out; `None` for a reservation.
    pub expires: Option<Instant>,
}

/// The state machine.
#[derive(Debug)]
pub struct Keeper {
    settings: Settings,
    held: Option<Held>,
    lost: Option<Loss>,
    pending: Option<Request>,
    in_flight: Option<Request>,
    deadline: Option<Instant>,
    retry: Duration,
    rounds: u32,
}

impl Keeper {
    /// Starts with nothing; the first request is to list the leases.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            held: None,
            lost: None,
            pending: Some(Request::List),
            in_flight: None,
            deadline: None,
            retry: RETRY_FIRST,
            rounds: 0,
        }
    }

    /// The value to write.
    pub fn value(&self) -> &LeaseValue {
        &self.settings.value
    }

    /// The lease, once acquired and until lost.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Why the lease is lost, once it is. Nothing else happens after that.
    pub fn lost(&self) -> Option<&Loss> {
        self.lost.as_ref()
    }

    /// The next request to perform; `None` while one is under way or nothing is due.
    pub fn poll_request(&mut self) -> Option<Request> {
        if self.in_flight.is_some() || self.lost.is_some() {
            return None;
        }
        self.in_flight = self.pending.take();
        self.in_flight.clone()
    }

    /// When to call [`Keeper::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| self.lost.is_none() && self.in_flight.is_none())
    }

    /// Time has come to `now`: renew, or try again.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        self.deadline = None;
        self.pending = Some(match &self.held {
            None => Request::List,
            Some(held) => Request::Update {
                subnet: held.subnet,
                prev_index: held.modified_index,
                ttl_s: held.expires.map(|_| TTL_S),
            },
        });
    }

    /// The request of the last [`Keeper::poll_request`] went this way.
    ///
    /// # Errors
    /// When there is no subnet for us. A lease that is lost after it was held is not an error here, see
    /// [`Keeper::lost`].
    pub fn handle_reply(&mut self, reply: Reply, now: Instant) -> Result<(), LeaseError> {
        let Some(request) = self.in_flight.take() else { return Ok(()) };
        if self.held.is_some() {
            self.held_reply(&request, reply, now);
            return Ok(());
        }
        let is_new = matches!(request, Request::Create(_));
        match (request, reply) {
            (_, Reply::Listed(leases)) => self.pending = Some(self.choose(&leases)?),
            (
                Request::Create(subnet) | Request::Update { subnet, .. },
                Reply::Written { modified_index, ttl_s },
            ) => {
                if is_new {
                    info!(%subnet, "Allocated lease ({subnet}) to current node ({})", self.settings.value.public_ip);
                }
                self.adopt(subnet, modified_index, ttl_s, now);
            }
            // Somebody changed what we had decided upon: look again.
            (request, Reply::Conflict) => {
                if request == self.settings.previous.map_or(Request::List, Request::Create) {
                    // Something we cannot read as a lease is in its place, or someone was faster.
                    self.settings.previous = None;
                }
                self.rounds += 1;
                if self.rounds >= MAX_ROUNDS {
                    return Err(LeaseError::MaxRetries);
                }
                self.pending = Some(Request::List);
            }
            (_, Reply::Refused(why)) => return Err(LeaseError::Refused(why)),
            (_, Reply::Unavailable(why)) => {
                warn!("Failed to acquire lease, trying again in {} s: {why}", self.retry.as_secs());
                self.retry_after(now);
            }
            // Deleted, already gone (flannel dies of that), or out of place: look again.
            _ => self.pending = Some(Request::List),
        }
        Ok(())
    }

    /// The watch saw something happen to our subnet. What is older than our own last write is ignored.
    pub fn handle_seen(&mut self, seen: Seen, now: Instant) {
        let Some(held) = self.held else { return };
        match seen {
            // Read before our last write took effect, or the store has gone back: restored from a backup, or made
            // anew. Indexes then say nothing about our key, so it is looked at.
            Seen::Listed { index } if index < held.modified_index => {
                self.pending = Some(Request::Read(held.subnet));
            }
            Seen::Put(lease) if lease.modified_index > held.modified_index => self.examine(lease, now),
            Seen::Gone { index } if index > held.modified_index => {
                self.lose(Loss::Revoked { subnet: held.subnet });
            }
            Seen::Unreadable { index, why } if index > held.modified_index => {
                self.lose(Loss::Overwritten { subnet: held.subnet, why });
            }
            _ => {}
        }
    }

    /// What to ask for, given all leases.
    fn choose(&mut self, leases: &[Lease]) -> Result<Request, LeaseError> {
        let Settings { range, previous, .. } = self.settings;
        let public_ip = self.settings.value.public_ip;
        let mut ours: Vec<&Lease> = leases.iter().filter(|l| l.value.public_ip == public_ip).collect();
        ours.sort_by_key(|l| (Some(l.subnet) != previous, l.subnet));
        if let Some(lease) = ours.iter().find(|l| range.fits(l.subnet)) {
            info!(subnet = %lease.subnet, "Found lease ({}) for current IP ({public_ip}), reusing", lease.subnet);
            return Ok(update(lease));
        }
        if let Some(lease) = ours.first() {
            info!(
                subnet = %lease.subnet,
                "Found lease ({}) for current IP ({public_ip}) but not compatible with current config, deleting",
                lease.subnet
            );
            return Ok(Request::Delete { subnet: lease.subnet, prev_index: lease.modified_index });
        }
        if let Some(request) = previous.and_then(|subnet| self.reuse(subnet, leases)) {
            return Ok(request);
        }
        let taken: Vec<Subnet> = leases.iter().map(|l| l.subnet).filter(|s| self.is_within(*s)).collect();
        let random =
            self.settings.seed.wrapping_add(u64::from(self.rounds).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        alloc::choose(&range, &taken, random).map(Request::Create).ok_or(LeaseError::OutOfSubnets)
    }

    fn reuse(&self, previous: Subnet, leases: &[Lease]) -> Option<Request> {
        if !self.settings.range.fits(previous) {
            warn!(subnet = %previous, "Found previously leased subnet ({previous}) that is not compatible with current config, ignoring");
            return None;
        }
        match leases.iter().find(|l| self.is_within(l.subnet) && l.subnet.overlaps(previous)) {
            None => {
                info!(subnet = %previous, "Found previously leased subnet ({previous}), reusing");
                Some(Request::Create(previous))
            }
            Some(lease) if lease.subnet == previous && self.has_our_mac(&lease.value) => {
                info!(subnet = %previous, "Found lease ({previous}) matching previously leased subnet, reusing");
                Some(update(lease))
            }
            Some(lease) => {
                warn!(subnet = %previous, holder = %lease.value.public_ip, "Previously leased subnet ({previous}) is held by another host now, taking a new one");
                None
            }
        }
    }

    fn held_reply(&mut self, request: &Request, reply: Reply, now: Instant) {
        let Some(held) = self.held else { return };
        let subnet = held.subnet;
        match reply {
            Reply::Written { modified_index, ttl_s } => {
                // The watch may have told us before the reply did.
                if modified_index > held.modified_index {
                    self.adopt(subnet, modified_index, ttl_s, now);
                }
                info!(%subnet, "Lease renewed, new expiration: in {} s", ttl_s.unwrap_or_default());
            }
            Reply::Found(lease) => self.examine(lease, now),
            Reply::Conflict => self.pending = Some(Request::Read(subnet)),
            // A reply to a write that the watch has overtaken says nothing about the present.
            Reply::Gone if matches!(request, Request::Update { prev_index, .. } if *prev_index != held.modified_index) =>
            {
                self.pending = Some(Request::Read(subnet));
            }
            Reply::Gone => self.lose(Loss::Revoked { subnet }),
            Reply::Unreadable(why) => self.lose(Loss::Overwritten { subnet, why }),
            Reply::Unavailable(why) | Reply::Refused(why) => {
                warn!(%subnet, "Error renewing lease (trying again in {} s): {why}", self.retry.as_secs());
                self.retry_after(now);
            }
            Reply::Listed(_) | Reply::Deleted => {}
        }
    }

    /// Our key holds `lease`: go on with it if it is ours.
    fn examine(&mut self, lease: Lease, now: Instant) {
        let ours = lease.value.public_ip == self.settings.value.public_ip && self.has_our_mac(&lease.value);
        if ours {
            self.adopt(lease.subnet, lease.modified_index, lease.ttl_s, now);
        } else {
            let data = lease.value.backend_data.map(|d| d.to_string()).unwrap_or_default();
            self.lose(Loss::Taken { subnet: lease.subnet, public_ip: lease.value.public_ip, data });
        }
    }

    fn is_within(&self, subnet: Subnet) -> bool {
        self.settings.network.contains_subnet(subnet)
    }

    fn has_our_mac(&self, value: &LeaseValue) -> bool {
        value.is_vxlan() && value.vtep_mac() == Ok(self.settings.mac)
    }

    fn adopt(&mut self, subnet: Subnet, modified_index: u64, ttl_s: Option<u64>, now: Instant) {
        let expires = ttl_s.map(|s| now + Duration::from_secs(s));
        self.held = Some(Held { subnet, modified_index, expires });
        self.retry = RETRY_FIRST;
        self.pending = None;
        // A reservation never expires and is never renewed. Never at once, lest a store that shortens every TTL
        // makes us write without pause.
        let renew =
            |at: Instant| at.checked_sub(self.settings.renew_margin).unwrap_or(now).max(now + RETRY_FIRST);
        self.deadline = expires.map(renew);
        if let Some(at) = self.deadline {
            info!(%subnet, "Waiting for {} s to renew lease", (at - now).as_secs());
        } else {
            info!(%subnet, "Lease is a reservation without expiry, it is not renewed");
        }
    }

    fn retry_after(&mut self, now: Instant) {
        self.deadline = Some(now + self.retry);
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    fn lose(&mut self, loss: Loss) {
        self.held = None;
        self.lost = Some(loss);
    }
}

fn update(lease: &Lease) -> Request {
    Request::Update {
        subnet: lease.subnet,
        prev_index: lease.modified_index,
        ttl_s: lease.ttl_s.map(|_| TTL_S),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::unchecked_time_subtraction,
    reason = "tests"
)]
mod tests;
