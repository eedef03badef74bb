//! Everything that knows HTTP is our front.
//!
//! [`Service`] is what a connection serves: calls go straight to [`call`], the executor's own API below `/_/` through
//! the routes of [`router`]; [`error`] is the only file with our status codes; [`admin`] has the API's handlers;
//! [`connection`] bounds what a client may do with time.

pub mod admin;
pub mod body;
pub mod call;
pub mod connection;
pub mod error;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use self::body::AnswerBody;
use crate::executor::Executor;
use crate::instance::Secret;

/// The first segment of the executor's own paths.
const OWN: &str = "/_/";

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

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    front: Arc<Front>,
    router: Router,
}

impl Service {
    /// Serves what `front` knows.
    pub fn new(front: Front) -> Self {
        let front = Arc::new(front);
        Self { router: router(Arc::clone(&front)), front }
    }

    /// Answers one request; a panic of ours becomes a 500.
    pub async fn serve(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        if request.uri().path().starts_with(OWN) {
            let answer = self.router.clone().oneshot(request).await;
            return answer.unwrap_or_else(|never| match never {}).map(AnswerBody::own);
        }
        // A call is the warm path: the router's clones and boxes would cost it a tenth of its time.
        match AssertUnwindSafe(call::call(&self.front, request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => error::panicked(panic).map(AnswerBody::own),
        }
    }
}

fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/_/health", get(admin::health))
        .route("/_/executions/{id}", get(admin::execution))
        .fallback(any(error::no_such_route))
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CatchPanicLayer::custom(error::panicked))
        .with_state(front)
}
