//! Requests with an `Idempotency-Key`: their effects happen once, and a repetition gets the answer of the first.
//!
//! After draft-ietf-httpapi-idempotency-key-header-07: the key's scope is one function, a repetition while the first
//! runs waits for it (on this host; on another host the store decides which of the two commits), and the same
//! key with another request is 422. The answer is recorded in the commit of the call, so there is no moment
//! at which one is there without the other. A call that failed records nothing and may be repeated.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::execution::{Body, Request, Response};
use crate::executor::CallError;
use crate::executor::call::Answer;
use crate::state::{Entity, Millis, Record, RecordChange, RecordId, RecordWrite, Room, StoreError, now};

/// Names the request.
const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that an answer was recorded earlier.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Keys have at most this many bytes.
const MAX_KEY: usize = 255;

/// One request that is to have its effects once.
pub(super) struct Once {
    id: RecordId,
    retention: Duration,
    /// Of all that makes it the same request.
    digest: [u8; 32],
}

/// What is known of the request.
pub(super) enum Found {
    /// It is new. The version that its record has to replace.
    Nothing(u64),
    /// What it was answered.
    Recorded(Response),
}

#[derive(Serialize, Deserialize)]
struct Head {
    digest: [u8; 32],
    /// Of the entity that it was about. An earlier release did not record it.
    #[serde(default)]
    about: Option<String>,
    status: u16,
    /// Names and values as bytes, because not all that HTTP allows is text.
    headers: Vec<(String, Vec<u8>)>,
}

impl Once {
    /// None: the request has no key.
    pub(super) fn of(request: &Request, retention: Duration) -> Result<Option<Self>, CallError> {
        let mut keys = request.headers.get_all(&HEADER).iter();
        let Some(key) = keys.next() else { return Ok(None) };
        if keys.next().is_some() {
            return Err(CallError::IdempotencyKey("there is more than one".into()));
        }
        let text = key.to_str().map_err(|_| CallError::IdempotencyKey("it is not ASCII text".into()))?;
        if text.is_empty() || text.len() > MAX_KEY {
            let size = text.len();
            return Err(CallError::IdempotencyKey(format!(
                "it has {size} bytes; 1 to {MAX_KEY} are allowed"
            )));
        }
        let id = RecordId { room: Room::Answer, key: text.into(), sub: Bytes::new() };
        Ok(Some(Self { id, retention, digest: [0; 32] }))
    }

    /// Takes the digest of the request, which needs its whole body.
    pub(super) fn about(mut self, request: &Request) -> Self {
        let mut hash = Sha256::new();
        for part in [request.method.as_str(), &request.path, &request.query] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        if let Body::Full(body) = &request.body {
            hash.update(body);
        }
        self.digest = hash.finalize().into();
        self
    }

    /// What requests of the same key take turns at.
    pub(super) fn entity(&self, function: &Arc<str>) -> Entity {
        Entity { function: Arc::clone(function), key: Arc::clone(&self.id.key) }
    }

    pub(super) fn id(&self) -> &RecordId {
        &self.id
    }

    /// Judges the record that is there under the key, for a request about `entity`. The same request about another one is
    /// no repetition: who sends it must neither see that answer nor believe that theirs was done.
    pub(super) fn found(&self, record: Option<Record>, entity: &Entity) -> Result<Found, CallError> {
        let Some(record) = record else { return Ok(Found::Nothing(0)) };
        if record.expires.is_some_and(|at| at <= now()) {
            return Ok(Found::Nothing(record.version));
        }
        let (head, body) = decode(&record.bytes).ok_or_else(|| {
            CallError::Store(StoreError::Corrupt { what: "a recorded answer cannot be read".into() })
        })?;
        if head.digest != self.digest || head.about.is_some_and(|key| *key != *entity.key) {
            return Err(CallError::KeyReused);
        }
        let mut headers = HeaderMap::with_capacity(head.headers.len() + 1);
        for (name, value) in &head.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
        Ok(Found::Recorded(Response { status: head.status, headers, body: Body::Full(body), length: None }))
    }

    /// The record of `answer`, whose body is whole, in place of one with the version `replaces`; or why there can be none.
    pub(super) fn record(
        &self,
        entity: &Entity,
        answer: &Answer,
        replaces: u64,
        now: Millis,
    ) -> Result<RecordChange, String> {
        let Body::Full(body) = &answer.body else {
            return Err("A streamed response cannot be recorded.".into());
        };
        let headers = answer.head.headers.0.iter();
        let head = Head {
            digest: self.digest,
            about: Some(entity.key.to_string()),
            status: answer.head.status,
            headers: headers.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect(),
        };
        let head = serde_json::to_vec(&head).map_err(|error| error.to_string())?;
        let mut bytes = BytesMut::with_capacity(4 + head.len() + body.len());
        bytes.put_u32(u32::try_from(head.len()).map_err(|error| error.to_string())?);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(body);
        let kept = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        let expires = Some(now.saturating_add(kept));
        let write = RecordWrite::Put { bytes: bytes.freeze(), due: None, expires };
        Ok(RecordChange { id: self.id.clone(), expected: Some(replaces), write })
    }
}

fn decode(bytes: &Bytes) -> Option<(Head, Bytes)> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let end = length.checked_add(4)?;
    let head = serde_json::from_slice(bytes.get(4..end)?).ok()?;
    Some((head, bytes.slice(end..)))
}
