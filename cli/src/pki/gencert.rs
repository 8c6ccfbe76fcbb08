//! `cli pki gencert`: `cfssl gencert` with its flags, files and output.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use pki::api::Envelope;
use pki::disk;
use pki::host::Host;
use pki::issue::{Authority, Issued, self_signed};
use pki::key::PrivateKey;
use pki::profile::{Config, Profile};
use pki::request::CertRequest;
use pki::serial::Serial;
use time::OffsetDateTime;

use super::json::envelope_files;
use super::{go_bool, print, read_input, usage};

/// Flags of `cfssl gencert`, with one dash or two.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cli pki gencert -initca ca-csr.json | cli pki json -bare ca
  cli pki gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile=www server-csr.json \\
      | cli pki json -bare server
  cli pki gencert --initca ca-csr.json --out /opt/etcd/ssl

The files are cfssl's, and so is the JSON on standard output.")]
pub(crate) struct GencertArgs {
    /// Make a CA: the certificate is signed by its own key
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", value_parser = go_bool, action = clap::ArgAction::Set, hide_default_value = true,
          value_name = "BOOL")]
    initca: bool,
    /// The CA's certificate
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The CA's private key; with -initca, the key to make the CA from instead of a new one
    #[arg(long, value_name = "FILE")]
    ca_key: Option<PathBuf>,
    /// Signing profiles (ca-config.json); without it, a year as server and client
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The profile of -config to sign with; without it, the default profile
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Hosts with commas between, instead of those in the request
    #[arg(long, value_name = "HOSTS")]
    hostname: Option<String>,
    /// Common name, instead of the one in the request
    #[arg(long, value_name = "NAME")]
    cn: Option<String>,
    /// From 0 (everything) to 5 (only fatal errors); 3 and above leave out the warnings
    #[arg(long, value_name = "LEVEL", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=5))]
    loglevel: u8,
    /// Write NAME.pem, NAME-key.pem and NAME.csr into this directory instead of printing JSON
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What the files are called; without it ca, or the request's file name without -csr.json
    #[arg(long, value_name = "NAME", requires = "out")]
    name: Option<String>,
    /// Replace files that are there
    #[arg(long, requires = "out")]
    force: bool,
    /// The request as cfssl's CSR JSON, or - for standard input
    #[arg(value_name = "CSR_JSON")]
    request: PathBuf,
}

pub(super) fn run(args: &GencertArgs) -> anyhow::Result<ExitCode> {
    if let Some(problem) = args.contradiction() {
        return Ok(usage(problem));
    }
    let name = match &args.out {
        Some(_) => Some(args.file_name()?),
        None => None,
    };
    let (file, json) = read_input(&args.request)?;
    if json.starts_with(b"-----BEGIN") {
        bail!(
            "{file}: this is PEM, and gencert takes cfssl's CSR JSON; signing an existing request is not supported"
        );
    }
    let mut request = CertRequest::parse(&file, &json)?;
    // To Go an empty value is the same as none, and scripts pass empty variables.
    if let Some(cn) = args.cn.as_ref().filter(|cn| !cn.is_empty()) {
        request.subject.common_name = Some(cn.clone());
    }
    if let Some(hosts) = args.hostname.as_ref().filter(|hosts| !hosts.is_empty()) {
        request.hosts = parse_hosts("-hostname", hosts)?;
    }
    let now = OffsetDateTime::now_utc();
    let (issued, key) =
        if args.initca { args.new_ca(&request, now)? } else { args.sign(&file, &request, now)? };
    if args.loglevel <= 2 {
        for warning in &issued.warnings {
            eprintln!("warning: {warning}");
        }
    }
    let envelope = Envelope { cert: Some(issued.cert_pem), csr: Some(issued.csr_pem), key };
    match (&args.out, name) {
        (Some(dir), Some(name)) => {
            disk::create_dir(dir)?;
            super::json::write(&envelope_files(&envelope, &dir.join(name)), args.force)?;
        }
        _ => print(&envelope.to_json()).context("standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

impl GencertArgs {
    fn contradiction(&self) -> Option<&'static str> {
        if self.initca {
            if self.ca.is_some() {
                return Some("-initca makes a new CA, -ca names one that is there: give one of them");
            }
            if self.config.is_some() || self.profile.is_some() {
                return Some(
                    "-config and -profile say how a CA signs others; how long a new CA is valid stands in the \
                     \"ca\" section of its request",
                );
            }
            return None;
        }
        if self.ca.is_none() {
            return Some("need a CA certificate (provide one with -ca), or -initca to make a CA");
        }
        if self.ca_key.is_none() {
            return Some("need a CA key (provide one with -ca-key)");
        }
        if self.profile.is_some() && self.config.is_none() {
            return Some("-profile names a profile of a configuration: provide that with -config");
        }
        None
    }

    /// `server` for `server-csr.json`, as the tutorial's commands name their files.
    fn file_name(&self) -> anyhow::Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        if self.initca {
            return Ok("ca".to_owned());
        }
        let stem = self.request.file_stem().and_then(|stem| stem.to_str()).filter(|stem| *stem != "-");
        let stem = stem.context("--out: give the files a name with --name")?;
        Ok(stem.strip_suffix("-csr").unwrap_or(stem).to_owned())
    }

    /// A new CA; with `-ca-key` of a key that is there, and then, as in cfssl, the key is not printed.
    fn new_ca(&self, request: &CertRequest, now: OffsetDateTime) -> anyhow::Result<(Issued, Option<String>)> {
        let (key, shown) = if let Some(path) = &self.ca_key {
            (PrivateKey::from_pem(&name_of(path), &disk::read(path)?)?, None)
        } else {
            let key = PrivateKey::generate(request.key)?;
            let pem = key.to_pem().to_owned();
            (key, Some(pem))
        };
        Ok((self_signed(request, &key, Serial::random()?, now)?, shown))
    }

    fn sign(
        &self,
        file: &str,
        request: &CertRequest,
        now: OffsetDateTime,
    ) -> anyhow::Result<(Issued, Option<String>)> {
        request.require_no_ca(file)?;
        let (Some(ca), Some(ca_key)) = (&self.ca, &self.ca_key) else { bail!("need -ca and -ca-key") };
        let profile = match &self.config {
            Some(path) => {
                let name = name_of(path);
                let config = Config::parse(&name, &disk::read(path)?)?;
                config.profile(&name, self.profile.as_deref().filter(|p| !p.is_empty()))?.clone()
            }
            None => Profile::default(),
        };
        let (ca_pem, ca_key_pem) = (disk::read(ca)?, disk::read(ca_key)?);
        let authority = Authority::new(&name_of(ca), &ca_pem, &name_of(ca_key), &ca_key_pem, now)?;
        let key = PrivateKey::generate(request.key)?;
        let issued = authority.issue(request, &profile, &key, Serial::random()?, now)?;
        Ok((issued, Some(key.to_pem().to_owned())))
    }
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

/// Hosts with commas between; an error names the flag.
pub(super) fn parse_hosts(flag: &str, list: &str) -> anyhow::Result<Vec<Host>> {
    list.split(',').map(|text| Host::parse(text.trim()).with_context(|| flag.to_owned())).collect()
}
