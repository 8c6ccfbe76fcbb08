//! The JSON in which cfssl hands over a certificate, its request and its key.
//!
//! Two forms: the bare one, which `cfssl gencert` prints, and the API's, which wraps the same in
//! `{"success": ..., "result": {...}, "errors": [...]}`. `cfssljson` (here `cli pki json`) turns either into
//! files. Source: `cli.PrintCert` and `cmd/cfssljson` of cfssl.

use serde_json::{Map, Value};

/// Certificate, request and key as PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The certificate.
    pub cert: Option<String>,
    /// The signing request.
    pub csr: Option<String>,
    /// The private key.
    pub key: Option<String>,
}

/// Why an envelope cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Nothing was there.
    #[error("{file}: empty; the command that should have written it failed, see its own message")]
    Empty {
        /// The input, as the caller named it.
        file: String,
    },
    /// Not JSON, or no object.
    #[error("{file}: not the JSON that gencert prints: {why}")]
    Syntax {
        /// The input, as the caller named it.
        file: String,
        /// The parser's words.
        why: String,
    },
    /// The API's answer says that the request failed.
    #[error("{file}: the request failed: {}", .messages.join("; "))]
    Failed {
        /// The input, as the caller named it.
        file: String,
        /// The messages in it.
        messages: Vec<String>,
    },
    /// A field that is no PEM text.
    #[error("{file}: {field}: expected PEM text with -----BEGIN {label}-----")]
    NotPem {
        /// The input, as the caller named it.
        file: String,
        /// The field.
        field: &'static str,
        /// The label its PEM has.
        label: &'static str,
    },
    /// A field of other cfssl commands.
    #[error("{file}: {field}: not supported; only cert, csr and key can be written")]
    Unsupported {
        /// The input, as the caller named it.
        file: String,
        /// The field.
        field: &'static str,
    },
    /// Neither certificate nor key nor request.
    #[error("{file}: there is no cert, csr or key in it")]
    Nothing {
        /// The input, as the caller named it.
        file: String,
    },
}

/// Each part with the names cfssl's two forms have for it.
const CERT: (&str, &str, &str) = ("cert", "certificate", "CERTIFICATE");
const CSR: (&str, &str, &str) = ("csr", "certificate_request", "CERTIFICATE REQUEST");
const KEY: (&str, &str, &str) = ("key", "private_key", "PRIVATE KEY");

impl Envelope {
    /// The line that `cfssl gencert` prints: one JSON object and a newline.
    pub fn to_json(&self) -> String {
        let fields = [("cert", &self.cert), ("csr", &self.csr), ("key", &self.key)];
        let present = fields.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
        // A Value prints itself, and cannot fail at it as a serializer could; the order is that of the names,
        // which is the order in which cfssl prints them.
        let object: Map<String, Value> = present.map(|(name, text)| (name.to_owned(), text.into())).collect();
        format!("{}\n", Value::Object(object))
    }

    /// Reads either form; `file` is its name in error texts.
    ///
    /// # Errors
    /// Says what is wrong, and passes on the messages of an API answer that reports a failure.
    pub fn parse(file: &str, json: &[u8]) -> Result<Self, ApiError> {
        let owned = || file.to_owned();
        if json.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::Empty { file: owned() });
        }
        let syntax = |why: String| ApiError::Syntax { file: owned(), why };
        let value: Value = serde_json::from_slice(json).map_err(|e| syntax(e.to_string()))?;
        let Value::Object(outer) = value else { return Err(syntax("not an object {...}".to_owned())) };
        let fields = match outer.get("success") {
            None => &outer,
            Some(Value::Bool(true)) => match outer.get("result") {
                Some(Value::Object(result)) => result,
                _ => return Err(syntax("no object \"result\" in it".to_owned())),
            },
            Some(_) => return Err(ApiError::Failed { file: owned(), messages: messages(&outer) }),
        };
        for field in ["encrypted_key", "ocspResponse", "bundle", "result"] {
            if fields.contains_key(field) {
                return Err(ApiError::Unsupported { file: owned(), field });
            }
        }
        let envelope = Self {
            cert: part(file, fields, CERT)?,
            csr: part(file, fields, CSR)?,
            key: part(file, fields, KEY)?,
        };
        if envelope == Self::default() { Err(ApiError::Nothing { file: owned() }) } else { Ok(envelope) }
    }
}

