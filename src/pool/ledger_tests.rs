//! The ledger's rules, one example each. `property` checks the invariants over random lives.

use super::*;
use crate::pool::StartPart;

#[path = "ledger_property_tests.rs"]
mod property;

const NS: Duration = Duration::from_nanos(1);
const KEEP_WARM: Duration = Duration::from_mins(5);

/// The ledger with its decisions sorted by kind. The handle of an instance is a constant: it is only passed on.
struct Desk {
    ledger: Ledger<char>,
    now: Instant,
    started: Vec<(FunctionKey, InstanceId)>,
    granted: Vec<(Ticket, InstanceId)>,
    refused: Vec<(Ticket, Refusal)>,
    stopped: Vec<InstanceId>,
}

impl Desk {
    fn new(instances: usize, queue: usize) -> Self {
        Self {
            ledger: Ledger::new(Limits { instances, queue, back_off: true }),
            now: Instant::now(),
            started: Vec::new(),
            granted: Vec::new(),
            refused: Vec::new(),
            stopped: Vec::new(),
        }
    }

    fn add(&mut self, concurrency: u32, min: usize, max: usize) -> FunctionKey {
        self.ledger.add(FunctionLimits { concurrency, min, max, keep_warm: KEEP_WARM })
    }

    fn sort(&mut self) {
        for action in self.ledger.take_actions() {
            match action {
                Action::Start(key, id) => self.started.push((key, id)),
                Action::Grant(ticket, _, id, 'h') => self.granted.push((ticket, id)),
                Action::Grant(..) => panic!("a handle that nobody gave"),
                Action::Refuse(ticket, refusal) => self.refused.push((ticket, refusal)),
                Action::Stop(id) => self.stopped.push(id),
            }
        }
    }

    fn acquire(&mut self, key: FunctionKey) -> Acquire<char> {
        let answer = self.ledger.acquire(key, self.now);
        self.sort();
        answer
    }

    fn wait(&mut self, key: FunctionKey) -> Ticket {
        match self.acquire(key) {
            Acquire::Queued(ticket) => ticket,
            other => panic!("expected to wait, got {other:?}"),
        }
    }

    fn lease(&mut self, key: FunctionKey) -> InstanceId {
        match self.acquire(key) {
            Acquire::Granted(id, 'h') => id,
            other => panic!("expected a place, got {other:?}"),
        }
    }

    fn abandon(&mut self, key: FunctionKey, ticket: Ticket) {
        self.ledger.abandon(key, ticket, self.now);
        self.sort();
    }

    fn ready(&mut self, key: FunctionKey, id: InstanceId) {
        self.ledger.ready(key, id, 'h', self.now);
        self.sort();
    }

    fn fail(&mut self, key: FunctionKey, id: InstanceId, part: StartPart) {
        let failure = StartFailure { part, message: "no".into(), stack: String::new() };
        self.ledger.failed(key, id, &Arc::new(failure), self.now);
        self.sort();
    }

    /// The start that was decided last fails.
    fn fail_last(&mut self, part: StartPart) {
        let (key, id) = *self.started.last().unwrap();
        self.fail(key, id, part);
    }

    fn release(&mut self, key: FunctionKey, id: InstanceId) {
        self.ledger.release(key, id, self.now);
        self.sort();
    }

    fn ended(&mut self, key: FunctionKey, id: InstanceId) {
        self.ledger.ended(key, id, self.now);
        self.sort();
    }

    fn retire(&mut self, key: FunctionKey) {
        self.ledger.retire(key, self.now);
        self.sort();
    }

    fn tick(&mut self) {
        self.ledger.tick(self.now);
        self.sort();
    }

    /// An idle instance of the function, which must have none yet.
    fn warm(&mut self, key: FunctionKey) -> InstanceId {
        let ticket = self.wait(key);
        let id = self.started.last().unwrap().1;
        self.ready(key, id);
        assert_eq!(self.granted.last(), Some(&(ticket, id)));
        self.release(key, id);
        id
    }

