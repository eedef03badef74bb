//! From an HTTP request to an execution and back.
//!
//! Order: secret, then the cheap checks, then the body, then the executor: strangers cost nothing. A body of at
//! most [`INLINE_BODY`] bytes is read before an instance is asked for, so that a slow sender does not hold a place;
//! a longer one is streamed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use uuid::Uuid;

use super::Front;
use super::body::AnswerBody;
use super::error::{self, Problem, REQUEST_ID};
use crate::execution::{self, BodyError, BodyStream, Request, Timings};
use crate::executor::{CallError, Deployed, Outcome};
use crate::function::{Access, ServedBy};
use crate::headers::strip_reserved;

/// Bodies up to this many bytes travel inside the CALL frame.
const INLINE_BODY: usize = 64 << 10;
/// Longer targets are refused.
const MAX_TARGET: usize = 8 << 10;
/// All header names and values together, bytes.
const MAX_HEADERS: usize = 32 << 10;

const SECRET: HeaderName = HeaderName::from_static("x-open-runtimes-secret");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A fresh request id: 32 hexadecimal characters, ordered by time.
pub fn new_request_id() -> Arc<str> {
    let mut buffer = [0; 32];
    (&*Uuid::now_v7().as_simple().encode_lower(&mut buffer)).into()
}

/// The client's request id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let sane = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane) {
        Some(id) => id.into(),
        None => new_request_id(),
    }
}

type Answer = Response<AnswerBody>;

/// The handler behind every path that is not ours.
pub async fn call(front: &Front, request: http::Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let id = request_id(&parts.headers);
    let mut timings = Timings::default();
    let mut response = match serve(front, parts, body, &id, &mut timings).await {
        Ok(response) | Err(Refused::Ready(response)) => response,
        Err(Refused::Problem(problem)) => problem.respond(&id).map(AnswerBody::own),
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.append(SERVER_TIMING, server_timing(&timings));
    response
}

enum Refused {
    Ready(Answer),
    Problem(Problem),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<CallError> for Refused {
    fn from(error: CallError) -> Self {
        if let CallError::Store(cause) = &error {
            tracing::error!(error = cause as &dyn std::error::Error, "state store");
        }
        match error::of_call(&error) {
            Some(problem) => Self::Problem(problem),
            None => {
                let mut response = Response::new(AnswerBody::full(Bytes::new()));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                Self::Ready(response)
            }
        }
    }
}

async fn serve(
    front: &Front,
    parts: Parts,
    body: Incoming,
    id: &Arc<str>,
    timings: &mut Timings,
) -> Result<Answer, Refused> {
    let (deployed, name, path) = route(front, parts.uri.path());
    let public = matches!(&deployed, Some(Deployed::Serving(d)) if d.function.access == Access::Public);
    if !public && !authorized(front, &parts.headers) {
        return Err(Refused::Ready(error::unauthorized().map(AnswerBody::own)));
    }
    check(&parts, &body, front.limits.max_body)?;
    let deployment = match deployed {
        Some(Deployed::Serving(deployment)) => deployment,
        Some(Deployed::Broken(why)) => return Err(CallError::Broken(why).into()),
        None => return Err(CallError::Unknown(name.to_owned()).into()),
    };
    if deployment.function.served_by == ServedBy::Files {
        let answer = front.sites.serve(&deployment.function, &parts, path).await;
        return answer.map_err(|error| {
            tracing::error!(function = name, "a site's folder cannot be opened: {error}");
            error::broken_site().into()
        });
    }
    let deadline = Instant::now() + deployment.function.timeout;
    let body = read(body, &front.limits, deadline).await.map_err(CallError::Body)?;
    let path = if path.is_empty() { "/" } else { path }.to_owned();
    let request = to_request(parts, Arc::clone(id), path, body, deadline);
    let Outcome { result, timings: spent, .. } = front.executor.call(deployment, request).await;
    *timings = spent;
    Ok(to_response(result?))
}

/// The function a path is about, its name, and the path it sees; empty, if there is no slash after the name.
fn route<'a>(front: &Front, path: &'a str) -> (Option<Deployed>, &'a str, &'a str) {
    if let Some(only) = front.executor.single() {
        return (Some(only), "", path);
    }
    let rest = path.strip_prefix('/').unwrap_or(path);
    let (name, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    (front.executor.find(name), name, path)
}

fn authorized(front: &Front, headers: &HeaderMap) -> bool {
    front
        .secret
        .as_ref()
        .is_none_or(|secret| secret.matches(headers.get(SECRET).map_or(b"", HeaderValue::as_bytes)))
}

fn check(parts: &Parts, body: &Incoming, max_body: u64) -> Result<(), Problem> {
    let refuse = |status, kind, title, detail| Err(Problem::new(status, kind, title, "front", detail));
    // RFC 9112, section 3.2.
    let hosts = parts.headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == http::Version::HTTP_11) {
        let detail = format!("A request has exactly one Host header; this one has {hosts}.");
        return refuse(StatusCode::BAD_REQUEST, "bad-host", "Host missing or repeated", detail);
    }
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    if !known.contains(&parts.method) {
        let detail = format!("Functions are not called with the method {}.", parts.method);
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail);
    }
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET {
        let detail = format!("Path and query have {target} bytes; at most {MAX_TARGET} are allowed.");
        return refuse(StatusCode::URI_TOO_LONG, "target-too-long", "Path and query too long", detail);
    }
    let headers: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers > MAX_HEADERS {
        let detail = format!("The headers have {headers} bytes; at most {MAX_HEADERS} are allowed.");
        return refuse(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers-too-large",
            "Headers too large",
            detail,
        );
    }
    if body.size_hint().lower() > max_body {
        let error = CallError::Body(BodyError::TooLarge(max_body));
        return Err(error::of_call(&error).expect("a body error is a problem"));
    }
    Ok(())
}

