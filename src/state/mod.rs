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

mod address;
mod commit;
pub mod crdt;
mod memory;
mod postgres;
mod redis;
mod remote;
mod sealed;
mod sqlite;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod contract_records;

use std::error::Error;
use std::fmt;
use std::future::ready;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

pub use address::Address;
pub use commit::{
    Commit, Cursor, Entity, Kind, Listed, MAX_RECORDS, Millis, Record, RecordChange, RecordId, RecordWrite,
    Room, Shelf, Value, Versioned, Write, now,
};
pub use memory::MemoryStore;
pub use postgres::PostgresStore;
pub use redis::RedisStore;
pub use sealed::{Keys, SEAL_BYTES, SealedStore, is_reserved, sealed_with};
pub use sqlite::{DEFAULT_CACHE_BYTES, SqliteStore};

/// The largest record a store takes: names and value together, in bytes (64 MiB).
///
/// A backstop that is the same for all stores and well within what each can hold.
/// The limit a user meets is that of the function and far lower.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// After this many bytes a page of records ends (1 MiB).
pub const MAX_PAGE_BYTES: usize = 1 << 20;

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A record with a due time, and the function it belongs to.
pub type Due = (Arc<str>, Record);

/// A page of shelves, and where the next one begins.
pub type Shelves = (Vec<Shelf>, Option<Cursor>);

/// What went wrong underneath, shared because one failure can answer many commits.
pub type Cause = Arc<dyn Error + Send + Sync>;

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
    /// A record is not as the commit expected it. Nothing was written: read again and decide.
    #[error("a record of the state has changed: found version {found}")]
    Stale {
        /// Which of [`Commit::records`].
        index: usize,
        /// The version in the store, 0 if absent.
        found: u64,
    },
    /// The commit will never fit. Nothing was written.
    #[error("a commit of {records} records is above the limit of {limit}")]
    TooMany {
        /// In the commit.
        records: usize,
        /// [`MAX_RECORDS`].
        limit: usize,
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
    /// The server does not let us in (user, password, rights, database). Put the URL or the server right.
    #[error("{store} refuses this executor: {why}")]
    Refused {
        /// Which store.
        store: String,
        /// What to put right.
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
        /// As it was given, or only its scheme if there may be a password in it.
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

    /// Applies all of `commit`, if the versions it expects are those in the store.
    ///
    /// Resolves when that is durable, to the number of the commit, which is now the version of everything it put;
    /// to 0 if it put nothing.
    ///
    /// # Errors
    /// `Conflict` (checked first), `Stale`, `TooLarge` and `TooMany`: nothing was written. `Unavailable` and `Closed`:
    /// unknown. `Corrupt`.
    ///
    /// # Cancel safety
    /// Nothing leaks when the future is dropped, but the write is not taken back: it may
    /// have been applied, or be applied later. A read tells once the next commit on
    /// this entity has answered.
    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// [`StateStore::apply`] for a value alone.
    ///
    /// # Errors
    /// As for `apply`.
    ///
    /// # Cancel safety
    /// As for `apply`.
    fn commit<'a>(
        &'a self,
        entity: &'a Entity,
        expected: u64,
        write: Write,
    ) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.apply(entity, Commit::of(expected, write))
    }

    /// One record of `function`.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>>;

    /// Records of `function` with the room and key of `from`, ordered by `sub` from that of `from` on: at most `limit` of them,
    /// and no more after [`MAX_PAGE_BYTES`] bytes (but one).
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>>;

    /// Of the records of all `functions` that have a due time, the `limit` earliest, whether it has come or not, in order.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Due>, StoreError>>;

    /// The entities of `function` whose key begins with `prefix` and follows `after` in the order of bytes (an empty
    /// `after` is before all but the empty key; none: from the first), in that order: `limit` of them, as far as one
    /// answer holds as many, and fewer only if no more are there.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>>;

    /// Where there are records, of whatever function: about `limit` shelves from `from` on (none: from the first), and
    /// where the next page begins; none: this was the last, and an empty one need not be. In no order that all stores
    /// share. A shelf that is there all the while is named once at the least.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>>;

    /// The names of all functions that have something in the store, in the order of bytes.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>>;

    /// How many entities `function` has, expired ones that were not swept included.
    ///
    /// # Errors
    /// As for `get`.
    ///
    /// # Cancel safety
    /// As for `get`.
    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Removes values and records that expired at `now` or before, at most `limit` of each, and says how many of
    /// both went; 0: there is nothing to do. A value's [`Room::Event`] records go with it; other records have times of
    /// their own.
    ///
    /// A store that others wait for removes at most [`MAX_RECORDS`] events at once. A value with more of them has ended
    /// for everybody from then on, whatever their clocks say; it goes with the last of its events, and may count more
    /// than once until then.
    ///
    /// # Errors
    /// As for `apply`, without conflicts.
    ///
    /// # Cancel safety
    /// As for `apply`.
    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>>;

    /// Seals anew what is not sealed with the first key, and says how much that was. Without keys there is nothing to do.
    ///
    /// # Errors
    /// As for `apply`; what was done until then stays done. `Corrupt` if something does not open: then all the rest was
    /// done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the rest as it was.
    fn rotate(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(ready(Ok(0)))
    }

    /// Finishes the commits accepted so far and gives everything back (files, threads,
    /// locks). Whatever is called later, or waits for room in a queue, gets `Closed`.
    ///
    /// May be called more than once; each call resolves when all is given back.
    ///
    /// # Cancel safety
    /// Dropping the future may leave the store half closed; call again to finish.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// The store in a few words, for people and without credentials: `sqlite:/data/state.db`.
    fn describe(&self) -> String;

    /// Whether the store can be used now. Asks the server, if there is one, for a second at most and no more
    /// than a few times a second; calls never pay for it.
    ///
    /// # Errors
    /// As for `get`.
    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }
}

