//! The key ring: which member of a subscription has which keys.
//!
//! ```text
//!        0 ...................... 2^64
//!        |--a--b-a---c--b--c-a--b--|      points, many for each member
//!              ^ a key has its place too, and belongs to the next point: a's
//! ```
//!
//! Each member puts a hundred points on the ring, at places that follow from its
//! number alone. So whoever knows the members knows the ring, on every shard alike;
//! one that joins takes its share from all others, one that leaves gives its share
//! to all others, and no key moves between two that stay.
//!
//! Places are spread as Danube's are: FNV-1a with the finaliser of MurmurHash3.
//!
//! Invariant: points rise, and each member has its hundred.

use crate::id::MemberNumber;
use crate::routing::key_hash;

/// Points of one member. Shares of the ring differ by a tenth or so with as many.
pub const POINTS_PER_MEMBER: usize = 100;

/// A place on the ring, and whose it is.
type Point = (u64, MemberNumber);

/// What a member takes up on the ring, in bytes: its points in a list that doubles,
/// and once more while they are sorted.
pub const MEMBER_SIZE: usize = 3 * POINTS_PER_MEMBER * size_of::<Point>();

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    points: Vec<Point>,
}

impl KeyRing {
    /// Puts a member's points on the ring.
    pub fn add(&mut self, member: MemberNumber) {
        self.points
            .extend((0..POINTS_PER_MEMBER).map(|index| (place_of_point(member, index), member)));
        // A stable sort finds what is in order already, which is all but the new ones.
        self.points.sort();
    }

    /// Takes a member's points off the ring.
    pub fn remove(&mut self, member: MemberNumber) {
        self.points.retain(|(_, owner)| *owner != member);
        self.points.shrink_to(2 * self.points.len());
    }

    /// Whose the keys with this hash are; `None` without a member.
    #[inline]
    #[must_use]
    pub fn owner(&self, key: u64) -> Option<MemberNumber> {
        let place = finalised(key);
        let next = self.points.partition_point(|(point, _)| *point < place);
        let point = self.points.get(next).or_else(|| self.points.first())?;
        Some(point.1)
    }

    /// How many points there are.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points.len()
    }
}

fn place_of_point(member: MemberNumber, index: usize) -> u64 {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&member.0.to_le_bytes());
    name[8..].copy_from_slice(&(index as u64).to_le_bytes());
    finalised(key_hash(&name))
}

/// The finaliser of MurmurHash3: FNV-1a alone leaves the high bits of similar names
/// alike, and those decide the place.
#[inline]
fn finalised(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 20_000;

    fn ring(members: impl IntoIterator<Item = u64>) -> KeyRing {
        let mut ring = KeyRing::default();
        for member in members {
            ring.add(MemberNumber(member));
        }
        ring
    }

    fn owners(ring: &KeyRing) -> Vec<Option<MemberNumber>> {
        (0..KEYS)
            .map(|key| ring.owner(key_hash(&key.to_le_bytes())))
            .collect()
    }

    #[test]
    fn members_share_the_keys_about_evenly() {
        for members in 1..=20 {
            let owners = owners(&ring(0..members));
            for member in 0..members {
                let mine = owners
                    .iter()
                    .filter(|it| **it == Some(MemberNumber(member)));
                let (mine, fair) = (mine.count() as u64, KEYS / members);
                assert!(
                    (fair / 2..=fair * 3 / 2).contains(&mine),
                    "{member} of {members} has {mine} keys, {fair} would be fair"
                );
            }
        }
    }

    #[test]
    fn one_that_joins_takes_its_share_and_nothing_moves_between_others() {
        let mut ring = ring(0..9);
        let before = owners(&ring);
        ring.add(MemberNumber(9));
        let after = owners(&ring);
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new);
        let mut count = 0;
        for (_, new) in moved {
            assert_eq!(*new, Some(MemberNumber(9)), "a key moves to who is new");
            count += 1;
        }
        let fair = KEYS / 10;
        assert!((fair / 2..=fair * 3 / 2).contains(&count), "{count} moved");
        ring.remove(MemberNumber(9));
        assert_eq!(owners(&ring), before, "and back when it leaves");
    }

    #[test]
    fn the_ring_follows_from_its_members_whatever_their_order() {
        let mut one = ring([5, 1, 3, 8]);
        one.remove(MemberNumber(8));
        let other = ring([1, 3, 5]);
        assert_eq!(one.points, other.points);
        assert_eq!(one.points(), 3 * POINTS_PER_MEMBER);
        assert_eq!(ring([]).owner(7), None);
    }

    #[test]
    fn keys_whose_hashes_differ_little_are_spread() {
        let ring = ring(0..4);
        let mut owners: Vec<_> = (0..64).map(|key| ring.owner(key)).collect();
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), 4);
    }
}
