//! Links to the other members: one task for each that dials, one for each connection that comes in.
//!
//! Sending never waits. Each peer has a bounded queue; when it is full or the link is down, messages are
//! dropped and raft is told. The protocol is in [`crate::wire::peer`].
//!
//! | module | holds |
//! |---|---|
//! | `dial` | TCP, TLS, hello, verdict |
//! | `link` | who is dialled, and who is told when that fails |
//! | `lane` | what is on its way to one peer: the raft thread writes it, and a task what does not go at once |
//! | `split` | large appends in several messages (pure) |
//! | `accept` | who comes in, and their messages |
//! | `inbox` | what waits for the raft thread, bounded by bytes |
//! | `frames` | reading and writing of frames |
//! | `send`, `receive` | snapshots, each on a connection of its own |
//! | `spool` | the file in which a snapshot arrives |
//! | `fresh` | a member without a raft log asks whether it may start |
//! | `door` | places for connections that have not said hello (pure) |

mod accept;
mod dial;
mod door;
mod frames;
mod fresh;
mod inbox;
mod lane;
#[cfg(test)]
mod lane_tests;
mod link;
mod receive;
mod send;
#[cfg(test)]
mod snapshot_tests;
mod split;
mod spool;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(super) use crate::complaints::{Complaints, Say};
pub use accept::{Acceptor, accept};
pub use dial::{Dialler, PeerLink};
pub use fresh::{AlreadyBootstrapped, until_welcome};
pub use inbox::Delivery;
pub use link::{Peers, insist};
pub use receive::Arrived;
pub use spool::Spool;

/// Time for connecting, the handshake and the hello, on either side.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failed attempt.
const REDIAL: Duration = Duration::from_millis(250);
/// A link that takes or gives nothing for that long is given up.
const SILENCE: Duration = Duration::from_secs(5);
/// A link without other traffic says that often that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// A snapshot on its way must get further within that time.
const STALL: Duration = Duration::from_secs(10);
/// Bytes gathered before a write, and read at once.
const WRITE_BUFFER: usize = 64 * 1024;
