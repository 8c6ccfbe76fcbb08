//! `cli overlay`: what the overlayd of this host says about itself. `datapath` shows what its data path carries and
//! drops, and captures what it sees.
//!
//! The questions go to overlayd's Unix socket ([`overlay::datapath::status`]), so the store is not needed.

mod number;
mod pcap;
mod show;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use overlay::datapath::recording::Limits;
use overlay::datapath::status::DEFAULT_SOCKET;
use overlay::datapath::status::client::Client;

use crate::exit::Exit;

/// The overlay on this host
#[derive(Debug, Args)]
pub(crate) struct OverlayArgs {
    #[command(subcommand)]
    command: OverlayCommand,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum OverlayCommand {
    Datapath(DatapathArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    #[value(alias = "simple")]
    Text,
    /// One JSON object on one line
    Json,
}

/// Shows what this host's overlayd carries and drops, or captures it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cli overlay datapath
  cli overlay datapath -o json | jq .engine.total.drops
  cli overlay datapath --watch 2
  cli overlay datapath --pcap flannel.pcapng --packets 5000 --seconds 60
  cli overlay datapath --pcap - | tcpdump -n -r -

A capture shows frames as the engine sees them: TCP and UDP in super-frames of up to 64 KB, their
checksums not filled in yet. It ends at the first of its limits.

Exit codes: 0 shown, saved; 1 overlayd does not answer or its data path has stopped, nothing or
not all saved; 2 usage")]
struct DatapathArgs {
    /// overlayd's status socket (its -status-socket)
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, value_hint = clap::ValueHint::FilePath)]
    socket: PathBuf,
    /// Print a line with rates every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "pcap")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    /// Save what the engine sees, as pcapng; - for stdout
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pcap: Option<PathBuf>,
    /// Replace FILE if it is there
    #[arg(long, requires = "pcap")]
    force: bool,
    #[command(flatten)]
    limits: LimitArgs,
}

/// The limits of a capture; overlayd's own defaults and bounds.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of --pcap")]
struct LimitArgs {
    /// Frames [default: 1000]
    #[arg(long, value_name = "N", requires = "pcap", value_parser = limit("packets"))]
    packets: Option<u64>,
    /// Bytes of the file [default: 16777216]
    #[arg(long, value_name = "N", requires = "pcap", value_parser = limit("bytes"))]
    bytes: Option<u64>,
    /// Seconds [default: 10]
    #[arg(long, value_name = "N", requires = "pcap", value_parser = limit("seconds"))]
    seconds: Option<u64>,
    /// Bytes kept of each frame [default: all]
    #[arg(long, value_name = "N", requires = "pcap", value_parser = limit("snaplen"))]
    snaplen: Option<u64>,
}

fn limit(name: &'static str) -> impl Fn(&str) -> Result<u64, String> + Clone {
    move |text| Limits::value(name, text).map_err(|error| error.to_string())
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            packets: self.packets.unwrap_or(default.packets),
            bytes: self.bytes.unwrap_or(default.bytes),
            seconds: self.seconds.unwrap_or(default.seconds),
            snaplen: self.snaplen.unwrap_or(default.snaplen),
        }
    }
}

/// Runs `cli overlay`.
///
/// # Errors
/// Those of `out` and `err`; everything else is printed and in the exit code.
pub(crate) async fn run(
    args: &OverlayArgs,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    let OverlayCommand::Datapath(datapath) = &args.command;
    let client = Client::new(&datapath.socket);
    if let Some(file) = &datapath.pcap {
        let wanted = pcap::Wanted { file, limits: datapath.limits.limits(), force: datapath.force };
        return pcap::save(&client, &wanted, args.output, out, err).await;
    }
    if let Some(seconds) = datapath.watch {
        return watch::follow(&client, Duration::from_secs(seconds), args.output, out, err).await;
    }
    let report = match client.report().await {
        Ok(report) => report,
        Err(error) => return failed(err, &error),
    };
    match args.output {
        Format::Json => json(out, &report)?,
        Format::Text => show::text(out, &report)?,
    }
    // overlayd mends an engine that has stopped, or ends; a script should hear of it in either case.
    let works = report.engine.as_ref().is_none_or(|engine| engine.running);
    Ok(if works { Exit::Success } else { Exit::Failure })
}

fn failed(err: &mut dyn Write, error: &dyn std::fmt::Display) -> io::Result<Exit> {
    writeln!(err, "Error:  {error}")?;
    Ok(Exit::Failure)
}

fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}
