//! Carries out what the ledger decides: starts, grants, stops. One task per instance owns it from start to end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use crate::adapter::{Adapter, Unit};
use crate::function::Function;
use crate::instance::InstanceId;
use crate::link::connection::PROCESS_ENDED;
use crate::link::{Connection, Ready};
use crate::pool::StartFailure;
use crate::pool::ledger::{Acquire, Action, FunctionKey, FunctionLimits, Ledger, Limits, Refusal, Ticket};
use crate::pool::start::{REASON_LIMIT, Started, Starter, adapter_failure, failed, remove_folder};
use crate::runtime::Runtime;
use crate::task::Tasks;
use crate::transport::{Client, Target};

/// How long an instance may take to stop its Contexts.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How the pool behaves.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// Limits over all functions.
    pub limits: Limits,
    /// How often idle instances are looked for.
    pub reap_interval: Duration,
    /// Instances that may be starting at the same time.
    pub starts_at_once: usize,
}

/// A ready instance.
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Calls go here.
    pub channel: Channel,
    /// When it got ready.
    pub ready_at: Instant,
    /// When its start began.
    pub started_at: Instant,
    control: watch::Sender<Control>,
}

/// How calls reach an instance.
#[derive(Clone)]
pub enum Channel {
    /// A worker of ours.
    Link(Connection),
    /// A container of a foreign image.
    Http(Client, Target),
}

/// What the owner of an instance is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Control {
    Run,
    /// Stop Contexts, then end.
    Stop,
    /// End at once, with everything it started; the text is why.
    Kill(Arc<str>),
}

/// The pool. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    starter: Starter,
    options: PoolOptions,
    tasks: Tasks,
    starts: Semaphore,
    books: Mutex<Books>,
}

struct Books {
    ledger: Ledger<Arc<Instance>>,
    functions: HashMap<FunctionKey, (Arc<Function>, Option<Arc<Runtime>>)>,
    waiters: HashMap<Ticket, oneshot::Sender<Result<Lease, Refusal>>>,
    controls: HashMap<InstanceId, watch::Sender<Control>>,
    closed: bool,
}

/// The right to run one call on one instance. Dropping it gives the place back.
pub struct Lease {
    /// The instance.
    pub instance: Arc<Instance>,
    key: FunctionKey,
    pool: Pool,
}

impl Lease {
    /// The call is past its deadline: no other call gets this instance until [`Lease::resume`].
    pub fn suspend(&self) {
        self.pool.inner.change(|books, now| books.ledger.suspend(self.key, self.instance.id, now));
    }

    /// The late call has ended after all.
    pub fn resume(&self) {
        self.pool.inner.change(|books, now| books.ledger.resume(self.key, self.instance.id, now));
    }

    /// The instance does not obey: end it at once with everything it started. Calls on it fail with `reason`.
    pub fn condemn(&self, reason: &str) {
        let inner = &self.pool.inner;
        inner.change(|books, now| books.ledger.condemn(self.key, self.instance.id, now));
        self.instance.control.send_if_modified(|control| raise(control, Control::Kill(reason.into())));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.inner.change(|books, now| books.ledger.release(self.key, self.instance.id, now));
    }
}

/// A later wish never weakens an earlier one.
fn raise(control: &mut Control, wish: Control) -> bool {
    let stronger = wish > *control && !matches!(control, Control::Kill(_));
    if stronger {
        *control = wish;
    }
    stronger
}

impl Pool {
    /// An empty pool.
    pub fn new(starter: Starter, options: PoolOptions) -> Self {
        let books = Books {
            ledger: Ledger::new(options.limits),
            functions: HashMap::new(),
            waiters: HashMap::new(),
            controls: HashMap::new(),
            closed: false,
        };
        let starts = Semaphore::new(options.starts_at_once);
        Self {
            inner: Arc::new(Inner {
                starter,
                options,
                tasks: Tasks::default(),
                starts,
                books: Mutex::new(books),
            }),
        }
    }

    /// The adapter, for preparing runtimes.
    pub fn adapter(&self) -> &Arc<dyn Adapter> {
        &self.inner.starter.adapter
    }

    /// Deploys a version of a function; without a runtime it is a foreign image.
    pub fn add(&self, function: Arc<Function>, runtime: Option<Arc<Runtime>>) -> FunctionKey {
        let limits = FunctionLimits {
            concurrency: function.concurrency,
            min: function.min_instances as usize,
            max: function.max_instances as usize,
            keep_warm: function.keep_warm,
        };
        let mut books = self.inner.lock();
        let key = books.ledger.add(limits);
        books.functions.insert(key, (function, runtime));
        key
    }

    /// Lets a version finish what it has and then stops its instances.
    pub fn retire(&self, key: FunctionKey) {
        self.inner.change(|books, now| {
            books.ledger.retire(key, now);
        });
    }

    /// Stops what was idle for too long and starts what is to be kept; called by the reaper.
    pub fn tick(&self) {
        self.inner.change(|books, now| {
            books.ledger.tick(now);
            let Books { ledger, functions, .. } = books;
            functions.retain(|key, _| ledger.knows(*key));
        });
    }

