//! The replicated store: an etcd v2 compatible key-value store over Raft, and its client.
//!
//! The pure parts ([`tree`], [`machine`], [`membership`], [`wire`], [`node`], [`config`], [`flags`]) decide
//! and can be tested without sockets, clocks or files; the shells ([`log`], [`state`], [`server`],
//! [`client`]) move bytes. The feature `client` alone builds [`client`] and [`flags`], without raft or sled.

pub mod client;
pub mod flags;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
pub mod machine;
#[cfg(feature = "server")]
pub mod membership;
#[cfg(feature = "server")]
pub mod node;
#[cfg(feature = "server")]
pub mod state;
#[cfg(feature = "server")]
pub mod tree;
#[cfg(feature = "server")]
pub mod wire;
