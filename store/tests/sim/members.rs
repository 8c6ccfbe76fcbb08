//! Changes of the members: by single steps, through joint configurations, with learners.

use std::collections::BTreeSet;

use store::node::{Change, ChangeRefused, Step};
use store::voters::Voters;

use crate::time::MILLI;
use crate::world::{Event, World};

impl World {
    /// Whoever leads in the latest term, and the configuration that it acts by.
    pub(crate) fn leading(&self) -> Option<(u64, Voters)> {
        let running = self.hosts.iter().filter_map(|(id, host)| Some((*id, host.running.as_ref()?)));
        let leaders = running.filter(|(_, running)| running.replica.leadership().leads);
        let latest = leaders.max_by_key(|(_, running)| running.replica.leadership().term);
        latest.map(|(id, running)| (id, running.replica.voters()))
    }

    /// Asks the leader for some change; in calm times only to end what was begun.
    pub(crate) fn change_members(&mut self) {
        let pause = self.dice.between(100 * MILLI, 1500 * MILLI);
        self.after(pause, Event::Members);
        if self.calm {
            self.leave_former_members();
        }
        let Some((leader, voters)) = self.leading() else { return };
        let by_hand = voters.is_joint() && !voters.auto_leave;
        let change = if by_hand { Some(Change::LeaveJoint) } else { self.some_change(leader, &voters) };
        let Some(change) = change.filter(|_| by_hand || !self.calm) else { return };
        let Some(running) = self.hosts.get_mut(&leader).and_then(|host| host.running.as_mut()) else {
            return;
        };
        let told = running.replica.change_members(&change);
        self.report.hit(match told {
            Ok(()) => "members: change proposed",
            Err(ChangeRefused::Pending) => "members: refused, another is pending",
            Err(ChangeRefused::NotLeader | ChangeRefused::Invalid(_)) => "members: refused",
        });
        self.note(|| format!("{leader:x} is asked for {change:x?}: {told:?}"));
        self.wake(leader, self.now);
    }

    /// Three voters stay, so that one may always be down.
    fn some_change(&mut self, leader: u64, now: &Voters) -> Option<Change> {
        let outside: Vec<u64> = self.ids().into_iter().filter(|id| !now.has(*id)).collect();
        let pick = |dice: &mut crate::dice::Dice, ids: &[u64]| (!ids.is_empty()).then(|| dice.pick(ids));
        let ids = |ids: &BTreeSet<u64>| ids.iter().copied().collect::<Vec<u64>>();
        let (voters, learners) = (ids(&now.voters), ids(&now.learners));
        let newcomer = pick(&mut self.dice, &learners).or_else(|| pick(&mut self.dice, &outside));
        let leaver = if self.dice.per_mille(300) { leader } else { self.dice.pick(&voters) };
        let enough = voters.len() > 3;
        match self.dice.below(7) {
            0 | 1 => Some(Change::Simple(vec![Step::AddLearner(pick(&mut self.dice, &outside)?)])),
            2 => Some(Change::Simple(vec![Step::AddVoter(newcomer?)])),
            3 if enough => Some(Change::Simple(vec![Step::Remove(leaver)])),
            4 if enough => Some(Change::Simple(vec![Step::AddLearner(leaver)])),
            5 => Some(Change::Joint(vec![Step::AddVoter(newcomer?), Step::Remove(leaver)])),
            _ => Some(Change::Simple(vec![Step::AddVoter(newcomer?), Step::AddLearner(leaver)])),
        }
    }

    /// What a batch of entries has done to the configuration, as the first member to apply it shows.
    pub(crate) fn count_members(&mut self, id: u64, before: &Voters) {
        let Some(running) = self.hosts[&id].running.as_ref() else { return };
        let (after, index) = (&running.body.machine.membership.voters, running.body.machine.applied.index);
        if after == before || index <= self.members_seen {
            return;
        }
        self.members_seen = index;
        for (met, name) in [
            (after.learners.difference(&before.learners).next().is_some(), "members: learner added"),
            (after.voters.difference(&before.voters).next().is_some(), "members: voter added"),
            (before.voters.difference(&after.voters).next().is_some(), "members: voter removed"),
            (after.is_joint() && after.auto_leave, "members: joint, left by the leader"),
            (after.is_joint() && !after.auto_leave, "members: joint, left by hand"),
            (before.is_joint() && !after.is_joint(), "members: joint change done"),
        ] {
            self.report.add(name, u64::from(met));
        }
        let after = after.clone();
        self.note(|| format!("{id:x} is the first to apply {after:x?}"));
    }
}
