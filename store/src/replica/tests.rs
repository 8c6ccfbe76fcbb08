#![allow(clippy::unwrap_used, reason = "tests")]

//! Single rules, on a member alone or on one whose leader is played by the test.

use raft::eraftpb::{Entry, HardState};

use super::*;
use crate::log::LogError;
use crate::log::mem::MemLog;
use crate::node::CoreConfig;
use crate::told::Told;

const START: Position = Position { index: 3, term: 1 };
const TICK: Duration = Duration::from_millis(100);
const MOST: Unapplied = Unapplied { entries: 64, bytes: 1 << 20 };

/// The log in memory, with a count of its writes.
#[derive(Default)]
struct Counted(MemLog, usize);

impl LogStore for Counted {
    fn hard_state(&self) -> HardState {
        self.0.hard_state()
    }
    fn truncated(&self) -> Position {
        self.0.truncated()
    }
    fn last_index(&self) -> u64 {
        self.0.last_index()
    }
    fn term(&self, index: u64) -> Result<Option<u64>, LogError> {
        self.0.term(index)
    }
    fn entries(&self, from: u64, to: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        self.0.entries(from, to, max_bytes)
    }
    fn append(&mut self, entries: Vec<Entry>, hard: Option<&HardState>, sync: bool) -> Result<(), LogError> {
        self.1 += usize::from(!entries.is_empty());
        self.0.append(entries, hard, sync)
    }
    fn installing(&self) -> Option<Position> {
        self.0.installing()
    }
    fn mark_install(&mut self, position: Option<Position>) -> Result<(), LogError> {
        self.0.mark_install(position)
    }
    fn reset(&mut self, position: Position, hard: Option<&HardState>) -> Result<(), LogError> {
        self.0.reset(position, hard)
    }
    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        self.0.compact(index)
    }
}

/// Whoever reads, by a number; the odd ones have gone.
#[derive(Debug, PartialEq, Eq)]
struct Reader(u32);

impl Asker for Reader {
    fn is_gone(&self) -> bool {
        self.0 % 2 == 1
    }
}

#[derive(Default)]
struct World {
    sent: Vec<Message>,
    next_expiry: Option<i64>,
    busy: bool,
    has_version: bool,
    check: Option<Command>,
    news: Option<Command>,
}

impl Outside for World {
    fn send(&mut self, messages: Vec<Message>) {
        self.sent.extend(messages);
    }
    fn install(&mut self, _: VecDeque<Work>, _: &Snapshot) -> Result<(), String> {
        Err("no snapshot is sent in these tests".to_owned())
    }
    fn next_expiry(&self) -> Option<i64> {
        self.next_expiry
    }
    fn has_version(&self) -> bool {
        self.has_version
    }
    fn check(&self) -> Result<Option<Command>, Busy> {
        if self.busy { Err(Busy) } else { Ok(self.check.clone()) }
    }
    fn news(&self) -> Result<Option<Command>, Busy> {
        if self.busy { Err(Busy) } else { Ok(self.news.clone()) }
    }
}

struct Stage {
    replica: Replica<Counted, Reader>,
    world: World,
    now: Instant,
    wall_ns: i64,
}

#[expect(clippy::disallowed_methods, reason = "a point to count from; only differences matter")]
fn begin() -> Instant {
    Instant::now()
}

impl Stage {
    fn new(voters: &[u64]) -> Stage {
        let config =
            CoreConfig { id: 1, election_ticks: 10, heartbeat_ticks: 1, fixed_election_ticks: Some(10) };
        let mut core = Core::new(&config, voters.to_vec(), START, Counted::default()).unwrap();
        if voters == [1] {
            core.campaign();
        }
        let settings = Settings {
            member: 1,
            tick: TICK,
            start: 7,
            cluster_version: "3.2.0",
            check_period: Some(4 * TICK),
            catch_up_entries: 2,
            max_unapplied: MOST,
            expire_most: 10,
        };
        let now = begin();
        let replica = Replica::new(core, START.index, settings, now);
        Stage { replica, world: World { has_version: true, ..World::default() }, now, wall_ns: 77 }
    }

    fn round(&mut self) -> Outcome {
        let now = Now { monotonic: self.now, wall_ns: self.wall_ns };
        self.replica.round(now, &mut self.world).unwrap()
    }

    fn later(&mut self, millis: u64) -> Outcome {
        self.now += Duration::from_millis(millis);
        self.round()
    }

    fn propose(&mut self, number: u64, deadline_millis: u64) {
        let data = Stage::command(number, "x").into();
        let deadline = self.now + Duration::from_millis(deadline_millis);
        self.replica.propose(Proposal { number, data, deadline });
    }

