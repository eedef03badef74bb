//! Records in stores that several executors share.

use std::sync::Arc;

use bytes::Bytes;
use executor::state::{
    Commit, Kind, MAX_RECORDS, RecordChange, RecordId, RecordWrite, Room, StoreError, Value, Write,
};
use tokio::task::JoinSet;

use super::contract::{Store, entity, json};
use super::contract_records;
use super::opened;
use super::servers::{Postgres, Redis};

fn id(room: Room, key: &str, sub: &str) -> RecordId {
    RecordId { room, key: key.into(), sub: Bytes::copy_from_slice(sub.as_bytes()) }
}

fn put(id: RecordId, expected: Option<u64>, text: &str) -> RecordChange {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    RecordChange { id, expected, write: RecordWrite::Put { bytes, due: Some(5), expires: Some(9) } }
}

fn clear(room: Room, key: &str) -> RecordChange {
    RecordChange { id: id(room, key, ""), expected: None, write: RecordWrite::Clear }
}

async fn version(store: &Store, id: &RecordId) -> u64 {
    store.record("f", id).await.unwrap().map_or(0, |record| record.version)
}

/// Every operation on records works.
pub(super) async fn keeps_records(store: &Store) {
    let (owner, timer) = (entity("records", "k"), id(Room::Timer, "k", "t"));
    let commit = Commit { records: vec![put(timer.clone(), Some(0), "x")], ..Commit::of(0, json("1")) };
    let version = store.apply(&owner, commit).await.unwrap();
    assert_eq!(store.record("records", &timer).await.unwrap().unwrap().version, version);
    assert_eq!(store.records("records", &timer, 10).await.unwrap().len(), 1);
    assert_eq!(store.due(&["records".into()], 10).await.unwrap().len(), 1);
    let again = Commit::of_records(vec![put(timer.clone(), Some(version), "y"), clear(Room::Event, "k")]);
    assert!(store.apply(&owner, again).await.unwrap() > version);
    assert_eq!(store.sweep(9, 10).await.unwrap(), 1);
    assert!(store.due(&["records".into()], 10).await.unwrap().is_empty());
    store.commit(&owner, version, Write::Delete).await.unwrap();
    assert!(!store.functions().await.unwrap().iter().any(|name| &**name == "records"));
}

