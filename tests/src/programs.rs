//! Where the programs are: ours beside the running test, Debian's on the `PATH`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::command;

/// Programs of Debian 12 that the tests drive, with the package that brings each.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("bridge", "iproute2"),
    ("cargo", "cargo (or https://rustup.rs)"),
    ("curl", "curl"),
    ("docker", "docker.io"),
    ("dockerd", "docker.io"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ethtool", "ethtool"),
    ("fsfreeze", "util-linux"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("iptables-save", "iptables"),
    ("mkfs.ext4", "e2fsprogs"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("prlimit", "util-linux"),
    ("ss", "iproute2"),
    ("systemd-analyze", "systemd"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
];

/// The variable that points at a directory with ready-built programs, instead of building them.
pub const BIN_DIR_VARIABLE: &str = "WEFT_BIN_DIR";

/// Path of one of Debian's programs.
///
/// # Errors
/// When it is not installed: its name and the package to install.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Administration programs are there for root even when a user's PATH leaves them out.
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    for place in places {
        let candidate = place.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    match PACKAGES.iter().find(|(program, _)| *program == name) {
        Some((_, package)) => {
            bail!("`{name}` is not installed: run `apt-get install {package}`, or `tests/run`")
        }
        None => bail!("`{name}` is not installed"),
    }
}

/// Checks that the test may make namespaces and devices.
///
/// # Errors
/// When the effective user is not root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("this test makes network namespaces and devices and must run as root: run `sudo tests/run`")
}

/// Path of one of our programs (`store`, `overlayd`, `cli`), built if it is not up to date.
///
/// # Errors
/// When the build fails, or `WEFT_BIN_DIR` does not hold the program.
pub fn ours(name: &str) -> Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir =
        DIR.get_or_init(|| bin_dir().map_err(|e| format!("{e:#}"))).as_ref().map_err(|e| anyhow!("{e}"))?;
    let path = dir.join(name);
    if !path.is_file() {
        bail!("our program `{name}` is not in {}: run `cargo build --workspace --bins`", dir.display());
    }
    Ok(path)
}

/// The directory of our programs: `WEFT_BIN_DIR` as it is, else this profile's target directory after a build.
fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR_VARIABLE) {
        return Ok(PathBuf::from(dir));
    }
    let exe = std::env::current_exe().context("path of the running test")?;
    let mut dir = exe.parent().context("directory of the running test")?;
    if dir.file_name().is_some_and(|n| n == "deps") {
        dir = dir.parent().context("target directory")?;
    }
    build(dir)?;
    Ok(dir.to_owned())
}

/// `cargo test` builds no programs of other packages, and stale ones would make a test lie.
fn build(target: &Path) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace root")?;
    let mut cargo =
        Command::new(std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from));
    cargo.current_dir(root).args(["build", "--quiet", "-p", "store", "-p", "overlay", "-p", "cli", "--bins"]);
    match target.file_name().and_then(|n| n.to_str()) {
        Some("debug") => {}
        Some(profile) => {
            cargo.args(["--profile", profile]);
        }
        None => bail!("{}: not a cargo target directory", target.display()),
    }
    if let Some(dir) = target.parent() {
        cargo.arg("--target-dir").arg(dir);
    }
    let out = command::run_with(&mut cargo, b"", Duration::from_secs(1800))?;
    out.ok().context("building our programs")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_or_itself() {
        assert!(tool("sh").is_ok());
        assert_eq!(tool("no-such-tool").unwrap_err().to_string(), "`no-such-tool` is not installed");
    }
}
