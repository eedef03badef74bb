//! What each model makes of stored bytes, and of what a function wants. Pure.
//!
//! | Model | Value in the store | What the worker gets | What it sends |
//! |---|---|---|---|
//! | value | the value | the same | the new one |
//! | events | [`Snapshot`] | snapshot and later events | events, at times a snapshot |
//! | crdt | the CRDT | a view | operations |

use bytes::{Bytes, BytesMut};

use super::events::{self, Snapshot, Stored, Wanted};
use super::timers;
use crate::executor::CallError;
use crate::function::{Model, StateSpec};
use crate::link::message::{StateAction, StateChange, StateIn, StateKind};
use crate::state::crdt::{Crdt, CrdtType, Ops};
use crate::state::{
    Entity, Kind, Millis, RecordChange, StoreError, Value, Versioned, Write, is_reserved, sealed_with,
};

/// The state of an entity as one call has it.
pub(super) struct Loaded {
    /// The version a commit has to name: also that of what has expired and counts as absent.
    pub(super) expected: u64,
    /// What the worker gets.
    pub(super) input: StateIn,
    /// The value, unless it is absent.
    value: Option<Value>,
    model: Holds,
}

enum Holds {
    Value,
    Events(Snapshot),
    Crdt(Crdt),
}

impl Loaded {
    pub(super) fn of(
        spec: &StateSpec,
        entity: &Entity,
        stored: Option<Versioned>,
        readonly: bool,
        now: Millis,
    ) -> Result<Self, CallError> {
        let expected = stored.as_ref().map_or(0, |stored| stored.version);
        if let Some(id) = stored.as_ref().and_then(|stored| sealed_with(&stored.value.bytes)) {
            let id = String::from_utf8_lossy(id);
            return Err(corrupt(
                entity,
                &format!("it is sealed with the key `{id}`; start with --store-key-file"),
            ));
        }
        let stored = stored.filter(|stored| !stored.value.expired(now));
        let schema = match &stored {
            Some(Versioned { value, .. }) if value.schema.max(1) > spec.version => {
                return Err(CallError::StateTooNew { found: value.schema, known: spec.version });
            }
            Some(Versioned { value, .. }) if value.schema.max(1) < spec.version => Some(value.schema.max(1)),
            _ => None,
        };
        let mut input = StateIn {
            key: std::sync::Arc::clone(&entity.key),
            version: stored.as_ref().map_or(0, |stored| stored.version),
            kind: StateKind::None,
            bytes: Bytes::new(),
            snapshot: None,
            schema,
            readonly,
        };
        let value = stored.map(|stored| stored.value);
        let model = match (&spec.model, &value) {
            (_, Some(value)) if !fits(&spec.model, value.kind) => {
                return Err(CallError::WrongModel { found: name(value.kind), model: spec.model.to_string() });
            }
            (Model::Value, Some(value)) => {
                input.kind = if value.kind == Kind::Binary { StateKind::Binary } else { StateKind::Json };
                input.bytes = value.bytes.clone();
                Holds::Value
            }
            (Model::Value, None) => Holds::Value,
            (Model::Events { .. }, value) => {
                let snapshot = value.as_ref().map_or(Ok(Snapshot::default()), |value| {
                    Snapshot::decode(&value.bytes)
                        .ok_or_else(|| corrupt(entity, "its snapshot cannot be read"))
                })?;
                input.kind = snapshot.kind;
                Holds::Events(snapshot)
            }
            (Model::Crdt(_), value) => {
                let crdt = decode(spec, entity, value.as_ref())?;
                if value.is_some() {
                    input.kind = StateKind::Json;
                    input.bytes = crdt.view().into();
                }
                Holds::Crdt(crdt)
            }
        };
        Ok(Self { expected, input, value, model })
    }

    /// The events that are needed besides.
    pub(super) fn wanted_events(&self) -> Option<Wanted> {
        match &self.model {
            Holds::Events(snapshot) => Some(snapshot.wanted()),
            _ => None,
        }
    }

    /// Puts snapshot and events together. False: some are missing.
    pub(super) fn take_events(&mut self, events: &[Stored]) -> bool {
        let Holds::Events(snapshot) = &self.model else { return false };
        if !snapshot.wanted().are_all(events) {
            return false;
        }
        let size = events.iter().map(|event| event.bytes.len() + 1).sum::<usize>() + snapshot.bytes.len() + 2;
        let mut bytes = BytesMut::with_capacity(size);
        bytes.extend_from_slice(&snapshot.bytes);
        bytes.extend_from_slice(b"[");
        for (at, event) in events.iter().enumerate() {
            if at > 0 {
                bytes.extend_from_slice(b",");
            }
            bytes.extend_from_slice(&event.bytes);
        }
        bytes.extend_from_slice(b"]");
        self.input.snapshot = Some(snapshot.bytes.len());
        self.input.bytes = bytes.freeze();
        true
    }

