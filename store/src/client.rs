//! An asynchronous client of the etcd v2 API, for our store and for etcd itself.
//!
//! The client is given several endpoints. It stays with the one that last worked and moves on when that fails:
//! reads and unconditional writes try every endpoint in turn, and an HTTP status of 5xx counts as a failure of
//! that endpoint. Creates, conditional writes and deletes must not be carried out twice, so they move on only
//! while no endpoint can have received them.
//!
//! It opens sockets and reads the TLS files; it keeps no state about keys. Proxy variables of the environment
//! are not honoured and redirects are not followed: neither etcd nor our store sends any.
//!
//! ```no_run
//! # async fn example() -> Result<(), store::client::ClientError> {
//! use store::client::{Client, Config, GetOptions};
//! let client = Client::new(Config { endpoints: vec!["http://127.0.0.1:2379".into()], ..Config::default() })?;
//! let config = client.get("/coreos.com/network/config", GetOptions { quorum: true, ..Default::default() }).await?;
//! println!("{:?}", config.node.and_then(|node| node.value));
//! # Ok(()) }
//! ```

mod call;
mod conn;
mod error;
mod tls;
mod types;
mod url;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};

use call::{Call, decode, http_error, put_call, response, server_error};
use conn::{Answer, Patience, Pool};
use url::Endpoint;

pub use error::ClientError;
pub use tls::TlsFiles;
pub use types::{Alarm, DeleteOptions, GetOptions, Health, Member, Node, PutOptions, Response};

/// How to reach a store.
#[derive(Clone)]
pub struct Config {
    /// `http://host:port` or `https://host:port`, at least one, tried in this order.
    pub endpoints: Vec<String>,
    /// Files for `https` endpoints.
    pub tls: TlsFiles,
    /// User name for HTTP basic authentication, sent with every request.
    pub username: Option<String>,
    /// The password that goes with it.
    pub password: Option<String>,
    /// Limit for making a TCP connection (1 s).
    pub dial_timeout: Duration,
    /// Limit for one endpoint's connection and answer together; `None` waits for ever. The default of 10 s is
    /// longer than etcd's own limit for a request (7 s), so that the server's reason arrives first.
    /// Watches are not limited by it.
    pub request_timeout: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            tls: TlsFiles::default(),
            username: None,
            password: None,
            dial_timeout: Duration::from_secs(1),
            request_timeout: Some(Duration::from_secs(10)),
        }
    }
}

impl fmt::Debug for Config {
    /// Leaves the password out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("dial_timeout", &self.dial_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

/// A client; clones share connections and the memory of which endpoint works.
#[derive(Clone)]
pub struct Client {
    endpoints: Arc<[Endpoint]>,
    /// Index of the endpoint to begin with.
    pinned: Arc<AtomicUsize>,
    pool: Arc<Pool>,
    authorization: Option<header::HeaderValue>,
    request_timeout: Option<Duration>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the configuration and reads the TLS files. Opens no connection.
    ///
    /// # Errors
    /// [`ClientError::Config`] naming the URL or file: no endpoint, a URL that is none, a file that cannot be
    /// read or used, a certificate without its key, or an `https` endpoint without a CA file.
    pub fn new(config: Config) -> Result<Self, ClientError> {
        let Config { endpoints, tls, username, password, dial_timeout, request_timeout } = config;
        let pool = Pool::new(tls::client_config(&tls)?, dial_timeout);
        let authorization = username
            .map(|user| basic(&user, &password.unwrap_or_default()))
            .transpose()
            .map_err(|e| ClientError::Config { field: "username", why: e.to_string() })?;
        let unaimed = Self {
            endpoints: Arc::new([]),
            pinned: Arc::default(),
            pool: Arc::new(pool),
            authorization,
            request_timeout,
        };
        unaimed.with_endpoints(&endpoints)
    }

    /// The same client for other endpoints; connections, credentials and limits are shared.
    ///
    /// # Errors
    /// [`ClientError::Config`] as for [`Client::new`].
    pub fn with_endpoints(&self, endpoints: &[String]) -> Result<Self, ClientError> {
        if endpoints.is_empty() {
            return Err(ClientError::Config { field: "endpoints", why: "no endpoint given".to_owned() });
        }
        let endpoints = endpoints.iter().map(|url| self.endpoint(url)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { endpoints: endpoints.into(), pinned: Arc::default(), ..self.clone() })
    }

