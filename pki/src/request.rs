//! cfssl's CSR JSON (`ca-csr.json`, `server-csr.json`): who the certificate is for and with which key.
//!
//! Source: cfssl's `csr` package. Differences: a second value of the same subject attribute, the `OID` map of
//! a name and extensions of the user's own are refused; a host must be one (see [`crate::host`]).

use std::time::Duration;

use rcgen::{DistinguishedName, DnType, DnValue};

use crate::host::Host;
use crate::input::{self, InputError, Object, Problem};
use crate::key::{Curve, KeySpec, RsaSize};
use crate::profile::{self, BACKDATE, CaConstraint};

/// How long a CA is valid where the request does not say: five years, as in cfssl.
pub const CA_EXPIRY: Duration = Duration::from_secs(43_800 * 3_600);

/// A request for a certificate, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertRequest {
    /// The name in the certificate.
    pub subject: Subject,
    /// Subject alternative names, in the request's order.
    pub hosts: Vec<Host>,
    /// The key to make.
    pub key: KeySpec,
    /// The `ca` section, which only a CA's request may have.
    pub ca: Option<CaOptions>,
}

/// What a CA's own request says about the CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaOptions {
    /// Time from not-before to not-after.
    pub expiry: Duration,
    /// Time from not-before to the signing.
    pub backdate: Duration,
    /// Basic constraints.
    pub constraint: CaConstraint,
}

impl Default for CaOptions {
    fn default() -> Self {
        Self { expiry: CA_EXPIRY, backdate: BACKDATE, constraint: CaConstraint { max_path_len: None } }
    }
}

/// The attributes of a subject, at most one of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// C
    pub country: Option<String>,
    /// ST
    pub state: Option<String>,
    /// L
    pub locality: Option<String>,
    /// O
    pub organization: Option<String>,
    /// OU
    pub organizational_unit: Option<String>,
    /// CN
    pub common_name: Option<String>,
    /// serialNumber, an attribute of the name and not the certificate's number
    pub serial_number: Option<String>,
    /// emailAddress
    pub email: Option<String>,
}

/// serialNumber, RFC 4519 section 2.31.
const OID_SERIAL_NUMBER: &[u64] = &[2, 5, 4, 5];
/// emailAddress, PKCS #9 (RFC 2985 section 5.2.1).
const OID_EMAIL: &[u64] = &[1, 2, 840, 113_549, 1, 9, 1];

impl Subject {
    /// A subject of a common name only.
    pub fn common_name(name: &str) -> Self {
        Self { common_name: Some(name.to_owned()), ..Self::default() }
    }

    /// True when nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The name as it goes into a certificate: order and string types are those of Go, and so of cfssl.
    pub(crate) fn to_distinguished_name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        for (ty, value) in [
            (DnType::CountryName, &self.country),
            (DnType::StateOrProvinceName, &self.state),
            (DnType::LocalityName, &self.locality),
            (DnType::OrganizationName, &self.organization),
            (DnType::OrganizationalUnitName, &self.organizational_unit),
            (DnType::CommonName, &self.common_name),
            (DnType::CustomDnType(OID_SERIAL_NUMBER.to_vec()), &self.serial_number),
        ] {
            if let Some(value) = value {
                name.push(ty, directory_string(value));
            }
        }
        if let Some(email) = &self.email {
            // IA5String by RFC 2985. The parser let only ASCII through; a value built in code may differ.
            let value = email
                .as_str()
                .try_into()
                .map_or_else(|_| DnValue::Utf8String(email.clone()), DnValue::Ia5String);
            name.push(DnType::CustomDnType(OID_EMAIL.to_vec()), value);
        }
        name
    }
}

/// `PrintableString` where the characters allow it, else `UTF8String`. A question mark would be allowed, but the
/// DER writer below rcgen panics on it ([`UNWRITABLE`]).
fn directory_string(value: &str) -> DnValue {
    match value.try_into() {
        Ok(printable) if !value.as_bytes().contains(&UNWRITABLE) => DnValue::PrintableString(printable),
        _ => DnValue::Utf8String(value.to_owned()),
    }
}

/// The one character of a `PrintableString` (X.680, section 41.4) that yasna 0.6 refuses to write, by panic.
pub(crate) const UNWRITABLE: u8 = b'?';

const FIELDS: &[&str] =
    &["CN", "hosts", "key", "names", "ca", "serialnumber", "extensions", "delegation_enabled", "crl_url"];
const KEY_FIELDS: &[&str] = &["algo", "size"];
const NAME_FIELDS: &[&str] = &["C", "ST", "L", "O", "OU", "E", "SerialNumber", "OID"];
const CA_FIELDS: &[&str] = &["expiry", "pathlen", "pathlenzero", "backdate"];

