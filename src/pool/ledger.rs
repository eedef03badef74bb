//! Who may use which instance, and when instances start and stop. Pure: no I/O, no clock, no locks.
//!
//! Every event enters through one method, which gives its decisions as [`Action`]s for the driver to carry out.
//! That makes the rules testable without a single process: who waits, who is served first, how many are started for
//! a burst, who is evicted, when a broken function is left alone for a while.
//!
//! Invariants, checked after every event in tests: waiters of one function are served first come, first served; no
//! instance runs more than `concurrency` calls; a function never has more live instances than `max`, and all
//! functions together never more than the global limit, ending ones included; nobody waits while a place is free.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::instance::InstanceId;
use crate::pool::StartFailure;
use crate::pool::phase::{Event, Phase};

/// After this many failed starts in a row a function is left alone for a while.
pub const FAILURES_BEFORE_BACKOFF: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Names one deployed version of a function.
pub type FunctionKey = u64;
/// Names one waiter.
pub type Ticket = u64;

/// Limits over all functions.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Instances, ending ones included.
    pub instances: usize,
    /// Waiting calls per function.
    pub queue: usize,
    /// Whether starts that fail again and again are paused; if not, each new caller makes one new attempt.
    pub back_off: bool,
}

/// Limits of one function.
#[derive(Debug, Clone, Copy)]
pub struct FunctionLimits {
    /// Calls at once in one instance.
    pub concurrency: u32,
    /// Instances kept even when idle.
    pub min: usize,
    /// Live instances at the most.
    pub max: usize,
    /// Idle time after which an instance is stopped.
    pub keep_warm: Duration,
}

/// The answer to a caller.
#[derive(Debug)]
pub enum Acquire<H> {
    /// Use this instance now.
    Granted(InstanceId, H),
    /// Wait for [`Action::Grant`] or [`Action::Refuse`] with this ticket.
    Queued(Ticket),
    /// Not now.
    Refused(Refusal),
}

/// Why a caller gets no instance.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// As many calls wait already as may.
    QueueFull(usize),
    /// Instances do not start; try again after the given time.
    CannotStart(Arc<StartFailure>, Duration),
    /// This version of the function is no longer deployed.
    Gone,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Action<H> {
    /// Start an instance.
    Start(FunctionKey, InstanceId),
    /// Give the waiter this instance.
    Grant(Ticket, FunctionKey, InstanceId, H),
    /// Tell the waiter no.
    Refuse(Ticket, Refusal),
    /// End this instance in good order.
    Stop(InstanceId),
}

struct Record<H> {
    id: InstanceId,
    phase: Phase,
    handle: Option<H>,
    /// Calls on it that are past their deadline: as long as there are any it may be stuck, and gets no others.
    late: u32,
}

struct FunctionState<H> {
    limits: FunctionLimits,
    instances: Vec<Record<H>>,
    waiting: VecDeque<Ticket>,
    failures: u32,
    retry_at: Option<Instant>,
    last_failure: Option<Arc<StartFailure>>,
    retired: bool,
    /// Wants an instance that the global limit did not allow.
    starved: bool,
}

/// The books. `H` is what the driver needs to use an instance.
pub struct Ledger<H> {
    limits: Limits,
    functions: HashMap<FunctionKey, FunctionState<H>>,
    total: usize,
    starved: usize,
    last_key: FunctionKey,
    last_ticket: Ticket,
    actions: Vec<Action<H>>,
}

impl<H: Clone> Ledger<H> {
    /// Empty books.
    pub fn new(limits: Limits) -> Self {
        let functions = HashMap::new();
        Self { limits, functions, total: 0, starved: 0, last_key: 0, last_ticket: 0, actions: Vec::new() }
    }

    /// Decisions since the last call, in order.
    pub fn take_actions(&mut self) -> Vec<Action<H>> {
        std::mem::take(&mut self.actions)
    }

    /// Whether there is nothing to carry out.
    pub fn is_settled(&self) -> bool {
        self.actions.is_empty()
    }

    /// Whether this version is still deployed or finishing.
    pub fn knows(&self, key: FunctionKey) -> bool {
        self.functions.contains_key(&key)
    }

    /// Instances of all functions, ending ones included.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Live instances and waiting calls of a function.
    pub fn counts(&self, key: FunctionKey) -> (usize, usize) {
        self.functions.get(&key).map_or((0, 0), |f| (f.live(), f.waiting.len()))
    }

