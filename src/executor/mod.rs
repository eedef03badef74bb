//! The facade that every front calls: one method per use case, no HTTP server, no Docker, no SQL.
//!
//! [`Executor::call`] is the heart: entity, state, place in an instance, function, commit, answer. Its future
//! always runs to its end, also when the client leaves: the waiter then goes on as a tracked task, so that a call
//! whose effects have begun is never half done.
//!
//! Invariants: the first byte of an answer leaves after its state is durable; a call that raised, died or was late
//! changes no state; every wait ends at the request's deadline.

mod bodies;
mod deploy;
mod entities;
mod records;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout_at;

use self::bodies::Bodies;
use self::entities::{Entities, Turn};
use self::records::Records;
use crate::execution::{Body, BodyError, Level, LogLine, Request, Response, Timings};
use crate::function::{Function, ManifestError};
use crate::headers::finish_content_type;
use crate::link::message::{Fault, ResultHead, StateAction, StateIn};
use crate::link::{Call, Logs, Reply};
use crate::pool::{FunctionKey, Lease, Pool, Refusal, StartFailure};
use crate::runtime::Runtimes;
use crate::state::{Entity, StateStore, StoreError, Write};
use crate::state_key::KeyError;
use crate::task::{FinishAlways, Tasks};

pub use self::records::Record;

/// How often a call is run again with fresh state after somebody else changed it.
const CONFLICT_RETRIES: u32 = 5;

/// How the executor behaves.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// Folder of functions.
    pub functions: PathBuf,
    /// Serve only this one, at every path.
    pub single: bool,
    /// How long a worker may take to obey CANCEL.
    pub cancel_grace: Duration,
    /// Calls that may wait for one entity.
    pub queue: usize,
    /// The largest answer that is not streamed, bytes.
    pub max_response: u64,
    /// The largest value of one entity, bytes.
    pub max_state: u64,
}

/// A served version of a function.
pub struct Deployment {
    /// The function.
    pub function: Arc<Function>,
    key: FunctionKey,
    entity_waiters: AtomicUsize,
}

/// What is known under a name.
#[derive(Clone)]
pub enum Deployed {
    /// It serves.
    Serving(Arc<Deployment>),
    /// Its manifest is wrong.
    Broken(Arc<ManifestError>),
}

struct Known {
    deployed: Deployed,
    fingerprint: u64,
}

/// See the module.
pub struct Executor {
    options: ExecutorOptions,
    pool: Pool,
    runtimes: Arc<Runtimes>,
    store: Arc<dyn StateStore>,
    entities: Arc<Entities>,
    bodies: Bodies,
    known: RwLock<HashMap<Arc<str>, Known>>,
    tasks: Tasks,
    records: Records,
    closing: AtomicBool,
}

/// What became of a call.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, or why there is none.
    pub result: Result<Response, CallError>,
    /// Where the time went, in either case.
    pub timings: Timings,
}

/// Where a call stood when its deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
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
    /// The executor is going down.
    #[error("the executor is shutting down")]
    Closing,
}

