//! Everything that knows HTTP is our front.
//!
//! [`Service`] is what a connection serves: calls go straight to [`call`], the executor's own API below `/_/` through
//! the routes of [`router`], the executor API below `/v1` to [`v1`]; [`error`] has the status codes of our own API and
//! of calls; [`admin`] has our API's handlers; [`connection`] bounds what a client may do with time.

pub mod admin;
pub mod body;
pub mod call;
pub mod connection;
pub mod contract;
pub mod error;
pub mod site;
pub mod sites;
pub mod v1;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{any, delete, get, post};
use futures_util::FutureExt;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use self::admin::{functions, state};
use self::body::AnswerBody;
use self::contract::{Contract, ContractOptions};
use self::sites::Sites;
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
    /// The executor API below `/v1`; none: its paths are nobody's (`executor run`: the function's).
    pub v1: Option<v1::V1>,
    /// Sizes and times.
    pub limits: FrontLimits,
    /// Functions whose files are the answer.
    pub sites: Sites,
    /// Room for operators who follow state.
    pub followers: Arc<Semaphore>,
}

/// Bounds on what one request may cost.
#[derive(Debug, Clone)]
pub struct FrontLimits {
    /// Bytes of a request body.
    pub max_body: u64,
    /// Bytes of an archive that is deployed.
    pub max_archive: u64,
    /// Time without a byte of a request body.
    pub body_idle: Duration,
}

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    front: Arc<Front>,
    router: Router,
    contract: Option<Arc<Contract>>,
}

impl Service {
    /// Serves what `front` knows.
    pub fn new(front: Front) -> Self {
        let front = Arc::new(front);
        Self { router: router(Arc::clone(&front)), front, contract: None }
    }

    /// Serves one function under the runtime contract; the executor's own API answers only its operator.
    pub fn alone(front: Front, options: ContractOptions) -> Self {
        let (executor, secret) = (Arc::clone(&front.executor), front.secret.clone());
        let contract = Contract::new(executor, secret, front.limits.clone(), options);
        Self { contract: Some(Arc::new(contract)), ..Self::new(front) }
    }

    /// Answers one request; a panic of ours becomes a 500.
    pub async fn serve(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let ours = request.uri().path().starts_with(OWN);
        if ours && (self.contract.is_none() || admin::is_operator(&self.front, request.headers())) {
            let answer = self.router.clone().oneshot(request).await;
            return answer.unwrap_or_else(|never| match never {}).map(AnswerBody::own);
        }
        if let Some(v1) = &self.front.v1
            && v1::is_ours(request.uri().path())
        {
            return v1::answer(&self.front, v1, request).await;
        }
        // A call is the warm path: the router's clones and boxes would cost it a tenth of its time.
        let answer = async {
            match &self.contract {
                None => call::call(&self.front, request).await,
                Some(contract) => contract.serve(request).await,
            }
        };
        match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => error::panicked(panic).map(AnswerBody::own),
        }
    }
}

fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/_/health", get(admin::health))
        .route("/_/metrics", get(admin::metrics))
        .route("/_/executions/{id}", get(admin::execution))
        .route("/_/functions", get(functions::list))
        .route("/_/functions/{name}", get(functions::one).put(functions::deploy).delete(functions::remove))
        .route("/_/functions/{name}/rollback", post(functions::rollback))
        .route("/_/builds/{id}", delete(functions::cancel))
        .route("/_/builds/{id}/log", get(functions::log))
        .route("/_/keys/rotate", post(state::rotate))
        .route("/_/state/{function}", get(state::function).post(state::import))
        .route("/_/state/{function}/{key}", get(state::get).put(state::put).delete(state::delete))
        .route("/_/state/{function}/{key}/history", get(state::history))
        .fallback(any(error::no_such_route))
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CatchPanicLayer::custom(error::panicked))
        .with_state(front)
}
