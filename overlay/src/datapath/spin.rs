//! How long to look for packets before sleeping. Pure: the time comes in as a duration.
//!
//! A wake-up costs more than carrying a packet, so after work a worker looks again for a while. That pays only where
//! packets come soon, so the budget adapts: it doubles each time one came within reach (found while looking, or so
//! soon after falling asleep that looking a little longer would have found it), and halves each time looking was in
//! vain. Without traffic it is zero: an idle worker sleeps.

use std::time::Duration;

/// The smallest budget that is not zero.
const STEP: Duration = Duration::from_micros(5);

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
        if slept <= self.cap {
            self.found();
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
        for _ in 0..10 {
            spin.woken_after(Duration::from_micros(30));
        }
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
