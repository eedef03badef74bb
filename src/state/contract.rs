//! What every store promises, as tests.
//!
//! A store joins by calling [`contract_suite`] in its tests with a function that opens
//! an empty store of its kind. What not every kind can do (restart, serve two hosts, go away
//! and come back) is here as a function for those that can.
//!
//! Stores that need a server are tested from outside: `tests/stores.rs` takes this file in.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Entity, Kind, MAX_RECORD_BYTES, StateStore, StoreError, Value, Versioned, Write};

/// An empty store and what must outlive it.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn StateStore>,
    pub(crate) _kept: Box<dyn Any + Send>,
}

/// Makes a module of tests for the store that `$open` opens.
macro_rules! contract_suite {
    ($name:ident, $open:expr) => {
        mod $name {
            use super::*;
            $crate::state::contract::contract_suite!(@tests $open;
                absent_put_get_delete wrong_version_conflicts versions_never_repeat
                one_winner_per_version entities_do_not_disturb_each_other
                bytes_come_back_as_they_were odd_names_are_distinct
                the_largest_value_fits_and_no_larger kept_bytes_are_copies
                a_dropped_commit_leaks_nothing closed_means_closed);
            $crate::state::contract_records::record_suite!($open);

            #[test]
            fn behaves_like_a_map() {
                $crate::state::contract::behaves_like_a_map($open);
            }
        }
    };
    (@tests $open:expr; $($test:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let fixture = ($open)().await;
                $crate::state::contract::$test(&fixture.store).await;
                fixture.store.close().await;
            }
        )+
    };
}
pub(crate) use contract_suite;

pub(crate) type Store = Arc<dyn StateStore>;

pub(crate) fn entity(function: &str, key: &str) -> Entity {
    Entity { function: function.into(), key: key.into() }
}

pub(crate) fn json(text: &str) -> Write {
    Write::Put(Value::new(Kind::Json, Bytes::copy_from_slice(text.as_bytes())))
}

fn versioned(version: u64, kind: Kind, bytes: impl Into<Bytes>) -> Versioned {
    Versioned { version, value: Value::new(kind, bytes) }
}

fn binary(bytes: Vec<u8>) -> Write {
    Write::Put(Value::new(Kind::Binary, bytes))
}

pub(crate) async fn absent_put_get_delete(store: &Store) {
    let cart = entity("cart", "ada");
    assert_eq!(store.get(&cart).await.unwrap(), None);

    let first = store.commit(&cart, 0, json("[1]")).await.unwrap();
    let read = store.get(&cart).await.unwrap().unwrap();
    assert_eq!(read, versioned(first, Kind::Json, "[1]"));

    let second = store.commit(&cart, first, binary(vec![7])).await.unwrap();
    assert!(second > first);
    let read = store.get(&cart).await.unwrap().unwrap();
    assert_eq!(read, versioned(second, Kind::Binary, vec![7]));

    assert_eq!(store.commit(&cart, second, Write::Delete).await.unwrap(), 0);
    assert_eq!(store.get(&cart).await.unwrap(), None);
    assert_eq!(store.commit(&cart, 0, Write::Delete).await.unwrap(), 0);
    assert_eq!(store.get(&cart).await.unwrap(), None);
}

pub(crate) async fn wrong_version_conflicts(store: &Store) {
    let one = entity("f", "k");
    let conflict = |result: Result<u64, StoreError>| match result {
        Err(StoreError::Conflict { expected, found }) => (expected, found),
        other => panic!("not a conflict: {other:?}"),
    };
    assert_eq!(conflict(store.commit(&one, 5, json("x")).await), (5, 0));
    assert_eq!(conflict(store.commit(&one, 5, Write::Delete).await), (5, 0));
    let version = store.commit(&one, 0, json("x")).await.unwrap();
    for expected in [0, version + 1, u64::MAX, u64::MAX - 1, 1 << 63] {
        for write in [json("y"), Write::Delete] {
            let found = conflict(store.commit(&one, expected, write).await);
            assert_eq!(found, (expected, version));
        }
    }
    let read = store.get(&one).await.unwrap().unwrap();
    assert_eq!((read.version, &read.value.bytes[..]), (version, &b"x"[..]));
}

pub(crate) async fn versions_never_repeat(store: &Store) {
    let (one, other) = (entity("f", "k"), entity("g", "k"));
    let mut last = 0;
    for _ in 0..20 {
        for owner in [&one, &other] {
            let version = store.commit(owner, 0, json("x")).await.unwrap();
            assert!(version > last, "{version} after {last}");
            last = version;
            store.commit(owner, version, Write::Delete).await.unwrap();
        }
    }
}

