//! overlayd's flags and environment, read and checked into a [`Config`].
//!
//! Every flag of flanneld v0.10 and of its successors is known: it is supported, or refused by name with what to do.
//! Nothing is ignored. Departures from flanneld: a wrong flag is a failure (flanneld exits 0), a value in the
//! environment that does not parse is an error (flanneld drops it), and so is a word that is no flag (`-ip-masq true`
//! silently ends flanneld's parsing there). Pure: arguments and environment come in as values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;
use store::client::TlsFiles;
use store::flags::{self, Flag, FlagError, Parsed};

mod datapath;
mod known;

pub use datapath::DatapathOptions;
pub use known::FLAGS;
use known::{REFUSED, flag};

/// The prefix of environment variables: `FLANNELD_ETCD_PREFIX` stands in for `-etcd-prefix`.
pub const ENV_PREFIX: &str = "FLANNELD";

/// Everything the daemon needs to know from its command line and environment.
#[derive(Clone)]
pub struct Config {
    /// URLs of the store's members, as given.
    pub endpoints: Vec<String>,
    /// TLS files for the store.
    pub tls: TlsFiles,
    /// Basic authentication at the store.
    pub login: Option<Login>,
    /// Key prefix, with a leading and without a trailing slash.
    pub prefix: String,
    /// How the external interface is chosen.
    pub interface: InterfaceChoice,
    /// The address to advertise instead of the interface's own.
    pub public_ip: Option<Ipv4Addr>,
    /// Whether to keep masquerade rules.
    pub ip_masq: bool,
    /// Whether to keep FORWARD accept rules.
    pub forward_rules: bool,
    /// Time between checks of the packet filter rules.
    pub iptables_resync: Duration,
    /// Where `subnet.env` goes.
    pub subnet_file: PathBuf,
    /// How long before expiry the lease is renewed.
    pub renew_margin: Duration,
    /// Where the health server listens, if it does.
    pub healthz: Option<SocketAddr>,
    /// How packets are carried.
    pub datapath: DatapathOptions,
    /// Where the status socket is, if there is one.
    pub status_socket: Option<PathBuf>,
    /// What is logged.
    pub log_level: tracing::Level,
    /// How it is logged.
    pub log_format: LogFormat,
}

/// Which interface carries the traffic between hosts.
#[derive(Debug, Clone, Default)]
pub struct InterfaceChoice {
    /// Names or IPv4 addresses, in order.
    pub names: Vec<String>,
    /// Tried after the names.
    pub regexes: Vec<Regex>,
    /// Tried last.
    pub can_reach: Option<Ipv4Addr>,
}

/// A user and password. Has no `Debug`, so that it cannot end up in a log.
#[derive(Clone)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password, may be empty.
    pub password: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line asks for.
pub enum Command {
    /// Run the daemon.
    Run(Box<Config>),
    /// Print the version.
    Version,
    /// Print the usage text.
    Help,
}

/// Why the command line or environment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Not understood at all; Go's words.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A flag of flanneld's that overlayd does not have.
    #[error("flag -{name} of flanneld is not supported by overlayd: {instead}")]
    Refused {
        /// The flag.
        name: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// A word after the flags.
    #[error(
        "unexpected argument {0:?}: all options are flags, and a boolean takes its value only as -flag=value"
    )]
    Argument(String),
    /// A value that cannot be.
    #[error("invalid value {value:?} for flag -{name}: {why}")]
    Value {
        /// The flag.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// flanneld's words for a margin outside 1 to 1439.
    #[error("Invalid subnet-lease-renew-margin option, out of acceptable range: {0} (1 to 1439 minutes)")]
    RenewMargin(u64),
    /// flanneld's words for an address that is none.
    #[error("invalid public IP address: {0} (flag -public-ip wants an IPv4 address)")]
    PublicIp(String),
    /// One of certificate and key without the other.
    #[error("flag -{given} needs -{missing} as well: a client certificate and its key come together")]
    TlsPair {
        /// What was given.
        given: &'static str,
        /// What is missing.
        missing: &'static str,
    },
}

/// The text that `-help` prints.
pub fn usage() -> String {
    flags::usage("overlayd", FLAGS)
}

