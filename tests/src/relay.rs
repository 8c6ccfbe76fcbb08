//! A TCP relay that stops after so many bytes, so that what goes through it is half done for as long as a test wants.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// Bytes moved at once.
const PIECE: usize = 16 << 10;

/// Passes on what comes to an address, from all connections together only so many bytes until it is opened. What
/// is answered passes freely. Ends with its connections when dropped.
#[derive(Debug)]
pub struct Relay {
    state: Arc<(Mutex<State>, Condvar)>,
    at: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that may still pass.
    left: usize,
    over: bool,
    streams: Vec<TcpStream>,
}

impl Relay {
    /// Listens at `at` and passes on to `to`.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn start(at: SocketAddr, to: SocketAddr, bytes: usize) -> Result<Self> {
        let listener = TcpListener::bind(at).with_context(|| format!("a relay at {at}"))?;
        let state = Arc::new((Mutex::new(State { left: bytes, ..State::default() }), Condvar::new()));
        let shared = Arc::clone(&state);
        let accepting = std::thread::spawn(move || accept(&listener, to, &shared));
        Ok(Self { state, at, accepting: Some(accepting) })
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        lock(&self.state.0).left = usize::MAX;
        self.state.1.notify_all();
    }

    /// A free address for what stands behind a relay.
    ///
    /// # Errors
    /// When there is none.
    pub fn free_address() -> Result<SocketAddr> {
        Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        {
            let mut state = lock(&self.state.0);
            state.over = true;
            for stream in state.streams.drain(..) {
                stream.shutdown(Shutdown::Both).ok();
            }
        }
        self.state.1.notify_all();
        // It waits for the next connection.
        TcpStream::connect(self.at).ok();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().ok();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, to: SocketAddr, shared: &Arc<(Mutex<State>, Condvar)>) {
    std::thread::scope(|threads| {
        while let Ok((from, _)) = listener.accept() {
            // Nobody behind it: as if nobody were here.
            let into = TcpStream::connect(to);
            let mut state = lock(&shared.0);
            if state.over {
                break;
            }
            let Ok(into) = into else { continue };
            let (Ok(from2), Ok(into2)) = (from.try_clone(), into.try_clone()) else { continue };
            let (Ok(from3), Ok(into3)) = (from.try_clone(), into.try_clone()) else { continue };
            state.streams.extend([from3, into3]);
            drop(state);
            threads.spawn(move || pass(from, into, |bytes| take(shared, bytes)));
            threads.spawn(move || pass(into2, from2, |_| true));
        }
    });
}

/// Waits until `bytes` may pass; `false` when the relay is over.
fn take(shared: &(Mutex<State>, Condvar), bytes: usize) -> bool {
    let waits = |state: &mut State| !state.over && state.left < bytes;
    let mut state = shared.1.wait_while(lock(&shared.0), waits).unwrap_or_else(PoisonError::into_inner);
    if state.left != usize::MAX {
        state.left = state.left.saturating_sub(bytes);
    }
    !state.over
}

/// Passes on in one direction until an end is closed.
fn pass(mut from: TcpStream, mut into: TcpStream, may: impl Fn(usize) -> bool) {
    let mut piece = vec![0; PIECE];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        if !may(bytes) || into.write_all(&piece[..bytes]).is_err() {
            break;
        }
    }
    into.shutdown(Shutdown::Both).ok();
    from.shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::ensure;

    use super::*;

    #[test]
    fn it_stops_and_goes_on() -> Result<()> {
        let behind = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let relay = Relay::start(Relay::free_address()?, behind.local_addr()?, PIECE)?;
        let mut client = TcpStream::connect(relay.at)?;
        let (mut server, _) = behind.accept()?;
        client.write_all(&[7; PIECE])?;
        let mut got = vec![0; PIECE];
        server.read_exact(&mut got)?;
        client.write_all(&[8])?;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        ensure!(server.read(&mut got).is_err(), "more than was allowed has passed");
        server.write_all(&[9])?;
        client.read_exact(&mut got[..1])?;
        relay.open();
        server.set_read_timeout(Some(Duration::from_secs(20)))?;
        server.read_exact(&mut got[..1])?;
        ensure!(got[0] == 8);
        drop(relay);
        ensure!(client.read(&mut got)? == 0, "its connections end with it");
        Ok(())
    }
}
