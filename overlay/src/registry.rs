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

/// How long a quiet watch is trusted. Then the store is asked a question through consensus, which a member that is
/// frozen or cut off cannot answer: the client moves to one that can, and the watch goes on there, at its old place.
const QUIET: Duration = Duration::from_secs(60);
/// After how many quiet times everything is read again. It bounds the harm of anything else that went unnoticed.
const RESYNC: u32 = 5;
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
    quiet: Duration,
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
        Self { client, prefix: prefix.trim_end_matches('/').to_owned(), quiet: QUIET }
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
        let mut quiet = 0;
        let mut failing = Complaint::default();
        loop {
            let update = match cursor {
                None => self.list().await.map(|listing| {
                    report_odd(&listing);
                    Some(Update::All(listing))
                }),
                Some(index) => {
                    let next = self.client.watch_once(&dir, Some(index + 1), true);
                    match tokio::time::timeout(self.quiet, next).await {
                        Ok(answer) => {
                            quiet = 0;
                            answer.map(|response| response.map(|r| self.understand(&r, index)))
                        }
                        Err(_) if quiet + 1 >= RESYNC => {
                            (cursor, quiet) = (None, 0);
                            continue;
                        }
                        Err(_) => {
                            quiet += 1;
                            self.index().await.map(|now| {
                                // A store that went back would be silent for long.
                                cursor = cursor.filter(|at| *at <= now);
                                None
                            })
                        }
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

    /// The store's index, as a majority knows it.
    async fn index(&self) -> Result<u64, ClientError> {
        match self.client.get(&format!("{}/config", self.prefix), QUORUM).await {
            Ok(response) => Ok(response.etcd_index),
            Err(ClientError::Api { code: 100, index, .. }) => Ok(index),
            Err(error) => Err(error),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LEASE: &str = r#"{"action":"set","node":{"key":"/n/subnets/172.17.9.0-24","value":"{\"PublicIP\":\"10.0.0.9\"}","modifiedIndex":12,"createdIndex":12}}"#;

    /// A store that answers each request by `answer` of its path, never if that is `None`; returns its URL.
    fn server(answer: impl Fn(&str) -> Option<(u64, &'static str)> + Clone + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.clone();
                std::thread::spawn(move || serve(&stream, &answer));
            }
        });
        url
    }

    fn serve(stream: &TcpStream, answer: &impl Fn(&str) -> Option<(u64, &'static str)>) -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        loop {
            let path = lines.next()?.ok()?;
            while !lines.next()?.ok()?.is_empty() {}
            let Some((index, body)) = answer(&path) else {
                // Connected, and silent until the client gives up.
                while lines.next()?.is_ok() {}
                return None;
            };
            let status = if body.contains("errorCode") { 404 } else { 200 };
            let head =
                format!("HTTP/1.1 {status} X\r\nX-Etcd-Index: {index}\r\nContent-Length: {}", body.len());
            write!(&*stream, "{head}\r\n\r\n{body}").ok()?;
        }
    }

    fn registry(endpoints: Vec<String>) -> Registry {
        let request_timeout = Some(Duration::from_secs(3));
        let config = store::client::Config { endpoints, request_timeout, ..Default::default() };
        Registry { quiet: Duration::from_millis(300), ..Registry::new(Client::new(config).unwrap(), "/n") }
    }

    const EMPTY: &str = r#"{"errorCode":100,"message":"Key not found","cause":"/n/subnets","index":11}"#;
    const CONFIG: &str =
        r#"{"action":"get","node":{"key":"/n/config","value":"{}","modifiedIndex":3,"createdIndex":3}}"#;

    #[tokio::test]
    async fn a_member_that_freezes_is_left_and_nothing_is_missed() {
        // Lists, then says no more; the other has the event that comes after the list.
        let frozen = server(|path| path.contains("recursive=true&sorted").then_some((11, EMPTY)));
        let other = server(|path| match path {
            p if p.contains("/config") => Some((12, CONFIG)),
            p if p.contains("waitIndex=12") => Some((12, LEASE)),
            _ => None,
        });
        let (updates, mut received) = mpsc::channel(8);
        let watching = tokio::spawn(registry(vec![frozen, other]).watch(updates));
        let limit = Duration::from_secs(20);
        let first = tokio::time::timeout(limit, received.recv()).await.unwrap().unwrap();
        assert!(matches!(first, Update::All(Listing { index: 11, .. })), "{first:?}");
        let second = tokio::time::timeout(limit, received.recv()).await.unwrap().unwrap();
        assert!(matches!(&second, Update::One(Event::Put(_), 12)), "{second:?}");
        watching.abort();
    }

    #[tokio::test]
    async fn a_store_that_went_back_is_read_anew() {
        // Its index is below the one that it gave with the first list: the watch would be silent for long.
        let polls = Arc::new(AtomicU32::new(0));
        let counted = polls.clone();
        let store = server(move |path| match path {
            p if p.contains("/config") => Some((3, CONFIG)),
            p if p.contains("wait=true") => {
                counted.fetch_add(1, Ordering::Relaxed);
                None
            }
            _ => Some((11, EMPTY)),
        });
        let (updates, mut received) = mpsc::channel(8);
        let registry = Registry { quiet: Duration::from_millis(100), ..registry(vec![store]) };
        let watching = tokio::spawn(registry.watch(updates));
        for _ in 0..2 {
            let update = tokio::time::timeout(Duration::from_secs(20), received.recv()).await.unwrap();
            assert!(matches!(update, Some(Update::All(_))), "{update:?}");
        }
        assert!(polls.load(Ordering::Relaxed) < RESYNC, "only found by the resync that comes anyway");
        watching.abort();
    }
}