    fn command(number: u64, text: &str) -> Vec<u8> {
        let id = RequestId { member: 1, number };
        Envelope { id, command: Command::SetClusterVersion(text.into()) }.encode()
    }

    /// Member 2 leads, and sends so many committed entries from `first` on.
    fn append_message(&mut self, first: u64, count: u64, text: &str) {
        let term_of = |index| if index <= START.index { START.term } else { 2 };
        let data = Stage::command(first, text);
        let entry = |index| Entry { index, term: 2, data: data.clone().into(), ..Entry::default() };
        self.step(MessageType::MsgAppend, |message| {
            (message.index, message.log_term) = (first - 1, term_of(first - 1));
            message.commit = first + count - 1;
            message.set_entries((first..first + count).map(entry).collect::<Vec<_>>().into());
        });
    }

    fn append(&mut self, first: u64, count: u64, text: &str) {
        self.append_message(first, count, text);
        self.round();
    }

    /// Member 2 has voted for this one, and has its entries.
    fn lead_with_two(&mut self) {
        while self.sent(MessageType::MsgRequestPreVote).is_empty() {
            self.later(100);
        }
        self.step(MessageType::MsgRequestPreVoteResponse, |_| ());
        self.round();
        self.step(MessageType::MsgRequestVoteResponse, |_| ());
        assert!(self.round().leadership.is_some_and(|new| new.leads && new.term == 2));
        let last = self.replica.log().last_index();
        self.answer(last);
        self.round();
    }

    /// Member 2 has the leader's entries up to `index`.
    fn answer(&mut self, index: u64) {
        self.step(MessageType::MsgAppendResponse, |message| message.index = index);
    }

    /// The commands handed on for applying, in order, and the index of the last entry.
    fn work(&mut self) -> (Vec<Envelope>, u64) {
        let (mut commands, mut last) = (Vec::new(), 0);
        while let Some(work) = self.replica.next_work() {
            let Work::Apply(entries) = work else { panic!("no snapshot is wanted") };
            last = entries.last().unwrap().index;
            let data = entries.iter().filter(|entry| !entry.data.is_empty());
            commands.extend(data.map(|entry| Envelope::decode(&entry.data).unwrap()));
        }
        (commands, last)
    }

    /// Applies everything that waits, and returns the commands.
    fn apply_all(&mut self) -> Vec<Command> {
        let (commands, last) = self.work();
        self.replica.applied(last);
        commands.into_iter().map(|envelope| envelope.command).collect()
    }

    fn numbers(&mut self) -> Vec<u64> {
        self.work().0.iter().map(|envelope| envelope.id.number).collect()
    }

    fn step(&mut self, kind: MessageType, fill: impl FnOnce(&mut Message)) {
        let mut message = Message { from: 2, to: 1, term: 2, ..Message::default() };
        message.set_msg_type(kind);
        fill(&mut message);
        self.replica.step(message);
    }

    fn sent(&mut self, kind: MessageType) -> Vec<Message> {
        self.world.sent.drain(..).filter(|message| message.get_msg_type() == kind).collect()
    }
}

#[test]
fn what_is_taken_in_one_round_is_written_at_once() {
    let mut stage = Stage::new(&[1]);
    assert!(stage.round().leadership.is_some_and(|new| new.leads));
    let writes = stage.replica.log().1;
    (1..=100).for_each(|number| stage.propose(number, 1000));
    stage.round();
    assert_eq!(stage.numbers(), (1..=100).collect::<Vec<_>>());
    assert_eq!(stage.replica.log().1, writes + 1);
}

#[test]
fn proposals_wait_for_a_leader_until_their_deadline() {
    let mut stage = Stage::new(&[1, 2]);
    stage.propose(1, 150);
    stage.propose(2, 5000);
    stage.round();
    stage.later(200);
    assert!(stage.sent(MessageType::MsgPropose).is_empty());
    stage.step(MessageType::MsgHeartbeat, |_| ());
    assert_eq!(stage.round().leadership.unwrap().leader, 2);
    let passed_on = stage.sent(MessageType::MsgPropose);
    let entries: Vec<_> = passed_on.iter().flat_map(|message| message.entries.iter()).collect();
    assert_eq!(entries.len(), 1, "the first one's deadline had passed; the second leaves in the same round");
    assert_eq!(Envelope::decode(&entries[0].data).unwrap().id.number, 2);
}

