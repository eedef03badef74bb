//! What operators are promised, with a store that fails when it is told to.

use std::future::ready;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::executor::is_readable;
use crate::state::{BoxFuture, Cursor, Due, MAX_RECORD_BYTES, MemoryStore, Millis, Shelves};

/// Nothing of it is a snapshot, which has more bytes.
const ODD: &[u8] = b"\0sealed1\0";

#[derive(Default)]
struct Flaky {
    inner: MemoryStore,
    /// Commits so far.
    commits: AtomicUsize,
    /// The bytes of the largest.
    largest: AtomicUsize,
    /// How many may still be done before some fail, and how many those are.
    fails: std::sync::Mutex<(usize, usize)>,
}

impl Flaky {
    fn fail_after(&self, good: usize, bad: usize) {
        *self.fails.lock().unwrap() = (good, bad);
    }

    fn fails(&self) -> bool {
        let mut fails = self.fails.lock().unwrap();
        match &mut *fails {
            (0, 0) => false,
            (0, bad) => {
                *bad -= 1;
                true
            }
            (good, _) => {
                *good -= 1;
                false
            }
        }
    }
}

impl StateStore for Flaky {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        self.inner.get(entity)
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(commit.bytes(), Ordering::Relaxed);
        if self.fails() { Box::pin(ready(Err(StoreError::Closed))) } else { self.inner.apply(entity, commit) }
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        self.inner.record(function, id)
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        self.inner.records(function, from, limit)
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>> {
        self.inner.due(functions, limit)
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.inner.list(function, prefix, after, limit)
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        self.inner.shelves(from, limit)
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        self.inner.functions()
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.inner.count(function)
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        self.inner.sweep(now, limit)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

fn desk() -> (Arc<Flaky>, Desk) {
    let store = Arc::new(Flaky::default());
    let desk = Desk::of_store(Arc::clone(&store) as Arc<dyn StateStore>, "f");
    (store, desk)
}

fn binary(bytes: &'static [u8]) -> Value {
    Value::new(Kind::Binary, bytes)
}

fn moved(value: Value, events: Vec<Bytes>) -> Moved {
    let timers = vec![("t".to_owned(), 7, Bytes::from_static(b"{}"))];
    Moved { key: "k".into(), value, events, timers }
}

/// Everything under the key, for comparison.
async fn shown(desk: &Desk) -> String {
    format!("{:?}", desk.export("k").await.unwrap())
}

#[tokio::test]
async fn bytes_that_look_sealed_are_refused() {
    let (store, desk) = desk();
    let put = desk.put("k", false, Bytes::from_static(ODD), Condition::None).await;
    assert!(put.is_err_and(|error| error.to_string().contains("sealed1")));
    let timer = Moved {
        timers: vec![("t".to_owned(), 7, Bytes::from_static(ODD))],
        ..moved(binary(b"v"), Vec::new())
    };
    for odd in [moved(binary(ODD), Vec::new()), moved(binary(b"v"), vec![Bytes::from_static(ODD)]), timer] {
        let refused = desk.import(odd, true).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("sealed1")));
    }
    assert_eq!(store.commits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_cannot_be_opened_can_be_deleted() {
    let (store, desk) = desk();
    let owner = desk.entity("k").unwrap();
    let expires = |at| Value { expires: at, ..binary(ODD) };
    let version = store.commit(&owner, 0, Write::Put(expires(None))).await.unwrap();
    store.commit(&desk.entity("k2").unwrap(), 0, Write::Put(binary(b"v"))).await.unwrap();
    assert!(matches!(desk.get("k").await, Err(DeskError::Store(StoreError::Corrupt { .. }))));
    let other = desk.delete("k", Condition::Version(version + 1)).await;
    assert!(matches!(other, Err(DeskError::Changed(found)) if found == version), "{other:?}");
    desk.delete("k", Condition::Version(version)).await.unwrap();
    assert_eq!(store.get(&owner).await.unwrap(), None);
    assert!(matches!(desk.delete("k", Condition::None).await, Err(DeskError::Absent)), "k2 is another");
    store.commit(&owner, 0, Write::Put(expires(Some(1)))).await.unwrap();
    assert!(matches!(desk.delete("k", Condition::None).await, Err(DeskError::Absent)), "it has expired");
    assert_eq!(desk.get("k2").await.unwrap().bytes, "v");
}

#[tokio::test]
async fn a_long_import_that_fails_leaves_what_was_there() {
    let events = |count: usize| (0..count).map(|n| Bytes::from(n.to_string())).collect::<Vec<_>>();
    let (store, desk) = desk();
    for before in [None, Some(3), Some(2500)] {
        if let Some(count) = before {
            desk.import(moved(binary(b"old"), events(count)), true).await.unwrap();
        }
        let old = shown(&desk).await;
        // The first commit that may fail is the one that puts the placeholder, the last the one that puts the value.
        for good in 0..6 {
            store.fail_after(good, 1);
            let failed = desk.import(moved(binary(b"new"), events(3500)), true).await;
            assert!(failed.is_err(), "{good}");
            assert_eq!(shown(&desk).await, old, "after {good} commits of 6");
        }
    }
    store.fail_after(0, 0);
    desk.import(moved(binary(b"new"), events(3500)), true).await.unwrap();
    let new = desk.export("k").await.unwrap().unwrap();
    assert_eq!((new.value.bytes, new.events.len(), new.timers.len()), (Bytes::from("new"), 3500, 1));
}

/// Then nobody takes what is there for state, and it can be imported again.
#[tokio::test]
async fn an_import_that_can_neither_go_on_nor_back_is_seen() {
    let (store, desk) = desk();
    let events = vec![Bytes::from_static(b"{}"); 2500];
    store.fail_after(2, usize::MAX);
    assert!(desk.import(moved(binary(b"new"), events.clone()), false).await.is_err());
    store.fail_after(0, 0);
    let left = desk.export("k").await.unwrap().unwrap();
    assert!(!is_readable(&left.value, left.events.len()));
    assert!(matches!(desk.get("k").await, Err(DeskError::Store(StoreError::Corrupt { .. }))));
    assert!(matches!(
        desk.import(moved(binary(b"new"), events.clone()), false).await,
        Err(DeskError::Changed(_))
    ));
    desk.import(moved(binary(b"new"), events), true).await.unwrap();
    assert_eq!(desk.get("k").await.unwrap().bytes, "new");
}

#[tokio::test]
async fn sizes_are_checked_before_anything_is_changed() {
    let (store, desk) = desk();
    desk.import(moved(binary(b"old"), Vec::new()), false).await.unwrap();
    let old = shown(&desk).await;
    let mut events = vec![Bytes::from_static(b"{}"); 2500];
    events.push(vec![b'x'; MAX_RECORD_BYTES].into());
    let large = moved(binary(b"new"), events);
    let timers = (0..5000).map(|n| (n.to_string(), 7, Bytes::from_static(b"{}"))).collect();
    let many = Moved { timers, ..moved(binary(b"new"), Vec::new()) };
    for wrong in [large, many] {
        let refused = desk.import(wrong, true).await;
        let limits = matches!(
            refused,
            Err(DeskError::Store(StoreError::TooLarge { .. } | StoreError::TooMany { .. }))
        );
        assert!(limits, "{refused:?}");
    }
    assert_eq!((store.commits.load(Ordering::Relaxed), shown(&desk).await), (1, old));
}

#[tokio::test]
async fn a_commit_of_a_long_import_is_bounded_in_bytes() {
    let (store, desk) = desk();
    let event = Bytes::from(vec![b'x'; 20_000]);
    desk.import(moved(binary(b"v"), vec![event.clone(); 1200]), false).await.unwrap();
    let largest = store.largest.load(Ordering::Relaxed);
    assert!(largest <= 8 << 20, "{largest}");
    assert!(store.commits.load(Ordering::Relaxed) >= 4);
    assert_eq!(desk.export("k").await.unwrap().unwrap().events, vec![event; 1200]);
}
