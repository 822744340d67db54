//! Messages as an application makes them, and as it receives them.

use courser_core::client::{Durability, Route};
use courser_core::frame::property::{self, Properties, PropertyError};
use courser_core::id::{MessageId, PartitionIndex, Position};
use courser_core::routing;
use courser_core::time::Wall;

/// A message to be sent: a body, properties, and where it is to go.
///
/// ```
/// # use courser::Message;
/// let message = Message::new("42.17")
///     .with_property("currency", "EUR")?
///     .with_key("order-1001");
/// assert_eq!(message.property("currency"), Some("EUR"));
/// # Ok::<(), courser::PropertyError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    properties: Vec<u8>,
    body: Vec<u8>,
    route: Route,
    durability: Option<Durability>,
}

impl Message {
    /// A message without properties that takes its turn among the partitions.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::default()
        }
    }

    /// Adds a property. Names have 1 to 255 bytes and stand once; values have at
    /// most 65,535 bytes.
    ///
    /// # Errors
    ///
    /// If a limit is passed or the name is set already.
    pub fn with_property(mut self, name: &str, value: &str) -> Result<Self, PropertyError> {
        property::push(&mut self.properties, name, value)?;
        Ok(self)
    }

    /// Adds several properties.
    ///
    /// # Errors
    ///
    /// As [`Message::with_property`].
    pub fn with_properties<'a>(
        self,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, PropertyError> {
        properties
            .into_iter()
            .try_fold(self, |message, (name, value)| {
                message.with_property(name, value)
            })
    }

    /// Sends it to the partition that the key leads to: equal keys stay in order.
    #[must_use]
    pub fn with_key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.route = Route::Key(routing::key_hash(key.as_ref()));
        self
    }

    /// Sends it to this partition.
    #[must_use]
    pub fn to_partition(mut self, partition: u32) -> Self {
        self.route = Route::Partition(PartitionIndex(partition));
        self
    }

    /// Says how safe it is to be before its send completes, if not as its producer says.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Its body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// A message of its own with the same content.
    pub(crate) fn copy_of(payload: &impl Payload) -> Self {
        Self {
            properties: payload.property_block().to_vec(),
            body: payload.body().to_vec(),
            route: payload.route(),
            durability: payload.durability(),
        }
    }

    /// Bytes of body and properties.
    pub(crate) fn size(&self) -> usize {
        self.properties.len() + self.body.len()
    }

    /// Its body, taken out.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Its properties, in the order they were set.
    #[must_use]
    pub fn properties(&self) -> Properties<'_> {
        property::iter(&self.properties)
    }

    /// One property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        find(self.properties(), name)
    }
}

fn find<'a>(mut properties: Properties<'a>, name: &str) -> Option<&'a str> {
    properties
        .find(|(other, _)| *other == name)
        .map(|(_, value)| value)
}

/// What can be sent without being moved: texts, bytes and messages.
pub trait Payload {
    /// The body.
    fn body(&self) -> &[u8];

    /// The properties, as a block.
    fn property_block(&self) -> &[u8] {
        &[]
    }

    /// Where it goes.
    fn route(&self) -> Route {
        Route::Turn
    }

    /// How safe it is to be before its send completes; `None`: as its producer says.
    fn durability(&self) -> Option<Durability> {
        None
    }
}

impl<P: Payload + ?Sized> Payload for &P {
    fn body(&self) -> &[u8] {
        (**self).body()
    }

    fn property_block(&self) -> &[u8] {
        (**self).property_block()
    }

    fn route(&self) -> Route {
        (**self).route()
    }

    fn durability(&self) -> Option<Durability> {
        (**self).durability()
    }
}

impl Payload for Message {
    fn body(&self) -> &[u8] {
        &self.body
    }

    fn property_block(&self) -> &[u8] {
        &self.properties
    }

    fn route(&self) -> Route {
        self.route
    }

    fn durability(&self) -> Option<Durability> {
        self.durability
    }
}

macro_rules! payloads {
    ($($type:ty),*) => {
        $(
            impl Payload for $type {
                fn body(&self) -> &[u8] {
                    self.as_ref()
                }
            }
        )*
    };
}

payloads!(str, String, [u8], Vec<u8>, Box<[u8]>);

impl<const N: usize> Payload for [u8; N] {
    fn body(&self) -> &[u8] {
        self
    }
}

impl From<&str> for Message {
    fn from(body: &str) -> Self {
        Self::new(body)
    }
}

impl From<String> for Message {
    fn from(body: String) -> Self {
        Self::new(body)
    }
}

impl From<&[u8]> for Message {
    fn from(body: &[u8]) -> Self {
        Self::new(body)
    }
}

impl<const N: usize> From<&[u8; N]> for Message {
    fn from(body: &[u8; N]) -> Self {
        Self::new(body.as_slice())
    }
}

impl From<Vec<u8>> for Message {
    fn from(body: Vec<u8>) -> Self {
        Self::new(body)
    }
}

/// A message that was received, with a body of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    body: Vec<u8>,
    properties: Vec<u8>,
    position: Position,
    id: MessageId,
    delivery_count: u32,
    timestamp: Wall,
    append_time: Wall,
    key_hash: Option<u64>,
}

impl Received {
    pub(crate) fn copy_of(received: &courser_core::client::Received<'_>) -> Self {
        Self {
            body: received.body().to_vec(),
            properties: received.property_block().to_vec(),
            position: received.position(),
            id: received.id(),
            delivery_count: received.delivery_count(),
            timestamp: received.timestamp(),
            append_time: received.append_time(),
            key_hash: received.key_hash(),
        }
    }

    /// Its body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Its body as text, if it is some.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }

    /// Its body, taken out.
    #[must_use]
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// Its properties, in their order; empty if it was sent without.
    #[must_use]
    pub fn properties(&self) -> Properties<'_> {
        property::iter(&self.properties)
    }

    /// One property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        find(self.properties(), name)
    }

    /// Its place, which is what acknowledgements name.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Who it is: the id that its sender's receipt carries.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// How often it was handed out, this time included.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.delivery_count
    }

    /// The sender's clock.
    #[must_use]
    pub fn timestamp(&self) -> Wall {
        self.timestamp
    }

    /// The broker's clock at the append.
    #[must_use]
    pub fn append_time(&self) -> Wall {
        self.append_time
    }

    /// The hash of its key, if it has one.
    #[must_use]
    pub fn key_hash(&self) -> Option<u64> {
        self.key_hash
    }
}
