//! What one commit, or one sweep, does inside the writer's transaction.
//!
//! # All or nothing
//!
//! A commit shares its transaction with others, and must be able to fail alone. Nobody else writes
//! meanwhile, so it is enough to check everything before the first write: what was checked stays true, no
//! savepoint is needed, and a commit of a value alone stays one statement that checks and writes at once.
//! Any failure of `SQLite` itself fails the transaction, and with it the group.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::schema::{encode, encode_time, encode_version};
use crate::state::{Commit, Entity, Millis, RecordChange, RecordWrite, Room, Value, Write};

const INSERT: &str = "INSERT INTO entity (version, kind, schema, updated, expires, function, key, value)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING";
const UPDATE: &str =
    "UPDATE entity SET version = ?1, kind = ?2, schema = ?3, updated = ?4, expires = ?5, value = ?8
    WHERE function = ?6 AND key = ?7 AND version = ?9";
const DELETE: &str = "DELETE FROM entity WHERE function = ?1 AND key = ?2 AND version = ?3";
const VERSION: &str = "SELECT version FROM entity WHERE function = ?1 AND key = ?2";
const RECORD_VERSION: &str =
    "SELECT version FROM record WHERE function = ?1 AND room = ?2 AND key = ?3 AND sub = ?4";
const RECORD_PUT: &str = "INSERT INTO record (version, room, due, expires, function, key, sub, bytes)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    ON CONFLICT (function, room, key, sub) DO UPDATE SET
        version = excluded.version, due = excluded.due, expires = excluded.expires, bytes = excluded.bytes";
const RECORD_DELETE: &str = "DELETE FROM record WHERE function = ?1 AND room = ?2 AND key = ?3 AND sub = ?4";
const RECORD_CLEAR: &str = "DELETE FROM record WHERE function = ?1 AND room = ?2 AND key = ?3";
const EXPIRED: &str = "SELECT rowid, function, key FROM entity WHERE expires <= ?1 ORDER BY expires LIMIT ?2";
const RECORDS_EXPIRED: &str = "SELECT rowid FROM record WHERE expires <= ?1 ORDER BY expires LIMIT ?2";
const EVENTS_CLEAR: &str = "DELETE FROM record WHERE rowid IN (
    SELECT rowid FROM record WHERE function = ?1 AND room = ?2 AND key = ?3 LIMIT ?4)";
const END: &str = "UPDATE entity SET version = ?1, expires = 0, value = X'' WHERE rowid = ?2";
const SWEEP: &str = "DELETE FROM entity WHERE rowid = ?1";
const RECORD_SWEEP: &str = "DELETE FROM record WHERE rowid = ?1";

/// What became of one commit inside the transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of it was done.
    Done {
        /// As which change.
        number: u64,
        /// Whether something has this number now as its version.
        put: bool,
        /// How many records it cleared.
        cleared: usize,
    },
    /// The value is not as expected. Nothing was done.
    Conflict { expected: u64, found: u64 },
    /// A record is not as expected. Nothing was done.
    Stale { index: usize, found: u64 },
}

/// Applies `commit` as number `number`.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    entity: &Entity,
    commit: &Commit,
    number: u64,
) -> rusqlite::Result<Verdict> {
    if let Some((index, found)) = first_stale(transaction, entity, &commit.records)? {
        // Had the value been looked at first, its conflict would be the answer.
        if let Some((expected, _)) = commit.value {
            let value = version(transaction, entity)?;
            if value != expected {
                return Ok(Verdict::Conflict { expected, found: value });
            }
        }
        return Ok(Verdict::Stale { index, found });
    }
    if let Some((expected, write)) = &commit.value
        && let Some(found) = write_value(transaction, entity, *expected, write, commit.at, number)?
    {
        return Ok(Verdict::Conflict { expected: *expected, found });
    }
    let mut put = matches!(commit.value, Some((_, Write::Put(_))));
    let mut cleared = 0;
    for change in &commit.records {
        put |= matches!(change.write, RecordWrite::Put { .. });
        cleared += write_record(transaction, entity, change, number)?;
    }
    Ok(Verdict::Done { number, put, cleared })
}

/// Checks and writes in one statement; asks why only if that changed nothing. Returns the
/// version found if it is not the expected one.
fn write_value(
    transaction: &Transaction<'_>,
    entity: &Entity,
    expected: u64,
    write: &Write,
    at: Millis,
    number: u64,
) -> rusqlite::Result<Option<u64>> {
    let (function, key) = (entity.function.as_bytes(), entity.key.as_bytes());
    let held = encode_version(expected);
    let changed = match (write, held) {
        (Write::Put(Value { kind, bytes, schema, expires }), _) => {
            let (kind, at, expires) = (encode(*kind), encode_time(at), expires.map(encode_time));
            let bytes = &bytes[..];
            if held == 0 {
                let row = params![number, kind, schema, at, expires, function, key, bytes];
                transaction.prepare_cached(INSERT)?.execute(row)?
            } else {
                let row = params![number, kind, schema, at, expires, function, key, bytes, held];
                transaction.prepare_cached(UPDATE)?.execute(row)?
            }
        }
        (Write::Delete, 0) | (Write::Keep, _) => 0,
        (Write::Delete, _) => transaction.prepare_cached(DELETE)?.execute(params![function, key, held])?,
    };
    debug_assert!(changed <= 1, "one entity is one row");
    if changed == 1 {
        return Ok(None);
    }
    let found = version(transaction, entity)?;
    match write {
        Write::Delete | Write::Keep if found == expected => Ok(None),
        _ => Ok(Some(found)),
    }
}

