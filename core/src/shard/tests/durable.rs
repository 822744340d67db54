//! A shard with a journal on a device of memory: what is told before a flush, what after
//! it, and what the next run makes of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::frame::control::{CloseSession, WantCredit};
use crate::frame::{Kind, checksum};
use crate::id::{DestinationNumber, JournalNumber, Run, SubscriptionNumber};
use crate::journal::entry::{Entries, Entry};
use crate::journal::recover::{self, Plan};
use crate::journal::survey::{Slot, Survey};
use crate::journal::writer::{Beginning, Token, Wish, WriteFailed};
use crate::journal::{Identity, Origin};
use crate::journal::{batch, checkpoint};

/// The files of a journal, and what was wished and not done.
#[derive(Default)]
pub(super) struct Device {
    files: BTreeMap<Slot, Vec<u8>>,
    pub(super) writes: Vec<(Slot, u64, Token)>,
    starts: u64,
    /// It has room for what there is and for no file more.
    is_full: bool,
    /// Of the shards, in bytes; 0 for the least.
    memory: u64,
    /// A checkpoint is made when so many bytes were journalled; 0 for never.
    every: u64,
    checkpoint: Option<Vec<u8>>,
    aside: Vec<u8>,
    /// What a checkpoint waits for.
    asked: Option<CheckpointWish>,
    /// What the journal of another shard, calls a subscription of the
    /// first destination.
    told_before: Option<SubscriptionNumber>,
    /// The most pages that a shard may use; 0 for none.
    pages_max: u32,
    /// All leaves memory that may.
    is_eager: bool,
    pages: RefCell<Pages>,
    /// How often all was carried out.
    settled: u32,
}

/// What lies in page files, and what was wished of them and not done.
#[derive(Default)]
struct Pages {
    /// By the run that wrote it.
    there: BTreeMap<(u64, u32), Vec<u8>>,
    /// Of these, what a cut may take.
    unflushed: BTreeSet<(u64, u32)>,
    wishes: Vec<PageWish>,
    run: u64,
    written: usize,
    read: usize,
    /// The next so many fail.
    faults: usize,
}

impl Pages {
    fn hear(&mut self, shard: &mut Shard) {
        while let Some(wish) = shard.page_wish() {
            self.wishes.push(wish);
        }
    }

    /// Carries out one wish.
    fn carry_out(&mut self, shard: &mut Shard, index: usize) {
        // What is removed, and written anew behind that, is so in that order.
        let index = match &self.wishes[index] {
            PageWish::RemoveFile { .. } => 0,
            _ => index,
        };
        let is_removal = |wish: &PageWish| matches!(wish, PageWish::RemoveFile { .. });
        let index = self.wishes[..index]
            .iter()
            .position(is_removal)
            .unwrap_or(index);
        let wish = self.wishes.remove(index);
        if self.faults > 0 && !is_removal(&wish) {
            self.faults -= 1;
            return match wish {
                PageWish::Write { page, .. } => shard.page_written(page, Err(PageFailed)),
                PageWish::Read { page, .. } => shard.page_read(page, Err(PageFailed)),
                PageWish::RemoveFile { .. } => {}
            };
        }
        match wish {
            PageWish::Write { page, bytes } => {
                assert!(!bytes.is_empty() && bytes.len() <= limits::FRAME_SIZE_MAX as usize);
                self.unflushed.insert((self.run, page.0));
                self.there.insert((self.run, page.0), bytes);
                self.written += 1;
                shard.page_written(page, Ok(()));
            }
            PageWish::Read { page, size, sum } => {
                let bytes = &self.there[&(self.run, page.0)];
                assert_eq!(bytes.len(), size as usize);
                assert_eq!(checksum::body(bytes), sum, "what was written there");
                self.read += 1;
                shard.page_read(page, Ok(bytes));
            }
            PageWish::RemoveFile { file } => {
                let first = file * limits::PAGES_PER_FILE;
                let of_it = (self.run, first)..(self.run, first + limits::PAGES_PER_FILE);
                let gone: Vec<_> = self.there.range(of_it).map(|(page, _)| *page).collect();
                for page in gone {
                    self.there.remove(&page);
                    self.unflushed.remove(&page);
                }
            }
        }
    }

    fn settle(&mut self, shard: &mut Shard) {
        self.hear(shard);
        while !self.wishes.is_empty() {
            self.carry_out(shard, 0);
            self.hear(shard);
        }
    }

    /// Tells a shard what an entry says, with what lies in pages in its place.
    fn tell(&mut self, shard: &mut Shard, entry: &Entry<'_>) {
        if let Entry::Paged { image, .. } = entry {
            let bytes = self.there[&(image.run.0, image.page.0)].clone();
            assert_eq!(bytes.len(), image.size as usize);
            assert_eq!(checksum::body(&bytes), image.sum);
            for message in Entries::new(&bytes, image.count) {
                self.tell(shard, &message.unwrap());
            }
            return;
        }
        while shard.awaits_pages_for(entry) {
            self.settle(shard);
        }
        shard.restore(entry).unwrap();
        self.settle(shard);
    }
}

const IDENTITY: Identity = Identity {
    installation: Installation(7),
    journal: JournalNumber(0),
};

impl Device {
    /// On which one is made when so many bytes were journalled.
    pub(super) fn making_checkpoints(every: u64) -> Self {
        Self {
            every,
            ..Self::default()
        }
    }

    /// On which what is not needed soon lies in pages.
    pub(super) fn with_pages(mut self, most: u32, is_eager: bool) -> Self {
        (self.pages_max, self.is_eager) = (most, is_eager);
        self
    }

    /// Carries out one of the wishes for pages, if there is any.
    pub(super) fn page(&mut self, shard: &mut Shard, index: prop::sample::Index) {
        let pages = self.pages.get_mut();
        pages.hear(shard);
        if !pages.wishes.is_empty() {
            let index = index.index(pages.wishes.len());
            pages.carry_out(shard, index);
        }
    }

    /// Carries out all wishes for pages; whether there were any.
    pub(super) fn settle_pages(&mut self, shard: &mut Shard) -> bool {
        let pages = self.pages.get_mut();
        let before = pages.written + pages.read;
        pages.settle(shard);
        before != pages.written + pages.read
    }

    /// The next so many wishes for pages fail.
    pub(super) fn fail_pages(&mut self, count: usize) {
        self.pages.get_mut().faults = count;
    }

    /// How many pages were written and read.
    pub(super) fn paged(&self) -> (usize, usize) {
        let pages = self.pages.borrow();
        (pages.written, pages.read)
    }

    /// A shard that has what the files say, and goes on there.
    pub(super) fn start(&mut self) -> Shard {
        let (mut shard, plan) = self.recover();
        self.starts += 1;
        let origin = Origin {
            identity: IDENTITY,
            run: Run(plan.run_last.0 + 1),
            salt: 99 + self.starts,
        };
        let behind = self.files.keys().last().map_or(0, |slot| slot.0);
        shard.keep(&Beginning {
            origin,
            recovered: plan.kept,
            sequence: plan.sequence_next,
            slot: Slot(behind + 1),
        });
        if self.every > 0 {
            let last = self.header();
            let checkpoints = Checkpoints {
                every: self.every,
                number: last.map_or(0, |header| header.number),
                size: 0,
                behind: 0,
                since: Run(1),
            };
            let needed = plan.needed.iter().copied();
            shard.keep_checkpoints(checkpoints, needed, plan.spare.iter().copied());
        }
        self.settle(&mut shard);
        assert!(shard.is_durable());
        shard
    }

    fn header(&self) -> Option<checkpoint::Header> {
        let image = self.checkpoint.as_ref()?;
        Some(checkpoint::Header::read(&IDENTITY, image).unwrap())
    }

    pub(super) fn recover(&self) -> (Shard, Plan) {
        let header = self.header();
        let start = header.map(|header| header.start);
        let surveys: Vec<Survey> = self
            .files
            .iter()
            .map(|(slot, image)| Survey::of(*slot, &IDENTITY, start.as_ref(), image))
            .collect();
        let plan = recover::decide(&IDENTITY, start.as_ref(), &surveys).unwrap();
        let mut shard = shard_of(limits::MEMORY_MIN.max(self.memory));
        let mut pages = self.pages.borrow_mut();
        pages.run = plan.run_last.0 + 1;
        pages.wishes.clear();
        if self.pages_max > 0 {
            shard.keep_pages(self.pages_max);
            if self.is_eager {
                shard.page_eagerly();
            }
        }
        if let (Some(header), Some(image)) = (header, &self.checkpoint) {
            assert_eq!(header.size, image.len() as u64);
            let mut walk = checkpoint::Walk::new(header);
            while let Some(place) = walk.place().unwrap() {
                let image = &image[usize::try_from(place).unwrap()..];
                let size = walk.size(&image[..batch::HEADER_SIZE]).unwrap();
                for entry in walk.batch(&image[..size]).unwrap().entries() {
                    pages.tell(&mut shard, &entry.unwrap());
                }
            }
            shard.audit();
        }
        for step in &plan.steps {
            for batch in step.batches(&self.files[&step.slot]) {
                for entry in batch.unwrap().entries() {
                    pages.tell(&mut shard, &entry.unwrap());
                }
            }
        }
        if let Some(subscription) = self.told_before {
            let made = Entry::SubscriptionMade {
                destination: DestinationNumber(0),
                subscription,
                sharing: crate::subscription::membership::Kind::Shared,
                durable: true,
                name: "books",
            };
            shard.restore(&made).unwrap();
        }
        shard.restored();
        shard.audit();
        drop(pages);
        (shard, plan)
    }

