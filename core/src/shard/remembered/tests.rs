#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::auth::Principal;
use crate::id::DestinationNumber;
use crate::shard::positions::Outcome;
use crate::time::Wall;

const HANDLE_SIZE: usize = 300;

/// Producers on links, as a shard would hold them.
struct Links {
    remembered: Remembered,
    attached: Vec<Identity>,
}

impl Links {
    fn new(bound: usize) -> Self {
        Self {
            remembered: Remembered::new(ShardIndex(0), bound, HANDLE_SIZE),
            attached: Vec::new(),
        }
    }

    fn open(&mut self, partitions: usize) -> Option<ProducerId> {
        if !self.remembered.reserve_handle(self.attached.len()) {
            return None;
        }
        let id = self.remembered.issue(partitions, 4)?;
        let destination = DestinationNumber(0);
        self.attach(Identity::new(
            id,
            Principal::default(),
            destination,
            partitions,
            "desk",
        ));
        Some(id)
    }

    fn attach(&mut self, identity: Identity) {
        self.remembered.attached(identity.id, Handle(1));
        self.attached.push(identity);
    }

    fn attach_again(&mut self, id: ProducerId) -> bool {
        let Some(Place::Detached(number)) = self.remembered.place(id) else {
            return false;
        };
        if !self.remembered.reserve_handle(self.attached.len()) {
            return false;
        }
        // Making room may have forgotten just this one.
        let Some(identity) = self.remembered.take(number) else {
            return false;
        };
        self.attach(identity);
        true
    }

    fn send(&mut self, index: usize, count: u64) {
        let identity = &mut self.attached[index];
        let Self { remembered, .. } = self;
        for time in 0..count {
            let outcome = Outcome {
                offset: time,
                append_time: Wall(time),
                refusal: 0,
            };
            identity.had_turn(0, time + 1, &outcome, |bytes| remembered.grow(bytes));
        }
    }

    fn check(&self) {
        self.remembered.invariants(self.attached.iter());
    }
}

proptest! {
    #[test]
    fn whatever_comes_and_goes_every_byte_is_counted_and_within_the_pool(
        bound in 4_000_usize..200_000,
        steps in proptest::collection::vec((0..6_u8, any::<prop::sample::Index>(), 1..2_000_u64), 1..200),
    ) {
        let mut links = Links::new(bound);
        let mut ids = Vec::new();
        for (step, index, count) in steps {
            match step {
                0 | 1 => ids.extend(links.open(1 + usize::try_from(count % 7).unwrap())),
                2 if !links.attached.is_empty() => {
                    links.send(index.index(links.attached.len()), count);
                }
                3 if !links.attached.is_empty() => {
                    let identity = links.attached.swap_remove(index.index(links.attached.len()));
                    links.remembered.detach(identity);
                }
                4 if !links.attached.is_empty() => {
                    let identity = links.attached.swap_remove(index.index(links.attached.len()));
                    links.remembered.forget(&identity);
                    prop_assert_eq!(links.remembered.place(identity.id), None);
                }
                5 if !ids.is_empty() => {
                    links.attach_again(ids[index.index(ids.len())]);
                }
                _ => {}
            }
            links.check();
        }
        let count = ids.len();
        ids.sort();
        ids.dedup();
        prop_assert_eq!(ids.len(), count, "no id is given twice");
    }
}

#[test]
fn the_longest_detached_are_forgotten_first_and_their_positions_before_them() {
    let mut links = Links::new(64 * 1024);
    // More than one opening could need room of.
    let ids: Vec<_> = (0..6).map(|_| links.open(1).unwrap()).collect();
    for _ in 0..6 {
        links.send(0, 300);
        let identity = links.attached.remove(0);
        links.remembered.detach(identity);
    }
    let known = |links: &Links| -> Vec<bool> {
        let places = ids.iter().map(|id| links.remembered.place(*id));
        places.map(|place| place.is_some()).collect()
    };
    let mut opened = 0;
    let mut shrank = false;
    while known(&links) == [true; 6] {
        let before = links.remembered.used;
        links.open(1).unwrap();
        shrank |= links.remembered.used < before;
        opened += 1;
        links.check();
    }
    assert!(shrank, "positions went before producers");
    let [first, .., last] = known(&links)[..] else {
        panic!()
    };
    assert!(!first && last);
    while links.open(1).is_some() {
        opened += 1;
    }
    assert_eq!(known(&links), [false; 6], "after {opened}");
    // Those on links lose nothing.
    assert_eq!(links.attached.len(), opened);
    links.check();
}

#[test]
fn positions_leave_half_of_the_pool_to_others() {
    let mut links = Links::new(64 * 1024);
    links.open(1).unwrap();
    links.open(1).unwrap();
    links.send(0, 1_024);
    links.send(1, 1_024);
    links.check();
    assert!(links.remembered.used <= 32 * 1024);
    while links.remembered.used < 60 * 1024 {
        links.open(1).unwrap();
    }
    links.check();
}

#[test]
fn no_more_are_kept_without_a_link_than_the_table_of_bounds_says() {
    let mut links = Links::new(1 << 30);
    let mut first = None;
    for _ in 0..=limits::PRODUCERS_REMEMBERED {
        let id = links.open(1).unwrap();
        first = first.or(Some(id));
        let identity = links.attached.pop().unwrap();
        links.remembered.detach(identity);
    }
    assert_eq!(links.remembered.place(first.unwrap()), None);
    assert_eq!(links.remembered.forgotten(), 1);
    links.check();
}
