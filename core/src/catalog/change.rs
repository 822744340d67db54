//! Changes of the catalogue, and their bytes.
//!
//! A change says everything: whoever applies it chooses nothing. Its bytes are the
//! same in a record between shards and in an entry of a journal:
//!
//! ```text
//!   0    | tag | kind | name length | number      | partitions  | retain ...
//!  16    ... retain   | producers   | consumers   | subscriptions |
//!  32    | retention dispatch 0 | period      | name ...
//! ```
//!
//! What a tag does not need is zero. [`Change::decode`] lets through exactly what
//! [`Change::encode`] writes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Dispatch, Entry, Policies, Retention, RetentionCode, Shape};
use crate::id::DestinationNumber;
use crate::limits;
use crate::name::{Destination, DestinationKind};

/// What changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A destination is there.
    Create(Entry),
    /// A destination is gone.
    Delete(DestinationNumber),
    /// A destination has these policies.
    SetPolicies(DestinationNumber, Policies),
}

const CREATE: u8 = 1;
const DELETE: u8 = 2;
const SET_POLICIES: u8 = 3;

/// What every change begins with.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fields {
    tag: u8,
    destination: u8,
    name_length: U16,
    number: U32,
    partitions: U32,
    retain: U64,
    producers_max: U32,
    consumers_max: U32,
    subscriptions_max: U32,
    retention: u8,
    dispatch: u8,
    reserved: U16,
    period: U32,
}

/// Bytes of a change beside the name.
const FIELDS_SIZE: usize = size_of::<Fields>();
const _: () = assert!(FIELDS_SIZE == 40);
/// The most bytes that a change has.
pub const CHANGE_SIZE_MAX: usize = FIELDS_SIZE + 2 * (limits::NAME_PART_SIZE_MAX as usize + 1);

impl Fields {
    fn new(tag: u8, number: DestinationNumber) -> Self {
        Self {
            tag,
            number: number.0.into(),
            ..Self::default()
        }
    }

    fn with(mut self, policies: &Policies) -> Self {
        self.producers_max.set(policies.producers_max);
        self.consumers_max.set(policies.consumers_max);
        self.subscriptions_max.set(policies.subscriptions_max);
        self
    }

    fn policies(&self) -> Policies {
        Policies {
            producers_max: self.producers_max.get(),
            consumers_max: self.consumers_max.get(),
            subscriptions_max: self.subscriptions_max.get(),
        }
    }
}

impl Change {
    /// Appends its bytes, at most [`CHANGE_SIZE_MAX`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Create(entry) => {
                let name = entry.destination.name.as_bytes();
                let mut fields = Fields::new(CREATE, entry.number).with(&entry.policies);
                fields.destination = entry.destination.kind as u8;
                let length = u16::try_from(name.len()).expect("a name has less than 256 bytes");
                fields.name_length.set(length);
                fields.partitions.set(entry.shape.partitions);
                let retention = entry.shape.retention.code();
                fields.retention = retention.policy;
                fields.retain.set(retention.bytes);
                fields.period.set(retention.period);
                fields.dispatch = entry.shape.dispatch as u8;
                out.extend_from_slice(fields.as_bytes());
                out.extend_from_slice(name);
            }
            Self::Delete(number) => {
                out.extend_from_slice(Fields::new(DELETE, *number).as_bytes());
            }
            Self::SetPolicies(number, policies) => {
                let fields = Fields::new(SET_POLICIES, *number).with(policies);
                out.extend_from_slice(fields.as_bytes());
            }
        }
    }

    /// The change that exactly these bytes are.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, name) = Fields::ref_from_prefix(bytes).ok()?;
        let number = DestinationNumber(fields.number.get());
        let change = match fields.tag {
            CREATE => {
                let kind = DestinationKind::from_code(fields.destination)?;
                let name = core::str::from_utf8(name).ok()?;
                if !name.starts_with('/') {
                    return None;
                }
                Self::Create(Entry {
                    number,
                    destination: Destination::new(kind, name).ok()?,
                    shape: Shape {
                        partitions: fields.partitions.get(),
                        retention: Retention::from_code(RetentionCode {
                            policy: fields.retention,
                            bytes: fields.retain.get(),
                            period: fields.period.get(),
                        })
                        .ok()?,
                        dispatch: Dispatch::from_code(fields.dispatch)?,
                    },
                    policies: fields.policies(),
                })
            }
            DELETE => Self::Delete(number),
            SET_POLICIES => Self::SetPolicies(number, fields.policies()),
            _ => return None,
        };
        let mut same = Vec::with_capacity(bytes.len());
        change.encode(&mut same);
        (same == bytes).then_some(change)
    }
}
