//! `cli pki` as its users meet it: command lines in, files, texts and exit codes out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

const FILES: [(&str, &[u8]); 3] = [
    ("ca-config.json", include_bytes!("../../pki/tests/fixtures/ca-config.json")),
    ("ca-csr.json", include_bytes!("../../pki/tests/fixtures/ca-csr.json")),
    ("server-csr.json", include_bytes!("../../pki/tests/fixtures/server-csr.json")),
];
const HOSTS: &str = "192.168.31.63,192.168.31.65,192.168.31.66";

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

/// Runs `cli` with the words of `line` in `dir`, with `input` on standard input.
fn cli_with(dir: &Path, line: &str, input: &str) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cli"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn cli(dir: &Path, line: &str) -> Outcome {
    cli_with(dir, line, "")
}

/// As [`cli`], for what must succeed; gives standard output.
fn ok(dir: &Path, line: &str) -> String {
    let outcome = cli(dir, line);
    assert_eq!(outcome.code, 0, "{line}: {}", outcome.err);
    outcome.out
}

/// As [`cli`], for what must fail with this code; gives standard error.
fn fails(dir: &Path, line: &str, code: i32) -> String {
    let outcome = cli(dir, line);
    assert_eq!((outcome.code, outcome.out.as_str()), (code, ""), "{line}: {}", outcome.err);
    outcome.err
}

fn shell(dir: &Path, script: &str) {
    let script = format!("set -e -o pipefail; cli() {{ {} \"$@\"; }}; {script}", env!("CARGO_BIN_EXE_cli"));
    let status = Command::new("bash").args(["-c", &script]).current_dir(dir).status().unwrap();
    assert!(status.success(), "{script}");
}

fn tutorial() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in FILES {
        fs::write(dir.path().join(name), contents).unwrap();
    }
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_tutorials_two_commands() {
    let dir = tutorial();
    let dir = dir.path();
    shell(
        dir,
        "cli pki gencert -initca ca-csr.json | cli pki json -bare ca -
         cli pki gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile=www server-csr.json \
             | cli pki json -bare server",
    );
    let pem: Vec<_> =
        names(dir).into_iter().filter(|n| Path::new(n).extension().is_some_and(|e| e == "pem")).collect();
    assert_eq!(pem, ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]);
    assert!(dir.join("ca.csr").exists() && dir.join("server.csr").exists());
    assert_eq!((mode(&dir.join("ca-key.pem")), mode(&dir.join("server-key.pem"))), (0o600, 0o600));
    assert!(
        fs::read_to_string(dir.join("server-key.pem"))
            .unwrap()
            .starts_with("-----BEGIN RSA PRIVATE KEY-----")
    );

    let text = ok(dir, "pki inspect ca.pem server.pem server.csr");
    for part in [
        "certificate: C=CN, ST=ShangHai, L=ShangHai, CN=etcd\n",
        "CN=etcd CA (signed by ca.pem)\n",
        "names:       IP:192.168.31.63, IP:192.168.31.65, IP:192.168.31.66\n",
        "usages:      digital signature, key encipherment, server auth, client auth\n",
        "(3649 days left)",
        "key:         RSA 2048\n",
        "private key: server-key.pem matches\n",
        "private key: ca-key.pem matches\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn gencert_prints_cfssls_envelope_or_writes_files() {
    let dir = tutorial();
    let dir = dir.path();
    let json = ok(dir, "pki gencert --initca=true ca-csr.json");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["cert", "csr", "key"]);
    assert!(
        json.starts_with(r#"{"cert":"-----BEGIN CERTIFICATE-----\n"#) && json.ends_with("\\n\"}\n"),
        "{json}"
    );

    assert_eq!(ok(dir, "pki gencert -initca -out ssl ca-csr.json"), "");
    assert_eq!(names(&dir.join("ssl")), ["ca-key.pem", "ca.csr", "ca.pem"]);
    let with_ca = "pki gencert -ca ssl/ca.pem -ca-key ssl/ca-key.pem -config ca-config.json -profile www";
    ok(dir, &format!("{with_ca} -out ssl server-csr.json"));
    ok(dir, &format!("{with_ca} -out ssl -name node -hostname node1,10.0.0.1 -cn other server-csr.json"));
    let text = ok(dir, "pki inspect ssl/node.pem");
    assert!(text.contains("CN=other\n") && text.contains("names:       DNS:node1, IP:10.0.0.1\n"), "{text}");

    // Standard input, and a CA from a key that is there: then no key is printed.
    let request = String::from_utf8(FILES[1].1.to_vec()).unwrap();
    let again = cli_with(dir, "pki gencert -initca -ca-key ssl/ca-key.pem -", &request);
    assert!(
        again.code == 0 && again.out.contains("\"cert\"") && !again.out.contains("\"key\""),
        "{}",
        again.err
    );
}

