//! A report of the data path as text.

use std::io::{self, Write};

use overlay::datapath::counters::{DirectionSnapshot, Drop, Snapshot};
use overlay::datapath::status::{Engine, Kind, PeerReport, Report};

use super::number::{bytes, count, percent, ratio, span};

/// The sizes that [`overlay::datapath::counters::Histogram`] counts together.
const SIZES: [&str; 7] = ["1", "2-3", "4-7", "8-15", "16-31", "32-63", "64+"];

/// Prints a report.
pub(super) fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let Report { device, version, subnet, underlay, port, vni, mtu, mac, peers, .. } = report;
    let carrier = match report.datapath {
        Kind::Kernel => "the kernel's vxlan device".to_owned(),
        Kind::Rust => format!("overlayd's own data path, {}", state(report.engine.as_ref())),
    };
    writeln!(out, "{device}: {carrier} (overlayd {version})")?;
    writeln!(
        out,
        "  subnet {subnet}, underlay {underlay}, UDP port {port}, VNI {vni}, MTU {mtu}, MAC {mac}"
    )?;
    match (&report.engine, report.datapath) {
        (Some(engine), _) => self::engine(out, engine),
        (None, Kind::Kernel) => kernel(out, device, *peers),
        (None, Kind::Rust) => writeln!(out, "  {}", count(*peers as u64, "peer")),
    }
}

fn state(engine: Option<&Engine>) -> String {
    match engine {
        None => "not started".to_owned(),
        Some(Engine { running: true, uptime_ms, .. }) => {
            format!("running for {}", span(uptime_ms.saturating_mul(1_000_000)))
        }
        Some(_) => "NOT RUNNING: overlayd's log says why".to_owned(),
    }
}

/// What shows the counters that we have not got.
fn kernel(out: &mut dyn Write, device: &str, peers: usize) -> io::Result<()> {
    writeln!(out, "  {}; the kernel carries the packets and counts them:", count(peers as u64, "peer"))?;
    writeln!(out, "    packets, bytes, drops   ip -s -s link show {device}")?;
    writeln!(out, "    peers                   bridge fdb show dev {device}")?;
    writeln!(out, "    capture                 tcpdump -i {device} -w FILE")
}

fn engine(out: &mut dyn Write, engine: &Engine) -> io::Result<()> {
    settings(out, engine)?;
    writeln!(out)?;
    traffic(out, &engine.total)?;
    writeln!(out)?;
    work(out, engine)?;
    writeln!(out)?;
    batches(out, &engine.total)?;
    writeln!(out)?;
    drops(out, &engine.total)?;
    writeln!(out)?;
    peers(out, &engine.peers)
}

fn settings(out: &mut dyn Write, engine: &Engine) -> io::Result<()> {
    let settings = &engine.settings;
    let spin = match settings.spin_us {
        0 => "never spins".to_owned(),
        us => format!("spins at most {us} us"),
    };
    let cpus = settings.cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let pinned = if cpus.is_empty() { "not pinned".to_owned() } else { format!("on CPU {cpus}") };
    let check = if settings.source_check { "on" } else { "OFF" };
    let capturing = if engine.capturing { ", a capture is running" } else { "" };
    let queues = count(settings.queues as u64, "queue");
    writeln!(out, "  {queues}, {spin}, {pinned}, source check {check}{capturing}")?;
    for feature in &engine.features {
        let note = if feature.note.is_empty() { String::new() } else { format!(" ({})", feature.note) };
        let on = if feature.on { "yes" } else { "no" };
        writeln!(out, "  {:<22} {on}{note}", feature.name)?;
    }
    Ok(())
}

fn traffic(out: &mut dyn Write, total: &Snapshot) -> io::Result<()> {
    let mut rows = vec![["", "packets", "bytes", "super-frames", "packets each"].map(str::to_owned)];
    for (name, DirectionSnapshot { frames, super_frames, bytes: size }) in
        [("sent", total.encap), ("received", total.decap)]
    {
        rows.push([
            name.to_owned(),
            frames.to_string(),
            bytes(size),
            super_frames.to_string(),
            ratio(frames, super_frames),
        ]);
    }
    table(out, &rows)
}

