//! The replicated store: an etcd v2 compatible key-value store over Raft, and its client.
pub mod client;
pub mod flags;
