//! From a running capture ([`super::capture`]) to a pcapng file, piece by piece, and when to stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, timeout_at};

use super::capture::{Busy, Capture, Frame, Reader};
use super::pcapng;

/// Frames that are made into one piece of the file.
const BATCH: usize = 64;

/// When a capture ends. The first limit that is reached ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames in the file.
    pub packets: u64,
    /// Length of the file. It is never longer.
    pub bytes: u64,
    /// Time that it takes, in seconds.
    pub seconds: u64,
    /// Bytes that are kept of each frame.
    pub snaplen: u64,
}

/// One of [`Limits`], as it is called in the query of a request.
struct Limit {
    name: &'static str,
    default: u64,
    least: u64,
    most: u64,
}

const LIMITS: [Limit; 4] = [
    Limit { name: "packets", default: 1000, least: 1, most: 1_000_000 },
    Limit { name: "bytes", default: 16 << 20, least: 4096, most: 1 << 30 },
    Limit { name: "seconds", default: 10, least: 1, most: 3600 },
    Limit { name: "snaplen", default: 262_144, least: 14, most: 262_144 },
];

/// Why a query does not say what to capture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has this name.
    #[error("{0:?} is no parameter of a capture: it takes packets=N, bytes=N, seconds=N and snaplen=N")]
    Unknown(String),
    /// Given twice.
    #[error("{0} is given more than once")]
    Twice(&'static str),
    /// Not a number, or not one that may be.
    #[error("{name}={value}: must be a number from {least} to {most} (default {default})")]
    Value {
        /// Which limit.
        name: &'static str,
        /// What it was to be.
        value: String,
        /// The lowest that it can be.
        least: u64,
        /// The highest that it can be.
        most: u64,
        /// What it is when it is not given.
        default: u64,
    },
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(LIMITS.map(|limit| limit.default))
    }
}

impl From<[u64; 4]> for Limits {
    /// In the order of [`LIMITS`].
    fn from([packets, bytes, seconds, snaplen]: [u64; 4]) -> Self {
        Self { packets, bytes, seconds, snaplen }
    }
}

impl Limits {
    /// Reads the query of a request: `packets=100&seconds=5`. What is not mentioned has its default.
    ///
    /// # Errors
    /// An unknown name, a name given twice, or a value out of its range; the text says what would be right.
    pub fn parse(query: &str) -> Result<Self, LimitError> {
        let mut values = [None; LIMITS.len()];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some((limit, slot)) = LIMITS.iter().zip(&mut values).find(|(limit, _)| limit.name == name)
            else {
                return Err(LimitError::Unknown(name.to_owned()));
            };
            if slot.replace(limit.parse(value)?).is_some() {
                return Err(LimitError::Twice(limit.name));
            }
        }
        let mut given = values.iter().zip(&LIMITS).map(|(value, limit)| value.unwrap_or(limit.default));
        Ok(Self::from(std::array::from_fn(|_| given.next().unwrap_or_default())))
    }

    /// Reads one value, by its name in a query.
    ///
    /// # Errors
    /// As [`Limits::parse`].
    pub fn value(name: &str, value: &str) -> Result<u64, LimitError> {
        let unknown = || LimitError::Unknown(name.to_owned());
        LIMITS.iter().find(|limit| limit.name == name).ok_or_else(unknown)?.parse(value)
    }

    /// The query that [`Limits::parse`] reads.
    pub fn query(self) -> String {
        let Self { packets, bytes, seconds, snaplen } = self;
        format!("packets={packets}&bytes={bytes}&seconds={seconds}&snaplen={snaplen}")
    }
}

impl Limit {
    fn parse(&self, value: &str) -> Result<u64, LimitError> {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse().ok().filter(|n| digits && (self.least..=self.most).contains(n));
        number.ok_or_else(|| {
            let &Self { name, default, least, most } = self;
            LimitError::Value { name, value: value.to_owned(), least, most, default }
        })
    }
}

/// Makes a file of frames and knows when it is full.
#[derive(Debug)]
pub struct File {
    limits: Limits,
    packets: u64,
    bytes: u64,
    missing: u64,
}

impl File {
    /// Appends the file's beginning; `device` and `description` say where the frames come from.
    pub fn begin(limits: Limits, device: &str, description: &str, out: &mut Vec<u8>) -> Self {
        let before = out.len();
        let application = concat!("overlayd ", env!("CARGO_PKG_VERSION"));
        let snaplen = u32::try_from(limits.snaplen).unwrap_or(u32::MAX);
        pcapng::begin(out, application, device, description, snaplen);
        Self { limits, packets: 0, bytes: (out.len() - before) as u64, missing: 0 }
    }

