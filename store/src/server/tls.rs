//! Certificates: read, watched for change, and what is wrong with one in words that help.

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use crate::config::Tls;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("open {path}: {why}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// A file holds nothing of what it should.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: String,
        /// What is missing.
        why: String,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn read_error(path: &Path, error: rustls::pki_types::pem::Error) -> TlsError {
    let path = path.display().to_string();
    match error {
        rustls::pki_types::pem::Error::Io(error) => TlsError::Read { path, why: error.to_string() },
        rustls::pki_types::pem::Error::NoItemsFound => {
            TlsError::Content { path, why: "no PEM block of the expected kind in it".to_owned() }
        }
        other => TlsError::Content { path, why: other.to_string() },
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| read_error(path, error))? {
        let certificate = certificate.map_err(|error| read_error(path, error))?;
        store.add(certificate).map_err(|error| TlsError::Content {
            path: path.display().to_string(),
            why: format!("not usable as a CA: {error}"),
        })?;
    }
    if store.is_empty() {
        return Err(TlsError::Content {
            path: path.display().to_string(),
            why: "no certificate in it".to_owned(),
        });
    }
    Ok(store)
}

/// When certificate and key were last changed.
type Times = (SystemTime, SystemTime);

/// A certificate and its key that are read again when a file changes, so that renewed ones are used without
/// a restart, as etcd does.
#[derive(Debug)]
pub struct Reloading {
    cert: PathBuf,
    key: PathBuf,
    state: Mutex<(Option<Times>, Arc<CertifiedKey>)>,
}

impl Reloading {
    /// Reads both files.
    ///
    /// # Errors
    /// [`TlsError`] with the file at fault.
    pub fn open(cert: &Path, key: &Path) -> Result<Reloading, TlsError> {
        let certified = load(cert, key)?;
        let times = modified(cert, key);
        Ok(Reloading { cert: cert.to_owned(), key: key.to_owned(), state: Mutex::new((times, certified)) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let times = modified(&self.cert, &self.key);
        let mut state = self.state.lock();
        if times.is_some() && times != state.0 {
            match load(&self.cert, &self.key) {
                Ok(certified) => {
                    tracing::info!(cert = %self.cert.display(), "certificate read again");
                    *state = (times, certified);
                }
                // The two files are replaced one after the other; the old pair serves until both fit.
                Err(error) => {
                    tracing::warn!(%error, "a changed certificate cannot be used; the old one stays");
                }
            }
        }
        Arc::clone(&state.1)
    }
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Reloading {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn modified(cert: &Path, key: &Path) -> Option<Times> {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    Some((time(cert)?, time(key)?))
}

fn load(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cert).map_err(|error| read_error(cert, error))?.collect();
    let chain = chain.map_err(|error| read_error(cert, error))?;
    if chain.is_empty() {
        return Err(TlsError::Content {
            path: cert.display().to_string(),
            why: "no certificate in it".to_owned(),
        });
    }
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| read_error(key, error))?;
    let certified =
        CertifiedKey::from_der(chain, key_der, &provider()).map_err(|error| TlsError::Content {
            path: key.display().to_string(),
            why: match error {
                rustls::Error::InconsistentKeys(_) => format!("is not the key of {}", cert.display()),
                other => other.to_string(),
            },
        })?;
    Ok(Arc::new(certified))
}

/// What a listener needs. `demand` clients' certificates where the files say so or `mutual` is set.
///
/// # Errors
/// [`TlsError`] with the file at fault.
pub fn server_config(tls: &Tls, mutual: bool, alpn: &[&[u8]]) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else { return Ok(None) };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default protocol versions");
    let demands = tls.trusted_ca.is_some() && (mutual || tls.cert_auth);
    let builder = match &tls.trusted_ca {
        Some(ca) if demands => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
                .build()
                .map_err(|error| TlsError::Content {
                    path: ca.display().to_string(),
                    why: error.to_string(),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
        Some(ca) => {
            roots(ca)?;
            builder.with_no_client_auth()
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Reloading::open(cert, key)?));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    if demands {
        // A resumed session is not verified again: a certificate that has expired since would go on being good.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Some(Arc::new(config)))
}

/// What dialling another member needs: its CA, and our own certificate if there is one.
///
/// # Errors
/// [`TlsError`] with the file at fault.
pub fn client_config(tls: &Tls) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    let Some(ca) = &tls.trusted_ca else { return Ok(None) };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default protocol versions")
        .with_root_certificates(roots(ca)?);
    let mut config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => builder.with_client_cert_resolver(Arc::new(Reloading::open(cert, key)?)),
        _ => builder.with_no_client_auth(),
    };
    // As on the other side: every link verifies anew.
    config.resumption = Resumption::disabled();
    Ok(Some(Arc::new(config)))
}

/// The name to verify for a host of a URL.
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

/// Whether a certificate that a member showed is valid for the address it came from. A certificate with DNS
/// names only cannot be checked against an address and passes, its CA and usage having been verified.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn is_valid_for(certificate: &CertificateDer<'_>, from: IpAddr) -> Result<(), String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let name = ServerName::from(from);
    match parsed.verify_is_valid_for_subject_name(&name) {
        Ok(()) => Ok(()),
        Err(webpki::Error::CertNotValidForName(context)) => {
            let ips: Vec<&String> =
                context.presented.iter().filter(|name| name.contains("IpAddress")).collect();
            if ips.is_empty() && !context.presented.is_empty() {
                return Ok(());
            }
            Err(format!(
                "its certificate is not valid for {from}, where it dials from (names: {}): SAN missing; reissue it \
                 with this address among its hosts",
                if context.presented.is_empty() { "none".to_owned() } else { context.presented.join(", ") }
            ))
        }
        Err(other) => Err(other.to_string()),
    }
}

/// Whether an error comes from TLS rather than from the connection below it.
pub fn is_tls_error(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}

/// What is wrong in a TLS handshake, by cause and with what to do; the other side's alerts are translated too.
pub fn describe(error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return error.to_string();
    };
    describe_tls(tls)
}

fn describe_tls(error: &rustls::Error) -> String {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(certificate) => describe_certificate(certificate),
        E::NoCertificatesPresented => {
            "it shows no certificate; give it --peer-cert-file and --peer-key-file".to_owned()
        }
        E::AlertReceived(alert) => {
            use rustls::AlertDescription as A;
            let why = match alert {
                A::CertificateExpired => "expired or not valid yet; compare the clocks, or reissue it",
                A::UnknownCA => "signed by a CA it does not trust (wrong CA)",
                A::CertificateRequired => "missing",
                A::DecryptError => "signed by another key of the CA's name (wrong CA)",
                // What rustls sends for a wrong purpose, and what it sends for a wrong name (or bad encoding).
                A::UnsupportedCertificate => {
                    "lacks the usage that is needed there (extended key usage: a member needs both server auth and \
                     client auth); reissue it"
                }
                A::BadCertificate => {
                    "not valid for the name or address by which it reaches us (SAN missing); reissue it with that \
                     among its hosts"
                }
                A::CertificateRevoked => "revoked",
                A::CertificateUnknown => "not acceptable; its log says why",
                _ => return format!("the other side ended the handshake: {alert:?}; its log says why"),
            };
            format!("the other side refuses our certificate: {why}")
        }
        E::InvalidMessage(_) => "the other side does not speak TLS (http where https is meant?)".to_owned(),
        other => other.to_string(),
    }
}

fn describe_certificate(error: &CertificateError) -> String {
    use CertificateError as C;
    match error {
        C::Expired => "its certificate has expired; reissue it".to_owned(),
        C::ExpiredContext { not_after, .. } => {
            let at = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
            format!("its certificate has expired on {}; reissue it", crate::wire::v2::rfc3339(at))
        }
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks of the two hosts".to_owned()
        }
        C::UnknownIssuer | C::BadSignature => {
            "its certificate is signed by a CA that is not in the trusted CA file (wrong CA)".to_owned()
        }
        C::NotValidForName => "its certificate is not valid for this name (SAN missing); reissue it".to_owned(),
        C::NotValidForNameContext { expected, presented } => format!(
            "its certificate is not valid for {} (names: {}): SAN missing; reissue it or change the URL",
            expected.to_str(),
            if presented.is_empty() { "none".to_owned() } else { presented.join(", ") }
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            "its certificate lacks the usage that is needed here (extended key usage: a member needs both server auth \
             and client auth); reissue it"
                .to_owned()
        }
        other => format!("its certificate is refused: {other:?}"),
    }
}