#[test]
fn warnings_go_to_standard_error_and_can_be_turned_off() {
    let dir = tutorial();
    let dir = dir.path();
    ok(dir, "pki gencert -initca -out . ca-csr.json");
    let line =
        "pki gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json -profile=www server-csr.json";
    let loud = cli(dir, line);
    // The tutorial's CA lives five years and its certificates ten.
    let warning = loud.err.strip_prefix("warning: the certificate is valid until ").unwrap();
    let (ours, cas) = warning.split_once(", its CA only until ").unwrap();
    assert!(cas.contains("Z: it ends with its CA") && cas < ours, "{warning}");
    let quiet = cli(dir, &format!("{line} -loglevel 3"));
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
}

#[test]
fn every_mistake_names_the_file_and_the_field() {
    let dir = tutorial();
    let dir = dir.path();
    ok(dir, "pki gencert -initca -out . ca-csr.json");
    ok(dir, "pki gencert -initca -out . -name other ca-csr.json");
    fs::write(dir.join("bad.json"), "{\"CN\": \"x\",}").unwrap();
    fs::write(dir.join("host.json"), r#"{"CN": "x", "hosts": ["192.168.31.256"]}"#).unwrap();
    let base = "pki gencert -ca=ca.pem -config=ca-config.json";
    for (line, want) in [
        ("-ca-key=ca-key.pem -profile=www bad.json", "bad.json: line 1, column 12: not valid JSON"),
        (
            "-ca-key=ca-key.pem -profile=www host.json",
            "host.json: hosts[0]: \"192.168.31.256\" is not a host",
        ),
        (
            "-ca-key=ca-key.pem -profile=web server-csr.json",
            "ca-config.json: signing.profiles.web: no such profile; known are www",
        ),
        ("-ca-key=none.pem -profile=www server-csr.json", "none.pem: cannot open it: No such file"),
        (
            "-ca-key=other-key.pem -profile=www server-csr.json",
            "other-key.pem: this RSA 2048 key does not belong to the CA certificate ca.pem",
        ),
        ("-ca-key=ca.pem -profile=www server-csr.json", "ca.pem: no private key in it"),
        ("-ca-key=ca-key.pem -profile=www none.json", "none.json: cannot open it"),
        ("-ca-key=ca-key.pem -profile=www ca.csr", "ca.csr: this is PEM"),
    ] {
        let err = fails(dir, &format!("{base} {line}"), 1);
        assert!(err.contains(want), "{line}: {err}");
    }
    for (line, want) in [
        ("pki gencert server-csr.json", "need a CA certificate (provide one with -ca)"),
        ("pki gencert -ca ca.pem server-csr.json", "need a CA key (provide one with -ca-key)"),
        (
            "pki gencert -ca ca.pem -ca-key ca-key.pem -profile www server-csr.json",
            "provide that with -config",
        ),
        ("pki gencert -initca -config ca-config.json ca-csr.json", "\"ca\" section"),
        ("pki gencert -initca", "CSR_JSON"),
        ("pki gencert -remote host server-csr.json", "--remote"),
        ("pki gencert -initca=maybe ca-csr.json", "expected true or false"),
        ("pki init --out ssl", "--hosts"),
    ] {
        let err = fails(dir, line, 2);
        assert!(err.contains(want), "{line}: {err}");
    }
}

#[test]
fn json_keeps_what_is_there_and_passes_failures_on() {
    let dir = tutorial();
    let dir = dir.path();
    let envelope = ok(dir, "pki gencert -initca ca-csr.json");
    assert_eq!(cli_with(dir, "pki json -bare ca", &envelope).code, 0);
    let key = fs::read(dir.join("ca-key.pem")).unwrap();

    let other = ok(dir, "pki gencert -initca ca-csr.json");
    let refused = cli_with(dir, "pki json -bare ca -", &other);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains(
            "already there: ca-key.pem, ca.pem, ca.csr; nothing was written (--force replaces them)"
        ),
        "{}",
        refused.err
    );
    assert_eq!(fs::read(dir.join("ca-key.pem")).unwrap(), key);
    assert_eq!(cli_with(dir, "pki json -bare -force ca -", &other).code, 0);
    assert_ne!(fs::read(dir.join("ca-key.pem")).unwrap(), key);

    let empty = cli_with(dir, "pki json -bare x", "");
    assert!(empty.code == 1 && empty.err.contains("standard input: empty"), "{}", empty.err);
    let failed = r#"{"success": false, "result": {}, "errors": [{"code": 1, "message": "no such CA"}]}"#;
    let failed = cli_with(dir, "pki json x", failed);
    assert!(failed.code == 1 && failed.err.contains("the request failed: no such CA"), "{}", failed.err);

    let shown = cli_with(dir, "pki json -bare -stdout x", &envelope);
    assert!(shown.code == 0 && shown.out.contains("-----BEGIN CERTIFICATE-----"), "{}", shown.err);
    assert!(!dir.join("x.pem").exists());
    fs::write(dir.join("answer"), &envelope).unwrap();
    ok(dir, "pki json -bare -f answer etcd.example.org");
    assert!(dir.join("etcd.example.org-key.pem").exists());
}

