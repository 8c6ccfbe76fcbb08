#![allow(clippy::unwrap_used, reason = "tests")]

//! Three members in one process on a network and disks that one seed breaks. The long simulation comes with
//! the fault work; this one holds the order of persist, send and apply.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::log::mem::MemLog;
use crate::machine::Position;

/// Small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

const START: Position = Position { index: 3, term: 1 };

struct Member {
    core: Core<MemLog>,
    applied: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
struct Net {
    sent: Vec<Message>,
    installed: Option<Snapshot>,
}

impl Shell for Net {
    fn send(&mut self, messages: Vec<Message>) {
        self.sent.extend(messages);
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        self.installed = Some(snapshot.clone());
        Ok(())
    }
}

struct Cluster {
    members: BTreeMap<u64, Member>,
    wire: Vec<Message>,
    cut: Option<u64>,
    dice: Dice,
    /// What a leader has committed: promised for ever.
    promised: BTreeMap<u64, Vec<u8>>,
    leaders: BTreeMap<u64, u64>,
}

fn core(id: u64, applied: Position, log: MemLog) -> Core<MemLog> {
    let fixed_election_ticks = Some(10 + usize::try_from(id).unwrap() * 2);
    let config = CoreConfig { id, election_ticks: 10, heartbeat_ticks: 1, fixed_election_ticks };
    Core::new(&config, vec![1, 2, 3], applied, log).unwrap()
}

/// The state of these tests: all applied entries, as one text.
fn encode(applied: &[(u64, Vec<u8>)]) -> Vec<u8> {
    serde_json::to_vec(applied).unwrap()
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let member = |id| (id, Member { core: core(id, START, MemLog::default()), applied: Vec::new() });
        Cluster {
            members: [1, 2, 3].into_iter().map(member).collect(),
            wire: Vec::new(),
            cut: None,
            dice: Dice(seed * 2_654_435_761 + 1),
            promised: BTreeMap::new(),
            leaders: BTreeMap::new(),
        }
    }

    fn process(&mut self, id: u64) {
        let member = self.members.get_mut(&id).unwrap();
        let mut net = Net::default();
        while let Some(effects) = member.core.process(&mut net).unwrap() {
            if let Some(snapshot) = net.installed.take() {
                member.applied = serde_json::from_slice(snapshot.get_data()).unwrap();
            }
            for entry in effects.committed {
                assert!(entry.index > member.applied.last().map_or(START.index, |(index, _)| *index));
                let data = entry.data.to_vec();
                let promised = self.promised.entry(entry.index).or_insert_with(|| data.clone());
                assert_eq!(*promised, data, "member {id} applied something else at {}", entry.index);
                member.applied.push((entry.index, data));
                member.core.applied_to(entry.index);
            }
        }
        if member.core.wanted_snapshot().is_some() {
            let index = member.applied.last().map_or(START.index, |(index, _)| *index);
            let term = member.core.log().term(index).unwrap().unwrap_or(START.term);
            member.core.provide_snapshot(Position { index, term }, encode(&member.applied));
        }
        let now = member.core.leadership();
        if now.leads {
            assert_eq!(*self.leaders.entry(now.term).or_insert(id), id, "two leaders in term {}", now.term);
        }
        self.wire.extend(net.sent);
    }

    fn deliver(&mut self) {
        let mut wire = std::mem::take(&mut self.wire);
        while !wire.is_empty() {
            let at = usize::try_from(self.dice.roll(wire.len().min(3) as u64)).unwrap();
            let message = wire.remove(at);
            let lost = self.cut.is_some_and(|cut| message.to == cut || message.from == cut)
                || self.dice.roll(20) == 0;
            let to = message.to;
            let is_snapshot = message.get_msg_type() == raft::eraftpb::MessageType::MsgSnapshot;
            if lost {
                // Whoever sends a snapshot sees that it does not arrive, and must say so.
                if is_snapshot {
                    self.members.get_mut(&message.from).unwrap().core.report_snapshot(to, false);
                }
                continue;
            }
            if self.dice.roll(20) == 0 {
                self.members.get_mut(&to).unwrap().core.step(message.clone()).unwrap();
            }
            let from = message.from;
            self.members.get_mut(&to).unwrap().core.step(message).unwrap();
            self.process(to);
            if is_snapshot {
                self.members.get_mut(&from).unwrap().core.report_snapshot(to, true);
            }
        }
    }