    /// How often [`Pool::tick`] is to be called.
    pub fn reap_interval(&self) -> Duration {
        self.inner.options.reap_interval
    }

    /// Live instances and waiting calls of a function.
    pub fn counts(&self, key: FunctionKey) -> (usize, usize) {
        self.inner.lock().ledger.counts(key)
    }

    /// Instances of all functions, ending ones included.
    pub fn total(&self) -> usize {
        self.inner.lock().ledger.total()
    }

    /// Waits for a place in an instance of the function, starting one if need be. Waiters are served in order.
    ///
    /// Cancel safe: a waiter that goes away loses its turn and nothing else.
    pub async fn acquire(&self, key: FunctionKey) -> Result<Lease, Refusal> {
        let (ticket, receiver) = {
            let mut books = self.inner.lock();
            if books.closed {
                return Err(Refusal::Gone);
            }
            match books.ledger.acquire(key, Instant::now()) {
                Acquire::Granted(_, instance) => return Ok(Lease { instance, key, pool: self.clone() }),
                Acquire::Refused(refusal) => return Err(refusal),
                Acquire::Queued(ticket) => {
                    let (sender, receiver) = oneshot::channel();
                    books.waiters.insert(ticket, sender);
                    (ticket, receiver)
                }
            }
        };
        let mut turn = Turn { pool: self, key, ticket, served: false };
        self.inner.carry_out();
        let result = receiver.await.unwrap_or(Err(Refusal::Gone));
        turn.served = true;
        result
    }

    /// Ends every instance in good order, at the latest after `grace`; then by force. `false`: some did not end.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        {
            let mut books = self.inner.lock();
            books.closed = true;
            books.waiters.clear();
            for control in books.controls.values() {
                control.send_if_modified(|control| raise(control, Control::Stop));
            }
        }
        if self.inner.tasks.drain(grace).await {
            return true;
        }
        let controls: Vec<_> = self.inner.lock().controls.values().cloned().collect();
        for control in controls {
            control.send_if_modified(|control| {
                raise(control, Control::Kill("the executor is shutting down".into()))
            });
        }
        self.inner.tasks.drain(REASON_LIMIT * 10).await
    }
}

