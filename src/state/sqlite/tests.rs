//! What only this store can do: restart, refuse a file, break and recover, race with
//! its own cache. The contract runs here with a large, a tiny and no cache.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{DEFAULT_CACHE_BYTES, QUEUE, SqliteStore, reader, writer};
use crate::state::contract::{self, Fixture, contract_suite, entity, json, number};
use crate::state::{StateStore, StoreError, Write};

fn fixture(cache_bytes: usize) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("state.db"), cache_bytes).unwrap();
    Fixture { store: Arc::new(store), _kept: Box::new(folder) }
}

contract_suite!(contract_cached, async || fixture(DEFAULT_CACHE_BYTES));
// Room for one or two entries: everything is evicted all the time.
contract_suite!(contract_evicting, async || fixture(800));
contract_suite!(contract_uncached, async || fixture(0));

#[tokio::test]
async fn reopening_keeps_everything() {
    let folder = tempfile::tempdir().unwrap();
    let open = async || -> contract::Store { Arc::new(open(&folder).unwrap()) as _ };
    contract::reopening_keeps_everything(open).await;
}

fn open(folder: &TempDir) -> Result<SqliteStore, StoreError> {
    open_at(&folder.path().join("state.db"))
}

fn open_at(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, DEFAULT_CACHE_BYTES)
}

fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn a_restart_keeps_state_and_goes_on_counting() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, deleted) = (entity("f", "kept"), entity("f", "deleted"));
    let mut last = 0;
    for round in 0..3 {
        let store = open(&folder).unwrap();
        let read = store.get(&kept).await.unwrap();
        assert_eq!(read.as_ref().map_or(0, number), round);
        let expected = read.map_or(0, |value| value.version);
        let version = store.commit(&kept, expected, json(&(round + 1).to_string())).await.unwrap();
        assert!(version > last);
        // The highest number belongs to a row that is gone after the restart.
        let newest = store.commit(&deleted, 0, json("x")).await.unwrap();
        store.commit(&deleted, newest, Write::Delete).await.unwrap();
        last = newest;
        store.close().await;
    }
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["state.db", "state.db.lock"], "a closed store is one file and its lock");
    for name in names {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_second_owner_is_refused_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("state.db"), &link).unwrap();
    for path in [folder.path().join("state.db"), link] {
        let refused = open_at(&path).unwrap_err();
        assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("state.db is in use by another executor"));
    }
    store.commit(&entity("f", "k"), 0, json("1")).await.unwrap();
    store.close().await;
    open(&folder).unwrap().close().await;
}

