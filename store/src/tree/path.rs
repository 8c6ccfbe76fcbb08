//! Key paths: always absolute, `/` between names, no empty names.

/// The most names in a path. Walks over the tree go one level of the stack deeper with each name, so this bound
/// is what keeps a request from overflowing it.
pub const MAX_NAMES: usize = 256;
/// The most bytes in a path: every directory on the way keeps its own.
pub const MAX_BYTES: usize = 4096;

/// Whether a clean path is beyond what the tree takes. etcd has no such bound.
pub fn is_too_long(path: &str) -> bool {
    path.len() > MAX_BYTES || path.bytes().filter(|&byte| byte == b'/').count() > MAX_NAMES
}

/// The cause that an error names then.
pub fn too_long_cause() -> String {
    format!("the key has more than {MAX_NAMES} names or {MAX_BYTES} bytes")
}

/// The cleaned form of a path, as Go's `path.Clean` of the path below `/`: `a//b/../c/` is `/a/c`.
pub fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    let mut cleaned = String::with_capacity(path.len() + 1);
    for name in names {
        cleaned.push('/');
        cleaned.push_str(name);
    }
    if cleaned.is_empty() {
        cleaned.push('/');
    }
    cleaned
}

/// The names of a clean path, each with the position in the path where it ends.
pub fn components(path: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    path.split('/').filter(|name| !name.is_empty()).map(move |name| {
        at += 1 + name.len();
        (at, name)
    })
}

/// The directory that holds a clean path; `/` for the root itself.
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(at) => &path[..at],
    }
}

/// The last name of a clean path; empty for the root.
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The path of `name` in the directory `dir`, both clean.
pub fn join(dir: &str, name: &str) -> String {
    if dir == "/" { format!("/{name}") } else { format!("{dir}/{name}") }
}

/// Whether a name is left out of listings and of the events that watchers above it see.
pub fn is_hidden_name(name: &str) -> bool {
    name.starts_with('_')
}

/// Whether `key` lies below a hidden name, seen from a watcher at `watched`.
pub fn is_hidden_from(watched: &str, key: &str) -> bool {
    let below = if watched == "/" { Some(key) } else { key.strip_prefix(watched) };
    below.is_some_and(|below| below.contains("/_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_follows_go() {
        for (given, want) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a/", "/a"),
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/..a/b..", "/..a/b.."),
        ] {
            assert_eq!(clean(given), want, "{given}");
        }
    }

    #[test]
    fn components_end_where_their_prefix_ends() {
        let path = "/foo/b/bar";
        let ends: Vec<&str> = components(path).map(|(end, _)| &path[..end]).collect();
        assert_eq!(ends, ["/foo", "/foo/b", "/foo/b/bar"]);
        assert_eq!(components("/").count(), 0);
        assert_eq!((parent("/a/b"), parent("/a"), parent("/")), ("/a", "/", "/"));
    }

    #[test]
    fn hidden_counts_only_below_the_watcher() {
        assert!(is_hidden_from("/", "/_a"));
        assert!(is_hidden_from("/a", "/a/b/_c/d"));
        assert!(!is_hidden_from("/a/_b", "/a/_b/c"));
        assert!(!is_hidden_from("/a/b/c", "/a"));
    }
}
