//! `kill -9` at any moment loses nothing that was acknowledged.
//!
//! A child process (this test binary, told by an environment variable to be the child)
//! increments counters, with an event for each step, and prints each acknowledged value. It
//! is killed at a random moment, and what it had printed by then must be in the file, or
//! the one value more that was on its way; and the events must be those of the value.

use std::collections::HashMap;
use std::env;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{DEFAULT_CACHE_BYTES, SqliteStore};
use crate::state::contract::{entity, json, number};
use crate::state::{Commit, Entity, RecordChange, RecordId, RecordWrite, Room, StateStore, Write};

const DATABASE: &str = "EXECUTOR_TEST_CRASH_DATABASE";
const ROUNDS: u64 = 20;
const TASKS: u64 = 8;

/// The commit of a counter's `n`, with the event that it is. Events of `owner` begin at 1.
pub(super) fn counted(owner: &Entity, expected: u64, n: u64) -> Commit {
    let write = RecordWrite::Put { bytes: format!("event {n}").into(), due: None, expires: None };
    let records = vec![RecordChange { id: event(owner, n), expected: Some(0), write }];
    Commit { records, ..Commit::of(expected, json(&n.to_string())) }
}

fn event(owner: &Entity, n: u64) -> RecordId {
    let sub = n.to_be_bytes().to_vec().into();
    RecordId { room: Room::Event, key: Arc::clone(&owner.key), sub }
}

/// Asserts that `owner` has the events 1 to `n`, and no others.
pub(super) async fn assert_events(store: &SqliteStore, owner: &Entity, n: u64) {
    let mut next = 1;
    loop {
        // From 0 at first, which must not be there.
        let from = event(owner, if next == 1 { 0 } else { next });
        let page = store.records(&owner.function, &from, 1000).await.unwrap();
        if page.is_empty() {
            break;
        }
        for record in page {
            assert_eq!(record.id, event(owner, next), "a gap");
            assert_eq!(record.bytes, format!("event {next}"));
            next += 1;
        }
    }
    assert_eq!(next - 1, n, "as many events as the counter says");
}

/// Does nothing unless it is the child. Never returns then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(path) = env::var(DATABASE) else { return };
    // The test harness has begun a line with this test's name. Without its end here the first
    // acknowledgement would be on it, and not be recognised: a task that was killed with its
    // second commit on its way would be found two ahead of what is known.
    writeln!(std::io::stdout()).unwrap();
    let store = Arc::new(SqliteStore::open(&PathBuf::from(path), DEFAULT_CACHE_BYTES).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let owner = entity("crash", &task.to_string());
            let scratch = entity("scratch", &task.to_string());
            let read = store.get(&owner).await.unwrap();
            let (mut version, mut n) = read.map_or((0, 0), |value| (value.version, number(&value)));
            loop {
                n += 1;
                version = store.apply(&owner, counted(&owner, version, n)).await.unwrap();
                writeln!(std::io::stdout(), "acknowledged {task} {n} {version}").unwrap();
                let old = store.get(&scratch).await.unwrap().map_or(0, |value| value.version);
                let write = if old == 0 { json(&"x".repeat(3000)) } else { Write::Delete };
                store.commit(&scratch, old, write).await.unwrap();
            }
        });
    }
    let first = tasks.join_next().await.unwrap();
    first.expect("a task that ends has failed");
}

#[tokio::test]
async fn acknowledged_commits_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let mut acknowledged: HashMap<u64, (u64, u64)> = HashMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["state::sqlite::crash::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DATABASE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let listener = thread::spawn(move || parse(output));
        let patience = RandomState::new().hash_one(round) % 100;
        thread::sleep(Duration::from_millis(15 + patience));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        acknowledged.extend(listener.join().unwrap());

        let store = SqliteStore::open(&path, 0).unwrap();
        for (task, known) in &mut acknowledged {
            let (n, version) = *known;
            let owner = entity("crash", &task.to_string());
            let value = store.get(&owner).await.unwrap().unwrap();
            let stored = number(&value);
            let fits = stored == n && value.version == version || stored == n + 1 && value.version > version;
            assert!(fits, "round {round}, {patience} ms: {n} @{version} acknowledged, {value:?}");
            assert_events(&store, &owner, stored).await;
            // Each round may leave one more than it acknowledged.
            *known = (stored, value.version);
        }
        store.close().await;
    }
    let total: u64 = acknowledged.values().map(|(n, _)| n).sum();
    assert!(total > 0, "no child lived long enough to commit");
    println!("{total} acknowledged commits in {ROUNDS} rounds");
}

/// The last whole line of each task; the kill may have cut off the very last one.
fn parse(mut output: impl BufRead) -> HashMap<u64, (u64, u64)> {
    let mut last = HashMap::new();
    let mut line = String::new();
    while output.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let words: Vec<_> = line.trim_end_matches('\n').split(' ').collect();
        if let (true, ["acknowledged", task, n, version]) = (line.ends_with('\n'), &words[..]) {
            let values = (n.parse().unwrap(), version.parse().unwrap());
            last.insert(task.parse().unwrap(), values);
        }
        line.clear();
    }
    last
}
