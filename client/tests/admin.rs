//! What an administrator sees and does, against a broker in this process.
#![allow(clippy::unwrap_used)]

mod common;

use common::{TestBroker, WAIT, until};
use courser::{
    AcknowledgeError, Client, Destination, NewDestination, PolicyChange, ReceiveError, Refusal,
    RequestError, Retention, SendError,
};

fn refused<T: std::fmt::Debug>(result: Result<T, RequestError>) -> (Refusal, String) {
    match result.unwrap_err() {
        RequestError::Refused { refusal, text, .. } => (refusal.unwrap(), text.into()),
        other => panic!("{other}"),
    }
}

fn three() -> NewDestination {
    NewDestination {
        partitions: Some(3),
        ..NewDestination::default()
    }
}

#[test]
fn a_destination_is_created_described_changed_and_deleted() {
    let broker = TestBroker::start();
    let client = broker.client();
    let admin = client.admin();
    let name = "topic:/md/eu";
    assert!(admin.create(name, &three()).unwrap());
    assert!(
        !admin.create(name, &three()).unwrap(),
        "it is there already"
    );
    let policies = PolicyChange {
        producers_max: Some(1),
        ..PolicyChange::default()
    };
    assert!(admin.set(name, policies).unwrap());
    assert!(!admin.set(name, policies).unwrap(), "it is so already");
    let described = admin.destination(name).unwrap();
    assert_eq!(described.destination.to_string(), name);
    assert_eq!(
        (described.partitions, described.retention),
        (3, Retention::SETTLED)
    );
    assert_eq!(described.policies.producers_max, 1);
    let four = NewDestination {
        partitions: Some(4),
        ..NewDestination::default()
    };
    let (refusal, text) = refused(admin.create(name, &four));
    assert_eq!(refusal, Refusal::PreconditionFailed);
    assert!(
        text.contains("has 3 partitions, and 4 are wanted"),
        "{text}"
    );
    admin.delete(name, false).unwrap();
    assert_eq!(admin.destinations().unwrap(), []);
    let (refusal, text) = refused(admin.delete(name, false));
    assert_eq!(refusal, Refusal::NotFound);
    assert_eq!(text, "topic:/md/eu does not exist");
    assert_eq!(refused(admin.destination(name)).0, Refusal::NotFound);
}

#[test]
fn no_partitions_are_refused_before_anything_is_asked() {
    let broker = TestBroker::start();
    let client = broker.client();
    let none = NewDestination {
        partitions: Some(0),
        ..NewDestination::default()
    };
    let expected = (
        Refusal::IllegalArgument,
        "partitions must be > 0 or omitted".to_owned(),
    );
    assert_eq!(refused(client.admin().create("q", &none)), expected);
    let opened = client.producer("q").partitions(0).create();
    assert_eq!(refused(opened.map(drop)), expected);
    assert_eq!(client.admin().destinations().unwrap(), []);
}

/// What was not there is there once somebody created it: the next try finds it.
#[test]
fn a_broker_that_creates_nothing_by_itself_says_so_until_it_is_created() {
    let broker = TestBroker::start_closed();
    let client = broker.client();
    let (refusal, text) = refused(
        client
            .producer("orders")
            .send_timeout(WAIT)
            .create()
            .map(drop),
    );
    assert_eq!(refusal, Refusal::NotFound);
    assert!(
        text.starts_with("queue:/default/orders does not exist"),
        "{text}"
    );
    let (refusal, _) = refused(client.consumer("orders").create().map(drop));
    assert_eq!(refusal, Refusal::NotFound);
    assert!(
        client
            .admin()
            .create("orders", &NewDestination::default())
            .unwrap()
    );
    let producer = client
        .producer("orders")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    producer.send("now it is there").unwrap();
}

