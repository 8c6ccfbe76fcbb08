//! The lease's life, table by table, and against a model of the store.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(TTL_S);
const HOUR: Duration = Duration::from_secs(3600);

fn mac(n: u8) -> VtepMac {
    VtepMac::locally_administered([2, 0, 0, 0, 0, n])
}

fn subnet(n: u8) -> Subnet {
    Subnet::new([172, 17, n, 0].into(), 24).unwrap()
}

fn value(host: u8) -> LeaseValue {
    LeaseValue::vxlan([10, 99, 0, host].into(), mac(host))
}

fn lease(n: u8, host: u8, index: u64) -> Lease {
    Lease { subnet: subnet(n), value: value(host), ttl_s: Some(TTL_S), modified_index: index }
}

fn settings(host: u8) -> Settings {
    Settings {
        value: value(host),
        mac: mac(host),
        network: "172.17.0.0/16".parse().unwrap(),
        range: Range { min: [172, 17, 1, 0].into(), max: [172, 17, 255, 0].into(), len: 24 },
        previous: None,
        renew_margin: HOUR,
        seed: 7,
    }
}

/// The first request that follows a listing of `leases`.
fn after_listing(settings: Settings, leases: Vec<Lease>) -> Result<Request, LeaseError> {
    let mut keeper = Keeper::new(settings);
    assert_eq!(keeper.poll_request(), Some(Request::List));
    assert_eq!(keeper.poll_request(), None, "one at a time");
    keeper.handle_reply(Reply::Listed(leases), Instant::now())?;
    Ok(keeper.poll_request().unwrap())
}

/// A keeper that holds subnet 5 at index 10 since `now`.
fn holding(now: Instant, ttl_s: Option<u64>) -> Keeper {
    let mut keeper = Keeper::new(settings(1));
    keeper.poll_request();
    keeper.handle_reply(Reply::Listed(vec![lease(5, 1, 9)]), now).unwrap();
    assert!(matches!(keeper.poll_request(), Some(Request::Update { prev_index: 9, .. })));
    keeper.handle_reply(Reply::Written { modified_index: 10, ttl_s }, now).unwrap();
    assert_eq!(keeper.held().unwrap().subnet, subnet(5));
    keeper
}

#[test]
fn our_own_lease_is_reused_and_a_reservation_stays_one() {
    let request = after_listing(settings(1), vec![lease(3, 2, 4), lease(5, 1, 9)]);
    assert_eq!(request, Ok(Request::Update { subnet: subnet(5), prev_index: 9, ttl_s: Some(TTL_S) }));
    let reservation = Lease { ttl_s: None, ..lease(5, 1, 9) };
    let request = after_listing(settings(1), vec![reservation]);
    assert_eq!(request, Ok(Request::Update { subnet: subnet(5), prev_index: 9, ttl_s: None }));
}

#[test]
fn of_several_own_leases_the_previous_one_is_kept() {
    let with_previous = Settings { previous: Some(subnet(8)), ..settings(1) };
    let request = after_listing(with_previous, vec![lease(5, 1, 9), lease(8, 1, 3)]);
    assert!(matches!(request, Ok(Request::Update { prev_index: 3, .. })));
}

#[test]
fn an_own_lease_that_does_not_fit_is_deleted_and_the_list_read_again() {
    let mut keeper = Keeper::new(settings(1));
    keeper.poll_request();
    let odd = Lease { subnet: "172.17.4.0/22".parse().unwrap(), ..lease(4, 1, 9) };
    keeper.handle_reply(Reply::Listed(vec![odd.clone()]), Instant::now()).unwrap();
    assert_eq!(keeper.poll_request(), Some(Request::Delete { subnet: odd.subnet, prev_index: 9 }));
    // Gone already: flannel v0.10 dies here.
    keeper.handle_reply(Reply::Gone, Instant::now()).unwrap();
    assert_eq!(keeper.poll_request(), Some(Request::List));
}

#[test]
fn the_previous_subnet_is_taken_when_free() {
    let previous = Settings { previous: Some(subnet(77)), ..settings(1) };
    assert_eq!(after_listing(previous.clone(), vec![lease(5, 2, 3)]), Ok(Request::Create(subnet(77))));
    let outside = Settings { previous: Some("10.0.0.0/24".parse().unwrap()), ..settings(1) };
    assert!(matches!(after_listing(outside, vec![]), Ok(Request::Create(s)) if settings(1).range.fits(s)));
}

