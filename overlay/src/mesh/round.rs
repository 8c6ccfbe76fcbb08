//! One round of probes, from the side that sends them: what was sent, what came back. Pure: the time comes in.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use super::{ECHO_BYTES, Echo, Probe, Rtt};
use crate::types::Subnet;

/// A lease to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its subnet; the base address is what answers.
    pub subnet: Subnet,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// Why it is not programmed and so cannot be probed, if so.
    pub skip: Option<String>,
}

#[derive(Debug, Default)]
struct Tally {
    sent: u32,
    waiting: BTreeMap<u32, Instant>,
    rtts_us: Vec<u64>,
    error: Option<String>,
}

/// The bookkeeping of one request: what was sent, what came back.
#[derive(Debug)]
pub struct Round {
    id: u64,
    targets: Vec<Target>,
    tallies: BTreeMap<Ipv4Addr, Tally>,
}

impl Round {
    /// Starts a round over `targets`.
    pub fn new(id: u64, targets: Vec<Target>) -> Self {
        let reachable = targets.iter().filter(|t| t.skip.is_none());
        let tallies = reachable.map(|t| (t.subnet.base(), Tally::default())).collect();
        Self { id, targets, tallies }
    }

    /// The addresses to send to, in order.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.tallies.keys().copied().collect()
    }

    /// The datagram of probe `sequence`.
    pub fn echo(&self, sequence: u32) -> [u8; ECHO_BYTES] {
        Echo { reply: false, id: self.id, sequence }.encode()
    }

    /// Probe `sequence` leaves for `to` at `now`. Called before sending, since an answer may come before the call
    /// that sends returns.
    pub fn sent(&mut self, to: Ipv4Addr, sequence: u32, now: Instant) {
        if let Some(tally) = self.tallies.get_mut(&to) {
            tally.sent += 1;
            tally.waiting.insert(sequence, now);
        }
    }

    /// A probe to `to` could not be sent after all.
    pub fn failed(&mut self, to: Ipv4Addr, why: String) {
        if let Some(tally) = self.tallies.get_mut(&to) {
            tally.error.get_or_insert(why);
        }
    }

    /// A datagram came from `from` at `now`. Returns whether it answers a probe of ours, for the first time.
    pub fn received(&mut self, from: Ipv4Addr, datagram: &[u8], now: Instant) -> bool {
        let Some(echo) = Echo::decode(datagram).filter(|e| e.reply && e.id == self.id) else { return false };
        let Some(tally) = self.tallies.get_mut(&from) else { return false };
        // Forgotten once answered: a duplicate is not a second answer.
        let Some(sent) = tally.waiting.remove(&echo.sequence) else { return false };
        tally.rtts_us.push(u64::try_from((now - sent).as_micros()).unwrap_or(u64::MAX));
        true
    }

    /// Whether every probe was answered, so that waiting longer is of no use.
    pub fn is_complete(&self) -> bool {
        self.tallies.values().all(|t| t.waiting.is_empty())
    }

    /// The result for every target, by subnet.
    pub fn finish(self) -> Vec<Probe> {
        let Self { targets, mut tallies, .. } = self;
        let mut probes: Vec<Probe> = targets
            .into_iter()
            .map(|target| match target.skip {
                Some(why) => Probe {
                    subnet: target.subnet,
                    public_ip: target.public_ip,
                    sent: 0,
                    received: 0,
                    rtt_us: None,
                    error: Some(why),
                },
                None => probe(&target, tallies.remove(&target.subnet.base()).unwrap_or_default()),
            })
            .collect();
        probes.sort_by_key(|p| p.subnet);
        probes
    }
}

fn probe(target: &Target, mut tally: Tally) -> Probe {
    tally.rtts_us.sort_unstable();
    let rtts = &tally.rtts_us;
    let rtt_us = match (rtts.first(), rtts.get(rtts.len() / 2), rtts.last()) {
        (Some(min), Some(median), Some(max)) => Some(Rtt { min: *min, median: *median, max: *max }),
        _ => None,
    };
    let no_answer = || rtt_us.is_none().then(|| "no answer".to_owned());
    Probe {
        subnet: target.subnet,
        public_ip: target.public_ip,
        sent: tally.sent,
        received: u32::try_from(rtts.len()).unwrap_or(u32::MAX),
        rtt_us,
        error: tally.error.or_else(no_answer),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn target(n: u8) -> Target {
        Target {
            subnet: Subnet::new([172, 17, n, 0].into(), 24).unwrap(),
            public_ip: [10, 0, 0, n].into(),
            skip: None,
        }
    }

    fn reply(id: u64, sequence: u32) -> [u8; ECHO_BYTES] {
        Echo { reply: true, id, sequence }.encode()
    }

    #[test]
    fn a_round_counts_each_answer_once() {
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        let mut round =
            Round::new(7, vec![target(9), target(5), Target { skip: Some("odd".into()), ..target(6) }]);
        let (five, nine) = (Ipv4Addr::new(172, 17, 5, 0), Ipv4Addr::new(172, 17, 9, 0));
        assert_eq!(round.addresses(), [five, nine]);
        for sequence in 0..3 {
            round.sent(five, sequence, start);
            round.sent(nine, sequence, start);
        }
        round.failed(nine, "network is unreachable".into());
        assert!(round.received(five, &reply(7, 0), at(300)));
        assert!(!round.received(five, &reply(7, 0), at(301)), "a duplicate");
        assert!(!round.received(five, &reply(8, 1), at(301)), "another round's");
        assert!(!round.received(five, &reply(7, 9), at(301)), "never sent");
        assert!(!round.received(five, &round.echo(1), at(301)), "our own");
        assert!(!round.received([10, 0, 0, 1].into(), &reply(7, 1), at(301)), "a stranger");
        assert!(round.received(five, &reply(7, 2), at(100)));
        assert!(!round.is_complete());
        let probes = round.finish();
        assert_eq!(probes.iter().map(|p| (p.sent, p.received)).collect::<Vec<_>>(), [(3, 2), (0, 0), (3, 0)]);
        assert_eq!(probes[0].rtt_us, Some(Rtt { min: 100, median: 300, max: 300 }));
        let errors: Vec<_> = probes.iter().map(|p| p.error.as_deref()).collect();
        assert_eq!(errors, [None, Some("odd"), Some("network is unreachable")]);
    }
}
