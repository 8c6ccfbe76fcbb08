//! The shells around the pure parts: threads, sockets, files, clocks.
//!
//! ```text
//! clients --HTTP--> http, keys --> Handle --Input--> raft thread --(log: append + fsync)--> peers
//!                      ^                                 |  ^                                 |
//!                      |                        committed entries   Input::Peer  <------------+
//!                      |                                 v
//!                      +------- answers, events --- apply thread --dirty paths--> image thread --> sled
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`run`] | start, in order, and stop |
//! | `disk` | the data directory, opened or made |
//! | [`space`] | room on the disk: the alarm, the reserve |
//! | `limits`, `pulse`, `crowd` | bounds on what clients hold; how long they may take; who makes room (pure) |
//! | `host` | whose an address is (pure) |
//! | `shares` | memory for large forms and answers, divided by size and address |
//! | `backlog` | events that watchers have still to take (pure) |
//! | `looks` | answers to GET, the large ones away from those who serve |
//! | `conn`, `served` | one client connection; an answer until it is sent |
//! | [`driver`] | the raft thread: one loop around [`crate::node::Core`] |
//! | [`apply`] | the apply thread: committed entries to the machine, answers to those who wait |
//! | [`image`] | the image thread: changes to disk, checkpoints before the log is compacted |
//! | [`handle`] | what HTTP asks for: propose, read, watch |
//! | [`peers`] | links to the other members |
//! | [`tls`] | certificates, and what is wrong with them in words |
//! | [`http`], [`keys`], [`watching`], [`stats`], `health` | the API |

pub mod apply;
mod backlog;
mod conn;
mod crowd;
mod disk;
pub mod driver;
pub mod handle;
mod health;
mod host;
pub mod http;
pub mod image;
pub mod keys;
mod limits;
mod looks;
pub mod peers;
mod pulse;
pub mod run;
mod served;
mod shares;
pub mod space;
pub mod stats;
pub mod tls;
pub mod watching;
