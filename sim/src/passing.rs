//! What an application does with destinations that come and go: it makes them, sends
//! and receives, and has them deleted while others do the same.
//!
//! It shares the client of an actor, and with it all that befalls that. Whatever it
//! has open may end at any moment; what must hold then is in the model's `lives`.

use courser_core::catalog::PolicyChange;
use courser_core::client::{
    AdminRequest, Cause, Client, ConsumerKey, ConsumerRequest, Event, Failure, Outgoing,
    ProducerKey, ProducerRequest, Route, Sharing,
};
use courser_core::error::Refusal;
use courser_core::id::{Installation, RequestId};
use courser_core::name::{Destination, DestinationKind};
use courser_core::time::Monotonic;

use crate::actor::Scene;
use crate::plan::MILLISECOND;
use crate::random::Random;
use crate::trace::Fact;
use crate::violation::{Rule, Violation};

/// How many names there are: a queue, and a topic with one subscription.
const NAMES: usize = 2;

/// The destination of a name.
pub(crate) fn destination(name: usize) -> Destination {
    let kinds = [DestinationKind::Queue, DestinationKind::Topic];
    Destination::new(kinds[name], "/sim/passing").expect("the name follows the rule")
}

/// All of them.
pub(crate) fn destinations() -> [Destination; NAMES] {
    [destination(0), destination(1)]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State<K> {
    Closed,
    Opening(RequestId),
    Open(K),
    Closing(RequestId, K),
}

#[derive(Debug)]
struct Producer {
    name: usize,
    state: State<ProducerKey>,
    /// When it was told to be there, and by whose broker.
    told_at: u64,
    installation: Installation,
    /// What has no outcome yet, in order.
    sent: std::collections::VecDeque<u64>,
    /// The broker has ended it.
    ended: bool,
}

#[derive(Debug)]
struct Consumer {
    name: usize,
    state: State<ConsumerKey>,
    asked_at: u64,
    /// It was told of its opening on this connection.
    told_at: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Passing {
    random: Random,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    /// Deletions by their numbers in the model.
    deletions: Vec<(RequestId, usize)>,
    creations: Vec<RequestId>,
    opened_at: u64,
    /// For each name, whether it saw to its end once it was calm.
    cleared: [bool; NAMES],
    rests_until: u64,
}

fn unfair<T>(what: &str, code: u16, text: &str) -> Result<T, Violation> {
    Err(Violation::new(
        Rule::Request,
        format!("{what} of a destination that comes and goes: code {code}, {text}"),
    ))
}

impl Passing {
    pub(crate) fn new(mut random: Random) -> Self {
        let producers = (0..random.count(1, 2)).map(|_| Producer {
            name: random.index(NAMES),
            state: State::Closed,
            told_at: 0,
            installation: Installation::default(),
            sent: std::collections::VecDeque::new(),
            ended: false,
        });
        let producers = producers.collect();
        let consumers = (0..random.count(0, 2)).map(|_| Consumer {
            name: random.index(NAMES),
            state: State::Closed,
            asked_at: 0,
            told_at: None,
        });
        let consumers = consumers.collect();
        Self {
            random,
            producers,
            consumers,
            deletions: Vec::new(),
            creations: Vec::new(),
            opened_at: 0,
            cleared: [false; NAMES],
            rests_until: 0,
        }
    }

    /// Its client is gone, with all that it had open.
    pub(crate) fn forget(&mut self) {
        for slot in &mut self.producers {
            slot.state = State::Closed;
            slot.sent.clear();
        }
        for slot in &mut self.consumers {
            slot.state = State::Closed;
        }
        self.deletions.clear();
        self.creations.clear();
    }

    /// Whether it has nothing left, and nothing is left of it.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.cleared == [true; NAMES] && self.is_closed() && self.deletions.is_empty()
    }

    fn is_closed(&self) -> bool {
        self.producers.iter().all(|it| it.state == State::Closed)
            && self.consumers.iter().all(|it| it.state == State::Closed)
    }

    // What it does.

    pub(crate) fn act(
        &mut self,
        machine: &mut Client,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        self.outcomes(machine, scene)?;
        self.receive(machine, scene)?;
        if !machine.is_open() || scene.now.monotonic.0 < self.rests_until {
            return Ok(());
        }
        self.rests_until = scene.now.monotonic.0 + self.random.range(0, 20 * MILLISECOND);
        if scene.calm {
            return self.clear(machine, scene);
        }
        for slot in &mut self.producers {
            match slot.state {
                State::Closed if self.random.chance(1, 4) => {
                    let request = ProducerRequest::new(destination(slot.name));
                    if let Ok(request) = machine.open_producer(request) {
                        slot.state = State::Opening(request);
                    }
                }
                State::Open(key) => {
                    for _ in 0..self.random.below(5) {
                        // One that this broker has not attached yet may be of any life.
                        let installation = machine.installation();
                        let told_at = if installation == slot.installation {
                            slot.told_at
                        } else {
                            u64::MAX
                        };
                        let number = scene.model.passing_sent(slot.name, installation, told_at);
                        let mut body = number.to_le_bytes().to_vec();
                        body.resize(8 + self.random.index(300), 0);
                        let message = Outgoing {
                            properties: &[],
                            body: &body,
                            route: Route::Turn,
                            deadline: Monotonic::NEVER,
                            durability: None,
                        };
                        if machine.send(scene.now, key, &message).is_err() {
                            break;
                        }
                        slot.sent.push_back(number);
                    }
                    if (slot.ended || self.random.chance(1, 30))
                        && let Ok(request) = machine.close_producer(key)
                    {
                        slot.state = State::Closing(request, key);
                    }
                }
                _ => {}
            }
        }
        for slot in &mut self.consumers {
            match slot.state {
                State::Closed if self.random.chance(1, 4) => {
                    let request = ConsumerRequest {
                        subscription: if slot.name == 0 { "" } else { "passing" }.into(),
                        sharing: Sharing::Several,
                        messages_max: 10,
                        ..ConsumerRequest::new(destination(slot.name))
                    };
                    slot.asked_at = scene.model.moment();
                    slot.told_at = None;
                    if let Ok(request) = machine.open_consumer(request) {
                        slot.state = State::Opening(request);
                    }
                }
                State::Open(key) if self.random.chance(1, 30) => {
                    if let Ok(request) = machine.close_consumer(key) {
                        slot.state = State::Closing(request, key);
                    }
                }
                _ => {}
            }
        }
        let name = self.random.index(NAMES);
        match self.random.below(20) {
            0 => self.delete(machine, scene, name),
            1 => {
                let partitions = self.random.pick(&[1, 2, 5]);
                let asked = machine.administer(AdminRequest::Create {
                    destination: destination(name),
                    partitions: Some(partitions),
                    retention: None,
                    dispatch: None,
                    policies: PolicyChange::default(),
                });
                self.creations.extend(asked);
            }
            _ => {}
        }
        Ok(())
    }

    fn delete(&mut self, machine: &mut Client, scene: &mut Scene<'_>, name: usize) {
        let asked = machine.administer(AdminRequest::Delete {
            destination: destination(name),
            force: true,
        });
        if let Ok(request) = asked {
            scene.trace.note(Fact::DeletionAsked { name });
            let deletion = scene.model.deletion_asked(name);
            self.deletions.push((request, deletion));
        }
    }

    /// It is calm: closes what is open, and sees to it that nothing stays. Whom the
    /// broker has to have ended waits to hear of it.
    fn clear(&mut self, machine: &mut Client, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let now = scene.model.moment();
        for slot in &mut self.producers {
            let is_due =
                scene
                    .model
                    .is_gone_between(slot.name, slot.installation, (slot.told_at, now))
                    && !slot.ended;
            if let State::Open(key) = slot.state
                && !is_due
                && let Ok(request) = machine.close_producer(key)
            {
                slot.state = State::Closing(request, key);
            }
        }
        for slot in &mut self.consumers {
            let is_due = slot.told_at.is_some_and(|told_at| {
                let life = (told_at, now);
                scene
                    .model
                    .is_gone_between(slot.name, machine.installation(), life)
            });
            if let State::Open(key) = slot.state
                && !is_due
                && let Ok(request) = machine.close_consumer(key)
            {
                slot.state = State::Closing(request, key);
            }
        }
        if self.is_closed() && self.creations.is_empty() {
            for name in 0..NAMES {
                if !core::mem::replace(&mut self.cleared[name], true) {
                    self.delete(machine, scene, name);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, machine: &mut Client, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let installation = machine.installation();
        for slot in &mut self.consumers {
            let State::Open(key) = slot.state else {
                continue;
            };
            for _ in 0..20 {
                let Some(message) = machine.poll_message(key) else {
                    break;
                };
                let number = (message.body().first_chunk()).map_or(0, |it| u64::from_le_bytes(*it));
                let position = message.position();
                scene.trace.note(Fact::PassingHanded { number });
                (scene.model).passing_handed(slot.name, installation, slot.asked_at, number)?;
                // One that has ended meanwhile settles nothing any more.
                let _settled = machine.acknowledge(key, position);
            }
        }
        Ok(())
    }

    /// Takes the outcomes that are there.
    pub(crate) fn outcomes(
        &mut self,
        machine: &mut Client,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        for slot in &mut self.producers {
            let (State::Open(key) | State::Closing(_, key)) = slot.state else {
                continue;
            };
            while let Some(completion) = machine.poll_completion(key) {
                let Some(number) = slot.sent.pop_front() else {
                    return Err(Violation::new(
                        Rule::CompletionOrder,
                        "an outcome of what was not sent".into(),
                    ));
                };
                let may_be_gone = scene.model.may_be_deleted(slot.name);
                match completion.result {
                    Ok(_) => scene.model.passing_completed(number, true)?,
                    Err(Failure::NotStored(_)) => scene.model.passing_completed(number, false)?,
                    Err(Failure::Refused(Refusal::NotFound | Refusal::Fenced)) if may_be_gone => {
                        scene.model.passing_completed(number, false)?;
                    }
                    Err(Failure::Unknown(cause)) if cause != Cause::Fenced || may_be_gone => {}
                    Err(failure) => {
                        return Err(Violation::new(
                            Rule::Refused,
                            format!("{number} to a destination that comes and goes: {failure:?}"),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    // What it is told.

    /// Takes an event that is about what it has open, or asked for.
    pub(crate) fn event(
        &mut self,
        machine: &mut Client,
        scene: &mut Scene<'_>,
        event: &Event,
    ) -> Result<bool, Violation> {
        match event {
            Event::Opened { .. } => {
                self.outcomes(machine, scene)?;
                self.opened_at = scene.model.moment();
                for slot in &mut self.consumers {
                    slot.asked_at = slot.asked_at.max(self.opened_at);
                    slot.told_at = None;
                }
                return Ok(false);
            }
            Event::ProducerOpened {
                request, producer, ..
            } => {
                let mut slots = self.producers.iter_mut();
                let Some(slot) = slots.find(|it| it.state == State::Opening(*request)) else {
                    return Ok(false);
                };
                slot.state = State::Open(*producer);
                slot.ended = false;
                slot.installation = machine.installation();
                slot.told_at = scene.model.moment();
            }
            Event::ProducerResumed { producer, .. } => {
                let Some(slot) = self.producer(*producer) else {
                    return Ok(false);
                };
                let installation = machine.installation();
                let told_at = scene.model.moment();
                if slot.installation == installation {
                    let life = (slot.told_at, self.opened_at);
                    let slot = self.producer(*producer);
                    if slot
                        .is_some_and(|it| scene.model.is_gone_between(it.name, installation, life))
                    {
                        return Err(Violation::new(
                            Rule::Revenant,
                            "a producer of a deleted destination is attached again".into(),
                        ));
                    }
                } else {
                    slot.installation = installation;
                    slot.told_at = told_at;
                    slot.ended = false;
                }
            }
            Event::ProducerEnded {
                producer,
                code,
                text,
            } => {
                let Some(slot) = self.producer(*producer) else {
                    return Ok(false);
                };
                slot.ended = true;
                let name = slot.name;
                if !scene.model.may_be_deleted(name) || *code != Refusal::NotFound.code() {
                    return unfair("the end of a producer", *code, text);
                }
                scene.trace.note(Fact::PassingEnded { code: *code });
            }
            Event::ProducerLost {
                producer,
                code,
                text,
            } => {
                if self.producer(*producer).is_none() {
                    return Ok(false);
                }
                self.outcomes(machine, scene)?;
                let Some(slot) = self.producer(*producer) else {
                    return Ok(false);
                };
                slot.state = State::Closed;
                let (name, left) = (slot.name, slot.sent.len());
                machine.forget_producer(*producer);
                // Or there is another one, of another shape.
                let fair = [
                    Refusal::NotFound,
                    Refusal::Fenced,
                    Refusal::PreconditionFailed,
                ]
                .map(Refusal::code)
                .contains(code);
                if !scene.model.may_be_deleted(name) || !fair {
                    return unfair("the loss of a producer", *code, text);
                }
                return all_answered(left);
            }
            Event::ProducerClosed { producer, .. } => {
                if self.producer(*producer).is_none() {
                    return Ok(false);
                }
                self.outcomes(machine, scene)?;
                let Some(slot) = self.producer(*producer) else {
                    return Ok(false);
                };
                slot.state = State::Closed;
                let left = slot.sent.len();
                machine.forget_producer(*producer);
                return all_answered(left);
            }
            Event::ConsumerOpened {
                request, consumer, ..
            } => {
                let mut slots = self.consumers.iter_mut();
                let Some(slot) = slots.find(|it| it.state == State::Opening(*request)) else {
                    return Ok(false);
                };
                slot.state = State::Open(*consumer);
                slot.told_at = Some(scene.model.moment());
            }
            Event::ConsumerResumed { consumer, .. } => {
                let Some(slot) = self.consumer(*consumer) else {
                    return Ok(false);
                };
                slot.told_at = Some(scene.model.moment());
            }
            Event::ConsumerEnded {
                consumer,
                code,
                text,
            }
            | Event::ConsumerLost {
                consumer,
                code,
                text,
            } => {
                let Some(slot) = self.consumer(*consumer) else {
                    return Ok(false);
                };
                slot.state = State::Closed;
                let name = slot.name;
                machine.forget_consumer(*consumer);
                if !scene.model.may_be_deleted(name) || *code != Refusal::NotFound.code() {
                    return unfair("the end of a consumer", *code, text);
                }
                scene.trace.note(Fact::PassingEnded { code: *code });
            }
            Event::ConsumerClosed { consumer, .. } => {
                let Some(slot) = self.consumer(*consumer) else {
                    return Ok(false);
                };
                slot.state = State::Closed;
                machine.forget_consumer(*consumer);
            }
            Event::Changed { request, .. } => return Ok(self.changed(machine, scene, *request)),
            Event::Refused {
                request,
                code,
                text,
                ..
            } => return self.refused(scene, *request, *code, text),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn changed(&mut self, machine: &Client, scene: &mut Scene<'_>, request: RequestId) -> bool {
        if let Some(index) = self.deletions.iter().position(|it| it.0 == request) {
            let (_, deletion) = self.deletions.swap_remove(index);
            scene.trace.note(Fact::Deleted { deletion });
            scene
                .model
                .deletion_answered(deletion, machine.installation());
            return true;
        }
        let creation = self.creations.iter().position(|it| *it == request);
        creation.is_some_and(|index| self.creations.swap_remove(index) == request)
    }

    fn refused(
        &mut self,
        scene: &mut Scene<'_>,
        request: RequestId,
        code: u16,
        text: &str,
    ) -> Result<bool, Violation> {
        let not_found = code == Refusal::NotFound.code();
        if let Some(index) = self.deletions.iter().position(|it| it.0 == request) {
            self.deletions.swap_remove(index);
            // There was none any more where that is decided; others may yet have to
            // hear of the deletion that came before.
            return if not_found {
                Ok(true)
            } else {
                unfair("a deletion", code, text)
            };
        }
        if let Some(index) = self.creations.iter().position(|it| *it == request) {
            self.creations.swap_remove(index);
            // It has another number of partitions, or no memory for so many.
            let fair = [Refusal::PreconditionFailed, Refusal::ResourceAllocation]
                .map(Refusal::code)
                .contains(&code);
            return if fair || not_found {
                Ok(true)
            } else {
                unfair("a creation", code, text)
            };
        }
        let mut producers = self.producers.iter_mut();
        if let Some(slot) = producers.find(|it| it.state == State::Opening(request)) {
            slot.state = State::Closed;
            return if not_found && scene.model.may_be_deleted(slot.name) {
                Ok(true)
            } else {
                unfair("a producer", code, text)
            };
        }
        let mut consumers = self.consumers.iter_mut();
        if let Some(slot) = consumers.find(|it| it.state == State::Opening(request)) {
            slot.state = State::Closed;
            return if not_found && scene.model.may_be_deleted(slot.name) {
                Ok(true)
            } else {
                unfair("a consumer", code, text)
            };
        }
        Ok(false)
    }

    fn producer(&mut self, key: ProducerKey) -> Option<&mut Producer> {
        self.producers
            .iter_mut()
            .find(|it| matches!(it.state, State::Open(own) | State::Closing(_, own) if own == key))
    }

    fn consumer(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        self.consumers
            .iter_mut()
            .find(|it| matches!(it.state, State::Open(own) | State::Closing(_, own) if own == key))
    }
}

fn all_answered(left: usize) -> Result<bool, Violation> {
    if left == 0 {
        return Ok(true);
    }
    Err(Violation::new(
        Rule::CompletionMissing,
        format!("{left} sends to a destination that comes and goes"),
    ))
}
