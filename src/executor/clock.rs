//! What happens by itself as time passes: timers come due, and what has expired is swept.
//!
//! Every host that serves a function looks for its due timers: at once for those it set itself, within [`POLL`] for those of
//! others. The claim in the store decides who delivers; `stateful/timers.rs` has the rules. Each store is looked at by a
//! loop of its own, so that one that does not answer holds up no timers of another.
//!
//! Bounds: [`BATCH`] timers are looked for together, [`DELIVERIES`] of one function are delivered at the same time, so that a
//! slow one does not hold up the others', and a delivery has at most [`LONGEST`]. One that fails is repeated with
//! growing pauses for as long as the function exists.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
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

/// Wakes who waits for the next timer, and counts what is being delivered.
#[derive(Default)]
pub(super) struct Clock {
    /// One for each store, from when timers are delivered.
    alarms: OnceLock<Vec<Arc<Alarm>>>,
    flights: Mutex<HashMap<Arc<str>, usize>>,
}

/// When the timers of one store are looked for.
struct Alarm {
    /// When their loop looks again by itself.
    until: AtomicU64,
    wake: Notify,
    /// The last look failed, which was said.
    blind: AtomicBool,
}

/// A delivery under way.
struct Flight {
    executor: Arc<Executor>,
    /// Of the store that the timer is in.
    alarm: Arc<Alarm>,
    function: Arc<str>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut flights = self.executor.clock.flights();
        if let Some(count) = flights.get_mut(&self.function) {
            *count -= 1;
            // There may be more, that had to wait for a place.
            if *count + 1 == DELIVERIES {
                self.alarm.wake.notify_one();
            }
            if *count == 0 {
                flights.remove(&self.function);
            }
        }
    }
}

impl Clock {
    /// A timer was set for `due`. In which store is not asked: to look in vain costs little.
    pub(super) fn wake_at(&self, due: Millis) {
        for alarm in self.alarms.get().into_iter().flatten() {
            if due < alarm.until.load(Ordering::SeqCst) {
                alarm.wake.notify_one();
            }
        }
    }

    /// Looks into each of `stores` again and again, for ever: when the next timer is due of which `look` told, or one
    /// that was set meanwhile. The stores do not wait for each other.
    async fn watch<S: Clone, L: Future<Output = Option<Millis>>>(
        &self,
        stores: Vec<S>,
        look: impl Fn(S, Arc<Alarm>) -> L,
    ) {
        let alarms = self.alarms.get_or_init(|| stores.iter().map(|_| Arc::new(Alarm::new())).collect());
        let look = &look;
        let loops = stores
            .into_iter()
            .zip(alarms)
            .map(|(store, alarm)| alarm.keep(move || look(store.clone(), Arc::clone(alarm))));
        join_all(loops).await;
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, function: &str) -> bool {
        self.flights().get(function).is_none_or(|count| *count < DELIVERIES)
    }
}

impl Alarm {
    fn new() -> Self {
        // During the first look everything that is set is news.
        Self { until: AtomicU64::new(u64::MAX), wake: Notify::new(), blind: AtomicBool::new(false) }
    }

    /// Looks whenever it is time, for ever.
    async fn keep<L: Future<Output = Option<Millis>>>(&self, look: impl Fn() -> L) {
        loop {
            let next = look().await;
            self.sleep_until(next).await;
        }
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
        let stores: Vec<_> = self.stores.all().cloned().collect();
        let look = |store, alarm| Arc::clone(&self).fire_due(store, alarm);
        self.clock.watch(stores, look).await;
    }

