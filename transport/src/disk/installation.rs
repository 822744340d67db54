//! The file that says whose data a directory holds.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `CRSRINST` |
//! | 8 | 4 | CRC-32C of the 64 bytes with this field 0 |
//! | 12 | 2 | format version, 1 |
//! | 14 | 2 | zero |
//! | 16 | 16 | the installation |
//! | 32 | 32 | zero |
//!
//! All numbers are little-endian. It is written once, when the directory is made, and
//! never changed.

use courser_core::frame::checksum;
use courser_core::id::Installation;

/// Bytes of the file.
pub(super) const SIZE: usize = 64;

const MAGIC: [u8; 8] = *b"CRSRINST";
const VERSION: u16 = 1;

/// What is wrong with the bytes of an installation's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There are more or fewer than there have to be.
    #[error("it has {bytes} bytes in place of {SIZE}")]
    Size {
        /// How many there are.
        bytes: u64,
    },
    /// They do not begin as such a file does.
    #[error("it does not begin with {:?}", std::str::from_utf8(&MAGIC).unwrap_or_default())]
    Magic,
    /// They are not those that were written.
    #[error("its checksum is {found:08x} and should be {expected:08x}")]
    Checksum {
        /// What the file says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// It is of a format that this version does not know.
    #[error("its format is {version}, written by a newer version; this one reads {VERSION}")]
    Version {
        /// What the file says.
        version: u16,
    },
}

/// The bytes of the file.
pub(super) fn encode(installation: Installation) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[12..14].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&installation.0.to_le_bytes());
    let sum = checksum::extend(0, &bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Whose data it is.
pub(super) fn decode(bytes: &[u8]) -> Result<Installation, Malformed> {
    let wrong_size = Malformed::Size {
        bytes: bytes.len() as u64,
    };
    let mut bytes: [u8; SIZE] = bytes.try_into().map_err(|_| wrong_size)?;
    if bytes[..8] != MAGIC {
        return Err(Malformed::Magic);
    }
    let found = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    bytes[8..12].fill(0);
    let expected = checksum::extend(0, &bytes);
    if found != expected {
        return Err(Malformed::Checksum { found, expected });
    }
    let version = u16::from_le_bytes([bytes[12], bytes[13]]);
    if version != VERSION {
        return Err(Malformed::Version { version });
    }
    let mut installation = [0; 16];
    installation.copy_from_slice(&bytes[16..32]);
    Ok(Installation(u128::from_le_bytes(installation)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const NAME: Installation = Installation(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

    #[test]
    fn an_installation_reads_as_it_was_written() {
        let bytes = encode(NAME);
        assert_eq!(decode(&bytes), Ok(NAME));
        assert_eq!(&bytes[..8], b"CRSRINST");
        assert_eq!(bytes[8..12], 0x3c90_1cad_u32.to_le_bytes());
        assert_eq!(bytes[12..16], [1, 0, 0, 0]);
        assert_eq!(bytes[16..18], [0xff, 0xee]);
        assert_eq!(bytes[32..], [0; 32]);
    }

    #[test]
    fn any_bit_that_is_not_as_it_was_written_is_noticed() {
        for bit in 0..SIZE * 8 {
            let mut bytes = encode(NAME);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
        }
        for length in (0..SIZE).chain([SIZE + 1]) {
            let bytes = [&encode(NAME)[..], &[0]].concat();
            assert_eq!(
                decode(&bytes[..length]),
                Err(Malformed::Size {
                    bytes: length as u64
                })
            );
        }
    }

    #[test]
    fn a_later_format_is_called_by_its_number() {
        let mut bytes = encode(NAME);
        bytes[12] = 2;
        bytes[8..12].fill(0);
        let sum = checksum::extend(0, &bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        let refused = decode(&bytes).unwrap_err();
        assert_eq!(refused, Malformed::Version { version: 2 });
        assert!(refused.to_string().contains("written by a newer version"));
    }
}