/// Reads a small body whole; gives a larger one as a stream with the limits built in.
pub(super) async fn read(
    body: Incoming,
    limits: &super::FrontLimits,
    deadline: Instant,
) -> Result<execution::Body, BodyError> {
    if body.is_end_stream() {
        return Ok(execution::Body::Full(Bytes::new()));
    }
    let mut stream = limited(body, limits.max_body, limits.body_idle);
    let mut first = BytesMut::new();
    let gather = async {
        while let Some(piece) = stream.next().await {
            first.extend_from_slice(&piece?);
            if first.len() > INLINE_BODY {
                return Ok(false);
            }
        }
        Ok(true)
    };
    match tokio::time::timeout_at(deadline.into(), gather).await {
        Err(_) => Err(BodyError::Broken("it was not complete at the call's deadline".into())),
        Ok(Err(error)) => Err(error),
        Ok(Ok(true)) => Ok(execution::Body::Full(first.freeze())),
        Ok(Ok(false)) => {
            let first = futures_util::stream::once(std::future::ready(Ok(first.freeze())));
            Ok(execution::Body::Stream(first.chain(stream).boxed()))
        }
    }
}

fn limited(body: Incoming, max: u64, idle: Duration) -> BodyStream {
    let pieces = body.into_data_stream();
    let state = (pieces, 0u64, false);
    futures_util::stream::unfold(state, move |(mut pieces, seen, failed)| async move {
        if failed {
            return None;
        }
        let piece = match tokio::time::timeout(idle, pieces.next()).await {
            Err(_) => Err(BodyError::Idle(idle)),
            Ok(None) => return None,
            Ok(Some(Err(error))) => Err(BodyError::Broken(error.to_string())),
            Ok(Some(Ok(piece))) if seen + piece.len() as u64 > max => Err(BodyError::TooLarge(max)),
            Ok(Some(Ok(piece))) => Ok(piece),
        };
        let size = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let failed = piece.is_err();
        Some((piece, (pieces, seen + size, failed)))
    })
    .boxed()
}

pub(super) fn to_request(
    parts: Parts,
    id: Arc<str>,
    path: String,
    body: execution::Body,
    deadline: Instant,
) -> Request {
    let mut headers = parts.headers;
    strip_reserved(&mut headers);
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = match text(HeaderName::from_static("x-forwarded-proto")) {
        Some(scheme) if !scheme.is_empty() => scheme.to_owned(),
        _ => "http".to_owned(),
    };
    let authority = text(header::HOST).or_else(|| parts.uri.authority().map(http::uri::Authority::as_str));
    let (host, port) = split_host(authority.unwrap_or(""));
    let port = port.unwrap_or(if scheme == "https" { 443 } else { 80 });
    let (host, query) = (host.to_owned(), parts.uri.query().unwrap_or("").to_owned());
    let method = parts.method;
    Request { id, method, scheme, host, port, path, query, headers, body, deadline, limit: None }
}

/// `name:port`, `[::1]:port`, or without a port.
fn split_host(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (name, None),
        },
        _ => (host, None),
    }
}

pub(super) fn to_response(answer: execution::Response) -> Answer {
    let execution::Response { status, headers, body, length } = answer;
    let body = match body {
        execution::Body::Full(body) => AnswerBody::full(body),
        execution::Body::Stream(stream) => AnswerBody::stream(stream),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

fn server_timing(timings: &Timings) -> HeaderValue {
    let mut text = String::with_capacity(64);
    let parts =
        [("queue", timings.queue), ("cold", timings.cold), ("state", timings.state), ("run", timings.run)];
    for (name, spent) in parts {
        let comma = if text.is_empty() { "" } else { ", " };
        let micros = spent.as_micros();
        let _ = write!(text, "{comma}{name};dur={}.{:03}", micros / 1000, micros % 1000);
    }
    if timings.retries > 0 {
        let _ = write!(text, ", retries;desc={}", timings.retries);
    }
    HeaderValue::try_from(text).expect("digits and names are header text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(split_host("a.b:81"), ("a.b", Some(81)));
        assert_eq!(split_host("a.b"), ("a.b", None));
        assert_eq!(split_host("[::1]:3000"), ("[::1]", Some(3000)));
        assert_eq!(split_host("[::1]"), ("[::1]", None));
        assert_eq!(split_host("a:x"), ("a", None));
    }

    #[test]
    fn request_ids_are_taken_over_when_sane() {
        for (given, taken) in [("abc-1._X", true), ("", false), ("a b", false), (&"x".repeat(129), false)] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(given).unwrap());
            assert_eq!(&*request_id(&headers) == given, taken, "{given}");
        }
    }

    #[test]
    fn timings_are_milliseconds() {
        let timings = Timings { run: Duration::from_micros(1234), ..Timings::default() };
        let text = "queue;dur=0.000, cold;dur=0.000, state;dur=0.000, run;dur=1.234";
        assert_eq!(server_timing(&timings), text);
    }
}
