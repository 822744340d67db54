//! Two consumers compete for a queue; two subscriptions of a topic get each
//! message both; two consumers share a subscription by key.
//!
//! `cargo run -p courser --example consumers -- [ADDRESS]`

use std::error::Error;
use std::time::Duration;

use courser::{Client, Consumer, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7420"))?;

    let queue = client.producer("queue:example-consumers").create()?;
    // A small prefetch shares work out finely.
    let mut first = client
        .consumer("queue:example-consumers")
        .prefetch(1)
        .create()?;
    let mut second = client
        .consumer("queue:example-consumers")
        .prefetch(1)
        .create()?;
    for result in queue.send_batch((0..10).map(|index| format!("task {index}"))) {
        result?;
    }
    let (mut by_first, mut by_second) = (0, 0);
    while by_first + by_second < 10 {
        by_first += take(&mut first)?;
        by_second += take(&mut second)?;
    }
    println!("queue  10 tasks: {by_first} by the first, {by_second} by the second");

    let topic = client.producer("topic:example-consumers").create()?;
    let mut audit = client
        .consumer("topic:example-consumers")
        .subscription("audit")
        .from_latest()
        .create()?;
    let mut billing = client
        .consumer("topic:example-consumers")
        .subscription("billing")
        .from_latest()
        .create()?;
    topic.send("an order")?;
    println!(
        "topic  audit got {}, billing got {}",
        take(&mut audit)?,
        take(&mut billing)?
    );

    // Each key is with one of those who share a subscription by key, in order.
    let desk = || {
        client
            .consumer("topic:example-consumers")
            .subscription("desks")
    };
    let (mut left, mut right) = (
        desk().key_shared().from_latest().create()?,
        desk().key_shared().from_latest().create()?,
    );
    for step in 0..10 {
        for table in ["1", "2", "3", "4"] {
            let text = format!("table {table}: step {step}");
            topic.send(Message::new(text).with_key(table))?;
        }
    }
    let (mut by_left, mut by_right) = (0, 0);
    while by_left + by_right < 40 {
        by_left += take(&mut left)?;
        by_right += take(&mut right)?;
    }
    println!(
        "keys   4 tables: {} and {} of 10 steps each",
        by_left / 10,
        by_right / 10
    );

    for consumer in [first, second, audit, billing, left, right] {
        consumer.close()?;
    }
    client.close()?;
    Ok(())
}

/// Receives and settles one message, if there is one soon.
fn take(consumer: &mut Consumer) -> Result<u32, Box<dyn Error>> {
    let Some(received) = consumer.receive(Duration::from_millis(200))? else {
        return Ok(0);
    };
    consumer.acknowledge(received.position())?;
    Ok(1)
}
