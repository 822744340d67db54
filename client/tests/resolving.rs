//! Names of brokers that lead elsewhere later.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{TestBroker, WAIT, until};
use courser::{Cause, Client, ConnectError, ConnectOptions, SendError};

/// A name that leads where the test says, or nowhere.
#[derive(Clone, Default)]
struct Name(Arc<Mutex<Vec<SocketAddr>>>);

impl Name {
    fn leads_to(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        *self.0.lock().unwrap() = addresses.into_iter().collect();
    }

    fn options(&self) -> ConnectOptions {
        let name = self.clone();
        Client::options()
            .timeout(WAIT)
            .reconnect_for(WAIT)
            .resolver(move |host, port| {
                assert_eq!((host, port), ("broker.test", 7_420));
                Ok(name.0.lock().unwrap().clone())
            })
    }
}

#[test]
fn a_client_goes_on_with_the_broker_that_its_name_leads_to_by_then() {
    let (first, second) = (TestBroker::start(), TestBroker::start());
    let name = Name::default();
    name.leads_to([first.address()]);
    let client = name.options().connect("broker.test").unwrap();
    let installation = client.installation();
    let producer = client
        .producer("queue:moved")
        .send_timeout(WAIT)
        .create()
        .unwrap();
    producer.send("to the first").unwrap();
    name.leads_to([second.address()]);
    first.stop();
    until(|| producer.send("to the second").is_ok());
    assert_ne!(client.installation(), installation);
    let mut consumer = client.consumer("queue:moved").create().unwrap();
    let message = consumer.receive(WAIT).unwrap().unwrap();
    assert_eq!(message.body(), b"to the second");
    drop((consumer, producer, client));
    second.stop();
}

#[test]
fn every_address_of_a_name_is_tried() {
    let broker = TestBroker::start();
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let name = Name::default();
    name.leads_to([nobody, broker.address()]);
    let client = name.options().connect("http://broker.test:7420").unwrap();
    client.ping().unwrap();
    drop(client);
    broker.stop();
}

#[test]
fn a_name_without_an_address_is_named() {
    let name = Name::default();
    let error = name.options().connect("broker.test:7420").unwrap_err();
    assert!(
        matches!(&error, ConnectError::Resolve { address, .. } if address == "broker.test:7420"),
        "{error:?}"
    );
}

/// Whoever drives never waits for the answer, so time-outs are kept meanwhile.
#[test]
fn a_name_that_takes_long_holds_nobody_up() {
    let broker = TestBroker::start();
    let address = broker.address();
    let (answer, answers) = mpsc::channel::<SocketAddr>();
    let answers = Mutex::new(answers);
    answer.send(address).unwrap();
    let client = Client::options()
        .timeout(WAIT)
        .reconnect_for(WAIT)
        .resolver(move |_, _| Ok(vec![answers.lock().unwrap().recv().unwrap()]))
        .connect("slow.test")
        .unwrap();
    let producer = client
        .producer("queue:late")
        .send_timeout(Duration::from_millis(50))
        .create()
        .unwrap();
    broker.stop();
    until(|| {
        let outcome = producer.poll();
        assert!(outcome.is_none());
        !client.is_connected()
    });
    let error = producer.send("while it is asked for").unwrap_err();
    assert_eq!(
        error,
        SendError::NotStored {
            cause: Cause::TimedOut
        }
    );
    let again = TestBroker::start();
    answer.send(again.address()).unwrap();
    until(|| producer.send("at last").is_ok());
    drop((producer, client));
    again.stop();
}
