//! Request, profile, issuer, time and serial number become a certificate.
//!
//! Nothing here reads a clock or a file. Contents follow cfssl's `signer` package: not-before is the time
//! rounded to the minute and backdated, the subject key identifier is always there, basic constraints and key
//! usage are critical, the order of the names is that of Go. Key identifiers are truncated SHA-256 (RFC 7093
//! method 1), where old cfssl has SHA-1. Every certificate is read back and its signature checked before it is
//! handed out.

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::host::Host;
use crate::key::{KeyError, PrivateKey, to_pem};
use crate::profile::{CaConstraint, Profile};
use crate::request::{CaOptions, CertRequest, UNWRITABLE};
use crate::serial::Serial;
use crate::usage::{SERVER_AUTH, Usages};
use crate::verify;

/// Why no certificate was issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The issuer's file holds no certificate.
    #[error("{file}: no certificate in it (it needs a block -----BEGIN CERTIFICATE-----)")]
    NoCertificate {
        /// The file, as the caller named it.
        file: String,
    },
    /// The issuer's certificate cannot be read.
    #[error("{file}: not a readable certificate: {why}")]
    BadCertificate {
        /// The file, as the caller named it.
        file: String,
        /// The reader's words.
        why: String,
    },
    /// The issuer is not allowed to issue.
    #[error("{file}: this is not a CA certificate (its basic constraints do not say CA)")]
    NotCa {
        /// The file, as the caller named it.
        file: String,
    },
    /// The issuer's key usage leaves out signing certificates.
    #[error("{file}: this CA may not sign certificates (its key usage lacks \"cert sign\")")]
    MayNotSign {
        /// The file, as the caller named it.
        file: String,
    },
    /// The issuer is not valid at this time.
    #[error(
        "{file}: this CA is valid from {} to {}, and now it is {}; make a new one, or set the clock",
        rfc3339(*.from), rfc3339(*.to), rfc3339(*.now)
    )]
    NotValidNow {
        /// The file, as the caller named it.
        file: String,
        /// Not-before.
        from: OffsetDateTime,
        /// Not-after.
        to: OffsetDateTime,
        /// The time given.
        now: OffsetDateTime,
    },
    /// Certificate and key of the issuer are not of the same pair.
    #[error("{key_file}: this {key_kind} key does not belong to the CA certificate {file} ({cert_kind})")]
    KeyMismatch {
        /// File of the certificate.
        file: String,
        /// Its key's kind.
        cert_kind: String,
        /// File of the key.
        key_file: String,
        /// The key's kind.
        key_kind: String,
    },
    /// The issuer's name has a shape that would come out differently.
    #[error("{file}: cannot sign in this CA's name: {why}")]
    IssuerName {
        /// The file, as the caller named it.
        file: String,
        /// What about it.
        why: &'static str,
    },
    /// The issuer may have no CA below it.
    #[error("{file}: this CA may not sign another CA (its path length is 0)")]
    PathLength {
        /// The file, as the caller named it.
        file: String,
    },
    /// The profile grants nothing.
    #[error("the profile grants no usages")]
    NoUsages,
    /// Not-after would be past the year 9999.
    #[error("the expiry is too long: the certificate would end after the year 9999")]
    ExpiryTooLong,
    /// A private key is of no use.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate library refused; our fault.
    #[error("cannot build the certificate: {0}")]
    Build(#[from] rcgen::Error),
    /// The certificate just made is wrong; our fault, and nothing was handed out.
    #[error("the certificate just made does not hold: {0}")]
    SelfCheck(&'static str),
}

/// Something about a certificate that is likely not what was meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A server certificate that matches no server.
    #[error("the certificate has no hosts, so no client will accept it as a server's")]
    NoHosts,
    /// Hosts in a CA's request.
    #[error("a CA certificate carries no hosts; those of the request are only in the CSR")]
    CaHosts,
    /// The certificate's last days cannot be used.
    #[error(
        "the certificate is valid until {}, its CA only until {}: it ends with its CA",
        rfc3339(*.not_after),
        rfc3339(*.ca_not_after)
    )]
    OutlivesCa {
        /// Not-after of the certificate.
        not_after: OffsetDateTime,
        /// Not-after of the CA.
        ca_not_after: OffsetDateTime,
    },
}

/// A certificate and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate as PEM.
    pub cert_pem: String,
    /// The signing request it answers, as PEM.
    pub csr_pem: String,
    /// What the caller should tell the operator.
    pub warnings: Vec<Warning>,
}

/// A CA that can sign: its certificate and the key that belongs to it, checked.
#[derive(Debug)]
pub struct Authority {
    file: String,
    cert: CertificateDer<'static>,
    key: PrivateKey,
    not_after: OffsetDateTime,
    path_len: Option<u32>,
}

