//! Faults that are put on a running cluster, one round after the other, in an order that a seed decides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::command;
use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::programs;
use crate::wait::wait_for;

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of the leader.
    KillLeader,
    /// `kill -9` of a follower.
    KillFollower,
    /// `kill -9` of two members, so that nobody has a majority.
    KillTwo,
    /// `kill -9` of all members at once.
    KillAll,
    /// SIGSTOP of the leader until the others have elected another one, then SIGCONT.
    FreezeLeader,
    /// No packet between the leader and the others until these have elected another one.
    CutLeader,
    /// No packet between a follower and the others.
    CutFollower,
    /// No packet between any two members.
    CutAll,
    /// What the leader sends is lost; it still receives.
    MuteLeader,
    /// What is sent to the leader is lost; it still sends.
    DeafLeader,
    /// The leader is cut off, the others go on, and then all are killed at once: what only the old leader has in its
    /// log must give way.
    CutLeaderKillAll,
}

/// Every kind.
pub const FAULTS: [Fault; 11] = [
    Fault::KillLeader,
    Fault::KillFollower,
    Fault::KillTwo,
    Fault::KillAll,
    Fault::FreezeLeader,
    Fault::CutLeader,
    Fault::CutFollower,
    Fault::CutAll,
    Fault::MuteLeader,
    Fault::DeafLeader,
    Fault::CutLeaderKillAll,
];

/// The faults of `rounds` rounds: every kind once, in random order, then every kind again.
pub fn schedule(dice: &mut Dice, rounds: usize) -> Vec<Fault> {
    let mut schedule = Vec::new();
    while schedule.len() < rounds {
        let mut kinds = FAULTS;
        dice.shuffle(&mut kinds);
        schedule.extend(kinds);
    }
    schedule.truncate(rounds);
    schedule
}

const ALL: [usize; 3] = [0, 1, 2];
/// An election on a busy machine, replay of the log, catching up.
const SOON: Duration = Duration::from_secs(60);
/// The nftables table of our rules, in the namespace of each host.
const TABLE: &str = "inet weft-faults";

/// A cluster of three on a fabric, and what may be broken of it.
#[derive(Debug)]
pub struct Victim<'a, 'f> {
    /// Where the members are.
    pub fabric: &'f Fabric,
    /// The members.
    pub cluster: &'a mut Cluster<'f>,
}

impl Victim<'_, '_> {
    /// Puts `fault` on the cluster, lets `meanwhile` watch what the members go on doing (given those that must), and
    /// takes it away again. Returns when all members are healthy.
    ///
    /// # Errors
    /// When the members do not do what they must: elect a leader where a majority is left, and come back.
    pub fn suffer(
        &mut self,
        fault: Fault,
        dice: &mut Dice,
        meanwhile: impl FnOnce(&[usize]) -> Result<()>,
    ) -> Result<()> {
        let leader = self.cluster.wait_leader(&ALL)?;
        let follower = (leader + 1 + dice.index(2)) % 3;
        let spared = (leader + dice.index(3)) % 3;
        let without = |gone: usize| ALL.into_iter().filter(move |&n| n != gone).collect::<Vec<_>>();
        let others = without(leader);
        match fault {
            Fault::KillLeader => {
                self.kill(&[leader])?;
                self.goes_on(&others, meanwhile)?;
            }
            Fault::KillFollower => {
                self.kill(&[follower])?;
                self.goes_on(&without(follower), meanwhile)?;
            }
            Fault::KillTwo => {
                self.kill(&without(spared))?;
                meanwhile(&[])?;
            }
            Fault::KillAll => self.kill(&ALL)?,
            Fault::FreezeLeader => {
                self.cluster.members[leader].process()?.signal(Signal::SIGSTOP)?;
                let outcome = self.goes_on(&others, meanwhile);
                self.cluster.members[leader].process()?.signal(Signal::SIGCONT)?;
                outcome?;
            }
            Fault::CutLeader => {
                self.cut(&[(leader, others[0]), (leader, others[1])])?;
                self.goes_on(&others, meanwhile)?;
            }
            Fault::CutFollower => {
                let others = without(follower);
                self.cut(&[(follower, others[0]), (follower, others[1])])?;
                self.goes_on(&others, meanwhile)?;
            }
            Fault::CutAll => {
                self.cut(&[(0, 1), (1, 2), (2, 0)])?;
                meanwhile(&[])?;
            }
            Fault::MuteLeader => {
                self.lose(&[(leader, others[0]), (leader, others[1])])?;
                self.goes_on(&others, meanwhile)?;
            }
            Fault::DeafLeader => {
                self.lose(&[(others[0], leader), (others[1], leader)])?;
                self.goes_on(&others, meanwhile)?;
            }
            Fault::CutLeaderKillAll => {
                self.cut(&[(leader, others[0]), (leader, others[1])])?;
                self.goes_on(&others, meanwhile)?;
                self.kill(&ALL)?;
            }
        }
        self.heal().with_context(|| format!("after {fault:?}"))
    }

