//! What goes wrong, and when: drawn from the seed.

use crate::checks::Broken;
use crate::disk::QUICK_SYNC;
use crate::member::Input;
use crate::time::{MILLI, Nanos, SECOND};
use crate::world::{Event, World};

/// What is put right some time after it went wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// A member is down.
    Down(u64),
    /// Its disk is slow.
    Slow(u64),
    /// The network.
    Network,
}

impl World {
    /// Something goes wrong, or two things at once.
    pub(crate) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.dice.between(50 * MILLI, 900 * MILLI);
        self.after(pause, Event::Fault);
        let victim = self.victim();
        match self.dice.below(17) {
            0 | 1 => self.take_down(victim, true),
            2 => self.take_down(victim, false),
            3 => self.take_down_several(),
            4 | 5 => self.isolate(victim),
            6 => self.cut_one_way(victim),
            7 => self.split(),
            8 | 9 => self.disturb(),
            10 => self.slow_disk(victim),
            11 => self.stall_disk(victim),
            12 => self.pause(victim),
            13 => self.jump_clock(victim),
            14 => {
                self.report.hit("fault: leadership handed over");
                self.input(victim, Input::HandOver);
            }
            15 => self.stall_apply(victim),
            _ => self.heal(),
        }
    }

    /// Often the leader, for that hurts most.
    fn victim(&mut self) -> u64 {
        let ids = self.ids();
        let any = self.dice.pick(&ids);
        let leads = |id: &&u64| {
            self.hosts[id].running.as_ref().is_some_and(|running| running.replica.leadership().leads)
        };
        let leader = ids.iter().find(leads).copied();
        if self.dice.per_mille(500) { leader.unwrap_or(any) } else { any }
    }

    fn mend_after(&mut self, from: Nanos, to: Nanos, fault: Fault) {
        let after = self.dice.between(from, to);
        self.after(after, Event::Mend { fault });
    }

    fn take_down(&mut self, id: u64, power: bool) {
        self.end(id, power);
        self.mend_after(20 * MILLI, 3 * SECOND, Fault::Down(id));
    }

    /// A snapshot that is taken over is so short that few faults would fall into it.
    pub(crate) fn perhaps_cut_in_snapshot(&mut self, id: u64, life: u64) {
        let busy = self.hosts[&id].running.as_ref().map_or(self.now, |running| running.busy);
        if !self.calm && self.dice.per_mille(200) {
            let time = self.dice.between(self.now, busy.max(self.now + 1));
            self.at(time, Event::Cut { id, life });
        }
    }

    pub(crate) fn cut_in_snapshot(&mut self, id: u64, life: u64) {
        if self.hosts[&id].life == life {
            let power = self.dice.per_mille(700);
            self.take_down(id, power);
        }
    }

    fn take_down_several(&mut self) {
        self.report.hit("fault: several down at once");
        let all = self.dice.per_mille(300);
        for id in self.ids() {
            if all || self.dice.per_mille(600) {
                self.take_down(id, true);
            }
        }
    }

    fn isolate(&mut self, id: u64) {
        self.report.hit("fault: member cut off");
        self.note(|| format!("{id:x} is cut off"));
        for other in self.ids() {
            self.network.cut(id, other);
            self.network.cut(other, id);
        }
        self.mend_after(200 * MILLI, 4 * SECOND, Fault::Network);
    }

    fn cut_one_way(&mut self, id: u64) {
        self.report.hit("fault: one way cut");
        let hears = self.dice.per_mille(500);
        self.note(|| format!("{id:x} {}", if hears { "is not heard" } else { "hears nobody" }));
        for other in self.ids() {
            if hears {
                self.network.cut(id, other);
            } else {
                self.network.cut(other, id);
            }
        }
        self.mend_after(200 * MILLI, 3 * SECOND, Fault::Network);
    }

    fn split(&mut self) {
        self.report.hit("fault: network split");
        let (left, right): (Vec<u64>, Vec<u64>) =
            self.ids().into_iter().partition(|_| self.dice.per_mille(500));
        self.note(|| format!("{left:x?} and {right:x?} are apart"));
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            self.network.cut(a, b);
            self.network.cut(b, a);
        }
        self.mend_after(200 * MILLI, 3 * SECOND, Fault::Network);
    }

    fn disturb(&mut self) {
        let (loss, double, late) = (self.dice.below(300), self.dice.below(200), self.dice.below(100));
        self.note(|| format!("of 1000 messages {loss} are lost, {double} doubled, {late} late"));
        self.network.disturb(loss, double, late);
        self.mend_after(500 * MILLI, 3 * SECOND, Fault::Network);
    }

    fn heal(&mut self) {
        self.note(|| "the network is whole".to_owned());
        self.network.heal();
    }

    fn slow_disk(&mut self, id: u64) {
        self.report.hit("fault: slow disk");
        let latency = self.dice.between(5 * MILLI, 120 * MILLI);
        self.note(|| format!("{id:x}'s disk takes up to {} ms", latency / MILLI));
        self.hosts[&id].log.set_latency(latency);
        self.mend_after(300 * MILLI, 3 * SECOND, Fault::Slow(id));
    }

    fn stall_disk(&mut self, id: u64) {
        self.report.hit("fault: stalled disk");
        let latency = self.dice.between(600 * MILLI, 2 * SECOND);
        self.note(|| format!("{id:x}'s disk stalls for up to {} ms", latency / MILLI));
        self.hosts[&id].log.set_latency(latency);
        self.mend_after(100 * MILLI, 500 * MILLI, Fault::Slow(id));
    }

    /// Its raft thread goes on, and what is committed waits.
    fn stall_apply(&mut self, id: u64) {
        self.report.hit("fault: applying stalled");
        let until = self.now + self.dice.between(200 * MILLI, 4 * SECOND);
        self.note(|| format!("{id:x} applies nothing"));
        if let Some(host) = self.hosts.get_mut(&id) {
            host.applies_from = until;
        }
    }

    fn pause(&mut self, id: u64) {
        self.report.hit("fault: process paused");
        let until = self.now + self.dice.between(50 * MILLI, 1500 * MILLI);
        self.note(|| format!("{id:x} stands still"));
        if let Some(host) = self.hosts.get_mut(&id) {
            host.paused = until;
        }
    }

    fn jump_clock(&mut self, id: u64) {
        self.report.hit("fault: clock jumped");
        let seconds = i64::try_from(self.dice.below(60)).unwrap_or(0) - 30;
        self.note(|| format!("{id:x}'s clock jumps by {seconds} s"));
        if let Some(host) = self.hosts.get_mut(&id) {
            host.clock_offset_ns = seconds * 1_000_000_000;
        }
    }

    /// Something is put right.
    pub(crate) fn mend(&mut self, fault: Fault) -> Result<(), Broken> {
        match fault {
            Fault::Down(id) => self.start(id)?,
            Fault::Slow(id) => self.hosts[&id].log.set_latency(QUICK_SYNC),
            Fault::Network => self.heal(),
        }
        Ok(())
    }

    /// All faults end. The clocks stay apart.
    pub(crate) fn calm_down(&mut self) -> Result<(), Broken> {
        self.calm = true;
        self.note(|| "all faults end".to_owned());
        self.heal();
        for id in self.ids() {
            self.hosts[&id].log.set_latency(QUICK_SYNC);
            self.start(id)?;
        }
        Ok(())
    }
}
