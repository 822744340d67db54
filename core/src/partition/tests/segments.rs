//! A partition that keeps whole segments, against a model that closes them by adding up.

use std::collections::BTreeSet;

use super::*;
use crate::catalog::Retention;
use crate::time::Now;

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// One that is closed.
#[derive(Clone, Debug)]
struct Closed {
    offsets: core::ops::Range<u64>,
    closed: Wall,
    /// When its period is over.
    due: Option<u64>,
}

/// Of each segment that there is, what is in it.
#[derive(Debug)]
pub(super) struct Segments {
    retention: Retention,
    closed: Vec<Closed>,
    /// Where the open one begins, and its bytes.
    open: (u64, u64),
    next: u64,
}

impl Segments {
    pub(super) fn appended(&mut self, offset: u64, bytes: u64) {
        if self.open.1 >= self.retention.segment().unwrap() {
            self.closed.push(Closed {
                offsets: self.open.0..offset,
                closed: append_time(offset),
                due: None,
            });
            self.open = (offset, 0);
        }
        self.open.1 += bytes;
        self.next = offset + 1;
    }
}

impl World {
    fn keeping(retention: Retention) -> Self {
        let mut world = Self::new(0);
        world.partition = Partition::keeping(ADDRESS, retention);
        world.models.clear();
        world.segments = Some(Segments {
            retention,
            closed: Vec::new(),
            open: (0, 0),
            next: 0,
        });
        world.subscribe(Start::Earliest);
        world
    }

    fn clock(&self) -> Now {
        Now {
            monotonic: Monotonic(self.now),
            wall: append_time(self.sent.len() as u64),
        }
    }

    /// Lets expire what is due, and compares what is kept with the model.
    pub(super) fn look_at_segments(&mut self) {
        let now = self.clock();
        let Some(mut segments) = self.segments.take() else {
            return;
        };
        if let Some(period) = segments.retention.period() {
            for closed in &mut segments.closed {
                let passed = now.wall.0 - closed.closed.0;
                let left = period.as_nanos() as u64 - passed;
                closed.due.get_or_insert(self.now + left);
            }
        }
        let (_, due) = self.partition.log.next_expiry(now);
        let next = segments.closed.first().and_then(|it| it.due);
        assert_eq!(due, next.map(Monotonic), "the oldest is the next to expire");
        let over = |it: &&Closed| it.due.is_some_and(|due| due <= self.now);
        let floor = segments.closed.iter().take_while(over).last();
        let floor = floor.map(|it| it.offsets.end);
        assert_eq!(
            self.partition.log.expired(now.monotonic),
            floor.map(Offset),
            "what is over expires"
        );
        if let Some(floor) = floor {
            self.partition.expire(&mut self.arena, Offset(floor));
            segments.closed.retain(|it| it.offsets.start >= floor);
            for model in &mut self.models {
                model.waiting.retain(|offset| *offset >= floor);
                model.returned.retain(|offset, _| *offset >= floor);
                model.resting.retain(|offset, _| *offset >= floor);
                model.held.retain(|offset, _| *offset >= floor);
                model.fresh = model.fresh.max(floor);
            }
        }
        if matches!(segments.retention, Retention::UntilAcknowledged { .. }) {
            let (models, pinned) = (&self.models, &self.pinned);
            segments.closed.retain(|it| {
                let owed = |offset| models.iter().any(|model| model.owes(offset));
                let is_read = |pin: &Pinned| it.offsets.contains(&pin.run.first.0);
                it.offsets.clone().any(owed) || pinned.iter().any(is_read)
            });
        }
        let closed = segments.closed.iter().flat_map(|it| it.offsets.clone());
        let expected: BTreeSet<u64> = closed.chain(segments.open.0..segments.next).collect();
        assert_eq!(self.kept(), expected, "whole segments are kept");
        let counts = self.partition.log.stretch_counts(&self.arena);
        // One that is expired and read by the kernel still is there.
        assert!(counts.closed as usize >= segments.closed.len());
        assert_eq!(counts.open, u32::from(segments.open.1 > 0));
        self.segments = Some(segments);
    }
}

fn with_time() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => step(),
        1 => (0..SECOND).prop_map(|time| Step::Pass { time }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 300 }))]

    #[test]
    fn segments_go_as_a_whole_and_when_they_may(
        segment in prop_oneof![1_000..20_000_u64, 60_000..300_000_u64],
        expire in any::<bool>(),
        steps in prop::collection::vec(with_time(), 1..300),
    ) {
        let retention = match expire {
            true => Retention::UntilExpired { segment, period: 1 },
            false => Retention::UntilAcknowledged { segment },
        };
        let mut world = World::keeping(retention);
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}

