#![allow(clippy::unwrap_used, reason = "tests")]

//! The state machine: etcd's first index, snapshots, digests, and states that are compared.

use super::*;
use crate::membership::Member;

fn cluster() -> Membership {
    Membership::bootstrap(
        (1..=3).map(|n| Member::bootstrap(&format!("n{n}"), &[format!("http://h{n}:2380")], "t")).collect(),
    )
}

fn apply(machine: &mut Machine, command: Command) -> Applied {
    let id = RequestId { member: 1, number: machine.applied.index };
    let position = Position { index: machine.applied.index + 1, term: 2 };
    machine.apply(position, &Envelope { id, command }.encode()).unwrap().unwrap()
}

/// etcd's index after n joins, n publishes and the version is 2n + 1.
#[test]
fn the_first_user_write_of_three_members_gets_index_8() {
    let mut machine = Machine::bootstrap(cluster());
    assert_eq!(machine.applied, Position { index: 3, term: 1 });
    for id in machine.membership.ids() {
        let client_urls = vec![format!("http://c{id}:2379")];
        apply(&mut machine, Command::Publish { member: id, name: "n".into(), client_urls });
    }
    apply(&mut machine, Command::SetClusterVersion("3.2.0".into()));
    assert_eq!(machine.tree.index(), 7);
    let applied = apply(&mut machine, Command::V2(set("/1/a".into(), "1".into())));
    assert_eq!(applied.result.unwrap().outcomes()[0].event.index(), 8);
    assert_eq!(machine.membership.client_urls().len(), 3);
}

#[test]
fn an_unreadable_entry_changes_nothing() {
    let mut machine = Machine::bootstrap(cluster());
    let before = machine.snapshot();
    assert!(machine.apply(Position { index: 4, term: 2 }, &[7]).is_err());
    assert_eq!(machine.snapshot(), before);
}

/// An entry of an earlier version lets everything expire that is due, and one of this version what it says.
#[test]
fn entries_give_what_they_gave_when_they_were_written() {
    let due = || {
        let mut machine = Machine::bootstrap(cluster());
        for n in 0..5 {
            let (path, value) = (format!("/1/{n}"), String::new());
            let op = Op::Set { path, dir: false, value, expires_ns: Some(n), refresh: false };
            apply(&mut machine, Command::V2(op));
        }
        machine
    };
    // Command::Sync { now_ns: 1_000_000_000 }, and Command::Expire with 2 besides.
    let sync = [1, 7, 9, 3, 0x80, 0xa8, 0xd6, 0xb9, 0x07];
    let expire = [1, 7, 9, 6, 0x80, 0xa8, 0xd6, 0xb9, 0x07, 2];
    for (entry, gone) in [(&sync[..], 5), (&expire[..], 2)] {
        let mut machine = due();
        let position = Position { index: machine.applied.index + 1, term: 2 };
        let applied = machine.apply(position, entry).unwrap().unwrap();
        assert_eq!(applied.result.unwrap().outcomes().len(), gone);
    }
}

fn write(key: &str, value: &str) -> Command {
    Command::V2(set(format!("/1/{key}"), value.to_owned()))
}

/// The machines of some members, and what each says when a check is applied.
fn check(members: &mut [Machine], leader: usize) -> Vec<Verdict> {
    let command = members[leader].checks.next().expect("there is something to compare");
    let verdicts = members.iter_mut().map(|machine| match apply(machine, command.clone()).result {
        Ok(Done::Checked(verdict)) => verdict,
        other => panic!("{other:?}"),
    });
    verdicts.collect()
}

fn three() -> [Machine; 3] {
    [cluster(), cluster(), cluster()].map(Machine::bootstrap)
}

#[test]
fn a_divergence_is_found_at_the_next_comparison_and_nothing_else_is() {
    let mut members = three();
    for n in 0..20 {
        apply_all(&mut members, &write("k", &n.to_string()));
        let all = check(&mut members, n % 3);
        assert!(all.iter().all(|verdict| *verdict == if n == 0 { Verdict::Unknown } else { Verdict::Equal }));
    }
    // One node of one member, past the log; the mark that was made before is still equal.
    members[1].tree.apply(&set("/1/other".to_owned(), "x".to_owned())).unwrap();
    apply_all(&mut members, &write("k", "20"));
    assert_eq!(check(&mut members, 0), [Verdict::Equal; 3]);
    let found = check(&mut members, 0);
    assert_eq!((found[0], found[2]), (Verdict::Equal, Verdict::Equal));
    let Verdict::Differs(mismatch) = found[1] else { panic!("{found:?}") };
    assert!(mismatch.own != mismatch.leader && mismatch.index + 1 == members[0].applied.index);
    let me = members[1].membership.ids()[1];
    let news = members[1].checks.news(me, &members[1].alarms).expect("it says so");
    assert!(members[0].checks.news(me, &members[0].alarms).is_none());
    apply_all(&mut members, &news);
    for machine in &members {
        assert_eq!(machine.alarms.get(me, AlarmKind::Corrupt), Some(mismatch.to_string().as_str()));
    }
    assert!(members[1].checks.news(me, &members[1].alarms).is_none(), "said once");
}

