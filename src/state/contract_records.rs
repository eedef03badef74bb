//! What every store promises of records, lists and expiry, as tests. The second half of `contract.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::contract::{Store, entity, json};
use super::{
    Commit, Entity, Kind, MAX_PAGE_BYTES, MAX_RECORDS, Millis, Record, RecordChange, RecordId, RecordWrite,
    Room, StoreError, Value, Write,
};

/// The tests of this file, for the suite of a store.
macro_rules! record_suite {
    ($open:expr) => {
        $crate::state::contract_records::record_suite!(@tests $open;
            values_keep_what_is_said_of_them records_are_put_found_and_removed records_of_one_key_in_order
            a_page_is_bounded_in_bytes a_commit_is_all_or_nothing keeping_checks_the_version one_winner_per_record
            clear_comes_before_what_is_put_again odd_record_names_are_distinct as_many_records_as_allowed
            due_records_come_in_order lists_in_order_of_bytes shelves_name_all_records functions_and_counts
            a_sweep_takes_what_expired a_sweep_takes_a_long_log closed_is_closed_for_everything);
    };
    (@tests $open:expr; $($test:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let fixture = ($open)().await;
                $crate::state::contract_records::$test(&fixture.store).await;
                fixture.store.close().await;
            }
        )+
    };
}
pub(crate) use record_suite;

fn id(room: Room, key: &str, sub: impl AsRef<[u8]>) -> RecordId {
    RecordId { room, key: key.into(), sub: Bytes::copy_from_slice(sub.as_ref()) }
}

fn event(key: &str, number: u64) -> RecordId {
    id(Room::Event, key, number.to_be_bytes())
}

fn put(id: RecordId, expected: Option<u64>, bytes: impl Into<Bytes>) -> RecordChange {
    let write = RecordWrite::Put { bytes: bytes.into(), due: None, expires: None };
    RecordChange { id, expected, write }
}

fn timer(key: &str, name: &str, due: Millis) -> RecordChange {
    let write = RecordWrite::Put { bytes: "t".into(), due: Some(due), expires: None };
    RecordChange { id: id(Room::Timer, key, name), expected: None, write }
}

fn remove(id: RecordId, expected: Option<u64>) -> RecordChange {
    RecordChange { id, expected, write: RecordWrite::Delete }
}

fn clear(room: Room, key: &str) -> RecordChange {
    RecordChange { id: id(room, key, ""), expected: None, write: RecordWrite::Clear }
}

fn with(expected: u64, write: Write, records: Vec<RecordChange>) -> Commit {
    Commit { records, ..Commit::of(expected, write) }
}

async fn numbers(store: &Store, function: &str, key: &str) -> Vec<u64> {
    let records = store.records(function, &event(key, 0), 1000).await.unwrap();
    records.iter().map(|record| u64::from_be_bytes(record.id.sub[..].try_into().unwrap())).collect()
}

pub(crate) async fn values_keep_what_is_said_of_them(store: &Store) {
    for (n, kind) in [Kind::Json, Kind::Binary, Kind::Events, Kind::Crdt].into_iter().enumerate() {
        for (schema, expires) in [(0, None), (7, Some(1)), (u32::MAX, Some(1 << 52))] {
            let owner = entity("f", &format!("{n} {schema}"));
            let value = Value { kind, bytes: "v".into(), schema, expires };
            let version = store.commit(&owner, 0, Write::Put(value.clone())).await.unwrap();
            let read = store.get(&owner).await.unwrap().unwrap();
            assert_eq!((read.version, &read.value), (version, &value), "also when it has expired");
            // Said anew with every put, not inherited.
            let version = store.commit(&owner, version, json("w")).await.unwrap();
            let read = store.get(&owner).await.unwrap().unwrap();
            assert_eq!((read.version, read.value), (version, Value::new(Kind::Json, "w")));
        }
    }
}

