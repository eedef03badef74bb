//! What is known about entities without asking the database.
//!
//! Only one process may have the database open, so what the writer committed and what
//! the reader found stays true until the next commit, and a `get` can be answered where
//! it is asked, without a change of thread. Bounded in bytes.
//!
//! # The race, and why a stale value cannot get in
//!
//! Two threads tell the cache what they know. The writer does after each COMMIT and
//! before it answers; the reader does after it has read what was missing. In between,
//! the reader's news may have grown old:
//!
//! ```text
//! reader: begins a read transaction, finds version 5
//! writer:                              commits version 9, tells the cache
//! reader:                                                   tells the cache "5"
//! ```
//!
//! So each piece of news is stamped from the store's sequence, which every change moves
//! on (deletes too) in the same transaction. The writer's stamp is the number of the
//! change. The reader reads the sequence inside its own transaction, which says exactly
//! which changes it has seen: all up to that number, none after. News then replaces only
//! what is stamped no later than itself, whichever order the two threads come in.
//! What a sweep removes is news like a delete.
//!
//! An evicted entry cannot be compared with. For these, one number is kept: the `floor`,
//! the latest stamp ever evicted. News about an entity without an entry is taken only if
//! it is stamped at or above the floor. That may refuse what is true (it is then read
//! again later) but never takes what is stale.
//!
//! Where the truth is not known (a COMMIT whose outcome is unclear), the entry becomes
//! `Unsure`, stamped with the number the change would have had. It answers nothing, and
//! keeps older news out.
//!
//! # Eviction
//!
//! Clock (second chance): reading an entry sets a mark and moves nothing, and the hand
//! passes over an entry with a mark once. The hand looks at a bounded number of entries,
//! so that a cache full of marks does not stall everybody for a whole round.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use crate::state::{Entity, Versioned};

/// What an entry costs beside its names and value, in bytes. An estimate of the two
/// places an entity is held in, their spare room, and the allocations behind them.
const ENTRY_OVERHEAD: usize = 256;

/// How many entries the hand may pass over before it must take one.
const MAX_CHANCES: usize = 32;

/// One value may use this part of the cache at most; larger ones are always read.
const LARGEST_PART: usize = 8;

/// Something a thread found out about an entity.
#[derive(Clone, Debug)]
pub(super) enum Known {
    Present(Versioned),
    Absent,
    /// Ask the database.
    Unsure,
}

/// Something found out, and the last change it takes into account.
#[derive(Debug)]
pub(super) struct News {
    pub(super) entity: Entity,
    pub(super) known: Known,
    pub(super) stamp: u64,
}

/// What [`Cache::get`] answers.
#[derive(Debug)]
pub(super) enum Lookup {
    Hit(Option<Versioned>),
    Miss,
}

/// See the module. One std mutex: held for a map operation or a group of them, never
/// across an await.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    shared: Mutex<Shared>,
}

/// Invariant: `entries` and `hand` hold the same entities, each once.
#[derive(Debug, Default)]
struct Shared {
    entries: HashMap<Entity, Entry>,
    hand: VecDeque<Entity>,
    /// The sum of all costs, in bytes.
    bytes: usize,
    /// The latest stamp evicted.
    floor: u64,
    retired: bool,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    stamp: u64,
    cost: usize,
    marked: bool,
}

impl Cache {
    /// An empty cache of at most `limit` bytes, by its own estimate; 0 keeps nothing.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, shared: Mutex::default() }
    }

    /// The current value of `entity`, if it is known.
    pub(super) fn get(&self, entity: &Entity) -> Lookup {
        let mut shared = self.lock();
        let Some(entry) = shared.entries.get_mut(entity) else { return Lookup::Miss };
        entry.marked = true;
        match &entry.known {
            Known::Present(value) => Lookup::Hit(Some(value.clone())),
            Known::Absent => Lookup::Hit(None),
            Known::Unsure => Lookup::Miss,
        }
    }

    /// Takes news in, each piece if nothing newer is known. Readers see all or nothing.
    pub(super) fn learn(&self, news: impl IntoIterator<Item = News>) {
        let mut shared = self.lock();
        if shared.retired {
            return;
        }
        for piece in news {
            shared.learn(piece, self.limit / LARGEST_PART);
            shared.shrink(self.limit);
        }
    }

    /// Forgets everything and learns nothing from now on: the writer has ended, and
    /// nobody would notice if the database moved on.
    pub(super) fn retire(&self) {
        *self.lock() = Shared { retired: true, ..Shared::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poisoned| {
            // A panic in the middle of a change: whatever is in there is in doubt.
            self.shared.clear_poison();
            let mut shared = poisoned.into_inner();
            *shared = Shared { retired: true, ..Shared::default() };
            shared
        })
    }
}

