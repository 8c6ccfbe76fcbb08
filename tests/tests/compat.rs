//! The v2 API beside Debian's etcd: the same requests in the same order to a member of each, and every answer
//! compared: status, headers, body, byte for byte.
//!
//! Indices, keys and errors must be equal as they are (both count from the same start). Replaced before the
//! comparison are only what names the server or the moment: cluster and member ids, times of day, raft's own
//! index and term. Debian's etcd is 3.4 where the fact sheet is 3.2; answers that changed in between are checked
//! in their own tests below.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::command;
use weft_tests::http::{Exchange, Reply, Request, parse};
use weft_tests::process::one_at_a_time;
use weft_tests::programs;
use weft_tests::v2::Endpoint;
use weft_tests::wait::wait_for;

const FORM: &str = "application/x-www-form-urlencoded";
const LIMIT: Duration = Duration::from_secs(10);

/// Headers that are part of the API; the others belong to the HTTP library.
const HEADERS: &[&str] = &["Content-Type", "X-Etcd-Index", "Allow", "Location"];
/// Headers that must be there or not be there on both; their values name the server.
const PRESENCE: &[&str] = &["X-Etcd-Cluster-Id", "X-Raft-Index", "X-Raft-Term"];

/// One member of ours and one of Debian's.
struct Pair {
    ours: Cluster<'static>,
    theirs: Cluster<'static>,
    differences: String,
    compared: usize,
}

impl Pair {
    fn start() -> Result<Self> {
        let mut ours = Cluster::on_loopback(Server::Weft, 1)?;
        let mut theirs = Cluster::on_loopback(Server::Debian, 1)?;
        ours.start()?;
        theirs.start()?;
        let mut pair = Self { ours, theirs, differences: String::new(), compared: 0 };
        // The internal writes of a start are done when the index stands still at 2n+1.
        for endpoint in pair.endpoints() {
            wait_for("the start's own writes", LIMIT, || {
                let index = endpoint.get("/v2/keys/")?.header("X-Etcd-Index").map(str::to_owned);
                ensure!(index.as_deref() == Some("3"), "index {index:?}");
                Ok(())
            })?;
        }
        pair.both("an empty store", &Request { target: "/v2/keys/", ..Request::default() })?;
        Ok(pair)
    }

    fn endpoints(&self) -> [Endpoint<'static>; 2] {
        [self.ours.members[0].endpoint(), self.theirs.members[0].endpoint()]
    }

    /// Sends one request to both and notes any difference.
    fn both(&mut self, what: &str, request: &Request<'_>) -> Result<()> {
        let [ours, theirs] = self.endpoints().map(|e| e.send(request));
        self.compare(what, &ours?, &theirs?);
        Ok(())
    }

    fn compare(&mut self, what: &str, ours: &Reply, theirs: &Reply) {
        self.compared += 1;
        let (ours, theirs) = (shown(ours), shown(theirs));
        if ours != theirs {
            writeln!(self.differences, "{what}\n  ours:   {ours}\n  etcd's: {theirs}").ok();
        }
    }