#[test]
fn init_makes_a_whole_cluster_and_guards_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let listed = ok(dir, &format!("pki init --hosts {HOSTS} --out a/ssl"));
    let ssl = dir.join("a/ssl");
    let mut want: Vec<String> = ["admin", "ca", "kube-proxy", "overlay", "server"]
        .iter()
        .flat_map(|n| [format!("{n}-key.pem"), format!("{n}.pem")])
        .collect();
    want.sort();
    assert_eq!(names(&ssl), want);
    assert_eq!(listed.lines().count(), 10);
    for name in &want {
        assert!(listed.contains(&format!("a/ssl/{name}\n")), "{listed}");
        let readable = mode(&ssl.join(name));
        assert_eq!(readable == 0o600, name.ends_with("-key.pem"), "{name}: {readable:o}");
    }
    let all = ok(
        dir,
        &format!("pki inspect {}", want.iter().map(|n| format!("a/ssl/{n}")).collect::<Vec<_>>().join(" ")),
    );
    assert_eq!(all.matches("(signed by a/ssl/ca.pem)").count(), 4, "{all}");
    assert_eq!(all.matches(" matches\n").count(), 5, "{all}");
    assert!(all.contains("names:       DNS:localhost, IP:192.168.31.63, IP:192.168.31.65, IP:192.168.31.66, IP:127.0.0.1, IP:::1\n"), "{all}");
    assert_eq!(all.matches("digital signature, key encipherment, client auth\n").count(), 3, "{all}");

    // A second run touches nothing, and with --reuse-ca --force everything but the CA.
    let before: Vec<_> = want.iter().map(|n| fs::read(ssl.join(n)).unwrap()).collect();
    let err = fails(dir, &format!("pki init --hosts {HOSTS} --out a/ssl"), 1);
    assert!(want.iter().all(|n| err.contains(&format!("a/ssl/{n}"))) && err.contains("--force"), "{err}");
    let after: Vec<_> = want.iter().map(|n| fs::read(ssl.join(n)).unwrap()).collect();
    assert_eq!(before, after);
    ok(dir, "pki init --hosts 10.0.0.1 --out a/ssl --reuse-ca --force --key-algo ecdsa --key-size 384");
    for (name, old) in want.iter().zip(&before) {
        assert_eq!(&fs::read(ssl.join(name)).unwrap() == old, name.starts_with("ca"), "{name}");
    }
    let text = ok(dir, "pki inspect a/ssl/server.pem a/ssl/ca.pem");
    assert!(
        text.contains("key:         ECDSA P-384\n") && text.contains("(signed by a/ssl/ca.pem)"),
        "{text}"
    );
    assert!(text.contains("usages:      digital signature, server auth, client auth\n"), "{text}");
    ok(dir, "pki init --hosts 10.0.0.1 --out a/ssl --force --key-algo ed25519 --expiry 24h");
    assert!(!before.contains(&fs::read(ssl.join("ca.pem")).unwrap()), "--force alone makes a new CA");
    assert_eq!(names(&ssl), want, "nothing is left beside the files");

    for (line, want) in [
        ("--hosts 10.0.0.1,10.0.0 --out b", "--hosts: \"10.0.0\" is not a host"),
        ("--hosts 10.0.0.1 --out b --key-size 1024", "--key-size: 1024 is no size of rsa keys here"),
        ("--hosts 10.0.0.1 --out b --expiry 10y", "--expiry: \"10y\" has the unit \"y\""),
        ("--hosts 10.0.0.1 --out b --expiry 1m", "--expiry: \"1m\" is not longer than the 5 minutes"),
        ("--hosts 10.0.0.1 --out b --reuse-ca", "--reuse-ca: b/ca.pem: cannot open it"),
    ] {
        // An error and its causes may be on lines of their own.
        let err = fails(dir, &format!("pki init {line}"), 1);
        let joined = err.replace("\n\nCaused by:\n    ", ": ");
        assert!(joined.contains(want), "{line}: {err}");
        assert!(!dir.join("b").exists(), "{line}: nothing is written before all is checked");
    }
}

