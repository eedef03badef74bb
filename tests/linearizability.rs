//! Calls with state are linearizable: concurrent gets, sets and compare-and-sets, through two executors on one store, with
//! the instants at which they were sent and answered, have an order that explains every answer.
//!
//! That holds for gets that take their turn and for those of `[state] shared`, which do not: both read what was committed
//! last after they were sent. Clients lose patience, instances, executors and stores are killed meanwhile; a call without an
//! answer may have happened then, later, or not at all, while an error that promises that nothing was changed must keep its word.
//!
//! `EXECUTOR_HISTORIES=200 cargo test --test linearizability -- keeps` looks longer, for each store; `EXECUTOR_TEST_SEED`
//! repeats the choices of a run (not what the machine made of them).

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]
#![allow(clippy::print_stdout, reason = "how much was tried")]

#[path = "linearizability/checker.rs"]
mod checker;
mod common;
mod crashes;
mod servers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use checker::{Ask, Call, Verdict, check};
use common::{Home, LONG, at_once};
use crashes::{Host, Outcome, Random, Store, number, seed};

/// For each store, unless the environment says otherwise.
const HISTORIES: u64 = 4;
const CLIENTS: usize = 6;
const CALLS: u64 = 120;
/// Registers of one history.
const KEYS: u64 = 4;
/// Killed during one history.
const CRASHES: usize = 3;

const MANIFEST: &str = "timeout = \"5s\"\n[state]\nkey = \"{query.id}\"\nshared = [\"GET\"]\n";

const REGISTER: &str = r"
import { setTimeout as sleep } from 'node:timers/promises';
export default async ({ req, res, state }) => {
  const { v, from, pause } = req.query;
  const saw = state.get()?.v ?? 0;
  if (pause) await sleep(Number(pause));
  if (req.path === '/set' || (req.path === '/swap' && saw === Number(from))) state.set({ v: Number(v) });
  return res.json({ saw });
};";

/// As it must not be: every other get is answered from what the instance remembers.
const STALE_READS: &str = r"
const remembered = new Map();
let n = 0;
export default async ({ req, res, state }) => {
  const { id, v, from } = req.query;
  let saw = state.get()?.v ?? 0;
  if (req.path === '/get' && n++ % 2) saw = remembered.get(id) ?? saw;
  else remembered.set(id, saw);
  if (req.path === '/set' || (req.path === '/swap' && saw === Number(from))) state.set({ v: Number(v) });
  return res.json({ saw });
};";

/// As it must not be: what is compared is what the instance remembers, so others' changes get lost.
const STALE_WRITES: &str = r"
const remembered = new Map();
export default async ({ req, res, state }) => {
  const { id, v, from } = req.query;
  let saw = state.get()?.v ?? 0;
  if (req.path === '/swap') saw = remembered.get(id) ?? saw;
  if (req.path === '/set' || (req.path === '/swap' && saw === Number(from))) {
    state.set({ v: Number(v) });
    remembered.set(id, Number(v));
  } else remembered.set(id, saw);
  return res.json({ saw });
};";

/// What became of the calls of a history.
#[derive(Debug, Default)]
struct Counts {
    answered: usize,
    shared: usize,
    refused: usize,
    unknown: usize,
    crashes: usize,
}

fn hosts(n: usize, store: &Store, code: &str) -> Vec<Host> {
    let host = |_| {
        let home = Home::new();
        home.node("register", MANIFEST, code);
        Host::start(home, store)
    };
    (0..n).map(host).collect()
}

/// One client's calls, each with the number of its register.
struct Client<'a> {
    hosts: &'a [Host],
    random: Random,
    /// Values nobody else writes.
    first: u64,
    history: u64,
    clock: Instant,
    /// Whether to lose patience at times.
    hasty: bool,
}

impl Client<'_> {
    fn run(mut self, done: &AtomicUsize) -> (Vec<(usize, Call)>, Counts) {
        let (mut calls, mut counts) = (Vec::new(), Counts::default());
        let mut clients: Vec<_> = self.hosts.iter().map(Host::client).collect();
        let mut seen = [0; KEYS as usize];
        for n in 0..CALLS {
            let client = self.random.below(clients.len() as u64) as usize;
            let key = self.random.below(KEYS) as usize;
            let value = self.first + n;
            let (method, path, ask) = match self.random.below(10) {
                0..=2 => ("GET", "get", Ask::Get),
                3..=4 => ("POST", "get", Ask::Get),
                5..=6 => ("POST", "set", Ask::Set(value)),
                _ => ("POST", "swap", Ask::Swap(seen[key], value)),
            };
            let from = seen[key];
            let mut target = format!("/register/{path}?id={}.{key}&v={value}&from={from}", self.history);
            let mut patience = LONG;
            if self.hasty && self.random.percent(8) {
                target.push_str("&pause=10");
                patience = Duration::from_millis(1) + self.random.millis(20);
            }
            clients[client].ready();
            let begun = self.now();
            let outcome = clients[client].send(method, &target, None, patience);
            let ended = self.now();
            done.fetch_add(1, Ordering::Relaxed);
            let call = match outcome {
                Outcome::Refused(_) => {
                    counts.refused += 1;
                    continue;
                }
                Outcome::Unknown(_) => {
                    counts.unknown += 1;
                    // While a store is away, that is every call.
                    std::thread::sleep(Duration::from_millis(20));
                    Call { ask, saw: None, begun, ended: u64::MAX }
                }
                Outcome::Done(answer) => {
                    counts.answered += 1;
                    counts.shared += usize::from(method == "GET");
                    let saw = answer.json()["saw"].as_u64().unwrap();
                    seen[key] = ask_leaves(ask, saw);
                    Call { ask, saw: Some(saw), begun, ended }
                }
            };
            calls.push((key, call));
        }
        (calls, counts)
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }
}

