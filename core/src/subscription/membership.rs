//! Membership: who consumes a subscription, and what of it is whose.
//!
//! ```text
//!  decided at the destination's home          applied wherever it has a part
//!   joined, left ─> version, members ───────> a version that is newer
//!                                               ├─ failover    partition -> member
//!                                               └─ key-shared  key -> member
//! ```
//!
//! A value: a kind, a version, and the members in the order in which they joined.
//! Everything else follows from these, so that whoever applied the same version
//! comes to the same answers. A member has a number that means the same everywhere
//! and a consumer's handle that does not: on each shard it is the one that the
//! member's messages of that shard are delivered to.
//!
//! Invariants: members rise by number; the version rises with each change; the ring
//! has the members' points, and none unless keys decide.

use core::fmt;

use super::key_ring::KeyRing;
use crate::id::{Handle, MemberNumber, PartitionIndex};

/// How the consumers of a subscription share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// There is one at a time.
    Exclusive = 1,
    /// Each message goes to whoever is free.
    Shared = 2,
    /// Each partition has one that is active, and the others stand by.
    Failover = 3,
    /// Each key has one.
    KeyShared = 4,
}

impl Kind {
    /// The kind that `code` stands for on the wire.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Exclusive),
            2 => Some(Self::Shared),
            3 => Some(Self::Failover),
            4 => Some(Self::KeyShared),
            _ => None,
        }
    }

    /// Whether it may have more than one consumer at once.
    #[must_use]
    pub fn has_several(self) -> bool {
        self != Self::Exclusive
    }

    /// Whether its consumers have claims, on partitions or on keys.
    #[must_use]
    pub fn has_claims(self) -> bool {
        matches!(self, Self::Failover | Self::KeyShared)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
            Self::Failover => "failover",
            Self::KeyShared => "key-shared",
        })
    }
}

/// One consumer of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is, on every shard.
    pub number: MemberNumber,
    /// What its messages of this shard are delivered to.
    pub consumer: Handle,
}

/// See the module.
#[derive(Debug)]
pub struct Membership {
    kind: Kind,
    version: u64,
    members: Vec<Member>,
    ring: KeyRing,
    /// The number of who joins next.
    next: MemberNumber,
}