impl Authority {
    /// Takes a CA's certificate and key; of a bundle, the first certificate. The file names are for error texts.
    ///
    /// # Errors
    /// The certificate is unreadable, no CA's, or not valid at `now`; the key is unreadable or another's.
    pub fn new(
        file: &str,
        cert_pem: &[u8],
        key_file: &str,
        key_pem: &[u8],
        now: OffsetDateTime,
    ) -> Result<Self, IssueError> {
        let owned = || file.to_owned();
        let bad = |why: String| IssueError::BadCertificate { file: owned(), why };
        let der = CertificateDer::from_pem_slice(cert_pem).map_err(|e| match e {
            pem::Error::NoItemsFound => IssueError::NoCertificate { file: owned() },
            e => bad(e.to_string()),
        })?;
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| bad(e.to_string()))?;
        let constraints = cert.basic_constraints().map_err(|e| bad(e.to_string()))?.map(|c| c.value);
        let constraints = constraints.filter(|c| c.ca).ok_or_else(|| IssueError::NotCa { file: owned() })?;
        let usage = cert.key_usage().map_err(|e| bad(e.to_string()))?;
        if usage.is_some_and(|u| !u.value.key_cert_sign()) {
            return Err(IssueError::MayNotSign { file: owned() });
        }
        check_name(&cert).map_err(|why| IssueError::IssuerName { file: owned(), why })?;
        let (from, to) = (cert.validity().not_before.to_datetime(), cert.validity().not_after.to_datetime());
        if now < from || now > to {
            return Err(IssueError::NotValidNow { file: owned(), from, to, now });
        }
        let key = PrivateKey::from_pem(key_file, key_pem)?;
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key() {
            return Err(IssueError::KeyMismatch {
                file: owned(),
                cert_kind: crate::key::KeyKind::of(cert.public_key()).to_string(),
                key_file: key_file.to_owned(),
                key_kind: key.kind().to_string(),
            });
        }
        let path_len = constraints.path_len_constraint;
        Ok(Self { file: owned(), cert: der.clone().into_owned(), key, not_after: to, path_len })
    }

    /// Issues a certificate for the public half of `key`.
    ///
    /// # Errors
    /// The profile cannot be granted by this CA, or the result failed its own check.
    pub fn issue(
        &self,
        request: &CertRequest,
        profile: &Profile,
        key: &PrivateKey,
        serial: Serial,
        now: OffsetDateTime,
    ) -> Result<Issued, IssueError> {
        if profile.usages.is_empty() {
            return Err(IssueError::NoUsages);
        }
        if profile.ca.is_some() && self.path_len == Some(0) {
            return Err(IssueError::PathLength { file: self.file.clone() });
        }
        let mut params = params(request, serial);
        (params.not_before, params.not_after) = validity(profile.backdate, profile.expiry, now)?;
        params.subject_alt_names = alt_names(&request.hosts)?;
        set_usages(&mut params, &profile.usages);
        params.is_ca = profile.ca.map_or(IsCa::ExplicitNoCa, is_ca);
        params.crl_distribution_points =
            profile.crl_url.iter().map(|url| CrlDistributionPoint { uris: vec![url.clone()] }).collect();
        params.use_authority_key_identifier_extension = true;

        let issuer = rcgen::Issuer::from_ca_cert_der(&self.cert, self.key.pair())?;
        let cert = params.signed_by(key.pair(), &issuer)?;
        check(cert.der(), &self.cert, key)?;

        let mut warnings = Vec::new();
        if request.hosts.is_empty() && profile.usages.extended.contains(&SERVER_AUTH) {
            warnings.push(Warning::NoHosts);
        }
        if params.not_after > self.not_after {
            let (not_after, ca_not_after) = (params.not_after, self.not_after);
            warnings.push(Warning::OutlivesCa { not_after, ca_not_after });
        }
        Ok(Issued { cert_pem: to_pem("CERTIFICATE", cert.der()), csr_pem: csr(request, key)?, warnings })
    }
}

/// Makes a CA's own certificate, signed by `key` itself.
///
/// # Errors
/// The expiry is out of range, or the result failed its own check.
pub fn self_signed(
    request: &CertRequest,
    key: &PrivateKey,
    serial: Serial,
    now: OffsetDateTime,
) -> Result<Issued, IssueError> {
    let options = request.ca.clone().unwrap_or_default();
    let CaOptions { expiry, backdate, constraint } = options;
    let mut params = params(request, serial);
    (params.not_before, params.not_after) = validity(backdate, expiry, now)?;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = is_ca(constraint);
    let cert = params.self_signed(key.pair())?;
    check(cert.der(), cert.der(), key)?;
    let warnings = if request.hosts.is_empty() { vec![] } else { vec![Warning::CaHosts] };
    Ok(Issued { cert_pem: to_pem("CERTIFICATE", cert.der()), csr_pem: csr(request, key)?, warnings })
}

