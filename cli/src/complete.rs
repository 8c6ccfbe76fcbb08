//! `cli completions`: completion scripts.

use std::io::{self, Write};

use clap::{CommandFactory as _, ValueEnum};

use crate::args::Cli;

/// The shells that are completed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Writes the script.
///
/// # Errors
/// Those of `out`.
pub(crate) fn print(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Into memory first: the generator panics when its writer fails, and a closed pipe shall be quiet.
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "cli", &mut script);
    out.write_all(&script)
}