#[test]
fn more_than_can_wait_is_refused() {
    let mut stage = Stage::new(&[1, 2]);
    (0..4100).for_each(|number| stage.propose(number, 1000));
    let refused = stage.round().refused;
    assert_eq!(refused, [4096, 4097, 4098, 4099].map(|number| (number, Refused::Overload)));
}

#[test]
fn proposals_wait_while_applying_is_behind() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    for number in 0..100 {
        stage.propose(number, 1000);
        stage.round();
    }
    // Of the 64 the first is the leader's own.
    let (first, last) = stage.work();
    assert_eq!(first.len(), 63);
    stage.round();
    assert_eq!(stage.numbers().len(), 0, "handed on is not applied");
    assert!(stage.replica.waits_for_apply());
    stage.replica.applied(last);
    assert!(stage.replica.next_tick() <= stage.now, "they go on at once");
    stage.round();
    assert_eq!(first.len() + stage.numbers().len(), 100);
}

/// An election looks at what follows the last applied entry, as far as raft knows it.
#[test]
fn the_log_is_not_compacted_beyond_what_raft_knows_to_be_applied() {
    let mut stage = Stage::new(&[1, 2]);
    stage.append(4, 20, "");
    let (_, last) = stage.work();
    stage.replica.applied(10);
    stage.replica.shrink(last);
    assert_eq!(stage.replica.log().truncated().index, 10);
    stage.step(MessageType::MsgTimeoutNow, |_| ());
    stage.round();
    stage.replica.applied(last);
    stage.replica.shrink(last);
    assert_eq!(stage.replica.log().truncated().index, last);
}

#[test]
fn a_proposal_is_not_made_after_its_deadline_when_applying_is_behind_no_more() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    for number in 0..80 {
        stage.propose(number, 150);
        stage.round();
    }
    let (first, last) = stage.work();
    assert!(first.len() < 80);
    stage.propose(80, 1000);
    stage.now += Duration::from_millis(500);
    stage.replica.applied(last);
    stage.round();
    assert_eq!(stage.numbers(), [80], "whoever asked for the others has been told that they failed");
}

#[test]
fn a_follower_takes_no_entries_while_applying_is_behind() {
    let mut stage = Stage::new(&[1, 2]);
    for index in 4..1000 {
        stage.append(index, 1, "");
    }
    let (_, last) = stage.work();
    assert_eq!(last, 3 + MOST.entries);
    stage.sent(MessageType::MsgAppendResponse);
    stage.step(MessageType::MsgHeartbeat, |message| message.commit = last);
    stage.round();
    assert_eq!(stage.sent(MessageType::MsgHeartbeatResponse).len(), 1, "the leader still finds it there");
    // Room for one is none yet, half of it is.
    stage.replica.applied(4);
    stage.append(last + 1, 1, "");
    assert_eq!(stage.replica.log().last_index(), last);
    stage.replica.applied(4 + MOST.entries / 2);
    stage.append(last + 1, 1, "");
    assert_eq!(stage.replica.log().last_index(), last + 1);
    stage.replica.applied(last);
    // The leader finds out what is missing.
    stage.append(last + 3, 1, "");
    let answers = stage.sent(MessageType::MsgAppendResponse);
    assert!(answers.last().is_some_and(|answer| answer.reject && answer.reject_hint == last + 1));
    stage.append(last + 2, 2, "");
    assert_eq!(stage.replica.log().last_index(), last + 3);
}

#[test]
fn what_waits_to_be_applied_is_bounded_by_bytes_also_within_a_round() {
    let mut stage = Stage::new(&[1, 2]);
    for index in 4..40 {
        stage.append_message(index, 1, &"x".repeat(100 << 10));
    }
    stage.round();
    assert_eq!(stage.replica.log().last_index(), 3 + 11, "eleven are more than a mebibyte");
}

#[test]
fn proposals_that_others_pass_on_wait_too() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    let pass_on = |stage: &mut Stage, number| {
        let data = Stage::command(number, "").into();
        stage.step(MessageType::MsgPropose, |message| {
            message.term = 0;
            message.set_entries(vec![Entry { data, ..Entry::default() }].into());
        });
        stage.round();
    };
    (0..100).for_each(|number| pass_on(&mut stage, number));
    let (first, last) = stage.work();
    assert_eq!(first.len(), 63);
    stage.replica.applied(last);
    stage.round();
    assert_eq!(first.len() + stage.numbers().len(), 100);
    // No more than so many are kept.
    (0..5000).for_each(|number| pass_on(&mut stage, number));
    let (_, last) = stage.work();
    stage.replica.applied(last);
    stage.round();
    let kept = stage.numbers().len();
    assert!((900..2000).contains(&kept), "{kept}");
}

