//! Network namespaces that exist only as long as this process holds them.
//!
//! A [`Namespace`] is made by a thread that unshares its own network and is then kept alive by an open file
//! alone: no name under `/run/netns`, so nothing is left behind however the process ends. Work inside one is
//! done by short-lived threads that enter it with `setns`; the calling thread never moves. A socket or a child
//! process made inside stays there, whoever uses it later. Devices and addresses are in [`super::link`].
//!
//! Needs `CAP_SYS_ADMIN` in the current user namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkUnspec, new_connection};

/// A network namespace held open by a file of ours; it goes when the last holder goes.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes an empty network namespace whose loopback device is up. `name` is for messages only.
    ///
    /// # Errors
    /// When the kernel does not allow it; the message names the namespace.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let made = in_thread(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = made.with_context(|| format!("{name}: cannot make a network namespace"))?;
        let namespace = Self { name: name.to_owned(), file };
        namespace
            .netlink(async |handle| {
                Ok(handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await?)
            })
            .with_context(|| format!("{name}: cannot bring up the loopback device"))?;
        Ok(namespace)
    }

    /// The name given at the start.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number of the open file; `/proc/PID/fd/NUMBER` names the namespace to other processes.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The kernel's number for this namespace, as `readlink /proc/PID/ns/net` shows it.
    ///
    /// # Errors
    /// When the file cannot be read, which does not happen to an open one.
    pub(crate) fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. A panic in `work` goes on here.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok::<T, nix::Error>(work())
        })
        .with_context(|| format!("{}: cannot enter the network namespace", self.name))
    }

    /// Starts `command` inside the namespace.
    ///
    /// # Errors
    /// When the program cannot be started; the message names both.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(|| command.spawn())?.with_context(|| format!("{}: cannot start {program}", self.name))
    }

    /// Runs `work` with a route-netlink connection of this namespace.
    ///
    /// # Errors
    /// What `work` returns, or that the namespace or the connection cannot be had.
    pub(crate) fn netlink<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
                let driver = tokio::spawn(connection);
                let result = work(handle).await;
                driver.abort();
                result
            })
        })?
    }

    /// Writes one of the namespace's own kernel settings, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When `/proc/sys` is read-only here or the setting does not exist; the message names the file.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("{}: cannot write {value} to {path}", self.name))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `work` on a fresh thread, whose namespaces it may change without touching anyone else's.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => panic::resume_unwind(panic),
    })
}
