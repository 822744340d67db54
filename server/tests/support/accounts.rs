//! Ack logs and dumps, joined: what was acknowledged against what was received.

#![allow(clippy::unwrap_used, unreachable_pub)]

use std::collections::{BTreeMap, HashMap};
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
