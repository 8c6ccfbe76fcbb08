//! What the end-to-end tests and the benchmarks stand on: real programs, real namespaces, real clients.
//!
//! Everything here is made to be torn down: a [`ns::Namespace`], a [`process::Process`] or a [`docker::Dockerd`]
//! removes what it made when it is dropped, also when the test panics, and what a killed test run left behind
//! is swept by the next one. Nothing is skipped: a missing program, or not being root, is an error that names
//! the Debian package or the remedy.
//!
//! | module | holds |
//! |---|---|
//! | [`programs`] | where our programs and Debian's are |
//! | [`command`] | one bounded run of a command, with its output |
//! | [`process`] | a daemon with its log; killed on drop |
//! | [`wait`] | wait for a condition with a deadline; nothing here sleeps to synchronise |
//! | [`ns`], [`fabric`] | network namespaces; hosts on one underlay, containers behind bridges |
//! | [`volume`] | a file system that a test fills or freezes |
//! | [`http`] | an HTTP client that sends exactly the bytes it is told |
//! | [`raw`], [`h2`] | a connection that a test misuses; the same over HTTP/2 |
//! | [`relay`] | a TCP relay that stops half-way |
//! | [`v2`] | the handful of v2 key calls that tests make |
//! | [`keepalive`] | an HTTP connection for many requests, which tells a lost one from one never sent |
//! | [`linear`], [`key_model`] | is a history linearizable? |
//! | [`load`], [`history`], [`follow`] | concurrent clients and watchers, what they were told, and its checks |
//! | [`faults`], [`dice`] | a seeded schedule of kills, freezes and partitions |
//! | [`cluster`] | three members of our store or of Debian's etcd |
//! | [`tutorial`], [`systemd`] | the hand-installation guide's files, and what systemd would run for them |
//! | [`nodes`] | overlay nodes with any flags and one store, for the data path's tests and measurements |
//! | [`scene`] | such nodes with containers that reach each other |
//! | [`flows`], [`vxlan`] | traffic whose every byte is checked; VXLAN made by hand |
//! | [`tcpdump`] | tcpdump as a witness |
//! | [`stage`] | the guide's three hosts, brought up step by step |
//! | [`flannel`] | what flanneld leaves on a host, checked |
//! | [`docker`] | a `dockerd` of its own in a namespace |
//! | [`demo`] | `cli demo`: who runs it, and what it leaves |
//! | [`notify`] | the receiving end of `sd_notify` |

pub mod cluster;
pub mod command;
pub mod demo;
pub mod dice;
pub mod docker;
pub mod fabric;
pub mod faults;
pub mod flannel;
pub mod flows;
pub mod follow;
pub mod h2;
pub mod history;
pub mod http;
pub mod keepalive;
pub mod key_model;
pub mod linear;
pub mod load;
pub mod nodes;
pub mod notify;
pub mod ns;
pub mod process;
pub mod programs;
pub mod raw;
pub mod relay;
pub mod scene;
pub mod stage;
pub mod systemd;
pub mod tcpdump;
pub mod tutorial;
pub mod v2;
pub mod volume;
pub mod vxlan;
pub mod wait;
