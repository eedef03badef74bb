//! Export and import: all state of a function as JSON Lines, one entity on each.
//!
//! An export tells of an entity that cannot be read in a line with its key and an `error`, and goes on. An import is all or
//! nothing per entity. A line that is wrong, or that no store takes, is refused with the reason and the rest goes on; a store
//! that fails ends it. A line has at most [`MAX_LINE`] bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::Answer;
use crate::executor::{Desk, DeskError, Moved};
use crate::http::Front;
use crate::http::error::{Problem, of_desk};
use crate::state::{Kind, StoreError, Value};

/// One line of an import: an entity with all that belongs to it (256 MiB).
const MAX_LINE: usize = 256 << 20;

/// What an import says of the lines it refused, at the most.
const MAX_REFUSED: usize = 1000;

/// An entity in an export, one line.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    kind: String,
    #[serde(default = "first_schema")]
    schema: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    /// JSON as it is, anything else in base64.
    value: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    events: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    timers: Vec<TimerLine>,
}

#[derive(Serialize, Deserialize)]
struct TimerLine {
    name: String,
    due: u64,
    timer: Box<RawValue>,
}

fn first_schema() -> u32 {
    1
}

const KINDS: [(&str, Kind); 4] =
    [("json", Kind::Json), ("binary", Kind::Binary), ("events", Kind::Events), ("crdt", Kind::Crdt)];

impl Line {
    fn of(moved: &Moved) -> Option<Self> {
        let raw = |bytes: &[u8]| RawValue::from_string(String::from_utf8(bytes.to_vec()).ok()?).ok();
        let value = &moved.value;
        let kind = KINDS.iter().find(|(_, kind)| *kind == value.kind)?.0.to_owned();
        let shown = if value.kind == Kind::Json {
            raw(&value.bytes)?
        } else {
            serde_json::value::to_raw_value(&STANDARD.encode(&value.bytes)).ok()?
        };
        Some(Self {
            key: moved.key.to_string(),
            kind,
            schema: value.schema,
            expires: value.expires,
            value: shown,
            events: moved.events.iter().map(|event| raw(event)).collect::<Option<_>>()?,
            timers: moved
                .timers
                .iter()
                .map(|(name, due, bytes)| {
                    Some(TimerLine { name: name.clone(), due: *due, timer: raw(bytes)? })
                })
                .collect::<Option<_>>()?,
        })
    }

    fn moved(self) -> Result<Moved, String> {
        let known = KINDS.iter().find(|(name, _)| *name == self.kind);
        let kind = known.ok_or_else(|| format!("the kind `{}` is not known", self.kind))?.1;
        let bytes = if kind == Kind::Json {
            self.value.get().as_bytes().to_vec()
        } else {
            let text: String = serde_json::from_str(self.value.get())
                .map_err(|_| "the value must be base64 in a string".to_owned())?;
            STANDARD.decode(text).map_err(|error| format!("the value is not base64: {error}"))?
        };
        let value = Value { kind, bytes: bytes.into(), schema: self.schema, expires: self.expires };
        if crate::executor::is_readable(&value, self.events.len()) {
            let octets = |json: Box<RawValue>| Bytes::from(Box::<str>::from(json).into_string());
            Ok(Moved {
                key: self.key.into(),
                value,
                events: self.events.into_iter().map(octets).collect(),
                timers: self.timers.into_iter().map(|t| (t.name, t.due, octets(t.timer))).collect(),
            })
        } else {
            Err(format!("the value is not that of an entity of the kind `{}` with these events", self.kind))
        }
    }
}

