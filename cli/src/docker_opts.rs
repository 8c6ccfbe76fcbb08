//! `cli docker-opts`: from overlayd's `subnet.env` to Docker's options, as flannel's `mk-docker-opts.sh`.
//!
//! [`render`] decides and is pure; the rest reads one file and replaces another. Departures from the script, all
//! of them where its result was of no use: the file is replaced in one step instead of truncated and refilled, a
//! value that cannot stand between quotes is refused, and a second run on its own output adds nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use overlay::wire::env::variables;

use crate::exit::Exit;

/// Every variable with this prefix becomes one of Docker's options.
const PREFIX: &str = "DOCKER_OPT_";
/// The mode of a new output file; an existing file keeps its own.
const MODE: u32 = 0o644;

/// Turns overlayd's subnet.env into options for dockerd, as mk-docker-opts.sh
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cli docker-opts -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker.env
  cli docker-opts -c -d -

Without -i and -c both forms are written. Variables DOCKER_OPT_* of the environment are added,
and the combined variable's value in the environment or in the input file is kept in front.
A missing input file counts as empty.

Exit codes: 0 written; 1 failed, usage")]
pub(crate) struct DockerOptsArgs {
    /// The file that overlayd writes
    #[arg(short = 'f', value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    input: PathBuf,
    /// The file to write, which Docker's unit names as its environment file; - for stdout
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    output: PathBuf,
    /// Write one variable for each option
    #[arg(short)]
    individual: bool,
    /// Write one variable with all options
    #[arg(short)]
    combined: bool,
    /// Name of the variable with all options
    #[arg(short, value_name = "KEY", default_value = "DOCKER_OPTS")]
    key: String,
    /// Leave the --ip-masq option out
    #[arg(short = 'm')]
    without_ip_masq: bool,
}

/// Which variables to write.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    individual: bool,
    combined: bool,
    key: &'a str,
    ip_masq: bool,
}

/// Why there are no options.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum DockerOptsError {
    /// The script's own words.
    #[error("Invalid value of FLANNEL_IPMASQ: {0} (in {1}; must be true or false)")]
    IpMasq(String, String),
    #[error("-k {0:?}: not a variable name (letters, digits and _, not beginning with a digit)")]
    Key(String),
    #[error("{0}: its value has a quote or line end in it and cannot be written: {1:?}")]
    Value(String, String),
}

/// Runs `cli docker-opts`.
///
/// # Errors
/// Names the file or variable at fault.
pub(crate) fn run(args: &DockerOptsArgs) -> anyhow::Result<Exit> {
    let both = !args.individual && !args.combined;
    let wanted = Wanted {
        individual: args.individual || both,
        combined: args.combined || both,
        key: &args.key,
        ip_masq: !args.without_ip_masq,
    };
    let input = match fs::read_to_string(&args.input) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => anyhow::bail!("-f {}: cannot be read: {e}", args.input.display()),
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let text = render(&input, environment, wanted, &args.input.display().to_string())?;
    replace(&args.output, &text)
        .map_err(|e| anyhow::anyhow!("-d {}: cannot be written: {e}", args.output.display()))?;
    Ok(Exit::Success)
}

/// The text of the output file, from the input file's text and the environment.
fn render(
    input: &str,
    environment: BTreeMap<String, String>,
    wanted: Wanted,
    input_name: &str,
) -> Result<String, DockerOptsError> {
    let is_name = wanted.key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name || wanted.key.is_empty() || wanted.key.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(DockerOptsError::Key(wanted.key.to_owned()));
    }
    // The script sources the file: what stands in it replaces the environment.
    let mut all = environment;
    all.extend(variables(input));
    let flannel = |name: &str| all.get(name).filter(|value| !value.is_empty()).cloned();
    let subnet = flannel("FLANNEL_SUBNET").map(|subnet| ("BIP", format!("--bip={subnet}")));
    let mtu = flannel("FLANNEL_MTU").map(|mtu| ("MTU", format!("--mtu={mtu}")));
    let ip_masq = match flannel("FLANNEL_IPMASQ").filter(|_| wanted.ip_masq).as_deref() {
        None => None,
        // Who masquerades, overlayd or Docker: exactly one of them.
        Some("true") => Some(("IPMASQ", "--ip-masq=false".to_owned())),
        Some("false") => Some(("IPMASQ", "--ip-masq=true".to_owned())),
        Some(other) => return Err(DockerOptsError::IpMasq(other.to_owned(), input_name.to_owned())),
    };
    for (name, option) in [subnet, ip_masq, mtu].into_iter().flatten() {
        all.insert(format!("{PREFIX}{name}"), option);
    }
    let options: Vec<_> = all.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut text = String::new();
    for (name, option) in &options {
        if wanted.individual {
            push(&mut text, name, option)?;
        }
    }
    if wanted.combined {
        let added: String = options.iter().flat_map(|(_, option)| [" ", option]).collect();
        let before = all.get(wanted.key).map_or("", String::as_str);
        let combined = if before.is_empty() {
            added
        } else if before.ends_with(&added) {
            before.to_owned()
        } else {
            format!("{before} {added}")
        };
        push(&mut text, wanted.key, &combined)?;
    }
    Ok(text)
}

