//! How long to look for packets before sleeping. Pure: the time comes in as a duration.
//!
//! A wake-up costs more than carrying a packet, so after work a worker looks again for a while. That pays only where
//! packets come soon, so the budget adapts: it doubles each time one was found while looking, and halves each time
//! looking was in vain. Without traffic it is zero: an idle worker sleeps.
//!
//! Both regimes sustain themselves. Requests and replies between sleeping workers are slow because every hop is a
//! wake-up, and so far apart that looking would never begin. So a packet that comes soon after falling asleep, within
//! [`REACH`] times the cap, opens the whole budget: if it is the wake-ups that keep packets apart, the next ones come
//! while looking. Steady traffic at that distance costs a part of a CPU for that, one in [`REACH`] at most.

use std::time::Duration;

/// The smallest budget that is not zero.
const STEP: Duration = Duration::from_micros(5);

/// How much longer than the cap a pause may be that might be due to the wake-ups alone: a round trip has four.
const REACH: u32 = 4;

/// The budget of one worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spin {
    cap: Duration,
    budget: Duration,
}

impl Spin {
    /// A budget that never exceeds `cap`; a cap of zero means never to spin.
    pub(crate) fn new(cap: Duration) -> Self {
        Self { cap, budget: Duration::ZERO }
    }

    /// How long to look at present.
    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }

    /// A packet came while looking.
    pub(crate) fn found(&mut self) {
        self.budget = (self.budget * 2).max(STEP).min(self.cap);
    }

    /// Nothing came within the budget.
    pub(crate) fn in_vain(&mut self) {
        self.budget /= 2;
        if self.budget < STEP {
            self.budget = Duration::ZERO;
        }
    }

    /// A packet came after sleeping this long.
    pub(crate) fn woken_after(&mut self, slept: Duration) {
        if slept <= self.cap * REACH {
            self.budget = self.cap;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_micros(50);

    #[test]
    fn traffic_in_quick_succession_raises_the_budget_to_its_cap() {
        let mut spin = Spin::new(CAP);
        assert_eq!(spin.budget(), Duration::ZERO);
        spin.found();
        assert_eq!(spin.budget(), STEP);
        (0..10).for_each(|_| spin.found());
        assert_eq!(spin.budget(), CAP);
    }

    #[test]
    fn packets_that_wake_ups_keep_apart_open_the_whole_budget() {
        let mut spin = Spin::new(CAP);
        spin.woken_after(Duration::from_micros(150));
        assert_eq!(spin.budget(), CAP);
    }

    #[test]
    fn looking_in_vain_ends_at_zero() {
        let mut spin = Spin::new(CAP);
        (0..10).for_each(|_| spin.found());
        (0..10).for_each(|_| spin.in_vain());
        assert_eq!(spin.budget(), Duration::ZERO);
    }

    #[test]
    fn rare_packets_leave_it_asleep() {
        let mut spin = Spin::new(CAP);
        spin.woken_after(Duration::from_millis(10));
        assert_eq!(spin.budget(), Duration::ZERO);
    }

    #[test]
    fn a_cap_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.found();
        spin.woken_after(Duration::ZERO);
        assert_eq!(spin.budget(), Duration::ZERO);
    }
}
