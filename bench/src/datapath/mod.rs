//! Our own data plane beside the kernel's vxlan device: both pairs on one underlay, in turns.
//!
//! | module | pure | holds |
//! |---|---|---|
//! | [`metric`] | yes | what is measured, the targets, medians of the rounds' ratios |
//! | [`chart`] | yes | the picture |
//! | [`bed`] | no | the four nodes, and one turn of a pair |
//! | [`pingpong`], [`cpu`] | no | request and response; processor time |

mod bed;
mod chart;
mod cpu;
mod metric;
mod pingpong;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use weft_tests::fabric::Fabric;
use weft_tests::programs;
use weft_tests::wait::not_interrupted;

use self::bed::Bed;
use self::metric::{METRICS, Measurement, Metric, Sample, Side, Summary};
use crate::report::{Machine, Report};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct DatapathArgs {
    /// How often both pairs have their turn; the table shows medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Length of one measurement in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Measure only these, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Draw the ratios as a bar chart.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// A further flag for the Rust pair's overlayd, such as --rust-flag=-datapath-queues=2; repeatable.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    rust_flag: Vec<String>,
    /// Both pairs on the kernel's device: shows how much of a difference is noise.
    #[arg(long, hide = true)]
    both_kernel: bool,
}

impl DatapathArgs {
    /// What was asked for on an underlay of this MTU, in the order of [`Measurement`].
    fn wanted(&self, mtu: u32) -> Vec<Measurement> {
        let asked = |m: &Measurement| self.only.is_empty() || self.only.contains(m);
        let jumbo = |m: &Measurement| matches!(m, Measurement::Jumbo1 | Measurement::Jumbo4);
        let all = Measurement::value_variants().iter().copied();
        all.filter(|m| asked(m) && jumbo(m) == (mtu == JUMBO_MTU)).collect()
    }
}

const ETHERNET_MTU: u32 = 1500;
const JUMBO_MTU: u32 = 9000;

/// Runs the whole comparison.
///
/// # Errors
/// When not root, a program is missing, or a path carries no traffic.
pub(crate) fn run(args: &DatapathArgs) -> Result<Report> {
    programs::tool("iperf3")?;
    let mut samples = Vec::new();
    for mtu in [ETHERNET_MTU, JUMBO_MTU] {
        let wanted = args.wanted(mtu);
        if !wanted.is_empty() {
            one_underlay(args, mtu, &wanted, &mut samples)?;
        }
    }
    let report = report(args, &samples);
    if let Some(path) = &args.svg {
        std::fs::write(path, picture(&report.machine, &samples))
            .with_context(|| format!("--svg {}", path.display()))?;
    }
    Ok(report)
}

/// All rounds on an underlay of that MTU.
fn one_underlay(
    args: &DatapathArgs,
    mtu: u32,
    wanted: &[Measurement],
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let fabric = Fabric::with_mtu(&bed::HOSTS, mtu)?;
    let mut bed = Bed::new(&fabric, args.both_kernel, &args.rust_flag)?;
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}, underlay of {mtu}", args.rounds);
        for &what in wanted {
            // Memory is looked at once, after all the load.
            if what == Measurement::Memory && round < args.rounds {
                continue;
            }
            // Who goes first changes, so that neither always profits from what the other leaves behind.
            let sides = if round % 2 == 1 { Side::BOTH } else { [Side::Rust, Side::Kernel] };
            for side in sides {
                not_interrupted()?;
                let figures = bed
                    .turn(what, side, args.seconds)
                    .with_context(|| format!("round {round}, {what:?}, {side:?} pair"))?;
                for (metric, value) in figures {
                    eprintln!("  {metric} {side:?} {value:.3}");
                    samples.push(Sample { round, side, metric, value });
                }
            }
        }
    }
    Ok(())
}

fn summaries(samples: &[Sample]) -> Vec<(&'static Metric, Summary)> {
    METRICS.iter().filter_map(|m| Some((m, metric::summary(m, samples)?))).collect()
}

fn report(args: &DatapathArgs, samples: &[Sample]) -> Report {
    let summaries = summaries(samples);
    let rows = summaries.iter().map(|(metric, s)| row(metric, s)).collect();
    let flags = match (args.both_kernel, args.rust_flag.join(" ")) {
        (true, _) => "; BOTH PAIRS ON THE KERNEL'S DEVICE".to_owned(),
        (false, none) if none.is_empty() => String::new(),
        (false, flags) => format!("; Rust pair with {flags}"),
    };
    Report {
        method: vec![
            format!(
                "two overlayd with -datapath=kernel and two with -datapath=rust in one overlay, in turns; {} rounds of \
                 {} s{flags}",
                args.rounds, args.seconds
            ),
            "kernel, rust: medians of the figures; ratio: median of the rounds' ratios, rust to kernel, and their range"
                .to_owned(),
            "hosts and containers are namespaces on one machine, joined by veth and a bridge; iperf3 between containers"
                .to_owned(),
        ],
        machine: Machine::here(),
        columns: ["", "kernel", "rust", "", "ratio", "range", "target", "met"].map(str::to_owned).to_vec(),
        rows,
        rounds: json!({
            "samples": samples,
            "summary": summaries.iter().map(|(_, s)| s).collect::<Vec<_>>(),
        }),
    }
}

fn row(metric: &Metric, s: &Summary) -> Vec<String> {
    let absolute = |value: f64| format!("{value:.0$}", metric.digits);
    let ratio = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
    vec![
        metric.title.to_owned(),
        absolute(s.kernel),
        absolute(s.rust),
        metric.unit.to_owned(),
        ratio(s.ratio),
        format!("{}..{}", ratio(s.lowest), ratio(s.highest)),
        metric::wording(metric),
        s.met.map_or("", |met| if met { "yes" } else { "no" }).to_owned(),
    ]
}

fn picture(machine: &Machine, samples: &[Sample]) -> String {
    let summaries = summaries(samples);
    let bars = |more_is_better: bool| -> Vec<chart::Bar> {
        let of_kind = summaries.iter().filter(|(m, _)| m.more_is_better == more_is_better);
        of_kind.filter_map(|(metric, s)| chart::Bar::new(metric, s)).collect()
    };
    chart::svg(
        "Rust data plane against the kernel's vxlan device",
        &machine.to_string(),
        &[("More is better", bars(true)), ("Less is better", bars(false))],
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DatapathArgs,
    }

    fn wanted(line: &str) -> [Vec<Measurement>; 2] {
        let words = std::iter::once("bench").chain(line.split_ascii_whitespace());
        let args = Line::try_parse_from(words).unwrap().args;
        [args.wanted(ETHERNET_MTU), args.wanted(JUMBO_MTU)]
    }

    #[test]
    fn each_measurement_belongs_to_one_underlay_and_only_selects() {
        let [ethernet, jumbo] = wanted("");
        assert_eq!(ethernet.len() + jumbo.len(), Measurement::value_variants().len());
        assert_eq!(jumbo, [Measurement::Jumbo1, Measurement::Jumbo4]);
        assert_eq!(ethernet.last(), Some(&Measurement::Memory), "memory is looked at after the load");
        assert_eq!(
            wanted("--only udp64,tcp1,jumbo4"),
            [vec![Measurement::Tcp1, Measurement::Udp64], vec![Measurement::Jumbo4]]
        );
    }
}