    /// The endpoints in the order given, without trailing slashes.
    pub fn endpoints(&self) -> Vec<String> {
        self.endpoints.iter().map(|e| e.url.clone()).collect()
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, ClientError> {
        self.checked(Endpoint::parse(url)?)
    }

    fn checked(&self, endpoint: Endpoint) -> Result<Endpoint, ClientError> {
        if endpoint.https && !self.pool.has_tls() {
            return Err(ClientError::Config {
                field: "tls.ca",
                why: format!("{}: {}", endpoint.url, conn::NO_CA),
            });
        }
        Ok(endpoint)
    }

    /// Reads a key or directory.
    ///
    /// # Errors
    /// [`ClientError::Api`] as the store answered (100 if there is no such key), or what kept it from answering.
    pub async fn get(&self, key: &str, options: GetOptions) -> Result<Response, ClientError> {
        let query = [
            ("quorum", options.quorum.to_string()),
            ("recursive", options.recursive.to_string()),
            ("sorted", options.sorted.to_string()),
        ];
        let call = Call::get(url::with_query(&url::key_path(key), &query));
        response(self.anywhere(&call, self.patience()).await?)
    }

    /// Writes a key or directory: set, create, update or compare-and-swap, by the options.
    ///
    /// # Errors
    /// [`ClientError::Api`] as the store answered: 101 compare failed, 105 exists already, 100 missing, ...
    pub async fn put(&self, key: &str, options: PutOptions) -> Result<Response, ClientError> {
        let call = put_call(key, &options);
        let patience = self.patience();
        let answered = if options.is_conditional() {
            self.once(&call, patience).await
        } else {
            self.anywhere(&call, patience).await
        };
        response(answered?)
    }

    /// Creates a file below `dir` whose name is the store's index, so that names sort in order of creation.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn post(&self, dir: &str, value: &str, ttl: Option<u64>) -> Result<Response, ClientError> {
        let mut body = vec![("value", value.to_owned())];
        body.extend(ttl.map(|ttl| ("ttl", ttl.to_string())));
        let call = Call { method: Method::POST, path: url::key_path(dir), form: Some(url::form(&body)) };
        response(self.once(&call, self.patience()).await?)
    }

    /// Deletes a key or directory, or compares and deletes.
    ///
    /// # Errors
    /// As [`Client::put`]; 108 for a directory that is not empty.
    pub async fn delete(&self, key: &str, options: DeleteOptions) -> Result<Response, ClientError> {
        let mut query = Vec::new();
        if options.dir {
            query.push(("dir", "true".to_owned()));
        }
        query.extend(options.prev_index.map(|index| ("prevIndex", index.to_string())));
        query.extend(options.prev_value.map(|value| ("prevValue", value)));
        if options.recursive {
            query.push(("recursive", "true".to_owned()));
        }
        let path = url::with_query(&url::key_path(key), &query);
        let call = Call { method: Method::DELETE, path, form: None };
        response(self.once(&call, self.patience()).await?)
    }

    /// Waits for one change: the first with an index of at least `wait_index`, or after now without one.
    ///
    /// `None` means that the server closed the poll without an event: poll again. There is no time limit once
    /// the server has accepted the poll; drop the future to give up.
    ///
    /// # Errors
    /// [`ClientError::Api`] with code 401 if `wait_index` lies before the store's history: read again and go on
    /// from that answer's `etcd_index` plus one.
    pub async fn watch_once(
        &self,
        key: &str,
        wait_index: Option<u64>,
        recursive: bool,
    ) -> Result<Option<Response>, ClientError> {
        let mut query = vec![("recursive", recursive.to_string()), ("wait", "true".to_owned())];
        query.extend(wait_index.map(|index| ("waitIndex", index.to_string())));
        let call = Call::get(url::with_query(&url::key_path(key), &query));
        let (endpoint, answer) = self.anywhere(&call, Patience::LongPoll).await?;
        if answer.status == 200 && answer.body.is_empty() {
            return Ok(None);
        }
        response((endpoint, answer)).map(Some)
    }

    /// Lists the members (`GET /v2/members`), ordered by numeric id.
    ///
    /// # Errors
    /// What kept the store from answering.
    pub async fn members(&self) -> Result<Vec<Member>, ClientError> {
        let (endpoint, answer) = self.anywhere(&Call::get("/v2/members".to_owned()), self.patience()).await?;
        let list: types::MemberList = decode(endpoint, &answer, "the list of members")?;
        Ok(list.members)
    }

    /// The member that leads (`GET /v2/members/leader`).
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] during an election, besides what else kept the store from answering.
    pub async fn leader(&self) -> Result<Member, ClientError> {
        let (endpoint, answer) =
            self.anywhere(&Call::get("/v2/members/leader".to_owned()), self.patience()).await?;
        decode(endpoint, &answer, "the leader")
    }

