//! Sends without waiting and hears of each completion, in the order of the
//! sends, on the session's callback thread.
//!
//! `cargo run -p courser --example async_completions -- [ADDRESS]`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use courser::{Client, CompletionListener, Message, Receipt, SendError};

/// Counts, and shows every thousandth.
#[derive(Default)]
struct Progress {
    completed: AtomicU64,
    failed: AtomicU64,
}

impl CompletionListener for Progress {
    fn on_completion(&self, message: Message, receipt: Receipt) {
        let completed = self.completed.fetch_add(1, Ordering::Relaxed) + 1;
        if completed.is_multiple_of(1000) {
            println!(
                "{completed:>6}  {} bytes at {}",
                message.body().len(),
                receipt.position
            );
        }
    }

    fn on_exception(&self, message: Message, error: SendError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        eprintln!("{} bytes: {error}", message.body().len());
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let client = Client::connect(address.as_deref().unwrap_or("127.0.0.1:7420"))?;
    let producer = client.producer("topic:example-async").create()?;

    let progress = Arc::new(Progress::default());
    for index in 0..10_000u32 {
        // The message moves to the library and comes back to the listener.
        let listener: Arc<Progress> = Arc::clone(&progress);
        producer.send_async(format!("message {index}"), listener)?;
    }
    // A closure serves as well, and asynchronous and blocking sends keep one order.
    producer.send_with("the last but one", |message, result| match result {
        Ok(receipt) => println!("{:?} is {}", message.body().len(), receipt.id),
        Err(error) => eprintln!("{error}"),
    })?;
    let receipt = producer.send("the last one")?;
    println!("sent      {}", receipt.id);

    // Waits until every listener has returned.
    producer.flush()?;
    println!(
        "completed {}, failed {}",
        progress.completed.load(Ordering::Relaxed),
        progress.failed.load(Ordering::Relaxed)
    );
    producer.close()?;
    client.close()?;
    Ok(())
}
