//! No crash loses, repeats or tears a change of state: clients count while executors, instances and the stores' servers
//! are killed at random points, and in the end every count is what the answers say.
//!
//! - With an `Idempotency-Key`, repeated until it is answered, each request has had its effect exactly once.
//! - Without one: at least what was answered, at most that and what got no answer. An error that promises that nothing
//!   was changed is held to it.
//! - A log of events has each of them, with no gaps in its numbers.
//! - Every timer that was set, also by a call whose answer got lost, was delivered, with its effect exactly once.
//!
//! By default [`ROUNDS`] for each store, about a minute in all on two cores. For thousands of crashes:
//!
//! ```text
//! EXECUTOR_CRASH_ROUNDS=1000 cargo test --test state_crashes -- --nocapture
//! ```
//!
//! `EXECUTOR_TEST_SEED` repeats the choices of a run (not what the machine made of them).

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]
#![allow(clippy::print_stdout, reason = "how much was tried, and what came before a failure")]

mod common;
mod crashes;
mod servers;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Home, LONG, eventually, eventually_within};
use crashes::{Host, Outcome, Random, Store, number, seed};
use serde_json::Value;
use servers::{Postgres, Redis};

/// Crashes for each store, unless the environment says otherwise.
const ROUNDS: u64 = 25;

/// Clients of each kind of count.
const CLIENTS: u64 = 2;

/// Timers of one entity: its state names them all.
const TIMERS: u64 = 100;

/// After a request that was not answered: while a store is away, that is every one.
const PAUSE: Duration = Duration::from_millis(20);

/// A delivery that was killed is repeated when its claim is over, and later each time.
const PATIENCE: Duration = Duration::from_mins(4);

const VALUE: &str = r"
export default ({ req, res, state }) => {
  const s = state.get() ?? { n: 0, fired: {} };
  const timer = req.path.split('/__timer/')[1];
  if (timer) s.fired[timer] = (s.fired[timer] ?? 0) + 1;
  else if (req.method === 'POST') s.n += 1;
  if (req.query.timer) state.schedule(req.query.timer, { after: Number(req.query.after) });
  if (req.method === 'POST') state.set(s);
  return res.json(s);
};";

const EVENTS: &str = r"
export const initial = { n: 0 };
export const events = { added: (s) => ({ n: s.n + 1 }) };
export default ({ req, res, state }) => {
  if (req.method === 'POST') state.emit('added', { request: req.query.request });
  return res.json(state.get());
};";

const CRDT: &str = r"
export default ({ req, res, state }) => {
  if (req.method === 'POST') state.increment();
  return res.json({ n: state.value });
};";

/// What is counted: the function, and whether with keys.
const COUNTS: [(&str, bool); 6] =
    [("value", true), ("value", false), ("events", true), ("events", false), ("crdt", true), ("crdt", false)];

fn home() -> Home {
    let home = Home::new();
    let manifest = |more: &str| format!("timeout = \"2s\"\n[state]\nkey = \"{{query.id}}\"\n{more}");
    home.node("value", &manifest(""), VALUE)
        .node("events", &manifest("model = \"events\"\nsnapshot-every = 10\n"), EVENTS)
        .node("crdt", &manifest("model = \"crdt\"\ntype = \"g-counter\"\n"), CRDT);
    home
}

/// What clients know about their requests.
#[derive(Debug, Clone, Default)]
struct Tally {
    asked: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
    /// Without an answer, and not repeated.
    unknown: u64,
    /// With an error that promises that nothing was changed.
    refused: u64,
    /// With a key: answered with what was recorded for an earlier attempt.
    replayed: u64,
    /// The counts that the answers gave.
    answers: Vec<u64>,
}

impl Tally {
    fn add(mut self, mut other: Self) -> Self {
        self.asked.append(&mut other.asked);
        self.acknowledged.append(&mut other.acknowledged);
        self.answers.append(&mut other.answers);
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.replayed += other.replayed;
        self
    }
}

/// What all clients share.
struct Run<'a> {
    host: &'a Host,
    over: AtomicBool,
    /// Acknowledged requests.
    progress: AtomicU64,
}