#[test]
fn a_leader_that_applies_nothing_for_long_gives_leadership_away() {
    let mut stage = Stage::new(&[1, 2]);
    stage.lead_with_two();
    let handed_over = |stage: &mut Stage| stage.sent(MessageType::MsgTimeoutNow).len();
    // Its time passes without the other's answers but the ones that keep it leader.
    let pass = |stage: &mut Stage, ticks: u32| {
        let mut times = 0;
        for _ in 0..ticks {
            let last = stage.replica.log().last_index();
            stage.answer(last);
            stage.later(100);
            times += handed_over(stage);
        }
        times
    };
    assert_eq!(pass(&mut stage, 40), 0, "nothing waits to be applied but its first entry");
    (0..100).for_each(|number| stage.propose(number, 1000));
    stage.round();
    let last = stage.replica.log().last_index();
    stage.answer(last);
    stage.round();
    assert!(stage.replica.is_behind());
    assert_eq!(pass(&mut stage, 25), 0);
    stage.replica.applied(5);
    assert_eq!(pass(&mut stage, 25), 0, "it moves on");
    assert_eq!(pass(&mut stage, 10), 1);
    stage.replica.applied(last);
    assert_eq!(pass(&mut stage, 100), 0);
}

#[test]
fn a_read_is_given_back_when_the_state_has_reached_the_leaders_answer() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    stage.propose(1, 1000);
    stage.round();
    let (_, last) = stage.work();
    stage.replica.read(Reader(2));
    stage.replica.read(Reader(3));
    stage.round();
    assert!(stage.replica.waits_for_apply());
    assert_eq!(stage.replica.applied(last - 1), []);
    assert_eq!(stage.replica.applied(last), [Reader(2)], "and nobody waits for the odd one");
}

#[test]
fn an_unanswered_question_is_asked_again_and_others_share_the_next() {
    let mut stage = Stage::new(&[1, 2]);
    stage.step(MessageType::MsgHeartbeat, |_| ());
    stage.replica.read(Reader(2));
    stage.round();
    let first = stage.sent(MessageType::MsgReadIndex);
    assert_eq!(first.len(), 1);
    stage.replica.read(Reader(4));
    stage.later(299);
    assert!(stage.sent(MessageType::MsgReadIndex).is_empty());
    stage.later(1);
    let again = stage.sent(MessageType::MsgReadIndex);
    assert_eq!(again[0].entries[0].data, first[0].entries[0].data);
    stage.step(MessageType::MsgReadIndexResp, |message| {
        message.index = 3;
        message.entries = first[0].entries.clone();
    });
    stage.round();
    assert_eq!(stage.replica.applied(3), [Reader(2)], "the other came after the question");
    assert_eq!(stage.sent(MessageType::MsgReadIndex).len(), 1, "which makes room for its own");
}

#[test]
fn a_leader_sets_the_version_first_and_its_time_while_keys_expire() {
    let mut stage = Stage::new(&[1]);
    stage.world.has_version = false;
    stage.propose(1, 1000);
    stage.round();
    stage.later(TICK.as_millis().try_into().unwrap());
    let commands: Vec<Command> = stage.work().0.into_iter().map(|envelope| envelope.command).collect();
    assert_eq!(commands[0], Command::SetClusterVersion("3.2.0".into()));
    stage.later(500);
    assert!(stage.numbers().is_empty(), "nothing expires");
    stage.world.next_expiry = Some(1000);
    let mut commands = Vec::new();
    for _ in 0..10 {
        stage.later(100);
        commands.extend(stage.apply_all());
    }
    assert_eq!(commands, vec![Command::Expire { now_ns: 77, most: 10 }; 2]);
}

#[test]
fn keys_that_are_left_over_expire_at_once_and_by_the_same_time() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    stage.apply_all();
    stage.world.next_expiry = Some(70);
    stage.later(500);
    assert!(stage.replica.waits_for_apply(), "whoever applies is to say so");
    let entry = Command::Expire { now_ns: 77, most: 10 };
    for _ in 0..5 {
        assert!(stage.replica.next_tick() > stage.now, "one at a time");
        stage.round();
        assert_eq!(stage.apply_all(), std::slice::from_ref(&entry));
        assert!(stage.replica.next_tick() <= stage.now, "and then the next");
        stage.wall_ns = 30;
        stage.round();
    }
    assert_eq!(stage.apply_all(), [entry]);
    stage.world.next_expiry = Some(78);
    stage.round();
    assert_eq!(stage.apply_all(), [], "what was not due by then can wait");
    assert!(!stage.replica.waits_for_apply() && stage.replica.next_tick() > stage.now);
}

