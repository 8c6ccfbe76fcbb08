//! The receiving end of `sd_notify`, as systemd has it for a unit with `Type=notify`.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A socket whose path goes into a daemon's `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// Binds the socket at `path`, which must not exist yet.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn bind(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("binding {}", path.display()))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// What belongs into `NOTIFY_SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Succeeds once `READY=1` has arrived; for use as a probe of a wait.
    ///
    /// # Errors
    /// When it has not arrived yet.
    pub fn ready(&self) -> Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(n) if String::from_utf8_lossy(&buffer[..n]).lines().any(|l| l == "READY=1") => {
                    return Ok(());
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => bail!("no READY=1 on NOTIFY_SOCKET yet"),
                Err(e) => return Err(e.into()),
            }
        }
    }
}
