//! The store that forgets: state in the memory of this process.
//!
//! For tests and for trying things out. It is the twin of the durable stores: same
//! contract, nothing but a map behind it. Nothing bounds it but the functions' own limits.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    BoxFuture, Commit, Cursor, Entity, Listed, MAX_PAGE_BYTES, Millis, Record, RecordChange, RecordId,
    RecordWrite, Room, Shelf, Shelves, StateStore, StoreError, Versioned, Write,
};

/// State in a map.
///
/// One std mutex guards everything: each use is a few map operations and no await.
#[derive(Debug, Default)]
pub struct MemoryStore {
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    functions: BTreeMap<Arc<str>, Function>,
    /// The number of the last commit.
    sequence: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Function {
    values: BTreeMap<Arc<str>, (Versioned, Millis)>,
    records: BTreeMap<RecordId, Record>,
    /// The records with a due time, in its order.
    due: BTreeSet<(Millis, RecordId)>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> Result<MutexGuard<'_, Shared>, StoreError> {
        // Nothing below panics between two changes that belong together, so a poisoned
        // map is still a good one.
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.closed { Err(StoreError::Closed) } else { Ok(shared) }
    }

    /// `read`s what there is of a function; none: nothing.
    fn of<T: Default>(&self, function: &str, read: impl FnOnce(&Function) -> T) -> Result<T, StoreError> {
        Ok(self.lock()?.functions.get(function).map(read).unwrap_or_default())
    }

    fn commit_all(&self, entity: &Entity, commit: Commit) -> Result<u64, StoreError> {
        commit.check(entity)?;
        let commit = commit.detached(); // copies, so before the lock
        let mut shared = self.lock()?;
        let version = shared.sequence + 1;
        let function = shared.functions.entry(Arc::clone(&entity.function)).or_default();
        function.check(&entity.key, &commit)?;
        let mut answer = 0;
        match commit.value {
            Some((_, Write::Put(value))) => {
                answer = version;
                function.values.insert(Arc::clone(&entity.key), (Versioned { version, value }, commit.at));
            }
            Some((_, Write::Delete)) => {
                function.values.remove(&entity.key);
            }
            Some((_, Write::Keep)) | None => {}
        }
        for change in commit.records {
            if function.change(change, version) {
                answer = version;
            }
        }
        shared.sequence = version;
        Ok(answer)
    }

    fn sweep_all(&self, now: Millis, limit: usize) -> Result<usize, StoreError> {
        let mut shared = self.lock()?;
        let mut left = (limit, limit);
        for function in shared.functions.values_mut() {
            let expired = function.values.iter().filter(|(_, (versioned, _))| versioned.value.expired(now));
            let keys: Vec<_> = expired.map(|(key, _)| Arc::clone(key)).take(left.0).collect();
            left.0 -= keys.len();
            for key in keys {
                function.values.remove(&key);
                function.clear(Room::Event, &key);
            }
            let expired =
                function.records.values().filter(|record| record.expires.is_some_and(|at| at <= now));
            let ids: Vec<_> = expired.map(|record| record.id.clone()).take(left.1).collect();
            left.1 -= ids.len();
            for id in &ids {
                function.remove(id);
            }
        }
        let swept = (limit - left.0) + (limit - left.1);
        shared.sequence += u64::from(swept > 0);
        Ok(swept)
    }
}

impl Shared {
    /// At most `limit` shelves that follow `after`.
    fn shelves(&self, after: Option<&Shelf>, limit: usize) -> Vec<Shelf> {
        let mut page: Vec<Shelf> = Vec::new();
        let first = after.map_or("", |(entity, _)| &*entity.function);
        for (name, function) in self.functions.range::<str, _>((Bound::Included(first), Bound::Unbounded)) {
            let begin = after.filter(|(entity, _)| entity.function == *name).map(|(entity, room)| RecordId {
                room: *room,
                key: Arc::clone(&entity.key),
                sub: bytes::Bytes::new(),
            });
            let begin = begin.as_ref().map_or(Bound::Unbounded, Bound::Included);
            for id in function.records.range((begin, Bound::Unbounded)).map(|(id, _)| id) {
                let is_known = |(entity, room): &Shelf| {
                    entity.function == *name && *room == id.room && entity.key == id.key
                };
                if page.last().or(after).is_some_and(is_known) {
                    continue;
                }
                if page.len() >= limit {
                    return page;
                }
                let entity = Entity { function: Arc::clone(name), key: Arc::clone(&id.key) };
                page.push((entity, id.room));
            }
        }
        page
    }
}