#[test]
fn a_state_that_is_being_changed_is_looked_at_a_tick_later() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    stage.apply_all();
    stage.world.check = Some(Command::Check(None));
    stage.world.busy = true;
    (0..10).for_each(|_| drop(stage.later(100)));
    assert_eq!(stage.apply_all(), []);
    stage.world.busy = false;
    stage.later(100);
    assert_eq!(stage.apply_all(), [Command::Check(None)]);
}

#[test]
fn a_proposal_from_a_peer_that_is_no_command_is_refused() {
    let command =
        || Envelope { id: RequestId { member: 2, number: 5 }, command: Command::Check(None) }.encode();
    let mut stage = Stage::new(&[1]);
    stage.round();
    stage.work();
    let mut proposed = |data: &[Vec<u8>]| {
        let last = stage.replica.log().last_index();
        stage.step(MessageType::MsgPropose, |message| {
            // As one that a follower passes on: it has no term.
            message.term = 0;
            let entry = |data: &Vec<u8>| Entry { data: data.clone().into(), ..Entry::default() };
            message.set_entries(data.iter().map(entry).collect::<Vec<_>>().into());
        });
        stage.round();
        stage.replica.log().last_index() - last
    };
    assert_eq!(proposed(&[command()]), 1, "a proposal from a peer is taken");
    assert_eq!(proposed(&[vec![9, 9]]), 0);
    assert_eq!(proposed(&[command(), vec![9, 9]]), 0, "not even in part");
}

/// What is written to the log while `act` runs.
fn logged(act: impl FnOnce()) -> String {
    let told = Told::listen();
    act();
    told.text()
}

#[test]
fn what_a_peer_keeps_sending_is_said_once_in_a_while() {
    let mut stage = Stage::new(&[1, 2]);
    let thousand = |stage: &mut Stage| {
        logged(|| {
            for _ in 0..1000 {
                stage.step(MessageType::MsgTransferLeader, |_| ());
                stage.step(MessageType::MsgPropose, |message| {
                    message.term = 0;
                    message.set_entries(vec![Entry { data: vec![9, 9].into(), ..Entry::default() }].into());
                });
                // The raft crate itself complains of this one.
                stage.step(MessageType::MsgReadIndexResp, |_| ());
                stage.round();
            }
        })
    };
    let count = |log: &str| {
        ["hands over", "no command", "MsgReadIndexResp"]
            .map(|text| log.lines().filter(|line| line.contains(text)).count())
    };
    assert_eq!(count(&thousand(&mut stage)), [1, 1, 5]);
    assert_eq!(count(&thousand(&mut stage)), [0, 0, 0]);
    for _ in 0..301 {
        stage.later(100);
    }
    stage.step(MessageType::MsgHeartbeat, |_| ());
    let log = thousand(&mut stage);
    assert_eq!(count(&log), [1, 1, 5]);
    assert_eq!(log.matches("held_back=1999").count(), 2, "{log}");
    assert_eq!(log.matches("held_back=1995").count(), 1, "{log}");
}

#[test]
fn a_leader_checks_once_in_a_period_and_everyone_tells_its_news() {
    let mut stage = Stage::new(&[1]);
    stage.round();
    stage.work();
    stage.world.check = Some(Command::Check(None));
    let mut commands = Vec::new();
    for _ in 0..12 {
        stage.later(TICK.as_millis().try_into().unwrap());
        commands.extend(stage.work().0.into_iter().map(|envelope| envelope.command));
    }
    assert_eq!(commands, vec![Command::Check(None); 3]);
    let mut follower = Stage::new(&[1, 2]);
    follower.step(MessageType::MsgHeartbeat, |_| ());
    let news = Command::Alarm {
        member: 1,
        kind: crate::machine::AlarmKind::Corrupt,
        raise: true,
        text: String::new(),
    };
    follower.world.check = Some(Command::Check(None));
    follower.world.news = Some(news.clone());
    let mut proposed = Vec::new();
    for _ in 0..25 {
        follower.later(100);
        follower.step(MessageType::MsgHeartbeat, |_| ());
        for message in follower.sent(MessageType::MsgPropose) {
            proposed
                .extend(message.entries.iter().map(|entry| Envelope::decode(&entry.data).unwrap().command));
        }
    }
    assert_eq!(
        proposed,
        [news.clone(), news],
        "said again until the state says it; a follower does not check"
    );
}