    /// Bytes of all files of the journal.
    fn size(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    /// Does what a checkpoint waits for, if it waits for anything.
    pub(super) fn checkpoint_step(&mut self, shard: &mut Shard) {
        self.hear(shard);
        if let Some(asked) = self.asked.take() {
            self.carry_out(asked);
            shard.checkpoint_done(Ok(()));
        }
    }

    /// Has a checkpoint made, beginning now.
    pub(super) fn checkpoint(&mut self, shard: &mut Shard) {
        let number = self.header().map_or(0, |header| header.number);
        shard.begin_checkpoint();
        self.end_checkpoint(shard);
        let header = self.header().expect("one was made");
        assert_eq!(header.number, number + 1);
    }

    /// Has the one made that is being written.
    fn end_checkpoint(&mut self, shard: &mut Shard) {
        while shard.is_checkpointing() {
            self.settle(shard);
            self.checkpoint_step(shard);
        }
    }

    fn carry_out(&mut self, asked: CheckpointWish) {
        match asked {
            CheckpointWish::Write {
                position,
                bytes,
                begins,
            } => {
                if begins {
                    self.aside.clear();
                }
                assert!(bytes.len().is_multiple_of(4096));
                let start = usize::try_from(position).unwrap();
                self.aside
                    .resize(self.aside.len().max(start + bytes.len()), 0);
                self.aside[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            CheckpointWish::PutInPlace => {
                self.checkpoint = Some(core::mem::take(&mut self.aside));
                let pages = self.pages.get_mut();
                pages.unflushed.clear();
                let run = pages.run;
                pages.there.retain(|(of, _), _| *of == run);
            }
        }
    }

    /// Whether it has no such file that is as large.
    fn lacks(&self, slot: Slot, size: u64) -> bool {
        let there = self.files.get(&slot);
        there.is_none_or(|image| (image.len() as u64) < size)
    }

    fn create(&mut self, slot: Slot, size: u64) {
        let size = usize::try_from(size).unwrap();
        // One that is there keeps its bytes.
        let image = self.files.entry(slot).or_default();
        image.resize(image.len().max(size), 0);
    }

    fn put(&mut self, slot: Slot, position: u64, bytes: &[u8]) {
        let start = usize::try_from(position).unwrap();
        self.files.get_mut(&slot).unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// The power is cut: of each write that was on its way those sectors are there that
    /// `keeps` says.
    pub(super) fn cut(&mut self, shard: &Shard, keeps: &mut impl FnMut(usize) -> bool) {
        for (slot, position, token) in core::mem::take(&mut self.writes) {
            let bytes = shard.storage_pieces(token).collect::<Vec<_>>().concat();
            let start = usize::try_from(position).unwrap();
            let image = self.files.get_mut(&slot).unwrap();
            let image = &mut image[start..start + bytes.len()];
            let sectors = image.chunks_mut(512).zip(bytes.chunks(512));
            for (index, (old, new)) in sectors.enumerate() {
                if keeps(index) {
                    old.copy_from_slice(new);
                }
            }
        }
        if let Some(asked) = self.asked.take()
            && keeps(0)
        {
            self.carry_out(asked);
        }
        let pages = self.pages.get_mut();
        for page in core::mem::take(&mut pages.unflushed) {
            if !keeps(0) {
                pages.there.remove(&page);
            }
        }
    }

    /// Takes what the shard wishes.
    pub(super) fn hear(&mut self, shard: &mut Shard) {
        shard.turn(now());
        while let Some(wish) = shard.storage_wish() {
            match wish {
                Wish::Prepare { file, size } if self.is_full && self.lacks(file, size) => {
                    shard.prepared(file, false);
                }
                Wish::Prepare { file, size } => {
                    self.create(file, size);
                    shard.prepared(file, true);
                }
                Wish::Write {
                    file,
                    position,
                    token,
                } => self.writes.push((file, position, token)),
                Wish::Remove { file } => {
                    assert!(self.files.remove(&file).is_some());
                }
            }
        }
        self.asked = shard.checkpoint_wish().or(self.asked.take());
        self.pages.get_mut().hear(shard);
    }

    /// Carries the write at `index` out.
    pub(super) fn write(&mut self, shard: &mut Shard, index: usize) {
        let (file, position, token) = self.writes.remove(index);
        let bytes = shard.storage_pieces(token).collect::<Vec<_>>().concat();
        assert!(bytes.len() % 4096 == 0 && !bytes.is_empty());
        self.put(file, position, &bytes);
        shard.written(token, Ok(()));
    }

    /// Carries out all that is wished, until there is nothing more.
    pub(super) fn settle(&mut self, shard: &mut Shard) {
        self.hear(shard);
        while !self.writes.is_empty() || shard.has_storage_work() {
            if !self.writes.is_empty() {
                self.write(shard, 0);
            }
            self.hear(shard);
        }
        self.pages.get_mut().settle(shard);
        // It walks through all there is, which may be much.
        self.settled += 1;
        if self.is_eager || self.pages_max == 0 || self.settled.is_multiple_of(32) {
            shard.audit();
        }
    }
}

/// An answer that waits for the device as well.
pub(super) fn exchange(peer: &mut Peer, shard: &mut Shard, device: &mut Device) -> Vec<u8> {
    let mut answers = peer.exchange(shard);
    device.settle(shard);
    answers.extend(take(shard, peer.link));
    answers
}

pub(super) fn flushed_producer(
    peer: &mut Peer,
    shard: &mut Shard,
    device: &mut Device,
    name: &str,
) -> Opened {
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        partitions: 2.into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let producer = opened(&exchange(peer, shard, device));
    Opened {
        durability: Durability::Flushed,
        ..producer
    }
}

pub(super) fn consumer(
    peer: &mut Peer,
    shard: &mut Shard,
    device: &mut Device,
    name: &str,
) -> (Handle, Vec<u8>) {
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        messages: 100_000.into(),
        bytes: (1 << 40).into(),
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[name.as_bytes()]);
    let answers = exchange(peer, shard, device);
    let first = frames(&answers);
    let Frame::Control {
        control: Control::ConsumerOpened(fields, _),
        ..
    } = first[0].0
    else {
        panic!("{first:?}")
    };
    (Handle(fields.handle.get()), answers[first[0].1..].to_vec())
}

/// (sequence, count, durability, refusal) of each run.
fn outcomes(bytes: &[u8]) -> Vec<(u64, u32, u8, u16)> {
    let runs = completions(bytes).into_iter();
    runs.map(|run| {
        let (sequence, count) = (run.sequence.get(), run.count.get());
        (sequence, count, run.durability, run.refusal.get())
    })
    .collect()
}

#[test]
fn what_is_to_be_flushed_is_told_and_shown_once_it_is() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    consumer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"kept");
    producer.durability = Durability::Memory;
    peer.message_to(0, 2, &mut producer, b"behind it");
    let answers = peer.exchange(&mut shard);
    assert_eq!(outcomes(&answers), [], "nothing is durable yet");
    assert_eq!(bodies(&answers), []);
    device.hear(&mut shard);
    assert_eq!(device.writes.len(), 1);
    device.write(&mut shard, 0);
    let answers = take(&mut shard, peer.link);
    assert_eq!(outcomes(&answers)[0], (1, 1, 1, 0));
    assert_eq!(
        bodies(&answers).len(),
        2,
        "what is behind it is shown with it"
    );
    device.settle(&mut shard);
    let answers = [answers, take(&mut shard, peer.link)].concat();
    assert_eq!(outcomes(&answers), [(1, 1, 1, 0), (2, 1, 0, 0)]);
}

/// Opens a producer of a queue whose messages are seen before they are flushed.
fn early_producer(peer: &mut Peer, shard: &mut Shard, device: &mut Device) -> Opened {
    let name = "/default/early";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        options: 2.into(),
        dispatch: 1,
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let producer = opened(&exchange(peer, shard, device));
    Opened {
        durability: Durability::Flushed,
        ..producer
    }
}

/// Of each message that was delivered, its offset.
fn offsets(bytes: &[u8]) -> Vec<u64> {
    let frames = frames(bytes).into_iter();
    frames
        .filter_map(|(frame, _)| match frame {
            Frame::Message(message) => Some(message.header.offset.get()),
            Frame::Control { .. } => None,
        })
        .collect()
}

#[test]
fn with_early_dispatch_a_message_is_seen_while_the_device_stands_still_and_told_when_it_goes_on() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = early_producer(&mut peer, &mut shard, &mut device);
    consumer(&mut peer, &mut shard, &mut device, "/default/early");
    for sequence in 1..=3 {
        peer.message_to(0, sequence, &mut producer, b"seen");
        let answers = peer.exchange(&mut shard);
        device.hear(&mut shard);
        assert_eq!(offsets(&answers), [sequence - 1], "it is seen at once");
        assert_eq!(outcomes(&answers), [], "nothing is durable yet");
        shard.audit();
    }
    device.settle(&mut shard);
    let told = outcomes(&take(&mut shard, peer.link));
    let sent: u32 = told.iter().map(|(_, count, ..)| count).sum();
    assert_eq!(
        (told[0].0, told[0].2, sent),
        (1, 1, 3),
        "all are flushed now"
    );
}

