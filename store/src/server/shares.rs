//! Memory for the larger forms and answers of all clients together.
//!
//! It is divided twice, so that one client cannot keep the others from theirs however it goes about it: by size into
//! lanes, as whoever wants little must not wait for those who have much; and within a lane by address, of which none
//! has all. What is larger than every lane goes alone, one at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::host::host;
use super::limits::OWN_BYTES;

/// What is counted in.
const UNIT: usize = 4 << 10;

/// Bytes that many may hold together.
#[derive(Debug)]
pub(super) struct Room {
    lanes: Vec<Lane>,
}

/// The place of those up to some size.
#[derive(Debug)]
struct Lane {
    largest: usize,
    units: Arc<Semaphore>,
    limit: usize,
    /// The most of it for one address.
    each: usize,
    addresses: Mutex<BTreeMap<IpAddr, Weak<Semaphore>>>,
}

/// A [`Room`] as one client sees it.
#[derive(Debug, Clone)]
pub(super) struct ClientRoom {
    room: Arc<Room>,
    address: IpAddr,
}

/// A part of a [`Room`], given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Share {
    held: Option<Held>,
    bytes: usize,
}

#[derive(Debug)]
struct Held {
    lane: usize,
    units: usize,
    of_lane: OwnedSemaphorePermit,
    of_address: OwnedSemaphorePermit,
}

impl Share {
    /// Whether it takes nothing from the room.
    pub(super) fn is_none(&self) -> bool {
        self.held.is_none()
    }
}

impl Room {
    /// An empty one with lanes of those up to a size and of so many bytes, the smaller first. What is larger than the
    /// last of these sizes goes alone.
    pub(super) fn new(lanes: &[(usize, usize)]) -> Arc<Room> {
        let alone = Lane::new(usize::MAX, 1, 1);
        let lane = |&(largest, bytes): &(usize, usize)| Lane::new(largest, bytes / UNIT, bytes / UNIT / 4);
        Arc::new(Room { lanes: lanes.iter().map(lane).chain([alone]).collect() })
    }

    /// What a client at `address` may do with it.
    pub(super) fn of(self: &Arc<Room>, address: IpAddr) -> ClientRoom {
        ClientRoom { room: Arc::clone(self), address: host(address) }
    }

    /// The lane for so many bytes and what they count for there; `None` for what everyone may have.
    fn lane(&self, bytes: usize) -> Option<(usize, usize)> {
        if bytes <= OWN_BYTES {
            return None;
        }
        // The last one takes all.
        let lane = self.lanes.iter().position(|lane| bytes <= lane.largest)?;
        Some((lane, bytes.div_ceil(UNIT).min(self.lanes[lane].limit)))
    }
}

impl Lane {
    fn new(largest: usize, limit: usize, each: usize) -> Lane {
        let units = Arc::new(Semaphore::new(limit));
        Lane { largest, units, limit, each, addresses: Mutex::default() }
    }

    /// What is left for an address.
    fn of(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut addresses = self.addresses.lock();
        if let Some(units) = addresses.get(&address).and_then(Weak::upgrade) {
            return units;
        }
        addresses.retain(|_, units| units.strong_count() > 0);
        let units = Arc::new(Semaphore::new(self.each));
        addresses.insert(address, Arc::downgrade(&units));
        units
    }

    /// Units of the lane as units of one address: no more than it may have, so that each can have any one thing.
    fn permits(&self, units: usize) -> (u32, u32) {
        let permits = |units| u32::try_from(units).unwrap_or(u32::MAX);
        (permits(units), permits(units.min(self.each)))
    }
}

impl ClientRoom {
    /// Makes it a share of at least `bytes`, if there is room for that now.
    pub(super) fn grow(&self, share: &mut Share, bytes: usize) -> bool {
        if let Some((number, units)) = self.room.lane(bytes).filter(|_| bytes > share.bytes) {
            let lane = &self.room.lanes[number];
            let (has, held) = match &mut share.held {
                Some(held) if held.lane == number => (held.units, Some(held)),
                _ => (0, None),
            };
            let ((all, own), (had, had_own)) = (lane.permits(units), lane.permits(has));
            let Ok(of_address) = lane.of(self.address).try_acquire_many_owned(own - had_own) else {
                return false;
            };
            let Ok(of_lane) = Arc::clone(&lane.units).try_acquire_many_owned(all - had) else { return false };
            if let Some(held) = held {
                held.of_address.merge(of_address);
                held.of_lane.merge(of_lane);
                held.units = units;
            } else {
                share.held = Some(Held { lane: number, units, of_lane, of_address });
            }
        }
        share.bytes = share.bytes.max(bytes);
        true
    }

