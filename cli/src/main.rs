//! `cli`: Weft's operator tool.

mod demo;
mod pki;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cli", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Certificates for the cluster.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// A whole cluster on this machine.
    Demo(demo::DemoArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse_from(pki::normalise_args(std::env::args_os().collect())).command {
        Command::Pki(command) => pki::run(command),
        Command::Demo(args) => demo::run(args),
    }
}