#[test]
fn the_offset_of_what_was_seen_and_lost_is_no_other_messages() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = early_producer(&mut peer, &mut shard, &mut device);
    consumer(&mut peer, &mut shard, &mut device, "/default/early");
    peer.message_to(0, 1, &mut producer, b"lost");
    assert_eq!(offsets(&peer.exchange(&mut shard)), [0]);
    device.hear(&mut shard);
    device.cut(&shard, &mut |_| false);
    for _ in 0..2 {
        let mut shard = device.start();
        let mut peer = Peer::new(&mut shard);
        let mut producer = early_producer(&mut peer, &mut shard, &mut device);
        let (_, waiting) = consumer(&mut peer, &mut shard, &mut device, "/default/early");
        assert_eq!(offsets(&waiting), [], "it was taken back");
        peer.message_to(0, 1, &mut producer, b"another");
        let seen = offsets(&peer.exchange(&mut shard));
        assert_eq!(seen.len(), 1, "offsets were reserved at the start");
        assert!(seen[0] > 0, "{seen:?}");
        device.hear(&mut shard);
        device.cut(&shard, &mut |_| false);
    }
}

#[test]
fn whoever_wants_another_dispatch_than_there_is_gets_no_producer() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    early_producer(&mut peer, &mut shard, &mut device);
    let name = "/default/early";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        options: 2.into(),
        ..OpenProducer::default()
    };
    peer.control(3, &fields, &[name.as_bytes()]);
    let answers = exchange(&mut peer, &mut shard, &mut device);
    let frames = frames(&answers);
    let Frame::Control {
        control: Control::Refused(fields, text),
        ..
    } = frames[0].0
    else {
        panic!("{frames:?}")
    };
    assert_eq!(fields.refusal.get(), Refusal::PreconditionFailed.code());
    let text = core::str::from_utf8(text).unwrap();
    assert!(
        text.contains("has early dispatch, and durable is wanted"),
        "{text}"
    );
}

fn asks_for_producer(peer: &mut Peer, request: u32) {
    let name = "/default/q";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        ..OpenProducer::default()
    };
    peer.control(request, &fields, &[name.as_bytes()]);
}

fn kinds(answers: &[u8]) -> Vec<Kind> {
    let frames = frames(answers).into_iter();
    frames
        .filter_map(|(frame, _)| match frame {
            Frame::Control { control, .. } => Some(control.kind()),
            Frame::Message(_) => None,
        })
        .collect()
}

#[test]
fn nobody_is_told_of_a_producer_before_it_is_durable_that_it_is_there() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    asks_for_producer(&mut peer, 4);
    assert_eq!(kinds(&peer.exchange(&mut shard)), []);
    device.hear(&mut shard);
    assert_eq!(device.writes.len(), 1);
    device.write(&mut shard, 0);
    let told = take(&mut shard, peer.link);
    assert_eq!(kinds(&told), [Kind::ProducerOpened]);
    shard.audit();
}

#[test]
fn a_session_that_closes_is_told_first_of_the_producer_that_was_not_durable() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    asks_for_producer(&mut peer, 4);
    let close = CloseSession {
        session: peer.session.into(),
        ..CloseSession::default()
    };
    peer.control(5, &close, &[]);
    let mut told = peer.exchange(&mut shard);
    assert_eq!(kinds(&told), []);
    device.settle(&mut shard);
    told.extend(take(&mut shard, peer.link));
    assert_eq!(kinds(&told), [Kind::ProducerOpened, Kind::SessionClosed]);
    shard.audit();
}

#[test]
fn outcomes_keep_the_order_of_their_sends_whatever_each_waits_for() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    let mut next = [0, 0];
    for index in 0..40_u32 {
        let partition = index % 2;
        next[partition as usize] += 1;
        producer.durability = match index % 3 {
            0 => Durability::Flushed,
            _ => Durability::Memory,
        };
        peer.message_to(partition, next[partition as usize], &mut producer, b"x");
        if index % 4 == 0 {
            peer.exchange(&mut shard);
            device.hear(&mut shard);
        }
    }
    let mut answers = peer.exchange(&mut shard);
    device.hear(&mut shard);
    // The device finishes the later one first: nothing is told of it before the other.
    assert_eq!(device.writes.len(), 2);
    device.write(&mut shard, 1);
    let early = take(&mut shard, peer.link);
    assert_eq!(outcomes(&early), []);
    device.settle(&mut shard);
    answers.extend(take(&mut shard, peer.link));
    let mut expected = 1;
    for (sequence, count, _, refusal) in outcomes(&answers) {
        assert_eq!((sequence, refusal), (expected, 0));
        expected += u64::from(count);
    }
    assert_eq!(expected, 41);
}

#[test]
fn a_new_run_has_what_was_told_in_its_place_and_nothing_that_was_settled() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    let large = vec![7; 200_000];
    let want = crate::frame::control::WantCredit {
        bytes: 300_000.into(),
    };
    peer.control(producer.handle.0, &want, &[]);
    exchange(&mut peer, &mut shard, &mut device);
    for (index, body) in [&b"a"[..], b"b", &large, b"d", b"e"].iter().enumerate() {
        peer.message_to(0, index as u64 + 1, &mut producer, body);
    }
    let answers = exchange(&mut peer, &mut shard, &mut device);
    let stored: u32 = outcomes(&answers).iter().map(|outcome| outcome.1).sum();
    assert_eq!(stored, 5);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    for (first, count) in [(0, 1), (3, 1)] {
        let ack = Acknowledge {
            runs: 1.into(),
            confirm: 5.into(),
            ..Acknowledge::default()
        };
        let run = AckRun {
            first: u64::into(first),
            count: u64::into(count),
        };
        peer.control(handle.0, &ack, &[run.as_bytes()]);
    }
    let early = peer.exchange(&mut shard);
    let confirmed = |bytes: &[u8]| {
        let all = frames(bytes);
        all.iter()
            .filter(|(frame, _)| {
                matches!(
                    frame,
                    Frame::Control {
                        control: Control::Acknowledged(..),
                        ..
                    }
                )
            })
            .count()
    };
    assert_eq!(confirmed(&early), 0, "nothing is durable yet");
    device.settle(&mut shard);
    assert_eq!(confirmed(&take(&mut shard, peer.link)), 2);
    // Neither durable nor told.
    peer.message_to(0, 6, &mut producer, b"lost");
    peer.exchange(&mut shard);
    drop(shard);

    for _ in 0..2 {
        device.recover();
    }
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let found = bodies(&answers);
    let found: Vec<(u64, &[u8])> = found.iter().map(|it| (it.1, &it.2[..])).collect();
    assert_eq!(found, [(1, &b"b"[..]), (2, &large), (4, b"e")]);
    let mut other = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    assert!(
        other.producer > producer.producer,
        "ids are never given twice"
    );
    peer.message_to(0, 1, &mut other, b"next");
    let answers = exchange(&mut peer, &mut shard, &mut device);
    assert_eq!(completions(&answers)[0].offset.get(), 5);
}

#[test]
fn a_retry_finds_its_first_place_in_the_next_run() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    for partition in [0, 1] {
        peer.message_to(partition, 1, &mut producer, b"once");
        exchange(&mut peer, &mut shard, &mut device);
    }
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut again = attach_again(&mut peer, &mut shard, &mut device, producer.producer);
    assert_eq!(again.producer, producer.producer);
    again.durability = Durability::Flushed;
    again.sequence = 1;
    peer.message_to(1, 1, &mut again, b"once");
    peer.message_to(1, 2, &mut again, b"new");
    let answers = exchange(&mut peer, &mut shard, &mut device);
    let places: Vec<u64> = completions(&answers)
        .iter()
        .flat_map(|run| (0..u64::from(run.count.get())).map(|it| run.offset.get() + it))
        .collect();
    assert_eq!(places, [0, 1]);
    assert_eq!(shard.counters().read(Counter::Retries), 1);
}

#[test]
fn offsets_of_messages_that_a_crash_took_are_not_given_again() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    producer.durability = Durability::Memory;
    peer.message_to(0, 1, &mut producer, b"in memory");
    let early = peer.exchange(&mut shard);
    assert_eq!(outcomes(&early), [], "its offset is not reserved yet");
    device.settle(&mut shard);
    assert_eq!(outcomes(&take(&mut shard, peer.link)), [(1, 1, 0, 0)]);
    peer.message_to(0, 2, &mut producer, b"in memory too");
    let told = peer.exchange(&mut shard);
    assert_eq!(outcomes(&told), [(2, 1, 0, 0)], "it waits for nothing");
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"next");
    let answers = exchange(&mut peer, &mut shard, &mut device);
    assert!(completions(&answers)[0].offset.get() >= 2);
}