/// Appends so many messages, with frames of a kibibyte.
fn kibibytes(log: &mut super::log::Log, arena: &mut Arena, count: u64) {
    for _ in 0..count {
        let offset = log.next().0;
        let frame = frame(offset, 1024 - MESSAGE_HEADER_SIZE);
        log.append(arena, &frame, 0, append_time(offset)).unwrap();
    }
}

#[test]
fn twelve_fifths_of_a_segment_are_two_closed_ones_and_an_open_one() {
    let mut arena = Arena::new(CHUNKS * 16);
    let segment = 5 << 20;
    let retention = Retention::UntilExpired { segment, period: 3 };
    let mut log = Partition::keeping(ADDRESS, retention).log;
    kibibytes(&mut log, &mut arena, 5 * 1024);
    assert_eq!(log.stretch_counts(&arena).closed, 0, "it is full, and open");
    kibibytes(&mut log, &mut arena, 1);
    assert_eq!(log.stretch_counts(&arena).closed, 1);
    kibibytes(&mut log, &mut arena, 7 * 1024 - 1);
    let counts = log.stretch_counts(&arena);
    assert_eq!((counts.closed, counts.open, counts.bytes), (2, 1, 12 << 20));
    assert_eq!(counts.oldest, Some(append_time(0)));
    // Until then nobody looked at the clock: the period is counted from here.
    let now = |seconds: u64| Now {
        monotonic: Monotonic(seconds * SECOND),
        wall: append_time(log_end()),
    };
    let (_, due) = log.next_expiry(now(10));
    let due = due.unwrap();
    assert!(due <= Monotonic(13 * SECOND) && due > Monotonic(12 * SECOND));
    assert_eq!(log.expired(Monotonic(12 * SECOND)), None);
    let floor = log.expired(Monotonic(13 * SECOND));
    assert_eq!(floor, Some(Offset(10 * 1024)), "the open one stays");
}

/// Where the log ends to which twelve mebibytes of kibibytes were appended.
fn log_end() -> u64 {
    12 * 1024
}

#[test]
fn a_step_of_the_wall_clock_ends_no_period_and_a_restart_goes_by_it() {
    let mut arena = Arena::new(CHUNKS);
    let retention = Retention::UntilExpired {
        segment: 1 << 16,
        period: 100,
    };
    let mut log = Partition::keeping(ADDRESS, retention).log;
    kibibytes(&mut log, &mut arena, 65);
    let closed = append_time(64).0;
    let heard = Now {
        monotonic: Monotonic(0),
        wall: Wall(closed),
    };
    assert_eq!(log.next_expiry(heard).1, Some(Monotonic(100 * SECOND)));
    let stepped = Now {
        monotonic: Monotonic(SECOND),
        wall: Wall(closed + 1_000 * SECOND),
    };
    assert_eq!(log.next_expiry(stepped).1, Some(Monotonic(100 * SECOND)));
    // The next run is told the same messages, at another time of both clocks.
    for (wall, due) in [
        (closed + 40 * SECOND, 67),
        (closed + 400 * SECOND, 7),
        (closed - 1_000, 107),
    ] {
        let mut log = Partition::keeping(ADDRESS, retention).log;
        kibibytes(&mut log, &mut arena, 65);
        let start = Now {
            monotonic: Monotonic(7 * SECOND),
            wall: Wall(wall),
        };
        assert_eq!(log.next_expiry(start).1, Some(Monotonic(due * SECOND)));
        log.clear(&mut arena);
    }
}

#[test]
fn what_is_to_be_flushed_does_not_expire_before_it_is() {
    let mut arena = Arena::new(CHUNKS);
    let retention = Retention::UntilExpired {
        segment: 1 << 16,
        period: 1,
    };
    let mut log = Partition::keeping(ADDRESS, retention).log;
    kibibytes(&mut log, &mut arena, 65);
    log.hide(Offset(60), BatchNumber(1));
    let now = Now {
        monotonic: Monotonic(SECOND),
        wall: append_time(64),
    };
    assert_eq!(
        log.next_expiry(now).1,
        None,
        "nobody has to look before that"
    );
    assert_eq!(log.expired(Monotonic(9 * SECOND)), None);
    log.show(BatchNumber(1));
    assert_eq!(log.next_expiry(now).1, Some(Monotonic(2 * SECOND)));
    assert_eq!(log.expired(Monotonic(9 * SECOND)), Some(Offset(64)));
}
