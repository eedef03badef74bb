//! Errors as the executor API writes them (section 4): type, message, code, version, and the headers against caches.
//!
//! One exhaustive match gives every [`GuestError`] its status, type and message. In production an unexpected failure
//! says nothing of its cause, which goes to the log; in development it is the message, or stands in `trace`.

use axum::body::Body;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;

use super::json;
use crate::executor::guests::GuestError;

/// What every unexpected failure says in production (R-43).
const INTERNAL: &str = "Internal server error.";

/// One error, before it is known who may read what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// HTTP status, and `code` in the document.
    pub(super) status: StatusCode,
    /// Stable, for programs.
    pub(super) kind: &'static str,
    /// For people.
    pub(super) message: String,
    /// The message in development mode, where it is another.
    pub(super) development: Option<String>,
    /// What led to it: for the log, and in development mode for the caller.
    pub(super) cause: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'a str,
    message: &'a str,
    code: u16,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<[&'a str; 1]>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), development: None, cause: None }
    }

    fn with_cause(self, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// R-7
    pub(super) fn no_such_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "general_unknown", "Not Found")
    }

    /// R-11
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "general_unauthorized", "Missing executor key")
    }

    /// R-3; `limit` in bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("The request is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "general_unknown", message)
    }

    /// No byte of the request's body came for too long, or not all of them in time.
    pub(super) fn body_too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "general_unknown",
            "The request's body did not arrive in time.",
        )
    }

    /// Too many bodies are being read at once.
    pub(super) fn overloaded() -> Self {
        let message = "Too many large requests at once; try again.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "general_unknown", message)
    }

    /// R-30, R-31, and bodies that cannot be read.
    pub(super) fn bad_parameter(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "general_unknown", message)
    }

    /// R-113
    pub(super) fn bad_json() -> Self {
        let message = "Execution resulted in binary response, but JSON response does not allow binaries. \
                       Use \"Accept: multipart/form-data\" header to support binaries.";
        Self::new(StatusCode::BAD_REQUEST, "execution_bad_json", message)
    }

    /// The function's answer does not fit into memory; `limit` in bytes.
    pub(super) fn answer_too_large(limit: u64) -> Self {
        let message = format!(
            "The function's answer is larger than {limit} bytes. Larger ones can be streamed: send \
             \"Accept: multipart/form-data\" and \"x-executor-response-format: 0.12.0\"."
        );
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "general_unknown", message)
    }

    /// R-43
    pub(super) fn internal(cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self {
            development: Some(cause.clone()),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "general_unknown", INTERNAL).with_cause(cause)
        }
    }

    /// The answer. Failures of ours are logged here, because here all of them pass.
    pub(super) fn respond(&self, version: &str, development: bool) -> Response<Body> {
        if self.status.is_server_error() || self.cause.is_some() {
            let cause = self.cause.as_deref().unwrap_or("-");
            tracing::warn!(status = self.status.as_u16(), kind = self.kind, cause, "/v1: {}", self.message);
        }
        let told = self.development.as_ref().filter(|_| development).unwrap_or(&self.message);
        let cause = self.cause.as_deref().filter(|cause| development && cause != told);
        let document = Document {
            r#type: self.kind,
            message: told,
            code: self.status.as_u16(),
            version,
            trace: cause.map(|cause| [cause]),
        };
        let mut response = Response::new(Body::from(json::write(&document)));
        *response.status_mut() = self.status;
        for (name, value) in [
            (header::CONTENT_TYPE, "application/json; charset=UTF-8"),
            (header::CACHE_CONTROL, "no-cache, no-store, must-revalidate"),
            (header::EXPIRES, "0"),
            (header::PRAGMA, "no-cache"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

impl From<GuestError> for Problem {
    fn from(error: GuestError) -> Self {
        use StatusCode as S;
        let not_found = |message| Self::new(S::NOT_FOUND, "runtime_not_found", message);
        let conflict = |message| Self::new(S::CONFLICT, "runtime_conflict", message);
        match error {
            GuestError::Conflict { pending: false } => conflict("Runtime already exists "),
            GuestError::Conflict { pending: true } => {
                conflict("A runtime with the same ID is already being created. Attempt a execution soon.")
            }
            GuestError::NotFound => not_found("Runtime not found"),
            GuestError::NotStarted => {
                not_found("Runtime not found. Please start it first or provide runtime-related parameters.")
            }
            GuestError::Vanished => not_found("Runtime no longer exists."),
            GuestError::BadRequest(message) => {
                let message = or_default(message, "Execution request was invalid.");
                Self::new(S::BAD_REQUEST, "execution_bad_request", message)
            }
            GuestError::BuildFailed(output) => {
                let output = String::from_utf8_lossy(output.trim_ascii()).into_owned();
                let message = or_default(output, "Build command failed.");
                Self::new(S::BAD_REQUEST, "build_failed", message)
            }
            GuestError::RuntimeFailed(message) => {
                Self::new(S::BAD_REQUEST, "runtime_failed", or_default(message, "Runtime failed."))
            }
            GuestError::RuntimeTimeout(cause) => {
                let late = Self::new(S::BAD_REQUEST, "runtime_timeout", "Timed out waiting for runtime.");
                Self { cause, ..late }
            }
            GuestError::CannotCreate(cause) => {
                let cause = Self::from(*cause);
                let told = |why: &str| {
                    format!("An internal curl error has occurred while starting runtime! Error Msg: {why}")
                };
                Self {
                    development: cause.development.as_deref().map(told),
                    cause: cause.cause,
                    ..Self::new(S::INTERNAL_SERVER_ERROR, "general_unknown", told(&cause.message))
                }
            }
            GuestError::Transport { number, cause } => {
                let told =
                    format!("Internal curl error has occurred within the executor! Error Number: {number}");
                Self { development: Some(told), ..Self::internal(cause) }
            }
            GuestError::CommandFailed => {
                Self::new(S::INTERNAL_SERVER_ERROR, "command_failed", "Failed to execute command.")
            }
            GuestError::CommandTimeout => {
                Self::new(S::INTERNAL_SERVER_ERROR, "command_timeout", "Operation timed out.")
            }
            GuestError::LogsTimeout => {
                Self::new(S::GATEWAY_TIMEOUT, "logs_timeout", "Timed out waiting for logs.")
            }
            GuestError::LogsNotFound => {
                Self::new(S::INTERNAL_SERVER_ERROR, "general_unknown", error.to_string())
            }
            // The caller can do something about these, so they are told in production, too.
            GuestError::CannotStart(cause) | GuestError::Unavailable(cause) => {
                Self::new(S::INTERNAL_SERVER_ERROR, "general_unknown", cause)
            }
            GuestError::Internal(cause) => Self::internal(cause),
        }
    }
}

fn or_default(message: String, default: &str) -> String {
    if message.is_empty() { default.to_owned() } else { message }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn document(problem: impl Into<Problem>, development: bool) -> String {
        let problem = problem.into();
        let response = problem.respond("0.27.0", development);
        assert_eq!(response.status(), problem.status);
        let headers: Vec<_> =
            response.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(
            headers,
            [
                "content-type: application/json; charset=UTF-8",
                "cache-control: no-cache, no-store, must-revalidate",
                "expires: 0",
                "pragma: no-cache"
            ]
        );
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn r_40_the_document_byte_for_byte() {
        assert_eq!(
            document(GuestError::NotFound, false).await,
            r#"{"type":"runtime_not_found","message":"Runtime not found","code":404,"version":"0.27.0"}"#
        );
        assert_eq!(
            document(GuestError::RuntimeTimeout(Some("no image".into())), true).await,
            r#"{"type":"runtime_timeout","message":"Timed out waiting for runtime.","code":400,"version":"0.27.0","trace":["no image"]}"#
        );
        let utf8 = document(GuestError::BuildFailed(b" \xc3\xa4/\"\xff\n".to_vec()), false).await;
        assert_eq!(
            utf8,
            "{\"type\":\"build_failed\",\"message\":\"ä/\\\"\u{fffd}\",\"code\":400,\"version\":\"0.27.0\"}"
        );
    }

    /// Error, then status, type and message in production; the message in development where it is another.
    #[tokio::test]
    async fn r_42_every_error_has_its_status_type_and_message() {
        let curl = "Internal curl error has occurred within the executor! Error Number: 52";
        let starting = "An internal curl error has occurred while starting runtime! Error Msg:";
        let created = |error| GuestError::CannotCreate(Box::new(error));
        let internal = || GuestError::Internal("the disk is full".into());
        for (error, told, development) in [
            (GuestError::Conflict { pending: false }, "409 runtime_conflict Runtime already exists ".to_owned(), None),
            (
                GuestError::Conflict { pending: true },
                "409 runtime_conflict A runtime with the same ID is already being created. Attempt a execution soon."
                    .to_owned(),
                None,
            ),
            (GuestError::NotFound, "404 runtime_not_found Runtime not found".into(), None),
            (
                GuestError::NotStarted,
                "404 runtime_not_found Runtime not found. Please start it first or provide runtime-related parameters."
                    .into(),
                None,
            ),
            (GuestError::Vanished, "404 runtime_not_found Runtime no longer exists.".into(), None),
            (GuestError::BadRequest("No.".into()), "400 execution_bad_request No.".into(), None),
            (
                GuestError::BadRequest(String::new()),
                "400 execution_bad_request Execution request was invalid.".into(),
                None,
            ),
            (GuestError::BuildFailed(b"a\nb\n".to_vec()), "400 build_failed a\nb".into(), None),
            (GuestError::BuildFailed(b" \r\n".to_vec()), "400 build_failed Build command failed.".into(), None),
            (GuestError::RuntimeFailed("timed out".into()), "400 runtime_failed timed out".into(), None),
            (GuestError::RuntimeFailed(String::new()), "400 runtime_failed Runtime failed.".into(), None),
            (
                GuestError::RuntimeTimeout(None),
                "400 runtime_timeout Timed out waiting for runtime.".into(),
                None,
            ),
            (created(GuestError::NotFound), format!("500 general_unknown {starting} Runtime not found"), None),
            (
                created(internal()),
                format!("500 general_unknown {starting} {INTERNAL}"),
                Some(format!("{starting} the disk is full")),
            ),
            (
                GuestError::Transport { number: 52, cause: "empty reply".into() },
                format!("500 general_unknown {INTERNAL}"),
                Some(curl.to_owned()),
            ),
            (GuestError::CommandFailed, "500 command_failed Failed to execute command.".into(), None),
            (GuestError::CommandTimeout, "500 command_timeout Operation timed out.".into(), None),
            (GuestError::LogsTimeout, "504 logs_timeout Timed out waiting for logs.".into(), None),
            (
                GuestError::LogsNotFound,
                "500 general_unknown Runtime not ready. Container not found.".into(),
                None,
            ),
            (internal(), format!("500 general_unknown {INTERNAL}"), Some("the disk is full".into())),
        ] {
            let problem = Problem::from(error);
            let head = format!("{} {}", problem.status.as_u16(), problem.kind);
            assert_eq!(format!("{head} {}", problem.message), told);
            let production = document(problem.clone(), false).await;
            assert!(!production.contains("disk") && !production.contains("trace"), "{production}");
            let text: serde_json::Value = serde_json::from_str(&document(problem, true).await).unwrap();
            let expected = development.unwrap_or_else(|| told[head.len() + 1..].to_owned());
            assert_eq!(text["message"], expected.as_str());
        }
    }

    #[tokio::test]
    async fn r_43_development_shows_the_cause_and_production_does_not() {
        let broken = || GuestError::Transport { number: 56, cause: "reset".into() };
        assert_eq!(
            document(broken(), true).await,
            r#"{"type":"general_unknown","message":"Internal curl error has occurred within the executor! Error Number: 56","code":500,"version":"0.27.0","trace":["reset"]}"#
        );
        assert_eq!(
            document(broken(), false).await,
            r#"{"type":"general_unknown","message":"Internal server error.","code":500,"version":"0.27.0"}"#
        );
    }

    #[tokio::test]
    async fn r_3_r_7_r_11_r_113_ours() {
        for (problem, told) in [
            (
                Problem::no_such_route(),
                r#"{"type":"general_unknown","message":"Not Found","code":404,"version":"0.27.0"}"#,
            ),
            (
                Problem::unauthorized(),
                r#"{"type":"general_unauthorized","message":"Missing executor key","code":401,"version":"0.27.0"}"#,
            ),
            (
                Problem::too_large(5),
                r#"{"type":"general_unknown","message":"The request is larger than 5 bytes.","code":413,"version":"0.27.0"}"#,
            ),
            (
                Problem::bad_json(),
                r#"{"type":"execution_bad_json","message":"Execution resulted in binary response, but JSON response does not allow binaries. Use \"Accept: multipart/form-data\" header to support binaries.","code":400,"version":"0.27.0"}"#,
            ),
        ] {
            assert_eq!(document(problem, false).await, told);
        }
    }
}
