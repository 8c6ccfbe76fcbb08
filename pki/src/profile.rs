//! cfssl's `ca-config.json`: what a CA grants to the certificates it signs.
//!
//! Source: cfssl's `config` package. Differences, all towards saying so: a profile that is asked for and not
//! there is an error (cfssl takes the default profile instead), so is a usage nobody knows (cfssl drops it),
//! and so are the settings that only make sense with cfssl's servers.

use std::collections::BTreeMap;
use std::time::Duration;

use rcgen::KeyUsagePurpose;

use crate::host::{Host, HostError, HostProblem};
use crate::input::{self, InputError, Object, Problem};
use crate::usage::{self, Usages};

/// How long before the signing a certificate starts to be valid, where nothing else is said: clocks differ.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// How long a certificate is valid where no configuration says so: a year, as in cfssl.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(8_760 * 3_600);

/// What the CA writes into a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Time from not-before to not-after.
    pub expiry: Duration,
    /// Time from not-before to the signing.
    pub backdate: Duration,
    /// What the key may be used for.
    pub usages: Usages,
    /// Set where the certificate is one of an (intermediate) CA.
    pub ca: Option<CaConstraint>,
    /// Where revocation lists are, if anywhere.
    pub crl_url: Option<String>,
}

/// The basic constraints of a CA certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaConstraint {
    /// How many CA certificates may stand between this one and the last; `None` is any number.
    pub max_path_len: Option<u8>,
}

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    default: Profile,
    profiles: BTreeMap<String, Profile>,
}

const CONFIG_FIELDS: &[&str] = &["signing", "auth_keys", "remotes"];
const SIGNING_FIELDS: &[&str] = &["default", "profiles"];
const PROFILE_FIELDS: &[&str] = &[
    "usages",
    "expiry",
    "backdate",
    "ca_constraint",
    "crl_url",
    "is_ca",
    "issuer_urls",
    "ocsp_url",
    "policies",
    "ocsp_no_check",
    "auth_key",
    "auth_remote",
    "prev_auth_key",
    "remote",
    "not_before",
    "not_after",
    "name_whitelist",
    "ct_log_servers",
    "allowed_extensions",
    "cert_store",
    "copy_extensions",
    "CSRWhitelist",
    "ClientProvidesSerialNumbers",
    "lint_error_level",
    "ignored_lints",
    "ignored_lint_sources",
];
const CONSTRAINT_FIELDS: &[&str] = &["is_ca", "max_path_len", "max_path_len_zero"];

impl Default for Profile {
    /// What cfssl grants without any configuration: a year as server and as client.
    fn default() -> Self {
        let usages = Usages {
            key: vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
            extended: vec![usage::SERVER_AUTH, usage::CLIENT_AUTH],
        };
        Self { expiry: DEFAULT_EXPIRY, backdate: BACKDATE, usages, ca: None, crl_url: None }
    }
}

impl Config {
    /// Reads `ca-config.json`; `file` is its name in error texts.
    ///
    /// # Errors
    /// Names the file and the field that is wrong, unknown or not supported.
    pub fn parse(file: &str, json: &[u8]) -> Result<Self, InputError> {
        let value = input::parse(file, json)?;
        let root = Object::root(file, &value, CONFIG_FIELDS)?;
        root.refuse(&["auth_keys", "remotes"], "; there is no signing over the network here")?;
        let signing = root.object("signing", SIGNING_FIELDS)?.ok_or_else(|| {
            root.error("signing", Problem::Missing { hint: "it holds \"default\" and \"profiles\"" })
        })?;
        let default = match signing.object("default", PROFILE_FIELDS)? {
            Some(object) => profile(&object)?,
            None => Profile::default(),
        };
        let mut profiles = BTreeMap::new();
        for (name, object) in signing.named_objects("profiles", PROFILE_FIELDS)? {
            let profile = profile(&object)?;
            if profile.usages.is_empty() {
                return Err(object.error("usages", Problem::NoUsages));
            }
            profiles.insert(name.to_owned(), profile);
        }
        Ok(Self { default, profiles })
    }

