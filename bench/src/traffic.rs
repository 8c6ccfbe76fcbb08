//! Traffic between two namespaces by the usual tools: iperf3 and ping.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::command;
use weft_tests::flows::Path;
use weft_tests::ns::Namespace;
use weft_tests::process::Process;
use weft_tests::programs;

/// What TCP carried, as the receiver counted it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    /// Throughput of all streams together, payload only.
    pub(crate) gbit_per_second: f64,
    /// Payload bytes.
    pub(crate) bytes: f64,
}

/// `streams` TCP streams of iperf3 for `seconds`.
///
/// # Errors
/// When iperf3 fails.
pub(crate) fn tcp(path: Path<'_>, streams: u32, seconds: u64) -> Result<Transfer> {
    let json = iperf3(path, seconds, &["-P", &streams.to_string()])?;
    let received = &json["end"]["sum_received"];
    let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3's {name}: {received}"));
    Ok(Transfer { gbit_per_second: number("bits_per_second")? / 1e9, bytes: number("bytes")? })
}

/// UDP of `payload_bytes` as fast as one iperf3 can send for `seconds`; returns how many packets per second arrived,
/// by the receiver's own count (`InDatagrams`): iperf3's is off by what it takes for reordered.
///
/// # Errors
/// When iperf3 fails.
pub(crate) fn udp(path: Path<'_>, payload_bytes: u32, seconds: u64) -> Result<f64> {
    let before = datagrams_received(path.to)?;
    let json = iperf3(path, seconds, &["-u", "-b", "0", "--length", &payload_bytes.to_string()])?;
    let arrived = datagrams_received(path.to)? - before;
    let sum = &json["end"]["sum"];
    let took = sum["seconds"].as_f64().with_context(|| format!("iperf3's seconds: {sum}"))?;
    ensure!(arrived > 0, "not one datagram of {payload_bytes} bytes arrived: {sum}");
    Ok(f64::from(u32::try_from(arrived)?) / took)
}

/// Average round trip of 2,000 echoes sent as fast as they come back, in microseconds.
///
/// # Errors
/// When ping fails.
pub(crate) fn flood_ping_us(path: Path<'_>) -> Result<f64> {
    let out = path.from.run("ping", &format!("-f -q -c 2000 {}", path.address))?;
    let average =
        out.ok()?.lines().find_map(|l| l.strip_prefix("rtt ")?.split('/').nth(4)).context("ping's rtt")?;
    Ok(average.parse::<f64>()? * 1000.0)
}

/// One run of iperf3 as client, against a server that serves once; the client's report.
fn iperf3(path: Path<'_>, seconds: u64, args: &[&str]) -> Result<Value> {
    let log = std::env::temp_dir().join(format!("weft-bench-iperf3-{}.log", std::process::id()));
    let report = iperf3_with_log(path, seconds, args, &log);
    std::fs::remove_file(&log).ok();
    report
}

fn iperf3_with_log(path: Path<'_>, seconds: u64, args: &[&str], log: &std::path::Path) -> Result<Value> {
    let address = path.address.to_string();
    let mut server = path.to.command(programs::tool("iperf3")?)?;
    server.args(["-s", "-1", "-B", &address]);
    let mut server = Process::spawn("iperf3 -s", server, log)?;
    server.wait_until("iperf3 to listen", Duration::from_secs(5), |_| {
        let out = path.to.run("ss", "-Hltn sport = :5201")?;
        ensure!(out.ok()?.contains(":5201"), "not listening yet");
        Ok(())
    })?;
    let mut client = path.from.command(programs::tool("iperf3")?)?;
    client.args(["-c", &address, "-J", "-t", &seconds.to_string()]).args(args);
    let out = command::run_with(&mut client, b"", Duration::from_secs(seconds + 20))?;
    drop(server);
    serde_json::from_str(out.ok()?).context("iperf3 -J")
}

fn datagrams_received(ns: &Namespace) -> Result<u64> {
    // Not /proc/net, which shows the main thread's namespace.
    let text = ns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    in_datagrams(&text).with_context(|| format!("InDatagrams in {text}"))
}

/// `InDatagrams` in `/proc/net/snmp`: a line of names, then a line of values.
fn in_datagrams(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|l| l.strip_prefix("Udp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_ascii_whitespace().position(|n| n == "InDatagrams")?;
    values.split_ascii_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_is_found_by_its_name() {
        let text =
            "Tcp: A B\nTcp: 1 2\nUdp: NoPorts InDatagrams\nUdp: 7 42\nUdpLite: InDatagrams\nUdpLite: 9\n";
        assert_eq!(in_datagrams(text), Some(42));
        assert_eq!(in_datagrams("Tcp: A\nTcp: 1\n"), None);
    }
}
