//! What every state store promises, kept by real servers: `PostgreSQL` and Redis, in tests of the store
//! itself and of the whole executor.
//!
//! The servers come from Debian's packages, see `servers`.

#![allow(clippy::unwrap_used, reason = "what goes wrong in a test is a failed test")]

mod common;
#[path = "stores/layouts.rs"]
mod layouts;
#[path = "stores/records.rs"]
mod records;
mod servers;

/// Where the suite, a part of the library's own tests, looks for itself.
mod state {
    pub(crate) use super::{contract, contract_records};
}

#[path = "../src/state/contract.rs"]
mod contract;
#[path = "../src/state/contract_records.rs"]
mod contract_records;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::node::{COUNT, HELLO};
use common::{Home, Reply, Server, at_once, eventually};
use contract::{Fixture, Store, contract_suite, entity, json, number};
use executor::state::{
    Commit, Entity, Kind, MAX_PAGE_BYTES, MAX_RECORD_BYTES, MAX_RECORDS, Millis, Record, RecordChange,
    RecordId, RecordWrite, Room, StateStore, StoreError, StoreUrl, Value, Versioned, Write, open,
};
use servers::{PASSWORD, Postgres, Redis, encoded};
use tokio::task::JoinSet;

async fn opened(url: &str) -> Store {
    open(&StoreUrl::parse(url).unwrap()).await.unwrap()
}

async fn refused(url: &str) -> StoreError {
    match open(&StoreUrl::parse(url).unwrap()).await {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error,
    }
}

async fn postgres() -> Fixture {
    let database = Postgres::shared().database();
    Fixture { store: opened(&database.url()).await, _kept: Box::new(database) }
}

async fn redis() -> Fixture {
    let server = Redis::start(&[]);
    Fixture { store: opened(&server.url()).await, _kept: Box::new(server) }
}

