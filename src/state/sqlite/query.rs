//! What can be asked of the database, each question within one read transaction.
//!
//! Every question is bounded: by the rows it may look at, or by the one row it is about. What takes
//! longer is asked in several questions, so that others come in between.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::schema::{classify, decode, encode_time};
use crate::state::{
    Entity, Listed, MAX_PAGE_BYTES, Millis, Record, RecordId, Room, Shelf, StoreError, Value, Versioned,
};

const VALUE: &str =
    "SELECT version, kind, schema, expires, value FROM entity WHERE function = ?1 AND key = ?2";
const RECORD: &str = "SELECT version, due, expires, bytes FROM record
    WHERE function = ?1 AND room = ?2 AND key = ?3 AND sub = ?4";
const RECORDS: &str = "SELECT version, due, expires, bytes, sub FROM record
    WHERE function = ?1 AND room = ?2 AND key = ?3 AND sub >= ?4 ORDER BY sub LIMIT ?5";
const DUE: &str = "SELECT version, due, expires, bytes, sub, room, key FROM record
    WHERE function = ?1 AND due <= ?2 ORDER BY due LIMIT ?3";
const LIST: &str = "SELECT key, version, kind, length(value), updated, expires FROM entity
    WHERE function = ?1 AND key >= ?2 AND key < ?3 ORDER BY key LIMIT ?4";
const COUNT: &str = "SELECT count(*), max(key) FROM (
    SELECT key FROM entity WHERE function = ?1 AND key >= ?2 ORDER BY key LIMIT ?3)";
const NEXT_SHELF: &str = "SELECT function, room, key FROM record
    WHERE (function, room, key) > (?1, ?2, ?3) ORDER BY function, room, key LIMIT 1";
const NEXT_FUNCTION: [&str; 2] = [
    "SELECT function FROM entity WHERE function >= ?1 ORDER BY function LIMIT 1",
    "SELECT function FROM record WHERE function >= ?1 ORDER BY function LIMIT 1",
];

/// The database at one moment.
pub(super) struct View<'a> {
    pub(super) transaction: &'a Transaction<'a>,
    /// The last number given to a change by then.
    pub(super) stamp: u64,
}

/// Some of the keys of a function, in the order of bytes.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) function: Arc<str>,
    /// The first, if it is there.
    pub(super) from: Vec<u8>,
    /// After the last.
    end: Vec<u8>,
}

impl Keys {
    /// Those that begin with `prefix` and follow `after`.
    pub(super) fn new(function: &str, prefix: &str, after: Option<&str>) -> Self {
        let from = after.map(|after| following(after.as_bytes())).unwrap_or_default();
        let mut end = prefix.as_bytes().to_vec();
        // No byte of UTF-8 is 0xff, so there is always one more, and with 0xff none begins.
        match end.last_mut() {
            Some(last) => *last += 1,
            None => end.push(0xff),
        }
        Self { function: function.into(), from: from.max(prefix.as_bytes().to_vec()), end }
    }
}

/// What comes next after `name` in the order of bytes.
pub(super) fn following(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}

