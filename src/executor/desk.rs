//! State for operators: seen, changed, and moved, besides the functions it belongs to.
//!
//! Values are changed under the same version checks as by calls, so an operator and a function that write at the same
//! time do not lose each other's writes. Only plain values can be put: what events or a CRDT hold follows from what
//! their function did. `import.rs` has what moves in.

mod import;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast;

pub use self::import::Moved;
use super::stateful::{event_id, event_number, show};
use super::{Change, Deployed, Executor};
use crate::function::StateSpec;
use crate::state::{
    Commit, Entity, Kind, Listed, Record, RecordChange, RecordId, RecordWrite, Room, StateStore, StoreError,
    Value, Versioned, Write, is_reserved, now, sealed_with,
};
use crate::state_key::MAX_KEY;
use crate::task::Tasks;

/// How often an unconditional change is tried again because somebody else was faster.
const RETRIES: u32 = 10;

/// Entities that one list names, at the most.
pub const MAX_LIST: usize = 1000;

/// Events that one page of a history has.
const HISTORY_PAGE: usize = 500;

/// Why a value is refused that begins as sealed ones do.
const RESERVED: &str =
    "begins with the bytes \"\\0sealed1\", which mark what is encrypted; put another byte in front";

/// Why an operator did not get what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// No such store.
    #[error("this executor has no store `{0}`")]
    NoStore(String),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The entity is not as the request says; its version, 0: it is absent.
    #[error("the state has version {0} now (0: absent); read it again and decide")]
    Changed(u64),
    /// The entity is absent.
    #[error("there is no state under this key")]
    Absent,
    /// Its state is not a plain value.
    #[error(
        "the state under this key belongs to the model `{0}`: its function changes it; it can be read, deleted, exported and imported"
    )]
    NotPlain(&'static str),
    /// The value is too large, in bytes.
    #[error("the value has {0} bytes; {1} are allowed")]
    TooLarge(u64, u64),
    /// The key is too long, in bytes.
    #[error("the key has {0} bytes; at most {MAX_KEY} are allowed")]
    Key(usize),
    /// What is said to be JSON is not.
    #[error("the value {0}")]
    NotJson(String),
    /// The bytes are none that may be kept.
    #[error("the value {RESERVED}")]
    Reserved,
}

/// Where one function keeps its state.
#[derive(Clone)]
pub struct Desk {
    store: Arc<dyn StateStore>,
    function: Arc<str>,
    spec: Option<StateSpec>,
    max_value: u64,
    changes: broadcast::Sender<Change>,
    tasks: Tasks,
}

/// A value for people: its version, whether the bytes are JSON, and the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Of the value.
    pub version: u64,
    /// Else any bytes.
    pub json: bool,
    /// The value; of events the snapshot and where it stands; of a CRDT what its function sees.
    pub bytes: Bytes,
}

/// What must be true of an entity for a change to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// It is absent.
    Absent,
    /// It has this version.
    Version(u64),
}

impl Condition {
    fn admits(self, found: u64) -> bool {
        match self {
            Self::None => true,
            Self::Absent => found == 0,
            Self::Version(version) => found == version,
        }
    }
}

impl Executor {
    /// The state of the function `name`, which need not be deployed: then it is looked for in `store`.
    ///
    /// # Errors
    /// [`DeskError::NoStore`].
    pub fn desk(&self, name: &str, store: Option<&str>) -> Result<Desk, DeskError> {
        let spec = match self.find(name) {
            Some(Deployed::Serving(deployment)) => deployment.function.state.clone(),
            _ => None,
        };
        let named = store.or_else(|| spec.as_ref().and_then(|spec| spec.store.as_deref()));
        let found = self.stores().get(named);
        let store = found.ok_or_else(|| DeskError::NoStore(named.unwrap_or_default().to_owned()))?;
        Ok(Desk {
            store: Arc::clone(store),
            function: name.into(),
            max_value: self.options.max_state,
            changes: self.changes.clone(),
            tasks: self.tasks.clone(),
            spec,
        })
    }
}

impl Desk {
    /// The desk of a function that is not deployed.
    #[cfg(test)]
    pub(crate) fn of_store(store: Arc<dyn StateStore>, function: &str) -> Self {
        let (changes, tasks) = (broadcast::Sender::new(1), Tasks::default());
        Self { store, function: function.into(), spec: None, max_value: 1 << 20, changes, tasks }
    }

    /// Whether a change is one of `key`.
    pub fn is_about(&self, change: &Change, key: &str) -> bool {
        change.entity.function == self.function && &*change.entity.key == key
    }

