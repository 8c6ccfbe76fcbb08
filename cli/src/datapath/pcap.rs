//! `cli overlay datapath --pcap`: a capture into a file, or to a program that reads it as it comes.
//!
//! Only whole blocks are written, so the file is readable at any time, also after an interruption.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use overlay::datapath::pcapng::Scanner;
use overlay::datapath::recording::Limits;
use overlay::datapath::status::client::{CaptureStream, Client};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::number::{bytes, count};
use super::{Format, failed, json};
use crate::exit::Exit;

/// The mode of a new file: it holds everybody's traffic.
const MODE: u32 = 0o600;

/// What to save.
pub(super) struct Wanted<'a> {
    /// Where to; `-` is stdout.
    pub(super) file: &'a Path,
    /// When to stop.
    pub(super) limits: Limits,
    /// Whether a file that is there is replaced.
    pub(super) force: bool,
}

impl Wanted<'_> {
    fn is_stdout(&self) -> bool {
        self.file.as_os_str() == "-"
    }
}

/// How a capture ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// As it should: at a limit.
    Limit,
    /// By the user.
    Interrupted,
    /// By what the text says.
    Broken(String),
}

/// What was saved.
#[derive(Debug, Serialize)]
struct Saved {
    file: String,
    packets: u64,
    bytes: u64,
    /// Frames that found no place in overlayd's queue.
    missing: u64,
    /// Whether it ended at one of its limits.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Saves a capture and says how much that was: on stderr, or with `-o json` and a file on stdout.
///
/// # Errors
/// Those of `out` and `err`.
pub(super) async fn save(
    client: &Client,
    wanted: &Wanted<'_>,
    format: Format,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    if wanted.is_stdout() && io::stdout().is_terminal() {
        writeln!(
            err,
            "Error:  --pcap -: standard output is a terminal; add `| tcpdump -n -r -`, or name a file"
        )?;
        return Ok(Exit::Usage);
    }
    if !wanted.force && !wanted.is_stdout() && wanted.file.symlink_metadata().is_ok() {
        return failed(err, &in_the_way(wanted.file));
    }
    let mut interrupted = signal(SignalKind::interrupt())?;
    // The file is made once there is something to put into it.
    let mut stream = match client.capture(wanted.limits).await {
        Ok(stream) => stream,
        Err(error) => return failed(err, &error),
    };
    let (scanner, bytes, end) = if wanted.is_stdout() {
        match copy(&mut stream, &mut interrupted, out).await {
            // Whoever read it has seen enough.
            (.., Err(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(Exit::Success),
            (scanner, bytes, end) => (scanner, bytes, end?),
        }
    } else {
        let mut file = match create(wanted) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return failed(err, &in_the_way(wanted.file));
            }
            Err(error) => return failed(err, &format_args!("--pcap {}: {error}", wanted.file.display())),
        };
        let (scanner, bytes, end) = copy(&mut stream, &mut interrupted, &mut file).await;
        let broken = |error: io::Error| End::Broken(format!("--pcap {}: {error}", wanted.file.display()));
        (scanner, bytes, end.unwrap_or_else(broken))
    };
    let Scanner { packets, missing, .. } = scanner;
    let complete = end == End::Limit;
    let file = wanted.file.display().to_string();
    let name = if wanted.is_stdout() { "standard output".to_owned() } else { file.clone() };
    let said = summary(&name, packets, bytes, missing, &end);
    let error = if let End::Broken(error) = end { Some(error) } else { None };
    let exit = if error.is_some() { Exit::Failure } else { Exit::Success };
    if format == Format::Json && !wanted.is_stdout() {
        json(out, &Saved { file, packets, bytes, missing, complete, error })?;
    } else {
        writeln!(err, "{said}")?;
    }
    Ok(exit)
}

fn in_the_way(file: &Path) -> String {
    format!("--pcap {}: is there already; choose another name, or replace it with --force", file.display())
}

fn create(wanted: &Wanted<'_>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).mode(MODE);
    if wanted.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(wanted.file)
}

/// Copies until the capture ends. An error is one of `out`.
async fn copy(
    stream: &mut CaptureStream,
    interrupted: &mut Signal,
    out: &mut (dyn Write + Send),
) -> (Scanner, u64, io::Result<End>) {
    let (mut scanner, mut bytes, mut blocks) = (Scanner::default(), 0, Vec::new());
    let end = loop {
        let piece = tokio::select! {
            piece = stream.next() => piece,
            _ = interrupted.recv() => break Ok(End::Interrupted),
        };
        let outcome = match piece {
            None if scanner.complete => break Ok(End::Limit),
            None => break Ok(End::Broken("overlayd ended the capture early: see its log".to_owned())),
            Some(Err(error)) => {
                let why = "overlayd has ended, or has waited too long for this reader";
                break Ok(End::Broken(format!("the capture broke off ({why}): {error}")));
            }
            Some(Ok(piece)) => scanner.feed(&piece, &mut blocks),
        };
        bytes += blocks.len() as u64;
        if let Err(error) = out.write_all(&blocks).and_then(|()| out.flush()) {
            break Err(error);
        }
        blocks.clear();
        if let Err(error) = outcome {
            break Ok(End::Broken(error.to_string()));
        }
    };
    (scanner, bytes, end)
}

fn summary(name: &str, packets: u64, size: u64, missing: u64, end: &End) -> String {
    let lost = match missing {
        0 => String::new(),
        1 => "; 1 more did not fit into overlayd's queue".to_owned(),
        n => format!("; {n} more did not fit into overlayd's queue"),
    };
    let saved = format!("{name}: {}, {}{lost}", count(packets, "packet"), bytes(size));
    match end {
        End::Limit => saved,
        End::Interrupted => format!("{saved}; interrupted"),
        End::Broken(why) => format!("{saved}\nError:  {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_is_missing_and_why_it_ended() {
        assert_eq!(summary("a.pcapng", 1, 300, 0, &End::Limit), "a.pcapng: 1 packet, 300 B");
        assert_eq!(
            summary("a.pcapng", 1000, 1_234_567, 3, &End::Interrupted),
            "a.pcapng: 1000 packets, 1.23 MB; 3 more did not fit into overlayd's queue; interrupted"
        );
        assert_eq!(
            summary("a.pcapng", 0, 0, 1, &End::Broken("it broke".into())),
            "a.pcapng: 0 packets, 0 B; 1 more did not fit into overlayd's queue\nError:  it broke"
        );
    }
}
