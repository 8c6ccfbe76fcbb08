//! `cli pki`: certificates for the cluster.
//!
//! `gencert` and `json` take the command lines of `cfssl gencert` and `cfssljson`; `init` makes everything a
//! cluster needs at once; `inspect` shows what is in a file. The rules are in the `pki` library; here are
//! the flags, the files and the texts.

mod gencert;
mod init;
mod inspect;
mod json;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use pki::disk::{self, DiskError};

/// The certificate commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the certificates of a whole cluster: a CA, the store's, and those of its clients
    Init(init::InitArgs),
    /// Make a key and a certificate from cfssl's JSON files, with cfssl's flags
    Gencert(gencert::GencertArgs),
    /// Write what gencert printed into files, as cfssljson does
    Json(json::JsonArgs),
    /// Show certificates, keys and signing requests
    Inspect(inspect::InspectArgs),
}

/// Runs a certificate command. The exit code is 0 when all is well, 1 when it failed or `inspect` found
/// something wrong, 2 when the command line makes no sense.
pub(crate) fn run(command: PkiCommand) -> anyhow::Result<ExitCode> {
    match command {
        PkiCommand::Init(args) => init::run(&args),
        PkiCommand::Gencert(args) => gencert::run(&args),
        PkiCommand::Json(args) => json::run(&args),
        PkiCommand::Inspect(args) => inspect::run(&args),
    }
}

/// Gives the single-dash flags of `pki gencert` and `pki json` the second dash that clap wants: cfssl is a Go
/// program and takes either. Every other command line, and all behind `--`, stays as it is.
pub(crate) fn normalise_args(args: Vec<OsString>) -> Vec<OsString> {
    let is = |at: usize, names: &[&str]| {
        args.get(at).and_then(|arg| arg.to_str()).is_some_and(|arg| names.contains(&arg))
    };
    if !(is(1, &["pki"]) && is(2, &["gencert", "json"])) {
        return args;
    }
    let mut behind_dashes = false;
    args.into_iter()
        .map(|arg| {
            behind_dashes |= arg == "--";
            let long = arg.to_str().filter(|_| !behind_dashes).and_then(|text| {
                let flag = text.strip_prefix('-').filter(|flag| !flag.starts_with('-'))?;
                // One letter (-h, -f) is a short flag to clap and to Go alike, a lone - is stdin.
                (flag.split('=').next().unwrap_or(flag).len() > 1)
                    .then(|| OsString::from(format!("--{flag}")))
            });
            long.unwrap_or(arg)
        })
        .collect()
}

/// A command line that makes no sense: says why, exit code 2.
fn usage(problem: &str) -> ExitCode {
    eprintln!("error: {problem}\n\nFor more information, try '--help'.");
    ExitCode::from(2)
}

/// Reads a file, or standard input where it is `-`; also gives the name to blame in errors.
fn read_input(path: &Path) -> Result<(String, Vec<u8>), DiskError> {
    if path.as_os_str() == "-" {
        let name = "standard input";
        return Ok((name.to_owned(), disk::read_from(io::stdin().lock().by_ref(), Path::new(name))?));
    }
    Ok((path.display().to_string(), disk::read(path)?))
}

/// Writes to standard output; a reader that has gone away is no error.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Go's `strconv.ParseBool`, for `-initca=true`.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let args: Vec<_> =
            normalise_args(args).into_iter().map(|a| a.to_string_lossy().into_owned()).collect();
        args.join(" ")
    }

    #[test]
    fn cfssls_flags_get_a_second_dash() {
        for (line, want) in [
            ("cli pki gencert -initca ca-csr.json", "cli pki gencert --initca ca-csr.json"),
            (
                "cli pki gencert -ca=ca.pem -ca-key ca-key.pem --config=c -profile=www s.json",
                "cli pki gencert --ca=ca.pem --ca-key ca-key.pem --config=c --profile=www s.json",
            ),
            ("cli pki json -bare ca -", "cli pki json --bare ca -"),
            ("cli pki json -f x -h -- -bare", "cli pki json -f x -h -- -bare"),
            ("cli pki json -f=x -stdout", "cli pki json -f=x --stdout"),
        ] {
            assert_eq!(normalised(line), want);
        }
    }

    #[test]
    fn other_commands_are_left_alone() {
        for line in
            ["cli", "cli pki", "cli pki inspect -ojson x", "cli set pki gencert -initca", "cli get -x"]
        {
            assert_eq!(normalised(line), line);
        }
    }
}