#[test]
fn a_write_that_failed_completes_nothing_and_is_not_made_again() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    // Offsets of the other partition are reserved.
    producer.durability = Durability::Memory;
    producer.sequence = 0;
    peer.message_to(1, 1, &mut producer, b"in memory");
    exchange(&mut peer, &mut shard, &mut device);
    producer.durability = Durability::Flushed;
    producer.sequence = 0;
    peer.message_to(0, 1, &mut producer, b"where is it");
    peer.exchange(&mut shard);
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    assert!(shard.is_broken());
    device.hear(&mut shard);
    assert!(device.writes.is_empty());
    peer.message_to(0, 2, &mut producer, b"and this");
    let answers = peer.exchange(&mut shard);
    assert_eq!(bodies(&answers), []);
    let failed = Refusal::StorageFailed.code();
    assert_eq!(outcomes(&answers), [(1, 1, 0, failed), (2, 1, 0, failed)]);
    // What needs no device goes on, and nothing else does.
    producer.durability = Durability::Memory;
    peer.message_to(1, 2, &mut producer, b"in memory");
    assert_eq!(outcomes(&peer.exchange(&mut shard)), [(3, 1, 0, 0)]);
    let name = "/default/another";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let answers = peer.exchange(&mut shard);
    let is_refused = |(frame, _): &(Frame<'_>, usize)| {
        matches!(frame, Frame::Control { control: Control::Refused(fields, _), .. }
            if fields.refusal.get() == failed)
    };
    assert!(frames(&answers).iter().any(is_refused));
    shard.audit();
}

/// Asks for a producer that was there before, or for a new one under the id 0.
fn ask_to_attach(peer: &mut Peer, producer: u64) {
    let name = "/default/q";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination_length: u16::try_from(name.len()).unwrap().into(),
        producer: producer.into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
}

fn attach_again(peer: &mut Peer, shard: &mut Shard, device: &mut Device, producer: u64) -> Opened {
    ask_to_attach(peer, producer);
    opened(&exchange(peer, shard, device))
}

/// Whether that is one refusal, because the storage has failed.
fn is_storage_failed(answers: &[u8]) -> bool {
    let failed = Refusal::StorageFailed.code();
    matches!(frames(answers)[..], [(Frame::Control {
        control: Control::Refused(fields, _), .. }, _)] if fields.refusal.get() == failed)
}

/// They were told of an epoch, or an id, that never became durable, and the next run gave it
/// to somebody else.
#[test]
fn behind_a_failed_write_nobody_is_attached() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let known = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    shard.closed(now(), peer.link);
    let ask = |shard: &mut Shard, producer: u64| {
        let mut peer = Peer::new(shard);
        ask_to_attach(&mut peer, producer);
        let answers = peer.exchange(shard);
        (peer.link, answers)
    };
    // Those who wait for the device, and those who come when it has failed.
    let waiting = [known.producer, 0].map(|producer| ask(&mut shard, producer));
    for (_, answers) in &waiting {
        assert_eq!(frames(answers).len(), 0);
    }
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    for (link, _) in waiting {
        assert!(is_storage_failed(&take(&mut shard, link)));
    }
    for producer in [known.producer, 0] {
        assert!(is_storage_failed(&ask(&mut shard, producer).1));
    }
    shard.audit();
    device.cut(&shard, &mut |_| false);
    // The next run knows the one that it was told of, as it was.
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let again = attach_again(&mut peer, &mut shard, &mut device, known.producer);
    assert_eq!(again.producer, known.producer);
}

/// The first send of a partition waited until its offset was reserved, and those of other
/// producers behind it did not: a crash gave their offsets to somebody else.
#[test]
fn nobody_is_told_an_offset_before_it_is_reserved() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut first = Peer::new(&mut shard);
    let mut one = flushed_producer(&mut first, &mut shard, &mut device, "/default/q");
    let mut second = Peer::new(&mut shard);
    let mut other = flushed_producer(&mut second, &mut shard, &mut device, "/default/q");
    (one.durability, other.durability) = (Durability::Memory, Durability::Memory);
    first.message_to(0, 1, &mut one, b"first");
    assert_eq!(outcomes(&first.exchange(&mut shard)), []);
    second.message_to(0, 1, &mut other, b"second");
    assert_eq!(outcomes(&second.exchange(&mut shard)), []);
    device.settle(&mut shard);
    assert_eq!(outcomes(&take(&mut shard, second.link)), [(1, 1, 0, 0)]);
    second.message_to(0, 2, &mut other, b"third");
    let told = outcomes(&second.exchange(&mut shard));
    assert_eq!(told, [(2, 1, 0, 0)], "its offset is reserved");
}

/// What asked for the device only after it had failed was answered never.
#[test]
fn behind_a_failed_write_retries_and_acknowledgements_are_answered() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"kept");
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 2, &mut producer, b"where is it");
    peer.exchange(&mut shard);
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    let failed = Refusal::StorageFailed.code();
    assert_eq!(outcomes(&take(&mut shard, peer.link)), [(2, 1, 0, failed)]);
    let chunks = shard.chunks_free();
    producer.sequence = 1;
    peer.message_to(0, 2, &mut producer, b"where is it");
    let ack = Acknowledge {
        runs: 1.into(),
        confirm: 9.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    peer.control(handle.0, &ack, &[run.as_bytes()]);
    let answers = peer.exchange(&mut shard);
    assert_eq!(outcomes(&answers), [(2, 1, 0, failed)]);
    let confirmed = frames(&answers).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Acknowledged(fields, _), .. }
            if fields.confirm.get() == 9 && fields.refusal.get() == failed)
    });
    assert!(confirmed);
    assert!(
        shard.chunks_free() >= chunks,
        "nothing is kept for the device"
    );
    shard.audit();
}

/// What came right behind the error overtook what waited for the device.
#[test]
fn behind_a_failed_write_confirmations_keep_their_order() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    for sequence in 1..=2 {
        peer.message_to(0, sequence, &mut producer, b"kept");
    }
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let acknowledge = |peer: &mut Peer, first: u64| {
        let ack = Acknowledge {
            runs: 1.into(),
            confirm: (u32::try_from(first).unwrap() + 1).into(),
            ..Acknowledge::default()
        };
        let run = AckRun {
            first: first.into(),
            count: 1.into(),
        };
        peer.control(handle.0, &ack, &[run.as_bytes()]);
    };
    acknowledge(&mut peer, 0);
    assert_eq!(frames(&peer.exchange(&mut shard)).len(), 0);
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    acknowledge(&mut peer, 1);
    shard.received(now(), peer.link, &core::mem::take(&mut peer.out));
    let answers = take(&mut shard, peer.link);
    let failed = Refusal::StorageFailed.code();
    let told: Vec<(u32, u16)> = (frames(&answers).iter())
        .filter_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::Acknowledged(fields, _),
                ..
            } => Some((fields.confirm.get(), fields.refusal.get())),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(1, failed), (2, failed)]);
}

/// The next run knew only that others were stored behind it, and said that it was, too.
#[test]
fn what_was_refused_stays_refused_in_the_next_run() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    let malformed = |peer: &mut Peer, producer: &Opened, epoch| {
        let envelope = Envelope {
            handle: producer.handle,
            producer: ProducerId(producer.producer),
            epoch: Epoch(epoch),
            sequence: Sequence(1),
            partition_sequence: PartitionSequence(1),
            durability: Durability::Flushed,
            ..Envelope::default()
        };
        let mut bytes = vec![0; encode::message_size(8, 1)];
        encode::message(&envelope, &[0xff; 8], b"x", &mut bytes);
        peer.out.extend_from_slice(&bytes);
    };
    let refusal = Refusal::InvalidProperties.code();
    malformed(&mut peer, &producer, 1);
    assert_eq!(
        outcomes(&peer.exchange(&mut shard)),
        [],
        "it is not durable"
    );
    device.settle(&mut shard);
    let told = outcomes(&take(&mut shard, peer.link));
    assert_eq!(told, [(1, 1, 0, refusal)]);
    producer.sequence = 1;
    peer.message_to(0, 2, &mut producer, b"behind it");
    exchange(&mut peer, &mut shard, &mut device);
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let again = attach_again(&mut peer, &mut shard, &mut device, producer.producer);
    malformed(&mut peer, &again, 2);
    let answers = exchange(&mut peer, &mut shard, &mut device);
    assert_eq!(outcomes(&answers), [(1, 1, 0, refusal)]);
}