impl Run<'_> {
    /// Counts until it is over. A request with a key is repeated until it is answered, even then.
    fn count(&self, function: &str, keyed: bool, number: u64) -> Tally {
        let (mut client, mut tally) = (self.host.client(), Tally::default());
        for n in 0_u64.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let request = format!("{number}.{n}");
            tally.asked.insert(request.clone());
            let target = format!("/{function}?id={keyed}&request={request}");
            let key = keyed.then_some(&*request);
            let mut once = || match client.send("POST", &target, key, LONG) {
                Outcome::Done(answer) => Some(answer),
                Outcome::Refused(_) => {
                    tally.refused += 1;
                    None
                }
                Outcome::Unknown(_) => {
                    tally.unknown += u64::from(!keyed);
                    None
                }
            };
            let answer =
                if keyed { Some(eventually("a request with a key is answered", once)) } else { once() };
            if let Some(answer) = answer {
                tally.replayed += u64::from(answer.replayed);
                tally.answers.push(answer.json()["n"].as_u64().unwrap());
                tally.acknowledged.insert(request);
                self.progress.fetch_add(1, Ordering::Relaxed);
            } else {
                std::thread::sleep(PAUSE);
            }
        }
        tally
    }

    /// Sets timers until it is over.
    fn set_timers(&self, mut random: Random) -> Tally {
        let (mut client, mut tally) = (self.host.client(), Tally::default());
        for n in 0_u64.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let (id, after) = (n / TIMERS, random.millis(1500).as_secs_f64());
            let name = format!("{id}.{n}");
            let target = format!("/value?id=timers.{id}&timer={name}&after={after}");
            tally.asked.insert(name.clone());
            match client.send("POST", &target, None, LONG) {
                Outcome::Done(_) => drop(tally.acknowledged.insert(name)),
                Outcome::Refused(_) => tally.refused += 1,
                Outcome::Unknown(_) => tally.unknown += 1,
            }
            std::thread::sleep(Duration::from_millis(15));
        }
        tally
    }

    /// Kills something `rounds` times, each time after some more requests; what was killed how often.
    fn crash(&self, name: &str, store: &Store, mut random: Random, rounds: u64) -> Crashes {
        let mut crashes = Crashes::default();
        for _ in 0..rounds {
            let wanted = self.progress.load(Ordering::Relaxed) + 1 + random.below(60);
            eventually("requests are answered", || {
                (self.progress.load(Ordering::Relaxed) >= wanted).then_some(())
            });
            std::thread::sleep(random.millis(10));
            let what = match random.below(20) {
                0..=9 => {
                    self.host.crash(&[]);
                    crashes.executor += 1;
                    "the executor"
                }
                10..=11 => {
                    self.host.crash(&[random.millis(400)]);
                    crashes.executor += 2;
                    "the executor, and once more while it started"
                }
                12..=13 if store.crash() => {
                    crashes.store += 1;
                    "the store"
                }
                _ => {
                    crashes.instance += u64::from(self.host.crash_instance(&mut random));
                    "an instance"
                }
            };
            println!("{name}: after {wanted} answers: {what}");
        }
        crashes
    }
}

#[derive(Debug, Default)]
struct Crashes {
    executor: u64,
    instance: u64,
    store: u64,
}

/// What a function shows of an entity.
fn shown(host: &Host, function: &str, id: &str) -> Value {
    eventually("a read", || match host.client().send("GET", &format!("/{function}?id={id}"), None, LONG) {
        Outcome::Done(answer) => Some(answer.json()),
        _ => None,
    })
}

/// The requests in a log of events; its numbers have no gaps.
fn log(host: &Host, id: &str) -> Vec<String> {
    let server = host.server();
    let key = format!("Bearer {}", server.admin);
    let path = format!("/_/state/events/{id}/history");
    let reply = server.request("GET", &path).header("authorization", &key).send();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>());
    lines.iter().map(|line| line["data"]["request"].as_str().unwrap().to_owned()).collect()
}

