//! Encryption at rest: a store around another, which sees sealed bytes only.
//!
//! Values and records are sealed with AES-256-GCM under a random nonce. Each name has a key of its own, derived from the
//! file's with HKDF-SHA-256, so the number of writes that is safe under random nonces (2^32) counts for each name alone. The
//! name, and what is said of a value beside its bytes, is associated data, too: bytes moved to another key, room or function do
//! not open. Names, sizes, times and versions stay readable; without them a store could not do its work.
//!
//! Sealed bytes: `MAGIC`, length and text of the key's id, nonce, ciphertext and tag.
//!
//! The first key of the file seals, all of them open. What was written before there were keys is read as it is until
//! [`StateStore::rotate`] has sealed it (`rotation.rs`).
//!
//! # Failure
//!
//! What does not open (a key that is missing, bytes that were changed) is [`StoreError::Corrupt`] and says which key. But
//! [`StateStore::due`] hands such a timer on as it is, so that it does not hold up all others; nobody can read it, and
//! what is written back of it is not sealed a second time.
//!
//! What a user stores must not begin as sealed bytes do, see [`is_reserved`].

mod keys;
mod rotation;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::keys::{Keys, SEAL_BYTES, is_reserved, sealed_with};
use super::{
    BoxFuture, Commit, Cursor, Due, Entity, Kind, Listed, Millis, Record, RecordChange, RecordId,
    RecordWrite, Room, Shelves, StateStore, StoreError, Value, Versioned, Write,
};

/// Names of different things never meet: each part stands behind its length.
fn name(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

fn name_of_value(entity: &Entity, value: &Value) -> Vec<u8> {
    let kind = match value.kind {
        Kind::Json => 0,
        Kind::Binary => 1,
        Kind::Events => 2,
        Kind::Crdt => 3,
    };
    name(&[b"value", entity.function.as_bytes(), entity.key.as_bytes(), &[kind], &value.schema.to_be_bytes()])
}

fn name_of_record(function: &str, id: &RecordId) -> Vec<u8> {
    name(&[b"record", function.as_bytes(), &[id.room as u8], id.key.as_bytes(), &id.sub])
}

/// See the module.
pub struct SealedStore {
    inner: Arc<dyn StateStore>,
    keys: Keys,
}

impl SealedStore {
    /// Seals what goes into `inner`, and opens what comes out.
    pub fn new(inner: Arc<dyn StateStore>, keys: Keys) -> Self {
        Self { inner, keys }
    }

    fn open_value(&self, entity: &Entity, stored: Versioned) -> Result<Versioned, StoreError> {
        let name = name_of_value(entity, &stored.value);
        let Versioned { version, value } = stored;
        Ok(Versioned { version, value: Value { bytes: self.keys.open(&name, value.bytes)?, ..value } })
    }

    fn open_record(&self, function: &str, record: Record) -> Result<Record, StoreError> {
        let bytes = self.keys.open(&name_of_record(function, &record.id), record.bytes)?;
        Ok(Record { bytes, ..record })
    }

    fn seal(&self, entity: &Entity, mut commit: Commit) -> Result<Commit, StoreError> {
        if let Some((_, Write::Put(value))) = &mut commit.value {
            value.bytes = self.keys.seal(&name_of_value(entity, value), &value.bytes)?;
        }
        for RecordChange { id, write, .. } in &mut commit.records {
            let RecordWrite::Put { bytes, .. } = write else { continue };
            // A timer is JSON: if it looks sealed, it is one that did not open and is written back as it was.
            if id.room == Room::Timer && sealed_with(bytes).is_some() {
                continue;
            }
            *bytes = self.keys.seal(&name_of_record(&entity.function, id), bytes)?;
        }
        Ok(commit)
    }
}

impl StateStore for SealedStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            let stored = self.inner.get(entity).await?;
            stored.map(|stored| self.open_value(entity, stored)).transpose()
        })
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.inner.apply(entity, self.seal(entity, commit)?).await })
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(async move {
            let record = self.inner.record(function, id).await?;
            record.map(|record| self.open_record(function, record)).transpose()
        })
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(async move {
            let page = self.inner.records(function, from, limit).await?;
            page.into_iter().map(|record| self.open_record(function, record)).collect()
        })
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        Box::pin(async move {
            let mut due = self.inner.due(functions, limit).await?;
            for (function, record) in &mut due {
                if let Ok(opened) = self.open_record(function, record.clone()) {
                    *record = opened;
                }
            }
            Ok(due)
        })
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(async move {
            let mut listed = self.inner.list(function, prefix, after, limit).await?;
            for one in &mut listed {
                one.bytes = one.bytes.saturating_sub(self.keys.overhead());
            }
            Ok(listed)
        })
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        self.inner.shelves(from, limit)
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        self.inner.functions()
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.inner.count(function)
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.sweep(now, limit)
    }

    fn rotate(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.rotate_all())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn describe(&self) -> String {
        format!("{} (sealed)", self.inner.describe())
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.health()
    }
}