/// Reads the command line (without the program's name) and the environment.
///
/// # Errors
/// The first thing that is wrong, naming the flag or variable and what to do about it.
pub fn parse(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Command, UsageError> {
    let known: Vec<Flag> = FLAGS
        .iter()
        .copied()
        .chain(REFUSED.iter().map(|(name, kind, _)| flag(name, *kind, "", "")))
        .collect();
    let parsed = match flags::parse(&known, ENV_PREFIX, args, env) {
        Err(FlagError::Help) => return Ok(Command::Help),
        other => other?,
    };
    if parsed.bool("version") {
        return Ok(Command::Version);
    }
    if let Some((name, _, instead)) = REFUSED.iter().find(|(name, ..)| parsed.given(name).is_some()) {
        return Err(UsageError::Refused { name, instead });
    }
    if let Some(word) = parsed.rest().first() {
        return Err(UsageError::Argument(word.clone()));
    }
    check(&parsed).map(|config| Command::Run(Box::new(config)))
}

fn check(parsed: &Parsed) -> Result<Config, UsageError> {
    let endpoints: Vec<String> =
        text(parsed, "etcd-endpoints").split(',').map(|s| s.trim().to_owned()).collect();
    // Refused here, before the start line logs the endpoints; the error leaves the password out as well.
    if let Some((_, host)) = endpoints.iter().find_map(|e| e.rsplit_once('@')) {
        return Err(value(
            "etcd-endpoints",
            &format!("...@{host}"),
            "credentials do not go into the URL: give -etcd-username and -etcd-password",
        ));
    }
    if let Some(bad) = endpoints.iter().find(|e| !(e.starts_with("http://") || e.starts_with("https://"))) {
        return Err(value(
            "etcd-endpoints",
            bad,
            "every endpoint is a URL that starts with http:// or https://",
        ));
    }
    let margin_min = number(parsed, "subnet-lease-renew-margin", u64::MAX)?;
    if !(1..=1439).contains(&margin_min) {
        return Err(UsageError::RenewMargin(margin_min));
    }
    let public_ip = parsed.value("public-ip");
    let public_ip =
        public_ip.map(|s| s.parse().map_err(|_| UsageError::PublicIp(s.to_owned()))).transpose()?;
    let resync_s = number(parsed, "iptables-resync", 86_400)?;
    if resync_s == 0 {
        return Err(value("iptables-resync", "0", "must be 1 to 86400 seconds"));
    }
    let (log_level, log_format) = logging(parsed)?;
    Ok(Config {
        endpoints,
        tls: tls(parsed)?,
        login: parsed.value("etcd-username").map(|username| Login {
            username: username.to_owned(),
            password: text(parsed, "etcd-password").to_owned(),
        }),
        prefix: format!("/{}", text(parsed, "etcd-prefix").trim_matches('/')),
        interface: interface(parsed)?,
        public_ip,
        ip_masq: parsed.bool("ip-masq"),
        forward_rules: parsed.bool("iptables-forward-rules"),
        iptables_resync: Duration::from_secs(resync_s),
        subnet_file: PathBuf::from(text(parsed, "subnet-file")),
        renew_margin: Duration::from_secs(margin_min * 60),
        healthz: healthz(parsed)?,
        datapath: datapath::options(parsed)?,
        status_socket: datapath::status_socket(parsed),
        log_level,
        log_format,
    })
}

fn text<'a>(parsed: &'a Parsed, name: &str) -> &'a str {
    parsed.value(name).unwrap_or_default()
}

fn value(name: &'static str, value: &str, why: &str) -> UsageError {
    UsageError::Value { name, value: value.to_owned(), why: why.to_owned() }
}

fn number(parsed: &Parsed, name: &'static str, max: u64) -> Result<u64, UsageError> {
    let given = text(parsed, name);
    match given.parse() {
        Ok(n) if n <= max => Ok(n),
        Ok(_) => Err(value(name, given, &format!("must be at most {max}"))),
        // Go's words, which flanneld's users know.
        Err(_) => Err(FlagError::Invalid { name: name.to_owned(), value: given.to_owned() }.into()),
    }
}

