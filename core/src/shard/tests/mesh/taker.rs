//! Whoever waits to have a destination alone, on whatever shards it and the others are.

use super::*;
use crate::frame::control::Cancel;

const NAME: &str = "/default/q";
const TAKING: u8 = 2;

/// What became of the request, if anything did.
fn outcome_of(bytes: &[u8], request: u32) -> Option<Result<Opened, Refusal>> {
    frames(bytes).iter().find_map(|(frame, _)| match frame {
        Frame::Control { subject, control } if *subject == request => match control {
            Control::Refused(fields, _) => {
                Some(Err(Refusal::from_code(fields.refusal.get()).unwrap()))
            }
            Control::ProducerOpened(..) => Some(Ok(opened(bytes))),
            _ => None,
        },
        _ => None,
    })
}

impl Shards {
    /// Asks for a producer under request 2, and returns what was answered.
    fn takes(&mut self, client: &mut Client, id: u64) -> Option<Result<Opened, Refusal>> {
        let fields = OpenProducer {
            session: client.peer.session.into(),
            destination_length: u16::try_from(NAME.len()).unwrap().into(),
            access: TAKING,
            producer: id.into(),
            ..OpenProducer::default()
        };
        client.peer.control(2, &fields, &[NAME.as_bytes()]);
        outcome_of(&self.exchange(client), 2)
    }

    fn hears(&mut self, client: &Client) -> Option<Result<Opened, Refusal>> {
        self.settle();
        outcome_of(&self.read(client), 2)
    }

    fn link_breaks(&mut self, client: &Client) {
        self.all[client.at].closed(now(), client.peer.link);
        self.settle();
    }
}

/// Of so many shards, with a destination of so many partitions.
fn settings() -> Vec<Shards> {
    let settings = [(1, 1), (1, 4), (2, 1), (3, 1), (3, 3), (3, 7)];
    let shards = settings.map(|(count, partitions)| {
        let mut shards = Shards::new(count);
        shards.create(NAME, partitions);
        shards
    });
    shards.into()
}

#[test]
fn takers_have_their_turn_one_after_the_other_and_whoever_was_before_never_again() {
    for mut shards in settings() {
        let count = shards.all.len();
        let mut holder = shards.client(0);
        let mut sharing = shards.client(count - 1);
        let mut old = shards.accessing(&mut holder, NAME, 0, 0).unwrap();
        shards.accessing(&mut sharing, NAME, 0, 0).unwrap();
        let mut takers: Vec<Client> = (0..4).map(|at| shards.client(at % count)).collect();
        for taker in &mut takers {
            assert_eq!(shards.takes(taker, 0), None, "it waits");
        }
        // The last of those that share it has to go.
        shards.link_breaks(&sharing);
        assert_eq!(shards.hears(&takers[0]), None);
        shards.link_breaks(&holder);
        while !takers.is_empty() {
            let mut taker = takers.remove(0);
            let taker = &mut taker;
            let mut producer = shards.hears(taker).unwrap().unwrap();
            taker.peer.message_to(0, 1, &mut producer, b"mine");
            for other in &takers {
                assert_eq!(shards.hears(other), None, "it still waits");
            }
            let outcomes = singles(&shards.exchange(taker));
            assert_eq!(outcomes.len(), 1);
            assert_eq!(outcomes[0].3, 0, "it may send");
            // Nobody who was before it is let in again.
            let mut late = shards.client(takers.len() % count);
            let again = shards.accessing(&mut late, NAME, 0, old.producer);
            assert_eq!(again.err(), Some(Refusal::Fenced));
            assert_eq!(
                shards.accessing(&mut late, NAME, 0, 0).err(),
                Some(Refusal::Exclusive)
            );
            shards.link_breaks(&late);
            shards.link_breaks(taker);
            old = producer;
        }
        assert_eq!(shards.counter(Counter::MessagesStored), 4);
        assert!(shards.all.iter().all(|shard| shard.takers.is_empty()));
    }
}

