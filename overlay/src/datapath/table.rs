//! The forwarding table: which peer has which VTEP MAC, as an immutable snapshot, and the place from which workers take
//! the current one. Pure; the leases decide what is in it.
//!
//! A worker keeps its own `Arc<Table>` and asks [`Shared::refresh`] once per batch: one atomic load unless the table has
//! changed, so a lookup takes no lock and the writer never waits for packets.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::datapath::Peer;
use crate::datapath::counters::PeerCounters;
use crate::types::{Subnet, VtepMac};

/// How packets leave for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink {
    /// Index of the interface.
    pub interface: u32,
    /// Length of the longest IP packet that passes there, in bytes.
    pub mtu: u16,
}

/// One peer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The subnet it leases; what identifies it.
    pub subnet: Subnet,
    /// Its VTEP's hardware address: the destination of inner frames to it.
    pub mac: VtepMac,
    /// Its address on the underlay: the destination of outer packets to it.
    pub underlay: IpAddr,
    /// Its VTEP's IPv4 address, the base of its subnet.
    pub vtep4: Ipv4Addr,
    /// Its VTEP's IPv6 address. Leases of flannel v0.10 name none, so it is the link-local address that the kernel makes
    /// from the MAC ([`link_local`]).
    pub vtep6: Option<Ipv6Addr>,
    /// How packets leave for it, where that is known. Only who does not leave it to the kernel's routing needs it.
    pub uplink: Option<Uplink>,
    /// What is counted for it.
    pub counters: Arc<PeerCounters>,
}

impl Entry {
    /// The entry of a lease, with counters at zero.
    pub fn new(subnet: Subnet, peer: Peer) -> Self {
        Self {
            subnet,
            mac: peer.mac,
            underlay: peer.public_ip.into(),
            vtep4: subnet.base(),
            vtep6: Some(link_local(peer.mac)),
            uplink: None,
            counters: Arc::default(),
        }
    }
}

/// The link-local address of an interface with this hardware address (RFC 4291 section 2.5.6 and appendix A): what the
/// kernel gives a device whose `addr_gen_mode` is the default.
#[must_use]
pub fn link_local(mac: VtepMac) -> Ipv6Addr {
    let m = mac.octets();
    let id = [m[0] ^ 0x02, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
    Ipv6Addr::from((0xfe80 << 112) | u128::from(u64::from_be_bytes(id)))
}

/// All peers, immutable. Entries are addressed by index, which is valid for this table only.
///
/// Two peers may briefly claim the same MAC or address (a host that came back under a new subnet). Both have their
/// entry, and lookups find the later one.
#[derive(Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
    by_mac: HashMap<u64, u32, BuildHasherDefault<MacHasher>>,
    by_vtep4: BTreeMap<Ipv4Addr, u32>,
    by_vtep6: BTreeMap<Ipv6Addr, u32>,
}

impl Table {
    /// The table of these peers. Peers of the previous table keep their counters, recognised by their subnets.
    pub fn build(peers: impl Iterator<Item = (Subnet, Peer)>, previous: &Table) -> Table {
        let known: BTreeMap<Subnet, &Arc<PeerCounters>> =
            previous.entries.iter().map(|entry| (entry.subnet, &entry.counters)).collect();
        Self::from_entries(peers.map(|(subnet, peer)| {
            let mut entry = Entry::new(subnet, peer);
            if let Some(counters) = known.get(&subnet) {
                entry.counters = Arc::clone(counters);
            }
            entry
        }))
    }

    /// The same with what `find` knows of the ways to the peers.
    #[must_use]
    pub fn with_uplinks(mut self, find: impl Fn(IpAddr) -> Option<Uplink>) -> Table {
        for entry in &mut self.entries {
            entry.uplink = find(entry.underlay);
        }
        self
    }