impl Membership {
    /// Nobody's.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            version: 1,
            members: Vec::new(),
            ring: KeyRing::default(),
            next: MemberNumber(1),
        }
    }

    /// Decides that `consumer` joins, behind all others.
    pub fn joined(&mut self, consumer: Handle) -> Member {
        let member = Member {
            number: self.next,
            consumer,
        };
        self.next = MemberNumber(self.next.0 + 1);
        self.version += 1;
        self.add(member);
        member
    }

    /// Applies that `consumer` joined elsewhere, as the member with this number.
    pub fn joined_as(&mut self, number: MemberNumber, consumer: Handle) -> Member {
        let member = Member { number, consumer };
        self.version += 1;
        self.add(member);
        member
    }

    /// Decides that `consumer` leaves; whether it was a member.
    pub fn left(&mut self, consumer: Handle) -> bool {
        let found = self.members.iter().position(|it| it.consumer == consumer);
        let Some(index) = found else {
            return false;
        };
        self.version += 1;
        self.remove(index);
        true
    }

    /// Applies what was decided elsewhere: `members`, rising by number, make up
    /// `version`. One that is not newer changes nothing, and it is `false`.
    pub fn changed(&mut self, version: u64, members: &[Member]) -> bool {
        if version <= self.version {
            return false;
        }
        debug_assert!(members.is_sorted_by_key(|member| member.number));
        for index in (0..self.members.len()).rev() {
            if !members.contains(&self.members[index]) {
                self.remove(index);
            }
        }
        for (index, member) in members.iter().enumerate() {
            if self.members.get(index) != Some(member) {
                self.add(*member);
            }
        }
        self.version = version;
        true
    }

    /// How its members share it.
    #[inline]
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Which change was the last.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Who consumes it, in the order in which they joined.
    #[inline]
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Of a failover subscription: who is active in a partition. Partitions take the
    /// members in turn, so that none has more than one partition more than another.
    #[must_use]
    pub fn active(&self, partition: PartitionIndex) -> Option<Handle> {
        let index = partition.0 as usize % self.members.len().max(1);
        self.members.get(index).map(|member| member.consumer)
    }

    /// Of a key-shared subscription: who has the keys with this hash.
    #[inline]
    #[must_use]
    pub fn holder(&self, key: u64) -> Option<Handle> {
        let number = self.ring.owner(key)?;
        let index = self
            .members
            .binary_search_by_key(&number, |member| member.number)
            .expect("the points on the ring are the members'");
        Some(self.members[index].consumer)
    }

    /// Panics if an invariant is broken.
    pub fn invariants(&self) {
        assert!(
            self.members
                .is_sorted_by(|one, next| one.number < next.number),
            "members rise by number"
        );
        let points = match self.kind {
            Kind::KeyShared => self.members.len() * super::key_ring::POINTS_PER_MEMBER,
            _ => 0,
        };
        assert_eq!(
            self.ring.points(),
            points,
            "the ring has the members' points"
        );
    }

    /// Puts a member into its place.
    fn add(&mut self, member: Member) {
        let index = self
            .members
            .partition_point(|other| other.number < member.number);
        self.members.insert(index, member);
        if self.kind == Kind::KeyShared {
            self.ring.add(member.number);
        }
    }

    fn remove(&mut self, index: usize) {
        let member = self.members.remove(index);
        if self.kind == Kind::KeyShared {
            self.ring.remove(member.number);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn handle(slot: u32) -> Handle {
        Handle::new(slot, 1)
    }

    fn active(membership: &Membership, partitions: u32) -> Vec<Option<Handle>> {
        (0..partitions)
            .map(|partition| membership.active(PartitionIndex(partition)))
            .collect()
    }

    #[test]
    fn partitions_are_spread_over_the_members_in_the_order_in_which_they_joined() {
        let mut membership = Membership::new(Kind::Failover);
        assert_eq!(active(&membership, 2), [None, None]);
        for slot in [30, 10, 20] {
            membership.joined(handle(slot));
            membership.invariants();
        }
        let [a, b, c] = [30, 10, 20].map(|slot| Some(handle(slot)));
        assert_eq!(active(&membership, 5), [a, b, c, a, b]);
        assert!(membership.left(handle(30)));
        assert!(!membership.left(handle(30)), "it is gone");
        assert_eq!(active(&membership, 5), [b, c, b, c, b]);
        membership.joined(handle(30));
        assert_eq!(
            active(&membership, 3),
            [b, c, a],
            "whoever returns joins last"
        );
    }

    #[test]
    fn who_applies_a_version_answers_like_who_decided_it() {
        for kind in [Kind::Failover, Kind::KeyShared] {
            let mut home = Membership::new(kind);
            let mut away = Membership::new(kind);
            for step in 0..40_u32 {
                if step % 3 == 2 {
                    let leaves = home.members()[step as usize % home.members().len()];
                    assert!(home.left(leaves.consumer));
                } else {
                    home.joined(handle(step));
                }
                // Some versions never arrive, and some arrive late.
                if step % 4 == 1 {
                    continue;
                }
                let (version, members) = (home.version(), home.members().to_vec());
                assert!(away.changed(version, &members));
                assert!(!away.changed(version, &members), "it is applied once");
                assert!(!away.changed(version - 1, &[]), "and never undone");
                away.invariants();
                assert_eq!(away.members(), home.members());
                for key in 0..100 {
                    assert_eq!(away.holder(key), home.holder(key));
                }
                assert_eq!(active(&away, 9), active(&home, 9));
            }
        }
    }

    #[test]
    fn a_member_that_is_delivered_to_elsewhere_keeps_its_number_and_its_share() {
        let mut home = Membership::new(Kind::KeyShared);
        home.joined(handle(1));
        home.joined(handle(2));
        let mut away = Membership::new(Kind::KeyShared);
        let branches: Vec<Member> = home
            .members()
            .iter()
            .map(|member| Member {
                consumer: Handle::new(100 + member.consumer.0 % 100, 1),
                ..*member
            })
            .collect();
        away.changed(home.version(), &branches);
        for key in 0..100 {
            let (here, there) = (home.holder(key).unwrap(), away.holder(key).unwrap());
            assert_eq!(there, Handle::new(100 + here.0 % 100, 1));
        }
    }
}