#[test]
fn another_hosts_live_subnet_is_never_stolen_through_the_file() {
    let previous = Settings { previous: Some(subnet(5)), ..settings(1) };
    let request = after_listing(previous, vec![lease(5, 2, 3)]).unwrap();
    assert!(matches!(request, Request::Create(s) if s != subnet(5)), "{request:?}");
}

#[test]
fn a_lease_outside_the_network_takes_nothing_away() {
    let odd = Lease { subnet: "0.0.0.0/0".parse().unwrap(), ..lease(0, 2, 3) };
    assert!(matches!(after_listing(settings(1), vec![odd.clone()]), Ok(Request::Create(_))));
    let previous = Settings { previous: Some(subnet(5)), ..settings(1) };
    assert_eq!(after_listing(previous, vec![odd]), Ok(Request::Create(subnet(5))));
}

#[test]
fn a_host_whose_address_changed_keeps_its_subnet_by_its_mac() {
    let previous = Settings { previous: Some(subnet(5)), ..settings(1) };
    let mut old = lease(5, 1, 3);
    old.value.public_ip = [10, 99, 0, 200].into();
    let request = after_listing(previous, vec![old]);
    assert_eq!(request, Ok(Request::Update { subnet: subnet(5), prev_index: 3, ttl_s: Some(TTL_S) }));
}

#[test]
fn nothing_free_is_fatal_and_so_are_ten_lost_races() {
    let full = Lease { subnet: "172.17.0.0/16".parse().unwrap(), ..lease(0, 2, 3) };
    assert_eq!(after_listing(settings(1), vec![full]), Err(LeaseError::OutOfSubnets));

    let mut keeper = Keeper::new(settings(1));
    let mut tried = Vec::new();
    let error = loop {
        let reply = match keeper.poll_request().unwrap() {
            Request::List => Reply::Listed(vec![]),
            Request::Create(subnet) => {
                tried.push(subnet);
                Reply::Conflict
            }
            other => panic!("{other:?}"),
        };
        if let Err(error) = keeper.handle_reply(reply, Instant::now()) {
            break error;
        }
    };
    assert_eq!((error, tried.len()), (LeaseError::MaxRetries, 10));
    tried.sort_unstable();
    tried.dedup();
    assert!(tried.len() > 3, "each round draws anew");
}

#[test]
fn a_lost_answer_is_looked_up_after_a_pause_and_a_refusal_is_final() {
    let now = Instant::now();
    let mut keeper = Keeper::new(settings(1));
    keeper.poll_request();
    keeper.handle_reply(Reply::Listed(vec![]), now).unwrap();
    assert!(matches!(keeper.poll_request(), Some(Request::Create(_))));
    keeper.handle_reply(Reply::Unavailable("timed out".into()), now).unwrap();
    assert_eq!((keeper.poll_request(), keeper.poll_timeout()), (None, Some(now + RETRY_FIRST)));
    keeper.handle_timeout(now + RETRY_FIRST);
    assert_eq!(keeper.poll_request(), Some(Request::List));
    assert!(keeper.handle_reply(Reply::Refused("110: no".into()), now).is_err());
}

#[test]
fn renewal_comes_a_margin_before_expiry() {
    let now = Instant::now();
    let mut keeper = holding(now, Some(TTL_S));
    let due = now + DAY - HOUR;
    assert_eq!(keeper.poll_timeout(), Some(due));
    keeper.handle_timeout(due - Duration::from_millis(1));
    assert_eq!(keeper.poll_request(), None);
    keeper.handle_timeout(due);
    let renewal = Request::Update { subnet: subnet(5), prev_index: 10, ttl_s: Some(TTL_S) };
    assert_eq!(keeper.poll_request(), Some(renewal));
    keeper.handle_reply(Reply::Written { modified_index: 20, ttl_s: Some(TTL_S) }, due).unwrap();
    assert_eq!(keeper.poll_timeout(), Some(due + DAY - HOUR));
    assert_eq!(keeper.held().unwrap().modified_index, 20);
}

#[test]
fn a_reservation_is_never_renewed_but_its_loss_is_noticed() {
    let mut keeper = holding(Instant::now(), None);
    assert_eq!(keeper.poll_timeout(), None);
    keeper.handle_seen(Seen::Gone { index: 11 }, Instant::now());
    assert_eq!(keeper.lost(), Some(&Loss::Revoked { subnet: subnet(5) }));
}

