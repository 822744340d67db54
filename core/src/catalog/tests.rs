#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::change::CHANGE_SIZE_MAX;
use super::*;
use crate::error::Refusal;

fn named(name: &str) -> Destination {
    Destination::parse(name).unwrap()
}

fn partitions(count: u32) -> Wanted {
    Wanted {
        partitions: Some(count),
        ..Wanted::default()
    }
}

fn retaining(bytes: u64) -> Wanted {
    Wanted {
        retention: Some(Retention::Size(bytes)),
        ..Wanted::default()
    }
}

fn producers(most: u32) -> PolicyChange {
    PolicyChange {
        producers_max: Some(most),
        ..PolicyChange::default()
    }
}

/// Decides and applies; whether something changed.
fn change(catalog: &mut Catalog, request: Request<'_>) -> Result<bool, CatalogError> {
    let Some(change) = catalog.decide(request)? else {
        return Ok(false);
    };
    let version = CatalogVersion(catalog.version().0 + 1);
    catalog.apply(version, &change);
    Ok(true)
}

fn with_orders() -> Catalog {
    let mut catalog = Catalog::new(1, true);
    let orders = named("orders");
    let request = Request::Create(&orders, partitions(3), producers(2));
    assert_eq!(change(&mut catalog, request), Ok(true));
    catalog
}

#[test]
fn each_refusal_says_what_there_is_and_what_was_asked_for() {
    let catalog = with_orders();
    let closed = Catalog::new(1, false);
    let (orders, new) = (named("orders"), named("topic:new"));
    let (any, same) = (Wanted::default(), PolicyChange::default());
    let early = Wanted {
        dispatch: Some(Dispatch::Early),
        ..any
    };
    let divided = |segment, period| Wanted {
        retention: Some(Retention::UntilExpired { segment, period }),
        ..any
    };
    let cases: [(&Catalog, Request<'_>, Refusal, &[&str]); 15] = [
        (
            &catalog,
            Request::Create(&new, partitions(0), same),
            Refusal::IllegalArgument,
            &["partitions must be > 0 or omitted"],
        ),
        (
            &catalog,
            Request::Open(&orders, partitions(0)),
            Refusal::IllegalArgument,
            &["partitions must be > 0 or omitted"],
        ),
        (
            &catalog,
            Request::Create(&new, partitions(1025), same),
            Refusal::IllegalArgument,
            &["1025", "1024"],
        ),
        (
            &catalog,
            Request::Open(&orders, partitions(4)),
            Refusal::PreconditionFailed,
            &["queue:/default/orders", "has 3", "4 are wanted"],
        ),
        (
            &catalog,
            Request::Create(&orders, partitions(4), same),
            Refusal::PreconditionFailed,
            &["has 3", "4 are wanted"],
        ),
        (
            &catalog,
            Request::Open(&orders, retaining(7)),
            Refusal::PreconditionFailed,
            &["retains settled", "7 bytes of what is settled is wanted"],
        ),
        (
            &catalog,
            Request::Open(&orders, early),
            Refusal::PreconditionFailed,
            &["has durable dispatch", "early is wanted", "strategy"],
        ),
        (
            &catalog,
            Request::Open(&orders, divided(5 << 20, 3)),
            Refusal::PreconditionFailed,
            &["retains settled", "5242880", "until expired after 3 s"],
        ),
        (
            &catalog,
            Request::Create(&new, divided(1, 3), same),
            Refusal::IllegalArgument,
            &["segment of 1 bytes", "65536"],
        ),
        (
            &catalog,
            Request::Create(&new, divided(5 << 20, 0), same),
            Refusal::IllegalArgument,
            &["period of 0 s", "31622400"],
        ),
        (
            &catalog,
            Request::Create(&orders, any, producers(5)),
            Refusal::PreconditionFailed,
            &["2 producers", "5 is wanted"],
        ),
        (
            &catalog,
            Request::Delete(&new),
            Refusal::NotFound,
            &["topic:/default/new does not exist"],
        ),
        (
            &catalog,
            Request::SetPolicies(&new, producers(1)),
            Refusal::NotFound,
            &["topic:/default/new does not exist"],
        ),
        (
            &closed,
            Request::Open(&new, any),
            Refusal::NotFound,
            &["topic:/default/new does not exist", "create it first"],
        ),
        (
            &closed,
            Request::Delete(&orders),
            Refusal::NotFound,
            &["queue:/default/orders does not exist"],
        ),
    ];
    for (catalog, request, refusal, words) in cases {
        let error = catalog.decide(request).unwrap_err();
        assert_eq!(error.refusal(), refusal, "{request:?}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} should say {word:?}");
        }
    }
}