    /// Whether the server at exactly this URL says that it is healthy (`GET <url>/health`), and what is wrong.
    ///
    /// # Errors
    /// Whatever kept it from saying either.
    pub async fn health(&self, client_url: &str) -> Result<Health, ClientError> {
        let endpoint = self.endpoint(client_url)?;
        let answer = self.at(&endpoint, &Call::get("/health".to_owned())).await?;
        // An unhealthy server says so in the body of a 503.
        let body: types::HealthBody =
            serde_json::from_slice(&answer.body).map_err(|_| http_error(&endpoint, &answer))?;
        Ok(body.into())
    }

    /// The version that the server at exactly this URL reports (`GET <url>/version`), such as `3.4.23`.
    ///
    /// # Errors
    /// Whatever kept it from answering.
    pub async fn version(&self, client_url: &str) -> Result<String, ClientError> {
        let endpoint = self.endpoint(client_url)?;
        let answer = self.at(&endpoint, &Call::get("/version".to_owned())).await?;
        let version: types::Version = decode(&endpoint, &answer, "the version")?;
        Ok(version.etcdserver)
    }

    /// Gets any URL, with this client's certificates and credentials: `(HTTP status, body)`.
    ///
    /// # Errors
    /// Only what kept the server from answering at all.
    pub async fn raw_get(&self, url: &str) -> Result<(u16, Vec<u8>), ClientError> {
        let (endpoint, path) = Endpoint::split(url)?;
        let endpoint = self.checked(endpoint)?;
        let answer = self.at(&endpoint, &Call::get(path)).await?;
        Ok((answer.status, answer.body.into()))
    }

    fn patience(&self) -> Patience {
        Patience::Answer(self.request_timeout)
    }

    /// Asks this endpoint and no other.
    async fn at(&self, endpoint: &Endpoint, call: &Call) -> Result<Answer, ClientError> {
        let request = self.request(endpoint, call)?;
        self.pool.exchange(endpoint, request, self.patience(), true).await.map_err(|failure| {
            ClientError::Unavailable { attempts: vec![(endpoint.url.clone(), failure.why)] }
        })
    }

    /// Asks every endpoint in turn, from the one that worked last, until one answers with a status below 500.
    async fn anywhere(&self, call: &Call, patience: Patience) -> Result<(&Endpoint, Answer), ClientError> {
        let mut attempts = Vec::new();
        for (index, endpoint) in self.in_turn() {
            let request = self.request(endpoint, call)?;
            let why = match self.pool.exchange(endpoint, request, patience, true).await {
                Ok(answer) if answer.status < 500 => {
                    self.pinned.store(index, Ordering::Relaxed);
                    return Ok((endpoint, answer));
                }
                Ok(answer) => server_error(&answer),
                Err(failure) => failure.why,
            };
            tracing::debug!(endpoint = endpoint.url, why, "endpoint failed");
            attempts.push((endpoint.url.clone(), why));
        }
        Err(ClientError::Unavailable { attempts })
    }

    /// As [`Client::anywhere`], but stops at the first endpoint that may have received the request.
    async fn once(&self, call: &Call, patience: Patience) -> Result<(&Endpoint, Answer), ClientError> {
        let mut attempts = Vec::new();
        for (index, endpoint) in self.in_turn() {
            let request = self.request(endpoint, call)?;
            match self.pool.exchange(endpoint, request, patience, false).await {
                Ok(answer) => {
                    // A member that answers 5xx is passed over next time.
                    let next = if answer.status < 500 { index } else { index + 1 };
                    self.pinned.store(next % self.endpoints.len(), Ordering::Relaxed);
                    return Ok((endpoint, answer));
                }
                Err(failure) if failure.sent => {
                    self.pinned.store((index + 1) % self.endpoints.len(), Ordering::Relaxed);
                    return Err(ClientError::Unanswered { endpoint: endpoint.url.clone(), why: failure.why });
                }
                Err(failure) => attempts.push((endpoint.url.clone(), failure.why)),
            }
        }
        Err(ClientError::Unavailable { attempts })
    }

    fn in_turn(&self) -> impl Iterator<Item = (usize, &Endpoint)> {
        let count = self.endpoints.len();
        let first = self.pinned.load(Ordering::Relaxed);
        (0..count).map(move |step| (first + step) % count).map(|index| (index, &self.endpoints[index]))
    }

    fn request(&self, endpoint: &Endpoint, call: &Call) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(header::HOST, &endpoint.authority)
            .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")));
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        if call.form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        tracing::debug!("cURL Command: {}", call.as_curl(endpoint));
        let body = call.form.clone().unwrap_or_default();
        request
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ClientError::Config { field: "endpoints", why: e.to_string() })
    }
}

/// The header of HTTP basic authentication (RFC 7617), kept out of debug output.
fn basic(user: &str, password: &str) -> Result<header::HeaderValue, header::InvalidHeaderValue> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut value = header::HeaderValue::from_str(&format!("Basic {encoded}"))?;
    value.set_sensitive(true);
    Ok(value)
}