    /// The CRDT that the function saw.
    pub(super) fn observed(&self) -> &Crdt {
        match &self.model {
            Holds::Crdt(crdt) => crdt,
            _ => unreachable!("only asked for by what merges"),
        }
    }
}

/// What a call does to its entity.
#[derive(Default)]
pub(super) struct Effect {
    pub(super) value: ValueChange,
    pub(super) records: Vec<RecordChange>,
    pub(super) expires: Option<Millis>,
}

/// What becomes of the value.
#[derive(Default)]
pub(super) enum ValueChange {
    #[default]
    Nothing,
    Write(Write),
    Merge(Ops),
}

impl Effect {
    /// What `change` with its `bytes` means; if it is not allowed, why, for the function's log.
    pub(super) fn of(
        spec: &StateSpec,
        entity: &Entity,
        loaded: &Loaded,
        change: &StateChange,
        bytes: &Bytes,
        most: u64,
        now: Millis,
    ) -> Result<Self, String> {
        if loaded.input.readonly {
            return Err("A call of a method in [state] shared cannot change the state.".into());
        }
        let expires = match (change.expire, spec.ttl) {
            (Some(after), _) => u64::try_from(after).ok().map(|after| now.saturating_add(after)),
            (None, Some(ttl)) => Some(now.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))),
            (None, None) => None,
        };
        let mut effect =
            Self { records: timers::changes(entity, &change.timers, now)?, expires, ..Self::default() };
        let put = |kind, bytes: Bytes| {
            let ours = if kind == Kind::Events { events::HEAD } else { 0 };
            let size = (bytes.len() - ours) as u64;
            if size > most {
                return Err(too_large(size, most));
            }
            if is_reserved(&bytes) {
                return Err("The state begins with the bytes \"\\0sealed1\", which mark what is encrypted. Put another byte in front.".into());
            }
            Ok(ValueChange::Write(Write::Put(Value { kind, bytes, schema: spec.version, expires })))
        };
        effect.value = match (change.action, &loaded.model) {
            (StateAction::Set, Holds::Value) => {
                put(if change.kind == StateKind::Binary { Kind::Binary } else { Kind::Json }, bytes.clone())?
            }
            (StateAction::Delete, Holds::Value) if loaded.value.is_some() => {
                ValueChange::Write(Write::Delete)
            }
            // What has expired is absent already and is swept.
            (StateAction::Delete, Holds::Value) => ValueChange::Nothing,
            (StateAction::Emit, Holds::Events(before)) => {
                let (after, added) = before.after(entity, change, bytes, most, now)?;
                if before.last == 0 {
                    effect.records.push(events::clear(entity));
                }
                let reads = added.is_empty();
                effect.records.extend(added);
                // A snapshot alone is no change, so it does not make the value live longer.
                match (reads && change.expire.is_none(), &loaded.value) {
                    (true, Some(value)) => {
                        let (bytes, expires) = (after.encode(), value.expires);
                        let value = Value { kind: Kind::Events, bytes, schema: spec.version, expires };
                        ValueChange::Write(Write::Put(value))
                    }
                    _ => put(Kind::Events, after.encode())?,
                }
            }
            (StateAction::Merge, Holds::Crdt(crdt)) => {
                ValueChange::Merge(Ops::parse(crdt.kind(), bytes).map_err(|error| error.to_string())?)
            }
            (StateAction::Keep, _) => match (&loaded.value, change.expire) {
                (Some(value), Some(_)) => ValueChange::Write(Write::Put(Value { expires, ..value.clone() })),
                _ if effect.records.is_empty() => ValueChange::Nothing,
                // Timers follow from what was read.
                _ => ValueChange::Write(Write::Keep),
            },
            (action, _) => {
                return Err(format!(
                    "The worker sent {action:?}, which the model {} does not know.",
                    spec.model
                ));
            }
        };
        Ok(effect)
    }
}