/// A run knows nothing of what earlier ones had in memory: whatever its producer sent
/// next was too early for ever.
#[test]
fn a_producer_goes_on_behind_what_a_crash_took_and_leaves_nothing_out_after_that() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"flushed");
    producer.durability = Durability::Memory;
    peer.message_to(0, 2, &mut producer, b"in memory");
    peer.message_to(0, 3, &mut producer, b"in memory");
    let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!(told, [(1, 1, 1, 0), (2, 2, 0, 0)]);
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut again = attach_again(&mut peer, &mut shard, &mut device, producer.producer);
    again.durability = Durability::Flushed;
    again.sequence = 3;
    peer.message_to(0, 4, &mut again, b"flushed");
    again.sequence = 5;
    peer.message_to(0, 6, &mut again, b"too early");
    let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
    let early = Refusal::OutOfOrder.code();
    assert_eq!(told, [(4, 1, 1, 0), (6, 1, 0, early)]);
}

/// What a run was told of messages that were settled before others grew its tables, and
/// nobody paid for it.
#[test]
fn what_was_settled_out_of_its_order_takes_its_memory_in_the_next_run() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    for sequence in 1..=90 {
        peer.message_to(0, sequence, &mut producer, b"x");
    }
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    assert_eq!(bodies(&answers).len(), 90);
    let ack = Acknowledge {
        runs: 1.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 80.into(),
        count: 10.into(),
    };
    peer.control(handle.0, &ack, &[run.as_bytes()]);
    exchange(&mut peer, &mut shard, &mut device);
    drop(shard);
    // It audits what it comes to.
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    assert_eq!(bodies(&answers).len(), 80);
}

/// Confirmations that wait for a flush were kept without a bound, for a client that asks
/// for more and more of them while the device hangs.
#[test]
fn confirmations_that_wait_for_a_device_that_hangs_are_bounded() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"x");
    peer.exchange(&mut shard);
    device.hear(&mut shard);
    let most = limits::BEHIND_PER_LINK_MAX / 16;
    let mut asked = 0_u32;
    let refused = |answers: &[u8]| {
        frames(answers).iter().any(|(frame, _)| {
            let Frame::Control { control, .. } = frame else {
                return false;
            };
            matches!(control, Control::Farewell(fields, _)
                if fields.refusal.get() == Refusal::Stalled.code())
        })
    };
    loop {
        for _ in 0..100 {
            asked += 1;
            let ack = Acknowledge {
                confirm: asked.into(),
                ..Acknowledge::default()
            };
            peer.control(handle.0, &ack, &[]);
        }
        if refused(&peer.exchange(&mut shard)) {
            break;
        }
        assert!(asked < most, "{asked} confirmations wait");
    }
    assert!(asked > 1_000, "and a client may have many");
    device.settle(&mut shard);
    assert_eq!(shard.behind, 0);
    shard.audit();
}

/// A confirmation that waited for the device came behind the end of its consumer, whose
/// handle meant nothing to the client any more; and later not at all.
#[test]
fn a_consumer_ends_behind_its_confirmations_and_what_it_holds_returns_at_once() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"x");
    peer.message_to(0, 2, &mut producer, b"y");
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let mut other = Peer::new(&mut shard);
    consumer(&mut other, &mut shard, &mut device, "/default/q");
    let ack = Acknowledge {
        runs: 1.into(),
        confirm: 5.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: 0.into(),
        count: 1.into(),
    };
    peer.control(handle.0, &ack, &[run.as_bytes()]);
    let close = crate::frame::control::Close {
        handle: handle.0.into(),
        ..crate::frame::control::Close::default()
    };
    peer.control(9, &close, &[]);
    let early = peer.exchange(&mut shard);
    assert_eq!(frames(&early).len(), 0, "nothing is durable yet");
    assert_eq!(bodies(&take(&mut shard, other.link)).len(), 1);
    shard.audit();
    device.settle(&mut shard);
    let answers = take(&mut shard, peer.link);
    let kinds: Vec<Kind> = frames(&answers)
        .iter()
        .filter_map(|(frame, _)| match frame {
            Frame::Control { control, .. } => Some(control.kind()),
            Frame::Message(_) => None,
        })
        .collect();
    assert_eq!(kinds, [Kind::Acknowledged, Kind::Closed]);
    shard.audit();
}

/// What was told of one partition pushed out what was kept of another: its retries were
/// told that they are stored, and not where.
#[test]
fn the_last_sends_to_each_partition_keep_their_places_however_many_went_to_others() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"first");
    exchange(&mut peer, &mut shard, &mut device);
    for sequence in 1..=1_500 {
        peer.message_to(1, sequence, &mut producer, b"others");
        exchange(&mut peer, &mut shard, &mut device);
    }
    for _ in 0..2 {
        let mut peer = Peer::new(&mut shard);
        let mut again = attach_again(&mut peer, &mut shard, &mut device, producer.producer);
        again.durability = Durability::Flushed;
        again.sequence = 0;
        peer.message_to(0, 1, &mut again, b"first");
        let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
        assert_eq!(told, [(1, 1, 1, 0)]);
        shard = device.start();
    }
}

/// Behind a failed write messages in memory went on without end, at offsets that the next
/// run gives to others.
#[test]
fn behind_a_failed_write_offsets_are_given_out_up_to_where_they_were_reserved() {
    let reserved = u64::from(limits::OFFSETS_RESERVED);
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    // A topic that nobody reads keeps nothing, and counts all the same.
    let name = "/default/topic";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination: 1,
        destination_length: u16::try_from(name.len()).unwrap().into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let mut producer = opened(&exchange(&mut peer, &mut shard, &mut device));
    let (mut told, mut last) = (Vec::new(), 0);
    peer.message_to(0, 1, &mut producer, b"");
    exchange(&mut peer, &mut shard, &mut device);
    // As many again are reserved once half of them are used, and the device fails.
    let mut breaks = false;
    for sequence in 2..=reserved + 100 {
        peer.message_to(0, sequence, &mut producer, b"");
        let late = completions(&peer.exchange(&mut shard));
        device.hear(&mut shard);
        if !device.writes.is_empty() {
            breaks = true;
            let (_, _, token) = device.writes.remove(0);
            shard.written(token, Err(WriteFailed));
        }
        for run in &late {
            if run.refusal.get() == 0 {
                last = last.max(run.offset.get() + u64::from(run.count.get()));
            }
        }
        told.extend(late.into_iter().filter(|run| run.refusal.get() != 0));
    }
    assert!(breaks && shard.is_broken());
    assert_eq!(last, reserved + 1, "what was reserved is used");
    let failed = Refusal::StorageFailed.code();
    assert!(!told.is_empty() && told.iter().all(|run| run.refusal.get() == failed));
}

/// A retry was told the place that its first try was not, as it was not reserved.
#[test]
fn behind_a_failed_write_a_retry_is_told_no_place_that_is_not_reserved() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    producer.durability = Durability::Memory;
    peer.message_to(0, 1, &mut producer, b"in memory");
    peer.exchange(&mut shard);
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    let failed = Refusal::StorageFailed.code();
    assert_eq!(outcomes(&take(&mut shard, peer.link)), [(1, 1, 0, failed)]);
    producer.sequence = 0;
    peer.message_to(0, 1, &mut producer, b"in memory");
    assert_eq!(outcomes(&peer.exchange(&mut shard)), [(1, 1, 0, failed)]);
}

/// A consumer had a message in memory whose offset a crash gave to another.
#[test]
fn nobody_sees_an_offset_before_it_is_reserved() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    consumer(&mut peer, &mut shard, &mut device, "/default/q");
    producer.durability = Durability::Memory;
    peer.message_to(0, 1, &mut producer, b"in memory");
    peer.exchange(&mut shard);
    device.hear(&mut shard);
    assert_eq!(bodies(&take(&mut shard, peer.link)), []);
    assert_eq!(device.writes.len(), 1, "its reservation");
    device.settle(&mut shard);
    assert_eq!(bodies(&take(&mut shard, peer.link)).len(), 1);
}

/// Asks for a consumer of a subscription of a topic.
fn ask_to_subscribe(peer: &mut Peer, (name, sharing): (&str, u8)) {
    let topic = "/default/t";
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination: 1,
        destination_length: u16::try_from(topic.len()).unwrap().into(),
        subscription_length: u16::try_from(name.len()).unwrap().into(),
        sharing,
        messages: 100.into(),
        bytes: (1 << 20).into(),
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[topic.as_bytes(), name.as_bytes()]);
}

/// The same, and what it was told until all is durable.
pub(super) fn subscriber(
    peer: &mut Peer,
    shard: &mut Shard,
    device: &mut Device,
    (name, sharing): (&str, u8),
) -> (Handle, Vec<u8>) {
    ask_to_subscribe(peer, (name, sharing));
    let answers = exchange(peer, shard, device);
    let handle = frames(&answers).iter().find_map(|(frame, _)| match frame {
        Frame::Control {
            control: Control::ConsumerOpened(fields, _),
            ..
        } => Some(Handle(fields.handle.get())),
        _ => None,
    });
    (handle.expect("it is open"), answers)
}

pub(super) fn topic_producer(peer: &mut Peer, shard: &mut Shard, device: &mut Device) -> Opened {
    let name = "/default/t";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination: 1,
        destination_length: u16::try_from(name.len()).unwrap().into(),
        partitions: 2.into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let producer = opened(&exchange(peer, shard, device));
    Opened {
        durability: Durability::Flushed,
        ..producer
    }
}

