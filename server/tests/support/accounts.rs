//! Ack logs and dumps, joined: what was acknowledged against what was received.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Who a message is: producer and sequence.
pub type Id = (u64, u64);

/// What both records say of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: Id,
    pub partition: u32,
    pub offset: u64,
    pub checksum: String,
}

/// The lines of an ack log.
pub fn ack_log(path: impl AsRef<Path>) -> Vec<Record> {
    read(path, |columns| match columns {
        [sequence, partition, offset, checksum, producer] => Record {
            id: (producer.parse().unwrap(), sequence.parse().unwrap()),
            partition: partition.parse().unwrap(),
            offset: offset.parse().unwrap(),
            checksum: (*checksum).to_owned(),
        },
        _ => panic!("not a line of an ack log: {columns:?}"),
    })
}

/// The lines of a dump.
pub fn dump(path: impl AsRef<Path>) -> Vec<Record> {
    read(path, |columns| match columns {
        [partition, offset, checksum, producer, sequence] => Record {
            id: (producer.parse().unwrap(), sequence.parse().unwrap()),
            partition: partition.parse().unwrap(),
            offset: offset.parse().unwrap(),
            checksum: (*checksum).to_owned(),
        },
        _ => panic!("not a line of a dump: {columns:?}"),
    })
}

fn read(path: impl AsRef<Path>, line: impl Fn(&[&str]) -> Record) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap();
    // A writer that was killed may have left half a line.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole
        .lines()
        .map(|text| {
            let columns: Vec<_> = text.split('\t').collect();
            let record = line(&columns);
            assert_eq!(record.checksum.len(), 8, "{text}");
            record
        })
        .collect()
}

/// Every acknowledged message was received, once, as it was sent, and in the order of
/// each producer within each partition; nothing else was received.
pub fn assert_exactly_once_in_order(acknowledged: &[Record], received: &[Record]) {
    let mut expected: HashMap<Id, &Record> = acknowledged.iter().map(|it| (it.id, it)).collect();
    assert_eq!(expected.len(), acknowledged.len(), "acknowledged twice");
    let mut last: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for message in received {
        let sent = expected.remove(&message.id);
        assert_eq!(
            sent,
            Some(message),
            "received but not so acknowledged, or twice"
        );
        let (producer, sequence) = message.id;
        let before = last.insert((message.partition, producer), sequence);
        assert!(before < Some(sequence), "{message:?} after {before:?}");
        let offset = next.entry(message.partition).or_default();
        assert_eq!(message.offset, *offset, "a partition's offsets are dense");
        *offset += 1;
    }
    assert!(expected.is_empty(), "never received: {}", expected.len());
}

/// What was received, each message once: its offsets are dense and each producer's
/// messages in order within each partition. Nothing is said of what was acknowledged.
pub fn assert_once_in_order(received: &[Record]) {
    assert_exactly_once_in_order(received, received);
}

/// Those acknowledged messages that were not received as they were sent.
pub fn lost<'a>(acknowledged: &'a [Record], received: &[Record]) -> Vec<&'a Record> {
    let received: HashMap<Id, &Record> = received.iter().map(|it| (it.id, it)).collect();
    let is_there = |sent: &Record| received.get(&sent.id).is_some_and(|it| *it == sent);
    acknowledged.iter().filter(|sent| !is_there(sent)).collect()
}

/// Every acknowledged message was received, as [`assert_once_in_order`] has it. What else
/// was received are messages of which their senders were told nothing.
pub fn assert_kept(acknowledged: &[Record], received: &[Record]) {
    let ids: HashSet<Id> = acknowledged.iter().map(|it| it.id).collect();
    assert_eq!(ids.len(), acknowledged.len(), "acknowledged twice");
    assert_once_in_order(received);
    let lost = lost(acknowledged, received);
    assert!(
        lost.is_empty(),
        "of {} acknowledged messages {} are lost: {:?}",
        acknowledged.len(),
        lost.len(),
        &lost[..lost.len().min(5)]
    );
}
