//! The default store: one `SQLite` file, durable, owned by one process.
//!
//! ```text
//!  get ──► cache ──hit──► answer          (no change of thread)
//!            └──miss─► state-reader ─┐
//!                                    ├──► tells the cache, answers
//!  apply, sweep ────► state-writer ──┘
//!  record, list, … ─► state-reader ─────► answers
//! ```
//!
//! `SQLite` blocks, so each of its two connections lives on a thread of its own:
//! `writer.rs` with group commit, `reader.rs` for what `cache.rs` does not know.
//! `change.rs` has the statements of the one, `query.rs` those of the other; `schema.rs`
//! knows the file.
//!
//! # Bounds
//!
//! Each thread has a queue of [`QUEUE`] entries; when it is full, callers wait for room
//! and are let in in turn. Groups, batches and the cache have bounds of their own.
//!
//! What may look at many rows is done in steps of bounded length, one queue entry each, and
//! at most [`SCANS`] callers have such an entry at once; so a `get` or a commit never waits
//! for a long list or sweep, only for a step. The price: entities that come and go while a
//! list, a count or a sweep is under way may be in it or not. `records` and `due` are read in
//! one step. Whatever limit was asked for, no more than [`MAX_ROWS`] rows are answered, or swept.
//!
//! # Who ends what
//!
//! The threads end when told to by `close`, or when the store is dropped (the senders go,
//! and with them the queues). Each holds a [`Guard`] to the end; whoever waits for a
//! thread waits for its guard, so a thread that panics ends the wait as well. Commands
//! it never answered, or never took, become [`StoreError::Closed`].

mod cache;
mod change;
mod query;
mod reader;
mod schema;
mod writer;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod power_loss;
#[cfg(test)]
mod recorder;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_records;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};

use self::cache::{Cache, Lookup};
use self::query::{Keys, View, following};
use self::reader::{Read, Reader};
use self::schema::OwnerLock;
use self::writer::{Job, Log, SWEEP_STEP, Sweep, Swept, Writer};
use super::{
    BoxFuture, Commit, Cursor, Entity, Listed, Millis, Record, RecordId, Shelves, StateStore, StoreError,
    Versioned,
};

/// The cache's size unless something else is asked for, in bytes (16 MiB).
pub const DEFAULT_CACHE_BYTES: usize = 16 << 20;

/// How many commands may wait for a thread. More than one group, so that the next is
/// complete while one is on the disk.
const QUEUE: usize = 1024;

/// How many callers may have a step in the reader's queue that looks at many rows. Each is
/// some milliseconds for whoever is behind them.
const SCANS: usize = 4;

/// How many rows one answer has at most.
const MAX_ROWS: usize = 10_000;

/// How many rows a step of a list reads: about 3 ms.
const LIST_STEP: usize = 1000;

/// How many keys a step of a count passes: these are in an index, about 1 ms.
const COUNT_STEP: usize = 10_000;

/// State in an `SQLite` file. See the module.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    cache: Arc<Cache>,
    commits: mpsc::Sender<writer::Command>,
    reads: mpsc::Sender<reader::Command>,
    scans: Semaphore,
    writer_ended: watch::Receiver<()>,
    reader_ended: watch::Receiver<()>,
}

/// Held by a thread to its end: the right to the file, and the news of the end.
///
/// Dropped in this order, so that who hears of the end can open the file again.
struct Guard {
    _lock: Arc<OwnerLock>,
    _ended: watch::Sender<()>,
}

impl SqliteStore {
    /// Opens the database at `path` and creates it if it is not there (the folder must
    /// be), with a cache of at most `cache_bytes` (0: none). Blocks on the disk.
    ///
    /// # Errors
    /// `InUse`, `Foreign`, `TooNew`, `Corrupt`, and `Unavailable` with the reason.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        let database = schema::open(path)?;
        let path = database.path;
        let cache = Arc::new(Cache::new(cache_bytes));
        let guard = |ended| Guard { _lock: Arc::clone(&database.lock), _ended: ended };

        let (reads, commands) = mpsc::channel(QUEUE);
        let (ended, reader_ended) = watch::channel(());
        let reader = Reader::new(database.reader, commands, Arc::clone(&cache), guard(ended));
        start("state-reader", &path, move || reader.run())?;

        let (commits, commands) = mpsc::channel(QUEUE);
        let (ended, writer_ended) = watch::channel(());
        let log = Log::new(database.writer, path.clone(), database.sequence);
        let writer = Writer::new(log, commands, Arc::clone(&cache), guard(ended));
        start("state-writer", &path, move || writer.run())?;

