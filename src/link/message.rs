//! The JSON inside frames, and how a CALL is laid out. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::execution::{Body, Request};
use crate::headers::{FromFunction, Joined};
use crate::link::frame::{self, Kind, MAX_INLINE};

/// The link's protocol version.
pub const PROTOCOL: u32 = 1;

/// What a worker says first.
#[derive(Debug, Deserialize)]
pub struct Hello {
    /// Must be [`PROTOCOL`].
    pub protocol: u32,
    /// The one-time token.
    pub token: String,
    /// Language, for logs.
    #[serde(default)]
    pub runtime: String,
    /// The language's version, for logs.
    #[serde(default)]
    pub version: String,
}

/// INIT: which function to load.
#[derive(Debug, Serialize)]
pub struct InitMessage<'a> {
    /// The function's name.
    pub name: &'a str,
    /// Where its code is, as the worker sees it.
    pub directory: &'a str,
    /// The file with the handler, relative to `directory`.
    pub entrypoint: &'a str,
    /// Its environment.
    pub env: &'a BTreeMap<String, String>,
    /// Calls at once, at the most.
    pub concurrency: u32,
    /// Load only, run no hook.
    pub info_only: bool,
    /// Sizes the worker checks early, so that the function hears of them.
    pub limits: Limits,
    /// How the function keeps state; none: it is stateless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<InitState<'a>>,
}

/// How a function keeps state.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct InitState<'a> {
    /// `value`, `events` or `crdt`.
    pub model: &'a str,
    /// Of a CRDT; else empty.
    pub r#type: &'a str,
    /// Of its schema.
    pub version: u32,
    /// After how many events a snapshot is wanted.
    pub snapshot_every: u32,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// A response that is not streamed.
    pub response: u64,
    /// One entity's value.
    pub state: u64,
    /// Events of one call.
    pub events: usize,
    /// Timers set or cancelled by one call.
    pub timers: usize,
}

impl Limits {
    /// Sizes that are settings, and numbers that are fixed.
    pub fn new(response: u64, state: u64) -> Self {
        Self { response, state, events: MAX_EVENTS, timers: MAX_TIMERS }
    }
}

/// Events that one call may emit.
pub const MAX_EVENTS: usize = 1000;

/// Timers that one call may set or cancel.
pub const MAX_TIMERS: usize = 100;

/// READY.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ReadyMessage {
    /// What the function says of itself.
    #[serde(default)]
    pub info: Option<serde_json::Value>,
    /// The hooks it has.
    #[serde(default)]
    pub hooks: Vec<String>,
}

/// FAILED and ERROR.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Fault {
    /// See the lists in `runtimes/README.md`.
    #[serde(default)]
    pub kind: String,
    /// One line.
    #[serde(default)]
    pub message: String,
    /// Several, for the function's log.
    #[serde(default)]
    pub stack: String,
}

/// The head of a RESULT.
#[derive(Debug, Deserialize)]
pub struct ResultHead {
    /// HTTP status.
    pub status: u16,
    /// Cleaned headers.
    #[serde(default)]
    pub headers: FromFunction,
    /// What happens to the state.
    #[serde(default)]
    pub state: Option<StateChange>,
    /// The body goes on in DATA frames.
    #[serde(default)]
    pub stream: bool,
    /// Length of a streamed body, if known.
    #[serde(default)]
    pub length: Option<u64>,
}

/// The state's change in a RESULT.
#[derive(Debug, Clone, Deserialize)]
pub struct StateChange {
    /// What happens to the value.
    pub action: StateAction,
    /// What the bytes are, or those of the snapshot.
    #[serde(default)]
    pub kind: StateKind,
    /// How many bytes follow the head.
    #[serde(default)]
    pub length: usize,
    /// How many of them are a snapshot.
    #[serde(default)]
    pub snapshot: Option<usize>,
    /// Milliseconds after which the value goes; -1: never.
    #[serde(default)]
    pub expire: Option<i64>,
    /// Timers to set or cancel.
    #[serde(default)]
    pub timers: Vec<TimerChange>,
}