#[test]
fn what_is_already_as_it_is_asked_for_changes_nothing() {
    let mut catalog = with_orders();
    let orders = named("orders");
    let none = PolicyChange::default();
    for request in [
        Request::Open(&orders, Wanted::default()),
        Request::Open(&orders, partitions(3)),
        Request::Create(&orders, retaining(0), none),
        Request::Create(&orders, partitions(3), producers(2)),
        Request::SetPolicies(&orders, producers(2)),
        Request::SetPolicies(&orders, none),
    ] {
        assert_eq!(change(&mut catalog, request), Ok(false), "{request:?}");
    }
    assert_eq!(catalog.version(), CatalogVersion(1));
}

#[test]
fn a_policy_that_is_set_leaves_the_others_as_they_are() {
    let mut catalog = with_orders();
    let orders = named("orders");
    let consumers = PolicyChange {
        consumers_max: Some(9),
        ..PolicyChange::default()
    };
    let request = Request::SetPolicies(&orders, consumers);
    assert_eq!(change(&mut catalog, request), Ok(true));
    let number = catalog.find(&orders).unwrap();
    assert_eq!(
        catalog.entry(number).policies,
        Policies {
            producers_max: 2,
            consumers_max: 9,
            subscriptions_max: 0
        }
    );
}

#[test]
fn a_queue_and_a_topic_of_one_name_are_two_destinations() {
    let mut catalog = Catalog::new(1, true);
    let (queue, topic) = (named("queue:a"), named("topic:a"));
    for destination in [&queue, &topic] {
        let request = Request::Open(destination, Wanted::default());
        assert_eq!(change(&mut catalog, request), Ok(true));
    }
    assert_ne!(catalog.find(&queue), catalog.find(&topic));
    assert_eq!(catalog.len(), 2);
}

#[test]
fn a_catalogue_that_is_full_takes_another_destination_once_one_is_deleted() {
    let mut catalog = Catalog::new(1, true);
    for index in 0..limits::DESTINATIONS_MAX {
        let name = named(&format!("q{index}"));
        let request = Request::Open(&name, Wanted::default());
        assert_eq!(change(&mut catalog, request), Ok(true));
    }
    let more = named("one-more");
    let open = Request::Open(&more, Wanted::default());
    let error = change(&mut catalog, open).unwrap_err();
    assert_eq!(error.refusal(), Refusal::ResourceAllocation);
    assert!(error.to_string().contains("4096"));
    let first = named("q0");
    assert_eq!(change(&mut catalog, Request::Delete(&first)), Ok(true));
    assert_eq!(change(&mut catalog, open), Ok(true));
}

#[test]
fn numbers_are_never_given_twice_and_tables_by_slot_do_not_grow() {
    let mut catalog = with_orders();
    let mut last = None;
    let name = named("topic:a");
    for _ in 0..100_000 {
        let open = Request::Open(&name, Wanted::default());
        assert_eq!(change(&mut catalog, open), Ok(true));
        let number = catalog.find(&name).unwrap();
        assert!(last < Some(number), "the next tenant has a higher number");
        assert_eq!(number.slot(), 1);
        assert_eq!(change(&mut catalog, Request::Delete(&name)), Ok(true));
        assert!(catalog.get(number).is_none(), "a number outlives nothing");
        last = Some(number);
    }
    assert_eq!((catalog.slots.len(), catalog.free.len()), (2, 1));
    assert_eq!(catalog.version(), CatalogVersion(200_001));
}

