//! What only this store has to show about records and lists: the upgrade of old files, commits that fail alone in
//! their group, plans of statements, steps, copies made while it works.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;

use rusqlite::{Connection, params};
use tokio::task::JoinSet;

use super::crash::{assert_events, counted};
use super::{
    COUNT_STEP, DEFAULT_CACHE_BYTES, LIST_STEP, MAX_ROWS, QUEUE, SqliteStore, change, query, schema, writer,
};
use crate::state::contract::{entity, json, number};
use crate::state::{
    Commit, Entity, Kind, MAX_RECORDS, RecordChange, RecordId, RecordWrite, Room, StateStore, StoreError,
    Value, Write, now,
};

fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(&folder.join("state.db"), DEFAULT_CACHE_BYTES).unwrap()
}

fn timer(key: &str, due: u64, expected: Option<u64>) -> RecordChange {
    let write = RecordWrite::Put { bytes: "t".into(), due: Some(due), expires: None };
    RecordChange { id: RecordId { room: Room::Timer, key: key.into(), sub: "t".into() }, expected, write }
}

/// Runs `act` on the writer's connection and waits until it is done.
async fn on_writer<T: Send + 'static>(
    store: &SqliteStore,
    act: impl FnOnce(&Connection) -> T + Send + 'static,
) -> T {
    let (done, wait) = tokio::sync::oneshot::channel();
    let run = Box::new(move |connection: &Connection| done.send(act(connection)).ok().unwrap());
    store.commits.send(writer::Command::Run(run)).await.ok().unwrap();
    wait.await.unwrap()
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    let begun = now() - 1000;
    let old = schema::create_at_step(&folder.path().join("state.db"), 1);
    let rows: [(&str, &str, u64, i64, Vec<u8>); 4] = [
        ("f", "a\0b", 7, 0, b"{}".to_vec()),
        ("f", "empty", 9, 1, Vec::new()),
        ("f", "large", 3, 1, (0..200_000_u32).map(|n| n as u8).collect()),
        ("g", "", 8, 0, b"1".to_vec()),
    ];
    for (function, key, version, kind, value) in &rows {
        let row = params![function.as_bytes(), key.as_bytes(), version, kind, value];
        let sql = "INSERT INTO entity (function, key, version, kind, value) VALUES (?1, ?2, ?3, ?4, ?5)";
        old.execute(sql, row).unwrap();
    }
    old.execute("UPDATE store SET sequence = 12", []).unwrap();
    old.close().unwrap();
    for _ in 0..2 {
        let store = open(folder.path());
        for (function, key, version, kind, bytes) in &rows {
            let read = store.get(&entity(function, key)).await.unwrap().unwrap();
            let kind = if *kind == 0 { Kind::Json } else { Kind::Binary };
            assert_eq!((read.version, read.value), (*version, Value::new(kind, bytes.clone())));
        }
        let listed = store.list("f", "", None, 10).await.unwrap();
        let keys: Vec<_> = listed.iter().map(|one| (&*one.key, one.bytes)).collect();
        assert_eq!(keys, [("a\0b", 2), ("empty", 0), ("large", 200_000)]);
        assert!(listed.iter().all(|one| (begun..=now() + 1000).contains(&one.updated)), "{listed:?}");
        store.close().await;
    }
    let store = open(folder.path());
    let version = store.apply(&entity("f", "empty"), counted(&entity("f", "empty"), 9, 1)).await.unwrap();
    assert!(version > 12, "numbers go on");
    store.close().await;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%before%'";
    let connection = Connection::open(folder.path().join("state.db")).unwrap();
    assert_eq!(connection.query_row(tables, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    let fine: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(fine, "ok");
}

/// A statement that searches or sorts a whole table is fast only in tests.
#[tokio::test]
async fn every_statement_uses_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    on_writer(&store, |connection| {
        for sql in change::STATEMENTS.iter().chain(query::STATEMENTS) {
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let mut rows = plan.raw_query();
            while let Some(row) = rows.next().unwrap() {
                let step: String = row.get(3).unwrap();
                // What is scanned is the result of a bounded search.
                let slow =
                    step.starts_with("SCAN") && !step.contains("subquery") || step.contains("TEMP B-TREE");
                assert!(!slow, "{step}: {sql}");
            }
        }
    })
    .await;
    store.close().await;
}

/// In one group: what fails by its value or by a record, fails alone and leaves nothing, also of records that
/// stood before the one that was stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_with_records_fail_alone_in_their_group() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    let (release, held) = std_mpsc::channel::<()>();
    let wait = Box::new(move |_: &Connection| held.recv().unwrap());
    store.commits.send(writer::Command::Run(wait)).await.ok().unwrap();
    let mut commits = JoinSet::new();
    for n in 0..12_u64 {
        let store = Arc::clone(&store);
        commits.spawn(async move {
            let owner = entity("f", &n.to_string());
            let mut records = vec![timer(&format!("own {n}"), n, None)];
            match n % 3 {
                0 => records.push(timer(&format!("good {n}"), n, Some(0))),
                1 => records.push(timer("bad", n, Some(77))),
                _ => {}
            }
            let expected = if n % 3 == 2 { 5 } else { 0 };
            let commit = Commit { records, ..Commit::of(expected, json("1")) };
            (n, store.apply(&owner, commit).await)
        });
    }
    while store.commits.capacity() > QUEUE - 12 {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    while let Some(done) = commits.join_next().await {
        let (n, result) = done.unwrap();
        let value = store.get(&entity("f", &n.to_string())).await.unwrap();
        let own = timer(&format!("own {n}"), n, None).id;
        let record = store.record("f", &own).await.unwrap();
        match (n % 3, result) {
            (0, Ok(version)) => {
                assert_eq!((value.unwrap().version, record.unwrap().version), (version, version));
                let good = timer(&format!("good {n}"), n, None).id;
                assert_eq!(store.record("f", &good).await.unwrap().unwrap().version, version);
            }
            (1, Err(StoreError::Stale { index: 1, found: 0 }))
            | (2, Err(StoreError::Conflict { expected: 5, found: 0 })) => {
                assert_eq!((value, record), (None, None));
            }
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
    store.close().await;
}

/// A sweep that fails leaves what it found, also in the cache's opinion.
#[tokio::test]
async fn a_failed_sweep_leaves_everything() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let owner = entity("f", "k");
    let value = Value { expires: Some(1), ..Value::new(Kind::Json, "1") };
    let version = store.commit(&owner, 0, Write::Put(value)).await.unwrap();
    let fault =
        "CREATE TEMP TRIGGER fault BEFORE UPDATE ON main.store BEGIN SELECT RAISE(ABORT, 'fault'); END";
    on_writer(&store, |connection| connection.execute_batch(fault).unwrap()).await;
    let failed = store.sweep(1, 10).await;
    assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version);
    on_writer(&store, |connection| connection.execute_batch("DROP TRIGGER temp.fault").unwrap()).await;
    assert_eq!(store.sweep(1, 10).await.unwrap(), 1);
    assert_eq!(store.get(&owner).await.unwrap(), None);
    store.close().await;
}

/// A log as long as that: its value goes with the last of three steps, between which others get on.
#[tokio::test]
async fn a_step_of_a_sweep_is_bounded_in_events() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let owner = entity("f", "k");
    let value = Value { expires: Some(1), ..Value::new(Kind::Events, "v") };
    store.commit(&owner, 0, Write::Put(value)).await.unwrap();
    let numbers: Vec<u64> = (1..=2 * MAX_RECORDS as u64 + 1).collect();
    for some in numbers.chunks(MAX_RECORDS) {
        let put = |number: &u64| {
            let sub = bytes::Bytes::copy_from_slice(&number.to_be_bytes());
            let id = RecordId { room: Room::Event, key: "k".into(), sub };
            let write = RecordWrite::Put { bytes: "e".into(), due: None, expires: None };
            RecordChange { id, expected: None, write }
        };
        store.apply(&owner, Commit::of_records(some.iter().map(put).collect())).await.unwrap();
    }
    let watch = "CREATE TEMP TABLE steps (events);
         CREATE TEMP TRIGGER counts AFTER UPDATE ON main.store BEGIN
             INSERT INTO steps SELECT count(*) FROM main.record; END";
    on_writer(&store, |connection| connection.execute_batch(watch).unwrap()).await;
    assert_eq!(store.sweep(1, 10).await.unwrap(), 1);
    let left = on_writer(&store, |connection| {
        let mut steps = connection.prepare("SELECT events FROM steps ORDER BY rowid").unwrap();
        let left = steps.query_map([], |row| row.get::<_, usize>(0)).unwrap();
        left.collect::<Result<Vec<_>, _>>().unwrap()
    });
    assert_eq!(left.await, [MAX_RECORDS + 1, 1, 0]);
    assert_eq!(store.get(&owner).await.unwrap(), None);
    store.close().await;
}