    /// Runs a transcript: a line is `METHOD TARGET [BODY]`, blank lines and lines with `#` are for the reader.
    fn transcript(&mut self, text: &str) -> Result<()> {
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().context("target")?);
            let body = words.next().map(|b| (FORM, b));
            self.both(line, &Request { method, target, body, ..Request::default() })?;
            if method == "HEAD" {
                self.head_over_http2(target)?;
            }
        }
        Ok(())
    }

    /// HTTP/2 gives the same answer to HEAD as HTTP/1, with the length of the body and without the body, at which curl
    /// would fail. Debian's etcd speaks no HTTP/2 in the clear.
    fn head_over_http2(&mut self, target: &str) -> Result<()> {
        let [endpoint, _] = self.endpoints();
        let first = endpoint.send(&Request { method: "HEAD", target, ..Request::default() })?;
        let mut curl = Command::new(programs::tool("curl")?);
        curl.args(["-sS", "--head", "--http2-prior-knowledge", "--path-as-is", "--max-time", "10"]);
        let output = command::run(curl.arg(format!("http://{}{target}", endpoint.address)))?;
        let head = output.ok()?;
        ensure!(head.starts_with("HTTP/2 "), "{head}");
        let second = parse(head.as_bytes(), true)?;
        let seen = |reply: &Reply| {
            format!("{} [Content-Length: {:?}]", shown(reply), reply.header("Content-Length"))
        };
        ensure!(seen(&first) == seen(&second), "HEAD {target}: {} and {}", seen(&first), seen(&second));
        Ok(())
    }

    /// Starts a watch on both, runs `trigger`, and compares what the watches then answered.
    fn watch(&mut self, target: &str, trigger: &str) -> Result<()> {
        let mut watches = Vec::new();
        for endpoint in self.endpoints() {
            let request = Request { target, ..Request::default() };
            let mut watch = Exchange::start(endpoint.ns, endpoint.address, &request, LIMIT)?;
            watch.wait_headers(LIMIT).context("a watch's headers come at once")?;
            watches.push(watch);
        }
        self.transcript(trigger)?;
        let replies = watches.into_iter().map(|w| w.finish(3 * LIMIT)).collect::<Result<Vec<_>>>();
        let replies = replies.with_context(|| format!("watch {target} after {trigger}"))?;
        self.compare(&format!("watch {target} after {trigger}"), &replies[0], &replies[1]);
        Ok(())
    }

    /// All differences at once, if there are any.
    fn verdict(self, at_least: usize) -> Result<()> {
        ensure!(self.compared >= at_least, "only {} answers were compared", self.compared);
        if self.differences.is_empty() {
            return Ok(());
        }
        bail!("answers differ from etcd's:\n{}", self.differences)
    }
}

/// An answer with the parts replaced that name the server or the moment.
fn shown(reply: &Reply) -> String {
    let mut text = format!("{}", reply.status);
    for name in HEADERS {
        if let Some(value) = reply.header(name) {
            write!(text, " [{name}: {value}]").ok();
        }
    }
    for name in PRESENCE {
        if reply.header(name).is_some() {
            write!(text, " [{name}]").ok();
        }
    }
    write!(text, " {:?}", without_times(&reply.text())).ok();
    text
}

/// Replaces the values of `expiration` by their shape.
fn without_times(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    while let Some((before, after)) = rest.split_once("\"expiration\":\"") {
        let Some((time, tail)) = after.split_once('"') else { break };
        let rfc3339 = time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z');
        write!(out, "{before}\"expiration\":\"{}\"", if rfc3339 { "<time>" } else { time }).ok();
        rest = tail;
    }
    in_hundreds(&(out + rest))
}

/// What is left of a time to live, rounded up to hundreds of seconds where it is that long: the two servers are asked one
/// after the other, and what one of them writes to the disk takes time of the other's.
fn in_hundreds(body: &str) -> String {
    let mut parts = body.split("\"ttl\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &part[..part.len() - rest.len()];
        let left = number.parse().ok().filter(|left: &u64| (50..=300).contains(left));
        let shown = left.map_or_else(|| number.to_owned(), |left| (left.div_ceil(100) * 100).to_string());
        write!(out, "\"ttl\":{shown}{rest}").ok();
    }
    out
}

#[test]
fn keys_are_written_read_and_deleted_as_in_etcd() -> Result<()> {
    let _turn = one_at_a_time();
    let mut pair = Pair::start()?;
    pair.transcript(include_str!("../transcripts/keys.txt"))?;
    pair.verdict(90)
}

#[test]
fn requests_are_checked_in_etcds_order() -> Result<()> {
    let _turn = one_at_a_time();
    let mut pair = Pair::start()?;
    pair.transcript(include_str!("../transcripts/checks.txt"))?;
    for kind in ["text/plain", "", "application/json", "application/x-www-form-urlencoded; charset=utf-8"] {
        for method in ["PUT", "POST"] {
            let request = Request {
                method,
                target: "/v2/keys/kind",
                body: Some((kind, "value=1")),
                ..Request::default()
            };
            pair.both(&format!("{method} with content type `{kind}`"), &request)?;
            pair.transcript("DELETE /v2/keys/kind?recursive=true")?;
        }
    }
    let megabyte = format!("value={}", "x".repeat(1 << 20));
    for target in ["/v2/keys/large", "/v2/keys/large?noValueOnSuccess=true"] {
        pair.both(
            target,
            &Request { method: "PUT", target, body: Some((FORM, &megabyte)), ..Request::default() },
        )?;
    }
    pair.verdict(60)
}

