//! What a client can make a member hold, and for how long: each bound of docs/limits.md is met by a real client and
//! answered as written there, while others go on.

#![expect(clippy::disallowed_methods, reason = "measures real deadlines")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::fabric::Fabric;
use weft_tests::h2::{self, H2};
use weft_tests::http::{self, Exchange, Request};
use weft_tests::process::one_at_a_time;
use weft_tests::raw::{Ended, Raw};
use weft_tests::tutorial::make_certificates;
use weft_tests::v2::Endpoint;
use weft_tests::wait::wait_for;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than any deadline here.
const PATIENCE: Duration = Duration::from_secs(45);
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

fn single() -> Result<(Cluster<'static>, Endpoint<'static>)> {
    let mut cluster = Cluster::on_loopback(Server::Weft, 1)?;
    cluster.start()?;
    let endpoint = cluster.members[0].endpoint();
    Ok((cluster, endpoint))
}

/// A PUT whose form has that length.
fn put_head(key: &str, length: usize) -> String {
    format!("PUT /v2/keys/{key} HTTP/1.1\r\nHost: x\r\n{FORM}\r\nContent-Length: {length}\r\n\r\n")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn watchers(endpoint: &Endpoint<'_>) -> Result<u64> {
    endpoint.get("/v2/stats/store")?.json()?["watchers"].as_u64().context("watchers")
}

fn wait_watchers(endpoint: &Endpoint<'_>, count: u64, limit: Duration) -> Result<()> {
    wait_for(&format!("{count} watchers"), limit, || {
        let now = watchers(endpoint)?;
        ensure!(now == count, "{now}");
        Ok(())
    })
}

/// As many sockets as the test may have.
fn raise_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

fn ended_within(what: &str, ended: &Ended, seconds: std::ops::Range<u64>) -> Result<()> {
    ensure!(seconds.contains(&ended.after.as_secs()), "{what}: closed after {:?}", ended.after);
    Ok(())
}

/// Slowloris of each kind at once, and beside them a client that minds its own business.
#[test]
fn who_dribbles_is_dropped_in_time_and_nobody_else_notices() -> Result<()> {
    let _turn = one_at_a_time();
    let certs = tempfile::tempdir()?;
    make_certificates(certs.path())?;
    let mut cluster = Cluster::on_loopback(Server::Weft, 1)?;
    let member = &mut cluster.members[0];
    let endpoint = member.endpoint();
    let tls = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    member.set_flag("listen-client-urls", &format!("http://{},https://{tls}", endpoint.address))?;
    for (flag, file) in [("cert-file", "server.pem"), ("key-file", "server-key.pem")] {
        member.push_flag(&format!("--{flag}={}", certs.path().join(file).display()));
    }
    cluster.start()?;

    let plain = endpoint.address;
    let half_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice();
    let body = put_head("slow", 100_000);
    let closed = |address, first: &[u8], drip: &[u8]| Raw::open(address, first)?.until_closed(drip, PATIENCE);
    let (stopped, ends) = std::thread::scope(|scope| {
        let silent = Raw::open(plain, b"");
        let cases = [
            ("a silent TLS client", tls, b"".as_slice(), b"".as_slice(), ""),
            ("half a TLS hello", tls, half_hello, b"", ""),
            ("a dribbled TLS hello", tls, half_hello, b"\0", ""),
            ("half a request line", plain, b"GET /v2/ke", b"", "408"),
            ("dribbled headers", plain, b"GET /v2/keys/ HTTP/1.1\r\n", b"X: y\r\n", "408"),
            ("a form that stops", plain, body.as_bytes(), b"", "408"),
            ("a dribbled form", plain, body.as_bytes(), b"v", "408"),
        ];
        let threads = cases.map(|(what, address, first, drip, status)| {
            (what, status, scope.spawn(move || closed(address, first, drip)))
        });
        let mut latencies = Vec::new();
        let mut stopped = Ok(());
        while threads.iter().any(|(_, _, thread)| !thread.is_finished()) {
            let begun = Instant::now();
            stopped = stopped.and_then(|()| endpoint.set("/normal", "v").map(drop));
            latencies.push(begun.elapsed());
        }
        latencies.sort_unstable();
        let median = latencies[latencies.len() / 2];
        stopped = stopped.and_then(|()| {
            ensure!(median < Duration::from_secs(1), "a write takes {median:?}");
            ensure!(silent?.is_quiet()?, "an idle connection is not slow, and stays");
            Ok(())
        });
        (stopped, threads.map(|(what, status, thread)| (what, status, thread.join())))
    });
    stopped?;
    for (what, status, ended) in ends {
        let ended = ended.map_err(|_| anyhow::anyhow!("panic"))?.context(what)?;
        ended_within(what, &ended, 9..20)?;
        ensure!(
            ended.text().starts_with(&["HTTP/1.1 ", status].concat()) || status.is_empty(),
            "{}",
            ended.text()
        );
        if what.contains("form") {
            let text = ended.text();
            ensure!(
                text.contains("{\"errorCode\":210,") && text.contains("did not arrive in time"),
                "{text}"
            );
        }
    }
    let process = cluster.members[0].process()?;
    for told in
        ["TLS handshake took too long", "head of its request took too long", "form did not arrive in time"]
    {
        let line = process.wait_for_log(told, LIMIT)?;
        ensure!(line.contains("from=127.0.0.1:"), "{line}");
    }
    for told in ["head of its request took", "form did not arrive in time"] {
        let lines = process.log().lines().filter(|l| l.contains(told)).count();
        ensure!(lines == 1, "one line of `{told}` for all from one address: {lines}");
    }
    Ok(())
}

#[test]
fn what_is_too_large_is_refused_with_etcds_words_where_it_has_any() -> Result<()> {
    let _turn = one_at_a_time();
    let (_cluster, endpoint) = single()?;
    let address = endpoint.address;
    let long = "x".repeat(200 << 10);
    let many = "X: y\r\n".repeat(101);
    for (what, request, status) in [
        ("a head", format!("GET /version HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"), "431"),
        ("a request line", get(&format!("/v2/keys/?x={}", &long[..70_000])), "414"),
        ("headers", format!("GET /version HTTP/1.1\r\nHost: x\r\n{many}\r\n"), "431"),
    ] {
        let ended = Raw::open(address, request.as_bytes())?.until_closed(b"", LIMIT).context(what)?;
        ensure!(ended.text().starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {}", ended.text());
    }

    let too_large = "{\"errorCode\":210,\"message\":\"Invalid POST form\",\"cause\":\"http: POST too large\",\"index\":0}\n";
    // Told before the client has sent it.
    let declared = Raw::open(address, put_head("a", (10 << 20) + 1).as_bytes())?.until_closed(b"", LIMIT)?;
    ensure!(
        declared.text().starts_with("HTTP/1.1 400") && declared.text().ends_with(too_large),
        "{declared:?}"
    );
    let head = format!("PUT /v2/keys/a HTTP/1.1\r\nHost: x\r\n{FORM}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut chunked = Raw::open(address, head.as_bytes())?;
    let chunk = format!("100000\r\n{}\r\n", "v".repeat(1 << 20));
    // The server answers once it has had enough, perhaps before it has all.
    for _ in 0..11 {
        if chunked.send(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let ended = chunked.until_closed(b"", LIMIT)?;
    ensure!(ended.text().contains(too_large), "{}", ended.text());
    endpoint.set("/large", &"v".repeat((10 << 20) - 6)).context("the largest form")?;

    let mut h2 = H2::open(address, 65_535)?;
    for (length, status) in [(140 << 10, 431), (100 << 10, 200)] {
        let stream = h2.get_with_header("/version", length)?;
        let head = h2.wait(LIMIT, |frame| frame.is(h2::HEADERS, stream))?;
        ensure!(head.status()? == status, "{length} bytes: {head:?}");
    }
    // So many frames for one head that it is no mistake.
    h2.get_with_header("/version", 400 << 10)?;
    ensure!(h2.wait(LIMIT, |frame| frame.kind == h2::GOAWAY)?.code()? == h2::ENHANCE_YOUR_CALM);
    Ok(())
}

/// 308 descriptors leave 44 connections for clients and 33 watches among them.
#[test]
fn a_full_member_lets_in_who_asks_and_keeps_its_own_descriptors() -> Result<()> {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::on_loopback(Server::Weft, 1)?;
    cluster.members[0].limit_files(308);
    cluster.start()?;
    let endpoint = cluster.members[0].endpoint();
    let address = endpoint.address;

    let idle: Vec<Raw> = (0..400).map(|_| Raw::open(address, b"")).collect::<Result<_>>()?;
    endpoint.set("/a", "1").context("an idle connection makes room")?;
    wait_for("the oldest idle ones to be closed", LIMIT, || {
        let open = idle.iter().map(Raw::is_quiet).collect::<Result<Vec<_>>>()?;
        let count = open.iter().filter(|open| **open).count();
        ensure!(count <= 44, "{count} are open");
        ensure!(!open[0], "the oldest is");
        Ok(())
    })?;
    cluster.members[0].process()?.wait_for_log("longest idle are closed for new ones", LIMIT)?;

    let mut watches = Vec::new();
    for _ in 0..33 {
        let mut watch = Raw::open(address, get("/v2/keys/w?wait=true").as_bytes())?;
        ensure!(watch.head(LIMIT)?.starts_with("HTTP/1.1 200"), "a watch");
        watches.push(watch);
    }
    let refused = endpoint.get("/v2/keys/w?wait=true")?;
    ensure!(refused.status == 503, "{}", refused.text());
    let error = refused.json()?;
    ensure!(error["errorCode"] == 300, "{error}");
    let cause = "etcdserver: too many requests: 33 watches are the most that this member takes";
    ensure!(error["cause"] == cause, "{error}");

    // Eleven that are at work for some seconds, and the house is full.
    let head = put_head("slow", 100_000);
    let mut slow: Vec<Raw> = (0..11).map(|_| Raw::open(address, head.as_bytes())).collect::<Result<_>>()?;
    let turned_away = wait_for("a full house", LIMIT, || {
        let reply = endpoint.get("/v2/keys/a")?;
        if reply.status != 503 {
            // One of them has found the place of an earlier request taken, which has been left since.
            slow.push(Raw::open(address, head.as_bytes())?);
        }
        ensure!(reply.status == 503, "{}", reply.status);
        Ok(reply)
    })?;
    ensure!(
        turned_away.text().contains("all connections of this member are in use"),
        "{}",
        turned_away.text()
    );
    cluster.members[0].process()?.wait_for_log("turned away", LIMIT)?;
    drop(slow);
    wait_for("a place", PATIENCE, || endpoint.set("/a", "2"))?;
    drop((idle, watches));
    wait_watchers(&endpoint, 0, LIMIT)?;
    ensure!(
        !cluster.members[0].process()?.log().contains("Too many open files"),
        "it ran out of descriptors"
    );
    Ok(())
}

#[test]
fn five_thousand_watchers_are_served() -> Result<()> {
    let _turn = one_at_a_time();
    raise_files()?;
    let (mut cluster, endpoint) = single()?;
    let before = cluster.members[0].process()?.resident_kib()?;
    let mut watches = Vec::new();
    let request = get("/v2/keys/w?wait=true&recursive=true");
    for _ in 0..5000 {
        watches.push(Raw::open(endpoint.address, request.as_bytes())?);
    }
    wait_watchers(&endpoint, 5000, PATIENCE)?;
    let each = (cluster.members[0].process()?.resident_kib()? - before) / 5000;
    ensure!(each < 64, "{each} KiB for each watcher");
    let begun = Instant::now();
    endpoint.set("/w/key", "now")?;
    for watch in &mut watches {
        watch.read_until(PATIENCE, |said| said.windows(5).any(|w| w == b"\"now\""))?;
    }
    eprintln!("5000 are told within {:?}", begun.elapsed());
    wait_watchers(&endpoint, 0, PATIENCE)
}

/// Ones that read nothing are cut off by the events they lag behind, and their connections by the time.
#[test]
fn a_watcher_that_never_reads_is_cut_off() -> Result<()> {
    let turn = one_at_a_time();
    let (mut cluster, endpoint) = single()?;
    let request = get("/v2/keys/w?wait=true&stream=true");
    let watches: Vec<Raw> =
        (0..50).map(|_| Raw::open(endpoint.address, request.as_bytes())).collect::<Result<_>>()?;
    wait_watchers(&endpoint, 50, LIMIT)?;
    let value = "v".repeat(128 << 10);
    for _ in 0..150 {
        endpoint.set("/w", &value)?;
    }
    wait_watchers(&endpoint, 0, PATIENCE)?;
    // What is left is to wait.
    drop(turn);
    let line = cluster.members[0].process()?.wait_for_log("it does not read what it asked for", PATIENCE)?;
    ensure!(line.contains("from=127.0.0.1:"), "{line}");
    drop(watches);
    Ok(())
}

/// Of the room for forms one address has 64 MiB: six of ten and some.
#[test]
fn large_forms_that_do_not_end_have_a_room_of_their_own() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut cluster, endpoint) = single()?;
    let mut forms = Vec::new();
    for _ in 0..8 {
        let mut form = Raw::open(endpoint.address, put_head("large", 10 << 20).as_bytes())?;
        // One that is refused may not be sent to its end.
        form.send(&vec![b'v'; 9 << 20]).ok();
        forms.push(form);
    }
    wait_for("one to be refused", LIMIT, || {
        let said = forms.iter().map(Raw::peek).collect::<Result<Vec<_>>>()?;
        let refused = said.iter().find(|said| !said.is_empty()).context("none yet")?;
        ensure!(refused.starts_with("HTTP/1.1 503") && refused.contains("too many large forms"), "{refused}");
        Ok(())
    })?;
    endpoint.set("/small", &"v".repeat(10 << 10)).context("small ones go on")?;
    cluster.members[0].process()?.wait_for_log("too many large forms", LIMIT)?;
    drop(forms);
    wait_for("room for a large one", LIMIT, || endpoint.set("/large", &"v".repeat(1 << 20)))?;
    Ok(())
}

/// Answers of 33 MiB, of which 48 MiB may be on the way to one address: the rest is told so, and small ones do not wait.
#[test]
fn large_answers_that_nobody_reads_share_a_room_of_their_own() -> Result<()> {
    let turn = one_at_a_time();
    let (mut cluster, endpoint) = single()?;
    let value = "v".repeat(4 << 20);
    for n in 0..8 {
        endpoint.set(&format!("/large/{n}"), &value)?;
    }
    endpoint.set("/small", "v")?;
    let before = cluster.members[0].process()?.resident_kib()?;
    let request = get("/v2/keys/large?recursive=true");
    let readers: Vec<Raw> =
        (0..8).map(|_| Raw::open(endpoint.address, request.as_bytes())).collect::<Result<_>>()?;
    // Only looked at, not read.
    wait_for("one to be refused", PATIENCE, || {
        let said = readers.iter().map(Raw::peek).collect::<Result<Vec<_>>>()?;
        let refused = said.iter().find(|said| said.starts_with("HTTP/1.1 503")).context("none yet")?;
        ensure!(refused.contains("no room for an answer of"), "{refused}");
        Ok(())
    })?;
    ensure!(endpoint.value("/small", false)? == "v", "small ones go on");
    let grown = cluster.members[0].process()?.resident_kib()?.saturating_sub(before) / 1024;
    ensure!(grown < 600, "{grown} MiB more");
    // What is left is to wait.
    drop(turn);
    // Who reads nothing for twenty seconds makes room again.
    wait_for("room for a large answer", PATIENCE, || {
        let large = Request { target: "/v2/keys/large?recursive=true", ..Request::default() };
        let reply = http::send(endpoint.ns, endpoint.address, &large, PATIENCE)?;
        ensure!(reply.status == 200 && reply.body.len() > 32 << 20, "{}", reply.status);
        Ok(())
    })?;
    cluster.members[0].process()?.wait_for_log("it does not read what it asked for", LIMIT)?;
    Ok(())
}

/// Without a quorum proposals are held, but not any number of them.
#[test]
fn proposals_that_nobody_can_carry_out_are_bounded() -> Result<()> {
    let _turn = one_at_a_time();
    raise_files()?;
    let mut cluster = Cluster::on_loopback(Server::Weft, 3)?;
    // A request may take five seconds and two elections, so they are all held at the same time.
    for member in &mut cluster.members {
        member.push_flag("--election-timeout=10000");
    }
    cluster.start()?;
    cluster.members[1].kill9()?;
    cluster.members[2].kill9()?;
    let endpoint = cluster.members[0].endpoint();
    wait_for("no leader", PATIENCE, || {
        ensure!(endpoint.get("/v2/members/leader")?.status == 503);
        Ok(())
    })?;

    // 4096 are held.
    let request = format!("{}value=v", put_head("a", 7));
    let mut writers: Vec<Raw> = (0..4300).map(|_| Raw::open(endpoint.address, b"")).collect::<Result<_>>()?;
    for writer in &mut writers {
        writer.send(request.as_bytes())?;
    }
    let mut refused = 0;
    for writer in &mut writers {
        let said = writer.read_until(PATIENCE, |said| said.ends_with(b"}\n"))?;
        let said = String::from_utf8_lossy(&said);
        ensure!(said.starts_with("HTTP/1.1 500"), "{said}");
        refused += usize::from(said.contains("\"etcdserver: too many requests\""));
        ensure!(said.contains("too many requests") || said.contains("timed out"), "{said}");
    }
    ensure!((1..=4300 - 4096).contains(&refused), "{refused} were refused");

    cluster.members[0].process()?.wait_for_log("too many requests", LIMIT)?;
    // They are dropped when their time is over, and what comes then is held again.
    cluster.members[1].start()?;
    wait_for("a write", PATIENCE, || endpoint.set("/a", "v"))?;
    Ok(())
}

#[test]
fn a_client_whose_host_is_gone_is_noticed() -> Result<()> {
    let turn = one_at_a_time();
    let fabric = Fabric::new(&[Ipv4Addr::new(192, 168, 31, 63), Ipv4Addr::new(192, 168, 31, 65)])?;
    let mut cluster = Cluster::single(&fabric.hosts[0].ns, Server::Weft, fabric.hosts[0].address)?;
    cluster.start()?;
    let endpoint = cluster.members[0].endpoint();
    let request = Request { target: "/v2/keys/w?wait=true", ..Request::default() };
    let mut watch = Exchange::start(Some(&fabric.hosts[1].ns), endpoint.address, &request, LIMIT)?;
    watch.wait_headers(LIMIT)?;
    wait_watchers(&endpoint, 1, LIMIT)?;
    fabric.set_cable(1, false)?;
    // What is left is to wait.
    drop(turn);
    wait_watchers(&endpoint, 0, PATIENCE)
}

/// Nobody gets far at the other members' port without a hello.
#[test]
fn strangers_at_the_peer_port_are_few_and_do_not_stay() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut cluster, endpoint) = single()?;
    let url = cluster.members[0].flag("listen-peer-urls").context("--listen-peer-urls")?;
    let peer: SocketAddr = url.trim_start_matches("http://").parse()?;
    let strangers: Vec<Raw> = (0..100).map(|_| Raw::open(peer, b"")).collect::<Result<_>>()?;
    wait_for("most to be closed", Duration::from_secs(2), || {
        let quiet = strangers.iter().map(Raw::is_quiet).collect::<Result<Vec<_>>>()?;
        let waiting = quiet.iter().filter(|quiet| **quiet).count();
        ensure!(waiting <= 8, "{waiting} wait");
        Ok(())
    })?;
    wait_for("all to be closed", LIMIT, || {
        ensure!(!strangers.iter().map(Raw::is_quiet).collect::<Result<Vec<_>>>()?.contains(&true));
        Ok(())
    })?;
    cluster.members[0].process()?.wait_for_log("have not said hello yet", LIMIT)?;
    endpoint.healthy()
}
