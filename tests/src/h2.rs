//! An HTTP/2 client that does as it is told and nothing else: no window is opened, no frame answered unless a test says
//! so (RFC 9113; RFC 7541 for the headers).

#![expect(clippy::disallowed_methods, reason = "measures how long a real server puts up with something")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Kinds of frames (section 6).
pub const DATA: u8 = 0;
/// Header fields of a stream.
pub const HEADERS: u8 = 1;
/// The end of one stream.
pub const RST_STREAM: u8 = 3;
/// What a side expects of the other.
pub const SETTINGS: u8 = 4;
/// The end of all.
pub const GOAWAY: u8 = 7;
/// Room for more data.
pub const WINDOW_UPDATE: u8 = 8;
/// More header fields.
pub const CONTINUATION: u8 = 9;

/// The code with which a stream is refused before anything was done (section 7).
pub const REFUSED_STREAM: u32 = 7;
/// The code for a client that overdoes it.
pub const ENHANCE_YOUR_CALM: u32 = 11;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The largest frame without asking.
const FRAME: usize = 16 << 10;
const STEP: Duration = Duration::from_millis(500);

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream, or 0 for the connection.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Whether it is of that kind on that stream.
    pub fn is(&self, kind: u8, stream: u32) -> bool {
        (self.kind, self.stream) == (kind, stream)
    }

    /// The code of an `RST_STREAM` (the last word also of a bare `GOAWAY`'s head).
    ///
    /// # Errors
    /// When it is another frame.
    pub fn code(&self) -> Result<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            kind => bail!("a frame of kind {kind} has no code"),
        };
        let code = self.payload.get(at..at + 4).context("a short frame")?;
        Ok(u32::from_be_bytes(code.try_into()?))
    }

    /// The status that these headers begin with, as the first field must be it here.
    ///
    /// # Errors
    /// When they are written in a way that this client does not read.
    pub fn status(&self) -> Result<u16> {
        ensure!(self.kind == HEADERS, "{self:?}");
        // An update of the table's size may come first.
        let field = self.payload.iter().position(|byte| byte >> 5 != 1).context("no field")?;
        let field = &self.payload[field..];
        if let Some(known) = field[0].checked_sub(0x88).and_then(|at| STATUSES.get(usize::from(at))) {
            return Ok(*known);
        }
        // A literal whose name is field 8 of the static table, kept by the decoder or not.
        ensure!(matches!(field[0], 0x48 | 0x08 | 0x18), "{field:x?}");
        let length = usize::from(field[1] & 0x7f);
        let value = field.get(2..2 + length).context("a short field")?;
        let digits = if field[1] & 0x80 == 0 { value.to_vec() } else { huffman_digits(value) };
        String::from_utf8(digits)?.parse().context("a status")
    }
}

/// The statuses of the static table from its eighth field on.
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

/// Digits in the code of RFC 7541 appendix B: five bits for 0 to 2, six for the others.
fn huffman_digits(value: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = value.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let (mut rest, mut digits) = (bits.as_slice(), Vec::new());
    while rest.len() >= 5 {
        let five = number(&rest[..5]);
        let (digit, length) = match rest.get(..6).map(number) {
            _ if five <= 2 => (five, 5),
            Some(six @ 0x19..=0x1f) => (six - 0x16, 6),
            _ => break,
        };
        digits.push(b'0' + digit);
        rest = &rest[length..];
    }
    digits
}

/// A connection over HTTP/2 in the clear, without asking first.
#[derive(Debug)]
pub struct H2 {
    tcp: TcpStream,
    begun: Instant,
    next: u32,
    read: Vec<u8>,
}

