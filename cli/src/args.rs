//! The command line: what clap parses, and what is done to the words before it sees them.

use std::{ffi::OsString, path::Path, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{complete::Shell, datapath, demo, docker_opts, health, ping_mesh, pki, store};

/// Store options that stand alone.
const SWITCHES: &[&str] = &["--no-sync", "--debug"];

/// Store options that take a value in the next word unless it is joined with `=`.
const WITH_VALUE: &[&str] = &[
    "--endpoints",
    "--endpoint",
    "--peers",
    "-C",
    "--ca-file",
    "--cert-file",
    "--key-file",
    "--username",
    "-u",
    "--timeout",
    "--total-timeout",
    "--output",
    "-o",
];

/// Commands that mirror a program whose usage errors end with 1 (etcdctl, mk-docker-opts.sh).
pub(crate) const MIRRORED: &[&str] = &[
    "get",
    "set",
    "mk",
    "update",
    "ls",
    "mkdir",
    "setdir",
    "updatedir",
    "rm",
    "rmdir",
    "watch",
    "member",
    "docker-opts",
];

/// Weft's operator tool.
#[derive(Debug, Parser)]
#[command(
    name = "cli",
    version,
    about,
    max_term_width = 100,
    after_help = "\
Store options (--endpoints, --ca-file, --output, ...) may stand before or after the command;
`cli get --help` shows them.

Examples:
  cli --endpoints https://192.168.31.63:2379 --ca-file ca.pem health
  cli set /coreos.com/network/config '{\"Network\":\"172.17.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'
  cli ping-mesh
  cli demo"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Everything the tool can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "cluster-health")]
    Health(health::HealthArgs),
    PingMesh(ping_mesh::PingMeshArgs),
    #[command(flatten)]
    Key(store::KeyCommand),
    Member(store::MemberArgs),
    DockerOpts(docker_opts::DockerOptsArgs),
    Overlay(datapath::OverlayArgs),
    /// Certificates for the cluster: a whole set in one command, or cfssl's own files
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// A whole cluster on this machine: three hosts, three stores, the overlay and containers
    Demo(demo::DemoArgs),
    /// Prints the completion script of a shell
    #[command(after_help = "\
Examples:
  cli completions bash > /etc/bash_completion.d/cli
  cli completions zsh > /usr/local/share/zsh/site-functions/_cli
  cli completions fish > ~/.config/fish/completions/cli.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The value alone, or plain text
    #[default]
    Simple,
    /// Indexes and TTL, then the value (key commands only)
    Extended,
    /// One JSON object
    Json,
}

/// How to reach the store. A flag wins over a `WEFT_` variable, that one over etcdctl's `ETCDCTL_` variable.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Store options")]
#[expect(clippy::doc_markdown, reason = "these are help texts, and backticks would be shown")]
pub(crate) struct StoreArgs {
    /// Client URLs of the store, separated by commas [env: WEFT_ENDPOINTS, ETCDCTL_ENDPOINTS] [default:
    /// http://127.0.0.1:2379]
    #[arg(long, global = true, value_name = "URLS", value_delimiter = ',')]
    #[arg(aliases = ["endpoint", "peers"], short_alias = 'C')]
    pub(crate) endpoints: Vec<String>,
    /// CA certificates that https servers must be signed by [env: WEFT_CA_FILE, ETCDCTL_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) ca_file: Option<String>,
    /// Client certificate [env: WEFT_CERT_FILE, ETCDCTL_CERT_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) cert_file: Option<String>,
    /// Private key of the client certificate [env: WEFT_KEY_FILE, ETCDCTL_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) key_file: Option<String>,
    /// User name and password for basic authentication [env: WEFT_USERNAME, ETCDCTL_USERNAME; the password
    /// alone: WEFT_PASSWORD]
    #[arg(long, short, global = true, value_name = "NAME[:PASSWORD]")]
    pub(crate) username: Option<String>,
    /// Limit for one endpoint's answer, such as 2s or 500ms [default: 2s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Limit for the whole command, except watch and ping-mesh [default: 5s]
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration)]
    pub(crate) total_timeout: Option<Duration>,
    /// How to print the result
    #[arg(long, short, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Use the given endpoints, not those that the members advertise
    #[arg(long, global = true)]
    pub(crate) no_sync: bool,
    /// Show each request as a curl command on stderr
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

/// A span of time in Go's words, as etcdctl takes it. None at all would mean that nothing can ever answer.
fn duration(text: &str) -> Result<Duration, String> {
    match ::pki::duration::parse(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(span) => Ok(span),
        Err(error) => Err(error.to_string()),
    }
}

