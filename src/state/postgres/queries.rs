//! What is asked of the database, and what the answers mean.
//!
//! Names are their bytes. Numbers of 64 bits have a sign there: a version above is one that nobody has, and a time
//! above, in 292 million years, is kept as the last one. The order of bytea is that of bytes.

use std::num::TryFromIntError;
use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::Row;

use crate::state::{
    Commit, Entity, Kind, Listed, Millis, Record, RecordId, RecordWrite, Room, Shelf, Value, Versioned, Write,
};

/// One statement, prepared on each connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Query {
    /// A value.
    Get,
    /// A commit of a value alone.
    Commit,
    /// Any other commit.
    Apply,
    /// A record.
    Record,
    /// A page of records.
    Records,
    Due,
    List,
    Functions,
    Count,
    Sweep,
    Shelves,
}

/// In the order of [`Query`].
pub(super) const QUERIES: [&str; 11] = [
    "SELECT version, kind, schema, expires, value FROM executor.entity WHERE function = $1 AND key = $2",
    "SELECT executor.commit($1, $2, $3, $4, $5, $6, $7, $8)",
    "SELECT executor.apply($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
    "SELECT version, due, expires, value FROM executor.record
        WHERE function = $1 AND room = $2 AND key = $3 AND sub = $4",
    // The length of a value is known without reading it.
    "SELECT version, due, expires, value, sub FROM (
        SELECT *, sum(octet_length(value)) OVER (ORDER BY sub ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
            AS bytes_before
        FROM (SELECT * FROM executor.record WHERE function = $1 AND room = $2 AND key = $3 AND sub >= $4
              ORDER BY sub LIMIT $5) AS page
    ) AS sized WHERE coalesce(bytes_before, 0) < $6 ORDER BY sub",
    "SELECT first.* FROM unnest($1::bytea[]) AS asked (name) CROSS JOIN LATERAL (
        SELECT version, due, expires, value, sub, function, room, key FROM executor.record
        WHERE function = asked.name AND due IS NOT NULL ORDER BY due LIMIT $2
    ) AS first ORDER BY first.due LIMIT $2",
    "SELECT key, version, kind, octet_length(value), updated, expires FROM executor.entity
        WHERE function = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4",
    // From one name to the next in the index, instead of all that is there.
    "WITH RECURSIVE
        with_values AS (
            (SELECT function FROM executor.entity ORDER BY function LIMIT 1)
            UNION ALL
            SELECT (SELECT e.function FROM executor.entity e WHERE e.function > w.function
                    ORDER BY e.function LIMIT 1)
            FROM with_values w WHERE w.function IS NOT NULL
        ),
        with_records AS (
            (SELECT function FROM executor.record ORDER BY function LIMIT 1)
            UNION ALL
            SELECT (SELECT r.function FROM executor.record r WHERE r.function > w.function
                    ORDER BY r.function LIMIT 1)
            FROM with_records w WHERE w.function IS NOT NULL
        )
    SELECT function FROM (TABLE with_values UNION TABLE with_records) AS named
        WHERE function IS NOT NULL ORDER BY function",
    "SELECT count(*) FROM executor.entity WHERE function = $1",
    "SELECT executor.sweep($1, $2)",
    // As far as it is asked for: a search begins only when its row is wanted.
    "WITH RECURSIVE found AS (
        (SELECT function, room, key FROM executor.record WHERE (function, room, key) > ($1, $2, $3)
         ORDER BY function, room, key LIMIT 1)
        UNION ALL
        SELECT next.* FROM found CROSS JOIN LATERAL (
            SELECT r.function, r.room, r.key FROM executor.record r
            WHERE (r.function, r.room, r.key) > (found.function, found.room, found.key)
            ORDER BY r.function, r.room, r.key LIMIT 1
        ) AS next
    )
    SELECT function, room, key FROM found LIMIT $4",
];

/// The version a refused commit of a value alone found, from its answer.
pub(super) fn found(answer: i64) -> u64 {
    u64::try_from(-1 - answer).unwrap_or(0)
}

