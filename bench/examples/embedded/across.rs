//! Two shards: one takes turns with a client's machine on one core, the other spins on
//! the other core. The driver's part, beside the rings between them, is copies.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use courser_bench::pin::{self, Cores};
use courser_core::client::{
    Client, Config, Durability, Event, Location, Outgoing, ProducerKey, ProducerRequest, Route,
};
use courser_core::id::{Handle, Installation, ShardIndex};
use courser_core::limits;
use courser_core::mesh::{Ends, mesh};
use courser_core::name::Destination;
use courser_core::shard::{Attached, Output, Pieces, Shard, ShardConfig};
use courser_core::time::Now;
use courser_transport::clock::Clock;

use crate::{BODY_SIZE, Failure, timed};

/// Longer than any exchange takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// The medians of sends to a partition of the link's shard, and to one of the other
/// shard. Topics that nobody subscribes to keep nothing.
pub(crate) fn slice(cores: Cores) -> Result<(f64, f64), Failure> {
    let mut ends = mesh(2)?.into_iter();
    let (Some(near), Some(far)) = (ends.next(), ends.next()) else {
        return Err("two shards have two ends".into());
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let is_over = &is_over;
        let other = scope.spawn(move || {
            pin::pin_current_thread(cores.broker)?;
            let mut shard = shard(far)?;
            let mut clock = Clock::new();
            while !is_over.load(Ordering::Relaxed) {
                let now = clock.now();
                shard.meet(now);
                shard.turn(now);
                while shard.output().is_some() {}
                while shard.next_wake().is_some() {}
            }
            Ok::<_, Failure>(())
        });
        let measured = scope.spawn(move || {
            let medians = pin::pin_current_thread(cores.client)
                .map_err(Failure::from)
                .and_then(|()| Near::new(near))
                .and_then(|mut near| near.measure());
            is_over.store(true, Ordering::Relaxed);
            medians
        });
        let medians = measured.join().map_err(|_| "the near shard panicked")?;
        other.join().map_err(|_| "the far shard panicked")??;
        medians
    })
}

fn shard(ends: Ends) -> Result<Shard, Failure> {
    let mut shard = Shard::new(ShardConfig {
        installation: Installation(0xfeed),
        shard: ends.shard(),
        memory: limits::MEMORY_MIN,
        hash_seed: 1,
        auto_create: true,
    })?;
    shard.join(ends);
    Ok(shard)
}

/// The client's machine and the shard that its link is on.
struct Near {
    shard: Shard,
    client: Client,
    link: Handle,
    clock: Clock,
    passed: Vec<u8>,
}

impl Near {
    fn new(ends: Ends) -> Result<Self, Failure> {
        let mut shard = shard(ends)?;
        let mut clock = Clock::new();
        let now = clock.now();
        let mut client = Client::new(Config::default());
        client.connected(now.monotonic);
        // The door takes the hello; the shard begins behind it.
        let hello = client.pieces().size();
        client.sent(hello);
        let link = shard.attached(now, Attached::default())?;
        Ok(Self {
            shard,
            client,
            link,
            clock,
            passed: Vec::with_capacity(1 << 16),
        })
    }

    fn measure(&mut self) -> Result<(f64, f64), Failure> {
        let is_open = |near: &mut Self| near.client.is_open().then_some(());
        self.until(is_open)?;
        let mut medians = [None, None];
        // Destinations are at home on one shard after the other.
        for number in 0..4 {
            let destination = Destination::parse(&format!("topic:t{number}"))?;
            self.client
                .open_producer(ProducerRequest::new(destination.clone()))?;
            let producer = self.until_event(|event| match event {
                Event::ProducerOpened { producer, .. } => Some(producer),
                _ => None,
            })?;
            self.client.lookup(destination)?;
            let home = self.until_event(|event| match event {
                Event::Located {
                    location: Location::Here { shard, .. },
                    ..
                } => Some(shard),
                _ => None,
            })?;
            let place = &mut medians[usize::from(home != ShardIndex(0))];
            if place.is_none() {
                *place = Some(timed(|| self.send(producer))?);
            }
        }
        match medians {
            [Some(local), Some(remote)] => Ok((local, remote)),
            _ => Err("four topics are on both shards".into()),
        }
    }

    fn send(&mut self, producer: ProducerKey) -> Result<(), Failure> {
        let now = self.clock.now();
        let message = Outgoing {
            properties: &[],
            body: &[0xA5; BODY_SIZE],
            route: Route::Turn,
            durability: Some(Durability::Memory),
            deadline: now.monotonic.after(PATIENCE),
        };
        let mut is_sent = false;
        let deadline = Instant::now() + PATIENCE;
        let mut turns = 0_u32;
        loop {
            is_sent = is_sent || self.client.send(now, producer, &message).is_ok();
            self.turn();
            if let Some(completion) = self.client.poll_completion(producer) {
                completion.result.map_err(|error| format!("{error:?}"))?;
                return Ok(());
            }
            turns += 1;
            if turns.is_multiple_of(1 << 16) && Instant::now() > deadline {
                return Err("a send has no outcome".into());
            }
        }
    }

    /// What the client has to say goes to the shard, which takes its turn; what that has
    /// to say goes to the client.
    fn turn(&mut self) {
        let now = self.clock.now();
        while self.client.has_pieces() {
            self.passed.clear();
            for slice in self.client.pieces().slices() {
                self.passed.extend_from_slice(slice);
            }
            self.client.sent(self.passed.len());
            self.shard.received(now, self.link, &self.passed);
        }
        self.shard.meet(now);
        self.shard.expire(now);
        self.shard.turn(now);
        while let Some(output) = self.shard.output() {
            if matches!(output, Output::Send(_)) {
                self.answer(now);
            }
        }
        while self.shard.next_wake().is_some() {}
    }

    fn answer(&mut self, now: Now) {
        loop {
            self.passed.clear();
            let mut pieces = Pieces::new();
            self.shard.pieces(self.link, &mut pieces);
            for slice in pieces.slices() {
                self.passed.extend_from_slice(slice);
            }
            if self.passed.is_empty() {
                return;
            }
            self.shard.sent(now, self.link, self.passed.len());
            self.client.received(&self.passed);
        }
    }

    fn until<T>(&mut self, mut ready: impl FnMut(&mut Self) -> Option<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.turn();
            if let Some(found) = ready(self) {
                return Ok(found);
            }
        }
        Err("the shards do not answer".into())
    }

    fn until_event<T>(&mut self, wanted: impl Fn(Event) -> Option<T>) -> Result<T, Failure> {
        self.until(|near| {
            let event = near.client.poll_event()?;
            wanted(event)
        })
    }
}
