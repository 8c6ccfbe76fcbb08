//! Three members of our store or of Debian's etcd, over TLS on a fabric or in the clear on loopback.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use crate::fabric::Fabric;
use crate::ns::Namespace;
use crate::process::Process;
use crate::programs;
use crate::v2::Endpoint;
use crate::wait::wait_for;

/// How long a cluster may take to elect a leader and serve.
pub const START_LIMIT: Duration = Duration::from_secs(30);

/// Which program the members run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// Our `store`.
    Weft,
    /// Debian's `etcd` with the v2 API turned on.
    Debian,
}

impl Server {
    /// Path of the program.
    ///
    /// # Errors
    /// When it is missing.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::Weft => programs::ours("store"),
            Self::Debian => programs::tool("etcd"),
        }
    }

    /// Flags it needs beyond those that both understand.
    fn extra(self) -> &'static [&'static str] {
        match self {
            Self::Weft => &[],
            Self::Debian => &["--enable-v2=true"],
        }
    }
}

/// A cluster whose members can be killed and started again one by one.
#[derive(Debug)]
pub struct Cluster<'f> {
    /// The members, in the order of the fabric's hosts.
    pub members: Vec<Member<'f>>,
    _dir: TempDir,
}

/// One member: its command line, its log, and its process while it runs.
#[derive(Debug)]
pub struct Member<'f> {
    /// Its `--name`.
    pub name: String,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    ns: Option<&'f Namespace>,
    plain: SocketAddr,
    program: PathBuf,
    args: Vec<String>,
    files: Option<u32>,
    log: PathBuf,
    process: Option<Process>,
}

impl<'f> Cluster<'f> {
    /// Members over TLS on the fabric's hosts, with the flags of the tutorial's unit; `certs` holds `ca.pem`,
    /// `server.pem` and `server-key.pem`. Nothing is started yet.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn on_fabric(fabric: &'f Fabric, server: Server, certs: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let names: Vec<String> = (1..=fabric.hosts.len()).map(|n| format!("etcd{n:02}")).collect();
        let initial: Vec<String> =
            names.iter().zip(&fabric.hosts).map(|(n, h)| format!("{n}=https://{}:2380", h.address)).collect();
        let mut members = Vec::new();
        for (name, host) in names.iter().zip(&fabric.hosts) {
            let (peer, client) =
                (format!("https://{}:2380", host.address), format!("https://{}:2379", host.address));
            let urls = Urls {
                listen_client: format!("{client},http://127.0.0.1:2379"),
                peer,
                client,
                initial: initial.join(","),
            };
            let plain = SocketAddr::from((Ipv4Addr::LOCALHOST, 2379));
            let mut member = Member::new(name, server, dir.path(), &urls, plain, Some(&host.ns))?;
            for (flag, file) in [
                ("cert-file", "server.pem"),
                ("key-file", "server-key.pem"),
                ("trusted-ca-file", "ca.pem"),
                ("peer-cert-file", "server.pem"),
                ("peer-key-file", "server-key.pem"),
                ("peer-trusted-ca-file", "ca.pem"),
            ] {
                member.args.push(format!("--{flag}={}", certs.join(file).display()));
            }
            members.push(member);
        }
        Ok(Self { members, _dir: dir })
    }

    /// One member in the clear at `address`, port 2379, inside a namespace. Nothing is started yet.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn single(ns: &'f Namespace, server: Server, address: Ipv4Addr) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (client, peer) = (format!("http://{address}:2379"), format!("http://{address}:2380"));
        let urls = Urls { initial: format!("m0={peer}"), listen_client: client.clone(), peer, client };
        let plain = SocketAddr::from((address, 2379));
        let member = Member::new("m0", server, dir.path(), &urls, plain, Some(ns))?;
        Ok(Self { members: vec![member], _dir: dir })
    }

    /// `size` members in the clear on free ports of the loopback address. Nothing is started yet.
    ///
    /// # Errors
    /// When the program is missing or no port is free.
    pub fn on_loopback(server: Server, size: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // All are held until all are known, so that none is given twice.
        let listeners: Vec<TcpListener> =
            (0..2 * size).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        drop(listeners);
        let (peers, clients) = addresses.split_at(size);
        let initial: Vec<String> =
            peers.iter().enumerate().map(|(n, a)| format!("m{n}=http://{a}")).collect();
        let mut members = Vec::new();
        for (n, (peer, client)) in peers.iter().zip(clients).enumerate() {
            let client_url = format!("http://{client}");
            let urls = Urls {
                peer: format!("http://{peer}"),
                listen_client: client_url.clone(),
                client: client_url,
                initial: initial.join(","),
            };
            members.push(Member::new(&format!("m{n}"), server, dir.path(), &urls, *client, None)?);
        }
        Ok(Self { members, _dir: dir })
    }

    /// Starts all members and waits until each serves and agrees on a leader.
    ///
    /// # Errors
    /// When one ends or does not get there in time, with its log's last lines.
    pub fn start(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.start()?;
        }
        self.wait_healthy()
    }

    /// Waits until every running member is healthy.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn wait_healthy(&mut self) -> Result<()> {
        for member in self.members.iter_mut().filter(|m| m.process.is_some()) {
            member.wait_healthy(START_LIMIT)?;
        }
        Ok(())
    }

    /// Index of the leader that the running members in `among` agree on, waiting for it.
    ///
    /// # Errors
    /// When they do not agree in time.
    pub fn wait_leader(&self, among: &[usize]) -> Result<usize> {
        wait_for("agreement on a leader", START_LIMIT, || {
            let mut named = Vec::new();
            for &n in among {
                let member = &self.members[n];
                named.push(member.endpoint().leader().with_context(|| member.name.clone())?.0);
            }
            ensure!(named.windows(2).all(|w| w[0] == w[1]), "they name different leaders: {named:?}");
            let leader = self.members.iter().position(|m| Some(&m.name) == named.first());
            let leader = leader.with_context(|| format!("nobody is called {named:?}"))?;
            ensure!(among.contains(&leader), "they still name {}", self.members[leader].name);
            Ok(leader)
        })
    }
}