fn version(transaction: &Transaction<'_>, entity: &Entity) -> rusqlite::Result<u64> {
    let names = [entity.function.as_bytes(), entity.key.as_bytes()];
    let found = transaction.prepare_cached(VERSION)?.query_row(names, |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(0))
}

/// The first record that is not as expected, and its version.
fn first_stale(
    transaction: &Transaction<'_>,
    entity: &Entity,
    changes: &[RecordChange],
) -> rusqlite::Result<Option<(usize, u64)>> {
    for (index, RecordChange { id, expected, .. }) in changes.iter().enumerate() {
        let Some(expected) = expected else { continue };
        let name = params![entity.function.as_bytes(), id.room as u8, id.key.as_bytes(), &id.sub[..]];
        let mut statement = transaction.prepare_cached(RECORD_VERSION)?;
        let found = statement.query_row(name, |row| row.get(0)).optional()?.unwrap_or(0);
        if found != *expected {
            return Ok(Some((index, found)));
        }
    }
    Ok(None)
}

/// Returns how many records were cleared.
fn write_record(
    transaction: &Transaction<'_>,
    entity: &Entity,
    change: &RecordChange,
    number: u64,
) -> rusqlite::Result<usize> {
    let id = &change.id;
    let (function, room, key, sub) =
        (entity.function.as_bytes(), id.room as u8, id.key.as_bytes(), &id.sub[..]);
    match &change.write {
        RecordWrite::Put { bytes, due, expires } => {
            let (due, expires) = (due.map(encode_time), expires.map(encode_time));
            let row = params![number, room, due, expires, function, key, sub, &bytes[..]];
            transaction.prepare_cached(RECORD_PUT)?.execute(row)?;
        }
        RecordWrite::Delete => {
            transaction.prepare_cached(RECORD_DELETE)?.execute(params![function, room, key, sub])?;
        }
        RecordWrite::Clear => {
            return transaction.prepare_cached(RECORD_CLEAR)?.execute(params![function, room, key]);
        }
    }
    Ok(0)
}

/// What a sweep is to remove: rows, and the entities that the first of them are.
#[derive(Debug, Default)]
pub(super) struct Expired {
    pub(super) entities: Vec<Entity>,
    entity_rows: Vec<i64>,
    record_rows: Vec<i64>,
}

impl Expired {
    /// At most `limit` values and as many records.
    pub(super) fn find(transaction: &Transaction<'_>, now: Millis, limit: usize) -> rusqlite::Result<Self> {
        let bounds = params![encode_time(now), i64::try_from(limit).unwrap_or(i64::MAX)];
        let mut expired = Self::default();
        let mut statement = transaction.prepare_cached(EXPIRED)?;
        let mut rows = statement.query(bounds)?;
        while let Some(row) = rows.next()? {
            expired.entity_rows.push(row.get(0)?);
            expired.entities.push(Entity { function: text(row, 1)?, key: text(row, 2)? });
        }
        let mut statement = transaction.prepare_cached(RECORDS_EXPIRED)?;
        let mut rows = statement.query(bounds)?;
        while let Some(row) = rows.next()? {
            expired.record_rows.push(row.get(0)?);
        }
        Ok(expired)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entity_rows.is_empty() && self.record_rows.is_empty()
    }

    /// Whether there were as many values, or records, as had been asked for.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.entity_rows.len() >= limit || self.record_rows.len() >= limit
    }

    /// Removes it all, as number `number`, or as much as goes with at most `events` events.
    pub(super) fn remove(
        &self,
        transaction: &Transaction<'_>,
        number: u64,
        events: usize,
    ) -> rusqlite::Result<Removed> {
        let mut removed = Removed::default();
        for (entity, row) in self.entities.iter().zip(&self.entity_rows) {
            let left = i64::try_from(events - removed.events).unwrap_or(i64::MAX);
            let (function, key) = (entity.function.as_bytes(), entity.key.as_bytes());
            let of_value = params![function, Room::Event as u8, key, left];
            removed.events += transaction.prepare_cached(EVENTS_CLEAR)?.execute(of_value)?;
            if removed.events >= events {
                // There may be more. Until they have gone nobody may take it for a value, even if the clock is set
                // back, and nobody may add to a log that has lost its begin.
                transaction.prepare_cached(END)?.execute(params![number, row])?;
                removed.cut = true;
                break;
            }
            transaction.prepare_cached(SWEEP)?.execute([row])?;
            removed.values += 1;
        }
        for row in &self.record_rows {
            // Changes nothing where the record was an event of a value above.
            removed.records += transaction.prepare_cached(RECORD_SWEEP)?.execute([row])?;
        }
        Ok(removed)
    }
}

/// What a step of a sweep removed.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// The first of [`Expired::entities`].
    pub(super) values: usize,
    /// Those with an expiry of their own.
    pub(super) records: usize,
    /// Of the values.
    pub(super) events: usize,
    /// It ended at the next value, which had too many.
    pub(super) cut: bool,
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    let text = row.get_ref(column)?.as_blob()?;
    let text = str::from_utf8(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
    })?;
    Ok(text.into())
}

/// All statements, for the test that none of them searches a whole table.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    INSERT,
    UPDATE,
    DELETE,
    VERSION,
    RECORD_VERSION,
    RECORD_PUT,
    RECORD_DELETE,
    RECORD_CLEAR,
    EXPIRED,
    RECORDS_EXPIRED,
    EVENTS_CLEAR,
    END,
    SWEEP,
    RECORD_SWEEP,
];