/// A version as it is asked for.
pub(super) fn held(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(-1)
}

/// A time as it is kept.
pub(super) fn kept(time: Millis) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// How a [`Kind`] is written down.
pub(super) fn encode(kind: Kind) -> i16 {
    match kind {
        Kind::Json => 0,
        Kind::Binary => 1,
        Kind::Events => 2,
        Kind::Crdt => 3,
    }
}

/// The reverse of [`encode`].
fn decode(kind: i16) -> Option<Kind> {
    [Kind::Json, Kind::Binary, Kind::Events, Kind::Crdt].into_iter().find(|known| encode(*known) == kind)
}

/// The first key that a list may hold, and one that is after all of them.
pub(super) fn range(prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let first = match after {
        Some(after) if after >= prefix => [after.as_bytes(), b"\0"].concat(),
        _ => prefix.into(),
    };
    // No byte of UTF-8 is the largest there is.
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(byte) => *byte += 1,
        None => end.push(u8::MAX),
    }
    (first, end)
}

/// The value in a row of [`Query::Get`]; `None` if no executor wrote it.
pub(super) fn value(row: &Row) -> Option<Versioned> {
    let version = u64::try_from(row.get::<_, i64>(0)).ok()?;
    let kind = decode(row.get(1))?;
    let schema = u32::try_from(row.get::<_, i64>(2)).ok()?;
    let (expires, bytes) = (time(row, 3).ok()?, Bytes::copy_from_slice(row.get(4)));
    Some(Versioned { version, value: Value { kind, bytes, schema, expires } })
}

/// The record in a row of [`Query::Record`] or one that goes on.
pub(super) fn record(row: &Row, id: RecordId) -> Option<Record> {
    let version = u64::try_from(row.get::<_, i64>(0)).ok()?;
    let bytes = Bytes::copy_from_slice(row.get(3));
    Some(Record { id, version, bytes, due: time(row, 1).ok()?, expires: time(row, 2).ok()? })
}

/// The record in a row of [`Query::Records`], which is at `from` or beside it.
pub(super) fn neighbour(row: &Row, from: &RecordId) -> Option<Record> {
    let sub = Bytes::copy_from_slice(row.get(4));
    record(row, RecordId { sub, ..from.clone() })
}

/// The record in a row of [`Query::Due`].
pub(super) fn due(row: &Row) -> Option<(Arc<str>, Record)> {
    let from = RecordId { room: room(row, 6)?, key: name(row, 7)?, sub: Bytes::new() };
    Some((name(row, 5)?, neighbour(row, &from)?))
}

/// The shelf in a row of [`Query::Shelves`].
pub(super) fn shelf(row: &Row) -> Option<Shelf> {
    Some((Entity { function: name(row, 0)?, key: name(row, 2)? }, room(row, 1)?))
}

/// The entity in a row of [`Query::List`].
pub(super) fn listed(row: &Row) -> Option<Listed> {
    Some(Listed {
        key: name(row, 0)?,
        version: u64::try_from(row.get::<_, i64>(1)).ok()?,
        kind: decode(row.get(2))?,
        bytes: u64::try_from(row.get::<_, i32>(3)).ok()?,
        updated: u64::try_from(row.get::<_, i64>(4)).ok()?,
        expires: time(row, 5).ok()?,
    })
}

pub(super) fn name(row: &Row, column: usize) -> Option<Arc<str>> {
    str::from_utf8(row.get(column)).ok().map(Into::into)
}

fn room(row: &Row, column: usize) -> Option<Room> {
    Room::from_number(u8::try_from(row.get::<_, i16>(column)).ok()?)
}

fn time(row: &Row, column: usize) -> Result<Option<Millis>, TryFromIntError> {
    row.get::<_, Option<i64>>(column).map(u64::try_from).transpose()
}

