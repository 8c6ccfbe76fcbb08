//! `cli pki inspect`: what is in certificate files, and whether it fits together.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use pki::disk;
use pki::inspect::{Certificate, Item, Key, Status, parse};
use serde::Serialize;
use time::OffsetDateTime;

use super::print;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cli pki inspect ssl/server.pem
  cli pki inspect ssl/*.pem
  cli pki inspect server.crt server.key ca.crt -o json

A NAME-key.pem beside NAME.pem is looked at along with it. The exit code is 1 when a file cannot be read, a
certificate is not valid now, or a key does not belong to its certificate.")]
pub(crate) struct InspectArgs {
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// PEM files with certificates, keys and signing requests
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// One file of the report.
#[derive(Debug, Serialize)]
struct FileReport {
    file: String,
    /// The path, to find `NAME-key.pem` beside `NAME.pem`.
    #[serde(skip)]
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    items: Vec<ItemReport>,
}

/// One thing in a file, with what the other files say about it.
#[derive(Debug, Serialize)]
struct ItemReport {
    #[serde(flatten)]
    item: Item,
    /// The file of the private key that belongs to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    /// The file of a private key that should belong to it and does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong_private_key: Option<String>,
    /// The file of the certificate that signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let now = OffsetDateTime::now_utc();
    let mut reports: Vec<FileReport> = Vec::new();
    for path in with_keys_beside(&args.files) {
        reports.push(look(&path, now));
    }
    relate(&mut reports);
    let text = match args.output.as_str() {
        "json" => serde_json::to_string_pretty(&reports)? + "\n",
        _ => reports.iter().map(FileReport::to_text).collect::<Vec<_>>().join("\n"),
    };
    print(&text).context("standard output")?;
    let well = reports.iter().all(FileReport::is_well);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The files, each `NAME.pem` followed by its `NAME-key.pem` where that exists and is not given itself.
fn with_keys_beside(files: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for file in files {
        all.push(file.clone());
        if let Some(key) = key_beside(file)
            && key.is_file()
            && !files.contains(&key)
        {
            all.push(key);
        }
    }
    all
}

fn key_beside(cert: &Path) -> Option<PathBuf> {
    let stem = cert.file_name()?.to_str()?.strip_suffix(".pem").filter(|stem| !stem.ends_with("-key"))?;
    Some(cert.with_file_name(format!("{stem}-key.pem")))
}

fn look(path: &Path, now: OffsetDateTime) -> FileReport {
    let file = path.display().to_string();
    let result = disk::read(path)
        .map_err(|e| e.to_string())
        .and_then(|b| parse(&file, &b, now).map_err(|e| e.to_string()));
    let (items, error) = match result {
        Ok(items) => (items, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let alone = |item| ItemReport { item, private_key: None, wrong_private_key: None, signed_by: None };
    FileReport { file, path: path.to_owned(), error, items: items.into_iter().map(alone).collect() }
}

/// Finds for every certificate and request its key, and for every certificate its signer, among all files.
fn relate(reports: &mut [FileReport]) {
    let all = |reports: &[FileReport]| -> Vec<(String, PathBuf, Item)> {
        let each = |r: &FileReport| {
            r.items.iter().map(|i| (r.file.clone(), r.path.clone(), i.item.clone())).collect::<Vec<_>>()
        };
        reports.iter().flat_map(each).collect()
    };
    let items = all(reports);
    let keys: Vec<(&String, &PathBuf, &Key)> = items
        .iter()
        .filter_map(|(file, path, item)| match item {
            Item::PrivateKey(key) => Some((file, path, key)),
            Item::Certificate(_) | Item::Request(_) => None,
        })
        .collect();
    let certificates: Vec<(&String, &Certificate)> = items
        .iter()
        .filter_map(|(file, _, item)| match item {
            Item::Certificate(cert) => Some((file, &**cert)),
            Item::PrivateKey(_) | Item::Request(_) => None,
        })
        .collect();
    // Two files, one certificate and one key: they were given to be compared, whatever they are called.
    let a_pair = keys.len() == 1 && certificates.len() == 1;
    for report in reports {
        let beside = key_beside(&report.path);
        for (index, entry) in report.items.iter_mut().enumerate() {
            let belongs = |key: &Key| match &entry.item {
                Item::Certificate(cert) => cert.belongs_to(key),
                Item::Request(request) => request.belongs_to(key),
                Item::PrivateKey(_) => false,
            };
            entry.private_key =
                keys.iter().find(|(_, _, key)| belongs(key)).map(|(file, _, _)| (*file).clone());
            if let Item::Certificate(cert) = &entry.item {
                // Only the first of a chain has its key here; those behind it are its CAs.
                if entry.private_key.is_none() && index == 0 {
                    let expected = keys.iter().find(|(_, path, _)| a_pair || Some(*path) == beside.as_ref());
                    entry.wrong_private_key = expected.map(|(file, _, _)| (*file).clone());
                }
                let signer =
                    certificates.iter().find(|(_, other)| *other != &**cert && cert.signed_by(other));
                entry.signed_by = signer.map(|(file, _)| (*file).clone());
            }
        }
    }
}

impl FileReport {
    fn is_well(&self) -> bool {
        let item_is_well = |entry: &ItemReport| {
            entry.wrong_private_key.is_none()
                && match &entry.item {
                    Item::Certificate(cert) => cert.status == Status::Valid,
                    Item::Request(request) => request.signature_valid,
                    Item::PrivateKey(_) => true,
                }
        };
        self.error.is_none() && self.items.iter().all(item_is_well)
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.file);
        if let Some(error) = &self.error {
            // The error starts with the file's name, which stands above it already.
            let error = error.strip_prefix(&format!("{}: ", self.file)).unwrap_or(error);
            let _ = writeln!(text, "  error:       {error}");
        }
        for (index, entry) in self.items.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            for (label, value) in entry.lines() {
                let _ = writeln!(text, "  {:<12} {value}", format!("{label}:"));
            }
        }
        text
    }
}

impl ItemReport {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        match &self.item {
            Item::Certificate(cert) => {
                let mut lines = vec![
                    ("certificate", cert.subject.clone()),
                    ("issuer", self.issuer_text(cert)),
                    ("serial", cert.serial.clone()),
                    ("names", list(&cert.names)),
                    ("usages", list(&cert.usages)),
                ];
                if cert.ca {
                    let depth = cert.path_length.map_or(String::new(), |n| format!(", path length {n}"));
                    lines.push(("CA", format!("yes{depth}")));
                }
                lines.push(("valid", validity_text(cert)));
                lines.push(("key", cert.key.clone()));
                lines.push(("signature", cert.signature.clone()));
                lines.push(("private key", self.key_text()));
                lines
            }
            Item::PrivateKey(key) => vec![("private key", key.key.clone())],
            Item::Request(request) => vec![
                ("request", request.subject.clone()),
                ("names", list(&request.names)),
                ("key", request.key.clone()),
                ("signature", if request.signature_valid { "right" } else { "WRONG" }.to_owned()),
                ("private key", self.key_text()),
            ],
        }
    }

    fn issuer_text(&self, cert: &Certificate) -> String {
        match &self.signed_by {
            _ if cert.self_signed => "itself".to_owned(),
            Some(file) => format!("{} (signed by {file})", cert.issuer),
            None => cert.issuer.clone(),
        }
    }

    fn key_text(&self) -> String {
        match (&self.private_key, &self.wrong_private_key) {
            (Some(file), _) => format!("{file} matches"),
            (None, Some(file)) => format!("{file} DOES NOT MATCH"),
            (None, None) => "not given".to_owned(),
        }
    }
}

fn validity_text(cert: &Certificate) -> String {
    let state = match (cert.status, cert.days_left) {
        (Status::Expired, days) => format!("EXPIRED {} days ago", -days - 1),
        (Status::NotYetValid, _) => "NOT YET VALID".to_owned(),
        (Status::Valid, 1) => "1 day left".to_owned(),
        (Status::Valid, days) => format!("{days} days left"),
    };
    format!("{} to {} ({state})", cert.not_before, cert.not_after)
}
