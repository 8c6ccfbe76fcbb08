//! What clients and watchers do to the members, and when.

use store::tree::Code;
use store::wire::command::Command;

use crate::checks::Broken;
use crate::clients::{self, TIMEOUT};
use crate::linear::Ret;
use crate::member::{Input, Reader, at, wall_ns};
use crate::mutant::Mutant;
use crate::time::{MICRO, MILLI, SECOND};
use crate::world::{CLIENTS, Event, World};

impl World {
    /// Members that run and believe to be such: clients know no better.
    fn serving(&self) -> Vec<u64> {
        let believes = |id: &u64| {
            self.hosts[id].running.as_ref().is_some_and(|running| running.replica.voters().has(*id))
        };
        self.ids().into_iter().filter(believes).collect()
    }

    /// In calm times nobody watches on a host that is no member any more.
    pub(crate) fn leave_former_members(&mut self) {
        let Some((_, voters)) = self.leading() else { return };
        for id in self.ids() {
            if !voters.has(id) {
                self.end_watches(id);
            }
        }
    }

    /// Watchers of a member take what waits for them; those that were cut off look for another one.
    pub(crate) fn drain_watches(&mut self, id: u64, life: u64) {
        for watcher in 0..self.watchers.len() {
            if self.watchers[watcher].on() == Some((id, life)) {
                self.watchers[watcher].drain(&mut self.report);
                if self.watchers[watcher].on().is_none() {
                    self.watch_later(watcher);
                }
            }
        }
    }

    pub(crate) fn end_watches(&mut self, id: u64) {
        for watcher in 0..self.watchers.len() {
            if self.watchers[watcher].on().is_some_and(|(on, _)| on == id) {
                self.watchers[watcher].leave();
                self.watch_later(watcher);
            }
        }
    }

    pub(crate) fn watch_later(&mut self, watcher: usize) {
        let long = self.dice.per_mille(200) && !self.calm;
        let pause = self.dice.between(MILLI, if long { 13 * SECOND } else { 300 * MILLI });
        self.after(pause, Event::Watch { watcher });
    }

    pub(crate) fn watch(&mut self, watcher: usize) {
        let ids = self.serving();
        if ids.is_empty() {
            self.watch_later(watcher);
            return;
        }
        let id = self.dice.pick(&ids);
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let life = host.life;
        if let Some(running) = &mut host.running {
            self.watchers[watcher].watch((id, life), &mut running.body, &mut self.report);
        }
    }

    pub(crate) fn think(&mut self, client: Option<usize>) {
        if let Some(client) = client.filter(|client| *client < CLIENTS) {
            let pause = self.dice.between(5 * MILLI, 60 * MILLI);
            self.after(pause, Event::Ask { client });
        }
    }

    pub(crate) fn ask(&mut self, client: usize) {
        if self.calm && self.now > self.plan.troubled + 2 * SECOND {
            return;
        }
        let ids = self.serving();
        if ids.is_empty() {
            self.think(Some(client));
            return;
        }
        let id = self.dice.pick(&ids);
        let op = self.clients.ask(client, id, self.now, &mut self.dice);
        self.begin(op);
    }

    /// Brings an operation to its member.
    pub(crate) fn begin(&mut self, op: usize) {
        let (now, base, id) = (self.now, self.base, self.clients.ops[op].at);
        self.report.hit("operations");
        self.after(TIMEOUT, Event::GiveUp { op });
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let life = host.life;
        let wall_ns = wall_ns(now, host.clock_offset_ns);
        let Some(running) = host.running.as_mut() else { return };
        match self.clients.command(op, wall_ns, &mut self.dice) {
            Some(command) => {
                let request = running.propose(command, Some(op), at(base, now + TIMEOUT));
                self.clients.ops[op].request = Some(request);
                self.wake(id, now + 5 * MICRO);
            }
            None if self.plan.mutant == Some(Mutant::StaleRead) && running.replica.leadership().leads => {
                self.after(10 * MICRO, Event::Look { id, life, op });
            }
            None => self.input(id, Input::Read(Reader(op))),
        }
    }

    /// Writes that nobody waits for, many at once.
    pub(crate) fn bulk(&mut self) {
        if self.calm {
            return;
        }
        let ids = self.ids();
        let (id, count) = (self.dice.pick(&ids), self.dice.between(1, 60));
        let (now, base) = (self.now, self.base);
        if let Some(running) = self.hosts.get_mut(&id).and_then(|host| host.running.as_mut()) {
            for n in 0..count {
                let (path, value) = (format!("/1/load/{}", self.dice.below(50)), format!("{now} {n}"));
                let op = store::tree::Op::Set { path, dir: false, value, expires_ns: None, refresh: false };
                running.propose(Command::V2(op), None, at(base, now + TIMEOUT));
            }
            self.report.add("bulk writes", count);
            self.wake(id, now + 5 * MICRO);
        }
        let pause = self.dice.between(20 * MILLI, 200 * MILLI);
        self.after(pause, Event::Bulk);
    }

    pub(crate) fn look(&mut self, id: u64, life: u64, op: usize) -> Result<(), Broken> {
        let now = self.now;
        let key = self.clients.ops[op].key;
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.life == life) else { return Ok(()) };
        if host.paused > now {
            let paused = host.paused;
            self.at(paused, Event::Look { id, life, op });
            return Ok(());
        }
        let Some(running) = &host.running else { return Ok(()) };
        let value = match running.body.machine.tree.look(key, false) {
            Ok(node) => node.shown().node.value().map(clients::number).transpose()?,
            Err(error) if error.code == Code::KeyNotFound => None,
            Err(error) => return Err(format!("a read was answered {error}")),
        };
        self.tell(op, Ret::Read(value));
        Ok(())
    }

    pub(crate) fn tell(&mut self, op: usize, ret: Ret) {
        let client = self.clients.told(op, ret, self.now);
        self.think(client);
    }
}
