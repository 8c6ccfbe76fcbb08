#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn file(path: PathBuf, contents: &str, access: Access) -> File {
    File { path, contents: contents.to_owned(), access }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn keys_are_for_their_owner_only_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let cert = dir.path().join("a.pem");
    let key = dir.path().join("a-key.pem");
    write_all(&[file(cert.clone(), "cert", Access::Public), file(key.clone(), "key", Access::Secret)], false)
        .unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&cert).unwrap().permissions().mode() & 0o133, 0, "no more than 0644");
    assert_eq!(read(&cert).unwrap(), b"cert");
    assert_eq!(names(dir.path()), ["a-key.pem", "a.pem"]);
}

#[test]
fn files_in_the_way_are_listed_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a"), "old").unwrap();
    symlink("nowhere", path("c")).unwrap();
    let files: Vec<_> = ["a", "b", "c"].map(|n| file(path(n), "new", Access::Public)).into();
    match write_all(&files, false) {
        Err(DiskError::Exists { paths }) => assert_eq!(paths, [path("a"), path("c")]),
        other => panic!("{other:?}"),
    }
    assert_eq!(names(dir.path()), ["a", "c"]);
    assert_eq!(fs::read_to_string(path("a")).unwrap(), "old");

    write_all(&files, true).unwrap();
    assert_eq!(names(dir.path()), ["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read_to_string(path(name)).unwrap(), "new");
    }
    assert!(!path("c").symlink_metadata().unwrap().is_symlink(), "a link is replaced, not followed");
}

#[test]
fn overwriting_a_readable_key_makes_it_secret() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    fs::write(&key, "old").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    write_all(&[file(key.clone(), "new", Access::Secret)], true).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_appears_in_between_is_kept_and_the_others_are_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let new = file(path("a"), "new", Access::Public);
    let staged = Staged::write(&new).unwrap();
    fs::write(path("a"), "other").unwrap();
    assert!(matches!(staged.place(&new.path, false), Err(DiskError::Exists { .. })));
    drop(staged);
    assert_eq!(fs::read_to_string(path("a")).unwrap(), "other");
    assert_eq!(names(dir.path()), ["a"]);
    // The same name twice in one batch is such a case, seen from outside.
    let twice = [file(path("b"), "1", Access::Public), file(path("b"), "2", Access::Public)];
    assert!(write_all(&twice, false).is_err());
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn errors_name_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/dir/a.pem");
    let err = write_all(&[file(missing.clone(), "", Access::Public)], false).unwrap_err().to_string();
    assert!(err.contains("no/such/dir/.a.pem.") && err.contains("cannot create it"), "{err}");
    let err = read(&missing).unwrap_err().to_string();
    assert!(err.starts_with(&missing.display().to_string()), "{err}");
    let big = dir.path().join("big");
    fs::write(&big, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(matches!(read(&big), Err(DiskError::TooLarge { .. })));
}

#[test]
fn the_leftover_of_a_killed_run_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let leftover = Staged::write(&file(path.clone(), "half", Access::Public)).unwrap();
    std::mem::forget(leftover);
    write_all(&[file(path.clone(), "whole", Access::Public)], false).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
}
