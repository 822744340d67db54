//! A broker without a thread: whoever waits drives it, or an event loop of the
//! application's own.
//!
//! `cargo run -p courser --features embedded --example one_thread`

use std::error::Error;
use std::time::Duration;

use courser::embedded::{Broker, BrokerConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let broker = Broker::without_threads(BrokerConfig::embedded())?;
    let client = broker.connect()?;

    // A call that waits turns the broker until it has what it waits for.
    let producer = client.producer("queue:example-one-thread").create()?;
    let receipt = producer.send("driven by who waits")?;
    println!("stored    at {}", receipt.position);

    // Or the application does, here until there is nothing left to do.
    producer.try_send("driven by a loop")?;
    while broker.turn() {}
    let completion = producer.poll().ok_or("the broker has had its turn")?;
    println!("stored    at {}", completion.result?.position);

    let mut consumer = client.consumer("queue:example-one-thread").create()?;
    for _ in 0..2 {
        let received = consumer.receive(Duration::from_secs(1))?;
        let received = received.ok_or("two messages were stored")?;
        println!("received  {}", received.text().unwrap_or("no text"));
        consumer.acknowledge(received.position())?;
    }
    consumer.confirm()?;
    broker.stop();
    Ok(())
}
