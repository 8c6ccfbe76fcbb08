//! What the demo builds, as values: hosts, addresses, and the command lines of the tutorial.
//!
//! Nothing here touches the system; [`super::stage`] turns it into namespaces and processes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Datapath;
use super::link::Cidr;

/// The network configuration the tutorial writes, byte for byte.
pub(crate) const NETWORK_CONFIG: &str = r#"{ "Network": "172.17.0.0/16", "Backend": {"Type": "vxlan"}}"#;
/// The key it goes to.
pub(crate) const CONFIG_KEY: &str = "/coreos.com/network/config";
/// The bridge of the fabric; the hosts' gateway is its address.
pub(crate) const FABRIC_BRIDGE: &str = "fabric0";
/// Address of the fabric's bridge, where the hosts' default routes point.
pub(crate) const GATEWAY: Cidr = Cidr { address: Ipv4Addr::new(192, 168, 31, 1), prefix_len: 24 };
/// The uplink of a host and of a container.
pub(crate) const UPLINK: &str = "eth0";
/// The bridge of a host's containers, by the name docker gives it.
pub(crate) const DOCKER_BRIDGE: &str = "docker0";

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// One machine of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// Its name; its namespace's too.
    pub(crate) name: &'static str,
    /// The name of its store member.
    pub(crate) member: &'static str,
    /// The name of its container.
    pub(crate) container: &'static str,
    /// Its address on the fabric.
    pub(crate) address: Ipv4Addr,
}

impl Host {
    /// The address with the fabric's prefix length.
    pub(crate) fn cidr(&self) -> Cidr {
        Cidr { address: self.address, prefix_len: GATEWAY.prefix_len }
    }

    /// Where clients reach the store member.
    pub(crate) fn client_url(&self) -> String {
        format!("https://{}:{CLIENT_PORT}", self.address)
    }

    fn peer_url(&self) -> String {
        format!("https://{}:{PEER_PORT}", self.address)
    }
}

/// The tutorial's three machines. It runs flannel on the last two; the demo runs overlayd on all three.
pub(crate) const HOSTS: [Host; 3] = [
    Host {
        name: "host1",
        member: "etcd01",
        container: "container1",
        address: Ipv4Addr::new(192, 168, 31, 63),
    },
    Host {
        name: "host2",
        member: "etcd02",
        container: "container2",
        address: Ipv4Addr::new(192, 168, 31, 65),
    },
    Host {
        name: "host3",
        member: "etcd03",
        container: "container3",
        address: Ipv4Addr::new(192, 168, 31, 66),
    },
];

/// The client URLs of all members.
pub(crate) fn endpoints() -> Vec<String> {
    HOSTS.iter().map(Host::client_url).collect()
}

/// Where the demo's files are; all below one directory that goes at the end.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The files below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The directory of the certificates.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.root.join("ssl")
    }

    /// The CA's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.certificates().join("ca.pem")
    }

    /// The certificate of `name`: `server` for the stores, `overlay` for overlayd, `admin` for the operator.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.certificates().join(format!("{name}.pem"))
    }

    /// Its key.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.certificates().join(format!("{name}-key.pem"))
    }

    /// The log of the program called `name`.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The directory of the logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Where the program called `name` reports that it is ready.
    pub(crate) fn notify(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.sock"))
    }

    /// The data directory of a host's store.
    pub(crate) fn data(&self, host: &Host) -> PathBuf {
        self.root.join(host.name).join("default.etcd")
    }

    /// What overlayd writes for docker.
    pub(crate) fn subnet_env(&self, host: &Host) -> PathBuf {
        self.root.join(host.name).join("flannel").join("subnet.env")
    }
}

/// The store's command line on `host`: the tutorial's unit file with its variables filled in, and the client
/// certificates asked for as well.
pub(crate) fn store_args(host: &Host, paths: &Paths) -> Vec<String> {
    let cluster: Vec<String> =
        HOSTS.iter().map(|host| format!("{}={}", host.member, host.peer_url())).collect();
    let (ca, certificate, key) = (paths.ca(), paths.certificate("server"), paths.key("server"));
    vec![
        format!("--name={}", host.member),
        format!("--data-dir={}", paths.data(host).display()),
        format!("--listen-peer-urls={}", host.peer_url()),
        format!("--listen-client-urls={},http://127.0.0.1:{CLIENT_PORT}", host.client_url()),
        format!("--advertise-client-urls={}", host.client_url()),
        format!("--initial-advertise-peer-urls={}", host.peer_url()),
        format!("--initial-cluster={}", cluster.join(",")),
        "--initial-cluster-token=etcd-cluster".to_owned(),
        "--initial-cluster-state=new".to_owned(),
        format!("--cert-file={}", certificate.display()),
        format!("--key-file={}", key.display()),
        format!("--peer-cert-file={}", certificate.display()),
        format!("--peer-key-file={}", key.display()),
        format!("--trusted-ca-file={}", ca.display()),
        format!("--peer-trusted-ca-file={}", ca.display()),
        "--client-cert-auth".to_owned(),
        "--peer-client-cert-auth".to_owned(),
    ]
}