    fn entity(&self, key: &str) -> Result<Entity, DeskError> {
        if key.len() > MAX_KEY {
            return Err(DeskError::Key(key.len()));
        }
        Ok(Entity { function: Arc::clone(&self.function), key: key.into() })
    }

    async fn apply(
        &self,
        entity: &Entity,
        value: Option<(u64, Write)>,
        records: Vec<RecordChange>,
    ) -> Result<u64, StoreError> {
        let version = self.store.apply(entity, Commit { value, records, at: now() }).await?;
        let _ = self.changes.send(Change { entity: entity.clone(), version });
        Ok(version)
    }

    async fn stored(&self, entity: &Entity) -> Result<(u64, Option<Versioned>), StoreError> {
        let stored = self.store.get(entity).await?;
        if let Some(id) = stored.as_ref().and_then(|stored| sealed_with(&stored.value.bytes)) {
            let id = String::from_utf8_lossy(id);
            let what = format!("{entity:?} is sealed with the key `{id}`; start with --store-key-file");
            return Err(StoreError::Corrupt { what });
        }
        let raw = stored.as_ref().map_or(0, |stored| stored.version);
        let now = now();
        Ok((raw, stored.filter(|stored| !stored.value.expired(now))))
    }

    /// At most [`MAX_LIST`] entities whose keys begin with `prefix` and follow `after`, and whether there may be more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<Arc<str>>), DeskError> {
        let limit = limit.clamp(1, MAX_LIST);
        let mut listed = self.store.list(&self.function, prefix, after, limit + 1).await?;
        let more = listed.len() > limit;
        listed.truncate(limit);
        // Of what was read, so that a page of nothing but expired keys is not the end.
        let next = listed.last().filter(|_| more).map(|last| Arc::clone(&last.key));
        let now = now();
        listed.retain(|one| one.expires.is_none_or(|at| at > now));
        Ok((listed, next))
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// `Absent`, `Key`, those of the store.
    pub async fn get(&self, key: &str) -> Result<Shown, DeskError> {
        let entity = self.entity(key)?;
        let (_, stored) = self.stored(&entity).await?;
        let Versioned { version, value } = stored.ok_or(DeskError::Absent)?;
        let json = value.kind != Kind::Binary;
        let bytes = show(&value).ok_or_else(|| {
            DeskError::Store(StoreError::Corrupt { what: format!("{entity:?} cannot be read") })
        })?;
        Ok(Shown { version, json, bytes })
    }

