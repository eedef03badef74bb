//! What is written and read: values, records, and the commit that changes them together. Plain data.
//!
//! An entity has one *value*. Beside it a function may have *records*: what the models above need and the host keeps
//! on the function's behalf (events, recorded answers, timers). They are small, many, and found by name, by the
//! order of their names, or by the time they are due. Keeping them generic is what lets four stores support
//! every model with one contract.
//!
//! Times are milliseconds since 1970 by the clock of the executor that wrote them. Stores compare and order them, and
//! never ask a clock: what has expired is still handed out until [`super::StateStore::sweep`], and whoever reads decides.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{MAX_RECORD_BYTES, StoreError};

/// Milliseconds since 1970.
pub type Millis = u64;

/// The owner of one piece of state: one function's key.
///
/// Both parts are arbitrary text, NUL and separators included.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entity {
    /// The function's name.
    pub function: Arc<str>,
    /// The key within the function.
    pub key: Arc<str>,
}

/// What the bytes of a value are. Stores do not check that they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// JSON text.
    Json,
    /// Any bytes.
    Binary,
    /// A snapshot of events and where it stands.
    Events,
    /// A conflict-free replicated data type.
    Crdt,
}

/// What an entity holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// What the bytes are.
    pub kind: Kind,
    /// As they were put; may be empty, which is not the same as absent.
    pub bytes: Bytes,
    /// The version of the function's schema that it was written with.
    pub schema: u32,
    /// From when on it is to be treated as absent.
    pub expires: Option<Millis>,
}

impl Value {
    /// A value that does not expire, of a function without versions.
    #[must_use]
    pub fn new(kind: Kind, bytes: impl Into<Bytes>) -> Self {
        Self { kind, bytes: bytes.into(), schema: 0, expires: None }
    }

    /// Whether it is to be treated as absent.
    #[must_use]
    pub fn expired(&self, now: Millis) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

/// One value and the number of the commit that wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned {
    /// Never 0, never given to another commit in the same store.
    pub version: u64,
    /// As it was put.
    pub value: Value,
}

/// What a commit does to its entity's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Store this value, in place of any other.
    Put(Value),
    /// Make the entity absent. Deleting what is absent already is no error.
    Delete,
    /// Leave it, but check its version.
    Keep,
}

/// The kinds of records a function has beside its values. The numbers are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Room {
    /// `key`: an entity's; `sub`: the event's number, 8 bytes, big-endian.
    Event = 1,
    /// `key`: an idempotency key; `sub`: empty.
    Answer = 2,
    /// `key`: an entity's; `sub`: the timer's name.
    Timer = 3,
}

impl Room {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Event, Self::Answer, Self::Timer];

    /// The reverse of the number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|room| *room as u8 == number)
    }
}

/// The name of a record within its function.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RecordId {
    /// What it is for.
    pub room: Room,
    /// What it belongs to.
    pub key: Arc<str>,
    /// Which of those; ordered by its bytes.
    pub sub: Bytes,
}

/// A record as it was put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its name.
    pub id: RecordId,
    /// The number of the commit that wrote it.
    pub version: u64,
    /// As they were put.
    pub bytes: Bytes,
    /// When [`super::StateStore::due`] is to find it.
    pub due: Option<Millis>,
    /// From when on a sweep may remove it.
    pub expires: Option<Millis>,
}

/// What a commit does to a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordChange {
    /// Which.
    pub id: RecordId,
    /// The version it must have, 0: it must be absent; none: whatever it has.
    pub expected: Option<u64>,
    /// What to do.
    pub write: RecordWrite,
}

/// What becomes of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordWrite {
    /// Store this, in place of any other.
    Put {
        /// See [`Record`].
        bytes: Bytes,
        /// See [`Record`].
        due: Option<Millis>,
        /// See [`Record`].
        expires: Option<Millis>,
    },
    /// Remove it. Removing what is absent is no error, if nothing else was expected.
    Delete,
    /// Remove every record with this room and key, whatever its `sub`; `expected` must be none.
    Clear,
}