#[test]
fn checks_end_when_the_last_change_has_been_compared() {
    let mut members = three();
    assert!(members[0].checks.next().is_none(), "nothing has happened");
    apply_all(&mut members, &write("k", "v"));
    assert_eq!(check(&mut members, 0), [Verdict::Unknown; 3]);
    assert_eq!(check(&mut members, 0), [Verdict::Equal; 3]);
    assert!(members.iter().all(|machine| machine.checks.next().is_none()));
}

fn apply_all(members: &mut [Machine], command: &Command) {
    for machine in members {
        apply(machine, command.clone());
    }
}

/// It starts from its image or the leader's snapshot, and has no marks of before.
#[test]
fn a_member_that_started_anew_compares_from_its_own_first_check_on() {
    let mut members = three();
    apply_all(&mut members, &write("k", "v"));
    check(&mut members, 0);
    members[2] = Machine::from_snapshot(&members[0].snapshot()).unwrap();
    apply_all(&mut members, &write("k", "w"));
    assert_eq!(check(&mut members, 0), [Verdict::Equal, Verdict::Equal, Verdict::Unknown]);
    assert_eq!(check(&mut members, 2), [Verdict::Equal; 3], "also when it leads");
}

#[test]
fn an_alarm_stays_until_its_member_has_started_anew_and_is_equal_again() {
    let mut members = three();
    let me = members[1].membership.ids()[1];
    let raise =
        Command::Alarm { member: me, kind: AlarmKind::Corrupt, raise: true, text: "differs".to_owned() };
    apply_all(&mut members, &raise);
    assert!(matches!(apply(&mut members[0], raise.clone()).result, Ok(Done::Ignored)), "raised already");
    apply(&mut members[1], raise.clone());
    apply(&mut members[2], raise);
    members[1].checks.check(
        Some(Mark { index: 7, digest: Digest::default() }),
        Mark { index: 8, digest: members[1].digest() },
    );
    assert!(members[1].checks.news(me, &members[1].alarms).is_none(), "nothing has been compared");
    check(&mut members, 0);
    apply_all(&mut members, &write("k", "v"));
    check(&mut members, 0);
    let news = members[1].checks.news(me, &members[1].alarms).expect("equal in a new run");
    apply_all(&mut members, &news);
    assert!(members.iter().all(|machine| machine.alarms.is_empty()));
    let stranger = Command::Alarm { member: 99, kind: AlarmKind::NoSpace, raise: true, text: String::new() };
    assert!(matches!(apply(&mut members[0], stranger).result, Ok(Done::Ignored)));
}

/// Everything that is replicated is in the digest; what is a member's own is not.
#[test]
fn the_digest_tells_every_part_of_the_state_apart() {
    let change: [fn(&mut Machine); 8] = [
        |machine| machine.applied.index += 1,
        |machine| machine.applied.term += 1,
        |machine| machine.membership.version.push('x'),
        |machine| machine.membership.cluster_id += 1,
        |machine| machine.alarms.raise(1, AlarmKind::NoSpace, String::new()),
        |machine| drop(machine.tree.apply(&set("/1/k".to_owned(), String::new()))),
        |machine| {
            let path = "/1/t".to_owned();
            let op = Op::Set { path, dir: false, value: "v".into(), expires_ns: Some(2), refresh: false };
            drop(machine.tree.apply(&op));
        },
        // Two changes that leave no node behind: index and history alone differ.
        |machine| {
            drop(machine.tree.apply(&set("/1/gone".to_owned(), String::new())));
            drop(machine.tree.apply(&Op::Delete { path: "/1/gone".into(), dir: false, recursive: false }));
        },
    ];
    let mut base = Machine::bootstrap(cluster());
    let op =
        Op::Set { path: "/1/t".into(), dir: false, value: "v".into(), expires_ns: Some(1), refresh: false };
    base.tree.apply(&op).unwrap();
    let snapshot = base.snapshot();
    let mut seen = std::collections::BTreeSet::from([base.digest()]);
    for change in change {
        let mut machine = Machine::from_snapshot(&snapshot).unwrap();
        assert_eq!(machine.digest(), base.digest());
        machine.checks.check(None, Mark { index: 1, digest: Digest::default() });
        assert_eq!(machine.digest(), base.digest());
        change(&mut machine);
        seen.insert(machine.digest());
    }
    assert_eq!(seen.len(), 9);
}

/// Members of two versions compare it, and images keep it.
#[test]
fn the_digest_stays() {
    let mut machine = Machine::bootstrap(cluster());
    apply(&mut machine, write("k", "v"));
    assert_eq!(machine.digest().to_string(), "db860a6a8509b28fe2c36ae4082b70d3");
}

#[test]
fn a_snapshot_whose_state_was_changed_is_refused() {
    let mut machine = Machine::bootstrap(cluster());
    apply(&mut machine, write("key", "a rare value"));
    let mut data = machine.snapshot();
    let at = data.windows(12).rposition(|bytes| bytes == b"a rare value").unwrap();
    data[at] = b'b';
    assert!(matches!(Machine::from_snapshot(&data), Err(SnapshotError::Digest { .. })));
}
