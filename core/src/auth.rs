//! Who may do what: one function that every path asks.
//!
//! Authentication is not there yet, so every principal is anonymous and the
//! answer is always yes. The question is asked all the same, at the moment of
//! each operation and about the concrete destination, so that no path can be
//! forgotten when the answer starts to matter.

use crate::error::Refusal;
use crate::id::DestinationNumber;

/// Whom a session acts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Principal(u32);

impl Principal {
    /// Nobody in particular.
    pub const ANONYMOUS: Self = Self(0);

    /// The principal with this number.
    pub(crate) fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// Its number, the same on every shard.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// What a principal would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Learn where a destination is.
    Lookup,
    /// Bring a destination into being.
    Create,
    /// Open a producer.
    Produce,
    /// Send one message.
    Send,
    /// Open a consumer.
    Consume,
    /// Be handed messages.
    Receive,
    /// Settle messages.
    Acknowledge,
    /// Read the counters, and what there is.
    Observe,
    /// Change what others use: destinations, subscriptions, who is attached.
    Administer,
}

/// What is operated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The broker as a whole.
    Broker,
    /// A name that may not exist yet.
    Name,
    /// A destination.
    Destination(DestinationNumber),
}

/// Whether `principal` may do `operation` on `target` now.
///
/// # Errors
///
/// [`Refusal::Forbidden`] if not.
#[inline]
pub fn authorize(
    principal: Principal,
    operation: Operation,
    target: Target,
) -> Result<(), Refusal> {
    let _ = (operation, target);
    if principal == Principal::ANONYMOUS {
        Ok(())
    } else {
        Err(Refusal::Forbidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_anonymous_and_nobody_else_gets_in() {
        let target = Target::Destination(DestinationNumber(3));
        assert_eq!(
            authorize(Principal::ANONYMOUS, Operation::Send, target),
            Ok(())
        );
        assert_eq!(
            authorize(Principal(1), Operation::Observe, Target::Broker),
            Err(Refusal::Forbidden)
        );
    }
}