pub(super) fn settle_one(peer: &mut Peer, handle: Handle, partition: u32, first: u64) {
    let ack = Acknowledge {
        partition: partition.into(),
        runs: 1.into(),
        confirm: 5.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: first.into(),
        count: 1.into(),
    };
    peer.control(handle.0, &ack, &[run.as_bytes()]);
}

/// Where another shard had named a subscription, a shard wrote that name into its own
/// journal. Journals are told by runs: once a checkpoint of the other one was of a later run
/// than what was settled, that was told before there was the name, and all came again.
#[test]
fn a_journal_says_itself_which_subscriptions_it_is_about() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    topic_producer(&mut peer, &mut shard, &mut device);
    drop(shard);
    let of_shard_1 = SubscriptionNumber(64 + 1);
    device.told_before = Some(of_shard_1);
    let mut shard = device.start();
    device.told_before = None;
    let mut peer = Peer::new(&mut shard);
    let mut producer = topic_producer(&mut peer, &mut shard, &mut device);
    peer.message_to(0, 1, &mut producer, b"settled");
    peer.message_to(0, 2, &mut producer, b"not settled");
    let answers = exchange(&mut peer, &mut shard, &mut device);
    assert!(outcomes(&answers).iter().all(|it| it.2 == 1 && it.3 == 0));
    let (handle, answers) = subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
    assert_eq!(bodies(&answers).len(), 2);
    settle_one(&mut peer, handle, 0, 0);
    exchange(&mut peer, &mut shard, &mut device);
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
    let found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
    assert_eq!(found, [1]);
}

#[test]
fn a_named_subscription_goes_on_where_it_was_in_every_later_run() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = topic_producer(&mut peer, &mut shard, &mut device);
    peer.message_to(0, 1, &mut producer, b"for nobody");
    let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!(told, [(1, 1, 0, 0)], "nothing is kept, and it is said");
    for name in ["books", "audit"] {
        subscriber(&mut peer, &mut shard, &mut device, (name, 2));
    }
    for sequence in 2..=4 {
        peer.message_to(0, sequence, &mut producer, b"kept");
    }
    peer.message_to(1, 1, &mut producer, b"kept");
    let answers = exchange(&mut peer, &mut shard, &mut device);
    assert!(outcomes(&answers).iter().all(|it| it.2 == 1 && it.3 == 0));
    // One of the two settles one of them.
    let mut reader = Peer::new(&mut shard);
    shard.closed(now(), peer.link);
    let (handle, _) = subscriber(&mut reader, &mut shard, &mut device, ("books", 2));
    settle_one(&mut reader, handle, 0, 2);
    exchange(&mut reader, &mut shard, &mut device);
    drop(shard);
    for _ in 0..3 {
        let mut shard = device.start();
        let mut peer = Peer::new(&mut shard);
        let found = |peer: &mut Peer, shard: &mut Shard, device: &mut Device, name| {
            let (_, answers) = subscriber(peer, shard, device, (name, 2));
            let mut found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
            found.sort_unstable();
            found
        };
        let books = found(&mut peer, &mut shard, &mut device, "books");
        assert_eq!(books, [0, 1, 3]);
        let audit = found(&mut peer, &mut shard, &mut device, "audit");
        assert_eq!(audit, [0, 1, 2, 3]);
        shard.audit();
    }
    // It is of the kind that it was made as.
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let fields = OpenConsumer {
        session: peer.session.into(),
        destination: 1,
        destination_length: 10.into(),
        subscription_length: 5.into(),
        sharing: 3,
        ..OpenConsumer::default()
    };
    peer.control(3, &fields, &[b"/default/t", b"books"]);
    let answers = exchange(&mut peer, &mut shard, &mut device);
    let refusal = Refusal::PreconditionFailed.code();
    assert!(frames(&answers).iter().any(|(frame, _)| matches!(frame,
        Frame::Control { control: Control::Refused(fields, _), .. }
            if fields.refusal.get() == refusal)));
}

#[test]
fn a_subscription_is_open_once_it_is_there_to_stay() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    topic_producer(&mut peer, &mut shard, &mut device);
    ask_to_subscribe(&mut peer, ("books", 2));
    let early = peer.exchange(&mut shard);
    assert_eq!(frames(&early).len(), 0, "it is not durable");
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    assert!(is_storage_failed(&take(&mut shard, peer.link)));
    shard.audit();
}

/// One that was durable waited for the flush of others, and was refused when that failed: its
/// consumer was lost.
#[test]
fn a_durable_subscription_is_open_at_once_also_behind_a_failed_write() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = topic_producer(&mut peer, &mut shard, &mut device);
    let mut reader = Peer::new(&mut shard);
    subscriber(&mut reader, &mut shard, &mut device, ("books", 2));
    shard.closed(now(), reader.link);
    let open = |shard: &mut Shard| {
        let mut reader = Peer::new(shard);
        ask_to_subscribe(&mut reader, ("books", 2));
        let answers = reader.exchange(shard);
        assert!(matches!(
            frames(&answers)[..],
            [(
                Frame::Control {
                    control: Control::ConsumerOpened(..),
                    ..
                },
                _
            )]
        ));
        shard.closed(now(), reader.link);
    };
    peer.message_to(0, 1, &mut producer, b"on its way");
    peer.exchange(&mut shard);
    open(&mut shard);
    device.hear(&mut shard);
    let (_, _, token) = device.writes.remove(0);
    shard.written(token, Err(WriteFailed));
    open(&mut shard);
    shard.audit();
}

#[test]
fn a_subscription_that_was_deleted_stays_so_and_one_of_its_name_begins_anew() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = topic_producer(&mut peer, &mut shard, &mut device);
    subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
    peer.message_to(0, 1, &mut producer, b"of the first");
    exchange(&mut peer, &mut shard, &mut device);
    let number = shard.locals.iter().next().unwrap().number;
    shard.delete_subscription(number, "books", true).unwrap();
    peer.message_to(0, 2, &mut producer, b"of nobody");
    let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!(told, [(2, 1, 0, 0)], "nothing is kept any more");
    let mut other = Peer::new(&mut shard);
    subscriber(&mut other, &mut shard, &mut device, ("books", 2));
    peer.message_to(0, 3, &mut producer, b"of the second");
    exchange(&mut peer, &mut shard, &mut device);
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
    let found: Vec<Vec<u8>> = bodies(&answers).into_iter().map(|it| it.2).collect();
    assert_eq!(found, [b"of the second"]);
    shard.audit();
}

/// What came for the second stood in the checkpoint and went when the end of the first was
/// told.
#[test]
fn a_subscription_that_is_made_anew_while_a_checkpoint_is_written_has_what_came_for_it() {
    for (steps, name) in (0..9).flat_map(|steps| [(steps, "books"), (steps, "audit")]) {
        let mut device = Device::making_checkpoints(1 << 30);
        let mut shard = device.start();
        let mut peer = Peer::new(&mut shard);
        let mut producer = topic_producer(&mut peer, &mut shard, &mut device);
        subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
        peer.message_to(0, 1, &mut producer, b"of the first");
        exchange(&mut peer, &mut shard, &mut device);
        shard.begin_checkpoint();
        for _ in 0..steps {
            device.checkpoint_step(&mut shard);
        }
        let number = shard.locals.iter().next().unwrap().number;
        shard.delete_subscription(number, "books", true).unwrap();
        let mut other = Peer::new(&mut shard);
        subscriber(&mut other, &mut shard, &mut device, (name, 2));
        peer.message_to(0, 2, &mut producer, b"of the second");
        peer.message_to(1, 1, &mut producer, b"of the second");
        exchange(&mut peer, &mut shard, &mut device);
        device.end_checkpoint(&mut shard);
        drop(shard);
        for life in 0..2 {
            let mut shard = device.start();
            let mut peer = Peer::new(&mut shard);
            let (_, answers) = subscriber(&mut peer, &mut shard, &mut device, (name, 2));
            let found: Vec<Vec<u8>> = bodies(&answers).into_iter().map(|it| it.2).collect();
            let both = [b"of the second", b"of the second"];
            assert_eq!(found, both, "{name} after {steps} steps, life {life}");
            shard.audit();
            device.checkpoint(&mut shard);
        }
    }
}

/// It was told in a checkpoint that the number was free, and what had been said under it
/// in the journal of another shard came back.
#[test]
fn the_number_of_a_subscription_is_given_out_once_however_long_it_is_gone() {
    let mut device = Device::making_checkpoints(1 << 30);
    let mut shard = device.start();
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let mut peer = Peer::new(&mut shard);
        topic_producer(&mut peer, &mut shard, &mut device);
        subscriber(&mut peer, &mut shard, &mut device, ("books", 2));
        let made = shard.subscriptions.iter().map(|(_, it)| it.numbers.clone());
        let made: Vec<_> = made.flatten().collect();
        assert_eq!(made.len(), 1);
        assert!(numbers.insert(made[0]), "{made:?} after {numbers:?}");
        let number = shard.locals.iter().next().unwrap().number;
        shard.delete_subscription(number, "books", true).unwrap();
        device.settle(&mut shard);
        device.checkpoint(&mut shard);
        drop(shard);
        shard = device.start();
    }
}