contract_suite!(postgres_keeps_the_contract, postgres);
contract_suite!(redis_keeps_the_contract, redis);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reopening_keeps_everything() {
    let database = Postgres::shared().database();
    contract::reopening_keeps_everything(async || opened(&database.url()).await).await;
    let server = Redis::start(&["--requirepass", PASSWORD]);
    contract::reopening_keeps_everything(async || opened(&server.url()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_share_a_store() {
    let (database, server) = (Postgres::shared().database(), Redis::start(&[]));
    for url in [database.url(), server.url()] {
        // At the same time: all find nothing and want to prepare it.
        let mut opening = JoinSet::new();
        for _ in 0..8 {
            let url = url.clone();
            opening.spawn(async move { opened(&url).await });
        }
        let mut stores = opening.join_all().await;
        let (one, other) = (stores.pop().unwrap(), stores.pop().unwrap());
        contract::two_hosts_share_a_store(&one, &other).await;
        contract::versions_grow_over_deletes(&one, &other).await;
        one.close().await;
        other.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_go_away_and_come_back() {
    let server = Arc::new(Postgres::start(&[]));
    let store = opened(&server.url("postgres")).await;
    contract::goes_away_and_comes_back(&store, || server.kill(), || server.run()).await;
    store.close().await;
    let server = Redis::durable();
    let store = opened(&server.url()).await;
    contract::goes_away_and_comes_back(&store, || server.kill(), || server.run()).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nothing_holds_nobody_up() {
    let server = Redis::durable();
    let store = opened(&server.url()).await;
    contract::goes_away_and_comes_back(&store, || server.freeze(true), || server.freeze(false)).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_can_be_opened_before_its_server_runs() {
    let server = Arc::new(Postgres::prepare(&[]));
    let store = opened(&server.url("postgres")).await;
    assert!(matches!(store.health().await, Err(StoreError::Unavailable(_))));
    server.run();
    contract::eventually(async || store.health().await.is_ok()).await;
    contract::absent_put_get_delete(&store).await;
    let server = Redis::prepare(&[]);
    let store = opened(&server.url()).await;
    assert!(matches!(store.health().await, Err(StoreError::Unavailable(_))));
    server.run();
    contract::eventually(async || store.health().await.is_ok()).await;
    contract::absent_put_get_delete(&store).await;
}

/// What was acknowledged is there after each crash; what failed is there or not, but never twice.
async fn crashes_lose_nothing(store: &Store, kill: impl Fn(), run: impl Fn()) {
    const TASKS: u64 = 8;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (store, stop, acknowledged) = (Arc::clone(store), Arc::clone(&stop), Arc::clone(&acknowledged));
        tasks.spawn(async move {
            let own = entity("crash", &task.to_string());
            let (mut sure, mut unclear) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let Ok(read) = store.get(&own).await else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let (expected, n) = read.map_or((0, 0), |v| (v.version, number(&v)));
                assert!(n >= sure, "{n} is stored and {sure} was acknowledged");
                assert!(n <= sure + unclear, "{n} is stored, {sure} acknowledged and {unclear} unclear");
                match store.commit(&own, expected, json(&(n + 1).to_string())).await {
                    Ok(_) => {
                        (sure, unclear) = (n + 1, 0);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    // Nobody else writes: it is a write of this task that was slow to arrive.
                    Err(StoreError::Conflict { .. }) => assert!(unclear > 0),
                    Err(StoreError::Unavailable(_)) => unclear += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    for _ in 0..4 {
        let before = acknowledged.load(Ordering::Relaxed);
        contract::eventually(async || acknowledged.load(Ordering::Relaxed) > before + 100).await;
        kill();
        run();
    }
    let before = acknowledged.load(Ordering::Relaxed);
    contract::eventually(async || acknowledged.load(Ordering::Relaxed) > before + 100).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgres_loses_nothing() {
    let server = Arc::new(Postgres::start(&[]));
    let store = opened(&server.url("postgres")).await;
    crashes_lose_nothing(&store, || server.kill(), || server.run()).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_redis_that_syncs_always_loses_nothing() {
    let server = Redis::durable();
    let store = opened(&server.url()).await;
    crashes_lose_nothing(&store, || server.kill(), || server.run()).await;
    store.close().await;
}

fn shown(error: &StoreError) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    format!("{error} {error:?} {source:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_refused_and_not_repeated() {
    let postgres = Postgres::shared();
    let port = postgres.port;
    let redis = Redis::start(&["--requirepass", PASSWORD]);
    for (url, says) in [
        (format!("postgres://ada:wrong@127.0.0.1:{port}/postgres"), "password"),
        (format!("postgres://ada@127.0.0.1:{port}/postgres"), "password"),
        (format!("postgres://eve:wrong@127.0.0.1:{port}/postgres"), "password"),
        (format!("postgres://ada:{}@127.0.0.1:{port}/nowhere", encoded(PASSWORD)), "database"),
        (format!("redis://:wrong@127.0.0.1:{}", redis.port), "password"),
        (format!("redis://127.0.0.1:{}", redis.port), "password"),
        (format!("redis://eve:wrong@127.0.0.1:{}", redis.port), "password"),
        (format!("{}/9999", redis.url().trim_end_matches("/0")), "database"),
    ] {
        let error = refused(&url).await;
        assert!(matches!(error, StoreError::Refused { .. }), "{url}: {error:?}");
        let shown = shown(&error);
        assert!(shown.contains(says), "{shown}");
        for secret in ["wrong", "eve", "ada", PASSWORD, &encoded(PASSWORD)] {
            assert!(!shown.replace("wrong user", "").replace("wrong or", "").contains(secret), "{shown}");
        }
    }
    let url = format!("postgres://eve:{}@127.0.0.1:{port}/d", encoded(PASSWORD));
    assert!(!format!("{:?}", StoreUrl::parse(&url).unwrap()).contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_changed_while_it_runs_is_a_store_that_is_away() {
    let server = Redis::start(&["--requirepass", PASSWORD]);
    let store = opened(&server.url()).await;
    server.cli(&["config", "set", "requirepass", "other"]);
    let kill = |password: &str| {
        let server = &server;
        let port = server.port.to_string();
        let mut command = std::process::Command::new("redis-cli");
        command.args(["-p", &port, "client", "kill", "type", "normal"]).env("REDISCLI_AUTH", password);
        assert!(command.output().unwrap().status.success());
    };
    kill("other");
    let away = store.get(&entity("f", "k")).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "{away:?}");
    let mut command = std::process::Command::new("redis-cli");
    command.args(["-p", &server.port.to_string(), "config", "set", "requirepass", PASSWORD]);
    assert!(command.env("REDISCLI_AUTH", "other").output().unwrap().status.success());
    contract::absent_put_get_delete(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_release_wrote_is_refused() {
    let (database, server) = (Postgres::shared().database(), Redis::start(&[]));
    for url in [database.url(), server.url()] {
        opened(&url).await.close().await;
        opened(&url).await.close().await;
    }
    database.sql("UPDATE executor.store SET schema = schema + 1");
    server.cli(&["incr", "executor:schema"]);
    for url in [database.url(), server.url()] {
        let error = refused(&url).await;
        assert!(matches!(error, StoreError::TooNew { found: 3, supported: 2, .. }), "{error:?}");
        assert!(error.to_string().contains("newer release"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_others_is_left_alone() {
    let (database, server) = (Postgres::shared().database(), Redis::start(&[]));
    database.sql("CREATE SCHEMA executor; CREATE TABLE executor.entity (mine text)");
    server.cli(&["set", "executor:schema", "mine"]);
    for url in [database.url(), server.url()] {
        let error = refused(&url).await;
        assert!(matches!(error, StoreError::Foreign { .. }), "{error:?}");
    }
    assert_eq!(database.sql("SELECT to_regclass('executor.store') IS NULL"), "t", "nothing was half done");
    assert_eq!(server.cli(&["get", "executor:schema"]), "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_is_told_which() {
    let database = Postgres::shared().database();
    let role = format!("r_{}", database.name);
    database.sql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p'"));
    let url = format!("postgres://{role}:p@127.0.0.1:{}/{}", database.server.port, database.name);
    let error = refused(&url).await;
    assert!(matches!(&error, StoreError::Refused { why, .. } if why.contains("CREATE")), "{error:?}");
    database.sql(&format!("CREATE SCHEMA executor AUTHORIZATION {role}"));
    contract::absent_put_get_delete(&opened(&url).await).await;
    database.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

/// A locked table makes every operation wait, so that as many connections are made as may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() {
    const BOUND: &str = "16";
    let database = Postgres::shared().database();
    let store = opened(&database.url()).await;
    let count = || {
        database.sql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'executor' AND datname = '{}'",
            database.name
        ))
    };
    std::thread::scope(|scope| {
        let locked = "BEGIN; LOCK TABLE executor.entity; SELECT pg_sleep(1.5); COMMIT";
        let lock = scope.spawn(|| database.sql(locked));
        eventually("the table is locked", || {
            let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted";
            (database.sql(held) != "0").then_some(())
        });
        let mut tasks = JoinSet::new();
        for n in 0..64 {
            let store = Arc::clone(&store);
            tasks.spawn(async move { store.get(&entity("f", &n.to_string())).await });
        }
        eventually("as many connections as may be", || (count() == BOUND).then_some(()));
        lock.join().unwrap();
        assert_eq!(count(), BOUND);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                while let Some(read) = tasks.join_next().await {
                    assert_eq!(read.unwrap().unwrap(), None);
                }
            });
        });
        assert_eq!(count(), BOUND);
    });
    store.close().await;
    eventually("all connections have ended", || (count() == "0").then_some(()));

    let server = Redis::start(&[]);
    let store = opened(&server.url()).await;
    contract::entities_do_not_disturb_each_other(&store).await;
    let clients = server.cli(&["client", "list"]).lines().filter(|line| !line.contains("cmd=client")).count();
    assert!((1..=4).contains(&clients), "{clients}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_may_forget_its_scripts_and_everything() {
    let server = Redis::start(&[]);
    let store = opened(&server.url()).await;
    let owner = entity("f", "k");
    let first = store.commit(&owner, 0, json("1")).await.unwrap();
    server.cli(&["script", "flush"]);
    let second = store.commit(&owner, first, json("2")).await.unwrap();
    assert!(second > first);
    server.cli(&["flushall"]);
    assert_eq!(store.get(&owner).await.unwrap(), None);
    let third = store.commit(&owner, 0, json("3")).await.unwrap();
    assert!(third > second, "versions do not begin again: {third} after {second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_executor_wrote_is_not_taken_for_state() {
    let server = Redis::start(&[]);
    let store = opened(&server.url()).await;
    let owner = entity("f", "k");
    for value in ["", "mine", "j1", "jx 1", "x1 1", "j-1 1"] {
        server.cli(&["set", "executor:state:1:f:k", value]);
        let read = store.get(&owner).await;
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{value}: {read:?}");
        if !value.is_empty() {
            let write = store.commit(&owner, 0, json("1")).await;
            assert!(matches!(write, Err(StoreError::Corrupt { .. })), "{value}: {write:?}");
        }
    }
    server.cli(&["del", "executor:state:1:f:k"]);
    server.cli(&["rpush", "executor:state:1:f:k", "a"]);
    assert!(matches!(store.get(&owner).await, Err(StoreError::Corrupt { .. })));
    assert!(matches!(store.commit(&owner, 0, json("1")).await, Err(StoreError::Corrupt { .. })));
}

// The whole executor.

const BY_ID: &str = "timeout = \"20s\"\n[state]\nkey = \"{query.id}\"";

fn home() -> Home {
    let home = Home::new();
    home.node("count", BY_ID, COUNT).node("hello", "", HELLO);
    home
}

fn health(server: &Server) -> (u16, String, String) {
    let reply = server.request("GET", "/_/health").send();
    let body = reply.json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (reply.status, text(&body["status"]), text(&body["parts"]["store"]))
}

fn is_away(reply: &Reply) {
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("store-unavailable"), "{}", reply.text());
    assert!(reply.header("retry-after").is_some());
    assert!(!reply.text().contains("127.0.0.1"), "{}", reply.text());
}

/// Away at the start, there, away, there again.
fn comes_and_goes(url: &str, kill: impl Fn(), run: impl Fn()) {
    let home = home();
    let mut server = home.start(&["--store", url]);
    let degraded = (200, "degraded".to_owned(), "fail".to_owned());
    let well = (200, "pass".to_owned(), "pass".to_owned());
    let mut n = 0;
    for round in 1..=2 {
        let begun = Instant::now();
        is_away(&server.get("/count?id=a"));
        assert!(begun.elapsed() < Duration::from_secs(20), "within the deadline");
        assert_eq!(server.ok("/hello").text(), "hello");
        eventually("health is degraded", || (health(&server) == degraded).then_some(()));
        run();
        eventually("the state is back", || (server.get("/count?id=a").status == 200).then_some(()));
        n += 2;
        assert_eq!(server.ok("/count?id=a").json()["n"], n);
        eventually("health is well", || (health(&server) == well).then_some(()));
        assert_eq!(server.logged("the state store is away").len(), round, "told once each time");
        kill();
    }
    run();
    assert_eq!(server.stop(), 0);
    let log = server.log();
    assert!(!log.contains(PASSWORD) && !log.contains(&encoded(PASSWORD)), "{log}");
}

#[test]
fn calls_live_with_a_postgres_that_comes_and_goes() {
    let server = Arc::new(Postgres::prepare(&[]));
    comes_and_goes(&server.url("postgres"), || server.kill(), || server.run());
}

#[test]
fn calls_live_with_a_redis_that_comes_and_goes() {
    let flags = ["--appendonly", "yes", "--appendfsync", "always", "--requirepass", PASSWORD];
    let server = Redis::prepare(&flags);
    comes_and_goes(&server.url(), || server.kill(), || server.run());
}

#[test]
fn two_executors_on_one_store_lose_nothing() {
    const EACH: usize = 10;
    let (database, redis) = (Postgres::shared().database(), Redis::start(&[]));
    for url in [database.url(), redis.url()] {
        let homes = [home(), home()];
        let servers: Vec<Server> = homes.iter().map(|home| home.start(&["--store", &url])).collect();
        let counted = at_once(4, |n| {
            let server = &servers[n % 2];
            let mut seen = Vec::new();
            while seen.len() < EACH {
                let reply = server.get("/count?id=hot");
                match reply.status {
                    200 => seen.push(reply.json()["n"].as_u64().unwrap()),
                    // Others were faster each time; nothing was changed.
                    409 => assert!(reply.text().contains("state-conflict")),
                    _ => panic!("{}", reply.text()),
                }
            }
            seen
        });
        let mut all: Vec<u64> = counted.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (1..=4 * EACH as u64).collect::<Vec<_>>());
        let (one, other) = (servers[0].ok("/count?id=hot"), servers[1].ok("/count?id=hot"));
        assert_eq!((one.json()["n"].as_u64(), other.json()["n"].as_u64()), (Some(41), Some(42)));
    }
}

#[test]
fn mistakes_end_the_start_with_a_message() {
    let database = Postgres::shared().database();
    let redis = Redis::start(&["--requirepass", PASSWORD]);
    database.sql("CREATE SCHEMA executor; CREATE TABLE executor.store (schema int)");
    database.sql("INSERT INTO executor.store VALUES (7)");
    redis.cli(&["set", "executor:schema", "7"]);
    let home = home();
    for (url, says) in [
        (database.url(), "newer release"),
        (redis.url(), "newer release"),
        (database.url().replacen("ada:", "ada:x", 1), "wrong user or password"),
        (redis.url().replacen("//:", "//:x", 1), "wrong or missing user or password"),
        (format!("{}?sslmode=require", database.url()), "TLS is not supported yet"),
        (redis.url().replacen("redis:", "rediss:", 1), "TLS is not supported yet"),
    ] {
        let output = home.run(&["--port", "0", "--store", &url]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
        assert!(!said.contains(PASSWORD) && !said.contains(&encoded(PASSWORD)), "{said}");
    }
    let help = home.command().env("EXECUTOR_STORE", redis.url()).arg("--help").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(&encoded(PASSWORD)));
}

#[test]
fn a_redis_that_keeps_nothing_is_told_at_the_start() {
    let home = home();
    let server = Redis::start(&[]);
    home.start(&["--store", &server.url()]).wait_log("Redis keeps nothing on disk");
    let server = Redis::durable();
    let executor = home.start(&["--store", &server.url()]);
    executor.ok("/count?id=a");
    assert!(executor.logged("Redis").is_empty(), "{}", executor.log());
}
