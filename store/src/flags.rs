//! Go's command-line syntax, as etcd and flanneld take it.
//!
//! `-name`, `--name`, `-name=value` and `-name value` are all accepted; a boolean takes a value only after
//! `=`. Parsing stops at the first word that is no flag, or after `--`. A variable `PREFIX_SOME_FLAG` stands
//! in for a flag that is not on the command line. This module decides, it reads neither `argv` nor the
//! environment itself. Source: the `flag` package of Go's standard library, observed on etcd 3.4 and
//! flanneld 0.10.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No value, or `=true`, `=false` and Go's other spellings.
    Bool,
    /// One value; given again, the last one counts.
    Value,
    /// One value each time it is given; all count, in order.
    List,
}

/// One flag a program knows.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The value where neither the command line nor the environment gives one.
    pub default: &'static str,
    /// One line for the usage text.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that stands in for this flag: `etcd-prefix` with `FLANNELD` is
    /// `FLANNELD_ETCD_PREFIX`.
    pub fn variable(&self, prefix: &str) -> String {
        format!("{prefix}_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Env,
}

/// Why the command line cannot be used. The texts are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `-h` or `-help` was given.
    #[error("help requested")]
    Help,
    /// No such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value cannot be read as what the flag takes.
    #[error("invalid value \"{value}\" for flag -{name}: parse error")]
    Invalid {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
    },
    /// The same in an environment variable. Go drops such a value without a word; we do not.
    #[error("invalid value \"{value}\" in environment variable {variable}: parse error")]
    InvalidEnv {
        /// The variable.
        variable: String,
        /// What it holds.
        value: String,
    },
    /// The flag came last and takes a value.
    #[error("flag needs an argument: -{0}")]
    Missing(String),
    /// A word of dashes and no name, or an `=` without one.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
}

/// The flags as given, with environment and defaults behind them.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    values: BTreeMap<&'static str, (Source, Vec<String>)>,
    defaults: BTreeMap<&'static str, &'static str>,
    shadowed: Vec<String>,
    rest: Vec<String>,
}

impl Parsed {
    /// The value given, else the default; `None` where that is empty.
    pub fn value(&self, name: &str) -> Option<&str> {
        let given = self.values.get(name).and_then(|(_, all)| all.last()).map(String::as_str);
        given.or_else(|| self.defaults.get(name).copied()).filter(|value| !value.is_empty())
    }

    /// All values of a [`Kind::List`] flag, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        match self.values.get(name) {
            Some((_, all)) => all.iter().map(String::as_str).collect(),
            None => self.value(name).into_iter().collect(),
        }
    }

    /// The value of a [`Kind::Bool`] flag; `false` where it is not given and has no default.
    pub fn bool(&self, name: &str) -> bool {
        self.value(name).and_then(parse_bool).unwrap_or(false)
    }

    /// Where the value came from; `None` if the default holds.
    pub fn given(&self, name: &str) -> Option<Source> {
        self.values.get(name).map(|(source, _)| *source)
    }

    /// Names of the flags that were given, on the command line or in the environment, in order of name.
    pub fn given_names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.values.keys().copied()
    }

    /// Variables that were set while the command line gave the flag as well.
    pub fn shadowed(&self) -> &[String] {
        &self.shadowed
    }

    /// The words after the flags.
    pub fn rest(&self) -> &[String] {
        &self.rest
    }
}

/// Reads a boolean as Go's `strconv.ParseBool` does.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Reads `args` (without the program's name) by the table `flags`; `env` answers for a variable's name.
/// An empty variable counts as not set.
///
/// # Errors
/// The first thing that is wrong, in Go's words.
pub fn parse(
    flags: &[Flag],
    env_prefix: &str,
    args: &[String],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Parsed, FlagError> {
    let mut parsed =
        Parsed { defaults: flags.iter().map(|f| (f.name, f.default)).collect(), ..Parsed::default() };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.rest.extend(words.by_ref().cloned());
            break;
        }
        let Some(body) =
            word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|_| word.len() > 1)
        else {
            parsed.rest.push(word.clone());
            parsed.rest.extend(words.by_ref().cloned());
            break;
        };
        if body.is_empty() || body.starts_with('-') || body.starts_with('=') {
            return Err(FlagError::Syntax(word.clone()));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            return Err(if matches!(name, "h" | "help") {
                FlagError::Help
            } else {
                FlagError::Unknown(name.to_owned())
            });
        };
        let value = match (flag.kind, inline) {
            (Kind::Bool, None) => "true".to_owned(),
            (Kind::Bool, Some(value)) if parse_bool(&value).is_none() => {
                return Err(FlagError::Invalid { name: name.to_owned(), value });
            }
            (_, Some(value)) => value,
            (_, None) => words.next().cloned().ok_or_else(|| FlagError::Missing(name.to_owned()))?,
        };
        let (_, all) = parsed.values.entry(flag.name).or_insert((Source::Flag, Vec::new()));
        if flag.kind != Kind::List {
            all.clear();
        }
        all.push(value);
    }
    for flag in flags {
        let variable = flag.variable(env_prefix);
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        if parsed.values.contains_key(flag.name) {
            parsed.shadowed.push(variable);
            continue;
        }
        if flag.kind == Kind::Bool && parse_bool(&value).is_none() {
            return Err(FlagError::InvalidEnv { variable, value });
        }
        parsed.values.insert(flag.name, (Source::Env, vec![value]));
    }
    Ok(parsed)
}

