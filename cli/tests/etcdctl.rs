//! The key commands beside the real thing: the same commands to `cli` and to `ETCDCTL_API=2 etcdctl`, each with
//! its own fresh `etcd --enable-v2=true`, compared byte for byte (stdout, stderr, exit code).
//!
//! Both programs come with Debian's packages `etcd-server` and `etcd-client`; without them the test fails.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use support::{Etcd, Outcome, run, run_with_stdin};

/// One command line for both programs; `{}` stands for the endpoint.
fn both(ours: &Etcd, theirs: &Etcd, args: &[&str], stdin: &str) -> (Outcome, Outcome) {
    let cli = run_with_stdin(env!("CARGO_BIN_EXE_cli"), ours, args, stdin);
    let etcdctl = run_with_stdin("etcdctl", theirs, args, stdin);
    (cli.normal(ours), etcdctl.normal(theirs))
}

/// In this order: both stores go through the same history, so that indexes agree.
const COMMANDS: &[&[&str]] = &[
    &["set", "/a", "1"],
    &["set", "/a", "2", "--ttl", "10000"],
    &["set", "--ttl", "10000", "/a", "3"],
    &["get", "/a"],
    &["-o", "extended", "get", "/a"],
    &["-o", "extended", "set", "/a", "4"],
    &["-o", "json", "set", "/a", "5"],
    &["-o", "json", "get", "/a"],
    &["-o", "extended", "get", "/a"],
    &["--output=json", "get", "--quorum", "/a"],
    &["get", "/nokey"],
    &["-o", "json", "get", "/nokey"],
    &["-o", "extended", "get", "/nokey"],
    &["get"],
    &["set"],
    &["mk", "/m"],
    &["set", "/empty", ""],
    &["get", "/empty"],
    &["-o", "extended", "get", "/empty"],
    &["set", "/a", "x", "--swap-with-value", "5"],
    &["set", "/a", "y", "--swap-with-value", "zz"],
    &["set", "/a", "y", "--swap-with-index", "3"],
    &["-o", "extended", "set", "/a", "9", "--swap-with-value", "x"],
    &["set", "/a", "y", "--swap-with-value", "", "--swap-with-index", "0"],
    &["update", "/a", "77"],
    &["-o", "extended", "update", "/a", "78"],
    &["-o", "json", "update", "/a", "79", "--ttl", "5000"],
    &["update", "/nokey", "1"],
    &["mk", "/a", "1"],
    &["mk", "/m", "1"],
    &["-o", "extended", "mk", "/m2", "1"],
    &["-o", "json", "mk", "/m3", "1", "--ttl", "5000"],
    // At once, within the second: what is left of its time to live is printed.
    &["-o", "json", "rm", "/m3"],
    &["mk", "/q", "1", "--in-order"],
    &["-o", "json", "mk", "--in-order", "/q", "2"],
    &["mkdir", "/d"],
    &["mkdir", "/d"],
    &["mkdir", "/d2", "--ttl", "10000"],
    &["-o", "json", "mkdir", "/d3"],
    &["-o", "extended", "mkdir", "/d4"],
    &["setdir", "/d5"],
    &["setdir", "/d5", "--ttl", "1000"],
    &["-o", "extended", "setdir", "/d6"],
    &["setdir", "/m2"],
    &["updatedir", "/d5", "--ttl", "20000"],
    &["-o", "json", "updatedir", "/d5", "--ttl", "0"],
    &["updatedir", "/nodir", "--ttl", "20"],
    &["update", "/d", "1"],
    &["ls", "--sort"],
    &["ls", "--sort", "/"],
    &["ls", "--sort", "-p"],
    &["ls", "--sort", "-r", "-p"],
    &["ls", "--sort", "--recursive", "-q"],
    &["ls", "/nokey"],
    &["ls", "/a"],
    &["ls", "/d"],
    &["-o", "json", "ls", "--sort", "-r", "/q"],
    &["-o", "extended", "ls", "--sort", "/"],
    &["get", "/d"],
    &["-o", "json", "get", "/d"],
    &["get", "/"],
    &["rm", "/d"],
    &["rm", "--dir", "/d"],
    &["rm", "-r", "/d2"],
    &["rm", "/a", "--with-value", "q"],
    &["rm", "/a", "--with-index", "2"],
    &["rm", "/a", "--with-value", "79"],
    &["rm", "/a"],
    &["rm"],
    &["-o", "extended", "rm", "/m"],
    &["set", "/gone", "v"],
    &["rm", "/gone"],
    &["set", "/gone", "v"],
    &["-o", "extended", "rm", "/gone", "--with-value", "v"],
    &["rmdir", "/d3"],
    &["rmdir", "/empty"],
    &["rmdir"],
    &["mkdir"],
    &["set", "/dd/x/y", "1"],
    &["rmdir", "/dd"],
    &["rm", "--dir", "/dd"],
    &["-o", "extended", "rm", "-r", "/dd"],
    &["rm", "-r", "/nokey"],
    &["set", "/n", "--", "-1"],
    &["set", "--", "/n", "-2"],
    &["get", "/n"],
    &["set", "/t", "x", "--ttl", "-5"],
    &["set", "/t", "x", "--ttl=2000"],
    &["set", "/sp ace", "v <&>\"\\\u{fc}\u{2028}\t"],
    &["get", "/sp ace"],
    &["-o", "json", "get", "/sp ace"],
    &["set", "/%2F?#&=+;", "odd"],
    &["ls", "--sort", "/"],
    &["get", "//sp ace//"],
    &["rm", "/"],
    &["set", "/", "1"],
    &["set", "/_hidden/x", "1"],
    &["ls", "/_hidden"],
    &["watch"],
    &["-o", "json", "watch", "/n", "--after-index", "5"],
    &["watch", "-r", "--after-index", "5", "/q"],
    &["-o", "extended", "watch", "/gone", "--after-index", "5"],
    &["member", "list"],
    &["-o", "json", "member", "list"],
    &["cluster-health"],
    &["--no-sync", "get", "/n"],
    &["--endpoints", "http://127.0.0.1:1,{}", "get", "/n"],
];

