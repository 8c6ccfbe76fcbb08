//! File descriptors: as many as the system gives, and not all of them for clients.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use tokio::sync::Semaphore;

/// Connections of clients at one time, if there are descriptors for them.
const MAX_CLIENTS: usize = 8192;
/// Descriptors kept for the log, the state, the listeners and the other members.
const RESERVED: usize = 256;

/// Raises the limit on open files as far as it may be, and returns a place for each connection that clients may
/// have at one time, on all listeners together. A member that runs out of descriptors could no longer write.
pub(super) fn client_connections() -> Arc<Semaphore> {
    let descriptors = match raise() {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot read or raise the limit on open files");
            1024
        }
    };
    let clients = clients(descriptors);
    if clients < MAX_CLIENTS {
        tracing::warn!(
            descriptors,
            clients,
            "few open files are allowed (ulimit -n, LimitNOFILE=): clients are limited"
        );
    } else {
        tracing::info!(descriptors, clients, "limits");
    }
    Arc::new(Semaphore::new(clients))
}

/// Sets the soft limit to the hard one and returns it.
fn raise() -> nix::Result<rlim_t> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Connections for clients out of so many descriptors; a few always, as else nobody could be told anything.
fn clients(descriptors: usize) -> usize {
    descriptors.saturating_sub(RESERVED).clamp(16, MAX_CLIENTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_member_keeps_its_own_descriptors() {
        assert_eq!(clients(1024), 768);
        assert_eq!(clients(usize::MAX), MAX_CLIENTS);
        assert_eq!(clients(MAX_CLIENTS + RESERVED), MAX_CLIENTS);
        assert_eq!(clients(100), 16);
    }
}