/// Compares what is stored with what the clients know.
fn judge_count(host: &Host, function: &str, keyed: bool, tally: &Tally) {
    let what = format!("{function}, keys: {keyed}");
    let n = shown(host, function, &keyed.to_string())["n"].as_u64().unwrap();
    let (asked, acknowledged) = (tally.asked.len() as u64, tally.acknowledged.len() as u64);
    if keyed {
        assert_eq!((n, acknowledged), (asked, asked), "{what}: each exactly once");
    } else {
        assert!(acknowledged <= n && n <= acknowledged + tally.unknown, "{what}: {n}, {tally:?}");
    }
    // Calls that merge do not see each other.
    if function != "crdt" {
        let mut answers = tally.answers.clone();
        answers.sort_unstable();
        let distinct: BTreeSet<_> = answers.iter().collect();
        assert_eq!(distinct.len(), answers.len(), "{what}: two requests were the same one");
        assert!(answers.last() <= Some(&n), "{what}: an answer was ahead of what is stored");
    }
    if function == "events" {
        let log = log(host, &keyed.to_string());
        assert_eq!(log.len() as u64, n, "{what}");
        let logged: BTreeSet<_> = log.iter().cloned().collect();
        assert_eq!(logged.len(), log.len(), "{what}: none twice");
        assert!(logged.is_superset(&tally.acknowledged), "{what}: all that were answered");
        assert!(logged.is_subset(&tally.asked), "{what}: nothing else");
    }
}

/// Waits for all timers that were set. Each is set by a call that also counts itself.
fn judge_timers(host: &Host, tally: &Tally) -> usize {
    let entities = (tally.asked.len() as u64).div_ceil(TIMERS);
    let mut fired = BTreeSet::new();
    let mut set = 0;
    for id in 0..entities {
        let state = eventually_within(PATIENCE, "all timers are delivered", || {
            let state = shown(host, "value", &format!("timers.{id}"));
            let n = state["n"].as_u64().unwrap() as usize;
            (state["fired"].as_object().unwrap().len() == n).then_some(state)
        });
        set += state["n"].as_u64().unwrap();
        for (name, times) in state["fired"].as_object().unwrap() {
            assert_eq!(times, 1, "the effect of the timer {name}");
            fired.insert(name.clone());
        }
    }
    assert!(fired.is_superset(&tally.acknowledged) && fired.is_subset(&tally.asked));
    let acknowledged = tally.acknowledged.len() as u64;
    assert!(acknowledged <= set && set <= acknowledged + tally.unknown, "{set} timers: {tally:?}");
    fired.len()
}

fn survives(name: &str, store: &Store) {
    let seed = seed(name);
    let host = Host::start(home(), store);
    let run = Run { host: &host, over: AtomicBool::new(false), progress: AtomicU64::new(0) };
    let rounds = number("EXECUTOR_CRASH_ROUNDS", || ROUNDS);
    let (tallies, timers, crashes) = std::thread::scope(|scope| {
        let run = &run;
        let clients: Vec<_> = COUNTS
            .iter()
            .map(|(function, keyed)| {
                let count = move |number| scope.spawn(move || run.count(function, *keyed, number));
                (0..CLIENTS).map(count).collect::<Vec<_>>()
            })
            .collect();
        let timers = scope.spawn(|| run.set_timers(Random::new(seed, 1)));
        let over = Over(&run.over);
        let crashes = run.crash(name, store, Random::new(seed, 2), rounds);
        drop(over);
        let tallies: Vec<Tally> = clients
            .into_iter()
            .map(|same| same.into_iter().map(|one| one.join().unwrap()).fold(Tally::default(), Tally::add))
            .collect();
        (tallies, timers.join().unwrap(), crashes)
    });
    host.crash(&[]);
    for ((function, keyed), tally) in COUNTS.iter().zip(&tallies) {
        judge_count(&host, function, *keyed, tally);
        let (asked, acknowledged) = (tally.asked.len(), tally.acknowledged.len());
        let Tally { unknown, refused, replayed, .. } = tally;
        println!(
            "{name}: {function}, keys: {keyed}: {asked} requests, {acknowledged} acknowledged, {unknown} unknown, {refused} refused, {replayed} replayed"
        );
    }
    let fired = judge_timers(&host, &timers);
    println!("{name}: {fired} timers, {} acknowledged; {crashes:?}", timers.acknowledged.len());
}

