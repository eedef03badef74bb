//! Sets, flags, registers and votes: values below keys, each with the dots that wrote it.
//!
//! One structure serves four types, because they differ only in what a key is and what a write carries: a set has its
//! elements as keys, a vote its voters, a flag and a register have a single key.
//!
//! What is there is there because of a dot. Removing means: I have seen these dots, and they are not here. So a
//! removal takes exactly what it saw, and a change nobody saw survives it.

use std::collections::BTreeMap;

use super::context::{Context, Dot};
use super::delta::Author;
use crate::state::Millis;

/// What each dot wrote.
pub(super) type Dots<T> = BTreeMap<Dot, T>;

/// Never with a key that has no dots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Keyed<K, T>(pub(super) BTreeMap<K, Dots<T>>);

/// A value of which the last one written counts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Written<T> {
    /// By the clock of the writer, or later if it had seen a later one.
    pub(super) at: Millis,
    pub(super) value: T,
}

impl<K, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, T: Ord + Clone> Keyed<K, T> {
    pub(super) fn join(&mut self, context: &Context, other: &Self, others: &Context) {
        self.0.retain(|key, mine| {
            let theirs = other.0.get(key);
            mine.retain(|dot, _| theirs.is_some_and(|dots| dots.contains_key(dot)) || !others.contains(dot));
            !mine.is_empty()
        });
        for (key, theirs) in &other.0 {
            for (dot, value) in theirs {
                match self.0.get_mut(key).and_then(|mine| mine.get_mut(dot)) {
                    // One dot has one value; should it ever have two, all must choose the same.
                    Some(mine) if *mine < *value => *mine = value.clone(),
                    Some(_) => {}
                    None if context.contains(dot) => {}
                    None => _ = self.0.entry(key.clone()).or_default().insert(dot.clone(), value.clone()),
                }
            }
        }
    }

    /// Removes of `key` what `observed` has. Dots that are here no more need no removing.
    pub(super) fn remove(&self, observed: &Self, key: &K, seen: &mut Context) {
        if let (Some(mine), Some(theirs)) = (self.0.get(key), observed.0.get(key)) {
            theirs.keys().filter(|dot| mine.contains_key(dot)).for_each(|dot| seen.add(dot));
        }
    }

    /// Removes all that `observed` has.
    pub(super) fn clear(&self, observed: &Self, seen: &mut Context) {
        observed.0.keys().for_each(|key| self.remove(observed, key, seen));
    }

    /// Writes `value` below `key`, in place of what is there and `older`.
    pub(super) fn put(
        &self,
        key: K,
        value: T,
        older: impl Fn(&T) -> bool,
        author: &mut Author<'_>,
        delta: &mut Self,
    ) {
        let replaced = self.0.get(&key).into_iter().flatten().filter(|(_, old)| older(old));
        replaced.for_each(|(dot, _)| author.seen.add(dot));
        delta.0.entry(key).or_default().insert(author.dot(), value);
    }

    pub(super) fn all_dots(&self) -> impl Iterator<Item = &Dot> {
        self.0.values().flat_map(BTreeMap::keys)
    }
}

impl<K: Ord, T> Keyed<K, Written<T>> {
    /// What was written last below `key`: by time, then by the name of the replica, then by its order.
    pub(super) fn latest(&self, key: &K) -> Option<&Written<T>> {
        self.0.get(key).and_then(latest)
    }
}

impl<K: Ord + Clone, T: Ord + Clone> Keyed<K, Written<T>> {
    /// Sets `key` to `value`, later than all in `observed`.
    pub(super) fn set(&self, observed: &Self, key: K, value: T, author: &mut Author<'_>, delta: &mut Self) {
        let at = observed.latest(&key).map_or(author.now, |last| author.now.max(last.at.saturating_add(1)));
        self.put(key, Written { at, value }, |old| old.at < at, author, delta);
    }
}

/// See [`Keyed::latest`].
pub(super) fn latest<T>(dots: &Dots<Written<T>>) -> Option<&Written<T>> {
    dots.iter().max_by_key(|(dot, written)| (written.at, *dot)).map(|(_, written)| written)
}
