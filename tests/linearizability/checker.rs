//! Whether a history of calls to one register is linearizable: whether all calls can be put into one order, in which each
//! call stands between its beginning and its end, and each saw what the one before it left.
//!
//! The search is that of Wing and Gong with Lowe's memory: it takes one call after the other of those that could be next,
//! goes back when none fits, and never tries twice to go on from the same set of calls and the same value. A call whose
//! outcome nobody knows has no end, and need not have happened. Registers do not influence each other, so a history of
//! several is linearizable if that of each is, which keeps histories short.

use std::collections::HashSet;

/// After this many sets of calls the search gives up.
const MOST_STEPS: usize = 500_000;

/// What a call asks of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Get,
    Set(u64),
    /// From, to; without effect if another value is there.
    Swap(u64, u64),
}

/// One call. Times are from any common clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) ask: Ask,
    /// The value that it found. None: nobody knows, and it may not have happened.
    pub(crate) saw: Option<u64>,
    pub(crate) begun: u64,
    /// `u64::MAX`: not before all others.
    pub(crate) ended: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// The longest order there is, and what must come next but does not fit.
    Not {
        order: Vec<Call>,
        stuck: Vec<Call>,
    },
    /// It would take too long.
    Undecided,
}

impl Ask {
    fn apply(self, value: u64) -> u64 {
        match self {
            Ask::Set(new) => new,
            Ask::Swap(from, to) if from == value => to,
            Ask::Get | Ask::Swap(..) => value,
        }
    }

    fn writes(self) -> Option<u64> {
        match self {
            Ask::Get => None,
            Ask::Set(new) | Ask::Swap(_, new) => Some(new),
        }
    }
}

/// Judges a history of a register that holds `first` before it.
pub(crate) fn check(first: u64, history: &[Call]) -> Verdict {
    let mut calls = possible(history);
    calls.sort_by_key(|call| call.begun);
    let left = calls.iter().filter(|call| call.saw.is_some()).count();
    let done = vec![0; calls.len().div_ceil(64)];
    let mut search = Search { calls, done, left, order: Vec::new(), tried: HashSet::new(), best: Vec::new() };
    match search.go_on(first) {
        Some(true) => Verdict::Linearizable,
        Some(false) => search.explain(),
        None => Verdict::Undecided,
    }
}

/// Without the calls of unknown outcome that nobody can have noticed: these can always be left out.
fn possible(history: &[Call]) -> Vec<Call> {
    let noticed: HashSet<u64> = history
        .iter()
        .flat_map(|call| [call.saw, if let Ask::Swap(from, _) = call.ask { Some(from) } else { None }])
        .flatten()
        .collect();
    let matters =
        |call: &&Call| call.saw.is_some() || call.ask.writes().is_some_and(|value| noticed.contains(&value));
    history.iter().filter(matters).cloned().collect()
}

struct Search {
    /// By their beginning.
    calls: Vec<Call>,
    /// A bit for each call: it is in the order.
    done: Vec<u64>,
    /// Of those whose outcome is known.
    left: usize,
    order: Vec<usize>,
    tried: HashSet<(Vec<u64>, u64)>,
    best: Vec<usize>,
}

impl Search {
    fn is_done(&self, at: usize) -> bool {
        self.done[at / 64] >> (at % 64) & 1 == 1
    }

    /// What could be next: the calls that began before any other ended. Those of unknown outcome come last.
    fn candidates(&self) -> Vec<usize> {
        let mut horizon = u64::MAX;
        let mut found = Vec::new();
        for (at, call) in self.calls.iter().enumerate() {
            if call.begun > horizon {
                break;
            }
            if !self.is_done(at) {
                found.push(at);
                horizon = horizon.min(call.ended);
            }
        }
        found.sort_by_key(|at| self.calls[*at].saw.is_none());
        found
    }

    /// Whether the rest can be put into an order that begins with `value`. None: that takes too long.
    fn go_on(&mut self, value: u64) -> Option<bool> {
        if self.left == 0 {
            return Some(true);
        }
        if self.tried.len() == MOST_STEPS {
            return None;
        }
        if !self.tried.insert((self.done.clone(), value)) {
            return Some(false);
        }
        for at in self.candidates() {
            let Call { ask, saw, .. } = self.calls[at];
            if saw.is_some_and(|saw| saw != value) {
                continue;
            }
            self.turn(at);
            if self.go_on(ask.apply(value))? {
                return Some(true);
            }
            self.turn(at);
        }
        Some(false)
    }

    /// Puts a call at the end of the order, or takes it away from there.
    fn turn(&mut self, at: usize) {
        let known = usize::from(self.calls[at].saw.is_some());
        if self.is_done(at) {
            self.order.pop();
            self.left += known;
        } else {
            self.order.push(at);
            self.left -= known;
            if self.order.len() > self.best.len() {
                self.best.clone_from(&self.order);
            }
        }
        self.done[at / 64] ^= 1 << (at % 64);
    }

