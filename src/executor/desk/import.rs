//! What moves in: an entity with its events and timers, wholly or not at all.
//!
//! One commit does it where it holds all. Longer logs take several: the first puts a placeholder in the value's place, which
//! no model can read, so that nobody sees a part or begins a state of their own; the last one puts the value, and the timers
//! with it. All sizes are checked before the first. If a later one fails, what was there is written back, and a caller
//! that leaves does not cut it short. What remains: if the executor is killed in between, or the store stays away, the
//! placeholder stays, calls of the entity are errors, and only another import with `replace` or a deletion helps.

use std::sync::Arc;

use bytes::Bytes;

use super::{Desk, DeskError, cleared};
use crate::executor::stateful::event_id;
use crate::state::{
    Entity, Kind, MAX_RECORD_BYTES, MAX_RECORDS, RecordChange, RecordId, RecordWrite, Room, SEAL_BYTES,
    StoreError, Value, Write, is_reserved,
};

/// Records of one of several commits.
const CHUNK_RECORDS: usize = 1000;

/// Bytes of one of several commits, but for a record that has more (8 MiB).
const CHUNK_BYTES: usize = 8 << 20;

/// In the value's place meanwhile. Not the bytes of a snapshot.
const PLACEHOLDER: &[u8] = b"being imported";

/// All that belongs to an entity, as it is moved between stores.
#[derive(Debug, Clone)]
pub struct Moved {
    /// Its key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Value,
    /// Its events' bytes; the first has the number 1.
    pub events: Vec<Bytes>,
    /// Its timers: name, when it is due, bytes.
    pub timers: Vec<(String, u64, Bytes)>,
}

/// The commits that write an entity down.
struct Plan {
    /// What comes before the value; empty if all goes with it.
    chunks: Vec<Vec<RecordChange>>,
    value: Value,
    /// What comes with it.
    last: Vec<RecordChange>,
}

impl Plan {
    /// What was there is cleared first.
    ///
    /// # Errors
    /// `TooLarge`, `TooMany`: no store would take it.
    fn of(entity: &Entity, moved: &Moved) -> Result<Self, StoreError> {
        let put = |id, bytes: &Bytes, due| RecordChange {
            id,
            expected: None,
            write: RecordWrite::Put { bytes: bytes.clone(), due, expires: None },
        };
        let events: Vec<_> = (1..)
            .zip(&moved.events)
            .map(|(number, bytes)| put(event_id(&entity.key, number), bytes, None))
            .collect();
        let timers = moved.timers.iter().map(|(name, due, bytes)| {
            let sub = Bytes::copy_from_slice(name.as_bytes());
            put(RecordId { room: Room::Timer, key: Arc::clone(&entity.key), sub }, bytes, Some(*due))
        });
        let timers: Vec<_> = timers.collect();
        let names = entity.function.len() + entity.key.len();
        let value = names + moved.value.bytes.len() + SEAL_BYTES;
        let mut first = cleared(entity);
        let all = value + size(&first) + size(&events) + size(&timers);
        let is_one = first.len() + events.len() + timers.len() <= CHUNK_RECORDS && all <= MAX_RECORD_BYTES;
        let mut chunks = Vec::new();
        let last = if is_one || events.is_empty() {
            first.extend(events);
            first.extend(timers);
            first
        } else {
            let mut bytes = size(&first);
            for event in events {
                let more = weight(&event);
                if first.len() >= CHUNK_RECORDS || bytes + more > CHUNK_BYTES {
                    chunks.push(std::mem::take(&mut first));
                    bytes = 0;
                }
                bytes += more;
                first.push(event);
            }
            chunks.push(first);
            timers
        };
        check(value + size(&last), last.len())?;
        for chunk in &chunks {
            check(names + size(chunk), chunk.len())?;
        }
        Ok(Self { chunks, value: moved.value.clone(), last })
    }
}

