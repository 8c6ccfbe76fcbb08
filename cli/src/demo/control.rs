//! What the two processes of the demo tell each other: a plan handed over in a file, then lines of JSON over a
//! socket pair, in both directions.
//!
//! The socket is also the leash: when either end dies the other reads end-of-file and cleans up.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Datapath;

/// The plan's name inside the demo's directory.
pub(crate) const PLAN_FILE: &str = "plan.json";

/// What the stage is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Directory for everything the demo writes; the supervisor removes it.
    pub(crate) work_dir: PathBuf,
    /// The `store` program.
    pub(crate) store: PathBuf,
    /// The `overlayd` program.
    pub(crate) overlayd: PathBuf,
    /// This program.
    pub(crate) cli: PathBuf,
    /// What carries the overlay's packets.
    pub(crate) datapath: Datapath,
    /// Stay up after the last step.
    pub(crate) keep: bool,
    /// Say more.
    pub(crate) verbose: bool,
}

/// A network namespace the stage holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Its name in the demo, such as `host1`.
    pub(crate) name: String,
    /// The number of the stage's file that keeps it open.
    pub(crate) fd: i32,
    /// The kernel's number for it.
    pub(crate) inode: u64,
}

/// From the stage to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromStage {
    /// The namespaces exist. All of them must be gone at the end.
    Holding {
        /// The network namespaces.
        networks: Vec<Held>,
        /// The kernel's number for the stage's process namespace.
        pid_namespace: u64,
    },
    /// Every step is done, the cluster is up and waits for [`ToStage::Detach`].
    Up {
        /// The containers' addresses, in the order of the hosts.
        containers: Vec<Ipv4Addr>,
    },
    /// The stage has let go of the terminal and goes on alone.
    Detached,
}

/// From the supervisor to the stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToStage {
    /// Take everything down at once.
    Stop,
    /// Live on without the supervisor.
    Detach,
}

/// One message as it goes over the socket.
///
/// # Errors
/// None of the messages fails to encode.
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).context("cannot encode a control message")?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a message from a line.
///
/// # Errors
/// When the line is none, which means that the two ends are different builds.
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("`{line}` is no control message of the demo"))
}

/// Writes `message` to the other end.
///
/// # Errors
/// When the other end is gone.
pub(crate) fn send(mut socket: &UnixStream, message: &impl Serialize) -> Result<()> {
    socket.write_all(&encode(message)?).context("the other half of the demo is gone")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn messages_survive_the_way_as_one_line_each() {
        let held = Held { name: "host1".into(), fd: 7, inode: 4_026_532_000 };
        for message in [
            FromStage::Holding { networks: vec![held], pid_namespace: 9 },
            FromStage::Up { containers: vec![Ipv4Addr::LOCALHOST] },
            FromStage::Detached,
        ] {
            let line = String::from_utf8(encode(&message).unwrap()).unwrap();
            assert_eq!(line.matches('\n').count(), 1);
            assert_eq!(decode::<FromStage>(line.trim_end()).unwrap(), message);
        }
        assert!(decode::<ToStage>("\"Dance\"").is_err());
    }
}
