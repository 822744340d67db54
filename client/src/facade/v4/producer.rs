//! Sends texts.

use crate::facade::{FacadeError, Place, post};

/// A queue of this name, which need not exist: the first text makes it.
#[must_use]
pub fn queue(name: &str) -> Queue {
    Queue(Place::queue(name))
}

/// A topic of this name, which need not exist: the first text makes it.
#[must_use]
pub fn topic(name: &str) -> Topic {
    Topic(Place::topic(name))
}

/// A queue that texts can be sent to.
#[derive(Clone, Debug)]
pub struct Queue(Place);

impl Queue {
    /// Sends a text, which one of the queue's consumers receives. Returns when it is
    /// stored.
    ///
    /// # Errors
    ///
    /// If it is not, or nobody knows; the error names the queue and the cause.
    pub fn send(&self, message: impl AsRef<str>) -> Result<(), FacadeError> {
        post::send(&self.0, message.as_ref())
    }
}

/// A topic that texts can be sent to.
#[derive(Clone, Debug)]
pub struct Topic(Place);

impl Topic {
    /// Sends a text, which each of the topic's subscribers receives. Returns when it is
    /// stored.
    ///
    /// # Errors
    ///
    /// If it is not, or nobody knows; the error names the topic and the cause.
    pub fn send(&self, message: impl AsRef<str>) -> Result<(), FacadeError> {
        post::send(&self.0, message.as_ref())
    }
}
