//! Every flag that etcd 3.2 to 3.4 knows, and what this store makes of it.

use super::{ConfigError, Note};
use crate::flags::{Flag, Kind, Parsed};

/// What the store makes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// It does what it does in etcd.
    Full,
    /// There is nothing it could act on; said in the log if it is given.
    NoEffect(&'static str),
    /// Only the given value is possible; any other is refused with the hint.
    Only(&'static str, &'static str),
}

use Support::{Full, NoEffect, Only};

const V3: Support = NoEffect("it concerns the v3 API, which this store does not serve yet");

/// Name, kind, default, support, help.
pub(super) type Row = (&'static str, Kind, &'static str, Support, &'static str);

/// The table.
#[rustfmt::skip]
pub(super) const FLAGS: &[Row] = &[
    ("name", Kind::Value, "default", Full, "Human-readable name of this member."),
    ("data-dir", Kind::Value, "", Full, "Path to the data directory; <name>.etcd if empty."),
    ("wal-dir", Kind::Value, "", Full, "Path to a directory for the raft log, if not below the data directory."),
    ("listen-peer-urls", Kind::Value, "http://localhost:2380", Full, "Comma list of URLs to listen on for members."),
    ("listen-client-urls", Kind::Value, "http://localhost:2379", Full, "Comma list of URLs to listen on for clients."),
    ("initial-advertise-peer-urls", Kind::Value, "http://localhost:2380", Full, "Comma list of this member's URLs for the other members."),
    ("advertise-client-urls", Kind::Value, "http://localhost:2379", Full, "Comma list of this member's URLs for clients."),
    ("initial-cluster", Kind::Value, "", Full, "Members of a new cluster: name=url,name=url; this member alone if empty."),
    ("initial-cluster-state", Kind::Value, "new", Full, "'new' or 'existing'."),
    ("initial-cluster-token", Kind::Value, "etcd-cluster", Full, "Token that goes into the ids of a new cluster."),
    ("heartbeat-interval", Kind::Value, "100", Full, "Milliseconds between a leader's heartbeats."),
    ("election-timeout", Kind::Value, "1000", Full, "Milliseconds without a leader before an election."),
    ("snapshot-count", Kind::Value, "100000", Full, "Applied entries after which the log is compacted."),
    ("experimental-corrupt-check-time", Kind::Value, "10s", Full, "Time between comparisons of the members' states, such as 1m; 0 for none."),
    ("cert-file", Kind::Value, "", Full, "Certificate shown to clients, PEM."),
    ("key-file", Kind::Value, "", Full, "Its key, PEM."),
    ("trusted-ca-file", Kind::Value, "", Full, "CA that signs clients' certificates, PEM."),
    ("client-cert-auth", Kind::Bool, "false", Full, "Demand a certificate from clients."),
    ("ca-file", Kind::Value, "", Full, "Deprecated: --trusted-ca-file and --client-cert-auth together."),
    ("peer-cert-file", Kind::Value, "", Full, "Certificate shown to members, PEM."),
    ("peer-key-file", Kind::Value, "", Full, "Its key, PEM."),
    ("peer-trusted-ca-file", Kind::Value, "", Full, "CA that signs members' certificates, PEM."),
    ("peer-client-cert-auth", Kind::Bool, "false", Full, "Demand a certificate from members; always so with https."),
    ("peer-ca-file", Kind::Value, "", Full, "Deprecated: --peer-trusted-ca-file and --peer-client-cert-auth together."),
    ("log-level", Kind::Value, "info", Full, "error, warn, info, debug or trace, or a tracing filter."),
    ("log-format", Kind::Value, "text", Full, "'text' or 'json'."),
    ("log-output", Kind::Value, "default", Full, "'default' (standard error), 'stderr' or 'stdout'."),
    ("debug", Kind::Bool, "false", Full, "Log at level debug."),
    ("version", Kind::Bool, "false", Full, "Print the version and exit."),

    ("max-snapshots", Kind::Value, "5", NoEffect("this store keeps one image of its state and no older ones"), "Accepted without effect."),
    ("max-wals", Kind::Value, "5", NoEffect("the raft log recycles its files by itself"), "Accepted without effect."),
    ("strict-reconfig-check", Kind::Bool, "true", NoEffect("members cannot be added or removed at run time yet"), "Accepted without effect."),
    ("pre-vote", Kind::Bool, "true", Only("true", "pre-vote is always on"), "Always on."),
    ("initial-election-tick-advance", Kind::Bool, "true", NoEffect("elections start as raft draws them"), "Accepted without effect."),
    ("logger", Kind::Value, "", NoEffect("use --log-format to choose between text and json"), "Accepted without effect."),
    ("log-outputs", Kind::Value, "", NoEffect("use --log-output"), "Accepted without effect."),
    ("log-package-levels", Kind::Value, "", Only("", "use --log-level with a filter such as info,raft=debug"), "Not supported."),
    ("quota-backend-bytes", Kind::Value, "0", V3, "Accepted without effect."),
    ("max-request-bytes", Kind::Value, "1572864", V3, "Accepted without effect."),
    ("max-txn-ops", Kind::Value, "128", V3, "Accepted without effect."),
    ("auto-compaction-retention", Kind::Value, "0", V3, "Accepted without effect."),
    ("auto-compaction-mode", Kind::Value, "periodic", V3, "Accepted without effect."),
    ("grpc-keepalive-min-time", Kind::Value, "5s", V3, "Accepted without effect."),
    ("grpc-keepalive-interval", Kind::Value, "2h", V3, "Accepted without effect."),
    ("grpc-keepalive-timeout", Kind::Value, "20s", V3, "Accepted without effect."),
    ("auth-token", Kind::Value, "simple", V3, "Accepted without effect."),

    ("enable-v2", Kind::Bool, "true", Only("true", "the v2 API is all that this store serves so far"), "Must be true."),
    ("auto-tls", Kind::Bool, "false", Only("false", "make certificates with 'cli pki init'"), "Not supported."),
    ("peer-auto-tls", Kind::Bool, "false", Only("false", "make certificates with 'cli pki init'"), "Not supported."),
    ("client-crl-file", Kind::Value, "", Only("", "certificates cannot be revoked yet; issue short-lived ones"), "Not supported."),
    ("peer-crl-file", Kind::Value, "", Only("", "certificates cannot be revoked yet; issue short-lived ones"), "Not supported."),
    ("cors", Kind::Value, "", Only("", "put a reverse proxy in front"), "Not supported."),
    ("discovery", Kind::Value, "", Only("", "list the members in --initial-cluster"), "Not supported."),
    ("discovery-fallback", Kind::Value, "proxy", Only("proxy", "list the members in --initial-cluster"), "Not supported."),
    ("discovery-proxy", Kind::Value, "", Only("", "list the members in --initial-cluster"), "Not supported."),
    ("discovery-srv", Kind::Value, "", Only("", "list the members in --initial-cluster"), "Not supported."),
    ("proxy", Kind::Value, "off", Only("off", "point clients at the members themselves"), "Not supported."),
    ("proxy-failure-wait", Kind::Value, "5000", Only("5000", "there is no proxy mode"), "Not supported."),
    ("proxy-refresh-interval", Kind::Value, "30000", Only("30000", "there is no proxy mode"), "Not supported."),
    ("proxy-dial-timeout", Kind::Value, "1000", Only("1000", "there is no proxy mode"), "Not supported."),
    ("proxy-write-timeout", Kind::Value, "5000", Only("5000", "there is no proxy mode"), "Not supported."),
    ("proxy-read-timeout", Kind::Value, "0", Only("0", "there is no proxy mode"), "Not supported."),
    ("enable-pprof", Kind::Bool, "false", Only("false", "there is no Go profiler in it; use perf"), "Not supported."),
    ("metrics", Kind::Value, "basic", Only("basic", "metrics are not served yet"), "Not supported."),
    ("listen-metrics-urls", Kind::Value, "", Only("", "metrics are not served yet"), "Not supported."),
    ("force-new-cluster", Kind::Bool, "false", Only("false", "recovery from a lost quorum is not built yet"), "Not supported."),
    ("config-file", Kind::Value, "", Only("", "use flags or ETCD_* variables"), "Not supported."),
];

/// Flags that etcd ignores with a warning, and whether they take a value.
const IGNORED: &[(&str, bool)] = &[
    ("cluster-active-size", true),
    ("cluster-remove-delay", true),
    ("cluster-sync-interval", true),
    ("config", true),
    ("force", false),
    ("max-result-buffer", true),
    ("max-retry-attempts", true),
    ("peer-heartbeat-interval", true),
    ("peer-election-timeout", true),
    ("retry-interval", true),
    ("snapshot", false),
    ("v", false),
    ("vv", false),
];

/// The table in the form that the parser reads.
pub(super) fn flags() -> Vec<Flag> {
    FLAGS.iter().map(|&(name, kind, default, _, help)| Flag { name, kind, default, help }).collect()
}

/// Takes out the flags that etcd itself ignores, with a note for each.
pub(super) fn without_ignored(args: &[String]) -> (Vec<String>, Vec<Note>) {
    let (mut kept, mut notes) = (Vec::new(), Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
        let (name, inline) = body.split_once('=').map_or((body, false), |(name, _)| (name, true));
        match IGNORED.iter().find(|(ignored, _)| *ignored == name) {
            None => kept.push(word.clone()),
            Some((_, takes_value)) => {
                if *takes_value && !inline {
                    words.next();
                }
                notes.push(Note::Warn(format!("flag \"-{name}\" is no longer supported - ignoring.")));
            }
        }
    }
    (kept, notes)
}

/// Refuses what is not supported and notes what has no effect.
pub(super) fn check_support(parsed: &Parsed) -> Result<Vec<Note>, ConfigError> {
    let mut notes = Vec::new();
    for &(name, _, default, support, _) in FLAGS {
        let Some(value) = parsed.value(name).filter(|_| parsed.given(name).is_some()) else { continue };
        match support {
            Full => {}
            NoEffect(why) if value == default => {
                notes.push(Note::Info(format!("--{name} has no effect: {why}")));
            }
            NoEffect(why) => notes.push(Note::Warn(format!("--{name}={value} has no effect: {why}"))),
            Only(allowed, _) if same(value, allowed) => {}
            Only(_, hint) => return Err(ConfigError::Unsupported { name, hint }),
        }
    }
    Ok(notes)
}

/// Equal as text, or as booleans in any spelling.
fn same(value: &str, allowed: &str) -> bool {
    let bool = crate::flags::parse_bool;
    value == allowed || (bool(value).is_some() && bool(value) == bool(allowed))
}
