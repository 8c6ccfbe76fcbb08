//! `cli demo`: a whole cluster on one machine, in network namespaces.
//!
//! ```text
//!              fabric0 192.168.31.1  (a bridge in a namespace of its own)
//!          ________________|________________
//!         |                |                |
//!   eth0 .63         eth0 .65         eth0 .66          host namespaces
//!   store etcd01     store etcd02     store etcd03      TLS among peers and to clients
//!   overlayd         overlayd         overlayd          flannel.1 (VXLAN, MTU 1450)
//!   docker0 S1.1     docker0 S2.1     docker0 S3.1      subnets leased from 172.17.0.0/16
//!         |                |                |
//!   eth0 S1.2        eth0 S2.2        eth0 S3.2         container namespaces
//! ```
//!
//! Two processes, both this program. The [`supervisor`] stays where the user started it: it takes signals,
//! owns the directory with certificates, data and logs, and looks afterwards that nothing is left. The
//! [`stage`] is process 1 of a process namespace, holds all network namespaces ([`fabric`]) by open files and
//! starts every other program. Whichever way the stage ends, the kernel ends its descendants, and with them
//! goes every device; when the supervisor dies, the stage reads that from their socket ([`control`]) and ends.

mod control;
mod daemon;
mod fabric;
#[cfg(test)]
mod fabric_tests;
mod keep;
mod lab;
mod leftovers;
mod link;
mod privilege;
mod probe;
mod report;
mod stage;
mod steps;
mod supervisor;
mod topology;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Options of `cli demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cli demo                 build everything, show it, take it down
  cli demo --datapath rust the same without the kernel's VXLAN device
  cli demo --keep          the same, but leave the cluster up
  cli demo --down          take down what --keep left up")]
pub(crate) struct DemoArgs {
    /// Leave the cluster up and tell how to look around
    #[arg(long)]
    keep: bool,

    /// Take down the cluster that --keep left up
    #[arg(long, conflicts_with_all = ["keep", "bin_dir", "datapath"])]
    down: bool,

    /// Directory of the `store` and `overlayd` programs [default: where this program is]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// What carries the overlay's packets: the kernel's VXLAN device or overlayd itself
    #[arg(long, value_enum, default_value_t)]
    datapath: Datapath,

    /// Show the command lines too
    #[arg(short, long)]
    verbose: bool,

    /// The plan of a running demo; the demo gives it to itself
    #[arg(long, value_name = "FILE", hide = true, exclusive = true)]
    stage: Option<PathBuf>,
}

/// overlayd's `-datapath`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Datapath {
    /// The kernel's where there is one, else overlayd's own
    #[default]
    Auto,
    /// The kernel's
    Kernel,
    /// overlayd's own
    Rust,
}

impl Datapath {
    /// The flag's value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Datapath::Auto => "auto",
            Datapath::Kernel => "kernel",
            Datapath::Rust => "rust",
        }
    }
}

/// Runs the demo; to be called before the process has a second thread.
///
/// # Errors
/// What keeps the demo from starting. A step that fails is printed and gives a failing exit code.
pub(crate) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    match args {
        DemoArgs { stage: Some(plan), .. } => stage::run(&plan),
        DemoArgs { down: true, .. } => keep::down(),
        DemoArgs { keep, bin_dir, datapath, verbose, .. } => {
            supervisor::run(keep, bin_dir, datapath, verbose)
        }
    }
}
