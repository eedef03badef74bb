//! The executor's own API below `/_/`: for operators, with their own key, never the callers' secret.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};

use super::Front;
use super::call::new_request_id;
use super::error::Problem;

/// `GET /_/health`: open, because load balancers have no key.
pub async fn health(State(front): State<Arc<Front>>) -> Response {
    let closing = front.executor.is_closing();
    let status = if closing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let text = if closing { "draining" } else { "pass" };
    (status, Json(serde_json::json!({ "status": text, "instances": front.executor.instances() })))
        .into_response()
}

/// `GET /_/executions/{request id}`: what a recent execution wrote.
pub async fn execution(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Response {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !front.admin_secret.matches(key.unwrap_or_default()) {
        let detail =
            "Send the operator's key as `Authorization: Bearer …`; it is in the data folder.".to_owned();
        return Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Wrong or missing key",
            "front",
            detail,
        )
        .respond(&new_request_id());
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
