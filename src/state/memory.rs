//! The store that forgets: state in the memory of this process.
//!
//! For tests and for trying things out. It is the twin of the durable stores: same
//! contract, nothing but a map behind it. Nothing bounds it but the functions' own limits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BoxFuture, Entity, StateStore, StoreError, Versioned, Write, admit};

/// State in a map.
///
/// One std mutex guards everything: each use is a few map operations and no await.
#[derive(Debug, Default)]
pub struct MemoryStore {
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    entities: HashMap<Entity, Versioned>,
    /// The last version given.
    sequence: u64,
    closed: bool,
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

    fn read(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        Ok(self.lock()?.entities.get(entity).cloned())
    }

    fn apply(&self, entity: &Entity, expected: u64, write: &Write) -> Result<u64, StoreError> {
        let write = admit(entity, write)?; // copies, so before the lock
        let mut shared = self.lock()?;
        let version = shared.sequence + 1;
        let slot = shared.entities.entry(entity.clone());
        let found = match &slot {
            Entry::Occupied(taken) => taken.get().version,
            Entry::Vacant(_) => 0,
        };
        if found != expected {
            return Err(StoreError::Conflict { expected, found });
        }
        match (write, slot) {
            (Write::Put { kind, bytes }, slot) => {
                slot.insert_entry(Versioned { version, kind, bytes });
                shared.sequence = version;
                Ok(version)
            }
            (Write::Delete, Entry::Occupied(taken)) => {
                taken.remove();
                Ok(0)
            }
            (Write::Delete, Entry::Vacant(_)) => Ok(0),
        }
    }
}

impl StateStore for MemoryStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move { self.read(entity) })
    }

    fn commit<'a>(
        &'a self,
        entity: &'a Entity,
        expected: u64,
        write: Write,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.apply(entity, expected, &write) })
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

    fn open() -> Fixture {
        Fixture { store: Arc::new(MemoryStore::new()), _folder: None }
    }

    contract_suite!(contract, open);
}
