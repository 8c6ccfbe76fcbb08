//! The certificates of a whole cluster by the tutorial's table, made at once.
//!
//! | name | for | usable as |
//! |---|---|---|
//! | `ca` | signs the others | CA |
//! | `server` | store members, towards clients and each other | server and client |
//! | `admin` | the operator | client |
//! | `kube-proxy` | kube-proxy | client |
//! | `overlay` | overlayd | client |

use std::path::Path;
use std::time::Duration;

use rcgen::KeyUsagePurpose;
use time::OffsetDateTime;

use crate::disk::{Access, File};
use crate::host::Host;
use crate::issue::{self, Authority, IssueError, Warning};
use crate::key::{KeyError, KeySpec, PrivateKey};
use crate::profile::{BACKDATE, CaConstraint, Profile};
use crate::request::{CaOptions, CertRequest, Subject};
use crate::serial::{NoRandomness, Serial};
use crate::usage::{CLIENT_AUTH, SERVER_AUTH, Usages};

/// Ten years, as in the tutorial.
pub const EXPIRY: Duration = Duration::from_secs(87_600 * 3_600);

/// What the cluster needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Names and addresses of the store's members; localhost, 127.0.0.1 and `::1` are added.
    pub hosts: Vec<Host>,
    /// The kind of every key.
    pub key: KeySpec,
    /// Time from not-before to not-after, of the CA as of the others.
    pub expiry: Duration,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is nobody to make a server certificate for.
    #[error("no hosts; name at least one member of the store")]
    NoHosts,
    /// A certificate failed.
    #[error("{name}: {source}")]
    Issue {
        /// The certificate in question.
        name: &'static str,
        /// What is wrong.
        source: IssueError,
    },
    /// A key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No serial number.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// A certificate with its key, under the name its files get.
#[derive(Debug)]
pub struct Identity {
    /// `server` gives `server.pem` and `server-key.pem`.
    pub name: &'static str,
    /// The certificate as PEM.
    pub cert_pem: String,
    /// The key as PEM.
    pub key_pem: String,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
}

/// The names of the certificates that the CA signs.
pub const LEAVES: [&str; 4] = ["server", "admin", "kube-proxy", "overlay"];

impl Identity {
    /// The two files, key first: without a certificate a key is harmless, a certificate without its key is not.
    pub fn files(&self, dir: &Path) -> [File; 2] {
        let [cert, key] = file_names(self.name);
        [
            File { path: dir.join(key), contents: self.key_pem.clone(), access: Access::Secret },
            File { path: dir.join(cert), contents: self.cert_pem.clone(), access: Access::Public },
        ]
    }
}

/// The names of the files of one certificate: certificate and key.
pub fn file_names(name: &str) -> [String; 2] {
    [format!("{name}.pem"), format!("{name}-key.pem")]
}

/// Makes a CA.
///
/// # Errors
/// No random numbers, or an expiry beyond the year 9999.
pub fn make_ca(spec: &ClusterSpec, now: OffsetDateTime) -> Result<(Identity, Authority), ClusterError> {
    let name = "ca";
    let failed = |source| ClusterError::Issue { name, source };
    let constraint = CaConstraint { max_path_len: None };
    let request = CertRequest {
        subject: Subject::common_name("Weft CA"),
        hosts: Vec::new(),
        key: spec.key,
        ca: Some(CaOptions { expiry: spec.expiry, backdate: BACKDATE, constraint }),
    };
    let key = PrivateKey::generate(spec.key)?;
    let issued = issue::self_signed(&request, &key, Serial::random()?, now).map_err(failed)?;
    let identity = Identity {
        name,
        cert_pem: issued.cert_pem,
        key_pem: key.to_pem().to_owned(),
        warnings: issued.warnings,
    };
    let [cert_file, key_file] = file_names(name);
    let (cert, key) = (identity.cert_pem.as_bytes(), identity.key_pem.as_bytes());
    let authority = Authority::new(&cert_file, cert, &key_file, key, now).map_err(failed)?;
    Ok((identity, authority))
}

/// Makes the certificates that the CA signs, in the order of [`LEAVES`].
///
/// # Errors
/// No hosts, no random numbers, or the CA cannot sign.
pub fn make_leaves(
    spec: &ClusterSpec,
    ca: &Authority,
    now: OffsetDateTime,
) -> Result<Vec<Identity>, ClusterError> {
    if spec.hosts.is_empty() {
        return Err(ClusterError::NoHosts);
    }
    LEAVES.iter().map(|name| make_leaf(name, spec, ca, now)).collect()
}

fn make_leaf(
    name: &'static str,
    spec: &ClusterSpec,
    ca: &Authority,
    now: OffsetDateTime,
) -> Result<Identity, ClusterError> {
    let (subject, hosts, extended) = match name {
        "server" => (Subject::common_name(name), server_hosts(&spec.hosts), vec![SERVER_AUTH, CLIENT_AUTH]),
        // Kubernetes reads the user off CN and the group off O; these are the names its roles expect.
        "admin" => {
            let subject =
                Subject { organization: Some("system:masters".to_owned()), ..Subject::common_name(name) };
            (subject, Vec::new(), vec![CLIENT_AUTH])
        }
        "kube-proxy" => (Subject::common_name("system:kube-proxy"), Vec::new(), vec![CLIENT_AUTH]),
        _ => (Subject::common_name(name), Vec::new(), vec![CLIENT_AUTH]),
    };
    let usages = Usages { key: key_usages(spec.key), extended };
    let profile = Profile { expiry: spec.expiry, usages, ..Profile::default() };
    let request = CertRequest { subject, hosts, key: spec.key, ca: None };
    let key = PrivateKey::generate(spec.key)?;
    let issued = ca
        .issue(&request, &profile, &key, Serial::random()?, now)
        .map_err(|source| ClusterError::Issue { name, source })?;
    let key_pem = key.to_pem().to_owned();
    Ok(Identity { name, cert_pem: issued.cert_pem, key_pem, warnings: issued.warnings })
}

/// Only RSA keys can encipher another key (RFC 5480 section 3 and RFC 8410 section 5).
fn key_usages(key: KeySpec) -> Vec<KeyUsagePurpose> {
    match key {
        KeySpec::Rsa(_) => vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
        KeySpec::Ecdsa(_) | KeySpec::Ed25519 => vec![KeyUsagePurpose::DigitalSignature],
    }
}

/// The hosts, and this machine under its usual names: the tutorial's unit listens on 127.0.0.1 as well.
fn server_hosts(hosts: &[Host]) -> Vec<Host> {
    let mut all = hosts.to_vec();
    for local in [
        Host::Dns("localhost".to_owned()),
        Host::Ip([127, 0, 0, 1].into()),
        Host::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
    ] {
        if !all.contains(&local) {
            all.push(local);
        }
    }
    all
}