/// Moves store options that stand before the command behind it, where each command declares them: etcdctl wants
/// them before, people write them after.
///
/// Only the words up to the first one that is neither such an option nor its value are moved.
pub(crate) fn hoist_store_options(args: Vec<OsString>) -> Vec<OsString> {
    let mut words = args.into_iter().peekable();
    let mut result: Vec<OsString> = words.next().into_iter().collect();
    let mut moved = Vec::new();
    while let Some(word) = words.peek().and_then(|word| word.to_str()) {
        let name = word.split('=').next().unwrap_or(word);
        let takes_value = WITH_VALUE.contains(&name);
        // `-ojson` and `-uname`, the value joined to a one-letter option.
        let joined = word.len() > 2 && ["-o", "-u", "-C"].iter().any(|short| word.starts_with(short));
        if !takes_value && !joined && !SWITCHES.contains(&word) {
            break;
        }
        let value_follows = takes_value && !word.contains('=');
        moved.extend(words.next());
        if value_follows {
            moved.extend(words.next());
        }
    }
    result.extend(words.next());
    result.append(&mut moved);
    result.extend(words);
    result
}

/// Lets the tool stand in for the guide's programs under their own names, as links to it: what follows
/// `mk-docker-opts.sh`, `cfssl` and `cfssljson` is the command line of one of our commands. (`etcdctl` needs nothing.)
pub(crate) fn called_by_another_name(args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().and_then(|path| Path::new(path).file_name()).and_then(|name| name.to_str());
    let command: &[&str] = match name {
        Some("mk-docker-opts.sh") => &["docker-opts"],
        Some("cfssl") => &["pki"],
        Some("cfssljson") => &["pki", "json"],
        _ => return args,
    };
    let mut words = args.into_iter();
    words.next().into_iter().chain(command.iter().map(OsString::from)).chain(words).collect()
}

/// The command's name, if one is to be found: the first word that is no option nor an option's value.
pub(crate) fn command_name(args: &[OsString]) -> Option<&str> {
    args.iter().skip(1).find_map(|word| word.to_str().filter(|word| !word.starts_with('-')))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn hoisted(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        hoist_store_options(words).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_before_the_command_move_behind_it() {
        for (before, after) in [
            ("cli get /a", "cli get /a"),
            ("cli --no-sync get /a", "cli get --no-sync /a"),
            ("cli --endpoints http://h:1 -o json get /a", "cli get --endpoints http://h:1 -o json /a"),
            ("cli --endpoints=x --ca-file c set /a -- -1", "cli set --endpoints=x --ca-file c /a -- -1"),
            ("cli -ojson member list", "cli member -ojson list"),
            ("cli --help", "cli --help"),
            ("cli --bogus get", "cli --bogus get"),
            ("cli --endpoints", "cli --endpoints"),
            ("cli pki gencert -initca x.json", "cli pki gencert -initca x.json"),
        ] {
            assert_eq!(hoisted(before), after);
        }
    }

    #[test]
    fn the_guides_programs_are_known_by_their_names() {
        for (before, after) in [
            (
                "/opt/kubernetes/bin/mk-docker-opts.sh -k X -d /run/flannel/subnet.env",
                "/opt/kubernetes/bin/mk-docker-opts.sh docker-opts -k X -d /run/flannel/subnet.env",
            ),
            ("cfssl gencert -initca ca-csr.json", "cfssl pki gencert -initca ca-csr.json"),
            ("cfssljson -bare ca -", "cfssljson pki json -bare ca -"),
            ("etcdctl --ca-file=ca.pem cluster-health", "etcdctl --ca-file=ca.pem cluster-health"),
            ("./cli cfssl", "./cli cfssl"),
        ] {
            let words = called_by_another_name(before.split(' ').map(OsString::from).collect());
            assert_eq!(words, after.split(' ').map(OsString::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn both_places_mean_the_same() {
        for line in ["cli -o json member list", "cli member -o json list", "cli member list -o json"] {
            let cli = Cli::try_parse_from(hoisted(line).split(' ')).expect(line);
            let Command::Member(member) = cli.command else { panic!("{line} is not a member command") };
            assert_eq!(member.store.output, Format::Json, "{line}");
        }
    }

    #[test]
    fn endpoints_are_split_and_known_by_their_old_names() {
        for line in ["cli get /a --endpoints a,b", "cli get /a --endpoint a --peers b", "cli get -C a,b /a"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            let Command::Key(key) = cli.command else { panic!("{line} is not a key command") };
            assert_eq!(key.store().endpoints, ["a", "b"], "{line}");
        }
    }
}
