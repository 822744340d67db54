//! From bytes to frames: whatever the split.
//!
//! Frames that lie whole in what was received are taken from there. The rest of
//! a small one is carried over in a buffer of the link; a message beyond that
//! size is assembled in chunks of the arena, which its producer's credit has
//! reserved, and becomes part of the log whole.

use super::{Fault, LinkState, Shard};
use crate::counters::Counter;
use crate::error::Refusal;
use crate::frame::decode::{self, DecodeError, Frame, Step};
use crate::frame::{Kind, MESSAGE_HEADER_SIZE, MessageHeader, PREFIX_SIZE, checksum, padded};
use crate::id::Handle;
use crate::limits;
use crate::memory::{Arena, CHUNK, ChunkId};
use crate::time::Now;
use zerocopy::FromBytes;

/// The largest frame that is carried over in a link's own buffer.
const CARRY_MAX: usize = limits::CONTROL_SIZE_MAX as usize;

/// What a link has received of a frame.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// The beginning of a frame; with an assembly, empty.
    carry: Vec<u8>,
    assembly: Option<Assembly>,
    /// From another shard: bytes still to come of a frame that nobody wants.
    unwanted: usize,
}

/// A message that is too large for the carry.
#[derive(Debug)]
struct Assembly {
    head: ChunkId,
    tail: ChunkId,
    filled: usize,
    size: usize,
}

impl Intake {
    pub(super) fn clear(&mut self, arena: &mut Arena) {
        self.carry.clear();
        if let Some(assembly) = self.assembly.take() {
            arena.give_chain(assembly.head);
        }
    }

    /// Keeps bytes whose time has not come, behind those that it keeps; `false` if there
    /// are more than `most` then.
    pub(super) fn hold(&mut self, bytes: &[u8], most: usize) -> bool {
        let fits = self.carry.len() + bytes.len() <= most;
        if fits {
            self.carry.extend_from_slice(bytes);
        }
        fits
    }

    /// What was kept.
    pub(super) fn release(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.carry)
    }

    /// Chunks of the arena that it holds.
    pub(super) fn chunks(&self) -> usize {
        self.assembly
            .as_ref()
            .map_or(0, |assembly| assembly.filled.div_ceil(CHUNK))
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::new(error.refusal(), error.to_string())
    }
}

impl Shard {
    /// Bytes came in on a link.
    pub fn received(&mut self, now: Now, link: Handle, bytes: &[u8]) {
        self.counters
            .add(Counter::BytesReceived, bytes.len() as u64);
        self.heard(now, link, bytes);
    }

    /// What a client says is obeyed, or ends its link.
    #[inline]
    pub(super) fn heard(&mut self, now: Now, link: Handle, bytes: &[u8]) {
        if let Err(fault) = self.take_in(now, link, bytes) {
            self.fault(now, link, &fault);
        }
    }