impl View<'_> {
    /// The value of `entity`.
    pub(super) fn value(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        let mut statement = self.transaction.prepare_cached(VALUE).map_err(failed)?;
        let mut rows =
            statement.query([entity.function.as_bytes(), entity.key.as_bytes()]).map_err(failed)?;
        let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
        let schema: i64 = row.get(2).map_err(failed)?;
        let schema = u32::try_from(schema).map_err(|_| corrupt("the schema of a value", schema))?;
        let value = Value { kind: kind(row, 1)?, bytes: bytes(row, 4)?, schema, expires: time(row, 3)? };
        Ok(Some(Versioned { version: self.version(row, 0)?, value }))
    }

    /// One record.
    pub(super) fn record(&self, function: &str, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let mut statement = self.transaction.prepare_cached(RECORD).map_err(failed)?;
        let name = params![function.as_bytes(), id.room as u8, id.key.as_bytes(), &id.sub[..]];
        let mut rows = statement.query(name).map_err(failed)?;
        let row = rows.next().map_err(failed)?;
        row.map(|row| self.decode_record(row, id.clone())).transpose()
    }

    /// Records of one room and key from `from` on.
    pub(super) fn records(
        &self,
        function: &str,
        from: &RecordId,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut statement = self.transaction.prepare_cached(RECORDS).map_err(failed)?;
        let (room, key, sub) = (from.room as u8, from.key.as_bytes(), &from.sub[..]);
        let name = params![function.as_bytes(), room, key, sub, rows_at_most(limit)];
        let mut rows = statement.query(name).map_err(failed)?;
        let (mut page, mut size) = (Vec::new(), 0);
        while size < MAX_PAGE_BYTES
            && let Some(row) = rows.next().map_err(failed)?
        {
            let id = RecordId { room: from.room, key: Arc::clone(&from.key), sub: bytes(row, 4)? };
            let record = self.decode_record(row, id)?;
            size += record.bytes.len();
            page.push(record);
        }
        Ok(page)
    }

    /// The earliest of what has a due time, in order.
    pub(super) fn due(
        &self,
        functions: &[Arc<str>],
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Record)>, StoreError> {
        let mut statement = self.transaction.prepare_cached(DUE).map_err(failed)?;
        let mut earliest: Vec<(Arc<str>, Record)> = Vec::new();
        for function in functions {
            // Once there are enough, only what is earlier than the last of them.
            let last = earliest.last().filter(|_| earliest.len() >= limit);
            let until = last.and_then(|(_, last)| last.due).map_or(i64::MAX, |due| encode_time(due) - 1);
            let name = params![function.as_bytes(), until, rows_at_most(limit)];
            let mut rows = statement.query(name).map_err(failed)?;
            let before = earliest.len();
            while let Some(row) = rows.next().map_err(failed)? {
                let id = RecordId { room: room(row, 5)?, key: text(row, 6)?, sub: bytes(row, 4)? };
                earliest.push((Arc::clone(function), self.decode_record(row, id)?));
            }
            if earliest.len() > before {
                earliest.sort_by_key(|(_, record)| record.due);
                earliest.truncate(limit);
            }
        }
        Ok(earliest)
    }

    /// The first `limit` of `keys` that are there.
    pub(super) fn list(&self, keys: &Keys, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut statement = self.transaction.prepare_cached(LIST).map_err(failed)?;
        let range = params![keys.function.as_bytes(), keys.from, keys.end, rows_at_most(limit)];
        let mut rows = statement.query(range).map_err(failed)?;
        let mut listed = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            listed.push(Listed {
                key: text(row, 0)?,
                version: self.version(row, 1)?,
                kind: kind(row, 2)?,
                bytes: row.get(3).map_err(failed)?,
                updated: time(row, 4)?.unwrap_or(0),
                expires: time(row, 5)?,
            });
        }
        Ok(listed)
    }

    /// How many of at most `limit` keys from `from` on are there, and the last of them.
    pub(super) fn count(
        &self,
        function: &str,
        from: &[u8],
        limit: usize,
    ) -> Result<(usize, Option<Vec<u8>>), StoreError> {
        let count = || {
            let mut statement = self.transaction.prepare_cached(COUNT)?;
            let range = params![function.as_bytes(), from, rows_at_most(limit)];
            statement.query_row(range, |row| Ok((row.get(0)?, row.get(1)?)))
        };
        count().map_err(failed)
    }

    /// At most `limit` shelves that follow `after`. Goes from one to the next, not from row to row.
    pub(super) fn shelves(&self, after: Option<&Shelf>, limit: usize) -> Result<Vec<Shelf>, StoreError> {
        let mut statement = self.transaction.prepare_cached(NEXT_SHELF).map_err(failed)?;
        let mut shelves: Vec<Shelf> = Vec::new();
        while shelves.len() < limit {
            // No room has the number 0.
            let (function, number, key) = match shelves.last().or(after) {
                Some((entity, room)) => (entity.function.as_bytes(), *room as u8, entity.key.as_bytes()),
                None => (&[][..], 0, &[][..]),
            };
            let mut rows = statement.query(params![function, number, key]).map_err(failed)?;
            let Some(row) = rows.next().map_err(failed)? else { break };
            shelves.push((Entity { function: text(row, 0)?, key: text(row, 2)? }, room(row, 1)?));
        }
        Ok(shelves)
    }

    /// At most `limit` names of functions from `from` on. Goes from name to name, not from row to row.
    pub(super) fn functions(&self, mut from: Vec<u8>, limit: usize) -> Result<Vec<Arc<str>>, StoreError> {
        let mut names = Vec::new();
        while names.len() < limit {
            let mut next: Option<Arc<str>> = None;
            for sql in NEXT_FUNCTION {
                let mut statement = self.transaction.prepare_cached(sql).map_err(failed)?;
                let found =
                    statement.query_row([&from], |row| Ok(text(row, 0))).optional().map_err(failed)?;
                let found = found.transpose()?;
                next = match (next, found) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            }
            let Some(next) = next else { break };
            from = following(next.as_bytes());
            names.push(next);
        }
        Ok(names)
    }

    /// `row` begins with version, due, expires, bytes.
    fn decode_record(&self, row: &Row<'_>, id: RecordId) -> Result<Record, StoreError> {
        let version = self.version(row, 0)?;
        Ok(Record { id, version, bytes: bytes(row, 3)?, due: time(row, 1)?, expires: time(row, 2)? })
    }

    fn version(&self, row: &Row<'_>, column: usize) -> Result<u64, StoreError> {
        let number: i64 = row.get(column).map_err(failed)?;
        let version = u64::try_from(number).ok().filter(|version| (1..=self.stamp).contains(version));
        version.ok_or_else(|| corrupt(&format!("a version, of {} given,", self.stamp), number))
    }
}

