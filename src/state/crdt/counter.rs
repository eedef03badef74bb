//! Counters: for each replica what it has added, in the order of its dots.
//!
//! A replica's share is a sum up to one of its dots, and the later amounts singly. A new amount is sent singly,
//! never as a new sum: a sum made without an earlier amount whose commit is still under way would undo that one. The next delta
//! computed from the stored state adds up what it finds there, so a share stays small.
//!
//! Inside a map a counter can be deleted. Sums go on counting, and beside them stands up to which dot the share
//! was deleted and what the sum was there; the difference counts. So a deletion takes exactly the amounts it saw. A share
//! that is deleted wholly is dropped: the map's context says that it was there. One that begins anew
//! says after which dot (`birth`), and whatever belongs to an earlier one has no effect on it.

use std::collections::{BTreeMap, BTreeSet};

use super::context::{Context, Replica};
use super::delta::{Author, DeltaError};

/// The limit of a counter and of an amount, both signs: 2^53 - 1, as JavaScript can count.
pub const MAX_COUNT: i64 = (1 << 53) - 1;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Counter(pub(super) BTreeMap<Replica, Share>);

/// What one replica has added.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Share {
    /// All its dots are later than this one.
    pub(super) birth: u64,
    /// The last dot in `sum`; 0: none.
    pub(super) upto: u64,
    pub(super) sum: i128,
    /// By dot, all later than `upto`.
    pub(super) recent: BTreeMap<u64, i128>,
    /// The last dot that was deleted, and the sum up to it; 0: none.
    pub(super) deleted: (u64, i128),
}

impl Share {
    pub(super) fn last(&self) -> u64 {
        self.recent.last_key_value().map_or(self.upto, |(dot, _)| *dot)
    }

    fn total(&self) -> i128 {
        self.sum + self.recent.values().sum::<i128>()
    }

    fn lives(&self) -> bool {
        self.last() > self.deleted.0
    }

    fn join(&mut self, other: &Self) {
        if other.birth != self.birth {
            if other.birth > self.birth {
                *self = other.clone();
            }
            return;
        }
        (self.upto, self.sum) = (self.upto, self.sum).max((other.upto, other.sum));
        for (dot, amount) in &other.recent {
            let mine = self.recent.entry(*dot).or_insert(*amount);
            *mine = (*mine).max(*amount);
        }
        let upto = self.upto;
        self.recent.retain(|dot, _| *dot > upto);
        self.deleted = self.deleted.max(other.deleted);
    }

    /// Deletes what is in `context`: whoever has that context has no such share, so it was deleted there.
    fn delete_seen(&mut self, replica: &Replica, context: &Context) {
        let mut sum = self.sum;
        let mut seen = (self.upto, sum);
        let mut any = context.has(replica, self.upto);
        for (dot, amount) in &self.recent {
            sum += amount;
            if context.has(replica, *dot) {
                (seen, any) = ((*dot, sum), true);
            }
        }
        if any {
            self.deleted = self.deleted.max(seen);
        }
    }
}

impl Counter {
    pub(super) fn value(&self) -> i128 {
        self.0.values().map(|share| share.total() - share.deleted.1).sum()
    }

    pub(super) fn lives(&self) -> bool {
        self.0.values().any(Share::lives)
    }

    pub(super) fn join(&mut self, context: &Context, other: &Self, others: &Context) {
        let replicas: BTreeSet<Replica> = self.0.keys().chain(other.0.keys()).cloned().collect();
        for replica in replicas {
            let share = match (self.0.remove(&replica), other.0.get(&replica)) {
                (Some(mut mine), Some(theirs)) => {
                    mine.join(theirs);
                    mine
                }
                (Some(mut mine), None) => {
                    mine.delete_seen(&replica, others);
                    mine
                }
                (None, Some(theirs)) => {
                    let mut theirs = theirs.clone();
                    theirs.delete_seen(&replica, context);
                    theirs
                }
                (None, None) => continue,
            };
            let deleted = share.deleted.0;
            if share.lives() || !(context.has(&replica, deleted) || others.has(&replica, deleted)) {
                self.0.insert(replica, share);
            }
        }
    }

    /// The deletion of all that `observed` has, as far as it is still here.
    pub(super) fn clear(&self, observed: &Self) -> Self {
        let gone = observed.0.iter().filter_map(|(replica, seen)| {
            let deleted = (seen.last(), seen.total());
            let mine = self.0.get(replica)?;
            let news = mine.birth == seen.birth && mine.deleted.0 < deleted.0;
            news.then(|| (replica.clone(), Share { birth: seen.birth, deleted, ..Share::default() }))
        });
        Self(gone.collect())
    }

    /// Adds `amount` to this, in `delta`, which may have a deletion already.
    pub(super) fn add(
        &self,
        amount: i128,
        author: &mut Author<'_>,
        delta: &mut Self,
    ) -> Result<(), DeltaError> {
        let none = Share { birth: author.last, ..Share::default() };
        let mine = self.0.get(author.replica).unwrap_or(&none);
        let recent = BTreeMap::from([(author.dot().sequence, amount)]);
        let share = Share { upto: mine.last(), sum: mine.total(), recent, ..*mine };
        delta.0.entry(author.replica.clone()).and_modify(|there| there.join(&share)).or_insert(share);
        let mut after = self.clone();
        after.join(&Context::default(), delta, &Context::default());
        let (before, after) = (self.value().abs(), after.value().abs());
        // Hosts that add at the same time can pass the limit together; it must stay possible to get back.
        if after > i128::from(MAX_COUNT) && after > before { Err(DeltaError::Overflow) } else { Ok(()) }
    }
}
