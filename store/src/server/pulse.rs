//! How long a client connection may take over what it does now. Pure: every call is given the time.
//!
//! | it is | it has | ends with |
//! |---|---|---|
//! | in the TLS handshake | [`HANDSHAKE`] | [`Late::Handshake`] |
//! | quiet: no request, no byte of one | [`IDLE`] | [`Late::Idle`] |
//! | within the head of a request (HTTP/1) | [`HEAD`], from its first byte | [`Late::Head`] |
//! | asked for something, and we work on it | what the request itself may take | |
//! | not taking what we write | [`STALL`], from the last byte it took | [`Late::Stall`] |
//! | taking an answer, byte by byte | [`answer_time`] of its length and of those beside it | [`Late::Answer`] |
//! | leaving an answer where it is (HTTP/2) | [`answer_time`] of a piece of each, from the last piece | [`Late::Stall`] |
//!
//! The body of a request has a limit of its own where it is read, as the client can be told there.

use std::collections::BTreeMap;
use std::time::Instant;

use super::limits::{HANDSHAKE, HEAD, IDLE, PIECE_BYTES, STALL, answer_time};

/// What took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The TLS handshake.
    Handshake,
    /// Nothing was asked for.
    Idle,
    /// The request line and headers.
    Head,
    /// Not a byte was taken.
    Stall,
    /// An answer was taken too slowly.
    Answer,
}

impl Late {
    /// What the log says.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Late::Handshake => "closed: its TLS handshake took too long",
            Late::Idle => "closed: idle for too long",
            Late::Head => "closed: the head of its request took too long",
            Late::Stall => "closed: it does not read what it asked for",
            Late::Answer => "closed: it reads its answer too slowly",
        }
    }

    /// Whether this is what well-behaved clients do too.
    pub(super) const fn is_usual(self) -> bool {
        matches!(self, Late::Idle)
    }
}

/// The protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Handshake,
    Http1,
    Http2,
}

/// What one connection does, and since when.
#[derive(Debug)]
pub(super) struct Pulse {
    protocol: Protocol,
    /// Since when nothing is asked for: the start, or the end of the last request.
    quiet: Instant,
    /// The first byte of a head that is not complete.
    head: Option<Instant>,
    /// Since when the client has not taken a byte of what waits for it.
    blocked: Option<Instant>,
    /// Requests under way.
    requests: usize,
    has_asked: bool,
    /// Answers on their way.
    answers: BTreeMap<u64, Leaving>,
    next: u64,
    /// The deadline that was seen last.
    seen: Option<Instant>,
}

/// An answer on its way.
#[derive(Debug)]
struct Leaving {
    bytes: usize,
    /// When it must be gone.
    by: Instant,
    /// When the client last made room for a piece of it.
    moved: Instant,
}

impl Pulse {
    /// A connection that has just been accepted, with a handshake before it or not.
    pub(super) fn new(now: Instant, tls: bool) -> Pulse {
        Pulse {
            protocol: if tls { Protocol::Handshake } else { Protocol::Http1 },
            quiet: now,
            head: None,
            blocked: None,
            requests: 0,
            has_asked: false,
            answers: BTreeMap::new(),
            next: 0,
            seen: None,
        }
    }

    /// The handshake is over.
    pub(super) fn secured(&mut self, now: Instant) {
        (self.protocol, self.quiet, self.head) = (Protocol::Http1, now, None);
    }

    /// It speaks HTTP/2, where bytes are no sign of a request.
    pub(super) fn speaks_http2(&mut self) {
        (self.protocol, self.head) = (Protocol::Http2, None);
    }

    /// Bytes came in.
    pub(super) fn received(&mut self, now: Instant) {
        if self.protocol == Protocol::Http1 && self.requests == 0 {
            self.head.get_or_insert(now);
        }
    }

    /// The client has no room for what we write.
    pub(super) fn blocked(&mut self, now: Instant) {
        self.blocked.get_or_insert(now);
    }

    /// The client took some of it.
    pub(super) fn taken(&mut self) {
        self.blocked = None;
    }

    /// A request has its head.
    pub(super) fn begin(&mut self) {
        self.requests += 1;
        self.has_asked = true;
        self.head = None;
    }

