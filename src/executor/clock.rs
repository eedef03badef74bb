//! What happens by itself as time passes: timers come due, and what has expired is swept.
//!
//! Every host that serves a function looks for its due timers: at once for those it set itself, within [`POLL`] for those of
//! others. The claim in the store decides who delivers; `stateful/timers.rs` has the rules.
//!
//! Bounds: [`BATCH`] timers are looked for together, [`DELIVERIES`] of one function are delivered at the same time, so that a
//! slow one does not hold up the others', and a delivery has at most [`LONGEST`]. One that fails is repeated with
//! growing pauses for as long as the function exists.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::sync::Notify;
use uuid::Uuid;

use super::stateful::{Fired, TIMER_PATH};
use super::{CallError, Deployed, Deployment, Executor};
use crate::execution::{Body, Request, Timings};
use crate::state::{Commit, Entity, Millis, Record, RecordChange, RecordWrite, StateStore, StoreError, now};

/// How long a timer that another host set may be overlooked.
const POLL: Duration = Duration::from_secs(1);

/// Timers looked for and claimed together.
const BATCH: usize = 256;

/// Claims on their way to the store at the same time.
const CLAIMS: usize = 32;

/// Deliveries of one function at the same time.
const DELIVERIES: usize = 32;

/// The longest delivery, whatever the function's timeout.
const LONGEST: Duration = Duration::from_mins(15);

/// By how much a claim outlasts its delivery.
const MARGIN: Duration = Duration::from_secs(5);

/// How long a timer that cannot be read is left alone.
const UNREADABLE: Duration = Duration::from_hours(1);

/// Pause between sweeps.
const SWEEP: Duration = Duration::from_secs(10);

/// Things of each kind that one step of a sweep removes.
const SWEEP_STEP: usize = 1000;

/// Steps of one sweep.
const SWEEP_STEPS: usize = 1000;

/// How long a count of entities is believed.
const COUNT_FRESH: Duration = Duration::from_secs(5);

/// Which delivery of its timer a request is, from 1.
const ATTEMPT: HeaderName = HeaderName::from_static("x-executor-timer-attempt");

/// What a name must not bring into a path.
const NOT_IN_PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'/').add(b'?').add(b'\\');

/// A store and the functions that keep state there.
type InUse = (Arc<dyn StateStore>, Vec<Arc<str>>);

/// Wakes who waits for the next timer, and counts what is being delivered.
#[derive(Default)]
pub(super) struct Clock {
    /// When the timers' task looks again by itself.
    until: AtomicU64,
    wake: Notify,
    /// The last look failed, which was said.
    blind: AtomicBool,
    flights: Mutex<HashMap<Arc<str>, usize>>,
}

/// A delivery under way.
struct Flight {
    executor: Arc<Executor>,
    function: Arc<str>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let clock = &self.executor.clock;
        let mut flights = clock.flights();
        if let Some(count) = flights.get_mut(&self.function) {
            *count -= 1;
            // There may be more, that had to wait for a place.
            if *count + 1 == DELIVERIES {
                clock.wake.notify_one();
            }
            if *count == 0 {
                flights.remove(&self.function);
            }
        }
    }
}

impl Clock {
    /// A timer was set for `due`.
    pub(super) fn wake_at(&self, due: Millis) {
        if due < self.until.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, function: &str) -> bool {
        self.flights().get(function).is_none_or(|count| *count < DELIVERIES)
    }

    /// Waits for `due`, or for news of something earlier, but no longer than [`POLL`].
    async fn sleep_until(&self, due: Option<Millis>) {
        let (now, poll) = (now(), POLL.as_millis() as u64);
        let until = due.unwrap_or(u64::MAX).min(now + poll);
        self.until.store(until, Ordering::SeqCst);
        let pause = Duration::from_millis(until.saturating_sub(now));
        let _ = tokio::time::timeout(pause, self.wake.notified()).await;
        // Until the next pause only what comes due before its end is news.
        self.until.store(crate::state::now() + poll, Ordering::SeqCst);
    }
}

