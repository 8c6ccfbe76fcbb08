//! The bodies of the v2 API's successful answers as JSON, with the times that only the answering member knows.
//!
//! Field order, omissions and escapes are etcd's (v2 API, section 4).

use std::fmt::Write as _;

use time::OffsetDateTime;

use super::json;
use super::v2::user_path;
use crate::tree::{Event, FrozenNode, NodeView, Shown};

/// The body of an answer with an event. `now_ns` is this member's clock, for the remaining seconds.
pub fn event_body(event: &Event, now_ns: i64) -> String {
    let mut out = String::with_capacity(256);
    let _ = write!(out, "{{\"action\":\"{}\",\"node\":", event.action.as_str());
    write_view(&mut out, &event.node, now_ns);
    if let Some(prev) = &event.prev {
        out.push_str(",\"prevNode\":");
        write_view(&mut out, prev, now_ns);
    }
    out.push_str("}\n");
    out
}

/// The body of an answer to `noValueOnSuccess`.
pub fn action_body(event: &Event) -> String {
    format!("{{\"action\":\"{}\"}}\n", event.action.as_str())
}

/// The body of an answer with an event where there is no room for more: of the node all but its value and children, for
/// its name may be new to the client.
pub fn short_event_body(event: &Event, now_ns: i64) -> String {
    let mut out = format!("{{\"action\":\"{}\",\"node\":", event.action.as_str());
    let fields = Fields { value: None, ..Fields::from(&event.node) };
    let start = fields.open(&mut out, &event.node.path, now_ns);
    fields.close(&mut out, start);
    out.push_str("}\n");
    out
}

/// The body of the answer to a look at a node. `size` is what [`get_size`] says of it.
pub fn get_body(node: &FrozenNode, size: usize, now_ns: i64) -> String {
    let mut out = String::with_capacity(size);
    out.push_str("{\"action\":\"get\",\"node\":");
    write_shown(&mut out, &mut node.path().to_owned(), node.shown(), now_ns);
    out.push_str("}\n");
    out
}

/// What a node takes beside its strings and children: names of fields, numbers, a time.
const NODE_BYTES: usize = 200;

/// Going through a child that is not shown takes as long as making so many bytes of the answer.
const HIDDEN_BYTES: usize = 64;

/// About how many bytes [`get_body`] makes of a node: as many, unless much in it has to be escaped, which takes up to
/// six times as much. Does not look into the values.
pub fn get_size(node: &FrozenNode) -> usize {
    get_size_within(node, usize::MAX).unwrap_or(usize::MAX)
}

/// The same if it is not more than `limit`, and does not take longer to find out than for an answer of so many bytes.
pub fn get_size_within(node: &FrozenNode, limit: usize) -> Option<usize> {
    let mut measure = Measure { bytes: 0, limit, entries: limit / HIDDEN_BYTES };
    measure.add(node.path().len(), node.shown())?;
    Some(measure.bytes)
}

/// An answer that is measured.
struct Measure {
    bytes: usize,
    limit: usize,
    /// Children that may still be gone through.
    entries: usize,
}

impl Measure {
    /// Adds a node and what is shown below it, unless it becomes too much.
    fn add(&mut self, path_bytes: usize, shown: Shown<'_>) -> Option<()> {
        self.bytes += NODE_BYTES + path_bytes + shown.node.value().map_or(0, str::len);
        self.entries = self.entries.checked_sub(shown.entries())?;
        if self.bytes > self.limit {
            return None;
        }
        shown.children().try_for_each(|(name, child)| self.add(path_bytes + 1 + name.len(), child))
    }
}

/// About how many bytes [`event_body`] makes of an event, as [`get_size`].
pub fn event_size(event: &Event) -> usize {
    view_size(&event.node) + event.prev.as_ref().map_or(0, view_size)
}

fn view_size(node: &NodeView) -> usize {
    let value = node.value.as_deref().map_or(0, str::len);
    let nodes: usize = node.nodes.iter().map(view_size).sum();
    NODE_BYTES + node.path.len() + value + nodes
}

