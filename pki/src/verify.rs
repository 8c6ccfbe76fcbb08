//! Whether a signature over a certificate or request holds, by webpki's algorithms.
//!
//! These are the algorithms rustls accepts in a chain: RSA from 2048 bits, ECDSA over P-256, P-384 and P-521,
//! Ed25519; nothing with SHA-1. What none of them can check does not hold. (x509-parser's own check knows no
//! ECDSA with SHA-512, which is what a P-521 key signs with.)

use rustls_pki_types::SubjectPublicKeyInfoDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::x509::SubjectPublicKeyInfo;

/// True when `issuer` has the issuer's name and its key made the certificate's signature.
pub(crate) fn signed_by(cert: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    cert.issuer().as_raw() == issuer.subject().as_raw()
        && holds(
            &cert.signature_algorithm.algorithm,
            cert.tbs_certificate.as_ref(),
            &cert.signature_value.data,
            issuer.public_key(),
        )
}

/// True when the request is signed by the key it asks a certificate for.
pub(crate) fn proves_possession(csr: &X509CertificationRequest<'_>) -> bool {
    let info = &csr.certification_request_info;
    holds(&csr.signature_algorithm.algorithm, info.raw, &csr.signature_value.data, &info.subject_pki)
}

fn holds(algorithm: &Oid<'_>, message: &[u8], signature: &[u8], signer: &SubjectPublicKeyInfo<'_>) -> bool {
    let info = SubjectPublicKeyInfoDer::from(signer.raw);
    let Ok(key) = webpki::RawPublicKeyEntity::try_from(&info) else { return false };
    webpki::ALL_VERIFICATION_ALGS
        .iter()
        .filter(|known| starts_with_oid(known.signature_alg_id().as_ref(), algorithm.as_bytes()))
        .any(|known| key.verify_signature(*known, message, signature).is_ok())
}

/// Whether an `AlgorithmIdentifier` (without its outer header) names this algorithm; parameters may follow.
fn starts_with_oid(identifier: &[u8], oid: &[u8]) -> bool {
    const OBJECT_IDENTIFIER: u8 = 0x06;
    match identifier {
        [OBJECT_IDENTIFIER, length, rest @ ..] => usize::from(*length) == oid.len() && rest.starts_with(oid),
        _ => false,
    }
}
