//! `cli pki init`: every certificate of a cluster with one command.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use pki::cluster::{self, ClusterSpec, Identity, LEAVES, file_names};
use pki::disk::{self, DiskError, File};
use pki::duration;
use pki::issue::Authority;
use pki::key::KeySpec;
use time::OffsetDateTime;

use super::gencert::parse_hosts;
use super::print;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cli pki init --hosts 192.168.31.63,192.168.31.65,192.168.31.66 --out ssl
  cli pki init --hosts 192.168.31.63,192.168.31.65,192.168.31.67 --out ssl --reuse-ca --force

Writes, each with its -key.pem:
  ca.pem          the CA; its key is needed on no machine of the cluster
  server.pem      the store's members, as server and as client (localhost, 127.0.0.1 and ::1 are added)
  admin.pem       the operator, as client
  kube-proxy.pem  kube-proxy, as client
  overlay.pem     overlayd, as client")]
pub(crate) struct InitArgs {
    /// Addresses and names of the store's members, with commas between
    #[arg(long, value_name = "HOSTS", required = true)]
    hosts: String,
    /// Directory for the files; created where it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace files that are there; without --reuse-ca the CA too, and what the old one signed is void
    #[arg(long)]
    force: bool,
    /// Sign with the ca.pem and ca-key.pem that are in DIR already, and leave them as they are
    #[arg(long)]
    reuse_ca: bool,
    /// Kind of every key
    #[arg(long, value_name = "ALGO", default_value = "rsa", value_parser = ["rsa", "ecdsa", "ed25519"])]
    key_algo: String,
    /// Size of every key: rsa 2048, 3072, 4096; ecdsa 256, 384, 521 [default: 2048 or 256]
    #[arg(long, value_name = "BITS")]
    key_size: Option<u64>,
    /// How long the certificates are valid, as a Go duration
    #[arg(long, value_name = "DURATION", default_value = "87600h")]
    expiry: String,
}

pub(super) fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let spec = args.spec()?;
    let now = OffsetDateTime::now_utc();
    args.check_place()?;
    let mut identities = Vec::new();
    let authority = if args.reuse_ca {
        args.read_ca(now)?
    } else {
        let (ca, authority) = cluster::make_ca(&spec, now)?;
        identities.push(ca);
        authority
    };
    identities.extend(cluster::make_leaves(&spec, &authority, now)?);

    disk::create_dir(&args.out)?;
    let files: Vec<File> = identities.iter().flat_map(|identity| identity.files(&args.out)).collect();
    match disk::write_all(&files, args.force) {
        Err(DiskError::Exists { paths }) => bail!(args.in_the_way(&paths)),
        other => other?,
    }
    print(&report(&identities, &args.out)).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

impl InitArgs {
    fn spec(&self) -> anyhow::Result<ClusterSpec> {
        let hosts = parse_hosts("--hosts", &self.hosts)?;
        let size = self.key_size.unwrap_or(if self.key_algo == "rsa" { 2048 } else { 256 });
        let key = KeySpec::new(&self.key_algo, size).context("--key-size")?;
        let expiry = duration::parse(&self.expiry).context("--expiry")?;
        if expiry <= pki::profile::BACKDATE {
            bail!("--expiry: {:?} is not longer than the 5 minutes of backdating", self.expiry);
        }
        Ok(ClusterSpec { hosts, key, expiry })
    }

    /// Looks for files in the way before the keys are made, which takes longest.
    fn check_place(&self) -> anyhow::Result<()> {
        if self.force {
            return Ok(());
        }
        let ca = if self.reuse_ca { None } else { Some("ca") };
        let paths: Vec<PathBuf> =
            ca.into_iter().chain(LEAVES).flat_map(file_names).map(|name| self.out.join(name)).collect();
        let paths = disk::existing(paths.iter().map(PathBuf::as_path));
        if paths.is_empty() { Ok(()) } else { bail!(self.in_the_way(&paths)) }
    }

    fn in_the_way(&self, paths: &[PathBuf]) -> String {
        let list = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        let way_out = if self.reuse_ca {
            "--force replaces them and keeps the CA"
        } else {
            "--force replaces them, and a new CA makes everything the old one signed void; \
             --reuse-ca --force keeps the CA"
        };
        format!("already there: {list}; nothing was written ({way_out})")
    }

    fn read_ca(&self, now: OffsetDateTime) -> anyhow::Result<Authority> {
        let [cert, key] = file_names("ca").map(|name| self.out.join(name));
        let (cert_pem, key_pem) =
            disk::read(&cert).and_then(|c| Ok((c, disk::read(&key)?))).context("--reuse-ca")?;
        let names = [&cert, &key].map(|path| path.display().to_string());
        Authority::new(&names[0], &cert_pem, &names[1], &key_pem, now).context("--reuse-ca")
    }
}

fn report(identities: &[Identity], dir: &Path) -> String {
    let mut text = String::new();
    for identity in identities {
        let [cert, key] = file_names(identity.name).map(|name| dir.join(name));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\n{}", cert.display(), key.display());
        for warning in &identity.warnings {
            eprintln!("warning: {}: {warning}", identity.name);
        }
    }
    text
}