/// Ends the clients, also if what holds it panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A commit of an executor that was killed may still be on its way when the next one reads the old state.
#[test]
fn a_commit_that_outlives_its_executor_counts_once() {
    let postgres = Postgres::shared();
    let database = postgres.database();
    let host = Host::start(home(), &Store::At(database.url()));
    let send = |(function, keyed): (&str, bool)| {
        let (target, key) = (format!("/{function}?id={keyed}&request=r"), keyed.then_some("r"));
        host.client().send("POST", &target, key, LONG)
    };
    // A lock that lets everybody read, until there is a table `go`; given up after 30 s.
    let hold = "BEGIN; LOCK TABLE executor.entity IN EXCLUSIVE MODE;
                DO $$ BEGIN
                    FOR i IN 1..1500 LOOP
                        EXIT WHEN EXISTS (SELECT FROM pg_catalog.pg_tables WHERE tablename = 'go');
                        PERFORM pg_sleep(0.02);
                    END LOOP;
                END $$; COMMIT";
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'executor.entity'::regclass
                  AND mode = 'ExclusiveLock' AND granted";
    let waiting = r"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND wait_event_type = 'Lock' AND query ~ 'executor\.(commit|apply)'";
    let counted = |what: &str, n: usize| (database.sql(what) == n.to_string()).then_some(());
    let read_all = || {
        for (function, keyed) in COUNTS {
            assert_eq!(shown(&host, function, &keyed.to_string())["n"], 0);
        }
    };
    read_all();
    let all = std::thread::scope(|scope| {
        scope.spawn(|| database.sql(hold));
        eventually("the table is locked", || counted(locked, 1));
        let lost: Vec<_> = COUNTS.map(|count| scope.spawn(move || send(count))).into_iter().collect();
        eventually("all commits wait", || counted(waiting, COUNTS.len()));
        host.crash(&[]);
        for lost in lost {
            assert!(matches!(lost.join().unwrap(), Outcome::Unknown(_)));
        }
        read_all();
        let again: Vec<_> = COUNTS.map(|count| scope.spawn(move || send(count))).into_iter().collect();
        eventually("the new ones wait, too", || counted(waiting, 2 * COUNTS.len()));
        database.sql("CREATE TABLE public.go ()");
        again.into_iter().map(|again| again.join().unwrap()).collect::<Vec<_>>()
    });
    database.sql("DROP TABLE public.go");
    for ((function, keyed), again) in COUNTS.into_iter().zip(all) {
        let Outcome::Done(answer) = again else { panic!("{function}, keys: {keyed}: {again:?}") };
        let n = shown(&host, function, &keyed.to_string())["n"].as_u64().unwrap();
        assert_eq!((answer.replayed, n), (keyed, if keyed { 1 } else { 2 }), "{function}, keys: {keyed}");
    }
}

/// Without this the tests below would prove little.
#[test]
fn what_is_lost_or_done_twice_is_caught() {
    let store = Store::Redis(Box::new(Redis::start(&[])));
    let host = Host::start(home(), &store);
    let tallies = COUNTS.map(|(function, keyed)| {
        let run = Run { host: &host, over: AtomicBool::new(false), progress: AtomicU64::new(0) };
        std::thread::scope(|scope| {
            let count = scope.spawn(|| run.count(function, keyed, 0));
            eventually("some are counted", || (run.progress.load(Ordering::Relaxed) > 5).then_some(()));
            run.over.store(true, Ordering::Relaxed);
            count.join().unwrap()
        })
    });
    let is_caught = |(function, keyed): (&str, bool), tally: &Tally| {
        catch_unwind(AssertUnwindSafe(|| judge_count(&host, function, keyed, tally))).is_err()
    };
    for (count, tally) in COUNTS.into_iter().zip(&tallies) {
        assert!(!is_caught(count, tally), "{count:?}");
        // As if one request less had been sent.
        let mut less = tally.clone();
        let one = less.asked.pop_first().unwrap();
        less.acknowledged.remove(&one);
        assert!(is_caught(count, &less), "{count:?}");
    }
    // This server keeps nothing.
    store.crash();
    for (count, tally) in COUNTS.into_iter().zip(&tallies) {
        assert!(is_caught(count, tally), "{count:?}");
    }
}

#[test]
fn sqlite_survives_crashes() {
    survives("sqlite", &Store::Sqlite);
}

#[test]
fn postgres_survives_crashes() {
    survives("postgres", &Store::postgres());
}

#[test]
fn redis_survives_crashes() {
    survives("redis", &Store::redis());
}