/// What [`Query::Commit`] and [`Query::Apply`] are told of a value.
pub(super) struct Told<'a> {
    pub(super) function: &'a [u8],
    pub(super) key: &'a [u8],
    pub(super) expected: Option<i64>,
    pub(super) action: i8,
    pub(super) kind: Option<i16>,
    pub(super) bytes: Option<&'a [u8]>,
    pub(super) schema: Option<i64>,
    pub(super) expires: Option<i64>,
    pub(super) at: i64,
}

impl<'a> Told<'a> {
    pub(super) fn of(entity: &'a Entity, commit: &'a Commit) -> Self {
        let (action, value) = match &commit.value {
            Some((_, Write::Put(value))) => (b'p', Some(value)),
            Some((_, Write::Delete)) => (b'd', None),
            Some((_, Write::Keep)) | None => (b'k', None),
        };
        Self {
            function: entity.function.as_bytes(),
            key: entity.key.as_bytes(),
            expected: commit.value.as_ref().map(|(expected, _)| held(*expected)),
            action: action.cast_signed(),
            kind: value.map(|value| encode(value.kind)),
            bytes: value.map(|value| &value.bytes[..]),
            schema: value.map(|value| i64::from(value.schema)),
            expires: value.and_then(|value| value.expires).map(kept),
            at: kept(commit.at),
        }
    }
}

/// What [`Query::Apply`] is told of records, one in each list.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub(super) rooms: Vec<i16>,
    pub(super) keys: Vec<&'a [u8]>,
    pub(super) subs: Vec<&'a [u8]>,
    pub(super) expected: Vec<Option<i64>>,
    pub(super) actions: Vec<i8>,
    pub(super) bytes: Vec<Option<&'a [u8]>>,
    pub(super) due: Vec<Option<i64>>,
    pub(super) expires: Vec<Option<i64>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(commit: &'a Commit) -> Self {
        let mut columns = Self::default();
        for change in &commit.records {
            let (action, content, times) = match &change.write {
                RecordWrite::Put { bytes, due, expires } => (b'p', Some(&bytes[..]), (*due, *expires)),
                RecordWrite::Delete => (b'd', None, (None, None)),
                RecordWrite::Clear => (b'c', None, (None, None)),
            };
            columns.rooms.push(i16::from(change.id.room as u8));
            columns.keys.push(change.id.key.as_bytes());
            columns.subs.push(&change.id.sub);
            columns.expected.push(change.expected.map(held));
            columns.actions.push(action.cast_signed());
            columns.bytes.push(content);
            columns.due.push(times.0.map(kept));
            columns.expires.push(times.1.map(kept));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::{QUERIES, Query, held, kept, range};

    #[test]
    fn each_query_has_its_text() {
        for (query, says) in [
            (Query::Get, "value FROM executor.entity"),
            (Query::Commit, "executor.commit("),
            (Query::Apply, "executor.apply("),
            (Query::Record, "AND sub = $4"),
            (Query::Records, "bytes_before"),
            (Query::Due, "unnest"),
            (Query::List, "octet_length"),
            (Query::Functions, "RECURSIVE"),
            (Query::Count, "count(*)"),
            (Query::Sweep, "executor.sweep("),
            (Query::Shelves, "WITH RECURSIVE found"),
        ] {
            assert!(QUERIES[query as usize].contains(says), "{query:?}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_not_others() {
        assert_eq!((held(i64::MAX as u64), held(1 << 63), held(u64::MAX)), (i64::MAX, -1, -1));
        assert_eq!((kept(7), kept(i64::MAX as u64), kept(u64::MAX)), (7, i64::MAX, i64::MAX));
    }

    #[test]
    fn ranges_hold_what_begins_alike() {
        assert_eq!(range("", None), (b"".into(), b"\xff".into()));
        assert_eq!(range("", Some("")), (b"\0".into(), b"\xff".into()));
        assert_eq!(range("a", Some("ab")), (b"ab\0".into(), b"b".into()));
        assert_eq!(range("a", Some("")), (b"a".into(), b"b".into()));
    }
}
