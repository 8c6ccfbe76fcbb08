//! Errors of the image in one directory, and sled's panics as errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{StateError, VERSION};

/// Makes errors that name the directory.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    dir: PathBuf,
}

impl Faults {
    pub(super) fn of(dir: &Path) -> Faults {
        Faults { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn engine(&self, source: sled::Error) -> StateError {
        StateError::Engine { dir: self.dir.display().to_string(), source }
    }

    pub(super) fn damaged(&self, what: impl Into<String>) -> StateError {
        StateError::Damaged { dir: self.dir.display().to_string(), what: what.into() }
    }

    pub(super) fn version(&self, found: u8) -> StateError {
        self.damaged(format!("version {found}, this program reads 1 to {VERSION}"))
    }

    /// Carries out `work`. sled 0.34 panics on files that it does not expect; that must not take the thread along.
    ///
    /// # Errors
    /// Those of `work`, or the panic's message.
    pub(super) fn guard<T>(&self, work: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            Err(self.damaged(format!("sled cannot go on with its files: {text}")))
        })
    }
}
