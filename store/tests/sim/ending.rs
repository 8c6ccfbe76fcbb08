//! The course of a run: troubles, recovery, and a last look at everything.

use store::log::LogStore as _;
use store::voters::Voters;

use crate::checks::Broken;
use crate::member::Running;
use crate::time::SECOND;
use crate::world::{Host, World};

/// Time after the faults within which everything must work again, in seconds.
const RECOVERY_S: u64 = 20;

impl World {
    /// Runs through the troubled time, lets the cluster recover, and looks at everything once more.
    pub(crate) fn run_to_the_end(&mut self) -> Result<(), Broken> {
        while self.now < self.plan.troubled {
            self.step()?;
        }
        self.calm_down()?;
        self.until("the members do not agree again", Self::is_settled)?;
        let members = self.leading().map_or(Vec::new(), |(_, voters)| self.members_of(&voters));
        let probes: Vec<usize> = members.iter().map(|id| self.clients.probe(*id, self.now)).collect();
        for op in &probes {
            self.begin(*op);
        }
        let told = |world: &World| probes.iter().all(|op| world.clients.ops[*op].told.is_some());
        self.until("a write is not carried out", told)?;
        self.until("the members do not agree at the end", Self::is_settled)?;
        self.look_at_everything()
    }

    fn until(&mut self, else_broken: &str, wanted: impl Fn(&World) -> bool) -> Result<(), Broken> {
        let deadline = self.now + RECOVERY_S * SECOND;
        while !wanted(self) {
            if self.now > deadline {
                let state = self.state();
                return Err(format!("{else_broken} {RECOVERY_S} s after the last fault:{state}"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// One leader that all members follow, equal states, no change half done, nobody waits, everybody watches.
    fn is_settled(&self) -> bool {
        let Some((leader, voters)) = self.leading() else { return false };
        let Some(first) = self.hosts[&leader].running.as_ref() else { return false };
        let (applied, membership) = (first.body.machine.applied, &first.body.machine.membership);
        let settled = |running: &Running| {
            running.replica.leadership().leader == leader
                && running.body.machine.applied == applied
                && running.body.machine.membership == *membership
        };
        let watches = |(id, life): (u64, u64)| voters.has(id) && self.hosts[&id].life == life;
        first.replica.log().last_index() == applied.index
            && !voters.is_joint()
            && self.members_of(&voters).iter().all(|id| self.hosts[id].running.as_ref().is_some_and(settled))
            && self.clients.waiting.iter().all(Option::is_none)
            && self.watchers.iter().all(|watcher| watcher.on().is_some_and(watches))
    }

    fn members_of(&self, voters: &Voters) -> Vec<u64> {
        self.ids().into_iter().filter(|id| voters.has(*id)).collect()
    }

    /// Where everybody stands, for people.
    fn state(&self) -> String {
        let member = |(id, host): (&u64, &Host)| match &host.running {
            None => format!("\n  {id:x} is down"),
            Some(running) => {
                let (seen, log) = (running.replica.leadership(), running.replica.log());
                let (applied, tasks) = (running.body.machine.applied.index, running.body.tasks.len());
                let (first, last) = (log.truncated().index + 1, log.last_index());
                let commit = log.hard_state().commit;
                format!(
                    "\n  {id:x} sees leader {:x} in term {}; log {first} to {last}, commit {commit}, \
                     applied {applied}, {tasks} tasks; {:x?}",
                    seen.leader,
                    seen.term,
                    running.replica.voters()
                )
            }
        };
        let members: String = self.hosts.iter().map(member).collect();
        let waiting: Vec<usize> = self.clients.waiting.iter().flatten().copied().collect();
        let watching = self.watchers.iter().filter(|watcher| watcher.on().is_some()).count();
        format!("{members}\n  operations {waiting:?} wait; {watching} of {} watch", self.watchers.len())
    }

    fn look_at_everything(&mut self) -> Result<(), Broken> {
        for (id, host) in &self.hosts {
            if let Some(running) = &host.running {
                self.checks.state(*id, &running.body.machine);
                self.checks.whole_state(*id, &running.body.machine);
            }
        }
        self.checks.broken()?;
        self.watchers.iter_mut().for_each(|watcher| watcher.drain(&mut self.report));
        self.watchers.iter().try_for_each(|watcher| watcher.check(&self.checks.events, &mut self.report))?;
        self.clients.check(&self.checks, &mut self.report)?;
        self.report.add("entries applied", self.checks.entries());
        self.report.add("states compared by the store", self.checks.comparisons());
        self.report.add("terms with a leader", self.checks.terms());
        self.report.add("virtual seconds", self.now / SECOND);
        Ok(())
    }
}