pub(crate) async fn records_are_put_found_and_removed(store: &Store) {
    let owner = entity("f", "k");
    let answer = id(Room::Answer, "first", "");
    assert_eq!(store.record("f", &answer).await.unwrap(), None);
    let write = RecordWrite::Put { bytes: "a".into(), due: Some(5), expires: Some(9) };
    let change = RecordChange { id: answer.clone(), expected: Some(0), write };
    let version = store.apply(&owner, with(0, json("v"), vec![change])).await.unwrap();
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version, "one number for one commit");
    let read = store.record("f", &answer).await.unwrap().unwrap();
    let expected = Record { id: answer.clone(), version, bytes: "a".into(), due: Some(5), expires: Some(9) };
    assert_eq!(read, expected);
    assert_eq!(store.record("g", &answer).await.unwrap(), None, "another function's");
    assert_eq!(store.get(&entity("f", "first")).await.unwrap(), None, "no value");

    // Alone, without the entity's value.
    let next = store.apply(&owner, Commit::of_records(vec![put(answer.clone(), Some(version), "b")])).await;
    let next = next.unwrap();
    assert!(next > version);
    let read = store.record("f", &answer).await.unwrap().unwrap();
    assert_eq!((read.version, &read.bytes[..], read.due, read.expires), (next, &b"b"[..], None, None));
    let gone = store.apply(&owner, Commit::of_records(vec![remove(answer.clone(), Some(next))])).await;
    assert_eq!(gone.unwrap(), 0);
    assert_eq!(store.record("f", &answer).await.unwrap(), None);
    let again = store.apply(&owner, Commit::of_records(vec![remove(answer, None)])).await;
    assert_eq!(again.unwrap(), 0, "removing what is absent");
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version);
}

pub(crate) async fn records_of_one_key_in_order(store: &Store) {
    let owner = entity("f", "k");
    for chunk in [[255_u64, 1], [256, 2], [70_000, 65_536]] {
        let puts = chunk.map(|n| put(event("k", n), Some(0), n.to_string())).into();
        store.apply(&owner, Commit::of_records(puts)).await.unwrap();
    }
    let others = vec![
        put(event("k\0", 3), None, "x"),
        put(event("", 4), None, "x"),
        put(event("kk", 5), None, "x"),
        put(id(Room::Answer, "k", 7_u64.to_be_bytes()), None, "x"),
    ];
    store.apply(&owner, Commit::of_records(others.clone())).await.unwrap();
    store.apply(&entity("g", "k"), Commit::of_records(vec![put(event("k", 9), None, "x")])).await.unwrap();
    assert_eq!(numbers(store, "f", "k").await, [1, 2, 255, 256, 65_536, 70_000]);
    let page = |from, limit| {
        let from = event("k", from);
        async move {
            let records = store.records("f", &from, limit).await.unwrap();
            records.into_iter().map(|r| String::from_utf8(r.bytes.to_vec()).unwrap()).collect::<Vec<_>>()
        }
    };
    assert_eq!(page(255, 2).await, ["255", "256"], "from is included");
    assert_eq!(page(257, 9).await, ["65536", "70000"]);
    assert!(page(70_001, 9).await.is_empty());
    store.apply(&owner, Commit::of_records(vec![clear(Room::Event, "k")])).await.unwrap();
    assert!(numbers(store, "f", "k").await.is_empty());
    for RecordChange { id, .. } in others {
        assert!(store.record("f", &id).await.unwrap().is_some(), "{id:?} is another's");
    }
    assert_eq!(numbers(store, "g", "k").await, [9]);
}

pub(crate) async fn a_page_is_bounded_in_bytes(store: &Store) {
    let owner = entity("f", "k");
    let half = vec![b'x'; MAX_PAGE_BYTES / 2];
    for n in 1..=4 {
        let change = put(event("k", n), None, half.clone());
        store.apply(&owner, Commit::of_records(vec![change])).await.unwrap();
    }
    let page = store.records("f", &event("k", 0), 100).await.unwrap();
    assert!((2..=3).contains(&page.len()), "{}", page.len());
    let large = vec![b'x'; MAX_PAGE_BYTES + 1];
    store.apply(&owner, Commit::of_records(vec![put(event("k", 5), None, large)])).await.unwrap();
    assert_eq!(store.records("f", &event("k", 5), 100).await.unwrap().len(), 1, "one always comes");
}

