//! Where the state of functions is kept between calls.
//!
//! A function holds nothing itself: the host reads the state of one [`Entity`]
//! before the call and commits the new state after it, before the answer leaves.
//! This module is that one read and that one commit, and nothing else: it knows no
//! functions, no HTTP and no models, only versioned bytes with an owner.
//!
//! # Why versions and no locks
//!
//! A commit names the version it was computed from and fails with
//! [`StoreError::Conflict`] if that is no longer the current one. That is enough to be
//! correct with any number of hosts on one store, needs nobody to give a lock back,
//! and costs nothing when nobody interferes. That calls for one entity are served one
//! after the other is the business of the layer above, and only makes conflicts rare.
//!
//! # Invariants
//!
//! - Versions come from one sequence per store which is stored with the data. No number
//!   is given twice, not even after a delete, a failed commit or a restart, so a version
//!   names one value for ever (no ABA). 0 means absent.
//! - A commit that answered is durable, as far as the store is durable at all, and every
//!   later `get` sees it or something newer.
//! - A commit is applied wholly or not at all.
//! - Stores copy what they keep: bytes handed in may be a slice of a large receive
//!   buffer, and keeping the slice would keep the buffer.
//! - No store hands out another function's data, whatever bytes names and keys contain.
//!
//! # Failure
//!
//! Errors say what a caller can do, see [`StoreError`]. After [`StoreError::Unavailable`]
//! and [`StoreError::Closed`] it is not known whether the write was applied: read the
//! entity again, or repeat the commit with the same `expected` (a write that did get
//! through turns the repetition into a conflict, never into a second write).
//!
//! # Adding a store
//!
//! Implement [`StateStore`] in one file or folder here, name it in [`StoreUrl`] and
//! [`open`], and let `contract.rs` run over it. Nothing else may name its driver.

mod memory;
mod sqlite;

#[cfg(test)]
mod contract;

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub use memory::MemoryStore;
pub use sqlite::{DEFAULT_CACHE_BYTES, SqliteStore};

/// The largest record a store takes: names and value together, in bytes (64 MiB).
///
/// A backstop that is the same for all stores and well within what each can hold.
/// The limit a user meets is that of the function and far lower.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What went wrong underneath, shared because one failure can answer many commits.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// The owner of one piece of state: one function's key.
///
/// Both parts are arbitrary text, NUL and separators included.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entity {
    /// The function's name.
    pub function: Arc<str>,
    /// The key within the function.
    pub key: Arc<str>,
}

/// How a function wants its bytes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// JSON text. Stores do not check that it is.
    Json,
    /// Any bytes.
    Binary,
}

/// One value and the number of the commit that wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned {
    /// Never 0, never given to another value in the same store.
    pub version: u64,
    /// As it was put.
    pub kind: Kind,
    /// As they were put; may be empty.
    pub bytes: Bytes,
}

/// What a commit does.
#[derive(Clone, Debug)]
pub enum Write {
    /// Store this value, in place of any other.
    Put {
        /// Returned with the bytes.
        kind: Kind,
        /// May be empty, which is not the same as absent.
        bytes: Bytes,
    },
    /// Make the entity absent. Deleting what is absent already is no error.
    Delete,
}

/// Why a store did not do what it was asked, by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The entity changed since it was read. Nothing was written: read again and retry.
    #[error("the state has changed: expected version {expected}, found {found}")]
    Conflict {
        /// The version the commit was computed from.
        expected: u64,
        /// The version in the store, 0 if absent.
        found: u64,
    },
    /// The record will never fit. Nothing was written.
    #[error("a state record of {bytes} bytes is above the limit of {limit} bytes")]
    TooLarge {
        /// Names and value together.
        bytes: usize,
        /// [`MAX_RECORD_BYTES`].
        limit: usize,
    },
    /// The store cannot do it now (disk full, I/O error, no permission, server gone).
    /// Later it may. The write may or may not have been applied.
    #[error(transparent)]
    Unavailable(Failure),
    /// The stored data is damaged. Only an operator can help, with a backup.
    #[error("the state store is damaged: {what}")]
    Corrupt {
        /// What was found.
        what: String,
    },
    /// A later release of this program wrote the store. Upgrade, or use another store.
    #[error("{store} was written by a newer release (schema {found}, this one knows up to {supported})")]
    TooNew {
        /// Which store.
        store: String,
        /// The schema version found.
        found: u32,
        /// The newest schema version this program can use.
        supported: u32,
    },
    /// The address leads to something that is not a state store. It was left as it was.
    #[error("{store} is not a state store: {why}")]
    Foreign {
        /// Which store.
        store: String,
        /// What it is, or what it lacks.
        why: String,
    },
    /// Another process has the store open. Stop it, or use another store.
    #[error("{store} is in use by another executor")]
    InUse {
        /// Which store.
        store: String,
    },
    /// The text does not name a store.
    #[error("`{url}` does not name a state store: {why}")]
    BadUrl {
        /// As it was given.
        url: String,
        /// What to write instead.
        why: &'static str,
    },
    /// The store was closed, or a thread it needs has died. Only a new `open` helps.
    /// The write may or may not have been applied.
    #[error("the state store is closed")]
    Closed,
}