    /// An instance that runs one call.
    fn busy(&mut self, key: FunctionKey) -> InstanceId {
        let id = self.warm(key);
        assert_eq!(self.lease(key), id);
        id
    }
}

fn burst(concurrency: u32, max: usize) -> usize {
    let mut desk = Desk::new(100, 1000);
    let key = desk.add(concurrency, 0, max);
    for _ in 0..1000 {
        desk.wait(key);
    }
    desk.started.len()
}

#[test]
fn a_burst_of_1000_cold_callers_starts_at_most_max_and_as_many_as_needed() {
    assert_eq!(burst(16, 4), 4, "at most max");
    assert_eq!(burst(1, 50), 50, "at most max");
    assert_eq!(burst(300, 50), 4, "as many as needed");
    assert_eq!(burst(1000, 50), 1, "one has room for all");
    assert_eq!(burst(999, 50), 2, "one has room for all but one");
    assert_eq!(burst(1, 200), 100, "at most the global limit");
}

#[test]
fn the_first_free_place_serves_the_first_waiter() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 2);
    let tickets = [desk.wait(key), desk.wait(key), desk.wait(key)];
    let (first, second) = (desk.started[0].1, desk.started[1].1);
    desk.ready(key, second);
    assert_eq!(desk.granted, [(tickets[0], second)], "the order of starts does not matter");
    desk.release(key, second);
    assert_eq!(desk.granted, [(tickets[0], second), (tickets[1], second)]);
    desk.ready(key, first);
    assert_eq!(desk.granted.last(), Some(&(tickets[2], first)));
}

#[test]
fn a_waiter_that_left_is_passed_over() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let (left, stays) = (desk.wait(key), desk.wait(key));
    desk.abandon(key, left);
    let id = desk.started[0].1;
    desk.ready(key, id);
    assert_eq!(desk.granted, [(stays, id)]);
}

#[test]
fn calls_go_to_the_least_busy_instance() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(2, 0, 2);
    for _ in 0..3 {
        desk.wait(key);
    }
    let (first, second) = (desk.started[0].1, desk.started[1].1);
    desk.ready(key, first);
    desk.ready(key, second);
    desk.release(key, first);
    assert_eq!(desk.granted.len(), 3);
    desk.release(key, first);
    assert_eq!(desk.lease(key), first);
}

#[test]
fn an_instance_with_a_late_call_gets_no_others() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(3, 0, 2);
    let late = desk.busy(key);
    assert_eq!(desk.lease(key), late);
    desk.ledger.suspend(key, late, desk.now);
    desk.ledger.suspend(key, late, desk.now);
    let ticket = desk.wait(key);
    assert_eq!(desk.started.len(), 2, "another is started");
    desk.ledger.resume(key, late, desk.now);
    desk.sort();
    assert_eq!(desk.granted.len(), 1, "one call is still late");
    desk.ledger.resume(key, late, desk.now);
    desk.sort();
    assert_eq!(desk.granted.last(), Some(&(ticket, late)), "it was only slow");
}

#[test]
fn an_instance_whose_late_call_does_not_end_is_replaced() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(2, 0, 1);
    let late = desk.busy(key);
    desk.ledger.suspend(key, late, desk.now);
    let ticket = desk.wait(key);
    assert_eq!(desk.started.len(), 1, "it still counts");
    desk.ledger.condemn(key, late, desk.now);
    desk.sort();
    let id = desk.started[1].1;
    desk.release(key, late);
    desk.ready(key, id);
    assert_eq!(desk.granted.last(), Some(&(ticket, id)));
}

