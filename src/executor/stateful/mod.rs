//! A call with state: it is brought to the function, and put away before the answer leaves.
//!
//! ```text
//! answer recorded? ─► turn ─► load ─► function ─► effect ─► one commit ─► answer
//!                               ▲                               │
//!                               └────────── conflict ───────────┘
//! ```
//!
//! `models.rs` says what a model makes of stored bytes and of what the function wants; `once.rs` has recorded answers;
//! `events.rs` and `timers.rs` the records of either. Here is the order of things.
//!
//! # Invariants
//!
//! - The answer is given after its commit, and the commit is one: value, events, timers, recorded answer.
//! - On one host calls of one entity run one after the other, except those that cannot change it ([`StateSpec::shared`]) and
//!   those of CRDTs, which only take turns at merging.
//! - A commit names the version it was computed from, so that hosts which share a store never lose each other's writes.
//! - A call that raised changes nothing and records nothing.

mod events;
mod models;
mod once;
mod timers;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::timeout_at;

pub(super) use self::events::{id as event_id, number as event_number};
pub use self::models::is_readable;
pub(super) use self::models::show;
use self::models::{Effect, Loaded, ValueChange, corrupt};
use self::once::{Found, Once};
pub(super) use self::timers::{Fired, TIMER_PATH, pending_of};
use super::call::{Answer, CONFLICT_RETRIES, CallError, Execution, Stage, collect, respond};
use super::entities::Entities;
use crate::execution::{Body, Request, Response};
use crate::function::{Model, OnConflict, StateSpec};
use crate::link::frame::MAX_STATE_IN;
use crate::state::crdt::{By, Crdt, Ops};
use crate::state::{Commit, Entity, Kind, Millis, RecordChange, StateStore, StoreError, Value, Write, now};

/// How often a delta is merged again because another host was faster. Each time one of them got on.
const MERGE_RETRIES: u32 = 50;

/// How often events are read again because they were cleared in between.
const EVENT_RETRIES: u32 = 5;

impl Execution {
    /// Runs `request` on a function that keeps state; on behalf of a timer, if one `fired`.
    pub(super) async fn with_state(
        &mut self,
        request: &mut Request,
        fired: Option<&Fired>,
    ) -> Result<Response, CallError> {
        let deployment = Arc::clone(&self.deployment);
        // A timer's function may have become another one meanwhile.
        let spec = deployment.function.state.as_ref().ok_or(CallError::Fired)?;
        let key = match fired {
            Some(fired) => fired.key(),
            None if request.path.starts_with(TIMER_PATH) => return Err(CallError::TimerPath),
            None => spec.key.fill(request)?,
        };
        let once = if fired.is_none() { Once::of(request, spec.retention)? } else { None };
        // A client that sends slowly must not hold up others on the same entity.
        let executor = Arc::clone(&self.executor);
        let _room = collect(&executor, request).await?;
        let once = once.map(|once| once.about(request));
        let store = self.executor.store_of(spec)?;
        let entity = Entity { function: Arc::clone(&self.deployment.function.name), key };
        // Who repeats a request waits for the first, whatever entity either is about.
        let _first = match &once {
            Some(once) => {
                let name = once.entity(&entity.function);
                Some(self.turn(&executor.answers, &name, request.deadline).await?)
            }
            None => None,
        };
        let readonly = spec.shared.contains(&request.method);
        let merged = matches!(spec.model, Model::Crdt(_));
        let _turn = if readonly || merged {
            None
        } else {
            Some(self.turn(&executor.entities, &entity, request.deadline).await?)
        };
        let id = Arc::clone(&request.id);
        let scene = Scene { spec, store: &*store, entity: &entity, id, once, fired, readonly };
        self.attempts(&scene, request).await
    }

