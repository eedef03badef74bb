//! The `[state]` table: where a function's state lives and by which rules. Plain data.

use std::fmt;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use toml::Spanned;

use crate::state_key::KeyTemplate;
use crate::units;

/// How long a recorded answer is kept when the function does not say.
pub(super) const RETENTION: Duration = Duration::from_hours(24);

/// The CRDT types there are, as `type` names them.
pub const CRDT_TYPES: [&str; 8] =
    ["g-counter", "pn-counter", "g-set", "or-set", "lww-register", "flag", "or-map", "vote"];

/// How a function keeps state.
#[derive(Debug, Clone)]
pub struct StateSpec {
    /// How a request names its entity.
    pub key: KeyTemplate,
    /// The store's name; none: the default one.
    pub store: Option<String>,
    /// What state is.
    pub model: Model,
    /// Methods whose calls run in parallel on a view that they cannot change.
    pub shared: Vec<Method>,
    /// What happens when another host was faster.
    pub on_conflict: OnConflict,
    /// How long a value lives after it was written; none: for ever.
    pub ttl: Option<Duration>,
    /// The version of the schema, from 1.
    pub version: u32,
    /// How long recorded answers of requests with an `Idempotency-Key` are kept.
    pub retention: Duration,
    /// Entities at the most; none: as many as the store has room for.
    pub max_entities: Option<u64>,
}

/// What state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    /// One value.
    Value,
    /// A log of events and what they fold to.
    Events {
        /// After how many events a snapshot is kept.
        snapshot_every: u32,
    },
    /// A conflict-free replicated data type, one of [`CRDT_TYPES`].
    Crdt(&'static str),
}

impl Model {
    /// As in `function.toml`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Events { .. } => "events",
            Self::Crdt(_) => "crdt",
        }
    }

    /// The CRDT's type.
    pub fn crdt(&self) -> Option<&'static str> {
        if let Self::Crdt(kind) = self { Some(kind) } else { None }
    }

    /// 0: there are no events.
    pub fn snapshot_every(&self) -> u32 {
        if let Self::Events { snapshot_every } = self { *snapshot_every } else { 0 }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.crdt().unwrap_or(self.name()))
    }
}

/// What happens to a call whose state was changed by another host meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// It runs again with fresh state.
    #[default]
    Retry,
    /// Its caller is told.
    Fail,
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct StateTable {
    pub(super) key: Spanned<String>,
    #[serde(default)]
    store: Option<Spanned<String>>,
    #[serde(default)]
    model: Option<Spanned<String>>,
    #[serde(default, rename = "type")]
    kind: Option<Spanned<String>>,
    #[serde(default)]
    snapshot_every: Option<Spanned<u32>>,
    #[serde(default)]
    shared: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    on_conflict: OnConflict,
    #[serde(default)]
    ttl: Option<Spanned<String>>,
    #[serde(default)]
    version: Option<Spanned<u32>>,
    #[serde(default)]
    idempotency: Option<Spanned<String>>,
    #[serde(default)]
    max_entities: Option<Spanned<u64>>,
}

/// Where in the text, and what is wrong there.
type Fault = (Option<usize>, String);

impl StateTable {
    pub(super) fn check(self) -> Result<StateSpec, Fault> {
        let at = self.key.span().start;
        let key = KeyTemplate::parse(self.key.get_ref()).map_err(|error| (Some(at), error))?;
        let model = model(self.model.as_ref(), self.kind.as_ref(), self.snapshot_every.as_ref(), at)?;
        if let (Model::Crdt(_), Some(version)) = (&model, &self.version) {
            let text = "a CRDT has no version: its type says what it is, and migrate cannot replace a whole that others merge into";
            return Err((Some(version.span().start), text.into()));
        }
        let version = within(self.version.as_ref(), "version", 1, 1, 1_000_000)?;
        let max_entities =
            self.max_entities.as_ref().map(|n| within(Some(n), "max-entities", 1, 1, 1 << 40)).transpose()?;
        let year = Duration::from_hours(24 * 365);
        Ok(StateSpec {
            key,
            store: self.store.map(store).transpose()?,
            model,
            shared: self.shared.map_or(Ok(Vec::new()), shared)?,
            on_conflict: self.on_conflict,
            ttl: self.ttl.map(|text| duration(&text, "ttl", 10 * year)).transpose()?,
            version,
            retention: self.idempotency.map_or(Ok(RETENTION), |text| duration(&text, "idempotency", year))?,
            max_entities,
        })
    }
}

