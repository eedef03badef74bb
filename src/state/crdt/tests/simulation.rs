//! Executors on one store, with everything that can come between: calls that observed long ago, conflicts, commits
//! that came through and were not heard of, commits that come through later than their author waits, restarts, clocks that go wrong.
//!
//! Each version's value is compared with the model's, and the laws are checked on the states and deltas of the same history.

use proptest::prelude::*;
use serde_json::Value;

use super::super::Ops;
use super::model::{Call, Calls, Model};
use super::{By, Crdt, CrdtType, Host, Tickets, join, value};

/// Operations on a state of type `kind`, as JSON.
pub(super) fn ops(kind: CrdtType) -> Vec<String> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    match kind {
        CrdtType::GCounter => texts(&[r#"{"op":"add","n":1}"#, r#"{"op":"add","n":20}"#]),
        CrdtType::PnCounter => texts(&[r#"{"op":"add","n":1}"#, r#"{"op":"add","n":-30}"#]),
        CrdtType::GSet => {
            texts(&[r#"{"op":"add","v":1}"#, r#"{"op":"add","v":["b"]}"#, r#"{"op":"add","v":3}"#])
        }
        CrdtType::OrSet => texts(&[
            r#"{"op":"add","v":1}"#,
            r#"{"op":"remove","v":1}"#,
            r#"{"op":"add","v":2}"#,
            r#"{"op":"remove","v":2}"#,
        ]),
        CrdtType::LwwRegister => (0..9).map(|n| format!(r#"{{"op":"set","v":{n}}}"#)).collect(),
        CrdtType::Flag => texts(&[r#"{"op":"enable"}"#]),
        CrdtType::Vote => texts(&[
            r#"{"op":"vote","voter":"a","v":true}"#,
            r#"{"op":"vote","voter":"a","v":false}"#,
            r#"{"op":"vote","voter":"","v":true}"#,
            r#"{"op":"vote","voter":"","v":false}"#,
        ]),
        CrdtType::OrMap => ["x", "y"].into_iter().flat_map(entry_ops).collect(),
    }
}

/// Operations on the entry `name`. Counters and sets come first, where deleting is hardest.
fn entry_ops(name: &str) -> Vec<String> {
    let mut all = vec![format!(r#"{{"op":"delete","k":"{name}"}}"#); 9];
    let kinds = CrdtType::ALL.into_iter().take(7);
    let entries = kinds.flat_map(|kind| ops(kind).into_iter().map(move |op| (kind, op)));
    all.extend(
        entries.map(|(kind, op)| format!(r#"{{"op":"entry","k":"{name}","type":"{kind}","do":{op}}}"#)),
    );
    all
}

/// What happens next; numbers choose among what there is.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A call begins: it observes what is stored.
    Call {
        host: usize,
        ops: Vec<prop::sample::Index>,
    },
    /// A call ends and its host makes the delta.
    Turn {
        host: usize,
        call: prop::sample::Index,
    },
    Commit {
        host: usize,
        outcome: Outcome,
    },
    /// A commit that nobody waits for any more reaches the store.
    Late {
        flight: prop::sample::Index,
    },
    Clock {
        host: usize,
        forward: u64,
        back: u64,
    },
}

/// How a commit ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Answered,
    /// It reached the store and the answer was lost; the host tries again.
    Unheard,
    /// It did not reach the store; the host tries again.
    Lost,
    /// It is still under way; the host tries again.
    Slow,
    /// It reached the store and the host gave up.
    UnheardGivenUp,
    /// It is still under way and the host gave up.
    SlowGivenUp,
    /// It is still under way and the host died, with all its calls.
    SlowDied,
}

#[derive(Clone)]
struct Turn {
    call: usize,
    delta: Crdt,
    /// The version read last.
    base: usize,
}

struct Flight {
    turn: Turn,
    bytes: Vec<u8>,
}

struct Cluster {
    hosts: Vec<Host>,
    clocks: Vec<u64>,
    /// Of each host: the version observed and the operations.
    waiting: Vec<Vec<(usize, Vec<Value>)>>,
    turns: Vec<Option<Turn>>,
    flights: Vec<Flight>,
    /// All there ever were, with the calls in it. The last is the current one.
    versions: Vec<(Vec<u8>, Calls)>,
    /// Deltas that are in the last version.
    merged: Vec<Crdt>,
    model: Model,
}

impl Cluster {
    fn new(kind: CrdtType) -> Self {
        Self {
            hosts: ["a", "b", "c"].map(Host::new).into(),
            clocks: vec![5, 7, 5],
            waiting: vec![Vec::new(); 3],
            turns: vec![None, None, None],
            flights: Vec::new(),
            versions: vec![(Crdt::new(kind).encode(), Calls::new())],
            merged: Vec::new(),
            model: Model { kind, calls: Vec::new() },
        }
    }

    fn last(&self) -> usize {
        self.versions.len() - 1
    }

    fn state(&self, version: usize) -> Crdt {
        Crdt::decode(&self.versions[version].0).unwrap()
    }

    /// The store's part of a commit: whether the version was the right one.
    fn store(&mut self, turn: &Turn, bytes: Vec<u8>) -> bool {
        let fits = turn.base == self.last();
        if fits {
            let mut calls = self.versions[turn.base].1.clone();
            calls.insert(turn.call);
            self.versions.push((bytes, calls));
            self.merged.push(turn.delta.clone());
        }
        fits
    }

    fn turn(&mut self, host: usize, choose: impl Fn(usize) -> usize) {
        if self.turns[host].is_some() || self.waiting[host].is_empty() {
            return;
        }
        let at = choose(self.waiting[host].len());
        let (observed, list) = self.waiting[host].remove(at);
        let now = self.clocks[host];
        let Host { replica, tickets } = &self.hosts[host];
        let by = By { replica, tickets, now };
        // Two types for one name: that call fails.
        let Ok(ops) = Ops::parse(self.model.kind, Value::from(list.clone()).to_string().as_bytes()) else {
            return;
        };
        let Ok(delta) = self.state(self.last()).delta(&self.state(observed), &ops, &by) else { return };
        assert_eq!(Crdt::decode(&delta.encode()).as_ref(), Ok(&delta));
        let call = Call::new(&self.hosts[host], self.versions[observed].1.clone(), list, now);
        let call = self.model.call(call);
        self.turns[host] = Some(Turn { call, delta, base: self.last() });
    }

    fn commit(&mut self, host: usize, outcome: Outcome) {
        let Some(mut turn) = self.turns[host].take() else { return };
        let bytes = join(&self.state(turn.base), &turn.delta).encode();
        let done = match outcome {
            Outcome::Answered => self.store(&turn, bytes),
            Outcome::Unheard => {
                self.store(&turn, bytes);
                false
            }
            Outcome::UnheardGivenUp => {
                self.store(&turn, bytes);
                true
            }
            Outcome::Lost => false,
            Outcome::Slow | Outcome::SlowGivenUp | Outcome::SlowDied => {
                self.flights.push(Flight { turn: turn.clone(), bytes });
                outcome != Outcome::Slow
            }
        };
        if outcome == Outcome::SlowDied {
            self.waiting[host].clear();
            self.hosts[host].tickets = Tickets::default();
            self.clocks[host] += 1000;
        }
        if !done {
            turn.base = self.last();
            self.turns[host] = Some(turn);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Call { host, ops: chosen } => {
                let all = ops(self.model.kind);
                let list = chosen.iter().map(|op| value(op.get::<String>(&all))).collect();
                let observed = self.last();
                self.waiting[*host].push((observed, list));
            }
            Step::Turn { host, call } => self.turn(*host, |len| call.index(len)),
            Step::Commit { host, outcome } => self.commit(*host, *outcome),
            Step::Late { flight } if !self.flights.is_empty() => {
                let flight = self.flights.remove(flight.index(self.flights.len()));
                self.store(&flight.turn, flight.bytes);
            }
            Step::Late { .. } => {}
            Step::Clock { host, forward, back } => {
                self.clocks[*host] = (self.clocks[*host] + forward).saturating_sub(*back);
            }
        }
    }

    /// Lets everything that is under way on the hosts come to an end.
    fn settle(&mut self) {
        for host in 0..self.hosts.len() {
            while self.turns[host].is_some() || !self.waiting[host].is_empty() {
                self.turn(host, |_| 0);
                self.commit(host, Outcome::Answered);
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        5 => Just(Outcome::Answered),
        1 => prop::sample::select(vec![
            Outcome::Unheard,
            Outcome::Lost,
            Outcome::Slow,
            Outcome::UnheardGivenUp,
            Outcome::SlowGivenUp,
            Outcome::SlowDied,
        ]),
    ];
    let index = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (0..3usize, prop::collection::vec(index(), 1..4)).prop_map(|(host, ops)| Step::Call { host, ops }),
        4 => (0..3usize, index()).prop_map(|(host, call)| Step::Turn { host, call }),
        4 => (0..3usize, outcome).prop_map(|(host, outcome)| Step::Commit { host, outcome }),
        2 => index().prop_map(|flight| Step::Late { flight }),
        1 => (0..3usize, 0..9u64, 0..5u64)
            .prop_map(|(host, forward, back)| Step::Clock { host, forward, back }),
    ];
    prop::collection::vec(step, 1..60)
}

fn kinds() -> impl Strategy<Value = CrdtType> {
    // A map is all the others too.
    prop_oneof![1 => prop::sample::select(CrdtType::ALL.to_vec()), 1 => Just(CrdtType::OrMap)]
}

fn run() -> impl Strategy<Value = Cluster> {
    (kinds(), steps()).prop_map(|(kind, steps)| {
        let mut cluster = Cluster::new(kind);
        for step in &steps {
            cluster.step(step);
        }
        cluster.settle();
        cluster
    })
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, call) in self.model.calls.iter().enumerate() {
            let ops = Value::from(call.ops.clone());
            writeln!(to, "call {n} by {} at {} on {:?}: {ops}", call.by, call.now, call.observed)?;
        }
        for (n, (_, calls)) in self.versions.iter().enumerate() {
            writeln!(to, "version {n}: {calls:?} {}", self.state(n).plain())?;
        }
        Ok(())
    }
}

/// States and deltas of one history, oldest first.
pub(super) fn histories() -> impl Strategy<Value = (Vec<Crdt>, Vec<Crdt>)> {
    run().prop_map(|cluster| {
        let states = (0..=cluster.last()).map(|version| cluster.state(version)).collect();
        (states, cluster.merged)
    })
}

/// JSON with the elements of sets in one order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut items) => {
            items.sort_by_key(ToString::to_string);
            Value::Array(items)
        }
        Value::Object(members) => members.into_iter().map(|(name, value)| (name, sorted(value))).collect(),
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_version_is_what_the_history_says(cluster in run()) {
        for version in 0..=cluster.last() {
            let (bytes, calls) = &cluster.versions[version];
            let state = cluster.state(version);
            prop_assert_eq!(sorted(value(&state.plain())), sorted(cluster.model.plain(calls)), "version {}", version);
            prop_assert_eq!(&state.encode(), bytes);
        }
    }

    #[test]
    fn what_is_in_a_state_adds_nothing_to_it(cluster in run()) {
        let last = cluster.state(cluster.last());
        for delta in &cluster.merged {
            prop_assert_eq!(&join(&last, delta), &last);
        }
        for version in 0..cluster.last() {
            prop_assert_eq!(&join(&last, &cluster.state(version)), &last);
        }
        // Hosts that keep copies and hear of everything in any order end alike.
        let mut copy = Crdt::new(last.kind());
        for delta in cluster.merged.iter().rev() {
            copy = join(&copy, delta);
        }
        prop_assert_eq!(join(&copy, &last), last);
    }

    #[test]
    fn merging_is_a_join(
        (states, deltas) in histories(),
        chosen in prop::array::uniform3((any::<bool>(), any::<prop::sample::Index>())),
    ) {
        prop_assume!(!deltas.is_empty());
        let [a, b, c] = chosen.map(|(state, at)| at.get(if state { &states } else { &deltas }).clone());
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&a, &a), a.clone());
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        let delta = join(&b, &c);
        prop_assert_eq!(Crdt::decode(&delta.encode()), Ok(delta));
    }
}
