//! cfssl's names for key usages and extended key usages (RFC 5280 sections 4.2.1.3 and 4.2.1.12).
//!
//! One table serves both ways: profiles are read with it, certificates shown with it.

use rcgen::KeyUsagePurpose;

/// What a certificate's key may be used for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usages {
    /// Bits of the key usage extension, in the order given, none twice.
    pub key: Vec<KeyUsagePurpose>,
    /// Object identifiers of the extended key usage extension, in the order given, none twice.
    pub extended: Vec<&'static [u64]>,
}

enum Meaning {
    Key(KeyUsagePurpose),
    Extended(&'static [u64]),
}

use Meaning::{Extended, Key};

/// Names, as cfssl's `config` package lists them. The first name of a meaning is the one we print.
///
/// cfssl spelled `content commitment` with a double t until 2018; files with either are about.
const TABLE: &[(&str, Meaning)] = &[
    ("digital signature", Key(KeyUsagePurpose::DigitalSignature)),
    ("signing", Key(KeyUsagePurpose::DigitalSignature)),
    ("content commitment", Key(KeyUsagePurpose::ContentCommitment)),
    ("content committment", Key(KeyUsagePurpose::ContentCommitment)),
    ("key encipherment", Key(KeyUsagePurpose::KeyEncipherment)),
    ("data encipherment", Key(KeyUsagePurpose::DataEncipherment)),
    ("key agreement", Key(KeyUsagePurpose::KeyAgreement)),
    ("cert sign", Key(KeyUsagePurpose::KeyCertSign)),
    ("crl sign", Key(KeyUsagePurpose::CrlSign)),
    ("encipher only", Key(KeyUsagePurpose::EncipherOnly)),
    ("decipher only", Key(KeyUsagePurpose::DecipherOnly)),
    ("any", Extended(&[2, 5, 29, 37, 0])),
    ("server auth", Extended(SERVER_AUTH)),
    ("client auth", Extended(CLIENT_AUTH)),
    ("code signing", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 3])),
    ("email protection", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 4])),
    ("s/mime", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 4])),
    ("ipsec end system", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 5])),
    ("ipsec tunnel", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 6])),
    ("ipsec user", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 7])),
    ("timestamping", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 8])),
    ("ocsp signing", Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 9])),
    ("microsoft sgc", Extended(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3])),
    ("netscape sgc", Extended(&[2, 16, 840, 1, 113_730, 4, 1])),
];

/// id-kp-serverAuth.
pub const SERVER_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
/// id-kp-clientAuth.
pub const CLIENT_AUTH: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];

impl Usages {
    /// Adds the usage cfssl calls `name`; false when cfssl knows no such name.
    #[must_use = "an unknown usage must be refused"]
    pub fn add(&mut self, name: &str) -> bool {
        match TABLE.iter().find(|(known, _)| *known == name) {
            Some((_, Key(usage))) => {
                if !self.key.contains(usage) {
                    self.key.push(*usage);
                }
                true
            }
            Some((_, Extended(oid))) => {
                if !self.extended.contains(oid) {
                    self.extended.push(oid);
                }
                true
            }
            None => false,
        }
    }

    /// True when there is no usage at all, which no certificate may have.
    pub fn is_empty(&self) -> bool {
        self.key.is_empty() && self.extended.is_empty()
    }
}

/// Every name a profile may use, for error texts.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// The name of bit `bit` of the key usage extension (0 is digital signature, 8 decipher only).
pub fn key_usage_name(bit: u8) -> Option<&'static str> {
    let usage = [
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::ContentCommitment,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DataEncipherment,
        KeyUsagePurpose::KeyAgreement,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::EncipherOnly,
        KeyUsagePurpose::DecipherOnly,
    ]
    .get(usize::from(bit))?;
    TABLE.iter().find_map(|(name, meaning)| match meaning {
        Key(known) if known == usage => Some(*name),
        Key(_) | Extended(_) => None,
    })
}

/// The name of an extended key usage, given as dotted numbers; the numbers themselves if it has none here.
pub fn extended_name(dotted: &str) -> String {
    TABLE
        .iter()
        .find_map(|(name, meaning)| match meaning {
            Extended(oid) if dotted_numbers(oid) == dotted => Some((*name).to_owned()),
            Key(_) | Extended(_) => None,
        })
        .unwrap_or_else(|| dotted.to_owned())
}

fn dotted_numbers(oid: &[u64]) -> String {
    oid.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synonyms_add_up_to_one_usage() {
        let mut usages = Usages::default();
        for name in ["signing", "digital signature", "email protection", "s/mime", "server auth"] {
            assert!(usages.add(name), "{name}");
        }
        assert_eq!(usages.key, [KeyUsagePurpose::DigitalSignature]);
        assert_eq!(usages.extended.len(), 2);
        assert!(!usages.add("server-auth"));
        assert!(!usages.add("Server Auth"), "cfssl's names are lower case");
    }

    #[test]
    fn every_name_of_the_table_is_known_and_shown_by_one_name() {
        for name in names() {
            let mut usages = Usages::default();
            assert!(usages.add(name), "{name}");
            for oid in &usages.extended {
                let shown = extended_name(&dotted_numbers(oid));
                assert!(Usages::default().add(&shown), "{name} is shown as {shown}");
            }
        }
        let shown: Vec<_> = (0..=9).map(key_usage_name).collect();
        assert_eq!(shown[0], Some("digital signature"));
        assert_eq!(shown[5], Some("cert sign"));
        assert_eq!(shown[8], Some("decipher only"));
        assert_eq!(shown[9], None);
        assert_eq!(extended_name("1.2.3"), "1.2.3");
    }
}
