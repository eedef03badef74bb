//! Seals with the first key whatever is not sealed with it: values, and the records on every shelf (events, timers,
//! recorded answers), whether their entity has a value or not.
//!
//! What does not open, for want of its key or because it is damaged, stays as it is; all else is done, and then it is
//! an error. What executors write meanwhile that have another first key may be left as well: run it again when all
//! have the new one, and 0 says that nothing is left.

use std::sync::Arc;

use bytes::Bytes;

use super::SealedStore;
use super::keys::sealed_with;
use crate::state::{
    Commit, Entity, Listed, Record, RecordChange, RecordId, RecordWrite, Room, StateStore, StoreError,
    Versioned, Write,
};

/// Things looked at in one step.
const STEP: usize = 500;

/// How often something is tried again that others keep changing.
const RETRIES: u32 = 20;

/// How many of those that were left are named in the log.
const MAX_NAMED: u64 = 20;

/// What was done so far.
#[derive(Default)]
struct Tally {
    sealed: u64,
    left: u64,
}

impl Tally {
    fn leave(&mut self, entity: &Entity, what: &'static str, why: &str) {
        self.left += 1;
        if self.left <= MAX_NAMED {
            tracing::warn!(?entity, what, "not sealed anew: {why}");
        }
    }
}

impl SealedStore {
    /// See the module. How much was sealed.
    ///
    /// # Errors
    /// Those of the store; what was done until then stays done. `Corrupt`: something was left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest as it was.
    pub(super) async fn rotate_all(&self) -> Result<u64, StoreError> {
        let mut tally = Tally::default();
        for function in self.inner.functions().await? {
            let mut after: Option<Arc<str>> = None;
            loop {
                let page = self.inner.list(&function, "", after.as_deref(), STEP).await?;
                let Some(last) = page.last() else { break };
                after = Some(Arc::clone(&last.key));
                for Listed { key, .. } in page {
                    let entity = Entity { function: Arc::clone(&function), key };
                    self.rotate_value(&entity, &mut tally).await?;
                }
            }
        }
        let mut from = None;
        loop {
            let (shelves, next) = self.inner.shelves(from, STEP).await?;
            for (entity, room) in shelves {
                self.rotate_records(&entity, room, &mut tally).await?;
            }
            from = next;
            if from.is_none() {
                break;
            }
        }
        if tally.left == 0 {
            return Ok(tally.sealed);
        }
        let Tally { sealed, left } = tally;
        let what =
            format!("{left} things could not be sealed anew and stay as they are; {sealed} were sealed");
        Err(StoreError::Corrupt { what })
    }

    fn is_current(&self, bytes: &[u8]) -> bool {
        sealed_with(bytes) == Some(self.keys.first().as_bytes())
    }

    async fn rotate_value(&self, entity: &Entity, tally: &mut Tally) -> Result<(), StoreError> {
        for _ in 0..RETRIES {
            let Some(stored) = self.inner.get(entity).await? else { return Ok(()) };
            if self.is_current(&stored.value.bytes) {
                return Ok(());
            }
            let Versioned { version, value } = match self.open_value(entity, stored) {
                Ok(opened) => opened,
                Err(error) => {
                    tally.leave(entity, "its value", &error.to_string());
                    return Ok(());
                }
            };
            match self.apply(entity, Commit::of(version, Write::Put(value))).await {
                Ok(_) => {
                    tally.sealed += 1;
                    return Ok(());
                }
                // Who was faster has sealed it with the first key, unless theirs is another.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        tally.leave(entity, "its value", "others keep changing it and seal with another key");
        Ok(())
    }

    async fn rotate_records(&self, entity: &Entity, room: Room, tally: &mut Tally) -> Result<(), StoreError> {
        let mut from = RecordId { room, key: Arc::clone(&entity.key), sub: Bytes::new() };
        loop {
            let page = self.inner.records(&entity.function, &from, STEP).await?;
            let Some(last) = page.last() else { return Ok(()) };
            let mut next = last.id.sub.to_vec();
            next.push(0);
            from.sub = next.into();
            for record in page {
                self.rotate_record(entity, record, tally).await?;
            }
        }
    }

    async fn rotate_record(
        &self,
        entity: &Entity,
        record: Record,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        if self.is_current(&record.bytes) {
            return Ok(());
        }
        let Record { id, version, bytes, due, expires } = match self.open_record(&entity.function, record) {
            Ok(opened) => opened,
            Err(error) => {
                tally.leave(entity, "one of its records", &error.to_string());
                return Ok(());
            }
        };
        let write = RecordWrite::Put { bytes, due, expires };
        let change = RecordChange { id, expected: Some(version), write };
        match self.apply(entity, Commit::of_records(vec![change])).await {
            Ok(_) => tally.sealed += 1,
            // Who was faster has sealed it with the first key, or removed it.
            Err(StoreError::Stale { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