/// A time as certificates are talked about: whole seconds, UTC.
pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

fn params(request: &CertRequest, serial: Serial) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = request.subject.to_distinguished_name();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params
}

/// The signing request: name, hosts and, for a CA, basic constraints; as in cfssl nothing else.
fn csr(request: &CertRequest, key: &PrivateKey) -> Result<String, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = request.subject.to_distinguished_name();
    params.subject_alt_names = alt_names(&request.hosts)?;
    if let Some(ca) = &request.ca {
        params.is_ca = is_ca(ca.constraint);
    }
    Ok(to_pem("CERTIFICATE REQUEST", params.serialize_request(key.pair())?.der()))
}

/// Not-before and not-after: the time rounded to the minute, less the backdating, plus the expiry.
fn validity(
    backdate: std::time::Duration,
    expiry: std::time::Duration,
    now: OffsetDateTime,
) -> Result<(OffsetDateTime, OffsetDateTime), IssueError> {
    let minute_s = (now.unix_timestamp() + 30).div_euclid(60) * 60;
    let rounded = OffsetDateTime::from_unix_timestamp(minute_s).map_err(|_| IssueError::ExpiryTooLong)?;
    // Both are below 292 years, so they fit; whole seconds, for X.509 has no others.
    let span =
        |d: std::time::Duration| time::Duration::seconds(i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let not_before = rounded.checked_sub(span(backdate)).ok_or(IssueError::ExpiryTooLong)?;
    let not_after = not_before.checked_add(span(expiry)).ok_or(IssueError::ExpiryTooLong)?;
    Ok((not_before, not_after))
}

/// DNS names, e-mail addresses, IP addresses, URIs: Go's order. A host given twice is written once.
fn alt_names(hosts: &[Host]) -> Result<Vec<SanType>, IssueError> {
    let mut sorted: Vec<&Host> = Vec::new();
    for host in hosts {
        if !sorted.contains(&host) {
            sorted.push(host);
        }
    }
    sorted.sort_by_key(|host| match host {
        Host::Dns(_) => 0,
        Host::Email(_) => 1,
        Host::Ip(_) => 2,
        Host::Uri(_) => 3,
    });
    sorted
        .into_iter()
        .map(|host| {
            Ok(match host {
                Host::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
                Host::Email(name) => SanType::Rfc822Name(name.as_str().try_into()?),
                Host::Uri(name) => SanType::URI(name.as_str().try_into()?),
                Host::Ip(ip) => SanType::IpAddress(*ip),
            })
        })
        .collect()
}

fn set_usages(params: &mut CertificateParams, usages: &Usages) {
    params.key_usages.clone_from(&usages.key);
    params.extended_key_usages =
        usages.extended.iter().map(|oid| ExtendedKeyUsagePurpose::Other(oid.to_vec())).collect();
}

fn is_ca(constraint: CaConstraint) -> IsCa {
    IsCa::Ca(constraint.max_path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained))
}

/// rcgen writes the issuer's name anew from one value per attribute; any other shape would come out changed,
/// and a certificate with a changed issuer name belongs to nobody.
fn check_name(cert: &X509Certificate<'_>) -> Result<(), &'static str> {
    let mut seen = Vec::new();
    for rdn in cert.subject().iter_rdn() {
        let unwritable = rdn.iter().any(|attribute| {
            let value = attribute.attr_value();
            value.tag() == Tag::PrintableString && value.data.contains(&UNWRITABLE)
        });
        if unwritable {
            return Err("its subject has a question mark in a PrintableString, which cannot be written here");
        }
        let mut attributes = rdn.iter();
        match (attributes.next(), attributes.next()) {
            (Some(one), None) if !seen.contains(&one.attr_type()) => seen.push(one.attr_type()),
            (Some(_), None) => return Err("its subject has the same attribute twice"),
            _ => return Err("its subject has several attributes in one place"),
        }
    }
    if seen.is_empty() { Err("its subject is empty") } else { Ok(()) }
}

/// Reads the certificate back: issuer's name, signature and public key must be what they should.
fn check(cert: &[u8], issuer: &[u8], key: &PrivateKey) -> Result<(), IssueError> {
    let parse = |der| X509Certificate::from_der(der).map(|(_, c)| c);
    let cert = parse(cert).map_err(|_| IssueError::SelfCheck("it cannot be read"))?;
    let issuer = parse(issuer).map_err(|_| IssueError::SelfCheck("its issuer cannot be read"))?;
    if cert.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(IssueError::SelfCheck("the issuer's name came out changed"));
    }
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key() {
        return Err(IssueError::SelfCheck("its public key is not the key's"));
    }
    if verify::signed_by(&cert, &issuer) {
        Ok(())
    } else {
        Err(IssueError::SelfCheck("its signature is wrong"))
    }
}

#[cfg(test)]
#[path = "issue_tests.rs"]
mod tests;
