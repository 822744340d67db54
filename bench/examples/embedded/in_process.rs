//! A broker whose shard spins on one core, and a client on the other.

use std::thread;
use std::time::Duration;

use courser::embedded::{Broker, BrokerConfig};
use courser::{Client, Durability, Producer, TrySendError};
use courser_bench::pin::{self, Cores};

use crate::{BODY_SIZE, Failure, timed};

/// How long the shard spins without work: above any pause of a slice. Between slices it
/// sleeps, and so leaves its core to the floor.
const SPIN_BUDGET: Duration = Duration::from_millis(1);

const QUEUE: &str = "queue:embedded";

/// How the client waits for a completion.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    Polling,
    Blocking,
}

/// See the module.
pub(crate) struct Subject {
    cores: Cores,
    broker: Broker,
}

impl Subject {
    pub(crate) fn start(cores: Cores) -> Result<Self, Failure> {
        let broker = Broker::start(BrokerConfig {
            cores: cores.broker.to_string().parse()?,
            spin_budget: Some(SPIN_BUDGET),
            ..BrokerConfig::embedded()
        })?;
        Ok(Self { cores, broker })
    }

    /// The median of a slice; the queue is empty before and after it.
    pub(crate) fn slice(&mut self, wait: Wait) -> Result<f64, Failure> {
        let (cores, broker) = (self.cores, &self.broker);
        let median = thread::scope(|scope| {
            let measured = scope.spawn(move || {
                pin::pin_current_thread(cores.client)?;
                let client = broker.connect()?;
                let median = measure(&client, wait)?;
                client.close()?;
                Ok::<_, Failure>(median)
            });
            measured.join().map_err(|_| "the client panicked")?
        });
        thread::sleep(SPIN_BUDGET * 2);
        median
    }
}

fn measure(client: &Client, wait: Wait) -> Result<f64, Failure> {
    let producer = client
        .producer(QUEUE)
        .durability(Durability::Memory)
        .create()?;
    let mut sent = 0_u64;
    let median = timed(|| {
        sent += 1;
        match wait {
            Wait::Blocking => producer.send([0xA5; BODY_SIZE]).map(drop)?,
            Wait::Polling => poll(&producer)?,
        }
        Ok(())
    })?;
    let mut consumer = client.consumer(QUEUE).create()?;
    for _ in 0..sent {
        let received = consumer.receive(Duration::from_secs(5))?;
        let received = received.ok_or("a message that was stored did not come")?;
        consumer.acknowledge(received.position())?;
    }
    consumer.confirm()?;
    Ok(median)
}

fn poll(producer: &Producer) -> Result<(), Failure> {
    loop {
        match producer.try_send([0xA5; BODY_SIZE]) {
            Ok(_) => break,
            Err(TrySendError::WouldBlock) => {}
            Err(error) => return Err(error.to_string().into()),
        }
    }
    loop {
        if let Some(completion) = producer.poll() {
            completion.result?;
            return Ok(());
        }
    }
}
