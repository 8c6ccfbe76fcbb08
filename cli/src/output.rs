//! Writing results: the same answer as text or as JSON, and quiet when nobody reads any more.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use store::client::{Node, Response};

use crate::args::Format;

/// The JSON of an answer as etcdctl prints it: fields in its order, Go's escapes, no line end.
///
/// Written by hand because neither is `serde_json`'s. Writing to a `String` cannot fail.
pub(crate) fn response_json(response: &Response) -> String {
    let mut text = String::from("{\"action\":");
    push_string(&mut text, &response.action);
    text.push_str(",\"node\":");
    push_node_or_null(&mut text, response.node.as_ref());
    text.push_str(",\"prevNode\":");
    push_node_or_null(&mut text, response.prev_node.as_ref());
    text.push('}');
    text
}

fn push_node_or_null(text: &mut String, node: Option<&Node>) {
    match node {
        Some(node) => push_node(text, node),
        None => text.push_str("null"),
    }
}

fn push_node(text: &mut String, node: &Node) {
    text.push_str("{\"key\":");
    push_string(text, &node.key);
    if node.dir {
        text.push_str(",\"dir\":true");
    }
    text.push_str(",\"value\":");
    push_string(text, node.value.as_deref().unwrap_or_default());
    text.push_str(",\"nodes\":");
    if node.nodes.is_empty() {
        text.push_str("null");
    } else {
        text.push('[');
        for (index, child) in node.nodes.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            push_node(text, child);
        }
        text.push(']');
    }
    let (created, modified) = (node.created_index, node.modified_index);
    let _ = write!(text, ",\"createdIndex\":{created},\"modifiedIndex\":{modified}");
    if let Some(expiration) = &node.expiration {
        text.push_str(",\"expiration\":");
        push_string(text, expiration);
    }
    if let Some(ttl) = node.ttl.filter(|ttl| *ttl != 0) {
        let _ = write!(text, ",\"ttl\":{ttl}");
    }
    text.push('}');
}

/// A JSON string as Go's encoder writes it: `<`, `>`, `&` and the two line separators escaped besides the rest.
fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(letter));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

/// Prints an answer about a key in etcdctl's words (`printResponseKey`).
///
/// # Errors
/// Those of `out`.
pub(crate) fn print_key(out: &mut dyn Write, response: &Response, format: Format) -> io::Result<()> {
    let empty = Node::default();
    let node = response.node.as_ref().unwrap_or(&empty);
    let value = node.value.as_deref().unwrap_or_default();
    let previous = response.prev_node.as_ref().map(|node| node.value.as_deref().unwrap_or_default());
    let deleted = response.action == "delete";
    match format {
        Format::Simple if deleted => writeln!(out, "PrevNode.Value: {}", previous.unwrap_or_default()),
        Format::Simple => writeln!(out, "{value}"),
        Format::Extended => {
            writeln!(out, "Key: {}", node.key)?;
            writeln!(out, "Created-Index: {}", node.created_index)?;
            writeln!(out, "Modified-Index: {}", node.modified_index)?;
            if let Some(previous) = previous {
                writeln!(out, "PrevNode.Value: {previous}")?;
            }
            writeln!(out, "TTL: {}", node.ttl.unwrap_or_default())?;
            writeln!(out, "Index: {}", response.etcd_index)?;
            if !deleted {
                writeln!(out, "\n{value}")?;
            }
            Ok(())
        }
        Format::Json => writeln!(out, "{}", response_json(response)),
    }
}

/// Whether an error means that the reader has gone away, which is not worth a word.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_letters_and_html_are_escaped_like_go() {
        let mut text = String::new();
        push_string(&mut text, "a\"\\\n\r\t\u{1}<&>ü\u{2028}\u{7f}");
        assert_eq!(text, "\"a\\\"\\\\\\n\\r\\t\\u0001\\u003c\\u0026\\u003eü\\u2028\u{7f}\"");
    }

    proptest! {
        #[test]
        fn any_string_reads_back(value in any::<String>()) {
            let mut text = String::new();
            push_string(&mut text, &value);
            prop_assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
        }
    }
}
