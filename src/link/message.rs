//! The JSON inside frames, and how a CALL is laid out. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::execution::{Body, Request};
use crate::headers::{FromFunction, Joined};
use crate::link::frame::{self, Kind};
use crate::state::{self, Versioned};

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
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Limits {
    /// A response that is not streamed.
    pub response: u64,
    /// One entity's value.
    pub state: u64,
}

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
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct StateChange {
    /// Set or delete.
    pub action: StateAction,
    /// What the bytes are.
    #[serde(default)]
    pub kind: StateKind,
    /// How many bytes follow the head.
    #[serde(default)]
    pub length: usize,
}

/// The two things a function can do to its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateAction {
    /// Replace it.
    Set,
    /// Remove it.
    Delete,
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

impl From<StateKind> for state::Kind {
    fn from(kind: StateKind) -> Self {
        if kind == StateKind::Binary { Self::Binary } else { Self::Json }
    }
}

impl From<state::Kind> for StateKind {
    fn from(kind: state::Kind) -> Self {
        match kind {
            state::Kind::Json => Self::Json,
            state::Kind::Binary => Self::Binary,
        }
    }
}

/// The state that travels in front of a request.
#[derive(Debug, Clone, Copy)]
pub struct StateIn<'a> {
    /// The entity's key.
    pub key: &'a str,
    /// Its value, if it has one.
    pub value: Option<&'a Versioned>,
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
}

/// Appends the CALL frame of `request`.
pub fn encode_call(
    out: &mut Vec<u8>,
    call: u32,
    request: &Request,
    state: Option<StateIn<'_>>,
    now: Instant,
) {
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
        stream: matches!(request.body, Body::Stream(_)),
        state: state.map(|s| StateHead {
            key: s.key,
            version: s.value.map_or(0, |v| v.version),
            kind: s.value.map_or(StateKind::None, |v| v.kind.into()),
            length: s.value.map_or(0, |v| v.bytes.len()),
        }),
    };
    frame::encode(out, Kind::Call, call, |out| {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut *out, &head).expect("text and numbers always serialize");
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        if let Some(value) = state.and_then(|s| s.value) {
            out.extend_from_slice(&value.bytes);
        }
        if let Body::Full(body) = &request.body {
            out.extend_from_slice(body);
        }
    });
}

/// Appends a frame with a JSON payload.
pub fn encode_json(out: &mut Vec<u8>, kind: Kind, message: &impl Serialize) {
    frame::encode(out, kind, 0, |out| {
        serde_json::to_writer(out, message).expect("text and numbers always serialize");
    });
}
