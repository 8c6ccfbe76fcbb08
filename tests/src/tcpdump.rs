//! tcpdump as a witness.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::ns::Namespace;
use crate::process::Process;
use crate::programs;

/// How long it may take to start listening, and how long a packet that comes at all may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A tcpdump that ends once it has seen as many packets as it waits for.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    what: String,
    _dir: TempDir,
}

impl Watch {
    /// Listens on a device of `ns` for `count` packets that match `filter` (pcap-filter(7)).
    ///
    /// # Errors
    /// When tcpdump does not start to listen, with what it says.
    pub fn start(ns: &Namespace, device: &str, filter: &str, count: u32) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = ns.command(programs::tool("tcpdump")?)?;
        command.args(["-n", "-e", "-l", "-c", &count.to_string(), "-i", device, filter]);
        let mut process = Process::spawn("tcpdump", command, &dir.path().join("log"))?;
        process.wait_for_log("listening on", PATIENCE)?;
        let what = format!("{count} packets of `{filter}` on {device} in {}", ns.name());
        Ok(Self { process, what, _dir: dir })
    }

    /// Waits for the packets; what tcpdump says of them.
    ///
    /// # Errors
    /// When they do not come within 5 s.
    pub fn seen(mut self) -> Result<String> {
        let ended = self.process.wait_exit(PATIENCE).with_context(|| self.what.clone())?;
        ensure!(ended.success(), "{}: {ended}\n{}", self.what, self.process.log_tail());
        Ok(self.process.log())
    }
}