#[test]
fn three_failures_back_off_and_callers_hear_at_once() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let ticket = desk.wait(key);
    desk.fail_last(StartPart::Adapter);
    desk.fail_last(StartPart::Adapter);
    assert!(desk.refused.is_empty(), "one below the bound: tried again");
    assert_eq!(desk.started.len(), 3);
    desk.fail_last(StartPart::Adapter);
    assert_eq!(desk.started.len(), 3, "at the bound: left alone");
    let second = Duration::from_secs(1);
    assert!(
        matches!(&desk.refused[..], [(t, Refusal::CannotStart(_, after))] if *t == ticket && *after == second)
    );

    desk.now += second.saturating_sub(NS);
    assert!(matches!(desk.acquire(key), Acquire::Refused(Refusal::CannotStart(_, after)) if after == NS));
    desk.now += NS;
    desk.wait(key);
    assert_eq!(desk.started.len(), 4, "the time is over: tried again");
    desk.fail_last(StartPart::Adapter);
    assert_eq!(desk.started.len(), 4, "one above the bound: left alone for longer");
    assert!(matches!(desk.refused[1].1, Refusal::CannotStart(_, after) if after == 2 * second));
}

#[test]
fn backing_off_doubles_up_to_half_a_minute() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let mut waits = Vec::new();
    while waits.len() < 8 {
        if desk.ledger.counts(key).1 == 0 {
            desk.wait(key);
        }
        desk.fail_last(StartPart::Adapter);
        if let Some((_, Refusal::CannotStart(_, after))) = desk.refused.pop() {
            waits.push(after.as_secs());
            desk.now += after;
        }
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
}

#[test]
fn a_final_failure_refuses_at_once() {
    for part in [StartPart::Function, StartPart::Runtime] {
        let mut desk = Desk::new(10, 10);
        let key = desk.add(1, 0, 1);
        let tickets = [desk.wait(key), desk.wait(key)];
        desk.fail_last(part);
        assert_eq!(desk.refused.iter().map(|(t, _)| *t).collect::<Vec<_>>(), tickets);
        assert_eq!(desk.started.len(), 1, "not tried again for those who waited");
        desk.wait(key);
        assert_eq!(desk.started.len(), 2, "a new caller is worth a try");
    }
}

#[test]
fn a_final_failure_does_not_refuse_while_another_may_serve() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 2);
    let tickets = [desk.wait(key), desk.wait(key)];
    let (first, second) = (desk.started[0].1, desk.started[1].1);
    desk.fail(key, first, StartPart::Function);
    assert!(desk.refused.is_empty());
    desk.ready(key, second);
    assert_eq!(desk.granted, [(tickets[0], second)]);
}

#[test]
fn a_success_resets_the_count_of_failures() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    desk.wait(key);
    desk.fail_last(StartPart::Adapter);
    desk.fail_last(StartPart::Adapter);
    let id = desk.started[2].1;
    desk.ready(key, id);
    desk.wait(key);
    desk.ledger.condemn(key, id, desk.now);
    desk.sort();
    desk.ended(key, id);
    desk.fail_last(StartPart::Adapter);
    desk.fail_last(StartPart::Adapter);
    assert!(desk.refused.is_empty(), "two and two are not three in a row");
}

#[test]
fn the_longest_idle_instance_of_another_function_makes_room() {
    let mut desk = Desk::new(3, 10);
    let functions = [desk.add(1, 0, 3), desk.add(1, 0, 3), desk.add(1, 0, 3)];
    let mut ids = Vec::new();
    for key in functions {
        desk.now += Duration::from_secs(1);
        ids.push(desk.warm(key));
    }
    // Used again, so no longer the one that was idle longest.
    desk.now += Duration::from_secs(1);
    desk.lease(functions[0]);
    desk.release(functions[0], ids[0]);

    let newcomer = desk.add(1, 0, 1);
    let ticket = desk.wait(newcomer);
    assert_eq!(desk.stopped, [ids[1]]);
    assert_eq!(desk.started.len(), 3, "the place is free only when it has ended");
    desk.wait(newcomer);
    assert_eq!(desk.stopped.len(), 1, "one is enough");
    desk.ended(functions[1], ids[1]);
    let (key, id) = desk.started[3];
    assert_eq!(key, newcomer);
    desk.ready(key, id);
    assert_eq!(desk.granted.last(), Some(&(ticket, id)));
}

