//! Names of destinations: `/namespace/name` in one of two name spaces.

use core::fmt;

use crate::error::Refusal;
use crate::limits;

/// The two name spaces: a queue and a topic of the same name are different.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DestinationKind {
    /// Each message goes to one consumer.
    #[default]
    Queue = 0,
    /// Each subscription gets each message.
    Topic = 1,
}

impl DestinationKind {
    /// The kind that `code` stands for on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Queue),
            1 => Some(Self::Topic),
            _ => None,
        }
    }
}

impl fmt::Display for DestinationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Topic => "topic",
        })
    }
}

/// A destination as users write it: a kind and a checked name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The name space.
    pub kind: DestinationKind,
    /// `/namespace/name`.
    pub name: Box<str>,
}

/// The namespace of a name without one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Whether `name` is `/namespace/name` within the limits.
///
/// # Errors
///
/// [`Refusal::InvalidName`], which states the rule.
pub fn check(name: &str) -> Result<(), Refusal> {
    let mut parts = name.split('/');
    let part = |part: Option<&str>| {
        part.is_some_and(|part| {
            (1..=limits::NAME_PART_SIZE_MAX as usize).contains(&part.len())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        })
    };
    let valid = parts.next() == Some("")
        && part(parts.next())
        && part(parts.next())
        && parts.next().is_none();
    if valid {
        Ok(())
    } else {
        Err(Refusal::InvalidName)
    }
}

impl Destination {
    /// A destination of `kind`; a flat name goes to the default namespace.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidName`] if the name breaks the rule.
    pub fn new(kind: DestinationKind, name: &str) -> Result<Self, Refusal> {
        let name: Box<str> = if name.contains('/') {
            name.into()
        } else {
            format!("/{DEFAULT_NAMESPACE}/{name}").into()
        };
        check(&name)?;
        Ok(Self { kind, name })
    }

    /// Reads `queue:NAME`, `topic:NAME` or `NAME`, which means a queue.
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidName`] if the name breaks the rule.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        if let Some(name) = text.strip_prefix("queue:") {
            Self::new(DestinationKind::Queue, name)
        } else if let Some(name) = text.strip_prefix("topic:") {
            Self::new(DestinationKind::Topic, name)
        } else {
            Self::new(DestinationKind::Queue, text)
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_has_exactly_two_parts_of_plain_characters() {
        for good in ["/default/topic_test", "/a/b", "/A-1/b_2"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = format!("/a/{}", "x".repeat(128));
        for bad in [
            "",
            "topic_test",
            "/a",
            "/a/",
            "//b",
            "/a/b/c",
            "/a/b c",
            "/a/é",
            &long,
        ] {
            assert_eq!(check(bad), Err(Refusal::InvalidName), "{bad}");
        }
        assert_eq!(check(&long[..long.len() - 1]), Ok(()));
    }

    #[test]
    fn a_flat_name_is_a_queue_in_the_default_namespace() {
        assert_eq!(
            Destination::parse("orders").unwrap().to_string(),
            "queue:/default/orders"
        );
        assert_eq!(
            Destination::parse("topic:/md/eu").unwrap().to_string(),
            "topic:/md/eu"
        );
        assert_eq!(
            Destination::parse("queue:").unwrap_err(),
            Refusal::InvalidName
        );
        assert_eq!(
            Destination::parse("other:x").unwrap_err(),
            Refusal::InvalidName
        );
    }
}