impl Executor {
    /// An executor without functions; [`Executor::load`] brings them.
    pub fn new(
        options: ExecutorOptions,
        pool: Pool,
        runtimes: Arc<Runtimes>,
        store: Arc<dyn StateStore>,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            pool,
            runtimes,
            store,
            entities: Arc::default(),
            bodies: Bodies::default(),
            known: RwLock::default(),
            tasks: Tasks::default(),
            records: Records::default(),
            closing: AtomicBool::new(false),
        })
    }

    /// What is deployed under `name`.
    pub fn find(&self, name: &str) -> Option<Deployed> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map(|known| known.deployed.clone())
    }

    /// What a recent execution wrote, by its request id.
    pub fn record(&self, request: &str) -> Option<Record> {
        self.records.get(request)
    }

    /// Where state is kept, for people.
    pub fn store_name(&self) -> String {
        self.store.describe()
    }

    /// Instances of all functions.
    pub fn instances(&self) -> usize {
        self.pool.total()
    }

    /// Live instances and waiting calls of a function.
    pub fn counts(&self, deployment: &Deployment) -> (usize, usize) {
        self.pool.counts(deployment.key)
    }

    /// Whether new calls are refused because the executor goes down.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Runs `request` on the function. The returned future need not be awaited to its end; the call ends properly
    /// in any case.
    pub fn call(self: &Arc<Self>, deployment: Arc<Deployment>, request: Request) -> FinishAlways<Outcome> {
        let executor = Arc::clone(self);
        self.tasks.finish_always("call", async move {
            let mut execution = Execution { executor, deployment, timings: Timings::default() };
            let result = execution.run(request).await;
            Outcome { result, timings: execution.timings }
        })
    }

    /// From now on every new call is answered with [`CallError::Closing`].
    pub fn refuse_new_calls(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Refuses new calls, lets running ones finish within `grace`, stops all instances, closes the store.
    pub async fn shutdown(&self, grace: Duration) {
        self.refuse_new_calls();
        let begun = Instant::now();
        if !self.tasks.drain(grace).await {
            tracing::warn!(calls = self.tasks.len(), "calls were still running at the end of the grace");
        }
        let left = grace.saturating_sub(begun.elapsed()).max(Duration::from_secs(1));
        if !self.pool.shutdown(left).await {
            tracing::warn!("some instances did not end");
        }
        // A start that was cut off may have left something that has no owner.
        if let Err(error) = self.pool.adapter().sweep().await {
            tracing::warn!("cannot look for what instances left behind: {error}; the next start does it");
        }
        self.store.close().await;
    }
}

/// One call on its way through the parts.
struct Execution {
    executor: Arc<Executor>,
    deployment: Arc<Deployment>,
    timings: Timings,
}

/// A function's answer before its state is committed.
struct Answer {
    head: ResultHead,
    state: Bytes,
    body: Body,
    /// Only a stream still needs its place in the instance; a commit does not.
    lease: Option<Lease>,
}

impl Execution {
    async fn run(&mut self, mut request: Request) -> Result<Response, CallError> {
        if self.executor.is_closing() {
            return Err(CallError::Closing);
        }
        let deployment = Arc::clone(&self.deployment);
        let Some(spec) = &deployment.function.state else {
            let answer = self.ask(&mut request, None).await?;
            return Ok(respond(answer));
        };
        let key = spec.key.fill(&request)?;
        // A client that sends slowly must not hold up others on the same entity.
        let executor = Arc::clone(&self.executor);
        let _room = executor.bodies.collect(&mut request).await?;
        let entity = Entity { function: Arc::clone(&self.deployment.function.name), key };
        let turn = self.turn(&entity, request.deadline).await?;
        let answer = self.with_state(&entity, &mut request).await?;
        drop(turn);
        Ok(respond(answer))
    }

    async fn turn(&mut self, entity: &Entity, deadline: Instant) -> Result<Turn, CallError> {
        let begun = Instant::now();
        let waiters = &self.deployment.entity_waiters;
        let most = self.executor.options.queue;
        let waiting = Waiting::new(waiters);
        if waiting.number > most {
            return Err(CallError::QueueFull(most));
        }
        let turn = self.executor.entities.turn(entity, most);
        let turn = timeout_at(deadline.into(), turn).await;
        drop(waiting);
        self.timings.queue += begun.elapsed();
        turn.map_err(|_| self.late(Stage::Entity))?.ok_or(CallError::QueueFull(most))
    }