impl Shared {
    fn learn(&mut self, News { entity, known, stamp }: News, largest: usize) {
        let names = ENTRY_OVERHEAD + entity.function.len() + entity.key.len();
        let (known, cost) = match known {
            // Too large to keep, but what was known before is no longer true.
            Known::Present(value) if names + value.value.bytes.len() > largest => (Known::Unsure, names),
            Known::Present(value) => {
                let cost = names + value.value.bytes.len();
                (Known::Present(value), cost)
            }
            other => (other, names),
        };
        if let Some(entry) = self.entries.get_mut(&entity) {
            if stamp >= entry.stamp {
                self.bytes = self.bytes - entry.cost + cost;
                *entry = Entry { known, stamp, cost, marked: entry.marked };
            }
        } else if stamp >= self.floor {
            self.bytes += cost;
            self.hand.push_back(entity.clone());
            self.entries.insert(entity, Entry { known, stamp, cost, marked: false });
        }
        debug_assert_eq!(self.entries.len(), self.hand.len());
    }

    fn shrink(&mut self, limit: usize) {
        let mut chances = MAX_CHANCES;
        while self.bytes > limit {
            let Some(entity) = self.hand.pop_front() else { break };
            let spared =
                chances > 0 && self.entries.get_mut(&entity).is_some_and(|e| std::mem::take(&mut e.marked));
            if spared {
                chances -= 1;
                self.hand.push_back(entity);
            } else if let Some(entry) = self.entries.remove(&entity) {
                self.bytes -= entry.cost;
                self.floor = self.floor.max(entry.stamp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{Cache, ENTRY_OVERHEAD, Known, Lookup, News, Shared};
    use crate::state::contract::entity;
    use crate::state::{Entity, Kind, Value, Versioned};

    fn value(version: u64, size: usize) -> Versioned {
        Versioned { version, value: Value::new(Kind::Binary, vec![0; size]) }
    }

    fn present(key: &str, version: u64, size: usize) -> News {
        let known = Known::Present(value(version, size));
        News { entity: entity("f", key), known, stamp: version }
    }

    fn check(shared: &Shared, limit: usize) {
        assert!(shared.bytes <= limit);
        assert_eq!(shared.bytes, shared.entries.values().map(|entry| entry.cost).sum::<usize>());
        assert_eq!(shared.entries.len(), shared.hand.len());
        assert!(shared.hand.iter().all(|entity| shared.entries.contains_key(entity)));
    }

    #[test]
    fn keeps_within_its_limit_and_spares_what_is_read() {
        let limit = 20 * (ENTRY_OVERHEAD + 102);
        let cache = Cache::new(limit);
        cache.learn([present("hot", 1, 100)]);
        for version in 2..500 {
            assert!(matches!(cache.get(&entity("f", "hot")), Lookup::Hit(Some(_))));
            cache.learn([present(&version.to_string(), version, 100)]);
            check(&cache.lock(), limit);
        }
        assert!(cache.lock().entries.len() >= 15);
    }

    #[test]
    fn a_value_too_large_replaces_what_was_known() {
        let cache = Cache::new(80_000);
        cache.learn([present("k", 1, 10), present("k", 2, 20_000)]);
        assert!(matches!(cache.get(&entity("f", "k")), Lookup::Miss));
        cache.learn([present("k", 1, 10)]);
        assert!(matches!(cache.get(&entity("f", "k")), Lookup::Miss), "older news is kept out");
        check(&cache.lock(), 80_000);
    }

    #[test]
    fn retired_means_empty_for_good() {
        let cache = Cache::new(80_000);
        cache.learn([present("k", 1, 10)]);
        cache.retire();
        cache.learn([present("k", 2, 10)]);
        assert!(matches!(cache.get(&entity("f", "k")), Lookup::Miss));
    }

    /// More than fit into the cache below.
    const KEYS: u8 = 16;

    /// What the threads do, in any order the locks allow.
    #[derive(Clone, Debug)]
    enum Event {
        /// The writer's COMMIT: a put of some size, or a delete.
        Commit(u8, Option<usize>),
        /// The writer tells the cache about its oldest commit not yet told.
        Publish,
        /// A reader reads one entity in a transaction of its own.
        Read(u8),
        /// One of the readers tells the cache.
        Tell(prop::sample::Index),
        /// A COMMIT that may have happened or not; it has not, but only the database knows.
        Doubt(u8),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let size = prop_oneof![Just(None), (0..100_usize).prop_map(Some)];
        let key = 0..KEYS;
        let event = prop_oneof![
            3 => (key.clone(), size).prop_map(|(key, size)| Event::Commit(key, size)),
            3 => Just(Event::Publish),
            3 => key.clone().prop_map(Event::Read),
            3 => any::<prop::sample::Index>().prop_map(Event::Tell),
            1 => key.prop_map(Event::Doubt),
        ];
        prop::collection::vec(event, 1..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// A hit is what the database held at some moment not before the last commit to
        /// the entity that was published, as all are that were answered.
        #[test]
        fn never_answers_with_stale_state(events in events(), limit in 0..4000_usize) {
            // Above 2 KiB values are kept, up to some size; below only absences are.
            let cache = Cache::new(limit);
            let mut sequence = 0;
            let mut database: HashMap<Entity, Versioned> = HashMap::new();
            let mut deletes: Vec<(Entity, u64)> = Vec::new();
            let mut published: HashMap<Entity, u64> = HashMap::new();
            let mut unpublished: Vec<News> = Vec::new();
            let mut readings: Vec<News> = Vec::new();
            for event in events {
                match event {
                    Event::Commit(key, size) => {
                        sequence += 1;
                        let entity = entity("f", &key.to_string());
                        let known = if let Some(size) = size {
                            database.insert(entity.clone(), value(sequence, size));
                            Known::Present(value(sequence, size))
                        } else {
                            database.remove(&entity);
                            deletes.push((entity.clone(), sequence));
                            Known::Absent
                        };
                        unpublished.push(News { entity, known, stamp: sequence });
                    }
                    Event::Publish if !unpublished.is_empty() => {
                        let news = unpublished.remove(0);
                        published.insert(news.entity.clone(), news.stamp);
                        cache.learn([news]);
                    }
                    Event::Read(key) => {
                        let entity = entity("f", &key.to_string());
                        readings.push(match database.get(&entity).cloned() {
                            Some(value) => {
                                let stamp = value.version;
                                News { entity, known: Known::Present(value), stamp }
                            }
                            None => News { entity, known: Known::Absent, stamp: sequence },
                        });
                    }
                    Event::Tell(index) if !readings.is_empty() => {
                        let index = index.index(readings.len());
                        cache.learn([readings.swap_remove(index)]);
                    }
                    Event::Doubt(key) if unpublished.is_empty() => {
                        sequence += 1; // skipped, never stored
                        let entity = entity("f", &key.to_string());
                        cache.learn([News { entity, known: Known::Unsure, stamp: sequence }]);
                    }
                    _ => {}
                }
                for key in 0..KEYS {
                    let entity = entity("f", &key.to_string());
                    let last = published.get(&entity).copied().unwrap_or(0);
                    match cache.get(&entity) {
                        Lookup::Miss => {}
                        Lookup::Hit(Some(hit)) => prop_assert!(hit.version >= last),
                        Lookup::Hit(None) => prop_assert!(
                            last == 0 || deletes.iter().any(|(e, at)| *e == entity && *at >= last)
                        ),
                    }
                }
                check(&cache.lock(), limit);
            }
        }
    }
}