#[tokio::test]
async fn dropping_a_store_ends_its_threads_and_keeps_what_was_queued() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    for key in 0..50 {
        let owner = entity("f", &key.to_string());
        let mut commit = store.commit(&owner, 0, json("1"));
        // Once polled it is in the queue.
        std::future::poll_fn(|cx| {
            let _ = commit.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }
    let mut ended = (store.writer_ended.clone(), store.reader_ended.clone());
    drop(store);
    assert!(ended.0.changed().await.is_err() && ended.1.changed().await.is_err());
    let store = open(&folder).unwrap();
    for key in 0..50 {
        assert!(store.get(&entity("f", &key.to_string())).await.unwrap().is_some());
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_finishes_what_was_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder).unwrap());
    let mut tasks = JoinSet::new();
    for key in 0..3 * QUEUE {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let owner = entity("f", &key.to_string());
            (owner.clone(), store.commit(&owner, 0, json("1")).await)
        });
    }
    tokio::task::yield_now().await;
    store.close().await;
    drop(store);
    let reopened = open(&folder).unwrap();
    while let Some(done) = tasks.join_next().await {
        let (owner, result) = done.unwrap();
        let read = reopened.get(&owner).await.unwrap();
        match result {
            Ok(version) => assert_eq!(read.unwrap().version, version),
            Err(StoreError::Closed) => assert_eq!(read, None, "nothing accepted is left out"),
            Err(error) => panic!("{error}"),
        }
    }
    reopened.close().await;
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    fs::write(&text, "not a database, but long enough to be taken for one ".repeat(100)).unwrap();
    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    let named = folder.path().join("named.db");
    Connection::open(&named).unwrap().execute_batch("PRAGMA application_id = 7").unwrap();
    for (path, why) in [
        (text.as_path(), "it is not an SQLite database"),
        (&other, "it is the SQLite database of another program"),
        (&named, "it is the SQLite database of another program"),
        (folder.path(), "it is a folder"),
    ] {
        let before = fs::read(path).ok();
        let refused = open_at(path).unwrap_err();
        assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
        assert!(refused.to_string().ends_with(why), "{refused}");
        assert_eq!(fs::read(path).ok(), before);
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    open(&folder).unwrap().close().await;
    let path = folder.path().join("state.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = open(&folder).unwrap_err();
    assert!(matches!(refused, StoreError::TooNew { found: 99, supported: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("newer release (schema 99, this one knows up to 2)"));
}

/// Root may write anywhere but where the file system itself says no.
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let obeyed = fs::write(folder.path().join("probe"), "").is_err();
    let path = if obeyed { folder.path().join("state.db") } else { "/sys/state.db".into() };
    let refused = open_at(&path).unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    let text = chain(&refused);
    assert!(text.contains("state.db") && text.contains("ermission"), "{text}");

    let refused = open_at(&folder.path().join("no/such/folder/state.db")).unwrap_err();
    let text = chain(&refused);
    assert!(text.contains("no/such/folder") && text.contains("No such file"), "{text}");
}

/// Runs `sql` on the writer's connection and waits until it is done.
async fn break_writer(store: &SqliteStore, sql: &'static str) {
    let (done, wait) = tokio::sync::oneshot::channel();
    let run = Box::new(move |connection: &Connection| {
        connection.execute_batch(sql).unwrap();
        done.send(()).unwrap();
    });
    store.commits.send(writer::Command::Run(run)).await.ok().unwrap();
    wait.await.unwrap();
}

#[tokio::test]
async fn a_full_disk_fails_commits_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let owner = entity("f", "k");
    let version = store.commit(&owner, 0, json("1")).await.unwrap();
    break_writer(&store, "PRAGMA max_page_count = 1").await; // means: as many as there are
    let large = json(&"x".repeat(100_000));
    for _ in 0..3 {
        let failed = store.commit(&owner, version, large.clone()).await.unwrap_err();
        assert!(matches!(failed, StoreError::Unavailable(_)), "{failed}");
        assert!(chain(&failed).contains("full"), "{}", chain(&failed));
        assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version);
    }
    break_writer(&store, "PRAGMA max_page_count = 1000000").await;
    let next = store.commit(&owner, version, large).await.unwrap();
    assert!(next > version + 3, "the numbers of failed groups are not given again");
    store.close().await;
}

/// The statements succeed, COMMIT itself fails (a deferred foreign key), all of the
/// group hear why, and the cache has not moved ahead of the database.
#[tokio::test]
async fn a_failed_commit_fails_the_group_and_the_thread_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let owner = entity("f", "0");
    let version = store.commit(&owner, 0, json("1")).await.unwrap();
    break_writer(
        &store,
        "PRAGMA foreign_keys = ON;
         CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TEMP TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TEMP TRIGGER fault AFTER UPDATE ON main.store
             BEGIN INSERT INTO child VALUES (1); END;",
    )
    .await;
    let others: Vec<_> = (1..20).map(|key| entity("f", &key.to_string())).collect();
    let mut failures = vec![store.commit(&owner, version, json("2"))];
    failures.extend(others.iter().map(|other| store.commit(other, 0, json("2"))));
    for failed in failures {
        let error = failed.await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
        assert!(chain(&error).contains("FOREIGN KEY"), "{}", chain(&error));
    }
    assert_eq!(store.get(&owner).await.unwrap().unwrap().version, version);
    assert_eq!(store.get(&others[0]).await.unwrap(), None);
    break_writer(&store, "DROP TRIGGER temp.fault").await;
    store.commit(&owner, version, json("2")).await.unwrap();
    assert_eq!(number(&store.get(&owner).await.unwrap().unwrap()), 2);
    store.close().await;
}

#[tokio::test]
async fn conflicts_fail_alone_in_their_group() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let owner = entity("f", "k");
    // Hold the writer up, so that all of these meet in one group.
    let (release, held) = std_mpsc::channel::<()>();
    let wait = Box::new(move |_: &Connection| held.recv().unwrap());
    store.commits.send(writer::Command::Run(wait)).await.ok().unwrap();
    let others: Vec<_> = (0..9).map(|key| entity("other", &key.to_string())).collect();
    let mut commits = JoinSet::new();
    let store = Arc::new(store);
    for other in others.into_iter().chain([owner.clone(), owner.clone(), owner.clone()]) {
        let store = Arc::clone(&store);
        commits.spawn(async move { (other.clone(), store.commit(&other, 0, json("1")).await) });
    }
    while store.commits.capacity() > QUEUE - 12 {
        tokio::task::yield_now().await;
    }
    release.send(()).unwrap();
    let mut conflicts = 0;
    while let Some(done) = commits.join_next().await {
        match done.unwrap() {
            (_, Ok(_)) => {}
            (loser, Err(StoreError::Conflict { expected: 0, .. })) if loser == owner => {
                conflicts += 1;
            }
            (entity, Err(error)) => panic!("{entity:?}: {error}"),
        }
    }
    assert_eq!(conflicts, 2);
    store.close().await;
}

