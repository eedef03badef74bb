//! What a call changes of a state, as a state of its own that can be merged any number of times.
//!
//! A delta is made from two states: what the function *observed* decides what it removes and what its writes are later
//! than; the *current* one, which is the same or a later one, decides how the change is best written down. It is right in
//! every later state.

use super::context::{Context, Dot, Replica, Tickets};
use super::counter::MAX_COUNT;
use super::ops::Ops;
use super::store::Store;
use super::{Crdt, CrdtError, CrdtType};
use crate::state::Millis;

/// Who makes a delta, and when.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    /// This executor.
    pub replica: &'a Replica,
    /// Of this process, for all entities.
    pub tickets: &'a Tickets,
    /// By this executor's clock.
    pub now: Millis,
}

/// Why operations cannot be carried out on this state. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeltaError {
    /// A counter would pass its limit.
    #[error("the counter would pass its limit of 2^53 - 1 ({MAX_COUNT}), up or down")]
    Overflow,
    /// An entry is of another type than the operation's.
    #[error("the entry `{name}` is a {is}, not a {named}; delete it first, or use another name")]
    EntryType {
        /// Of the entry.
        name: String,
        /// Its type.
        is: CrdtType,
        /// The operation's.
        named: CrdtType,
    },
    /// The states or the operations are of different types.
    #[error(transparent)]
    Type(CrdtError),
    /// A state claims to come from the end of time; whoever wrote it had a clock that was wrong beyond repair.
    #[error("there are no numbers left for changes to this state; delete it")]
    Exhausted,
}

/// What a delta's making needs to know of its author, and what it has used and seen so far.
pub(super) struct Author<'a> {
    pub(super) replica: &'a Replica,
    pub(super) now: Millis,
    /// The author's last dot in the current state.
    pub(super) last: u64,
    /// Whether what is made may be removed later, so that writing what is there already means something.
    pub(super) deletable: bool,
    /// The delta's context.
    pub(super) seen: Context,
    next: u64,
}

impl Author<'_> {
    /// A new dot, which is then seen.
    pub(super) fn dot(&mut self) -> Dot {
        let dot = Dot { replica: self.replica.clone(), sequence: self.next };
        self.next += 1;
        self.seen.add(&dot);
        dot
    }
}

impl Crdt {
    /// What `ops`, by a call that had observed `observed`, change of this, the current state. Merge it into this state, and into
    /// every later one that it turns out to be in the store.
    ///
    /// Deltas of one replica for one entity must be made one after the other: the next when the one before was merged and
    /// committed, or given up. A commit with unknown outcome that was given up may still come to be.
    ///
    /// # Errors
    /// See [`DeltaError`].
    pub fn delta(&self, observed: &Self, ops: &Ops, by: &By<'_>) -> Result<Self, DeltaError> {
        for found in [observed.kind, ops.kind] {
            if found != self.kind {
                return Err(DeltaError::Type(CrdtError::Type { expected: self.kind, found }));
            }
        }
        let last = self.context.last(by.replica);
        let floor = last.max(observed.context.last(by.replica)).max(self.last_count(by.replica));
        let first = floor.checked_add(1).and_then(|floor| by.tickets.reserve(ops.dots(), floor, by.now));
        let next = first.ok_or(DeltaError::Exhausted)?;
        let deletable = matches!(self.kind, CrdtType::OrSet | CrdtType::OrMap);
        let mut author =
            Author { replica: by.replica, now: by.now, last, deletable, seen: Context::default(), next };
        let mut delta = Self::new(self.kind);
        self.store.delta(&observed.store, &ops.effect, &mut author, &mut delta.store)?;
        if !matches!(self.store, Store::Counter(_)) {
            // The numbers between the dots of this replica were never used, or by changes that can no more be
            // committed: a later one was. Saying so keeps the context short.
            if author.next > next {
                for (low, high) in self.context.gaps(by.replica) {
                    author.seen.add_range(by.replica, low, high);
                }
            }
            delta.context = author.seen;
        }
        Ok(delta)
    }

    /// The last dot of `replica` in a counter, which has no context.
    fn last_count(&self, replica: &Replica) -> u64 {
        match &self.store {
            Store::Counter(counter) => counter.0.get(replica).map_or(0, super::counter::Share::last),
            _ => 0,
        }
    }
}
