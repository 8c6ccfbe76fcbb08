//! What is measured, what counts as good, and what comes out of all rounds. Pure.

use serde::Serialize;

use crate::report::median;

/// A measurement that can be asked for by `--only`; it yields one or several metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Measurement {
    /// One TCP stream.
    Tcp1,
    /// Four TCP streams, and the processor time they cost.
    Tcp4,
    /// Sixteen TCP streams.
    Tcp16,
    /// UDP of 64 bytes.
    Udp64,
    /// UDP of 1400 bytes.
    Udp1400,
    /// Flood ping.
    Ping,
    /// One byte to and fro over TCP.
    Pingpong,
    /// One TCP stream between a node of each kind, both ways.
    Interop,
    /// One TCP stream over an underlay with an MTU of 9000.
    Jumbo1,
    /// Four TCP streams over it.
    Jumbo4,
    /// Memory of the daemons after everything else.
    Memory,
}

/// Which pair of nodes a figure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    /// The kernel's vxlan device, programmed by overlayd.
    Kernel,
    /// overlayd's own data plane.
    Rust,
}

impl Side {
    /// In the order of the first round.
    pub(super) const BOTH: [Self; 2] = [Self::Kernel, Self::Rust];
}

/// What was asked for (issue 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// At least this much of the kernel's.
    RatioAtLeast(f64),
    /// At most this many times the kernel's.
    RatioAtMost(f64),
    /// At least this, whatever the kernel does.
    AtLeast(f64),
    /// Less than this, whatever the kernel does.
    Below(f64),
}

/// One row of the result.
#[derive(Debug)]
pub(super) struct Metric {
    /// Its name in the JSON.
    pub(super) key: &'static str,
    /// Its name for people.
    pub(super) title: &'static str,
    /// Unit of the absolute figures.
    pub(super) unit: &'static str,
    /// Digits after the point of the absolute figures.
    pub(super) digits: usize,
    /// Whether a ratio above 1 is good.
    pub(super) more_is_better: bool,
    /// What was asked for.
    pub(super) target: Option<Target>,
}

/// One figure of one turn.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sample {
    /// From 1.
    pub(super) round: u32,
    /// Whose.
    pub(super) side: Side,
    /// [`Metric::key`].
    pub(super) metric: &'static str,
    /// In the metric's unit.
    pub(super) value: f64,
}

const fn more(key: &'static str, title: &'static str, unit: &'static str, digits: usize) -> Metric {
    Metric { key, title, unit, digits, more_is_better: true, target: None }
}

const fn less(key: &'static str, title: &'static str, unit: &'static str, digits: usize) -> Metric {
    Metric { key, title, unit, digits, more_is_better: false, target: None }
}

impl Metric {
    const fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }
}

/// What flannel's `udp` backend carries on the development machine in one TCP stream, in Gbit/s.
pub(super) const FLANNEL_UDP_GBIT_PER_SECOND: f64 = 0.25;

/// All metrics, in the order of the table.
pub(super) const METRICS: &[Metric] = &[
    more("tcp1", "TCP, 1 stream", "Gbit/s", 2).target(Target::RatioAtLeast(0.7)),
    more("tcp1_flannel_udp", "  in times of flannel's udp backend", "x", 1).target(Target::AtLeast(20.0)),
    more("tcp4", "TCP, 4 streams", "Gbit/s", 2).target(Target::RatioAtLeast(0.5)),
    more("tcp16", "TCP, 16 streams", "Gbit/s", 2),
    more("jumbo1", "TCP, 1 stream, underlay of 9000", "Gbit/s", 2),
    more("jumbo4", "TCP, 4 streams, underlay of 9000", "Gbit/s", 2),
    more("udp64", "UDP, 64 bytes, received", "packets/s", 0).target(Target::RatioAtLeast(1.5)),
    more("udp1400", "UDP, 1400 bytes, received", "packets/s", 0),
    more("interop_out", "TCP, 1 stream, Rust to kernel", "Gbit/s", 2),
    more("interop_in", "TCP, 1 stream, kernel to Rust", "Gbit/s", 2),
    less("ping", "flood ping, average", "us", 1).target(Target::RatioAtMost(2.5)),
    less("pingpong_p50", "TCP ping-pong, p50", "us", 1).target(Target::RatioAtMost(2.5)),
    less("pingpong_p99", "TCP ping-pong, p99", "us", 1),
    less("cpu_machine", "processor time, whole machine, 4 streams", "s/GB", 3),
    less("cpu_daemons", "processor time, both overlayd, 4 streams", "s/GB", 3),
    less("memory_peak", "memory of an overlayd, peak", "MB", 1).target(Target::Below(15.0)),
    less("memory_end", "memory of an overlayd, at the end", "MB", 1),
];