        Ok(Self { path, cache, commits, reads, scans: Semaphore::new(SCANS), writer_ended, reader_ended })
    }

    async fn read(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let read = Read { entity: entity.clone(), reply };
        self.reads.send(reader::Command::Read(read)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn write(&self, entity: &Entity, commit: Commit) -> Result<u64, StoreError> {
        commit.check(entity)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { entity: entity.clone(), commit: commit.detached(), reply };
        self.commits.send(writer::Command::Commit(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Has the reader's thread ask `question`.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |view: Result<&View<'_>, StoreError>| {
            if reply.is_closed() {
                return; // the caller has left, and its place among the scans is another's
            }
            let asked = view.and_then(|view| {
                let told = |error: &StoreError| {
                    tracing::warn!(error = error as &dyn std::error::Error, "state was not read");
                };
                question(view).inspect_err(told)
            });
            let _ = reply.send(asked);
        });
        self.reads.send(reader::Command::Ask(question)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// The right to have a step in the reader's queue that looks at many rows.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.scans.acquire().await.map_err(|_| StoreError::Closed)
    }

    async fn list_in_steps(&self, mut keys: Keys, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let limit = limit.min(MAX_ROWS);
        let mut listed: Vec<Listed> = Vec::new();
        loop {
            let step = LIST_STEP.min(limit - listed.len());
            let turn = self.turn().await?;
            let range = keys.clone();
            let more = self.ask(move |view| view.list(&range, step)).await?;
            drop(turn);
            let ended = more.len() < step;
            listed.extend(more);
            match listed.last() {
                Some(last) if !ended && listed.len() < limit => keys.from = following(last.key.as_bytes()),
                _ => return Ok(listed),
            }
        }
    }

    async fn functions_in_steps(&self) -> Result<Vec<Arc<str>>, StoreError> {
        let mut names: Vec<Arc<str>> = Vec::new();
        loop {
            let from = names.last().map(|last| following(last.as_bytes())).unwrap_or_default();
            let turn = self.turn().await?;
            let more = self.ask(|view| view.functions(from, LIST_STEP)).await?;
            drop(turn);
            let ended = more.len() < LIST_STEP;
            names.extend(more);
            if ended {
                return Ok(names);
            }
        }
    }

    async fn count_in_steps(&self, function: &str) -> Result<u64, StoreError> {
        let function: Arc<str> = function.into();
        let (mut count, mut from) = (0, Vec::new());
        loop {
            let turn = self.turn().await?;
            let name = Arc::clone(&function);
            let (more, last) = self.ask(move |view| view.count(&name, &from, COUNT_STEP)).await?;
            drop(turn);
            count += more as u64;
            match last {
                Some(last) if more == COUNT_STEP => from = following(&last),
                _ => return Ok(count),
            }
        }
    }

    async fn sweep_in_steps(&self, now: Millis, limit: usize) -> Result<usize, StoreError> {
        let (mut swept, mut left) = (0, limit.min(MAX_ROWS));
        loop {
            let step = left.min(SWEEP_STEP);
            let (reply, answer) = oneshot::channel();
            let sweep = Sweep { now, limit: step, reply };
            self.commits.send(writer::Command::Sweep(sweep)).await.map_err(|_| StoreError::Closed)?;
            let Swept { values, records, more } = answer.await.map_err(|_| StoreError::Closed)??;
            (swept, left) = (swept + values + records, left - values.max(records));
            if !more || left == 0 {
                return Ok(swept);
            }
        }
    }
}

impl StateStore for SqliteStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(async move {
            match self.cache.get(entity) {
                Lookup::Hit(value) => Ok(value),
                Lookup::Miss => self.read(entity).await,
            }
        })
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.write(entity, commit))
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        let (function, id): (Arc<str>, _) = (function.into(), id.clone());
        Box::pin(self.ask(move |view| view.record(&function, &id)))
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(async move {
            let (function, from): (Arc<str>, _) = (function.into(), from.clone());
            let _turn = self.turn().await?;
            self.ask(move |view| view.records(&function, &from, limit.min(MAX_ROWS))).await
        })
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Arc<str>, Record)>, StoreError>> {
        Box::pin(async move {
            let functions = functions.to_vec();
            let _turn = self.turn().await?;
            self.ask(move |view| view.due(&functions, limit.min(MAX_ROWS))).await
        })
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(self.list_in_steps(Keys::new(function, prefix, after), limit))
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        Box::pin(async move {
            let (after, limit) = (Cursor::shelf(from), limit.min(LIST_STEP));
            let _turn = self.turn().await?;
            let page = self.ask(move |view| view.shelves(after.as_ref(), limit)).await?;
            let next = Cursor::behind(&page, limit);
            Ok((page, next))
        })
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        Box::pin(self.functions_in_steps())
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.count_in_steps(function))
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.sweep_in_steps(now, limit))
    }

    /// The reader goes first, so that the writer is the last connection, which is the
    /// one that can leave a single tidy file behind.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // Sending fails if the thread has ended or is closing: then only wait.
            let _ = self.reads.send(reader::Command::Close).await;
            wait_for_end(&self.reader_ended).await;
            let _ = self.commits.send(writer::Command::Close).await;
            wait_for_end(&self.writer_ended).await;
        })
    }

    fn describe(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }
}

/// Nothing is ever sent; the channel closes when the thread's guard is dropped.
async fn wait_for_end(ended: &watch::Receiver<()>) {
    let _ = ended.clone().changed().await;
}

fn start(name: &str, path: &Path, run: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(run);
    // The handle is not needed: the guard tells of the end.
    started
        .map(drop)
        .map_err(|error| StoreError::unavailable(format!("starting {name} for {}", path.display()), error))
}