    fn take_in(&mut self, now: Now, link: Handle, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let Some(entry) = self.links.get_mut(link) else {
                return Ok(());
            };
            if !matches!(entry.state, LinkState::Open) {
                return self.not_heard(link, bytes);
            }
            if entry.intake.assembly.is_some() {
                bytes = self.assemble(now, link, bytes)?;
                continue;
            }
            if !entry.intake.carry.is_empty() {
                bytes = self.complete_carry(now, link, bytes)?;
                continue;
            }
            let size = self.burst::<false>(now, link, bytes);
            if size > 0 {
                bytes = &bytes[size..];
                continue;
            }
            let Some(entry) = self.links.get_mut(link) else {
                return Ok(());
            };
            match decode::decode(bytes)? {
                Step::Frame(frame, size) => {
                    self.frame(now, link, &frame)?;
                    bytes = &bytes[size..];
                }
                Step::Incomplete(_) => {
                    entry.frame_since = Some(now.monotonic);
                    self.watch(link);
                    bytes = self.complete_carry(now, link, bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Adds to the carry until it holds a frame, or the header of a large message.
    /// Returns the bytes behind it.
    fn complete_carry<'a>(
        &mut self,
        now: Now,
        link: Handle,
        mut bytes: &'a [u8],
    ) -> Result<&'a [u8], Fault> {
        let Some(entry) = self.links.get_mut(link) else {
            return Ok(&[]);
        };
        // Out of its link, so that a frame in it can be handled.
        let mut carry = core::mem::take(&mut entry.intake.carry);
        let result = loop {
            let wanted = match decode::peek(&carry) {
                Err(error) => break Err(error.into()),
                Ok(None) => PREFIX_SIZE,
                Ok(Some(peek)) if peek.size <= CARRY_MAX => peek.size,
                // Of the other kinds none is as long.
                Ok(Some(_)) => MESSAGE_HEADER_SIZE,
            };
            let missing = wanted.saturating_sub(carry.len()).min(bytes.len());
            carry.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if carry.len() < wanted {
                if let Some(entry) = self.links.get_mut(link) {
                    entry.intake.carry = carry;
                }
                return Ok(bytes);
            }
            match decode::peek(&carry) {
                Ok(Some(peek)) if peek.size > CARRY_MAX && carry.len() == MESSAGE_HEADER_SIZE => {
                    break self.begin_assembly(link, &carry, peek.size);
                }
                Ok(Some(peek)) if carry.len() == peek.size => {
                    break match decode::decode(&carry) {
                        Ok(Step::Frame(frame, _)) => {
                            if let Some(entry) = self.links.get_mut(link) {
                                entry.frame_since = None;
                            }
                            self.frame(now, link, &frame)
                        }
                        Ok(Step::Incomplete(_)) => Ok(()),
                        Err(error) => Err(error.into()),
                    };
                }
                _ => {}
            }
        };
        carry.clear();
        if let Some(entry) = self.links.get_mut(link) {
            entry.intake.carry = carry;
        }
        result.map(|()| bytes)
    }

    /// A large message has begun. Its producer's credit must cover it before it
    /// may occupy anything.
    fn begin_assembly(&mut self, link: Handle, header: &[u8], size: usize) -> Result<(), Fault> {
        let (parsed, _) =
            MessageHeader::ref_from_prefix(header).map_err(|_| Fault::from(Refusal::Malformed))?;
        self.covered(link, Handle(parsed.handle.get()), size)?;
        let head = self.arena.take().ok_or(Fault::from(Refusal::OutOfMemory))?;
        self.arena.bytes_mut(head)[..header.len()].copy_from_slice(header);
        if let Some(intake) = self.intake_of(link) {
            intake.assembly = Some(Assembly {
                head,
                tail: head,
                filled: header.len(),
                size,
            });
        }
        Ok(())
    }

    /// Of a link, or of what stands for the link of another shard.
    fn intake_of(&mut self, link: Handle) -> Option<&mut Intake> {
        match self.links.get_mut(link) {
            // A second look, since the first may not be kept for the other arm.
            Some(_) => self.links.get_mut(link).map(|link| &mut link.intake),
            None => self.part_of(link),
        }
    }

    /// A stretch of a frame from another shard that is longer than a record; the first
    /// one has all of the header. What is at fault, if it is refused, is whose handle
    /// it is.
    pub(super) fn take_part(
        &mut self,
        now: Now,
        link: Handle,
        mut bytes: &[u8],
    ) -> Result<(), (Handle, Fault)> {
        let Some(intake) = self.intake_of(link) else {
            return Ok(());
        };
        if intake.assembly.is_none() {
            if intake.unwanted == 0 {
                let (header, rest) = bytes.split_at(MESSAGE_HEADER_SIZE);
                let (parsed, _) =
                    MessageHeader::ref_from_prefix(header).expect("the first part has a header");
                let size = padded(parsed.length.get() as usize);
                let handle = Handle(parsed.handle.get());
                if let Err(fault) = self.begin_assembly(link, header, size) {
                    if let Some(intake) = self.intake_of(link) {
                        intake.unwanted = size - bytes.len();
                    }
                    return Err((handle, fault));
                }
                bytes = rest;
            } else {
                intake.unwanted -= bytes.len();
                return Ok(());
            }
        }
        let handle = self.handle_assembled(link);
        self.assemble(now, link, bytes)
            .map(drop)
            .map_err(|fault| (handle, fault))
    }

    /// Whose frame is assembled.
    fn handle_assembled(&mut self, link: Handle) -> Handle {
        let head = self
            .intake_of(link)
            .and_then(|intake| intake.assembly.as_ref())
            .map(|assembly| assembly.head);
        let header =
            head.and_then(|head| MessageHeader::ref_from_prefix(self.arena.bytes(head)).ok());
        header.map_or(Handle(0), |(header, _)| Handle(header.handle.get()))
    }

    fn assemble<'a>(&mut self, now: Now, link: Handle, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        let taken = self.intake_of(link).and_then(|it| it.assembly.take());
        let Some(mut assembly) = taken else {
            return Ok(bytes);
        };
        let mut rest = bytes;
        while assembly.filled < assembly.size && !rest.is_empty() {
            let at = assembly.filled % CHUNK;
            if at == 0 && assembly.filled > 0 {
                let Some(next) = self.arena.take() else {
                    self.arena.give_chain(assembly.head);
                    return Err(Refusal::OutOfMemory.into());
                };
                self.arena.chain(assembly.tail, next);
                assembly.tail = next;
            }
            let count = rest
                .len()
                .min(CHUNK - at)
                .min(assembly.size - assembly.filled);
            self.arena.bytes_mut(assembly.tail)[at..at + count].copy_from_slice(&rest[..count]);
            assembly.filled += count;
            rest = &rest[count..];
        }
        let (head, size) = (assembly.head, assembly.size);
        if assembly.filled < assembly.size {
            if let Some(intake) = self.intake_of(link) {
                intake.assembly = Some(assembly);
            }
            return Ok(rest);
        }
        if let Some(entry) = self.links.get_mut(link) {
            entry.frame_since = None;
        }
        let header = match self.verify_chain(head, size) {
            Ok(header) => header,
            Err(error) => {
                self.arena.give_chain(head);
                return Err(error.into());
            }
        };
        self.large_message(now, link, &header, head, size)?;
        Ok(rest)
    }

    /// Checks a message that lies in a chain of chunks; returns its header.
    fn verify_chain(&self, head: ChunkId, size: usize) -> Result<MessageHeader, DecodeError> {
        let first = self.arena.bytes(head);
        let length = MessageHeader::ref_from_prefix(first)
            .map_or(0, |(header, _)| header.length.get() as usize);
        let mut sum = checksum::message(&first[..length.min(CHUNK)]);
        let mut padding_clean = first[length.min(CHUNK)..size.min(CHUNK)]
            .iter()
            .all(|b| *b == 0);
        let (mut chunk, mut at) = (self.arena.next(head), CHUNK);
        while chunk.is_some() && at < size {
            let bytes = self.arena.bytes(chunk);
            let (end, padded_end) = (length.saturating_sub(at).min(CHUNK), (size - at).min(CHUNK));
            sum = checksum::extend(sum, &bytes[..end]);
            padding_clean &= bytes[end..padded_end].iter().all(|byte| *byte == 0);
            at += CHUNK;
            chunk = self.arena.next(chunk);
        }
        if !padding_clean {
            return Err(DecodeError::DirtyPadding);
        }
        let (header, _) = MessageHeader::read_from_prefix(first)
            .map_err(|_| DecodeError::TooShort { length: 0 })?;
        decode::verify(&header, sum)?;
        Ok(header)
    }

    /// What comes on a link that is not open.
    #[cold]
    fn not_heard(&mut self, link: Handle, bytes: &[u8]) -> Result<(), Fault> {
        match self.links.get(link).map(|link| link.state) {
            None | Some(LinkState::Open | LinkState::Ending) => Ok(()),
            Some(LinkState::Arriving { .. }) => self.hold(link, bytes),
            Some(LinkState::Moving { .. }) => {
                let text = "nothing may come behind a move until it is answered";
                Err(Fault::new(Refusal::Unexpected, text))
            }
        }
    }

    fn frame(&mut self, now: Now, link: Handle, frame: &Frame<'_>) -> Result<(), Fault> {
        match frame {
            Frame::Message(message) => self.message(now, link, message),
            Frame::Control { subject, control } => self.control(now, link, *subject, control),
        }
    }
}

const _: () = assert!(Kind::Message as u8 == 0x80);
