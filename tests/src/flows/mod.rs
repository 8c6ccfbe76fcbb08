//! Traffic whose every byte is checked: TCP of any length ([`tcp`]), UDP of any size ([`udp`]), and a pulse that
//! shows for how long a path was interrupted ([`pulse`]).
//!
//! Sockets are opened inside the namespaces, the threads belong to the test. Each byte of a stream is known from its
//! place in it, so that what is lost, doubled, swapped or damaged on the way is seen.

pub mod pulse;
pub mod tcp;
pub mod udp;

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::ns::Namespace;

/// No single step of a healthy transfer takes longer, interruptions by a restart included.
const PATIENCE: Duration = Duration::from_secs(20);
/// A prime, so that no segment size divides it: a segment in another's place never has the right bytes.
const PERIOD: usize = 65_521;

/// One direction of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    /// The sender.
    pub from: &'a Namespace,
    /// The receiver.
    pub to: &'a Namespace,
    /// The receiver's address.
    pub address: IpAddr,
}

/// What a stream consists of, over and over: noise that is the same each time.
fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..PERIOD).map(step).collect()
    })
}

/// That `bytes` are the pattern's from `offset` on.
fn check(bytes: &[u8], offset: u64) -> Result<()> {
    let mut at = usize::try_from(offset % PERIOD as u64)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(PERIOD - at));
        if part != &pattern()[at..at + part.len()] {
            let differs = part.iter().zip(&pattern()[at..]).position(|(a, b)| a != b).unwrap_or_default();
            bail!("byte {} is not what was sent", offset + (bytes.len() - rest.len() + differs) as u64);
        }
        (rest, at) = (after, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_in_the_wrong_place_is_found() {
        let twice = [pattern(), pattern()].concat();
        assert!(check(&twice[100..], 100).is_ok());
        assert!(check(&twice[100..], 100 + PERIOD as u64).is_ok());
        let mut changed = twice.clone();
        changed[PERIOD + 7] ^= 1;
        let error = check(&changed, 0).map_err(|e| e.to_string());
        assert_eq!(error, Err(format!("byte {} is not what was sent", PERIOD + 7)));
        // A segment that came twice, or two that changed places.
        assert!(check(&twice[1448..2896], 0).is_err());
    }
}
