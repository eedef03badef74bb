//! State for operators: list, read, change, follow, move.
//!
//! | Request | What it does |
//! |---|---|
//! | `GET /_/state/F?prefix=&after=&limit=` | keys, in pages |
//! | `GET\|PUT\|DELETE /_/state/F/KEY` | one value; `ETag`, `If-Match`, `If-None-Match: *` |
//! | `GET /_/state/F/KEY/history?from=N` | events as JSON Lines; with `follow=true` as server-sent events |
//! | `GET /_/state/F?watch=true` | changes as server-sent events |
//! | `POST /_/keys/rotate` | seals everything with the first key |
//! | `GET /_/state/F?export=true`, `POST /_/state/F?replace=true` | everything, as JSON Lines |
//!
//! Keys are percent-encoded, one path segment each; `store=NAME` looks in that store whatever the function's manifest says.
//!
//! `moving.rs` has export and import, `streams.rs` what is followed.

mod moving;
mod streams;

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::json;

use self::moving::{export, import_all};
pub use self::streams::FOLLOWERS;
use self::streams::{events, follow, numbered, place, server_sent, watch};
use super::authorize;
use crate::executor::{Condition, Desk, DeskError};
use crate::http::Front;
use crate::http::call::new_request_id;
use crate::http::error::{Problem, of_desk};

/// Entities a list names when the request does not say how many.
const DEFAULT_LIMIT: usize = 100;

/// A problem or an answer, as a handler gives it.
type Answer = Result<Response, Problem>;

fn respond(answer: Answer) -> Response {
    answer.unwrap_or_else(|problem| problem.respond(&new_request_id()))
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-query", "Wrong query or header", "front", detail)
}

/// The query's parameters, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Result<Self, Problem> {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| bad(format!("`{text}` in the query is not UTF-8.")))
        };
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Problem> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().map_err(|_| bad(format!("`{name}` must be a whole number, not `{text}`.")))
    }
}

fn desk(front: &Front, function: &str, query: &Query) -> Result<Desk, Problem> {
    front.executor.desk(function, query.get("store")).map_err(|error| of_desk(&error))
}

fn iso(millis: u64) -> String {
    let time = i64::try_from(millis).ok().and_then(DateTime::<Utc>::from_timestamp_millis);
    time.unwrap_or(DateTime::<Utc>::MAX_UTC).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// `GET /_/state/{function}`
pub async fn function(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(function): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let query = Query::parse(query.as_deref())?;
        let desk = desk(&front, &function, &query)?;
        if query.is("watch") {
            return watch(&front, &function);
        }
        if query.is("export") {
            return Ok(json_lines(Body::from_stream(export(desk))));
        }
        list(&desk, &query).await
    };
    respond(answer.await)
}

async fn list(desk: &Desk, query: &Query) -> Answer {
    let limit = query.number("limit", DEFAULT_LIMIT)?;
    if !(1..=crate::executor::MAX_LIST).contains(&limit) {
        return Err(bad(format!("`limit` must be from 1 to {}.", crate::executor::MAX_LIST)));
    }
    let prefix = query.get("prefix").unwrap_or_default();
    let (listed, next) =
        desk.list(prefix, query.get("after"), limit).await.map_err(|error| of_desk(&error))?;
    let keys: Vec<_> = listed
        .iter()
        .map(|one| {
            let mut shown = json!({
                "key": one.key,
                "version": one.version,
                "bytes": one.bytes,
                "updated": iso(one.updated),
            });
            if let Some(at) = one.expires {
                shown["expires"] = iso(at).into();
            }
            shown
        })
        .collect();
    Ok(Json(json!({ "keys": keys, "next": next })).into_response())
}

/// `GET /_/state/{function}/{key}`
pub async fn get(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path((function, key)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let desk = desk(&front, &function, &Query::parse(query.as_deref())?)?;
        let shown = desk.get(&key).await.map_err(|error| of_desk(&error))?;
        let tag = etag(shown.version);
        if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| *value == tag) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
        }
        let kind = if shown.json { "application/json" } else { "application/octet-stream" };
        let kind = HeaderValue::from_static(kind);
        Ok(([(header::CONTENT_TYPE, kind), (header::ETAG, tag)], shown.bytes).into_response())
    };
    respond(answer.await)
}

/// `PUT /_/state/{function}/{key}`
pub async fn put(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path((function, key)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let desk = desk(&front, &function, &Query::parse(query.as_deref())?)?;
        let condition = condition(&headers)?;
        let most = usize::try_from(front.limits.max_body).unwrap_or(usize::MAX);
        let bytes = axum::body::to_bytes(body, most).await.map_err(|_| {
            let detail = format!("The body is longer than {most} bytes, or it ended early.");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", "front", detail)
        })?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let json =
            kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        let (version, new) = desk.put(&key, json, bytes, condition).await.map_err(|error| of_desk(&error))?;
        let status = if new { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
        Ok((status, [(header::ETAG, etag(version))]).into_response())
    };
    respond(answer.await)
}

/// `DELETE /_/state/{function}/{key}`
pub async fn delete(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path((function, key)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let desk = desk(&front, &function, &Query::parse(query.as_deref())?)?;
        desk.delete(&key, condition(&headers)?).await.map_err(|error| of_desk(&error))?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    respond(answer.await)
}

fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("digits are header text")
}

fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    let (exact, absent) = (headers.get(header::IF_MATCH), headers.get(header::IF_NONE_MATCH));
    match (exact, absent) {
        (None, None) => Ok(Condition::None),
        (None, Some(any)) if any == "*" => Ok(Condition::Absent),
        (Some(tag), None) => {
            let version =
                tag.to_str().ok().and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok());
            let text = "If-Match must be one ETag as GET gave it, like \"42\".";
            version.map(Condition::Version).ok_or_else(|| bad(text.into()))
        }
        _ => Err(bad("Send either If-Match with an ETag or `If-None-Match: *`.".into())),
    }
}

/// `GET /_/state/{function}/{key}/history`
pub async fn history(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path((function, key)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let query = Query::parse(query.as_deref())?;
        let desk = desk(&front, &function, &query)?;
        desk.has_history(&key).await.map_err(|error| of_desk(&error))?;
        let mut from = query.number("from", 1_u64)?;
        if !query.is("follow") {
            let events = events(desk, key, from).map(|event| {
                event.map(|(number, bytes)| {
                    let mut line = numbered(number, &bytes);
                    line.push(b'\n');
                    Bytes::from(line)
                })
            });
            return Ok(json_lines(Body::from_stream(events)));
        }
        // A browser that lost its connection says what it saw last.
        let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
        from = seen.map_or(from, |seen| seen.saturating_add(1));
        let place = place(&front)?;
        Ok(server_sent(follow(Arc::clone(&front.executor), desk, key, from, place)))
    };
    respond(answer.await)
}

fn json_lines(body: Body) -> Response {
    let kind = HeaderValue::from_static("application/jsonl");
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// `POST /_/keys/rotate`: seals everything with the first key.
pub async fn rotate(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let (mut sealed, mut failed) = (0, None);
    for store in front.executor.stores().all() {
        match store.rotate().await {
            Ok(some) => sealed += some,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) => of_desk(&DeskError::Store(error)).respond(&new_request_id()),
        None => Json(json!({ "sealed": sealed })).into_response(),
    }
}

/// `POST /_/state/{function}`: imports lines of an export.
pub async fn import(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(function): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let answer = async {
        let query = Query::parse(query.as_deref())?;
        let desk = desk(&front, &function, &query)?;
        import_all(&front, &desk, body, query.is("replace")).await
    };
    respond(answer.await)
}