fn work(out: &mut dyn Write, engine: &Engine) -> io::Result<()> {
    let total = &engine.total;
    let packets = total.encap.frames.saturating_add(total.decap.frames);
    let calls = total.system_calls();
    let Snapshot { tap_reads, tap_writes, sends, injects, receives, polls, .. } = total;
    writeln!(out, "  system calls    {} per packet: {calls} for {packets}", ratio(calls, packets))?;
    writeln!(
        out,
        "                  tap reads {tap_reads}, tap writes {tap_writes}, sends {sends}, injected {injects}, receives {receives}, polls {polls}"
    )?;
    let workers = (engine.workers.len() as u64).max(1);
    let time = engine.uptime_ms.saturating_mul(1_000_000).saturating_mul(workers);
    let share = percent(total.spin_ns, time);
    writeln!(out, "  spinning        {}, {share} of the time, {} looks", span(total.spin_ns), total.spins)?;
    writeln!(out, "  sleeping        {} times, {} of them ended by a packet", total.polls, total.wakeups)?;
    let Snapshot { answered_arp, answered_nd, too_big_signalled, gso_fallbacks, .. } = total;
    writeln!(
        out,
        "  answered        ARP {answered_arp}, neighbour solicitations {answered_nd}, packets too big {too_big_signalled}"
    )?;
    if *gso_fallbacks > 0 {
        writeln!(
            out,
            "  fallbacks       {gso_fallbacks} sends cut by overlayd because the kernel refused to"
        )?;
    }
    Ok(())
}

fn batches(out: &mut dyn Write, total: &Snapshot) -> io::Result<()> {
    let mut rows = vec![vec!["batch sizes".to_owned()]];
    rows[0].extend(SIZES.map(str::to_owned));
    for (name, buckets) in [
        ("frames per round of tap reads", total.tap_batch),
        ("datagrams per receive", total.receive_batch),
        ("segments per send", total.segments_per_send),
        ("segments per tap write", total.segments_per_tap_write),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend(buckets.iter().map(ToString::to_string));
        rows.push(row);
    }
    table(out, &rows)
}

/// Each reason that occurred, with what to do about it; a newer overlayd may have reasons that have no hint here.
fn drops(out: &mut dyn Write, total: &Snapshot) -> io::Result<()> {
    let dropped = total.dropped_total();
    if dropped == 0 {
        return writeln!(out, "  no packet was dropped");
    }
    writeln!(
        out,
        "  {} dropped:",
        if dropped == 1 { "1 packet".into() } else { format!("{dropped} packets") }
    )?;
    let found: Vec<_> = total.drops.iter().filter(|(_, packets)| **packets > 0).collect();
    let name_width = found.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let width = found.iter().map(|(_, packets)| packets.to_string().len()).max().unwrap_or_default();
    for (name, packets) in found {
        let hint = Drop::from_name(name).map(Drop::hint).unwrap_or_default();
        let line = format!("    {name:<name_width$}  {packets:>width$}  {hint}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn peers(out: &mut dyn Write, peers: &[PeerReport]) -> io::Result<()> {
    writeln!(out, "  {}", count(peers.len() as u64, "peer"))?;
    if peers.is_empty() {
        return Ok(());
    }
    let mut rows = vec![["", "underlay", "sent", "bytes", "received", "bytes", "dropped"].map(str::to_owned)];
    for PeerReport { subnet, underlay, counters, .. } in peers {
        rows.push([
            format!("  {subnet}"),
            underlay.to_string(),
            counters.sent_frames.to_string(),
            bytes(counters.sent_bytes),
            counters.received_frames.to_string(),
            bytes(counters.received_bytes),
            counters.dropped.to_string(),
        ]);
    }
    table(out, &rows)
}

/// Indented by two; the first column to the left, the others to the right, each as wide as its widest cell.
fn table(out: &mut dyn Write, rows: &[impl AsRef<[String]>]) -> io::Result<()> {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    for row in rows {
        let first = format!("  {:<1$}", row.as_ref()[0], widths[0]);
        let rest = row.as_ref().iter().zip(&widths).skip(1);
        let line = rest.fold(first, |line, (cell, width)| format!("{line}  {cell:>width$}"));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "show_tests.rs"]
pub(super) mod tests;