/// Makes `count` entities `000000`, `000001`, … of `f`, all of which expire at 1.
async fn fill(store: &SqliteStore, count: usize) {
    on_writer(store, move |connection| {
        let sql = "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n LIMIT ?1)
             INSERT INTO entity (version, kind, schema, updated, expires, function, key, value)
             SELECT 1, 1, 0, 0, 1, CAST('f' AS BLOB), CAST(printf('%06d', n) AS BLOB), X'' FROM n";
        connection.execute(sql, [count]).unwrap();
        connection.execute("UPDATE store SET sequence = 1", []).unwrap();
    })
    .await;
}

/// At the edges of the steps and of the limit nothing is left out and nothing comes twice.
#[tokio::test]
async fn long_answers_come_in_steps() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let count = MAX_ROWS + 1;
    const { assert!(MAX_ROWS.is_multiple_of(LIST_STEP) && COUNT_STEP == MAX_ROWS) };
    fill(&store, count).await;
    assert_eq!(store.count("f").await.unwrap(), count as u64);
    for limit in [0, 1, LIST_STEP - 1, LIST_STEP, LIST_STEP + 1, MAX_ROWS, MAX_ROWS + 1, usize::MAX] {
        let listed = store.list("f", "", None, limit).await.unwrap();
        assert_eq!(listed.len(), limit.min(MAX_ROWS));
        assert!(listed.iter().enumerate().all(|(n, one)| *one.key == format!("{n:06}")), "{limit}");
    }
    let rest = store.list("f", "", Some("009999"), usize::MAX).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(store.sweep(1, usize::MAX).await.unwrap(), MAX_ROWS, "no more at once");
    assert_eq!(store.count("f").await.unwrap(), 1);
    assert_eq!(store.sweep(1, usize::MAX).await.unwrap(), 1);
    store.close().await;
}

