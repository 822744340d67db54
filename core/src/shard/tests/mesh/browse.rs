//! Browsers are shown what a queue keeps, and nobody else can tell.

use super::*;
use crate::frame::control::Poll;

const BROWSING: u8 = 5;
const QUEUE: (u8, &str) = (0, "/default/q");

/// How many messages of a queue are in memory, on all shards.
fn chunks(shards: &Shards) -> usize {
    let locals = shards.all.iter().flat_map(|shard| shard.locals.iter());
    locals.map(Local::chunks).sum()
}

fn browsers(shards: &Shards) -> usize {
    let locals = shards.all.iter().flat_map(|shard| shard.locals.iter());
    locals.map(|local| local.browsers.len()).sum()
}

/// Where and which, in the order of their partitions.
fn places(got: &[Got]) -> Vec<(u32, u64)> {
    let mut places: Vec<(u32, u64)> = got.iter().map(|it| (it.partition, it.offset)).collect();
    places.sort_by_key(|(partition, _)| *partition);
    places
}

/// Asks whether there is anything more; what came before the answer, which has to come.
fn polled(shards: &mut Shards, client: &mut Client, handle: Handle) -> Vec<Got> {
    let poll = Poll {
        token: 9.into(),
        ..Poll::default()
    };
    client.peer.control(handle.0, &poll, &[]);
    let answers = shards.exchange(client);
    let is_answered = frames(&answers).iter().any(|(frame, _)| {
        matches!(frame, Frame::Control { control: Control::Polled(fields, _), .. }
            if fields.token.get() == 9)
    });
    assert!(is_answered, "a poll is answered");
    deliveries(&answers, handle)
}

#[test]
fn a_browser_is_shown_what_is_not_settled_and_takes_nothing() {
    for (count, at) in [(1, 0), (3, 0), (3, 2)] {
        let mut shards = Shards::new(count);
        shards.create(QUEUE.1, 3);
        shards.fill(QUEUE.1, 3, 40, 100);
        let mut taker = shards.client(0);
        let (consumer, first) = shards.consumer(&mut taker, QUEUE, "", 60).unwrap();
        let held = deliveries(&first, consumer);
        assert_eq!(held.len(), 60);
        for got in held.iter().step_by(2) {
            shards.acknowledge(&mut taker, consumer, got);
        }
        let settled: Vec<(u32, u64)> = (held.iter().step_by(2))
            .map(|got| (got.partition, got.offset))
            .collect();
        let all = (0..3).flat_map(|partition| (0..40).map(move |offset| (partition, offset)));
        let kept: Vec<(u32, u64)> = all.filter(|place| !settled.contains(place)).collect();
        assert_eq!(kept.len(), 90);

        for _ in 0..2 {
            let mut looker = shards.client(at);
            let (browser, first) =
                (shards.consumer_as(&mut looker, BROWSING, QUEUE, "", 1000)).unwrap();
            let mut shown = deliveries(&first, browser);
            shown.extend(polled(&mut shards, &mut looker, browser));
            assert_eq!(places(&shown), kept);
            assert!(shown.iter().all(|got| got.count == 1));
            assert_eq!(polled(&mut shards, &mut looker, browser), []);
            shards.close(&mut looker, browser);
            assert_eq!(browsers(&shards), 0);
        }
        // The consumer holds what it held, and gets what nobody had.
        let rest = shards.allow(&mut taker, consumer, 1000, 0);
        let rest = deliveries(&rest, consumer);
        assert_eq!(rest.len(), 60);
        assert!(rest.iter().all(|got| got.count == 1));
        for got in held.iter().chain(&rest) {
            shards.acknowledge(&mut taker, consumer, got);
        }
        let mut looker = shards.client(at);
        let (browser, first) = (shards.consumer_as(&mut looker, BROWSING, QUEUE, "", 9)).unwrap();
        assert_eq!(deliveries(&first, browser), []);
        assert_eq!(polled(&mut shards, &mut looker, browser), []);
        for shard in &shards.all {
            shard.audit();
        }
    }
}

