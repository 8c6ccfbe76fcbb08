//! `cli overlay datapath --watch`: a line of rates for each interval.

use std::io::{self, Write};
use std::time::Duration;

use overlay::datapath::status::client::Client;
use overlay::datapath::status::{Engine, Report};
use tokio::time::{MissedTickBehavior, interval};

use super::number::{bit_rate, per_second, percent, ratio};
use super::{Format, failed, json};
use crate::exit::Exit;

/// The head is repeated after so many lines.
const PAGE: u64 = 20;

/// Prints until interrupted, which is a success, or until overlayd no longer answers.
///
/// # Errors
/// Those of `out` and `err`.
pub(super) async fn follow(
    client: &Client,
    every: Duration,
    format: Format,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    tokio::select! {
        ended = print(client, every, format, out, err) => ended,
        _ = tokio::signal::ctrl_c() => Ok(Exit::Success),
    }
}

async fn print(
    client: &Client,
    every: Duration,
    format: Format,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> io::Result<Exit> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Engine> = None;
    let mut lines = 0;
    loop {
        ticks.tick().await;
        let report = match client.report().await {
            Ok(report) => report,
            Err(error) => return failed(err, &error),
        };
        if format == Format::Json {
            json(out, &report)?;
            out.flush()?;
            continue;
        }
        let Report { engine: Some(engine), .. } = report else {
            let instead = format!(
                "the kernel carries the packets: watch them with `ip -s link show {}`",
                report.device
            );
            return failed(err, &instead);
        };
        if let Some(before) = &before {
            if lines % PAGE == 0 {
                writeln!(out, "{}", head())?;
            }
            lines += 1;
            match line(before, &engine) {
                Some(line) => writeln!(out, "{line}")?,
                None => writeln!(out, "overlayd has been restarted")?,
            }
            out.flush()?;
        }
        before = Some(engine);
    }
}

const WIDTHS: [usize; 8] = [11, 13, 11, 13, 9, 10, 7, 9];

fn head() -> String {
    row(["sent/s", "", "received/s", "", "dropped/s", "calls/pkt", "spin", "sleeps/s"].map(str::to_owned))
}

/// What happened between two reports; `None` if the later one has counted anew.
fn line(before: &Engine, after: &Engine) -> Option<String> {
    let ms = after.uptime_ms.checked_sub(before.uptime_ms)?;
    let (old, new) = (&before.total, &after.total);
    let sent = new.encap.frames.checked_sub(old.encap.frames)?;
    let received = new.decap.frames.checked_sub(old.decap.frames)?;
    let calls = new.system_calls().checked_sub(old.system_calls())?;
    let spinning = new.spin_ns.checked_sub(old.spin_ns)?;
    let time = ms.saturating_mul(1_000_000).saturating_mul((after.workers.len() as u64).max(1));
    Some(row([
        per_second(sent, ms).to_string(),
        bit_rate(new.encap.bytes.checked_sub(old.encap.bytes)?, ms),
        per_second(received, ms).to_string(),
        bit_rate(new.decap.bytes.checked_sub(old.decap.bytes)?, ms),
        per_second(new.dropped_total().checked_sub(old.dropped_total())?, ms).to_string(),
        ratio(calls, sent.saturating_add(received)),
        percent(spinning, time),
        per_second(new.polls.checked_sub(old.polls)?, ms).to_string(),
    ]))
}

fn row(cells: [String; WIDTHS.len()]) -> String {
    let aligned = cells.into_iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:>width$}"));
    aligned.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::show::tests::engine;

    #[test]
    fn a_line_is_the_difference_in_rates() {
        let before = engine();
        let mut after = before.clone();
        after.uptime_ms += 2000;
        after.total.encap.frames += 200_000;
        after.total.encap.bytes += 250_000_000;
        after.total.decap.frames += 10;
        after.total.decap.bytes += 1000;
        after.total.sends += 20_001;
        after.total.polls += 3;
        after.total.spin_ns += 500_000_000;
        *after.total.drops.entry("flood".into()).or_default() += 9;
        assert_eq!(
            [head(), line(&before, &after).unwrap_or_default()],
            [
                "     sent/s                received/s               dropped/s  calls/pkt    spin  sleeps/s",
                "     100000   1.00 Gbit/s           5   4.00 kbit/s         5       0.10   25.0%         2",
            ]
        );
    }

    #[test]
    fn counting_anew_is_noticed() {
        let before = engine();
        assert_eq!(line(&before, &Engine::default()), None);
        let mut longer = Engine { uptime_ms: before.uptime_ms + 1, ..Engine::default() };
        assert_eq!(line(&before, &longer), None);
        longer = before.clone();
        assert!(line(&before, &longer).is_some(), "no time in between");
    }
}
