//! The runtime contract: what a function that is served alone looks like to a host of Open Runtimes.
//!
//! Source: sections 2 to 10 of the runtime protocol. Order: reserved endpoints, secret, timeout header, log files,
//! body, function. A stranger can neither create files nor probe anything, and no detail of an error is ever in an
//! answer: it is in the error log, whose name the answer carries.
//!
//! Invariants: the log files of a request are complete before the last byte of its answer leaves; a client that leaves
//! neither ends the call nor takes its lines with it.

mod log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;

use self::log::{Journal, Sink};
use super::FrontLimits;
use super::body::AnswerBody;
use super::sites::Sites;
use super::{call, site};
use crate::execution::{self, BODY_TIME, BodyError};
use crate::executor::{CallError, Deployed, Deployment, Executor, Outcome, Stage};
use crate::function::{NO_LIMIT, ServedBy};
use crate::headers::{LOG_TRANSPORT, RESERVED_PREFIX};
use crate::instance::Secret;

const SECRET: HeaderName = HeaderName::from_static("x-open-runtimes-secret");
const TIMEOUT: HeaderName = HeaderName::from_static("x-open-runtimes-timeout");
const LOGGING: HeaderName = HeaderName::from_static("x-open-runtimes-logging");
const LOG_ID: HeaderName = HeaderName::from_static("x-open-runtimes-log-id");

const UNAUTHORIZED: &str = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";
const BAD_TIMEOUT: &str = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0.";
/// Longer ones would overflow the clock; nobody waits that long.
const MOST_SECONDS: u64 = NO_LIMIT.as_secs();

/// How the contract is kept.
#[derive(Debug, Clone)]
pub struct ContractOptions {
    /// Folder for log files; made when it is first needed.
    pub logs: PathBuf,
    /// Nobody else uses that folder, so what is in it is of earlier runs.
    pub own_logs: bool,
    /// `timings.txt`
    pub timings: PathBuf,
    /// Generated log ids are `dev`.
    pub development: bool,
    /// Headers that every request has, whatever its sender says.
    pub enforced: Vec<(HeaderName, HeaderValue)>,
    /// How long a request may wait for the function to be loaded.
    pub start: Duration,
}

/// See the module.
pub struct Contract {
    executor: Arc<Executor>,
    secret: Option<Secret>,
    limits: FrontLimits,
    options: ContractOptions,
    journal: Arc<Journal>,
    sites: Sites,
}

type Answer = Response<AnswerBody>;

impl Contract {
    /// The contract for the one function of `executor`. Hosts must send `secret`; none: everybody may call.
    pub(super) fn new(
        executor: Arc<Executor>,
        secret: Option<Secret>,
        limits: FrontLimits,
        options: ContractOptions,
    ) -> Self {
        if options.own_logs {
            log::clean(&options.logs);
        }
        let journal = Arc::new(Journal::new(options.logs.clone(), options.development));
        Self { executor, secret, limits, options, journal, sites: Sites::default() }
    }

