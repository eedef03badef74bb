//! One call on its way through the parts: entity, state, place in an instance, function, commit, answer.
//!
//! Invariants: the answer is given after its state is durable; a call that raised, died or was late changes no state;
//! every wait ends at the request's deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout_at;

use super::deploy::Stand;
use super::stateful::Fired;
use crate::build::BuildError;
use crate::execution::{BODY_TIME, Body, BodyError, Level, LogLine, Request, Response, Timings};
use crate::function::ManifestError;
use crate::headers::finish_content_type;
use crate::link::message::{Fault, ResultHead, StateIn};
use crate::link::{Call, Logs, Reply};
use crate::pool::{Channel, Lease, Refusal, StartFailure};
use crate::state::StoreError;
use crate::state_key::KeyError;

use super::{Deployed, Deployment, Executor};

/// How often a call is run again with fresh state after somebody else changed it.
pub(super) const CONFLICT_RETRIES: u32 = 5;

/// What became of a call.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, or why there is none.
    pub result: Result<Response, CallError>,
    /// Where the time went, in either case.
    pub timings: Timings,
    /// What the function wrote, if anything; a streamed answer may still add lines.
    pub logs: Option<Logs>,
}

/// Where a call stood when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for the function's first build.
    Build,
    /// Waiting for an earlier call on the same entity.
    Entity,
    /// Reading or committing state.
    State,
    /// Waiting for a place in an instance, or for one to start.
    Instance,
    /// In the function.
    Function,
}

/// Why a call has no answer from its function. What a client may know of it is decided in `http::error`.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No function of that name.
    #[error("there is no function `{0}`")]
    Unknown(String),
    /// Its manifest is wrong.
    #[error("{0}")]
    Broken(Arc<ManifestError>),
    /// Its first build failed.
    #[error("the function could not be built: {0}")]
    NotBuilt(Arc<BuildError>),
    /// The request does not say which entity it is about.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// Too many wait already.
    #[error("{0} calls wait for this function already")]
    QueueFull(usize),
    /// No instance can be started.
    #[error("{}", .0.message)]
    CannotStart(Arc<StartFailure>, Duration),
    /// The instance died during the call.
    #[error("the function's instance ended during the call: {0}")]
    Died(Arc<str>),
    /// The deadline passed.
    #[error("no answer within {0:?}")]
    Deadline(Duration, Stage),
    /// The function raised or returned no response. Details are in its log.
    #[error("the function failed")]
    Raised,
    /// The request's body broke off.
    #[error("{0}")]
    Body(#[from] BodyError),
    /// Too many large bodies are being read at the same time.
    #[error("the executor reads as many large bodies as it has room for; try again soon")]
    Overloaded,
    /// The state store failed.
    #[error("{0}")]
    Store(StoreError),
    /// Others changed the state each time.
    #[error("the state was changed by others {CONFLICT_RETRIES} times in a row")]
    Conflict,
    /// Others changed the state, and the function wants its caller to hear of it.
    #[error("the state was changed by another executor meanwhile; read it again and decide")]
    Changed,
    /// The state was written by a newer version of the function.
    #[error(
        "this state has version {found} of the function's schema, and the function served here knows up to {known}; deploy the newer function"
    )]
    StateTooNew {
        /// With the state.
        found: u32,
        /// In the function's manifest.
        known: u32,
    },
    /// The state was written with another model.
    #[error(
        "this state was written with the model `{found}`, and the function now declares `{model}`; use another key or function, or delete the state"
    )]
    WrongModel {
        /// With the state.
        found: String,
        /// In the function's manifest.
        model: String,
    },
    /// The function has as many entities as it may have.
    #[error("this function keeps state for {0} keys already, which is its limit ([state] max-entities)")]
    Full(u64),
    /// No store of the name that the function gives.
    #[error(
        "the function keeps its state in the store `{0}`, which this executor does not have; start it with --store {0}=URL"
    )]
    NoStore(String),
    /// The idempotency key is not one.
    #[error("the Idempotency-Key of this request cannot be used: {0}")]
    IdempotencyKey(String),
    /// The idempotency key belongs to another request.
    #[error("this Idempotency-Key was used with another method, path, query or body; use a new one")]
    KeyReused,
    /// Only timers call these paths.
    #[error("paths below /__timer/ are for the function's own timers")]
    TimerPath,
    /// The timer was delivered, changed or cancelled by somebody else.
    #[error("the timer is no longer there")]
    Fired,
    /// Another version took the function's place before the call had its instance. What was read of the state for the old
    /// one is of no use to it: the call begins anew and never ends with this.
    #[error("the function was replaced meanwhile")]
    Replaced,
    /// The executor is going down.
    #[error("the executor is shutting down")]
    Closing,
}

