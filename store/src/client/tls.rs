//! The client's side of TLS: files into a rustls configuration, and failures into sentences that say which of
//! wrong CA, expiry, name or purpose it was.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{ClientError, url::Endpoint};

/// PEM files for `https` endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA certificates that servers must be signed by. Needed for `https`: the system's roots are not used.
    pub ca: Option<PathBuf>,
    /// The client certificate, with its chain if any. Goes together with `key`.
    pub cert: Option<PathBuf>,
    /// The client certificate's private key (PKCS#8, PKCS#1 or SEC1).
    pub key: Option<PathBuf>,
}

/// Reads the files. `None` without a CA file, which plain `http` does not need.
///
/// # Errors
/// [`ClientError::Config`] naming the file that is missing, unreadable, not PEM or does not fit the others.
pub(super) fn client_config(files: &TlsFiles) -> Result<Option<Arc<ClientConfig>>, ClientError> {
    let identity = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(cert), None) => {
            return Err(config(
                "tls.key",
                format!("client certificate {} is given without its key file", cert.display()),
            ));
        }
        (None, Some(key)) => {
            return Err(config(
                "tls.cert",
                format!("client key {} is given without its certificate file", key.display()),
            ));
        }
    };
    let Some(ca) = &files.ca else {
        // The files are read all the same, so that a wrong path is noticed now and not at the first https URL.
        if let Some((cert, key)) = identity {
            certificates("tls.cert", cert)?;
            private_key(key)?;
        }
        return Ok(None);
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls.ca", ca)? {
        roots.add(certificate).map_err(|e| config("tls.ca", format!("CA file {}: {e}", ca.display())))?;
    }
    // The provider is passed, never taken from the process: another crate may have set that one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| config("tls", format!("TLS cannot be set up: {e}")))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates("tls.cert", cert)?, private_key(key)?)
            .map_err(|e| {
                let (cert, key) = (cert.display(), key.display());
                config(
                    "tls.key",
                    format!("client certificate {cert} and key {key} cannot be used together: {e}"),
                )
            })?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn config(field: &'static str, why: String) -> ClientError {
    ClientError::Config { field, why }
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let pem = read(field, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(config(field, format!("{}: no CERTIFICATE block in this file", path.display()))),
        Err(e) => Err(config(field, format!("{}: not valid PEM: {e}", path.display()))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ClientError> {
    PrivateKeyDer::from_pem_slice(&read("tls.key", path)?)
        .map_err(|e| config("tls.key", format!("{}: no usable private key: {e}", path.display())))
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|e| config(field, format!("{}: cannot be read: {e}", path.display())))
}

/// The sentence for a failed exchange with `endpoint`, if TLS is to blame; `None` for other errors.
pub(super) fn explain(error: &(dyn std::error::Error + 'static), endpoint: &Endpoint) -> Option<String> {
    let mut link = Some(error);
    while let Some(e) = link {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(explain_tls(tls, endpoint));
        }
        // An io::Error hides what it wraps from `source`, which begins below the wrapped error.
        if let Some(inner) = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
            && let Some(tls) = inner.downcast_ref::<rustls::Error>()
        {
            return Some(explain_tls(tls, endpoint));
        }
        link = e.source();
    }
    None
}

fn explain_tls(error: &rustls::Error, endpoint: &Endpoint) -> String {
    let host = &endpoint.host;
    match error {
        rustls::Error::InvalidCertificate(reason) => explain_certificate(reason, host),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert),
        rustls::Error::InvalidMessage(_) => {
            "TLS: the server does not speak TLS on this port (is it an http:// endpoint?)".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

fn explain_certificate(reason: &CertificateError, host: &str) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a non-exhaustive foreign enum; the rest speaks for itself")]
    match reason {
        CertificateError::UnknownIssuer => {
            "TLS: wrong CA: the server's certificate is not signed by a CA in the given CA file".to_owned()
        }
        CertificateError::BadSignature => {
            "TLS: wrong CA: the server's certificate names a CA of the given CA file, but is not signed by its key"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("TLS: expired: the server's certificate is no longer valid ({reason})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("TLS: not valid yet: the server's certificate begins in the future; check the clocks ({reason})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("TLS: name mismatch: the server's certificate is not valid for {host} ({reason})")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("TLS: wrong usage: the server's certificate is not meant for servers (needs \"server auth\"; {reason})")
        }
        other => format!("TLS: the server's certificate is refused: {other}"),
    }
}

fn explain_alert(alert: AlertDescription) -> String {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a non-exhaustive foreign enum; the rest speaks for itself"
    )]
    let why = match alert {
        AlertDescription::CertificateRequired => "it wants a client certificate and none was given",
        // Go's server answers both a missing and a wrong certificate with this alert.
        AlertDescription::BadCertificate => {
            "it refuses our client certificate, or wants one and none was given"
        }
        AlertDescription::UnknownCA => "our client certificate is not signed by the server's CA",
        AlertDescription::CertificateExpired => "our client certificate has expired (or a clock is wrong)",
        AlertDescription::UnsupportedCertificate => {
            "our client certificate is not meant for clients (needs \"client auth\")"
        }
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it refuses our client certificate"
        }
        _ => return format!("TLS: the server ended the handshake with alert {alert:?}"),
    };
    format!("TLS: the server refuses us: {why} (alert {alert:?})")
}
