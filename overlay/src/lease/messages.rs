//! What passes between the keeper and its shell: requests, replies, what the watch saw, and how it can end.

use crate::types::Subnet;
use crate::wire::lease::Lease;

/// What the shell is asked to do at the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read all leases.
    List,
    /// Create the lease with our value and [`TTL_S`](crate::wire::lease::TTL_S), only if the key does not exist.
    Create(Subnet),
    /// Write our value over the lease, only if its modified index is still `prev_index`.
    Update {
        /// Which lease.
        subnet: Subnet,
        /// What the index must still be.
        prev_index: u64,
        /// The TTL to write; `None` keeps a reservation without one.
        ttl_s: Option<u64>,
    },
    /// Delete the lease, only if its modified index is still `prev_index`.
    Delete {
        /// Which lease.
        subnet: Subnet,
        /// What the index must still be.
        prev_index: u64,
    },
    /// Read our own lease.
    Read(Subnet),
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `List`: every readable lease.
    Listed(Vec<Lease>),
    /// `Create`, `Update`: done; the new index and the TTL the store will count down.
    Written {
        /// The index of the write.
        modified_index: u64,
        /// Seconds until it expires; `None` for a reservation.
        ttl_s: Option<u64>,
    },
    /// The key exists, or is not as it was (etcd errors 105 and 101).
    Conflict,
    /// There is no such key (etcd error 100).
    Gone,
    /// `Delete`: done.
    Deleted,
    /// `Read`: what the key holds.
    Found(Lease),
    /// `Read`: the key holds something that is no lease.
    Unreadable(String),
    /// The store could not be asked, or whether it acted is unknown.
    Unavailable(String),
    /// The store said no, and will again.
    Refused(String),
}

/// What the watch saw of our own subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// All leases were listed, at this index of the store's.
    Listed {
        /// The store's index.
        index: u64,
    },
    /// It was written.
    Put(Lease),
    /// It was deleted or expired, at this index; or a listing of this index does not have it.
    Gone {
        /// The store's index.
        index: u64,
    },
    /// It was overwritten, at this index, with something that is no lease.
    Unreadable {
        /// The store's index.
        index: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Why no lease could be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Every subnet of the range overlaps a lease.
    #[error("failed to acquire lease: out of subnets: every subnet from SubnetMin to SubnetMax is leased")]
    OutOfSubnets,
    /// Others were faster, time and again.
    #[error("failed to acquire lease: Max retries reached trying to acquire a subnet")]
    MaxRetries,
    /// The store refused.
    #[error("failed to acquire lease: {0}")]
    Refused(String),
}

/// Why the lease is ours no longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Deleted or expired.
    #[error("Lease has been revoked. Shutting down daemon. ({subnet}: its key is gone from the store)")]
    Revoked {
        /// The subnet we had.
        subnet: Subnet,
    },
    /// Another host's value is in the key.
    #[error(
        "Lease has been revoked. Shutting down daemon. ({subnet} is now held by {public_ip}, {data}; if that is this \
         host's own address, two hosts advertise the same one: give each its own with -iface or -public-ip)"
    )]
    Taken {
        /// The subnet we had.
        subnet: Subnet,
        /// Who has it.
        public_ip: std::net::Ipv4Addr,
        /// Its backend data.
        data: String,
    },
    /// Something else is in the key.
    #[error("Lease has been revoked. Shutting down daemon. ({subnet}: its key holds no lease: {why})")]
    Overwritten {
        /// The subnet we had.
        subnet: Subnet,
        /// What is wrong with the value.
        why: String,
    },
}