#[test]
fn the_store_being_away_backs_off_to_a_minute_and_loses_nothing() {
    let mut now = Instant::now();
    let mut keeper = holding(now, Some(TTL_S));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        now = keeper.poll_timeout().unwrap();
        keeper.handle_timeout(now);
        assert!(matches!(keeper.poll_request(), Some(Request::Update { .. })));
        keeper.handle_reply(Reply::Unavailable("no leader".into()), now).unwrap();
        pauses.push((keeper.poll_timeout().unwrap() - now).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert!(keeper.lost().is_none() && keeper.held().is_some());
}

#[test]
fn a_conflict_at_renewal_is_read_and_judged() {
    let now = Instant::now();
    let renewing = || {
        let mut keeper = holding(now, Some(TTL_S));
        keeper.handle_timeout(now + DAY);
        keeper.poll_request();
        keeper.handle_reply(Reply::Conflict, now + DAY).unwrap();
        assert_eq!(keeper.poll_request(), Some(Request::Read(subnet(5))));
        keeper
    };
    // Ours: our own write whose answer was lost.
    let mut keeper = renewing();
    keeper.handle_reply(Reply::Found(lease(5, 1, 30)), now + DAY).unwrap();
    assert_eq!(keeper.held().unwrap().modified_index, 30);
    // Another's.
    let mut keeper = renewing();
    keeper.handle_reply(Reply::Found(lease(5, 2, 30)), now + DAY).unwrap();
    assert!(matches!(keeper.lost(), Some(Loss::Taken { public_ip, .. }) if *public_ip == value(2).public_ip));
    assert_eq!((keeper.poll_request(), keeper.poll_timeout()), (None, None));
    // Gone, and nonsense.
    for reply in [Reply::Gone, Reply::Unreadable("x".into())] {
        let mut keeper = renewing();
        keeper.handle_reply(reply, now + DAY).unwrap();
        assert!(keeper.lost().is_some());
    }
}

#[test]
fn a_shortened_ttl_renews_at_once_and_an_event_of_the_past_changes_nothing() {
    let now = Instant::now();
    let mut keeper = holding(now, Some(TTL_S));
    keeper.handle_seen(Seen::Gone { index: 10 }, now);
    keeper.handle_seen(Seen::Put(lease(5, 2, 8)), now);
    assert!(keeper.lost().is_none());
    keeper.handle_seen(Seen::Put(Lease { ttl_s: Some(60), ..lease(5, 1, 12) }), now);
    assert_eq!(keeper.poll_timeout(), Some(now + RETRY_FIRST));
    // Made a reservation by hand: no more renewals.
    keeper.handle_seen(Seen::Put(Lease { ttl_s: None, ..lease(5, 1, 13) }), now);
    assert_eq!(keeper.poll_timeout(), None);
}

#[test]
fn a_store_that_went_back_is_asked_for_our_key() {
    let now = Instant::now();
    let behind = |index| {
        let mut keeper = holding(now, Some(TTL_S));
        keeper.handle_seen(Seen::Listed { index }, now);
        keeper.handle_seen(Seen::Gone { index }, now);
        keeper
    };
    // A listing as new as our write needs no question.
    assert_eq!(behind(10).poll_request(), None);
    // A store made anew: the key is gone, which no index could have told.
    let mut keeper = behind(3);
    assert!(keeper.lost().is_none(), "it may be a listing that was under way while we wrote");
    assert_eq!(keeper.poll_request(), Some(Request::Read(subnet(5))));
    keeper.handle_reply(Reply::Gone, now).unwrap();
    assert_eq!(keeper.lost(), Some(&Loss::Revoked { subnet: subnet(5) }));
    // One restored from a backup: ours still, at a lower index, from which the next renewal compares.
    let mut keeper = behind(3);
    keeper.poll_request();
    keeper.handle_reply(Reply::Found(lease(5, 1, 2)), now).unwrap();
    keeper.handle_timeout(now + DAY);
    assert!(matches!(keeper.poll_request(), Some(Request::Update { prev_index: 2, .. })));
    // The store went away again meanwhile: the renewal that is tried next finds out.
    let mut keeper = behind(3);
    keeper.poll_request();
    keeper.handle_reply(Reply::Unavailable("x".into()), now).unwrap();
    keeper.handle_timeout(now + DAY);
    assert!(matches!(keeper.poll_request(), Some(Request::Update { prev_index: 10, .. })));
}

#[test]
fn two_hosts_with_one_address_are_told_apart_by_their_mac() {
    let mut keeper = holding(Instant::now(), Some(TTL_S));
    let mut twin = lease(5, 1, 12);
    twin.value = LeaseValue::vxlan(twin.value.public_ip, mac(99));
    keeper.handle_seen(Seen::Put(twin), Instant::now());
    let text = keeper.lost().unwrap().to_string();
    assert!(text.contains("-public-ip") && text.contains("02:00:00:00:00:63"), "{text}");
}

/// The store as the keeper sees it.
#[derive(Default)]
struct Model {
    index: u64,
    leases: BTreeMap<Subnet, Lease>,
}

impl Model {
    fn write(&mut self, subnet: Subnet, value: &LeaseValue, ttl_s: Option<u64>) -> Reply {
        self.index += 1;
        let lease = Lease { subnet, value: value.clone(), ttl_s, modified_index: self.index };
        self.leases.insert(subnet, lease);
        Reply::Written { modified_index: self.index, ttl_s }
    }

    fn perform(&mut self, request: &Request, value: &LeaseValue) -> Reply {
        match request {
            Request::List => Reply::Listed(self.leases.values().cloned().collect()),
            Request::Create(s) if self.leases.contains_key(s) => Reply::Conflict,
            Request::Create(s) => self.write(*s, value, Some(TTL_S)),
            Request::Update { subnet, prev_index, ttl_s } => match self.leases.get(subnet) {
                None => Reply::Gone,
                Some(l) if l.modified_index != *prev_index => Reply::Conflict,
                Some(_) => self.write(*subnet, value, *ttl_s),
            },
            Request::Delete { subnet, prev_index } => match self.leases.get(subnet) {
                None => Reply::Gone,
                Some(l) if l.modified_index != *prev_index => Reply::Conflict,
                Some(_) => {
                    self.index += 1;
                    self.leases.remove(subnet);
                    Reply::Deleted
                }
            },
            Request::Read(s) => self.leases.get(s).cloned().map_or(Reply::Gone, Reply::Found),
        }
    }
}

proptest! {
    /// Several hosts, requests and replies interleaved at will, some answers lost: no two hosts ever believe they
    /// hold overlapping subnets, and what a host holds is in the store under its name.
    #[test]
    fn no_two_hosts_hold_the_same_subnet(
        schedule in prop::collection::vec((0usize..4, 0u8..10), 0..200), seeds: [u64; 4], previous in 1u8..8, hosts in 2u8..12,
    ) {
        let mut store = Model::default();
        let mut now = Instant::now();
        let mut keepers: Vec<(Keeper, Option<Reply>)> = (0u8..4).map(|i| {
            let range = Range { min: [172, 17, 1, 0].into(), max: [172, 17, hosts, 0].into(), len: 24 };
            let s = Settings { range, previous: Some(subnet(previous)), seed: seeds[usize::from(i)], ..settings(i + 1) };
            (Keeper::new(s), None)
        }).collect();
        for (i, luck) in schedule {
            now += Duration::from_secs(1);
            let (keeper, reply) = &mut keepers[i];
            if let Some(reply) = reply.take() {
                let reply = if luck == 0 { Reply::Unavailable("lost".into()) } else { reply };
                let _ = keeper.handle_reply(reply, now);
            } else {
                keeper.handle_timeout(now);
                if let Some(request) = keeper.poll_request() {
                    // Asked and acted upon now, heard of at this host's next turn.
                    *reply = Some(store.perform(&request, &keeper.value().clone()));
                }
            }
            let held: Vec<Subnet> = keepers.iter().filter_map(|(k, _)| k.held().map(|h| h.subnet)).collect();
            for (n, a) in held.iter().enumerate() {
                prop_assert!(held[n + 1..].iter().all(|b| !a.overlaps(*b)), "{held:?}");
            }
            for (k, _) in &keepers {
                if let Some(h) = k.held() {
                    prop_assert_eq!(&store.leases[&h.subnet].value, k.value());
                }
            }
        }
    }
}