/// What a store counts of a change, sealed or not, at the most.
fn weight(change: &RecordChange) -> usize {
    let bytes = if let RecordWrite::Put { bytes, .. } = &change.write { bytes.len() + SEAL_BYTES } else { 0 };
    change.id.key.len() + change.id.sub.len() + bytes
}

fn size(changes: &[RecordChange]) -> usize {
    changes.iter().map(weight).sum()
}

fn check(bytes: usize, records: usize) -> Result<(), StoreError> {
    if bytes > MAX_RECORD_BYTES {
        return Err(StoreError::TooLarge { bytes, limit: MAX_RECORD_BYTES });
    }
    if records > MAX_RECORDS {
        return Err(StoreError::TooMany { records, limit: MAX_RECORDS });
    }
    Ok(())
}

impl Desk {
    /// Stores all that belongs to an entity, wholly or not at all. What is there already is refused, or replaced.
    ///
    /// # Errors
    /// `Changed`: there is something under the key, or somebody was faster. `TooLarge`, `NotJson`, `Reserved`, `Key`, those of the
    /// store.
    pub async fn import(&self, moved: Moved, replace: bool) -> Result<(), DeskError> {
        let (size, most) = (moved.value.bytes.len() as u64, self.max_value.saturating_mul(2));
        if size > most {
            return Err(DeskError::TooLarge(size, most));
        }
        let timers = moved.timers.iter().map(|(_, _, bytes)| bytes);
        if moved.events.iter().chain(timers).chain([&moved.value.bytes]).any(|bytes| is_reserved(bytes)) {
            return Err(DeskError::Reserved);
        }
        let entity = self.entity(&moved.key)?;
        let plan = Plan::of(&entity, &moved)?;
        let (mut raw, stored) = self.stored(&entity).await?;
        if let Some(stored) = &stored
            && !replace
        {
            return Err(DeskError::Changed(stored.version));
        }
        let done = if plan.chunks.is_empty() {
            self.apply(&entity, Some((raw, Write::Put(plan.value))), plan.last).await.map(drop)
        } else {
            let mut back = None;
            if stored.is_some()
                && let Some((version, old)) = self.whole(&entity).await?
            {
                raw = version;
                back = Some(Plan::of(&entity, &old)?);
            }
            let desk = self.clone();
            let exchange = async move { desk.exchange(&entity, raw, plan, back).await };
            self.tasks.finish_always("import", exchange).await
        };
        done.map_err(|error| match error {
            StoreError::Conflict { found, .. } => DeskError::Changed(found),
            other => other.into(),
        })
    }

    /// Writes `plan` in place of the version `raw`; what was there, if that fails.
    async fn exchange(
        &self,
        entity: &Entity,
        raw: u64,
        plan: Plan,
        back: Option<Plan>,
    ) -> Result<(), StoreError> {
        let placeholder = Write::Put(Value::new(Kind::Events, PLACEHOLDER));
        let held = self.apply(entity, Some((raw, placeholder)), Vec::new()).await?;
        let Err(error) = self.carry_out(entity, held, plan).await else { return Ok(()) };
        let back = match back {
            Some(back) => self.carry_out(entity, held, back).await,
            None => self.apply(entity, Some((held, Write::Delete)), cleared(entity)).await.map(drop),
        };
        match back {
            // Or the last commit was done although it failed, or an operator was faster.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(why) => tracing::error!(
                ?entity,
                "an import failed half done, and what was there could not be written back; import it again: {why}"
            ),
        }
        Err(error)
    }

    /// Does what `plan` says, as long as the value has the version `held`.
    async fn carry_out(&self, entity: &Entity, held: u64, plan: Plan) -> Result<(), StoreError> {
        for records in plan.chunks {
            self.apply(entity, Some((held, Write::Keep)), records).await?;
        }
        self.apply(entity, Some((held, Write::Put(plan.value))), plan.last).await.map(drop)
    }
}