    /// Deploys a version of a function. Its minimum is started by the next [`Ledger::tick`].
    pub fn add(&mut self, limits: FunctionLimits) -> FunctionKey {
        self.last_key += 1;
        let state = FunctionState {
            limits,
            instances: Vec::new(),
            waiting: VecDeque::new(),
            failures: 0,
            retry_at: None,
            last_failure: None,
            retired: false,
            starved: false,
        };
        self.functions.insert(self.last_key, state);
        self.last_key
    }

    /// A caller wants to run one call.
    pub fn acquire(&mut self, key: FunctionKey, now: Instant) -> Acquire<H> {
        let Some(f) = self.functions.get_mut(&key) else { return Acquire::Refused(Refusal::Gone) };
        if f.waiting.is_empty()
            && let Some(record) = f.pick()
        {
            record.phase = record.phase.on(Event::Leased, now);
            if let Some(handle) = record.handle.clone() {
                return Acquire::Granted(record.id, handle);
            }
        }
        if f.live() == 0
            && let (Some(at), Some(failure)) = (f.retry_at, &f.last_failure)
            && at > now
        {
            return Acquire::Refused(Refusal::CannotStart(Arc::clone(failure), at - now));
        }
        if f.waiting.len() >= self.limits.queue {
            return Acquire::Refused(Refusal::QueueFull(f.waiting.len()));
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        f.waiting.push_back(ticket);
        self.scale(key, now);
        Acquire::Queued(ticket)
    }

    /// A waiter went away. Harmless if it was served already.
    pub fn abandon(&mut self, key: FunctionKey, ticket: Ticket, now: Instant) {
        if let Some(f) = self.functions.get_mut(&key) {
            f.waiting.retain(|t| *t != ticket);
            self.settle(key, now);
        }
    }

    /// An instance is ready for calls.
    pub fn ready(&mut self, key: FunctionKey, id: InstanceId, handle: H, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        let Some(record) = f.record(id) else { return };
        record.phase = record.phase.on(Event::Started, now);
        record.handle = Some(handle);
        f.failures = 0;
        f.retry_at = None;
        self.serve(key, now);
        self.settle(key, now);
        // Those it was started for may have left: then it is idle and can make room for others.
        self.feed_the_starved(now);
    }

    /// An instance could not be started; it is gone.
    pub fn failed(&mut self, key: FunctionKey, id: InstanceId, failure: &Arc<StartFailure>, now: Instant) {
        self.forget(key, id);
        if let Some(f) = self.functions.get_mut(&key) {
            f.failures += 1;
            let repeated = f.failures >= FAILURES_BEFORE_BACKOFF;
            if repeated && self.limits.back_off {
                let doublings = (f.failures - FAILURES_BEFORE_BACKOFF).min(5);
                f.retry_at = Some(now + (FIRST_BACKOFF * 2u32.pow(doublings)).min(LONGEST_BACKOFF));
            }
            f.last_failure = Some(Arc::clone(failure));
            // Others that live or start may still serve the waiters.
            if f.live() == 0 && (failure.is_final() || (repeated && !self.limits.back_off)) {
                self.refuse_waiters(key, now);
            }
        }
        // The free place belongs to those who have nothing, before this function's next attempt.
        self.feed_the_starved(now);
        self.scale(key, now);
        self.settle(key, now);
    }

    /// A call ended.
    pub fn release(&mut self, key: FunctionKey, id: InstanceId, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        let (keep, retired) = (!f.waiting.is_empty(), f.retired);
        let Some(record) = f.record(id) else { return };
        if keep && let Phase::Draining { in_flight } = record.phase {
            // One of those who wait takes the place at once.
            record.phase = Phase::Draining { in_flight: in_flight - 1 };
            self.serve(key, now);
        } else {
            let before = record.phase;
            record.phase = record.phase.on(Event::Released, now);
            if before.is_live() && !record.phase.is_live() {
                self.actions.push(Action::Stop(id));
            } else if keep {
                self.serve(key, now);
            }
        }
        if retired {
            // That may have been the last one who waited.
            self.settle(key, now);
        }
        if self.starved > 0 {
            self.feed_the_starved(now);
        }
    }

    /// A call on the instance is past its deadline: others go elsewhere until [`Ledger::resume`].
    pub fn suspend(&mut self, key: FunctionKey, id: InstanceId, now: Instant) {
        if let Some(record) = self.functions.get_mut(&key).and_then(|f| f.record(id)) {
            record.late += 1;
            self.scale(key, now);
        }
    }

    /// The late call has ended after all.
    pub fn resume(&mut self, key: FunctionKey, id: InstanceId, now: Instant) {
        if let Some(record) = self.functions.get_mut(&key).and_then(|f| f.record(id)) {
            record.late = record.late.saturating_sub(1);
            self.serve(key, now);
        }
    }

    /// An instance is not to be used any more; the driver is ending it.
    pub fn condemn(&mut self, key: FunctionKey, id: InstanceId, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        if let Some(record) = f.record(id) {
            record.phase = record.phase.on(Event::Condemned, now);
            self.scale(key, now);
        }
    }

    /// An instance has ended and nothing of it is left.
    pub fn ended(&mut self, key: FunctionKey, id: InstanceId, now: Instant) {
        self.forget(key, id);
        self.feed_the_starved(now);
        self.scale(key, now);
        self.settle(key, now);
    }

    /// This version of the function is replaced or removed: finish, then stop.
    pub fn retire(&mut self, key: FunctionKey, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        f.retired = true;
        let waiting = !f.waiting.is_empty();
        for record in &mut f.instances {
            let before = record.phase;
            // Those who already wait are still served; with nobody waiting a starting one is of no use.
            record.phase = match record.phase {
                Phase::Starting if waiting => Phase::Starting,
                phase => phase.on(Event::Retired, now),
            };
            if before.is_live() && !record.phase.is_live() {
                self.actions.push(Action::Stop(record.id));
            }
        }
        self.settle(key, now);
    }

    /// To be called regularly: stops what has been idle for too long, starts what `min` asks for.
    pub fn tick(&mut self, now: Instant) {
        let keys: Vec<_> = self.functions.keys().copied().collect();
        for key in keys {
            let Some(f) = self.functions.get_mut(&key) else { continue };
            let mut spare = f.live().saturating_sub(f.limits.min);
            let keep_warm = f.limits.keep_warm;
            f.instances.sort_by_key(|r| r.phase.idle_since().map_or((1, None), |since| (0, Some(since))));
            for record in &mut f.instances {
                let idle = record.phase.idle_since().map(|since| now.saturating_duration_since(since));
                if spare > 0 && idle.is_some_and(|idle| idle >= keep_warm) {
                    record.phase = record.phase.on(Event::Condemned, now);
                    self.actions.push(Action::Stop(record.id));
                    spare -= 1;
                }
            }
            let backing_off = f.retry_at.is_some_and(|at| at > now);
            if !f.retired && !backing_off {
                let missing = f.limits.min.saturating_sub(f.live());
                for _ in 0..missing {
                    if self.total < self.limits.instances {
                        self.start(key);
                    }
                }
            }
            // A back-off may have ended, or another function's place become free, without an event of this one.
            self.scale(key, now);
        }
    }

    fn start(&mut self, key: FunctionKey) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        let id = InstanceId::new();
        f.instances.push(Record { id, phase: Phase::Starting, handle: None, late: 0 });
        self.total += 1;
        self.actions.push(Action::Start(key, id));
    }

