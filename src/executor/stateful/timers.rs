//! Timers as records: setting them with the state, and ending one with the call it made. Pure.
//!
//! A timer is due once. Who delivers it first moves its due time behind the end of that delivery ([`Fired::claim`]): no
//! other host takes it meanwhile, and if this one dies it is due again. The delivery's own commit removes it
//! ([`Fired::finish`]), so what the function changed and that it was called are one.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::link::message::{MAX_TIMERS, TimerChange, some};
use crate::state::{Commit, Entity, Millis, Record, RecordChange, RecordId, RecordWrite, Room};

/// The path of the requests that timers make, before the timer's name. Callers cannot use it.
pub(in crate::executor) const TIMER_PATH: &str = "/__timer/";

/// A timer's name has at most this many characters.
const MAX_NAME: usize = 128;

/// A timer's payload has at most this many bytes.
const MAX_PAYLOAD: usize = 64 << 10;

/// The furthest ahead, milliseconds (10 years).
const FURTHEST: u64 = 10 * 365 * 86_400 * 1000;

/// The first pause after a failed delivery, milliseconds. Doubled each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: u64 = 1000;

/// The longest pause after a failed delivery, milliseconds (one hour).
const LONGEST_PAUSE: u64 = 3_600_000;

/// What a timer's record holds.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Deliveries that were begun.
    attempts: u32,
    /// JSON for the request.
    #[serde(default, deserialize_with = "some")]
    payload: Option<Box<RawValue>>,
}

/// The records of the timers that a call sets and cancels; or what is wrong with one.
pub(super) fn changes(
    entity: &Entity,
    timers: &[TimerChange],
    now: Millis,
) -> Result<Vec<RecordChange>, String> {
    if timers.len() > MAX_TIMERS {
        return Err(format!("One call set or cancelled {} timers; {MAX_TIMERS} are allowed.", timers.len()));
    }
    let mut changes: Vec<RecordChange> = Vec::with_capacity(timers.len());
    for timer in timers {
        let name = &timer.name;
        if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(format!(
                "{name:?} cannot be a timer's name: use 1 to {MAX_NAME} characters without control characters."
            ));
        }
        let id = RecordId {
            room: Room::Timer,
            key: Arc::clone(&entity.key),
            sub: Bytes::copy_from_slice(name.as_bytes()),
        };
        if changes.iter().any(|change| change.id == id) {
            return Err(format!("The worker sent the timer `{name}` twice."));
        }
        let write = if timer.cancel {
            RecordWrite::Delete
        } else {
            let due = match (timer.at, timer.after) {
                (Some(at), None) => at,
                (None, Some(after)) => now.saturating_add(after),
                _ => return Err(format!("The timer `{name}` needs either a time or a duration.")),
            };
            if due > now + FURTHEST {
                return Err(format!("The timer `{name}` is more than ten years ahead."));
            }
            let size = timer.payload.as_ref().map_or(0, |payload| payload.get().len());
            if size > MAX_PAYLOAD {
                return Err(format!(
                    "The payload of the timer `{name}` has {size} bytes, more than the limit of {MAX_PAYLOAD}."
                ));
            }
            put(&Kept { attempts: 0, payload: timer.payload.clone() }, due)
        };
        changes.push(RecordChange { id, expected: None, write });
    }
    Ok(changes)
}

fn put(kept: &Kept, due: Millis) -> RecordWrite {
    let bytes = serde_json::to_vec(kept).expect("numbers and JSON always serialize");
    RecordWrite::Put { bytes: bytes.into(), due: Some(due), expires: None }
}

/// When the first of these is due, if one is a timer.
pub(in crate::executor) fn pending_of(records: &[RecordChange]) -> Option<Millis> {
    let due = records.iter().filter_map(|change| match &change.write {
        RecordWrite::Put { due, .. } if change.id.room == Room::Timer => *due,
        _ => None,
    });
    due.min()
}

/// A timer that is being delivered.
pub(in crate::executor) struct Fired {
    id: RecordId,
    /// Of the claim.
    version: u64,
    kept: Kept,
}

impl Fired {
    /// What claims `record` until `until`, and what to make of it when the commit of that has a version. None: it cannot be
    /// read.
    pub(in crate::executor) fn claim(record: &Record, until: Millis) -> Option<(Commit, Self)> {
        let mut kept: Kept = serde_json::from_slice(&record.bytes).ok()?;
        kept.attempts = kept.attempts.saturating_add(1);
        let write = put(&kept, until);
        let change = RecordChange { id: record.id.clone(), expected: Some(record.version), write };
        Some((Commit::of_records(vec![change]), Self { id: record.id.clone(), version: 0, kept }))
    }

    /// It was claimed by the commit of this number.
    pub(in crate::executor) fn claimed(&mut self, version: u64) {
        self.version = version;
    }

    /// The entity's key.
    pub(in crate::executor) fn key(&self) -> Arc<str> {
        Arc::clone(&self.id.key)
    }

    /// The timer's name.
    pub(in crate::executor) fn name(&self) -> String {
        String::from_utf8_lossy(&self.id.sub).into_owned()
    }

    /// Which delivery this is, from 1.
    pub(in crate::executor) fn attempt(&self) -> u32 {
        self.kept.attempts
    }

