//! The word by which a completion finds back to its operation; drawn in the ring's own
//! page.

use super::super::Slot;

#[allow(clippy::cast_sign_loss)] // flags in a signed type
pub(super) const POLL_IN: u32 = libc::POLLIN as u32;
#[allow(clippy::cast_sign_loss)] // flags in a signed type
pub(super) const POLL_OUT: u32 = libc::POLLOUT as u32;

/// Which operation a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Receive = 1,
    Send = 2,
    Writable = 3,
    Cancel = 4,
    Doorbell = 5,
    /// A cancellation of the ring's own, of a multishot that goes on directly.
    Retire = 6,
    /// The slot is a place for a write.
    Write = 7,
}

const SLOT_BITS: u32 = Slot::INDEX_LIMIT.trailing_zeros();
const GENERATION_BITS: u32 = 32;
const _: () = assert!(SLOT_BITS + GENERATION_BITS + 8 == 64, "the word is full");

pub(super) fn word(kind: Kind, slot: Slot) -> u64 {
    debug_assert!(slot.index < Slot::INDEX_LIMIT);
    (kind as u64) << (SLOT_BITS + GENERATION_BITS)
        | u64::from(slot.generation) << SLOT_BITS
        | u64::from(slot.index)
}

/// `None` for a word that this ring never wrote.
pub(super) fn unpack(word: u64) -> Option<(Kind, Slot)> {
    let kind = match word >> (SLOT_BITS + GENERATION_BITS) {
        1 => Kind::Receive,
        2 => Kind::Send,
        3 => Kind::Writable,
        4 => Kind::Cancel,
        5 => Kind::Doorbell,
        6 => Kind::Retire,
        7 => Kind::Write,
        _ => return None,
    };
    let low = |value: u64, bits: u32| u32::try_from(value & ((1 << bits) - 1)).unwrap_or(0);
    Some((
        kind,
        Slot {
            index: low(word, SLOT_BITS),
            generation: low(word >> SLOT_BITS, GENERATION_BITS),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_leads_back_to_its_operation() {
        let slot = Slot {
            index: Slot::INDEX_LIMIT - 1,
            generation: u32::MAX,
        };
        for kind in [
            Kind::Receive,
            Kind::Send,
            Kind::Writable,
            Kind::Cancel,
            Kind::Doorbell,
            Kind::Retire,
            Kind::Write,
        ] {
            assert_eq!(unpack(word(kind, slot)), Some((kind, slot)));
        }
        assert_eq!(unpack(0), None);
    }
}