/// An entry for which there was no chunk was left out, and what it said was confirmed.
#[test]
fn what_has_to_be_written_finds_memory_when_all_else_is_used_up() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    for sequence in 1..=3 {
        peer.message_to(0, sequence, &mut producer, b"x");
    }
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let mut elsewhere = Vec::new();
    while let Some(chunk) = shard.arena.take() {
        elsewhere.push(chunk);
    }
    settle_one(&mut peer, handle, 0, 1);
    shard.received(now(), peer.link, &core::mem::take(&mut peer.out));
    assert!(!shard.is_broken());
    // Nobody new is let in meanwhile.
    assert!(shard.has_room_in_journal().is_err());
    elsewhere
        .drain(..)
        .for_each(|chunk| shard.arena.give(chunk));
    device.settle(&mut shard);
    assert!(shard.has_room_in_journal().is_ok());
    drop(shard);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
    assert_eq!(found, [0, 2]);
}

/// Without any memory the journal ends, and says so, rather than leave something out.
#[test]
fn a_journal_that_cannot_keep_what_happened_confirms_nothing_any_more() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    peer.message_to(0, 1, &mut producer, b"x");
    exchange(&mut peer, &mut shard, &mut device);
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    shard.journal.as_mut().unwrap().drop_spare(&mut shard.arena);
    let mut elsewhere = Vec::new();
    while let Some(chunk) = shard.arena.take() {
        elsewhere.push(chunk);
    }
    settle_one(&mut peer, handle, 0, 0);
    shard.received(now(), peer.link, &core::mem::take(&mut peer.out));
    elsewhere
        .drain(..)
        .for_each(|chunk| shard.arena.give(chunk));
    assert!(shard.is_broken());
    let answers = take(&mut shard, peer.link);
    let failed = Refusal::StorageFailed.code();
    assert!(frames(&answers).iter().any(|(frame, _)| matches!(frame,
        Frame::Control { control: Control::Acknowledged(fields, _), .. }
            if fields.refusal.get() == failed)));
}

/// Another run knew the producers and not who of them had been alone since: whoever had
/// been shut out was let in again.
#[test]
fn who_was_shut_out_by_an_exclusive_producer_stays_so_in_the_next_run() {
    let mut device = Device::making_checkpoints(1 << 30);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let first = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    shard.closed(now(), peer.link);
    let name = "/default/q";
    let open = |shard: &mut Shard, device: &mut Device, access, producer: u64| {
        let mut peer = Peer::new(shard);
        let fields = OpenProducer {
            session: peer.session.into(),
            access,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            producer: producer.into(),
            ..OpenProducer::default()
        };
        peer.control(2, &fields, &[name.as_bytes()]);
        let answers = exchange(&mut peer, shard, device);
        shard.closed(now(), peer.link);
        frames(&answers).iter().find_map(|(frame, _)| match frame {
            Frame::Control {
                control: Control::ProducerOpened(fields, _),
                ..
            } => Some(Ok(fields.producer.get())),
            Frame::Control {
                control: Control::Refused(fields, _),
                ..
            } => Some(Err(fields.refusal.get())),
            _ => None,
        })
    };
    let holder = open(&mut shard, &mut device, 1, 0).unwrap().unwrap();
    let fenced = Some(Err(Refusal::Fenced.code()));
    for _ in 0..2 {
        assert_eq!(open(&mut shard, &mut device, 0, first.producer), fenced);
        assert_eq!(open(&mut shard, &mut device, 1, holder), Some(Ok(holder)));
        drop(shard);
        shard = device.start();
    }
    // Nor when nobody knows any more who it was.
    let identity = match shard.remembered.place(ProducerId(holder)) {
        Some(crate::shard::remembered::Place::Detached(number)) => shard.remembered.take(number),
        place => panic!("{place:?}"),
    };
    shard.remembered.forget(&identity.unwrap());
    shard.journal_forgotten(ProducerId(holder));
    for _ in 0..2 {
        assert_eq!(open(&mut shard, &mut device, 0, first.producer), fenced);
        device.checkpoint(&mut shard);
        drop(shard);
        shard = device.start();
    }
    assert_eq!(open(&mut shard, &mut device, 0, first.producer), fenced);
}

