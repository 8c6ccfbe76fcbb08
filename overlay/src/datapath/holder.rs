//! Who has a socket that we cannot get, so that an error can name the one to stop. Reads `/proc`; only for errors.

use std::fmt;
use std::fs;

/// Who has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process that can be seen from here.
    Process {
        /// Its id.
        id: u32,
        /// Its name, at most 15 bytes (`comm`).
        name: String,
    },
    /// The socket is there, but no process that can be seen from here has it open: a kernel device has, or a process
    /// in another PID namespace.
    Kernel,
    /// Not to be found out.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { id, name } => write!(f, "process {id} ({name})"),
            Self::Kernel => {
                f.write_str("the kernel, most likely a VXLAN device (ip -d link show type vxlan)")
            }
            Self::Unknown => f.write_str("somebody else"),
        }
    }
}

/// Who has a UDP port in this thread's network namespace, on any address.
pub(super) fn of_udp_port(port: u16) -> Holder {
    let tables = ["udp", "udp6"].map(net);
    tables.iter().find_map(|table| udp_inode(table, port)).map_or(Holder::Unknown, of_inode)
}

/// Who has bound an abstract Unix socket in this thread's network namespace.
pub(super) fn of_abstract_socket(name: &str) -> Holder {
    unix_inode(&net("unix"), name).map_or(Holder::Unknown, of_inode)
}

/// A table of this thread's network namespace; `/proc/net` would be that of the process's first thread.
fn net(table: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default()
}

/// `sl local_address rem_address st queues timer retrnsmt uid timeout inode ...`, the port in hexadecimal.
fn udp_inode(table: &str, port: u16) -> Option<u64> {
    let ending = format!(":{port:04X}");
    let mut rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(1).is_some_and(|local| local.ends_with(&ending)))?.get(9)?.parse().ok()
}

/// `Num RefCount Protocol Flags Type St Inode Path`, an abstract path with `@` before it.
fn unix_inode(table: &str, name: &str) -> Option<u64> {
    let mut rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row.get(7).and_then(|path| path.strip_prefix('@')) == Some(name))?.get(6)?.parse().ok()
}

fn of_inode(inode: u64) -> Holder {
    let target = format!("socket:[{inode}]");
    let Ok(processes) = fs::read_dir("/proc") else { return Holder::Unknown };
    for process in processes.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(mut files) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = files.any(|file| {
            file.is_ok_and(|file| {
                fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == target.as_str())
            })
        });
        if has {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Holder::Process { id, name: name.trim().to_owned() };
        }
    }
    Holder::Kernel
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn rows_are_found_in_the_kernels_tables() {
        let udp = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             12345: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n";
        assert_eq!(udp_inode(udp, 8472), Some(4711));
        assert_eq!(udp_inode(udp, 4789), None);
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 815 @weft/tap/flannel.1\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 816\n";
        assert_eq!(unix_inode(unix, "weft/tap/flannel.1"), Some(815));
        assert_eq!(unix_inode(unix, "weft/tap/flannel.10"), None);
        assert_eq!(udp_inode("", 1), None);
    }

    #[test]
    fn our_own_socket_is_ours() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = of_udp_port(socket.local_addr().unwrap().port());
        let Holder::Process { id, name } = holder else { panic!("{holder:?}") };
        assert_eq!(id, std::process::id());
        assert!(!name.is_empty());
    }
}
