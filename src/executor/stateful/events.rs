//! The model of events: a log of records, and the snapshot that saves reading all of it.
//!
//! The value of an entity is a [`Snapshot`]: the number of the last event there is, the number of the last one that the
//! folded state counts, and that state. It is written with every event, so its version guards the log, and
//! numbers have no gaps. What events mean is the function's business.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::models::too_large;
use crate::link::message::{MAX_EVENTS, StateChange, StateKind, some};
use crate::state::{Entity, Millis, RecordChange, RecordId, RecordWrite, Room, StateStore, StoreError};

/// How many events one read asks for.
const PAGE: usize = 1000;

/// Bytes in front of the folded state.
pub(super) const HEAD: usize = 17;

/// An event's type has at most this many bytes.
const MAX_TYPE: usize = 128;

/// Where a log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The last event's number; 0: there is none.
    pub(super) last: u64,
    /// The last event that `bytes` counts.
    counted: u64,
    /// What `bytes` are; none: there is no folded state.
    pub(super) kind: StateKind,
    /// The folded state.
    pub(super) bytes: Bytes,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { last: 0, counted: 0, kind: StateKind::None, bytes: Bytes::new() }
    }
}

/// The numbers of events, both included; empty if `first` is above `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    first: u64,
    last: u64,
}

impl Wanted {
    /// Whether `events` are those.
    pub(super) fn are_all(self, events: &[Stored]) -> bool {
        let numbers = self.first..=self.last;
        events.iter().map(|event| event.number).eq(numbers)
    }
}

/// An event in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) number: u64,
    /// JSON with `type`, `data`, and `at`, the milliseconds since 1970.
    pub(super) bytes: Bytes,
}