    /// The profile called `name`, or the default one; `file` is for the error text.
    ///
    /// # Errors
    /// There is no such profile, or the default one grants no usage.
    pub fn profile(&self, file: &str, name: Option<&str>) -> Result<&Profile, InputError> {
        let error = |field: String, problem| InputError::Field { file: file.to_owned(), field, problem };
        match name {
            Some(name) => self.profiles.get(name).ok_or_else(|| {
                error(
                    format!("signing.profiles.{name}"),
                    Problem::UnknownProfile { known: self.profiles.keys().cloned().collect() },
                )
            }),
            None if self.default.usages.is_empty() => {
                Err(error("signing.default.usages".to_owned(), Problem::NoUsages))
            }
            None => Ok(&self.default),
        }
    }
}

fn profile(object: &Object<'_>) -> Result<Profile, InputError> {
    object.refuse(
        &["auth_key", "auth_remote", "prev_auth_key", "remote"],
        "; there is no signing over the network here",
    )?;
    object.refuse(&["not_before", "not_after"], " and use \"expiry\" and \"backdate\"")?;
    object.refuse(&["is_ca"], " and use \"ca_constraint\"")?;
    object.refuse(
        &[
            "issuer_urls",
            "ocsp_url",
            "policies",
            "ocsp_no_check",
            "name_whitelist",
            "ct_log_servers",
            "allowed_extensions",
            "cert_store",
            "copy_extensions",
            "CSRWhitelist",
            "ClientProvidesSerialNumbers",
            "lint_error_level",
            "ignored_lints",
            "ignored_lint_sources",
        ],
        "",
    )?;
    let expiry = object.duration("expiry")?.ok_or_else(|| {
        object.error("expiry", Problem::Missing { hint: "write a duration such as \"87600h\"" })
    })?;
    if expiry.is_zero() {
        return Err(object.error("expiry", Problem::ZeroDuration));
    }
    // As in cfssl, zero is the default and not "no backdating".
    let backdate = object.duration("backdate")?.filter(|d| !d.is_zero()).unwrap_or(BACKDATE);
    if backdate >= expiry {
        return Err(object.error("backdate", Problem::BackdateTooLong));
    }
    let mut usages = Usages::default();
    for (i, name) in object.strings("usages")?.into_iter().enumerate() {
        if !usages.add(name) {
            let known = usage::names().collect::<Vec<_>>().join(", ");
            let problem = Problem::UnknownUsage { name: name.to_owned(), known };
            return Err(object.error(&format!("usages[{i}]"), problem));
        }
    }
    let ca = match object.object("ca_constraint", CONSTRAINT_FIELDS)? {
        Some(constraint) => ca_constraint(&constraint)?,
        None => None,
    };
    let crl_url = object.string("crl_url")?.map(str::to_owned);
    if let Some(url) = &crl_url
        && !matches!(Host::parse(url), Ok(Host::Uri(_)))
    {
        let problem = Problem::Host(HostError { host: url.clone(), why: HostProblem::BadUri });
        return Err(object.error("crl_url", problem));
    }
    Ok(Profile { expiry, backdate, usages, ca, crl_url })
}

fn ca_constraint(object: &Object<'_>) -> Result<Option<CaConstraint>, InputError> {
    let max_path_len = path_length(object, "max_path_len", "max_path_len_zero")?;
    Ok(object.bool("is_ca")?.then_some(CaConstraint { max_path_len }))
}

/// Go cannot tell an absent number from 0, so cfssl has a second field which says that the 0 is meant.
pub(crate) fn path_length(object: &Object<'_>, length: &str, zero: &str) -> Result<Option<u8>, InputError> {
    let value = object.number(length)?;
    let zero_is_meant = object.bool(zero)?;
    match u8::try_from(value) {
        Ok(0) => Ok(zero_is_meant.then_some(0)),
        Ok(_) if zero_is_meant => Err(object.error(zero, Problem::PathLength)),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(object.error(length, Problem::Range { value, max: u8::MAX.into() })),
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
