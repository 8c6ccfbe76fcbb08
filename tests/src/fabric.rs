//! Hosts on one underlay, and containers behind a bridge on them; all of it network namespaces.
//!
//! ```text
//!   fabric namespace:  br0 192.168.31.1/24
//!                     /         |          \            veth pairs
//!   host namespaces: eth0 .63  eth0 .65   eth0 .66      default route via .1
//!                               |          |
//!                            docker0    docker0         bridge, the overlay subnet's first address
//!                               |          |
//!   container namespaces:     eth0       eth0           default route via docker0
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ns::Namespace;
use crate::wait::wait_for;

/// The underlay's router, which is the bridge itself.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 31, 1);

/// The three hosts of the tutorial.
pub const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 31, 63), Ipv4Addr::new(192, 168, 31, 65), Ipv4Addr::new(192, 168, 31, 66)];

/// An underlay with hosts on it.
#[derive(Debug)]
pub struct Fabric {
    /// The hosts, in the order of the addresses given.
    pub hosts: Vec<Host>,
    /// Where the bridge is; also "the world outside" that masqueraded traffic reaches.
    pub outside: Namespace,
}

/// One host on the underlay.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Namespace,
    /// Address of its `eth0`.
    pub address: Ipv4Addr,
    /// The other end of that, at the bridge outside.
    pub port: String,
}

/// A container: a namespace behind a host's `docker0`.
#[derive(Debug)]
pub struct Container {
    /// Its namespace.
    pub ns: Namespace,
    /// Address of its `eth0`.
    pub address: Ipv4Addr,
}

impl Fabric {
    /// Builds the underlay with one host per address, MTU 1500.
    ///
    /// # Errors
    /// When not root, or a device cannot be made.
    pub fn new(addresses: &[Ipv4Addr]) -> Result<Self> {
        Self::with_mtu(addresses, 1500)
    }

    /// The same with an MTU of `mtu` bytes on every device of the underlay.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_mtu(addresses: &[Ipv4Addr], mtu: u32) -> Result<Self> {
        let outside = Namespace::new("fabric")?;
        outside.ip(&format!("link add br0 mtu {mtu} type bridge forward_delay 0"))?;
        outside.ip(&format!("address add {ROUTER}/24 dev br0"))?;
        outside.ip("link set br0 up")?;
        let mut hosts = Vec::new();
        for &address in addresses {
            let last = address.octets()[3];
            let ns = Namespace::new(&format!("host{last}"))?;
            let port = format!("host{last}");
            outside.ip(&format!(
                "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
                ns.name()
            ))?;
            outside.ip(&format!("link set {port} master br0 up"))?;
            ns.ip(&format!("address add {address}/24 dev eth0"))?;
            ns.ip("link set eth0 up")?;
            ns.ip(&format!("route add default via {ROUTER}"))?;
            hosts.push(Host { ns, address, port });
        }
        Ok(Self { hosts, outside })
    }

    /// The tutorial's three hosts.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn tutorial() -> Result<Self> {
        Self::new(&HOSTS)
    }

    /// Pulls the host's cable out, or puts it back: packets vanish, nobody is told.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn set_cable(&self, host: usize, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.outside.ip(&format!("link set {} {state}", self.hosts[host].port))?;
        Ok(())
    }
}

impl Host {
    /// Makes `docker0` with the first address of the subnet, as dockerd does with `--bip` and `--mtu`.
    ///
    /// # Errors
    /// When `ip` fails or forwarding cannot be turned on.
    pub fn add_docker0(&self, bip: &str, mtu: u32) -> Result<()> {
        self.ns.ip(&format!("link add docker0 mtu {mtu} type bridge forward_delay 0"))?;
        self.ns.ip(&format!("address add {bip} broadcast + dev docker0"))?;
        self.ns.ip("link set docker0 up")?;
        self.ns.sysctl("net/ipv4/ip_forward", "1")
    }

    /// Attaches a container to `docker0` (see [`Self::add_docker0`]) at the address after the bridge's.
    ///
    /// # Errors
    /// When `ip` fails or `bip` is not `a.b.c.d/len`.
    pub fn add_container(&self, label: &str, bip: &str, mtu: u32) -> Result<Container> {
        let (gateway, length) =
            bip.split_once('/').with_context(|| format!("{bip}: not an address/length"))?;
        let gateway: Ipv4Addr = gateway.parse()?;
        let address = Ipv4Addr::from(u32::from(gateway) + 1);
        let ns = Namespace::new(label)?;
        let veth = format!("veth{}", address.octets()[3]);
        self.ns.ip(&format!(
            "link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            ns.name()
        ))?;
        self.ns.ip(&format!("link set {veth} master docker0 up"))?;
        ns.ip(&format!("address add {address}/{length} dev eth0"))?;
        ns.ip("link set eth0 up")?;
        ns.ip(&format!("route add default via {gateway}"))?;
        Ok(Container { ns, address })
    }
}

/// Pings `to` from inside `from`: three echoes, the DF bit set, all of which must be answered.
///
/// # Errors
/// When an echo is lost: `ping`'s output.
pub fn ping(from: &Namespace, to: impl Into<IpAddr>, payload_bytes: u32) -> Result<()> {
    let to = to.into();
    let args = format!("-n -M do -c 3 -i 0.05 -W 2 -s {payload_bytes} {to}");
    let out = from.run("ping", &args)?;
    let text = out.ok()?;
    ensure!(text.contains(" 0% packet loss"), "{out}");
    Ok(())
}

/// Sends 1 MiB over TCP from `client` to a server inside `server` at `address`, which sends its length back.
/// Returns whom the server saw.
///
/// # Errors
/// When the connection or the transfer fails within 10 s.
pub fn tcp_exchange(client: &Namespace, server: &Namespace, address: Ipv4Addr) -> Result<IpAddr> {
    const SIZE: usize = 1 << 20;
    let limit = Duration::from_secs(10);
    let listener = server.enter(|| TcpListener::bind((address, 0)))??;
    listener.set_nonblocking(true)?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || -> Result<IpAddr> {
            let (mut stream, peer) = wait_for("a TCP connection", limit, || Ok(listener.accept()?))?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(limit))?;
            let mut got = vec![0_u8; SIZE];
            stream.read_exact(&mut got).context("reading on the server")?;
            ensure!(got.iter().all(|&b| b == 0x5a), "the bytes arrived changed");
            stream.write_all(&u32::try_from(got.len())?.to_be_bytes())?;
            Ok(peer.ip())
        });
        let answer = client.enter(|| -> Result<u32> {
            let mut stream = TcpStream::connect_timeout(&target, limit)
                .with_context(|| format!("connecting to {target}"))?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.write_all(&vec![0x5a; SIZE]).context("sending")?;
            let mut length = [0_u8; 4];
            stream.read_exact(&mut length).context("reading the answer")?;
            Ok(u32::from_be_bytes(length))
        })?;
        let seen = serving.join().map_err(|_| anyhow::anyhow!("the TCP server panicked"))?;
        let answer = answer.with_context(|| format!("TCP to {target}"))?;
        ensure!(usize::try_from(answer)? == SIZE, "the server counted {answer} bytes of {SIZE}");
        seen
    })
}