#[test]
fn inspect_tells_right_from_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ok(dir, "pki init --hosts 10.0.0.1 --out . --key-algo ecdsa");
    let value: serde_json::Value =
        serde_json::from_str(&ok(dir, "pki inspect server.pem ca.pem -o json")).unwrap();
    let item = &value[0]["items"][0];
    for (field, want) in [
        ("type", "certificate"),
        ("subject", "CN=server"),
        ("issuer", "CN=Weft CA"),
        ("status", "valid"),
        ("key", "ECDSA P-256"),
        ("private_key", "server-key.pem"),
        ("signed_by", "ca.pem"),
    ] {
        assert_eq!(item[field], want, "{field}: {item}");
    }
    assert_eq!(item["days_left"], 3649);

    // A bundle: the certificate with its CA behind it; the key belongs to the first.
    let join =
        |names: &[&str]| names.iter().map(|n| fs::read_to_string(dir.join(n)).unwrap()).collect::<String>();
    fs::write(dir.join("bundle.pem"), join(&["server.pem", "ca.pem"])).unwrap();
    fs::write(dir.join("bundle-key.pem"), join(&["server-key.pem"])).unwrap();
    let text = ok(dir, "pki inspect bundle.pem");
    assert!(
        text.contains("private key: bundle-key.pem matches") && text.contains("issuer:      itself"),
        "{text}"
    );

    for (name, line, want) in [
        ("server-key.pem", "pki inspect server.pem", "server-key.pem DOES NOT MATCH"),
        ("any", "pki inspect ca.pem any", "any DOES NOT MATCH"),
    ] {
        fs::write(dir.join(name), join(&["admin-key.pem"])).unwrap();
        if name == "any" {
            fs::remove_file(dir.join("ca-key.pem")).unwrap();
        }
        let outcome = cli(dir, line);
        assert!(outcome.code == 1 && outcome.out.contains(want), "{}", outcome.out);
    }
    fs::write(dir.join("nothing"), "no PEM").unwrap();
    for (file, want) in
        [("nothing", "no certificate, private key or signing request in it"), ("gone", "cannot open it")]
    {
        let outcome = cli(dir, &format!("pki inspect {file} ca.pem"));
        assert!(
            outcome.code == 1 && outcome.out.contains(want) && outcome.out.contains("Weft CA"),
            "{}",
            outcome.out
        );
    }
}
