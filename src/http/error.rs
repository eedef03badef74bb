//! Errors as problem details (RFC 9457), and which status the failures of calls and deployments have.
//!
//! Two fronts owe other tables to their specifications, and have them: `contract` for a function that is served alone,
//! `v1::error` for the executor API. What is wrong with a request itself is found, and given its status, where it is read.
//!
//! `type` is stable and meant for programs; `detail` is for people and may change; `part` says where to look. Nothing
//! of Docker, a database or a function's stack is in any of them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderValue};
use http::{HeaderName, StatusCode};
use serde::Serialize;

use crate::build::BuildError;
use crate::execution::BodyError;
use crate::executor::{BUILD_RETRY, CallError, DeployError, DeskError, Stage};
use crate::function::ManifestError;
use crate::pool::StartPart;
use crate::state::StoreError;

/// The fixed text of section 5.3 of the runtime protocol.
pub const UNAUTHORIZED: &str = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";

/// Carries the request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is wrong, for a program and for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// Last part of the stable `type`.
    pub kind: &'static str,
    /// The same in words, the same for every occurrence.
    pub title: &'static str,
    /// Which part failed: front, function, runtime, adapter, store.
    pub part: &'static str,
    /// This occurrence, and what to do.
    pub detail: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    part: &'a str,
    request_id: &'a str,
}

impl Problem {
    /// A problem without `retry_after`.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        part: &'static str,
        detail: String,
    ) -> Self {
        Self { status, kind, title, part, detail, retry_after: None }
    }

    /// The response, with the request's id.
    pub fn respond(&self, request_id: &Arc<str>) -> Response {
        let document = Document {
            r#type: format!("urn:executor:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            part: self.part,
            request_id,
        };
        let json = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds as u64));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(
                header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        response
    }
}

/// The answer to a wrong or missing secret.
pub fn unauthorized() -> Response {
    (StatusCode::UNAUTHORIZED, [(header::CONTENT_TYPE, "text/plain")], UNAUTHORIZED).into_response()
}

/// What a caller is told of a failed call. `None`: the function itself failed, which is a 500 without a body.
pub fn of_call(error: &CallError) -> Option<Problem> {
    let (status, kind, title, part) = kind_of(error)?;
    let mut problem = Problem::new(status, kind, title, part, error.to_string());
    match error {
        CallError::Unknown(name) => problem.detail = unknown(name),
        CallError::Broken(why) => problem.detail = broken(why),
        CallError::QueueFull(_) | CallError::Closing | CallError::Overloaded => {
            problem.retry_after = Some(Duration::from_secs(1));
        }
        CallError::CannotStart(_, after) => problem.retry_after = Some(*after),
        CallError::Store(StoreError::Unavailable(_) | StoreError::Closed) => {
            problem.retry_after = Some(Duration::from_secs(1));
            problem.detail = "The state store does not answer; the executor's log says why.".into();
        }
        CallError::Store(_) => problem.detail = "The state store failed; the executor's log says why.".into(),
        CallError::Deadline(limit, stage) => problem.detail = late(*limit, *stage),
        CallError::NotBuilt(why) => {
            problem.retry_after = Some(BUILD_RETRY);
            if matches!(**why, BuildError::Io { .. }) {
                problem.detail = "The function could not be built; the executor's log says why.".into();
            }
        }
        CallError::Key(_)
        | CallError::Died(_)
        | CallError::Body(_)
        | CallError::Conflict
        | CallError::Changed
        | CallError::StateTooNew { .. }
        | CallError::WrongModel { .. }
        | CallError::Full(_)
        | CallError::NoStore(_)
        | CallError::IdempotencyKey(_)
        | CallError::KeyReused
        | CallError::TimerPath
        | CallError::Fired
        | CallError::Replaced
        | CallError::Raised => {}
    }
    Some(problem)
}

