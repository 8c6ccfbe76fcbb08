//! Reads certificates, keys and requests back and says what is in them.

use std::net::{Ipv4Addr, Ipv6Addr};

use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::issue::rfc3339;
use crate::key::{KeyError, KeyKind, PrivateKey};
use crate::usage;
use crate::verify;

/// One thing found in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Item {
    /// A certificate.
    Certificate(Box<Certificate>),
    /// A private key.
    PrivateKey(Key),
    /// A signing request.
    Request(Request),
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its number, in hexadecimal.
    pub serial: String,
    /// Subject alternative names, with their kind in front.
    pub names: Vec<String>,
    /// Usages and extended usages, in cfssl's words.
    pub usages: Vec<String>,
    /// Whether it may sign others.
    pub ca: bool,
    /// How many CAs may stand below it, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_length: Option<u32>,
    /// First moment of validity, RFC 3339.
    pub not_before: String,
    /// Last moment of validity, RFC 3339.
    pub not_after: String,
    /// Whole days until then, negative once it is past.
    pub days_left: i64,
    /// Whether it is valid at the time given.
    pub status: Status,
    /// Algorithm and size of its key.
    pub key: String,
    /// How the issuer signed.
    pub signature: String,
    /// Whether it signed itself.
    pub self_signed: bool,
    /// The public key, to compare with others.
    #[serde(skip)]
    public_key: Vec<u8>,
    #[serde(skip)]
    der: Vec<u8>,
}

/// Whether a certificate is valid now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its time is now.
    Valid,
    /// Its time is past.
    Expired,
    /// Its time has not come.
    NotYetValid,
}

/// What is known of a private key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Algorithm and size.
    pub key: String,
    #[serde(skip)]
    public_key: Vec<u8>,
}

/// What a signing request asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Who asks.
    pub subject: String,
    /// Subject alternative names, with their kind in front.
    pub names: Vec<String>,
    /// Algorithm and size of its key.
    pub key: String,
    /// Whether its signature, the proof of possession of the key, is right.
    pub signature_valid: bool,
    #[serde(skip)]
    public_key: Vec<u8>,
}

/// Why a file cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// There is nothing in it.
    #[error("{file}: no certificate, private key or signing request in it")]
    Nothing {
        /// The file, as the caller named it.
        file: String,
    },
    /// A block is damaged.
    #[error("{file}: item {number}: {why}")]
    Damaged {
        /// The file, as the caller named it.
        file: String,
        /// Which block, from 1.
        number: usize,
        /// The reader's words.
        why: String,
    },
    /// A private key is of no use.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Certificate {
    /// True when `key` is this certificate's private key.
    pub fn belongs_to(&self, key: &Key) -> bool {
        self.public_key == key.public_key
    }

    /// True when `issuer` has the issuer's name and its key made the signature.
    pub fn signed_by(&self, issuer: &Certificate) -> bool {
        let parse = |der| X509Certificate::from_der(der).map(|(_, c)| c);
        match (parse(&self.der), parse(&issuer.der)) {
            (Ok(cert), Ok(issuer)) => verify::signed_by(&cert, &issuer),
            _ => false,
        }
    }
}

impl Request {
    /// True when `key` made this request.
    pub fn belongs_to(&self, key: &Key) -> bool {
        self.public_key == key.public_key
    }
}

/// Reads everything in a PEM file, or one certificate in DER; `file` is its name in error texts.
///
/// # Errors
/// Nothing is in it, or a block is damaged.
pub fn parse(file: &str, bytes: &[u8], now: OffsetDateTime) -> Result<Vec<Item>, InspectError> {
    let damaged = |number, why| InspectError::Damaged { file: file.to_owned(), number, why };
    if bytes.first() == Some(&0x30)
        && let Ok(cert) = certificate(bytes, now)
    {
        return Ok(vec![Item::Certificate(Box::new(cert))]);
    }
    let mut items = Vec::new();
    for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes).enumerate() {
        let number = index + 1;
        let (kind, der) = section.map_err(|e| damaged(number, e.to_string()))?;
        match kind {
            SectionKind::Certificate => {
                let cert = certificate(&CertificateDer::from(der), now)
                    .map_err(|e| damaged(number, e.to_string()))?;
                items.push(Item::Certificate(Box::new(cert)));
            }
            SectionKind::Csr => {
                items.push(Item::Request(request(&der).map_err(|e| damaged(number, e.to_string()))?));
            }
            kind => {
                if let Some(der) = PrivateKeyDer::from_pem(kind, der) {
                    let key = PrivateKey::from_der(file, &der)?;
                    let public_key = key.public_key().to_vec();
                    items.push(Item::PrivateKey(Key { key: key.kind().to_string(), public_key }));
                }
            }
        }
    }
    if items.is_empty() {
        // An encrypted key is no section the PEM reader knows; say that rather than "nothing".
        if let Err(error @ KeyError::Encrypted { .. }) = PrivateKey::from_pem(file, bytes) {
            return Err(error.into());
        }
        return Err(InspectError::Nothing { file: file.to_owned() });
    }
    Ok(items)
}