/// The lines of an export.
pub(super) fn export(desk: Desk) -> impl Stream<Item = Result<Bytes, DeskError>> {
    let begin = (desk, None::<Arc<str>>, VecDeque::<Arc<str>>::new(), false);
    stream::try_unfold(begin, |(desk, mut after, mut keys, mut done)| async move {
        loop {
            while let Some(key) = keys.pop_front() {
                // Told where it is missing: an import refuses the line.
                let missing = |why: &str| serde_json::to_vec(&json!({ "key": &*key, "error": why }));
                let line = match desk.export(&key).await {
                    Ok(None) => continue,
                    Ok(Some(moved)) => Line::of(&moved)
                        .map_or_else(|| missing("its bytes are damaged"), |line| serde_json::to_vec(&line)),
                    Err(DeskError::Store(StoreError::Corrupt { what })) => {
                        tracing::error!(key = &*key, "not exported: {what}");
                        missing("it cannot be read; the executor's log says why")
                    }
                    Err(error) => return Err(error),
                };
                let mut bytes = line.unwrap_or_default();
                bytes.push(b'\n');
                return Ok(Some((Bytes::from(bytes), (desk, after, keys, done))));
            }
            if done {
                return Ok(None);
            }
            let (listed, next) = desk.list("", after.as_deref(), crate::executor::MAX_LIST).await?;
            keys.extend(listed.into_iter().map(|one| one.key));
            done = next.is_none();
            after = next;
        }
    })
}

/// Lines, as their bytes come.
#[derive(Default)]
struct Lines {
    /// What was not taken yet.
    open: BytesMut,
    /// How far no line ends in it.
    searched: usize,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) {
        self.open.extend_from_slice(piece);
    }

    /// Nothing follows; the last line may lack its end.
    fn finish(&mut self) {
        if !self.open.is_empty() && !self.open.ends_with(b"\n") {
            self.push(b"\n");
        }
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Option<Bytes> {
        let Some(end) = memchr::memchr(b'\n', &self.open[self.searched..]) else {
            self.searched = self.open.len();
            return None;
        };
        let line = self.open.split_to(self.searched + end).freeze();
        self.open.advance(1);
        self.searched = 0;
        Some(line)
    }
}

/// Imports the lines of `body` and tells what became of them.
pub(super) async fn import_all(front: &Front, desk: &Desk, body: Body, replace: bool) -> Answer {
    let mut pieces = body.into_data_stream();
    let (mut lines, mut number, mut imported) = (Lines::default(), 0_u64, 0_u64);
    let (mut refused, mut not_told) = (Vec::new(), 0_u64);
    let broken = |detail: String| {
        Problem::new(StatusCode::BAD_REQUEST, "import-broken", "The import ended early", "front", detail)
    };
    loop {
        let piece = tokio::time::timeout(front.limits.body_idle, pieces.next()).await;
        let piece = piece
            .map_err(|_| broken(format!("No byte came for a while; {imported} lines were imported.")))?;
        let piece = piece.transpose();
        let piece = piece.map_err(|error| broken(format!("{error}; {imported} lines were imported.")))?;
        let last = piece.is_none();
        lines.push(&piece.unwrap_or_default());
        if last {
            lines.finish();
        }
        while let Some(line) = lines.next() {
            number += 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match import_line(desk, &line, replace).await {
                Ok(()) => imported += 1,
                Err(Refused::Store(problem)) => return Err(problem),
                Err(Refused::Line(_, _)) if refused.len() >= MAX_REFUSED => not_told += 1,
                Err(Refused::Line(key, why)) => {
                    refused.push(json!({ "line": number, "key": key, "why": why }));
                }
            }
        }
        if lines.open.len() > MAX_LINE {
            return Err(broken(format!("Line {} is longer than {MAX_LINE} bytes.", number + 1)));
        }
        if last {
            let told = json!({ "imported": imported, "refused": refused, "refused-besides": not_told });
            return Ok(Json(told).into_response());
        }
    }
}

enum Refused {
    /// This line: its key, if it has one, and why.
    Line(Option<String>, String),
    /// All that follow, too.
    Store(Problem),
}

