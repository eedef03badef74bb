//! Stores that an older release left behind.

use std::sync::Arc;

use executor::state::{Kind, StoreError, Value, Write};

use super::contract::{self, entity, json};
use super::servers::{Database, Postgres, Redis};
use super::{contract_records, opened, records};

/// Keys whose old values are `[<index>]`.
const OLD: [&str; 5] = ["", "a", "a:b", "é", "🦀"];

fn hex(text: &str) -> String {
    text.bytes().fold(String::new(), |all, byte| format!("{all}{byte:02x}"))
}

/// A database as the first release left it.
fn old_postgres() -> Database {
    let database = Postgres::shared().database();
    database.sql(include_str!("layout1.sql"));
    for (n, key) in OLD.iter().enumerate() {
        let value = hex(&format!("[{n}]"));
        let (function, key) = (hex("f"), hex(key));
        database
            .sql(&format!(r"SELECT executor.commit('\x{function}', '\x{key}', 0, 0::smallint, '\x{value}')"));
    }
    database.sql(r"SELECT executor.commit('\x67', '\x6b', 0, 1::smallint, '\x00ff')");
    database
}

/// A server as the first release left it.
fn old_redis() -> Redis {
    let server = Redis::start(&[]);
    server.cli(&["set", "executor:schema", "1"]);
    for (n, key) in OLD.iter().enumerate() {
        let value = format!("j{} [{n}]", 1_763_700_000_000_001 + n);
        server.cli(&["set", &format!("executor:state:1:f:{key}"), &value]);
    }
    server.cli(&["set", "executor:state:1:g:k", "b1763700000000009 x"]);
    server.cli(&["set", "executor:versions", "1763700000000009"]);
    server.cli(&["set", "other:state:1:f:x", "j1 [1]"]);
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_release_wrote_is_read_and_goes_on() {
    let (database, server) = (old_postgres(), old_redis());
    for url in [database.url(), server.url()] {
        let store = opened(&url).await;
        let mut newest = 0;
        for (n, key) in OLD.iter().enumerate() {
            let read = store.get(&entity("f", key)).await.unwrap().unwrap();
            assert_eq!(read.value, Value::new(Kind::Json, format!("[{n}]")));
            newest = newest.max(read.version);
        }
        assert_eq!(store.get(&entity("g", "k")).await.unwrap().unwrap().value.kind, Kind::Binary);
        let listed = store.list("f", "", None, 10).await.unwrap();
        let keys: Vec<&str> = listed.iter().map(|one| &*one.key).collect();
        assert_eq!(keys, OLD);
        let is_recent = |at: u64| (1_763_700_000_000..10_000_000_000_000).contains(&at);
        assert!(listed.iter().all(|one| one.bytes == 3 && is_recent(one.updated) && one.expires.is_none()));
        assert_eq!((store.count("f").await.unwrap(), store.count("g").await.unwrap()), (5, 1));
        let functions = store.functions().await.unwrap();
        assert_eq!(functions.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["f", "g"]);

        let owner = entity("f", "a");
        let version = store.get(&owner).await.unwrap().unwrap().version;
        let expiring = Value { expires: Some(5), ..Value::new(Kind::Events, "e") };
        let next = store.commit(&owner, version, Write::Put(expiring)).await.unwrap();
        assert!(next > newest, "{next} after {newest}");
        assert_eq!(store.sweep(5, 10).await.unwrap(), 1);
        let gone = entity("g", "k");
        let version = store.get(&gone).await.unwrap().unwrap().version;
        store.commit(&gone, version, Write::Delete).await.unwrap();
        assert_eq!((store.count("f").await.unwrap(), store.count("g").await.unwrap()), (4, 0));
        let functions = store.functions().await.unwrap();
        assert_eq!(functions.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["f"]);
        records::keeps_records(&store).await;
        store.close().await;

        let store = opened(&url).await;
        assert_eq!(store.get(&entity("f", "é")).await.unwrap().unwrap().value.bytes, "[3]");
        store.close().await;
    }
}

/// Those that are still connected when a newer one comes: they fail, and write nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executors_of_the_first_release_cannot_commit_to_a_newer_layout() {
    let database = old_postgres();
    opened(&database.url()).await.close().await;
    let there = database.sql("SELECT count(*) FROM pg_proc WHERE proname = 'commit' AND pronargs = 5");
    assert_eq!(there, "0", "what it calls");
    let server = old_redis();
    opened(&server.url()).await.close().await;
    let script = include_str!("layout1.lua");
    let commit = |key: &str, expected: &str, kind: &str| {
        server.cli(&["eval", script, "2", key, "executor:versions", expected, kind, "[7]"])
    };
    for (key, expected) in [("executor:state:1:f:new", "0"), ("executor:state:1:f:a", "1763700000000002")] {
        let before = server.cli(&["get", key]);
        let said = commit(key, expected, "j");
        assert!(said.contains("WRONGTYPE"), "{said}");
        assert_eq!(server.cli(&["get", key]), before);
    }
    // What it deletes is not listed, and forgotten when its key is used again.
    assert_eq!(commit("executor:state:1:f:a", "1763700000000002", "-"), "0");
    let store = opened(&server.url()).await;
    assert_eq!(store.list("f", "", None, 10).await.unwrap().len(), 4);
    store.commit(&entity("f", "a"), 0, Write::Delete).await.unwrap();
    assert_eq!(store.count("f").await.unwrap(), 4);
    assert_eq!(server.cli(&["hget", "executor:functions", "f"]), "4");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_open_an_old_store_at_once_agree() {
    let (database, server) = (old_postgres(), old_redis());
    for url in [database.url(), server.url()] {
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let url = url.clone();
            opening.spawn(async move {
                let store = opened(&url).await;
                assert_eq!(store.count("f").await.unwrap(), 5);
                store.close().await;
            });
        }
        opening.join_all().await;
    }
}