    /// The power of one member fails: what its log had not synced is gone, and its applied state goes back to
    /// an older image.
    fn crash(&mut self, id: u64) {
        let member = &self.members[&id];
        let mut log = member.core.log().clone();
        log.crash();
        let floor = log.truncated().index;
        let kept = usize::try_from(self.dice.roll(member.applied.len() as u64 + 1)).unwrap();
        let mut applied: Vec<(u64, Vec<u8>)> = member.applied[..kept].to_vec();
        if applied.last().map_or(START.index, |(index, _)| *index) < floor {
            applied.clone_from(&member.applied);
        }
        let position = match applied.last() {
            None => START,
            Some((index, _)) => Position { index: *index, term: log.term(*index).unwrap().unwrap() },
        };
        self.members.insert(id, Member { core: core(id, position, log), applied });
    }

    fn round(&mut self, round: u64) {
        for id in [1, 2, 3] {
            self.members.get_mut(&id).unwrap().core.tick();
            if self.dice.roll(3) == 0 {
                let data = |n| Bytes::from(format!("{round}-{id}-{n}"));
                let _ = self.members.get_mut(&id).unwrap().core.propose([data(1), data(2)]);
            }
            self.process(id);
        }
        self.deliver();
        let victim = 1 + self.dice.roll(3);
        match self.dice.roll(40) {
            0 => self.cut = Some(victim),
            1 | 2 => self.cut = None,
            3 => self.crash(victim),
            4 => {
                let member = self.members.get_mut(&victim).unwrap();
                if let Some((index, _)) = member.applied.last() {
                    member.core.compact(*index).unwrap();
                }
            }
            _ => {}
        }
    }
}

#[test]
fn committed_entries_survive_crashes_partitions_and_compaction() {
    for seed in 1..=60 {
        let mut cluster = Cluster::new(seed);
        for round in 0..400 {
            cluster.round(round);
        }
        cluster.cut = None;
        for _ in 0..120 {
            for id in [1, 2, 3] {
                cluster.members.get_mut(&id).unwrap().core.tick();
                cluster.process(id);
            }
            cluster.deliver();
        }
        assert!(cluster.promised.len() > 20, "seed {seed}: hardly any progress ({})", cluster.promised.len());
        let promised: Vec<(u64, Vec<u8>)> = cluster.promised.clone().into_iter().collect();
        let alike = |member: &Member| member.applied.len() + 3 >= promised.len();
        for (id, member) in &cluster.members {
            assert!(alike(member), "seed {seed}: member {id} did not catch up");
            assert_eq!(member.applied, promised[..member.applied.len()], "seed {seed}: member {id}");
        }
    }
}

#[test]
fn a_log_that_begins_after_the_applied_state_is_refused() {
    let config = CoreConfig { id: 1, election_ticks: 10, heartbeat_ticks: 1, fixed_election_ticks: None };
    let log = MemLog::new(Position { index: 9, term: 2 });
    let refused = Core::new(&config, vec![1], START, log).err();
    assert!(matches!(refused, Some(CoreError::Misfit(Misfit::Gap { log: 9, applied: 3 }))));
}

/// A cluster with a leader that everybody follows.
fn led_cluster() -> (Cluster, u64) {
    let mut cluster = Cluster::new(7);
    let leader = (0..100)
        .find_map(|_| {
            for id in [1, 2, 3] {
                cluster.members.get_mut(&id).unwrap().core.tick();
                cluster.process(id);
            }
            cluster.deliver();
            cluster.members.iter().find(|(_, m)| m.core.leadership().leads).map(|(&id, _)| id)
        })
        .unwrap();
    for _ in 0..5 {
        cluster.members.get_mut(&leader).unwrap().core.tick();
        cluster.process(leader);
        cluster.deliver();
    }
    (cluster, leader)
}

#[test]
fn leadership_goes_only_to_whom_it_is_meant_for() {
    let (mut cluster, leader) = led_cluster();
    for to in [1, 2, 3].into_iter().filter(|id| *id != leader) {
        let core = &mut cluster.members.get_mut(&leader).unwrap().core;
        // As far as the log goes, either will do.
        assert_eq!(core.hand_over(Some(&[to, leader])), Some(to));
        assert_eq!(core.hand_over(Some(&[leader, 77])), None);
    }
}

