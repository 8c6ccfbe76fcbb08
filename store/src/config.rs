//! From etcd's flags and `ETCD_*` variables to a checked [`Config`].
//!
//! Nothing is opened or bound here. Texts of errors that etcd also gives are etcd's (section 14 of its API);
//! a flag that is not supported is refused by name, a flag that has nothing to act on is noted in the log.

mod duration;
mod table;
mod url;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

pub use self::url::{Scheme, Url, UrlError};
use crate::flags::{self, FlagError, Parsed};

/// Why the store cannot start with what it was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The command line or environment cannot be read.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// A flag of etcd's that this store does not support.
    #[error("--{name}: not supported by this store: {hint}")]
    Unsupported {
        /// The flag.
        name: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// A stray word.
    #[error("'{0}' is not a valid flag")]
    Stray(String),
    /// A value that cannot be used.
    #[error("--{name}: {why}")]
    Value {
        /// The flag.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Conflict(String),
}

impl ConfigError {
    /// The exit code: 2 for a command line that cannot be read, 1 for values that do not work, as etcd.
    pub fn exit_code(&self) -> u8 {
        match self {
            ConfigError::Flag(_) | ConfigError::Unsupported { .. } => 2,
            ConfigError::Value { .. } | ConfigError::Conflict(_) | ConfigError::Stray(_) => 1,
        }
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Run with this.
    Run(Box<Config>),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// TLS files of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Who signs the other side's certificates, PEM.
    pub trusted_ca: Option<PathBuf>,
    /// Whether clients must show a certificate.
    pub cert_auth: bool,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// This member's name.
    pub name: String,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the raft log is kept if not below `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// Where to listen for members.
    pub listen_peer: Vec<Url>,
    /// Where to listen for clients.
    pub listen_client: Vec<Url>,
    /// Where members find this one; sorted.
    pub advertise_peer: Vec<Url>,
    /// Where clients find this one; sorted.
    pub advertise_client: Vec<Url>,
    /// The members of a new cluster: name and peer URLs.
    pub initial_cluster: BTreeMap<String, Vec<Url>>,
    /// Goes into the ids of a new cluster.
    pub token: String,
    /// Whether the cluster exists already.
    pub existing: bool,
    /// Time between a leader's heartbeats; also raft's tick.
    pub heartbeat: Duration,
    /// Time without a leader before an election.
    pub election: Duration,
    /// Applied entries between compactions of the log.
    pub snapshot_count: u64,
    /// How often members compare their states; `None` for never.
    pub check_period: Option<Duration>,
    /// TLS towards clients.
    pub client_tls: Tls,
    /// TLS between members.
    pub peer_tls: Tls,
    /// A filter of `tracing`, such as `info` or `debug`.
    pub log_level: String,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Log to standard output and not to standard error.
    pub log_stdout: bool,
    /// What to log about the configuration once the log works.
    pub notes: Vec<Note>,
}

/// A remark on the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// For information.
    Info(String),
    /// Someone should look.
    Warn(String),
}

/// The usage text.
pub fn usage() -> String {
    flags::usage("store", &table::flags())
}

impl Config {
    /// Reads the command line (without the program's name) and the environment.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(args: &[String], env: &BTreeMap<String, String>) -> Result<Asked, ConfigError> {
        let (args, mut notes) = table::without_ignored(args);
        let flags = table::flags();
        let parsed = match flags::parse(&flags, "ETCD", &args, &|name| env.get(name).cloned()) {
            Ok(parsed) => parsed,
            Err(FlagError::Help) => return Ok(Asked::Help),
            Err(error) => return Err(error.into()),
        };
        if parsed.bool("version") {
            return Ok(Asked::Version);
        }
        if let Some(stray) = parsed.rest().first() {
            return Err(ConfigError::Stray(stray.clone()));
        }
        notes.extend(environment_notes(&flags, &parsed, env));
        notes.extend(table::check_support(&parsed)?);
        Config::from_parsed(&parsed, notes).map(|config| Asked::Run(Box::new(config)))
    }

    fn from_parsed(parsed: &Parsed, mut notes: Vec<Note>) -> Result<Config, ConfigError> {
        let text = |name: &str| parsed.value(name).unwrap_or_default().to_owned();
        let path = |name: &str| parsed.value(name).map(PathBuf::from);
        let name = text("name");
        let listen_peer = listen_urls(parsed, "listen-peer-urls")?;
        let listen_client = listen_urls(parsed, "listen-client-urls")?;
        let advertise_peer = urls(parsed, "initial-advertise-peer-urls")?;
        if parsed.given("listen-client-urls").is_some() && parsed.given("advertise-client-urls").is_none() {
            return Err(ConfigError::Conflict(
                "--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned(),
            ));
        }
        let advertise_client = urls(parsed, "advertise-client-urls")?;
        let heartbeat = millis(parsed, "heartbeat-interval")?;
        let election = millis(parsed, "election-timeout")?;
        check_timing(heartbeat, election)?;
        let initial_cluster = match parsed.value("initial-cluster") {
            Some(text) => parse_cluster(text)?,
            None => BTreeMap::from([(name.clone(), advertise_peer.clone())]),
        };
        let existing = match text("initial-cluster-state").as_str() {
            "new" => false,
            "existing" => true,
            other => {
                return Err(value(
                    "initial-cluster-state",
                    format!("\"{other}\" is neither new nor existing"),
                ));
            }
        };
        let client_tls =
            tls(parsed, ["cert-file", "key-file", "trusted-ca-file", "client-cert-auth", "ca-file"])?;
        let peer_tls = tls(
            parsed,
            [
                "peer-cert-file",
                "peer-key-file",
                "peer-trusted-ca-file",
                "peer-client-cert-auth",
                "peer-ca-file",
            ],
        )?;
        check_scheme(&listen_client, &client_tls, "client", "--cert-file, --key-file", &mut notes)?;
        check_scheme(&listen_peer, &peer_tls, "peer", "--peer-cert-file, --peer-key-file", &mut notes)?;
        check_peer_ca(&listen_peer, &initial_cluster, &peer_tls)?;
        let log_format = match text("log-format").as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => return Err(value("log-format", format!("\"{other}\" is neither text nor json"))),
        };
        let log_stdout = match text("log-output").as_str() {
            "default" | "stderr" => false,
            "stdout" => true,
            other => {
                return Err(value("log-output", format!("\"{other}\" is none of default, stderr, stdout")));
            }
        };
        let snapshot_count = number(parsed, "snapshot-count")?;
        if snapshot_count == 0 {
            return Err(value("snapshot-count", "must be at least 1".to_owned()));
        }
        Ok(Config {
            data_dir: path("data-dir").unwrap_or_else(|| PathBuf::from(format!("{name}.etcd"))),
            name,
            wal_dir: path("wal-dir"),
            listen_peer,
            listen_client,
            advertise_peer,
            advertise_client,
            initial_cluster,
            token: text("initial-cluster-token"),
            existing,
            heartbeat,
            election,
            snapshot_count,
            check_period: Some(duration(parsed, "experimental-corrupt-check-time")?)
                .filter(|period| !period.is_zero()),
            client_tls,
            peer_tls,
            log_level: if parsed.bool("debug") { "debug".to_owned() } else { text("log-level") },
            log_format,
            log_stdout,
            notes,
        })
    }

    /// Checks what a first start needs: this member's place in the initial cluster.
    ///
    /// # Errors
    /// The text of etcd for what does not fit.
    pub fn check_bootstrap(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for url in self.initial_cluster.values().flatten() {
            if !seen.insert(url.text()) {
                let cluster: Vec<String> = self
                    .initial_cluster
                    .iter()
                    .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
                    .collect();
                return Err(ConfigError::Conflict(format!(
                    "initial cluster {} has duplicate url",
                    cluster.join(",")
                )));
            }
        }
        let Some(mine) = self.initial_cluster.get(&self.name) else {
            return Err(ConfigError::Conflict(format!(
                "couldn't find local name \"{}\" in the initial cluster configuration; --name must be one of the \
                 names in --initial-cluster",
                self.name
            )));
        };
        if *mine != self.advertise_peer {
            let wanted: Vec<String> =
                self.advertise_peer.iter().map(|url| format!("{}={url}", self.name)).collect();
            let advertised: Vec<&str> = self.advertise_peer.iter().map(Url::text).collect();
            return Err(ConfigError::Conflict(format!(
                "--initial-cluster must include {} given --initial-advertise-peer-urls={} (forgot to set \
                 --initial-advertise-peer-urls flag?)",
                wanted.join(","),
                advertised.join(",")
            )));
        }
        Ok(())
    }
}

fn value(name: &'static str, why: String) -> ConfigError {
    ConfigError::Value { name, why }
}

fn urls(parsed: &Parsed, name: &'static str) -> Result<Vec<Url>, ConfigError> {
    let mut urls = Vec::new();
    for text in parsed.value(name).unwrap_or_default().split(',') {
        urls.push(Url::parse(text.trim()).map_err(|error| value(name, error.to_string()))?);
    }
    urls.sort_by(|a, b| a.text().cmp(b.text()));
    Ok(urls)
}

fn listen_urls(parsed: &Parsed, name: &'static str) -> Result<Vec<Url>, ConfigError> {
    let urls = urls(parsed, name)?;
    for url in &urls {
        if url.listen_addrs().is_none() {
            return Err(value(name, format!("expected IP in URL for binding ({url})")));
        }
    }
    Ok(urls)
}

fn number(parsed: &Parsed, name: &'static str) -> Result<u64, ConfigError> {
    let text = parsed.value(name).unwrap_or_default();
    text.parse().map_err(|_| FlagError::Invalid { name: name.to_owned(), value: text.to_owned() }.into())
}

fn millis(parsed: &Parsed, name: &'static str) -> Result<Duration, ConfigError> {
    number(parsed, name).map(Duration::from_millis)
}

fn duration(parsed: &Parsed, name: &'static str) -> Result<Duration, ConfigError> {
    let text = parsed.value(name).unwrap_or_default();
    duration::parse(text)
        .ok_or_else(|| FlagError::Invalid { name: name.to_owned(), value: text.to_owned() }.into())
}

fn check_timing(heartbeat: Duration, election: Duration) -> Result<(), ConfigError> {
    let (heartbeat_ms, election_ms) = (heartbeat.as_millis(), election.as_millis());
    if heartbeat_ms == 0 {
        return Err(value("heartbeat-interval", "must be at least 1 ms".to_owned()));
    }
    if 5 * heartbeat_ms > election_ms {
        return Err(ConfigError::Conflict(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_ms}ms]"
        )));
    }
    if election_ms > 50_000 {
        return Err(ConfigError::Conflict(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than 50000ms"
        )));
    }
    Ok(())
}

fn parse_cluster(text: &str) -> Result<BTreeMap<String, Vec<Url>>, ConfigError> {
    let mut cluster: BTreeMap<String, Vec<Url>> = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let Some((name, url)) =
            part.split_once('=').filter(|(name, url)| !name.is_empty() && !url.is_empty())
        else {
            return Err(value("initial-cluster", format!("\"{part}\" does not have the form name=url")));
        };
        let url = Url::parse(url).map_err(|error| value("initial-cluster", error.to_string()))?;
        cluster.entry(name.to_owned()).or_default().push(url);
    }
    for urls in cluster.values_mut() {
        urls.sort_by(|a, b| a.text().cmp(b.text()));
    }
    Ok(cluster)
}

fn tls(parsed: &Parsed, [cert, key, ca, auth, old_ca]: [&'static str; 5]) -> Result<Tls, ConfigError> {
    let path = |name: &str| parsed.value(name).map(PathBuf::from);
    let tls = Tls {
        cert: path(cert),
        key: path(key),
        trusted_ca: path(ca).or_else(|| path(old_ca)),
        cert_auth: parsed.bool(auth) || parsed.given(old_ca).is_some(),
    };
    for (given, name, missing) in [(&tls.cert, cert, key), (&tls.key, key, cert)] {
        let other = if name == cert { &tls.key } else { &tls.cert };
        if given.is_some() && other.is_none() {
            return Err(ConfigError::Conflict(format!(
                "--{name} is given without --{missing}; both are needed"
            )));
        }
    }
    if tls.cert_auth && tls.trusted_ca.is_none() {
        return Err(ConfigError::Conflict(format!("--{auth} needs --{ca} to verify certificates against")));
    }
    Ok(tls)
}

fn check_scheme(
    listen: &[Url],
    tls: &Tls,
    side: &str,
    flags: &str,
    notes: &mut Vec<Note>,
) -> Result<(), ConfigError> {
    for url in listen {
        match (url.scheme(), &tls.cert) {
            (Scheme::Https, None) => {
                return Err(ConfigError::Conflict(format!(
                    "TLS key/cert ({flags}) must be provided for {side} url {url} with HTTPs scheme"
                )));
            }
            (Scheme::Http, Some(_)) => notes.push(Note::Warn(format!(
                "The scheme of {side} url {url} is HTTP while {side} key/cert files are presented. Ignored key/cert \
                 files."
            ))),
            _ => {}
        }
    }
    Ok(())
}

/// Members always verify each other under TLS, and only against a CA that was named.
fn check_peer_ca(listen: &[Url], cluster: &BTreeMap<String, Vec<Url>>, tls: &Tls) -> Result<(), ConfigError> {
    let https = listen.iter().chain(cluster.values().flatten()).find(|url| url.scheme() == Scheme::Https);
    match (https, &tls.trusted_ca) {
        (Some(url), None) => Err(ConfigError::Conflict(format!(
            "--peer-trusted-ca-file must be provided for peer url {url}: members verify each other's certificates"
        ))),
        _ => Ok(()),
    }
}

fn environment_notes(flags: &[flags::Flag], parsed: &Parsed, env: &BTreeMap<String, String>) -> Vec<Note> {
    let mut notes = Vec::new();
    for (name, value) in env.iter().filter(|(name, _)| name.starts_with("ETCD_")) {
        let flag = flags.iter().find(|flag| flag.variable("ETCD") == **name);
        notes.push(match flag {
            None => Note::Warn(format!("unrecognized environment variable {name}={value}")),
            Some(_) if parsed.shadowed().contains(name) => Note::Info(format!(
                "recognized environment variable {name}, but unused: shadowed by corresponding flag"
            )),
            Some(_) => Note::Info(format!("recognized and used environment variable {name}={value}")),
        });
    }
    notes
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