    /// Appends a frame, or nothing and `false` if it is one too many. The end of the file has its place in any case.
    pub fn packet(&mut self, frame: &Frame, out: &mut Vec<u8>) -> bool {
        let bytes = pcapng::packet_bytes(frame.data.len(), frame.missing, &frame.comment) as u64;
        if self.is_full() || self.bytes + bytes + pcapng::END_BYTES as u64 > self.limits.bytes {
            return false;
        }
        let length = u32::try_from(frame.length).unwrap_or(u32::MAX);
        let Frame { direction, time, data, missing, comment, .. } = frame;
        pcapng::packet(out, *direction, *time, length, data, *missing, comment);
        self.packets += 1;
        self.bytes += bytes;
        self.missing += frame.missing;
        true
    }

    /// Whether it has all the packets that it was to have.
    pub fn is_full(&self) -> bool {
        self.packets >= self.limits.packets
    }

    /// Appends the file's end: `now` since 1970, and how many more frames are missing after the last.
    pub fn end(&self, now: Duration, missing: u64, out: &mut Vec<u8>) {
        pcapng::end(out, now, self.packets, self.missing + missing);
    }
}

/// A capture on its way into a file.
#[derive(Debug)]
pub struct Recording {
    reader: Reader,
    file: File,
    deadline: Instant,
    frames: Vec<Frame>,
    /// The file's beginning, until it is fetched.
    begin: Option<Vec<u8>>,
    over: bool,
}

impl Recording {
    /// Starts a capture; the time that it may take begins now.
    ///
    /// # Errors
    /// [`Busy`] while another one runs.
    pub fn start(
        capture: &Arc<Capture>,
        limits: Limits,
        device: &str,
        description: &str,
    ) -> Result<Self, Busy> {
        let reader = capture.start(usize::try_from(limits.snaplen).unwrap_or(usize::MAX))?;
        let mut begin = Vec::new();
        let file = File::begin(limits, device, description, &mut begin);
        let deadline = Instant::now() + Duration::from_secs(limits.seconds);
        Ok(Self { reader, file, deadline, frames: Vec::new(), begin: Some(begin), over: false })
    }

