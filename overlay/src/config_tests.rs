//! What overlayd's command line accepts, refuses, and says.

use super::*;
use crate::types::DatapathChoice;

fn run(line: &str, env: &[(&str, &str)]) -> Result<Command, String> {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    parse(&args, &env).map_err(|e| e.to_string())
}

fn config(line: &str, env: &[(&str, &str)]) -> Config {
    match run(line, env) {
        Ok(Command::Run(config)) => *config,
        Ok(_) => panic!("{line}: not a run"),
        Err(e) => panic!("{line}: {e}"),
    }
}

fn error(line: &str) -> String {
    run(line, &[]).err().unwrap_or_else(|| panic!("{line} was accepted"))
}

#[test]
fn the_defaults_are_flannelds() {
    let c = config("", &[]);
    assert_eq!(c.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!((c.prefix.as_str(), c.ip_masq, c.forward_rules), ("/coreos.com/network", false, true));
    assert_eq!((c.renew_margin.as_secs(), c.healthz), (3600, None));
    assert_eq!(c.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert!(c.interface.names.is_empty() && c.public_ip.is_none() && c.login.is_none());
}

#[test]
fn the_tutorials_command_line() {
    let c = config(
        "--ip-masq --etcd-endpoints=https://192.168.31.63:2379,https://192.168.31.65:2379 -etcd-cafile=/opt/etcd/ssl/ca.pem -etcd-certfile=/opt/etcd/ssl/server.pem -etcd-keyfile=/opt/etcd/ssl/server-key.pem",
        &[],
    );
    assert!(c.ip_masq);
    assert_eq!(c.endpoints, ["https://192.168.31.63:2379", "https://192.168.31.65:2379"]);
    assert_eq!(c.tls.key.unwrap().to_str(), Some("/opt/etcd/ssl/server-key.pem"));
}

#[test]
fn the_environment_stands_in_and_flags_win() {
    let env = [("FLANNELD_IP_MASQ", "true"), ("FLANNELD_ETCD_PREFIX", "/a/"), ("FLANNELD_IFACE", "eth1")];
    let c = config("-etcd-prefix b -healthz-port 8080 -healthz-ip 127.0.0.1", &env);
    assert_eq!((c.ip_masq, c.prefix.as_str()), (true, "/b"));
    assert_eq!(c.interface.names, ["eth1"]);
    assert_eq!(c.healthz, Some("127.0.0.1:8080".parse().unwrap()));
}

#[test]
fn repeatable_flags_keep_their_order() {
    let c = config("-iface eth9 -iface=10.99.0.2 -iface-regex ^10\\. -iface-can-reach 10.1.1.1", &[]);
    assert_eq!(c.interface.names, ["eth9", "10.99.0.2"]);
    assert!(c.interface.regexes[0].is_match("10.99.0.2"));
    assert_eq!(c.interface.can_reach, Some(Ipv4Addr::new(10, 1, 1, 1)));
}

#[test]
fn every_refused_flag_says_its_name_and_what_to_do() {
    for (name, kind, instead) in REFUSED {
        let line = if *kind == flags::Kind::Bool { format!("-{name}") } else { format!("--{name}=1") };
        let error = error(&line);
        assert!(error.contains(&format!("-{name} of flanneld is not supported")) && error.contains(instead));
        let variable = format!("{ENV_PREFIX}_{}", name.to_uppercase().replace('-', "_"));
        assert!(run("", &[(&variable, "true")]).is_err(), "{variable}");
    }
}

#[test]
fn the_data_path_is_chosen_and_tuned_by_flags() {
    let c = config("", &[]);
    assert_eq!(c.datapath, DatapathOptions::default());
    assert_eq!(c.status_socket.unwrap().to_str(), Some("/run/flannel/overlayd.sock"));
    let env = [
        ("FLANNELD_DATAPATH", "kernel"),
        ("FLANNELD_DATAPATH_CPUS", "0, 2"),
        ("FLANNELD_SUBNET_FILE", "/x/y"),
    ];
    let c = config(
        "-datapath rust -datapath-spin-us=0 -datapath-queues 2 -datapath-source-check=false -datapath-inject=false",
        &env,
    );
    let expected = DatapathOptions {
        choice: Some(DatapathChoice::Rust),
        spin: Duration::ZERO,
        queues: 2,
        cpus: vec![0, 2],
        source_check: false,
        inject: false,
    };
    assert_eq!(c.datapath, expected);
    let words = "datapath=rust datapath-spin-us=0 datapath-queues=2 datapath-cpus=0,2 datapath-source-check=false \
                 datapath-inject=false status-socket=/x/overlayd.sock";
    assert!(c.to_string().contains(words), "{c}");
    assert_eq!(config("-status-socket off", &[]).status_socket, None);
    assert_eq!(config("-status-socket /s", &[]).status_socket.unwrap().to_str(), Some("/s"));
}

#[test]
fn errors_name_the_flag_and_the_value() {
    for (line, words) in [
        ("-bogus", "flag provided but not defined: -bogus"),
        (
            "-subnet-lease-renew-margin=abc",
            r#"invalid value "abc" for flag -subnet-lease-renew-margin: parse error"#,
        ),
        ("-subnet-lease-renew-margin 0", "Invalid subnet-lease-renew-margin option, out of acceptable range"),
        (
            "-subnet-lease-renew-margin 1440",
            "Invalid subnet-lease-renew-margin option, out of acceptable range",
        ),
        ("-public-ip bogus", "invalid public IP address: bogus"),
        ("-ip-masq true", r#"unexpected argument "true""#),
        ("-etcd-certfile x", "-etcd-certfile needs -etcd-keyfile"),
        ("-etcd-keyfile x", "-etcd-keyfile needs -etcd-certfile"),
        ("-etcd-endpoints 10.0.0.1:2379", r#""10.0.0.1:2379" for flag -etcd-endpoints"#),
        ("-healthz-port 65536", "for flag -healthz-port"),
        ("-healthz-ip x", "for flag -healthz-ip"),
        ("-iface-regex (", "for flag -iface-regex: not a regular expression"),
        ("-iface-can-reach eth0", "for flag -iface-can-reach"),
        ("-iptables-resync 0", "for flag -iptables-resync"),
        ("-datapath fast", r#""fast" for flag -datapath: must be kernel, rust or auto"#),
        ("-datapath-spin-us 1001", "for flag -datapath-spin-us: must be at most 1000"),
        ("-datapath-spin-us -1", "for flag -datapath-spin-us"),
        ("-datapath-queues 0", "for flag -datapath-queues: must be 1 to 16"),
        ("-datapath-queues 17", "for flag -datapath-queues"),
        ("-datapath-cpus 0,x", "for flag -datapath-cpus: must be numbers of CPUs"),
        ("-datapath-cpus 1024", "for flag -datapath-cpus: must be numbers of CPUs"),
        ("-datapath-cpus 0,1", "for flag -datapath-cpus: names 2 CPUs, and -datapath-queues is 1"),
        ("-log-level loud", "for flag -log-level"),
        ("-log-format xml", "for flag -log-format"),
        ("-iface", "flag needs an argument: -iface"),
    ] {
        let error = error(line);
        assert!(error.contains(words), "{line}: {error}");
    }
}

#[test]
fn version_and_help_come_first() {
    assert!(matches!(run("-version -kube-subnet-mgr", &[]), Ok(Command::Version)));
    assert!(matches!(run("-h", &[]), Ok(Command::Help)));
    let usage = usage();
    assert!(FLAGS.iter().all(|f| usage.contains(f.name)));
}

#[test]
fn the_password_is_not_in_the_log_line() {
    let c = config("-etcd-username u -etcd-password hunter2 -v 4", &[]);
    assert_eq!(c.log_level, tracing::Level::TRACE);
    assert_eq!(c.login.as_ref().unwrap().password, "hunter2");
    assert!(c.to_string().contains("etcd-username=u") && !c.to_string().contains("hunter2"));
    for url in ["https://u:hunter2@10.0.0.1:2379", "u:hunter2@10.0.0.1"] {
        let error = error(&format!("-etcd-endpoints http://10.0.0.2:2379,{url}"));
        assert!(error.contains("give -etcd-username") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_manual_names_every_flag() {
    let manual = include_str!("../../docs/overlay.md");
    let supported = FLAGS.iter().map(|flag| flag.name).filter(|name| *name != "v");
    for name in supported.chain(REFUSED.iter().map(|(name, ..)| *name)) {
        assert!(manual.contains(&format!("`{name}`")), "docs/overlay.md says nothing of -{name}");
    }
}