/// The reader has read and not yet told the cache when a commit lands in between, or a
/// delete. What it tells then must not win.
#[tokio::test]
async fn a_late_read_does_not_undo_a_commit() {
    for write in [json("new"), Write::Delete] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder).unwrap();
        let owner = entity("f", "k");
        let version = store.commit(&owner, 0, json("old")).await.unwrap();
        store.close().await;

        let store = Arc::new(open(&folder).unwrap()); // with nothing in its cache
        let (reached, at_pause) = tokio::sync::oneshot::channel();
        let (release, held) = std_mpsc::channel::<()>();
        let pause = Box::new(move || {
            reached.send(()).unwrap();
            held.recv().unwrap();
        });
        store.reads.send(reader::Command::Pause(pause)).await.ok().unwrap();
        let late = tokio::spawn({
            let (store, owner) = (Arc::clone(&store), owner.clone());
            async move { store.get(&owner).await.unwrap() }
        });
        at_pause.await.unwrap();
        let committed = store.commit(&owner, version, write).await.unwrap();
        release.send(()).unwrap();
        let late = late.await.unwrap().expect("it began before the commit");
        assert_eq!((late.version, &late.value.bytes[..]), (version, &b"old"[..]));
        let now = store.get(&owner).await.unwrap();
        assert_eq!(now.map_or(0, |value| value.version), committed);
        store.close().await;
    }
}

#[tokio::test]
async fn a_panic_in_a_thread_is_an_error_and_not_a_hang() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&folder).unwrap());
    let owner = entity("f", "k");
    store.commit(&owner, 0, json("1")).await.unwrap();
    let fault = Box::new(|_: &Connection| panic!("a fault for the test"));
    store.commits.send(writer::Command::Run(fault)).await.ok().unwrap();
    let commit = store.commit(&owner, 1, json("2"));
    let answer = tokio::time::timeout(Duration::from_secs(10), commit).await.expect("no hang");
    assert!(matches!(answer, Err(StoreError::Closed)), "{answer:?}");
    // Reading goes on, from the database.
    assert_eq!(number(&store.get(&owner).await.unwrap().unwrap()), 1);

    let fault = Box::new(|| panic!("a fault for the test"));
    store.reads.send(reader::Command::Pause(fault)).await.ok().unwrap();
    let get = tokio::time::timeout(Duration::from_secs(10), store.get(&owner)).await;
    assert!(matches!(get.expect("no hang"), Err(StoreError::Closed)));
    tokio::time::timeout(Duration::from_secs(10), store.close()).await.expect("no hang");
    open(&folder).unwrap().close().await;
}

#[tokio::test]
async fn a_damaged_database_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    for key in 0..500 {
        let text = "x".repeat(500);
        store.commit(&entity("f", &key.to_string()), 0, json(&text)).await.unwrap();
    }
    store.close().await;
    let path = folder.path().join("state.db");
    let mut bytes = fs::read(&path).unwrap();
    let keep = 4 * 4096; // the header, the schema and the roots
    bytes[keep..].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let store = open(&folder).unwrap();
    let owner = entity("f", "77");
    let read = store.get(&owner).await;
    assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    let written = store.commit(&owner, 77, json("1")).await;
    assert!(matches!(written, Err(StoreError::Corrupt { .. })), "{written:?}");
    store.close().await;
}

#[tokio::test]
async fn the_log_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let owner = entity("f", "k");
    let mut version = 0;
    for _ in 0..400 {
        version = store.commit(&owner, version, json(&"x".repeat(100_000))).await.unwrap();
    }
    let log = fs::metadata(folder.path().join("state.db-wal")).unwrap().len();
    assert!(log < 16 << 20, "{log} bytes after 40 MB of writes");
    store.close().await;
}

/// Nothing else would notice if somebody traded these for speed.
#[tokio::test]
async fn commits_are_synced() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).unwrap();
    let (answer, settings) = tokio::sync::oneshot::channel();
    let ask = Box::new(move |connection: &Connection| {
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        let sync: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        answer.send((mode, sync)).unwrap();
    });
    store.commits.send(writer::Command::Run(ask)).await.ok().unwrap();
    assert_eq!(settings.await.unwrap(), ("wal".to_owned(), 2));
    store.close().await;
}