fn ask_leaves(ask: Ask, saw: u64) -> u64 {
    match ask {
        Ask::Set(new) => new,
        Ask::Swap(from, to) if from == saw => to,
        Ask::Get | Ask::Swap(..) => saw,
    }
}

/// The calls to each register, while something is killed now and then if there is a `store` for it.
fn history(hosts: &[Host], store: Option<&Store>, number: u64, seed: u64) -> (Vec<Vec<Call>>, Counts) {
    let (clock, done) = (Instant::now(), AtomicUsize::new(0));
    let client = |n: usize| Client {
        hosts,
        random: Random::new(seed, number * 100 + n as u64),
        first: 1 + n as u64 * CALLS,
        history: number,
        clock,
        hasty: store.is_some(),
    };
    let (mut calls, mut counts) = (vec![Vec::new(); KEYS as usize], Counts::default());
    std::thread::scope(|scope| {
        let crashes = scope.spawn(|| {
            let Some(store) = store else { return 0 };
            let mut random = Random::new(seed, number * 100 + 99);
            (1..=CRASHES).filter(|n| crash(hosts, store, &mut random, &done, *n)).count()
        });
        for (own, count) in at_once(CLIENTS, |n| client(n).run(&done)) {
            for (key, call) in own {
                calls[key].push(call);
            }
            counts.answered += count.answered;
            counts.shared += count.shared;
            counts.refused += count.refused;
            counts.unknown += count.unknown;
        }
        counts.crashes = crashes.join().unwrap();
    });
    (calls, counts)
}

/// Kills an executor, an instance or the store's server, at its place in the history.
fn crash(hosts: &[Host], store: &Store, random: &mut Random, done: &AtomicUsize, n: usize) -> bool {
    let all = CLIENTS * CALLS as usize;
    let at = all * n / (CRASHES + 1);
    // Clients end, whatever happens.
    while done.load(Ordering::Relaxed) < at {
        std::thread::sleep(Duration::from_millis(1));
    }
    let host = &hosts[random.below(hosts.len() as u64) as usize];
    match random.below(10) {
        0..=4 => {
            host.crash(&[]);
            true
        }
        5..=6 => store.crash(),
        _ => host.crash_instance(random),
    }
}

#[track_caller]
fn assert_linearizable(calls: &[Vec<Call>]) {
    for (key, calls) in calls.iter().enumerate() {
        match check(0, calls) {
            Verdict::Linearizable => {}
            Verdict::Undecided => panic!("register {key}: no verdict on {} calls", calls.len()),
            Verdict::Not { order, stuck } => {
                let last = &order[order.len().saturating_sub(20)..];
                panic!(
                    "register {key}: after {} calls, the last of which are\n{last:#?}\nnone of these can be next:\n{stuck:#?}",
                    order.len()
                );
            }
        }
    }
}

fn keeps_order(name: &str, executors: usize, store: &Store) {
    let hosts = hosts(executors, store, REGISTER);
    let seed = seed(name);
    let mut total = Counts::default();
    for n in 0..number("EXECUTOR_HISTORIES", || HISTORIES) {
        let (calls, counts) = history(&hosts, Some(store), n, seed);
        assert_linearizable(&calls);
        assert!(counts.answered > 0 && counts.shared > 0, "{counts:?}");
        total.answered += counts.answered;
        total.shared += counts.shared;
        total.refused += counts.refused;
        total.unknown += counts.unknown;
        total.crashes += counts.crashes;
    }
    println!("{name}: {total:?}");
}

#[test]
fn sqlite_keeps_order() {
    keeps_order("sqlite", 1, &Store::Sqlite);
}

#[test]
fn two_executors_on_postgres_keep_order() {
    keeps_order("postgres", 2, &Store::postgres());
}

#[test]
fn two_executors_on_redis_keep_order() {
    keeps_order("redis", 2, &Store::redis());
}

/// Without this the tests above would prove little.
#[test]
fn functions_that_break_order_are_caught() {
    let store = Store::redis();
    for code in [STALE_READS, STALE_WRITES] {
        let hosts = hosts(2, &store, code);
        let seed = seed("broken");
        // Names of registers are new for each of both.
        let (calls, _) = history(&hosts, None, u64::from(code == STALE_WRITES), seed);
        let caught = calls.iter().filter(|calls| matches!(check(0, calls), Verdict::Not { .. })).count();
        assert!(caught > 0, "{code}");
    }
}
