//! A worker's thread, and whether it is still there.
//!
//! A thread that meets a fault of the kernel inside a system call is ended by the kernel without another instruction of
//! its own: nothing is dropped, nothing counted, and joining it would never give a result. Linux says so all the same:
//! no signal can be sent to it any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use nix::unistd::gettid;

use super::sys;

/// See the module. Dropping it waits for the thread's end, unless the kernel has ended it.
#[derive(Debug)]
pub(super) struct Thread {
    handle: Option<JoinHandle<()>>,
    /// Its number in the kernel; 0 until it runs.
    id: Arc<AtomicI32>,
}

impl Thread {
    /// Starts it.
    ///
    /// # Errors
    /// No more threads are to be had.
    pub(super) fn start(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let id = Arc::new(AtomicI32::new(0));
        let own = Arc::clone(&id);
        let handle = std::thread::Builder::new().name(name).spawn(move || {
            own.store(gettid().as_raw(), Ordering::Relaxed);
            work();
        })?;
        Ok(Self { handle: Some(handle), id })
    }

    /// Whether its work is going on.
    pub(super) fn is_running(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.is_finished()) && !self.was_killed()
    }

    /// Whether the kernel has ended it. What files it had stay open until the process ends, so a successor in this
    /// process would share its device and port with nobody who reads them.
    pub(super) fn was_killed(&self) -> bool {
        let id = self.id.load(Ordering::Relaxed);
        // In this order: one that ends by itself is finished before it is gone.
        id != 0
            && !sys::is_thread_of_ours(id)
            && self.handle.as_ref().is_some_and(|handle| !handle.is_finished())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !self.was_killed()
            && let Some(handle) = self.handle.take()
        {
            let _ = handle.join(); // a panic has been reported by its thread
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Longest wait for a thread that is about to end.
    const SOON: Duration = Duration::from_secs(20);

    fn eventually(what: impl Fn() -> bool) {
        for _ in 0..SOON.as_millis() {
            if what() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not within {SOON:?}");
    }

    #[test]
    fn one_that_ends_was_not_killed() {
        let (end, ended) = mpsc::channel::<()>();
        let thread = Thread::start("ends".into(), move || _ = ended.recv()).unwrap();
        assert!(thread.is_running() && !thread.was_killed());
        drop(end);
        eventually(|| !thread.is_running());
        assert!(!thread.was_killed());
        let id = thread.id.load(Ordering::Relaxed);
        eventually(|| !sys::is_thread_of_ours(id));
        assert!(!thread.was_killed());
    }

    #[test]
    fn one_that_panics_was_not_killed() {
        let thread = Thread::start("panics".into(), || panic!("as it should")).unwrap();
        eventually(|| !thread.is_running());
        assert!(!thread.was_killed());
    }

    #[test]
    fn one_that_the_kernel_ends_is_noticed_and_not_waited_for() {
        let thread = Thread::start("killed".into(), sys::end_this_thread).unwrap();
        eventually(|| thread.was_killed());
        assert!(!thread.is_running());
        drop(thread);
    }
}