    /// The request's body.
    pub(in crate::executor) fn payload(&self) -> Bytes {
        self.kept
            .payload
            .as_ref()
            .map_or_else(Bytes::new, |json| Bytes::copy_from_slice(json.get().as_bytes()))
    }

    /// Ends the timer together with `records`; one of the same name that they set anew lives.
    pub(super) fn finish(&self, entity: &Entity, records: &mut Vec<RecordChange>) {
        debug_assert_eq!(entity.key, self.id.key, "a timer is about its own entity");
        let expected = Some(self.version);
        match records.iter_mut().find(|change| change.id == self.id) {
            Some(anew) => anew.expected = expected,
            None => records.push(RecordChange { id: self.id.clone(), expected, write: RecordWrite::Delete }),
        }
    }

    /// Sets it again after a delivery that failed, and for when: `at_once` if that was nobody's fault.
    pub(in crate::executor) fn again(&self, now: Millis, at_once: bool) -> (Commit, Millis) {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.kept.attempts.saturating_sub(1).min(20));
        let due = if at_once { now } else { now.saturating_add(doubled.min(LONGEST_PAUSE)) };
        let write = put(&self.kept, due);
        let change = RecordChange { id: self.id.clone(), expected: Some(self.version), write };
        (Commit::of_records(vec![change]), due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity() -> Entity {
        Entity { function: "f".into(), key: "k".into() }
    }

    fn timer(name: &str) -> TimerChange {
        TimerChange { name: name.into(), after: Some(1000), at: None, payload: None, cancel: false }
    }

    fn set(timers: &[TimerChange]) -> Result<Vec<RecordChange>, String> {
        changes(&entity(), timers, 5000)
    }

    #[test]
    fn bounds_and_one_above() {
        let many = |n: usize| (0..n).map(|n| timer(&n.to_string())).collect::<Vec<_>>();
        assert_eq!(set(&many(MAX_TIMERS)).unwrap().len(), MAX_TIMERS);
        assert!(set(&many(MAX_TIMERS + 1)).is_err());
        assert!(set(&[timer(&"\u{1f600}".repeat(MAX_NAME))]).is_ok());
        for name in [String::new(), "n".repeat(MAX_NAME + 1), "a\nb".into()] {
            assert!(set(&[timer(&name)]).is_err(), "{name:?}");
        }
        let payload = |size: usize| {
            let text = format!("\"{}\"", "x".repeat(size - 2));
            TimerChange { payload: Some(RawValue::from_string(text).unwrap()), ..timer("t") }
        };
        assert!(set(&[payload(MAX_PAYLOAD)]).is_ok());
        assert!(set(&[payload(MAX_PAYLOAD + 1)]).is_err());
        let ahead = |after| TimerChange { after: Some(after), ..timer("t") };
        assert_eq!(pending_of(&set(&[ahead(FURTHEST)]).unwrap()), Some(5000 + FURTHEST));
        for after in [FURTHEST + 1, u64::MAX] {
            assert!(set(&[ahead(after)]).is_err());
        }
        for wrong in [TimerChange { after: None, ..timer("t") }, TimerChange { at: Some(1), ..timer("t") }] {
            assert!(set(&[wrong]).is_err(), "either a time or a duration");
        }
        assert!(set(&[timer("t"), timer("t")]).is_err(), "one entry per name");
        let at = TimerChange { after: None, at: Some(1), ..timer("t") };
        assert_eq!(pending_of(&set(&[at]).unwrap()), Some(1), "the past is due at once");
    }

    #[test]
    fn a_delivery_ends_its_timer_or_tries_again_later_and_later() {
        let write = put(&Kept { attempts: 0, payload: None }, 10);
        let RecordWrite::Put { bytes, due, .. } = write else { unreachable!("it was put") };
        let id = RecordId { room: Room::Timer, key: "k".into(), sub: "t".into() };
        let mut record = Record { id: id.clone(), version: 7, bytes, due, expires: None };
        let mut pauses = Vec::new();
        for _ in 0..15 {
            let (claim, mut fired) = Fired::claim(&record, 99).unwrap();
            assert_eq!(claim.records[0].expected, Some(record.version));
            fired.claimed(8);
            let mut records = Vec::new();
            fired.finish(&entity(), &mut records);
            let gone = RecordChange { id: id.clone(), expected: Some(8), write: RecordWrite::Delete };
            assert_eq!(records, [gone]);
            // Set anew by its own delivery, it lives.
            let mut records = set(&[timer("t")]).unwrap();
            fired.finish(&entity(), &mut records);
            assert_eq!((records.len(), records[0].expected), (1, Some(8)));
            assert!(matches!(records[0].write, RecordWrite::Put { .. }));
            let (again, due) = fired.again(1000, false);
            assert_eq!(fired.again(1000, true).1, 1000);
            pauses.push(due - 1000);
            let RecordWrite::Put { bytes, .. } = again.records[0].write.clone() else {
                unreachable!("it was put")
            };
            record.bytes = bytes;
        }
        assert_eq!(pauses[..4], [1000, 2000, 4000, 8000]);
        assert_eq!(pauses[12..], [LONGEST_PAUSE; 3]);
        record.bytes = "garbage".into();
        assert!(Fired::claim(&record, 99).is_none());
    }
}