struct Turn<'a> {
    pool: &'a Pool,
    key: FunctionKey,
    ticket: Ticket,
    served: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.served {
            self.pool.inner.change(|books, now| {
                books.waiters.remove(&self.ticket);
                books.ledger.abandon(self.key, self.ticket, now);
            });
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(self: &Arc<Self>, event: impl FnOnce(&mut Books, Instant)) {
        let quiet = {
            let mut books = self.lock();
            event(&mut books, Instant::now());
            books.ledger.is_settled()
        };
        if !quiet {
            self.carry_out();
        }
    }

    /// Does what the ledger decided. Outside the lock, because a grant that nobody takes becomes a release.
    fn carry_out(self: &Arc<Self>) {
        loop {
            let mut grants = Vec::new();
            {
                let mut books = self.lock();
                let actions = books.ledger.take_actions();
                if actions.is_empty() {
                    return;
                }
                for action in actions {
                    match action {
                        Action::Start(key, id) => self.start(&mut books, key, id),
                        Action::Stop(id) => {
                            if let Some(control) = books.controls.get(&id) {
                                control.send_if_modified(|control| raise(control, Control::Stop));
                            }
                        }
                        Action::Refuse(ticket, refusal) => {
                            if let Some(waiter) = books.waiters.remove(&ticket) {
                                let _ = waiter.send(Err(refusal));
                            }
                        }
                        Action::Grant(ticket, key, _, instance) => {
                            let lease = Lease { instance, key, pool: Pool { inner: Arc::clone(self) } };
                            grants.push((books.waiters.remove(&ticket), lease));
                        }
                    }
                }
            }
            for (waiter, lease) in grants {
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Ok(lease));
                }
            }
        }
    }

    fn start(self: &Arc<Self>, books: &mut Books, key: FunctionKey, id: InstanceId) {
        let Some((function, runtime)) = books.functions.get(&key).cloned() else { return };
        let (control, wishes) = watch::channel(if books.closed { Control::Stop } else { Control::Run });
        books.controls.insert(id, control.clone());
        let inner = Arc::clone(self);
        self.tasks.spawn("instance", async move {
            inner.own(key, id, function, runtime, control, wishes).await;
        });
    }

    /// The whole life of one instance.
    async fn own(
        self: Arc<Self>,
        key: FunctionKey,
        id: InstanceId,
        function: Arc<Function>,
        runtime: Option<Arc<Runtime>>,
        control: watch::Sender<Control>,
        mut wishes: watch::Receiver<Control>,
    ) {
        let started_at = Instant::now();
        let folder = self.starter.folder(id);
        let started = tokio::select! {
            started = self.bring_up(id, &function, runtime.as_ref()) => started,
            _ = wishes.wait_for(|wish| *wish != Control::Run) => {
                Err(failed("it was stopped while it was starting".into()))
            }
        };
        match started {
            Err(failure) => {
                remove_folder(&folder).await;
                self.lock().controls.remove(&id);
                tracing::warn!(function = %function.name, instance = %id, "instance did not start: {}", failure.message);
                self.change(|books, now| books.ledger.failed(key, id, &Arc::new(failure), now));
            }
            Ok(Started { mut unit, channel, link }) => {
                let ready_at = Instant::now();
                tracing::info!(function = %function.name, instance = %id, took = ?(ready_at - started_at), "instance ready");
                let instance = Arc::new(Instance { id, channel, ready_at, started_at, control });
                self.change(|books, now| books.ledger.ready(key, id, instance, now));
                let condemn = || self.change(|books, now| books.ledger.condemn(key, id, now));
                let reason = match link {
                    Some(ready) => self.watch(ready, &mut wishes, unit.as_mut(), condemn).await,
                    None => watch_guest(&mut wishes, unit.as_mut(), condemn).await,
                };
                tracing::info!(function = %function.name, instance = %id, reason, "instance ended");
                remove_folder(&folder).await;
                self.lock().controls.remove(&id);
                self.change(|books, now| books.ledger.ended(key, id, now));
            }
        }
    }

    async fn bring_up(
        &self,
        id: InstanceId,
        function: &Arc<Function>,
        runtime: Option<&Arc<Runtime>>,
    ) -> Result<Started, StartFailure> {
        let Some(runtime) = runtime else {
            self.starter.prepare_guest(function).await?;
            let _permit = self.starts.acquire().await;
            return self.starter.start_guest(id, function).await;
        };
        let version = function.runtime.version.as_deref();
        self.starter.adapter.prepare(runtime, version).await.map_err(|e| adapter_failure(&e))?;
        let _permit = self.starts.acquire().await;
        let (unit, ready) = self.starter.start(id, function, runtime, false).await?;
        let channel = Channel::Link(ready.connection.clone());
        Ok(Started { unit, channel, link: Some(ready) })
    }

    /// From READY until nothing of the instance is left; gives the reason. `condemn` is called as soon as it must
    /// not get calls any more.
    async fn watch(
        &self,
        ready: Ready,
        wishes: &mut watch::Receiver<Control>,
        unit: &mut dyn Unit,
        condemn: impl Fn(),
    ) -> String {
        let connection = ready.connection.clone();
        let (gone, mut link_ended) = oneshot::channel();
        let driven = connection.clone();
        self.tasks.spawn("link", async move {
            let _ = gone.send(driven.run(ready.buffered).await);
        });
        let (mut fault, mut exited) = (None, false);
        let wish = tokio::select! {
            wish = wishes.wait_for(|wish| *wish != Control::Run) => wish.map_or(Control::Stop, |w| w.clone()),
            reason = &mut link_ended => {
                fault = reason.ok().filter(|reason| &**reason != PROCESS_ENDED);
                Control::Run
            }
            _ = unit.ended() => {
                exited = true;
                Control::Run
            }
        };
        condemn();
        if exited {
            // What it answered last may still be on the link.
            let _ = tokio::time::timeout(REASON_LIMIT, &mut link_ended).await;
        }
        match wish {
            Control::Stop => {
                let in_order = tokio::select! {
                    () = connection.stop() => true,
                    _ = &mut link_ended => false,
                    _ = wishes.wait_for(|wish| matches!(wish, Control::Kill(_))) => false,
                    () = tokio::time::sleep(STOP_LIMIT) => false,
                };
                if in_order {
                    // It leaves by itself after STOPPED.
                    let _ = tokio::time::timeout(REASON_LIMIT, unit.ended()).await;
                }
                unit.kill().await;
                connection.close("the instance was stopped");
                if in_order { "stopped".into() } else { "stopped, but not in good order".into() }
            }
            Control::Kill(reason) => {
                connection.close(&reason);
                unit.kill().await;
                reason.to_string()
            }
            Control::Run => {
                let exit = match (fault, tokio::time::timeout(REASON_LIMIT, unit.ended()).await) {
                    (Some(fault), _) => fault.to_string(),
                    (None, Ok(exit)) => exit.to_string(),
                    (None, Err(_)) => "its worker closed the link".to_owned(),
                };
                connection.close(&exit);
                unit.kill().await;
                exit
            }
        }
    }
}

/// The life of a container of a foreign image, from the moment it listens; gives the reason of its end.
async fn watch_guest(
    wishes: &mut watch::Receiver<Control>,
    unit: &mut dyn Unit,
    condemn: impl Fn(),
) -> String {
    let wish = tokio::select! {
        wish = wishes.wait_for(|wish| *wish != Control::Run) => wish.map_or(Control::Stop, |w| w.clone()),
        _ = unit.ended() => Control::Run,
    };
    condemn();
    let exit = unit.kill().await;
    match wish {
        Control::Stop => "stopped".into(),
        Control::Kill(reason) => reason.to_string(),
        Control::Run => exit.to_string(),
    }
}
