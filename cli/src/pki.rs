//! `cli pki`: certificates for the cluster.

use std::{ffi::OsString, process::ExitCode};

/// The certificate commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PkiCommand {}

/// Runs a certificate command.
pub(crate) fn run(_cmd: PkiCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}

/// Turns cfssl's single-dash flags into what clap takes.
pub(crate) fn normalise_args(args: Vec<OsString>) -> Vec<OsString> {
    args
}