#[test]
fn a_change_is_proposed_only_by_a_leader_and_only_if_raft_can_carry_it_out() {
    let (mut cluster, leader) = led_cluster();
    let follower = if leader == 1 { 2 } else { 1 };
    let learner = Change::Simple(vec![Step::AddLearner(4)]);
    let refused = cluster.members.get_mut(&follower).unwrap().core.change_members(&learner);
    assert_eq!(refused, Err(ChangeRefused::NotLeader));
    let core = &mut cluster.members.get_mut(&leader).unwrap().core;
    for impossible in [Change::LeaveJoint, Change::Joint([1, 2, 3].map(Step::Remove).to_vec())] {
        let refused = core.change_members(&impossible);
        assert!(matches!(refused, Err(ChangeRefused::Invalid(_))), "{impossible:?}: {refused:?}");
    }
    core.change_members(&learner).unwrap();
    assert_eq!(core.change_members(&learner), Err(ChangeRefused::Pending));
    assert_eq!(core.voters(), Voters::from(vec![1, 2, 3]), "it is not applied yet");
}

#[test]
fn a_leader_that_is_removed_steps_down_and_the_others_elect_one() {
    let (mut cluster, leader) = led_cluster();
    let core = &mut cluster.members.get_mut(&leader).unwrap().core;
    core.change_members(&Change::Simple(vec![Step::Remove(leader)])).unwrap();
    let left: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    let elected = (0..200).find_map(|_| {
        for id in [1, 2, 3] {
            cluster.members.get_mut(&id).unwrap().core.tick();
            cluster.process(id);
        }
        cluster.deliver();
        let leads = |id: &&u64| cluster.members[*id].core.leadership().leads;
        left.iter().find(leads).copied().filter(|_| !cluster.members[&leader].core.leadership().leads)
    });
    let new = elected.expect("one of the others leads, and the old leader does not");
    assert_eq!(cluster.members[&new].core.voters(), Voters::from(left));
}

/// Found by the simulation (seed 20036): the leader kept sending a new member a snapshot from before it joined.
#[test]
fn a_new_member_gets_a_snapshot_in_which_it_is_one() {
    let (mut cluster, leader) = led_cluster();
    let core = &mut cluster.members.get_mut(&leader).unwrap().core;
    let last = core.log().last_index();
    let before = Position { index: last, term: core.log().term(last).unwrap().unwrap() };
    core.provide_snapshot(before, Vec::new());
    core.change_members(&Change::Simple(vec![Step::AddLearner(4)])).unwrap();
    while core.process(&mut Net::default()).unwrap().is_some() {}
    let term = core.leadership().term;
    let mut answer =
        Message { from: leader % 3 + 1, to: leader, term, index: last + 1, ..Message::default() };
    answer.set_msg_type(MessageType::MsgAppendResponse);
    core.step(answer).unwrap();
    while core.process(&mut Net::default()).unwrap().is_some() {}
    assert!(core.voters().has(4));
    core.compact(last).unwrap();
    let refusal = Message { from: 4, to: leader, term: core.leadership().term, ..Message::default() };
    let mut refusal = Message { index: last + 1, reject: true, ..refusal };
    refusal.set_msg_type(MessageType::MsgAppendResponse);
    let sent = |core: &mut Core<MemLog>| {
        let mut net = Net::default();
        while core.process(&mut net).unwrap().is_some() {}
        let snapshots = net.sent.iter().filter(|m| m.get_msg_type() == MessageType::MsgSnapshot);
        snapshots.map(|m| (m.to, m.get_snapshot().get_metadata().index)).collect::<Vec<_>>()
    };
    sent(core);
    for index in [last + 1, last] {
        core.step(Message { index, ..refusal.clone() }).unwrap();
    }
    assert_eq!(sent(core), []);
    assert!(core.wanted_snapshot().is_some(), "a newer one is asked for");
    core.provide_snapshot(Position { index: last + 1, ..before }, Vec::new());
    let mut heard = Message { reject: false, index: 0, ..refusal };
    heard.set_msg_type(MessageType::MsgHeartbeatResponse);
    core.step(heard).unwrap();
    assert_eq!(sent(core), [(4, last + 1)]);
}

/// Found by the simulation: an append that carried nothing yet got entries that did not follow on it.
#[test]
fn an_append_begins_before_its_first_entry() {
    let (mut cluster, leader) = led_cluster();
    let core = &mut cluster.members.get_mut(&leader).unwrap().core;
    let (term, last) = (core.leadership().term, core.log().last_index());
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != leader).collect();
    core.propose([Bytes::from_static(b"x")]).unwrap();
    while core.process(&mut Net::default()).unwrap().is_some() {}
    let mut answer = Message { from: others[0], to: leader, term, index: last + 1, ..Message::default() };
    answer.set_msg_type(MessageType::MsgAppendResponse);
    // One has it, which commits it and makes an append that only says so; the other one refuses that index at once.
    core.step(answer.clone()).unwrap();
    let refusal = Message { from: others[1], reject: true, reject_hint: last, log_term: term, ..answer };
    core.step(refusal).unwrap();
    let mut net = Net::default();
    while core.process(&mut net).unwrap().is_some() {}
    let appends = net.sent.iter().filter(|m| m.to == others[1] && !m.entries.is_empty());
    let begins: Vec<(u64, u64, u64)> = appends.map(|m| (m.index, m.log_term, m.entries[0].index)).collect();
    assert_eq!(begins, [(last, term, last + 1)]);
}

