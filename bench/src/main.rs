//! Measurements beside the rivals, on the same machine in the same run, in turns.
//!
//! `weft-bench store` loads three members of ours and three of Debian's etcd; `weft-bench overlay` measures TCP
//! from container to container over our overlay, over a kernel vxlan device set up by hand, and over the plain
//! underlay; `weft-bench datapath` measures everything that matters of our own data plane beside the kernel's. All
//! print a table, and with `--json FILE` write every single round. Figures count from a release build:
//! `cargo run --release -p weft-bench -- store`.

mod datapath;
mod load;
mod overlay;
mod report;
mod store;
mod traffic;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use weft_tests::wait;

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
    /// Our own data plane beside the kernel's vxlan device, pair by pair in turns (needs root and iperf3).
    Datapath(datapath::DatapathArgs),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    unwind_on_signals()?;
    let report = match args.what {
        What::Store(args) => store::run(&args)?,
        What::Overlay(args) => overlay::run(&args)?,
        What::Datapath(args) => datapath::run(&args)?,
    };
    report.print()?;
    match args.json {
        Some(path) => report.write_json(&path),
        None => Ok(()),
    }
}

/// Ctrl-C or SIGTERM fails whatever is waited for next, so that namespaces, processes and files go as the program
/// unwinds; a second one ends it at once, and the next run sweeps the namespaces.
fn unwind_on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                eprintln!("interrupted: cleaning up");
                wait::interrupt();
            }
        });
        std::process::exit(130);
    });
    Ok(())
}
