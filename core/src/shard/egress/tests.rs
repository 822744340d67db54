#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::frame::control::{Pong, Refused};

/// What a link is given to send, beside the bytes that it should be.
struct Model {
    arena: Arena,
    blocks: Blocks,
    egress: Egress,
    /// What was written and has not left.
    expected: VecDeque<u8>,
    log: ChunkId,
    pins: usize,
}

impl Model {
    fn new(chunks: u32) -> Self {
        let mut arena = Arena::new(chunks);
        let log = arena.take().unwrap();
        for (index, byte) in arena.bytes_mut(log).iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).unwrap();
        }
        Self {
            arena,
            blocks: Blocks::new(usize::MAX),
            egress: Egress::new(),
            expected: VecDeque::new(),
            log,
            pins: 0,
        }
    }

    /// Whether there was room.
    fn answer(&mut self, token: u64, text: usize) -> Result<(), NoRoom> {
        let text = vec![b'x'; text];
        let fields = Refused {
            refusal: 5.into(),
            text_length: u32::try_from(text.len()).unwrap().into(),
            ..Refused::default()
        };
        self.egress.open(&mut self.arena, &mut self.blocks, true)?;
        let subject = u32::try_from(token % 1000).unwrap();
        self.egress
            .control(&mut self.arena, subject, &fields, &[&text])?;
        self.expect_control(subject, &fields, &[&text]);
        Ok(())
    }

    fn expect_control<F: Fields>(&mut self, subject: u32, fields: &F, tail: &[&[u8]]) {
        let size = encode::control_size::<F>(tail.iter().map(|part| part.len()).sum());
        let mut bytes = vec![0; size];
        encode::control(subject, fields, tail, &mut bytes);
        self.expected.extend(bytes);
    }

    fn copy(&mut self, start: usize, length: usize) -> bool {
        if !self.egress.has_room_for_delivery(length) {
            return false;
        }
        let from = (self.log, start);
        self.egress
            .open(&mut self.arena, &mut self.blocks, true)
            .unwrap();
        self.egress.copy(&mut self.arena, from, length).unwrap();
        self.expected
            .extend(&self.arena.bytes(self.log)[start..start + length]);
        true
    }

    fn lend(&mut self, start: usize, length: usize) {
        let pin = Pin {
            destination: DestinationNumber(0),
            partition: PartitionIndex(0),
            offset: Offset(0),
        };
        self.egress.lend((self.log, start), length, pin);
        self.pins += 1;
        self.expected
            .extend(&self.arena.bytes(self.log)[start..start + length]);
    }

    /// The kernel takes at most `most` bytes of what it is given.
    fn sent(&mut self, most: usize) -> usize {
        let mut pieces = Pieces::new();
        self.egress.pieces(&self.arena, &mut pieces);
        let given = pieces.slices().concat();
        let taken = most.min(given.len());
        let expected: Vec<u8> = self.expected.drain(..taken).collect();
        assert!(given[..taken] == expected[..], "bytes leave in their order");
        let pins = &mut self.pins;
        self.egress
            .sent(&mut self.arena, &mut self.blocks, taken, |_, _| *pins -= 1);
        taken
    }

    fn check(&self) {
        self.egress.invariants();
        assert_eq!(self.egress.bytes(), self.expected.len());
        assert_eq!(self.blocks.lent, self.egress.chunks());
        assert_eq!(
            self.arena.free() + 1 + self.egress.chunks(),
            self.arena.chunks() as usize
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Answer { text: usize },
    Copy { start: usize, length: usize },
    Lend { start: usize, length: usize },
    Sent { most: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0..60_usize, 0..16_000_usize].prop_map(|text| Step::Answer { text }),
        6 => (0..60_000_usize, 1..4_096_usize)
            .prop_map(|(start, length)| Step::Copy { start, length }),
        1 => (0..30_000_usize, 1..30_000_usize)
            .prop_map(|(start, length)| Step::Lend { start, length }),
        6 => prop_oneof![0..5_000_usize, 0..200_000_usize].prop_map(|most| Step::Sent { most }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_leaves_as_it_was_written(steps in prop::collection::vec(step(), 1..300)) {
        let mut model = Model::new(2);
        for (step, token) in steps.into_iter().zip(0..) {
            match step {
                Step::Answer { text } => {
                    let room = model.egress.room();
                    let size = encode::control_size::<Refused>(text);
                    let fits = if size <= room { Ok(()) } else { Err(NoRoom::Link) };
                    prop_assert_eq!(model.answer(token, text), fits);
                }
                Step::Copy { start, length } => {
                    model.copy(start, length);
                }
                Step::Lend { start, length } => model.lend(start, length),
                Step::Sent { most } => {
                    model.sent(most);
                }
            }
            model.check();
        }
        while model.sent(usize::MAX) > 0 {
            model.check();
        }
        prop_assert_eq!(model.pins, 0);
        prop_assert!(model.expected.is_empty());
    }
}

/// The block was written once and emptied as a whole: who always had a byte under way
/// filled it up in the end, however fast its peer read.
#[test]
fn a_block_that_is_never_empty_takes_answers_for_ever_as_long_as_they_are_read() {
    let mut model = Model::new(2);
    model.answer(0, 100).unwrap();
    for token in 1..10_000 {
        model.answer(token, 100).unwrap();
        model.sent(encode::control_size::<Refused>(100));
        model.check();
    }
    assert!(model.egress.bytes() > 0);
}

#[test]
fn deliveries_leave_a_quarter_of_the_block_to_answers() {
    let mut model = Model::new(2);
    while model.copy(0, 1_000) {}
    let mut answers = 0;
    while model.answer(answers, 0).is_ok() {
        answers += 1;
    }
    assert!(model.egress.bytes() > CHUNK - 64);
    let size = encode::control_size::<Refused>(0) as u64;
    assert!(answers * size >= CHUNK as u64 / 4);
}

#[test]
fn what_waits_aside_leaves_first_once_there_is_a_block_and_nothing_overtakes_it() {
    let mut model = Model::new(2);
    let hoarded = model.arena.take().unwrap();
    assert_eq!(model.answer(1, 0), Err(NoRoom::Arena));
    let put = |model: &mut Model, token: u64, most| {
        let fields = Pong {
            token: token.into(),
        };
        let size = model.egress.put_aside(7, &fields, &[], most);
        if size > 0 {
            model.expect_control(7, &fields, &[]);
        }
        size
    };
    assert_eq!(put(&mut model, 1, 60), 24);
    assert_eq!(put(&mut model, 2, 60), 24);
    assert_eq!(put(&mut model, 3, 60), 0, "it has a bound");
    let Model {
        egress,
        arena,
        blocks,
        ..
    } = &mut model;
    assert_eq!(egress.take_in_aside(arena, blocks), 0);
    arena.give(hoarded);
    assert_eq!(egress.open(arena, blocks, true), Err(NoRoom::Arena));
    assert_eq!(egress.take_in_aside(arena, blocks), 48);
    assert_eq!(egress.take_in_aside(arena, blocks), 0, "once");
    model.answer(4, 0).unwrap();
    assert_eq!(model.sent(usize::MAX), 48 + 24);
    assert!(model.expected.is_empty());
    model.check();
}
