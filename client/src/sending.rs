//! The ways of a producer's messages into the link.
//!
//! ```text
//!   nobody drives     take the baton -> machine -> write        -> wait, or go
//!                                    -> line, if the window is full
//!   somebody drives   lane -> knock, mark                       -> wait, or go
//!                     taken back, if the lane is full: take the baton in turn
//! ```

use std::time::Instant;

use courser_core::client::{self, Outgoing, Route};
use courser_core::frame::{MESSAGE_HEADER_SIZE, padded};
use courser_core::id::Sequence;
use courser_core::limits;
use courser_core::time::{Monotonic, Now};

use crate::error::{Cause, NotAccepted, SendError, TrySendError};
use crate::future::{SendFuture, Slot};
use crate::lane::{Item, Ticket, Who};
use crate::ledger::{Entry, SendResult};
use crate::link::{Driving, Link, State, Wanted};
use crate::message::{Message, Payload};
use crate::producer::Producer;
use crate::session::Listener;

/// A send that was not taken, and why.
type Refused = Box<(Item, SendError)>;

impl Producer {
    // For whoever polls.

    /// Takes a message now or not at all; nothing is written.
    #[inline]
    pub(crate) fn send_polled(
        &self,
        state: &mut State,
        now: Now,
        message: &impl Payload,
    ) -> Result<Sequence, TrySendError> {
        let outgoing = outgoing(message, now.monotonic.after(self.timeout));
        match state.send_polled(now, self.key, &outgoing) {
            Ok(sequence) => Ok(sequence),
            Err(client::SendError::WouldBlock) => Err(TrySendError::WouldBlock),
            Err(error) => Err(TrySendError::Failed(state.not_taken(error))),
        }
    }

    // For a thread that waits.

    /// Hands a message over and waits for what becomes of it.
    #[inline]
    pub(crate) fn send_and_wait(&self, message: &impl Payload) -> SendResult {
        let Some(mut driving) = self.link().try_take() else {
            let ticket = self.leave_for_driver(message)?;
            return self.outcome(self.link().take(), ticket);
        };
        let now = driving.clock.now();
        match self.send_for_thread(&mut driving, now, message) {
            Ok(ticket) => {
                driving.write();
                self.outcome(driving, ticket)
            }
            Err(TrySendError::WouldBlock) => {
                let ticket = self.line_up(driving, message)?;
                self.outcome(self.link().take(), ticket)
            }
            Err(TrySendError::Failed(error)) => Err(error),
        }
    }

    /// Hands a message over whose outcome this thread will wait for; it is written
    /// later.
    pub(crate) fn enqueue_for_thread(&self, message: &impl Payload) -> Result<Ticket, SendError> {
        let mut driving = self.link().take();
        let now = driving.clock.stamp();
        match self.send_for_thread(&mut driving, now, message) {
            Ok(ticket) => Ok(ticket),
            Err(TrySendError::WouldBlock) => self.line_up(driving, message),
            Err(TrySendError::Failed(error)) => Err(error),
        }
    }

    /// Waits for what became of a send; its deadline bounds the wait.
    #[inline]
    pub(crate) fn outcome(&self, driving: Driving<'_>, ticket: Ticket) -> SendResult {
        self.link()
            .wait_on(
                driving,
                Monotonic::NEVER,
                Wanted::Outcome(self.key, ticket),
                |state| state.result(self.key, ticket),
            )
            .unwrap_or(Err(SendError::Closed))
    }

    #[inline]
    fn send_for_thread(
        &self,
        state: &mut State,
        now: Now,
        message: &impl Payload,
    ) -> Result<Ticket, TrySendError> {
        let outgoing = outgoing(message, now.monotonic.after(self.timeout));
        match state.send(now, self.key, &outgoing) {
            Ok((sequence, ledger)) => {
                let ticket = Ticket(sequence.0);
                ledger.push(Entry::Thread(ticket));
                Ok(ticket)
            }
            Err(client::SendError::WouldBlock) => Err(TrySendError::WouldBlock),
            Err(error) => Err(TrySendError::Failed(state.not_taken(error))),
        }
    }

    /// Joins the line for room in the window.
    #[cold]
    fn line_up(&self, driving: Driving<'_>, message: &impl Payload) -> Result<Ticket, SendError> {
        let (item, ticket) = self.item_of(message);
        self.join(driving, item).map_err(|refused| refused.1)?;
        Ok(ticket)
    }

    /// Leaves a message to whoever drives.
    #[cold]
    fn leave_for_driver(&self, message: &impl Payload) -> Result<Ticket, SendError> {
        self.check(message)?;
        let (item, ticket) = self.item_of(message);
        if let Err(item) = self.link().send_by(&self.lane, self.key, item) {
            self.join(self.link().take(), item)
                .map_err(|refused| refused.1)?;
        }
        Ok(ticket)
    }

    fn item_of(&self, message: &impl Payload) -> (Item, Ticket) {
        let ticket = self.lane.ticket();
        let item = Item {
            message: Message::copy_of(message),
            who: Who::Thread(ticket),
            deadline: self.link().now().after(self.timeout),
        };
        (item, ticket)
    }

    // For a listener.

