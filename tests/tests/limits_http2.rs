//! What a client can make a member hold over HTTP/2, where it says itself how much of each answer it takes: bounds of
//! docs/limits.md, met by a client that takes nothing.

#![expect(clippy::disallowed_methods, reason = "measures real deadlines")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::cluster::{Cluster, Server};
use weft_tests::h2::{self, Frame, H2};
use weft_tests::http::{self, Request};
use weft_tests::process::one_at_a_time;
use weft_tests::raw::Raw;
use weft_tests::v2::Endpoint;
use weft_tests::wait::wait_for;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than any deadline here.
const PATIENCE: Duration = Duration::from_secs(60);
/// The window that HTTP/2 clients open if they say nothing.
const USUAL: u32 = 65_535;

fn single(files: Option<u32>) -> Result<(Cluster<'static>, Endpoint<'static>)> {
    let mut cluster = Cluster::on_loopback(Server::Weft, 1)?;
    if let Some(files) = files {
        cluster.members[0].limit_files(files);
    }
    cluster.start()?;
    let endpoint = cluster.members[0].endpoint();
    Ok((cluster, endpoint))
}

fn wait_watchers(endpoint: &Endpoint<'_>, count: u64) -> Result<()> {
    wait_for(&format!("{count} watchers"), PATIENCE, || {
        let now = endpoint.get("/v2/stats/store")?.json()?["watchers"].as_u64().context("watchers")?;
        ensure!(now == count, "{now}");
        Ok(())
    })
}

/// Writes a large value; its answer would be twice as long.
fn put(endpoint: &Endpoint<'_>, key: &str, value: &str) -> Result<()> {
    let form = format!("value={value}");
    let target = format!("/v2/keys{key}?noValueOnSuccess=true");
    let body = Some(("application/x-www-form-urlencoded", form.as_str()));
    let reply = endpoint.send(&Request { method: "PUT", target: &target, body, ..Request::default() })?;
    ensure!(matches!(reply.status, 200 | 201), "{key}: {}", reply.text());
    Ok(())
}

/// The settings in a frame, by their numbers (RFC 9113 section 6.5.2).
fn settings(frame: &Frame) -> Result<Vec<(u16, u32)>> {
    let setting = |bytes: &[u8]| {
        let name = u16::from_be_bytes(bytes[..2].try_into()?);
        Ok((name, u32::from_be_bytes(bytes[2..].try_into()?)))
    };
    frame.payload.chunks_exact(6).map(setting).collect()
}

#[test]
fn streams_windows_and_resets_are_few() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut cluster, endpoint) = single(None)?;
    let mut client = H2::open(endpoint.address, USUAL)?;
    let said = settings(&client.wait(LIMIT, |frame| frame.kind == h2::SETTINGS && frame.flags == 0)?)?;
    for wanted in [(3, 250), (4, 64 << 10), (6, 128 << 10)] {
        ensure!(said.contains(&wanted), "{wanted:?} in {said:?}");
    }
    let more = client.wait(LIMIT, |frame| frame.is(h2::WINDOW_UPDATE, 0))?;
    ensure!(more.payload == ((128 << 10) - 65_535_u32).to_be_bytes(), "{more:?}");

    let streams: Vec<u32> = (0..251).map(|_| client.put_head("/v2/keys/slow")).collect::<Result<_>>()?;
    let refused = client.wait(LIMIT, |frame| frame.kind == h2::RST_STREAM)?;
    ensure!((refused.stream, refused.code()?) == (streams[250], h2::REFUSED_STREAM), "{refused:?}");

    let mut client = H2::open(endpoint.address, USUAL)?;
    client.open_and_reset("/v2/keys/a?wait=true", 200)?;
    let end = client.wait(LIMIT, |frame| frame.kind == h2::GOAWAY)?;
    ensure!(end.code()? == h2::ENHANCE_YOUR_CALM, "{end:?}");
    wait_watchers(&endpoint, 0)?;
    ensure!(cluster.members[0].process()?.is_running()?);
    Ok(())
}

/// So few files leave 16 connections, and 32 requests on all of them.
#[test]
fn requests_beyond_those_that_are_answered_leave_nothing_behind() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut cluster, endpoint) = single(Some(280))?;
    let mut client = H2::open(endpoint.address, USUAL)?;
    for _ in 0..32 {
        client.put_head("/v2/keys/slow")?;
    }
    let mut ask = || {
        let stream = client.get("/v2/keys/")?;
        let frame = client.wait(LIMIT, |frame| frame.stream == stream)?;
        ensure!(frame.kind == h2::RST_STREAM && frame.code()? == h2::REFUSED_STREAM, "{frame:?}");
        Ok(())
    };
    wait_for("all of them to be under way", LIMIT, &mut ask)?;
    (0..50).try_for_each(|_| ask())?;
    let refused = endpoint.get("/v2/keys/")?;
    ensure!(
        refused.status == 503 && refused.text().contains("answers as many as it can"),
        "{}",
        refused.text()
    );
    cluster.members[0]
        .process()?
        .wait_for_log("stream reset: this member answers as many as it can", LIMIT)?;
    drop(client);
    wait_for("a request", LIMIT, || {
        ensure!(endpoint.get("/v2/keys/")?.status == 200);
        Ok(())
    })
}

