//! The network between members: it loses, delays, duplicates, reorders and cuts.
//!
//! A proposal that a follower passes on is not duplicated, as TCP does not and nothing sends it twice. Everything else may
//! be, and may come late by seconds.

use std::collections::BTreeSet;

use raft::eraftpb::{Message, MessageType};

use crate::dice::Dice;
use crate::report::Report;
use crate::time::{MICRO, MILLI, Nanos, SECOND};

/// What it does at the moment.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Ways that are cut: from, to.
    cut: BTreeSet<(u64, u64)>,
    /// Messages of a thousand that are lost, doubled and delayed for long.
    loss: u64,
    double: u64,
    late: u64,
}

/// What becomes of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    /// When it arrives, each time, after it has left.
    pub(crate) after: Vec<Nanos>,
}

impl Network {
    pub(crate) fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    /// From now on it is as bad as this, in messages of a thousand.
    pub(crate) fn disturb(&mut self, loss: u64, double: u64, late: u64) {
        (self.loss, self.double, self.late) = (loss, double, late);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.disturb(0, 0, 0);
    }

    pub(crate) fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cut.contains(&(from, to))
    }

    pub(crate) fn fate(&self, message: &Message, dice: &mut Dice, report: &mut Report) -> Fate {
        if self.is_cut(message.from, message.to) {
            report.hit("fault: message cut off");
            return Fate::default();
        }
        if dice.per_mille(self.loss) {
            report.hit("fault: message lost");
            return Fate::default();
        }
        let mut after = vec![self.delay(dice, report)];
        if message.get_msg_type() != MessageType::MsgPropose && dice.per_mille(self.double) {
            report.hit("fault: message doubled");
            after.push(self.delay(dice, report));
        }
        Fate { after }
    }

    fn delay(&self, dice: &mut Dice, report: &mut Report) -> Nanos {
        if dice.per_mille(self.late) {
            report.hit("fault: message late");
            return dice.between(10 * MILLI, 2 * SECOND);
        }
        dice.between(50 * MICRO, 2 * MILLI)
    }
}