    /// Stores a plain value if `condition` holds; its version, and whether it is new.
    ///
    /// # Errors
    /// `Changed`, `NotPlain`, `TooLarge`, `NotJson`, `Reserved`, `Key`, those of the store.
    pub async fn put(
        &self,
        key: &str,
        json: bool,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<(u64, bool), DeskError> {
        let size = bytes.len() as u64;
        if size > self.max_value {
            return Err(DeskError::TooLarge(size, self.max_value));
        }
        if json {
            serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
                .map_err(|error| DeskError::NotJson(format!("is not JSON: {error}")))?;
        }
        if is_reserved(&bytes) {
            return Err(DeskError::Reserved);
        }
        let ttl = self.spec.as_ref().and_then(|spec| spec.ttl);
        let ttl = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let value = Value {
            kind: if json { Kind::Json } else { Kind::Binary },
            bytes,
            schema: self.spec.as_ref().map_or(1, |spec| spec.version),
            expires: ttl.map(|ttl| now().saturating_add(ttl)),
        };
        if let Some(spec) = &self.spec
            && spec.model != crate::function::Model::Value
        {
            return Err(DeskError::NotPlain(spec.model.name()));
        }
        let entity = self.entity(key)?;
        let mut last = 0;
        for _ in 0..RETRIES {
            let (raw, stored) = self.stored(&entity).await?;
            let found = stored.as_ref().map_or(0, |stored| stored.version);
            if !condition.admits(found) {
                return Err(DeskError::Changed(found));
            }
            if let Some(kind @ (Kind::Events | Kind::Crdt)) = stored.as_ref().map(|found| found.value.kind) {
                return Err(DeskError::NotPlain(if kind == Kind::Events { "events" } else { "crdt" }));
            }
            match self.apply(&entity, Some((raw, Write::Put(value.clone()))), Vec::new()).await {
                Ok(version) => return Ok((version, stored.is_none())),
                Err(StoreError::Conflict { found, .. }) => last = found,
                Err(error) => return Err(error.into()),
            }
        }
        Err(DeskError::Changed(last))
    }

    /// Deletes what is under `key`, events and timers included, if `condition` holds; also what cannot be opened.
    ///
    /// # Errors
    /// `Absent`, `Changed`, `Key`, those of the store.
    pub async fn delete(&self, key: &str, condition: Condition) -> Result<(), DeskError> {
        let entity = self.entity(key)?;
        let mut last = 0;
        for _ in 0..RETRIES {
            // A list tells of a value without reading it; of the keys that begin so, this one is the first.
            let listed = self.store.list(&self.function, key, None, 1).await?;
            let listed = listed.into_iter().find(|one| *one.key == *key);
            let raw = listed.as_ref().map_or(0, |one| one.version);
            let (now, mut found) = (now(), 0);
            if listed.is_some_and(|one| one.expires.is_none_or(|at| at > now)) {
                found = raw;
            }
            if !condition.admits(found) {
                return Err(DeskError::Changed(found));
            }
            if found == 0 {
                return Err(DeskError::Absent);
            }
            match self.apply(&entity, Some((raw, Write::Delete)), cleared(&entity)).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { found, .. }) => last = found,
                Err(error) => return Err(error.into()),
            }
        }
        Err(DeskError::Changed(last))
    }

    /// Events of `key` from the number `from` on, at most some hundreds: their numbers and their JSON.
    ///
    /// # Errors
    /// `Key`, those of the store.
    pub async fn history(&self, key: &str, from: u64) -> Result<Vec<(u64, Bytes)>, DeskError> {
        let entity = self.entity(key)?;
        let first = event_id(&entity.key, from.max(1));
        let page = self.store.records(&self.function, &first, HISTORY_PAGE).await?;
        Ok(page.into_iter().filter_map(|record| Some((event_number(&record.id)?, record.bytes))).collect())
    }

    /// Whether `key` has a log of events.
    ///
    /// # Errors
    /// `Absent`, `NotPlain` with what it is instead, `Key`, those of the store.
    pub async fn has_history(&self, key: &str) -> Result<(), DeskError> {
        let entity = self.entity(key)?;
        match self.stored(&entity).await?.1.ok_or(DeskError::Absent)?.value.kind {
            Kind::Events => Ok(()),
            Kind::Crdt => Err(DeskError::NotPlain("crdt")),
            Kind::Json | Kind::Binary => Err(DeskError::NotPlain("value")),
        }
    }

    /// All that belongs to `key`; none: it is gone.
    ///
    /// # Errors
    /// `Key`, those of the store.
    pub async fn export(&self, key: &str) -> Result<Option<Moved>, DeskError> {
        let whole = self.whole(&self.entity(key)?).await?;
        Ok(whole.map(|(_, moved)| moved))
    }

    /// All that belongs to `entity`, and the version of its value.
    async fn whole(&self, entity: &Entity) -> Result<Option<(u64, Moved)>, DeskError> {
        for _ in 0..RETRIES {
            let (version, Some(Versioned { value, .. })) = self.stored(entity).await? else {
                return Ok(None);
            };
            let records = self.all_records(entity, Room::Event).await?;
            let events = records.into_iter().map(|record| record.bytes).collect();
            let timers = self.all_records(entity, Room::Timer).await?;
            let timers = timers.into_iter().filter_map(|record| {
                Some((String::from_utf8(record.id.sub.to_vec()).ok()?, record.due?, record.bytes))
            });
            let timers = timers.collect();
            // Value and records belong together only if nothing happened in between.
            if self.stored(entity).await?.0 == version {
                let key = Arc::clone(&entity.key);
                return Ok(Some((version, Moved { key, value, events, timers })));
            }
        }
        Err(DeskError::Changed(0))
    }

    async fn all_records(&self, entity: &Entity, room: Room) -> Result<Vec<Record>, StoreError> {
        let mut all: Vec<Record> = Vec::new();
        let mut from = RecordId { room, key: Arc::clone(&entity.key), sub: Bytes::new() };
        loop {
            let page = self.store.records(&self.function, &from, HISTORY_PAGE).await?;
            let Some(last) = page.last() else { return Ok(all) };
            // The next name in the order of bytes.
            let mut next = last.id.sub.to_vec();
            next.push(0);
            from.sub = next.into();
            all.extend(page);
        }
    }
}

fn cleared(entity: &Entity) -> Vec<RecordChange> {
    let clear = |room| RecordChange {
        id: RecordId { room, key: Arc::clone(&entity.key), sub: Bytes::new() },
        expected: None,
        write: RecordWrite::Clear,
    };
    vec![clear(Room::Event), clear(Room::Timer)]
}
