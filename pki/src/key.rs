//! Private keys: made, read from every usual PEM form, written in the form cfssl writes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData, RsaKeySize, SignatureAlgorithm};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::Pkcs8;

/// A key to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySpec {
    /// RSA of this size.
    Rsa(RsaSize),
    /// ECDSA over this curve.
    Ecdsa(Curve),
    /// Ed25519.
    Ed25519,
}

/// The RSA sizes that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaSize {
    /// 2048 bits, signing with SHA-256.
    Bits2048,
    /// 3072 bits, signing with SHA-384.
    Bits3072,
    /// 4096 bits, signing with SHA-512.
    Bits4096,
}

/// The curves of FIPS 186-4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// P-256, signing with SHA-256.
    P256,
    /// P-384, signing with SHA-384.
    P384,
    /// P-521, signing with SHA-512.
    P521,
}

/// What can go wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key could not be made; ours or the machine's fault.
    #[error("cannot make a {spec} key: {why}")]
    Generate {
        /// What was to be made.
        spec: KeyKind,
        /// The cryptographic library's words.
        why: rcgen::Error,
    },
    /// The PEM around the key is damaged.
    #[error("{file}: not valid PEM: {why}")]
    Pem {
        /// The file, as the caller named it.
        file: String,
        /// The PEM reader's words.
        why: String,
    },
    /// There is no key in the file.
    #[error("{file}: no private key in it (it needs a block -----BEGIN ... PRIVATE KEY-----)")]
    NoKey {
        /// The file, as the caller named it.
        file: String,
    },
    /// The key needs a password.
    #[error("{file}: the private key is encrypted; write it without a password, e.g. with openssl pkey")]
    Encrypted {
        /// The file, as the caller named it.
        file: String,
    },
    /// Not a key of a kind we can sign with, or damaged.
    #[error(
        "{file}: not a usable RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) or Ed25519 key: {why}"
    )]
    Unusable {
        /// The file, as the caller named it.
        file: String,
        /// The cryptographic library's words.
        why: rcgen::Error,
    },
}

/// A private key that can sign.
pub struct PrivateKey {
    pair: KeyPair,
    pem: String,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.kind())
    }
}

impl PrivateKey {
    /// Makes a new key with random numbers of the operating system. RSA takes up to some seconds.
    ///
    /// # Errors
    /// The cryptographic library failed.
    pub fn generate(spec: KeySpec) -> Result<Self, KeyError> {
        let failed = |why| KeyError::Generate { spec: spec.kind(), why };
        let algorithm = spec.signature();
        let pair = match spec {
            KeySpec::Rsa(size) => KeyPair::generate_rsa_for(algorithm, size.to_rcgen()),
            KeySpec::Ecdsa(_) | KeySpec::Ed25519 => KeyPair::generate_for(algorithm),
        }
        .map_err(failed)?;
        let pem = cfssl_pem(spec, pair.serialized_der())
            .ok_or_else(|| failed(rcgen::Error::CouldNotParseKeyPair))?;
        Ok(Self { pair, pem })
    }

    /// Reads the first private key of a PEM file: PKCS #8, PKCS #1 or SEC 1; other blocks are passed over.
    ///
    /// # Errors
    /// Names `file` and says whether there is no key, an encrypted one, or one we cannot use.
    pub fn from_pem(file: &str, pem: &[u8]) -> Result<Self, KeyError> {
        let file_name = || file.to_owned();
        let has = |needle: &[u8]| pem.windows(needle.len()).any(|w| w == needle);
        if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"\nProc-Type: 4,ENCRYPTED") {
            return Err(KeyError::Encrypted { file: file_name() });
        }
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
            pem::Error::NoItemsFound => KeyError::NoKey { file: file_name() },
            e => KeyError::Pem { file: file_name(), why: e.to_string() },
        })?;
        Self::from_der(file, &der)
    }

    /// Takes a key out of its DER form; `file` is its name in error texts.
    ///
    /// # Errors
    /// It is damaged or of a kind we cannot use.
    pub(crate) fn from_der(file: &str, der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        let unusable = |why| KeyError::Unusable { file: file.to_owned(), why };
        let mut pair = KeyPair::try_from(der).map_err(unusable)?;
        // rcgen gives every RSA key SHA-256; cfssl takes a hash that is as strong as the key.
        if let KeyKind::Rsa { bits } = kind_of(&pair) {
            pair = KeyPair::from_der_and_sign_algo(der, rsa_signature(bits)).map_err(unusable)?;
        }
        let label = match der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Ok(Self { pair, pem: to_pem(label, der.secret_der()) })
    }

    /// The key as PEM: `RSA PRIVATE KEY` and `EC PRIVATE KEY` as in cfssl, `PRIVATE KEY` for Ed25519. A key that
    /// was read keeps the form it had.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Algorithm and size.
    pub fn kind(&self) -> KeyKind {
        kind_of(&self.pair)
    }

    /// The public half as it stands in a certificate's `SubjectPublicKeyInfo`, without its header.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key_raw()
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }
}