    /// The last of its answer has been handed over, or it was given up.
    pub(super) fn end(&mut self, now: Instant) {
        self.requests -= 1;
        if self.requests == 0 {
            (self.quiet, self.head) = (now, None);
        }
    }

    /// An answer of that length is on its way; [`Pulse::answered`] ends it. It shares the line with those that are.
    pub(super) fn answer(&mut self, now: Instant, bytes: usize) -> u64 {
        let id = self.next;
        self.next += 1;
        let beside: usize = self.answers.values().map(|leaving| leaving.bytes).sum();
        self.answers.insert(id, Leaving { bytes, by: now + answer_time(bytes + beside), moved: now });
        id
    }

    /// The client has made room for another piece of an answer.
    pub(super) fn moved(&mut self, id: u64, now: Instant) {
        if let Some(leaving) = self.answers.get_mut(&id) {
            leaving.moved = now;
        }
    }

    /// An answer has left.
    pub(super) fn answered(&mut self, id: u64) {
        self.answers.remove(&id);
    }

    /// When it must have got on, and what it is late with then; `None` while it waits for us.
    pub(super) fn deadline(&self) -> Option<(Instant, Late)> {
        let quiet = (self.requests == 0).then(|| match (self.protocol, self.head) {
            (Protocol::Handshake, _) => (self.quiet + HANDSHAKE, Late::Handshake),
            (_, Some(head)) => (head + HEAD, Late::Head),
            (_, None) => (self.quiet + IDLE, Late::Idle),
        });
        let stall = self.blocked.map(|since| (since + STALL, Late::Stall));
        let answer = self.answers.values().map(|leaving| leaving.by).min().map(|by| (by, Late::Answer));
        [quiet, stall, answer, self.stuck()].into_iter().flatten().min_by_key(|(by, _)| *by)
    }

    /// Where the client says how much it takes of each answer, one of them may stand still while TCP does not.
    fn stuck(&self) -> Option<(Instant, Late)> {
        if self.protocol != Protocol::Http2 {
            return None;
        }
        let moved = self.answers.values().map(|leaving| leaving.moved).min()?;
        Some((moved + answer_time(PIECE_BYTES * self.answers.len()), Late::Stall))
    }

    /// [`Pulse::deadline`] for the one who keeps it.
    pub(super) fn look(&mut self) -> Option<(Instant, Late)> {
        let deadline = self.deadline();
        self.seen = deadline.map(|(by, _)| by);
        deadline
    }

    /// Whether the deadline has come nearer since it was looked at.
    pub(super) fn is_sooner(&self) -> bool {
        let seen = self.seen;
        self.deadline().is_some_and(|(by, _)| seen.is_none_or(|seen| by < seen))
    }

    /// Whether nobody waits for anything on it, so that it may be closed for another: those that never asked for
    /// anything before those that may ask again, and the oldest first.
    pub(super) fn spare(&self) -> Option<(bool, Instant)> {
        let spare = self.requests == 0 && self.blocked.is_none() && self.answers.is_empty();
        spare.then_some((self.has_asked, self.quiet))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::handle::now;

    fn late(pulse: &Pulse, start: Instant) -> Option<(Duration, Late)> {
        pulse.deadline().map(|(by, late)| (by - start, late))
    }

    #[test]
    fn a_dribbled_head_has_as_long_as_one_that_stops() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        assert_eq!(late(&pulse, start), Some((IDLE, Late::Idle)));
        for second in 1..9 {
            pulse.received(start + Duration::from_secs(second));
            assert_eq!(late(&pulse, start), Some((HEAD + Duration::from_secs(1), Late::Head)));
        }
        pulse.begin();
        assert_eq!(late(&pulse, start), None, "we are asked");
        pulse.received(start + Duration::from_secs(10));
        assert_eq!(late(&pulse, start), None, "that is the body");
        pulse.end(start + Duration::from_secs(20));
        assert_eq!(late(&pulse, start), Some((IDLE + Duration::from_secs(20), Late::Idle)));
    }

