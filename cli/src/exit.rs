//! Exit codes, which are part of the interface: scripts and units act on them.

use std::process::ExitCode;

/// How a command ended.
///
/// The key commands and `member` use etcdctl's codes (its v2 mode), the others 0, 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It worked; the cluster is healthy; every node is reachable.
    Success,
    /// It failed; not healthy; something is not reachable. For key commands: bad arguments, or `get` of a
    /// directory.
    Failure,
    /// The command line or the configuration cannot work.
    Usage,
    /// Key commands and `member`: no endpoint answered the question for the members (the sync).
    BadConnection,
    /// Key commands: the store answered with an error, or not at all.
    ServerError,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage | Self::BadConnection => 2,
            Self::ServerError => 4,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