impl KeySpec {
    /// Algorithm and size.
    pub fn kind(self) -> KeyKind {
        match self {
            Self::Rsa(size) => KeyKind::Rsa { bits: size.bits() },
            Self::Ecdsa(curve) => KeyKind::Ecdsa { bits: curve.bits() },
            Self::Ed25519 => KeyKind::Ed25519,
        }
    }

    fn signature(self) -> &'static SignatureAlgorithm {
        match self {
            Self::Rsa(size) => rsa_signature(size.bits()),
            Self::Ecdsa(Curve::P256) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::Ecdsa(Curve::P384) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Ecdsa(Curve::P521) => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

impl RsaSize {
    fn bits(self) -> usize {
        match self {
            Self::Bits2048 => 2048,
            Self::Bits3072 => 3072,
            Self::Bits4096 => 4096,
        }
    }

    fn to_rcgen(self) -> RsaKeySize {
        match self {
            Self::Bits2048 => RsaKeySize::_2048,
            Self::Bits3072 => RsaKeySize::_3072,
            Self::Bits4096 => RsaKeySize::_4096,
        }
    }
}

impl Curve {
    fn bits(self) -> usize {
        match self {
            Self::P256 => 256,
            Self::P384 => 384,
            Self::P521 => 521,
        }
    }
}

/// cfssl's `DefaultSigAlgo`.
fn rsa_signature(bits: usize) -> &'static SignatureAlgorithm {
    match bits {
        4096.. => &rcgen::PKCS_RSA_SHA512,
        3072.. => &rcgen::PKCS_RSA_SHA384,
        _ => &rcgen::PKCS_RSA_SHA256,
    }
}

fn cfssl_pem(spec: KeySpec, pkcs8: &[u8]) -> Option<String> {
    let key = Pkcs8::parse(pkcs8)?;
    Some(match spec {
        KeySpec::Rsa(_) => to_pem("RSA PRIVATE KEY", &key.to_pkcs1()),
        KeySpec::Ecdsa(_) => to_pem("EC PRIVATE KEY", &key.to_sec1()?),
        KeySpec::Ed25519 => to_pem("PRIVATE KEY", &key.to_v1()),
    })
}

/// PEM with lines of 64 characters (RFC 7468 section 2), as Go writes it.
pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

/// Algorithm and size of a key, public or private.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA.
    Rsa {
        /// Size of the modulus.
        bits: usize,
    },
    /// ECDSA over a NIST curve.
    Ecdsa {
        /// Size of the field.
        bits: usize,
    },
    /// Ed25519.
    Ed25519,
    /// Something else, by its object identifier.
    Other {
        /// Dotted numbers.
        oid: String,
    },
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { bits } => write!(f, "RSA {bits}"),
            Self::Ecdsa { bits } => write!(f, "ECDSA P-{bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other { oid } => write!(f, "unknown ({oid})"),
        }
    }
}

impl KeyKind {
    /// Reads algorithm and size off a `SubjectPublicKeyInfo`.
    pub(crate) fn of(info: &SubjectPublicKeyInfo<'_>) -> Self {
        const ED25519: &str = "1.3.101.112";
        let oid = info.algorithm.algorithm.to_id_string();
        let curve =
            info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|o| o.to_id_string());
        match (info.parsed(), curve.as_deref()) {
            (Ok(PublicKey::RSA(rsa)), _) => Self::Rsa { bits: rsa.key_size() },
            (Ok(PublicKey::EC(_)), Some("1.2.840.10045.3.1.7")) => Self::Ecdsa { bits: 256 },
            (Ok(PublicKey::EC(_)), Some("1.3.132.0.34")) => Self::Ecdsa { bits: 384 },
            (Ok(PublicKey::EC(_)), Some("1.3.132.0.35")) => Self::Ecdsa { bits: 521 },
            _ if oid == ED25519 => Self::Ed25519,
            _ => Self::Other { oid: curve.unwrap_or(oid) },
        }
    }
}

fn kind_of(pair: &KeyPair) -> KeyKind {
    let info = pair.subject_public_key_info();
    match SubjectPublicKeyInfo::from_der(&info) {
        Ok((_, info)) => KeyKind::of(&info),
        Err(_) => KeyKind::Other { oid: "unreadable".to_owned() },
    }
}
