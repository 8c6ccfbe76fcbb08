//! Leases at the store: performs the [`lease::Request`]s of the keeper, reads the configuration, and watches.
//!
//! No policy; errors are sorted into what the pure modules understand. Reads go through consensus (`quorum=true`).

use std::time::Duration;

use store::client::{Client, ClientError, DeleteOptions, GetOptions, PutOptions, Response};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::lease::{self, Reply, Request};
use crate::watch::{self, Event, Listing};
use crate::wire::lease::{LeaseValue, TTL_S, lease_key, leases_dir};
use crate::wire::netconf::{ConfigError, NetworkConfig};

/// How long a quiet watch is trusted before everything is read again. It bounds the harm of a connection that died
/// without a word, and of anything else that went unnoticed.
const RESYNC: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(1);
const QUORUM: GetOptions = GetOptions { recursive: false, sorted: false, quorum: true };

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store did not give it.
    #[error(transparent)]
    Store(#[from] ClientError),
    /// Nobody has written it yet.
    #[error(
        "100: Key not found ({0}); write the network config there, for example with `cli set {0} '{{\"Network\": \
         \"172.17.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}'`"
    )]
    Missing(String),
    /// The key is a directory.
    #[error("{0} is a directory, not the network config")]
    Directory(String),
    /// It is there and cannot be used.
    #[error("{key}: {error}")]
    Config {
        /// Its key.
        key: String,
        /// What is wrong with it.
        error: ConfigError,
    },
}

impl RegistryError {
    /// Whether waiting will not help.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Config { error, .. } if error.is_fatal())
    }
}

/// The store, as far as the overlay is concerned.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    prefix: String,
}

/// What the watch delivers.
#[derive(Debug)]
pub enum Update {
    /// Everything, after a start or a gap.
    All(Listing),
    /// One event, and its index.
    One(Event, u64),
}