#[test]
fn a_slot_whose_numbers_are_used_up_gets_no_further_tenant() {
    let mut catalog = Catalog::new(1, true);
    let name = named("a");
    let open = Request::Open(&name, Wanted::default());
    assert_eq!(change(&mut catalog, open), Ok(true));
    assert_eq!(change(&mut catalog, Request::Delete(&name)), Ok(true));
    catalog.slots[0].tenant = DestinationNumber::TENANTS - 1;
    assert_eq!(change(&mut catalog, open), Ok(true));
    let last = catalog.find(&name).unwrap();
    assert!(last < DestinationNumber::NONE);
    assert_eq!(change(&mut catalog, Request::Delete(&name)), Ok(true));
    assert_eq!(change(&mut catalog, open), Ok(true));
    assert_eq!(catalog.find(&name), Some(DestinationNumber::new(1, 0)));
}

#[derive(Clone, Debug)]
enum Act {
    Open(u8, Option<u32>),
    Delete(u8),
    Set(u8, u32),
}

fn act() -> impl Strategy<Value = Act> {
    let name = 0..6_u8;
    prop_oneof![
        (name.clone(), proptest::option::of(0..4_u32))
            .prop_map(|(name, most)| Act::Open(name, most)),
        name.clone().prop_map(Act::Delete),
        (name, 0..3_u32).prop_map(|(name, most)| Act::Set(name, most)),
    ]
}

proptest! {
    /// The one who decides applies at once, the other one what crossed over as bytes,
    /// some time later.
    #[test]
    fn whoever_applies_the_same_changes_has_the_same_catalogue(
        acts in proptest::collection::vec(act(), 0..200)
    ) {
        let mut decider = Catalog::new(1, true);
        let mut replica = Catalog::new(2, true);
        let mut journal = Vec::new();
        for act in acts {
            let destination;
            let request = match act {
                Act::Open(name, count) => {
                    destination = named(&format!("n{name}"));
                    let wanted = Wanted {
                        partitions: count,
                        dispatch: (name % 2 == 0).then_some(Dispatch::Early),
                        retention: (name % 3 == 0).then_some(Retention::UntilExpired {
                            segment: 1 << 20,
                            period: 7,
                        }),
                    };
                    Request::Open(&destination, wanted)
                }
                Act::Delete(name) => {
                    destination = named(&format!("n{name}"));
                    Request::Delete(&destination)
                }
                Act::Set(name, most) => {
                    destination = named(&format!("n{name}"));
                    Request::SetPolicies(&destination, producers(most))
                }
            };
            if let Ok(Some(change)) = decider.decide(request) {
                let version = CatalogVersion(decider.version().0 + 1);
                decider.apply(version, &change);
                let mut bytes = Vec::new();
                change.encode(&mut bytes);
                prop_assert!(bytes.len() <= CHANGE_SIZE_MAX);
                journal.push((version, bytes));
            }
        }
        for (version, bytes) in &journal {
            replica.apply(*version, &Change::decode(bytes).unwrap());
        }
        prop_assert_eq!(&decider.slots, &replica.slots);
        prop_assert_eq!(&decider.free, &replica.free);
        prop_assert_eq!(decider.version(), replica.version());
        for entry in decider.entries_from(0) {
            prop_assert_eq!(replica.find(&entry.destination), Some(entry.number));
        }
    }

    #[test]
    fn bytes_are_a_change_only_if_the_change_has_these_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        tag in 0..5_u8,
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = tag;
        }
        if let Some(change) = Change::decode(&bytes) {
            let mut same = Vec::new();
            change.encode(&mut same);
            prop_assert_eq!(same, bytes);
        }
    }
}

#[test]
fn the_longest_change_is_as_long_as_it_says() {
    let part = "x".repeat(limits::NAME_PART_SIZE_MAX as usize);
    let entry = Entry {
        number: DestinationNumber(1),
        destination: named(&format!("topic:/{part}/{part}")),
        shape: Shape {
            partitions: 1,
            retention: Retention::UntilAcknowledged { segment: 1 << 20 },
            dispatch: Dispatch::Early,
        },
        policies: Policies::default(),
    };
    let mut bytes = Vec::new();
    Change::Create(entry.clone()).encode(&mut bytes);
    assert_eq!(bytes.len(), CHANGE_SIZE_MAX);
    assert_eq!(Change::decode(&bytes), Some(Change::Create(entry)));
    assert_eq!(Change::decode(&bytes[..bytes.len() - 1]), None);
}
