//! Two consumers compete for a queue; two subscriptions of a topic get each
//! message both.
//!
//! `cargo run -p courser --example consumers -- [ADDRESS]`

use std::error::Error;
use std::time::Duration;

use courser::{Client, Consumer};

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

    for consumer in [first, second, audit, billing] {
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
