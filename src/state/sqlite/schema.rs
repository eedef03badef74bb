//! The database file: whose it is, what is in it, and how it is opened.
//!
//! Everything that can be wrong with a file is found here, before anything is changed
//! in it: not a database, somebody else's database, written by a newer release, in use,
//! not writable.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::state::{Kind, StoreError};

/// "exec" in ASCII. `file` and `SQLite`'s own tools show it.
const APPLICATION_ID: i32 = 0x6578_6563;

/// Step n takes a database from `user_version` n to n + 1. Only ever append.
///
/// Names are BLOBs because they may contain NUL, for which `SQLite` promises nothing in
/// TEXT, and because BLOBs compare by bytes. `store` has one row with the last number
/// given to a change.
///
/// `entity` is an ordinary table beside its key's index. As WITHOUT ROWID it would be one
/// tree, but rows above a quarter of a page go to overflow pages there: 10,000 values of
/// 1 KiB took 47 MB instead of 14, and commits were 40 % slower. At 200 bytes the two
/// were alike.
const STEPS: &[&str] = &["
    CREATE TABLE store (
        id       INTEGER PRIMARY KEY CHECK (id = 1),
        sequence INTEGER NOT NULL
    ) STRICT;
    INSERT INTO store (id, sequence) VALUES (1, 0);
    CREATE TABLE entity (
        function BLOB    NOT NULL,
        key      BLOB    NOT NULL,
        version  INTEGER NOT NULL,
        kind     INTEGER NOT NULL,
        value    BLOB    NOT NULL,
        PRIMARY KEY (function, key)
    ) STRICT;
"];

/// How long to wait for a tool that holds the database (a shell, a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The KiB of database pages each connection may keep. The cache in front serves what
/// is hot; this one needs to hold the inner pages of the tree.
const PAGE_CACHE_KIB: i64 = 4096;

/// An opened database of ours.
pub(super) struct Database {
    /// Absolute, links resolved.
    pub(super) path: PathBuf,
    pub(super) writer: Connection,
    /// Read only.
    pub(super) reader: Connection,
    /// The last number given to a change.
    pub(super) sequence: u64,
    /// To be held for as long as either connection is.
    pub(super) lock: Arc<OwnerLock>,
}

/// The right to be the one process that has the database open; given back when dropped,
/// and by the kernel when the process dies.
///
/// A lock on a file of its own, `<database>.lock`, because both alternatives fail:
/// `SQLite`'s exclusive mode shuts out our own reader too, and a lock on the database file
/// itself would need a handle to it, the closing of which drops `SQLite`'s own locks
/// (POSIX). The file stays when the lock is gone: removing it would let two processes
/// hold locks on two files of the same name.
pub(super) struct OwnerLock {
    _file: File,
}

/// Opens or creates the database at `path`, in a folder that exists.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    let path = resolve(path)?;
    let lock = OwnerLock::take(&path)?;
    create_if_missing(&path)?;
    let writer = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let steps_done = identify(&writer, &path)?;
    migrate(&writer, steps_done).map_err(|error| explain(&path, error))?;
    tune_writer(&writer, &path)?;
    let sequence = read_sequence(&writer).map_err(|error| explain(&path, error))?;
    let reader = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    Ok(Database { path, writer, reader, sequence, lock: Arc::new(lock) })
}

/// How a [`Kind`] is written down.
pub(super) fn encode(kind: Kind) -> i64 {
    match kind {
        Kind::Json => 0,
        Kind::Binary => 1,
    }
}

/// The reverse of [`encode`].
pub(super) fn decode(kind: i64) -> Option<Kind> {
    match kind {
        0 => Some(Kind::Json),
        1 => Some(Kind::Binary),
        _ => None,
    }
}

/// The last number given to a change, as of the transaction it is asked in.
pub(super) fn read_sequence(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT sequence FROM store WHERE id = 1")?;
    statement.query_row([], |row| row.get::<_, u64>(0))
}

