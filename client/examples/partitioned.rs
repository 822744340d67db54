//! A destination with three partitions: messages without a key take turns, equal
//! keys stay together, and a partition may be named.
//!
//! `cargo run -p courser --example partitioned -- [ADDRESS]`

use std::error::Error;
use std::time::Duration;

use courser::{Client, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7420"))?;
    let mut consumer = client.consumer("topic:example-partitioned");
    // The destination gets its partitions from the producer that creates it.
    let producer = client
        .producer("topic:example-partitioned")
        .partitions(3)
        .create()?;
    consumer = consumer.from_latest();
    let mut consumer = consumer.create()?;

    for index in 0..6 {
        let receipt = producer.send(format!("in turn {index}"))?;
        println!("in turn            {}", receipt.position);
    }
    for order in ["order-1001", "order-1002", "order-1001"] {
        let receipt = producer.send(Message::new("created").with_key(order))?;
        println!("{order:<18} {}", receipt.position);
    }
    let receipt = producer.send(Message::new("here").to_partition(2))?;
    println!("told to go to 2    {}", receipt.position);

    for _ in 0..10 {
        let Some(received) = consumer.receive(Duration::from_secs(1))? else {
            break;
        };
        println!("received  {} from {}", received.id(), received.position());
        consumer.acknowledge(received.position())?;
    }
    consumer.close()?;
    producer.close()?;
    client.close()?;
    Ok(())
}
