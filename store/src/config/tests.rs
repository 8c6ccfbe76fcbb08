#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let args: Vec<String> = args.iter().map(|&word| word.to_owned()).collect();
    let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    match Config::read(&args, &env)? {
        Asked::Run(config) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

fn error(args: &[&str]) -> (String, u8) {
    let error = read(args, &[]).and_then(|config| config.check_bootstrap()).unwrap_err();
    (error.to_string(), error.exit_code())
}

/// The unit file of the guide: every setting as a flag, and most of them in the environment as well.
#[test]
fn the_guides_unit_and_environment_file_are_taken_together() {
    let env = [
        ("ETCD_NAME", "etcd01"),
        ("ETCD_DATA_DIR", "/var/lib/etcd/default.etcd"),
        ("ETCD_LISTEN_PEER_URLS", "https://192.168.31.63:2380"),
        ("ETCD_LISTEN_CLIENT_URLS", "https://192.168.31.63:2379"),
        ("ETCD_INITIAL_CLUSTER_STATE", "new"),
        ("ETCD_BOGUS", "1"),
    ];
    let cluster = "--initial-cluster=etcd01=https://192.168.31.63:2380,etcd02=https://192.168.31.65:2380,\
                   etcd03=https://192.168.31.66:2380";
    let config = read(
        &[
            "--name=etcd01",
            "--listen-client-urls=https://192.168.31.63:2379,http://127.0.0.1:2379",
            "--advertise-client-urls=https://192.168.31.63:2379",
            "--initial-advertise-peer-urls=https://192.168.31.63:2380",
            cluster,
            "--cert-file=/opt/etcd/ssl/server.pem",
            "--key-file=/opt/etcd/ssl/server-key.pem",
            "--peer-cert-file=/opt/etcd/ssl/server.pem",
            "--peer-key-file=/opt/etcd/ssl/server-key.pem",
            "--trusted-ca-file=/opt/etcd/ssl/ca.pem",
            "--peer-trusted-ca-file=/opt/etcd/ssl/ca.pem",
        ],
        &env,
    )
    .unwrap();
    config.check_bootstrap().unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/etcd/default.etcd"));
    assert_eq!(config.initial_cluster.len(), 3);
    assert_eq!(config.listen_client.len(), 2);
    assert!(!config.client_tls.cert_auth);
    let shadowed = "recognized environment variable ETCD_NAME, but unused: shadowed by corresponding flag";
    assert!(config.notes.contains(&Note::Info(shadowed.to_owned())));
    assert!(config.notes.contains(&Note::Warn("unrecognized environment variable ETCD_BOGUS=1".to_owned())));
    assert!(config.notes.iter().any(|note| matches!(note, Note::Warn(text)
        if text.starts_with("The scheme of client url http://127.0.0.1:2379 is HTTP"))));
}

#[test]
fn the_defaults_are_a_cluster_of_one_named_default() {
    let config = read(&[], &[]).unwrap();
    config.check_bootstrap().unwrap();
    assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(config.initial_cluster.keys().collect::<Vec<_>>(), ["default"]);
    assert_eq!((config.heartbeat.as_millis(), config.election.as_millis()), (100, 1000));
}

#[test]
fn what_does_not_work_together_is_said_in_etcds_words() {
    for (args, want) in [
        (
            &["--listen-client-urls=http://127.0.0.1:1"][..],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--listen-peer-urls=http://foo.example:2379"],
            "--listen-peer-urls: expected IP in URL for binding (http://foo.example:2379)",
        ),
        (
            &["--heartbeat-interval=500"],
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[500ms]",
        ),
        (
            &["--election-timeout=60000"],
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (
            &["--initial-cluster=m=http://h:2380,n=http://h:2380", "--name=m"],
            "initial cluster m=http://h:2380,n=http://h:2380 has duplicate url",
        ),
        (
            &["--initial-cluster=n=foo"],
            "--initial-cluster: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            &["--advertise-client-urls=http://h"],
            "--advertise-client-urls: URL address does not have the form \"host:port\": http://h",
        ),
        (
            &["--advertise-client-urls=http://h:1/"],
            "--advertise-client-urls: URL must not contain a path: http://h:1/",
        ),
        (
            &["--listen-peer-urls=https://127.0.0.1:2380"],
            "TLS key/cert (--peer-cert-file, --peer-key-file) must be provided for peer url https://127.0.0.1:2380 \
             with HTTPs scheme",
        ),
        (
            &["--listen-peer-urls=https://127.0.0.1:2380", "--peer-cert-file=a", "--peer-key-file=b"],
            "--peer-trusted-ca-file must be provided for peer url https://127.0.0.1:2380: members verify each \
             other's certificates",
        ),
        (&["--cert-file=a"], "--cert-file is given without --key-file; both are needed"),
        (
            &["--client-cert-auth"],
            "--client-cert-auth needs --trusted-ca-file to verify certificates against",
        ),
        (&["--initial-cluster-state=old"], "--initial-cluster-state: \"old\" is neither new nor existing"),
    ] {
        assert_eq!(error(args), (want.to_owned(), 1), "{args:?}");
    }
    let (text, _) = error(&["--name=x", "--initial-cluster=y=http://localhost:2380"]);
    assert!(
        text.starts_with("couldn't find local name \"x\" in the initial cluster configuration"),
        "{text}"
    );
    let (text, _) = error(&["--name=n", "--initial-cluster=n=http://h:2380"]);
    assert!(
        text.starts_with(
            "--initial-cluster must include n=http://localhost:2380 given \
             --initial-advertise-peer-urls=http://localhost:2380"
        ),
        "{text}"
    );
}

#[test]
fn unknown_and_unsupported_flags_are_named_and_exit_2() {
    assert_eq!(error(&["-bogus"]), ("flag provided but not defined: -bogus".to_owned(), 2));
    assert_eq!(error(&["extra"]), ("'extra' is not a valid flag".to_owned(), 1));
    let (text, code) = error(&["--discovery=http://x"]);
    assert_eq!((text.split(": ").next().unwrap(), code), ("--discovery", 2));
    assert_eq!(error(&["--auto-tls"]).1, 2);
    assert!(read(&["--proxy=off", "--enable-v2=1", "--force-new-cluster=false"], &[]).is_ok());
}

#[test]
fn flags_without_effect_are_noted_and_flags_that_etcd_ignores_are_ignored() {
    let config = read(&["-vv", "--config", "x", "--quota-backend-bytes=7", "--max-wals=5"], &[]).unwrap();
    let warned =
        |start: &str| config.notes.iter().any(|n| matches!(n, Note::Warn(t) if t.starts_with(start)));
    assert!(warned("flag \"-vv\" is no longer supported - ignoring."));
    assert!(warned("--quota-backend-bytes=7 has no effect"));
    assert!(!warned("--max-wals"));
}

#[test]
fn the_old_ca_flag_demands_certificates() {
    let config = read(&["--ca-file=ca.pem"], &[]).unwrap();
    assert!(config.client_tls.cert_auth);
    assert_eq!(config.client_tls.trusted_ca, Some(PathBuf::from("ca.pem")));
}
