//! The daemon's main loop: one task that owns the lease, the table of all leases and the data path, so that nothing
//! needs a lock. Everything that waits (store, kernel) happens here or in the tasks that feed it.

#![expect(clippy::disallowed_methods, reason = "a shell: it reads the clock")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::daemon::{DaemonError, describe};
use crate::datapath::{DataPath, Peer};
use crate::lease::{Keeper, LeaseError, Reply, Seen};
use crate::mesh::Target;
use crate::registry::{Complaint, Registry, Update};
use crate::types::Subnet;
use crate::watch::{self as leases, Event, Skipped};
use crate::wire::lease::Lease;

/// How often the kernel is compared with what should be there.
const RECONCILE: Duration = Duration::from_secs(10);
/// How soon after a failure.
const RECONCILE_SOON: Duration = Duration::from_secs(1);
/// How soon after somebody changed the device: a moment, so that what comes together is repaired together.
const SETTLE: Duration = Duration::from_millis(100);
/// How long readiness waits for the first listing. The lease was acquired a moment ago, so the store answers; should
/// it have gone away since, containers may start all the same.
const FIRST_LISTING: Duration = Duration::from_secs(5);

type InFlight = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Drives `keeper` until it holds a lease, and returns the subnet.
///
/// # Errors
/// When there is none to be had.
pub(crate) async fn acquire(keeper: &mut Keeper, registry: &Registry) -> Result<Subnet, LeaseError> {
    loop {
        if let Some(held) = keeper.held() {
            return Ok(held.subnet);
        }
        if let Some(request) = keeper.poll_request() {
            let reply = registry.perform(&request, keeper.value()).await;
            keeper.handle_reply(reply, Instant::now())?;
        } else if let Some(due) = keeper.poll_timeout() {
            tokio::time::sleep_until(due.into()).await;
            keeper.handle_timeout(Instant::now());
        }
    }
}

/// Everything the main loop owns.
pub(crate) struct Node<D: DataPath> {
    pub(crate) registry: Registry,
    pub(crate) keeper: Keeper,
    pub(crate) datapath: D,
    pub(crate) own: Subnet,
    pub(crate) network: Subnet,
    pub(crate) updates: mpsc::Receiver<Update>,
    pub(crate) targets: watch::Sender<Option<Vec<Target>>>,
    pub(crate) ready: watch::Sender<bool>,
    /// Somebody changed our device.
    pub(crate) disturbed: mpsc::Receiver<()>,
}

/// What the loop remembers.
#[derive(Default)]
struct Table {
    leases: BTreeMap<Subnet, Lease>,
    peers: BTreeMap<Subnet, Peer>,
    skipped: Vec<Skipped>,
    /// Whether there ever was a listing; before, the kernel's entries of an earlier run are left in peace.
    listed: bool,
    /// What is wrong with programming.
    failing: Complaint,
}

