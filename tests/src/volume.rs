//! A small file system of its own for a member's data, which a test fills, and freezes as a disk would stall that answers no
//! more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, ensure};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::command;
use crate::programs::{require_root, tool};

/// Room for the log, its reserve, the image, and what the store wants free.
const VOLUME_MIB: u64 = 320;
/// What all directories begin with, before the id of the process that made them; known to `tests/sweep`.
const PREFIX: &str = "weft-disk-";

/// A file system in a file, unmounted when dropped. What a killed test left mounted is removed when the next process
/// makes its first one.
#[derive(Debug)]
pub struct Volume {
    dir: TempDir,
    mount: PathBuf,
}

impl Volume {
    /// Makes and mounts one.
    ///
    /// # Errors
    /// When not root, a program is missing, or the kernel refuses.
    pub fn new() -> Result<Self> {
        Self::with_mib(VOLUME_MIB)
    }

    /// One of so many MiB.
    ///
    /// # Errors
    /// As [`Volume::new`].
    pub fn with_mib(mib: u64) -> Result<Self> {
        static SWEPT: OnceLock<()> = OnceLock::new();
        require_root()?;
        SWEPT.get_or_init(|| {
            if let Err(error) = sweep() {
                eprintln!("what killed tests left mounted stays: {error:#}");
            }
        });
        Self::of(std::process::id(), mib)
    }

    /// One that is known as that of a process.
    fn of(pid: u32, mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{pid}-")).tempdir()?;
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::File::create(&image)?.set_len(mib << 20)?;
        std::fs::create_dir(&mount)?;
        command::run(Command::new(tool("mkfs.ext4")?).args(["-q", "-F", "-m", "0"]).arg(&image))?.ok()?;
        command::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?.ok()?;
        Ok(Self { dir, mount })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    fn free(&self) -> Result<u64> {
        let stat = statvfs(&self.mount)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Takes room until only `left` bytes are free.
    ///
    /// # Errors
    /// When more than that stays free.
    pub fn fill(&self, left: u64) -> Result<()> {
        let free = self.free()?;
        for n in 0.. {
            let file = self.mount.join(format!("filler-{left}-{n}"));
            let take = self.free()?.saturating_sub(left);
            if take < 64 << 10 {
                break;
            }
            // The file system needs some of it for itself, and does not say how much.
            let length = (take - take / 64).to_string();
            command::run(Command::new("fallocate").args(["-l", &length]).arg(&file))?;
        }
        let now = self.free()?;
        ensure!(now <= left + (64 << 10), "{now} of {free} bytes are still free, {left} were to be");
        Ok(())
    }

    /// Removes what [`Self::fill`] made.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.mount)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("filler-")) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Stalls every write and sync until the result is dropped. It must be dropped before the processes that write here
    /// are waited for: nothing ends a process in such a write.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self) -> Result<Frozen<'_>> {
        command::run(Command::new(tool("fsfreeze")?).arg("--freeze").arg(&self.mount))?.ok()?;
        Ok(Frozen(&self.mount))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let umount = |how: &[&str]| {
            let done = command::run(Command::new("umount").args(how).arg(&self.mount));
            done.is_ok_and(|output| output.ok().is_ok())
        };
        if !umount(&[]) && !umount(&["--lazy"]) {
            eprintln!("{} stays mounted", self.dir.path().display());
        }
    }
}

/// A file system that is frozen for so long.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let thawed = command::run(Command::new("fsfreeze").arg("--unfreeze").arg(self.0));
        if let Err(error) = thawed.and_then(|output| output.ok().map(drop)) {
            eprintln!("{} stays frozen: {error:#}", self.0.display());
        }
    }
}

/// Thaws, unmounts and removes the volumes of processes that are gone.
fn sweep() -> Result<()> {
    command::run(&mut Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sweep")))?.ok().map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context;

    use super::*;
    use crate::wait::wait_for;

    fn is_mounted(path: &Path) -> Result<bool> {
        Ok(std::fs::read_to_string("/proc/self/mounts")?.contains(&path.display().to_string()))
    }

    #[test]
    fn what_a_killed_process_left_is_thawed_and_removed() -> Result<()> {
        require_root()?;
        let mut ended = Command::new("true").spawn()?;
        ended.wait()?;
        let mine = Volume::new()?;
        let left = Volume::of(ended.id(), VOLUME_MIB)?;
        let dir = left.dir.path().to_owned();
        let frozen = left.freeze()?;
        // Nothing but the thaw ends this one, not even SIGKILL.
        let mut writer = Command::new("touch").arg(left.path().join("file")).spawn()?;
        ensure!(is_mounted(left.path())? && writer.try_wait()?.is_none());

        sweep()?;
        wait_for("the end of who wrote there", Duration::from_secs(20), || {
            writer.try_wait()?.context("it still waits")
        })?;
        ensure!(!is_mounted(left.path())?, "{} is still mounted", left.path().display());
        ensure!(!dir.exists(), "{} is still there", dir.display());
        ensure!(is_mounted(mine.path())?, "one that is in use was taken away");
        // Their guards have nothing left to do.
        std::mem::forget(frozen);
        std::mem::forget(left);
        Ok(())
    }
}