#[test]
fn every_command_prints_and_exits_as_etcdctl() {
    let (ours, theirs) = (Etcd::start(), Etcd::start());
    let mut differences = Vec::new();
    for args in COMMANDS {
        let (cli, etcdctl) = both(&ours, &theirs, args, "");
        if cli != etcdctl {
            differences.push(format!("{args:?}\n  cli:     {cli:?}\n  etcdctl: {etcdctl:?}"));
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn a_missing_value_comes_from_stdin_with_its_line_end() {
    let (ours, theirs) = (Etcd::start(), Etcd::start());
    for (args, stdin) in [
        (["set", "/motd"].as_slice(), "two\nlines\n"),
        (&["get", "/motd"], ""),
        (&["mk", "/new"], "no line end"),
        (&["update", "/new"], "changed"),
        (&["set", "/none"], ""),
    ] {
        let (cli, etcdctl) = both(&ours, &theirs, args, stdin);
        assert_eq!(cli, etcdctl, "{args:?}");
    }
}

#[test]
fn without_a_server_the_exit_codes_are_etcdctls() {
    let nobody = Etcd::nobody();
    for args in [
        ["get", "/a"].as_slice(),
        &["--no-sync", "get", "/a"],
        &["--no-sync", "set", "/a", "1"],
        &["--no-sync", "rm", "/a"],
        &["member", "list"],
    ] {
        let (cli, etcdctl) = both(&nobody, &nobody, args, "");
        assert_eq!(cli.code, etcdctl.code, "{args:?}: {cli:?} {etcdctl:?}");
        if args.contains(&"rm") {
            // etcdctl tries one endpoint only and leaves the list out.
            assert!(
                cli.stderr.contains(etcdctl.stderr.trim().trim_start_matches("Error:  ")),
                "{cli:?} {etcdctl:?}"
            );
            continue;
        }
        // etcdctl goes on to print the list a second time.
        assert_eq!(cli.stderr.lines().next(), etcdctl.stderr.lines().next(), "{args:?}");
    }
    let health = run(env!("CARGO_BIN_EXE_cli"), &nobody, &["health"]);
    assert_eq!(
        (health.code, health.stdout.as_str()),
        (1, "cluster may be unhealthy: failed to list members\n")
    );
    assert!(health.stderr.contains("connection refused"), "{health:?}");
}

#[test]
fn a_watch_goes_on_and_ends_with_success_when_interrupted() {
    let etcd = Etcd::start();
    let set =
        |value: &str| assert_eq!(run(env!("CARGO_BIN_EXE_cli"), &etcd, &["set", "/w/k", value]).code, 0);
    set("0");
    let mut watch = support::Running::start(
        env!("CARGO_BIN_EXE_cli"),
        &etcd,
        &["watch", "-r", "-f", "/w", "--after-index", "1"],
    );
    assert_eq!(watch.lines(2), ["[set] /w/k", "0"]);
    set("1");
    assert_eq!(watch.lines(2), ["[set] /w/k", "1"]);
    assert_eq!(run(env!("CARGO_BIN_EXE_cli"), &etcd, &["rm", "/w/k"]).code, 0);
    assert_eq!(watch.lines(2), ["[delete] /w/k", "PrevNode.Value: 1"]);
    assert_eq!(watch.interrupt(), Some(0));
}

#[test]
fn usage_errors_end_as_the_mirrored_program_does() {
    let nobody = Etcd::nobody();
    for (args, code) in [
        (["get", "--bogus", "/a"].as_slice(), 1),
        (&["get", "/a", "extra"], 1),
        (&["set", "/a", "1", "--ttl", "abc"], 1),
        (&["--endpoints", "127.0.0.1:1", "get", "/a"], 1),
        (&["docker-opts", "-z"], 1),
        (&["health", "extra"], 2),
        (&["health", "--endpoints", "127.0.0.1:1"], 2),
        (&["health", "--endpoints", "https://127.0.0.1:1"], 2),
        (&["health", "-o", "extended"], 2),
        (&["ping-mesh", "--count", "0"], 2),
        (&["ping-mesh", "--prefix", "no/slash"], 2),
        (&["bogus"], 2),
        (&[], 2),
        (&["--help"], 0),
        (&["get", "--help"], 0),
        (&["--version"], 0),
    ] {
        let outcome = run(env!("CARGO_BIN_EXE_cli"), &nobody, args);
        assert_eq!(outcome.code, code, "{args:?}: {outcome:?}");
        assert_eq!(outcome.stderr.is_empty(), code == 0, "{args:?}: {outcome:?}");
    }
}

#[test]
fn completions_are_scripts_of_their_shell() {
    let nobody = Etcd::nobody();
    for (shell, sign) in [("bash", "complete -F _cli"), ("zsh", "#compdef cli"), ("fish", "complete -c cli")]
    {
        let outcome = run(env!("CARGO_BIN_EXE_cli"), &nobody, &["completions", shell]);
        assert_eq!(outcome.code, 0);
        assert!(outcome.stdout.contains(sign) && outcome.stdout.contains("ping-mesh"), "{shell}");
    }
    // bash reads its own without complaint.
    let script = run(env!("CARGO_BIN_EXE_cli"), &nobody, &["completions", "bash"]).stdout;
    let checked = support::run_program("bash", &["-n"], &script);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
}

#[test]
fn a_closed_pipe_is_quiet() {
    let cli = env!("CARGO_BIN_EXE_cli");
    let line = format!("{cli} completions bash | head -n 1 >/dev/null; echo ${{PIPESTATUS[0]}}");
    let outcome = support::run_program("bash", &["-c", &line], "");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("0\n", ""));
}
