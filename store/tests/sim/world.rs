//! A cluster, its clients and its troubles, moved on from event to event on virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Instant;

use raft::eraftpb::{Message, MessageType};
use store::log::LogStore as _;
use store::machine::{Alarms, Machine, Position};
use store::membership::{Member as Named, Membership};
use store::tree::Tree;
use store::wire::command::Command;

use crate::checks::{Broken, Checks};
use crate::clients::{self, Clients};
use crate::dice::Dice;
use crate::disk::{SimImage, SimLog};
use crate::faults::Fault;
use crate::member::{Around, Input, Results, Running, Start, TICK, apply_time, at};
use crate::mutant::Mutant;
use crate::network::Network;
use crate::report::Report;
use crate::time::{MICRO, MILLI, Nanos, SECOND, show};
use crate::watchers::Watcher;

/// What happens at a point in time. `life` counts a member's starts: what was meant for an earlier one is void.
pub(crate) enum Event {
    Run { id: u64, life: u64 },
    Apply { id: u64, life: u64 },
    Image { id: u64, life: u64, checkpoint: bool },
    Durable { id: u64, life: u64, index: u64 },
    Leave { life: u64, message: Message },
    Arrive { message: Message },
    SnapshotSent { from: u64, to: u64, sent: bool },
    Ask { client: usize },
    Bulk,
    Look { id: u64, life: u64, op: usize },
    GiveUp { op: usize },
    Watch { watcher: usize },
    Members,
    Fault,
    Cut { id: u64, life: u64 },
    Mend { fault: Fault },
}

/// One member's hardware, and the process on it while it runs.
pub(crate) struct Host {
    pub(crate) life: u64,
    pub(crate) running: Option<Running>,
    pub(crate) log: SimLog,
    pub(crate) image: SimImage,
    pub(crate) clock_offset_ns: i64,
    /// The process stands still until then.
    pub(crate) paused: Nanos,
    /// Nothing is applied until then.
    pub(crate) applies_from: Nanos,
    applies: bool,
    /// When it last saw another leader or term.
    pub(crate) seen_since: Nanos,
}

impl Host {
    fn new(machine: &Machine, early: bool, dice: Dice) -> Host {
        Host {
            life: 0,
            running: None,
            log: SimLog::new(machine.applied, early, dice),
            image: SimImage::new(machine),
            clock_offset_ns: 0,
            paused: 0,
            applies_from: 0,
            applies: false,
            seen_since: 0,
        }
    }
}

/// Size and length of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: u64,
    /// How long there are faults.
    pub(crate) troubled: Nanos,
    pub(crate) mutant: Option<Mutant>,
    /// Keeps a trace of the last events.
    pub(crate) trace: bool,
}

/// Everything.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) base: Instant,
    pub(crate) now: Nanos,
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    pub(crate) dice: Dice,
    pub(crate) hosts: BTreeMap<u64, Host>,
    pub(crate) network: Network,
    pub(crate) checks: Checks,
    pub(crate) clients: Clients,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) report: Report,
    /// Faults are over.
    pub(crate) calm: bool,
    /// Index of the last change of the members that was counted.
    pub(crate) members_seen: u64,
    trace: VecDeque<String>,
}

/// Events of a trace that are kept.
const TRACE: usize = 150;
/// Hosts with a new member that may be asked to join.
const SPARES: u64 = 2;
pub(crate) const CLIENTS: usize = 5;

#[expect(clippy::disallowed_methods, reason = "a point to count virtual time from; only differences matter")]
fn base() -> Instant {
    Instant::now()
}

impl World {
    pub(crate) fn new(plan: Plan) -> Result<World, Broken> {
        let mut dice = Dice::new(plan.seed);
        let mut machine = Machine::bootstrap(membership(plan.members));
        machine.tree.take_dirty();
        let early = plan.mutant == Some(Mutant::AckBeforeSync);
        let host = |id| (id, Host::new(&machine, early, dice.split()));
        let mut hosts: BTreeMap<u64, Host> = machine.membership.ids().into_iter().map(host).collect();
        hosts.extend((1..=SPARES).map(|n| spare(plan.members + n, early, dice.split())));
        let watched = [("/1", true), ("/1", true), ("/1/a", false), ("/1/c", true), ("/1", true)];
        let mut world = World {
            plan,
            base: base(),
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            dice,
            hosts,
            network: Network::default(),
            checks: Checks::default(),
            clients: Clients::new(CLIENTS),
            watchers: watched.iter().map(|(path, recursive)| Watcher::new(path, *recursive)).collect(),
            report: Report::default(),
            calm: false,
            members_seen: 0,
            trace: VecDeque::new(),
        };
        for event in machine.tree.history().iter() {
            world.checks.event(0, event, 0);
        }
        for id in world.ids() {
            world.start(id)?;
        }
        (0..CLIENTS).for_each(|client| world.after(300 * MILLI, Event::Ask { client }));
        (0..world.watchers.len()).for_each(|watcher| world.after(MILLI, Event::Watch { watcher }));
        world.after(300 * MILLI, Event::Bulk);
        world.after(SECOND, Event::Fault);
        world.after(SECOND, Event::Members);
        Ok(world)
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.hosts.keys().copied().collect()
    }

