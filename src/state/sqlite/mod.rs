//! The default store: one `SQLite` file, durable, owned by one process.
//!
//! ```text
//!  get ──► cache ──hit──► answer          (no change of thread)
//!            └──miss─► state-reader ─┐
//!                                    ├──► tells the cache, answers
//!  commit ──────────► state-writer ──┘
//! ```
//!
//! `SQLite` blocks, so each of its two connections lives on a thread of its own:
//! `writer.rs` with group commit, `reader.rs` for what `cache.rs` does not know.
//! `schema.rs` knows the file.
//!
//! # Bounds
//!
//! Each thread has a queue of [`QUEUE`] entries; when it is full, callers wait for room
//! and are let in in turn. Groups, batches and the cache have bounds of their own.
//!
//! # Who ends what
//!
//! The threads end when told to by `close`, or when the store is dropped (the senders go,
//! and with them the queues). Each holds a [`Guard`] to the end; whoever waits for a
//! thread waits for its guard, so a thread that panics ends the wait as well. Commands
//! it never answered, or never took, become [`StoreError::Closed`].

mod cache;
mod reader;
mod schema;
mod writer;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tokio::sync::{mpsc, oneshot, watch};

use self::cache::{Cache, Lookup};
use self::reader::{Read, Reader};
use self::schema::OwnerLock;
use self::writer::{Job, Log, Writer};
use super::{BoxFuture, Entity, StateStore, StoreError, Versioned, Write, admit};

/// The cache's size unless something else is asked for, in bytes (16 MiB).
pub const DEFAULT_CACHE_BYTES: usize = 16 << 20;

/// How many commands may wait for a thread. More than one group, so that the next is
/// complete while one is on the disk.
const QUEUE: usize = 1024;

/// State in an `SQLite` file. See the module.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    cache: Arc<Cache>,
    commits: mpsc::Sender<writer::Command>,
    reads: mpsc::Sender<reader::Command>,
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

        Ok(Self { path, cache, commits, reads, writer_ended, reader_ended })
    }

    async fn read(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let read = Read { entity: entity.clone(), reply };
        self.reads.send(reader::Command::Read(read)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn write(&self, entity: &Entity, expected: u64, write: &Write) -> Result<u64, StoreError> {
        let write = admit(entity, write)?;
        let (reply, answer) = oneshot::channel();
        let job = Job { entity: entity.clone(), expected, write, reply };
        self.commits.send(writer::Command::Commit(job)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
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

    fn commit<'a>(
        &'a self,
        entity: &'a Entity,
        expected: u64,
        write: Write,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.write(entity, expected, &write).await })
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
