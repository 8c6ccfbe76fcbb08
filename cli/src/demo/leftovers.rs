//! The look afterwards: which processes still are in a namespace of the demo, and which files remain.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Processes that are in one of `namespaces` (the kernel's numbers, of network or process namespaces), as
/// `pid (name)`. Those of other users that may not be looked at are passed over: they cannot be ours.
pub(crate) fn processes_in(namespaces: &BTreeSet<u64>) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        let inside = ["net", "pid"].iter().any(|kind| {
            fs::metadata(entry.path().join("ns").join(kind))
                .is_ok_and(|file| namespaces.contains(&file.ino()))
        });
        if inside {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} ({})", command.trim()));
        }
    }
    found
}

/// Whether something of the demo is left; what, in words for the user.
pub(crate) fn find(namespaces: &BTreeSet<u64>, work_dir: &Path) -> Vec<String> {
    let mut left: Vec<String> =
        processes_in(namespaces).into_iter().map(|process| format!("process {process}")).collect();
    if work_dir.exists() {
        left.push(format!("directory {}", work_dir.display()));
    }
    left
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn this_process_is_found_by_its_own_namespace() {
        let own = BTreeSet::from([fs::metadata("/proc/self/ns/net").unwrap().ino()]);
        let pid = std::process::id().to_string();
        assert!(processes_in(&own).iter().any(|process| process.starts_with(&format!("{pid} ("))));
        assert!(processes_in(&BTreeSet::from([1])).is_empty());
    }

    #[test]
    fn a_directory_that_is_there_is_left() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(&BTreeSet::new(), dir.path()).len(), 1);
        assert_eq!(find(&BTreeSet::new(), &dir.path().join("gone")), Vec::<String>::new());
    }
}