/// An update that takes longer than anybody waits for a connection comes to its end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_update_ends() {
    let database = Arc::new(old_postgres());
    let reader = Arc::clone(&database);
    let reading = tokio::task::spawn_blocking(move || {
        reader.sql("BEGIN; LOCK TABLE executor.entity IN ACCESS SHARE MODE; SELECT pg_sleep(5); COMMIT")
    });
    let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessShareLock' AND granted
                AND relation = 'executor.entity'::regclass";
    contract::eventually(async || database.sql(held) != "0").await;
    let store = opened(&database.url()).await;
    assert_eq!(database.sql("SELECT schema FROM executor.store"), "1");
    // Nobody asks for it in between.
    reading.await.unwrap();
    contract::eventually(async || database.sql("SELECT schema FROM executor.store") == "2").await;
    assert_eq!(store.count("f").await.unwrap(), 5);
    store.close().await;
}

/// The user of an old store may have had fewer rights than are needed now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_user_without_rights_is_told_which_and_nothing_is_done() {
    const NEEDED: &str = "get set getrange strlen del hget hset hdel hincrby hkeys zadd zrem zcard zrange zrangebylex \
                          zrangebyscore scan time evalsha script|load";
    let server = old_redis();
    let keys = server.cli(&["dbsize"]);
    let url = format!("redis://bob:p@127.0.0.1:{}", server.port);
    for missing in NEEDED.split_whitespace() {
        let mut user = vec!["acl".to_owned(), "setuser".to_owned(), "bob".to_owned()];
        user.extend(["reset", "on", ">p", "~executor:*"].map(str::to_owned));
        let rights = NEEDED.split_whitespace().filter(|right| *right != missing);
        user.extend(rights.map(|right| format!("+{right}")));
        server.cli(&user.iter().map(String::as_str).collect::<Vec<_>>());
        match super::refused(&url).await {
            StoreError::Refused { why, .. } => assert!(why.contains(missing), "{why}"),
            other => panic!("{missing}: {other:?}"),
        }
        assert_eq!(server.cli(&["get", "executor:schema"]), "1", "{missing}");
    }
    assert_eq!(server.cli(&["del", "executor:trial"]), "0", "nothing stays");
    assert_eq!(server.cli(&["dbsize"]), keys);
    let mut user = vec!["acl".to_owned(), "setuser".to_owned(), "bob".to_owned()];
    user.extend(NEEDED.split_whitespace().map(|right| format!("+{right}")));
    server.cli(&user.iter().map(String::as_str).collect::<Vec<_>>());
    let store = opened(&url).await;
    store.commit(&entity("f", "new"), 0, json("1")).await.unwrap();
    records::keeps_records(&store).await;
    assert!(store.health().await.is_ok());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_without_values_do_not_end_a_list() {
    let server = Redis::start(&[]);
    let store = opened(&server.url()).await;
    let rob = |key: &str| drop(server.cli(&["del", &format!("executor:state:6:robbed:{key}")]));
    contract_records::robbed_keys_do_not_end_a_list(&store, rob).await;
    store.close().await;
}
