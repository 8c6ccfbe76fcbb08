//! Durations as etcd's flags take them: Go's `1h2m3.5s`, `100ms`, `0`.

use std::time::Duration;

/// Units and their length in nanoseconds; of those that begin alike the longer name first.
const UNITS: [(&str, u32); 5] =
    [("ms", 1_000_000), ("us", 1_000), ("µs", 1_000), ("ns", 1), ("s", 1_000_000_000)];

/// Reads a duration that is not negative. `None` if it is none.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let (length, after) = unit_of(unit)?;
        sum = sum.checked_add(times(number, length)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

fn unit_of(text: &str) -> Option<(Duration, &str)> {
    let unit = UNITS
        .iter()
        .find_map(|(name, ns)| Some((Duration::from_nanos((*ns).into()), text.strip_prefix(name)?)));
    let longer = || {
        let (seconds, rest) = match text.split_at_checked(1)? {
            ("m", rest) => (60, rest),
            ("h", rest) => (3600, rest),
            _ => return None,
        };
        Some((Duration::from_secs(seconds), rest))
    };
    unit.or_else(longer)
}

/// A decimal number of units. Digits beyond nanoseconds count for nothing.
fn times(number: &str, unit: Duration) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut sum = unit.checked_mul(whole)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        sum = sum.checked_add(place * u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?))?;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, ms) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("1m0s", Some(60_000)),
            ("1h2m3.5s", Some(3_723_500)),
            ("250ms", Some(250)),
            (".5s", Some(500)),
            ("1.s", Some(1000)),
            ("2000000ns", Some(2)),
            ("3000µs", Some(3)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("-1s", None),
            ("1d", None),
            ("1s 2s", None),
            ("1..5s", None),
            ("99999999999s", None),
        ] {
            assert_eq!(parse(text), ms.map(Duration::from_millis), "{text}");
        }
    }
}