/// One call on its way through the parts.
pub(super) struct Execution {
    pub(super) executor: Arc<Executor>,
    pub(super) deployment: Arc<Deployment>,
    pub(super) timings: Timings,
    /// Of the last attempt.
    pub(super) logs: Option<Logs>,
}

/// A function's answer before its state is committed.
pub(super) struct Answer {
    pub(super) head: ResultHead,
    pub(super) state: Bytes,
    pub(super) body: Body,
    /// Only a stream still needs its place in the instance; a commit does not.
    pub(super) lease: Option<Lease>,
}

impl Execution {
    pub(super) async fn run(&mut self, mut request: Request) -> Result<Response, CallError> {
        if self.executor.is_closing() {
            return Err(CallError::Closing);
        }
        loop {
            self.built(request.deadline).await?;
            let result = if self.deployment.function.state.is_some() {
                self.with_state(&mut request, None).await
            } else {
                self.without_state(&mut request).await
            };
            if !matches!(result, Err(CallError::Replaced)) {
                return result;
            }
        }
    }

    async fn without_state(&mut self, request: &mut Request) -> Result<Response, CallError> {
        let executor = self.executor.options.whole_bodies.then(|| Arc::clone(&self.executor));
        let _room = match &executor {
            Some(executor) => collect(executor, request).await?,
            None => None,
        };
        let answer = self.ask(request, None).await?;
        Ok(respond(answer))
    }

    /// Runs the request that a timer makes. The timer comes back for what is to be done when this fails.
    pub(super) async fn fire(
        mut self,
        mut request: Request,
        fired: Fired,
    ) -> (Result<Response, CallError>, Fired) {
        let begun = Instant::now();
        let result = async {
            if self.executor.is_closing() {
                return Err(CallError::Closing);
            }
            loop {
                self.built(request.deadline).await?;
                let result = self.with_state(&mut request, Some(&fired)).await;
                if !matches!(result, Err(CallError::Replaced)) {
                    return result;
                }
            }
        };
        let result = result.await;
        self.deployment.meter.called(&result, &self.timings, begun.elapsed());
        (result, fired)
    }

    /// Waits for the function's first build.
    async fn built(&mut self, deadline: Instant) -> Result<(), CallError> {
        let begun = Instant::now();
        while let Stand::Building(outcome) = &self.deployment.stand {
            let mut outcome = outcome.clone();
            let told = timeout_at(deadline.into(), outcome.wait_for(Option::is_some)).await;
            let told = told.map(|told| told.map(|told| (*told).clone()));
            self.timings.cold = begun.elapsed();
            self.deployment = match told {
                Err(_) => return Err(self.late(Stage::Build)),
                Ok(Ok(Some(Ok(built)))) => built,
                Ok(Ok(Some(Err((error, at))))) => {
                    self.executor.try_again(&self.deployment, at).ok_or(CallError::NotBuilt(error))?
                }
                // A newer one took its place.
                Ok(_) => self.successor()?,
            };
        }
        Ok(())
    }