async fn import_line(desk: &Desk, line: &[u8], replace: bool) -> Result<(), Refused> {
    let line: Line = serde_json::from_slice(line).map_err(|error| Refused::Line(None, error.to_string()))?;
    let key = line.key.clone();
    let moved = line.moved().map_err(|why| Refused::Line(Some(key.clone()), why))?;
    desk.import(moved, replace).await.map_err(|error| match error {
        DeskError::Changed(_) if replace => {
            Refused::Line(Some(key), "somebody else changed the state under this key meanwhile".into())
        }
        DeskError::Changed(_) => {
            Refused::Line(Some(key), "there is state under this key; replace=true replaces it".into())
        }
        // The line's own fault, or that of what is under its key.
        DeskError::Store(StoreError::TooLarge { .. } | StoreError::TooMany { .. }) => {
            Refused::Line(Some(key), error.to_string())
        }
        DeskError::Store(StoreError::Corrupt { what }) => {
            tracing::error!(key, "not imported: {what}");
            Refused::Line(Some(key), "what is under this key cannot be read; delete it first".into())
        }
        DeskError::Store(_) | DeskError::NoStore(_) => Refused::Store(of_desk(&error)),
        other => Refused::Line(Some(key), other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::state::{Entity, Keys, MemoryStore, SealedStore, StateStore, Write};

    fn entity(key: &str) -> Entity {
        Entity { function: "f".into(), key: key.into() }
    }

    #[test]
    fn what_was_searched_is_not_searched_again() {
        let mut lines = Lines::default();
        for _ in 0..3 {
            lines.push(b"abc");
            assert_eq!(lines.next(), None);
            assert_eq!(lines.searched, lines.open.len());
        }
        lines.push(b"d\n\nef\n");
        assert_eq!(lines.next().unwrap(), "abcabcabcd");
        assert_eq!(lines.next().unwrap(), "");
        assert_eq!(lines.next().unwrap(), "ef");
        assert_eq!(lines.next(), None);
        lines.push(b"last");
        assert_eq!(lines.next(), None);
        lines.finish();
        assert_eq!(lines.next().unwrap(), "last");
        lines.finish();
        assert_eq!(lines.next(), None);
    }

    #[tokio::test]
    async fn an_export_goes_on_past_what_does_not_open() {
        let inner: Arc<dyn StateStore> = Arc::new(MemoryStore::new());
        let keys = Keys::parse("one AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        let sealed = SealedStore::new(Arc::clone(&inner), keys);
        let put = |text: &'static str| Write::Put(Value::new(Kind::Json, text));
        inner.commit(&entity("a"), 0, put("1")).await.unwrap();
        sealed.commit(&entity("b"), 0, put("2")).await.unwrap();
        inner.commit(&entity("c"), 0, put("3")).await.unwrap();
        let desk = Desk::of_store(inner, "f");
        let lines: Vec<Bytes> = export(desk.clone()).try_collect().await.unwrap();
        let lines: Vec<serde_json::Value> =
            lines.iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
        let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        assert!(lines[1]["error"].as_str().is_some_and(|why| why.contains("cannot be read")), "{lines:?}");
        assert_eq!((&lines[0]["value"], &lines[2]["value"]), (&json!(1), &json!(3)));
    }

    #[tokio::test]
    async fn a_line_that_no_store_takes_is_refused_alone() {
        let desk = Desk::of_store(Arc::new(MemoryStore::new()), "f");
        let timer = |n: usize| json!({ "name": n.to_string(), "due": 1, "timer": {} });
        let many: Vec<_> = (0..crate::state::MAX_RECORDS).map(timer).collect();
        let many = json!({ "key": "many", "kind": "json", "value": 1, "timers": many }).to_string();
        let reserved = STANDARD.encode(b"\0sealed1\0");
        let reserved = json!({ "key": "odd", "kind": "binary", "value": reserved }).to_string();
        for (line, told) in [(many, "4098 records"), (reserved, "sealed1")] {
            match import_line(&desk, line.as_bytes(), false).await {
                Err(Refused::Line(Some(_), why)) => assert!(why.contains(told), "{why}"),
                Err(Refused::Line(None, why)) => panic!("without its key: {why}"),
                Err(Refused::Store(problem)) => panic!("the end of all: {}", problem.detail),
                Ok(()) => panic!("{told} was imported"),
            }
        }
        assert!(import_line(&desk, br#"{"key":"k","kind":"json","value":1}"#, false).await.is_ok());
    }
}
