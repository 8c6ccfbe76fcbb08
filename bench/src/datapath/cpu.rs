//! Processor time: of the whole machine, and of the daemons.

use std::time::Duration;

use anyhow::{Context, Result};
use weft_tests::process::CPU_TICK;

/// Time that all processors together were busy since boot, waiting and stolen time left out.
///
/// # Errors
/// When `/proc/stat` is not what proc(5) says.
pub(super) fn machine_busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let ticks = busy_ticks(&text).with_context(|| format!("/proc/stat: {text}"))?;
    Ok(CPU_TICK * u32::try_from(ticks)?)
}

/// user + nice + system + irq + softirq of the first line: `cpu user nice system idle iowait irq softirq ...`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_ascii_whitespace().map_while(|f| f.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|&n| fields.get(n).copied()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_do_not_count() {
        assert_eq!(busy_ticks("cpu  1 20 300 9999 8888 4000 50000 7777 1 0\ncpu0 1\n"), Some(54_321));
        assert_eq!(busy_ticks("intr 1\n"), None);
        assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
    }
}
