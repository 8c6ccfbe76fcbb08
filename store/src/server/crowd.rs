//! The connections of clients, all together: who comes in when there is no place left, and who goes for it.
//!
//! A full house must not shut out the operator who comes to see why. So a connection on which nobody waits for
//! anything gives its place to a new one: first those that never asked for anything, oldest first, then those kept
//! for another request. Only when all are at work is a new one turned away. Watches are work, which is why
//! they may have only a part of the places ([`super::limits::Limits`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::pulse::Pulse;

/// The most that are on their way out at one time.
pub(super) const MAX_LEAVING: usize = 64;

/// A connection as the others see it.
#[derive(Debug)]
pub(super) struct Guest {
    /// What it does.
    pub(super) pulse: Mutex<Pulse>,
    /// Told when it has to go.
    pub(super) leave: Notify,
    /// Told when its deadline has come nearer.
    pub(super) hurry: Notify,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Crowd {
    places: usize,
    inner: Mutex<Inner>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    guests: BTreeMap<u64, Arc<Guest>>,
    /// Told to go, but still here.
    leaving: BTreeMap<u64, Arc<Guest>>,
    next: u64,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    /// Whose place it is.
    pub(super) guest: Arc<Guest>,
}

impl Crowd {
    /// Nobody is there yet.
    pub(super) fn new(places: usize) -> Arc<Crowd> {
        Arc::new(Crowd { places, inner: Mutex::default(), left: Notify::new() })
    }

    /// How many may be there at one time, apart from [`Crowd::batch`] that are just leaving.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// So many may be on their way out: enough that not every newcomer looks through all, and few enough for the
    /// descriptors that they still hold.
    fn batch(&self) -> usize {
        (self.places / 16).clamp(1, MAX_LEAVING)
    }

    /// Waits until a place is given back; at once if nobody is on the way out.
    pub(super) async fn someone_has_left(&self) {
        let left = self.left.notified();
        if !self.inner.lock().leaving.is_empty() {
            left.await;
        }
    }

    /// Takes a place for a connection; `None` when all are at work. The number says how many had to go for it.
    pub(super) fn enter(self: &Arc<Crowd>, pulse: Pulse) -> Option<(Place, usize)> {
        let mut inner = self.inner.lock();
        let mut gone = 0;
        if inner.guests.len() >= self.places {
            gone = inner.make_room(self.batch());
        }
        if inner.guests.len() >= self.places {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let guest = Arc::new(Guest { pulse: Mutex::new(pulse), leave: Notify::new(), hurry: Notify::new() });
        inner.guests.insert(id, Arc::clone(&guest));
        Some((Place { crowd: Arc::clone(self), id, guest }, gone))
    }
}

impl Inner {
    /// Tells those to go who are missed least; never more than `batch` are on their way out.
    fn make_room(&mut self, batch: usize) -> usize {
        let mut spare: Vec<_> = self
            .guests
            .iter()
            .filter_map(|(id, guest)| guest.pulse.lock().spare().map(|rank| (rank, *id)))
            .collect();
        spare.sort_unstable();
        spare.truncate(batch.saturating_sub(self.leaving.len()));
        for (_, id) in &spare {
            if let Some(guest) = self.guests.remove(id) {
                guest.leave.notify_one();
                self.leaving.insert(*id, guest);
            }
        }
        spare.len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.crowd.inner.lock();
        if inner.guests.remove(&self.id).is_none() {
            inner.leaving.remove(&self.id);
        }
        drop(inner);
        self.crowd.left.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::handle::now;

    /// A full house, in which the one that entered as number n has been quiet for n seconds less than the first.
    fn full(places: usize) -> (Arc<Crowd>, Vec<Place>) {
        let (crowd, start) = (Crowd::new(places), now());
        let enter = |n| {
            let at = start + Duration::from_secs(n as u64);
            crowd.enter(Pulse::new(at, false)).unwrap().0
        };
        let places = (0..places).map(enter).collect();
        (crowd, places)
    }

    fn is_told(place: &Place) -> bool {
        place.crowd.inner.lock().leaving.contains_key(&place.id)
    }

    #[test]
    fn the_oldest_that_asked_for_nothing_goes_first() {
        let (crowd, places) = full(3);
        for (n, place) in places.iter().enumerate() {
            let mut pulse = place.guest.pulse.lock();
            if n != 1 {
                pulse.begin();
                pulse.end(now());
            }
        }
        let (place, gone) = crowd.enter(Pulse::new(now(), false)).unwrap();
        assert_eq!(gone, 1);
        assert_eq!(places.iter().map(is_told).collect::<Vec<_>>(), [false, true, false]);
        assert!(crowd.enter(Pulse::new(now(), false)).is_none(), "one at a time: the first has not left");
        drop(place);
        drop(places);
        let inner = crowd.inner.lock();
        assert!(inner.guests.is_empty() && inner.leaving.is_empty(), "{inner:?}");
    }

    #[test]
    fn nobody_at_work_is_told_to_go() {
        let (crowd, places) = full(200);
        for place in &places {
            place.guest.pulse.lock().begin();
        }
        assert!(crowd.enter(Pulse::new(now(), false)).is_none());
        places[7].guest.pulse.lock().end(now());
        assert!(crowd.enter(Pulse::new(now(), false)).is_some());
        assert_eq!(places.iter().filter(|place| is_told(place)).count(), 1);
        assert!(is_told(&places[7]));
    }

    #[test]
    fn room_is_made_for_several_at_once_and_never_for_more() {
        let (crowd, mut places) = full(160);
        let mut inside = Vec::new();
        for n in 0..10 {
            let (place, gone) = crowd.enter(Pulse::new(now() + Duration::from_secs(9999), false)).unwrap();
            assert_eq!(gone, if n == 0 { 10 } else { 0 });
            inside.push(place);
        }
        assert!(crowd.enter(Pulse::new(now(), false)).is_none(), "ten are still on their way out");
        assert_eq!(places.iter().map(is_told).filter(|told| *told).count(), 10);
        places.drain(..10);
        assert!(crowd.enter(Pulse::new(now(), false)).is_some());
    }
}
