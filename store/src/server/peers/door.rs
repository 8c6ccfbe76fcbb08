//! Who may wait at the peer port for how long: connections that have not said hello yet are counted apart from
//! those of members, so that nobody can shut members out by connecting and keeping silent.
//!
//! [`Door`] is pure; [`Waiting`] gives the place back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections without a hello from addresses where no member is, all together.
const MAX_STRANGERS: usize = 64;
/// And from one address.
const MAX_PER_ADDRESS: usize = 8;
/// Connections without a hello from a member's address, for each member there: its link and snapshots, dialled
/// again while the last attempt still hangs.
const MAX_PER_MEMBER: usize = 16;

/// Which members are at which address, and how many connections from there have not said hello.
#[derive(Debug)]
pub(super) struct Door {
    members: BTreeMap<IpAddr, Vec<u64>>,
    waiting: BTreeMap<IpAddr, usize>,
    strangers: usize,
}

impl Door {
    /// Nobody waits. `members` says where members are, by address.
    pub(super) fn new(members: BTreeMap<IpAddr, Vec<u64>>) -> Door {
        Door { members, waiting: BTreeMap::new(), strangers: 0 }
    }

    /// The members whose peer URL has this address.
    pub(super) fn members_at(&self, from: IpAddr) -> &[u64] {
        self.members.get(&from.to_canonical()).map_or(&[], Vec::as_slice)
    }

    /// Takes a place; `false` if there is none for this address.
    fn enter(&mut self, from: IpAddr) -> bool {
        let members = self.members_at(from).len();
        let here = self.waiting.get(&from).copied().unwrap_or(0);
        let limit = if members == 0 { MAX_PER_ADDRESS } else { members * MAX_PER_MEMBER };
        if here >= limit || (members == 0 && self.strangers >= MAX_STRANGERS) {
            return false;
        }
        self.strangers += usize::from(members == 0);
        self.waiting.insert(from, here + 1);
        true
    }

    /// Gives it back.
    fn leave(&mut self, from: IpAddr) {
        self.strangers -= usize::from(self.members_at(from).is_empty());
        if let Some(here) = self.waiting.get_mut(&from) {
            *here -= 1;
            if *here == 0 {
                self.waiting.remove(&from);
            }
        }
    }
}

/// A place at the door, given back when dropped.
pub(super) struct Waiting {
    door: Arc<Mutex<Door>>,
    from: IpAddr,
}

impl Waiting {
    /// Takes a place, if there is one for this address.
    pub(super) fn enter(door: &Arc<Mutex<Door>>, from: IpAddr) -> Option<Waiting> {
        let from = from.to_canonical();
        door.lock().enter(from).then(|| Waiting { door: Arc::clone(door), from })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.door.lock().leave(self.from);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 168, 31, last))
    }

    fn door() -> Arc<Mutex<Door>> {
        Arc::new(Mutex::new(Door::new([(address(66), vec![3])].into())))
    }

    #[test]
    fn strangers_cannot_take_the_members_places() {
        let door = door();
        let mut kept = Vec::new();
        for last in 100..=200 {
            kept.extend(std::iter::from_fn(|| Waiting::enter(&door, address(last))));
        }
        assert_eq!(kept.len(), MAX_STRANGERS);
        assert!(Waiting::enter(&door, address(66)).is_some(), "a member finds a place");
    }

    #[test]
    fn one_address_has_few_places_and_gets_them_back() {
        let door = door();
        let mut kept: Vec<Waiting> = std::iter::from_fn(|| Waiting::enter(&door, address(9))).collect();
        assert_eq!(kept.len(), MAX_PER_ADDRESS);
        assert!(Waiting::enter(&door, address(10)).is_some(), "another address is not affected");
        kept.pop();
        assert!(Waiting::enter(&door, address(9)).is_some());
        drop(kept);
        let door = door.lock();
        assert!(door.waiting.is_empty() && door.strangers == 0, "{door:?}");
    }

    #[test]
    fn a_mapped_address_is_the_same_address() {
        let door = door();
        let mapped: IpAddr = "::ffff:192.168.31.66".parse().unwrap();
        assert_eq!(door.lock().members_at(mapped), [3]);
        let kept: Vec<Waiting> = std::iter::from_fn(|| Waiting::enter(&door, mapped)).collect();
        assert_eq!(kept.len(), MAX_PER_MEMBER);
        assert!(Waiting::enter(&door, address(66)).is_none());
    }
}