impl H2 {
    /// Connects with so many bytes of room on each stream.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn open(address: SocketAddr, window: u32) -> Result<Self> {
        let tcp = TcpStream::connect_timeout(&address, Duration::from_secs(10))
            .with_context(|| format!("connecting to {address}"))?;
        tcp.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut h2 = Self { tcp, begun: Instant::now(), next: 1, read: Vec::new() };
        let mut settings = Vec::new();
        // SETTINGS_HEADER_TABLE_SIZE, so that no header refers to an earlier one, and SETTINGS_INITIAL_WINDOW_SIZE.
        for (name, value) in [(1_u16, 0), (4, window)] {
            settings.extend(name.to_be_bytes());
            settings.extend(value.to_be_bytes());
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &settings));
        bytes.extend(frame(SETTINGS, 1, 0, &[]));
        h2.send(&bytes)?;
        Ok(h2)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.tcp.write_all(bytes).context("sending")
    }

    /// The frames of a request with an end or with a body to come, and its stream.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        end: bool,
    ) -> (u32, Vec<u8>) {
        let mut block = Vec::new();
        let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")];
        for &(name, value) in fields.iter().chain(headers) {
            block.push(0);
            literal(&mut block, name);
            literal(&mut block, value);
        }
        let stream = self.next;
        self.next += 2;
        let mut parts: Vec<&[u8]> = block.chunks(FRAME).collect();
        let last = parts.pop().unwrap_or_default();
        let mut bytes = Vec::new();
        let mut kind = (HEADERS, u8::from(end) * END_STREAM);
        for part in parts {
            bytes.extend(frame(kind.0, kind.1, stream, part));
            kind = (CONTINUATION, 0);
        }
        bytes.extend(frame(kind.0, kind.1 | END_HEADERS, stream, last));
        (stream, bytes)
    }

    /// Sends a GET and returns its stream.
    ///
    /// # Errors
    /// When the server has closed the connection.
    pub fn get(&mut self, path: &str) -> Result<u32> {
        let (stream, bytes) = self.request("GET", path, &[], true);
        self.send(&bytes)?;
        Ok(stream)
    }

    /// Sends the head of a PUT whose form never comes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put_head(&mut self, path: &str) -> Result<u32> {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let (stream, bytes) = self.request("PUT", path, &form, false);
        self.send(&bytes)?;
        Ok(stream)
    }

    /// Sends a GET with a header of that length.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_with_header(&mut self, path: &str, length: usize) -> Result<u32> {
        let value = "x".repeat(length);
        let (stream, bytes) = self.request("GET", path, &[("x-long", &value)], true);
        self.send(&bytes)?;
        Ok(stream)
    }

    /// Opens streams and resets them at once, all in one write.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn open_and_reset(&mut self, path: &str, count: usize) -> Result<()> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let (stream, request) = self.request("GET", path, &[], true);
            bytes.extend(request);
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        self.send(&bytes)
    }

    /// Gives room for more data on a stream, or on the connection with stream 0.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn make_room(&mut self, stream: u32, bytes: u32) -> Result<()> {
        self.send(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()))
    }

    /// The next frame; `None` at the end of the connection.
    ///
    /// # Errors
    /// When neither comes within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Frame>> {
        let deadline = Instant::now() + limit;
        let mut buffer = [0; FRAME];
        loop {
            if let Some(frame) = self.take() {
                return Ok(Some(frame));
            }
            self.tcp.set_read_timeout(Some(STEP))?;
            match self.tcp.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    ensure!(Instant::now() < deadline, "no frame within {limit:?}");
                }
                Err(e) => return Err(e).context("reading"),
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.read.get(..9)?.try_into().ok()?;
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).ok()?;
        let payload = self.read.get(9..9 + length)?.to_vec();
        self.read.drain(..9 + length);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads until a frame is as wanted.
    ///
    /// # Errors
    /// When the connection ends before, or it does not come within `limit`: what came instead.
    pub fn wait(&mut self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let (deadline, mut seen) = (Instant::now() + limit, Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left).with_context(|| format!("after {seen:?}"))? {
                Some(frame) if wanted(&frame) => return Ok(frame),
                Some(frame) => seen.push((frame.kind, frame.stream, frame.payload.len())),
                None => bail!("the connection ended after {seen:?}"),
            }
        }
    }

    /// Reads until the server ends the connection, and says when, counted from the beginning.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn until_closed(&mut self, limit: Duration) -> Result<Duration> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.next(left)?.is_none() {
                return Ok(self.begun.elapsed());
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A string as it is (RFC 7541 sections 5.1 and 5.2).
fn literal(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap_or(0));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap_or(0) | 0x80);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap_or(0));
    }
    block.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn statuses_are_read_however_they_are_written() {
        let status = |payload: &[u8]| {
            let frame = Frame { kind: HEADERS, flags: 4, stream: 1, payload: payload.to_vec() };
            frame.status()
        };
        assert_eq!(status(&[0x88]).unwrap(), 200);
        assert_eq!(status(&[0x20, 0x8d]).unwrap(), 404);
        assert_eq!(status(b"\x08\x03503").unwrap(), 503);
        // 302 as in RFC 7541, C.6.1.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]).unwrap(), 302);
        assert!(status(&[0x00]).is_err());
    }

    #[test]
    fn long_strings_have_long_lengths() {
        // 1337 with a prefix of 5 bits is the example of RFC 7541, C.1.2; here the prefix has 7.
        let mut block = Vec::new();
        literal(&mut block, &"x".repeat(1337));
        assert_eq!(&block[..3], [127, 0xba, 0x09]);
        assert_eq!(block.len(), 3 + 1337);
    }
}