pub(crate) async fn a_commit_is_all_or_nothing(store: &Store) {
    let owner = entity("f", "k");
    let version = store.apply(&owner, with(0, json("1"), vec![put(event("k", 1), Some(0), "e")])).await;
    let version = version.unwrap();
    let refused = with(version + 1, json("2"), vec![put(event("k", 2), Some(0), "e")]);
    match store.apply(&owner, refused).await {
        Err(StoreError::Conflict { expected, found }) => {
            assert_eq!((expected, found), (version + 1, version));
        }
        other => panic!("{other:?}"),
    }
    let changes =
        vec![put(event("k", 2), Some(0), "e"), put(event("k", 1), Some(0), "e"), remove(event("k", 3), None)];
    match store.apply(&owner, with(version, json("2"), changes)).await {
        Err(StoreError::Stale { index: 1, found }) => assert_eq!(found, version),
        other => panic!("{other:?}"),
    }
    match store.apply(&owner, with(version, Write::Delete, vec![remove(event("k", 3), Some(7))])).await {
        Err(StoreError::Stale { index: 0, found: 0 }) => {}
        other => panic!("{other:?}"),
    }
    // Both are wrong: the value is looked at first.
    let both = with(0, json("2"), vec![put(event("k", 1), Some(0), "e")]);
    assert!(matches!(store.apply(&owner, both).await, Err(StoreError::Conflict { .. })));
    let read = store.get(&owner).await.unwrap().unwrap();
    assert_eq!((read.version, &read.value.bytes[..]), (version, &b"1"[..]));
    assert_eq!(numbers(store, "f", "k").await, [1]);
}

pub(crate) async fn keeping_checks_the_version(store: &Store) {
    let owner = entity("f", "k");
    let change = || vec![timer("k", "t", 1)];
    assert!(store.apply(&owner, with(0, Write::Keep, change())).await.unwrap() > 0, "absent is a version");
    let version = store.commit(&owner, 0, json("1")).await.unwrap();
    for wrong in [0, version + 1] {
        let refused = store.apply(&owner, with(wrong, Write::Keep, change())).await;
        assert!(
            matches!(refused, Err(StoreError::Conflict { found, .. }) if found == version),
            "{refused:?}"
        );
    }
    let kept = store.apply(&owner, with(version, Write::Keep, change())).await.unwrap();
    assert!(kept > version);
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version, "the value was not written");
    let record = store.record("f", &id(Room::Timer, "k", "t")).await.unwrap().unwrap();
    assert_eq!(record.version, kept);
}

/// Of many that put a record which must be absent, one does; the same for its removal.
pub(crate) async fn one_winner_per_record(store: &Store) {
    for round in 0..20 {
        let answer = id(Room::Answer, &format!("{round}"), "");
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let (store, answer) = (Arc::clone(store), answer.clone());
            tasks.spawn(async move {
                let owner = entity("f", &format!("{task}"));
                let expected = store.get(&owner).await.unwrap().map_or(0, |read| read.version);
                let commit = with(expected, json("v"), vec![put(answer, Some(0), task.to_string())]);
                match store.apply(&owner, commit).await {
                    Ok(version) => Some((task, version)),
                    Err(StoreError::Stale { index: 0, found }) if found > 0 => None,
                    Err(error) => panic!("{error}"),
                }
            });
        }
        let won: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        let [(task, version)] = won[..] else { panic!("{won:?}") };
        let record = store.record("f", &answer).await.unwrap().unwrap();
        assert_eq!((record.version, record.bytes), (version, Bytes::from(task.to_string())));
    }
}

pub(crate) async fn clear_comes_before_what_is_put_again(store: &Store) {
    let owner = entity("f", "k");
    let puts = |numbers: &[u64]| numbers.iter().map(|n| put(event("k", *n), None, "e")).collect::<Vec<_>>();
    store.apply(&owner, Commit::of_records(puts(&[1, 2, 3]))).await.unwrap();
    let mut changes = vec![clear(Room::Event, "k")];
    changes.extend(puts(&[1]));
    store.apply(&owner, Commit::of_records(changes)).await.unwrap();
    assert_eq!(numbers(store, "f", "k").await, [1]);
}

