//! Values to bytes.

use zerocopy::IntoBytes;

use super::control::Fields;
use super::{
    ALIGNMENT, CONTROL_HEADER_SIZE, Durability, Kind, MESSAGE_HEADER_SIZE, MessageHeader,
    PREFIX_SIZE, VERSION, checksum, flags, padded,
};
use crate::id::{Epoch, Handle, PartitionIndex, PartitionSequence, ProducerId, Sequence};
use crate::limits;
use crate::time::Wall;

/// The padded size of a control frame with fields `F` and a tail of `tail` bytes.
#[must_use]
pub const fn control_size<F: Fields>(tail: usize) -> usize {
    padded(CONTROL_HEADER_SIZE + size_of::<F>() + tail)
}

/// Writes a control frame to the front of `out` and returns its padded size.
///
/// # Panics
///
/// If `out` is shorter than [`control_size`], or the frame longer than
/// [`limits::CONTROL_SIZE_MAX`]: both are mistakes of the caller.
#[inline]
pub fn control<F: Fields>(subject: u32, fields: &F, tail: &[&[u8]], out: &mut [u8]) -> usize {
    let tail_size: usize = tail.iter().map(|part| part.len()).sum();
    let length = CONTROL_HEADER_SIZE + size_of::<F>() + tail_size;
    let length_field = u32::try_from(length)
        .ok()
        .filter(|length| *length <= limits::CONTROL_SIZE_MAX)
        .expect("a control frame stays within its limit");
    let size = padded(length);
    let out = &mut out[..size];
    out[0..4].copy_from_slice(&length_field.to_le_bytes());
    out[4] = F::KIND as u8;
    out[5] = VERSION;
    out[6..8].fill(0);
    out[12..16].copy_from_slice(&subject.to_le_bytes());
    let mut at = CONTROL_HEADER_SIZE + size_of::<F>();
    out[CONTROL_HEADER_SIZE..at].copy_from_slice(fields.as_bytes());
    for part in tail {
        out[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    out[at..].fill(0);
    let checksum = checksum::control(&out[..length]);
    out[PREFIX_SIZE..PREFIX_SIZE + 4].copy_from_slice(&checksum.to_le_bytes());
    size
}

/// What a sender says about a message beside its properties and body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope {
    /// The producer on this link.
    pub handle: Handle,
    /// Where it goes.
    pub partition: PartitionIndex,
    /// Who sends.
    pub producer: ProducerId,
    /// Which incarnation of it.
    pub epoch: Epoch,
    /// The producer's count of its sends.
    pub sequence: Sequence,
    /// The producer's count of its sends to this partition.
    pub partition_sequence: PartitionSequence,
    /// The sender's clock.
    pub timestamp: Wall,
    /// The hash of the key, if there is one.
    pub key_hash: Option<u64>,
    /// How safe it is to be before it completes.
    pub durability: Durability,
}

/// The padded size of a message.
#[must_use]
pub const fn message_size(properties: usize, body: usize) -> usize {
    padded(MESSAGE_HEADER_SIZE + properties + body)
}

#[inline]
fn flags_of(envelope: &Envelope) -> u16 {
    let keyed = match envelope.key_hash {
        Some(_) => flags::KEYED,
        None => 0,
    };
    let flushed = match envelope.durability {
        Durability::Memory => 0,
        Durability::Flushed => flags::FLUSHED,
    };
    keyed | flushed
}

/// Writes a message to the front of `out` and returns its padded size.
///
/// # Panics
///
/// If `out` is shorter than [`message_size`], or the frame longer than
/// [`limits::FRAME_SIZE_MAX`]: the caller has checked both.
#[inline]
pub fn message(envelope: &Envelope, properties: &[u8], body: &[u8], out: &mut [u8]) -> usize {
    let length = MESSAGE_HEADER_SIZE + properties.len() + body.len();
    let length_field = u32::try_from(length)
        .ok()
        .filter(|length| *length <= limits::FRAME_SIZE_MAX)
        .expect("a message stays within its limit");
    let size = padded(length);
    let out = &mut out[..size];
    let properties_end = MESSAGE_HEADER_SIZE + properties.len();
    let header = MessageHeader {
        length: length_field.into(),
        kind: Kind::Message as u8,
        version: VERSION,
        flags: flags_of(envelope).into(),
        handle: envelope.handle.0.into(),
        partition: envelope.partition.0.into(),
        property_length: length_field
            .saturating_sub(u32::try_from(MESSAGE_HEADER_SIZE + body.len()).unwrap_or(0))
            .into(),
        producer: envelope.producer.0.into(),
        sequence: envelope.sequence.0.into(),
        partition_sequence: envelope.partition_sequence.0.into(),
        epoch: envelope.epoch.0.into(),
        timestamp: envelope.timestamp.0.into(),
        key_hash: envelope.key_hash.unwrap_or(0).into(),
        ..MessageHeader::default()
    };
    // The last word first: zeros stay of it where the padding is.
    if let Some(last) = out.last_chunk_mut::<ALIGNMENT>() {
        *last = [0; ALIGNMENT];
    }
    out[..MESSAGE_HEADER_SIZE].copy_from_slice(header.as_bytes());
    if !properties.is_empty() {
        out[MESSAGE_HEADER_SIZE..properties_end].copy_from_slice(properties);
    }
    out[properties_end..length].copy_from_slice(body);
    let checksum = checksum::message(&out[..length]);
    out[32..36].copy_from_slice(&checksum.to_le_bytes());
    size
}
