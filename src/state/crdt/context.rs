//! Who did what: replicas, the dots that name their changes, and the sets of dots that a state has seen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::Millis;

/// The longest name of a replica, in bytes.
pub const MAX_REPLICA: usize = 64;

/// One executor, as the states know it. Kept in its data folder: no two executors may have one name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Replica(Arc<str>);

impl Replica {
    /// A replica with this name; none if that is empty or longer than [`MAX_REPLICA`].
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (1..=MAX_REPLICA).contains(&name.len()).then(|| Self(name.into()))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// One change, named by who made it and a number that replica never used before.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Dot {
    pub(super) replica: Replica,
    /// From 1.
    pub(super) sequence: u64,
}

/// Gives one executor's changes their numbers: each is greater than all before it.
///
/// The numbers come from the clock (1024 for each millisecond) and not from the state. A state read after a commit with
/// unknown outcome may lack what that commit is still about to add, and counting on from there would give one number to two changes.
/// One of these per process is enough, for all entities.
#[derive(Debug, Default)]
pub struct Tickets {
    last: AtomicU64,
}

impl Tickets {
    /// The first of `count` numbers in a row that are nobody else's, at least `floor`. None if there are no more (a
    /// state from a clock some hundred million years ahead).
    pub(super) fn reserve(&self, count: u64, floor: u64, now: Millis) -> Option<u64> {
        let first = |last: u64| Some(last.checked_add(1)?.max(floor).max(now.saturating_mul(1024)));
        let last = |last| first(last)?.checked_add(count);
        self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, last).ok().and_then(first)
    }
}

/// A set of dots, as ranges of numbers per replica: sorted, with gaps between them, both ends included.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Context(pub(super) BTreeMap<Replica, Vec<(u64, u64)>>);

impl Context {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn has(&self, replica: &Replica, sequence: u64) -> bool {
        self.0.get(replica).is_some_and(|ranges| {
            let at = ranges.partition_point(|range| range.1 < sequence);
            ranges.get(at).is_some_and(|range| range.0 <= sequence)
        })
    }

    pub(super) fn contains(&self, dot: &Dot) -> bool {
        self.has(&dot.replica, dot.sequence)
    }

    pub(super) fn add(&mut self, dot: &Dot) {
        self.add_range(&dot.replica, dot.sequence, dot.sequence);
    }

    pub(super) fn add_range(&mut self, replica: &Replica, low: u64, high: u64) {
        let ranges = self.0.entry(replica.clone()).or_default();
        let start = ranges.partition_point(|range| range.1.saturating_add(1) < low);
        let end = ranges.partition_point(|range| range.0 <= high.saturating_add(1));
        let joined = match ranges.get(start..end) {
            Some([first, .., last]) => (low.min(first.0), high.max(last.1)),
            Some([only]) => (low.min(only.0), high.max(only.1)),
            _ => (low, high),
        };
        ranges.splice(start..end, [joined]);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (replica, ranges) in &other.0 {
            for (low, high) in ranges {
                self.add_range(replica, *low, *high);
            }
        }
    }

    /// The greatest number seen of `replica`, 0 if none.
    pub(super) fn last(&self, replica: &Replica) -> u64 {
        self.0.get(replica).and_then(|ranges| ranges.last()).map_or(0, |range| range.1)
    }

    /// The numbers below the greatest that were not seen of `replica`.
    pub(super) fn gaps(&self, replica: &Replica) -> Vec<(u64, u64)> {
        let mut next = 1;
        let mut gaps = Vec::new();
        for (low, high) in self.0.get(replica).into_iter().flatten() {
            if next < *low {
                gaps.push((next, low - 1));
            }
            next = high.saturating_add(1);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{Context, Replica, Tickets};

    #[test]
    fn names_are_bounded() {
        assert!(Replica::new("").is_none());
        assert_eq!(Replica::new(&"x".repeat(64)).unwrap().name().len(), 64);
        assert!(Replica::new(&"x".repeat(65)).is_none());
    }

    #[test]
    fn tickets_only_grow() {
        let tickets = Tickets::default();
        assert_eq!(tickets.reserve(2, 0, 3), Some(3072));
        assert_eq!(tickets.reserve(1, 0, 3), Some(3075), "one is left out, none is given twice");
        assert_eq!(tickets.reserve(1, 0, 0), Some(3077), "a clock that goes back");
        assert_eq!(tickets.reserve(1, 1 << 40, 4), Some(1 << 40));
        assert_eq!(tickets.reserve(1, 0, 5), Some((1 << 40) + 2));
        assert_eq!(tickets.reserve(1, u64::MAX, 5), None);
        assert_eq!(tickets.reserve(1, 0, 5), Some((1 << 40) + 4), "a refusal takes nothing");
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(ranges in prop::collection::vec((1u64..40, 0u64..6), 0..12)) {
            let replica = Replica::new("a").unwrap();
            let mut context = Context::default();
            let mut model = BTreeSet::new();
            for (low, more) in ranges {
                context.add_range(&replica, low, low + more);
                model.extend(low..=low + more);
            }
            let last = model.last().copied().unwrap_or(0);
            let gaps: Vec<u64> = context.gaps(&replica).into_iter().flat_map(|(low, high)| low..=high).collect();
            prop_assert_eq!(gaps, (1..last).filter(|n| !model.contains(n)).collect::<Vec<_>>());
            prop_assert_eq!(context.last(&replica), last);
            for n in 0..50 {
                prop_assert_eq!(context.has(&replica, n), model.contains(&n));
            }
            let stored = context.0.get(&replica).cloned().unwrap_or_default();
            prop_assert!(stored.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }
}
