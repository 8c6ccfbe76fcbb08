//! Certificate serial numbers: 20 random bytes, as cfssl and RFC 5280 section 4.1.2.2 have them.

use rand::TryRng;
use rand::rngs::SysRng;

/// A positive serial number of at most 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial([u8; 20]);

/// The operating system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random numbers: {0}")]
pub struct NoRandomness(#[from] rand::rngs::SysError);

impl Serial {
    /// Makes a serial number of these bytes, most significant first.
    ///
    /// The top bit is cleared, for the number would be negative with it, and zero becomes one: RFC 5280 wants
    /// a positive number that fits 20 bytes.
    pub fn from_bytes(mut bytes: [u8; 20]) -> Self {
        bytes[0] &= 0x7f;
        if bytes == [0; 20] {
            bytes[19] = 1;
        }
        Self(bytes)
    }

    /// Draws a serial number from the operating system.
    ///
    /// # Errors
    /// [`NoRandomness`] when the operating system cannot give any.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 20];
        SysRng.try_fill_bytes(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The 20 bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_positive_and_keeps_its_bytes() {
        let mut bytes = [0xff; 20];
        assert_eq!(Serial::from_bytes(bytes).as_bytes()[0], 0x7f);
        bytes[0] = 0x12;
        assert_eq!(Serial::from_bytes(bytes).as_bytes(), &bytes);
        assert_eq!(Serial::from_bytes([0; 20]).as_bytes()[19], 1);
        let mut only_the_sign = [0; 20];
        only_the_sign[0] = 0x80;
        assert_eq!(Serial::from_bytes(only_the_sign), Serial::from_bytes([0; 20]));
    }
}
