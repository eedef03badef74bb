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

use crate::state::{Kind, Millis, StoreError};

/// "exec" in ASCII. `file` and `SQLite`'s own tools show it.
const APPLICATION_ID: i32 = 0x6578_6563;

/// Step n takes a database from `user_version` n to n + 1. Only ever append.
///
/// Names are BLOBs because they may contain NUL, for which `SQLite` promises nothing in
/// TEXT, and because BLOBs compare by bytes. `store` has one row with the last number
/// given to a change.
///
/// `entity` and `record` are ordinary tables beside their keys' indexes. As WITHOUT ROWID
/// each would be one tree, but rows above a quarter of a page go to overflow pages there:
/// 10,000 values of 1 KiB took 47 MB instead of 14, and commits were 40 % slower; 20,000
/// events of 200 bytes took 21 MB instead of 5, and twice the time. Reading them back was
/// about as fast either way.
///
/// What is long comes last in a row, so that to read what is short (for a list, or to
/// keep an index) needs none of the pages that a long value continues on. Due times and
/// expiries are in partial indexes, which cost nothing where there are none.
const STEPS: &[&str] = &[
    "
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
    ",
    // Copies all values, so that the new columns stand before them. When they were last
    // changed is not known: not after now.
    "
    ALTER TABLE entity RENAME TO entity_before;
    CREATE TABLE entity (
        version  INTEGER NOT NULL,
        kind     INTEGER NOT NULL,
        schema   INTEGER NOT NULL,
        updated  INTEGER NOT NULL,
        expires  INTEGER,
        function BLOB    NOT NULL,
        key      BLOB    NOT NULL,
        value    BLOB    NOT NULL,
        PRIMARY KEY (function, key)
    ) STRICT;
    INSERT INTO entity (version, kind, schema, updated, expires, function, key, value)
        SELECT version, kind, 0, unixepoch() * 1000, NULL, function, key, value
        FROM entity_before ORDER BY rowid;
    DROP TABLE entity_before;
    CREATE INDEX entity_expires ON entity (expires) WHERE expires IS NOT NULL;
    CREATE TABLE record (
        version  INTEGER NOT NULL,
        room     INTEGER NOT NULL,
        due      INTEGER,
        expires  INTEGER,
        function BLOB    NOT NULL,
        key      BLOB    NOT NULL,
        sub      BLOB    NOT NULL,
        bytes    BLOB    NOT NULL,
        PRIMARY KEY (function, room, key, sub)
    ) STRICT;
    CREATE INDEX record_due ON record (function, due) WHERE due IS NOT NULL;
    CREATE INDEX record_expires ON record (expires) WHERE expires IS NOT NULL;
    ",
];

/// How long to wait for a tool that holds the database (a shell, a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The KiB of database pages each connection may keep. The cache in front serves what
/// is hot; this one needs to hold the inner pages of the tree.
const PAGE_CACHE_KIB: i64 = 4096;

/// How many prepared statements each connection may keep. More than either has.
const STATEMENTS: usize = 32;

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
        Kind::Events => 2,
        Kind::Crdt => 3,
    }
}

/// The reverse of [`encode`].
pub(super) fn decode(kind: i64) -> Option<Kind> {
    match kind {
        0 => Some(Kind::Json),
        1 => Some(Kind::Binary),
        2 => Some(Kind::Events),
        3 => Some(Kind::Crdt),
        _ => None,
    }
}

/// A time as the database holds it: what is beyond the year 292 million becomes that.
pub(super) fn encode_time(at: Millis) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// A version as the database holds it: one that it cannot hold is one that nobody has.
pub(super) fn encode_version(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(-1)
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
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
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

/// Takes the database to the newest schema, in one transaction. A step that copies needs
/// room on the disk for two more copies of the database (the log, the new table), and some
/// time; what it frees is used again.
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

/// The database of an earlier release, with nothing in it, for the tests of its upgrade.
#[cfg(test)]
pub(super) fn create_at_step(path: &Path, steps: usize) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "page_size", PAGE_BYTES).unwrap();
    STEPS[..steps].iter().for_each(|step| connection.execute_batch(step).unwrap());
    connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
    connection.pragma_update(None, "user_version", steps).unwrap();
    connection
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