/// What a topic's reader has not seen stays for it. A browser that stands still would have
/// kept everything that a busy queue settles.
#[test]
fn nothing_stays_for_a_browser_that_stands_still_and_it_shows_what_is_left() {
    for count in [1, 3] {
        let mut shards = Shards::new(count);
        shards.create(QUEUE.1, 3);
        let before = chunks(&shards);
        shards.fill(QUEUE.1, 3, 30, 20_000);
        let full = chunks(&shards);
        let mut looker = shards.client(0);
        let (browser, first) = (shards.consumer_as(&mut looker, BROWSING, QUEUE, "", 1)).unwrap();
        let seen = deliveries(&first, browser);
        assert_eq!(seen.len(), 1, "it has credit for one");

        let mut taker = shards.client(0);
        let (consumer, first) = shards.consumer(&mut taker, QUEUE, "", 90).unwrap();
        let mut held = deliveries(&first, consumer);
        let more = shards.allow(&mut taker, consumer, 90, 0);
        held.extend(deliveries(&more, consumer));
        assert_eq!(held.len(), 90);
        // All but the last of each partition.
        for got in held.iter().filter(|got| got.offset != 29) {
            shards.acknowledge(&mut taker, consumer, got);
        }
        shards.settle();
        assert!(
            chunks(&shards) <= before + 3 * 2 && full > before + 3 * 2,
            "{before} chunks, {full} when it was full, and now {}",
            chunks(&shards)
        );
        // What comes later is not shown.
        shards.fill(QUEUE.1, 3, 5, 100);
        let answers = shards.allow(&mut looker, browser, 1000, 1);
        let mut rest = deliveries(&answers, browser);
        rest.extend(polled(&mut shards, &mut looker, browser));
        let last = [(0, 29), (1, 29), (2, 29)];
        assert_eq!(places(&rest), last);
        for shard in &shards.all {
            shard.audit();
        }
    }
}

#[test]
fn whatever_is_done_to_a_queue_meanwhile_a_browser_shows_all_that_stays_and_nothing_settled() {
    for seed in 0..60 {
        let mut random = Shuffle(seed);
        let mut shards = Shards::new(if seed % 2 == 0 { 1 } else { 2 });
        shards.create(QUEUE.1, 2);
        shards.fill(QUEUE.1, 2, 40, 1 + 400 * random.below(3));
        let mut taker = shards.client(0);
        let (consumer, first) = shards.consumer(&mut taker, QUEUE, "", 50).unwrap();
        let mut held = deliveries(&first, consumer);
        let mut settled = Vec::new();
        let mut settle = |shards: &mut Shards, held: &mut Vec<Got>, random: &mut Shuffle| {
            for _ in 0..random.below(12).min(held.len()) {
                let got = held.swap_remove(random.below(held.len()));
                let more = shards.acknowledge(&mut taker, consumer, &got);
                held.extend(deliveries(&more, consumer));
                settled.push((got.partition, got.offset));
            }
            settled.clone()
        };
        let before = settle(&mut shards, &mut held, &mut random);
        let mut looker = shards.client(0);
        let opened = shards.consumer_as(&mut looker, BROWSING, QUEUE, "", 3);
        let (browser, first) = opened.unwrap();
        let mut shown = deliveries(&first, browser);
        let gone = loop {
            let settled_by_then = settle(&mut shards, &mut held, &mut random);
            let granted = shown.len() as u64 + 1 + random.below(7) as u64;
            let answers = shards.allow(&mut looker, browser, granted, shown.len() as u64);
            let mut more = deliveries(&answers, browser);
            more.extend(polled(&mut shards, &mut looker, browser));
            for got in &more {
                let place = (got.partition, got.offset);
                assert!(!settled_by_then.contains(&place), "seed {seed}: {place:?}");
            }
            if more.is_empty() {
                break settled_by_then;
            }
            shown.extend(more);
        };
        let shown = places(&shown);
        assert!(shown.is_sorted(), "seed {seed}: {shown:?}");
        let all = (0..2).flat_map(|partition| (0..40).map(move |offset| (partition, offset)));
        for place in all {
            let is_shown = shown.contains(&place);
            assert!(is_shown || gone.contains(&place), "seed {seed}: {place:?}");
            assert!(
                !is_shown || !before.contains(&place),
                "seed {seed}: {place:?}"
            );
        }
        for shard in &shards.all {
            shard.audit();
        }
    }
}

