//! JSON strings as Go's `encoding/json` writes them, which is what clients of etcd have seen for years.

use std::fmt::Write as _;

/// Appends `text` in quotes. `<`, `>`, `&` and the two Unicode line separators are escaped, other characters
/// above the control range are not. U+FFFD is, because it stands for bytes that were no UTF-8 (replaced when
/// they came in), which Go writes so.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut clean_from = 0;
    for (at, c) in text.char_indices() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{fffd}' | '\0'..='\x1f' => "",
            _ => continue,
        };
        out.push_str(&text[clean_from..at]);
        clean_from = at + c.len_utf8();
        if short.is_empty() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push_str(short);
        }
    }
    out.push_str(&text[clean_from..]);
    out.push('"');
}

/// Appends a list of strings.
pub fn write_strings<'a>(out: &mut String, items: impl IntoIterator<Item = &'a str>) {
    out.push('[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_string(out, item);
    }
    out.push(']');
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(text: &str) -> String {
        let mut out = String::new();
        write_string(&mut out, text);
        out
    }

    #[test]
    fn escapes_are_gos() {
        assert_eq!(
            string("a<b>&\"\\\n\r\t\u{8}é\u{2028}"),
            r#""a\u003cb\u003e\u0026\"\\\n\r\t\u0008é\u2028""#
        );
    }

    proptest! {
        #[test]
        fn every_string_reads_back(text in any::<String>()) {
            prop_assert_eq!(serde_json::from_str::<String>(&string(&text)).unwrap(), text);
        }
    }
}
