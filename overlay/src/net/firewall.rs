//! Runs `iptables` or `nft` so that the rules of [`crate::masq`] are there, and checks them again and again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tracing::{debug, info, warn};

use crate::masq::{self, Step, Wanted};
use crate::types::Subnet;

/// A run of `iptables` may wait for the lock of another; past this it is given up until the next check.
const RUN_LIMIT: Duration = Duration::from_secs(30);

/// Why the rules are not (all) there.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The program could not be run or did not end.
    #[error("{command}: {why}")]
    Run {
        /// What was run.
        command: String,
        /// What went wrong.
        why: String,
    },
    /// The program ran and failed.
    #[error("{command} failed ({status}): {stderr}")]
    Failed {
        /// What was run.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
}

/// Which program keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tool {
    Iptables(PathBuf),
    Nft(PathBuf),
}

/// Keeps our packet filter rules in place.
pub struct Firewall {
    tool: Tool,
    /// The other mode's program, for cleaning up what an earlier run left there.
    other: Option<Tool>,
    wanted: Wanted,
    previous: Option<Subnet>,
    last_error: Option<String>,
}

impl Firewall {
    /// Finds a program: `iptables` where it is installed, else `nft`; the other way round with `prefer_nft`
    /// (`EnableNFTables`). `None`, with a warning that says what to install, where there is neither.
    pub fn find(wanted: Wanted, previous: Option<Subnet>, prefer_nft: bool) -> Option<Self> {
        let iptables = find_program("iptables").map(Tool::Iptables);
        let nft = find_program("nft").map(Tool::Nft);
        let (tool, other) = if prefer_nft { (nft, iptables) } else { (iptables, nft) };
        let (tool, other) = match (tool, other) {
            (Some(tool), other) => (tool, other),
            (None, Some(other)) => (other, None),
            (None, None) => {
                warn!(
                    ip_masq = wanted.ip_masq,
                    "Neither iptables nor nft is installed: no masquerading, and no FORWARD rules; install one of them"
                );
                return None;
            }
        };
        match &tool {
            Tool::Iptables(path) => {
                info!(program = %path.display(), "packet filter rules are kept with iptables");
            }
            Tool::Nft(path) => {
                info!(program = %path.display(), "packet filter rules are kept with nftables, table ip {}", masq::NFT_TABLE);
            }
        }
        Some(Self { tool, other, wanted, previous, last_error: None })
    }

    /// Removes what an earlier run left with the other program, then checks every `every`, for ever.
    pub async fn keep(mut self, every: Duration) {
        self.clean_other().await;
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let error = self.check().await.err().map(|e| e.to_string());
            // Said once, not every few seconds.
            if let Some(error) = error.as_ref().filter(|e| self.last_error.as_ref() != Some(e)) {
                warn!(
                    "Failed to ensure packet filter rules, trying again every {} s: {error}",
                    every.as_secs()
                );
            } else if error.is_none() && self.last_error.is_some() {
                info!("packet filter rules are in place again");
            }
            self.last_error = error;
        }
    }

    /// Puts the rules right once; returns how many changes that took.
    ///
    /// # Errors
    /// When the program cannot be run or refuses.
    pub async fn check(&self) -> Result<usize, FirewallError> {
        match self.tool.clone() {
            Tool::Iptables(path) => self.check_iptables(&path).await,
            Tool::Nft(path) => self.check_nft(&path).await,
        }
    }

    async fn check_iptables(&self, program: &Path) -> Result<usize, FirewallError> {
        let mut made = 0;
        for chain in masq::chains(&self.wanted, self.previous) {
            let listing = run(program, &["--wait", "-t", chain.table, "-S", chain.chain], None).await?;
            for step in masq::fix(&chain, &listing) {
                let (verb, rule) = match &step {
                    Step::Delete(rule) => ("-D", rule),
                    Step::Append(rule) => ("-A", rule),
                };
                info!(table = chain.table, "iptables {verb} {} {rule}", chain.chain);
                let mut args = vec!["--wait", "-t", chain.table, verb, chain.chain];
                args.extend(rule.split(' '));
                run(program, &args, None).await?;
                made += 1;
            }
        }
        Ok(made)
    }

    async fn check_nft(&self, program: &Path) -> Result<usize, FirewallError> {
        // A failure means that there is no table, most likely; writing it will tell.
        let listing = run(program, &["list", "table", "ip", masq::NFT_TABLE], None).await;
        if listing.is_ok_and(|now| masq::nft_is_complete(&self.wanted, &now)) {
            return Ok(0);
        }
        info!("writing nftables table ip {}", masq::NFT_TABLE);
        run(program, &["-f", "-"], Some(masq::nft_ruleset(&self.wanted))).await?;
        Ok(1)
    }

    async fn clean_other(&self) {
        let outcome = match &self.other {
            None => return,
            Some(Tool::Nft(path)) => {
                let list = run(path, &["list", "table", "ip", masq::NFT_TABLE], None).await;
                match list {
                    Ok(_) => run(path, &["-f", "-"], Some(masq::nft_removal())).await.map(drop),
                    Err(_) => return, // no such table
                }
            }
            Some(Tool::Iptables(path)) => {
                let nothing = Wanted { ip_masq: false, forward: false, ..self.wanted };
                let cleaner = Self {
                    tool: Tool::Iptables(path.clone()),
                    other: None,
                    wanted: nothing,
                    previous: self.previous,
                    last_error: None,
                };
                cleaner.check_iptables(path).await.map(drop)
            }
        };
        if let Err(error) = outcome {
            debug!(%error, "rules of the other packet filter program left as they are");
        }
    }
}

/// Looks in `PATH` and in the directories where these programs live even where `PATH` leaves them out.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}

async fn run(program: &Path, args: &[&str], input: Option<String>) -> Result<String, FirewallError> {
    let command = format!("{} {}", program.display(), args.join(" "));
    let cannot = |why: String| FirewallError::Run { command: command.clone(), why };
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| cannot(e.to_string()))?;
    let stdin = child.stdin.take();
    let ended = tokio::time::timeout(RUN_LIMIT, async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    });
    let output = ended
        .await
        .map_err(|_| cannot(format!("did not end within {} s", RUN_LIMIT.as_secs())))?
        .map_err(|e| cannot(e.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(FirewallError::Failed { command, status: output.status, stderr })
}