/// How many entities functions with a limit have, as far as this host knows.
#[derive(Default)]
pub(super) struct Counts(Mutex<HashMap<Arc<str>, (u64, Instant)>>);

impl Counts {
    /// Whether `function` may have one more. What other hosts add is seen within [`COUNT_FRESH`].
    pub(super) async fn admit(
        &self,
        store: &dyn StateStore,
        function: &Arc<str>,
        most: u64,
    ) -> Result<bool, StoreError> {
        if let Some(admitted) = self.known(function, most) {
            return Ok(admitted);
        }
        let count = store.count(function).await?;
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.insert(Arc::clone(function), (count.saturating_add(1), Instant::now()));
        Ok(count < most)
    }

    fn known(&self, function: &Arc<str>, most: u64) -> Option<bool> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, at) = counts.get_mut(function)?;
        // A full function is counted anew for each call: entities may be gone.
        if at.elapsed() > COUNT_FRESH || *count >= most {
            return None;
        }
        *count += 1;
        Some(true)
    }
}

impl Executor {
    /// Delivers timers as they come due, for ever. Cancel safe: what was claimed and not delivered is due again.
    pub async fn deliver_timers(self: Arc<Self>) {
        loop {
            let next = self.fire_due().await;
            self.clock.sleep_until(next).await;
        }
    }

    /// Claims and begins what is due. When the next is.
    async fn fire_due(self: &Arc<Self>) -> Option<Millis> {
        let mut next = None;
        for (store, names) in self.stateful() {
            loop {
                // Who has no room is asked again when a delivery ends.
                let names: Vec<_> = names.iter().filter(|name| self.clock.has_room(name)).cloned().collect();
                let found = match store.due(&names, BATCH).await {
                    Ok(found) => found,
                    Err(error) => {
                        if !self.clock.blind.swap(true, Ordering::Relaxed) {
                            tracing::warn!("timers wait, because they cannot be looked for: {error}");
                        }
                        break;
                    }
                };
                self.clock.blind.store(false, Ordering::Relaxed);
                let now = now();
                let (due, later): (Vec<_>, Vec<_>) =
                    found.into_iter().partition(|(_, record)| record.due.is_some_and(|at| at <= now));
                let first_later = later.first().and_then(|(_, record)| record.due);
                next = [next, first_later].into_iter().flatten().min();
                let flights: Vec<_> = due
                    .into_iter()
                    .filter_map(|(function, record)| Some((self.flight(function)?, record)))
                    .collect();
                if flights.is_empty() {
                    break;
                }
                let fire = |(flight, record)| self.fire(&store, flight, record);
                let fired =
                    stream::iter(flights).map(fire).buffer_unordered(CLAIMS).collect::<Vec<_>>().await;
                if !fired.contains(&true) {
                    // Their function has gone, or the store is away: they would be found again and again.
                    break;
                }
            }
        }
        next
    }