    async fn attempts(&mut self, scene: &Scene<'_>, request: &mut Request) -> Result<Response, CallError> {
        for attempt in 0..=CONFLICT_RETRIES {
            self.timings.retries = attempt;
            let replaces = match self.recorded(scene, request.deadline).await? {
                Found::Nothing(version) => version,
                Found::Recorded(response) => return Ok(response),
            };
            let loaded = self.load(scene, request.deadline).await?;
            let mut answer = self.ask(request, Some(&loaded.input)).await?;
            if scene.once.is_some() {
                self.collect(&mut answer, &scene.id, request.deadline).await?;
            }
            let effect = self.effect(scene, &loaded, &answer, replaces)?;
            match self.put_away(scene, &loaded, effect, request.deadline).await {
                Ok(()) => return Ok(respond(answer)),
                Err(CallError::Store(StoreError::Conflict { .. }))
                    if scene.spec.on_conflict == OnConflict::Fail =>
                {
                    // It may have been the same request, on another host.
                    return match self.recorded(scene, request.deadline).await? {
                        Found::Recorded(response) => Ok(response),
                        Found::Nothing(_) => Err(CallError::Changed),
                    };
                }
                Err(CallError::Store(StoreError::Stale { .. })) if scene.fired.is_some() => {
                    return Err(CallError::Fired);
                }
                // Another host was faster with the state, or with a request of the same key.
                Err(CallError::Store(StoreError::Conflict { .. } | StoreError::Stale { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CallError::Conflict)
    }

    /// What the request was answered earlier, if it has a key.
    async fn recorded(&mut self, scene: &Scene<'_>, deadline: Instant) -> Result<Found, CallError> {
        let Some(once) = &scene.once else { return Ok(Found::Nothing(0)) };
        let read = scene.store.record(&scene.entity.function, once.id());
        once.found(self.stored(deadline, read).await?, scene.entity)
    }

    /// Reads the state and makes of it what the worker gets.
    async fn load(&mut self, scene: &Scene<'_>, deadline: Instant) -> Result<Loaded, CallError> {
        let Scene { spec, store, entity, .. } = *scene;
        for _ in 0..EVENT_RETRIES {
            let versioned = self.stored(deadline, store.get(entity)).await?;
            let mut loaded = Loaded::of(spec, entity, versioned, scene.readonly, now())?;
            if let Some(wanted) = loaded.wanted_events() {
                let reading = events::read(store, entity, wanted);
                let events = self.stored(deadline, reading).await?;
                if !loaded.take_events(&events) {
                    // Somebody began the log anew between the two reads.
                    continue;
                }
            }
            if loaded.input.bytes.len() > MAX_STATE_IN {
                let why = format!(
                    "the function would be handed {} bytes of it, and {MAX_STATE_IN} is the most",
                    loaded.input.bytes.len()
                );
                return Err(corrupt(entity, &why));
            }
            return Ok(loaded);
        }
        Err(corrupt(entity, "events are missing"))
    }

    /// What the answer does to the state and its records. What a function must not do is told in its log.
    fn effect(
        &mut self,
        scene: &Scene<'_>,
        loaded: &Loaded,
        answer: &Answer,
        replaces: u64,
    ) -> Result<Effect, CallError> {
        let most = self.executor.options.max_state;
        let at = now();
        let effect = || {
            let mut effect = match &answer.head.state {
                Some(change) => {
                    Effect::of(scene.spec, scene.entity, loaded, change, &answer.state, most, at)?
                }
                None => Effect::default(),
            };
            if let Some(fired) = scene.fired {
                fired.finish(scene.entity, &mut effect.records);
            }
            if let Some(once) = &scene.once {
                effect.records.push(once.record(scene.entity, answer, replaces, at)?);
            }
            Ok(effect)
        };
        effect().map_err(|why: String| self.refuse(&scene.id, &why))
    }

    /// The function did what it must not.
    fn refuse(&mut self, request: &Arc<str>, why: &str) -> CallError {
        self.note(request, None, why);
        CallError::Raised
    }

    async fn put_away(
        &mut self,
        scene: &Scene<'_>,
        loaded: &Loaded,
        effect: Effect,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let records = effect.records;
        let value = match effect.value {
            ValueChange::Nothing if records.is_empty() => return Ok(()),
            // What is recorded stands for itself.
            ValueChange::Nothing => None,
            ValueChange::Write(write) => Some((loaded.expected, write)),
            ValueChange::Merge(ops) => {
                let merge = Merge { observed: loaded.observed(), ops, records, expires: effect.expires };
                return self.merge(scene, merge, deadline).await;
            }
        };
        if loaded.expected == 0 && matches!(value, Some((_, Write::Put(_)))) {
            self.admit(scene, deadline).await?;
        }
        self.commit(scene, Commit { value, records, at: now() }, deadline).await
    }

    /// Whether there may be one entity more.
    async fn admit(&mut self, scene: &Scene<'_>, deadline: Instant) -> Result<(), CallError> {
        let Some(most) = scene.spec.max_entities else { return Ok(()) };
        let executor = Arc::clone(&self.executor);
        let counting = executor.counts.admit(scene.store, &scene.entity.function, most);
        if self.stored(deadline, counting).await? { Ok(()) } else { Err(CallError::Full(most)) }
    }

    async fn commit(
        &mut self,
        scene: &Scene<'_>,
        commit: Commit,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let next_timer = pending_of(&commit.records);
        let version = self.stored(deadline, scene.store.apply(scene.entity, commit)).await?;
        self.executor.tell(scene.entity, version);
        if let Some(due) = next_timer {
            self.executor.clock.wake_at(due);
        }
        Ok(())
    }

    /// Merges what the function did into what is stored by now.
    ///
    /// The delta is computed once, in the turn of this host, and stays the same for every attempt: merging it again
    /// changes nothing.
    async fn merge(
        &mut self,
        scene: &Scene<'_>,
        merge: Merge<'_>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let executor = Arc::clone(&self.executor);
        let (most, entity) = (executor.options.max_state, scene.entity);
        let _turn = self.turn(&executor.entities, entity, deadline).await?;
        let mut delta: Option<Crdt> = None;
        let mut lived = false;
        for _ in 0..=MERGE_RETRIES {
            let at = now();
            let stored = self.stored(deadline, scene.store.get(entity)).await?;
            let expected = stored.as_ref().map_or(0, |stored| stored.version);
            let stored = stored.filter(|stored| !stored.value.expired(at));
            // It has ended meanwhile: what was made for that life does not belong into the next.
            if lived && stored.is_none() {
                delta = None;
            }
            lived = stored.is_some();
            let mut current = models::crdt_of(scene.spec, entity, stored)?;
            let delta = match &delta {
                Some(delta) => delta,
                None => {
                    let (replica, tickets) = (&executor.options.replica, &executor.tickets);
                    let by = By { replica, tickets, now: at };
                    let made = current.delta(merge.observed, &merge.ops, &by);
                    delta.insert(made.map_err(|error| self.refuse(&scene.id, &error.to_string()))?)
                }
            };
            current.merge(delta).map_err(|error| corrupt(entity, &error.to_string()))?;
            let bytes: Bytes = current.encode().into();
            if bytes.len() as u64 > most {
                return Err(self.refuse(&scene.id, &models::too_large(bytes.len() as u64, most)));
            }
            if expected == 0 {
                self.admit(scene, deadline).await?;
            }
            let value = Value { kind: Kind::Crdt, bytes, schema: scene.spec.version, expires: merge.expires };
            let value = Some((expected, Write::Put(value)));
            let commit = Commit { value, records: merge.records.clone(), at };
            match self.commit(scene, commit, deadline).await {
                Err(CallError::Store(StoreError::Conflict { .. })) => self.timings.retries += 1,
                other => return other,
            }
        }
        Err(CallError::Conflict)
    }

    /// Reads all of a streamed answer, so that it can be recorded.
    async fn collect(
        &mut self,
        answer: &mut Answer,
        request: &Arc<str>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let Body::Stream(stream) = &mut answer.body else { return Ok(()) };
        let most = self.executor.options.max_response;
        let gather = async {
            let mut all = Vec::new();
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(|error| error.to_string())?;
                if (all.len() + piece.len()) as u64 > most {
                    return Err(format!(
                        "A response to a request with an Idempotency-Key is recorded whole; this one is larger than {most} bytes."
                    ));
                }
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        match timeout_at(deadline.into(), gather).await {
            Err(_) => Err(self.late(Stage::Function)),
            Ok(Err(why)) => {
                self.note(request, None, &why);
                Err(CallError::Raised)
            }
            Ok(Ok(all)) => {
                answer.body = Body::Full(all.into());
                answer.head.length = None;
                answer.lease = None;
                Ok(())
            }
        }
    }

    async fn turn(
        &mut self,
        entities: &Arc<Entities>,
        entity: &Entity,
        deadline: Instant,
    ) -> Result<super::entities::Turn, CallError> {
        // Who need not wait is not counted: those who wait for another entity must not keep it out.
        if let Some(turn) = entities.free(entity) {
            return Ok(turn);
        }
        let begun = Instant::now();
        let waiters = &self.deployment.entity_waiters;
        let most = self.executor.options.queue;
        let waiting = super::call::Waiting::new(waiters);
        if waiting.number > most {
            return Err(CallError::QueueFull(most));
        }
        let turn = entities.turn(entity, most);
        let turn = timeout_at(deadline.into(), turn).await;
        drop(waiting);
        self.timings.queue += begun.elapsed();
        turn.map_err(|_| self.late(Stage::Entity))?.ok_or(CallError::QueueFull(most))
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
}

/// What a call does to a CRDT.
struct Merge<'a> {
    observed: &'a Crdt,
    ops: Ops,
    records: Vec<RecordChange>,
    expires: Option<Millis>,
}

/// What does not change from one attempt of a call to the next.
struct Scene<'a> {
    spec: &'a StateSpec,
    store: &'a dyn StateStore,
    entity: &'a Entity,
    /// The request's id.
    id: Arc<str>,
    once: Option<Once>,
    fired: Option<&'a Fired>,
    readonly: bool,
}