fn rows_at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn kind(row: &Row<'_>, column: usize) -> Result<crate::state::Kind, StoreError> {
    let number = row.get(column).map_err(failed)?;
    decode(number).ok_or_else(|| corrupt("the kind of a value", number))
}

fn room(row: &Row<'_>, column: usize) -> Result<Room, StoreError> {
    let number: i64 = row.get(column).map_err(failed)?;
    let known = u8::try_from(number).ok().and_then(Room::from_number);
    known.ok_or_else(|| corrupt("the room of a record", number))
}

fn time(row: &Row<'_>, column: usize) -> Result<Option<Millis>, StoreError> {
    let Some(at) = row.get::<_, Option<i64>>(column).map_err(failed)? else { return Ok(None) };
    Millis::try_from(at).map(Some).map_err(|_| corrupt("a time", at))
}

fn bytes(row: &Row<'_>, column: usize) -> Result<Bytes, StoreError> {
    let bytes = || Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?));
    bytes().map_err(failed)
}

fn text(row: &Row<'_>, column: usize) -> Result<Arc<str>, StoreError> {
    let blob = || Ok(row.get_ref(column)?.as_blob()?);
    let text = str::from_utf8(blob().map_err(failed)?);
    text.map(Into::into).map_err(|_| StoreError::Corrupt { what: "a name is not UTF-8".to_owned() })
}

fn failed(error: rusqlite::Error) -> StoreError {
    classify("reading state", error)
}

fn corrupt(what: &str, number: i64) -> StoreError {
    StoreError::Corrupt { what: format!("{what} is {number}") }
}

/// All statements, for the test that none of them searches a whole table.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] =
    &[VALUE, RECORD, RECORDS, DUE, LIST, COUNT, NEXT_SHELF, NEXT_FUNCTION[0], NEXT_FUNCTION[1]];