/// More callers than may scan at once; all get their answers, and so does who comes after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    fill(&store, 2 * LIST_STEP).await;
    let mut scans = JoinSet::new();
    for n in 0..40 {
        let store = Arc::clone(&store);
        scans.spawn(async move {
            let list = store.list("f", "", None, usize::MAX);
            if n % 4 == 0 {
                // Dropped under way; its turn must not be lost.
                let _ = tokio::time::timeout(std::time::Duration::from_millis(n), list).await;
            } else {
                assert_eq!(list.await.unwrap().len(), 2 * LIST_STEP);
            }
        });
    }
    while let Some(done) = scans.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.scans.available_permits(), super::SCANS);
    assert_eq!(store.count("f").await.unwrap(), 2 * LIST_STEP as u64);
    store.close().await;
}

/// `SQLite` cannot hold these as they are. They must neither fail the group nor come back as the past.
#[tokio::test]
async fn times_beyond_all_bounds_are_the_end_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("state.db"), 0).unwrap();
    let owner = entity("f", "k");
    let value = Value { expires: Some(u64::MAX), ..Value::new(Kind::Json, "1") };
    let records = vec![timer("k", u64::MAX, None)];
    let commit = Commit { at: u64::MAX, records, ..Commit::of(0, Write::Put(value)) };
    store.apply(&owner, commit).await.unwrap();
    let end = i64::MAX as u64;
    assert_eq!(store.get(&owner).await.unwrap().unwrap().value.expires, Some(end));
    assert_eq!(store.due(&["f".into()], 1).await.unwrap()[0].1.due, Some(end));
    assert_eq!(store.sweep(end - 1, 10).await.unwrap(), 0);
    let far = Some(u64::MAX);
    let stale = store.apply(&owner, Commit::of_records(vec![timer("k", 1, far)])).await;
    assert!(matches!(stale, Err(StoreError::Stale { .. })), "{stale:?}");
    store.close().await;
}

