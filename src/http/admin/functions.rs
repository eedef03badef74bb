//! Functions for operators: list, deploy, roll back, remove; and the logs of builds.
//!
//! A deployment answers with JSON Lines while it runs: one `{"at":…,"line":…}` per line of the build, at the
//! end `{"done":true,"version":…}` or `{"error":{"type":…,"message":…}}`. The status is then 200 whatever
//! comes, because it was sent before; what is wrong before the build begins is a problem document as
//! everywhere. A client that leaves cancels its deployment.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::authorize;
use crate::build::{Build, BuildError, End, Line, read_log};
use crate::executor::DeployError;
use crate::http::Front;
use crate::http::call::new_request_id;
use crate::http::error::{Problem, of_deploy};

/// Sent when nothing else was for a while, so that a build without output is not taken for a dead connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// `GET /_/functions`
pub async fn list(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response {
    match authorize(&front, &headers) {
        Ok(()) => Json(json!({ "functions": front.executor.functions() })).into_response(),
        Err(refused) => refused,
    }
}

/// `GET /_/functions/{name}`
pub async fn one(State(front): State<Arc<Front>>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    match front.executor.about(&name) {
        Some(about) => Json(about).into_response(),
        None => problem(&DeployError::Unknown(name)),
    }
}

/// `PUT /_/functions/{name}`, an archive as body.
pub async fn deploy(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(name): Path<String>,
    body: Body,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    if let Err(error) = front.executor.check(&name) {
        return problem(&error);
    }
    let upload = match front.executor.builds().upload() {
        Ok(upload) => upload,
        Err(error) => return problem(&error.into()),
    };
    if let Err(refused) = receive(&front, body, &upload.file).await {
        return refused.respond(&new_request_id());
    }
    match front.executor.deploy_archive(&name, upload) {
        Ok(build) => {
            let owned = Cancel(Arc::clone(&build));
            let lines = follow(build).map(move |line| {
                let _ = &owned;
                line
            });
            json_lines(Body::from_stream(lines))
        }
        Err(error) => problem(&error),
    }
}

/// `DELETE /_/functions/{name}`
pub async fn remove(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    match front.executor.remove(&name).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => problem(&error),
    }
}

/// `POST /_/functions/{name}/rollback?to=VERSION`
pub async fn rollback(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let to = match parameter(query.as_deref(), "to").map(str::parse::<u64>) {
        None => None,
        Some(Ok(number)) => Some(number),
        Some(Err(_)) => {
            let detail = "`to` is the number of a version; GET /_/functions/NAME shows them.".to_owned();
            return Problem::new(StatusCode::BAD_REQUEST, "bad-query", "Wrong query", "front", detail)
                .respond(&new_request_id());
        }
    };
    match front.executor.rollback(&name, to).await {
        Ok(version) => Json(json!({ "done": true, "version": version })).into_response(),
        Err(error) => problem(&error),
    }
}

/// `GET /_/builds/{id}/log?follow=true`
pub async fn log(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let builds = front.executor.builds();
    if let Some(build) = builds.find(&id) {
        if parameter(query.as_deref(), "follow") == Some("true") {
            return json_lines(Body::from_stream(follow(build)));
        }
        let (lines, end) = build.log.lines(0);
        return json_lines(Body::from(text_of(&lines, end.as_ref())));
    }
    let file = builds.log_file(&id);
    let read = tokio::task::spawn_blocking(move || file.and_then(|file| read_log(&file).ok())).await;
    match read.ok().flatten() {
        Some(lines) => json_lines(Body::from(text_of(&lines, None))),
        None => no_build(),
    }
}

/// `DELETE /_/builds/{id}`: cancels it.
pub async fn cancel(State(front): State<Arc<Front>>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    match front.executor.builds().find(&id) {
        Some(build) => {
            build.cancel();
            StatusCode::NO_CONTENT.into_response()
        }
        None => no_build(),
    }
}

/// Whoever asked for it has left.
struct Cancel(Arc<Build>);

impl Drop for Cancel {
    fn drop(&mut self) {
        // One that has ended does not care.
        self.0.cancel();
    }
}

/// Writes the body to a file; nothing of it is in memory for long.
async fn receive(front: &Front, body: Body, file: &FilePath) -> Result<(), Problem> {
    let most = front.limits.max_archive;
    let failed = |error: std::io::Error| {
        tracing::error!(file = %file.display(), "cannot keep an archive: {error}");
        let detail = "The archive could not be stored; the executor's log says why.".to_owned();
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "build-storage", "Storage failed", "front", detail)
    };
    let mut out = tokio::fs::File::create_new(file).await.map_err(failed)?;
    let mut pieces = body.into_data_stream();
    let mut seen = 0;
    loop {
        let piece = match tokio::time::timeout(front.limits.body_idle, pieces.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                let detail = format!("The archive ended early: {error}");
                return Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "body-broken",
                    "Body broken",
                    "front",
                    detail,
                ));
            }
            Err(_) => {
                let detail = format!("No byte of the archive came for {:?}.", front.limits.body_idle);
                return Err(Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body-idle",
                    "Body too slow",
                    "front",
                    detail,
                ));
            }
        };
        seen += piece.len() as u64;
        if seen > most {
            let detail = format!("The archive has more than the {most} bytes that --max-archive allows.");
            let (kind, title) = ("body-too-large", "Archive too large");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, kind, title, "front", detail));
        }
        out.write_all(&piece).await.map_err(failed)?;
    }
    out.flush().await.map_err(failed)
}

/// The build's lines as they come, and how it ended.
fn follow(build: Arc<Build>) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static {
    futures_util::stream::unfold((build, 0, false), |(build, from, ended)| async move {
        if ended {
            return None;
        }
        let Ok((lines, end)) = tokio::time::timeout(HEARTBEAT, build.log.follow(from)).await else {
            // An empty line is nothing to a reader of JSON Lines.
            return Some((Ok(Bytes::from_static(b"\n")), (build, from, false)));
        };
        let text = text_of(&lines, end.as_ref());
        Some((Ok(text.into()), (build, from + lines.len(), end.is_some())))
    })
}

fn text_of(lines: &[Line], end: Option<&End>) -> String {
    let end = end.map(|end| match end {
        End::Done { version: Some(version) } => json!({ "done": true, "version": version }),
        End::Done { version: None } => json!({ "done": true }),
        End::Failed { kind, message } => json!({ "error": { "type": kind, "message": message } }),
    });
    let lines = lines.iter().filter_map(|line| serde_json::to_string(line).ok());
    lines.chain(end.map(|end| end.to_string())).fold(String::new(), |text, line| text + &line + "\n")
}

fn json_lines(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The value of a parameter whose values need no escapes.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

fn no_build() -> Response {
    let detail = "Nothing is kept of that build; the last hundred are.".to_owned();
    Problem::new(StatusCode::NOT_FOUND, "unknown-build", "Unknown build", "front", detail)
        .respond(&new_request_id())
}

fn problem(error: &DeployError) -> Response {
    if let DeployError::Build(cause @ BuildError::Io { .. }) = error {
        tracing::error!("{cause}");
    }
    of_deploy(error).respond(&new_request_id())
}