/// The table: every reason has one status, one type, one part.
fn kind_of(error: &CallError) -> Option<(StatusCode, &'static str, &'static str, &'static str)> {
    use StatusCode as S;
    Some(match error {
        CallError::Unknown(_) => (S::NOT_FOUND, "unknown-function", "Unknown function", "front"),
        CallError::Broken(_) => {
            (S::SERVICE_UNAVAILABLE, "broken-function", "The function is not deployable", "function")
        }
        CallError::NotBuilt(_) => {
            (S::SERVICE_UNAVAILABLE, "build-failed", "The function could not be built", "function")
        }
        CallError::Key(_) => (S::BAD_REQUEST, "no-state-key", "The request does not name its state", "front"),
        CallError::QueueFull(_) => {
            (S::TOO_MANY_REQUESTS, "queue-full", "Too many calls wait for this function", "front")
        }
        CallError::CannotStart(why, _) => {
            let part = match why.part {
                StartPart::Function => "function",
                StartPart::Runtime => "runtime",
                StartPart::Adapter => "adapter",
            };
            (S::SERVICE_UNAVAILABLE, "cannot-start", "The function cannot be started", part)
        }
        CallError::Died(_) => {
            (S::BAD_GATEWAY, "instance-ended", "The instance ended during the call", "function")
        }
        CallError::Deadline(_, stage) => {
            let part = match stage {
                Stage::Build | Stage::Entity | Stage::Function => "function",
                Stage::State => "store",
                Stage::Instance => "adapter",
            };
            (S::GATEWAY_TIMEOUT, "deadline", "No answer in time", part)
        }
        CallError::Raised => return None,
        CallError::Body(BodyError::TooLarge(_)) => {
            (S::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", "front")
        }
        CallError::Body(BodyError::Idle(_)) => {
            (S::REQUEST_TIMEOUT, "body-idle", "The body came too slowly", "front")
        }
        CallError::Body(BodyError::Late(_)) => {
            (S::GATEWAY_TIMEOUT, "deadline", "No answer in time", "function")
        }
        CallError::Body(BodyError::Broken(_)) => {
            (S::BAD_REQUEST, "body-broken", "The body ended early", "front")
        }
        CallError::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", "Too much at once", "front"),
        CallError::Store(StoreError::Unavailable(_) | StoreError::Closed) => {
            (S::SERVICE_UNAVAILABLE, "store-unavailable", "The state store is not available", "store")
        }
        CallError::Store(_) => (S::INTERNAL_SERVER_ERROR, "store-failed", "The state store failed", "store"),
        CallError::Conflict | CallError::Changed | CallError::Fired | CallError::Replaced => {
            (S::CONFLICT, "state-conflict", "The state was changed by others", "store")
        }
        CallError::StateTooNew { .. } => {
            (S::SERVICE_UNAVAILABLE, "state-too-new", "The state is newer than the function", "function")
        }
        CallError::WrongModel { .. } => {
            (S::SERVICE_UNAVAILABLE, "state-model", "The state has another model", "function")
        }
        CallError::Full(_) => (S::INSUFFICIENT_STORAGE, "too-many-entities", "Too many entities", "function"),
        CallError::NoStore(_) => {
            (S::SERVICE_UNAVAILABLE, "unknown-store", "The function's store is not there", "store")
        }
        CallError::IdempotencyKey(_) => {
            (S::BAD_REQUEST, "bad-idempotency-key", "The idempotency key cannot be used", "front")
        }
        CallError::KeyReused => (
            S::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The idempotency key was used before",
            "front",
        ),
        CallError::TimerPath => (S::NOT_FOUND, "timer-path", "Only timers call this path", "front"),
        CallError::Closing => {
            (S::SERVICE_UNAVAILABLE, "shutting-down", "The executor is shutting down", "front")
        }
    })
}

/// What an operator is told of a deployment that failed before its answer began.
pub fn of_deploy(error: &DeployError) -> Problem {
    use StatusCode as S;
    let status = match error {
        DeployError::Name(_) | DeployError::Build(BuildError::Refused(_) | BuildError::Manifest(_)) => {
            S::BAD_REQUEST
        }
        DeployError::Unknown(_) => S::NOT_FOUND,
        DeployError::Single | DeployError::InFolder(_) | DeployError::NoVersion(..) => S::CONFLICT,
        DeployError::Start(_) | DeployError::Closing | DeployError::Build(BuildError::Adapter(_)) => {
            S::SERVICE_UNAVAILABLE
        }
        DeployError::Build(BuildError::QueueFull(_)) => S::TOO_MANY_REQUESTS,
        DeployError::Build(_) => S::INTERNAL_SERVER_ERROR,
    };
    let mut problem = Problem::new(status, error.kind(), "Not done", "front", error.to_string());
    if status == S::TOO_MANY_REQUESTS || matches!(error, DeployError::Closing) {
        problem.retry_after = Some(Duration::from_secs(1));
    }
    problem
}

/// What an operator is told who did not get or change state.
pub fn of_desk(error: &DeskError) -> Problem {
    use StatusCode as S;
    let (status, kind) = match error {
        DeskError::NoStore(_) => (S::NOT_FOUND, "unknown-store"),
        DeskError::Absent => (S::NOT_FOUND, "unknown-key"),
        DeskError::Changed(_) => (S::PRECONDITION_FAILED, "state-conflict"),
        DeskError::NotPlain(_) => (S::CONFLICT, "state-model"),
        DeskError::TooLarge(..)
        | DeskError::Store(StoreError::TooLarge { .. } | StoreError::TooMany { .. }) => {
            (S::PAYLOAD_TOO_LARGE, "body-too-large")
        }
        DeskError::Key(_) => (S::BAD_REQUEST, "bad-key"),
        DeskError::NotJson(_) => (S::BAD_REQUEST, "not-json"),
        DeskError::Reserved => (S::BAD_REQUEST, "reserved-bytes"),
        DeskError::Store(StoreError::Unavailable(_) | StoreError::Closed) => {
            (S::SERVICE_UNAVAILABLE, "store-unavailable")
        }
        DeskError::Store(_) => (S::INTERNAL_SERVER_ERROR, "store-failed"),
    };
    let mut problem = Problem::new(status, kind, "Not done", "store", error.to_string());
    if let DeskError::Store(cause) = error {
        // Paths and addresses are for the log.
        tracing::error!(error = cause as &dyn std::error::Error, "state store");
        problem.detail = "The state store failed; the executor's log says why.".into();
    }
    if status == S::SERVICE_UNAVAILABLE {
        problem.retry_after = Some(Duration::from_secs(1));
    }
    problem
}

fn unknown(name: &str) -> String {
    if name.is_empty() {
        return "The path names no function. Call /<function> or /<function>/<path>; `executor list` shows them.".into();
    }
    format!("There is no function `{name}`. `executor list` shows which there are; `executor new` makes one.")
}

fn broken(why: &ManifestError) -> String {
    let file = why.file.file_name().unwrap_or_default().to_string_lossy();
    match why.line {
        Some(line) => format!("{file}:{line}: {}", why.message),
        None => format!("{file}: {}", why.message),
    }
}

fn late(limit: Duration, stage: Stage) -> String {
    let stage = match stage {
        Stage::Build => "the function was still being built",
        Stage::Entity => "it was still waiting for earlier calls on the same state",
        Stage::State => "its state was still being read or stored",
        Stage::Instance => "no instance was ready; all are busy or starting",
        Stage::Function => "the function had not answered",
    };
    format!("The function's timeout of {limit:?} passed while {stage}.")
}

/// The folder of a site is gone or closed to us; the log says more.
pub fn broken_site() -> Problem {
    let detail = "The folder of this site cannot be opened; the executor's log says why.".to_owned();
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "broken-function",
        "Site cannot be served",
        "function",
        detail,
    )
}