    /// Answers one request.
    pub async fn serve(&self, request: http::Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        match parts.uri.path() {
            "/__opr/health" => return plain(StatusCode::OK, "OK"),
            "/__opr/timings" => return self.timings().await,
            _ => {}
        }
        if let Some(Deployed::Serving(deployment)) = self.executor.single()
            && deployment.function.served_by == ServedBy::Files
        {
            return self.site(&deployment, &parts).await;
        }
        let value = |name: &HeaderName| parts.headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        if self.secret.as_ref().is_some_and(|secret| !secret.matches(value(&SECRET))) {
            return plain(StatusCode::UNAUTHORIZED, UNAUTHORIZED);
        }
        let Ok(limit) = parse_timeout(value(&TIMEOUT)) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, BAD_TIMEOUT);
        };
        let sink = Sink::new(&self.journal, value(&LOGGING), value(&LOG_ID), value(&LOG_TRANSPORT));
        let log_id = sink.header();
        let mut answer = self.run(parts, body, limit, sink).await;
        answer.headers_mut().insert(LOG_ID, log_id);
        answer
    }

    /// Section 13.1: another way to authenticate, no log files, no time limit.
    async fn site(&self, deployment: &Deployment, parts: &Parts) -> Answer {
        if !site::authorized(&parts.headers, self.secret.as_ref()) {
            return site::challenge();
        }
        match self.sites.serve(&deployment.function, parts, parts.uri.path()).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!("the site's folder cannot be opened: {error}");
                empty(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    }

    async fn timings(&self) -> Answer {
        match tokio::fs::read(&self.options.timings).await {
            Ok(text) => plain(StatusCode::OK, text),
            Err(_) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    async fn run(&self, parts: Parts, body: Incoming, limit: Option<Duration>, sink: Sink) -> Answer {
        let deployment = match self.executor.single() {
            Some(Deployed::Serving(deployment)) => deployment,
            Some(Deployed::Broken(why)) => {
                let line = format!("Failed to load module: {why}");
                return refuse(StatusCode::SERVICE_UNAVAILABLE, Some(line), sink).await;
            }
            None => return empty(StatusCode::SERVICE_UNAVAILABLE),
        };
        let request = match self.read(parts, body, limit, &deployment).await {
            Ok(request) => request,
            Err(error) => {
                let (status, line) = explain(&error.into());
                return refuse(status, line, sink).await;
            }
        };
        // The sink goes with the call, which has its lines also when nobody waits any more.
        let called = self.executor.call_then(deployment, request, move |Outcome { result, logs, .. }| {
            let mut sink = sink;
            sink.hold(match &result {
                // The request is over: what the function still writes is in no log.
                Err(CallError::Deadline(_, Stage::Function)) => logs.map(|logs| logs.so_far()),
                _ => logs,
            });
            (result, sink)
        });
        match called.await {
            (Ok(response), sink) => respond(response, sink).await,
            (Err(error), sink) => {
                let (status, line) = explain(&error);
                refuse(status, line, sink).await
            }
        }
    }

    async fn read(
        &self,
        parts: Parts,
        body: Incoming,
        limit: Option<Duration>,
        deployment: &Deployment,
    ) -> Result<execution::Request, BodyError> {
        let max_body = self.limits.max_body;
        if body.size_hint().lower() > max_body {
            return Err(BodyError::TooLarge(max_body));
        }
        let body = call::read(body, &self.limits, Instant::now() + BODY_TIME).await?;
        let deadline = Instant::now() + self.options.start;
        let path = parts.uri.path().to_owned();
        let mut request = call::to_request(parts, call::new_request_id(), path, body, deadline);
        enforce(&mut request.headers, &self.options.enforced);
        request.limit = Some(limit.unwrap_or(deployment.function.timeout));
        Ok(request)
    }
}

/// Section 7.5: these win over the client's, and may have the reserved prefix.
fn enforce(headers: &mut HeaderMap, enforced: &[(HeaderName, HeaderValue)]) {
    debug_assert!(headers.keys().all(|name| !name.as_str().starts_with(RESERVED_PREFIX)), "stripped before");
    for (name, value) in enforced {
        headers.insert(name, value.clone());
    }
}

/// Section 6.1.
fn parse_timeout(value: &[u8]) -> Result<Option<Duration>, ()> {
    if value.is_empty() {
        return Ok(None);
    }
    if !value.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    let seconds =
        value.iter().fold(0u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    match seconds {
        0 => Err(()),
        seconds => Ok(Some(Duration::from_secs(seconds.min(MOST_SECONDS)))),
    }
}

/// Section 9.6: status, and the line for the error log when there is none yet.
fn explain(error: &CallError) -> (StatusCode, Option<String>) {
    match error {
        // The executor has written the reason already.
        CallError::Raised | CallError::Deadline(_, Stage::Function) => {
            (StatusCode::INTERNAL_SERVER_ERROR, None)
        }
        CallError::CannotStart(failure, _) => {
            let line = format!("{}\n{}", failure.message, failure.stack);
            (StatusCode::SERVICE_UNAVAILABLE, Some(line.trim_end().to_owned()))
        }
        CallError::Body(BodyError::TooLarge(_)) => (StatusCode::PAYLOAD_TOO_LARGE, Some(error.to_string())),
        CallError::NotBuilt(_)
        | CallError::QueueFull(_)
        | CallError::Overloaded
        | CallError::Closing
        | CallError::StateTooNew { .. }
        | CallError::WrongModel { .. }
        | CallError::NoStore(_)
        | CallError::Deadline(..) => (StatusCode::SERVICE_UNAVAILABLE, Some(error.to_string())),
        CallError::Conflict | CallError::Changed | CallError::Fired | CallError::Replaced => {
            (StatusCode::CONFLICT, Some(error.to_string()))
        }
        CallError::TimerPath => (StatusCode::NOT_FOUND, Some(error.to_string())),
        CallError::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, Some(error.to_string())),
        CallError::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, Some(error.to_string())),
        CallError::Unknown(_)
        | CallError::Broken(_)
        | CallError::Died(_)
        | CallError::Store(_)
        | CallError::Body(BodyError::Late(_)) => (StatusCode::INTERNAL_SERVER_ERROR, Some(error.to_string())),
        CallError::Body(_) | CallError::Key(_) | CallError::IdempotencyKey(_) => {
            (StatusCode::BAD_REQUEST, Some(error.to_string()))
        }
    }
}

async fn respond(mut response: execution::Response, sink: Sink) -> Answer {
    response.body = match response.body {
        execution::Body::Full(body) => {
            sink.finish(None, &mut response.headers).await;
            execution::Body::Full(body)
        }
        // With a known length the last byte of the body is the last byte of the answer, so one piece is kept back.
        execution::Body::Stream(stream) if response.length.is_some() => {
            execution::Body::Stream(held_back(stream, sink).boxed())
        }
        execution::Body::Stream(stream) => {
            let end = futures_util::stream::once(async move {
                sink.close().await;
                Ok(Bytes::new())
            });
            execution::Body::Stream(stream.chain(end).boxed())
        }
    };
    call::to_response(response)
}

/// An answer without a word; `line` is for the error log.
async fn refuse(status: StatusCode, line: Option<String>, sink: Sink) -> Answer {
    let mut answer = empty(status);
    sink.finish(line, answer.headers_mut()).await;
    answer
}

fn held_back(
    stream: execution::BodyStream,
    sink: Sink,
) -> impl futures_util::Stream<Item = Result<Bytes, BodyError>> + Send {
    let state = (stream, None::<Bytes>, Some(sink));
    futures_util::stream::unfold(state, |(mut stream, mut held, mut open)| async move {
        loop {
            match stream.next().await {
                Some(Ok(piece)) => {
                    if let Some(ready) = held.replace(piece) {
                        return Some((Ok(ready), (stream, held, open)));
                    }
                }
                Some(Err(error)) => return Some((Err(error), (stream, None, open))),
                None => {
                    if let Some(sink) = open.take() {
                        sink.close().await;
                    }
                    return held.take().map(|last| (Ok(last), (stream, None, None)));
                }
            }
        }
    })
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(AnswerBody::full(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn empty(status: StatusCode) -> Answer {
    let mut response = plain(status, Bytes::new());
    // Section 9.2, as for any answer of a function.
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let seconds = |text: &str| parse_timeout(text.as_bytes()).map(|limit| limit.map(|l| l.as_secs()));
        assert_eq!(seconds(""), Ok(None));
        assert_eq!(seconds("1"), Ok(Some(1)));
        assert_eq!(seconds("15"), Ok(Some(15)));
        assert_eq!(seconds("99999999999999999999999999"), Ok(Some(MOST_SECONDS)));
        for bad in ["0", "00", "abcd", "1.5", "-1", "+1", " 1", "1 ", "1s"] {
            assert_eq!(seconds(bad), Err(()), "{bad}");
        }
    }
}