impl Function {
    fn check(&self, key: &str, commit: &Commit) -> Result<(), StoreError> {
        if let Some((expected, _)) = commit.value {
            let found = self.values.get(key).map_or(0, |(versioned, _)| versioned.version);
            if found != expected {
                return Err(StoreError::Conflict { expected, found });
            }
        }
        for (index, RecordChange { id, expected, .. }) in commit.records.iter().enumerate() {
            let found = self.records.get(id).map_or(0, |record| record.version);
            if expected.is_some_and(|expected| expected != found) {
                return Err(StoreError::Stale { index, found });
            }
        }
        Ok(())
    }

    /// Whether something was put.
    fn change(&mut self, change: RecordChange, version: u64) -> bool {
        let id = change.id;
        match change.write {
            RecordWrite::Put { bytes, due, expires } => {
                self.remove(&id);
                self.due.extend(due.map(|due| (due, id.clone())));
                self.records.insert(id.clone(), Record { id, version, bytes, due, expires });
                return true;
            }
            RecordWrite::Delete => self.remove(&id),
            RecordWrite::Clear => self.clear(id.room, &id.key),
        }
        false
    }

    fn remove(&mut self, id: &RecordId) {
        if let Some(Record { due: Some(due), id, .. }) = self.records.remove(id) {
            self.due.remove(&(due, id));
        }
    }

    fn clear(&mut self, room: Room, key: &Arc<str>) {
        let first = RecordId { room, key: Arc::clone(key), sub: bytes::Bytes::new() };
        let ids: Vec<_> = self.from(&first).map(|record| record.id.clone()).collect();
        for id in &ids {
            self.remove(id);
        }
    }

    fn from<'a>(&'a self, first: &'a RecordId) -> impl Iterator<Item = &'a Record> {
        let records = self.records.range((Bound::Included(first), Bound::Unbounded));
        records.map(|(_, record)| record).take_while(|r| (r.id.room, &r.id.key) == (first.room, &first.key))
    }

    fn page(&self, from: &RecordId, limit: usize) -> Vec<Record> {
        let mut bytes = 0;
        let within = |record: &&Record| {
            let fits = bytes < MAX_PAGE_BYTES;
            bytes += record.bytes.len();
            fits
        };
        self.from(from).take(limit).take_while(within).cloned().collect()
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Listed> {
        let first = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let values = self.values.range::<str, _>((first, Bound::Unbounded));
        let listed = values.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        listed
            .map(|(key, (Versioned { version, value }, updated))| Listed {
                key: Arc::clone(key),
                version: *version,
                kind: value.kind,
                bytes: value.bytes.len() as u64,
                updated: *updated,
                expires: value.expires,
            })
            .collect()
    }
}

impl StateStore for MemoryStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        let value = |function: &Function| function.values.get(&entity.key).map(|(value, _)| value.clone());
        Box::pin(ready(self.of(&entity.function, value)))
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.commit_all(entity, commit) })
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(ready(self.of(function, |function| function.records.get(id).cloned())))
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(ready(self.of(function, |function| function.page(from, limit))))
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Arc<str>, Record)>, StoreError>> {
        let all = self.lock().map(|shared| {
            let known = functions.iter().filter_map(|name| Some((name, shared.functions.get(name)?)));
            let firsts = known.flat_map(|(name, function)| {
                function.due.iter().take(limit).map(move |(due, id)| (*due, name, &function.records[id]))
            });
            let mut firsts: Vec<_> = firsts.collect();
            firsts.sort_by_key(|(due, ..)| *due);
            firsts.iter().take(limit).map(|(_, name, record)| (Arc::clone(name), (*record).clone())).collect()
        });
        Box::pin(ready(all))
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(ready(self.of(function, |function| function.list(prefix, after, limit))))
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        let page = self.lock().map(|shared| shared.shelves(Cursor::shelf(from).as_ref(), limit));
        Box::pin(ready(page.map(|page| {
            let next = Cursor::behind(&page, limit);
            (page, next)
        })))
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        let names = self.lock().map(|shared| {
            let used = |(name, function): (&Arc<str>, &Function)| {
                (!function.values.is_empty() || !function.records.is_empty()).then(|| Arc::clone(name))
            };
            shared.functions.iter().filter_map(used).collect()
        });
        Box::pin(ready(names))
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(ready(self.of(function, |function| function.values.len() as u64)))
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(async move { self.sweep_all(now, limit) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        if let Ok(mut shared) = self.lock() {
            *shared = Shared { closed: true, ..Shared::default() };
        }
        Box::pin(ready(()))
    }

    fn describe(&self) -> String {
        "memory: (gone when the executor stops)".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::MemoryStore;
    use crate::state::contract::{Fixture, contract_suite};

    async fn open() -> Fixture {
        Fixture { store: Arc::new(MemoryStore::new()), _kept: Box::new(()) }
    }

    contract_suite!(contract, open);
}