    /// Hands a message over whose outcome a listener will hear of.
    pub(crate) fn send_and_call(
        &self,
        message: Message,
        listener: Listener,
    ) -> Result<(), NotAccepted> {
        let refused = |refused: Refused| {
            let (item, error) = *refused;
            NotAccepted {
                message: item.message,
                error,
            }
        };
        let item = Item {
            message,
            who: Who::Listener(listener),
            deadline: Monotonic::NEVER,
        };
        let mut item = self.checked(item).map_err(refused)?;
        let admitted = self.session.admit(Instant::now() + self.timeout);
        let cause = match admitted {
            Ok(true) => None,
            Ok(false) => Some(Cause::TimedOut),
            Err(_no_thread) => Some(Cause::NoThread),
        };
        if let Some(cause) = cause {
            return Err(refused(Box::new((item, SendError::NotStored { cause }))));
        }
        let link = self.link();
        link.will_call();
        item.deadline = link.now().after(self.timeout);
        self.send_unwaited(item).map_err(|unsent| {
            self.session.dismiss();
            link.called_back();
            refused(unsent)
        })
    }

    // For a future.

    /// Hands a message over and returns the future of its outcome.
    pub(crate) fn send_and_promise(&self, message: Message) -> SendFuture {
        let slot = Slot::new();
        let item = Item {
            message,
            who: Who::Future(slot.clone()),
            deadline: self.link().now().after(self.timeout),
        };
        let sent = self.checked(item).and_then(|item| self.send_unwaited(item));
        if let Err(refused) = sent {
            // Nobody has polled it yet.
            let _nobody = slot.settle(Err(refused.1));
        }
        SendFuture::new(slot)
    }

    // For both.

    /// Hands a message over that nobody waits for.
    fn send_unwaited(&self, item: Item) -> Result<(), Refused> {
        let link = self.link();
        let Some(driving) = link.try_take() else {
            if self.lane.is_crowded() {
                return self.hand_over(link.take(), item);
            }
            return match link.send_by(&self.lane, self.key, item) {
                Ok(()) => Ok(()),
                Err(item) => self.hand_over(link.take(), item),
            };
        };
        self.hand_over(driving, item)
    }

    /// Gives the machine a message that nobody waits for, or lines it up.
    fn hand_over(&self, mut driving: Driving<'_>, item: Item) -> Result<(), Refused> {
        let link = self.link();
        if link.listen(&mut driving).is_err() {
            Link::listen_no_more(&mut driving);
            let cause = Cause::NoThread;
            return Err(Box::new((item, SendError::NotStored { cause })));
        }
        let on_its_way = driving.machine.unanswered(self.key) > 0;
        let (now, size) = (driving.clock.now(), item.message.size());
        match driving.send(now, self.key, &outgoing(&item.message, item.deadline)) {
            Ok((_sequence, ledger)) => {
                ledger.push(item.into_entry());
                link.gather(&mut driving, on_its_way, size, now.monotonic);
                Ok(())
            }
            Err(client::SendError::WouldBlock) => self.join(driving, item).inspect_err(|_| {
                Link::listen_no_more(&mut link.take());
            }),
            Err(error) => {
                Link::listen_no_more(&mut driving);
                Err(Box::new((item, driving.not_taken(error))))
            }
        }
    }

    /// Joins the line. A future's send joins at once or never; any other waits
    /// until the line is shorter, or its time is over.
    fn join(&self, mut driving: Driving<'_>, item: Item) -> Result<(), Refused> {
        let is_future = matches!(item.who, Who::Future(_));
        let cause = if is_future {
            Cause::Crowded
        } else {
            Cause::TimedOut
        };
        let mut item = Some(item);
        let mut joined = |state: &mut State| {
            let has_room = state.ledger(self.key).is_none_or(|ledger| {
                if is_future {
                    ledger.has_room_for_futures()
                } else {
                    ledger.has_room_in_line()
                }
            });
            if has_room && let Some(item) = item.take() {
                state.line_up(self.key, item);
                state.write();
            }
            has_room.then_some(())
        };
        if joined(&mut driving).is_none() && !is_future {
            let deadline = self.link().now().after(self.timeout);
            self.link()
                .wait_on(driving, deadline, Wanted::Room(self.key), joined);
        }
        match item {
            None => Ok(()),
            Some(item) => Err(Box::new((item, SendError::NotStored { cause }))),
        }
    }

    // What can be said of a message without the machine.

    fn checked(&self, item: Item) -> Result<Item, Refused> {
        match self.check(&item.message) {
            Ok(()) => Ok(item),
            Err(error) => Err(Box::new((item, error))),
        }
    }

    /// As the machine does, so that the caller hears of it and not a listener.
    fn check(&self, message: &impl Payload) -> Result<(), SendError> {
        let (properties, body) = (message.property_block().len(), message.body().len());
        let header = MESSAGE_HEADER_SIZE + properties;
        let header_max = limits::HEADER_AND_PROPERTIES_SIZE_MAX as usize;
        if header > header_max {
            return Err(SendError::TooLarge {
                size: header as u64,
                limit: header_max as u64,
            });
        }
        let frame_max = (limits::FRAME_SIZE_MAX).min(self.window_bytes) as usize;
        let body_max = frame_max
            .saturating_sub(header)
            .min(limits::BODY_SIZE_MAX as usize);
        if body > body_max || padded(header + body) > self.window_bytes as usize {
            return Err(SendError::TooLarge {
                size: body as u64,
                limit: body_max as u64,
            });
        }
        match message.route() {
            Route::Partition(partition) if partition.0 >= self.partitions => {
                Err(SendError::NoSuchPartition {
                    partition,
                    partitions: self.partitions,
                })
            }
            _ => Ok(()),
        }
    }
}

#[inline]
fn outgoing(message: &impl Payload, deadline: Monotonic) -> Outgoing<'_> {
    Outgoing {
        properties: message.property_block(),
        body: message.body(),
        route: message.route(),
        durability: message.durability(),
        deadline,
    }
}
