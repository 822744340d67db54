//! CRC-32C over the parts of a frame that its sender answers for.

use super::{MESSAGE_COVERED_FROM, PREFIX_SIZE};

/// The checksum of a message whose bytes come in one piece, without padding.
/// Zero for a frame shorter than a header.
#[inline]
#[must_use]
pub fn message(frame: &[u8]) -> u32 {
    match (frame.get(..PREFIX_SIZE), frame.get(MESSAGE_COVERED_FROM..)) {
        (Some(prefix), Some(rest)) => crc32c::crc32c_append(crc32c::crc32c(prefix), rest),
        _ => 0,
    }
}

/// Extends the checksum of a message whose bytes come in pieces; the first
/// piece holds the whole header and goes through [`message`].
#[inline]
#[must_use]
pub fn extend(checksum: u32, piece: &[u8]) -> u32 {
    crc32c::crc32c_append(checksum, piece)
}

/// The checksum of a control frame: its prefix, and all that follows the
/// checksum itself.
#[inline]
#[must_use]
pub fn control(frame: &[u8]) -> u32 {
    match (frame.get(..PREFIX_SIZE), frame.get(PREFIX_SIZE + 4..)) {
        (Some(prefix), Some(rest)) => crc32c::crc32c_append(crc32c::crc32c(prefix), rest),
        _ => 0,
    }
}

/// The checksum of a body, as ack logs and dumps show it.
#[must_use]
pub fn body(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        assert_eq!(body(b"123456789"), 0xe306_9283);
        assert_eq!(body(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn the_brokers_half_is_not_covered_and_every_other_byte_is() {
        let mut frame = [7u8; 120];
        let before = message(&frame);
        for index in 0..frame.len() {
            frame[index] ^= 0x10;
            let covered = !(PREFIX_SIZE..MESSAGE_COVERED_FROM).contains(&index);
            assert_eq!(message(&frame) != before, covered, "byte {index}");
            frame[index] ^= 0x10;
        }
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let frame: Vec<u8> = (0..=255u8).cycle().take(1000).collect();
        for cut in 112..1000 {
            assert_eq!(
                extend(message(&frame[..cut]), &frame[cut..]),
                message(&frame)
            );
        }
    }
}