pub(crate) async fn odd_record_names_are_distinct(store: &Store) {
    let names = ["", "a", "A", "a\0", "\0", "a:", ":a", "a/b", "%", "'", "é", "e\u{301}", "🦀", "-", "1:a"];
    let mut all = Vec::new();
    for function in ["f", "f:1", "f\0"] {
        for key in names {
            let owner = entity(function, key);
            let puts = names.iter().flat_map(|sub| {
                [Room::Event, Room::Timer].map(|room| {
                    let text = format!("{function:?} {room:?} {key:?} {sub:?}");
                    put(id(room, key, sub), Some(0), text)
                })
            });
            let puts: Vec<_> = puts.collect();
            store.apply(&owner, Commit::of_records(puts.clone())).await.unwrap();
            all.extend(puts.into_iter().map(|change| (function, change)));
        }
    }
    for (function, RecordChange { id, write, .. }) in all {
        let RecordWrite::Put { bytes, .. } = write else { unreachable!("all are puts") };
        assert_eq!(store.record(function, &id).await.unwrap().unwrap().bytes, bytes);
        let of_key = store.records(function, &RecordId { sub: Bytes::new(), ..id }, 100).await.unwrap();
        assert_eq!(of_key.len(), names.len());
        assert!(of_key.is_sorted_by_key(|record| record.id.sub.clone()));
    }
}

pub(crate) async fn as_many_records_as_allowed(store: &Store) {
    let owner = entity("f", "k");
    let puts = |count: usize| (0..count as u64).map(|n| put(event("k", n), None, "e")).collect();
    store.apply(&owner, Commit::of_records(puts(MAX_RECORDS))).await.unwrap();
    let refused = store.apply(&owner, Commit::of_records(puts(MAX_RECORDS + 1))).await;
    assert!(matches!(refused, Err(StoreError::TooMany { .. })), "{refused:?}");
    assert_eq!(store.records("f", &event("k", 0), 2 * MAX_RECORDS).await.unwrap().len(), MAX_RECORDS);
}

async fn due(store: &Store, functions: &[&str], limit: usize) -> Vec<String> {
    let functions: Vec<Arc<str>> = functions.iter().map(|name| Arc::from(*name)).collect();
    let records = store.due(&functions, limit).await.unwrap();
    let shown = |(function, record): (Arc<str>, Record)| {
        let name = String::from_utf8(record.id.sub.to_vec()).unwrap();
        format!("{function} {} {name} {}", record.id.key, record.due.unwrap())
    };
    records.into_iter().map(shown).collect()
}

pub(crate) async fn due_records_come_in_order(store: &Store) {
    assert!(due(store, &["f", "none"], 10).await.is_empty());
    assert!(due(store, &[], 10).await.is_empty());
    let set = |function: &'static str, change: RecordChange| async move {
        store.apply(&entity(function, "k"), Commit::of_records(vec![change])).await.unwrap();
    };
    set("f", timer("k", "late", 1 << 45)).await;
    set("f", timer("k", "soon", 20)).await;
    set("f", timer("other", "soon", 30)).await;
    set("g", timer("k", "first", 10)).await;
    set("h", timer("k", "not asked for", 1)).await;
    let all = ["g k first 10", "f k soon 20", "f other soon 30", "f k late 35184372088832"];
    assert_eq!(due(store, &["f", "g"], 10).await, all);
    assert_eq!(due(store, &["f", "g"], 2).await, all[..2]);
    // Put again it has its new time only; removed it is gone; without a time it is not due.
    set("g", timer("k", "first", 25)).await;
    assert_eq!(due(store, &["f", "g"], 2).await, ["f k soon 20", "g k first 25"]);
    set("f", remove(id(Room::Timer, "k", "soon"), None)).await;
    set("f", put(id(Room::Timer, "other", "soon"), None, "t")).await;
    set("g", clear(Room::Timer, "k")).await;
    assert_eq!(due(store, &["f", "g"], 10).await, all[3..]);
}

