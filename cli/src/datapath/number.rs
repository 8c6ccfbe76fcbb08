//! Numbers as people read them. Integers all the way, so that a count is never rounded before it is shown.

/// Bytes with a decimal prefix and three digits or a few more: `999 B`, `1.21 GB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, "B")
}

/// Bits per second from bytes and milliseconds.
pub(super) fn bit_rate(bytes: u64, ms: u64) -> String {
    scaled(per_second(bytes.saturating_mul(8), ms), "bit/s")
}

fn scaled(n: u64, unit: &str) -> String {
    for (prefix, one) in [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1000)] {
        if n >= one {
            return format!("{}.{:02} {prefix}{unit}", n / one, n % one / (one / 100));
        }
    }
    format!("{n} {unit}")
}

/// How many per second, rounded, from a count over so many milliseconds.
pub(super) fn per_second(n: u64, ms: u64) -> u64 {
    let ms = u128::from(ms.max(1));
    u64::try_from((u128::from(n) * 1000 + ms / 2) / ms).unwrap_or(u64::MAX)
}

/// `part / whole` with two digits behind the point, `-` where there is nothing to divide by.
pub(super) fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let (part, whole) = (u128::from(part), u128::from(whole));
    let hundredths = (part * 100 + whole / 2) / whole;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// `part` of `whole` in percent with one digit behind the point.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let (part, whole) = (u128::from(part), u128::from(whole.max(1)));
    let thousandths = (part * 1000 + whole / 2) / whole;
    format!("{}.{}%", thousandths / 10, thousandths % 10)
}

/// The two largest units of a span: `2 d 3 h`, `4 min 5 s`, `6.7 s`, `8.9 ms`.
pub(super) fn span(nanoseconds: u64) -> String {
    let ms = nanoseconds / 1_000_000;
    let s = ms / 1000;
    match s {
        0 => format!("{}.{} ms", ms, nanoseconds / 100_000 % 10),
        1..60 => format!("{s}.{} s", ms / 100 % 10),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// `1 peer`, `2 peers`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_shares() {
        assert_eq!(
            [0, 999, 1000, 1_999_999, 1_210_000_000, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.00 kB", "1.99 MB", "1.21 GB", "18446744.07 TB"]
        );
        assert_eq!(bit_rate(1_250_000_000, 1000), "10.00 Gbit/s");
        assert_eq!((per_second(10, 3000), per_second(5, 0)), (3, 5000));
        assert_eq!(
            (ratio(1, 3), ratio(2, 0), ratio(u64::MAX, 1)),
            ("0.33".into(), "-".into(), "18446744073709551615.00".into())
        );
        assert_eq!((percent(1, 3), percent(1, 0)), ("33.3%".to_owned(), "100.0%".to_owned()));
    }

    #[test]
    fn spans_have_two_units() {
        const S: u64 = 1_000_000_000;
        for (nanoseconds, text) in [
            (0, "0.0 ms"),
            (1_290_000, "1.2 ms"),
            (S + 990_000_000, "1.9 s"),
            (61 * S, "1 min 1 s"),
            (3600 * S, "1 h 0 min"),
            (90_000 * S, "1 d 1 h"),
        ] {
            assert_eq!(span(nanoseconds), text);
        }
    }

    #[test]
    fn counts_have_a_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "peer")), ["0 peers", "1 peer", "2 peers"]);
    }
}