fn push(text: &mut String, name: &str, value: &str) -> Result<(), DockerOptsError> {
    if value.contains(['"', '\n', '\r']) {
        return Err(DockerOptsError::Value(name.to_owned(), value.to_owned()));
    }
    text.extend([name, "=\"", value, "\"\n"]);
    Ok(())
}

/// Replaces a file in one step: readers see the old text or the new, never a part.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // It may be the link to a log file, which must be added to, not replaced.
    if path == Path::new("/dev/stdout") || path == Path::new("-") {
        return io::stdout().write_all(text.as_bytes());
    }
    // Behind a symbolic link the file is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = match fs::metadata(&target) {
        // A device or pipe is written to.
        Ok(found) if !found.is_file() => {
            return fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
        }
        Ok(found) => found.permissions().mode(),
        Err(_) => MODE,
    };
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new().prefix(".docker-opts").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(&target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const SUBNET_ENV: &str = "FLANNEL_NETWORK=172.17.0.0/16\nFLANNEL_SUBNET=172.17.11.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    const ALL: Wanted = Wanted { individual: true, combined: true, key: "DOCKER_OPTS", ip_masq: true };

    fn rendered(
        input: &str,
        environment: &[(&str, &str)],
        wanted: Wanted,
    ) -> Result<String, DockerOptsError> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        render(input, environment, wanted, "subnet.env")
    }

    #[test]
    fn the_defaults_give_the_scripts_bytes() {
        assert_eq!(
            rendered(SUBNET_ENV, &[("PATH", "/bin")], ALL).unwrap(),
            "\
DOCKER_OPT_BIP=\"--bip=172.17.11.1/24\"
DOCKER_OPT_IPMASQ=\"--ip-masq=false\"
DOCKER_OPT_MTU=\"--mtu=1450\"
DOCKER_OPTS=\" --bip=172.17.11.1/24 --ip-masq=false --mtu=1450\"
"
        );
    }

    #[test]
    fn each_flag_gives_the_scripts_bytes() {
        let k = Wanted { key: "DOCKER_NETWORK_OPTIONS", ..ALL };
        assert!(
            rendered(SUBNET_ENV, &[], k)
                .unwrap()
                .ends_with("\nDOCKER_NETWORK_OPTIONS=\" --bip=172.17.11.1/24 --ip-masq=false --mtu=1450\"\n")
        );
        let k_c_m = Wanted { individual: false, key: "X", ip_masq: false, ..ALL };
        assert_eq!(rendered(SUBNET_ENV, &[], k_c_m).unwrap(), "X=\" --bip=172.17.11.1/24 --mtu=1450\"\n");
        let i = Wanted { combined: false, ..ALL };
        assert_eq!(
            rendered(SUBNET_ENV, &[], i).unwrap(),
            "DOCKER_OPT_BIP=\"--bip=172.17.11.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n"
        );
    }

    #[test]
    fn docker_masquerades_where_the_overlay_does_not() {
        let text = rendered(&SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"), &[], ALL).unwrap();
        assert!(text.contains("DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n"), "{text}");
    }

    #[test]
    fn no_input_gives_an_empty_variable() {
        assert_eq!(rendered("", &[], ALL).unwrap(), "DOCKER_OPTS=\"\"\n");
    }

    #[test]
    fn the_environment_takes_part() {
        let text = rendered(SUBNET_ENV, &[("DOCKER_OPTS", "--debug"), ("DOCKER_OPT_Z", "--icc=false")], ALL)
            .unwrap();
        assert_eq!(
            text.lines().skip(3).collect::<Vec<_>>(),
            [
                "DOCKER_OPT_Z=\"--icc=false\"",
                "DOCKER_OPTS=\"--debug  --bip=172.17.11.1/24 --ip-masq=false --mtu=1450 --icc=false\""
            ]
        );
    }

    #[test]
    fn a_second_run_on_its_own_output_adds_nothing() {
        let first = rendered(SUBNET_ENV, &[], ALL).unwrap();
        assert_eq!(rendered(&first, &[], ALL).unwrap(), first);
        let first = rendered(SUBNET_ENV, &[("DOCKER_OPTS", "--debug")], ALL).unwrap();
        assert_eq!(rendered(&first, &[], ALL).unwrap(), first);
    }

    #[test]
    fn what_cannot_be_written_is_refused_by_name() {
        let error = rendered("FLANNEL_IPMASQ=yes\n", &[], ALL).unwrap_err().to_string();
        assert!(
            error.starts_with("Invalid value of FLANNEL_IPMASQ: yes") && error.contains("subnet.env"),
            "{error}"
        );
        // Without the option the value does not matter, as in the script.
        assert!(rendered("FLANNEL_IPMASQ=yes\n", &[], Wanted { ip_masq: false, ..ALL }).is_ok());
        for key in ["", "1X", "A B", "A=B"] {
            assert_eq!(rendered("", &[], Wanted { key, ..ALL }), Err(DockerOptsError::Key(key.to_owned())));
        }
        let error = rendered("", &[("DOCKER_OPT_L", "--label=\"x\"")], ALL).unwrap_err().to_string();
        assert!(error.starts_with("DOCKER_OPT_L"), "{error}");
    }

    #[test]
    fn the_file_is_replaced_whole_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.env");
        replace(&path, "first, longer\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, "second\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file stays");
        assert!(replace(&folder.path().join("no/such/dir"), "x").is_err());
    }
}
