//! The few bytes of DER needed to give a private key the form cfssl writes.
//!
//! rcgen hands out PKCS #8 (RFC 5958). cfssl writes PKCS #1 (RFC 8017 appendix A.1.2) for RSA and SEC 1
//! (RFC 5915) for ECDSA, and OpenSSL 3.0 cannot read version 2 of PKCS #8, in which Ed25519 keys come.

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
/// `[0]` of RFC 5915: the curve.
const EC_PARAMETERS: u8 = 0xa0;
/// `[1]` of RFC 5915: the public key.
const EC_PUBLIC_KEY: u8 = 0xa1;

/// The two parts of a PKCS #8 key that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pkcs8<'a> {
    /// The `AlgorithmIdentifier` with its header.
    algorithm: &'a [u8],
    /// The key in its algorithm's own form.
    key: &'a [u8],
}

impl<'a> Pkcs8<'a> {
    /// Takes a PKCS #8 key apart, of either version; `None` when it is none.
    ///
    /// Layout: SEQUENCE { INTEGER version, SEQUENCE algorithm, OCTET STRING key, ... }.
    pub(crate) fn parse(der: &'a [u8]) -> Option<Self> {
        let (body, []) = expect(der, SEQUENCE)? else { return None };
        let (_version, rest) = expect(body, INTEGER)?;
        let (_, after) = expect(rest, SEQUENCE)?;
        let algorithm = rest.get(..rest.len() - after.len())?;
        let (key, _attributes) = expect(after, OCTET_STRING)?;
        Some(Self { algorithm, key })
    }

    /// The same key as version 1, which everybody reads.
    pub(crate) fn to_v1(self) -> Vec<u8> {
        let version = tlv(INTEGER, &[&[0]]);
        tlv(SEQUENCE, &[&version, self.algorithm, &tlv(OCTET_STRING, &[self.key])])
    }

    /// An RSA key as PKCS #1: PKCS #8 carries exactly that.
    pub(crate) fn to_pkcs1(self) -> Vec<u8> {
        self.key.to_vec()
    }

    /// An ECDSA key as SEC 1, with the curve inside, for there is no `AlgorithmIdentifier` around it.
    ///
    /// Layout: SEQUENCE { INTEGER 1, OCTET STRING key, [0] curve, [1] public key }.
    pub(crate) fn to_sec1(self) -> Option<Vec<u8>> {
        let (algorithm, []) = expect(self.algorithm, SEQUENCE)? else { return None };
        let (_, _, curve) = split(algorithm)?;
        let (body, []) = expect(self.key, SEQUENCE)? else { return None };
        let (_version, rest) = expect(body, INTEGER)?;
        let (_secret, mut optional) = expect(rest, OCTET_STRING)?;
        let head = body.get(..body.len() - optional.len())?;
        if let Some((EC_PARAMETERS, _, after)) = split(optional) {
            optional = after;
        }
        if let Some((tag, _, _)) = split(optional)
            && tag != EC_PUBLIC_KEY
        {
            return None;
        }
        Some(tlv(SEQUENCE, &[head, &tlv(EC_PARAMETERS, &[curve]), optional]))
    }
}

/// The content of the first element, which must have this tag, and what follows it.
fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    split(der).filter(|(found, _, _)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag, content and rest of the first element; definite lengths below 64 KiB only.
fn split(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&length, rest) = rest.split_first()?;
            (usize::from(length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// One element of the parts, put together.
///
/// # Panics
/// When the content reaches 64 KiB; the largest key, RSA 8192, has not 5.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let length = u16::try_from(length).expect("a private key is far smaller than 64 KiB");
    let [high, low] = length.to_be_bytes();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(low),
        0x80..=0xff => out.extend([0x81, low]),
        0x100.. => out.extend([0x82, high, low]),
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_element_comes_apart_as_it_was_put_together(
            tag in any::<u8>(),
            content in proptest::collection::vec(any::<u8>(), 0..700),
            rest in proptest::collection::vec(any::<u8>(), 0..5),
        ) {
            let mut der = tlv(tag, &[&content]);
            der.extend_from_slice(&rest);
            prop_assert_eq!(split(&der), Some((tag, content.as_slice(), rest.as_slice())));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = split(&noise);
            if let Some(key) = Pkcs8::parse(&noise) {
                let _ = key.to_sec1();
                let v1 = key.to_v1();
                prop_assert_eq!(Pkcs8::parse(&v1), Some(key));
            }
        }
    }

    #[test]
    fn a_curve_already_inside_is_not_written_twice() {
        let curve = [0x06, 0x01, 0x2a];
        let algorithm = tlv(SEQUENCE, &[&[0x06, 0x01, 0x01], &curve]);
        let secret = [tlv(INTEGER, &[&[1]]), tlv(OCTET_STRING, &[&[7; 4]])].concat();
        let public = tlv(EC_PUBLIC_KEY, &[&[9; 4]]);
        let want = tlv(SEQUENCE, &[&secret, &tlv(EC_PARAMETERS, &[&curve]), &public]);
        for inside in [vec![], tlv(EC_PARAMETERS, &[&curve])] {
            let key = tlv(SEQUENCE, &[&secret, &inside, &public]);
            let pkcs8 = tlv(SEQUENCE, &[&tlv(INTEGER, &[&[0]]), &algorithm, &tlv(OCTET_STRING, &[&key])]);
            let sec1 = Pkcs8::parse(&pkcs8).and_then(Pkcs8::to_sec1);
            assert_eq!(sec1.as_ref(), Some(&want));
        }
    }
}