    /// The stores in use with the functions that keep state there.
    fn stateful(&self) -> Vec<InUse> {
        let mut stores: Vec<InUse> = Vec::new();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for (name, known) in known.iter() {
            let Deployed::Serving(deployment) = &known.deployed else { continue };
            let Some(spec) = &deployment.function.state else { continue };
            let Ok(store) = self.store_of(spec) else { continue };
            match stores.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &store)) {
                Some((_, names)) => names.push(Arc::clone(name)),
                None => stores.push((store, vec![Arc::clone(name)])),
            }
        }
        stores
    }

    /// A place for one delivery of `function`, if there is one.
    fn flight(self: &Arc<Self>, function: Arc<str>) -> Option<Flight> {
        let mut flights = self.clock.flights();
        let count = flights.entry(Arc::clone(&function)).or_default();
        if *count >= DELIVERIES {
            return None;
        }
        *count += 1;
        Some(Flight { executor: Arc::clone(self), function })
    }

    /// Claims one timer and begins its delivery. False: it is as due as before.
    async fn fire(self: &Arc<Self>, store: &Arc<dyn StateStore>, flight: Flight, record: Record) -> bool {
        let Some(Deployed::Serving(deployment)) = self.find(&flight.function) else { return false };
        let limit = deployment.function.timeout.min(LONGEST);
        let until = now() + u64::try_from((limit + MARGIN).as_millis()).unwrap_or(u64::MAX);
        let entity = Entity { function: Arc::clone(&flight.function), key: Arc::clone(&record.id.key) };
        let Some((commit, mut fired)) = Fired::claim(&record, until) else {
            tracing::error!(
                ?entity,
                "a timer cannot be read and is looked at again in an hour; if state is sealed, start with --store-key-file"
            );
            return store.apply(&entity, Commit::of_records(vec![postpone(&record)])).await.is_ok();
        };
        match store.apply(&entity, commit).await {
            Ok(version) => fired.claimed(version),
            // Another host was faster, or it was cancelled: either way it is not due any more.
            Err(StoreError::Stale { .. }) => return true,
            Err(error) => {
                tracing::debug!("a timer was not claimed: {error}");
                return false;
            }
        }
        let (executor, store) = (Arc::clone(self), Arc::clone(store));
        self.tasks.spawn("timer", async move {
            executor.deliver(&*store, entity, deployment, fired, limit).await;
            drop(flight);
        });
        true
    }

    async fn deliver(
        self: &Arc<Self>,
        store: &dyn StateStore,
        entity: Entity,
        deployment: Arc<Deployment>,
        fired: Fired,
        limit: Duration,
    ) {
        let request = timer_request(&fired, limit);
        let (timer, id) = (fired.name(), Arc::clone(&request.id));
        let execution = super::call::Execution {
            executor: Arc::clone(self),
            deployment,
            timings: Timings::default(),
            logs: None,
        };
        let (result, fired) = execution.fire(request, fired).await;
        let error = match result {
            // It is over: the commit of the call removed it, or whoever did was faster.
            Ok(_) | Err(CallError::Fired) => return,
            Err(error) => error,
        };
        let (commit, due) = fired.again(now(), matches!(error, CallError::Closing));
        let (function, attempt) = (&entity.function, fired.attempt());
        tracing::warn!(%function, timer, attempt, request = %id, "a timer was not delivered and is tried again: {error}");
        match store.apply(&entity, commit).await {
            Ok(_) => self.clock.wake_at(due),
            Err(StoreError::Stale { .. }) => {}
            Err(error) => tracing::debug!("a timer stays claimed until its time is over: {error}"),
        }
    }

    /// Removes what has expired, again and again, for ever. Cancel safe.
    pub async fn sweep_state(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            for store in self.stores.all() {
                let mut swept = 0;
                for _ in 0..SWEEP_STEPS {
                    match store.sweep(now(), SWEEP_STEP).await {
                        Ok(0) => break,
                        Ok(some) => swept += some,
                        Err(error) => {
                            tracing::debug!("state cannot be swept: {error}");
                            break;
                        }
                    }
                }
                if swept > 0 {
                    tracing::debug!(swept, store = store.describe(), "removed state that had expired");
                }
            }
        }
    }
}

/// Takes what cannot be read out of the way of the others. It is kept: the right key may make it readable again.
fn postpone(record: &Record) -> RecordChange {
    let due = Some(now() + UNREADABLE.as_millis() as u64);
    let write = RecordWrite::Put { bytes: record.bytes.clone(), due, expires: record.expires };
    RecordChange { id: record.id.clone(), expected: Some(record.version), write }
}

fn timer_request(fired: &Fired, limit: Duration) -> Request {
    let mut headers = HeaderMap::new();
    headers.insert(ATTEMPT, HeaderValue::from(fired.attempt()));
    let payload = fired.payload();
    if !payload.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(payload.len()));
    }
    let mut buffer = [0; 32];
    let id = &*Uuid::now_v7().as_simple().encode_lower(&mut buffer);
    Request {
        id: id.into(),
        method: Method::POST,
        scheme: "http".into(),
        host: "localhost".into(),
        port: 80,
        path: format!("{TIMER_PATH}{}", utf8_percent_encode(&fired.name(), NOT_IN_PATH)),
        query: String::new(),
        headers,
        body: Body::Full(Bytes::clone(&payload)),
        deadline: Instant::now() + limit,
        limit: None,
    }
}
