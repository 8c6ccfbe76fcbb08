//! A file system of its own, small, for a test. For tests only.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Does `work` on a tmpfs with these mount options, which takes root: others are told that the test is skipped.
pub(crate) fn on_tmpfs(options: &str, work: impl FnOnce(&Path)) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a tmpfs cannot be mounted; run the test as root");
        return;
    }
    let disk = tempfile::Builder::new().prefix("weft-small-disk-").tempdir().unwrap();
    let tmpfs = Some("tmpfs");
    mount(tmpfs, disk.path(), tmpfs, MsFlags::empty(), Some(options)).unwrap();
    let tried = catch_unwind(AssertUnwindSafe(|| work(disk.path())));
    let unmounted = umount2(disk.path(), MntFlags::MNT_DETACH);
    if let Err(panic) = tried {
        resume_unwind(panic);
    }
    unmounted.unwrap();
}