pub(crate) async fn lists_in_order_of_bytes(store: &Store) {
    let keys = ["", "a", "a\0", "a/b", "aa", "ab", "b", "z", "é", "\u{ffff}", "🦀"];
    for key in keys.iter().rev() {
        let value =
            Value { expires: (*key == "b").then_some(77), ..Value::new(Kind::Binary, vec![0; key.len()]) };
        let commit = Commit { at: 1000 + key.len() as u64, ..Commit::of(0, Write::Put(value)) };
        store.apply(&entity("f", key), commit).await.unwrap();
    }
    store.commit(&entity("g", "a"), 0, json("other")).await.unwrap();
    let gone = store.commit(&entity("f", "ac"), 0, json("gone")).await.unwrap();
    store.commit(&entity("f", "ac"), gone, Write::Delete).await.unwrap();
    let list = |prefix: &'static str, after: Option<&'static str>, limit| async move {
        let listed = store.list("f", prefix, after, limit).await.unwrap();
        listed.into_iter().map(|one| one.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list("", None, 100).await, keys);
    assert_eq!(list("", Some(""), 100).await, keys[1..]);
    assert_eq!(list("", Some("a"), 3).await, keys[2..5]);
    assert_eq!(list("a", None, 100).await, keys[1..6]);
    assert_eq!(list("a", Some("a\0"), 100).await, keys[3..6]);
    assert_eq!(list("a", Some("0"), 1).await, ["a"], "after may be before the prefix");
    assert!(list("a", Some("b"), 100).await.is_empty());
    assert!(list("\u{10ffff}", None, 100).await.is_empty());
    assert!(store.list("absent", "", None, 100).await.unwrap().is_empty());
    for listed in store.list("f", "", None, 100).await.unwrap() {
        let read =
            store.get(&Entity { function: "f".into(), key: Arc::clone(&listed.key) }).await.unwrap().unwrap();
        let length = listed.key.len() as u64;
        assert_eq!(listed.version, read.version);
        assert_eq!((listed.kind, listed.bytes, listed.updated), (Kind::Binary, length, 1000 + length));
        assert_eq!(listed.expires, read.value.expires);
    }
}

/// Keys that something else than the store robbed of their values, which `rob` does, are not listed, and hide no other.
#[allow(dead_code, reason = "not every kind can")]
pub(crate) async fn robbed_keys_do_not_end_a_list(store: &Store, rob: impl Fn(&str)) {
    const KEYS: usize = 350;
    for n in 0..KEYS {
        store.commit(&entity("robbed", &format!("{n:03}")), 0, json("1")).await.unwrap();
    }
    for n in (0..KEYS).filter(|n| n % 50 != 49) {
        rob(&format!("{n:03}"));
    }
    let list = |after: Option<&'static str>, limit| async move {
        let listed = store.list("robbed", "", after, limit).await.unwrap();
        listed.iter().map(|one| one.key.to_string()).collect::<Vec<_>>()
    };
    let left = ["049", "099", "149", "199", "249", "299", "349"];
    assert_eq!(list(None, 1000).await, left);
    assert_eq!(list(None, 7).await, left);
    assert_eq!(list(None, 3).await, left[..3]);
    assert_eq!(list(Some("049"), 1).await, left[1..2]);
    assert_eq!(list(Some("300"), 5).await, left[6..]);
    assert!(list(Some("349"), 5).await.is_empty());
}