#[test]
fn an_instance_whose_own_function_has_waiters_is_not_evicted() {
    let mut desk = Desk::new(1, 10);
    let (own, other) = (desk.add(1, 0, 1), desk.add(1, 0, 1));
    let id = desk.busy(own);
    let waits = desk.wait(own);
    desk.wait(other);
    desk.release(own, id);
    assert_eq!(desk.granted.last(), Some(&(waits, id)), "its own waiter comes first");
    assert!(desk.stopped.is_empty());
    desk.release(own, id);
    assert_eq!(desk.stopped, [id], "nobody of its own waits any more");
}

#[test]
fn a_start_that_nobody_waits_for_any_more_makes_room_for_the_starved() {
    let mut desk = Desk::new(1, 10);
    let (hasty, other) = (desk.add(1, 0, 1), desk.add(1, 0, 1));
    let left = desk.wait(hasty);
    let id = desk.started[0].1;
    desk.wait(other);
    desk.abandon(hasty, left);
    desk.ready(hasty, id);
    assert_eq!(desk.stopped, [id], "idle from its first moment on");
    desk.ended(hasty, id);
    assert_eq!(desk.started[1].0, other);
}

#[test]
fn the_place_of_an_evicted_instance_goes_to_the_one_it_was_evicted_for() {
    let mut desk = Desk::new(1, 10);
    let (popular, starved) = (desk.add(1, 0, 1), desk.add(1, 0, 1));
    let id = desk.warm(popular);
    desk.wait(starved);
    assert_eq!(desk.stopped, [id]);
    desk.wait(popular);
    desk.ended(popular, id);
    assert_eq!(desk.started[1].0, starved, "its caller has waited longer");
}

#[test]
fn the_place_of_a_failed_start_goes_to_the_starved() {
    let mut desk = Desk::new(1, 10);
    let (failing, starved) = (desk.add(1, 0, 1), desk.add(1, 0, 1));
    desk.wait(failing);
    let ticket = desk.wait(starved);
    desk.fail_last(StartPart::Function);
    let (key, id) = desk.started[1];
    assert_eq!(key, starved);
    desk.ready(key, id);
    assert_eq!(desk.granted, [(ticket, id)]);
}

#[test]
fn keep_warm_at_the_bound_and_one_below() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let id = desk.warm(key);
    desk.now += KEEP_WARM.saturating_sub(NS);
    desk.tick();
    assert!(desk.stopped.is_empty());
    desk.now += NS;
    desk.tick();
    assert_eq!(desk.stopped, [id]);
    desk.tick();
    assert_eq!(desk.stopped, [id], "once");
}

#[test]
fn a_busy_instance_is_not_idle() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let id = desk.busy(key);
    desk.now += 2 * KEEP_WARM;
    desk.tick();
    assert!(desk.stopped.is_empty());
    desk.release(key, id);
    desk.now += KEEP_WARM.saturating_sub(NS);
    desk.tick();
    assert!(desk.stopped.is_empty(), "idle counts from its last call");
}

#[test]
fn the_minimum_is_started_and_kept() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 2, 4);
    desk.tick();
    assert_eq!(desk.started.len(), 2);
    for _ in 0..4 {
        desk.wait(key);
    }
    assert_eq!(desk.started.len(), 4);
    for (_, id) in desk.started.clone() {
        desk.ready(key, id);
        desk.now += Duration::from_secs(1);
    }
    for (_, id) in desk.granted.clone() {
        desk.release(key, id);
        desk.now += Duration::from_secs(1);
    }
    desk.now += 2 * KEEP_WARM;
    desk.tick();
    assert_eq!(desk.stopped, [desk.started[0].1, desk.started[1].1], "those that were idle longest");
    desk.tick();
    assert_eq!(desk.stopped.len(), 2);
    assert_eq!(desk.ledger.counts(key), (2, 0));
}

