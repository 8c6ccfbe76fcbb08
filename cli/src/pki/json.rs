//! `cli pki json`: `cfssljson`, which turns the JSON of a new certificate into files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use pki::api::Envelope;
use pki::disk::{self, Access, DiskError, File};

use super::{go_bool, print, read_input, usage};

/// Flags of `cfssljson`, with one dash or two.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cli pki gencert -initca ca-csr.json | cli pki json -bare ca -
  cli pki json server answer.json

Writes NAME.pem, NAME-key.pem and NAME.csr, whichever the JSON has. Other than cfssljson it replaces no file
without --force.")]
pub(crate) struct JsonArgs {
    /// The JSON is gencert's and not an API answer; both are recognised without it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = go_bool, action = clap::ArgAction::Set, hide_default_value = true,
          value_name = "BOOL")]
    bare: bool,
    /// Where the JSON is, - for standard input
    #[arg(short, value_name = "FILE", conflicts_with = "input")]
    file: Option<PathBuf>,
    /// Print the PEM instead of writing files
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = go_bool, action = clap::ArgAction::Set, hide_default_value = true,
          value_name = "BOOL")]
    stdout: bool,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// What the files are called, possibly with a directory in front
    #[arg(value_name = "NAME", default_value = "cert")]
    name: PathBuf,
    /// Where the JSON is, - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    input: PathBuf,
}

pub(super) fn run(args: &JsonArgs) -> anyhow::Result<ExitCode> {
    if args.name.file_name().is_none() {
        return Ok(usage("NAME: give the files a name, such as ca for ca.pem and ca-key.pem"));
    }
    let (file, json) = read_input(args.file.as_ref().unwrap_or(&args.input))?;
    let envelope = Envelope::parse(&file, &json)?;
    if args.bare && is_api_answer(&json) {
        // cfssljson would find nothing at the outer level and write nothing, without a word.
        eprintln!("note: {file} is an API answer; -bare is not needed");
    }
    let files = envelope_files(&envelope, &args.name);
    if args.stdout {
        let text: String = files.iter().flat_map(|f| [f.contents.as_str(), "\n"]).collect();
        print(&text).context("standard output")?;
    } else {
        write(&files, args.force)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn is_api_answer(json: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(json).is_ok_and(|v| v.get("success").is_some())
}

/// The files of an envelope: `NAME-key.pem`, `NAME.pem` and `NAME.csr`, those that are in it.
pub(super) fn envelope_files(envelope: &Envelope, name: &Path) -> Vec<File> {
    let with = |suffix: &str| {
        // Not with_extension: a name may have dots, as in etcd.example.org.
        let mut path = name.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    [
        (&envelope.key, "-key.pem", Access::Secret),
        (&envelope.cert, ".pem", Access::Public),
        (&envelope.csr, ".csr", Access::Public),
    ]
    .into_iter()
    .filter_map(|(contents, suffix, access)| {
        Some(File { path: with(suffix), contents: contents.clone()?, access })
    })
    .collect()
}

/// Writes the files; where some are in the way, says so with the way out.
pub(super) fn write(files: &[File], force: bool) -> anyhow::Result<()> {
    match disk::write_all(files, force) {
        Err(error @ DiskError::Exists { .. }) => {
            bail!("{error}; nothing was written (--force replaces them)")
        }
        other => Ok(other?),
    }
}
