//! Socket addresses and control messages as bytes, in the layout that the kernel reads and writes. Pure.
//!
//! Writing them byte by byte instead of through the C structures keeps [`super::sys`], the only module with `unsafe`,
//! down to the calls themselves.
//!
//! ```text
//! sockaddr_in    family u16 | port u16, network order | address 4 | zero 8                            16 bytes
//! sockaddr_in6   family u16 | port u16, network order | flow 4 | address 16 | scope u32               28 bytes
//! cmsghdr        length usize (header and data) | level i32 | type i32 | data | padding to a multiple of usize
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::libc;

/// Length of the longer of the two socket addresses.
const NAME_BYTES: usize = 28;
const V4_BYTES: usize = 16;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "address families are small")]
const AF_INET: u16 = libc::AF_INET as u16;
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "address families are small")]
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// Room for a socket address.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Name([u8; NAME_BYTES]);

impl Name {
    /// No address.
    pub(super) const EMPTY: Self = Self([0; NAME_BYTES]);
    /// What there is room for, in bytes.
    pub(super) const CAPACITY: u32 = 28;

    /// Writes an address; returns its length in bytes.
    pub(super) fn set(&mut self, address: SocketAddr) -> u32 {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&AF_INET.to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..V4_BYTES].fill(0);
                16
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
                28
            }
        }
    }

    /// Reads an address of `len` bytes; `None` if it is neither IPv4 nor IPv6, or cut off.
    pub(super) fn get(&self, len: u32) -> Option<SocketAddr> {
        let bytes = self.0.get(..len as usize)?;
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        if family == AF_INET && bytes.len() >= V4_BYTES {
            let address: [u8; 4] = *bytes[4..].first_chunk()?;
            return Some(SocketAddrV4::new(Ipv4Addr::from(address), port).into());
        }
        if family == AF_INET6 && bytes.len() >= NAME_BYTES {
            let flow = u32::from_ne_bytes(*bytes[4..].first_chunk()?);
            let address: [u8; 16] = *bytes[8..].first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes[24..].first_chunk()?);
            return Some(SocketAddrV6::new(Ipv6Addr::from(address), port, flow, scope).into());
        }
        None
    }
}

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;
/// Room for four control messages of up to eight bytes; two are the most that is sent, three that is received.
const CONTROL_BYTES: usize = 4 * (HEADER + 8);

/// The control messages of one datagram.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL_BYTES]);

impl Control {
    /// No control message.
    pub(super) const EMPTY: Self = Self([0; CONTROL_BYTES]);
    /// What there is room for, in bytes.
    pub(super) const CAPACITY: usize = CONTROL_BYTES;

    /// Appends a message behind the `at` bytes that are there already; returns the length with it.
    ///
    /// # Panics
    /// When there is no room, which is a mistake of the caller: it sends at most two messages of at most 4 bytes.
    pub(super) fn push(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let end = at + HEADER + data.len();
        self.0[at..at + WORD].copy_from_slice(&(HEADER + data.len()).to_ne_bytes());
        self.0[at + WORD..at + WORD + 4].copy_from_slice(&level.to_ne_bytes());
        self.0[at + WORD + 4..at + HEADER].copy_from_slice(&kind.to_ne_bytes());
        self.0[at + HEADER..end].copy_from_slice(data);
        end.next_multiple_of(WORD)
    }

    /// The messages in the first `len` bytes: level, type, data. Ends at the first one that is not whole.
    pub(super) fn iter(&self, len: usize) -> Messages<'_> {
        Messages(&self.0[..len.min(CONTROL_BYTES)])
    }
}

/// See [`Control::iter`].
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, _) = self.0.split_at_checked(HEADER)?;
        let len = usize::from_ne_bytes(*head.first_chunk()?);
        let level = i32::from_ne_bytes(*head[WORD..].first_chunk()?);
        let kind = i32::from_ne_bytes(*head[WORD + 4..].first_chunk()?);
        let data = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(WORD)..).unwrap_or_default();
        Some((level, kind, data))
    }
}

/// A number in a control message, which the kernel writes as one byte (`IP_TOS`) or as an int (all others).
pub(super) fn number(data: &[u8]) -> Option<u32> {
    match data {
        [byte] => Some(u32::from(*byte)),
        _ => Some(u32::from_ne_bytes(*data.first_chunk()?)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_survive_the_round_trip_also_over_an_older_one() {
        let mut name = Name::EMPTY;
        for text in ["[2001:db8::1]:8472", "10.1.2.3:8472", "[fe80::1%7]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let len = name.set(address);
            assert_eq!(name.get(len), Some(address));
            assert_eq!(name.get(len - 1), None);
        }
        assert_eq!(Name::EMPTY.get(Name::CAPACITY), None);
    }

    #[test]
    fn layout_is_the_kernels() {
        assert_eq!(NAME_BYTES, size_of::<libc::sockaddr_in6>());
        assert_eq!(V4_BYTES, size_of::<libc::sockaddr_in>());
        assert_eq!(HEADER, size_of::<libc::cmsghdr>());
        let mut name = Name::EMPTY;
        name.set("10.1.2.3:8472".parse().unwrap());
        assert_eq!(name.0[2..8], [0x21, 0x18, 10, 1, 2, 3]);
    }

    #[test]
    fn control_messages_are_read_as_they_were_written() {
        let mut control = Control::EMPTY;
        let first = control.push(0, 17, 103, &1450_u16.to_ne_bytes());
        let len = control.push(first, 0, 1, &2_i32.to_ne_bytes());
        assert_eq!(len % WORD, 0);
        let seen: Vec<_> = control.iter(len).map(|(l, k, d)| (l, k, d.len())).collect();
        assert_eq!(seen, [(17, 103, 2), (0, 1, 4)]);
        assert_eq!(control.iter(len).nth(1).and_then(|m| number(m.2)), Some(2));
        assert_eq!(control.iter(first).count(), 1);
        assert_eq!(number(&[3]), Some(3));
        assert_eq!(number(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(
            bytes in proptest::collection::vec(any::<u8>(), CONTROL_BYTES),
            small in 0usize..64,
            len in 0usize..200,
        ) {
            let mut control = Control(bytes.try_into().unwrap());
            control.iter(len).count();
            control.0[..WORD].copy_from_slice(&small.to_ne_bytes());
            prop_assert!(control.iter(len).count() <= CONTROL_BYTES / HEADER);
        }
    }
}
