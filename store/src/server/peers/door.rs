//! Who may wait at the peer port for how long: connections that have not said hello yet are counted apart from
//! those of members, so that nobody can shut members out by connecting and keeping silent.
//!
//! A member whose peer URL is a host name, or that comes through NAT, is a stranger until its hello. So a full house does
//! not turn newcomers away: the oldest goes, of the address that has most. Whoever is about to say hello has just come,
//! and those who hold places on purpose drive out each other.
//!
//! [`Door`] is pure; [`Waiting`] and [`Leaving`] are what the connections hold of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::server::host::host;

/// Connections without a hello from addresses where no member is, all together.
const MAX_STRANGERS: usize = 64;
/// And from one address; in IPv6 from one /64, of which a single host has all addresses.
const MAX_PER_ADDRESS: usize = 8;
/// Connections without a hello from a member's address, for each member there: its link and snapshots, dialled
/// again while the last attempt still hangs.
const MAX_PER_MEMBER: usize = 16;

/// Whose connections are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// An address where members are.
    Members(IpAddr),
    /// Another one, of IPv6 its first half.
    Strangers(IpAddr),
}

/// What a place and whoever takes it tell each other.
#[derive(Debug, Default)]
struct Place {
    /// Another one needs it.
    needed: Notify,
    /// Its connection is closed or has said hello.
    left: Notify,
}

/// Which members are at which address, and how many connections from there have not said hello.
#[derive(Debug)]
pub(super) struct Door {
    members: BTreeMap<IpAddr, Vec<u64>>,
    /// Oldest first.
    waiting: BTreeMap<Origin, VecDeque<(u64, Arc<Place>)>>,
    strangers: usize,
    next: u64,
}

impl Door {
    /// Nobody waits. `members` says where members are, by address.
    pub(super) fn new(members: BTreeMap<IpAddr, Vec<u64>>) -> Door {
        Door { members, waiting: BTreeMap::new(), strangers: 0, next: 0 }
    }

    /// The members whose peer URL has this address.
    pub(super) fn members_at(&self, from: IpAddr) -> &[u64] {
        self.members.get(&from.to_canonical()).map_or(&[], Vec::as_slice)
    }

    /// What an address counts as, and how many may wait from there.
    fn origin(&self, from: IpAddr) -> (Origin, usize) {
        let from = from.to_canonical();
        match self.members_at(from).len() {
            0 => (Origin::Strangers(host(from)), MAX_PER_ADDRESS),
            members => (Origin::Members(from), members * MAX_PER_MEMBER),
        }
    }

    /// Takes a place; also says whose place that was, if all were taken.
    fn enter(&mut self, from: IpAddr) -> (Origin, u64, Arc<Place>, Option<Arc<Place>>) {
        let (origin, limit) = self.origin(from);
        let here = self.waiting.get(&origin).map_or(0, VecDeque::len);
        let is_stranger = matches!(origin, Origin::Strangers(_));
        let crowded = if here >= limit {
            Some(origin)
        } else if is_stranger && self.strangers >= MAX_STRANGERS {
            self.most_crowded()
        } else {
            None
        };
        let gone = crowded.and_then(|crowded| self.take_out(crowded, 0));
        let (id, place) = (self.next, Arc::default());
        self.next += 1;
        self.strangers += usize::from(is_stranger);
        self.waiting.entry(origin).or_default().push_back((id, Arc::clone(&place)));
        (origin, id, place, gone)
    }

    /// Where most strangers come from; of several such the one of the oldest.
    fn most_crowded(&self) -> Option<Origin> {
        let strangers = self.waiting.iter().filter(|(origin, _)| matches!(origin, Origin::Strangers(_)));
        let most = strangers.max_by_key(|(_, here)| (here.len(), here.front().map(|(id, _)| Reverse(*id))));
        most.map(|(origin, _)| *origin)
    }

    /// Gives a place back, unless it has been taken away.
    fn leave(&mut self, origin: Origin, id: u64) {
        let at = self.waiting.get(&origin).and_then(|here| here.iter().position(|(other, _)| *other == id));
        if let Some(at) = at {
            self.take_out(origin, at);
        }
    }

    fn take_out(&mut self, origin: Origin, at: usize) -> Option<Arc<Place>> {
        let here = self.waiting.get_mut(&origin)?;
        let (_, place) = here.remove(at)?;
        if here.is_empty() {
            self.waiting.remove(&origin);
        }
        self.strangers -= usize::from(matches!(origin, Origin::Strangers(_)));
        Some(place)
    }
}

/// A place at the door, given back when dropped.
pub(super) struct Waiting {
    door: Arc<Mutex<Door>>,
    origin: Origin,
    id: u64,
    place: Arc<Place>,
}

/// One that has lost its place to a newcomer and is about to close its connection.
pub(super) struct Leaving(Arc<Place>);

impl Waiting {
    /// Takes a place. Whoever had it, if all were taken, is told to go; the newcomer should wait for that, so that there
    /// are never more connections than places.
    pub(super) fn enter(door: &Arc<Mutex<Door>>, from: IpAddr) -> (Waiting, Option<Leaving>) {
        let (origin, id, place, gone) = door.lock().enter(from);
        let leaving = gone.map(|gone| {
            gone.needed.notify_one();
            Leaving(gone)
        });
        (Waiting { door: Arc::clone(door), origin, id, place }, leaving)
    }

