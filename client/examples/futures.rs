//! Futures without a runtime of the library's choice: here one of fifteen lines.
//!
//! ```text
//! cargo run -p courser --example futures [HOST:PORT]
//! ```

use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use courser::{Client, SendFuture};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7420".to_owned());
    let client = Client::connect(address)?;
    let producer = client.producer("queue:futures").create()?;
    let mut consumer = client.consumer("queue:futures").create()?;
    block_on(async {
        // All of them are on their way before the first is waited for.
        let sends: Vec<SendFuture> = (1..=10)
            .map(|number| producer.send_future(format!("message {number}")))
            .collect();
        for send in sends {
            println!("stored at {}", send.await?.position);
        }
        for _ in 1..=10 {
            let received = consumer.receive_async().await?;
            println!("received {}", received.text().unwrap_or("(no text)"));
            consumer.acknowledge(received.position())?;
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    consumer.close()?;
    producer.close()?;
    client.close()?;
    Ok(())
}
