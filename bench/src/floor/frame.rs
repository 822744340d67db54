//! The least that a framed protocol has to look at: the length of every frame.
//!
//! ```text
//!   0      4   5   6     8                112
//!   +------+---+---+-----+-- .. ----------+------ .. -----+--- .. ---+
//!   |length|knd|ver|flags| rest of header | body          | zeros to |
//!   | u32  |u8 |u8 | u16 |                |               | 8 bytes  |
//!   +------+---+---+-----+-- .. ----------+------ .. -----+--- .. ---+
//!   little-endian; the length counts header and body and not the zeros
//! ```
//!
//! A floor sends frames of the broker's size and reads their prefix, and does
//! nothing else with them: no checksum, no copy, no place to put them.

/// The header of a message frame.
pub const MESSAGE_HEADER_BYTES: usize = 112;

/// The reply to one message: an acknowledgement with one run.
pub const REPLY_BYTES: usize = 64;

/// The largest frame that is believed: 4 MiB of body and 64 KiB around it.
pub const FRAME_BYTES_MAX: usize = (4 << 20) + (64 << 10);

const PREFIX_BYTES: usize = 8;
const LENGTH_BYTES: usize = 4;
const VERSION: u8 = 1;
const KIND_MESSAGE: u8 = 1;
const KIND_REPLY: u8 = 2;

/// The bytes on the wire are not frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes was announced; frames have {PREFIX_BYTES} to {FRAME_BYTES_MAX}")]
pub struct FrameError {
    /// The announced length.
    pub length: u32,
}

/// The bytes on the wire of a message with a body of `body_bytes`, padding
/// included.
#[must_use]
pub const fn frame_bytes(body_bytes: usize) -> usize {
    (MESSAGE_HEADER_BYTES + body_bytes).next_multiple_of(8)
}

/// Writes the prefix of a message over the first bytes of `frame`, which
/// becomes one frame of exactly its own length.
///
/// # Panics
/// If `frame` is shorter than a prefix or longer than a u32 can say.
pub fn write_message(frame: &mut [u8]) {
    write_prefix(frame, KIND_MESSAGE);
}

/// Writes the prefix of a reply over the first bytes of `frame`.
///
/// # Panics
/// If `frame` is shorter than a prefix or longer than a u32 can say.
pub fn write_reply(frame: &mut [u8]) {
    write_prefix(frame, KIND_REPLY);
}

fn write_prefix(frame: &mut [u8], kind: u8) {
    let length = u32::try_from(frame.len()).expect("a frame's length fits its field");
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    frame[LENGTH_BYTES..PREFIX_BYTES].copy_from_slice(&[kind, VERSION, 0, 0]);
}

/// Counts the frames of a byte stream in pieces of any size, reading every
/// length and keeping no byte but a split prefix.
///
/// Invariant: at most one of `unread` and `prefix_filled` is above zero; the
/// stream stands inside a frame's rest or inside its length.
#[derive(Debug, Default)]
pub struct FrameScanner {
    /// Bytes of the frame begun that have not come yet.
    unread: usize,
    prefix: [u8; LENGTH_BYTES],
    prefix_filled: usize,
}

impl FrameScanner {
    /// Takes the stream's next bytes and returns how many frames ended in them.
    ///
    /// # Errors
    /// [`FrameError`] if a length is impossible; the stream is lost then.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let mut frames = 0;
        let mut at = 0;
        if self.unread > 0 {
            if bytes.len() < self.unread {
                self.unread -= bytes.len();
                return Ok(0);
            }
            at = self.unread;
            self.unread = 0;
            frames = 1;
        } else if self.prefix_filled > 0 {
            at = self.complete_prefix(bytes)?;
            if self.unread > 0 || self.prefix_filled > 0 {
                return Ok(0);
            }
            frames = 1;
        }
        while let Some(prefix) = bytes[at..].first_chunk::<LENGTH_BYTES>() {
            let size = padded_size(*prefix)?;
            let there = bytes.len() - at;
            if there < size {
                self.unread = size - there;
                return Ok(frames);
            }
            at += size;
            frames += 1;
        }
        let rest = &bytes[at..];
        self.prefix[..rest.len()].copy_from_slice(rest);
        self.prefix_filled = rest.len();
        Ok(frames)
    }

    /// Continues a length that was split between two pieces; returns where in
    /// `bytes` its frame ends. Leaves `prefix_filled` above zero if the length
    /// is still not whole and `unread` above zero if the frame is not.
    #[cold]
    fn complete_prefix(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let taken = bytes.len().min(LENGTH_BYTES - self.prefix_filled);
        self.prefix[self.prefix_filled..self.prefix_filled + taken]
            .copy_from_slice(&bytes[..taken]);
        self.prefix_filled += taken;
        if self.prefix_filled < LENGTH_BYTES {
            return Ok(taken);
        }
        let size = padded_size(self.prefix)?;
        self.prefix_filled = 0;
        let end = taken + size - LENGTH_BYTES;
        self.unread = end.saturating_sub(bytes.len());
        Ok(end.min(bytes.len()))
    }
}

