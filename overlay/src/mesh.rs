//! The messages of `cli ping-mesh`: what the store carries between the command and the daemons, and the echo
//! datagrams between the daemons. Pure: codecs, limits, and the bookkeeping of one round of probes.
//!
//! 1. `cli` writes a [`Request`] to `<prefix>/mesh/requests/<id>` (id: 16 hex digits; TTL [`TTL_S`]).
//! 2. Every daemon sees it, probes every other lease's device address (the subnet base) over the overlay, UDP port
//!    [`PORT`], and writes its [`Report`] to `<prefix>/mesh/results/<id>/<a.b.c.d-len>`, same TTL.
//! 3. `cli` gathers the reports. A lease whose daemon writes none has no daemon that knows how: it is down, or flanneld.
//!
//! An echo datagram is [`ECHO_BYTES`] bytes, numbers in network order; anything else is not answered:
//!
//! ```text
//! 0      4         5      6          8              16        20     24
//! "WEFT" | version | kind | reserved | request id   | sequence | zero
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::types::Subnet;
use crate::wire::lease::subnet_key;

/// The version of requests, reports and datagrams.
pub const VERSION: u32 = 1;
/// UDP port on which daemons answer echoes, on their device's address only.
pub const PORT: u16 = 8473;
/// How long requests and reports stay in the store, in seconds.
pub const TTL_S: u64 = 60;
/// The longest a daemon may take over one request; the rest of the TTL is for reading the report.
pub const MAX_DURATION: Duration = Duration::from_secs(50);
/// The most probes a request may ask for, to each peer.
pub const MAX_COUNT: u32 = 100;

/// What `cli ping-mesh` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Probes to each peer.
    pub count: u32,
    /// Milliseconds between two probes to the same peer.
    pub interval_ms: u64,
    /// Milliseconds to wait for answers after the last probe.
    pub timeout_ms: u64,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not the JSON it should be.
    #[error("not a mesh request: {0}")]
    Json(String),
    /// From a newer command.
    #[error(
        "mesh request version {0} is not supported, only {VERSION} is: use the same release of cli and overlayd"
    )]
    Version(u32),
    /// None, or too many.
    #[error("count {0} is out of range (1 to {MAX_COUNT})")]
    Count(u32),
    /// The reports would come too late.
    #[error("count * interval + timeout is {0} ms, more than {max} ms", max = MAX_DURATION.as_millis())]
    TooLong(u64),
}

impl Request {
    /// Parses and checks a request.
    ///
    /// # Errors
    /// When it is no request, or asks for more than a daemon does.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let request: Self = serde_json::from_str(text).map_err(|e| RequestError::Json(e.to_string()))?;
        request.check()?;
        Ok(request)
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// The limit that is broken.
    pub fn check(&self) -> Result<(), RequestError> {
        if self.version != VERSION {
            return Err(RequestError::Version(self.version));
        }
        if !(1..=MAX_COUNT).contains(&self.count) {
            return Err(RequestError::Count(self.count));
        }
        let total = u64::from(self.count).saturating_mul(self.interval_ms).saturating_add(self.timeout_ms);
        if u128::from(total) > MAX_DURATION.as_millis() {
            return Err(RequestError::TooLong(total));
        }
        Ok(())
    }
}

/// What one daemon found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The daemon's own subnet.
    pub subnet: Subnet,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// Its host's name.
    pub hostname: String,
    /// One entry for every other lease, by subnet.
    pub probes: Vec<Probe>,
}

/// How one peer answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The peer's subnet.
    pub subnet: Subnet,
    /// Its address on the underlay.
    pub public_ip: Ipv4Addr,
    /// Datagrams sent.
    pub sent: u32,
    /// Answers that came in time.
    pub received: u32,
    /// Round-trip times; `None` without an answer.
    pub rtt_us: Option<Rtt>,
    /// Why there is none, as far as this side knows.
    pub error: Option<String>,
}

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtt {
    /// The shortest.
    pub min: u64,
    /// The one in the middle; of two, the longer.
    pub median: u64,
    /// The longest.
    pub max: u64,
}

/// The directory of requests.
pub fn requests_dir(prefix: &str) -> String {
    format!("{}/mesh/requests", prefix.trim_end_matches('/'))
}

/// The key of a request.
pub fn request_key(prefix: &str, id: &str) -> String {
    format!("{}/{id}", requests_dir(prefix))
}

/// The directory of a request's reports. Make it with a TTL of [`TTL_S`], or it stays after its keys have gone.
pub fn results_dir(prefix: &str, id: &str) -> String {
    format!("{}/mesh/results/{id}", prefix.trim_end_matches('/'))
}

