//! A `dockerd` of its own on a host of the fabric, with the tutorial's unit and nothing shared with the machine.
//!
//! It runs in a process namespace: whatever it started (containerd, shims, containers) dies with it, in every
//! case, by the kernel's hand. Its `/run` and `/var/lib` are its host's, see [`Installation`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{self, Output};
use crate::process::Process;
use crate::programs;
use crate::tutorial::{DOCKER_UNIT, Installation};
use crate::wait::wait_for;

/// The name of the image made by [`Dockerd::import_busybox`].
pub const IMAGE: &str = "weft-busybox";

/// A running `dockerd`.
#[derive(Debug)]
pub struct Dockerd {
    process: Process,
    socket: PathBuf,
    init: Option<u32>,
}

impl Dockerd {
    /// Starts what the tutorial's `docker.service` says, with `DOCKER_NETWORK_OPTIONS` from the file that
    /// `docker-opts` wrote, and waits until it answers.
    ///
    /// # Errors
    /// When docker is missing or does not come up within a minute.
    pub fn start(on: &Installation<'_>, log: &Path) -> Result<Self> {
        let inner = on.unit_command(DOCKER_UNIT, "ExecStart")?;
        let mut command = Command::new(programs::tool("unshare")?);
        command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]);
        command.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let process = Process::spawn(&format!("dockerd on {}", on.host.address), command, log)?;
        let mut dockerd = Self { process, socket: on.file("/run/docker.sock"), init: None };
        let client = dockerd.client()?;
        dockerd.process.wait_until("an answer of dockerd", Duration::from_secs(60), |_| {
            let mut version = Command::new(&client.0);
            command::run(version.args(["-H", &client.1, "version"]))?.ok().map(|_| ())
        })?;
        dockerd.init = child_of(dockerd.process.pid());
        Ok(dockerd)
    }

    fn client(&self) -> Result<(PathBuf, String)> {
        Ok((programs::tool("docker")?, format!("unix://{}", self.socket.display())))
    }

    /// `docker ARGS`, which must succeed; its output without the last newline.
    ///
    /// # Errors
    /// When it fails: its output and dockerd's log.
    pub fn docker(&self, args: &[&str]) -> Result<String> {
        let out = self.docker_with(args, b"")?;
        Ok(out.ok().with_context(|| self.process.log_tail())?.trim_end().to_owned())
    }

    fn docker_with(&self, args: &[&str], input: &[u8]) -> Result<Output> {
        let (program, socket) = self.client()?;
        command::run_with(
            Command::new(program).args(["-H", &socket]).args(args),
            input,
            Duration::from_secs(60),
        )
    }

    /// Makes [`IMAGE`] of Debian's static busybox.
    ///
    /// # Errors
    /// When `busybox-static` is missing (or a dynamic busybox is installed), or the import fails.
    pub fn import_busybox(&self) -> Result<()> {
        let root = tempfile::tempdir()?;
        let bin = root.path().join("bin");
        std::fs::create_dir(&bin)?;
        std::fs::copy(programs::tool("busybox")?, bin.join("busybox"))?;
        for applet in ["sh", "ping", "nc", "sleep", "cat", "ip"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        let tar = root.path().join("image.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(root.path()).arg("-cf").arg(&tar).arg("bin");
        command::run(&mut pack)?.ok()?;
        let path = tar.to_str().context("temporary path is not text")?;
        self.docker(&["import", path, IMAGE])?;
        Ok(())
    }

    /// Starts a container that idles; returns its address.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run_idle(&self, name: &str) -> Result<std::net::Ipv4Addr> {
        self.docker(&["run", "-d", "--name", name, IMAGE, "sleep", "600"])?;
        let format = "{{.NetworkSettings.IPAddress}}";
        let address = self.docker(&["inspect", "-f", format, name])?;
        address.parse().with_context(|| format!("address of container {name}: `{address}`"))
    }

    /// `docker exec CONTAINER ARGS`, which must succeed; its output.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, container: &str, args: &[&str]) -> Result<String> {
        self.docker(&[&["exec", container], args].concat())
    }

    /// dockerd's command line, as `ps` would show it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn command_line(&self) -> Result<String> {
        let init = self.init.context("dockerd has no process")?;
        let line = std::fs::read(format!("/proc/{init}/cmdline"))?;
        ensure!(!line.is_empty(), "dockerd has ended");
        Ok(String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " "))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // The orderly way first: it removes the containers' cgroups, which outlive a kill.
        if let Ok(all) = self.docker(&["ps", "-aq"]) {
            for id in all.lines() {
                self.docker(&["rm", "-f", id]).ok();
            }
        }
        self.process.kill9().ok();
        if let Some(init) = self.init {
            let gone = wait_for("dockerd's processes to end", Duration::from_secs(10), || {
                ensure!(!Path::new("/proc").join(init.to_string()).exists(), "process {init} is still there");
                Ok(())
            });
            if let Err(error) = gone {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}

fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}