impl CertRequest {
    /// Reads a CSR JSON; `file` is its name in error texts.
    ///
    /// # Errors
    /// Names the file and the field that is wrong, unknown or not supported.
    pub fn parse(file: &str, json: &[u8]) -> Result<Self, InputError> {
        let value = input::parse(file, json)?;
        let root = Object::root(file, &value, FIELDS)?;
        root.refuse(&["extensions", "delegation_enabled", "crl_url"], "")?;
        let subject = subject(&root)?;
        let hosts = root.hosts("hosts")?;
        let key = match root.object("key", KEY_FIELDS)? {
            Some(object) => key(&object)?,
            // cfssl's NewKeyRequest.
            None => KeySpec::Ecdsa(Curve::P256),
        };
        let ca = root.object("ca", CA_FIELDS)?.map(|object| ca(&object)).transpose()?;
        Ok(Self { subject, hosts, key, ca })
    }

    /// Checks that a request without a `ca` section of its own was given, as for every certificate but a CA's.
    ///
    /// # Errors
    /// There is a `ca` section; `file` is named.
    pub fn require_no_ca(&self, file: &str) -> Result<(), InputError> {
        if self.ca.is_none() {
            return Ok(());
        }
        Err(InputError::Field { file: file.to_owned(), field: "ca".into(), problem: Problem::OnlyForCa })
    }
}

fn subject(root: &Object<'_>) -> Result<Subject, InputError> {
    let mut subject = Subject::default();
    set(&mut subject.common_name, root, "CN")?;
    for name in root.objects("names", NAME_FIELDS)? {
        name.refuse(&["OID"], "")?;
        set(&mut subject.country, &name, "C")?;
        set(&mut subject.state, &name, "ST")?;
        set(&mut subject.locality, &name, "L")?;
        set(&mut subject.organization, &name, "O")?;
        set(&mut subject.organizational_unit, &name, "OU")?;
        set(&mut subject.serial_number, &name, "SerialNumber")?;
        set(&mut subject.email, &name, "E")?;
        if let Some(text) = &subject.email
            && !matches!(Host::parse(text), Ok(Host::Email(_)))
        {
            return Err(name.error("E", Problem::BadEmail { text: text.clone() }));
        }
    }
    set(&mut subject.serial_number, root, "serialnumber")?;
    if subject.is_empty() {
        return Err(root.error("CN", Problem::EmptySubject));
    }
    Ok(subject)
}

fn set(slot: &mut Option<String>, object: &Object<'_>, field: &str) -> Result<(), InputError> {
    let Some(value) = object.string(field)? else { return Ok(()) };
    if value.chars().any(char::is_control) {
        return Err(object.error(field, Problem::Control));
    }
    match slot.replace(value.to_owned()) {
        // One RDN per attribute is what rcgen writes; cfssl would write a set of both.
        Some(_) => Err(object.error(field, Problem::SecondValue)),
        None => Ok(()),
    }
}

fn key(object: &Object<'_>) -> Result<KeySpec, InputError> {
    let algorithm = object
        .string("algo")?
        .ok_or_else(|| object.error("algo", Problem::Missing { hint: "write rsa, ecdsa or ed25519" }))?;
    let size = object.number("size")?;
    KeySpec::new(algorithm, size).map_err(|problem| {
        let field = if matches!(problem, Problem::KeyAlgorithm { .. }) { "algo" } else { "size" };
        object.error(field, problem)
    })
}

impl KeySpec {
    /// The key that cfssl's `algo` and `size` mean; for Ed25519, which has one size, 0 and 256 will do.
    ///
    /// # Errors
    /// [`Problem::KeyAlgorithm`] or [`Problem::KeySize`].
    pub fn new(algorithm: &str, size: u64) -> Result<Self, Problem> {
        let wrong = |algorithm, sizes| Problem::KeySize { algorithm, size, sizes };
        Ok(match (algorithm, size) {
            ("rsa", 2048) => Self::Rsa(RsaSize::Bits2048),
            ("rsa", 3072) => Self::Rsa(RsaSize::Bits3072),
            ("rsa", 4096) => Self::Rsa(RsaSize::Bits4096),
            ("ecdsa", 256) => Self::Ecdsa(Curve::P256),
            ("ecdsa", 384) => Self::Ecdsa(Curve::P384),
            ("ecdsa", 521) => Self::Ecdsa(Curve::P521),
            ("ed25519", 0 | 256) => Self::Ed25519,
            ("rsa", _) => return Err(wrong("rsa", "2048, 3072 and 4096")),
            ("ecdsa", _) => return Err(wrong("ecdsa", "256, 384 and 521")),
            ("ed25519", _) => return Err(wrong("ed25519", "256, or no size at all")),
            _ => return Err(Problem::KeyAlgorithm { algorithm: algorithm.to_owned() }),
        })
    }
}

fn ca(object: &Object<'_>) -> Result<CaOptions, InputError> {
    let expiry = object.duration("expiry")?.unwrap_or(CA_EXPIRY);
    if expiry.is_zero() {
        return Err(object.error("expiry", Problem::ZeroDuration));
    }
    let backdate = object.duration("backdate")?.filter(|d| !d.is_zero()).unwrap_or(BACKDATE);
    if backdate >= expiry {
        return Err(object.error("backdate", Problem::BackdateTooLong));
    }
    let max_path_len = profile::path_length(object, "pathlen", "pathlenzero")?;
    Ok(CaOptions { expiry, backdate, constraint: CaConstraint { max_path_len } })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
