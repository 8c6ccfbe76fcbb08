//! Go's duration strings (`87600h`, `1h30m`, `1.5h`), as cfssl's `expiry` and `backdate` carry them.
//!
//! Source: `time.ParseDuration` of Go's standard library. Negative spans are refused here: neither an expiry
//! nor a backdate can be one.

use std::time::Duration;

/// What is wrong with a duration string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// There is nothing in it.
    #[error("an empty duration; write one such as \"87600h\"")]
    Empty,
    /// A number is missing, or something else stands in its place.
    #[error("{text:?} is not a duration; write one such as \"87600h\" or \"1h30m\"")]
    Syntax {
        /// The whole string.
        text: String,
    },
    /// A number has no unit behind it.
    #[error("{text:?} has a number without a unit; the units are h, m, s, ms, us and ns")]
    NoUnit {
        /// The whole string.
        text: String,
    },
    /// The unit is not one of Go's.
    #[error("{text:?} has the unit {unit:?}; the units are h, m, s, ms, us and ns (a year is 8760h)")]
    UnknownUnit {
        /// The whole string.
        text: String,
        /// The unit in question.
        unit: String,
    },
    /// The duration is below zero.
    #[error("{text:?} is negative")]
    Negative {
        /// The whole string.
        text: String,
    },
    /// It is longer than Go's 64-bit count of nanoseconds, about 292 years.
    #[error("{text:?} is longer than the largest duration, 2562047h")]
    TooLong {
        /// The whole string.
        text: String,
    },
}

/// Reads a Go duration: one or more decimal numbers, each with a unit; or a bare `0`.
///
/// # Errors
/// Says which part of the text is wrong; nothing is rounded or guessed beyond the nanosecond.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let owned = || text.to_owned();
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Syntax { text: owned() });
    }
    let mut total_ns: u128 = 0;
    while !rest.is_empty() {
        let whole = take_while(&mut rest, |c| c.is_ascii_digit());
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                take_while(&mut rest, |c| c.is_ascii_digit())
            }
            None => "",
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(DurationError::Syntax { text: owned() });
        }
        let unit = take_while(&mut rest, |c| c != '.' && !c.is_ascii_digit());
        if unit.is_empty() {
            return Err(DurationError::NoUnit { text: owned() });
        }
        let unit_ns = unit_nanoseconds(unit)
            .ok_or_else(|| DurationError::UnknownUnit { text: owned(), unit: unit.to_owned() })?;
        let part = part_nanoseconds(whole, fraction, unit_ns);
        total_ns = part
            .and_then(|part| total_ns.checked_add(part))
            .filter(|ns| *ns <= i64::MAX as u128)
            .ok_or_else(|| DurationError::TooLong { text: owned() })?;
    }
    if negative && total_ns > 0 {
        return Err(DurationError::Negative { text: owned() });
    }
    let ns = u64::try_from(total_ns).map_err(|_| DurationError::TooLong { text: owned() })?;
    Ok(Duration::from_nanos(ns))
}

fn take_while<'a>(rest: &mut &'a str, keep: impl Fn(char) -> bool) -> &'a str {
    let end = rest.find(|c| !keep(c)).unwrap_or(rest.len());
    let (taken, after) = rest.split_at(end);
    *rest = after;
    taken
}

fn unit_nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        // The second is U+00B5 (micro sign), the third U+03BC (Greek mu); Go takes both.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        _ => return None,
    })
}

/// `whole.fraction` times the unit, cut to whole nanoseconds; `None` on overflow.
fn part_nanoseconds(whole: &str, fraction: &str, unit_ns: u128) -> Option<u128> {
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut ns = whole.checked_mul(unit_ns)?;
    // An hour has 13 digits of nanoseconds, so later digits of the fraction cannot count.
    let mut digit_ns = unit_ns;
    let mut tail: u128 = 0;
    let mut scale: u128 = 1;
    for digit in fraction.bytes().take(16) {
        tail = tail * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    digit_ns = digit_ns.checked_mul(tail)? / scale;
    ns = ns.checked_add(digit_ns)?;
    Some(ns)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cfssl_expiries_are_read() {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        for (text, want) in [
            ("87600h", hours(87_600)),
            ("43800h", hours(43_800)),
            ("8760h0m0s", hours(8_760)),
            ("1h30m", Duration::from_secs(5_400)),
            ("1.5h", Duration::from_secs(5_400)),
            (".5m", Duration::from_secs(30)),
            ("5.s", Duration::from_secs(5)),
            ("100ms", Duration::from_millis(100)),
            ("7us", Duration::from_micros(7)),
            ("7\u{b5}s", Duration::from_micros(7)),
            ("0", Duration::ZERO),
            ("+1h", hours(1)),
            ("2562047h47m16.854775807s", Duration::from_nanos(i64::MAX.unsigned_abs())),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let owned = String::from;
        for (text, want) in [
            ("", DurationError::Empty),
            ("-", DurationError::Syntax { text: owned("-") }),
            ("h", DurationError::Syntax { text: owned("h") }),
            ("1h m", DurationError::UnknownUnit { text: owned("1h m"), unit: owned("h m") }),
            ("87600", DurationError::NoUnit { text: owned("87600") }),
            ("10y", DurationError::UnknownUnit { text: owned("10y"), unit: owned("y") }),
            ("-1h", DurationError::Negative { text: owned("-1h") }),
            ("2562048h", DurationError::TooLong { text: owned("2562048h") }),
            (
                "99999999999999999999999999999999999999999h",
                DurationError::TooLong { text: owned("99999999999999999999999999999999999999999h") },
            ),
        ] {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn number_like_noise_never_panics(text in "[-+]?([0-9.]{0,40}(h|m|s|ms|us|ns|x)?){0,5}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_sum_of_units_is_their_sum(h in 0u64..100_000, m in 0u64..10_000, s in 0u64..10_000, ns in 0u64..1_000_000) {
            let want = Duration::from_secs(h * 3600 + m * 60 + s) + Duration::from_nanos(ns);
            let text = format!("{h}h{m}m{s}s{ns}ns");
            prop_assert_eq!(parse(&text), Ok(want));
        }
    }
}