/// The key of one daemon's report.
pub fn result_key(prefix: &str, id: &str, subnet: Subnet) -> String {
    format!("{}/{}", results_dir(prefix, id), subnet_key(subnet))
}

/// The number in a request's key (full, or its last part); `None` unless it is 16 lower-case hex digits.
pub fn parse_id(key: &str) -> Option<u64> {
    let name = key.rsplit('/').next()?;
    let valid = name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(name, 16).ok().filter(|_| valid)
}

/// The text form of a request's number.
pub fn format_id(id: u64) -> String {
    format!("{id:016x}")
}

/// Length of an echo datagram.
pub const ECHO_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"WEFT";

/// An echo datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Whether this answers another.
    pub reply: bool,
    /// The request it belongs to.
    pub id: u64,
    /// Which probe of the request, from 0.
    pub sequence: u32,
}

impl Echo {
    /// The bytes to send.
    pub fn encode(&self) -> [u8; ECHO_BYTES] {
        let mut bytes = [0; ECHO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = 1;
        bytes[5] = u8::from(self.reply);
        bytes[8..16].copy_from_slice(&self.id.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Reads a datagram; `None` for anything that is not exactly one of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ECHO_BYTES] = bytes.try_into().ok()?;
        let (id, rest) = bytes[8..].split_first_chunk::<8>()?;
        let (sequence, _) = rest.split_first_chunk::<4>()?;
        let echo = Self {
            reply: bytes[5] == 1,
            id: u64::from_be_bytes(*id),
            sequence: u32::from_be_bytes(*sequence),
        };
        // One form per meaning: what we would not send we do not answer.
        (echo.encode() == *bytes).then_some(echo)
    }
}

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
    use proptest::prelude::*;

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
    fn the_json_is_as_documented() {
        let request = r#"{"version":1,"count":3,"interval_ms":100,"timeout_ms":1000}"#;
        assert_eq!(serde_json::to_string(&Request::parse(request).unwrap()).unwrap(), request);
        let report = r#"{"version":1,"subnet":"172.17.71.0/24","public_ip":"192.168.31.65","hostname":"n1","probes":[{"subnet":"172.17.9.0/24","public_ip":"192.168.31.66","sent":3,"received":3,"rtt_us":{"min":1,"median":2,"max":3},"error":null}]}"#;
        let parsed: Report = serde_json::from_str(report).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), report);
    }

    #[test]
    fn requests_are_bounded() {
        let good = Request { version: 1, count: 3, interval_ms: 100, timeout_ms: 1000 };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Request { version: 2, ..good.clone() }.check(), Err(RequestError::Version(2)));
        assert_eq!(Request { count: 0, ..good.clone() }.check(), Err(RequestError::Count(0)));
        assert_eq!(Request { count: 101, ..good.clone() }.check(), Err(RequestError::Count(101)));
        assert!(matches!(
            Request { interval_ms: u64::MAX, ..good.clone() }.check(),
            Err(RequestError::TooLong(_))
        ));
        assert!(matches!(Request { timeout_ms: 50_000, ..good }.check(), Err(RequestError::TooLong(50_300))));
        assert!(matches!(Request::parse("{}"), Err(RequestError::Json(_))));
    }

    #[test]
    fn keys_are_as_documented() {
        let subnet = "172.17.71.0/24".parse().unwrap();
        assert_eq!(
            request_key("/coreos.com/network/", "00ff00ff00ff00ff"),
            "/coreos.com/network/mesh/requests/00ff00ff00ff00ff"
        );
        assert_eq!(
            result_key("/p", "00ff00ff00ff00ff", subnet),
            "/p/mesh/results/00ff00ff00ff00ff/172.17.71.0-24"
        );
        assert_eq!(parse_id("/p/mesh/requests/00ff00ff00ff00ff"), Some(0x00ff_00ff_00ff_00ff));
        for bad in ["", "00FF00FF00FF00FF", "0ff", "+0ff00ff00ff00ff", "00ff00ff00ff00ff0"] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
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

    proptest! {
        #[test]
        fn echoes_round_trip(reply: bool, id: u64, sequence: u32) {
            let echo = Echo { reply, id, sequence };
            prop_assert_eq!(Echo::decode(&echo.encode()), Some(echo));
        }

        #[test]
        fn noise_is_no_echo(mut bytes in prop::collection::vec(any::<u8>(), 0..64), flip in 0usize..24) {
            let _ = Echo::decode(&bytes);
            // What differs in one reserved or fixed byte is not ours.
            bytes = Echo { reply: false, id: 1, sequence: 2 }.encode().to_vec();
            if !(8..20).contains(&flip) {
                bytes[flip] ^= 0x80;
                prop_assert_eq!(Echo::decode(&bytes), None);
            }
        }
    }
}
