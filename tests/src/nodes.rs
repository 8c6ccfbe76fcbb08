//! Nodes of an overlay with whatever flags a test wants, without the guide's certificates and units.
//!
//! ```text
//!   fabric namespace: one store member in the clear, http://192.168.31.1:2379
//!   host namespaces:  overlayd -etcd-endpoints=http://192.168.31.1:2379 -iface=eth0 FLAGS, docker0
//!   containers:       behind docker0, with the subnet and MTU that overlayd wrote
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, Server};
use crate::command;
use crate::fabric::{Container, Fabric, Host, ROUTER};
use crate::http;
use crate::notify::NotifySocket;
use crate::process::Process;
use crate::programs;
use crate::stage::SubnetEnv;
use crate::v2::Endpoint;

/// How long overlayd may take until READY=1 on a busy machine.
pub const READY_LIMIT: Duration = Duration::from_secs(40);

/// The key that holds the network config.
pub const CONFIG_KEY: &str = "/coreos.com/network/config";

/// A store with a network config in it, and room for the nodes' files.
#[derive(Debug)]
pub struct Overlay<'f> {
    fabric: &'f Fabric,
    store: Cluster<'f>,
    dir: TempDir,
}

/// A host with `overlayd` on it.
#[derive(Debug)]
pub struct Node<'f> {
    /// Where it runs.
    pub host: &'f Host,
    /// What `subnet.env` said after the last start.
    pub env: SubnetEnv,
    dir: PathBuf,
    flags: Vec<String>,
    running: Option<Process>,
    starts: u32,
}

impl<'f> Overlay<'f> {
    /// Starts the store on the fabric's router and writes `network_config` (JSON) to it.
    ///
    /// # Errors
    /// When the store does not start or refuses the write.
    pub fn new(fabric: &'f Fabric, network_config: &str) -> Result<Self> {
        let mut store = Cluster::single(&fabric.outside, Server::Weft, ROUTER)?;
        store.start()?;
        store.members[0].endpoint().set(CONFIG_KEY, network_config)?;
        Ok(Self { fabric, store, dir: tempfile::tempdir()? })
    }

    /// The store, for keys that a test wants there.
    pub fn store(&self) -> Endpoint<'f> {
        self.store.members[0].endpoint()
    }

    /// A path for a file of a test's own; it goes with the overlay.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts `overlayd` with `flags` on a host, waits until it is ready and makes `docker0`.
    ///
    /// # Errors
    /// When it ends or is not ready in time, with its log's last lines.
    pub fn node(&self, host: usize, flags: &[&str]) -> Result<Node<'f>> {
        let host = &self.fabric.hosts[host];
        let dir = self.dir.path().join(host.address.to_string());
        std::fs::create_dir(&dir)?;
        let mut all = vec![
            format!("-etcd-endpoints=http://{ROUTER}:2379"),
            "-iface=eth0".to_owned(),
            "-ip-masq".to_owned(),
            format!("-subnet-file={}", dir.join("subnet.env").display()),
        ];
        all.extend(flags.iter().map(|&f| f.to_owned()));
        let (process, env) = start(host, &dir, &all, 0)?;
        host.add_docker0(&env.bip, env.mtu)?;
        Ok(Node { host, env, dir, flags: all, running: Some(process), starts: 1 })
    }
}

impl Node<'_> {
    /// Attaches a container to `docker0`; one per node.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn container(&self, label: &str) -> Result<Container> {
        self.host.add_container(label, &self.env.bip, self.env.mtu)
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When it was stopped.
    pub fn process(&mut self) -> Result<&mut Process> {
        let address = self.host.address;
        self.running.as_mut().ok_or_else(|| anyhow!("overlayd on {address} is not running"))
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.process()?.kill9()?;
        self.running = None;
        Ok(())
    }

    /// Starts it again after [`Self::kill9`], with the same flags and files, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Overlay::node`].
    pub fn start(&mut self) -> Result<()> {
        let (process, env) = start(self.host, &self.dir, &self.flags, self.starts)?;
        (self.running, self.env) = (Some(process), env);
        self.starts += 1;
        Ok(())
    }

    /// What the daemon says about its data path: `GET /v1/datapath` on its status socket.
    ///
    /// # Errors
    /// When the socket is not there or the answer is no success.
    pub fn datapath_status(&self) -> Result<Value> {
        let socket = self.dir.join("overlayd.sock");
        let request = http::Request { target: "/v1/datapath", ..Default::default() };
        let reply = http::send_unix(&socket, &request, Duration::from_secs(5))?;
        anyhow::ensure!(reply.status == 200, "GET /v1/datapath: {} {}", reply.status, reply.text());
        reply.json()
    }
}

fn start(host: &Host, dir: &Path, flags: &[String], starts: u32) -> Result<(Process, SubnetEnv)> {
    // A name of its own for each start: the socket of an earlier one may still be there.
    let notify = NotifySocket::bind(&dir.join(format!("notify{starts}")))?;
    let mut command = host.ns.command(programs::ours("overlayd")?)?;
    command.args(flags).env("NOTIFY_SOCKET", notify.path());
    let name = format!("overlayd-{}", host.address);
    let mut process = Process::spawn(&name, command, &dir.join("overlayd.log"))?;
    process.wait_until("READY=1", READY_LIMIT, |_| notify.ready())?;
    Ok((process, SubnetEnv::read(&dir.join("subnet.env"))?))
}

/// Whether our `overlayd` has a flag of that name (without the dash).
///
/// # Errors
/// When it cannot be started.
pub fn overlayd_knows(flag: &str) -> Result<bool> {
    let out = command::run(Command::new(programs::ours("overlayd")?).arg("-help"))?;
    let usage = format!("{}{}", out.stdout, out.stderr);
    out.ok().context("overlayd -help")?;
    Ok(usage.split_ascii_whitespace().any(|word| word.trim_start_matches('-') == flag && word != flag))
}
