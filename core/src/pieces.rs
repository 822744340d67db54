//! What a machine offers to be written: slices of its memory, in their order, for
//! one system call.

/// The most slices that one system call is offered.
pub const PIECES_MAX: usize = 64;
/// Up to so many are the usual case.
const FEW: usize = 4;

/// Slices to send next, in order.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    slices: Slices<'a>,
    count: usize,
}

/// Clearing places for many slices costs more than most writes have to say.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack and stays there"
)]
enum Slices<'a> {
    Few([&'a [u8]; FEW]),
    Many([&'a [u8]; PIECES_MAX]),
}

impl<'a> Pieces<'a> {
    /// No slices.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self {
            slices: Slices::Few([&[]; FEW]),
            count: 0,
        }
    }

    /// Adds a slice; `false` if there are too many.
    #[inline]
    pub fn push(&mut self, slice: &'a [u8]) -> bool {
        if self.count == FEW {
            self.expect_many();
        }
        let place = match &mut self.slices {
            Slices::Few(slices) => slices.get_mut(self.count),
            Slices::Many(slices) => slices.get_mut(self.count),
        };
        if let Some(place) = place {
            *place = slice;
            self.count += 1;
            return true;
        }
        false
    }

    #[cold]
    fn expect_many(&mut self) {
        if let Slices::Few(few) = self.slices {
            let mut many = [&[][..]; PIECES_MAX];
            many[..FEW].copy_from_slice(&few);
            self.slices = Slices::Many(many);
        }
    }

    /// The slices.
    #[inline]
    #[must_use]
    pub fn slices(&self) -> &[&'a [u8]] {
        match &self.slices {
            Slices::Few(slices) => &slices[..self.count],
            Slices::Many(slices) => &slices[..self.count],
        }
    }

    /// Whether there is nothing to write.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes in all slices.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slices().iter().map(|slice| slice.len()).sum()
    }
}

impl Default for Pieces<'_> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_keep_their_order_up_to_the_most_and_no_further() {
        let bytes: Vec<u8> = (0..=u8::try_from(PIECES_MAX).unwrap_or(u8::MAX)).collect();
        let mut pieces = Pieces::new();
        assert!(pieces.is_empty());
        for (index, slice) in bytes.chunks(1).enumerate() {
            assert_eq!(pieces.push(slice), index < PIECES_MAX);
            let count = (index + 1).min(PIECES_MAX);
            assert_eq!(pieces.slices().concat(), bytes[..count]);
            assert_eq!(pieces.size(), count);
        }
        assert!(!pieces.is_empty());
    }
}