    async fn with_state(&mut self, entity: &Entity, request: &mut Request) -> Result<Answer, CallError> {
        let store = Arc::clone(&self.executor.store);
        for _ in 0..=CONFLICT_RETRIES {
            let deadline = request.deadline;
            let value = self.stored(deadline, store.get(entity)).await?;
            let answer = self.ask(request, Some(StateIn { key: &entity.key, value: value.as_ref() })).await?;
            let Some(write) = self.write_of(&answer, value.is_some(), request)? else { return Ok(answer) };
            let expected = value.map_or(0, |value| value.version);
            match self.stored(deadline, store.commit(entity, expected, write)).await {
                Err(CallError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(answer),
            }
        }
        Err(CallError::Conflict)
    }

    /// What the answer does to the state, if anything.
    fn write_of(&self, answer: &Answer, exists: bool, request: &Request) -> Result<Option<Write>, CallError> {
        let Some(change) = answer.head.state else { return Ok(None) };
        let limit = self.executor.options.max_state;
        match change.action {
            StateAction::Delete => Ok(exists.then_some(Write::Delete)),
            StateAction::Set if answer.state.len() as u64 > limit => {
                let size = answer.state.len();
                self.note(
                    request,
                    None,
                    &format!("The state has {size} bytes, more than the limit of {limit}."),
                );
                Err(CallError::Raised)
            }
            StateAction::Set => {
                Ok(Some(Write::Put { kind: change.kind.into(), bytes: answer.state.clone() }))
            }
        }
    }

    async fn stored<T>(
        &mut self,
        deadline: Instant,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, CallError> {
        let begun = Instant::now();
        let result = timeout_at(deadline.into(), operation).await;
        self.timings.state += begun.elapsed();
        result.map_err(|_| self.late(Stage::State))?.map_err(CallError::Store)
    }

    /// A place in an instance, then the function.
    async fn ask(&mut self, request: &mut Request, state: Option<StateIn<'_>>) -> Result<Answer, CallError> {
        let lease = self.lease(request.deadline).await?;
        let begun = Instant::now();
        let mut call = lease.instance.connection.call(request, state);
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
        let lease = timeout_at(deadline.into(), self.executor.pool.acquire(self.deployment.key)).await;
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
        let name = Arc::clone(&self.deployment.function.name);
        match self.executor.find(&name) {
            Some(Deployed::Serving(deployment)) if deployment.key != self.deployment.key => {
                self.deployment = deployment;
                Box::pin(self.lease(deadline)).await
            }
            Some(Deployed::Broken(why)) => Err(CallError::Broken(why)),
            _ => Err(CallError::Unknown(name.to_string())),
        }
    }

    fn judge(
        &self,
        reply: Reply,
        logs: Option<&Logs>,
        lease: Lease,
        request: &Request,
    ) -> Result<Answer, CallError> {
        if let Some(logs) = logs {
            self.keep(request, logs.clone());
        }
        match reply {
            Reply::Closed(reason) => Err(CallError::Died(reason)),
            Reply::Error(fault) => {
                self.note(request, logs, &explain(&fault));
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
                    self.note(request, logs, &text);
                    return Err(CallError::Raised);
                }
                if !(200..=599).contains(&head.status) {
                    let text =
                        format!("The response has the status {}, which HTTP does not allow.", head.status);
                    self.note(request, logs, &text);
                    return Err(CallError::Raised);
                }
                let lease = matches!(body, Body::Stream(_)).then_some(lease);
                Ok(Answer { head, state, body, lease })
            }
        }
    }

    /// The deadline passed in the function. The caller is answered now; what is left to do goes on by itself.
    fn cancel(&self, mut call: Call, lease: Lease, request: &Request) {
        let logs = call.logs();
        self.note(request, Some(&logs), "Execution timed out.");
        self.keep(request, logs);
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

    fn late(&self, stage: Stage) -> CallError {
        CallError::Deadline(self.deployment.function.timeout, stage)
    }

    /// Writes a line of ours into the function's error log.
    fn note(&self, request: &Request, logs: Option<&Logs>, text: &str) {
        let function = &self.deployment.function.name;
        tracing::warn!(target: "function", %function, request = %request.id, "{text}");
        let line = LogLine::new(Level::Error, text.to_owned());
        if let Some(logs) = logs {
            logs.push(line);
        } else {
            let logs = Logs::default();
            logs.push(line);
            self.keep(request, logs);
        }
    }

    fn keep(&self, request: &Request, logs: Logs) {
        self.executor.records.push(&self.deployment.function.name, &request.id, logs);
    }
}

fn respond(answer: Answer) -> Response {
    let Answer { head, body, lease, .. } = answer;
    let mut headers = head.headers.0;
    finish_content_type(&mut headers);
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

struct Waiting<'a> {
    count: &'a AtomicUsize,
    number: usize,
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
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
