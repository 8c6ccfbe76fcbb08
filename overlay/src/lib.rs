//! A flannel-compatible overlay network: what `overlayd` is made of, and what `cli` shares with it.
//!
//! Pure modules decide ([`config`], [`wire`], [`alloc`], [`lease`], [`watch`], [`plan`], [`iface`], [`masq`],
//! [`mesh`]); shells do IO and decide nothing ([`registry`], [`net`], [`probe`], [`health`], [`daemon`]). The data
//! path stands behind [`datapath::DataPath`].

#![deny(unsafe_code)]

pub mod alloc;
pub mod config;
pub mod daemon;
pub mod datapath;
mod file;
pub mod health;
pub mod iface;
pub mod lease;
pub mod masq;
pub mod mesh;
pub mod net;
pub mod plan;
pub mod probe;
pub mod registry;
mod run;
pub mod types;
pub mod watch;
pub mod wire;