    /// The table of these entries, in this order.
    pub fn from_entries(entries: impl IntoIterator<Item = Entry>) -> Table {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut table = Table {
            by_mac: HashMap::with_capacity_and_hasher(entries.len(), BuildHasherDefault::default()),
            ..Table::default()
        };
        for (index, entry) in (0u32..).zip(&entries) {
            table.by_mac.insert(mac_key(entry.mac.octets()), index);
            table.by_vtep4.insert(entry.vtep4, index);
            if let Some(address) = entry.vtep6 {
                table.by_vtep6.insert(address, index);
            }
        }
        table.entries = entries;
        table
    }

    /// The peer whose VTEP has this hardware address.
    #[inline]
    pub fn by_mac(&self, mac: [u8; 6]) -> Option<u32> {
        self.by_mac.get(&mac_key(mac)).copied()
    }

    /// The entry at an index that a lookup in this same table returned.
    ///
    /// # Panics
    /// When the index is of another table and past this one's end.
    #[inline]
    pub fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    /// The peer whose VTEP has this IPv4 address.
    pub fn by_vtep4(&self, address: Ipv4Addr) -> Option<u32> {
        self.by_vtep4.get(&address).copied()
    }

    /// The peer whose VTEP has this IPv6 address.
    pub fn by_vtep6(&self, address: Ipv6Addr) -> Option<u32> {
        self.by_vtep6.get(&address).copied()
    }

    /// The number of peers.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no peer.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Entry> {
        self.entries.iter()
    }
}

impl<'a> IntoIterator for &'a Table {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[inline]
fn mac_key(mac: [u8; 6]) -> u64 {
    let [high @ .., c, d, e, f] = mac;
    u64::from(u16::from_ne_bytes(high)) << 32 | u64::from(u32::from_ne_bytes([c, d, e, f]))
}

/// A hash of one multiplication. Nobody gains from making MACs collide: they come from the store, whose writers could as
/// well take the whole subnet.
#[derive(Debug, Default, Clone, Copy)]
struct MacHasher(u64);

impl Hasher for MacHasher {
    #[inline]
    fn write_u64(&mut self, key: u64) {
        // 2^64 / golden ratio, odd. The table takes the position from the low bits of the hash and a tag from the high
        // ones; both halves of the product together depend, everywhere, on every bit of the key.
        let product = u128::from(self.0 ^ key) * 0x9e37_79b9_7f4a_7c15;
        #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
        let (high, low) = ((product >> 64) as u64, product as u64);
        self.0 = high ^ low;
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Where the current table is kept. The writer swaps it whole; each worker refreshes its own copy once per batch.
#[derive(Debug)]
pub struct Shared {
    /// Counts publications, so that a worker sees without the lock whether there is something new.
    generation: AtomicU64,
    /// Held for as long as it takes to copy or swap a pointer.
    table: Mutex<Arc<Table>>,
}

impl Shared {
    /// Starts with this table, generation 0.
    pub fn new(table: Table) -> Self {
        Self { generation: AtomicU64::new(0), table: Mutex::new(Arc::new(table)) }
    }

    /// Makes this the current table.
    pub fn publish(&self, table: Table) {
        let table = Arc::new(table);
        let mut current = self.lock();
        let previous = std::mem::replace(&mut *current, table);
        self.generation.fetch_add(1, Ordering::Release);
        drop(current);
        drop(previous); // freeing thousands of entries is not done under the lock
    }

    /// The current table.
    pub fn current(&self) -> Arc<Table> {
        Arc::clone(&self.lock())
    }

    /// The number of publications so far. A caller that reads this first and [`Shared::current`] then holds a table at
    /// least as new.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Brings a worker's copy up to date; `seen` is the generation it was taken at. Returns whether it was replaced.
    #[inline]
    pub fn refresh(&self, seen: &mut u64, table: &mut Arc<Table>) -> bool {
        let generation = self.generation();
        if generation == *seen {
            return false;
        }
        *seen = generation;
        *table = self.current();
        true
    }

    /// A panic elsewhere cannot leave a pointer half swapped, so poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, Arc<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "table_tests.rs"]
mod tests;
