//! The executor's own API below `/_/`: for operators, with their own key, never the callers' secret.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};

use super::Front;
use super::call::new_request_id;
use super::error::Problem;

pub mod functions;
pub mod state;

/// `GET /_/health`: open, because load balancers have no key; so it tells states and no names.
///
/// `degraded` is a 200: functions without state go on, and taking every executor out would not bring the store back.
pub async fn health(State(front): State<Arc<Front>>) -> Response {
    let closing = front.executor.is_closing();
    let asked = front.executor.stores().all().map(|store| store.health());
    let store = futures_util::future::join_all(asked).await.iter().all(Result::is_ok);
    let status = if closing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let text = match (closing, store) {
        (true, _) => "draining",
        (false, true) => "pass",
        (false, false) => "degraded",
    };
    let parts = serde_json::json!({ "store": if store { "pass" } else { "fail" } });
    let instances = front.executor.instances();
    (status, Json(serde_json::json!({ "status": text, "instances": instances, "parts": parts })))
        .into_response()
}

/// Whether a request has the operator's key.
pub fn is_operator(front: &Front, headers: &HeaderMap) -> bool {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    front.admin_secret.matches(key.unwrap_or_default())
}

/// Whether the operator's key was sent; else the answer.
#[expect(clippy::result_large_err, reason = "it is sent at once")]
fn authorize(front: &Front, headers: &HeaderMap) -> Result<(), Response> {
    if is_operator(front, headers) {
        return Ok(());
    }
    let detail = "Send the operator's key as `Authorization: Bearer …`; it is in the data folder.".to_owned();
    let title = "Wrong or missing key";
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", title, "front", detail);
    Err(problem.respond(&new_request_id()))
}

/// `GET /_/metrics`: what Prometheus and its like collect. It names functions, so it asks for the key.
pub async fn metrics(State(front): State<Arc<Front>>, headers: HeaderMap) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], front.executor.metrics()).into_response()
}

/// `GET /_/executions/{request id}`: what a recent execution wrote.
pub async fn execution(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    if let Err(refused) = authorize(&front, &headers) {
        return refused;
    }
    match front.executor.record(&id) {
        Some(record) => Json(record).into_response(),
        None => {
            let detail =
                "Nothing is kept of that execution: it wrote nothing, or it is too long ago.".to_owned();
            Problem::new(StatusCode::NOT_FOUND, "unknown-execution", "Unknown execution", "front", detail)
                .respond(&new_request_id())
        }
    }
}