    /// A place in an instance, then the function.
    pub(super) async fn ask(
        &mut self,
        request: &mut Request,
        state: Option<&StateIn>,
    ) -> Result<Answer, CallError> {
        let lease = self.lease(request.deadline).await?;
        let begun = Instant::now();
        if let Some(limit) = request.limit {
            request.deadline = begun + limit;
        }
        let connection = match &lease.instance.channel {
            Channel::Link(connection) => connection,
            Channel::Http(client, target) => {
                let (client, target) = (client.clone(), target.clone());
                return self.ask_guest(request, lease, &client, &target).await;
            }
        };
        let mut call = connection.call(request, state);
        let reply = timeout_at(request.deadline.into(), call.reply()).await;
        self.timings.run += begun.elapsed();
        match reply {
            Err(_) => {
                self.cancel(call, lease, request);
                Err(self.late(Stage::Function))
            }
            Ok(Err(body)) => Err(body.into()),
            Ok(Ok((reply, logs))) => self.judge(reply, logs.as_ref(), lease, request),
        }
    }

    async fn lease(&mut self, deadline: Instant) -> Result<Lease, CallError> {
        let begun = Instant::now();
        let Some(key) = self.deployment.key() else { return Err(self.late(Stage::Build)) };
        let lease = timeout_at(deadline.into(), self.executor.pool.acquire(key)).await;
        if !matches!(lease, Ok(Ok(_))) {
            self.timings.queue += begun.elapsed();
        }
        let lease = match lease {
            Err(_) => return Err(self.late(Stage::Instance)),
            Ok(Ok(lease)) => lease,
            Ok(Err(Refusal::QueueFull(n))) => return Err(CallError::QueueFull(n)),
            Ok(Err(Refusal::CannotStart(failure, after))) => {
                return Err(CallError::CannotStart(failure, after));
            }
            Ok(Err(Refusal::Gone)) if self.executor.is_closing() => return Err(CallError::Closing),
            Ok(Err(Refusal::Gone)) => return self.lease_of_successor(deadline).await,
        };
        let waited = begun.elapsed();
        // Warm if it was ready before we came.
        let cold = lease.instance.ready_at.saturating_duration_since(begun.max(lease.instance.started_at));
        self.timings.cold += cold.min(waited);
        self.timings.queue += waited.saturating_sub(cold);
        Ok(lease)
    }

    /// The version was replaced between the look-up and now.
    async fn lease_of_successor(&mut self, deadline: Instant) -> Result<Lease, CallError> {
        let before = self.deployment.function.state.is_some();
        self.deployment = self.successor()?;
        self.built(deadline).await?;
        if before || self.deployment.function.state.is_some() {
            return Err(CallError::Replaced);
        }
        Box::pin(self.lease(deadline)).await
    }

    fn successor(&self) -> Result<Arc<Deployment>, CallError> {
        let name = &self.deployment.function.name;
        match self.executor.find(name) {
            Some(Deployed::Serving(deployment)) if !Arc::ptr_eq(&deployment, &self.deployment) => {
                Ok(deployment)
            }
            Some(Deployed::Broken(why)) => Err(CallError::Broken(why)),
            _ if self.executor.is_closing() => Err(CallError::Closing),
            _ => Err(CallError::Unknown(name.to_string())),
        }
    }

    fn judge(
        &mut self,
        reply: Reply,
        logs: Option<&Logs>,
        lease: Lease,
        request: &Request,
    ) -> Result<Answer, CallError> {
        if let Some(logs) = logs {
            self.keep(&request.id, logs.clone());
        }
        match reply {
            Reply::Closed(reason) => Err(CallError::Died(reason)),
            Reply::Error(fault) => {
                self.note(&request.id, logs, &explain(&fault));
                Err(CallError::Raised)
            }
            Reply::Result { head, state, body } => {
                let size = match &body {
                    Body::Full(body) => body.len() as u64,
                    Body::Stream(_) => head.length.unwrap_or(0),
                };
                let limit = self.executor.options.max_response;
                if size > limit {
                    let text = format!(
                        "The response has {size} bytes, more than the limit of {limit}. Use res.stream."
                    );
                    self.note(&request.id, logs, &text);
                    return Err(CallError::Raised);
                }
                if !(200..=599).contains(&head.status) {
                    let text =
                        format!("The response has the status {}, which HTTP does not allow.", head.status);
                    self.note(&request.id, logs, &text);
                    return Err(CallError::Raised);
                }
                let lease = matches!(body, Body::Stream(_)).then_some(lease);
                let mut head = head;
                finish_content_type(&mut head.headers.0);
                Ok(Answer { head, state, body, lease })
            }
        }
    }

