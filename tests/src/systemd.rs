//! What systemd would run for a unit: just enough of its file formats to execute the tutorial's units.
//!
//! Rules from systemd.service(5) and systemd.exec(5): a trailing backslash joins lines, `${NAME}` is replaced
//! inside a word, `$NAME` as a word of its own is split at blanks, an environment file holds `NAME=value` lines
//! with optional quotes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Variables of an environment file.
pub type Environment = BTreeMap<String, String>;

/// Reads an environment file.
///
/// # Errors
/// A line that is neither blank, comment nor assignment.
pub fn environment(text: &str) -> Result<Environment> {
    let mut variables = Environment::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])) {
        let (name, value) = line.split_once('=').with_context(|| format!("environment file: `{line}`"))?;
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        variables.insert(name.to_owned(), value.to_owned());
    }
    Ok(variables)
}

/// All values of `key` in the unit, lines joined.
pub fn values(unit: &str, key: &str) -> Vec<String> {
    let joined = unit.replace("\\\n", " ");
    joined.lines().filter_map(|l| l.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned).collect()
}

/// The words systemd would execute for a command line.
///
/// # Errors
/// When a `${` is not closed, or nothing is left.
pub fn words(line: &str, environment: &Environment) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for word in line.split_ascii_whitespace() {
        match word.strip_prefix('$') {
            Some(name) if !name.starts_with('{') => {
                let value = environment.get(name).map_or("", String::as_str);
                words.extend(value.split_ascii_whitespace().map(str::to_owned));
            }
            _ => words.push(braces(word, environment)?),
        }
    }
    if words.is_empty() {
        bail!("nothing to execute in `{line}`");
    }
    Ok(words)
}

fn braces(word: &str, environment: &Environment) -> Result<String> {
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, tail) = after.split_once('}').with_context(|| format!("`{word}`: no closing brace"))?;
        out.push_str(before);
        out.push_str(environment.get(name).map_or("", String::as_str));
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn lines_join_and_variables_expand_as_systemd_does() {
        let env = environment("#x\nA=\"1 2\"\nB=u\n").unwrap();
        let unit = "[Service]\nExecStart=/bin/p \\\n--b=${B},${A} \\\n$A $NONE\nExecStartPost=/bin/q\n";
        let lines = values(unit, "ExecStart");
        assert_eq!(lines.len(), 1);
        assert_eq!(words(&lines[0], &env).unwrap(), ["/bin/p", "--b=u,1 2", "1", "2"]);
        assert!(words("${A", &env).is_err());
    }
}