/// A node of the tree; `path` is its own, and as before afterwards.
fn write_shown(out: &mut String, path: &mut String, shown: Shown<'_>, now_ns: i64) {
    let node = shown.node;
    let fields = Fields {
        value: node.value(),
        dir: node.is_dir(),
        expires_ns: node.expires_ns,
        modified: node.modified,
        created: node.created,
    };
    let start = fields.open(out, path, now_ns);
    write_nodes(out, start, shown.children(), |out, (name, child)| {
        let length = path.len();
        if !path.ends_with('/') {
            path.push('/');
        }
        path.push_str(name);
        write_shown(out, path, child, now_ns);
        path.truncate(length);
    });
    fields.close(out, start);
}

/// A node in an event.
fn write_view(out: &mut String, node: &NodeView, now_ns: i64) {
    let fields = Fields::from(node);
    let start = fields.open(out, &node.path, now_ns);
    write_nodes(out, start, node.nodes.iter(), |out, child| write_view(out, child, now_ns));
    fields.close(out, start);
}

/// Children, if there are any. The fields before them begin at `start`.
fn write_nodes<T>(
    out: &mut String,
    start: usize,
    nodes: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T),
) {
    let mut is_first = true;
    for node in nodes {
        if is_first {
            comma(out, start);
            out.push_str("\"nodes\":[");
        } else {
            out.push(',');
        }
        is_first = false;
        write(out, node);
    }
    if !is_first {
        out.push(']');
    }
}

/// What is written of a node beside its path and its children.
struct Fields<'a> {
    value: Option<&'a str>,
    dir: bool,
    expires_ns: Option<i64>,
    modified: u64,
    created: u64,
}

impl<'a> From<&'a NodeView> for Fields<'a> {
    fn from(node: &'a NodeView) -> Fields<'a> {
        Fields {
            value: node.value.as_deref(),
            dir: node.dir,
            expires_ns: node.expires_ns,
            modified: node.modified,
            created: node.created,
        }
    }
}

impl Fields<'_> {
    /// What comes before the children. Returns where the first field begins.
    fn open(&self, out: &mut String, path: &str, now_ns: i64) -> usize {
        out.push('{');
        let start = out.len();
        let key = user_path(path);
        if !key.is_empty() {
            out.push_str("\"key\":");
            json::write_string(out, key);
        }
        if let Some(value) = self.value {
            comma(out, start);
            out.push_str("\"value\":");
            json::write_string(out, value);
        }
        if self.dir {
            comma(out, start);
            out.push_str("\"dir\":true");
        }
        if let Some(expires_ns) = self.expires_ns {
            comma(out, start);
            let _ = write!(out, "\"expiration\":\"{}\"", rfc3339(expires_ns));
            let ttl = ttl_s(expires_ns, now_ns);
            if ttl != 0 {
                let _ = write!(out, ",\"ttl\":{ttl}");
            }
        }
        start
    }

    /// What comes after them.
    fn close(&self, out: &mut String, start: usize) {
        for (name, index) in [("modifiedIndex", self.modified), ("createdIndex", self.created)] {
            if index != 0 {
                comma(out, start);
                let _ = write!(out, "\"{name}\":{index}");
            }
        }
        out.push('}');
    }
}

/// Before every field but the first, which begins at `start`.
fn comma(out: &mut String, start: usize) {
    if out.len() > start {
        out.push(',');
    }
}

/// Remaining seconds, rounded up; negative once the time is over.
pub fn ttl_s(expires_ns: i64, now_ns: i64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    let left = expires_ns.saturating_sub(now_ns);
    left.div_euclid(SECOND) + i64::from(left.rem_euclid(SECOND) != 0)
}

