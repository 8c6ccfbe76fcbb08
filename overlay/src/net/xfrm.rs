//! Whether this host encrypts what it sends: `IPsec` policies (xfrm), asked for over netlink, which also tells of changes.
//!
//! ```text
//! request   nlmsghdr 16 | flags u32                      XFRM_MSG_GETSPDINFO
//! answer    nlmsghdr 16 | flags u32 | attributes         XFRM_MSG_NEWSPDINFO; XFRMA_SPD_INFO: in, out, forward, ... u32
//! ```

use std::io;

use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket};
use nix::libc;
use tokio::sync::mpsc::Sender;
use tracing::debug;

use super::netlink::tell;

/// `NETLINK_XFRM` of `linux/netlink.h`.
const PROTOCOL: isize = 6;
const GET_SPD_INFO: u16 = 0x25;
const NEW_SPD_INFO: u16 = 0x24;
const XFRMA_SPD_INFO: u16 = 1;
const REQUEST: u16 = 1;
/// `XFRMNLGRP_POLICY`.
const POLICY_GROUP: u32 = 4;
const HEADER_BYTES: usize = 16;

/// Whether there are policies for outgoing packets, or may be: only a kernel without `IPsec` surely has none.
pub(super) fn has_policies() -> bool {
    match outgoing() {
        Ok(policies) => policies > 0,
        Err(error) => error.raw_os_error() != Some(libc::EPROTONOSUPPORT),
    }
}

/// Sends a word through `changed` whenever a policy appears, changes or goes, until nobody listens. On a kernel without
/// `IPsec` there is nothing to tell.
pub(super) async fn watch(changed: Sender<()>) {
    if let Err(error) = listen(&changed).await {
        debug!("no notifications from the kernel about IPsec policies: {error}");
    }
}

async fn listen(changed: &Sender<()>) -> io::Result<()> {
    let mut socket = TokioSocket::new(PROTOCOL)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_mut().add_membership(POLICY_GROUP)?;
    loop {
        match socket.recv_from_full().await {
            Ok(_) => {}
            // So many that some were lost: it has changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
        if !tell(changed) {
            return Ok(());
        }
    }
}

fn outgoing() -> io::Result<u32> {
    let socket = Socket::new(PROTOCOL)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut answer = Vec::with_capacity(1024);
    socket.recv(&mut answer, 0)?;
    parse(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 4);
    bytes.extend(20u32.to_ne_bytes());
    bytes.extend(GET_SPD_INFO.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 12]); // sequence, port, flags of xfrm
    bytes
}

/// The number of policies for outgoing packets; `None` if this is no such answer.
fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != NEW_SPD_INFO {
        return None;
    }
    let mut attributes = answer.get(HEADER_BYTES + 4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let data = attributes.get(4..length)?;
        if kind == XFRMA_SPD_INFO {
            return Some(u32::from_ne_bytes(*data.get(4..)?.first_chunk()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(policies: [u32; 3]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + 4];
        bytes[4..6].copy_from_slice(&NEW_SPD_INFO.to_ne_bytes());
        // Another attribute first, of odd length.
        bytes.extend([5, 0, 2, 0, 9, 0, 0, 0]);
        bytes.extend([16u16, XFRMA_SPD_INFO].map(u16::to_ne_bytes).concat());
        bytes.extend(policies.map(u32::to_ne_bytes).concat());
        bytes
    }

    #[test]
    fn outgoing_policies_are_counted() {
        assert_eq!(parse(&answer([7, 3, 9])), Some(3));
        assert_eq!(parse(&answer([7, 0, 9])), Some(0));
        assert_eq!(request().len(), 20);
    }

    #[test]
    fn the_kernel_understands_the_question() {
        match outgoing() {
            Ok(policies) => assert!(policies < 1_000_000),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT), "{error}"),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..48) {
            let _ = parse(&bytes);
            let mut bytes = answer([1, 2, 3]);
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }
    }
}
