//! A broker in this process, with a thread of its own: one line differs from a program
//! that connects over TCP.
//!
//! `cargo run -p courser --features embedded --example embedded`

use std::error::Error;
use std::thread;
use std::time::Duration;

use courser::Client;
use courser::embedded::{Broker, BrokerConfig};

const COUNT: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let broker = Broker::start(BrokerConfig::embedded())?;
    println!("{}", broker.setting());
    // Over TCP: Client::connect("127.0.0.1:7420")
    let (sender, receiver) = (broker.connect()?, broker.connect()?);

    let receiving = thread::spawn(move || receive(&receiver).map_err(|error| error.to_string()));
    send(&sender)?;
    let received = receiving.join().map_err(|_| "the receiver panicked")??;
    println!("received  {received} messages in their order");

    broker.stop();
    match sender.ping() {
        Ok(_) => Err("a broker that has stopped does not answer".into()),
        Err(error) => {
            println!("stopped   {error}");
            Ok(())
        }
    }
}

fn send(client: &Client) -> Result<(), Box<dyn Error>> {
    let producer = client.producer("queue:example-embedded").create()?;
    for number in 0..COUNT {
        producer.send(number.to_string())?;
    }
    Ok(())
}

fn receive(client: &Client) -> Result<u64, Box<dyn Error>> {
    let mut consumer = client.consumer("queue:example-embedded").create()?;
    for number in 0..COUNT {
        let received = consumer.receive(Duration::from_secs(3))?;
        let received = received.ok_or("a message is missing")?;
        if received.text() != Some(number.to_string().as_str()) {
            return Err("a message is out of its order".into());
        }
        consumer.acknowledge(received.position())?;
    }
    consumer.confirm()?;
    Ok(COUNT)
}