fn part(
    file: &str,
    fields: &Map<String, Value>,
    (bare, api, label): (&'static str, &'static str, &'static str),
) -> Result<Option<String>, ApiError> {
    let (field, value) = match (fields.get(bare), fields.get(api)) {
        (Some(value), _) => (bare, value),
        (None, Some(value)) => (api, value),
        (None, None) => return Ok(None),
    };
    let end_of_label = format!("{label}-----");
    match value {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::Null => Ok(None),
        // RSA PRIVATE KEY and EC PRIVATE KEY end alike, NEW CERTIFICATE REQUEST too.
        Value::String(text) if text.starts_with("-----BEGIN ") && text.contains(&end_of_label) => {
            Ok(Some(text.clone()))
        }
        _ => Err(ApiError::NotPem { file: file.to_owned(), field, label }),
    }
}

fn messages(outer: &Map<String, Value>) -> Vec<String> {
    let list = outer.get("errors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let texts: Vec<String> =
        list.iter().filter_map(|e| e.get("message")?.as_str()).map(str::to_owned).collect();
    if texts.is_empty() { vec!["no message in it".to_owned()] } else { texts }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const CERT_PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
    const CSR_PEM: &str = "-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n";
    const KEY_PEM: &str = "-----BEGIN RSA PRIVATE KEY-----\nMA==\n-----END RSA PRIVATE KEY-----\n";

    fn full() -> Envelope {
        Envelope { cert: Some(CERT_PEM.into()), csr: Some(CSR_PEM.into()), key: Some(KEY_PEM.into()) }
    }

    #[test]
    fn the_envelope_is_what_cfssl_prints_and_reads_back() {
        let json = full().to_json();
        assert_eq!(
            json,
            "{\"cert\":\"-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\\n\",\
             \"csr\":\"-----BEGIN CERTIFICATE REQUEST-----\\nMA==\\n-----END CERTIFICATE REQUEST-----\\n\",\
             \"key\":\"-----BEGIN RSA PRIVATE KEY-----\\nMA==\\n-----END RSA PRIVATE KEY-----\\n\"}\n"
        );
        assert_eq!(Envelope::parse("-", json.as_bytes()), Ok(full()));
        let no_key = Envelope { key: None, ..full() };
        assert!(!no_key.to_json().contains("key\""));
        assert_eq!(Envelope::parse("-", no_key.to_json().as_bytes()), Ok(no_key));
    }

    #[test]
    fn the_apis_form_is_read() {
        let json = serde_json::json!({
            "success": true, "errors": [], "messages": [],
            "result": {
                "certificate": CERT_PEM, "certificate_request": CSR_PEM, "private_key": KEY_PEM,
                "sums": {"certificate": {"md5": "", "sha-1": ""}},
            },
        });
        assert_eq!(Envelope::parse("-", json.to_string().as_bytes()), Ok(full()));
    }

    #[test]
    fn every_failure_is_told_apart() {
        let file = || "-".to_owned();
        let messages = |m: &str| ApiError::Failed { file: file(), messages: vec![m.into()] };
        let not_pem = |field, label| ApiError::NotPem { file: file(), field, label };
        for (json, want) in [
            (" \n", ApiError::Empty { file: file() }),
            ("{}", ApiError::Nothing { file: file() }),
            (r#"{"cert": ""}"#, ApiError::Nothing { file: file() }),
            (r#"{"success": false, "errors": [{"code": 1, "message": "bad"}]}"#, messages("bad")),
            (r#"{"success": false}"#, messages("no message in it")),
            (r#"{"cert": 5}"#, not_pem("cert", "CERTIFICATE")),
            (r#"{"private_key": "secret"}"#, not_pem("private_key", "PRIVATE KEY")),
            (r#"{"bundle": "x"}"#, ApiError::Unsupported { file: file(), field: "bundle" }),
        ] {
            assert_eq!(Envelope::parse("-", json.as_bytes()), Err(want), "{json}");
        }
        for json in ["nonsense", "[]", r#"{"success": true}"#] {
            assert!(matches!(Envelope::parse("-", json.as_bytes()), Err(ApiError::Syntax { .. })), "{json}");
        }
    }
}