/// What a caller can do about a failure of `SQLite`.
pub(super) fn classify(doing: &str, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { what: error.to_string() }
        }
        _ => StoreError::unavailable(doing.to_owned(), error),
    }
}

/// One name for one database, whatever links lead to it, so that one lock guards it.
fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    let resolved = match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let name = path.file_name().unwrap_or_default();
            folder.canonicalize().map(|folder| folder.join(name))
        }
        other => other,
    };
    let resolved = resolved.map_err(|error| {
        StoreError::unavailable(format!("finding the folder of {}", path.display()), error)
    })?;
    if resolved.is_dir() {
        return Err(foreign(&resolved, "it is a folder"));
    }
    Ok(resolved)
}

/// Creates an empty file, which `SQLite` takes for an empty database, that only its owner
/// can read: state is other people's data. `SQLite` gives its side files the same mode.
/// Refuses a file that cannot be written, which `SQLite` would open for reading.
///
/// Only under the lock: closing the handle drops the locks of any connection that this
/// process has on the file.
fn create_if_missing(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::unavailable(format!("opening {} for writing", path.display()), error)),
    }
}

impl OwnerLock {
    fn take(database: &Path) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |error| StoreError::unavailable(format!("locking {}", path.display()), error);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { store: database.display().to_string() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// No `SQLITE_OPEN_URI`: a path is a path, even if it starts with `file:`. No mutex in
/// `SQLite`: each connection belongs to one thread.
fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, StoreError> {
    let open = || {
        let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| explain(path, error))
}

/// How many of [`STEPS`] the database has had, if it is ours or empty. Changes nothing.
fn identify(connection: &Connection, path: &Path) -> Result<usize, StoreError> {
    let ask = || {
        let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let things: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((id, version, things))
    };
    match ask().map_err(|error| explain(path, error))? {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, version, _) => {
            let found = u32::try_from(version).unwrap_or(0);
            let steps = usize::try_from(found).unwrap_or(usize::MAX);
            if steps > STEPS.len() {
                let supported = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
                let store = path.display().to_string();
                return Err(StoreError::TooNew { store, found, supported });
            }
            Ok(steps)
        }
        _ => Err(foreign(path, "it is the SQLite database of another program")),
    }
}

/// Bytes of a page. Commits write whole pages, most values are small, and entities that are used together are seldom
/// neighbours: a quarter of `SQLite`'s usual page means a quarter of the bytes to write, check and sync.
pub(super) const PAGE_BYTES: usize = 1024;

/// Takes the database to the newest schema, in one transaction.
fn migrate(connection: &Connection, steps_done: usize) -> rusqlite::Result<()> {
    if steps_done == STEPS.len() {
        return Ok(());
    }
    // Takes effect in an empty database only.
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    for step in &STEPS[steps_done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", STEPS.len())?;
    transaction.commit()
}

/// A commit appends to the write-ahead log and syncs it (FULL), so it survives the loss
/// of power. `fullfsync` makes that true on macOS and does nothing elsewhere. The writer
/// says itself when to move the log into the database, see there.
fn tune_writer(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let tune = || {
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "fullfsync", true)?;
        connection.pragma_update(None, "checkpoint_fullfsync", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        Ok(mode)
    };
    let mode = tune().map_err(|error| explain(path, error))?;
    if mode == "wal" {
        return Ok(());
    }
    let reason = "the file system does not support SQLite's write-ahead log";
    let error = io::Error::new(io::ErrorKind::Unsupported, reason);
    Err(StoreError::unavailable(format!("opening {}", path.display()), error))
}

fn explain(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => foreign(path, "it is not an SQLite database"),
        _ => classify(&format!("opening {}", path.display()), error),
    }
}

fn foreign(path: &Path, why: &str) -> StoreError {
    StoreError::Foreign { store: path.display().to_string(), why: why.to_owned() }
}