    fn refuse_waiters(&mut self, key: FunctionKey, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        let Some(failure) = &f.last_failure else { return };
        let after = f.retry_at.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(now));
        for ticket in f.waiting.drain(..) {
            self.actions.push(Action::Refuse(ticket, Refusal::CannotStart(Arc::clone(failure), after)));
        }
    }

    /// Starts as many instances as the waiters need, as far as the limits allow. While the function backs off and
    /// nothing of it lives, the waiters hear why instead.
    fn scale(&mut self, key: FunctionKey, now: Instant) {
        if let Some(f) = self.functions.get(&key)
            && f.live() == 0
            && f.retry_at.is_some_and(|at| at > now)
        {
            self.refuse_waiters(key, now);
        }
        loop {
            let Some(f) = self.functions.get_mut(&key) else { return };
            let starting = f.instances.iter().filter(|r| r.phase == Phase::Starting).count();
            let needed = f.waiting.len().div_ceil(f.limits.concurrency as usize);
            let blocked = f.retry_at.is_some_and(|at| at > now);
            let wants = starting < needed && f.live() < f.limits.max && !blocked;
            let room = self.total < self.limits.instances;
            if wants && room {
                self.set_starved(key, false);
                self.start(key);
            } else {
                // A function with instances of its own gets along; one without must be given a place.
                let starved = wants && f.live() == 0;
                self.set_starved(key, starved);
                if starved {
                    self.evict(key, now);
                }
                return;
            }
        }
    }

    fn set_starved(&mut self, key: FunctionKey, starved: bool) {
        if let Some(f) = self.functions.get_mut(&key)
            && f.starved != starved
        {
            f.starved = starved;
            if starved {
                self.starved += 1;
            } else {
                self.starved -= 1;
            }
        }
    }

    /// Stops the instance that has been idle longest, of any other function, to make room. One at a time per
    /// starving function: as many as are ending already will make room too.
    fn evict(&mut self, for_key: FunctionKey, now: Instant) {
        let ending =
            self.functions.values().flat_map(|f| &f.instances).filter(|r| !r.phase.is_live()).count();
        if ending >= self.starved {
            return;
        }
        let others = self.functions.iter_mut().filter(|(key, _)| **key != for_key);
        let idle = others
            .filter(|(_, f)| f.waiting.is_empty())
            .flat_map(|(_, f)| &mut f.instances)
            .filter_map(|record| record.phase.idle_since().map(|since| (since, record)))
            .min_by_key(|(since, _)| *since);
        if let Some((_, record)) = idle {
            record.phase = record.phase.on(Event::Condemned, now);
            self.actions.push(Action::Stop(record.id));
        }
    }

    fn feed_the_starved(&mut self, now: Instant) {
        if self.starved == 0 {
            return;
        }
        // The one whose first caller has waited longest comes first.
        let mut hungry: Vec<_> = self
            .functions
            .iter()
            .filter(|(_, f)| f.starved)
            .map(|(key, f)| (f.waiting.front().copied(), *key))
            .collect();
        hungry.sort_unstable();
        for (_, key) in hungry {
            self.scale(key, now);
        }
    }

    /// Gives free places to those who wait.
    fn serve(&mut self, key: FunctionKey, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        while let Some(ticket) = f.waiting.front().copied() {
            let Some(record) = f.pick_for_waiter() else { return };
            let Some(handle) = record.handle.clone() else { return };
            record.phase = record.phase.on(Event::Leased, now);
            let id = record.id;
            f.waiting.pop_front();
            self.actions.push(Action::Grant(ticket, key, id, handle));
        }
    }

    fn forget(&mut self, key: FunctionKey, id: InstanceId) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        let before = f.instances.len();
        f.instances.retain(|r| r.id != id);
        self.total -= before - f.instances.len();
    }

    /// Drops what a retired function no longer needs, in the end itself.
    fn settle(&mut self, key: FunctionKey, now: Instant) {
        let Some(f) = self.functions.get_mut(&key) else { return };
        if f.waiting.is_empty() && f.starved {
            self.set_starved(key, false);
        }
        let Some(f) = self.functions.get_mut(&key) else { return };
        if !f.retired || !f.waiting.is_empty() {
            return;
        }
        for record in &mut f.instances {
            let before = record.phase;
            record.phase = record.phase.on(Event::Retired, now);
            if before.is_live() && !record.phase.is_live() {
                self.actions.push(Action::Stop(record.id));
            }
        }
        if f.instances.is_empty() {
            self.functions.remove(&key);
        }
    }
}

