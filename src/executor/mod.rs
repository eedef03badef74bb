//! The facade that every front calls: one method per use case, no HTTP server, no Docker, no SQL.
//!
//! [`Executor::call`] is the heart; [`call`] has its steps. Its future
//! always runs to its end, also when the client leaves: the waiter then goes on as a tracked task, so that a call
//! whose effects have begun is never half done.
//!
//! Invariants: the first byte of an answer leaves after its state is durable; a call that raised, died or was late
//! changes no state; every wait ends at the request's deadline.

mod bodies;
mod call;
mod clock;
mod deploy;
mod deployed;
mod desk;
mod entities;
mod foreign;
pub mod guests;
mod meters;
mod records;
mod stateful;
mod stores;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use self::bodies::Bodies;
use self::clock::{Clock, Counts};
use self::deploy::{Known, Stand};
use self::entities::Entities;
use self::meters::{Meter, Meters};
use self::records::Records;
use tokio::sync::broadcast;

use crate::build::Builds;
use crate::execution::{Request, Timings};
use crate::function::StateSpec;
use crate::function::{Alone, Function, ManifestError};
use crate::pool::Pool;
use crate::runtime::Runtimes;
use crate::state::crdt::{Replica, Tickets};
use crate::state::{Entity, StateStore};
use crate::task::{FinishAlways, Tasks};

use self::call::Execution;
pub use self::call::{CallError, Outcome, Stage};
pub use self::deploy::BUILD_RETRY;
pub use self::deployed::{About, DeployError, Origin};
pub use self::desk::{Condition, Desk, DeskError, MAX_LIST, Moved, Shown};
pub use self::records::Record;
pub use self::stateful::is_readable;
pub use self::stores::Stores;

/// Changes that a slow listener may fall behind.
const MAX_CHANGES: usize = 1024;

/// A commit to the state of a function.
#[derive(Debug, Clone)]
pub struct Change {
    /// Whose.
    pub entity: Entity,
    /// The value's version now; 0: it is gone, or only records changed.
    pub version: u64,
}

/// How the executor behaves.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// Folder of functions.
    pub functions: PathBuf,
    /// The folder is one function, served at every path; this is what is known of it besides.
    pub alone: Option<Alone>,
    /// How long a worker may take to obey CANCEL.
    pub cancel_grace: Duration,
    /// Calls that may wait for one entity.
    pub queue: usize,
    /// The largest answer that is not streamed, bytes.
    pub max_response: u64,
    /// The largest value of one entity, bytes.
    pub max_state: u64,
    /// Names this executor among those that merge into the same CRDTs, the same after a restart.
    pub replica: Replica,
    /// Read every body whole before its call: one that is too large or breaks off then never reaches a function.
    pub whole_bodies: bool,
}

/// A served version of a function.
pub struct Deployment {
    /// The function.
    pub function: Arc<Function>,
    stand: Stand,
    entity_waiters: AtomicUsize,
    meter: Arc<Meter>,
}

/// What is known under a name.
#[derive(Clone)]
pub enum Deployed {
    /// It serves.
    Serving(Arc<Deployment>),
    /// Its manifest is wrong.
    Broken(Arc<ManifestError>),
}

/// See the module.
pub struct Executor {
    options: ExecutorOptions,
    pool: Pool,
    builds: Builds,
    runtimes: Arc<Runtimes>,
    stores: Stores,
    entities: Arc<Entities>,
    /// Requests with an idempotency key take turns here, by that key.
    answers: Arc<Entities>,
    counts: Counts,
    clock: Clock,
    tickets: Tickets,
    changes: broadcast::Sender<Change>,
    bodies: Bodies,
    known: RwLock<HashMap<Arc<str>, Known>>,
    tasks: Tasks,
    records: Records,
    meters: Meters,
    closing: AtomicBool,
}

impl Executor {
    /// An executor without functions; [`Executor::load`] brings them.
    pub fn new(
        options: ExecutorOptions,
        pool: Pool,
        builds: Builds,
        runtimes: Arc<Runtimes>,
        stores: Stores,
    ) -> Arc<Self> {
        Arc::new(Self {
            options,
            pool,
            builds,
            runtimes,
            stores,
            entities: Arc::default(),
            answers: Arc::default(),
            counts: Counts::default(),
            clock: Clock::default(),
            tickets: Tickets::default(),
            changes: broadcast::Sender::new(MAX_CHANGES),
            bodies: Bodies::default(),
            known: RwLock::default(),
            tasks: Tasks::default(),
            records: Records::default(),
            meters: Meters::default(),
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

    /// News of each commit to a function's state by this executor, from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Tells who listens, if anybody does.
    pub(crate) fn tell(&self, entity: &Entity, version: u64) {
        if self.changes.receiver_count() > 0 {
            let _ = self.changes.send(Change { entity: entity.clone(), version });
        }
    }

    /// Where state is kept.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The store of a function.
    ///
    /// # Errors
    /// [`CallError::NoStore`].
    pub(crate) fn store_of(&self, spec: &StateSpec) -> Result<Arc<dyn StateStore>, CallError> {
        let name = spec.store.as_deref();
        self.stores.get(name).cloned().ok_or_else(|| CallError::NoStore(name.unwrap_or_default().to_owned()))
    }

    /// Instances of all functions.
    pub fn instances(&self) -> usize {
        self.pool.total()
    }

    /// What was counted so far, in the text format of `OpenMetrics` 1.0.
    pub fn metrics(&self) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let now: Vec<_> = known
            .iter()
            .filter_map(|(name, known)| {
                let Deployed::Serving(deployment) = &known.deployed else { return None };
                let (instances, waiting) = self.counts(deployment);
                Some((Arc::clone(name), instances, waiting))
            })
            .collect();
        drop(known);
        self.meters.text(now)
    }

    /// Live instances and waiting calls of a function.
    pub fn counts(&self, deployment: &Deployment) -> (usize, usize) {
        deployment.key().map_or((0, 0), |key| self.pool.counts(key))
    }

    /// The build pipeline.
    pub fn builds(&self) -> &Builds {
        &self.builds
    }

    /// Whether new calls are refused because the executor goes down.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Runs `request` on the function. The returned future need not be awaited to its end; the call ends properly
    /// in any case.
    pub fn call(self: &Arc<Self>, deployment: Arc<Deployment>, request: Request) -> FinishAlways<Outcome> {
        self.call_then(deployment, request, |outcome| outcome)
    }

    /// As [`Executor::call`]; `then` sees the outcome also when nobody waits for it any more.
    pub fn call_then<T: Send + 'static>(
        self: &Arc<Self>,
        deployment: Arc<Deployment>,
        request: Request,
        then: impl FnOnce(Outcome) -> T + Send + 'static,
    ) -> FinishAlways<T> {
        let executor = Arc::clone(self);
        self.tasks.finish_always("call", async move {
            let (begun, timings) = (Instant::now(), Timings::default());
            let mut execution = Execution { executor, deployment, timings, logs: None };
            let result = execution.run(request).await;
            execution.deployment.meter.called(&result, &execution.timings, begun.elapsed());
            then(Outcome { result, timings: execution.timings, logs: execution.logs })
        })
    }

    /// From now on every new call is answered with [`CallError::Closing`], and builds are cancelled: a client that follows
    /// one must not hold up the end.
    pub fn refuse_new_calls(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.builds.close();
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
        for store in self.stores.all() {
            store.close().await;
        }
    }
}