fn tls(parsed: &Parsed) -> Result<TlsFiles, UsageError> {
    let file = |name: &str| parsed.value(name).map(PathBuf::from);
    let files = TlsFiles { ca: file("etcd-cafile"), cert: file("etcd-certfile"), key: file("etcd-keyfile") };
    match (&files.cert, &files.key) {
        (Some(_), None) => Err(UsageError::TlsPair { given: "etcd-certfile", missing: "etcd-keyfile" }),
        (None, Some(_)) => Err(UsageError::TlsPair { given: "etcd-keyfile", missing: "etcd-certfile" }),
        _ => Ok(files),
    }
}

fn interface(parsed: &Parsed) -> Result<InterfaceChoice, UsageError> {
    let regex = |text: &str| {
        Regex::new(text).map_err(|e| value("iface-regex", text, &format!("not a regular expression: {e}")))
    };
    let can_reach = parsed.value("iface-can-reach");
    Ok(InterfaceChoice {
        names: parsed.values("iface").into_iter().map(str::to_owned).collect(),
        regexes: parsed.values("iface-regex").into_iter().map(regex).collect::<Result<_, _>>()?,
        can_reach: can_reach
            .map(|s| s.parse().map_err(|_| value("iface-can-reach", s, "must be an IPv4 address")))
            .transpose()?,
    })
}

fn healthz(parsed: &Parsed) -> Result<Option<SocketAddr>, UsageError> {
    let port = number(parsed, "healthz-port", u64::from(u16::MAX))?;
    let ip = text(parsed, "healthz-ip");
    let ip: IpAddr = ip.parse().map_err(|_| value("healthz-ip", ip, "must be an IP address"))?;
    Ok(u16::try_from(port).ok().filter(|p| *p > 0).map(|p| SocketAddr::new(ip, p)))
}

fn logging(parsed: &Parsed) -> Result<(tracing::Level, LogFormat), UsageError> {
    let level = text(parsed, "log-level");
    let level: tracing::Level =
        level.parse().map_err(|_| value("log-level", level, "must be error, warn, info, debug or trace"))?;
    let level = level.max(match number(parsed, "v", u64::MAX)? {
        0 => tracing::Level::ERROR,
        1..=3 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    });
    match text(parsed, "log-format") {
        "text" => Ok((level, LogFormat::Text)),
        "json" => Ok((level, LogFormat::Json)),
        other => Err(value("log-format", other, "must be text or json")),
    }
}

/// One line for the log at start: every setting, without the password.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        write!(f, "etcd-endpoints={}", self.endpoints.join(","))?;
        write!(f, " etcd-prefix={} etcd-cafile={}", self.prefix, file(&self.tls.ca))?;
        write!(f, " etcd-certfile={} etcd-keyfile={}", file(&self.tls.cert), file(&self.tls.key))?;
        write!(f, " etcd-username={}", self.login.as_ref().map_or("", |l| &l.username))?;
        write!(f, " iface={}", self.interface.names.join(","))?;
        let regexes: Vec<&str> = self.interface.regexes.iter().map(Regex::as_str).collect();
        write!(f, " iface-regex={}", regexes.join(","))?;
        let ip = |ip: Option<Ipv4Addr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        write!(f, " iface-can-reach={}", ip(self.interface.can_reach))?;
        write!(f, " public-ip={} ip-masq={}", ip(self.public_ip), self.ip_masq)?;
        write!(f, " iptables-forward-rules={}", self.forward_rules)?;
        write!(f, " iptables-resync={}s", self.iptables_resync.as_secs())?;
        write!(f, " subnet-file={}", self.subnet_file.display())?;
        write!(f, " subnet-lease-renew-margin={}m", self.renew_margin.as_secs() / 60)?;
        write!(f, " healthz={}", self.healthz.map_or("off".to_owned(), |a| a.to_string()))?;
        write!(f, " {}", self.datapath)?;
        write!(
            f,
            " status-socket={}",
            self.status_socket.as_ref().map_or("off".into(), |p| p.to_string_lossy())
        )?;
        write!(f, " log-level={}", self.log_level)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "config_tests.rs"]
mod tests;