    /// The next piece of the file as soon as there is one; the first comes at once. `None` after the last.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if self.over {
            return None;
        }
        if let Some(begin) = self.begin.take() {
            return Some(begin);
        }
        self.fetch().await;
        let mut piece = Vec::new();
        let file = &mut self.file;
        let drained = self.frames.is_empty();
        let all_fit = self.frames.drain(..).all(|frame| file.packet(&frame, &mut piece));
        if drained || !all_fit || file.is_full() {
            self.over = true;
            // What comes after a full file was not asked for, so it is not missing.
            let missing = if drained { self.reader.missing() } else { 0 };
            file.end(now(), missing, &mut piece);
        }
        Some(piece)
    }

    /// Waits for frames. There are none only when time is up and the queue is empty.
    async fn fetch(&mut self) {
        // A queue that is never empty would hide from `timeout_at` that time is up.
        if Instant::now() < self.deadline
            && timeout_at(self.deadline, self.reader.receive(&mut self.frames, BATCH)).await.is_ok()
        {
            return;
        }
        self.reader.stop();
        self.reader.receive(&mut self.frames, BATCH).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "the end of a capture says when it was")]
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::datapath::pcapng::{Direction, Scanner};

    fn frame(bytes: usize, missing: u64) -> Frame {
        let time = Duration::from_secs(1);
        Frame {
            direction: Direction::Inbound,
            time,
            length: bytes,
            data: vec![7; bytes],
            missing,
            comment: "x".repeat(bytes % 7),
        }
    }

    fn scan(bytes: &[u8]) -> Scanner {
        let mut scanner = Scanner::default();
        scanner.feed(bytes, &mut Vec::new()).unwrap();
        scanner
    }

    async fn whole(mut recording: Recording) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = recording.next().await {
            bytes.extend(piece);
        }
        bytes
    }

    fn recording(capture: &Arc<Capture>, query: &str) -> Recording {
        Recording::start(capture, Limits::parse(query).unwrap(), "flannel.1", "VXLAN 1").unwrap()
    }

    #[test]
    fn queries_say_what_they_limit() {
        let defaults = Limits { packets: 1000, bytes: 16_777_216, seconds: 10, snaplen: 262_144 };
        assert_eq!(Limits::parse(""), Ok(defaults));
        assert_eq!(Limits::parse("&seconds=3600"), Ok(Limits { seconds: 3600, ..defaults }));
        let given = Limits { packets: 1, bytes: 4096, seconds: 2, snaplen: 96 };
        assert_eq!(Limits::parse(&given.query()), Ok(given));
    }

    #[test]
    fn what_a_query_cannot_be_is_said() {
        for (query, text) in [
            (
                "packet=3",
                "\"packet\" is no parameter of a capture: it takes packets=N, bytes=N, seconds=N and snaplen=N",
            ),
            ("seconds=1&packets=2&seconds=1", "seconds is given more than once"),
            ("packets=0", "packets=0: must be a number from 1 to 1000000 (default 1000)"),
            ("packets=1000001", "packets=1000001: must be a number from 1 to 1000000 (default 1000)"),
            ("packets=+5", "packets=+5: must be a number from 1 to 1000000 (default 1000)"),
            ("packets", "packets=: must be a number from 1 to 1000000 (default 1000)"),
            (
                "bytes=1073741825",
                "bytes=1073741825: must be a number from 4096 to 1073741824 (default 16777216)",
            ),
            ("seconds=3601", "seconds=3601: must be a number from 1 to 3600 (default 10)"),
            (
                "snaplen=99999999999999999999",
                "snaplen=99999999999999999999: must be a number from 14 to 262144 (default 262144)",
            ),
        ] {
            assert_eq!(Limits::parse(query).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_file_is_never_longer_than_its_limit() {
        let limits = Limits { bytes: 4096, ..Limits::default() };
        for size in [0, 1, 13, 60, 1000, 3700, 3900, 4096] {
            let mut bytes = Vec::new();
            let mut file = File::begin(limits, "flannel.1", "VXLAN 1", &mut bytes);
            let mut fitted = 0;
            while file.packet(&frame(size, fitted % 2), &mut bytes) {
                fitted += 1;
            }
            file.end(Duration::ZERO, 3, &mut bytes);
            assert!(bytes.len() <= 4096, "{size}: {}", bytes.len());
            assert!(
                bytes.len() + pcapng::packet_bytes(size, 1, "123456") > 4096,
                "{size}: there was place for one more"
            );
            let scanner = scan(&bytes);
            assert_eq!((scanner.packets, scanner.missing), (fitted, fitted / 2 + 3));
        }
    }

    #[tokio::test]
    async fn the_number_of_packets_ends_it() {
        let capture = Arc::new(Capture::new());
        let recording = recording(&capture, "packets=100");
        for _ in 0..150 {
            capture.frame(Direction::Outbound, || UNIX_EPOCH, &[&[1; 60]]);
        }
        let scanner = scan(&whole(recording).await);
        assert_eq!((scanner.packets, scanner.missing, scanner.complete), (100, 0, true));
        assert!(!capture.is_on());
    }

    #[tokio::test]
    async fn time_ends_it_and_what_was_in_time_is_in_it() {
        let capture = Arc::new(Capture::new());
        let mut recording = recording(&capture, "seconds=3600");
        let mut bytes = recording.next().await.unwrap();
        assert_eq!(scan(&bytes).packets, 0, "the beginning comes before any frame");
        capture.frame(Direction::Outbound, || UNIX_EPOCH, &[&[1; 60]]);
        bytes.extend(recording.next().await.unwrap());
        assert_eq!(scan(&bytes).packets, 1, "a frame comes at once");
        for _ in 0..100 {
            capture.frame(Direction::Outbound, || UNIX_EPOCH, &[&[1; 60]]);
        }
        recording.deadline = Instant::now();
        bytes.extend(whole(recording).await);
        assert_eq!((scan(&bytes).packets, scan(&bytes).complete), (101, true));
        assert!(!capture.is_on());
    }

    #[tokio::test]
    async fn without_any_traffic_it_is_an_empty_file_after_its_time() {
        let capture = Arc::new(Capture::new());
        let mut recording = recording(&capture, "seconds=3600");
        recording.deadline = Instant::now() + Duration::from_millis(50);
        let deadline = recording.deadline;
        let scanner = scan(&whole(recording).await);
        assert_eq!((scanner.packets, scanner.complete), (0, true));
        assert!(Instant::now() >= deadline);
    }
}