fn certificate(der: &[u8], now: OffsetDateTime) -> Result<Certificate, X509Error> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| match e {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => e,
        x509_parser::nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
    })?;
    let not_before = cert.validity().not_before.to_datetime();
    let not_after = cert.validity().not_after.to_datetime();
    let constraints = cert.basic_constraints()?.map(|c| c.value);
    let status = if now < not_before {
        Status::NotYetValid
    } else if now > not_after {
        Status::Expired
    } else {
        Status::Valid
    };
    Ok(Certificate {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        serial: hex(cert.raw_serial()),
        names: cert
            .subject_alternative_name()?
            .map(|san| san.value.general_names.iter().map(general_name).collect())
            .unwrap_or_default(),
        usages: usages(&cert)?,
        ca: constraints.is_some_and(|c| c.ca),
        path_length: constraints.and_then(|c| c.path_len_constraint),
        not_before: rfc3339(not_before),
        not_after: rfc3339(not_after),
        days_left: (not_after - now).whole_seconds().div_euclid(86_400),
        status,
        key: KeyKind::of(cert.public_key()).to_string(),
        signature: signature_name(&cert.signature_algorithm.algorithm.to_id_string()),
        self_signed: verify::signed_by(&cert, &cert),
        public_key: cert.public_key().subject_public_key.data.to_vec(),
        der: der.to_vec(),
    })
}

fn request(der: &[u8]) -> Result<Request, X509Error> {
    let (_, csr) = X509CertificationRequest::from_der(der).map_err(|e| match e {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => e,
        x509_parser::nom::Err::Incomplete(_) => X509Error::InvalidCertificate,
    })?;
    let info = &csr.certification_request_info;
    let mut names = Vec::new();
    for extension in csr.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension {
            names.extend(san.general_names.iter().map(general_name));
        }
    }
    Ok(Request {
        subject: info.subject.to_string(),
        names,
        key: KeyKind::of(&info.subject_pki).to_string(),
        signature_valid: verify::proves_possession(&csr),
        public_key: info.subject_pki.subject_public_key.data.to_vec(),
    })
}

fn usages(cert: &X509Certificate<'_>) -> Result<Vec<String>, X509Error> {
    let mut names = Vec::new();
    if let Some(key_usage) = cert.key_usage()? {
        let bits = (0..16).filter(|bit| key_usage.value.flags & (1 << bit) != 0);
        names.extend(bits.map(|bit| match usage::key_usage_name(bit) {
            Some(name) => name.to_owned(),
            None => format!("key usage bit {bit}"),
        }));
    }
    if let Some(extended) = cert.extended_key_usage()? {
        let extended = extended.value;
        let known = [
            (extended.any, "any"),
            (extended.server_auth, "server auth"),
            (extended.client_auth, "client auth"),
            (extended.code_signing, "code signing"),
            (extended.email_protection, "email protection"),
            (extended.time_stamping, "timestamping"),
            (extended.ocsp_signing, "ocsp signing"),
        ];
        names.extend(known.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()));
        names.extend(extended.other.iter().map(|oid| usage::extended_name(&oid.to_id_string())));
    }
    Ok(names)
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::RFC822Name(name) => format!("email:{name}"),
        GeneralName::URI(name) => format!("URI:{name}"),
        GeneralName::IPAddress(octets) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*octets) {
                format!("IP:{}", Ipv4Addr::from(v4))
            } else if let Ok(v6) = <[u8; 16]>::try_from(*octets) {
                format!("IP:{}", Ipv6Addr::from(v6))
            } else {
                format!("IP:({} bytes, damaged)", octets.len())
            }
        }
        other => other.to_string(),
    }
}

fn signature_name(oid: &str) -> String {
    match oid {
        "1.2.840.113549.1.1.5" => "RSA with SHA-1",
        "1.2.840.113549.1.1.11" => "RSA with SHA-256",
        "1.2.840.113549.1.1.12" => "RSA with SHA-384",
        "1.2.840.113549.1.1.13" => "RSA with SHA-512",
        "1.2.840.10045.4.3.2" => "ECDSA with SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA with SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA with SHA-512",
        "1.3.101.112" => "Ed25519",
        other => other,
    }
    .to_owned()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
