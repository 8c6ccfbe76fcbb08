//! Measurements beside the rivals, on the same machine in the same run, in turns.
//!
//! `weft-bench store` loads three members of ours and three of Debian's etcd; `weft-bench overlay` measures TCP
//! from container to container over our overlay, over a kernel vxlan device set up by hand, and over the plain
//! underlay. Both print a table, and with `--json FILE` write every single round. Figures count from a release
//! build: `cargo run --release -p weft-bench -- store`.

mod load;
mod overlay;
mod report;
mod store;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measures Weft beside etcd and beside the kernel, in the same run.
#[derive(Debug, Parser)]
#[command(name = "weft-bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Write all rounds and the summary as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Puts, gets and quorum gets per second, latencies and memory: three members of ours and of etcd's.
    Store(store::StoreArgs),
    /// TCP throughput and round-trip time between containers on two hosts (needs root and iperf3).
    Overlay(overlay::OverlayArgs),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let report = match args.what {
        What::Store(args) => store::run(&args)?,
        What::Overlay(args) => overlay::run(&args)?,
    };
    report.print()?;
    match args.json {
        Some(path) => report.write_json(&path),
        None => Ok(()),
    }
}