#[test]
fn who_uses_a_destination_that_goes_hears_it_in_its_place() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let mut consumer = client.consumer("q").create().unwrap();
    let first = producer.send("first").unwrap();
    let received = consumer.receive(WAIT).unwrap().unwrap();
    assert_eq!(received.id(), first.id);
    producer.send("delivered, not received yet").unwrap();
    let admin = broker.client().admin();
    let (refusal, text) = refused(admin.delete("q", false));
    assert_eq!(refusal, Refusal::PreconditionFailed);
    assert!(
        text.contains("in use, by 1 producers and 1 consumers"),
        "{text}"
    );
    admin.delete("q", true).unwrap();

    match producer.send("too late") {
        Err(SendError::Refused(refusal)) => assert_eq!(refusal, Refusal::NotFound),
        other => panic!("{other:?}"),
    }
    assert_eq!(producer.ended(), Some(Refusal::NotFound));
    // What had arrived is handed out first.
    let error = loop {
        match consumer.receive(WAIT) {
            Ok(Some(message)) => assert_eq!(message.text(), Some("delivered, not received yet")),
            Ok(None) => panic!("the end was not heard"),
            Err(error) => break error,
        }
    };
    match error {
        ReceiveError::Ended { refusal, text, .. } => {
            assert_eq!(refusal, Some(Refusal::NotFound));
            assert_eq!(&*text, "the destination was deleted");
        }
        other => panic!("{other}"),
    }
    assert!(matches!(
        consumer
            .acknowledge(received.position())
            .and_then(|()| consumer.confirm()),
        Err(AcknowledgeError::Closed | AcknowledgeError::Refused { .. })
    ));
    producer.close().unwrap();
    drop(consumer);
    // The connection goes on, and so does the name.
    let producer = client.producer("q").send_timeout(WAIT).create().unwrap();
    let again = producer.send("of the next one").unwrap();
    assert_eq!(again.position.offset.0, 0);
    let seen = &admin.connections().unwrap();
    let own = seen.iter().find(|link| link.producers == 1).unwrap();
    assert_eq!(
        own.consumers, 0,
        "the handle of the consumer was given back"
    );
}

#[test]
fn a_listener_hears_that_nothing_more_comes() {
    let broker = TestBroker::start();
    let client = broker.client();
    let consumer = client.consumer("q").create().unwrap();
    let listening = consumer.listen(|_| {}).unwrap();
    broker.client().admin().delete("q", true).unwrap();
    let admin = broker.client().admin();
    until(|| {
        admin
            .connections()
            .unwrap()
            .iter()
            .all(|link| link.consumers == 0)
    });
    drop(listening);
}

#[test]
fn a_producer_that_is_fenced_sends_no_more() {
    let broker = TestBroker::start();
    let client = broker.client();
    let producer = client
        .producer("q")
        .name("desk")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    producer.send("before").unwrap();
    let admin = broker.client().admin();
    let listed = admin.producers(None).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&*listed[0].name, listed[0].epoch.0), ("desk", 1));
    let destination = Destination::parse("q").unwrap();
    assert_eq!(listed[0].destination, destination);
    admin.fence(listed[0].id).unwrap();
    assert!(producer.send("after").is_err());
    assert_eq!(producer.ended(), Some(Refusal::Fenced));
    assert_eq!(admin.producers(Some(&destination)).unwrap(), []);
    assert_eq!(refused(admin.fence(listed[0].id)).0, Refusal::NotFound);
    let other = client.producer("q").send_timeout(WAIT).create().unwrap();
    other.send("of somebody else").unwrap();
}

#[test]
fn a_connection_that_is_ended_comes_back_only_if_its_client_wants() {
    let broker = TestBroker::start();
    let client = broker.client_with(Client::options().name("victim"));
    let admin = broker.client().admin();
    let victim = |admin: &courser::Admin| {
        let links = admin.connections().unwrap();
        links
            .into_iter()
            .find(|link| link.name.starts_with("victim"))
    };
    let link = victim(&admin).unwrap();
    admin.end_connection(link.link).unwrap();
    until(|| victim(&admin).is_none_or(|now| now.link != link.link));
    assert_eq!(
        refused(admin.end_connection(link.link)).0,
        Refusal::NotFound
    );
    drop(client);
}