/// 405 for routes of our own.
pub async fn method_not_allowed() -> Response {
    let detail = "This path does not know that method.".to_owned();
    let kind = "method-not-allowed";
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, kind, "Method not allowed", "front", detail);
    let mut response = problem.respond(&super::call::new_request_id());
    // The router knows which methods the path has.
    response.headers_mut().remove(header::ALLOW);
    response
}

/// 404 below `/_/`.
pub async fn no_such_route() -> Response {
    let detail = "The executor's own API has no such path.".to_owned();
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "Unknown path", "front", detail)
        .respond(&super::call::new_request_id())
}

/// A defect of ours: the client learns no more than that, the log has the rest.
#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
pub fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!("a request made the executor panic, which is a defect: {}", text.unwrap_or("unknown"));
    let detail = "The executor has a defect; its log has the details.".to_owned();
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", "front", detail)
        .respond(&super::call::new_request_id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::StartFailure;
    use crate::state::Failure;
    use crate::state_key::KeyError;

    fn start(part: StartPart) -> CallError {
        let message = "it does not start".to_owned();
        CallError::CannotStart(
            Arc::new(StartFailure { part, message, stack: "at secret.js:1".into() }),
            Duration::ZERO,
        )
    }

    fn not_built(error: BuildError) -> CallError {
        CallError::NotBuilt(Arc::new(error))
    }

    fn unavailable() -> StoreError {
        let cause = Arc::new(std::io::Error::other("/secret/path: disk full"));
        StoreError::Unavailable(Failure { doing: "committing".into(), cause })
    }

    /// Status, type, part, seconds of `Retry-After`; none: an empty 500.
    #[test]
    fn the_table() {
        let broken =
            ManifestError { file: "/secret/function.toml".into(), line: Some(3), message: "bad".into() };
        let late = |stage| CallError::Deadline(Duration::from_secs(1), stage);
        let corrupt = StoreError::Corrupt { what: "/secret".into() };
        for (error, told) in [
            (CallError::Unknown("f".into()), "404 unknown-function front -"),
            (CallError::Broken(Arc::new(broken)), "503 broken-function function -"),
            (not_built(BuildError::Failed { code: 1, tail: "why".into() }), "503 build-failed function 30"),
            (
                not_built(BuildError::Io { doing: "/secret".into(), source: std::io::Error::other("full") }),
                "503 build-failed function 30",
            ),
            (late(Stage::Build), "504 deadline function -"),
            (CallError::Key(KeyError::TooLong(600)), "400 no-state-key front -"),
            (CallError::QueueFull(3), "429 queue-full front 1"),
            (start(StartPart::Function), "503 cannot-start function 1"),
            (start(StartPart::Runtime), "503 cannot-start runtime 1"),
            (start(StartPart::Adapter), "503 cannot-start adapter 1"),
            (CallError::Died("it exited".into()), "502 instance-ended function -"),
            (late(Stage::Entity), "504 deadline function -"),
            (late(Stage::State), "504 deadline store -"),
            (late(Stage::Instance), "504 deadline adapter -"),
            (late(Stage::Function), "504 deadline function -"),
            (CallError::Body(BodyError::TooLarge(5)), "413 body-too-large front -"),
            (CallError::Body(BodyError::Idle(Duration::from_secs(1))), "408 body-idle front -"),
            (CallError::Body(BodyError::Late(Duration::from_secs(1))), "504 deadline function -"),
            (CallError::Body(BodyError::Broken("x".into())), "400 body-broken front -"),
            (CallError::Store(unavailable()), "503 store-unavailable store 1"),
            (CallError::Store(StoreError::Closed), "503 store-unavailable store 1"),
            (CallError::Store(corrupt), "500 store-failed store -"),
            (CallError::Conflict, "409 state-conflict store -"),
            (CallError::Overloaded, "503 overloaded front 1"),
            (CallError::Closing, "503 shutting-down front 1"),
        ] {
            let problem = of_call(&error).expect("a problem");
            assert!(
                !problem.detail.contains("secret"),
                "nothing unread reaches a client: {}",
                problem.detail
            );
            assert!(!problem.detail.is_empty() && !problem.title.is_empty());
            let response = problem.respond(&"id".into());
            let retry =
                response.headers().get(header::RETRY_AFTER).map_or("-", |after| after.to_str().unwrap());
            assert_eq!(
                format!("{} {} {} {retry}", problem.status.as_u16(), problem.kind, problem.part),
                told
            );
        }
        assert_eq!(of_call(&CallError::Raised), None);
    }
}