/// Changes that happen together or not at all, in one function: to the value of one entity and to records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The version that the entity's value must have (0: absent) and what becomes of it; none: it plays no part.
    pub value: Option<(u64, Write)>,
    /// At most [`MAX_RECORDS`], done in this order. Each record once, but that a [`RecordWrite::Clear`] may come before its
    /// records are put again. All versions are checked before anything is done.
    pub records: Vec<RecordChange>,
    /// When this is, for [`Listed::updated`].
    pub at: Millis,
}

/// How many records one commit may change.
pub const MAX_RECORDS: usize = 4096;

impl Commit {
    /// A change of a value alone, now.
    #[must_use]
    pub fn of(expected: u64, write: Write) -> Self {
        Self { value: Some((expected, write)), records: Vec::new(), at: now() }
    }

    /// A change of records alone, now.
    #[must_use]
    pub fn of_records(records: Vec<RecordChange>) -> Self {
        Self { value: None, records, at: now() }
    }

    /// The bytes of the value and of all records, without names.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let value = match &self.value {
            Some((_, Write::Put(value))) => value.bytes.len(),
            _ => 0,
        };
        self.records.iter().fold(value, |sum, change| sum.saturating_add(change.bytes()))
    }

    /// Refuses what is above [`MAX_RECORD_BYTES`] or [`MAX_RECORDS`].
    pub(super) fn check(&self, entity: &Entity) -> Result<(), StoreError> {
        let names = entity.function.len() + entity.key.len();
        let names = self.records.iter().fold(names, |sum, r| sum + r.id.key.len() + r.id.sub.len());
        let bytes = self.bytes().saturating_add(names);
        if bytes > MAX_RECORD_BYTES {
            return Err(StoreError::TooLarge { bytes, limit: MAX_RECORD_BYTES });
        }
        if self.records.len() > MAX_RECORDS {
            return Err(StoreError::TooMany { records: self.records.len(), limit: MAX_RECORDS });
        }
        Ok(())
    }

    /// The same without the caller's buffers, which may be far larger than what is in them.
    pub(super) fn detached(mut self) -> Self {
        if let Some((_, Write::Put(value))) = &mut self.value {
            value.bytes = Bytes::copy_from_slice(&value.bytes);
        }
        for change in &mut self.records {
            change.id.sub = Bytes::copy_from_slice(&change.id.sub);
            if let RecordWrite::Put { bytes, .. } = &mut change.write {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        }
        self
    }
}

impl RecordChange {
    fn bytes(&self) -> usize {
        match &self.write {
            RecordWrite::Put { bytes, .. } => bytes.len(),
            RecordWrite::Delete | RecordWrite::Clear => 0,
        }
    }
}

/// Where records are: all those of one function, room and key.
pub type Shelf = (Entity, Room);

/// Where [`super::StateStore::shelves`] goes on. Made by a store, and read by it alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cursor {
    /// After this one, in the order of function, room and key.
    After(Shelf),
    /// Where the server says.
    At(u64),
}

impl Cursor {
    /// The shelf to go on after.
    pub(super) fn shelf(from: Option<Self>) -> Option<Shelf> {
        match from {
            Some(Self::After(shelf)) => Some(shelf),
            Some(Self::At(_)) | None => None,
        }
    }

    /// Where it goes on after `page`, which is the last one unless there is as much in it as there may be.
    pub(super) fn behind(page: &[Shelf], limit: usize) -> Option<Self> {
        page.last().filter(|_| page.len() >= limit).cloned().map(Self::After)
    }
}

/// An entity in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its key.
    pub key: Arc<str>,
    /// The number of its last commit.
    pub version: u64,
    /// What its bytes are.
    pub kind: Kind,
    /// How many they are.
    pub bytes: u64,
    /// [`Commit::at`] of its last commit.
    pub updated: Millis,
    /// See [`Value`].
    pub expires: Option<Millis>,
}

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