#[test]
fn a_browser_is_in_nobodys_way_and_leaves_nothing_behind() {
    for count in [1, 3] {
        let mut shards = Shards::new(count);
        shards.create(QUEUE.1, 3);
        shards.fill(QUEUE.1, 3, 4, 100);
        let mut looker = shards.client(0);
        let (browser, first) = (shards.consumer_as(&mut looker, BROWSING, QUEUE, "", 5)).unwrap();
        let shown = deliveries(&first, browser);
        assert_eq!(shown.len(), 5);
        // It holds nothing that it could settle.
        let ack = Acknowledge {
            partition: shown[0].partition.into(),
            runs: 1.into(),
            confirm: 3.into(),
            ..Acknowledge::default()
        };
        let run = AckRun {
            first: shown[0].offset.into(),
            count: 1.into(),
        };
        looker.peer.control(browser.0, &ack, &[run.as_bytes()]);
        let answers = shards.exchange(&mut looker);
        assert_eq!(confirmed(&answers), [(3, Refusal::InvalidAck.code())]);
        let counted: Vec<(u32, usize, u64)> = (shards.all.iter())
            .map(|shard| {
                let local = shard.locals.iter().next().unwrap();
                let parts = local.partitions.iter();
                let parts = parts.flat_map(|it| it.parts.iter().map(|(_, part)| (part, &it.log)));
                let unsettled = parts
                    .map(|(part, log)| part.backlog(&shard.arena, log))
                    .sum();
                (local.consumers, local.subscriptions.len(), unsettled)
            })
            .collect();
        let unsettled: u64 = counted.iter().map(|it| it.2).sum();
        assert!(
            counted.iter().all(|it| (it.0, it.1) == (0, 1)),
            "{counted:?}"
        );
        assert_eq!((unsettled, browsers(&shards)), (12, usize::from(count)));
        assert_eq!(shards.counter(Counter::MessagesDelivered), 0);

        // One whose link goes has gone.
        let mut other = shards.client(0);
        let opened = shards.consumer_as(&mut other, BROWSING, QUEUE, "", 1);
        opened.unwrap();
        shards.all[0].closed(now(), other.peer.link);
        shards.settle();
        assert_eq!(browsers(&shards), usize::from(count));

        // Nobody uses the queue, so nothing has to be forced.
        let mut other = shards.client(0);
        other.deletes(QUEUE, 0);
        let answers = shards.exchange(&mut other);
        assert_eq!(changed(&answers), Ok(true));
        assert_eq!(ended(&shards.exchange(&mut looker)), [browser.0]);
        assert_eq!(browsers(&shards), 0);
        shards.close(&mut looker, browser);
        for shard in &shards.all {
            shard.audit();
        }
    }
}

#[test]
fn only_a_queue_is_browsed_and_only_from_its_beginning() {
    let mut shards = Shards::new(1);
    shards.create(QUEUE.1, 1);
    let mut client = shards.client(0);
    let illegal = Err(Refusal::IllegalArgument);
    let opened = shards.consumer_as(&mut client, BROWSING, (1, "/default/t"), "", 1);
    assert_eq!(opened, illegal);
    let opened = shards.consumer_as(&mut client, BROWSING, (1, "/default/t"), "s", 1);
    assert_eq!(opened, illegal);
    let opened = shards.consumer_as(&mut client, BROWSING, QUEUE, "s", 1);
    assert_eq!(opened, illegal);
    let opened = shards.consumer_as(&mut client, BROWSING + 1, QUEUE, "", 1);
    assert_eq!(opened, Err(Refusal::Unsupported));
    let opened = shards.consumer_as(&mut client, BROWSING, (0, "/default/none"), "", 1);
    assert_eq!(opened, Err(Refusal::NotFound));
    assert_eq!(shards.all[0].catalog.queues(), 1, "a look creates nothing");
    assert_eq!(browsers(&shards), 0);
}
