//! What is in the database: keys, what they hold, and how it is written and read.
//!
//! ```text
//!  executor:schema                      string      the layout, 2
//!  executor:versions                    hash        last: the last version given
//!  executor:functions                   hash        function: how many values and records it has
//!  executor:state:<F>:<key>             string      a value
//!  executor:keys:<function>             sorted set  the keys of its values, in the order of bytes
//!  executor:records:<room>:<F>:<key>    hash        sub: a record
//!  executor:subs:<room>:<F>:<key>       sorted set  the subs of these records, in the order of bytes
//!  executor:due:<function>              sorted set  its records with a due time, by it: <room>:<K>:<sub>
//!  executor:expiring:values             sorted set  values that expire, by when: <F>:<key>
//!  executor:expiring:records            sorted set  records that expire, by when: <F>:<room>:<K>:<sub>
//! ```
//!
//! F and K are a function and a key after their length in bytes and a colon, which keeps `a:b` + `c` apart from
//! `a` + `b:c`. All are bytes, NUL included. What is empty is not there. A sorted set orders by doubles: times are
//! exact up to 2^53 ms there, and always in what they point to.
//!
//! A value is a head and the bytes as they were put. The head is a letter for the kind, then version, time of the
//! commit, schema and expiry (or nothing) with commas between and a space after: `j1763700000000000,1763700000000,0, `.
//! The head of a record is version, due time (or nothing) and expiry (or nothing).
//!
//! Layout 1 had values only, and heads of kind and version: `j1763700000000000 `. Both heads are read; what is put
//! gets the new one. The rest is brought up to date by `open.lua`.
//!
//! The scripts in `scripts/` write; they build the same names.

use std::num::ParseIntError;

use bytes::Bytes;

use crate::state::{Entity, Kind, Listed, Millis, Record, RecordId, Room, Shelf, Value, Versioned};

/// The layout of what we keep, in the key [`SCHEMA_KEY`].
pub(super) const SCHEMA: u32 = 2;

pub(super) const SCHEMA_KEY: &str = "executor:schema";
pub(super) const FUNCTIONS_KEY: &str = "executor:functions";

/// What the keys of records look like, in the language of SCAN.
pub(super) const ALL_RECORDS: &str = "executor:records:*";

/// More than the longest head of a value.
const MAX_HEAD: usize = 96;

/// The key of an entity's value.
pub(super) fn value_key(entity: &Entity) -> Vec<u8> {
    let (function, key) = (&entity.function, &entity.key);
    format!("executor:state:{}:{function}:{key}", function.len()).into_bytes()
}

/// The key of all records with the room and key of `id`.
pub(super) fn records_key(function: &str, id: &RecordId) -> Vec<u8> {
    let (room, length, key) = (id.room as u8, function.len(), &id.key);
    format!("executor:records:{room}:{length}:{function}:{key}").into_bytes()
}

/// The reverse of [`records_key`].
pub(super) fn shelf(name: &str) -> Option<Shelf> {
    let (number, rest) = name.strip_prefix("executor:records:")?.split_once(':')?;
    let (length, rest) = rest.split_once(':')?;
    let (function, rest) = rest.split_at_checked(length.parse().ok()?)?;
    let key = rest.strip_prefix(':')?;
    Some((Entity { function: function.into(), key: key.into() }, room(number.as_bytes())?))
}

/// The key of the keys of a function.
pub(super) fn keys_key(function: &str) -> Vec<u8> {
    format!("executor:keys:{function}").into_bytes()
}

/// Where a list of keys begins and ends, in the language of ZRANGEBYLEX.
pub(super) fn range(prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let first = match after {
        Some(after) if after >= prefix => [b"(", after.as_bytes()].concat(),
        _ => [b"[", prefix.as_bytes()].concat(),
    };
    let mut last = [b"(", prefix.as_bytes()].concat();
    match last.last_mut() {
        // No byte of UTF-8 is the largest there is.
        Some(byte) if !prefix.is_empty() => *byte += 1,
        _ => last = b"+".into(),
    }
    (first, last)
}

/// How a [`Kind`] is written down.
pub(super) fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Json => "j",
        Kind::Binary => "b",
        Kind::Events => "e",
        Kind::Crdt => "c",
    }
}

struct Head {
    kind: Kind,
    version: u64,
    updated: Millis,
    schema: u32,
    expires: Option<Millis>,
    /// Of the head itself.
    bytes: usize,
}

fn head(text: &[u8]) -> Option<Head> {
    let bytes = text.iter().take(MAX_HEAD).position(|byte| *byte == b' ')? + 1;
    let kind = [Kind::Json, Kind::Binary, Kind::Events, Kind::Crdt];
    let kind = kind.into_iter().find(|kind| letter(*kind).as_bytes() == &text[..1])?;
    let mut fields = str::from_utf8(&text[1..bytes - 1]).ok()?.split(',');
    let version: u64 = fields.next()?.parse().ok()?;
    let Some(updated) = fields.next() else {
        // Layout 1. Its versions are a clock too.
        return Some(Head { kind, version, updated: version / 1000, schema: 0, expires: None, bytes });
    };
    let (schema, expires) = (fields.next()?, fields.next()?);
    fields.next().is_none().then_some(())?;
    let (updated, schema) = (updated.parse().ok()?, schema.parse().ok()?);
    Some(Head { kind, version, updated, schema, expires: time(expires).ok()?, bytes })
}

