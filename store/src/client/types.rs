//! The v2 API's answers and the options of its requests.

use serde::Deserialize;

/// An answer about keys (etcd v2 API, "responses").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// `get`, `set`, `create`, `update`, `delete`, `expire`, `compareAndSwap` or `compareAndDelete`.
    pub action: String,
    /// The node asked for or changed.
    pub node: Option<Node>,
    /// The node as it was before a change.
    pub prev_node: Option<Node>,
    /// `X-Etcd-Index`: the store's index when it answered. A watch resumes from here plus one.
    pub etcd_index: u64,
    /// `X-Raft-Index` of the answering member.
    pub raft_index: u64,
    /// `X-Etcd-Cluster-Id`, empty when not sent.
    pub cluster_id: String,
}

/// A file or directory of the v2 keyspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// The full path; empty for the root.
    pub key: String,
    /// A file's value; absent on directories and on deleted or expired nodes.
    pub value: Option<String>,
    /// Whether it is a directory.
    pub dir: bool,
    /// When it expires, RFC 3339 in UTC; absent for permanent nodes.
    pub expiration: Option<String>,
    /// Seconds left, rounded up, by the answering member's clock.
    pub ttl: Option<i64>,
    /// A directory's children, in no order unless `sorted` was asked for.
    pub nodes: Vec<Node>,
    /// The index of the last change.
    pub modified_index: u64,
    /// The index of its creation.
    pub created_index: u64,
}

/// A member of the cluster (etcd v2 API, "members").
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Lower-case hexadecimal, not padded.
    pub id: String,
    /// Empty until the member has started once.
    pub name: String,
    /// Where other members reach it.
    #[serde(rename = "peerURLs", deserialize_with = "null_as_empty")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it, as the member advertises it.
    #[serde(rename = "clientURLs", deserialize_with = "null_as_empty")]
    pub client_urls: Vec<String>,
}

/// Options of [`Client::get`](super::Client::get).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// The whole subtree rather than one level.
    pub recursive: bool,
    /// Every level sorted by key.
    pub sorted: bool,
    /// Read through consensus rather than from the answering member.
    pub quorum: bool,
}

/// Options of [`Client::put`](super::Client::put). The default sets an empty value for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The value; `None` sends none, which the store takes as the empty string.
    pub value: Option<String>,
    /// Make or update a directory.
    pub dir: bool,
    /// Seconds to live; `None` is not sent. Zero is sent as such, and expires at once.
    pub ttl: Option<u64>,
    /// Send an empty `ttl=`, which takes the TTL off an existing node. Only where `ttl` is `None`.
    pub ttl_empty: bool,
    /// `true`: only if it exists (update). `false`: only if it does not (create).
    pub prev_exist: Option<bool>,
    /// Only if the present value is this one.
    pub prev_value: Option<String>,
    /// Only if the present modified index is this one.
    pub prev_index: Option<u64>,
    /// Keep the value, change the TTL, wake no watcher.
    pub refresh: bool,
}

impl PutOptions {
    /// Whether repeating the request could meet its own effect.
    pub(super) fn is_conditional(&self) -> bool {
        self.prev_exist.is_some() || self.prev_value.is_some() || self.prev_index.is_some()
    }
}

/// Options of [`Client::delete`](super::Client::delete).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Also an (empty) directory.
    pub dir: bool,
    /// A directory with everything below it.
    pub recursive: bool,
    /// Only if the present value is this one.
    pub prev_value: Option<String>,
    /// Only if the present modified index is this one.
    pub prev_index: Option<u64>,
}

/// The body of an answer about keys.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    pub(super) action: String,
    pub(super) node: Option<Node>,
    pub(super) prev_node: Option<Node>,
}

/// The body of a v2 error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ApiError {
    pub(super) error_code: u32,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) cause: String,
    #[serde(default)]
    pub(super) index: u64,
}

/// The body of an error of the members, stats and auth endpoints.
#[derive(Deserialize)]
pub(super) struct PlainError {
    pub(super) message: String,
}

/// The body of `GET /v2/members`.
#[derive(Deserialize)]
pub(super) struct MemberList {
    #[serde(deserialize_with = "null_as_empty")]
    pub(super) members: Vec<Member>,
}

/// The body of `GET /version`.
#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) etcdserver: String,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it is healthy.
    pub healthy: bool,
    /// What is wrong, here or with another member (etcd 3.5); empty if nothing is, or it does not say.
    pub reason: String,
    /// The same one by one, where the server lists it (ours does); otherwise `reason` as one.
    pub alarms: Vec<Alarm>,
}

/// Something that is wrong with a member, as a server tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Alarm {
    /// The member's id, as in the list of members; empty if the server does not say whose it is.
    pub member: String,
    /// What kind it is, such as `CORRUPT`; empty if the server does not say.
    pub alarm: String,
    /// What there is to say about it.
    pub text: String,
}

/// The body of `GET /health`: a string up to etcd 3.5, a boolean elsewhere.
#[derive(Deserialize)]
pub(super) struct HealthBody {
    health: serde_json::Value,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    alarms: Vec<Alarm>,
}

impl From<HealthBody> for Health {
    fn from(body: HealthBody) -> Health {
        let healthy = body.health == serde_json::Value::Bool(true) || body.health == "true";
        let HealthBody { reason, mut alarms, .. } = body;
        if alarms.is_empty() && !reason.is_empty() {
            let (member, alarm) = Default::default();
            alarms.push(Alarm { member, alarm, text: reason.clone() });
        }
        Health { healthy, reason, alarms }
    }
}

/// Go writes an empty list as `null`.
fn null_as_empty<'de, D, T>(input: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(input)?.unwrap_or_default())
}
