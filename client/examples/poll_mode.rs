//! One thread, no callbacks, nothing that waits: sends, and asks for outcomes as
//! values. The way with the lowest latency.
//!
//! `cargo run -p courser --example poll_mode -- [ADDRESS]`

use std::error::Error;
use std::time::Instant;

use courser::{Client, TrySendError};

const COUNT: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7420"))?;
    let producer = client.producer("topic:example-poll").create()?;

    // One in flight: the time from a send to its completion.
    let mut latencies = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let began = Instant::now();
        producer.try_send([7u8; 64])?;
        let completion = loop {
            if let Some(completion) = producer.poll() {
                break completion;
            }
        };
        completion.result?;
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    println!(
        "one in flight   p50 {:?}  p99 {:?}",
        latencies[COUNT / 2],
        latencies[COUNT * 99 / 100]
    );

    // As many in flight as the window allows: several messages share a system call.
    let began = Instant::now();
    let (mut sent, mut completed) = (0, 0);
    while completed < COUNT {
        while sent < COUNT {
            match producer.try_enqueue([7u8; 64]) {
                Ok(_) => sent += 1,
                Err(TrySendError::WouldBlock) => break,
                Err(error) => return Err(error.into()),
            }
        }
        while let Some(completion) = producer.poll() {
            completion.result?;
            completed += 1;
        }
    }
    println!("pipelined       {COUNT} in {:?}", began.elapsed());
    producer.close()?;
    client.close()?;
    Ok(())
}