#[test]
fn an_append_on_an_entry_of_no_term_is_not_answered() {
    let (mut cluster, leader) = led_cluster();
    let follower = if leader == 1 { 2 } else { 1 };
    let core = &mut cluster.members.get_mut(&follower).unwrap().core;
    let (term, last) = (core.leadership().term, core.log().last_index());
    let mut append = Message { from: leader, to: follower, term, index: last + 2, ..Message::default() };
    append.set_msg_type(MessageType::MsgAppend);
    core.step(append.clone()).unwrap_err();
    (append.index, append.log_term) = (last, core.log().term(last).unwrap().unwrap());
    append.set_entries(vec![Entry { index: last + 2, term, ..Entry::default() }].into());
    core.step(append).unwrap_err();
    let mut net = Net::default();
    while core.process(&mut net).unwrap().is_some() {}
    assert_eq!(net.sent, []);
}

#[test]
fn reads_are_confirmed_by_a_quorum_only() {
    let (mut cluster, leader) = led_cluster();
    let ask = |cluster: &mut Cluster| {
        let core = &mut cluster.members.get_mut(&leader).unwrap().core;
        core.read_index(b"question".to_vec());
        let mut net = Net::default();
        let mut reads = 0;
        while let Some(effects) = core.process(&mut net).unwrap() {
            reads += effects.reads.len();
        }
        (net.sent, reads)
    };
    let (sent, reads) = ask(&mut cluster);
    assert_eq!(reads, 0, "nobody else has been heard yet");
    let mut confirmed = 0;
    for message in sent {
        let to = message.to;
        let mut net = Net::default();
        let other = &mut cluster.members.get_mut(&to).unwrap().core;
        other.step(message).unwrap();
        while other.process(&mut net).unwrap().is_some() {}
        for answer in net.sent {
            let core = &mut cluster.members.get_mut(&leader).unwrap().core;
            core.step(answer).unwrap();
            while let Some(effects) = core.process(&mut Net::default()).unwrap() {
                confirmed += effects.reads.len();
            }
        }
    }
    assert_eq!(confirmed, 1);
}

/// A follower that is away does not hold the log up; one that is being sent a snapshot needs what comes after it.
#[test]
fn the_log_is_needed_by_followers_that_are_there() {
    let (mut cluster, leader) = led_cluster();
    let away = if leader == 3 { 1 } else { 3 };
    let last = |cluster: &Cluster| cluster.members[&leader].core.log().last_index();
    let needed = |cluster: &Cluster| cluster.members[&leader].core.needed_after();
    let go_on = |cluster: &mut Cluster| {
        for _ in 0..25 {
            let member = cluster.members.get_mut(&leader).unwrap();
            member.core.tick();
            let _ = member.core.propose([Bytes::from_static(b"more")]);
            cluster.process(leader);
            cluster.deliver();
        }
    };
    let begun = last(&cluster);
    cluster.cut = Some(away);
    cluster.members.get_mut(&leader).unwrap().core.propose([Bytes::from_static(b"one")]).unwrap();
    cluster.process(leader);
    assert!(needed(&cluster).unwrap() <= begun, "nobody has said yet that it is away");
    cluster.members.get_mut(&leader).unwrap().core.report_unreachable(away);
    go_on(&mut cluster);
    let kept = needed(&cluster).unwrap();
    assert!(kept > begun + 10, "it is away, and the other one has more: {kept}");

    cluster.members.get_mut(&leader).unwrap().core.compact(kept).unwrap();
    cluster.cut = None;
    let mut sending = None;
    for _ in 0..50 {
        let member = cluster.members.get_mut(&leader).unwrap();
        member.core.tick();
        cluster.process(leader);
        sending = cluster.wire.iter().find(|m| m.get_msg_type() == MessageType::MsgSnapshot).cloned();
        if sending.is_some() {
            break;
        }
        cluster.deliver();
    }
    let index = sending.expect("it is back and needs a snapshot").get_snapshot().get_metadata().index;
    assert_eq!(needed(&cluster), Some(index));
    let follower = if away == 3 { 3 - leader } else { 6 - leader - away };
    assert_eq!(cluster.members[&follower].core.needed_after(), None, "only a leader knows");
}