    /// A majority that is left elects a leader of its own and goes on.
    fn goes_on(&self, majority: &[usize], meanwhile: impl FnOnce(&[usize]) -> Result<()>) -> Result<()> {
        self.cluster.wait_leader(majority)?;
        meanwhile(majority)
    }

    fn kill(&mut self, members: &[usize]) -> Result<()> {
        // All first, so that they die at the same moment.
        for &n in members {
            self.cluster.members[n].process()?.signal(Signal::SIGKILL)?;
        }
        members.iter().try_for_each(|&n| self.cluster.members[n].kill9())
    }

    /// Loses all packets between the members of each pair.
    fn cut(&self, pairs: &[(usize, usize)]) -> Result<()> {
        self.lose(&pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect::<Vec<_>>())
    }

    /// Loses the packets from the first to the second member of each pair.
    fn lose(&self, pairs: &[(usize, usize)]) -> Result<()> {
        for &(from, to) in pairs {
            let source = self.fabric.hosts[from].address;
            let rules = format!(
                "table {TABLE} {{\n chain in {{ type filter hook input priority 0; }}\n}}\n\
                 add rule {TABLE} in ip saddr {source} drop\n"
            );
            self.nft(to, "-f -", &rules)?;
        }
        Ok(())
    }

    fn nft(&self, host: usize, args: &str, input: &str) -> Result<()> {
        let mut nft = self.fabric.hosts[host].ns.command(programs::tool("nft")?)?;
        nft.args(args.split_ascii_whitespace());
        command::run_with(&mut nft, input.as_bytes(), command::DEFAULT_LIMIT)?.ok()?;
        Ok(())
    }

    /// Lets packets through again, starts who is dead, and waits until all are healthy under one leader.
    fn heal(&mut self) -> Result<()> {
        for host in ALL {
            // `destroy` is not in every version of nft: what is made first can always be deleted.
            self.nft(host, "-f -", &format!("table {TABLE} {{}}\ndelete table {TABLE}\n"))?;
        }
        for member in &mut self.cluster.members {
            if member.process().is_err() {
                member.start()?;
            }
        }
        for member in &mut self.cluster.members {
            member.wait_healthy(SOON)?;
        }
        self.cluster.wait_leader(&ALL)?;
        Ok(())
    }

    /// Waits until every member has applied the same, and returns its index.
    ///
    /// # Errors
    /// When they stay apart.
    pub fn wait_level(&self) -> Result<u64> {
        wait_for("the same index everywhere", SOON, || {
            let mut indices = Vec::new();
            for member in &self.cluster.members {
                let reply = member.endpoint().get("/v2/keys/")?;
                let index = reply.header("X-Etcd-Index").context("X-Etcd-Index")?;
                indices.push(index.parse::<u64>().with_context(|| format!("X-Etcd-Index {index}"))?);
            }
            ensure!(indices.iter().all(|&index| index == indices[0]), "{indices:?}");
            Ok(indices[0])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_comes_once_before_one_comes_again() {
        let faults = schedule(&mut Dice::new(3), 25);
        assert_eq!(faults.len(), 25);
        for kind in FAULTS {
            assert!(faults[..11].contains(&kind) && faults[11..22].contains(&kind), "{kind:?}");
        }
        assert_eq!(faults, schedule(&mut Dice::new(3), 25));
        assert_ne!(faults, schedule(&mut Dice::new(4), 25));
    }
}