/// A value for people, as JSON unless it is binary. None: it cannot be read.
pub(crate) fn show(value: &Value) -> Option<Bytes> {
    match value.kind {
        Kind::Json | Kind::Binary => Some(value.bytes.clone()),
        Kind::Crdt => Some(Crdt::decode(&value.bytes).ok()?.plain().into()),
        Kind::Events => Snapshot::decode(&value.bytes)?.show(),
    }
}

/// Whether `value` is what its kind says, for an entity with so many events.
pub fn is_readable(value: &Value, events: usize) -> bool {
    match value.kind {
        Kind::Json => serde_json::from_slice::<serde::de::IgnoredAny>(&value.bytes).is_ok(),
        Kind::Binary => true,
        Kind::Crdt => Crdt::decode(&value.bytes).is_ok(),
        Kind::Events => Snapshot::decode(&value.bytes).is_some_and(|snapshot| snapshot.last == events as u64),
    }
}

/// The text for a value above the limit.
pub(super) fn too_large(size: u64, most: u64) -> String {
    format!("The state has {size} bytes, more than the limit of {most}.")
}

/// The CRDT that is stored, or an empty one.
pub(super) fn crdt_of(
    spec: &StateSpec,
    entity: &Entity,
    stored: Option<Versioned>,
) -> Result<Crdt, CallError> {
    let value = stored.map(|stored| stored.value);
    if let Some(value) = &value
        && !fits(&spec.model, value.kind)
    {
        return Err(CallError::WrongModel { found: name(value.kind), model: spec.model.to_string() });
    }
    decode(spec, entity, value.as_ref())
}

fn decode(spec: &StateSpec, entity: &Entity, value: Option<&Value>) -> Result<Crdt, CallError> {
    let name = spec.model.crdt().unwrap_or_default();
    let kind: CrdtType = name.parse().map_err(|_| corrupt(entity, &format!("no type `{name}`")))?;
    let Some(value) = value else { return Ok(Crdt::new(kind)) };
    let crdt = Crdt::decode(&value.bytes).map_err(|error| corrupt(entity, &error.to_string()))?;
    if crdt.kind() != kind {
        let found = crdt.kind().to_string();
        return Err(CallError::WrongModel { found, model: spec.model.to_string() });
    }
    Ok(crdt)
}

fn fits(model: &Model, kind: Kind) -> bool {
    match model {
        Model::Value => matches!(kind, Kind::Json | Kind::Binary),
        Model::Events { .. } => kind == Kind::Events,
        Model::Crdt(_) => kind == Kind::Crdt,
    }
}

fn name(kind: Kind) -> String {
    match kind {
        Kind::Json | Kind::Binary => "value",
        Kind::Events => "events",
        Kind::Crdt => "crdt",
    }
    .to_owned()
}

pub(super) fn corrupt(entity: &Entity, why: &str) -> CallError {
    CallError::Store(StoreError::Corrupt { what: format!("{entity:?}: {why}") })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::function::OnConflict;
    use crate::state_key::KeyTemplate;

    /// What a function that has no state yet gets for setting `bytes`.
    fn set(kind: StateKind, bytes: &'static [u8]) -> Result<Effect, String> {
        let spec = StateSpec {
            key: KeyTemplate::parse("k").unwrap(),
            store: None,
            model: Model::Value,
            shared: Vec::new(),
            on_conflict: OnConflict::Retry,
            ttl: None,
            version: 1,
            retention: Duration::ZERO,
            max_entities: None,
        };
        let entity = Entity { function: "f".into(), key: "k".into() };
        let loaded = Loaded::of(&spec, &entity, None, false, 1).unwrap();
        let change = StateChange {
            action: StateAction::Set,
            kind,
            length: bytes.len(),
            snapshot: None,
            expire: None,
            timers: Vec::new(),
        };
        Effect::of(&spec, &entity, &loaded, &change, &Bytes::from_static(bytes), 100, 1)
    }

    /// They would be taken for sealed from then on, by every call and by operators.
    #[test]
    fn bytes_that_look_sealed_are_not_kept() {
        for kind in [StateKind::Binary, StateKind::Json] {
            for bytes in [&b"\0sealed1"[..], b"\0sealed1\0", b"\0sealed1\x03one and more"] {
                let Err(why) = set(kind, bytes) else { panic!("{bytes:?} was kept") };
                assert!(why.contains("sealed1"), "{why}");
            }
        }
        for bytes in [&b"\0sealed"[..], b"sealed1\0", b"\0\0sealed1\0", b""] {
            assert!(set(StateKind::Binary, bytes).is_ok(), "{bytes:?}");
        }
    }
}
