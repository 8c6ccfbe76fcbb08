//! A TCP connection that a test misuses: half requests, dribbled bytes, answers that nobody reads.

#![expect(clippy::disallowed_methods, reason = "measures how long a real server puts up with something")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A pause between two looks or two dribbled bytes.
const STEP: Duration = Duration::from_millis(500);

/// An open connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    begun: Instant,
}

/// How a connection ended.
#[derive(Debug)]
pub struct Ended {
    /// What the server said before.
    pub said: Vec<u8>,
    /// When, counted from when it was opened.
    pub after: Duration,
}

impl Ended {
    /// What the server said, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }
}

impl Raw {
    /// Connects and sends `bytes`.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn open(address: SocketAddr, bytes: &[u8]) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))
            .with_context(|| format!("connecting to {address}"))?;
        let begun = Instant::now();
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let mut raw = Self { stream, begun };
        raw.send(bytes)?;
        Ok(raw)
    }

    /// Sends more.
    ///
    /// # Errors
    /// When the server has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("sending")
    }

    /// Reads until what has come satisfies `enough`.
    ///
    /// # Errors
    /// When that does not happen within `limit`, or the connection ends before: what came.
    pub fn read_until(&mut self, limit: Duration, enough: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let (deadline, mut said) = (Instant::now() + limit, Vec::new());
        let mut buffer = [0; 16 << 10];
        while !enough(&said) {
            self.stream.set_read_timeout(Some(STEP))?;
            let shown = || String::from_utf8_lossy(&said[..said.len().min(500)]).into_owned();
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("the connection ended after: {}", shown()),
                Ok(n) => said.extend_from_slice(&buffer[..n]),
                Err(e) if is_timeout(&e) && Instant::now() < deadline => {}
                Err(e) => return Err(e).with_context(|| format!("after: {}", shown())),
            }
        }
        Ok(said)
    }

    /// Reads one answer's status line and headers.
    ///
    /// # Errors
    /// As [`Self::read_until`].
    pub fn head(&mut self, limit: Duration) -> Result<String> {
        let said = self.read_until(limit, |said| said.windows(4).any(|w| w == b"\r\n\r\n"))?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Waits until the server ends the connection, sending a byte of `drip` now and then, over and over.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub fn until_closed(mut self, drip: &[u8], limit: Duration) -> Result<Ended> {
        let mut said = Vec::new();
        let mut buffer = [0; 16 << 10];
        let mut drops = drip.iter().cycle();
        loop {
            self.stream.set_read_timeout(Some(STEP))?;
            match self.stream.read(&mut buffer) {
                Ok(n) if n > 0 => said.extend_from_slice(&buffer[..n]),
                Err(e) if is_timeout(&e) => {
                    if self.begun.elapsed() > limit {
                        bail!("still open after {limit:?}; so far: {}", String::from_utf8_lossy(&said));
                    }
                    if let Some(drop) = drops.next() {
                        // A failure shows in the next read.
                        self.stream.write_all(&[*drop]).ok();
                    }
                }
                // The end, or a reset.
                _ => return Ok(Ended { said, after: self.begun.elapsed() }),
            }
        }
    }

    /// Whether the server has left it open, and said nothing.
    ///
    /// # Errors
    /// When the socket cannot be looked at.
    pub fn is_quiet(&self) -> Result<bool> {
        Ok(self.look(&mut [0])?.is_err_and(|e| e.kind() == ErrorKind::WouldBlock))
    }

    /// The beginning of what the server has said and nobody has read; it stays unread.
    ///
    /// # Errors
    /// When the socket cannot be looked at.
    pub fn peek(&self) -> Result<String> {
        let mut bytes = [0; 1024];
        let length = self.look(&mut bytes)?.unwrap_or(0);
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    fn look(&self, bytes: &mut [u8]) -> Result<std::io::Result<usize>> {
        self.stream.set_nonblocking(true)?;
        let peeked = self.stream.peek(bytes);
        self.stream.set_nonblocking(false)?;
        Ok(peeked)
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
