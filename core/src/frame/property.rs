//! The properties of a message: a flat block of named values between header
//! and body.
//!
//! ```text
//! | name length u8 | type u8 | value length u16 | name | value | next entry ...
//! ```
//!
//! Type 0 is text; the others are reserved. A name has 1 to 255 bytes. A writer
//! writes a name once; a reader that finds it twice takes the first.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use core::fmt;

use crate::limits;

const TEXT: u8 = 0;

/// Why properties cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PropertyError {
    /// More than [`limits::PROPERTIES_MAX`].
    TooMany,
    /// The block would be longer than its limit.
    TooLong {
        /// Bytes the block would have.
        size: usize,
    },
    /// A name is empty or longer than 255 bytes.
    BadName {
        /// Bytes of the name.
        length: usize,
    },
    /// The name stands in the block already.
    Repeated {
        /// Which name.
        name: String,
    },
    /// A value is longer than 65,535 bytes.
    BadValue {
        /// Whose value.
        name: String,
    },
    /// The bytes are no block of properties.
    Malformed,
}

impl fmt::Display for PropertyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(
                f,
                "a message has at most {} properties",
                limits::PROPERTIES_MAX
            ),
            Self::TooLong { size } => write!(
                f,
                "the properties take {size} bytes, with the header at most {} are allowed",
                limits::HEADER_AND_PROPERTIES_SIZE_MAX
            ),
            Self::BadName { length } => {
                write!(
                    f,
                    "a property's name has 1 to 255 bytes, this one has {length}"
                )
            }
            Self::Repeated { name } => write!(f, "property {name:?} is set twice"),
            Self::BadValue { name } => {
                write!(
                    f,
                    "the value of property {name:?} has more than 65535 bytes"
                )
            }
            Self::Malformed => f.write_str("the bytes are no block of properties"),
        }
    }
}

impl std::error::Error for PropertyError {}

/// The most bytes a block may have.
#[allow(clippy::as_conversions, clippy::arithmetic_side_effects)]
const BLOCK_SIZE_MAX: usize =
    limits::HEADER_AND_PROPERTIES_SIZE_MAX as usize - super::MESSAGE_HEADER_SIZE;

/// Appends one property to `block`.
///
/// # Errors
///
/// If a limit is passed; `block` is then as it was.
pub fn push(block: &mut Vec<u8>, name: &str, value: &str) -> Result<(), PropertyError> {
    let name_length = u8::try_from(name.len())
        .ok()
        .filter(|length| *length > 0)
        .ok_or(PropertyError::BadName { length: name.len() })?;
    let value_length = u16::try_from(value.len()).map_err(|_| PropertyError::BadValue {
        name: name.to_owned(),
    })?;
    let size = block
        .len()
        .saturating_add(4)
        .saturating_add(name.len())
        .saturating_add(value.len());
    if size > BLOCK_SIZE_MAX {
        return Err(PropertyError::TooLong { size });
    }
    let mut count: u32 = 0;
    for (other, _) in iter(block) {
        if other == name {
            return Err(PropertyError::Repeated {
                name: name.to_owned(),
            });
        }
        count = count.saturating_add(1);
    }
    if count >= limits::PROPERTIES_MAX {
        return Err(PropertyError::TooMany);
    }
    block.extend_from_slice(&[name_length, TEXT]);
    block.extend_from_slice(&value_length.to_le_bytes());
    block.extend_from_slice(name.as_bytes());
    block.extend_from_slice(value.as_bytes());
    Ok(())
}

/// Whether `block` is well formed and within the limits.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn check(block: &[u8]) -> Result<(), PropertyError> {
    if block.is_empty() {
        return Ok(());
    }
    if block.len() > BLOCK_SIZE_MAX {
        return Err(PropertyError::TooLong { size: block.len() });
    }
    let mut entries = iter(block);
    let count = entries.by_ref().count();
    if !entries.rest.is_empty() {
        return Err(PropertyError::Malformed);
    }
    if count > usize::try_from(limits::PROPERTIES_MAX).unwrap_or(usize::MAX) {
        return Err(PropertyError::TooMany);
    }
    Ok(())
}

/// The properties in `block`, in their order; ends at the first malformed byte.
#[must_use]
pub fn iter(block: &[u8]) -> Properties<'_> {
    Properties { rest: block }
}

/// An iterator over names and values.
#[derive(Clone, Debug)]
pub struct Properties<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Properties<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let ([name_length, kind, low, high], rest) = self.rest.split_first_chunk::<4>()?;
        if *name_length == 0 || *kind != TEXT {
            return None;
        }
        let (name, rest) = rest.split_at_checked(usize::from(*name_length))?;
        let value_length = u16::from_le_bytes([*low, *high]);
        let (value, rest) = rest.split_at_checked(usize::from(value_length))?;
        let (name, value) = (
            core::str::from_utf8(name).ok()?,
            core::str::from_utf8(value).ok()?,
        );
        self.rest = rest;
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )]
    use super::*;

    #[test]
    fn what_is_pushed_comes_back_in_order() {
        let mut block = Vec::new();
        push(&mut block, "k1", "v1").unwrap();
        push(&mut block, "long", &"x".repeat(1024)).unwrap();
        push(&mut block, "empty", "").unwrap();
        check(&block).unwrap();
        let all: Vec<_> = iter(&block)
            .map(|(name, value)| (name.len(), value.len()))
            .collect();
        assert_eq!(all, [(2, 2), (4, 1024), (5, 0)]);
    }

    #[test]
    fn an_empty_name_and_every_passed_limit_is_refused_and_changes_nothing() {
        let mut block = Vec::new();
        assert_eq!(
            push(&mut block, "", "x"),
            Err(PropertyError::BadName { length: 0 })
        );
        let long = "n".repeat(256);
        assert_eq!(
            push(&mut block, &long, "x"),
            Err(PropertyError::BadName { length: 256 })
        );
        let value = "v".repeat(65_536);
        assert!(matches!(
            push(&mut block, "n", &value),
            Err(PropertyError::BadValue { .. })
        ));
        assert!(block.is_empty());
        for index in 0..128 {
            push(&mut block, &format!("n{index}"), "v").unwrap();
        }
        let before = block.clone();
        assert_eq!(
            push(&mut block, "n127", "w"),
            Err(PropertyError::Repeated {
                name: "n127".to_owned()
            })
        );
        assert_eq!(block, before);
        assert_eq!(
            push(&mut block, "one more", "v"),
            Err(PropertyError::TooMany)
        );
        check(&block).unwrap();
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_total() {
        let mut block = Vec::new();
        push(&mut block, "name", "value").unwrap();
        push(&mut block, "second", "another").unwrap();
        let first_entry = 4 + "name".len() + "value".len();
        for cut in 1..block.len() {
            let expected = if cut == first_entry {
                Ok(())
            } else {
                Err(PropertyError::Malformed)
            };
            assert_eq!(check(&block[..cut]), expected, "cut at {cut}");
        }
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            let mut entries = iter(&block);
            let count = entries.by_ref().count();
            assert!(count <= 2, "bit {bit}");
            assert_eq!(check(&block).is_ok(), entries.rest.is_empty(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