/// overlayd's command line on `host`: the tutorial's, with files below the demo's directory and a client
/// certificate of its own in place of the server's.
pub(crate) fn overlayd_args(host: &Host, paths: &Paths, ip_masq: bool, datapath: Datapath) -> Vec<String> {
    let mut args = vec![
        format!("--etcd-endpoints={}", endpoints().join(",")),
        format!("-etcd-cafile={}", paths.ca().display()),
        format!("-etcd-certfile={}", paths.certificate("overlay").display()),
        format!("-etcd-keyfile={}", paths.key("overlay").display()),
        format!("-subnet-file={}", paths.subnet_env(host).display()),
    ];
    // The command line is the tutorial's as long as nobody asks for more.
    if datapath != Datapath::Auto {
        args.push(format!("-datapath={}", datapath.as_str()));
    }
    if ip_masq {
        args.insert(0, "--ip-masq".to_owned());
    }
    args
}

/// What the demo takes from a `subnet.env`: the docker bridge's address and MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Address and prefix of the bridge: the first of the host's subnet.
    pub(crate) bridge: Cidr,
    /// The longest packet that fits into the overlay, in bytes.
    pub(crate) mtu: u32,
}

impl Attachment {
    /// Reads the text of a `subnet.env`.
    ///
    /// # Errors
    /// When `FLANNEL_SUBNET` or `FLANNEL_MTU` is missing or cannot be read.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let variable = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.with_context(|| format!("there is no {name} in it"))
        };
        let bridge: Cidr = variable("FLANNEL_SUBNET")?.parse().context("FLANNEL_SUBNET")?;
        ensure!(bridge.prefix_len <= 30, "FLANNEL_SUBNET={bridge} has no room for a container");
        let mtu = variable("FLANNEL_MTU")?;
        let mtu = mtu.parse().with_context(|| format!("FLANNEL_MTU={mtu} is no number"))?;
        Ok(Self { bridge, mtu })
    }

    /// The address of the host's first container: the one after the bridge's.
    pub(crate) fn container(&self) -> Cidr {
        let address = Ipv4Addr::from_bits(self.bridge.address.to_bits().wrapping_add(1));
        Cidr { address, ..self.bridge }
    }

    /// The payload of the longest echo request that needs no fragments: less 20 bytes of IPv4 header, 8 of ICMP.
    pub(crate) fn full_echo_len(&self) -> usize {
        usize::try_from(self.mtu.saturating_sub(28)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn the_store_gets_the_tutorials_flags() {
        let args = store_args(&HOSTS[1], &Paths::new(Path::new("/d"))).join(" ");
        for flag in [
            "--name=etcd02",
            "--data-dir=/d/host2/default.etcd",
            "--listen-peer-urls=https://192.168.31.65:2380",
            "--listen-client-urls=https://192.168.31.65:2379,http://127.0.0.1:2379",
            "--initial-cluster=etcd01=https://192.168.31.63:2380,etcd02=https://192.168.31.65:2380,\
             etcd03=https://192.168.31.66:2380",
            "--peer-trusted-ca-file=/d/ssl/ca.pem",
        ] {
            assert!(args.split(' ').any(|arg| arg == flag), "{flag} is not in {args}");
        }
    }

    #[test]
    fn overlayd_masquerades_only_when_told() {
        let paths = Paths::new(Path::new("/d"));
        assert_eq!(overlayd_args(&HOSTS[0], &paths, true, Datapath::Auto)[0], "--ip-masq");
        assert!(
            !overlayd_args(&HOSTS[0], &paths, false, Datapath::Auto).iter().any(|arg| arg.contains("masq"))
        );
    }

    #[test]
    fn a_container_sits_behind_its_bridge() {
        let text = "FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET=172.17.71.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let attachment = Attachment::parse(text).unwrap();
        assert_eq!(attachment.bridge.to_string(), "172.17.71.1/24");
        assert_eq!(attachment.container().to_string(), "172.17.71.2/24");
        assert_eq!(attachment.full_echo_len(), 1422);
    }

    #[test]
    fn a_broken_subnet_env_is_named_by_its_variable() {
        for (text, at_fault) in [
            ("", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=172.17.71.1\nFLANNEL_MTU=1450\n", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=172.17.71.1/31\nFLANNEL_MTU=1450\n", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=172.17.71.1/24\n", "FLANNEL_MTU"),
            ("FLANNEL_SUBNET=172.17.71.1/24\nFLANNEL_MTU=big\n", "FLANNEL_MTU"),
        ] {
            let err = format!("{:#}", Attachment::parse(text).unwrap_err());
            assert!(err.contains(at_fault), "{text:?}: {err}");
        }
    }
}