/// The URLs of one member.
struct Urls {
    peer: String,
    listen_client: String,
    client: String,
    initial: String,
}

impl<'f> Member<'f> {
    fn new(
        name: &str,
        server: Server,
        dir: &Path,
        urls: &Urls,
        plain: SocketAddr,
        ns: Option<&'f Namespace>,
    ) -> Result<Self> {
        let data_dir = dir.join(name).join("default.etcd");
        std::fs::create_dir_all(dir.join(name))?;
        let mut args: Vec<String> = server.extra().iter().map(|&s| s.to_owned()).collect();
        args.extend([
            format!("--name={name}"),
            format!("--data-dir={}", data_dir.display()),
            format!("--listen-peer-urls={}", urls.peer),
            format!("--listen-client-urls={}", urls.listen_client),
            format!("--advertise-client-urls={}", urls.client),
            format!("--initial-advertise-peer-urls={}", urls.peer),
            format!("--initial-cluster={}", urls.initial),
            "--initial-cluster-token=etcd-cluster".to_owned(),
            "--initial-cluster-state=new".to_owned(),
        ]);
        let log = dir.join(format!("{name}.log"));
        Ok(Self {
            name: name.to_owned(),
            data_dir,
            ns,
            plain,
            program: server.program()?,
            args,
            files: None,
            log,
            process: None,
        })
    }

    /// Adds a flag, or overrides an earlier one.
    pub fn push_flag(&mut self, flag: &str) {
        self.args.push(flag.to_owned());
    }

    /// The value of a flag that is there.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.args.iter().find_map(|arg| arg.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// Replaces the value of a flag that is already there.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_flag(&mut self, name: &str, value: &str) -> Result<()> {
        let prefix = format!("--{name}=");
        let arg = self.args.iter_mut().find(|a| a.starts_with(&prefix)).context(prefix.clone())?;
        *arg = format!("{prefix}{value}");
        Ok(())
    }

    /// Lets it open only so many files (`ulimit -n`) from its next start on.
    pub fn limit_files(&mut self, files: u32) {
        self.files = Some(files);
    }

    /// Starts the process, over the data it has.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        // prlimit becomes the program itself, so the child's pid is the program's.
        let first = if self.files.is_some() { programs::tool("prlimit")? } else { self.program.clone() };
        let mut command = match self.ns {
            Some(ns) => ns.command(&first)?,
            None => Command::new(&first),
        };
        if let Some(files) = self.files {
            command.arg(format!("--nofile={files}")).arg("--").arg(&self.program);
        }
        command.args(&self.args);
        self.process = Some(Process::spawn(&self.name, command, &self.log)?);
        Ok(())
    }

    /// The running process.
    ///
    /// # Errors
    /// When it was not started or was killed.
    pub fn process(&mut self) -> Result<&mut Process> {
        let name = &self.name;
        self.process.as_mut().ok_or_else(|| anyhow!("{name} is not started"))
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.process()?.kill9()?;
        self.process = None;
        Ok(())
    }

    /// Waits until the member says that it is healthy.
    ///
    /// # Errors
    /// When it ends or does not get there in time, with its log's last lines.
    pub fn wait_healthy(&mut self, limit: Duration) -> Result<()> {
        let endpoint = Endpoint { ns: self.ns, address: self.plain };
        self.process()?.wait_until("a healthy answer", limit, |_| endpoint.healthy())
    }

    /// Copies its log into the directory `place`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn keep_log(&self, place: &Path) -> Result<()> {
        std::fs::copy(&self.log, place.join(format!("{}.log", self.name)))
            .with_context(|| format!("copying {}", self.log.display()))?;
        Ok(())
    }

    /// Its plain client address.
    pub fn endpoint(&self) -> Endpoint<'f> {
        Endpoint { ns: self.ns, address: self.plain }
    }
}