    /// Claims and begins what is due in `store`. When the next is.
    async fn fire_due(self: Arc<Self>, store: Arc<dyn StateStore>, alarm: Arc<Alarm>) -> Option<Millis> {
        let names = self.names_in(&store);
        let mut next = None;
        loop {
            // Who has no room is asked again when a delivery ends.
            let names: Vec<_> = names.iter().filter(|name| self.clock.has_room(name)).cloned().collect();
            if names.is_empty() {
                return next;
            }
            let found = match store.due(&names, BATCH).await {
                Ok(found) => found,
                Err(error) => {
                    if !alarm.blind.swap(true, Ordering::Relaxed) {
                        let store = store.describe();
                        tracing::warn!(store, "timers wait, because they cannot be looked for: {error}");
                    }
                    return next;
                }
            };
            alarm.blind.store(false, Ordering::Relaxed);
            let now = now();
            let (due, later): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(_, record)| record.due.is_some_and(|at| at <= now));
            let first_later = later.first().and_then(|(_, record)| record.due);
            next = [next, first_later].into_iter().flatten().min();
            let flights: Vec<_> = due
                .into_iter()
                .filter_map(|(function, record)| Some((self.flight(&alarm, function)?, record)))
                .collect();
            if flights.is_empty() {
                return next;
            }
            let fire = |(flight, record)| self.fire(&store, flight, record);
            let fired = stream::iter(flights).map(fire).buffer_unordered(CLAIMS).collect::<Vec<_>>().await;
            if !fired.contains(&true) {
                // Their function has gone, or the store is away: they would be found again and again.
                return next;
            }
        }
    }

    /// The functions that keep state in `store`.
    fn names_in(&self, store: &Arc<dyn StateStore>) -> Vec<Arc<str>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let serving = known.iter().filter(|(_, known)| {
            let Deployed::Serving(deployment) = &known.deployed else { return false };
            let spec = deployment.function.state.as_ref();
            spec.and_then(|spec| self.store_of(spec).ok()).is_some_and(|own| Arc::ptr_eq(&own, store))
        });
        serving.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// A place for one delivery of `function`, if there is one.
    fn flight(self: &Arc<Self>, alarm: &Arc<Alarm>, function: Arc<str>) -> Option<Flight> {
        let mut flights = self.clock.flights();
        let count = flights.entry(Arc::clone(&function)).or_default();
        if *count >= DELIVERIES {
            return None;
        }
        *count += 1;
        Some(Flight { executor: Arc::clone(self), alarm: Arc::clone(alarm), function })
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
        let meter = Arc::clone(&deployment.meter);
        let execution = super::call::Execution {
            executor: Arc::clone(self),
            deployment,
            timings: Timings::default(),
            logs: None,
        };
        let (result, fired) = execution.fire(request, fired).await;
        meter.fired(matches!(result, Ok(_) | Err(CallError::Fired)));
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::time::{self, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_holds_up_no_other() {
        let (clock, looks) = (Clock::default(), AtomicUsize::new(0));
        let looks = &looks;
        let look = |hangs, _| async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            looks.fetch_add(1, Ordering::Relaxed);
            None
        };
        let watched = timeout(POLL * 19 / 2, clock.watch(vec![true, false], look)).await;
        assert!(watched.is_err(), "it never ends");
        assert_eq!(looks.load(Ordering::Relaxed), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_set_wakes_every_store_that_would_sleep_for_longer() {
        let (clock, begun) = (Clock::default(), time::Instant::now());
        let looks: [Mutex<Vec<Duration>>; 2] = Default::default();
        let seen = &looks;
        let look = |store: usize, _| async move {
            seen[store].lock().unwrap().push(begun.elapsed());
            None
        };
        let set = async {
            time::sleep(POLL / 4).await;
            clock.wake_at(u64::MAX);
            time::sleep(POLL / 4).await;
            clock.wake_at(0);
        };
        let both = async { tokio::join!(clock.watch(vec![0, 1], look), set) };
        assert!(timeout(POLL, both).await.is_err());
        for times in looks {
            assert_eq!(times.into_inner().unwrap(), [Duration::ZERO, POLL / 2]);
        }
    }

    #[test]
    fn nobody_is_woken_before_timers_are_delivered() {
        Clock::default().wake_at(0);
    }
}