#[test]
fn subscriptions_are_seen_with_their_places_and_removed() {
    let broker = TestBroker::start();
    let client = broker.client();
    let admin = client.admin();
    let topic = Destination::parse("topic:t").unwrap();
    admin.create(&topic, &three()).unwrap();
    let mut consumer = client
        .consumer(&topic)
        .subscription("books")
        .prefetch(2)
        .create()
        .unwrap();
    let producer = client.producer(&topic).send_timeout(WAIT).create().unwrap();
    for index in 0..9 {
        producer.send(format!("message {index}")).unwrap();
    }
    let message = consumer.receive(WAIT).unwrap().unwrap();
    consumer.acknowledge(message.position()).unwrap();
    consumer.confirm().unwrap();
    let seen = admin.subscriptions(Some(&topic)).unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!((&*seen[0].name, seen[0].consumers), ("books", 1));
    assert_eq!(seen[0].backlog, 8);
    let parts = admin.parts(&topic, "books").unwrap();
    assert_eq!(parts.iter().map(|part| part.backlog).sum::<u64>(), 8);
    assert!(parts.iter().all(|part| part.end.0 == 3), "{parts:?}");
    let cursor = parts[message.position().partition.0 as usize].cursor;
    assert_eq!(cursor.0, message.position().offset.0 + 1);
    let consumers = admin.consumers(Some(&topic), "books").unwrap();
    assert_eq!(consumers.len(), 1);

    let (refusal, text) = refused(admin.delete_subscription(&topic, "books", false));
    assert_eq!(refusal, Refusal::PreconditionFailed);
    assert!(text.contains("in use, by 1 consumers"), "{text}");
    let (refusal, text) = refused(admin.delete_subscription(&topic, "other", true));
    assert_eq!(refusal, Refusal::NotFound);
    assert!(text.contains("has no subscription \"other\""), "{text}");
    admin.delete_subscription(&topic, "books", true).unwrap();
    assert_eq!(admin.subscriptions(Some(&topic)).unwrap(), []);
    assert_eq!(admin.destination(&topic).unwrap().unsettled, 0);
    let gone = loop {
        match consumer.receive(WAIT) {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(gone, Err(ReceiveError::Ended { .. })), "{gone:?}");
}

#[test]
fn a_name_that_breaks_the_rule_is_refused_with_the_rule() {
    let broker = TestBroker::start();
    let admin = broker.client().admin();
    for name in ["topic:/a", "topic:/a/b/c", "topic:/a/b c", "topic:", ""] {
        let error = admin.create(name, &NewDestination::default()).unwrap_err();
        assert!(
            error.to_string().contains("/namespace/name"),
            "{name:?}: {error}"
        );
    }
}

#[test]
fn connections_of_every_shard_are_listed_and_ended_wherever_they_are() {
    let broker = TestBroker::of_shards(2);
    let clients: Vec<Client> = (0..6)
        .map(|index| broker.client_with(Client::options().name(&format!("client-{index}"))))
        .collect();
    let admin = broker.client().admin();
    let theirs = || {
        let links = admin.connections().unwrap().into_iter();
        let theirs = links.filter(|link| link.name.starts_with("client-"));
        theirs.map(|link| link.link).collect::<Vec<_>>()
    };
    let links = theirs();
    assert_eq!(links.len(), 6);
    // A number says which shard gave it out.
    assert!(links.iter().any(|link| link.0 >> 48 != links[0].0 >> 48));
    for link in &links {
        admin.end_connection(*link).unwrap();
    }
    until(|| theirs().iter().all(|link| !links.contains(link)));
    drop(clients);
}

#[test]
fn the_id_of_a_client_is_seen_where_it_is_connected() {
    let broker = TestBroker::start();
    let named = broker.client_with(Client::options().name("desk"));
    let bare = broker.client();
    assert_ne!(named.id(), bare.id());
    assert_eq!(named.clone().id(), named.id(), "a clone is the same client");
    let seen = bare.admin().connections().unwrap();
    let names: Vec<&str> = seen.iter().map(|link| &*link.name).collect();
    assert_eq!(names, [&*format!("desk {}", named.id()), bare.id()]);
}