#[test]
fn other_paths_and_methods_answer_as_in_etcd() -> Result<()> {
    let _turn = one_at_a_time();
    let mut pair = Pair::start()?;
    pair.transcript(
        "
        GET /
        GET /v2
        GET /v2/
        GET /v2/stats
        GET /v2/keysfoo
        GET /v2/leader
        GET /v2/members/none
        PUT /v2/members
        DELETE /v2/members
        POST /v2/machines
        PUT /v2/stats/self
        POST /v2/stats/store
        PUT /v2/stats/leader
        HEAD /health
        HEAD /version
        POST /version
        OPTIONS /v2/members
        ",
    )?;
    // What names the servers is compared by its shape.
    for target in
        ["/v2/members", "/v2/members/leader", "/v2/stats/self", "/v2/stats/leader", "/v2/stats/store"]
    {
        let [ours, theirs] = pair.endpoints().map(|e| e.get(target));
        let (ours, theirs) = (ours?, theirs?);
        ensure!(ours.status == theirs.status, "{target}: {} {}", ours.status, theirs.status);
        for name in HEADERS.iter().chain(PRESENCE).filter(|n| !n.starts_with("X-Etcd-Index")) {
            let same = ours.header(name).is_some() == theirs.header(name).is_some();
            ensure!(same, "{target}: {name}: ours {:?}, etcd's {:?}", ours.header(name), theirs.header(name));
        }
        let (ours, theirs) = (keys(&ours.json()?), keys(&theirs.json()?));
        // Rates come and go with the traffic.
        let steady =
            |all: Vec<String>| -> Vec<String> { all.into_iter().filter(|k| !k.ends_with("Rate")).collect() };
        ensure!(steady(ours.clone()) == steady(theirs.clone()), "{target}: {ours:?} instead of {theirs:?}");
    }
    for endpoint in pair.endpoints() {
        let machines = endpoint.get("/v2/machines")?;
        ensure!(machines.text() == format!("http://{}", endpoint.address), "{}", machines.text());
        // 3.2 writes a blank after the colon and 3.4 none; what a client parses is the same.
        let health = endpoint.get("/health")?;
        ensure!(
            health.status == 200 && health.json()? == serde_json::json!({"health": "true"}),
            "{health:?}"
        );
        let version = endpoint.get("/version")?;
        ensure!(keys(&version.json()?) == [".etcdcluster", ".etcdserver"], "{}", version.text());
        // The id that the cluster reports on every answer is the SHA-1 of its member ids, the same on all paths.
        let id = version.header("X-Etcd-Cluster-Id").map(str::to_owned);
        let on_keys = endpoint.get("/v2/keys/")?.header("X-Etcd-Cluster-Id").map(str::to_owned);
        ensure!(on_keys.is_some() && (id.is_none() || id == on_keys), "{id:?} {on_keys:?}");
    }
    pair.verdict(15)
}

