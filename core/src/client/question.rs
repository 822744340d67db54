//! What the client asks: requests as frames.

use super::admin;
use super::consumer::{ConsumerRequest, Start};
use super::length;
use super::outbound::Outbound;
use super::producer::ProducerRequest;
use super::request::Pending;
use crate::frame::control;
use crate::id::{ProducerId, RequestId};
use crate::name::Destination;

/// Queues the question of a request; false if the backlog is too long.
#[must_use]
pub(super) fn ask(
    outbound: &mut Outbound,
    session: u32,
    request: RequestId,
    pending: &Pending,
) -> bool {
    let subject = request.0;
    match pending {
        Pending::Lookup(destination) => lookup(outbound, session, subject, destination),
        Pending::LookupForProducer(wanted) => {
            lookup(outbound, session, subject, &wanted.destination)
        }
        Pending::OpenProducer(wanted) => {
            open_producer(outbound, session, subject, wanted, wanted.partitions, None)
        }
        Pending::OpenConsumer(wanted) => {
            open_consumer(outbound, session, subject, wanted, wanted.start)
        }
        Pending::Stats(_) => outbound.control(subject, &control::AskStats::default(), &[]),
        Pending::Administer(wanted) => admin::ask(outbound, session, subject, wanted),
        Pending::Ping { asked } => {
            let fields = control::Ping {
                token: asked.0.into(),
            };
            outbound.control(subject, &fields, &[])
        }
        // These are asked for by who notes them.
        Pending::OpenSession
        | Pending::Move
        | Pending::Release(_)
        | Pending::AttachProducer(_)
        | Pending::AttachConsumer(_)
        | Pending::CloseProducer(_)
        | Pending::CloseConsumer(_) => true,
    }
}

/// Asks for a producer: for the one that the installation knows, or for a new one.
pub(super) fn open_producer(
    outbound: &mut Outbound,
    session: u32,
    subject: u32,
    wanted: &ProducerRequest,
    partitions: u32,
    known: Option<ProducerId>,
) -> bool {
    let retention = wanted.retention.unwrap_or_default().code();
    let options = u16::from(wanted.retention.is_some()) | u16::from(wanted.dispatch.is_some()) << 1;
    let fields = control::OpenProducer {
        session: session.into(),
        destination: wanted.destination.kind as u8,
        access: u8::from(wanted.exclusive) << u8::from(wanted.waits),
        destination_length: length(&wanted.destination.name).into(),
        partitions: partitions.into(),
        name_length: length(&wanted.name).into(),
        options: options.into(),
        retain: retention.bytes.into(),
        producer: known.map_or(0, |id| id.0).into(),
        retention: retention.policy,
        dispatch: wanted.dispatch.unwrap_or_default() as u8,
        period: retention.period.into(),
        ..control::OpenProducer::default()
    };
    let tail = [wanted.destination.name.as_bytes(), wanted.name.as_bytes()];
    outbound.control(subject, &fields, &tail)
}

pub(super) fn open_consumer(
    outbound: &mut Outbound,
    session: u32,
    subject: u32,
    wanted: &ConsumerRequest,
    start: Start,
) -> bool {
    let (start, offset) = match start {
        Start::Earliest => (0, 0),
        Start::Latest => (1, 0),
        Start::Offset(offset) => (2, offset.0),
    };
    let fields = control::OpenConsumer {
        session: session.into(),
        destination: wanted.destination.kind as u8,
        start,
        destination_length: length(&wanted.destination.name).into(),
        offset: offset.into(),
        sharing: wanted.sharing as u8,
        subscription_length: length(&wanted.subscription).into(),
        name_length: length(&wanted.name).into(),
        messages: u64::from(wanted.messages_max.max(1)).into(),
        bytes: u64::from(wanted.bytes_max.max(1)).into(),
        ..control::OpenConsumer::default()
    };
    let tail = [
        wanted.destination.name.as_bytes(),
        wanted.subscription.as_bytes(),
        wanted.name.as_bytes(),
    ];
    outbound.control(subject, &fields, &tail)
}

pub(super) fn lookup(
    outbound: &mut Outbound,
    session: u32,
    subject: u32,
    destination: &Destination,
) -> bool {
    let fields = control::Lookup {
        session: session.into(),
        destination: destination.kind as u8,
        ..control::Lookup::default()
    };
    outbound.control(subject, &fields, &[destination.name.as_bytes()])
}
