//! Strict reading of cfssl's JSON: every complaint names the file and the field.
//!
//! Field names match without regard to case, as Go's decoder matches them, and `null` counts as absent. Other
//! than cfssl, a field nobody knows is an error: a mistyped `host` would otherwise give a certificate without
//! names. Fields starting with `_` or `//` are comments.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::duration::{self, DurationError};
use crate::host::{Host, HostError};

/// An input file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The file is no JSON at all.
    #[error("{file}: line {line}, column {column}: not valid JSON: {why}")]
    Syntax {
        /// The file, as the caller named it.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words.
        why: String,
    },
    /// One field is wrong.
    #[error("{file}: {field}: {problem}")]
    Field {
        /// The file, as the caller named it.
        file: String,
        /// The field, as `names[0].C`; or what is wrong, when no field is at fault.
        field: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Another JSON type stands here.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What belongs here.
        expected: &'static str,
        /// What is here.
        found: &'static str,
    },
    /// A field that must be there is not.
    #[error("missing; {hint}")]
    Missing {
        /// What to write.
        hint: &'static str,
    },
    /// No such field exists.
    #[error("unknown field; known here are {}", .known.join(", "))]
    Unknown {
        /// The names that exist.
        known: &'static [&'static str],
    },
    /// cfssl knows the field, this program does not do it.
    #[error("not supported; remove it{hint}")]
    Unsupported {
        /// More advice, or nothing.
        hint: &'static str,
    },
    /// Not a duration.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// A duration that must be longer than zero.
    #[error("must be longer than zero")]
    ZeroDuration,
    /// Not a host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Not a usage cfssl knows.
    #[error("unknown usage {name:?}; known are {known}")]
    UnknownUsage {
        /// The name given.
        name: String,
        /// The names there are, with commas.
        known: String,
    },
    /// No usage in a profile that is used for signing.
    #[error("no usages; name at least one, such as \"server auth\"")]
    NoUsages,
    /// The profile asked for is not in the file.
    #[error("no such profile; {}", profiles(.known))]
    UnknownProfile {
        /// The profiles there are.
        known: Vec<String>,
    },
    /// A key algorithm we do not have.
    #[error("unknown key algorithm {algorithm:?}; known are rsa, ecdsa and ed25519")]
    KeyAlgorithm {
        /// The name given.
        algorithm: String,
    },
    /// A size the algorithm does not have here.
    #[error("{size} is no size of {algorithm} keys here; sizes are {sizes}")]
    KeySize {
        /// The algorithm.
        algorithm: &'static str,
        /// The size given.
        size: u64,
        /// The sizes there are.
        sizes: &'static str,
    },
    /// Text that cannot stand in a name.
    #[error("contains a control character")]
    Control,
    /// An e-mail address that is none.
    #[error("{text:?} is not a valid e-mail address")]
    BadEmail {
        /// The text given.
        text: String,
    },
    /// The same attribute twice.
    #[error("a second value of this attribute; one is supported")]
    SecondValue,
    /// Nothing names the subject.
    #[error("the subject is empty; give CN or names")]
    EmptySubject,
    /// A number out of its range.
    #[error("{value} is out of range, 0 to {max}")]
    Range {
        /// The number given.
        value: u64,
        /// The largest possible.
        max: u64,
    },
    /// pathlen and pathlenzero contradict each other.
    #[error("contradicts pathlen, which is not zero")]
    PathLength,
    /// The field is only for another kind of certificate.
    #[error("only a CA has this section: use -initca, or remove it")]
    OnlyForCa,
    /// Backdated so far that the certificate would never be valid.
    #[error("is not shorter than the expiry, so the certificate would be expired from the start")]
    BackdateTooLong,
}

fn profiles(known: &[String]) -> String {
    if known.is_empty() { "the file has none".to_owned() } else { format!("known are {}", known.join(", ")) }
}

/// One JSON object together with where it stands.
pub(crate) struct Object<'a> {
    file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
}

/// Parses a whole file.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Value, InputError> {
    serde_json::from_slice(bytes).map_err(|e| InputError::Syntax {
        file: file.to_owned(),
        line: e.line(),
        column: e.column(),
        // serde_json puts the position behind its message; it is already in front of ours.
        why: e.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    })
}