#[test]
fn a_taker_whose_link_goes_or_that_is_cancelled_is_passed_over() {
    for mut shards in settings() {
        let count = shards.all.len();
        let mut holder = shards.client(0);
        shards.accessing(&mut holder, NAME, 1, 0).unwrap();
        let mut takers: Vec<Client> = (0..3).map(|at| shards.client((at + 1) % count)).collect();
        for taker in &mut takers {
            assert_eq!(shards.takes(taker, 0), None);
        }
        shards.link_breaks(&takers[0]);
        takers[1].peer.control(2, &Cancel::default(), &[]);
        let cancelled = shards.exchange(&mut takers[1]);
        assert_eq!(
            outcome_of(&cancelled, 2).map(Result::err),
            Some(Some(Refusal::Exclusive))
        );
        // What was answered is not cancelled any more, nor what never was.
        for request in [2, 77] {
            takers[1].peer.control(request, &Cancel::default(), &[]);
        }
        assert!(frames(&shards.exchange(&mut takers[1])).is_empty());
        shards.link_breaks(&holder);
        assert_eq!(shards.hears(&takers[1]), None);
        let opened = shards.hears(&takers[2]);
        assert!(
            matches!(opened, Some(Ok(_))),
            "the last is the first by now"
        );
    }
}

#[test]
fn a_taker_whose_peer_sends_no_more_is_refused_and_takes_nothing_from_anybody() {
    for mut shards in settings() {
        let count = shards.all.len();
        let mut holder = shards.client(0);
        let mut producer = shards.accessing(&mut holder, NAME, 0, 0).unwrap();
        let mut taker = shards.client(count - 1);
        assert_eq!(shards.takes(&mut taker, 0), None);
        shards.all[taker.at].finished(now(), taker.peer.link);
        let refused = shards.hears(&taker).map(Result::err);
        assert_eq!(refused, Some(Some(Refusal::Exclusive)));
        holder.peer.message_to(0, 1, &mut producer, b"mine");
        let outcomes = singles(&shards.exchange(&mut holder));
        assert_eq!(
            (outcomes.len(), outcomes[0].3),
            (1, 0),
            "it may send as before"
        );
        // Nobody stands in line for a turn that the next one would have.
        let mut next = shards.client(count / 2);
        assert_eq!(shards.takes(&mut next, 0), None);
        shards.link_breaks(&holder);
        assert!(matches!(shards.hears(&next), Some(Ok(_))));
    }
}

#[test]
fn a_taker_of_a_destination_that_is_deleted_is_refused() {
    for mut shards in settings() {
        let count = shards.all.len();
        let mut holder = shards.client(0);
        shards.accessing(&mut holder, NAME, 0, 0).unwrap();
        let mut taker = shards.client(count - 1);
        assert_eq!(shards.takes(&mut taker, 0), None);
        let mut other = shards.client(count / 2);
        assert_eq!(shards.asks_to_delete(&mut other, (0, NAME), true), Ok(true));
        let refused = shards.hears(&taker);
        assert_eq!(refused.map(Result::err), Some(Some(Refusal::NotFound)));
    }
}

#[test]
fn a_taker_that_comes_back_has_its_destination_unless_another_had_it() {
    for mut shards in settings() {
        let count = shards.all.len();
        let mut first = shards.client(count - 1);
        let own = shards.takes(&mut first, 0).unwrap().unwrap();
        shards.link_breaks(&first);
        let mut again = shards.client(0);
        let same = shards.takes(&mut again, own.producer).unwrap().unwrap();
        assert_eq!(same.producer, own.producer);
        let mut second = shards.client(count / 2);
        assert_eq!(shards.takes(&mut second, 0), None);
        shards.link_breaks(&again);
        assert!(matches!(shards.hears(&second), Some(Ok(_))));
        let mut late = shards.client(0);
        let refused = shards.takes(&mut late, own.producer);
        assert_eq!(
            refused.map(Result::err),
            Some(Some(Refusal::Fenced)),
            "it does not wait"
        );
    }
}
