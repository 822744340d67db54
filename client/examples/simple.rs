//! Sends a message and receives it again.
//!
//! `cargo run -p courser --example simple -- [ADDRESS]`

use std::error::Error;
use std::time::Duration;

use courser::{Client, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7420"))?;

    let producer = client.producer("queue:example-simple").create()?;
    let mut consumer = client.consumer("queue:example-simple").create()?;

    let message = Message::new("hello").with_property("language", "en")?;
    let receipt = producer.send(&message)?;
    println!("sent      {} at {}", receipt.id, receipt.position);

    while let Some(received) = consumer.receive(Duration::from_secs(1))? {
        println!(
            "received  {} at {}: {:?} in {:?}",
            received.id(),
            received.position(),
            received.text().unwrap_or("no text"),
            received.property("language"),
        );
        consumer.acknowledge(received.position())?;
        if received.id() == receipt.id {
            break;
        }
    }
    // Waits until the broker has settled what was acknowledged.
    consumer.confirm()?;
    consumer.close()?;
    producer.close()?;
    client.close()?;
    Ok(())
}