impl<'a> Object<'a> {
    /// The file's outermost object; its fields must be among `known`.
    pub(crate) fn root(
        file: &'a str,
        value: &'a Value,
        known: &'static [&'static str],
    ) -> Result<Self, InputError> {
        Self::new(file, String::new(), value, known)
    }

    fn new(
        file: &'a str,
        path: String,
        value: &'a Value,
        known: &'static [&'static str],
    ) -> Result<Self, InputError> {
        let Value::Object(map) = value else {
            let field = if path.is_empty() { "the whole file".to_owned() } else { path };
            return Err(InputError::Field {
                file: file.to_owned(),
                field,
                problem: Problem::WrongType { expected: "an object {...}", found: type_name(value) },
            });
        };
        let object = Self { file, path, map };
        for name in map.keys() {
            let comment = name.starts_with('_') || name.starts_with("//");
            if !comment && !known.iter().any(|k| k.eq_ignore_ascii_case(name)) {
                return Err(object.error(name, Problem::Unknown { known }));
            }
        }
        Ok(object)
    }

    /// An error about the field `name` of this object.
    pub(crate) fn error(&self, name: &str, problem: Problem) -> InputError {
        InputError::Field { file: self.file.to_owned(), field: self.field(name), problem }
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field's value; an exact match of the name wins over one in another case, `null` is absent.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map
            .get(name)
            .or_else(|| self.map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v))
            .filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, expected: &'static str, found: &Value) -> InputError {
        self.error(name, Problem::WrongType { expected, found: type_name(found) })
    }

    /// A string; absent and empty are both `None`, as Go's zero value makes them.
    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>, InputError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.as_str()).filter(|s| !s.is_empty())),
            Some(other) => Err(self.wrong(name, "a string", other)),
        }
    }

    /// A boolean, false when absent.
    pub(crate) fn bool(&self, name: &str) -> Result<bool, InputError> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(name, "true or false", other)),
        }
    }

    /// A whole number from 0, 0 when absent.
    pub(crate) fn number(&self, name: &str) -> Result<u64, InputError> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| self.wrong(name, "a whole number from 0", value)),
        }
    }

    /// A duration; absent and empty are `None`.
    pub(crate) fn duration(&self, name: &str) -> Result<Option<Duration>, InputError> {
        self.string(name)?
            .map(|text| duration::parse(text).map_err(|e| self.error(name, e.into())))
            .transpose()
    }

    /// A list of strings, empty when absent.
    pub(crate) fn strings(&self, name: &str) -> Result<Vec<&'a str>, InputError> {
        let mut strings = Vec::new();
        for (index, value) in self.list(name, "a list of strings")?.iter().enumerate() {
            let Value::String(s) = value else {
                return Err(self.wrong(&format!("{name}[{index}]"), "a string", value));
            };
            strings.push(s.as_str());
        }
        Ok(strings)
    }

    /// A list of hosts, empty when absent.
    ///
    /// `[""]` is empty as well: guides recommend it to keep cfssl from warning about a client certificate.
    pub(crate) fn hosts(&self, name: &str) -> Result<Vec<Host>, InputError> {
        let texts = self.strings(name)?;
        if texts == [""] {
            return Ok(Vec::new());
        }
        texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                Host::parse(text).map_err(|e| self.error(&format!("{name}[{i}]"), Problem::Host(e)))
            })
            .collect()
    }

    fn list(&self, name: &str, expected: &'static str) -> Result<&'a [Value], InputError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(self.wrong(name, expected, other)),
        }
    }

    /// An object inside this one.
    pub(crate) fn object(
        &self,
        name: &str,
        known: &'static [&'static str],
    ) -> Result<Option<Object<'a>>, InputError> {
        self.get(name).map(|value| Object::new(self.file, self.field(name), value, known)).transpose()
    }

    /// A list of objects, empty when absent.
    pub(crate) fn objects(
        &self,
        name: &str,
        known: &'static [&'static str],
    ) -> Result<Vec<Object<'a>>, InputError> {
        self.list(name, "a list of objects")?
            .iter()
            .enumerate()
            .map(|(i, value)| Object::new(self.file, format!("{}[{i}]", self.field(name)), value, known))
            .collect()
    }

    /// The objects of a map with names of the user's choice, by name.
    pub(crate) fn named_objects(
        &self,
        name: &str,
        known: &'static [&'static str],
    ) -> Result<Vec<(&'a str, Object<'a>)>, InputError> {
        let map = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong(name, "an object {...}", other)),
        };
        map.iter()
            .map(|(key, value)| {
                let path = format!("{}.{key}", self.field(name));
                Object::new(self.file, path, value, known).map(|object| (key.as_str(), object))
            })
            .collect()
    }

    /// Refuses the fields of `names` that are there and say something: cfssl acts on them, we do not.
    ///
    /// A field at Go's zero value (`false`, `0`, `""`, `[]`, `{}`) says nothing and passes.
    pub(crate) fn refuse(&self, names: &[&str], hint: &'static str) -> Result<(), InputError> {
        for name in names {
            let says_something = match self.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Bool(true)) => true,
                Some(Value::Number(n)) => n.as_f64() != Some(0.0),
                Some(Value::String(s)) => !s.is_empty(),
                Some(Value::Array(a)) => !a.is_empty(),
                Some(Value::Object(o)) => !o.is_empty(),
            };
            if says_something {
                return Err(self.error(name, Problem::Unsupported { hint }));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({}: {})", self.file, self.path)
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
