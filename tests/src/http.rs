//! An HTTP/1.1 client that sends exactly the bytes it is told and hides nothing of the answer.
//!
//! Tests compare servers byte by byte, so nothing here cleans paths, follows redirects or retries. Plain HTTP
//! only, one connection per request; TLS goes through `curl`.

#![expect(clippy::disallowed_methods, reason = "bounds real answers by real time")]

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ns::Namespace;

/// An answer, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Header lines in order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, chunks joined.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body as text, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none: the status and the body.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, body is not JSON: {}", self.status, self.text()))
    }
}

/// What to send.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Method; empty is GET.
    pub method: &'a str,
    /// Request target, sent as it is.
    pub target: &'a str,
    /// Content type and body.
    pub body: Option<(&'a str, &'a str)>,
    /// Further header lines.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Sends `request` to `address`, from inside `ns` if given, and reads the whole answer.
///
/// # Errors
/// When nothing listens there, the answer is not HTTP, or it is not complete within `limit`.
pub fn send(
    ns: Option<&Namespace>,
    address: SocketAddr,
    request: &Request<'_>,
    limit: Duration,
) -> Result<Reply> {
    Exchange::start(ns, address, request, limit)?.finish(limit)
}

/// The same over a Unix socket.
///
/// # Errors
/// As [`send`]; each read may take `limit`.
pub fn send_unix(path: &Path, request: &Request<'_>, limit: Duration) -> Result<Reply> {
    let mut stream =
        UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let method = if request.method.is_empty() { "GET" } else { request.method };
    let line = format!("{method} {} at {}", request.target, path.display());
    stream
        .write_all(message(method, &"localhost", request, false).as_bytes())
        .with_context(|| line.clone())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| line.clone())?;
    parse(&bytes, method == "HEAD").with_context(|| line)
}

/// A request whose answer is still coming: a watch, a stream.
#[derive(Debug)]
pub struct Exchange {
    stream: TcpStream,
    bytes: Vec<u8>,
    line: String,
    bodiless: bool,
}

impl Exchange {
    /// Connects within `limit` and sends the request.
    ///
    /// # Errors
    /// When nothing listens there or the request cannot be sent.
    pub fn start(
        ns: Option<&Namespace>,
        address: SocketAddr,
        request: &Request<'_>,
        limit: Duration,
    ) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&address, limit);
        let stream = match ns {
            Some(ns) => ns.enter(connect)?,
            None => connect(),
        };
        let mut stream = stream.with_context(|| format!("connecting to {address}"))?;
        stream.set_write_timeout(Some(limit))?;
        let method = if request.method.is_empty() { "GET" } else { request.method };
        let line = format!("{method} {} at {address}", request.target);
        stream
            .write_all(message(method, &address, request, false).as_bytes())
            .with_context(|| line.clone())?;
        Ok(Self { stream, bytes: Vec::new(), line, bodiless: method == "HEAD" })
    }

    /// Reads until what has arrived satisfies `enough`, or the server closes.
    fn read_until(&mut self, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut buffer = [0_u8; 8192];
        while !enough(&self.bytes) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let so_far = String::from_utf8_lossy(&self.bytes);
                bail!("{}: not answered within {limit:?}; so far: {so_far}", self.line);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e).with_context(|| self.line.clone()),
            }
        }
        Ok(())
    }

    /// Waits for status and headers: a watch is registered once they are there.
    ///
    /// # Errors
    /// When they do not come within `limit`.
    pub fn wait_headers(&mut self, limit: Duration) -> Result<()> {
        self.read_until(limit, |bytes| bytes.windows(4).any(|w| w == b"\r\n\r\n"))
    }

    /// Waits for the body to hold `lines` lines, closes the connection and returns what came.
    ///
    /// # Errors
    /// When they do not come within `limit`.
    pub fn take_lines(mut self, lines: usize, limit: Duration) -> Result<Reply> {
        // A line of JSON never holds a newline, and chunk ends are CRLF.
        let count = |bytes: &[u8]| bytes.windows(2).filter(|w| w == b"}\n").count();
        self.read_until(limit, |bytes| count(bytes) >= lines && bytes.ends_with(b"\r\n"))?;
        parse(&self.bytes, self.bodiless).with_context(|| self.line)
    }

    /// Reads to the end of the answer.
    ///
    /// # Errors
    /// When it is not complete within `limit`, or is not HTTP.
    pub fn finish(mut self, limit: Duration) -> Result<Reply> {
        self.read_until(limit, |_| false)?;
        parse(&self.bytes, self.bodiless).with_context(|| self.line)
    }
}

/// The bytes of a request; `keep` leaves the connection open for another one.
pub(crate) fn message(method: &str, host: &dyn fmt::Display, request: &Request<'_>, keep: bool) -> String {
    let mut message = format!("{method} {} HTTP/1.1\r\nHost: {host}\r\n", request.target);
    if !keep {
        message.push_str("Connection: close\r\n");
    }
    for &(name, value) in request.headers {
        message.extend([name, ": ", value, "\r\n"]);
    }
    let mut content = "";
    if let Some((kind, body)) = request.body {
        if !kind.is_empty() {
            message.extend(["Content-Type: ", kind, "\r\n"]);
        }
        message.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        content = body;
    }
    message.push_str("\r\n");
    message.push_str(content);
    message
}

/// Splits a complete answer into its parts.
///
/// # Errors
/// When it is not HTTP/1 or is cut short.
pub fn parse(bytes: &[u8], bodiless: bool) -> Result<Reply> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("headers are not text")?;
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("status line `{status_line}`"))?;
    let headers = lines
        .map(|l| l.split_once(':').map(|(n, v)| (n.to_owned(), v.trim().to_owned())))
        .collect::<Option<Vec<_>>>()
        .with_context(|| format!("a header line without colon in {head}"))?;
    let mut reply = Reply { status, headers, body: bytes[end + 4..].to_vec() };
    if bodiless {
        return Ok(reply);
    }
    if reply.header("Transfer-Encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        reply.body = unchunk(&reply.body)?;
    } else if let Some(length) = reply.header("Content-Length") {
        let length: usize = length.parse().context("Content-Length")?;
        if reply.body.len() != length {
            bail!("{} bytes of body where Content-Length says {length}", reply.body.len());
        }
    }
    Ok(reply)
}

/// Joins the chunks of a chunked body (RFC 9112 section 7.1). The end may be missing where a watch was cut.
fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while !rest.is_empty() {
        let line = rest.windows(2).position(|w| w == b"\r\n").context("chunk without length line")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16).context("chunk length")?;
        if size == 0 {
            break;
        }
        let chunk = rest.get(line + 2..line + 2 + size).context("chunk cut short")?;
        body.extend_from_slice(chunk);
        rest = rest.get(line + 4 + size..).unwrap_or_default();
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn chunks_are_joined_and_lengths_checked() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunked, false).unwrap().body, b"abcd");
        let short = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nabc";
        assert!(parse(short, false).is_err());
        assert_eq!(parse(short, true).unwrap().status, 404);
    }
}