pub(crate) async fn shelves_name_all_records(store: &Store) {
    let (page, next) = store.shelves(None, 10).await.unwrap();
    assert!(page.is_empty() && next.is_none());
    store.commit(&entity("no records", "k"), 0, json("v")).await.unwrap();
    let mut expected = BTreeSet::new();
    for function in ["", "f", "f:1", "é\0"] {
        for key in ["", "k", "k\0", ":", "🦀"] {
            let rooms = [Room::Event, Room::Answer, Room::Timer];
            let puts = rooms
                .into_iter()
                .flat_map(|room| ["", "1", "2"].map(|sub| put(id(room, key, sub), None, "r")));
            store.apply(&entity(function, key), Commit::of_records(puts.collect())).await.unwrap();
            expected.extend(rooms.map(|room| (function.to_owned(), room, key.to_owned())));
        }
    }
    for (room, key) in [(Room::Event, "k"), (Room::Timer, "🦀")] {
        store.apply(&entity("f", "x"), Commit::of_records(vec![clear(room, key)])).await.unwrap();
        expected.remove(&("f".to_owned(), room, key.to_owned()));
    }
    for limit in [1, 7, expected.len(), 1000] {
        let (mut found, mut from, mut pages) = (BTreeSet::new(), None, 0);
        loop {
            let (page, next) = store.shelves(from, limit).await.unwrap();
            found.extend(
                page.into_iter()
                    .map(|(owner, room)| (owner.function.to_string(), room, owner.key.to_string())),
            );
            pages += 1;
            assert!(pages < 1000, "it ends");
            from = next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "{limit} at once");
    }
}

pub(crate) async fn functions_and_counts(store: &Store) {
    assert!(store.functions().await.unwrap().is_empty());
    assert_eq!(store.count("f").await.unwrap(), 0);
    for (function, key) in [("f", "1"), ("f", "2"), ("b", "1"), ("a\0", "1"), ("é", "1")] {
        store.commit(&entity(function, key), 0, json("v")).await.unwrap();
    }
    store.apply(&entity("only records", "k"), Commit::of_records(vec![timer("k", "t", 1)])).await.unwrap();
    let names: Vec<_> = store.functions().await.unwrap();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    assert_eq!(names, ["a\0", "b", "f", "only records", "é"]);
    assert_eq!((store.count("f").await.unwrap(), store.count("only records").await.unwrap()), (2, 0));
    let version = store.get(&entity("f", "1")).await.unwrap().unwrap().version;
    store.commit(&entity("f", "1"), version, json("changed")).await.unwrap();
    assert_eq!(store.count("f").await.unwrap(), 2);
    let version = store.get(&entity("b", "1")).await.unwrap().unwrap().version;
    store.commit(&entity("b", "1"), version, Write::Delete).await.unwrap();
    assert_eq!(store.count("b").await.unwrap(), 0);
    assert!(!store.functions().await.unwrap().iter().any(|name| &**name == "b"));
}

pub(crate) async fn a_sweep_takes_what_expired(store: &Store) {
    let expiring = |at: Option<Millis>| Write::Put(Value { expires: at, ..Value::new(Kind::Json, "1") });
    for (key, at) in [("never", None), ("early", Some(99)), ("now", Some(100)), ("later", Some(101))] {
        let events = vec![put(event(key, 1), None, "e"), timer(key, "t", 5)];
        store.apply(&entity("f", key), with(0, expiring(at), events)).await.unwrap();
    }
    let write = |expires| RecordWrite::Put { bytes: "a".into(), due: Some(1), expires: Some(expires) };
    for (key, at) in [("early", 100), ("later", 101)] {
        let change = RecordChange { id: id(Room::Answer, key, ""), expected: None, write: write(at) };
        store.apply(&entity("f", "x"), Commit::of_records(vec![change])).await.unwrap();
    }
    // Reading first: a store with a cache must forget.
    assert!(store.get(&entity("f", "early")).await.unwrap().is_some());
    assert_eq!(store.sweep(98, 10).await.unwrap(), 0);
    assert_eq!(store.sweep(100, 10).await.unwrap(), 3);
    assert_eq!(store.sweep(100, 10).await.unwrap(), 0);
    for (key, there) in [("never", true), ("early", false), ("now", false), ("later", true)] {
        assert_eq!(store.get(&entity("f", key)).await.unwrap().is_some(), there, "{key}");
        assert_eq!(numbers(store, "f", key).await.len(), usize::from(there), "the events of {key}");
        let timer = store.record("f", &id(Room::Timer, key, "t")).await.unwrap();
        assert!(timer.is_some(), "timers have times of their own");
    }
    assert_eq!(store.count("f").await.unwrap(), 2);
    assert_eq!(store.list("f", "", None, 10).await.unwrap().len(), 2);
    assert_eq!(store.record("f", &id(Room::Answer, "early", "")).await.unwrap(), None);
    assert!(store.record("f", &id(Room::Answer, "later", "")).await.unwrap().is_some());
    // What was swept is absent, and a version that names it is stale.
    assert!(store.commit(&entity("f", "early"), 0, json("anew")).await.unwrap() > 0);
    // What was put again without a time is not swept by its old one.
    let later = store.get(&entity("f", "later")).await.unwrap().unwrap().version;
    store.commit(&entity("f", "later"), later, json("kept")).await.unwrap();
    assert_eq!(store.sweep(1000, 10).await.unwrap(), 1, "the other answer");
    // In bounded steps.
    for n in 0..5 {
        store.commit(&entity("g", &n.to_string()), 0, expiring(Some(1))).await.unwrap();
    }
    assert_eq!(store.sweep(1000, 3).await.unwrap(), 3);
    assert_eq!(store.sweep(1000, 3).await.unwrap(), 2);
}

