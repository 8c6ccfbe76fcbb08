//! The messages of `cli ping-mesh`: what the store carries between the command and the daemons ([`Request`],
//! [`Report`]), the datagrams between the daemons ([`Echo`]), and the bookkeeping of one round of probes ([`Round`]).
//! Pure.
//!
//! 1. `cli` writes a [`Request`] to `<prefix>/mesh/requests/<id>` (id: 16 hex digits; TTL [`TTL_S`]).
//! 2. Every daemon sees it, probes every other lease's device address (the subnet base) over the overlay, UDP port
//!    [`PORT`], and writes its [`Report`] to `<prefix>/mesh/results/<id>/<a.b.c.d-len>`, same TTL.
//! 3. `cli` gathers the reports. A lease whose daemon writes none has no daemon that knows how: it is down, or flanneld.

mod echo;
mod round;

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::echo::{ECHO_BYTES, Echo};
pub use self::round::{Round, Target};
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

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
}