/// The paths of all keys of a JSON value, sorted.
fn keys(value: &serde_json::Value) -> Vec<String> {
    fn walk(value: &serde_json::Value, path: &str, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, inner) in map {
                    out.push(format!("{path}.{key}"));
                    walk(inner, &format!("{path}.{key}"), out);
                }
            }
            serde_json::Value::Array(all) => all.iter().for_each(|inner| walk(inner, path, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(value, "", &mut out);
    out.sort();
    out.dedup();
    out
}

#[test]
fn watches_see_what_etcds_see() -> Result<()> {
    let _turn = one_at_a_time();
    let mut pair = Pair::start()?;
    pair.transcript("PUT /v2/keys/w value=0\nPUT /v2/keys/dir/old value=0")?;
    for (target, trigger) in [
        ("/v2/keys/w?wait=true", "PUT /v2/keys/w value=1"),
        ("/v2/keys/w?wait=true&waitIndex=0", "PUT /v2/keys/w value=2"),
        ("/v2/keys/w?wait=true", "DELETE /v2/keys/w"),
        ("/v2/keys/later?wait=true", "PUT /v2/keys/other value=x\nPUT /v2/keys/later value=1"),
        ("/v2/keys/later?wait=true", "PUT /v2/keys/later?prevValue=1 value=2"),
        ("/v2/keys/later?wait=true", "PUT /v2/keys/later?refresh=true&ttl=100\nPUT /v2/keys/later value=3"),
        ("/v2/keys/later?wait=true", "DELETE /v2/keys/later?prevValue=3"),
        ("/v2/keys/dir?wait=true", "PUT /v2/keys/dir/a value=1\nDELETE /v2/keys/dir?recursive=true"),
        ("/v2/keys/dir?wait=true&recursive=true", "PUT /v2/keys/dir/b/c value=1"),
        ("/v2/keys/dir?wait=true&recursive=true", "POST /v2/keys/dir value=1"),
        ("/v2/keys/dir/b/c?wait=true", "DELETE /v2/keys/dir?recursive=true"),
        ("/v2/keys/?wait=true&recursive=true", "PUT /v2/keys/_h/x value=1\nPUT /v2/keys/seen value=1"),
        ("/v2/keys/_h/x?wait=true", "PUT /v2/keys/_h/x value=2"),
        ("/v2/keys/_h?wait=true&recursive=true", "PUT /v2/keys/_h/x value=3"),
        ("/v2/keys/future?wait=true&waitIndex=1000", &"PUT /v2/keys/future value=1\n".repeat(1000)),
    ] {
        pair.watch(target, trigger)?;
    }
    // From the history: the answer is there at once. The oldest events are gone by now.
    pair.transcript(
        "
        PUT /v2/keys/past value=1
        PUT /v2/keys/past value=2
        GET /v2/keys/past?wait=true&waitIndex=1
        GET /v2/keys/future?wait=true&waitIndex=500
        GET /v2/keys/?wait=true&recursive=true&waitIndex=600
        GET /v2/keys/past?wait=true&waitIndex=900
        GET /v2/keys/future?wait=true&quorum=true
        ",
    )?;
    streams_deliver_every_event(&mut pair)?;
    pair.verdict(40)
}

fn streams_deliver_every_event(pair: &mut Pair) -> Result<()> {
    let request = Request { target: "/v2/keys/s?wait=true&stream=true&recursive=true", ..Request::default() };
    let mut streams = Vec::new();
    for endpoint in pair.endpoints() {
        let mut stream = Exchange::start(endpoint.ns, endpoint.address, &request, LIMIT)?;
        stream.wait_headers(LIMIT)?;
        streams.push(stream);
    }
    pair.transcript("PUT /v2/keys/s/1 value=1\nPUT /v2/keys/s/2 value=2\nDELETE /v2/keys/s/1")?;
    let replies = streams.into_iter().map(|s| s.take_lines(3, LIMIT)).collect::<Result<Vec<_>>>()?;
    pair.compare("a stream", &replies[0], &replies[1]);
    Ok(())
}

#[test]
fn keys_expire_as_in_etcd() -> Result<()> {
    let _turn = one_at_a_time();
    let mut pair = Pair::start()?;
    pair.transcript(
        "
        PUT /v2/keys/t value=1&ttl=100
        GET /v2/keys/t
        PUT /v2/keys/t?prevExist=true value=2&ttl=200
        PUT /v2/keys/t?prevExist=true&refresh=true ttl=300
        GET /v2/keys/t
        PUT /v2/keys/t?prevExist=true value=3&ttl=
        GET /v2/keys/t
        PUT /v2/keys/t value=4&ttl=100
        PUT /v2/keys/t?prevValue=4 value=5
        PUT /v2/keys/dir dir=true&ttl=100
        PUT /v2/keys/dir?prevExist=true dir=true&ttl=200
        PUT /v2/keys/dir/x value=1
        GET /v2/keys/dir
        GET /v2/keys/?sorted=true&recursive=true
        POST /v2/keys/q value=1&ttl=100
        PUT /v2/keys/huge value=1&ttl=9300000000
        GET /v2/keys/huge
        ",
    )?;
    pair.watch("/v2/keys/e?wait=true", "PUT /v2/keys/e value=gone&ttl=5")?;
    // That watch saw the set; the next sees the expiry, which no request triggers.
    pair.watch("/v2/keys/e?wait=true", "")?;
    pair.watch("/v2/keys/z?wait=true&recursive=true", "PUT /v2/keys/z dir=true&ttl=5")?;
    pair.watch("/v2/keys/z?wait=true&recursive=true", "PUT /v2/keys/z/in value=1")?;
    pair.watch("/v2/keys/z/in?wait=true", "")?;
    pair.transcript("GET /v2/keys/e\nGET /v2/keys/z\nGET /v2/keys/z/in\nPUT /v2/keys/after value=1")?;
    pair.verdict(25)
}