/// The copy is a database of ours that holds one moment: each counter with exactly its events.
async fn assert_consistent(copy: &Path, owners: &[Entity]) -> u64 {
    let store = SqliteStore::open(copy, 0).unwrap();
    let mut total = 0;
    for owner in owners {
        let value = store.get(owner).await.unwrap();
        let (n, version) = value.map_or((0, 0), |value| (number(&value), value.version));
        assert_events(&store, owner, n).await;
        store.apply(owner, counted(owner, version, n + 1)).await.unwrap();
        total += n;
    }
    store.close().await;
    let fine = Connection::open(copy).unwrap().query_row("PRAGMA integrity_check", [], |row| row.get(0));
    assert_eq!(fine, Ok("ok".to_owned()));
    total
}

/// As an operator would: with a tool of `SQLite` and without asking the executor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_can_be_copied_while_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    let owners: Vec<_> = (0..4).map(|key| entity("f", &key.to_string())).collect();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut tasks = JoinSet::new();
    for owner in owners.clone() {
        let (store, stopped) = (Arc::clone(&store), stopped.clone());
        tasks.spawn(async move {
            let (mut version, mut n) = (0, 0);
            while !*stopped.borrow() {
                n += 1;
                version = store.apply(&owner, counted(&owner, version, n)).await.unwrap();
            }
            n
        });
    }
    let path = folder.path().join("state.db");
    let mut totals = Vec::new();
    for round in 0..6 {
        let copy = folder.path().join(format!("copy {round}.db"));
        let (from, to) = (path.clone(), copy.clone());
        let copied = tokio::task::spawn_blocking(move || {
            if round % 2 == 0 {
                let to = to.to_str().unwrap();
                Connection::open(from).unwrap().execute("VACUUM INTO ?1", [to]).map(drop)
            } else {
                super::recorder::online_backup(&from, &to)
            }
        });
        copied.await.unwrap().unwrap();
        totals.push(assert_consistent(&copy, &owners).await);
    }
    stop.send(true).unwrap();
    let mut total = 0;
    while let Some(done) = tasks.join_next().await {
        total += done.unwrap();
    }
    assert!(totals.is_sorted() && totals[0] < totals[5] && totals[5] <= total, "{totals:?} {total}");
    store.close().await;
}

/// How many groups `commits` commits of `records` records each are, if all of them wait already.
async fn groups(commits: u64, records: u64) -> i64 {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(folder.path()));
    let count = "CREATE TEMP TABLE groups (n);
         CREATE TEMP TRIGGER counts AFTER UPDATE ON main.store BEGIN INSERT INTO groups VALUES (1); END";
    on_writer(&store, |connection| connection.execute_batch(count).unwrap()).await;
    let (release, held) = std_mpsc::channel::<()>();
    let wait = Box::new(move |_: &Connection| held.recv().unwrap());
    store.commits.send(writer::Command::Run(wait)).await.ok().unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..commits {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let records = (0..records).map(|record| timer(&format!("{n} {record}"), record, Some(0)));
            let commit = Commit { records: records.collect(), ..Commit::of(0, json("1")) };
            store.apply(&entity("f", &n.to_string()), commit).await.unwrap();
        });
    }
    while store.commits.capacity() > QUEUE - commits as usize {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let sql = "SELECT count(*) FROM groups";
    let count =
        on_writer(&store, |connection| connection.query_row(sql, [], |row| row.get(0)).unwrap()).await;
    store.close().await;
    count
}

/// A value and 255 records fill a group; with one less there is room for another commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_count_as_writes_of_a_group() {
    assert_eq!(groups(3, 255).await, 3);
    assert_eq!(groups(4, 254).await, 2);
    assert_eq!(groups(4, 1).await, 1);
}

#[tokio::test]
async fn the_log_does_not_grow_for_ever_with_records() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let owner = entity("f", "k");
    let large = bytes::Bytes::from(vec![b'x'; 100_000]);
    for n in 0..300 {
        let id = RecordId { room: Room::Answer, key: (n % 7).to_string().into(), sub: bytes::Bytes::new() };
        let write = RecordWrite::Put { bytes: large.clone(), due: None, expires: None };
        let change = RecordChange { id, expected: None, write };
        store.apply(&owner, Commit::of_records(vec![change])).await.unwrap();
    }
    let log = std::fs::metadata(folder.path().join("state.db-wal")).unwrap().len();
    assert!(log < 16 << 20, "{log} bytes after 30 MB of writes");
    store.close().await;
}