/// Whoever had killed its consumer by a message was given it for the first time in every
/// run.
#[test]
fn how_often_a_message_was_delivered_goes_on_in_the_next_run() {
    let mut device = Device::making_checkpoints(1 << 30);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    for sequence in 1..=3 {
        peer.message_to(0, sequence, &mut producer, b"x");
    }
    exchange(&mut peer, &mut shard, &mut device);
    let counts = |answers: &[u8]| {
        let mut counts: Vec<(u64, u32, u32)> = frames(answers)
            .iter()
            .filter_map(|(frame, _)| match frame {
                Frame::Control {
                    control: Control::Delivery(fields, _),
                    ..
                } => Some((
                    fields.offset.get(),
                    fields.count.get(),
                    fields.delivery_count.get(),
                )),
                _ => None,
            })
            .collect();
        counts.sort_unstable();
        counts
    };
    for delivery in 1..=5 {
        let mut peer = Peer::new(&mut shard);
        let (handle, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
        if delivery == 1 {
            assert_eq!(counts(&answers), [(0, 3, 1)]);
        } else {
            let again = [(0, 1, delivery), (2, 1, delivery)];
            assert_eq!(counts(&answers), again, "each for itself");
        }
        if delivery == 1 {
            settle_one(&mut peer, handle, 0, 1);
            exchange(&mut peer, &mut shard, &mut device);
        }
        if delivery == 3 {
            // What is under way does not count.
            device.checkpoint(&mut shard);
        }
        // Nobody knows what its application had seen of them.
        shard.closed(now(), peer.link);
        device.settle(&mut shard);
        if delivery == 4 {
            device.checkpoint(&mut shard);
        }
        drop(shard);
        shard = device.start();
    }
}

/// Acknowledges one message of partition 0 and asks for a confirmation.
fn acknowledge(peer: &mut Peer, consumer: Handle, offset: u64) {
    let ack = Acknowledge {
        runs: 1.into(),
        confirm: 5.into(),
        ..Acknowledge::default()
    };
    let run = AckRun {
        first: offset.into(),
        count: 1.into(),
    };
    peer.control(consumer.0, &ack, &[run.as_bytes()]);
}

/// A file that was not to be had was never asked for again, and the broker hung.
#[test]
fn without_room_for_another_file_sends_are_refused_and_what_is_settled_is_kept() {
    let mut device = Device {
        memory: 256 << 20,
        ..Device::default()
    };
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    device.is_full = true;
    let body = vec![7; 200_000];
    let want = crate::frame::control::WantCredit {
        bytes: 300_000.into(),
    };
    let full = Refusal::StoreFull.code();
    let mut stored = 0;
    let send = |peer: &mut Peer, shard: &mut Shard, device: &mut Device, it: &mut Opened, next| {
        peer.control(it.handle.0, &want, &[]);
        exchange(peer, shard, device);
        peer.message_to(0, next, it, &body);
        let [(_, 1, _, refusal)] = outcomes(&exchange(peer, shard, device))[..] else {
            panic!("one send, one outcome, behind {next} others");
        };
        refusal
    };
    loop {
        match send(
            &mut peer,
            &mut shard,
            &mut device,
            &mut producer,
            stored + 1,
        ) {
            0 => stored += 1,
            refusal => {
                assert_eq!(refusal, full);
                break;
            }
        }
        assert!(stored < 100, "the file is larger than it was");
    }
    // Three quarters of the first file.
    let kept = stored * 200_000;
    let size = u64::from(limits::JOURNAL_FILE_SIZE_FIRST);
    assert!(kept > size / 2 && kept < size / 4 * 3, "{kept} of {size}");
    assert!(!shard.is_broken());

    // What is not a message, and what needs no flush, goes on.
    let (handle, _) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    acknowledge(&mut peer, handle, 0);
    let answers = exchange(&mut peer, &mut shard, &mut device);
    let is_confirmed = |(frame, _): &(Frame<'_>, usize)| {
        matches!(frame, Frame::Control { control: Control::Acknowledged(fields, _), .. }
            if fields.refusal.get() == 0)
    };
    assert!(frames(&answers).iter().any(is_confirmed));
    assert!(shard.is_durable());
    producer.durability = Durability::Memory;
    peer.message_to(1, 1, &mut producer, b"in memory");
    let told = outcomes(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!((told[0].2, told[0].3), (0, 0));
    producer.durability = Durability::Flushed;

    // Asked again and again, and not sooner than after a pause.
    for _ in 0..3 {
        let due = shard.journal_expiry().unwrap();
        assert!(shard.next_expiry() <= Some(due));
        let now = Now {
            monotonic: due,
            ..now()
        };
        shard.turn(now);
        assert!(matches!(shard.storage_wish(), Some(Wish::Prepare { .. })));
        let slot = Slot(2);
        shard.prepared(slot, false);
        assert!(shard.has_work(), "how long to wait is not known yet");
        shard.turn(now);
        assert!(!shard.has_storage_work() && shard.storage_wish().is_none());
        let pause = limits::JOURNAL_FILE_PAUSE;
        assert_eq!(shard.journal_expiry(), Some(due.after(pause)));
    }
    device.is_full = false;
    shard.turn(Now {
        monotonic: shard.journal_expiry().unwrap(),
        ..now()
    });
    device.settle(&mut shard);
    let next = stored + 1;
    assert_eq!(
        send(&mut peer, &mut shard, &mut device, &mut producer, next),
        0
    );
    drop(shard);

    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
    assert_eq!(found[0], 1, "the first was settled");
}

/// Nothing was journalled any more, so no checkpoint was begun that would have let a file go.
#[test]
fn a_full_disk_has_room_again_once_what_filled_it_is_settled() {
    let mut device = Device {
        memory: 512 << 20,
        ..Device::making_checkpoints(1 << 30)
    };
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, "/default/q");
    let body = vec![7; 200_000];
    let want = crate::frame::control::WantCredit {
        bytes: 300_000.into(),
    };
    let mut sequence = 0;
    let mut send = |peer: &mut Peer, shard: &mut Shard, device: &mut Device| {
        sequence += 1;
        peer.control(producer.handle.0, &want, &[]);
        exchange(peer, shard, device);
        peer.message_to(0, sequence, &mut producer, &body);
        let [(_, 1, _, refusal)] = outcomes(&exchange(peer, shard, device))[..] else {
            panic!("one send, one outcome, behind {sequence} others");
        };
        sequence -= u64::from(refusal != 0);
        refusal
    };
    let mut stored = 0;
    while send(&mut peer, &mut shard, &mut device) == 0 {
        stored += 1;
        // One file is left behind, and there is room for no third one.
        device.is_full = device.files.len() == 2;
        assert!(stored < 1_000);
    }
    let mut reader = Peer::new(&mut shard);
    let (handle, _) = consumer(&mut reader, &mut shard, &mut device, "/default/q");
    for offset in 0..stored {
        acknowledge(&mut reader, handle, offset);
        exchange(&mut reader, &mut shard, &mut device);
    }
    assert_eq!(
        send(&mut peer, &mut shard, &mut device),
        Refusal::StoreFull.code()
    );
    // Time passes.
    for _ in 0..2 {
        let due = shard.journal_expiry().expect("it is asked for again");
        shard.turn(Now {
            monotonic: due,
            ..now()
        });
        device.end_checkpoint(&mut shard);
    }
    device.settle(&mut shard);
    assert_eq!(device.files.len(), 2);
    assert_eq!(send(&mut peer, &mut shard, &mut device), 0);
    drop(shard);
    device.is_full = false;
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let (_, answers) = consumer(&mut peer, &mut shard, &mut device, "/default/q");
    let found: Vec<u64> = bodies(&answers).iter().map(|it| it.1).collect();
    assert_eq!(found, [stored]);
}

/// Sends and settles so much that it would fill several files.
fn pass(
    (peer, shard, device): (&mut Peer, &mut Shard, &mut Device),
    (producer, reader): (&mut Opened, Handle),
    sequences: core::ops::RangeInclusive<u64>,
) {
    let body = vec![3; 30_000];
    for sequence in sequences {
        let want = crate::frame::control::WantCredit {
            bytes: 300_000.into(),
        };
        peer.control(producer.handle.0, &want, &[]);
        exchange(peer, shard, device);
        peer.message_to(0, sequence, producer, &body);
        let ack = Acknowledge {
            runs: 1.into(),
            ..Acknowledge::default()
        };
        let answers = exchange(peer, shard, device);
        assert_eq!(outcomes(&answers), [(sequence, 1, 1, 0)]);
        let run = AckRun {
            first: (sequence - 1).into(),
            count: 1.into(),
        };
        peer.control(reader.0, &ack, &[run.as_bytes()]);
        exchange(peer, shard, device);
        device.checkpoint_step(shard);
        device.checkpoint_step(shard);
    }
}

#[test]
fn a_journal_stays_short_however_much_comes_and_goes() {
    let mut device = Device::making_checkpoints(200_000);
    for life in 0..3_u64 {
        let mut shard = device.start();
        let mut peer = Peer::new(&mut shard);
        let name = format!("/default/q{life}");
        let mut producer = flushed_producer(&mut peer, &mut shard, &mut device, &name);
        let (reader, _) = consumer(&mut peer, &mut shard, &mut device, &name);
        let desk = (&mut peer, &mut shard, &mut device);
        pass(desk, (&mut producer, reader), 1..=700);
        // 20 MB went through: a file that is written to, one that comes next, those
        // that wait, and one that the last checkpoint may begin in.
        assert!(device.size() <= 64 << 20, "{} bytes", device.size());
        assert!(device.checkpoint.as_ref().unwrap().len() < 100_000);
        assert!(device.header().unwrap().number > 30 * (life + 1));
    }
    let (_, plan) = device.recover();
    let read: u64 = plan
        .steps
        .iter()
        .map(|step| step.last.0 - step.first.0)
        .sum();
    assert!(read < 100, "{read} batches are read");
}

#[test]
fn a_catalogue_with_a_past_is_the_same_behind_a_checkpoint() {
    let mut device = Device::making_checkpoints(1 << 30);
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    for index in 0..9 {
        let name = format!("/default/q{index}");
        flushed_producer(&mut peer, &mut shard, &mut device, &name);
    }
    for index in [3, 7, 1] {
        let name = format!("/default/q{index}");
        let fields = crate::frame::control::Delete {
            session: peer.session.into(),
            // Whoever is attached is ended.
            options: 1,
            destination_length: u16::try_from(name.len()).unwrap().into(),
            ..crate::frame::control::Delete::default()
        };
        peer.control(5, &fields, &[name.as_bytes()]);
        exchange(&mut peer, &mut shard, &mut device);
    }
    assert_eq!(shard.catalog.len(), 6);
    shard.begin_checkpoint();
    // What it does not know any more stands behind it.
    flushed_producer(&mut peer, &mut shard, &mut device, "/default/later");
    for _ in 0..20 {
        device.checkpoint_step(&mut shard);
    }
    assert!(!shard.is_checkpointing());
    assert!(device.header().is_some());
    let (later, _) = device.recover();
    let all = |shard: &Shard| shard.catalog.entries_from(0).cloned().collect::<Vec<_>>();
    assert_eq!(all(&later), all(&shard));
    assert_eq!(later.catalog.version(), shard.catalog.version());
    // The slots of those that are gone are taken in the same order.
    let vacant = |shard: &Shard| shard.catalog.slots().1.collect::<Vec<_>>();
    assert_eq!(vacant(&later), vacant(&shard));
    assert_eq!(vacant(&later).len(), 2);
}

#[test]
fn a_checkpoint_of_next_to_nothing_is_whole() {
    let mut device = Device::making_checkpoints(1 << 30);
    let mut shard = device.start();
    for number in 1..=3 {
        shard.begin_checkpoint();
        for _ in 0..6 {
            device.checkpoint_step(&mut shard);
        }
        assert!(!shard.is_checkpointing());
        let header = device.header().unwrap();
        assert_eq!((header.number, header.batches), (number, 1));
        device.recover();
    }
}

/// It was gone before it was written down, since nobody waits for it and no more is kept than
/// it takes.
#[test]
fn a_message_that_is_more_than_is_retained_has_its_offset_and_nothing_else() {
    let mut device = Device::default();
    let mut shard = device.start();
    let mut peer = Peer::new(&mut shard);
    let name = "/default/t";
    let fields = OpenProducer {
        session: peer.session.into(),
        destination: 1,
        destination_length: u16::try_from(name.len()).unwrap().into(),
        options: 1.into(),
        retain: (CHUNK as u64).into(),
        ..OpenProducer::default()
    };
    peer.control(2, &fields, &[name.as_bytes()]);
    let opened = opened(&exchange(&mut peer, &mut shard, &mut device));
    let mut producer = Opened {
        durability: Durability::Flushed,
        ..opened
    };
    let want = WantCredit {
        bytes: (5 * CHUNK as u64).into(),
    };
    peer.control(producer.handle.0, &want, &[]);
    exchange(&mut peer, &mut shard, &mut device);
    peer.message(&mut producer, &vec![7; 3 * CHUNK]);
    let told = completions(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!((told[0].offset.get(), told[0].refusal.get()), (0, 0));
    peer.message(&mut producer, b"small");
    let told = completions(&exchange(&mut peer, &mut shard, &mut device));
    assert_eq!((told[0].offset.get(), told[0].refusal.get()), (1, 0));
    shard.audit();
    device.cut(&shard, &mut |_| false);
    let mut shard = device.start();
    let mut reader = Peer::new(&mut shard);
    ask_to_subscribe(&mut reader, ("books", 2));
    exchange(&mut reader, &mut shard, &mut device);
    shard.audit();
}
