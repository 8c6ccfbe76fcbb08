//! The guide's three hosts, brought up step by step as its reader does.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::cluster::Server;
use crate::command::{self, Output};
use crate::fabric::Fabric;
use crate::notify::NotifySocket;
use crate::process::Process;
use crate::systemd;
use crate::tutorial::{
    self, ENDPOINTS, ETCD_UNIT, FLANNELD_UNIT, Installation, NETWORK_CONFIG, make_certificates,
};

/// How long a unit of `Type=notify` may take until READY=1.
const READY_LIMIT: Duration = Duration::from_secs(40);

/// The hosts with everything installed, nothing started.
#[derive(Debug)]
pub struct Stage<'f> {
    /// The hosts' disks, in the fabric's order.
    pub hosts: Vec<Installation<'f>>,
    server: Server,
    dir: TempDir,
}

/// A daemon of one host, and what it said to systemd.
#[derive(Debug)]
pub struct Unit {
    /// The process.
    pub process: Process,
    notify: NotifySocket,
}

/// What `subnet.env` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_SUBNET`: the bridge's address with the subnet's length.
    pub bip: String,
    /// The subnet's base address.
    pub base: Ipv4Addr,
    /// `FLANNEL_MTU`.
    pub mtu: u32,
}

impl<'f> Stage<'f> {
    /// Makes the certificates by the guide's commands and installs every host.
    ///
    /// # Errors
    /// When a command fails or a program is missing.
    pub fn new(fabric: &'f Fabric, server: Server) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let certs = dir.path().join("certs");
        std::fs::create_dir(&certs)?;
        make_certificates(&certs).context("certificates chapter")?;
        let mut hosts = Vec::new();
        for (n, host) in fabric.hosts.iter().enumerate() {
            let root = dir.path().join(format!("host{}", host.address.octets()[3]));
            hosts.push(Installation::new(host, &root, n + 1, &certs, server)?);
        }
        Ok(Self { hosts, server, dir })
    }

    /// Where the certificates were made.
    pub fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    /// A path for a log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Starts what any unit says on a host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unit(&self, host: usize, name: &str, unit: &str) -> Result<Unit> {
        let on = &self.hosts[host];
        let name = format!("{name}-{}", on.host.address);
        let socket = self.dir.path().join(format!("{name}.notify"));
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let notify = NotifySocket::bind(&socket)?;
        let mut command = on.unit_command(unit, "ExecStart")?;
        command.env("NOTIFY_SOCKET", notify.path());
        if self.server == Server::Debian && unit == ETCD_UNIT {
            // etcd 3.4 refuses to start when a setting arrives as a flag and as a variable; 3.2 and we accept it.
            for (name, _) in systemd::environment(tutorial::ETCD_ENV)? {
                command.env_remove(name);
            }
            command.env("ETCD_ENABLE_V2", "true");
        }
        Ok(Unit { process: Process::spawn(&name, command, &self.log(&name))?, notify })
    }

    /// `systemctl start etcd` on every host.
    ///
    /// # Errors
    /// When one ends or does not say READY=1 in time.
    pub fn start_stores(&self) -> Result<Vec<Unit>> {
        let mut units = (0..self.hosts.len())
            .map(|n| self.start_unit(n, "etcd", ETCD_UNIT))
            .collect::<Result<Vec<_>>>()?;
        for unit in &mut units {
            // Debian's etcd says so only where systemd runs the machine.
            if self.server == Server::Weft {
                unit.wait_ready()?;
            }
        }
        Ok(units)
    }

    /// `systemctl start flanneld` on one host, its `ExecStartPost` included.
    ///
    /// # Errors
    /// When it ends, does not say READY=1 in time, or `ExecStartPost` fails.
    pub fn start_overlay(&self, host: usize) -> Result<Unit> {
        self.spawn_overlay(host)?.wait_ready_here()
    }

    /// Starts the daemon only.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_overlay(&self, host: usize) -> Result<Unit> {
        self.start_unit(host, "flanneld", FLANNELD_UNIT)
    }

    /// What `subnet.env` says on a host, before `ExecStartPost` has put docker's options in its place.
    ///
    /// # Errors
    /// When it is missing or incomplete.
    pub fn subnet_env(&self, host: usize) -> Result<SubnetEnv> {
        SubnetEnv::read(&self.hosts[host].file("/run/flannel/subnet.env"))
    }

    /// The unit's `ExecStartPost`: `mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/subnet.env`.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_docker_opts(&self, host: usize) -> Result<()> {
        let mut post = self.hosts[host].unit_command(FLANNELD_UNIT, "ExecStartPost")?;
        command::run(&mut post)?.ok()?;
        Ok(())
    }

    /// `etcdctl ARGS` on a host as the guide calls it: TLS files and all endpoints, `ETCDCTL_API=2`.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn etcdctl(&self, host: usize, args: &[&str]) -> Result<Output> {
        let ssl = "/opt/etcd/ssl";
        let mut words = vec![
            "/opt/etcd/bin/etcdctl".to_owned(),
            format!("--ca-file={ssl}/ca.pem"),
            format!("--cert-file={ssl}/server.pem"),
            format!("--key-file={ssl}/server-key.pem"),
            format!("--endpoints={ENDPOINTS}"),
        ];
        words.extend(args.iter().map(|&a| a.to_owned()));
        let mut command = self.hosts[host].command(&words)?;
        command::run(command.env("ETCDCTL_API", "2"))
    }

    /// `cli ARGS` on a host with the same TLS files and endpoints.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn cli(&self, host: usize, args: &[&str]) -> Result<Output> {
        let ssl = "/opt/etcd/ssl";
        let mut words = vec!["/opt/etcd/bin/cli".to_owned()];
        words.extend(args.iter().map(|&a| a.to_owned()));
        let mut command = self.hosts[host].command(&words)?;
        command
            .env("ETCDCTL_ENDPOINTS", ENDPOINTS)
            .env("ETCDCTL_CA_FILE", format!("{ssl}/ca.pem"))
            .env("ETCDCTL_CERT_FILE", format!("{ssl}/server.pem"))
            .env("ETCDCTL_KEY_FILE", format!("{ssl}/server-key.pem"));
        command::run(&mut command)
    }

    /// The guide's `etcdctl set /coreos.com/network/config ...`.
    ///
    /// # Errors
    /// When etcdctl fails or does not print the value back.
    pub fn write_network_config(&self) -> Result<()> {
        let out = self.etcdctl(0, &["set", "/coreos.com/network/config", NETWORK_CONFIG])?;
        anyhow::ensure!(out.ok()? == format!("{NETWORK_CONFIG}\n"), "{out}");
        Ok(())
    }
}

impl SubnetEnv {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is missing or incomplete.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let variables = systemd::environment(&text)?;
        let get = |name: &str| variables.get(name).cloned().with_context(|| format!("{name} in {text}"));
        let bip = get("FLANNEL_SUBNET")?;
        let gateway: Ipv4Addr = bip.split('/').next().unwrap_or_default().parse()?;
        Ok(Self { base: Ipv4Addr::from(u32::from(gateway) - 1), bip, mtu: get("FLANNEL_MTU")?.parse()? })
    }
}

impl Unit {
    /// Waits for READY=1.
    ///
    /// # Errors
    /// When the process ends or the time is up, with its log's last lines.
    pub fn wait_ready(&mut self) -> Result<()> {
        let notify = &self.notify;
        self.process.wait_until("READY=1", READY_LIMIT, |_| notify.ready())
    }

    fn wait_ready_here(mut self) -> Result<Self> {
        self.wait_ready()?;
        Ok(self)
    }
}
