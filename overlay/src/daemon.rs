//! The daemon: puts the parts together, in flannel's order, and decides when to stop.
//!
//! External interface and public address; what the rust data path carried before; network config, waited for; device;
//! lease; the device's address; packet filter rules; `subnet.env`; status socket; peers; READY. Then one loop that
//! renews the lease, follows the other leases and puts right what changed under our feet.
//!
//! Nothing is torn down at exit: device, routes, rules, `subnet.env` and lease stay, so that a restart disturbs no
//! traffic. Departures from flannel v0.10: a lost lease is a failure (exit 1, flannel: 0), a `subnet.env` that cannot
//! be written is one too (flannel: a warning, and a container runtime without its subnet), and peers are programmed
//! before readiness is announced.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::seq::SliceRandom;
use sd_notify::NotifyState;
use store::client::{Client, ClientError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::Config;
use crate::datapath::DataPath;
use crate::datapath::status::server::{Status, StatusError};
use crate::file::write_atomically;
use crate::health::Health;
use crate::iface::{self, External, InterfaceError};
use crate::lease::{Keeper, LeaseError, Loss, Settings};
use crate::masq::Wanted;
use crate::net::DeviceError;
use crate::net::carrier::Carrier;
use crate::net::firewall::Firewall;
use crate::net::netlink::{Netlink, NetlinkError};
use crate::net::sysctl;
use crate::net::tap::Local;
use crate::probe::{self, Identity};
use crate::registry::{Complaint, Registry, RegistryError};
use crate::run::{self, Node};
use crate::types::Subnet;
use crate::wire::env::{Previous, SubnetEnv};
use crate::wire::lease::LeaseValue;
use crate::wire::netconf::{Backend, NetworkConfig};

const CONFIG_RETRY: Duration = Duration::from_secs(1);

/// Why the daemon stopped; all of these are exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No interface to use.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// The kernel refused something before there was a device.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The store's client cannot be set up.
    #[error("Failed to create SubnetManager: flag {flag}: {error}")]
    Store {
        /// The flag at fault.
        flag: &'static str,
        /// What is wrong.
        error: ClientError,
    },
    /// The network config is there and will never do.
    #[error(transparent)]
    Config(#[from] RegistryError),
    /// The device cannot be made or addressed.
    #[error("Error registering network: {0}")]
    Device(#[from] DeviceError),
    /// No lease to be had.
    #[error("Error registering network: {0}")]
    Lease(#[from] LeaseError),
    /// The lease was ours and is no longer.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// Packets are carried no more.
    #[error("{0}")]
    DataPath(&'static str),
    /// The health server cannot listen.
    #[error("flag -healthz-port: cannot listen on {address}: {error}")]
    Health {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// `subnet.env` cannot be written.
    #[error("flag -subnet-file: {}: {error}", path.display())]
    SubnetFile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The status server cannot listen.
    #[error("flag -status-socket: {0}")]
    Status(#[from] StatusError),
    /// Signals cannot be caught.
    #[error("signal handler: {0}")]
    Signal(std::io::Error),
}

/// Runs until SIGTERM or SIGINT, which is success, or until something fails.
///
/// # Errors
/// Whatever makes it impossible to go on. The text names the flag, key or device and what to do.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let mut stop = Stop::new().map_err(DaemonError::Signal)?;
    let outcome = tokio::select! {
        outcome = start(config) => outcome,
        name = stop.wait() => {
            info!(signal = name, "shutdownHandler sent cancel signal...");
            Ok(())
        }
    };
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if outcome.is_ok() {
        info!("Exiting cleanly...");
    }
    outcome
}

/// SIGTERM or SIGINT. Once one has come the process ends at once, so a second one has nothing to hurry.
struct Stop {
    term: Signal,
    int: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

#[allow(clippy::too_many_lines, reason = "the order of the steps is what there is to read")]
async fn start(config: Config) -> Result<(), DaemonError> {
    // Dropped, and with it every task, when the main loop ends or a signal cancels it.
    let mut tasks = JoinSet::new();
    let netlink = Netlink::open()?;
    let external = choose_external(&netlink, &config).await?;
    let public_ip = config.public_ip.unwrap_or(external.address);
    if config.public_ip.is_some() {
        info!("Using {public_ip} as external address");
    } else {
        info!("Defaulting external address to interface address ({public_ip})");
    }
    let local = Local {
        options: config.datapath.clone(),
        handover: config.subnet_file.with_file_name("overlayd.handover.json"),
    };
    let resumed = Carrier::resume(&netlink, &external, &local).await;
    let registry = Registry::new(client(&config)?, &config.prefix);
    let previous = previous(&config.subnet_file);
    let (ready, is_ready) = watch::channel(false);
    if let Some(address) = config.healthz {
        let health = Health::bind(address).await.map_err(|error| DaemonError::Health { address, error })?;
        tasks.spawn(health.serve(is_ready));
    }

    info!("reading {}/config from {}", registry.prefix(), config.endpoints.join(","));
    let network = wait_for_config(&registry).await?;
    info!(network = %network.network, "using network config");
    warn_of_overlaps(&netlink, &network, &external).await?;
    let Backend::Vxlan(vxlan) = &network.backend;
    let mut datapath = Carrier::open(netlink, vxlan, &external, local, rand::random(), resumed).await?;

    let settings = Settings {
        value: LeaseValue::vxlan(public_ip, datapath.mac()),
        mac: datapath.mac(),
        network: network.network,
        range: network.range,
        previous: previous.subnet,
        renew_margin: config.renew_margin,
        seed: rand::random(),
    };
    let mut keeper = Keeper::new(settings);
    let own = run::acquire(&mut keeper, &registry).await?;
    datapath.configure(own).await?;
    info!(device = datapath.device(), subnet = %own, mtu = %datapath.mtu(), mac = %datapath.mac(), "lease acquired, device ready");

    let wanted = Wanted {
        network: network.network,
        subnet: own,
        ip_masq: config.ip_masq,
        forward: config.forward_rules,
    };
    if let Some(firewall) = Firewall::find(wanted, previous.network, network.nftables) {
        tasks.spawn(firewall.keep(config.iptables_resync));
    }
    if sysctl::ipv4_forwarding() == Some(false) {
        warn!(
            "net.ipv4.ip_forward is 0: containers cannot reach the overlay until it is 1 (dockerd sets it, or `sysctl -w net.ipv4.ip_forward=1`)"
        );
    }
    let env =
        SubnetEnv { network: network.network, subnet: own, mtu: datapath.mtu(), ip_masq: config.ip_masq };
    write_atomically(&config.subnet_file, &env.render())
        .map_err(|error| DaemonError::SubnetFile { path: config.subnet_file.clone(), error })?;
    info!(file = %config.subnet_file.display(), "Wrote subnet file to {}", config.subnet_file.display());

    // Dropped with everything else, and its socket with it.
    let _status = match &config.status_socket {
        Some(path) => Some(Status::bind(path)?.serve(datapath.source())),
        None => None,
    };

    let (updates, received) = mpsc::channel(256);
    tasks.spawn(registry.clone().watch(updates));
    let (targets, mesh_targets) = watch::channel(None);
    let me = Identity { subnet: own, public_ip, hostname: sysctl::hostname(), network: network.network };
    tasks.spawn(probe::respond(me.clone()));
    tasks.spawn(probe::serve(registry.client().clone(), registry.prefix().to_owned(), me, mesh_targets));

    let (disturb, disturbed) = mpsc::channel(1);
    tasks.spawn(datapath.watch(disturb));

    let node = Node {
        registry,
        keeper,
        datapath,
        own,
        network: network.network,
        updates: received,
        targets,
        ready,
        disturbed,
    };
    Err(node.run().await)
}

async fn choose_external(netlink: &Netlink, config: &Config) -> Result<External, DaemonError> {
    let interfaces = netlink.interfaces().await?;
    let default = netlink.default_interface().await?;
    let reach = match config.interface.can_reach {
        Some(address) => netlink.interface_towards(address).await?,
        None => None,
    };
    let external = iface::select(&config.interface, &interfaces, default, reach)?;
    info!("Using interface with name {} and address {}", external.name, external.address);
    Ok(external)
}

fn client(config: &Config) -> Result<Client, DaemonError> {
    let mut endpoints = config.endpoints.clone();
    // As flannel's client: shuffled once, so that many hosts spread over the members, then sticky.
    endpoints.shuffle(&mut rand::rng());
    let (username, password) = config.login.clone().map(|l| (l.username, l.password)).unzip();
    let tls = config.tls.clone();
    let settings = store::client::Config { endpoints, tls, username, password, ..Default::default() };
    Client::new(settings).map_err(|error| {
        let flag = match &error {
            ClientError::Config { field: "tls.ca", .. } => "-etcd-cafile",
            ClientError::Config { field: "tls.cert", .. } => "-etcd-certfile",
            ClientError::Config { field: "tls.key", .. } => "-etcd-keyfile",
            ClientError::Config { field: "username" | "password", .. } => "-etcd-username",
            _ => "-etcd-endpoints",
        };
        DaemonError::Store { flag, error }
    })
}

fn previous(file: &Path) -> Previous {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            let previous = Previous::parse(&text);
            if previous.subnet.is_none() {
                warn!(file = %file.display(), "no previous subnet found in {}", file.display());
            }
            previous
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Previous::default(),
        Err(error) => {
            warn!(file = %file.display(), "{} cannot be read, the previous subnet is not known: {error}", file.display());
            Previous::default()
        }
    }
}

/// Tries once a second, as flannel does, but complains only when the reason changes or time goes on.
async fn wait_for_config(registry: &Registry) -> Result<NetworkConfig, DaemonError> {
    let mut waiting = Complaint::default();
    loop {
        match registry.network_config().await {
            Ok(config) => return Ok(config),
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => waiting.complain(&format!("Couldn't fetch network config: {error}")),
        }
        tokio::time::sleep(CONFIG_RETRY).await;
    }
}

/// Packets to addresses of the host's own networks would go into the tunnel, or the other way round.
async fn warn_of_overlaps(
    netlink: &Netlink,
    config: &NetworkConfig,
    external: &External,
) -> Result<(), DaemonError> {
    if config.network.contains(external.address) {
        warn!(interface = external.name, address = %external.address, "the external address lies inside the overlay network {}; choose another Network", config.network);
    }
    let inside = |ip: &&Ipv4Addr| config.network.contains(**ip);
    for interface in netlink.interfaces().await? {
        // Our device, and the container bridge of our subnet, belong there; which subnet is ours is not known yet.
        let expected = interface.name.starts_with("flannel.")
            || interface.name.starts_with("docker")
            || interface.name.starts_with("cni");
        if let Some(address) =
            interface.addresses.iter().find(inside).filter(|_| !expected && interface.index != external.index)
        {
            warn!(interface = interface.name, %address, "an address of this host lies inside the overlay network {}", config.network);
        }
    }
    Ok(())
}

/// The subnet and public address of a host, for the log.
pub(crate) fn describe(subnet: Subnet, public_ip: Ipv4Addr) -> String {
    format!("{subnet} at {public_ip}")
}