/// 64 tasks increment one counter, each reading again after a conflict. Each version has
/// one winner, so the counter ends at the number of successes.
pub(crate) async fn one_winner_per_version(store: &Store) {
    const TASKS: u64 = 64;
    const EACH: u64 = 5;
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let hot = entity("counter", "hot");
            let mut won = Vec::new();
            while (won.len() as u64) < EACH {
                let read = store.get(&hot).await.unwrap();
                let (expected, n) = read.map_or((0, 0), |v| (v.version, number(&v)));
                match store.commit(&hot, expected, json(&(n + 1).to_string())).await {
                    Ok(version) => won.push(version),
                    Err(StoreError::Conflict { expected: e, found }) => {
                        assert_eq!(e, expected);
                        assert!(found > expected, "a conflict must be with something newer");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            won
        });
    }
    let mut versions = Vec::new();
    while let Some(won) = tasks.join_next().await {
        versions.extend(won.unwrap());
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len() as u64, TASKS * EACH, "no version has two winners");
    let last = store.get(&entity("counter", "hot")).await.unwrap().unwrap();
    assert_eq!(number(&last), TASKS * EACH);
    assert_eq!(Some(&last.version), versions.last());
}

pub(crate) fn number(value: &Versioned) -> u64 {
    std::str::from_utf8(&value.value.bytes).unwrap().parse().unwrap()
}