/// A metric over all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    /// [`Metric::key`].
    pub(super) metric: &'static str,
    /// Median of the kernel pair's figures.
    pub(super) kernel: f64,
    /// Median of the Rust pair's figures.
    pub(super) rust: f64,
    /// Median of the rounds' ratios, Rust to kernel; `None` where the kernel's figure is 0.
    pub(super) ratio: Option<f64>,
    /// The lowest of the rounds' ratios.
    pub(super) lowest: Option<f64>,
    /// The highest.
    pub(super) highest: Option<f64>,
    /// Whether the target is met; `None` without a target.
    pub(super) met: Option<bool>,
}

/// Sums up one metric; `None` when there is no figure of it.
pub(super) fn summary(metric: &Metric, samples: &[Sample]) -> Option<Summary> {
    let of = |side: Side| samples.iter().filter(move |s| s.metric == metric.key && s.side == side);
    of(Side::Rust).next()?;
    let rust = median(of(Side::Rust).map(|s| s.value));
    let kernel = median(of(Side::Kernel).map(|s| s.value));
    let ratios: Vec<f64> = of(Side::Rust)
        .filter_map(|rust| {
            let reference = of(Side::Kernel).find(|kernel| kernel.round == rust.round)?;
            (reference.value > 0.0).then(|| rust.value / reference.value)
        })
        .collect();
    let ratio = (!ratios.is_empty()).then(|| median(ratios.iter().copied()));
    let met = metric.target.map(|target| match target {
        Target::RatioAtLeast(least) => ratio.is_some_and(|r| r >= least),
        Target::RatioAtMost(most) => ratio.is_some_and(|r| r <= most),
        Target::AtLeast(least) => rust >= least,
        Target::Below(limit) => rust < limit,
    });
    Some(Summary {
        metric: metric.key,
        kernel,
        rust,
        ratio,
        lowest: ratios.iter().copied().reduce(f64::min),
        highest: ratios.iter().copied().reduce(f64::max),
        met,
    })
}

/// The target in words, `-` without one.
pub(super) fn wording(metric: &Metric) -> String {
    let unit = metric.unit;
    match metric.target {
        Some(Target::RatioAtLeast(least)) => format!(">= {least} of the kernel's"),
        Some(Target::RatioAtMost(most)) => format!("<= {most} times the kernel's"),
        Some(Target::AtLeast(least)) => format!(">= {least} {unit}"),
        Some(Target::Below(limit)) => format!("< {limit} {unit}"),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn samples(values: &[(u32, Side, f64)]) -> Vec<Sample> {
        values.iter().map(|&(round, side, value)| Sample { round, side, metric: "tcp1", value }).collect()
    }

    #[test]
    fn ratios_are_taken_within_a_round_before_the_median() {
        use Side::{Kernel, Rust};
        // The machine is three times as fast in round 2; the medians' own ratio would be 0.27.
        let all = samples(&[
            (1, Kernel, 10.0),
            (1, Rust, 8.0),
            (2, Kernel, 30.0),
            (2, Rust, 15.0),
            (3, Rust, 6.0),
            (3, Kernel, 10.0),
        ]);
        let out = summary(&METRICS[0], &all).unwrap();
        assert_eq!((out.kernel, out.rust), (10.0, 8.0));
        assert_eq!((out.lowest, out.ratio, out.highest), (Some(0.5), Some(0.6), Some(0.8)));
        assert_eq!(out.met, Some(false));
    }

    #[test]
    fn a_round_without_its_other_half_and_a_reference_of_zero_give_no_ratio() {
        use Side::{Kernel, Rust};
        let out =
            summary(&METRICS[0], &samples(&[(1, Rust, 8.0), (2, Kernel, 0.0), (2, Rust, 1.0)])).unwrap();
        assert_eq!((out.ratio, out.met), (None, Some(false)));
        assert_eq!(summary(&METRICS[1], &samples(&[(1, Rust, 8.0)])), None);
    }

    #[test]
    fn targets_in_both_directions() {
        let of = |target, rust| {
            let metric = Metric { target: Some(target), ..more("tcp1", "", "x", 0) };
            let all = samples(&[(1, Side::Kernel, 10.0), (1, Side::Rust, rust)]);
            summary(&metric, &all).unwrap().met.unwrap()
        };
        assert!(of(Target::RatioAtLeast(0.7), 7.0) && !of(Target::RatioAtLeast(0.7), 6.9));
        assert!(of(Target::RatioAtMost(2.5), 25.0) && !of(Target::RatioAtMost(2.5), 25.1));
        assert!(of(Target::AtLeast(20.0), 20.0) && !of(Target::AtLeast(20.0), 19.9));
        assert!(of(Target::Below(15.0), 14.9) && !of(Target::Below(15.0), 15.0));
    }

    #[test]
    fn no_two_metrics_share_a_key() {
        let mut keys: Vec<&str> = METRICS.iter().map(|m| m.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), METRICS.len());
    }
}