/// What a store was doing when the system or a driver failed it. For the log, not for
/// clients: it names paths.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{doing} failed")]
pub struct Failure {
    /// As in "opening /data/state.db".
    pub doing: String,
    /// What the system or the driver said.
    #[source]
    pub cause: Cause,
}

impl StoreError {
    fn unavailable(doing: String, cause: impl Error + Send + Sync + 'static) -> Self {
        Self::Unavailable(Failure { doing, cause: Arc::new(cause) })
    }
}

/// Versioned bytes for each entity, with preconditions.
///
/// All methods may be called from any number of tasks at once. None blocks the thread
/// it is polled on for longer than a memory access.
pub trait StateStore: Send + Sync {
    /// Reads the current value of `entity`; `None` if it is absent.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt`, `Closed`.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect on the store.
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// Applies `write` if the entity's version is `expected` (0: absent).
    ///
    /// Resolves when the write is durable, to the new version; to 0 after a delete.
    ///
    /// # Errors
    /// `Conflict` and `TooLarge`: nothing was written. `Unavailable` and `Closed`: unknown.
    /// `Corrupt`.
    ///
    /// # Cancel safety
    /// Nothing leaks when the future is dropped, but the write is not taken back: it may
    /// have been applied, or be applied later. A read tells once the next commit on
    /// this entity has answered.
    fn commit<'a>(
        &'a self,
        entity: &'a Entity,
        expected: u64,
        write: Write,
    ) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Finishes the commits accepted so far and gives everything back (files, threads,
    /// locks). Whatever is called later, or waits for room in a queue, gets `Closed`.
    ///
    /// May be called more than once; each call resolves when all is given back.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the store half closed; call again to finish.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// The store in a few words, for people: `sqlite:/data/state.db`.
    fn describe(&self) -> String;
}

/// What `--store` can name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUrl {
    /// `memory:`, gone when the process ends.
    Memory,
    /// `sqlite:PATH`, one file in a folder that exists.
    Sqlite(PathBuf),
}

impl StoreUrl {
    /// Reads what `--store` was given.
    ///
    /// # Errors
    /// `BadUrl`, which says what to write instead.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let bad = |why| StoreError::BadUrl { url: url.to_owned(), why };
        match url.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("memory", _)) => Err(bad("`memory:` takes no path")),
            Some(("sqlite", "")) => Err(bad("a path is missing, as in `sqlite:data/state.db`")),
            Some(("sqlite", ":memory:")) => Err(bad("for a store in memory write `memory:`")),
            Some(("sqlite", path)) if path.starts_with("//") => {
                Err(bad("the path follows the colon without `//`, as in `sqlite:/data/state.db`"))
            }
            Some(("sqlite", path)) => Ok(Self::Sqlite(PathBuf::from(path))),
            _ => Err(bad("known are `memory:` and `sqlite:PATH`")),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

/// Opens the store that `url` names, and creates it if it is not there.
///
/// Blocks on the disk for some milliseconds: call it at start-up. Needs no runtime.
///
/// # Errors
/// `Unavailable`, `Corrupt`, `TooNew`, `Foreign`, `InUse`.
pub fn open(url: &StoreUrl) -> Result<Arc<dyn StateStore>, StoreError> {
    match url {
        StoreUrl::Memory => Ok(Arc::new(MemoryStore::new())),
        StoreUrl::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, DEFAULT_CACHE_BYTES)?)),
    }
}

/// Refuses what is above [`MAX_RECORD_BYTES`] and frees the rest from the caller's buffer.
fn admit(entity: &Entity, write: &Write) -> Result<Write, StoreError> {
    let value = match write {
        Write::Put { bytes, .. } => bytes.len(),
        Write::Delete => 0,
    };
    let bytes = value.saturating_add(entity.function.len()).saturating_add(entity.key.len());
    if bytes > MAX_RECORD_BYTES {
        return Err(StoreError::TooLarge { bytes, limit: MAX_RECORD_BYTES });
    }
    Ok(match write {
        Write::Put { kind, bytes } => Write::Put { kind: *kind, bytes: Bytes::copy_from_slice(bytes) },
        Write::Delete => Write::Delete,
    })
}

#[cfg(test)]
mod tests {
    use super::{StoreUrl, open};

    #[test]
    fn urls_are_read_and_written_alike() {
        for url in ["memory:", "sqlite:data/state.db", "sqlite:/data/a b:c?.db"] {
            assert_eq!(StoreUrl::parse(url).unwrap().to_string(), url);
        }
    }

    #[test]
    fn wrong_urls_say_what_is_right() {
        let wrong = [
            "",
            "memory",
            "memory:x",
            "sqlite",
            "sqlite:",
            "sqlite::memory:",
            "sqlite://x",
            "mysql:x",
            "/data/state.db",
        ];
        for url in wrong {
            let message = StoreUrl::parse(url).unwrap_err().to_string();
            assert!(message.contains(&format!("`{url}`")), "{message}");
            assert!(message.contains("memory:") || message.contains("sqlite:"), "{message}");
        }
    }

    #[test]
    fn urls_open_what_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("state.db");
        let url = format!("sqlite:{}", path.display());
        assert_eq!(open(&StoreUrl::parse(&url).unwrap()).unwrap().describe(), url);
        assert!(open(&StoreUrl::Memory).unwrap().describe().starts_with("memory:"));
    }
}