    /// A share of `bytes`, as soon as there is room for it.
    pub(super) async fn share(&self, bytes: usize) -> Share {
        let Some((number, units)) = self.room.lane(bytes) else { return Share { held: None, bytes } };
        let lane = &self.room.lanes[number];
        let (all, own) = lane.permits(units);
        // Its own first: who has too much already does not stand in the others' way. Neither is ever closed.
        let of_address = lane.of(self.address).acquire_many_owned(own).await;
        let of_lane = Arc::clone(&lane.units).acquire_many_owned(all).await;
        let held = of_address.ok().zip(of_lane.ok());
        let held = held.map(|(of_address, of_lane)| Held { lane: number, units, of_lane, of_address });
        Share { held, bytes }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;
    use std::task::{Context, Waker};

    use super::*;

    const KIB: usize = 1 << 10;

    /// 64 KiB for those up to 32 KiB, of which each address has 16 KiB at most or one; 1 MiB up to 256 KiB.
    fn room() -> Arc<Room> {
        Room::new(&[(32 * KIB, 64 * KIB), (256 * KIB, 1024 * KIB)])
    }

    fn client(room: &Arc<Room>, number: u8) -> ClientRoom {
        room.of(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)))
    }

    fn taken(client: &ClientRoom, bytes: usize) -> Option<Share> {
        let mut share = Share::default();
        client.grow(&mut share, bytes).then_some(share)
    }

    #[test]
    fn small_ones_need_no_room() {
        let room = room();
        let full: Vec<Share> = (0..2).map(|n| taken(&client(&room, n), 32 * KIB).unwrap()).collect();
        let (other, mut small) = (client(&room, 9), Share::default());
        assert!(other.grow(&mut small, OWN_BYTES) && small.is_none());
        assert!(!other.grow(&mut small, OWN_BYTES + 1), "the lane is full");
        drop(full);
        assert!(other.grow(&mut small, OWN_BYTES + 1) && !small.is_none());
    }

    #[test]
    fn one_address_does_not_get_all() {
        let room = room();
        let greedy = client(&room, 1);
        let held: Vec<Share> = std::iter::from_fn(|| taken(&greedy, 256 * KIB)).collect();
        assert_eq!(held.len(), 1);
        assert!(taken(&greedy, 32 * KIB).is_some(), "the lanes are apart");
        assert!(taken(&client(&room, 2), 256 * KIB).is_some());
        drop(held);
        assert!(taken(&greedy, 256 * KIB).is_some());
    }

    #[test]
    fn addresses_are_forgotten_and_a_network_is_one() {
        let room = room();
        for number in 0..200 {
            drop(taken(&client(&room, number), 32 * KIB).unwrap());
        }
        assert_eq!(room.lanes[0].addresses.lock().len(), 1);
        let v6 = |text: &str| room.of(text.parse().unwrap());
        let held = taken(&v6("2001:db8::1"), 20 * KIB).unwrap();
        assert!(taken(&v6("2001:db8::2"), 20 * KIB).is_none(), "the same network");
        assert!(taken(&v6("2001:db8:0:1::1"), 20 * KIB).is_some());
        assert!(taken(&v6("::ffff:192.0.2.7"), 20 * KIB).is_some());
        drop(held);
    }

    #[test]
    fn a_share_grows_by_the_difference_through_the_lanes_and_is_given_back_whole() {
        let room = room();
        let (client, mut share) = (client(&room, 1), Share::default());
        for kib in 1..=300 {
            assert!(client.grow(&mut share, kib * KIB), "{kib}");
        }
        assert!(client.grow(&mut share, 1 << 30), "what goes alone goes however large it is");
        let left =
            |room: &Room| room.lanes.iter().map(|lane| lane.units.available_permits()).collect::<Vec<_>>();
        assert_eq!(left(&room), [16, 256, 0]);
        drop(share);
        assert_eq!(left(&room), [16, 256, 1]);
    }

    #[tokio::test]
    async fn who_waits_has_waited_for_both() {
        let room = room();
        let (first, second) = (client(&room, 1), client(&room, 2));
        let alone = first.share(1 << 30).await;
        let mut waiting = std::pin::pin!(second.share(1 << 20));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        drop(first.share(200 * KIB).await);
        drop(alone);
        let share = waiting.await;
        assert!(taken(&first, 1 << 20).is_none());
        drop(share);
        assert!(taken(&first, 1 << 20).is_some());
    }
}
