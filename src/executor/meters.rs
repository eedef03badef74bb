//! What is counted, for `GET /_/metrics`.
//!
//! A function's deployments share one [`Meter`], so that a call counts without looking anything up. Its numbers go on
//! over new versions and are forgotten, at the next scrape, when the function is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::call::CallError;
use crate::execution::{Response, Timings};

/// Upper bounds of the histogram, seconds: from a warm call to the longest one.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 900.0];
/// How a call can end: the class of the function's status, or why there is none.
const OUTCOMES: [&str; 7] = ["2xx", "3xx", "4xx", "5xx", "timeout", "refused", "failed"];

/// How an attempt to deliver a timer can end.
const DELIVERIES: [&str; 2] = ["delivered", "failed"];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    function: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    function: String,
    outcome: &'static str,
}

/// The numbers of one function.
pub(super) struct Meter {
    calls: [Counter; OUTCOMES.len()],
    timers: [Counter; 2],
    seconds: Histogram,
    cold: Counter,
    conflicts: Counter,
}

impl Meter {
    /// Counts a call that has ended.
    pub(super) fn called(&self, result: &Result<Response, CallError>, timings: &Timings, took: Duration) {
        self.calls[outcome(result)].inc();
        self.seconds.observe(took.as_secs_f64());
        if !timings.cold.is_zero() {
            self.cold.inc();
        }
        if timings.retries > 0 {
            self.conflicts.inc_by(timings.retries.into());
        }
    }

    /// Counts an attempt to deliver a timer.
    pub(super) fn fired(&self, delivered: bool) {
        self.timers[usize::from(!delivered)].inc();
    }
}

/// Index into [`OUTCOMES`].
fn outcome(result: &Result<Response, CallError>) -> usize {
    match result {
        Ok(answer) => usize::from(answer.status / 100).clamp(2, 5) - 2,
        Err(CallError::Deadline(..)) => 4,
        Err(CallError::QueueFull(_) | CallError::Overloaded | CallError::Closing) => 5,
        Err(_) => 6,
    }
}

/// See the module.
pub(super) struct Meters {
    functions: Mutex<HashMap<Arc<str>, Weak<Meter>>>,
    calls: Family<Ended, Counter>,
    timers: Family<Ended, Counter>,
    seconds: Family<Of, Histogram, fn() -> Histogram>,
    cold: Family<Of, Counter>,
    conflicts: Family<Of, Counter>,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            functions: Mutex::default(),
            calls: Family::default(),
            timers: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            cold: Family::default(),
            conflicts: Family::default(),
        }
    }
}

impl Meters {
    /// The numbers of a function, which begin at zero if no deployment of it is left.
    pub(super) fn of(&self, function: &Arc<str>) -> Arc<Meter> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = functions.get(function).and_then(Weak::upgrade) {
            return meter;
        }
        self.forget(function);
        let of = Of { function: function.to_string() };
        let ended = |outcome| Ended { function: function.to_string(), outcome };
        let meter = Arc::new(Meter {
            calls: OUTCOMES.map(|outcome| self.calls.get_or_create_owned(&ended(outcome))),
            timers: DELIVERIES.map(|outcome| self.timers.get_or_create_owned(&ended(outcome))),
            seconds: self.seconds.get_or_create_owned(&of),
            cold: self.cold.get_or_create_owned(&of),
            conflicts: self.conflicts.get_or_create_owned(&of),
        });
        functions.insert(Arc::clone(function), Arc::downgrade(&meter));
        meter
    }

    fn forget(&self, function: &str) {
        let of = Of { function: function.to_owned() };
        let ended = |outcome| Ended { function: function.to_owned(), outcome };
        for outcome in OUTCOMES {
            self.calls.remove(&ended(outcome));
        }
        for outcome in DELIVERIES {
            self.timers.remove(&ended(outcome));
        }
        self.seconds.remove(&of);
        self.cold.remove(&of);
        self.conflicts.remove(&of);
    }

    /// All numbers in the text format of `OpenMetrics` 1.0; `now` gives for each function its live instances and waiting
    /// calls.
    pub(super) fn text(&self, now: impl IntoIterator<Item = (Arc<str>, usize, usize)>) -> String {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner).retain(|function, meter| {
            let alive = meter.strong_count() > 0;
            if !alive {
                self.forget(function);
            }
            alive
        });
        let (instances, waiting) = (Family::<Of, Gauge>::default(), Family::<Of, Gauge>::default());
        let signed = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        for (function, live, waits) in now {
            let of = Of { function: function.to_string() };
            instances.get_or_create(&of).set(signed(live));
            waiting.get_or_create(&of).set(signed(waits));
        }
        let mut all = Registry::with_prefix("executor");
        all.register(
            "calls",
            "Calls that ended, by the class of their status or why they have none",
            self.calls.clone(),
        );
        all.register(
            "call_duration_seconds",
            "From a call's arrival to the head of its answer, or its failure",
            self.seconds.clone(),
        );
        all.register("cold_starts", "Calls that waited for an instance to start", self.cold.clone());
        all.register(
            "state_conflicts",
            "Attempts repeated because another host changed the state",
            self.conflicts.clone(),
        );
        all.register("timers", "Attempts to deliver a timer", self.timers.clone());
        all.register("instances", "Live instances", instances);
        all.register("waiting_calls", "Calls that wait for an instance", waiting);
        let mut text = String::new();
        // A string takes everything.
        let _ = encode(&mut text, &all);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_over_versions_and_end_with_the_function() {
        let meters = Meters::default();
        let name = Arc::from("f");
        let first = meters.of(&name);
        let timings = Timings { retries: 2, cold: Duration::from_millis(1), ..Timings::default() };
        first.called(&Err(CallError::Conflict), &timings, Duration::from_millis(3));
        let second = meters.of(&name);
        drop(first);
        second.called(&Err(CallError::QueueFull(1)), &Timings::default(), Duration::ZERO);
        second.fired(false);
        let text = meters.text([(Arc::clone(&name), 2, 3)]);
        for line in [
            "executor_calls_total{function=\"f\",outcome=\"failed\"} 1",
            "executor_calls_total{function=\"f\",outcome=\"refused\"} 1",
            "executor_calls_total{function=\"f\",outcome=\"2xx\"} 0",
            "executor_call_duration_seconds_count{function=\"f\"} 2",
            "executor_cold_starts_total{function=\"f\"} 1",
            "executor_state_conflicts_total{function=\"f\"} 2",
            "executor_timers_total{function=\"f\",outcome=\"failed\"} 1",
            "executor_instances{function=\"f\"} 2",
            "executor_waiting_calls{function=\"f\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in\n{text}");
        }
        drop(second);
        assert!(!meters.text([]).contains("function="));
        meters.of(&name);
        assert!(!meters.text([]).contains("} 2"));
    }
}