/// The usage text: a line for each flag with its default and its help.
pub fn usage(program: &str, flags: &[Flag]) -> String {
    let mut text =
        format!("Usage: {program} [flags]\n\nFlags (one or two dashes, -flag=value or -flag value):\n");
    for flag in flags {
        let value = if flag.kind == Kind::Bool { "" } else { " VALUE" };
        let default =
            if flag.default.is_empty() { String::new() } else { format!(" (default {})", flag.default) };
        let _ = writeln!(text, "  --{}{value}\n        {}{default}", flag.name, flag.help);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag { name: "name", kind: Kind::Value, default: "default", help: "" },
        Flag { name: "ip-masq", kind: Kind::Bool, default: "false", help: "" },
        Flag { name: "iface", kind: Kind::List, default: "", help: "" },
    ];

    fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Parsed, FlagError> {
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        let env: BTreeMap<String, String> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        parse(FLAGS, "ETCD", &args, &|name| env.get(name).cloned())
    }

    #[test]
    fn one_or_two_dashes_with_or_without_equals() {
        for args in
            [&["-name", "a"][..], &["--name", "a"], &["-name=a"], &["--name=a"], &["-name=x", "-name=a"]]
        {
            assert_eq!(read(args, &[]).unwrap().value("name"), Some("a"));
        }
        assert_eq!(read(&["-name=a=b"], &[]).unwrap().value("name"), Some("a=b"));
        assert_eq!(read(&["-name", "-x"], &[]).unwrap().value("name"), Some("-x"));
    }

    #[test]
    fn booleans_do_not_eat_the_next_word() {
        let parsed = read(&["-ip-masq", "false"], &[]).unwrap();
        assert!(parsed.bool("ip-masq"));
        assert_eq!(parsed.rest(), ["false"]);
        assert!(!read(&["--ip-masq=f"], &[]).unwrap().bool("ip-masq"));
    }

    #[test]
    fn lists_keep_all_and_the_command_line_wins_over_the_environment() {
        let parsed = read(&["-iface=a", "-iface", "b"], &[("ETCD_IFACE", "c"), ("ETCD_NAME", "n")]).unwrap();
        assert_eq!(parsed.values("iface"), ["a", "b"]);
        assert_eq!(parsed.shadowed(), ["ETCD_IFACE"]);
        assert_eq!((parsed.value("name"), parsed.given("name")), (Some("n"), Some(Source::Env)));
        assert_eq!(read(&[], &[("ETCD_NAME", "")]).unwrap().given("name"), None);
    }

    #[test]
    fn errors_use_gos_words() {
        let text = |args: &[&str], env: &[(&str, &str)]| read(args, env).unwrap_err().to_string();
        assert_eq!(text(&["-bogus"], &[]), "flag provided but not defined: -bogus");
        assert_eq!(text(&["--bogus=1"], &[]), "flag provided but not defined: -bogus");
        assert_eq!(text(&["-ip-masq=x"], &[]), "invalid value \"x\" for flag -ip-masq: parse error");
        assert_eq!(text(&["-name"], &[]), "flag needs an argument: -name");
        assert_eq!(text(&["---name"], &[]), "bad flag syntax: ---name");
        assert_eq!(
            text(&[], &[("ETCD_IP_MASQ", "x")]),
            "invalid value \"x\" in environment variable ETCD_IP_MASQ: parse error"
        );
        assert_eq!(read(&["-h"], &[]).unwrap_err(), FlagError::Help);
    }

    #[test]
    fn a_lone_dash_or_a_word_ends_the_flags() {
        assert_eq!(read(&["-", "-name=a"], &[]).unwrap().rest(), ["-", "-name=a"]);
        assert_eq!(read(&["--", "-name=a"], &[]).unwrap().rest(), ["-name=a"]);
    }
}