    /// The last events, for people.
    pub(crate) fn trace(&self) -> impl Iterator<Item = &str> {
        self.trace.iter().map(String::as_str)
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.plan.trace {
            if self.trace.len() == TRACE {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{} {}", show(self.now), text()));
        }
    }

    pub(crate) fn at(&mut self, time: Nanos, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((time, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    pub(crate) fn after(&mut self, time: Nanos, event: Event) {
        self.at(self.now + time, event);
    }

    /// Moves on to the next event.
    pub(crate) fn step(&mut self) -> Result<(), Broken> {
        let Some(Reverse((time, sequence))) = self.queue.pop() else {
            return Err("nothing will ever happen again".to_owned());
        };
        self.now = self.now.max(time);
        self.report.hit("events");
        let Some(event) = self.events.remove(&sequence) else { return Ok(()) };
        self.carry_out(event)?;
        self.checks.broken()
    }

    fn carry_out(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Run { id, life } => self.run(id, life)?,
            Event::Apply { id, life } => self.apply(id, life)?,
            Event::Image { id, life, checkpoint } => self.write_image(id, life, checkpoint),
            Event::Durable { id, life, index } => {
                if self.host(id, life).is_some() {
                    self.input(id, Input::Durable(index));
                }
            }
            Event::Leave { life, message } => self.leave(life, &message),
            Event::Arrive { message } => self.arrive(message),
            Event::SnapshotSent { from, to, sent } => self.input(from, Input::SnapshotSent { to, sent }),
            Event::Ask { client } => self.ask(client),
            Event::Bulk => self.bulk(),
            Event::Look { id, life, op } => self.look(id, life, op)?,
            Event::GiveUp { op } => {
                let client = self.clients.give_up(op);
                self.think(client);
            }
            Event::Watch { watcher } => self.watch(watcher),
            Event::Members => self.change_members(),
            Event::Fault => self.fault(),
            Event::Cut { id, life } => self.cut_in_snapshot(id, life),
            Event::Mend { fault } => self.mend(fault)?,
        }
        Ok(())
    }

    /// The host, if the member on it still lives the same life.
    fn host(&mut self, id: u64, life: u64) -> Option<&mut Host> {
        self.hosts.get_mut(&id).filter(|host| host.life == life && host.running.is_some())
    }

    /// Starts the member on a host.
    pub(crate) fn start(&mut self, id: u64) -> Result<(), Broken> {
        let drawn = u32::try_from(self.dice.below(1 << 32)).unwrap_or(0);
        // Redrawn at every start; the run's own order of members breaks ties.
        let election_ticks = usize::try_from(10 + self.dice.below(10)).unwrap_or(10);
        let Some(host) = self.hosts.get_mut(&id) else { return Ok(()) };
        if host.running.is_some() {
            return Ok(());
        }
        host.life += 1;
        host.applies = false;
        let log = &host.log;
        let installing = log.installing();
        let bounds = (log.truncated().index, log.last_index());
        self.checks.restarts(id, bounds, |index| log.term(index).ok().flatten());
        let (now, base, mutant) = (self.now, self.base, self.plan.mutant);
        let start = Start { id, election_ticks, log, image: &host.image, drawn, now, base, mutant };
        let mut running = Running::start(&start)?;
        let publish = Command::Publish {
            member: id,
            name: format!("n{id:x}"),
            client_urls: vec!["http://c".to_owned()],
        };
        running.propose(publish, None, at(base, now + 5 * SECOND));
        host.running = Some(running);
        let life = host.life;
        if let Some(position) = installing {
            let begun_anew = host.log.truncated() == position;
            self.report.hit("restart in a snapshot");
            self.report.add("restart in a snapshot, state replaced", u64::from(begun_anew));
        }
        self.note(|| format!("{id:x} starts, election after {election_ticks} ticks"));
        self.wake(id, now);
        self.after(200 * MILLI, Event::Image { id, life, checkpoint: false });
        Ok(())
    }

    /// Ends the process on a host: `power` takes with it what is not on disk.
    pub(crate) fn end(&mut self, id: u64, power: bool) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.running.is_some()) else { return };
        host.running = None;
        if power {
            let loss = host.log.crash(now);
            let back = host.image.crash(now, &mut self.dice);
            self.report.hit("fault: power lost");
            self.report.add("fault: unsynced log writes lost", loss.lost as u64);
            self.report.add("fault: log torn", u64::from(loss.lost > 0 && loss.kept > 0));
            self.report.add("fault: image fell back", u64::from(back > 0));
            self.note(|| format!("{id:x} loses its power: {loss:?}, image {back} versions back"));
        } else {
            host.log.kill(now);
            host.image.kill(now);
            self.report.hit("fault: process killed");
            self.note(|| format!("{id:x} is killed"));
        }
        for op in self.clients.waiting_at(id) {
            let client = self.clients.give_up(op);
            self.think(client);
        }
        self.end_watches(id);
    }

    /// Something for a member to take.
    pub(crate) fn input(&mut self, id: u64, input: Input) {
        let Some(running) = self.hosts.get_mut(&id).and_then(|host| host.running.as_mut()) else { return };
        running.inputs.push_back(input);
        self.wake(id, self.now + 5 * MICRO);
    }

    pub(crate) fn wake(&mut self, id: u64, time: Nanos) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let (life, paused) = (host.life, host.paused);
        let Some(running) = host.running.as_mut() else { return };
        let time = time.max(running.busy).max(paused);
        if time < running.wakes {
            running.wakes = time;
            self.at(time, Event::Run { id, life });
        }
    }

