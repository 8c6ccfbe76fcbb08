//! The hand-installation guide, executed: its files unchanged, its paths real, on hosts that are namespaces.
//!
//! Each host has a directory that stands for its disk. A program started on it sees that directory's `opt`,
//! `run` and `var/lib` in place of the machine's (bind mounts in a mount namespace of its own), so
//! `/opt/etcd/bin/etcd`, `/run/flannel/subnet.env` and `/var/lib/etcd` mean what the guide means, on each host
//! something else, and nothing outside is touched.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::Server;
use crate::command;
use crate::fabric::Host;
use crate::programs;
use crate::systemd;

/// `ca-config.json`.
pub const CA_CONFIG: &str = include_str!("../tutorial/ca-config.json");
/// `ca-csr.json`.
pub const CA_CSR: &str = include_str!("../tutorial/ca-csr.json");
/// `server-csr.json`.
pub const SERVER_CSR: &str = include_str!("../tutorial/server-csr.json");
/// `/opt/etcd/cfg/etcd` of the first host.
pub const ETCD_ENV: &str = include_str!("../tutorial/etcd.env");
/// `etcd.service`.
pub const ETCD_UNIT: &str = include_str!("../tutorial/etcd.service");
/// `/opt/kubernetes/cfg/flanneld`.
pub const FLANNELD_ENV: &str = include_str!("../tutorial/flanneld.env");
/// `flanneld.service`.
pub const FLANNELD_UNIT: &str = include_str!("../tutorial/flanneld.service");
/// `docker.service`.
pub const DOCKER_UNIT: &str = include_str!("../tutorial/docker.service");
/// The network config that the guide writes.
pub const NETWORK_CONFIG: &str = r#"{ "Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"}}"#;
/// The guide's `--endpoints`.
pub const ENDPOINTS: &str =
    "https://192.168.31.63:2379,https://192.168.31.65:2379,https://192.168.31.66:2379";

/// The guide's certificates chapter in `dir`: its three files, then its two commands with `cli pki` for `cfssl`
/// and `cli pki json` for `cfssljson`. Leaves `ca.pem`, `ca-key.pem`, `server.pem`, `server-key.pem`.
///
/// # Errors
/// When a command fails or does not leave its files.
pub fn make_certificates(dir: &Path) -> Result<()> {
    for (name, text) in
        [("ca-config.json", CA_CONFIG), ("ca-csr.json", CA_CSR), ("server-csr.json", SERVER_CSR)]
    {
        std::fs::write(dir.join(name), text)?;
    }
    let cli = programs::ours("cli")?;
    let cli = cli.display();
    let script = format!(
        "set -e -o pipefail
        {cli} pki gencert -initca ca-csr.json | {cli} pki json -bare ca -
        {cli} pki gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile=www server-csr.json \
            | {cli} pki json -bare server"
    );
    command::run(Command::new("bash").arg("-c").arg(script).current_dir(dir))?.ok()?;
    for name in ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"] {
        ensure!(dir.join(name).is_file(), "the guide's commands left no {name}");
    }
    Ok(())
}

/// One host's disk, with the programs of a release on it.
#[derive(Debug)]
pub struct Installation<'f> {
    /// The host it belongs to.
    pub host: &'f Host,
    /// The directory that stands for `/`.
    pub root: PathBuf,
}