    #[test]
    fn a_handshake_is_not_prolonged_by_its_bytes() {
        let start = now();
        let mut pulse = Pulse::new(start, true);
        pulse.received(start + Duration::from_secs(9));
        assert_eq!(late(&pulse, start), Some((HANDSHAKE, Late::Handshake)));
        pulse.secured(start + Duration::from_secs(9));
        assert_eq!(late(&pulse, start), Some((IDLE + Duration::from_secs(9), Late::Idle)));
    }

    #[test]
    fn frames_of_http2_are_no_head() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        pulse.received(start);
        pulse.speaks_http2();
        pulse.received(start + Duration::from_secs(1));
        assert_eq!(late(&pulse, start), Some((IDLE, Late::Idle)));
    }

    #[test]
    fn who_takes_nothing_is_late_and_who_takes_a_little_is_late_by_the_answers_length() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        pulse.begin();
        let answer = pulse.answer(start, 100 << 20);
        assert_eq!(late(&pulse, start), Some((answer_time(100 << 20), Late::Answer)));
        for second in [1, 2, 40] {
            pulse.blocked(start + Duration::from_secs(second));
            let since = if second == 40 { 40 } else { 1 };
            assert_eq!(late(&pulse, start).unwrap().0, STALL + Duration::from_secs(since));
            if second == 2 {
                pulse.taken();
                assert_eq!(late(&pulse, start).unwrap().1, Late::Answer);
            }
        }
        pulse.taken();
        pulse.answered(answer);
        assert_eq!(late(&pulse, start), None);
    }

    #[test]
    fn an_answer_that_stands_still_is_late_however_long_it_is() {
        let start = now();
        let at = |second| start + Duration::from_secs(second);
        let mut pulse = Pulse::new(start, false);
        pulse.speaks_http2();
        pulse.begin();
        let large = pulse.answer(start, 100 << 20);
        assert_eq!(late(&pulse, start), Some((STALL, Late::Stall)));
        pulse.moved(large, at(15));
        assert_eq!(late(&pulse, start), Some((STALL + Duration::from_secs(15), Late::Stall)));
        let small: Vec<u64> = (0..99).map(|_| pulse.answer(at(15), 1)).collect();
        let beside = STALL + Duration::from_secs(15 + 25);
        assert_eq!(late(&pulse, start), Some((beside, Late::Stall)), "each has its turn");
        for id in small {
            pulse.answered(id);
        }
        pulse.moved(large, answer_time(100 << 20).checked_sub(STALL).map(|by| start + by).unwrap());
        pulse.moved(large, start + answer_time(100 << 20));
        assert_eq!(late(&pulse, start), Some((answer_time(100 << 20), Late::Answer)));
    }

    #[test]
    fn answers_of_one_connection_share_its_time() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        pulse.begin();
        let first = pulse.answer(start, 10 << 20);
        let second = pulse.answer(start, 10 << 20);
        pulse.answered(first);
        assert_eq!(late(&pulse, start), Some((answer_time(20 << 20), Late::Answer)));
        pulse.answered(second);
    }

    #[test]
    fn a_nearer_deadline_is_noticed() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        pulse.speaks_http2();
        assert!(pulse.look().is_some() && !pulse.is_sooner());
        pulse.begin();
        assert!(pulse.look().is_none() && !pulse.is_sooner());
        let answer = pulse.answer(start, 1);
        assert!(pulse.is_sooner());
        assert!(pulse.look().is_some() && !pulse.is_sooner());
        let next = pulse.answer(start + Duration::from_secs(1), 1);
        assert!(!pulse.is_sooner());
        pulse.answered(answer);
        pulse.answered(next);
    }

    #[test]
    fn only_who_waits_for_nothing_makes_room() {
        let start = now();
        let mut pulse = Pulse::new(start, false);
        assert_eq!(pulse.spare(), Some((false, start)));
        pulse.received(start);
        assert_eq!(pulse.spare(), Some((false, start)), "half a head is no request");
        pulse.begin();
        assert_eq!(pulse.spare(), None);
        let answer = pulse.answer(start, 1);
        pulse.end(start + IDLE);
        assert_eq!(pulse.spare(), None, "its answer has not left");
        pulse.answered(answer);
        assert_eq!(pulse.spare(), Some((true, start + IDLE)));
    }
}