/// What `--store` can name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreUrl {
    /// `memory:`, gone when the process ends.
    Memory,
    /// `sqlite:PATH`, one file in a folder that exists.
    Sqlite(PathBuf),
    /// `postgres://user:pass@host:port/db`.
    Postgres(Address),
    /// `redis://[:pass@]host:port[/db]`.
    Redis(Address),
}

/// What can be written, for who wrote something else.
const KNOWN: &str = "known are `memory:`, `sqlite:PATH`, `postgres://user:pass@host:port/db` and \
                     `redis://[:pass@]host:port[/db]`";

impl StoreUrl {
    /// Reads what `--store` was given.
    ///
    /// # Errors
    /// `BadUrl`, which says what to write instead.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let bad = |why| StoreError::BadUrl { url: discreet(url), why };
        match url.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("memory", _)) => Err(bad("`memory:` takes no path")),
            Some(("sqlite", "")) => Err(bad("a path is missing, as in `sqlite:data/state.db`")),
            Some(("sqlite", ":memory:")) => Err(bad("for a store in memory write `memory:`")),
            Some(("sqlite", path)) if path.starts_with("//") => {
                Err(bad("the path follows the colon without `//`, as in `sqlite:/data/state.db`"))
            }
            Some(("sqlite", path)) => Ok(Self::Sqlite(PathBuf::from(path))),
            Some(("postgres" | "postgresql", _)) => Address::postgres(url).map(Self::Postgres).map_err(bad),
            Some(("redis", _)) => Address::redis(url).map(Self::Redis).map_err(bad),
            Some(("rediss", _)) => Err(bad("TLS is not supported yet; use `redis://`, or a tunnel")),
            _ => Err(bad(KNOWN)),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(address) | Self::Redis(address) => write!(f, "{address}"),
        }
    }
}

/// `url` without what may be a password: a wrong URL is where one stands in the wrong place.
fn discreet(url: &str) -> String {
    match url.split_once(':') {
        Some((scheme @ ("postgres" | "postgresql" | "redis" | "rediss"), _)) => format!("{scheme}://…"),
        Some((scheme, _)) if url.contains('@') && !scheme.contains('@') => format!("{scheme}:…"),
        _ if url.contains('@') => "…".to_owned(),
        _ => url.to_owned(),
    }
}

/// Opens the store that `url` names, and creates it if it is not there.
///
/// Blocks on the disk for some milliseconds, and waits for a server for some seconds: call it at start-up. A
/// server that cannot be reached is a warning in the log: the store is then usable as soon as the server is.
///
/// # Errors
/// `Corrupt`, `TooNew`, `Foreign`, `InUse`, `Refused`; `Unavailable` for a file.
pub async fn open(url: &StoreUrl) -> Result<Arc<dyn StateStore>, StoreError> {
    match url {
        StoreUrl::Memory => Ok(Arc::new(MemoryStore::new())),
        StoreUrl::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, DEFAULT_CACHE_BYTES)?)),
        StoreUrl::Postgres(address) => Ok(Arc::new(PostgresStore::open(address).await?)),
        StoreUrl::Redis(address) => Ok(Arc::new(RedisStore::open(address).await?)),
    }
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
    fn urls_with_a_password_are_written_without() {
        for (url, shown) in [
            ("postgres://ada:secret@h/d", "postgres://h:5432/d"),
            ("postgresql://ada:secret@h:1/d?sslmode=prefer", "postgres://h:1/d"),
            ("redis://:secret@h", "redis://h:6379/0"),
            ("redis://ada:secret@127.0.0.1:1/2", "redis://127.0.0.1:1/2"),
        ] {
            let url = StoreUrl::parse(url).unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("secret"));
        }
    }

    #[test]
    fn a_wrong_url_does_not_show_its_password() {
        for url in [
            "postgres://ada:secret@h",
            "postgres://ada:secret@/d",
            "postgres://ada:secret@h:port/d",
            "postgres://ada:secret@h:0/d",
            "postgres://ada:secret",
            "postgres://ada:secret@h/d?sslmode=require",
            "postgres://ada:secret@h/d?connect_timeout=1",
            "postgres://ada:secret@h/d#x",
            "postgres:secret",
            "redis://secret@h",
            "redis://:secret@h/x",
            "redis://:secret@h/65536",
            "redis://:secret@h/-1",
            "redis://:secret@h/0?x=secret",
            "redis://:secret",
            "rediss://:secret@h",
            "mysql://ada:secret@h/d",
            "main=postgres://ada:secret@h/d",
            "ada@secret:x",
        ] {
            let error = StoreUrl::parse(url).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secret") && !shown.contains("ada"), "{url}: {shown}");
        }
    }

    #[tokio::test]
    async fn urls_open_what_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("state.db");
        let url = format!("sqlite:{}", path.display());
        assert_eq!(open(&StoreUrl::parse(&url).unwrap()).await.unwrap().describe(), url);
        assert!(open(&StoreUrl::Memory).await.unwrap().describe().starts_with("memory:"));
    }
}