/// What a function can do to its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateAction {
    /// Replace it.
    Set,
    /// Remove it.
    Delete,
    /// Append events.
    Emit,
    /// Merge operations into a CRDT.
    Merge,
    /// Leave it; the change is one of expiry or timers.
    Keep,
}

/// A timer to set, or to cancel.
#[derive(Debug, Clone, Deserialize)]
pub struct TimerChange {
    /// Its name within the entity.
    pub name: String,
    /// Milliseconds from now.
    #[serde(default)]
    pub after: Option<u64>,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub at: Option<u64>,
    /// JSON for the request that is made of it; `null` is JSON, too.
    #[serde(default, deserialize_with = "some")]
    pub payload: Option<Box<RawValue>>,
    /// There is to be none of this name.
    #[serde(default)]
    pub cancel: bool,
}

/// A field that is there, whatever it holds.
pub fn some<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// What state bytes are, on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    /// UTF-8 JSON text.
    #[default]
    Json,
    /// Any bytes.
    Binary,
    /// No state.
    None,
}

/// The state that travels in front of a request.
#[derive(Debug, Clone)]
pub struct StateIn {
    /// The entity's key.
    pub key: Arc<str>,
    /// Of the value, 0 if there is none.
    pub version: u64,
    /// What the bytes are, or those of the snapshot.
    pub kind: StateKind,
    /// Value; or snapshot and events; or view.
    pub bytes: Bytes,
    /// How many of the bytes are a snapshot, in the model of events.
    pub snapshot: Option<usize>,
    /// The version of the schema it was written with, if it is not the function's.
    pub schema: Option<u32>,
    /// The call may change nothing.
    pub readonly: bool,
}

#[derive(Serialize)]
struct CallHead<'a> {
    id: &'a str,
    method: &'a str,
    scheme: &'a str,
    host: &'a str,
    port: u16,
    path: &'a str,
    query: &'a str,
    headers: Joined<'a>,
    timeout: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<StateHead<'a>>,
}

#[derive(Serialize)]
struct StateHead<'a> {
    key: &'a str,
    version: u64,
    kind: StateKind,
    length: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    readonly: bool,
}

/// What of a body goes within its CALL; none: it follows as DATA.
pub fn inline(body: &Body) -> Option<&[u8]> {
    match body {
        Body::Full(body) if body.len() <= MAX_INLINE => Some(body),
        _ => None,
    }
}

/// Appends the CALL frame of `request`.
pub fn encode_call(out: &mut Vec<u8>, call: u32, request: &Request, state: Option<&StateIn>, now: Instant) {
    let left = request.deadline.saturating_duration_since(now);
    let head = CallHead {
        id: &request.id,
        method: request.method.as_str(),
        scheme: &request.scheme,
        host: &request.host,
        port: request.port,
        path: &request.path,
        query: &request.query,
        headers: Joined(&request.headers),
        timeout: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        stream: inline(&request.body).is_none(),
        state: state.map(|s| StateHead {
            key: &s.key,
            version: s.version,
            kind: s.kind,
            length: s.bytes.len(),
            snapshot: s.snapshot,
            schema: s.schema,
            readonly: s.readonly,
        }),
    };
    frame::encode(out, Kind::Call, call, |out| {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut *out, &head).expect("text and numbers always serialize");
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        if let Some(state) = state {
            out.extend_from_slice(&state.bytes);
        }
        out.extend_from_slice(inline(&request.body).unwrap_or_default());
    });
}

/// Appends a frame with a JSON payload.
pub fn encode_json(out: &mut Vec<u8>, kind: Kind, message: &impl Serialize) {
    frame::encode(out, kind, 0, |out| {
        serde_json::to_writer(out, message).expect("text and numbers always serialize");
    });
}