/// Two executors on each store.
async fn pairs() -> (impl Drop, Redis, [[Store; 2]; 2]) {
    let (database, server) = (Postgres::shared().database(), Redis::start(&[]));
    let of = async |url: String| [opened(&url).await, opened(&url).await];
    let stores = [of(database.url()).await, of(server.url()).await];
    (database, server, stores)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_executors_one_wins_each_record() {
    let (_database, _server, stores) = pairs().await;
    for pair in stores {
        for round in 0..30 {
            let answer = id(Room::Answer, &format!("{round}"), "");
            let mut expected = 0;
            // When it is absent, when it is there, and when it was removed.
            for turn in 0..3 {
                let mut tasks = JoinSet::new();
                for task in 0..8 {
                    let (store, answer) = (Arc::clone(&pair[task % 2]), answer.clone());
                    tasks.spawn(async move {
                        let owner = entity("f", &format!("{round} {turn} {task}"));
                        let records = vec![put(answer, Some(expected), &task.to_string())];
                        match store.apply(&owner, Commit { records, ..Commit::of(0, json("1")) }).await {
                            Ok(version) => Some((owner, version)),
                            Err(StoreError::Stale { index: 0, found }) => {
                                assert!(found > expected);
                                assert_eq!(
                                    store.get(&owner).await.unwrap(),
                                    None,
                                    "nothing of it was written"
                                );
                                None
                            }
                            Err(error) => panic!("{error}"),
                        }
                    });
                }
                let won: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
                let [(owner, number)] = &won[..] else { panic!("{won:?}") };
                for store in &pair {
                    assert_eq!(version(store, &answer).await, *number);
                    assert_eq!(store.get(owner).await.unwrap().unwrap().version, *number);
                }
                assert!(*number > expected);
                expected = *number;
                if turn == 1 {
                    let change = RecordChange {
                        id: answer.clone(),
                        expected: Some(expected),
                        write: RecordWrite::Delete,
                    };
                    assert_eq!(pair[0].apply(owner, Commit::of_records(vec![change])).await.unwrap(), 0);
                    expected = 0;
                }
            }
        }
        for store in pair {
            store.close().await;
        }
    }
}

/// Commits that name the same records in opposite orders, absent and present, cleared and of many keys, with a sweep
/// between them: all get through, and each is applied wholly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_in_opposite_orders_make_progress() {
    const TASKS: usize = 12;
    const EACH: usize = 15;
    const KEYS: usize = 20;
    let (_database, _server, stores) = pairs().await;
    for pair in stores {
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&pair[task % 2]);
            tasks.spawn(async move {
                for round in 0..EACH {
                    let text = format!("{task}.{round}");
                    // More keys than there are locks for, or a few.
                    let keys = if round % 5 == 0 { KEYS } else { 6 };
                    let mut changes: Vec<_> =
                        (0..keys).map(|n| put(id(Room::Event, &n.to_string(), "e"), None, &text)).collect();
                    if round % 3 == 1 {
                        changes.insert(0, clear(Room::Event, "0"));
                    }
                    if task % 2 == 1 {
                        changes[usize::from(round % 3 == 1)..].reverse();
                    }
                    let expiring = Value { expires: Some(1), ..Value::new(Kind::Json, "1") };
                    let owner = entity("f", &(task % 3).to_string());
                    let expected = store.get(&owner).await.unwrap().map_or(0, |read| read.version);
                    let commit = Commit { records: changes, ..Commit::of(expected, Write::Put(expiring)) };
                    match store.apply(&owner, commit).await {
                        Ok(_) | Err(StoreError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if task == 0 {
                        store.sweep(1, 10).await.unwrap();
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let changes = (0..KEYS).map(|n| put(id(Room::Event, &n.to_string(), "e"), None, "last")).collect();
        let last = pair[0].apply(&entity("f", "x"), Commit::of_records(changes)).await.unwrap();
        for n in 0..KEYS {
            assert_eq!(version(&pair[1], &id(Room::Event, &n.to_string(), "e")).await, last);
        }
        for store in pair {
            store.close().await;
        }
    }
}

/// Each of many tasks adds one to two counters at once, half of them the other way round: no sum is ever lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_records_change_together() {
    const TASKS: usize = 8;
    const EACH: u64 = 10;
    let (_database, _server, stores) = pairs().await;
    for pair in stores {
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&pair[task % 2]);
            tasks.spawn(async move {
                let mut names = [id(Room::Timer, "a", "1"), id(Room::Timer, "b", "2")];
                if task % 4 < 2 {
                    names.reverse();
                }
                let mut done = 0;
                while done < EACH {
                    let mut changes = Vec::new();
                    for name in &names {
                        let read = store.record("f", name).await.unwrap();
                        let (found, n) = read.map_or((0, 0), |read| {
                            (read.version, std::str::from_utf8(&read.bytes).unwrap().parse::<u64>().unwrap())
                        });
                        changes.push(put(name.clone(), Some(found), &(n + 1).to_string()));
                    }
                    match store.apply(&entity("f", "k"), Commit::of_records(changes)).await {
                        Ok(_) => done += 1,
                        Err(StoreError::Stale { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        for name in [id(Room::Timer, "a", "1"), id(Room::Timer, "b", "2")] {
            let read = pair[0].record("f", &name).await.unwrap().unwrap();
            assert_eq!(read.bytes, (TASKS as u64 * EACH).to_string());
        }
        for store in pair {
            store.close().await;
        }
    }
}

/// No answer holds more than 10,000 things, whatever is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_bounded() {
    const MOST: usize = 10_000;
    let (_database, _server, stores) = pairs().await;
    for [store, other] in stores {
        let owner = entity("f", "k");
        for chunk in 0..=MOST / MAX_RECORDS {
            let puts = (0..MAX_RECORDS).map(|n| put(id(Room::Timer, "k", &format!("{chunk} {n}")), None, ""));
            store.apply(&owner, Commit::of_records(puts.collect())).await.unwrap();
        }
        let from = id(Room::Timer, "k", "");
        for limit in [MOST - 1, MOST, MOST + 1, usize::MAX] {
            let most = limit.min(MOST);
            assert_eq!(store.records("f", &from, limit).await.unwrap().len(), most);
            assert_eq!(store.due(&["f".into()], limit).await.unwrap().len(), most);
        }
        assert!(store.records("f", &from, 0).await.unwrap().is_empty());
        assert!(store.due(&["f".into()], 0).await.unwrap().is_empty());
        assert!(store.list("f", "", None, 0).await.unwrap().is_empty());
        assert_eq!(store.sweep(9, 0).await.unwrap(), 0);
        assert_eq!(store.sweep(9, usize::MAX).await.unwrap(), MOST);
        let left = (MOST / MAX_RECORDS + 1) * MAX_RECORDS - MOST;
        assert_eq!(store.sweep(9, usize::MAX).await.unwrap(), left);
        store.close().await;
        other.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_nothing_of_what_is_gone() {
    let server = Redis::start(&[]);
    let store = opened(&server.url()).await;
    let rooms = [Room::Event, Room::Timer, Room::Answer];
    let mut removals = Vec::new();
    for key in ["", "a\0", "b:c"] {
        let value = Value { expires: Some(7), ..Value::new(Kind::Crdt, "v") };
        let records = rooms.iter().map(|room| put(id(*room, key, "s\0:"), Some(0), "r")).collect();
        let commit = Commit { records, ..Commit::of(0, Write::Put(value)) };
        let version = store.apply(&entity("f\0:", key), commit).await.unwrap();
        let removed = |id| RecordChange { id, expected: Some(version), write: RecordWrite::Delete };
        let records = rooms.iter().map(|room| removed(id(*room, key, "s\0:"))).collect();
        removals.push((key, Commit { records, ..Commit::of(version, Write::Delete) }));
    }
    assert!(server.cli(&["dbsize"]).parse::<u32>().unwrap() > 10);
    for (key, commit) in removals {
        store.apply(&entity("f\0:", key), commit).await.unwrap();
    }
    assert_eq!(server.cli(&["dbsize"]), "2", "{}", server.cli(&["--scan"]));
    // The same by a sweep.
    for key in ["", "a\0", "b:c"] {
        let value = Value { expires: Some(7), ..Value::new(Kind::Crdt, "v") };
        let records = rooms.iter().map(|room| put(id(*room, key, "s\0:"), Some(0), "r")).collect();
        let commit = Commit { records, ..Commit::of(0, Write::Put(value)) };
        store.apply(&entity("f\0:", key), commit).await.unwrap();
    }
    store.sweep(9, 100).await.unwrap();
    assert_eq!(server.cli(&["dbsize"]), "2", "{}", server.cli(&["--scan"]));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_swept_in_steps() {
    let (_database, _server, stores) = pairs().await;
    for [store, other] in stores {
        assert_eq!(contract_records::a_sweep_takes_a_long_log(&store).await, 4);
        store.close().await;
        other.close().await;
    }
}