/// What is small and what is large, what is there and what comes: nobody has to wait for a client that takes none of it.
#[test]
fn what_is_not_taken_is_closed_in_time_and_keeps_nobody_else_waiting() -> Result<()> {
    let turn = one_at_a_time();
    let (mut cluster, endpoint) = single(None)?;
    let value = "v".repeat(6 << 20);
    for n in 0..9 {
        put(&endpoint, &format!("/large/{n}"), &value)?;
    }
    endpoint.set("/middle", &"v".repeat(20_000))?;
    let index = endpoint.set("/small", "v")?["node"]["modifiedIndex"].as_u64().context("index")?;

    let cases = [
        "/v2/keys/small".to_owned(),
        "/v2/keys/middle".to_owned(),
        "/v2/keys/large?recursive=true".to_owned(),
        format!("/v2/keys/small?wait=true&waitIndex={index}"),
        format!("/v2/keys/small?wait=true&stream=true&waitIndex={index}"),
        "/v2/keys/event?wait=true&stream=true".to_owned(),
    ];
    let mut clients = Vec::new();
    for path in cases {
        let mut client = H2::open(endpoint.address, 0)?;
        let stream = client.get(&path)?;
        let status = client.wait(PATIENCE, |frame| frame.is(h2::HEADERS, stream))?.status()?;
        ensure!(status == 200, "{path}: {status}");
        clients.push((path, client));
    }
    endpoint.set("/event", "v")?;
    let begun = Instant::now();

    // The large one goes alone, so another waits as long as any request. Nothing else notices.
    let refused = endpoint.get("/v2/keys/large?recursive=true")?;
    ensure!(
        refused.status == 503 && refused.text().contains("no room for an answer of"),
        "{}",
        refused.status
    );
    ensure!(endpoint.value("/middle", false)?.len() == 20_000);
    endpoint.set("/other", &"v".repeat(20_000))?;
    ensure!(begun.elapsed() < Duration::from_secs(19), "too slow to tell: {:?}", begun.elapsed());

    // What is left is to wait.
    drop(turn);
    for (path, mut client) in clients {
        let after = client.until_closed(PATIENCE).with_context(|| path.clone())?;
        ensure!((19..45).contains(&after.as_secs()), "{path}: closed after {after:?}");
    }
    let large = Request { target: "/v2/keys/large?recursive=true", ..Request::default() };
    let reply = http::send(endpoint.ns, endpoint.address, &large, PATIENCE)?;
    ensure!(reply.status == 200 && reply.body.len() > 54 << 20, "{}", reply.status);
    for told in ["it does not read what it asked for", "it reads its answer too slowly"] {
        cluster.members[0].process()?.wait_for_log(told, LIMIT)?;
    }
    wait_watchers(&endpoint, 0)
}

/// With all of an address' room for middling answers taken, a write from there is still done, and says so in time.
#[test]
fn a_write_that_finds_no_room_for_its_answer_is_answered_without_the_value() -> Result<()> {
    let _turn = one_at_a_time();
    let (_cluster, endpoint) = single(None)?;
    put(&endpoint, "/middle", &"v".repeat(900 << 10))?;
    let mut client = H2::open(endpoint.address, 0)?;
    // 18 of them leave some 100 KiB of 16 MiB.
    let streams: Vec<u32> = (0..18).map(|_| client.get("/v2/keys/middle")).collect::<Result<_>>()?;
    // In any order.
    for _ in &streams {
        let status = client.wait(LIMIT, |frame| frame.kind == h2::HEADERS)?.status()?;
        ensure!(status == 200, "{status}");
    }
    let form = format!("value={}", "v".repeat(200_000));
    let put = format!(
        "PUT /v2/keys/written HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let mut writer = Raw::open(endpoint.address, put.as_bytes())?;
    let said = writer.read_until(PATIENCE, |said| said.ends_with(b"}\n"))?;
    let said = String::from_utf8_lossy(&said[..said.len().min(1000)]);
    let answered =
        said.contains("\r\n\r\n{\"action\":\"set\",\"node\":{\"key\":\"/written\",\"modifiedIndex\":");
    ensure!(said.starts_with("HTTP/1.1 201") && answered, "{said}");
    drop(client);
    wait_for("room", LIMIT, || {
        ensure!(endpoint.value("/written", false)?.len() == 200_000);
        Ok(())
    })
}

/// Watches of old events, each begun when the history was another one: if each kept what it was to be given, they
/// would hold as many histories of 64 MiB.
#[test]
fn watches_that_take_nothing_do_not_keep_the_past() -> Result<()> {
    let turn = one_at_a_time();
    let (mut cluster, endpoint) = single(None)?;
    let value = "v".repeat(4 << 20);
    let turn_history = || (0..7).try_for_each(|n| put(&endpoint, &format!("/w/{}", n % 2), &value));
    // As many writes as come below, so that they alone make no difference.
    (0..6).try_for_each(|_| turn_history())?;
    let before = cluster.members[0].process()?.resident_kib()?;
    let mut watches = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let index = endpoint.set("/w/begin", "v")?["node"]["modifiedIndex"].as_u64().context("index")?;
        turn_history()?;
        let path = format!("/v2/keys/w?wait=true&stream=true&recursive=true&waitIndex={index}");
        let mut client = H2::open(endpoint.address, 0)?;
        let stream = client.get(&path)?;
        ensure!(client.wait(LIMIT, |frame| frame.is(h2::HEADERS, stream))?.status()? == 200, "{path}");
        watches.0.push(client);
        watches
            .1
            .push(Raw::open(endpoint.address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?);
    }
    let grown = cluster.members[0].process()?.resident_kib()?.saturating_sub(before) / 1024;
    ensure!(grown < 150, "{grown} MiB more");
    // What is left is to wait.
    drop(turn);
    for client in &mut watches.0 {
        client.until_closed(PATIENCE)?;
    }
    wait_watchers(&endpoint, 0)
}