impl<D: DataPath> Node<D> {
    /// Runs until the lease is lost or the data path beyond repair; returns why.
    pub(crate) async fn run(mut self) -> DaemonError {
        let mut table = Table::default();
        let mut in_flight: Option<InFlight> = None;
        let mut reconcile = tokio::time::Instant::now() + RECONCILE_SOON;
        let mut announced = false;
        let announce_by = tokio::time::Instant::now() + FIRST_LISTING;
        loop {
            if let Some(loss) = self.keeper.lost() {
                return loss.clone().into();
            }
            if let Some(reason) = self.datapath.fatal() {
                return DaemonError::DataPath(reason);
            }
            if in_flight.is_none()
                && let Some(request) = self.keeper.poll_request()
            {
                let (registry, value) = (self.registry.clone(), self.keeper.value().clone());
                in_flight = Some(Box::pin(async move { registry.perform(&request, &value).await }));
            }
            let renew = self.keeper.poll_timeout();
            tokio::select! {
                update = self.updates.recv() => {
                    // The sender lives as long as we do; should it not, reconciling goes on all the same.
                    let Some(update) = update else { tokio::time::sleep(RECONCILE_SOON).await; continue };
                    self.handle(update, &mut table);
                    while let Ok(update) = self.updates.try_recv() {
                        self.handle(update, &mut table);
                    }
                    // Who has lost the lease touches nothing any more: forwarding goes on as it is, as with flannel.
                    if self.keeper.lost().is_none() && (self.refresh(&mut table) || !announced) {
                        reconcile = self.sync(&mut table).await;
                    }
                }
                reply = async { in_flight.as_mut().expect("guarded").await }, if in_flight.is_some() => {
                    in_flight = None;
                    if let Err(error) = self.keeper.handle_reply(reply, Instant::now()) {
                        return error.into();
                    }
                }
                () = tokio::time::sleep_until(renew.unwrap_or_else(Instant::now).into()), if renew.is_some() => {
                    self.keeper.handle_timeout(Instant::now());
                }
                Some(()) = self.disturbed.recv() => reconcile = reconcile.min(tokio::time::Instant::now() + SETTLE),
                () = tokio::time::sleep_until(reconcile) => reconcile = self.sync(&mut table).await,
                () = tokio::time::sleep_until(announce_by), if !announced => {}
            }
            if !announced && (table.listed || tokio::time::Instant::now() >= announce_by) {
                announced = true;
                info!(subnet = %self.own, peers = table.peers.len(), "ready");
                if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                    warn!("NOTIFY_SOCKET: {error}");
                }
            }
        }
    }

    /// Takes an update into the table, and what it says of our own lease to the keeper.
    fn handle(&mut self, update: Update, table: &mut Table) {
        let now = Instant::now();
        let own = self.own;
        match update {
            Update::All(listing) => {
                self.keeper.handle_seen(Seen::Listed { index: listing.index }, now);
                let odd = listing.odd.into_iter().find(|o| o.subnet == Some(own));
                let seen = match (listing.leases.iter().find(|l| l.subnet == own), odd) {
                    (Some(lease), _) => Seen::Put(lease.clone()),
                    (None, Some(odd)) => Seen::Unreadable { index: listing.index, why: odd.why },
                    (None, None) => Seen::Gone { index: listing.index },
                };
                self.keeper.handle_seen(seen, now);
                table.leases = listing.leases.into_iter().map(|l| (l.subnet, l)).collect();
                table.listed = true;
            }
            Update::One(event, index) => match event {
                Event::Put(lease) => {
                    if lease.subnet == own {
                        self.keeper.handle_seen(Seen::Put(lease.clone()), now);
                    }
                    table.leases.insert(lease.subnet, lease);
                }
                Event::Gone(subnet) => {
                    if subnet == own {
                        self.keeper.handle_seen(Seen::Gone { index }, now);
                    }
                    table.leases.remove(&subnet);
                }
                Event::Odd(odd) => {
                    if odd.subnet == Some(own) {
                        self.keeper.handle_seen(Seen::Unreadable { index, why: odd.why }, now);
                    }
                    odd.subnet.map(|subnet| table.leases.remove(&subnet));
                }
                Event::AllGone => {
                    self.keeper.handle_seen(Seen::Gone { index }, now);
                    table.leases.clear();
                }
                Event::Nothing => {}
            },
        }
    }

    /// Works out the peers anew and says what changed. Returns whether anything did.
    fn refresh(&self, table: &mut Table) -> bool {
        let (peers, skipped) =
            leases::peers(table.leases.values(), self.own, self.datapath.mac(), self.network);
        for skip in skipped.iter().filter(|s| !table.skipped.contains(s)) {
            warn!(subnet = %skip.subnet, "lease {} is not programmed: {}", skip.subnet, skip.why);
        }
        for (subnet, peer) in &peers {
            let text = describe(*subnet, peer.public_ip);
            match table.peers.get(subnet) {
                Some(old) if old == peer => {}
                Some(_) => {
                    info!(%subnet, public_ip = %peer.public_ip, mac = %peer.mac, "peer changed: {text}");
                }
                None => info!(%subnet, public_ip = %peer.public_ip, mac = %peer.mac, "peer added: {text}"),
            }
        }
        for (subnet, old) in table.peers.iter().filter(|(s, _)| !peers.contains_key(s)) {
            info!(%subnet, public_ip = %old.public_ip, "peer removed: {}", describe(*subnet, old.public_ip));
        }
        let changed = peers != table.peers || skipped != table.skipped;
        (table.peers, table.skipped) = (peers, skipped);
        if changed || self.targets.borrow().is_none() {
            self.targets.send_replace(Some(self.mesh_targets(table)));
        }
        changed
    }

    fn mesh_targets(&self, table: &Table) -> Vec<Target> {
        let others = table.leases.values().filter(|l| l.subnet != self.own);
        let target = |lease: &Lease| Target {
            subnet: lease.subnet,
            public_ip: lease.value.public_ip,
            skip: table.skipped.iter().find(|s| s.subnet == lease.subnet).map(|s| s.why.clone()),
        };
        others.map(target).collect()
    }

    /// Makes the kernel agree with the table; returns when to look again.
    async fn sync(&mut self, table: &mut Table) -> tokio::time::Instant {
        if !table.listed {
            return tokio::time::Instant::now() + RECONCILE_SOON;
        }
        let outcome = self.datapath.sync(&table.peers).await;
        let device = self.datapath.device();
        match &outcome {
            Ok(changes) => {
                if *changes > 0 {
                    debug!(device, changes, "programmed");
                }
                if table.failing.resolve() {
                    info!(device, "programming works again");
                }
            }
            Err(error) => table.failing.complain(&format!(
                "programming {device} failed, trying again every {} s: {error}",
                RECONCILE_SOON.as_secs()
            )),
        }
        self.ready.send_replace(outcome.is_ok());
        tokio::time::Instant::now() + if outcome.is_ok() { RECONCILE } else { RECONCILE_SOON }
    }
}
