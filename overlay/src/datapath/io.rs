//! What a worker reads and writes: the device's side ([`Port`]) and the underlay's side ([`Wire`]). The real ones are
//! a TAP queue and UDP sockets; tests put memory in their place.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::inject::Inject;
use super::socket::{Message, Receive, Received, Transmit};
use super::tap::Tap;
use super::wait::{EventFd, wait};

/// One queue of the device.
pub trait Port {
    /// Reads one frame behind its virtio-net header; `None` when there is none now.
    ///
    /// # Errors
    /// `EINVAL`: the kernel cannot say in the header how the frame is to be cut, and has dropped it. Any other: the
    /// device is gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes one frame, its virtio-net header first.
    ///
    /// # Errors
    /// It was not taken.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;
}

/// The underlay.
pub trait Wire {
    /// How many sockets there are to send through.
    fn sockets(&self) -> u32;

    /// Receives what is there, one datagram (or several glued together) into each buffer.
    ///
    /// # Errors
    /// The socket is broken.
    fn receive(&mut self, buffers: &mut [Box<[u8]>], out: &mut Vec<Received>) -> io::Result<usize>;

    /// How many datagrams (or runs of them) were lost so far because nobody received them in time, modulo 2^32.
    fn overflows(&self) -> u32;

    /// Sends through one socket. Returns how many messages were taken, and why the next one was not.
    fn send(&mut self, socket: u32, messages: &[Message<'_>]) -> (usize, Option<io::Error>);

    /// Sends the datagrams of one message one by one. Returns how many were taken, and why another one was not.
    fn send_plain(&mut self, socket: u32, message: &Message<'_>) -> (usize, Option<io::Error>);

    /// The outer source address of what is sent through a socket; `None` if [`Wire::inject`] is not possible.
    fn source(&self, socket: u32) -> Option<SocketAddrV4>;

    /// Sends one super-frame whole, [`super::tunnel::HEADER_BYTES`] of headers first.
    ///
    /// # Errors
    /// It was not taken.
    fn inject(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;
}

/// Sleeping until one of the two has something.
pub trait Sleep<W: Wire>: Port {
    /// Sleeps until there is something to read here or there, or `wake` is signalled; returns whether it is.
    ///
    /// # Errors
    /// Sleeping is not possible.
    fn sleep(&self, wire: &W, wake: &EventFd, timeout: Option<Duration>) -> io::Result<bool>;
}

impl Port for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Tap::read(self, buffer)
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        Tap::write(self, parts)
    }
}

/// A receive socket and the sockets to send through.
#[derive(Debug)]
pub struct Sockets {
    /// Where datagrams arrive.
    pub receive: Receive,
    /// One is chosen by the flow.
    pub transmit: Vec<Transmit>,
    /// Where super-frames are sent whole, and the addresses of the sockets.
    inject: Option<(Inject, Vec<SocketAddrV4>)>,
}

impl Sockets {
    /// These sockets, and no way to send super-frames whole.
    pub fn new(receive: Receive, transmit: Vec<Transmit>) -> Self {
        Self { receive, transmit, inject: None }
    }

    /// Sends super-frames whole from now on.
    ///
    /// # Errors
    /// The sockets are not IPv4's.
    pub fn set_inject(&mut self, inject: Inject) -> io::Result<()> {
        let sources = self.transmit.iter().map(|socket| match socket.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
        });
        self.inject = Some((inject, sources.collect::<io::Result<_>>()?));
        Ok(())
    }

    /// Whether super-frames are sent whole.
    pub fn injects(&self) -> bool {
        self.inject.is_some()
    }
}

impl Wire for Sockets {
    fn sockets(&self) -> u32 {
        u32::try_from(self.transmit.len()).unwrap_or(u32::MAX)
    }

    fn receive(&mut self, buffers: &mut [Box<[u8]>], out: &mut Vec<Received>) -> io::Result<usize> {
        self.receive.receive(buffers, out)
    }

    fn overflows(&self) -> u32 {
        self.receive.overflows()
    }

    fn send(&mut self, socket: u32, messages: &[Message<'_>]) -> (usize, Option<io::Error>) {
        self.transmit[socket as usize].send(messages)
    }

    fn send_plain(&mut self, socket: u32, message: &Message<'_>) -> (usize, Option<io::Error>) {
        self.transmit[socket as usize].send_plain(message)
    }

    fn source(&self, socket: u32) -> Option<SocketAddrV4> {
        self.inject.as_ref().map(|(_, sources)| sources[socket as usize])
    }

    fn inject(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let (inject, _) = self.inject.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        inject.write(parts)
    }
}

impl Sleep<Sockets> for Tap {
    fn sleep(&self, wire: &Sockets, wake: &EventFd, timeout: Option<Duration>) -> io::Result<bool> {
        wait(self, &wire.receive, wake, timeout).map(|ready| ready.woken)
    }
}
