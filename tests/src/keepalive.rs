//! An HTTP/1.1 connection that is kept for many requests, and that knows whether a lost one can have been received.

#![expect(clippy::disallowed_methods, reason = "bounds real answers by real time")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::http::{self, Reply, Request};
use crate::ns::Namespace;

/// Why there is no answer.
#[derive(Debug)]
pub enum Lost {
    /// There was no connection: the request has certainly not been received.
    NotSent(Error),
    /// It may have been received, and may yet be carried out.
    Unknown(Error),
}

/// One server, and the connection to it while it lasts.
#[derive(Debug)]
pub struct Connection<'a> {
    ns: Option<&'a Namespace>,
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl<'a> Connection<'a> {
    /// A server at `address`, reached from inside `ns` if given. Nothing is dialled yet.
    pub fn new(ns: Option<&'a Namespace>, address: SocketAddr) -> Self {
        Self { ns, address, stream: None }
    }

    /// Sends `request` and waits for its whole answer, both within `limit`. After a failure the next request dials anew.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn send(&mut self, request: &Request<'_>, limit: Duration) -> Result<Reply, Lost> {
        let deadline = Instant::now() + limit;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.dial(limit).map_err(Lost::NotSent)?,
        };
        let reply = exchange(&mut stream, self.address, request, deadline).map_err(Lost::Unknown)?;
        if !reply.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.stream = Some(stream);
        }
        Ok(reply)
    }

    fn dial(&self, limit: Duration) -> Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&self.address, limit);
        let stream = match self.ns {
            Some(ns) => ns.enter(connect)?,
            None => connect(),
        };
        let stream = stream.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn exchange(
    stream: &mut TcpStream,
    address: SocketAddr,
    request: &Request<'_>,
    deadline: Instant,
) -> Result<Reply> {
    let method = if request.method.is_empty() { "GET" } else { request.method };
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(http::message(method, &address, request, true).as_bytes()).context("sending")?;
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 8192];
    while !is_complete(&bytes) {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => bail!("the connection was closed after {} bytes of the answer", bytes.len()),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("reading the answer"),
        }
    }
    http::parse(&bytes, method == "HEAD")
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(anyhow!("no answer in time")) } else { Ok(left) }
}

/// Whether an answer with a body has arrived to its end (RFC 9112 section 6.3).
fn is_complete(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let body = &bytes[end + 4..];
    let header = |name: &str| {
        head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name))
    };
    if let Some((_, length)) = header("content-length") {
        return length.trim().parse().is_ok_and(|length: usize| body.len() >= length);
    }
    // Neither a chunk of JSON nor its length line ends like this: it is the last chunk.
    header("transfer-encoding").is_some() && (body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer_is_found() {
        let counted = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert!(is_complete(counted) && !is_complete(&counted[..counted.len() - 1]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab\n\r\n0\r\n\r\n";
        assert!(is_complete(chunked));
        assert!((0..chunked.len()).all(|cut| !is_complete(&chunked[..cut])));
    }
}