    fn explain(mut self) -> Verdict {
        let order = std::mem::take(&mut self.best);
        self.done.fill(0);
        for at in &order {
            self.done[at / 64] |= 1 << (at % 64);
        }
        let take = |all: &[usize]| all.iter().map(|at| self.calls[*at].clone()).collect();
        Verdict::Not { stuck: take(&self.candidates()), order: take(&order) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Ask, Call, MOST_STEPS, Verdict, check};

    fn call(ask: Ask, saw: u64, begun: u64, ended: u64) -> Call {
        Call { ask, saw: Some(saw), begun, ended }
    }

    fn unknown(ask: Ask, begun: u64) -> Call {
        Call { ask, saw: None, begun, ended: u64::MAX }
    }

    #[track_caller]
    fn good(history: &[Call]) {
        assert_eq!(check(0, history), Verdict::Linearizable);
    }

    #[track_caller]
    fn bad(history: &[Call]) {
        assert!(matches!(check(0, history), Verdict::Not { .. }), "{history:?}");
    }

    #[test]
    fn one_after_the_other() {
        good(&[]);
        good(&[call(Ask::Get, 0, 1, 2), call(Ask::Set(5), 0, 3, 4), call(Ask::Get, 5, 5, 6)]);
        bad(&[call(Ask::Set(5), 0, 1, 2), call(Ask::Get, 0, 3, 4)]);
        bad(&[call(Ask::Get, 5, 1, 2), call(Ask::Set(5), 0, 3, 4)]);
        good(&[call(Ask::Swap(0, 3), 0, 1, 2), call(Ask::Swap(0, 4), 3, 3, 4), call(Ask::Get, 3, 5, 6)]);
        bad(&[call(Ask::Swap(0, 3), 0, 1, 2), call(Ask::Swap(0, 4), 0, 3, 4)]);
    }

    #[test]
    fn at_the_same_time() {
        // Reads during a write may see either, but not the old value after the new one.
        let write = call(Ask::Set(1), 0, 1, 10);
        good(&[write.clone(), call(Ask::Get, 0, 2, 3), call(Ask::Get, 1, 4, 5)]);
        bad(&[write.clone(), call(Ask::Get, 1, 2, 3), call(Ask::Get, 0, 4, 5)]);
        good(&[write, call(Ask::Get, 1, 2, 6), call(Ask::Get, 0, 4, 5)]);
        // Of two that swap the same value one must see what the other left: a lost update.
        bad(&[call(Ask::Swap(0, 1), 0, 1, 9), call(Ask::Swap(0, 2), 0, 2, 8)]);
        good(&[call(Ask::Swap(0, 1), 0, 1, 9), call(Ask::Swap(0, 2), 1, 2, 8)]);
        // Ends and begins in the same instant: either order.
        good(&[call(Ask::Set(1), 0, 1, 2), call(Ask::Get, 0, 2, 3)]);
    }

    #[test]
    fn of_unknown_outcome() {
        let lost = unknown(Ask::Set(7), 1);
        good(&[lost.clone(), call(Ask::Get, 0, 2, 3)]);
        good(&[lost.clone(), call(Ask::Get, 0, 2, 3), call(Ask::Get, 7, 4, 5)]);
        bad(&[lost.clone(), call(Ask::Get, 7, 2, 3), call(Ask::Get, 0, 4, 5)]);
        bad(&[call(Ask::Get, 7, 0, 0), lost.clone()]);
        // It happens once only.
        let set = call(Ask::Set(1), 7, 4, 5);
        bad(&[lost, call(Ask::Get, 7, 2, 3), set, call(Ask::Get, 7, 6, 7)]);
        // One leads to another.
        let chain = [unknown(Ask::Set(7), 1), unknown(Ask::Swap(7, 8), 2)];
        good(&[chain[0].clone(), chain[1].clone(), call(Ask::Get, 8, 3, 4)]);
        bad(&[chain[1].clone(), call(Ask::Get, 8, 3, 4)]);
    }

    #[test]
    fn what_is_wrong_is_shown() {
        let history = [call(Ask::Set(5), 0, 1, 2), call(Ask::Get, 5, 3, 4), call(Ask::Get, 6, 5, 6)];
        let Verdict::Not { order, stuck } = check(0, &history) else { panic!("6 was never written") };
        assert_eq!((order, stuck), (history[..2].to_vec(), history[2..].to_vec()));
    }

    #[test]
    fn the_search_is_bounded() {
        // Nothing orders these, and no order leads to the last: a set for each subset and last value.
        let lost = |n| unknown(Ask::Set(n), 0);
        let read = |n| call(Ask::Get, n, 100 + n, 1000);
        let few: Vec<_> =
            (1..=8).flat_map(|n| [lost(n), read(n)]).chain([call(Ask::Get, 99, 1, 2000)]).collect();
        bad(&few);
        let many: Vec<_> =
            (1..=40).flat_map(|n| [lost(n), read(n)]).chain([call(Ask::Get, 99, 1, 2000)]).collect();
        assert_eq!(check(0, &many), Verdict::Undecided, "more than {MOST_STEPS} steps");
    }

    /// By definition: all orders of all that happened.
    fn brute(value: u64, rest: &[Call]) -> bool {
        if rest.iter().all(|call| call.saw.is_none()) {
            return true;
        }
        (0..rest.len()).any(|at| {
            let next = &rest[at];
            let first = rest.iter().all(|other| next.begun <= other.ended);
            let fits = next.saw.is_none_or(|saw| saw == value);
            let mut others = rest.to_vec();
            others.remove(at);
            first && fits && brute(next.ask.apply(value), &others)
        })
    }

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let value = || 0..3_u64;
        let ask = prop_oneof![
            Just(Ask::Get),
            value().prop_map(Ask::Set),
            (value(), value()).prop_map(|(from, to)| Ask::Swap(from, to)),
        ];
        let saw = prop_oneof![4 => value().prop_map(Some), 1 => Just(None)];
        let call = (ask, saw, 0..20_u64, 0..8_u64).prop_map(|(ask, saw, begun, took)| {
            let ended = if saw.is_some() { begun + took } else { u64::MAX };
            Call { ask, saw, begun, ended }
        });
        prop::collection::vec(call, 0..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn agrees_with_the_definition(history in calls()) {
            prop_assert_eq!(check(0, &history) == Verdict::Linearizable, brute(0, &history));
        }
    }
}