/// The whole frames at the start of `bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeFrames {
    /// How many there are.
    pub frames: usize,
    /// How many bytes they take together.
    pub bytes: usize,
}

/// Finds the whole frames at the start of `bytes`, which must begin with a
/// frame.
///
/// # Errors
/// [`FrameError`] if a length is impossible.
pub fn whole_frames(bytes: &[u8]) -> Result<WholeFrames, FrameError> {
    let mut found = WholeFrames {
        frames: 0,
        bytes: 0,
    };
    while let Some(prefix) = bytes[found.bytes..].first_chunk::<LENGTH_BYTES>() {
        let size = padded_size(*prefix)?;
        if bytes.len() - found.bytes < size {
            break;
        }
        found.bytes += size;
        found.frames += 1;
    }
    Ok(found)
}

#[inline]
fn padded_size(prefix: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix);
    let size = length as usize;
    if !(PREFIX_BYTES..=FRAME_BYTES_MAX).contains(&size) {
        return Err(FrameError { length });
    }
    Ok(size.next_multiple_of(8))
}

/// Replies ready to be sent: one after the other in one buffer, so that any
/// number of them up to a bound is one slice.
#[derive(Debug)]
pub(super) struct Replies {
    bytes: crate::page_buffer::PageBuffer,
}

impl Replies {
    /// The most that leave in one send; what is owed beyond leaves in the next.
    pub(super) const AT_ONCE_MAX: usize = 1024;

    pub(super) fn new() -> Self {
        let mut bytes = crate::page_buffer::PageBuffer::new(Self::AT_ONCE_MAX * REPLY_BYTES);
        for reply in bytes.chunks_exact_mut(REPLY_BYTES) {
            write_reply(reply);
        }
        Self { bytes }
    }

    /// Gives the memory up for good: the kernel may still read it.
    pub(super) fn leak(self) {
        self.bytes.leak();
    }

    /// The bytes of `count` replies, at most [`Self::AT_ONCE_MAX`].
    pub(super) fn first(&self, count: usize) -> &[u8] {
        &self.bytes[..count.min(Self::AT_ONCE_MAX) * REPLY_BYTES]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A stream of frames whose lengths are no multiple of eight, padded.
    fn stream(lengths: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for length in lengths {
            let start = bytes.len();
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.resize(start + (*length as usize).next_multiple_of(8), 0xFF);
        }
        bytes
    }

    #[test]
    fn a_message_has_a_header_of_112_bytes_and_is_padded_to_eight() {
        assert_eq!(frame_bytes(64), 176);
        assert_eq!(frame_bytes(1), 120);
        let mut frame = vec![0; frame_bytes(64)];
        write_message(&mut frame);
        assert_eq!(frame[..8], [176, 0, 0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn frames_are_counted_however_the_stream_is_split() {
        let lengths = [8, 64, 113, 176, 9, 1136, 64, 8];
        let bytes = stream(&lengths);
        for piece in 1..=bytes.len() {
            let mut scanner = FrameScanner::default();
            let frames: usize = bytes
                .chunks(piece)
                .map(|chunk| scanner.scan(chunk).unwrap())
                .sum();
            assert_eq!(frames, lengths.len(), "pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_counts_only_once_its_last_byte_has_come() {
        let bytes = stream(&[113]);
        let mut scanner = FrameScanner::default();
        assert_eq!(scanner.scan(&bytes[..119]), Ok(0));
        assert_eq!(scanner.scan(&[]), Ok(0));
        assert_eq!(scanner.scan(&bytes[119..]), Ok(1));
    }

    #[test]
    fn an_impossible_length_is_refused_also_when_it_is_split() {
        for length in [0_u32, 7, u32::MAX] {
            let bytes = length.to_le_bytes();
            let refusal = Err(FrameError { length });
            assert_eq!(FrameScanner::default().scan(&bytes), refusal);
            let mut scanner = FrameScanner::default();
            assert_eq!(scanner.scan(&bytes[..3]), Ok(0));
            assert_eq!(scanner.scan(&bytes[3..]), refusal);
            assert_eq!(whole_frames(&bytes), Err(FrameError { length }));
        }
    }

    #[test]
    fn whole_frames_end_before_the_one_that_is_not_there_yet() {
        let bytes = stream(&[64, 113, 176]);
        let whole = |end: usize| {
            let found = whole_frames(&bytes[..end]).unwrap();
            (found.frames, found.bytes)
        };
        assert_eq!(whole(0), (0, 0));
        assert_eq!(whole(63), (0, 0));
        assert_eq!(whole(66), (1, 64));
        assert_eq!(whole(184), (2, 184));
        assert_eq!(whole(bytes.len()), (3, bytes.len()));
    }

    #[test]
    fn replies_are_frames_of_64_bytes() {
        let replies = Replies::new();
        let mut scanner = FrameScanner::default();
        assert_eq!(scanner.scan(replies.first(3)), Ok(3));
        assert_eq!(replies.first(usize::MAX).len(), 1024 * 64);
    }
}
