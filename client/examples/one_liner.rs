//! A text to a queue with one line, and out of it with another: nothing to start, nothing
//! to connect, no socket.
//!
//! `cargo run -p courser --features embedded --example one_liner`

use courser::facade::{FacadeError, consumer, producer};

fn main() -> Result<(), FacadeError> {
    producer::queue("queue1").send("Text Message")?;

    let text = consumer::queue("queue1").receive(consumer::TIMEOUT)?;
    println!("received  {}", text.as_deref().unwrap_or("nothing"));
    Ok(())
}