#[derive(Deserialize)]
struct Emitted {
    r#type: String,
    #[serde(default, deserialize_with = "some")]
    data: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct Kept<'a> {
    at: Millis,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

impl Snapshot {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD + self.bytes.len());
        out.put_u64(self.last);
        out.put_u64(self.counted);
        out.put_u8(match self.kind {
            StateKind::None => 0,
            StateKind::Json => 1,
            StateKind::Binary => 2,
        });
        out.extend_from_slice(&self.bytes);
        out.freeze()
    }

    /// None: these are not the bytes of a snapshot.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let last = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let counted = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
        let kind = match bytes.get(16)? {
            0 => StateKind::None,
            1 => StateKind::Json,
            2 => StateKind::Binary,
            _ => return None,
        };
        (counted <= last).then(|| Self { last, counted, kind, bytes: bytes.slice(HEAD..) })
    }

    /// For people: the number of the last event, that of the last one in the snapshot, and the snapshot.
    pub(super) fn show(&self) -> Option<Bytes> {
        let state = match self.kind {
            StateKind::Json => serde_json::from_slice(&self.bytes).ok()?,
            StateKind::None | StateKind::Binary => serde_json::Value::Null,
        };
        let shown = serde_json::json!({ "events": self.last, "snapshot": { "events": self.counted, "state": state } });
        Some(serde_json::to_vec(&shown).ok()?.into())
    }

    /// The events that the folded state does not count.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted { first: self.counted + 1, last: self.last }
    }

    /// Where the log stands after `change`, and the records that are new; or what is wrong with it.
    pub(super) fn after(
        &self,
        entity: &Entity,
        change: &StateChange,
        bytes: &Bytes,
        most: u64,
        now: Millis,
    ) -> Result<(Self, Vec<RecordChange>), String> {
        let folded = change.snapshot.unwrap_or(0);
        if folded > bytes.len() {
            return Err("The worker sent a snapshot that is longer than all it sent.".into());
        }
        if folded as u64 > most {
            return Err(too_large(folded as u64, most));
        }
        let emitted: Vec<Emitted> = serde_json::from_slice(&bytes[folded..])
            .map_err(|error| format!("The worker sent events that cannot be read: {error}"))?;
        if emitted.len() > MAX_EVENTS {
            return Err(format!("One call emitted {} events; {MAX_EVENTS} are allowed.", emitted.len()));
        }
        let mut after = self.clone();
        let mut records = Vec::with_capacity(emitted.len());
        for Emitted { r#type, data } in emitted {
            if r#type.is_empty() || r#type.len() > MAX_TYPE {
                return Err(format!("An event's type has 1 to {MAX_TYPE} bytes, not {}.", r#type.len()));
            }
            after.last += 1;
            let kept = Kept { at: now, r#type: &r#type, data: data.as_deref() };
            let bytes = serde_json::to_vec(&kept).map_err(|error| error.to_string())?;
            // The function's part of it: what we add is not the function's fault.
            let size = r#type.len() + data.as_ref().map_or(0, |data| data.get().len());
            if size as u64 > most {
                return Err(format!("An event has {size} bytes, more than the limit of {most}."));
            }
            let write = RecordWrite::Put { bytes: bytes.into(), due: None, expires: None };
            records.push(RecordChange { id: id(&entity.key, after.last), expected: None, write });
        }
        if change.snapshot.is_some() {
            after.counted = after.last;
            after.kind = change.kind;
            after.bytes = bytes.slice(..folded);
        }
        Ok((after, records))
    }
}

/// The name of an event's record.
pub(crate) fn id(key: &Arc<str>, number: u64) -> RecordId {
    RecordId { room: Room::Event, key: Arc::clone(key), sub: Bytes::copy_from_slice(&number.to_be_bytes()) }
}

/// Removes the whole log.
pub(crate) fn clear(entity: &Entity) -> RecordChange {
    RecordChange { id: id(&entity.key, 0), expected: None, write: RecordWrite::Clear }
}

/// The events that are `wanted` and there.
pub(super) async fn read(
    store: &dyn StateStore,
    entity: &Entity,
    wanted: Wanted,
) -> Result<Vec<Stored>, StoreError> {
    let mut events = Vec::new();
    let mut next = wanted.first;
    while next <= wanted.last {
        let left = usize::try_from(wanted.last - next).unwrap_or(PAGE).saturating_add(1);
        let page = store.records(&entity.function, &id(&entity.key, next), left.min(PAGE)).await?;
        let Some(last) = page.last().and_then(|record| number(&record.id)) else { break };
        let stored = page.into_iter().filter_map(|record| {
            let number = number(&record.id)?;
            (number <= wanted.last).then_some(Stored { number, bytes: record.bytes })
        });
        events.extend(stored);
        next = last.saturating_add(1);
    }
    Ok(events)
}

/// The number in a record's name.
pub(crate) fn number(id: &RecordId) -> Option<u64> {
    Some(u64::from_be_bytes(id.sub[..].try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::StateAction;

    fn entity() -> Entity {
        Entity { function: "f".into(), key: "k".into() }
    }

    fn emit(snapshot: Option<usize>) -> StateChange {
        StateChange {
            action: StateAction::Emit,
            kind: StateKind::Json,
            length: 0,
            snapshot,
            expire: None,
            timers: Vec::new(),
        }
    }

    fn after(
        before: &Snapshot,
        snapshot: &str,
        events: &str,
    ) -> Result<(Snapshot, Vec<RecordChange>), String> {
        let folded = (!snapshot.is_empty()).then_some(snapshot.len());
        before.after(&entity(), &emit(folded), &format!("{snapshot}{events}").into(), 1000, 5)
    }

    #[test]
    fn numbers_have_no_gaps_and_snapshots_count() {
        let (one, records) =
            after(&Snapshot::default(), "", r#"[{"type":"a"},{"type":"b","data":null}]"#).unwrap();
        assert_eq!((one.last, one.counted), (2, 0));
        assert_eq!(records.iter().map(|r| number(&r.id).unwrap()).collect::<Vec<_>>(), [1, 2]);
        let RecordWrite::Put { bytes, .. } = &records[1].write else { unreachable!("events are put") };
        assert_eq!(bytes, r#"{"at":5,"type":"b","data":null}"#);
        let (two, _) = after(&one, "{}", r#"[{"type":"c","data":[1]}]"#).unwrap();
        assert_eq!((two.last, two.counted, &two.bytes[..]), (3, 3, &b"{}"[..]));
        assert_eq!(two.wanted(), Wanted { first: 4, last: 3 });
        assert!(two.wanted().are_all(&[]));
        let (three, _) = after(&two, "", r#"[{"type":"d"}]"#).unwrap();
        assert_eq!((three.last, three.counted, &three.bytes[..]), (4, 3, &b"{}"[..]));
        let four = Stored { number: 4, bytes: Bytes::new() };
        assert!(three.wanted().are_all(std::slice::from_ref(&four)));
        assert!(!three.wanted().are_all(&[]));
        assert!(!three.wanted().are_all(&[Stored { number: 5, ..four }]));
        for snapshot in [Snapshot::default(), one, two, three] {
            assert_eq!(Snapshot::decode(&snapshot.encode()), Some(snapshot));
        }
    }

    #[test]
    fn bounds_and_one_above() {
        let before = Snapshot::default();
        let many = |n| format!("[{}]", vec![r#"{"type":"a"}"#; n].join(","));
        assert_eq!(after(&before, "", &many(MAX_EVENTS)).unwrap().1.len(), MAX_EVENTS);
        assert!(after(&before, "", &many(MAX_EVENTS + 1)).is_err());
        let named = |n| format!(r#"[{{"type":"{}"}}]"#, "t".repeat(n));
        assert!(after(&before, "", &named(MAX_TYPE)).is_ok());
        assert!(after(&before, "", &named(MAX_TYPE + 1)).is_err());
        assert!(after(&before, "", &named(0)).is_err());
        let large = |n: usize| format!(r#"[{{"type":"a","data":"{}"}}]"#, "x".repeat(n));
        let room = 1000 - r#"a"""#.len();
        assert!(after(&before, "", &large(room)).is_ok());
        assert!(after(&before, "", &large(room + 1)).is_err());
        assert!(after(&before, &"1".repeat(1000), "[]").is_ok());
        assert!(after(&before, &"1".repeat(1001), "[]").is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        let before = Snapshot::default();
        for events in ["", "{}", "[1]", r#"[{"data":1}]"#, "[{]", "\u{ff}"] {
            assert!(after(&before, "", events).is_err(), "{events}");
        }
        let change = emit(Some(9));
        assert!(before.after(&entity(), &change, &"[]".into(), 1000, 5).is_err(), "longer than all there is");
        for bytes in [&[0_u8; 16][..], &[9; 17], &[0; 0]] {
            assert_eq!(Snapshot::decode(&Bytes::copy_from_slice(bytes)), None);
        }
    }
}