impl<H> FunctionState<H> {
    fn live(&self) -> usize {
        self.instances.iter().filter(|r| r.phase.is_live()).count()
    }

    fn record(&mut self, id: InstanceId) -> Option<&mut Record<H>> {
        self.instances.iter_mut().find(|r| r.id == id)
    }

    /// The least busy ready instance with a free place.
    fn pick(&mut self) -> Option<&mut Record<H>> {
        let limit = self.limits.concurrency;
        self.instances
            .iter_mut()
            .filter_map(|record| match record.phase {
                Phase::Ready { in_flight, .. } if in_flight < limit && record.late == 0 => {
                    Some((in_flight, record))
                }
                _ => None,
            })
            .min_by_key(|(in_flight, _)| *in_flight)
            .map(|(_, record)| record)
    }

    /// As `pick`, but a draining instance serves too: its waiters came before it was retired.
    fn pick_for_waiter(&mut self) -> Option<&mut Record<H>> {
        let limit = self.limits.concurrency;
        self.instances
            .iter_mut()
            .filter_map(|record| match record.phase {
                Phase::Ready { in_flight, .. } | Phase::Draining { in_flight }
                    if in_flight < limit && record.late == 0 =>
                {
                    Some((in_flight, record))
                }
                _ => None,
            })
            .min_by_key(|(in_flight, _)| *in_flight)
            .map(|(_, record)| record)
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