    fn run(&mut self, id: u64, life: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.life == life) else { return Ok(()) };
        let paused = host.paused;
        let Some(running) = host.running.as_mut().filter(|running| running.wakes == now) else {
            return Ok(());
        };
        running.wakes = Nanos::MAX;
        if paused > now {
            self.wake(id, paused);
            return Ok(());
        }
        let mut around = Around {
            now,
            base: self.base,
            clock_offset_ns: host.clock_offset_ns,
            log: host.log.clone(),
            image: &mut host.image,
            checks: &mut self.checks,
            dice: &mut self.dice,
        };
        let was = running.replica.leadership();
        let results = running.round(&mut around)?;
        let is = running.replica.leadership();
        let next = running.replica.next_tick().duration_since(self.base).as_nanos();
        let next = Nanos::try_from(next).unwrap_or(Nanos::MAX);
        let removed = was.leads && !is.leads && !running.replica.voters().has(id);
        self.report.add("members: a leader removed itself", u64::from(removed));
        if was != is {
            host.seen_since = now;
            self.report.add("leader elected", u64::from(is.leads && !was.leads));
            self.report.add("leader deposed", u64::from(!is.leads && was.leads));
            self.note(|| format!("{id:x} now sees leader {:x}, term {}", is.leader, is.term));
        }
        let late = if self.dice.per_mille(30) { self.dice.below(2 * TICK) } else { 0 };
        self.report.add("fault: late tick", u64::from(late > 0));
        self.wake(id, next + late);
        self.results(id, life, results)
    }

    /// What follows from a round or a batch.
    fn results(&mut self, id: u64, life: u64, results: Results) -> Result<(), Broken> {
        for (time, message) in results.leaving {
            self.at(time, Event::Leave { life, message });
        }
        self.report.add("entries not taken, applying behind", results.not_taken);
        self.report.add("expired in parts", results.in_parts);
        self.report.add("proposals kept, applying behind", results.kept);
        self.report.add("leadership given away, applying stuck", u64::from(results.given_away));
        for op in results.reads {
            self.report.hit("reads confirmed");
            let elected = self.hosts[&id].seen_since > self.clients.ops[op].begun;
            self.report.add("reads confirmed across an election", u64::from(elected));
            let after = self.dice.below(500 * MICRO);
            self.after(after, Event::Look { id, life, op });
        }
        for op in results.refused {
            self.clients.ops[op].refused = true;
            let client = self.clients.give_up(op);
            self.think(client);
        }
        for (op, answer) in results.answers {
            let ret = clients::ret(&answer)?;
            self.tell(op, ret);
        }
        if results.installed {
            self.report.hit("snapshot installed");
            self.note(|| format!("{id:x} has taken over a snapshot"));
            self.drain_watches(id, life);
            self.end_watches(id);
            self.perhaps_cut_in_snapshot(id, life);
        }
        if results.checkpoint {
            self.after(100 * MICRO, Event::Image { id, life, checkpoint: true });
        }
        self.apply_later(id);
        Ok(())
    }

    fn apply_later(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let first = host.running.as_ref().and_then(|running| running.body.tasks.front());
        if let Some(&(from, _)) = first
            && !host.applies
        {
            host.applies = true;
            let (life, until) = (host.life, host.paused.max(host.applies_from));
            let time = (self.now + apply_time(&mut self.dice)).max(until).max(from);
            self.at(time, Event::Apply { id, life });
        }
    }

    fn apply(&mut self, id: u64, life: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.life == life) else { return Ok(()) };
        host.applies = false;
        if host.paused.max(host.applies_from) > now {
            self.apply_later(id);
            return Ok(());
        }
        let Some(running) = host.running.as_mut() else { return Ok(()) };
        let mut around = Around {
            now,
            base: self.base,
            clock_offset_ns: host.clock_offset_ns,
            log: host.log.clone(),
            image: &mut host.image,
            checks: &mut self.checks,
            dice: &mut self.dice,
        };
        let mut results = Results::default();
        let before = running.body.machine.membership.voters.clone();
        if running.body.next_task(&mut around, &mut results)? {
            self.input(id, Input::Wake);
        }
        self.count_members(id, &before);
        if self.calm || !self.dice.per_mille(300) {
            self.drain_watches(id, life);
        }
        self.results(id, life, results)
    }

    fn write_image(&mut self, id: u64, life: u64, checkpoint: bool) {
        let now = self.now;
        let time = self.dice.between(MILLI, 30 * MILLI);
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.life == life) else { return };
        let Some(running) = host.running.as_mut() else { return };
        if let Some(replaced) = host.image.replaced_at(now) {
            return self.at(replaced, Event::Image { id, life, checkpoint });
        }
        if host.paused <= now {
            let index = running.body.write_image(&mut host.image, checkpoint, now, time);
            if checkpoint {
                self.report.hit("checkpoint");
                self.after(time, Event::Durable { id, life, index });
            }
        }
        if !checkpoint {
            let period = self.dice.between(100 * MILLI, 600 * MILLI);
            self.after(period, Event::Image { id, life, checkpoint: false });
        }
    }

    fn leave(&mut self, life: u64, message: &Message) {
        let (from, to) = (message.from, message.to);
        let Some(host) = self.host(from, life) else { return };
        let log = host.log.clone();
        self.checks.leaves(message, |index| log.term(index).ok().flatten());
        self.report.hit("messages");
        let is_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let fate = self.network.fate(message, &mut self.dice, &mut self.report);
        if is_snapshot {
            // Whoever sends a snapshot learns whether it has arrived.
            let sent = !fate.after.is_empty();
            self.report.hit(if sent { "snapshot sent" } else { "fault: snapshot lost" });
            let after = self.dice.between(5 * MILLI, 100 * MILLI);
            self.after(after, Event::SnapshotSent { from, to, sent });
        } else if fate.after.is_empty() && self.dice.per_mille(300) {
            self.input(from, Input::Unreachable(to));
        }
        for after in fate.after {
            self.after(after, Event::Arrive { message: message.clone() });
        }
    }

    fn arrive(&mut self, message: Message) {
        if self.network.is_cut(message.from, message.to) {
            return;
        }
        self.input(message.to, Input::Peer(message));
    }
}

fn named(n: u64) -> Named {
    Named::bootstrap(&format!("n{n}"), &[format!("http://h{n}:2380")], "sim")
}

fn membership(members: u64) -> Membership {
    Membership::bootstrap((1..=members).map(named).collect())
}

/// A host whose member knows of nobody yet: it is told everything once it is asked to join.
fn spare(n: u64, early: bool, dice: Dice) -> (u64, Host) {
    let nothing =
        Machine::new(Tree::new(), Membership::bootstrap(vec![]), Alarms::default(), Position::default());
    (named(n).id, Host::new(&nothing, early, dice))
}