/// A time as Go's RFC 3339 with nanoseconds, trailing zeros dropped, in UTC.
pub fn rfc3339(ns: i64) -> String {
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::tree::{Action, Op, Tree};

    fn view(path: &str, value: Option<&str>) -> NodeView {
        NodeView {
            path: path.into(),
            value: value.map(Into::into),
            dir: false,
            expires_ns: None,
            nodes: vec![],
            modified: 4,
            created: 4,
        }
    }

    fn look(ops: &[(&str, &str)], recursive: bool) -> FrozenNode {
        let mut tree = Tree::new();
        for (path, value) in ops {
            let (path, value) = ((*path).to_owned(), (*value).to_owned());
            tree.apply(&Op::Set { path, dir: false, value, expires_ns: None, refresh: false }).unwrap();
        }
        tree.look("/1", recursive).unwrap()
    }

    #[test]
    fn the_size_of_a_body_is_about_known_before_it_is_made() {
        let paths: Vec<String> = (0..100).map(|n| format!("/1/d{n}/file")).collect();
        let keys: Vec<_> = paths.iter().map(|path| (path.as_str(), "plain text")).collect();
        for (recursive, nodes) in [(true, 201), (false, 101)] {
            let node = look(&keys, recursive);
            let known = get_size(&node);
            let made = get_body(&node, known, 0).len();
            assert!((made..made + nodes * NODE_BYTES).contains(&known), "{known} for {made}");
            assert_eq!(get_size_within(&node, known), Some(known));
            assert_eq!(get_size_within(&node, known - 1), None);
        }
        let mut mortal = view("/1/d/f", Some("plain text"));
        (mortal.expires_ns, mortal.modified, mortal.created) = (Some(i64::MAX), u64::MAX, u64::MAX);
        let prev = Some(view("/1/d/f", Some("before")));
        let event = Event { action: Action::CompareAndDelete, node: mortal, prev, refresh: false };
        assert!(event_size(&event) >= event_body(&event, i64::MIN).len());
    }

    #[test]
    fn the_size_of_little_among_many_hidden_ones_is_not_found_out_for_little() {
        let paths: Vec<String> = (0..1000).map(|n| format!("/1/_{n}")).collect();
        let keys: Vec<_> = paths.iter().map(|path| (path.as_str(), "")).collect();
        let node = look(&keys, true);
        assert!(get_size(&node) < 1000);
        assert_eq!(get_size_within(&node, 1000), None);
        assert_eq!(get_size_within(&node, 1000 * HIDDEN_BYTES), Some(get_size(&node)));
    }

    #[test]
    fn a_look_shows_what_is_not_hidden_as_deep_as_it_is_asked_to() {
        let keys = [("/1/_h/x", "1"), ("/1/a/_h", "2"), ("/1/a/b/c", "3"), ("/1/z", "<4>")];
        let body = |recursive| get_body(&look(&keys, recursive), 0, 0);
        let z = "{\"key\":\"/z\",\"value\":\"\\u003c4\\u003e\",\"modifiedIndex\":4,\"createdIndex\":4}";
        let below = "\"nodes\":[{\"key\":\"/a/b\",\"dir\":true,\"nodes\":[{\"key\":\"/a/b/c\",\"value\":\"3\",\
                     \"modifiedIndex\":3,\"createdIndex\":3}],\"modifiedIndex\":3,\"createdIndex\":3}],";
        for (recursive, below) in [(true, below), (false, "")] {
            let expected = format!(
                "{{\"action\":\"get\",\"node\":{{\"dir\":true,\"nodes\":[{{\"key\":\"/a\",\"dir\":true,{below}\
                 \"modifiedIndex\":2,\"createdIndex\":2}},{z}]}}}}\n"
            );
            assert_eq!(body(recursive), expected);
        }
    }

    #[test]
    fn bodies_are_etcds() {
        let event = Event { action: Action::Set, node: view("/1/a", Some("1")), prev: None, refresh: false };
        assert_eq!(
            event_body(&event, 0),
            "{\"action\":\"set\",\"node\":{\"key\":\"/a\",\"value\":\"1\",\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        assert_eq!(get_body(&look(&[], true), 0, 0), "{\"action\":\"get\",\"node\":{\"dir\":true}}\n");
        let due = NodeView { expires_ns: Some(1_795_404_883_166_305_600), ..view("/1/a", Some("")) };
        let event = Event { node: due, ..event };
        assert_eq!(
            event_body(&event, 1_795_404_783_166_305_601),
            "{\"action\":\"set\",\"node\":{\"key\":\"/a\",\"value\":\"\",\"expiration\":\"2026-11-23T03:34:43.1663056Z\",\
             \"ttl\":100,\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
    }

    #[test]
    fn seconds_are_rounded_up_and_go_negative() {
        for (left, want) in
            [(0, 0), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (-1, 0), (-1_500_000_000, -1)]
        {
            assert_eq!(ttl_s(left, 0), want, "{left} ns left");
        }
    }
}