impl Registry {
    /// Keys below `prefix` at the store of `client`.
    pub fn new(client: Client, prefix: &str) -> Self {
        Self { client, prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The key prefix, without a trailing slash.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads and checks the network configuration.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub async fn network_config(&self) -> Result<NetworkConfig, RegistryError> {
        let key = format!("{}/config", self.prefix);
        let node = match self.client.get(&key, QUORUM).await {
            Ok(response) => response.node.unwrap_or_default(),
            Err(error) if error.is_key_not_found() => return Err(RegistryError::Missing(key)),
            Err(error) => return Err(error.into()),
        };
        let Some(text) = node.value else { return Err(RegistryError::Directory(key)) };
        NetworkConfig::parse(&text).map_err(|error| RegistryError::Config { key, error })
    }

    /// Reads all leases. No directory is an empty list.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn list(&self) -> Result<Listing, ClientError> {
        let dir = leases_dir(&self.prefix);
        match self.client.get(&dir, GetOptions { recursive: true, ..QUORUM }).await {
            Ok(response) => Ok(watch::listing(&response)),
            Err(ClientError::Api { code: 100, index, .. }) => Ok(Listing { index, ..Listing::default() }),
            Err(error) => Err(error),
        }
    }

    /// Performs one request of the keeper, with `value` as our lease's value.
    pub async fn perform(&self, request: &Request, value: &LeaseValue) -> Reply {
        let write = |ttl| PutOptions { value: Some(value.to_json()), ttl, ..PutOptions::default() };
        let key = |subnet| lease_key(&self.prefix, subnet);
        match request {
            Request::List => match self.list().await {
                Ok(listing) => {
                    report_odd(&listing);
                    Reply::Listed(listing.leases)
                }
                Err(error) => refusal(error),
            },
            Request::Create(subnet) => {
                let options = PutOptions { prev_exist: Some(false), ..write(Some(TTL_S)) };
                written(self.client.put(&key(*subnet), options).await)
            }
            Request::Update { subnet, prev_index, ttl_s } => {
                let options = PutOptions { prev_index: Some(*prev_index), ..write(*ttl_s) };
                written(self.client.put(&key(*subnet), options).await)
            }
            Request::Delete { subnet, prev_index } => {
                let options = DeleteOptions { prev_index: Some(*prev_index), ..DeleteOptions::default() };
                self.client.delete(&key(*subnet), options).await.map_or_else(refusal, |_| Reply::Deleted)
            }
            Request::Read(subnet) => match self.client.get(&key(*subnet), QUORUM).await {
                Ok(response) => {
                    let lease = watch::lease(&response.node.unwrap_or_default());
                    lease.map_or_else(|odd| Reply::Unreadable(odd.why), Reply::Found)
                }
                Err(error) => refusal(error),
            },
        }
    }

    /// Watches all leases for ever: first everything, then event by event; everything again after a gap or an
    /// outage, and from time to time. Ends only when nobody listens any more.
    pub async fn watch(self, updates: mpsc::Sender<Update>) {
        let dir = leases_dir(&self.prefix);
        let mut cursor: Option<u64> = None;
        let mut failing = Complaint::default();
        loop {
            let update = match cursor {
                None => self.list().await.map(|listing| {
                    report_odd(&listing);
                    Some(Update::All(listing))
                }),
                Some(index) => {
                    match tokio::time::timeout(RESYNC, self.client.watch_once(&dir, Some(index + 1), true))
                        .await
                    {
                        Err(_) => {
                            cursor = None;
                            continue;
                        }
                        Ok(answer) => answer.map(|response| response.map(|r| self.understand(&r, index))),
                    }
                }
            };
            match update {
                Ok(None) => {} // the server ended the poll: poll again
                Ok(Some(update)) => {
                    cursor = Some(match &update {
                        Update::All(listing) => listing.index,
                        Update::One(_, index) => *index,
                    });
                    if updates.send(update).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.api_code() == Some(401) => {
                    info!("Watch of subnet leases failed because etcd index outside history window");
                    cursor = None;
                    continue;
                }
                Err(error) => {
                    // No endpoint answered. What comes back may have lost events, or be another store altogether.
                    cursor = None;
                    failing.complain(&format!("Watch subnets: {error}"));
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            if failing.resolve() {
                info!("Watch of subnet leases works again");
            }
        }
    }

    fn understand(&self, response: &Response, cursor: u64) -> Update {
        let event = watch::event(&self.prefix, response);
        if let Event::Odd(odd) = &event {
            warn!(key = odd.key, "Ignoring bad subnet node: {}", odd.why);
        }
        // The cursor moves on whatever the event holds, or a bad one would come back for ever.
        let index = response.node.as_ref().map_or(0, |node| node.modified_index).max(cursor + 1);
        Update::One(event, index)
    }
}

/// A complaint that is repeated only when it changes, or after [`Complaint::REPEAT`] times.
#[derive(Default)]
pub(crate) struct Complaint {
    text: String,
    times: u32,
}

impl Complaint {
    const REPEAT: u32 = 30;

    /// Warns, unless the same was said a moment ago.
    pub(crate) fn complain(&mut self, text: &str) {
        if text != self.text || self.times >= Self::REPEAT {
            warn!("{text}");
            *self = Self { text: text.to_owned(), times: 0 };
        }
        self.times += 1;
    }

    /// Forgets it; returns whether there was anything to forget.
    pub(crate) fn resolve(&mut self) -> bool {
        std::mem::take(self).times > 0
    }
}

fn report_odd(listing: &Listing) {
    for odd in &listing.odd {
        warn!(key = odd.key, "Ignoring bad subnet node: {}", odd.why);
    }
}

fn written(outcome: Result<Response, ClientError>) -> Reply {
    let node = match outcome {
        Ok(response) => response.node.unwrap_or_default(),
        Err(error) => return refusal(error),
    };
    Reply::Written {
        modified_index: node.modified_index,
        ttl_s: node.ttl.map(|s| u64::try_from(s).unwrap_or(0)),
    }
}

/// Sorts an error: a lost race, a missing key, a refusal that will stay one, or a store that is away.
fn refusal(error: ClientError) -> Reply {
    match error {
        ClientError::Api { code: 100, .. } => Reply::Gone,
        ClientError::Api { code: 101 | 105, .. } => lease::Reply::Conflict,
        // 300 and up: raft has no leader, the server is stopping: it passes.
        ClientError::Api { code, .. } if code < 300 => Reply::Refused(error.to_string()),
        ClientError::Http { status, .. } if (400..500).contains(&status) => Reply::Refused(error.to_string()),
        ClientError::Config { .. } => Reply::Refused(error.to_string()),
        other => Reply::Unavailable(other.to_string()),
    }
}
