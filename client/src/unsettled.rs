//! What an application was handed and has not settled, in the order in which it
//! was handed: what `recover` gives back.

use std::collections::VecDeque;

use courser_core::id::{Offset, PartitionIndex, Position};

/// Messages with consecutive offsets that were handed out one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) partition: PartitionIndex,
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Run {
    fn holds(&self, position: Position) -> bool {
        let offset = position.offset.0;
        self.partition == position.partition
            && offset >= self.first
            && offset - self.first < self.count
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            partition: self.partition,
            offset: Offset(self.first),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Unsettled(VecDeque<Run>);

impl Unsettled {
    /// A message was handed out.
    #[inline]
    pub(crate) fn handed(&mut self, position: Position) {
        match self.0.back_mut() {
            Some(run)
                if run.partition == position.partition
                    && run.first + run.count == position.offset.0 =>
            {
                run.count += 1;
            }
            _ => self.0.push_back(Run {
                partition: position.partition,
                first: position.offset.0,
                count: 1,
            }),
        }
    }

    /// One message was settled, or given back; false if it was not here.
    #[inline]
    pub(crate) fn settled(&mut self, position: Position) -> bool {
        let Some(index) = self.0.iter().position(|run| run.holds(position)) else {
            return false;
        };
        let run = self.0[index];
        let before = position.offset.0 - run.first;
        let behind = run.count - before - 1;
        let rest = Run {
            first: position.offset.0 + 1,
            count: behind,
            ..run
        };
        match (before, behind) {
            (0, 0) => {
                self.0.remove(index);
            }
            (0, _) => self.0[index] = rest,
            (_, 0) => self.0[index].count = before,
            (..) => {
                self.0[index].count = before;
                self.0.insert(index + 1, rest);
            }
        }
        true
    }

    /// A message and all that were handed out before it in its partition were
    /// settled.
    pub(crate) fn settled_through(&mut self, position: Position) {
        let Some(index) = self.0.iter().position(|run| run.holds(position)) else {
            return;
        };
        let run = &mut self.0[index];
        let taken = position.offset.0 - run.first + 1;
        run.first += taken;
        run.count -= taken;
        let is_empty = run.count == 0;
        let mut at = 0;
        self.0.retain(|run| {
            let is_over =
                run.partition == position.partition && (at < index || at == index && is_empty);
            at += 1;
            !is_over
        });
    }

    /// All of it, which is then not here any more.
    pub(crate) fn take(&mut self) -> VecDeque<Run> {
        std::mem::take(&mut self.0)
    }

    /// What could not be given back is here again, before all else.
    pub(crate) fn put_back(&mut self, mut runs: VecDeque<Run>) {
        runs.append(&mut self.0);
        self.0 = runs;
    }

    /// What was handed out will come again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: u32, offset: u64) -> Position {
        Position {
            partition: PartitionIndex(partition),
            offset: Offset(offset),
        }
    }

    fn all(unsettled: &Unsettled) -> Vec<(u32, u64)> {
        let runs = unsettled.0.iter();
        runs.flat_map(|run| {
            (run.first..run.first + run.count).map(|offset| (run.partition.0, offset))
        })
        .collect()
    }

    #[test]
    fn what_is_settled_in_any_order_is_gone_and_the_rest_keeps_its_order() {
        // Against a list, over every order of five out of two partitions.
        let handed = [at(0, 0), at(0, 1), at(1, 7), at(0, 2), at(0, 3)];
        for code in 0..3125usize {
            let (mut unsettled, mut model) = (Unsettled::default(), Vec::new());
            for position in handed {
                unsettled.handed(position);
                model.push((position.partition.0, position.offset.0));
            }
            for step in 0..5 {
                let position = handed[code / 5usize.pow(step) % 5];
                let key = (position.partition.0, position.offset.0);
                let is_here = model.contains(&key);
                assert_eq!(unsettled.settled(position), is_here, "{code} {step}");
                model.retain(|other| *other != key);
                assert_eq!(all(&unsettled), model, "{code} {step}");
            }
        }
    }

    #[test]
    fn settling_through_one_takes_what_was_handed_out_before_in_its_partition() {
        let mut unsettled = Unsettled::default();
        for position in [at(0, 5), at(1, 1), at(0, 6), at(0, 2), at(0, 3), at(0, 9)] {
            unsettled.handed(position);
        }
        unsettled.settled_through(at(0, 2));
        assert_eq!(all(&unsettled), [(1, 1), (0, 3), (0, 9)]);
        unsettled.settled_through(at(0, 2));
        assert_eq!(all(&unsettled), [(1, 1), (0, 3), (0, 9)]);
        unsettled.settled_through(at(0, 9));
        assert_eq!(all(&unsettled), [(1, 1)]);
    }
}
