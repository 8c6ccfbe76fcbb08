//! The replicated store: an etcd v2 compatible key-value store over Raft, and its client.
//!
//! The pure parts ([`tree`], [`machine`], [`membership`], [`wire`], [`node`], [`replica`], [`config`], [`flags`])
//! decide and can be tested without sockets, clocks or files; the shells ([`log`], [`state`], [`server`],
//! [`client`]) move bytes. The feature `client` alone builds [`client`] and [`flags`], without raft or sled.

pub mod client;
#[cfg(feature = "server")]
mod complaints;
#[cfg(feature = "server")]
pub mod config;
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
pub mod replica;
#[cfg(feature = "server")]
pub mod server;
#[cfg(all(test, feature = "server"))]
mod small_disk;
#[cfg(feature = "server")]
pub mod snapshot;
#[cfg(feature = "server")]
pub mod state;
#[cfg(all(test, feature = "server"))]
mod told;
#[cfg(feature = "server")]
pub mod tree;
#[cfg(feature = "server")]
pub mod voters;
#[cfg(feature = "server")]
pub mod wire;

/// What `--version` prints: etcd's four lines, so that whatever parses them goes on working. The first names
/// the version of etcd whose API is served.
#[cfg(feature = "server")]
pub fn version_text() -> String {
    format!(
        "etcd Version: {}\nGit SHA: weft-store-{}\nGo Version: none (Rust)\nGo OS/Arch: {}/{}\n",
        server::http::ETCD_VERSION,
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    )
}
