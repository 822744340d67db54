//! Where the bodies of `courser send` come from: the command line, standard input,
//! or a counter.

use std::io::{self, BufRead, BufReader, Stdin};
use std::vec;

/// Enough of standard input at once that a pipeline seldom waits for it.
const INPUT_SIZE: usize = 256 * 1024;

/// Bodies, one after the other.
pub(crate) enum Source {
    /// From the command line.
    Given(vec::IntoIter<String>),
    /// From standard input, one a line.
    Lines(BufReader<Stdin>),
    /// Made up.
    Numbered {
        /// The number of the next one, from 1.
        next: u64,
        /// The number of the last one.
        count: u64,
        /// Bytes of each.
        size: usize,
    },
}

impl Source {
    /// The messages as they stand on the command line.
    pub(crate) fn given(messages: Vec<String>) -> Self {
        Self::Given(messages.into_iter())
    }

    /// The lines of standard input.
    pub(crate) fn lines() -> Self {
        Self::Lines(BufReader::with_capacity(INPUT_SIZE, io::stdin()))
    }

    /// Bodies of `size` bytes that begin with their number, as far as it fits.
    pub(crate) fn numbered(count: u64, size: usize) -> Self {
        let next = 1;
        Self::Numbered { next, count, size }
    }

    /// The next body; nothing when there is none left.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Given(messages) => Ok(messages.next().map(String::into_bytes)),
            Self::Lines(input) => line(input),
            Self::Numbered { next, count, size } => Ok((*next <= *count).then(|| {
                let body = numbered(*next, *size);
                *next += 1;
                body
            })),
        }
    }

    /// Whether asking for the next body may wait for somebody who types it.
    pub(crate) fn may_wait(&self) -> bool {
        match self {
            Self::Given(_) | Self::Numbered { .. } => false,
            Self::Lines(input) => !input.buffer().contains(&b'\n'),
        }
    }
}

fn line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    if input.read_until(b'\n', &mut body)? == 0 {
        return Ok(None);
    }
    if body.last() == Some(&b'\n') {
        body.pop();
    }
    Ok(Some(body))
}

/// `7 . . . .`: the number, then dots; dots alone where the number does not fit.
fn numbered(number: u64, size: usize) -> Vec<u8> {
    let mut body = vec![b'.'; size];
    let digits = number.to_string();
    if let Some(place) = body.get_mut(..digits.len()) {
        place.copy_from_slice(digits.as_bytes());
    }
    body
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_numbered_body_begins_with_its_number_where_it_fits() {
        let mut source = Source::numbered(12, 2);
        let bodies: Vec<_> = std::iter::from_fn(|| source.next().unwrap()).collect();
        assert_eq!(bodies.len(), 12);
        assert_eq!(bodies[0], b"1.");
        assert_eq!(bodies[11], b"12");
        assert_eq!(numbered(123, 2), b"..");
        assert_eq!(numbered(1, 0), b"");
    }

    #[test]
    fn each_line_is_a_body_also_an_empty_one_and_the_last_without_its_end() {
        let mut input = &b"one\n\nthree"[..];
        let bodies: Vec<_> = std::iter::from_fn(|| line(&mut input).unwrap()).collect();
        assert_eq!(bodies, [&b"one"[..], b"", b"three"]);
    }
}