    /// Returns when the place is needed for another connection.
    pub(super) async fn is_needed(&self) {
        self.place.needed.notified().await;
    }
}

impl Leaving {
    /// Returns when it has left.
    pub(super) async fn has_left(self) {
        self.0.left.notified().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.door.lock().leave(self.origin, self.id);
        self.place.left.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 168, 31, last))
    }

    fn door() -> Arc<Mutex<Door>> {
        Arc::new(Mutex::new(Door::new([(address(66), vec![3])].into())))
    }

    /// Whether a place has to be given up. Asking takes the message away.
    fn must_go(waiting: &Waiting) -> bool {
        let needed = std::pin::pin!(waiting.is_needed());
        needed.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// So many of the last ones keep their places.
    fn stay(all: &[Waiting]) -> usize {
        let gone: Vec<bool> = all.iter().map(must_go).collect();
        let stay = gone.iter().filter(|gone| !**gone).count();
        assert!(gone[all.len() - stay..].iter().all(|gone| !gone), "the oldest go: {gone:?}");
        stay
    }

    #[test]
    fn strangers_cannot_take_the_members_places() {
        let door = door();
        let mut kept = Vec::new();
        for last in 100..=200 {
            kept.extend(std::iter::repeat_with(|| Waiting::enter(&door, address(last)).0).take(9));
        }
        assert_eq!(door.lock().strangers, MAX_STRANGERS);
        let (member, gone) = Waiting::enter(&door, address(66));
        assert!(gone.is_none() && !must_go(&member), "a member has a place of its own");
        for last in 100..=200 {
            kept.push(Waiting::enter(&door, address(last)).0);
        }
        assert!(!must_go(&member), "and keeps it");
    }

    /// A member that is no member by its address: it has a host name, or comes through NAT.
    #[test]
    fn a_newcomer_finds_a_place_and_those_with_many_make_room() {
        let door = door();
        let mut silent = Vec::new();
        for last in 1..=8 {
            silent.extend(std::iter::repeat_with(|| Waiting::enter(&door, address(last)).0).take(8));
        }
        assert_eq!(stay(&silent), MAX_STRANGERS);
        let (member, gone) = Waiting::enter(&door, address(99));
        assert!(gone.is_some() && must_go(&silent[0]), "the oldest of those who have most");
        // They come again and again, while the member is still busy with its handshake.
        for n in 0..250 {
            silent.push(Waiting::enter(&door, address(n % 8 + 1)).0);
        }
        assert!(!must_go(&member), "they drive out each other");
        assert_eq!(door.lock().strangers, MAX_STRANGERS);
    }

    #[test]
    fn with_one_from_each_address_the_oldest_goes() {
        let door = door();
        let all: Vec<Waiting> = (0..80).map(|last| Waiting::enter(&door, address(last)).0).collect();
        // One of them is the member's.
        assert_eq!(stay(&all[16..]), 64);
        assert!(!must_go(&all[66]) && door.lock().strangers == MAX_STRANGERS);
    }

    #[test]
    fn one_address_has_few_places_and_gets_them_back() {
        let door = door();
        let mut all: Vec<Waiting> = (0..9).map(|_| Waiting::enter(&door, address(9)).0).collect();
        assert_eq!(stay(&all), MAX_PER_ADDRESS);
        assert!(Waiting::enter(&door, address(10)).1.is_none(), "another address is not affected");
        all.pop();
        assert!(Waiting::enter(&door, address(9)).1.is_none());
        drop(all);
        let door = door.lock();
        assert!(door.waiting.is_empty() && door.strangers == 0, "{door:?}");
    }

    #[test]
    fn the_newcomer_waits_until_the_other_has_left() {
        let door = door();
        let mut all: Vec<Waiting> = (0..8).map(|_| Waiting::enter(&door, address(9)).0).collect();
        let left = Waiting::enter(&door, address(9)).1.unwrap().has_left();
        let mut left = std::pin::pin!(left);
        let mut poll = || left.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll(), Poll::Pending);
        drop(all.remove(0));
        assert_eq!(poll(), Poll::Ready(()));
    }

    #[test]
    fn a_mapped_address_is_the_same_address() {
        let door = door();
        let mapped: IpAddr = "::ffff:192.168.31.66".parse().unwrap();
        assert_eq!(door.lock().members_at(mapped), [3]);
        let all: Vec<Waiting> = (0..MAX_PER_MEMBER).map(|_| Waiting::enter(&door, mapped).0).collect();
        let more = Waiting::enter(&door, address(66));
        assert!(more.1.is_some() && must_go(&all[0]));
    }

    #[test]
    fn half_of_an_ipv6_address_says_whose_it_is() {
        let at = |ip: &str| ip.parse::<IpAddr>().unwrap();
        let door = Arc::new(Mutex::new(Door::new([(at("2001:db8::66"), vec![3])].into())));
        let host = |n: usize| Waiting::enter(&door, at(&format!("2001:db8::1:{n:x}")));
        let all: Vec<Waiting> = (0..MAX_PER_ADDRESS).map(|n| host(n).0).collect();
        assert!(host(99).1.is_some() && must_go(&all[0]));
        assert!(Waiting::enter(&door, at("2001:db8:0:1::1")).1.is_none(), "another network");
        assert!(Waiting::enter(&door, at("2001:db8::66")).1.is_none(), "a member there has its own places");
    }
}