    /// The deadline passed in the function. The caller is answered now; what is left to do goes on by itself.
    fn cancel(&mut self, mut call: Call, lease: Lease, request: &Request) {
        let logs = call.logs();
        self.note(&request.id, Some(&logs), "Execution timed out.");
        self.keep(&request.id, logs);
        call.cancel();
        lease.suspend();
        let grace = self.executor.options.cancel_grace;
        let (function, id) = (Arc::clone(&self.deployment.function.name), Arc::clone(&request.id));
        self.executor.tasks.spawn("cancel", async move {
            if tokio::time::timeout(grace, call.reply()).await.is_ok() {
                lease.resume();
            } else {
                tracing::warn!(%function, request = %id, "a call did not end at its deadline; its instance is replaced");
                lease.condemn("another call on the same instance did not end at its deadline");
            }
        });
    }

    pub(super) fn late(&self, stage: Stage) -> CallError {
        CallError::Deadline(self.deployment.function.timeout, stage)
    }

    /// Writes a line of ours into the function's error log.
    pub(super) fn note(&mut self, request: &Arc<str>, logs: Option<&Logs>, text: &str) {
        let function = &self.deployment.function.name;
        tracing::warn!(target: "function", %function, %request, "{text}");
        let line = LogLine::new(Level::Error, text.to_owned());
        if let Some(logs) = logs {
            logs.push(line);
        } else {
            let logs = Logs::default();
            logs.push(line);
            self.keep(request, logs);
        }
    }

    pub(super) fn keep(&mut self, request: &Arc<str>, logs: Logs) {
        self.logs = Some(logs.clone());
        self.executor.records.push(&self.deployment.function.name, request, logs);
    }
}

/// Reads the request's body. Under the runtime contract, where a call's time begins with the function, a slow sender does
/// not use up what an instance may take to start.
pub(super) async fn collect<'a>(
    executor: &'a Executor,
    request: &mut Request,
) -> Result<Option<SemaphorePermit<'a>>, CallError> {
    let (begun, start_by) = (Instant::now(), request.deadline);
    if request.limit.is_none() {
        return executor.bodies.collect(request).await;
    }
    request.deadline = start_by + BODY_TIME;
    let room = executor.bodies.collect(request).await;
    request.deadline = start_by + begun.elapsed();
    room
}

pub(super) fn respond(answer: Answer) -> Response {
    let Answer { head, body, lease, .. } = answer;
    let headers = head.headers.0;
    let body = match body {
        Body::Full(body) => Body::Full(body),
        // The place is in use until the stream ends.
        Body::Stream(stream) => Body::Stream(
            stream
                .map(move |piece| {
                    let _ = &lease;
                    piece
                })
                .boxed(),
        ),
    };
    Response { status: head.status, headers, body, length: head.length }
}

/// One more that waits.
pub(super) struct Waiting<'a> {
    count: &'a AtomicUsize,
    pub(super) number: usize,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(count: &'a AtomicUsize) -> Self {
        Self { count, number: count.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What goes into the function's log when it failed.
fn explain(fault: &Fault) -> String {
    match fault.kind.as_str() {
        "nothing" => {
            "Return statement missing. return context.res.empty() if no response is expected.".to_owned()
        }
        _ if fault.stack.contains(&fault.message) => fault.stack.clone(),
        _ => format!("{}\n{}", fault.message, fault.stack).trim_end().to_owned(),
    }
}