pub(crate) async fn entities_do_not_disturb_each_other(store: &Store) {
    let mut tasks = JoinSet::new();
    for task in 0..50 {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let own = entity("f", &format!("key {task}"));
            let mut version = 0;
            for round in 0..20 {
                let text = format!("{task}.{round}");
                version = store.commit(&own, version, json(&text)).await.unwrap();
                let read = store.get(&own).await.unwrap().unwrap();
                assert_eq!((read.version, &read.value.bytes[..]), (version, text.as_bytes()));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

pub(crate) async fn bytes_come_back_as_they_were(store: &Store) {
    let values: [Vec<u8>; 4] =
        [vec![], vec![0], (0..=255).collect(), vec![0xff, 0xfe, 0, b'\'', b'"', b'\n']];
    for (index, bytes) in values.into_iter().enumerate() {
        for kind in [Kind::Json, Kind::Binary] {
            let owner = entity("f", &format!("{index} {kind:?}"));
            let write = Write::Put(Value::new(kind, bytes.clone()));
            let version = store.commit(&owner, 0, write).await.unwrap();
            let read = store.get(&owner).await.unwrap().unwrap();
            assert_eq!(read, versioned(version, kind, bytes.clone()));
        }
    }
}

/// Every pair of these must be an entity of its own, whatever a store makes of them.
pub(crate) async fn odd_names_are_distinct(store: &Store) {
    let long = "k".repeat(512);
    let longer = "k".repeat(513);
    let names = [
        "",
        "a",
        "A",
        "a\0",
        "a\0b",
        "\0",
        "b",
        "a/b",
        "a:b",
        "a%2Fb",
        "%",
        "_",
        "a b",
        " a",
        "'",
        "\"",
        "\\",
        "é",
        "e\u{301}",
        "ß",
        "ss",
        "日本",
        "🦀",
        "\u{10ffff}",
        "..",
        "*",
        &long,
        &longer,
    ];
    let mut versions = HashMap::new();
    for function in names {
        for key in names {
            let write = json(&format!("{function:?} {key:?}"));
            let version = store.commit(&entity(function, key), 0, write).await.unwrap();
            versions.insert((function, key), version);
        }
    }
    for ((function, key), version) in versions {
        let read = store.get(&entity(function, key)).await.unwrap().unwrap();
        assert_eq!(read.version, version);
        assert_eq!(read.value.bytes, format!("{function:?} {key:?}"));
    }
}

pub(crate) async fn the_largest_value_fits_and_no_larger(store: &Store) {
    let owner = entity("f", "large");
    let mut version = 0;
    for size in [1 << 20, MAX_RECORD_BYTES - 6, 3] {
        version = store.commit(&owner, version, binary(vec![0xa5; size])).await.unwrap();
        let read = store.get(&owner).await.unwrap().unwrap();
        assert_eq!((read.version, read.value.bytes.len()), (version, size));
        assert!(read.value.bytes.iter().all(|byte| *byte == 0xa5));
    }
    let refused = store.commit(&owner, version, binary(vec![0; MAX_RECORD_BYTES - 5])).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version);
}

/// A store that kept the slice it was given would keep the whole buffer with it.
pub(crate) async fn kept_bytes_are_copies(store: &Store) {
    let frame = Bytes::from(vec![1_u8; 4096]);
    let range = frame.as_ptr_range();
    let owner = entity("f", "slice");
    let write = Write::Put(Value::new(Kind::Binary, frame.slice(10..20)));
    store.commit(&owner, 0, write).await.unwrap();
    let read = store.get(&owner).await.unwrap().unwrap();
    assert!(!range.contains(&read.value.bytes.as_ptr()));
    assert!(frame.is_unique(), "the store holds on to the buffer");
}

/// Half of the futures are dropped unpolled or after one poll; the store goes on and
/// each entity is either as before or as committed.
pub(crate) async fn a_dropped_commit_leaks_nothing(store: &Store) {
    for round in 0..200_u32 {
        let owner = entity("f", &round.to_string());
        let mut commit = store.commit(&owner, 0, json("x"));
        if round % 2 == 0 {
            let once = std::future::poll_fn(|cx| {
                let _ = commit.as_mut().poll(cx);
                std::task::Poll::Ready(())
            });
            once.await;
        }
        drop(commit);
    }
    for round in 0..200_u32 {
        let owner = entity("f", &round.to_string());
        match store.commit(&owner, 0, json("y")).await {
            Ok(_) => {}
            Err(StoreError::Conflict { .. }) => {
                let read = store.get(&owner).await.unwrap().unwrap();
                assert_eq!(&read.value.bytes[..], b"x");
                assert_eq!(round % 2, 0, "a future never polled has done nothing");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) async fn closed_means_closed(store: &Store) {
    let owner = entity("f", "k");
    store.commit(&owner, 0, json("x")).await.unwrap();
    tokio::join!(store.close(), store.close());
    store.close().await;
    assert!(matches!(store.get(&owner).await, Err(StoreError::Closed)));
    assert!(matches!(store.commit(&owner, 0, json("y")).await, Err(StoreError::Closed)));
    assert!(!store.describe().is_empty());
}

/// What was committed is there after the store was closed and opened again, and versions go on.
#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn reopening_keeps_everything(open: impl AsyncFn() -> Store) {
    let mut last = 0;
    for round in 0..3 {
        let store = open().await;
        for key in 0..20 {
            let owner = entity("kept", &key.to_string());
            let read = store.get(&owner).await.unwrap();
            assert_eq!(read.as_ref().map_or(0, number), round, "key {key}");
            let expected = read.map_or(0, |value| value.version);
            let version = store.commit(&owner, expected, json(&(round + 1).to_string())).await.unwrap();
            assert!(version > last, "{version} after {last}");
            last = version;
        }
        let gone = entity("kept", "gone");
        last = store.commit(&gone, 0, json("1")).await.unwrap();
        store.commit(&gone, last, Write::Delete).await.unwrap();
        store.close().await;
    }
}

/// Two hosts on one store: nothing is lost, and what one committed the other reads.
#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn two_hosts_share_a_store(one: &Store, other: &Store) {
    const TASKS: u64 = 16;
    const EACH: u64 = 20;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(if task % 2 == 0 { one } else { other });
        tasks.spawn(async move {
            let hot = entity("shared", "hot");
            let (mut done, mut newest) = (0, 0);
            while done < EACH {
                let read = store.get(&hot).await.unwrap();
                let (expected, n) = read.map_or((0, 0), |v| (v.version, number(&v)));
                assert!(expected >= newest, "a read must not be older than an own commit");
                match store.commit(&hot, expected, json(&(n + 1).to_string())).await {
                    Ok(version) => (done, newest) = (done + 1, version),
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for store in [one, other] {
        let last = store.get(&entity("shared", "hot")).await.unwrap().unwrap();
        assert_eq!(number(&last), TASKS * EACH);
    }
}

/// Hosts create and delete one entity as fast as they can: for each of its lives the version is larger than
/// for all that ended before it began.
#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn versions_grow_over_deletes(one: &Store, other: &Store) {
    let newest = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let store = Arc::clone(if task % 2 == 0 { one } else { other });
        let newest = Arc::clone(&newest);
        tasks.spawn(async move {
            let owner = entity("phoenix", "k");
            for _ in 0..40 {
                let before = newest.load(Ordering::SeqCst);
                match store.commit(&owner, 0, json("x")).await {
                    Ok(version) => {
                        assert!(version > before, "{version} after {before}");
                        newest.fetch_max(version, Ordering::SeqCst);
                        store.commit(&owner, version, Write::Delete).await.unwrap();
                    }
                    Err(StoreError::Conflict { found, .. }) => assert_ne!(found, 0),
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// The server goes away and comes back: in between everything fails in bounded time, afterwards all is as
/// before, without opening the store again.
#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn goes_away_and_comes_back(store: &Store, stop: impl Fn(), start: impl Fn()) {
    let owner = entity("f", "steady");
    let mut version = store.commit(&owner, 0, json("0")).await.unwrap();
    for round in 1..=2 {
        stop();
        let limit = Duration::from_secs(20);
        let read = timeout(limit, store.get(&owner)).await.expect("bounded");
        assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
        let write = timeout(limit, store.commit(&owner, version, json("lost"))).await.expect("bounded");
        assert!(matches!(write, Err(StoreError::Unavailable(_))), "{write:?}");
        eventually(async || store.health().await.is_err()).await;
        start();
        eventually(async || store.get(&owner).await.is_ok()).await;
        eventually(async || store.health().await.is_ok()).await;
        let read = store.get(&owner).await.unwrap().unwrap();
        assert_eq!((read.version, number(&read)), (version, round - 1));
        let next = store.commit(&owner, version, json(&round.to_string())).await.unwrap();
        assert!(next > version);
        version = next;
    }
}

#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn eventually(holds: impl AsyncFn() -> bool) {
    let polling = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_mins(1), polling).await.expect("within a minute");
}

#[derive(Clone, Debug)]
enum Step {
    Get,
    Commit { expected: Expected, write: Option<(bool, Vec<u8>)> },
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Current,
    Absent,
    /// The version before the last change of the whole store.
    Earlier,
}

fn steps() -> impl Strategy<Value = Vec<(u8, Step)>> {
    let expected = prop_oneof![
        4 => Just(Expected::Current),
        1 => Just(Expected::Absent),
        1 => Just(Expected::Earlier),
    ];
    let value = (any::<bool>(), prop::collection::vec(any::<u8>(), 0..300));
    let write = prop_oneof![3 => value.prop_map(Some), 1 => Just(None)];
    let step = prop_oneof![
        Just(Step::Get),
        (expected, write).prop_map(|(expected, write)| Step::Commit { expected, write }),
    ];
    prop::collection::vec((0..6_u8, step), 1..60)
}

/// Any sequence of steps has the results it has on a map.
pub(crate) fn behaves_like_a_map(open: impl AsyncFn() -> Fixture) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    proptest!(ProptestConfig::with_cases(48), |(steps in steps())| {
        runtime.block_on(async {
            let fixture = open().await;
            compare_with_a_map(&fixture.store, steps).await;
            fixture.store.close().await;
        });
    });
}

async fn compare_with_a_map(store: &Store, steps: Vec<(u8, Step)>) {
    let mut model: HashMap<Entity, Versioned> = HashMap::new();
    let mut last: u64 = 0;
    for (index, step) in steps {
        // Two functions with three keys each.
        let owner = entity(&format!("f{}", index % 2), &format!("k{}", index / 2));
        let current = model.get(&owner).cloned();
        let Step::Commit { expected, write } = step else {
            assert_eq!(store.get(&owner).await.unwrap(), current);
            continue;
        };
        let found = current.map_or(0, |value| value.version);
        let expected = match expected {
            Expected::Current => found,
            Expected::Absent => 0,
            Expected::Earlier => last.saturating_sub(1),
        };
        let kind = |json| if json { Kind::Json } else { Kind::Binary };
        let request = match &write {
            Some((json, bytes)) => Write::Put(Value::new(kind(*json), bytes.clone())),
            None => Write::Delete,
        };
        match (store.commit(&owner, expected, request).await, write) {
            (Ok(version), Some((json, bytes))) => {
                assert_eq!(expected, found);
                assert!(version > last);
                last = version;
                model.insert(owner, versioned(version, kind(json), bytes));
            }
            (Ok(version), None) => {
                assert_eq!((version, expected), (0, found));
                model.remove(&owner);
            }
            (Err(StoreError::Conflict { expected: e, found: f }), _) => {
                assert_eq!((e, f), (expected, found));
                assert_ne!(expected, found);
            }
            (Err(error), _) => panic!("{error}"),
        }
    }
    for (owner, value) in model {
        assert_eq!(store.get(&owner).await.unwrap(), Some(value));
    }
}
