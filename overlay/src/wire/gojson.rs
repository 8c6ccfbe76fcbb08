//! Reading JSON objects with the rules of Go's `encoding/json`, which is what wrote and read these values first:
//! keys match exactly or else without regard to case, unknown keys are ignored, `null` leaves the default, and a
//! value of the wrong type is an error.

use std::net::Ipv4Addr;

use serde_json::{Map, Value};

/// What is wrong with a JSON text. `field` is the name as documented, not as spelled in the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON at all.
    #[error("invalid JSON: {0}")]
    Syntax(String),
    /// The text is JSON, but not an object.
    #[error("expected a JSON object, found {0}")]
    NotObject(&'static str),
    /// A field has the wrong type or an impossible value.
    #[error("{field}: expected {want}, found {found}")]
    Field {
        /// The field's documented name.
        field: &'static str,
        /// What belongs there.
        want: &'static str,
        /// What was there, as JSON.
        found: String,
    },
}

/// Parses `text` into an object.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, JsonError> {
    match serde_json::from_str(text).map_err(|e| JsonError::Syntax(e.to_string()))? {
        Value::Object(map) => Ok(map),
        other => Err(JsonError::NotObject(kind(&other))),
    }
}

/// A JSON type's name for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value under `name`, preferring the exact spelling; `None` when absent or `null`.
pub(crate) fn field<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name)
        .or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
        .filter(|value| !value.is_null())
}

fn typed<T>(
    map: &Map<String, Value>,
    field_name: &'static str,
    want: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>, JsonError> {
    field(map, field_name)
        .map(|value| {
            read(value).ok_or_else(|| JsonError::Field { field: field_name, want, found: value.to_string() })
        })
        .transpose()
}

pub(crate) fn string(map: &Map<String, Value>, name: &'static str) -> Result<Option<String>, JsonError> {
    typed(map, name, "a string", |v| v.as_str().map(str::to_owned))
}

pub(crate) fn ipv4(map: &Map<String, Value>, name: &'static str) -> Result<Option<Ipv4Addr>, JsonError> {
    typed(map, name, "an IPv4 address in a string", |v| v.as_str()?.parse().ok())
}

pub(crate) fn unsigned(map: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, JsonError> {
    typed(map, name, "a whole number, not negative", Value::as_u64)
}

pub(crate) fn boolean(map: &Map<String, Value>, name: &'static str) -> Result<Option<bool>, JsonError> {
    typed(map, name, "true or false", Value::as_bool)
}