#[test]
fn the_minimum_is_not_started_while_backing_off() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 1, 1);
    for round in 1..=3 {
        desk.tick();
        assert_eq!(desk.started.len(), round);
        desk.fail_last(StartPart::Adapter);
    }
    desk.tick();
    assert_eq!(desk.started.len(), 3);
    desk.now += Duration::from_secs(1);
    desk.tick();
    assert_eq!(desk.started.len(), 4);
    assert_eq!(desk.ledger.counts(key), (1, 0));
}

#[test]
fn retiring_serves_those_who_wait_and_then_stops() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 1, 1);
    let id = desk.busy(key);
    let tickets = [desk.wait(key), desk.wait(key)];
    desk.retire(key);
    assert!(desk.stopped.is_empty());
    for ticket in tickets {
        desk.release(key, id);
        assert_eq!(desk.granted.last(), Some(&(ticket, id)));
        assert!(desk.stopped.is_empty());
    }
    desk.release(key, id);
    assert_eq!(desk.stopped, [id]);
    assert!(desk.ledger.knows(key));
    desk.ended(key, id);
    assert!(!desk.ledger.knows(key));
    assert!(matches!(desk.acquire(key), Acquire::Refused(Refusal::Gone)));
}

#[test]
fn retiring_serves_those_who_wait_for_a_start_and_then_stops() {
    let mut desk = Desk::new(10, 10);
    // With a minimum: nothing but the retirement itself would ever stop these.
    let key = desk.add(1, 2, 2);
    for _ in 0..3 {
        desk.wait(key);
    }
    let (first, second) = (desk.started[0].1, desk.started[1].1);
    desk.retire(key);
    assert!(desk.stopped.is_empty());
    desk.ready(key, first);
    desk.ready(key, second);
    desk.release(key, first);
    assert_eq!(desk.granted.len(), 3);
    desk.release(key, first);
    desk.release(key, second);
    assert_eq!(desk.stopped, [first, second]);
    desk.ended(key, first);
    desk.ended(key, second);
    assert!(!desk.ledger.knows(key));
    assert_eq!(desk.ledger.total(), 0);
}

#[test]
fn retiring_stops_what_is_idle_or_starting_for_nobody() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 2, 2);
    desk.tick();
    let (first, second) = (desk.started[0].1, desk.started[1].1);
    desk.ready(key, first);
    desk.retire(key);
    assert_eq!(desk.stopped, [first, second]);
    // READY and the stop crossed.
    desk.ready(key, second);
    desk.ended(key, second);
    desk.ended(key, first);
    assert!(!desk.ledger.knows(key));
}

#[test]
fn the_queue_at_its_bound_and_one_above() {
    let mut desk = Desk::new(10, 3);
    let key = desk.add(1, 0, 1);
    let first = desk.wait(key);
    desk.wait(key);
    desk.wait(key);
    assert!(matches!(desk.acquire(key), Acquire::Refused(Refusal::QueueFull(3))));
    desk.abandon(key, first);
    desk.wait(key);
}

#[test]
fn an_unknown_key_is_gone() {
    let mut desk = Desk::new(10, 10);
    assert!(matches!(desk.acquire(17), Acquire::Refused(Refusal::Gone)));
    let key = desk.add(1, 0, 1);
    desk.retire(key);
    assert!(matches!(desk.acquire(key), Acquire::Refused(Refusal::Gone)));
    assert!(desk.ledger.is_settled());
}

#[test]
fn events_of_what_is_gone_change_nothing() {
    let mut desk = Desk::new(10, 10);
    let key = desk.add(1, 0, 1);
    let id = InstanceId::new();
    desk.ready(key, id);
    desk.release(key, id);
    desk.ended(key, id);
    desk.ended(99, id);
    desk.abandon(99, 1);
    desk.retire(99);
    assert_eq!(desk.ledger.total(), 0);
    assert!(desk.started.is_empty() && desk.stopped.is_empty());
}
