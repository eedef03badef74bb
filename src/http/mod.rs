//! Everything that knows HTTP is our front.
//!
//! [`router`] is the table of routes; [`call`] turns a request into an execution and back; [`error`] is the only file
//! with our status codes; [`admin`] is the executor's own API below `/_/`; [`connection`] bounds what a client may
//! do with time.

pub mod admin;
pub mod call;
pub mod connection;
pub mod error;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use tower_http::catch_panic::CatchPanicLayer;

use crate::executor::Executor;
use crate::instance::Secret;

/// What the front needs to know.
pub struct Front {
    /// Whom it calls.
    pub executor: Arc<Executor>,
    /// What callers must send; none: everybody may call.
    pub secret: Option<Secret>,
    /// What operators must send.
    pub admin_secret: Secret,
    /// Sizes and times.
    pub limits: FrontLimits,
}

/// Bounds on what one request may cost.
#[derive(Debug, Clone)]
pub struct FrontLimits {
    /// Bytes of a request body.
    pub max_body: u64,
    /// Time without a byte of a request body.
    pub body_idle: Duration,
}

/// The routes.
pub fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/_/health", get(admin::health))
        .route("/_/executions/{id}", get(admin::execution))
        .route("/_/{*rest}", any(error::no_such_route))
        .fallback(call::call)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CatchPanicLayer::custom(error::panicked))
        .with_state(front)
}
