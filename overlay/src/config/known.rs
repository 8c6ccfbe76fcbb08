//! The flags that overlayd knows: those that do something, and those of flanneld that are refused.

use store::flags::{Flag, Kind};

pub(super) const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, help }
}

/// The flags that do something.
pub const FLAGS: &[Flag] = &[
    flag(
        "etcd-endpoints",
        Kind::Value,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "comma-separated URLs of the store's members",
    ),
    flag("etcd-prefix", Kind::Value, "/coreos.com/network", "key prefix in the store"),
    flag("etcd-keyfile", Kind::Value, "", "client TLS private key (PEM), with -etcd-certfile"),
    flag("etcd-certfile", Kind::Value, "", "client TLS certificate (PEM), with -etcd-keyfile"),
    flag("etcd-cafile", Kind::Value, "", "CA bundle (PEM) that signed the store's certificates"),
    flag("etcd-username", Kind::Value, "", "user name for HTTP basic authentication at the store"),
    flag("etcd-password", Kind::Value, "", "password for HTTP basic authentication at the store"),
    flag(
        "iface",
        Kind::List,
        "",
        "interface name or IPv4 address for traffic between hosts; repeatable, first match wins",
    ),
    flag(
        "iface-regex",
        Kind::List,
        "",
        "regular expression on interface addresses, then names; repeatable, tried after -iface",
    ),
    flag(
        "iface-can-reach",
        Kind::Value,
        "",
        "IPv4 address: use the interface the kernel would reach it through; tried last",
    ),
    flag("public-ip", Kind::Value, "", "IPv4 address under which other hosts reach this one"),
    flag("ip-masq", Kind::Bool, "false", "masquerade traffic that leaves the overlay"),
    flag("iptables-resync", Kind::Value, "5", "seconds between checks of the packet filter rules"),
    flag("iptables-forward-rules", Kind::Bool, "true", "accept the overlay's traffic in the FORWARD chain"),
    flag(
        "ip-masq-fully-random-disable",
        Kind::Bool,
        "false",
        "accepted; overlayd never masquerades with fully random ports",
    ),
    flag(
        "subnet-file",
        Kind::Value,
        "/run/flannel/subnet.env",
        "file that tells the container runtime its subnet and MTU",
    ),
    flag(
        "subnet-lease-renew-margin",
        Kind::Value,
        "60",
        "minutes before expiry at which the lease is renewed (1 to 1439)",
    ),
    flag("healthz-ip", Kind::Value, "0.0.0.0", "address of the health server"),
    flag("healthz-port", Kind::Value, "0", "TCP port of the health server; 0 is off"),
    flag(
        "datapath",
        Kind::Value,
        "",
        "what carries packets: kernel, rust or auto; default is the network config's Backend.Datapath, else auto",
    ),
    flag(
        "datapath-spin-us",
        Kind::Value,
        "50",
        "microseconds the rust data path may wait awake for the next packet (0 to 1000; 0: never)",
    ),
    flag("datapath-queues", Kind::Value, "1", "queues, and threads, of the rust data path (1 to 16)"),
    flag(
        "datapath-cpus",
        Kind::Value,
        "",
        "CPUs the rust data path's threads stay on, one for each queue, as 0,2",
    ),
    flag(
        "datapath-source-check",
        Kind::Bool,
        "true",
        "rust data path: accept packets only from known peers at their own underlay address",
    ),
    flag(
        "datapath-inject",
        Kind::Bool,
        "true",
        "rust data path: send TCP in large pieces past the host's OUTPUT rules, where the kernel can cut them (Linux 6.17)",
    ),
    flag(
        "status-socket",
        Kind::Value,
        "",
        "Unix socket that tells the data path's state; default is overlayd.sock beside -subnet-file; off is none",
    ),
    flag("log-level", Kind::Value, "info", "error, warn, info, debug or trace"),
    flag("log-format", Kind::Value, "text", "text or json"),
    flag("v", Kind::Value, "0", "flanneld's verbosity: 1 to 3 mean -log-level debug, more means trace"),
    flag("version", Kind::Bool, "false", "print the version on standard error and exit"),
];

/// Flags of flanneld that are refused, and what to do instead.
pub(super) const REFUSED: &[(&str, Kind, &str)] = &[
    ("kube-subnet-mgr", Kind::Bool, "leases are kept in the store only: remove it and use -etcd-endpoints"),
    ("kube-api-url", Kind::Value, "leases are kept in the store only: remove it"),
    ("kubeconfig-file", Kind::Value, "leases are kept in the store only: remove it"),
    ("kube-annotation-prefix", Kind::Value, "leases are kept in the store only: remove it"),
    (
        "net-config-path",
        Kind::Value,
        "the network config is read from the store: write it to <etcd-prefix>/config",
    ),
    ("set-node-network-unavailable", Kind::Bool, "no Kubernetes node is managed: remove it"),
    ("public-ipv6", Kind::Value, "the overlay is IPv4 only: remove it"),
    ("ip-blackhole-route", Kind::Bool, "remove it, or add the route by hand"),
    ("vmodule", Kind::Value, "use -log-level"),
    ("log_backtrace_at", Kind::Value, "use -log-level debug"),
];