impl<'f> Installation<'f> {
    /// Lays out the host as the guide's reader does: programs, certificates and environment files, with the
    /// host's own address where the guide says so. `number` is 1 for `etcd01`.
    ///
    /// # Errors
    /// When a file cannot be written or a program is missing.
    pub fn new(host: &'f Host, root: &Path, number: usize, certs: &Path, server: Server) -> Result<Self> {
        for dir in [
            "opt/etcd/bin",
            "opt/etcd/cfg",
            "opt/etcd/ssl",
            "opt/kubernetes/bin",
            "opt/kubernetes/cfg",
            "run",
            "var/lib",
        ] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        for (source, place) in [
            (server.program()?, "opt/etcd/bin/etcd"),
            (programs::tool("etcdctl")?, "opt/etcd/bin/etcdctl"),
            (programs::ours("cli")?, "opt/etcd/bin/cli"),
            (programs::ours("overlayd")?, "opt/kubernetes/bin/flanneld"),
        ] {
            // Not a symbolic link: the build may itself lie below a directory that is covered here.
            if std::fs::hard_link(&source, root.join(place)).is_err() {
                std::fs::copy(&source, root.join(place))
                    .with_context(|| format!("copying {}", source.display()))?;
            }
        }
        let script = root.join("opt/kubernetes/bin/mk-docker-opts.sh");
        std::fs::write(&script, "#!/bin/sh\nexec /opt/etcd/bin/cli docker-opts \"$@\"\n")?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        for name in ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"] {
            std::fs::copy(certs.join(name), root.join("opt/etcd/ssl").join(name)).context(name)?;
        }
        std::fs::write(root.join("opt/etcd/cfg/etcd"), etcd_env(number, &host.address.to_string()))?;
        std::fs::write(root.join("opt/kubernetes/cfg/flanneld"), FLANNELD_ENV)?;
        Ok(Self { host, root: root.to_owned() })
    }

    /// Adds what `docs/install/README.md` has its reader add: the programs, certificates and environment files
    /// below `/opt/weft`, with the host's own name and address in `store.env`.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn install_weft(&self, number: usize) -> Result<()> {
        let opt = self.root.join("opt/weft");
        for dir in ["bin", "cfg", "ssl"] {
            std::fs::create_dir_all(opt.join(dir))?;
        }
        for name in ["store", "overlayd", "cli"] {
            std::fs::copy(programs::ours(name)?, opt.join("bin").join(name)).context(name)?;
        }
        for name in ["ca.pem", "server.pem", "server-key.pem"] {
            std::fs::copy(self.root.join("opt/etcd/ssl").join(name), opt.join("ssl").join(name))
                .context(name)?;
        }
        let store = std::fs::read_to_string(install_dir().join("store.env")).context("store.env")?;
        let own = own_lines(&store, number, &self.host.address.to_string());
        std::fs::write(opt.join("cfg/store"), own)?;
        std::fs::copy(install_dir().join("overlayd.env"), opt.join("cfg/overlayd"))
            .context("overlayd.env")?;
        Ok(())
    }

    /// The file that a program on the host knows as `path`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A command that runs `words` on the host: in its network namespace, on its disk.
    ///
    /// # Errors
    /// When `nsenter` or `unshare` is missing.
    pub fn command(&self, words: &[String]) -> Result<Command> {
        // Each step replaces itself by the next, so the child's pid is the program's.
        let mounts =
            "for d in opt run var/lib; do mount --bind \"$0/$d\" \"/$d\" || exit 126; done; exec \"$@\"";
        let mut command = self.host.ns.command(programs::tool("unshare")?)?;
        command.args(["--mount", "--propagation", "private", "sh", "-c", mounts]).arg(&self.root).args(words);
        Ok(command)
    }

    /// What systemd would run for `key` (`ExecStart`, `ExecStartPost`) of a unit, with its environment file read
    /// now and put into the environment, as systemd does.
    ///
    /// # Errors
    /// When the unit has no such line, or its environment file cannot be read.
    pub fn unit_command(&self, unit: &str, key: &str) -> Result<Command> {
        let mut environment = systemd::Environment::new();
        for file in systemd::values(unit, "EnvironmentFile") {
            let path = self.file(&file);
            let text = std::fs::read_to_string(&path).with_context(|| format!("EnvironmentFile={file}"))?;
            environment.extend(systemd::environment(&text).with_context(|| file)?);
        }
        let lines = systemd::values(unit, key);
        let mut words =
            systemd::words(lines.first().with_context(|| format!("{key}= in the unit"))?, &environment)?;
        // Debian keeps some programs in another directory than the guide's system does.
        if !self.file(&words[0]).exists() {
            let name = words[0].rsplit('/').next().unwrap_or_default().to_owned();
            words[0] = programs::tool(&name)?.to_string_lossy().into_owned();
        }
        let mut command = self.command(&words)?;
        command.envs(environment);
        Ok(command)
    }
}

/// The directory of the files for a real installation.
pub fn install_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/install")
}

/// `/opt/etcd/cfg/etcd` for another host.
fn etcd_env(number: usize, address: &str) -> String {
    own_lines(ETCD_ENV, number, address)
}

/// An environment file for another host: its own name and address, the same initial cluster.
fn own_lines(text: &str, number: usize, address: &str) -> String {
    let change = |line: &str| match line.split_once('=') {
        Some(("ETCD_NAME", _)) => format!("ETCD_NAME=\"etcd{number:02}\""),
        Some(("ETCD_INITIAL_CLUSTER", _)) => line.to_owned(),
        _ => line.replace("192.168.31.63", address),
    };
    text.lines().map(|l| change(l) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_own_lines_change() {
        assert_eq!(etcd_env(1, "192.168.31.63"), ETCD_ENV);
        let other = etcd_env(3, "192.168.31.66");
        assert!(other.contains("ETCD_NAME=\"etcd03\"\n"));
        assert!(other.contains("ETCD_LISTEN_PEER_URLS=\"https://192.168.31.66:2380\"\n"));
        assert!(other.contains("ETCD_INITIAL_CLUSTER=\"etcd01=https://192.168.31.63:2380,"));
    }
}
