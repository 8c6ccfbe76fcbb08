//! Sleeping until a queue has work or somebody wakes it, and where a worker runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd as Inner};
use nix::unistd::Pid;

/// Wakes a worker that sleeps in [`wait`]: what was signalled stays so until it is cleared.
#[derive(Debug)]
pub struct EventFd(Inner);

impl EventFd {
    /// A new one, not signalled.
    ///
    /// # Errors
    /// When no file descriptors are left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Inner::from_value_and_flags(0, flags)?))
    }

    /// Wakes the sleeper, or the next who goes to sleep. From any thread; never blocks.
    pub fn wake(&self) {
        // The one error there can be is a full counter (2^64 wake-ups), which is as good as signalled.
        let _ = self.0.write(1);
    }

    /// Forgets what was signalled; returns whether there was something.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why [`wait`] returned; all false after the timeout or a signal to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// The TAP has a frame, or an error to report: a read does not block.
    pub tap: bool,
    /// The socket has a datagram, or an error to report.
    pub socket: bool,
    /// Somebody called [`EventFd::wake`].
    pub woken: bool,
}

/// Sleeps until one of the three has something, or the timeout is over; without a timeout for ever.
///
/// # Errors
/// What `ppoll` reports: no memory. A file that was closed is a mistake of the program.
pub fn wait(
    tap: &impl AsFd,
    socket: &impl AsFd,
    wake: &EventFd,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let read = PollFlags::POLLIN;
    let mut files =
        [PollFd::new(tap.as_fd(), read), PollFd::new(socket.as_fd(), read), PollFd::new(wake.as_fd(), read)];
    match ppoll(&mut files, timeout.map(Into::into), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    // Whatever it is: the read that follows says it.
    let any = |file: &PollFd<'_>| file.revents().is_none_or(|events| !events.is_empty());
    Ok(Ready { tap: any(&files[0]), socket: any(&files[1]), woken: any(&files[2]) })
}

/// Sleeps until one of the files can be read, or `timeout` is over.
///
/// # Errors
/// As [`wait`].
pub(super) fn readable(files: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<()> {
    let mut files: Vec<PollFd<'_>> = files.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    match ppoll(&mut files, Some(timeout.into()), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps the calling thread on one CPU, counted from 0.
///
/// # Errors
/// `EINVAL` when there is no such CPU, or the process may not run there (cpuset).
pub fn pin_this_thread(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