/// More events than a step removes: all of them go, and meanwhile nobody can take what is left for a log. In how many
/// steps, as far as the store shows them.
pub(crate) async fn a_sweep_takes_a_long_log(store: &Store) -> usize {
    let expiring = |at| Write::Put(Value { expires: Some(at), ..Value::new(Kind::Events, "v") });
    let long = entity("f", "long");
    let version = store.commit(&long, 0, expiring(98)).await.unwrap();
    for part in 0..3 {
        let numbers = (0..MAX_RECORDS as u64).map(|n| 1 + part * MAX_RECORDS as u64 + n);
        let puts = numbers.map(|n| put(event("long", n), None, "e")).collect();
        store.apply(&long, Commit::of_records(puts)).await.unwrap();
    }
    for (key, value) in [("short", expiring(99)), ("kept", json("v"))] {
        let records = vec![put(event(key, 1), None, "e")];
        store.apply(&entity("f", key), with(0, value, records)).await.unwrap();
    }
    let mut steps = 0;
    while store.sweep(99, 10).await.unwrap() > 0 {
        let left = store.get(&long).await.unwrap();
        assert!(left.is_none_or(|left| left.value.expired(1) && left.version > version));
        steps += 1;
        assert!(steps < 100, "it ends");
    }
    for (key, there) in [("long", false), ("short", false), ("kept", true)] {
        assert_eq!(store.get(&entity("f", key)).await.unwrap().is_some(), there, "{key}");
        assert_eq!(numbers(store, "f", key).await.len(), usize::from(there), "the events of {key}");
    }
    assert_eq!(store.count("f").await.unwrap(), 1);
    let kept = store.get(&entity("f", "kept")).await.unwrap().unwrap().version;
    let gone = with(kept, Write::Delete, vec![clear(Room::Event, "kept")]);
    store.apply(&entity("f", "kept"), gone).await.unwrap();
    assert!(store.functions().await.unwrap().is_empty(), "nothing is left of it");
    steps
}

pub(crate) async fn closed_is_closed_for_everything(store: &Store) {
    store.close().await;
    let name: Arc<str> = "f".into();
    let answer = id(Room::Answer, "k", "");
    let closed = [
        store.record("f", &answer).await.map(drop),
        store.records("f", &answer, 1).await.map(drop),
        store.due(&[name], 1).await.map(drop),
        store.list("f", "", None, 1).await.map(drop),
        store.shelves(None, 1).await.map(drop),
        store.functions().await.map(drop),
        store.count("f").await.map(drop),
        store.sweep(1, 1).await.map(drop),
        store.apply(&entity("f", "k"), Commit::of_records(vec![timer("k", "t", 1)])).await.map(drop),
    ];
    for result in closed {
        assert!(matches!(result, Err(StoreError::Closed)), "{result:?}");
    }
}