fn time(text: &str) -> Result<Option<Millis>, ParseIntError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// The value that `commit.lua` wrote.
pub(super) fn value(raw: Vec<u8>) -> Option<Versioned> {
    let Head { kind, version, schema, expires, bytes, .. } = head(&raw)?;
    let bytes = Bytes::from(raw).slice(bytes..);
    Some(Versioned { version, value: Value { kind, bytes, schema, expires } })
}

/// An entity as `list.lua` answers it: the begin of its value, and the length of all of it.
pub(super) fn listed(key: &[u8], begin: &[u8], length: i64) -> Option<Listed> {
    let Head { kind, version, updated, expires, bytes, .. } = head(begin)?;
    let bytes = u64::try_from(length).ok()?.checked_sub(bytes as u64)?;
    Some(Listed { key: str::from_utf8(key).ok()?.into(), version, kind, bytes, updated, expires })
}

/// The record that `commit.lua` wrote.
pub(super) fn record(id: RecordId, raw: Vec<u8>) -> Option<Record> {
    let space = raw.iter().take(MAX_HEAD).position(|byte| *byte == b' ')?;
    let mut fields = str::from_utf8(&raw[..space]).ok()?.split(',');
    let (version, due, expires) = (fields.next()?, fields.next()?, fields.next()?);
    fields.next().is_none().then_some(())?;
    let (version, due, expires) = (version.parse().ok()?, time(due).ok()?, time(expires).ok()?);
    Some(Record { id, version, bytes: Bytes::from(raw).slice(space + 1..), due, expires })
}

/// The room of a number in a name.
pub(super) fn room(text: &[u8]) -> Option<Room> {
    Room::from_number(str::from_utf8(text).ok()?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::{listed, range, record, records_key, shelf, value};
    use crate::state::{Kind, RecordId, Room};

    #[test]
    fn values_of_both_layouts_are_read() {
        let old = value(b"b1763700000123456 a b".to_vec()).unwrap();
        assert_eq!(
            (old.version, old.value.kind, &old.value.bytes[..]),
            (1_763_700_000_123_456, Kind::Binary, &b"a b"[..])
        );
        assert_eq!((old.value.schema, old.value.expires), (0, None));
        let new = value(b"c7,8,9,10 ".to_vec()).unwrap();
        assert_eq!((new.version, new.value.kind, new.value.schema), (7, Kind::Crdt, 9));
        assert_eq!((new.value.expires, &new.value.bytes[..]), (Some(10), &b""[..]));
        let old = listed(b"k", b"j1763700000123456 abc", 21).unwrap();
        assert_eq!((old.updated, old.bytes), (1_763_700_000_123, 3));
        let new = listed(b"k", b"e7,8,9, abc", 11).unwrap();
        assert_eq!((new.updated, new.bytes, new.expires), (8, 3, None));
    }

    #[test]
    fn what_is_none_is_not_taken_for_one() {
        let id = || RecordId { room: Room::Event, key: "k".into(), sub: "".into() };
        for raw in [
            "",
            " ",
            "j",
            "j1",
            "j ",
            "x1 ",
            "j1,2 ",
            "j1,2,3 ",
            "j1,2,3,4,5 ",
            "j1,2,-3, ",
            "j1,,3, ",
            "j1,2,3,x ",
        ] {
            assert!(value(raw.into()).is_none(), "{raw}");
        }
        for raw in ["", " ", "1 ", "1,2 ", "1,2,3", "1,2,3,4 ", "x,, ", ",, ", "1,x, "] {
            assert!(record(id(), raw.into()).is_none(), "{raw}");
        }
        assert!(record(id(), b"1,, ".to_vec()).is_some());
        assert!(listed(b"k", b"j1 a", 2).is_none(), "shorter than its head");
    }

    #[test]
    fn the_name_of_records_says_whose_they_are() {
        for function in ["", "f", "1:f", "é:", "a\0"] {
            for (key, room) in [("", Room::Event), ("k:1", Room::Answer), ("🦀", Room::Timer)] {
                let id = RecordId { room, key: key.into(), sub: "s".into() };
                let name = String::from_utf8(records_key(function, &id)).unwrap();
                let (entity, found) = shelf(&name).unwrap();
                assert_eq!((&*entity.function, &*entity.key, found), (function, key, room));
            }
        }
        for rest in ["", "1", "1:", "1:1:", "1:1:f", "1:2:f:k", "1:x:f:k", "9:1:f:k", "1:1:é:k"] {
            assert!(shelf(&format!("executor:records:{rest}")).is_none(), "{rest}");
        }
    }

    #[test]
    fn ranges_hold_what_begins_alike() {
        let range = |prefix, after| {
            let (first, last) = range(prefix, after);
            (String::from_utf8_lossy(&first).into_owned(), String::from_utf8_lossy(&last).into_owned())
        };
        let owned = |first: &str, last: &str| (first.to_owned(), last.to_owned());
        assert_eq!(range("", None), owned("[", "+"));
        assert_eq!(range("", Some("")), owned("(", "+"));
        assert_eq!(range("a", Some("ab")), owned("(ab", "(b"));
        assert_eq!(range("a", Some("")), owned("[a", "(b"));
    }
}