fn model(
    model: Option<&Spanned<String>>,
    kind: Option<&Spanned<String>>,
    snapshot_every: Option<&Spanned<u32>>,
    at: usize,
) -> Result<Model, Fault> {
    let name = model.map_or("value", |model| model.get_ref());
    let unfit = |what: Option<usize>, text: String| what.map_or(Ok(()), |at| Err((Some(at), text)));
    let types = CRDT_TYPES.join(", ");
    if name != "crdt" {
        let text = format!("type belongs to model = \"crdt\", not to \"{name}\"");
        unfit(kind.map(|kind| kind.span().start), text)?;
    }
    if name != "events" {
        let text = format!("snapshot-every belongs to model = \"events\", not to \"{name}\"");
        unfit(snapshot_every.map(|every| every.span().start), text)?;
    }
    match name {
        "value" => Ok(Model::Value),
        "events" => {
            let snapshot_every = within(snapshot_every, "snapshot-every", 100, 1, 10_000)?;
            Ok(Model::Events { snapshot_every })
        }
        "crdt" => {
            let Some(kind) = kind else {
                let at = model.map_or(at, |model| model.span().start);
                return Err((Some(at), format!("model = \"crdt\" needs a type, one of: {types}")));
            };
            let known = CRDT_TYPES.into_iter().find(|known| known == kind.get_ref());
            let text = || format!("`{}` is not a CRDT type; there are: {types}", kind.get_ref());
            known.map(Model::Crdt).ok_or_else(|| (Some(kind.span().start), text()))
        }
        other => {
            let text = format!("`{other}` is not a state model; write value, events or crdt");
            Err((model.map(|model| model.span().start), text))
        }
    }
}

fn within<T: Copy + PartialOrd + fmt::Display>(
    value: Option<&Spanned<T>>,
    what: &str,
    default: T,
    low: T,
    high: T,
) -> Result<T, Fault> {
    match value {
        None => Ok(default),
        Some(value) if (low..=high).contains(value.get_ref()) => Ok(*value.get_ref()),
        Some(value) => {
            let text = format!("{what} must be from {low} to {high}, not {}", value.get_ref());
            Err((Some(value.span().start), text))
        }
    }
}

fn duration(text: &Spanned<String>, what: &str, most: Duration) -> Result<Duration, Fault> {
    let fault = |message: String| (Some(text.span().start), format!("{what}: {message}"));
    let value = units::duration(text.get_ref()).map_err(fault)?;
    if value.is_zero() || value > most {
        let days = most.as_secs() / 86_400;
        return Err(fault(format!("`{}` must be longer than nothing and at most {days}d", text.get_ref())));
    }
    Ok(value)
}

fn store(name: Spanned<String>) -> Result<String, Fault> {
    if !is_store_name(name.get_ref()) {
        let text = format!("`{}` cannot be a store's name: use letters, digits, - and _", name.get_ref());
        return Err((Some(name.span().start), text));
    }
    Ok(name.into_inner())
}

/// Whether `--store NAME=URL` may have this name: 1 to 32 letters, digits, `-` and `_`.
pub fn is_store_name(name: &str) -> bool {
    let sane = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=32).contains(&name.len()) && name.bytes().all(sane)
}

fn shared(methods: Spanned<Vec<String>>) -> Result<Vec<Method>, Fault> {
    let at = methods.span().start;
    let method = |name: String| match Method::from_bytes(name.as_bytes()) {
        Ok(method) if method.as_str().bytes().all(|b| b.is_ascii_uppercase()) => Ok(method),
        _ => {
            Err((Some(at), format!("`{name}` is not an HTTP method; write for example [\"GET\", \"HEAD\"]")))
        }
    };
    methods.into_inner().into_iter().map(method).collect()
}
