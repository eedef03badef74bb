//! State in `PostgreSQL` (11 or later), for any number of executors at once.
//!
//! ```text
//!  any operation ──► pool ──► connection: one prepared statement, one round trip
//! ```
//!
//! `schema.rs` has the tables and the functions that commit, `queries.rs` the statements, `pool.rs` makes connections.
//!
//! # Bounds
//!
//! At most [`CONNECTIONS`] connections; who finds them all in use waits [`CONNECT`] for one. Each operation
//! has a time limit here and a longer one in the server, so that nothing of us stays there.
//!
//! # Failure
//!
//! A connection goes back to the pool only after a good answer. Whatever else becomes of an operation (an
//! error, a time limit, a future that is dropped) the connection is thrown away, because it may be broken or
//! still at work. Connections are made when needed, so a server that comes back is used at once.
//!
//! What the server rolled back because it met others the other way round (a deadlock) is tried again, at most
//! [`ATTEMPTS`] times.
//!
//! # Versions
//!
//! From one sequence. `schema.rs` says why they only grow, per entity too, however executors interleave.

mod pool;
mod queries;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use self::pool::{Lent, Manager};
use self::queries::{Columns, Query, Told};
use super::remote::{CONNECT, READ, Remote, clamped, time_for};
use super::{
    Address, BoxFuture, Commit, Cursor, Entity, Listed, MAX_PAGE_BYTES, Millis, Record, RecordId, Shelves,
    StateStore, StoreError, Versioned, Write,
};

/// The most connections to the server. A server's usual limit is 100, for all its clients.
const CONNECTIONS: usize = 16;

/// How often something is tried that the server rolled back in favour of others.
const ATTEMPTS: usize = 4;

/// How long connections may take to end at `close`.
const PARTING: Duration = Duration::from_secs(2);

const COMMITTING: &str = "committing to";

/// State in `PostgreSQL`. See the module.
pub struct PostgresStore {
    remote: Remote,
    pool: deadpool::managed::Pool<Manager>,
}

impl PostgresStore {
    /// Connects, and creates or updates the tables. If the server cannot be reached, that is done later.
    ///
    /// # Errors
    /// `TooNew`, `Foreign`, `Refused`, `Corrupt`.
    pub async fn open(address: &Address) -> Result<Self, StoreError> {
        let remote = Remote::new(address.to_string());
        let pool = deadpool::managed::Pool::builder(Manager::new(address))
            .max_size(CONNECTIONS)
            .build()
            .expect("only time limits need a runtime, and none is set");
        let store = Self { remote, pool };
        let first = store.ping().await;
        store.remote.started(first)?;
        Ok(store)
    }

    async fn connection(&self) -> Result<Lent, StoreError> {
        use deadpool::managed::PoolError;
        let connection = async {
            match self.pool.get().await {
                Ok(object) => Ok(Lent::new(object)),
                Err(PoolError::Backend(error)) => Err(error),
                Err(PoolError::Closed) => Err(StoreError::Closed),
                Err(error) => Err(self.remote.failed("connecting to", error)),
            }
        };
        self.remote.within("connecting to", CONNECT, connection).await
    }

    /// Runs `query`, again if it was rolled back for the sake of others.
    async fn rows(
        &self,
        doing: &str,
        limit: Duration,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, StoreError> {
        let connection = self.connection().await?;
        let asking = async {
            let mut attempt = 1;
            loop {
                match connection.client.query(connection.statement(query), parameters).await {
                    Err(error) if attempt < ATTEMPTS && rolled_back(&error) => attempt += 1,
                    other => return other.map_err(|error| self.explain(doing, error)),
                }
            }
        };
        let rows = self.remote.within(doing, limit, asking).await?;
        connection.give_back();
        Ok(rows)
    }

    async fn read(&self, query: Query, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        self.rows("reading from", READ, query, parameters).await
    }

    /// What `read` makes of each row.
    fn all<T>(&self, rows: &[Row], read: impl Fn(&Row) -> Option<T>) -> Result<Vec<T>, StoreError> {
        rows.iter().map(|row| read(row).ok_or_else(|| self.corrupt())).collect()
    }

    /// What `read` makes of the only row there may be.
    fn one<T>(&self, rows: &[Row], read: impl Fn(&Row) -> Option<T>) -> Result<Option<T>, StoreError> {
        Ok(self.all(rows, read)?.pop())
    }

    fn number<T: TryFrom<i64>>(&self, rows: &[Row]) -> Result<T, StoreError> {
        let number = rows.first().and_then(|row| T::try_from(row.get::<_, i64>(0)).ok());
        number.ok_or_else(|| self.corrupt())
    }

    async fn read_value(&self, entity: &Entity) -> Result<Option<Versioned>, StoreError> {
        let (function, key) = (entity.function.as_bytes(), entity.key.as_bytes());
        self.one(&self.read(Query::Get, &[&function, &key]).await?, queries::value)
    }

    async fn commit_all(&self, entity: &Entity, commit: &Commit) -> Result<u64, StoreError> {
        commit.check(entity)?;
        match &commit.value {
            Some((expected, Write::Put(_) | Write::Delete)) if commit.records.is_empty() => {
                self.commit_value(entity, commit, *expected).await
            }
            _ => self.commit_records(entity, commit).await,
        }
    }

    async fn commit_value(&self, entity: &Entity, commit: &Commit, expected: u64) -> Result<u64, StoreError> {
        let Told { function, key, expected: held, kind, bytes, schema, expires, at, .. } =
            Told::of(entity, commit);
        let told: [&(dyn ToSql + Sync); 8] = [&function, &key, &held, &kind, &bytes, &schema, &expires, &at];
        let rows = self.rows(COMMITTING, time_for(commit.bytes()), Query::Commit, &told).await?;
        let answer: i64 = self.number(&rows)?;
        u64::try_from(answer).map_err(|_| StoreError::Conflict { expected, found: queries::found(answer) })
    }

    async fn commit_records(&self, entity: &Entity, commit: &Commit) -> Result<u64, StoreError> {
        let (value, records) = (Told::of(entity, commit), Columns::of(commit));
        let told: [&(dyn ToSql + Sync); 17] = [
            &value.function,
            &value.key,
            &value.expected,
            &value.action,
            &value.kind,
            &value.bytes,
            &value.schema,
            &value.expires,
            &value.at,
            &records.rooms,
            &records.keys,
            &records.subs,
            &records.expected,
            &records.actions,
            &records.bytes,
            &records.due,
            &records.expires,
        ];
        let rows = self.rows(COMMITTING, time_for(commit.bytes()), Query::Apply, &told).await?;
        let answer: Vec<i64> = rows.first().map(|row| row.get(0)).unwrap_or_default();
        let found = |version: i64| u64::try_from(version).map_err(|_| self.corrupt());
        match answer[..] {
            [version] => found(version),
            [-1, version] => {
                let expected = commit.value.as_ref().map_or(0, |(expected, _)| *expected);
                Err(StoreError::Conflict { expected, found: found(version)? })
            }
            [-2, index, version] => {
                let index = usize::try_from(index).map_err(|_| self.corrupt())?;
                Err(StoreError::Stale { index, found: found(version)? })
            }
            _ => Err(self.corrupt()),
        }
    }

    async fn read_record(&self, function: &str, id: &RecordId) -> Result<Option<Record>, StoreError> {
        let (function, room, key, sub) = named(function, id);
        let rows = self.read(Query::Record, &[&function, &room, &key, &sub]).await?;
        self.one(&rows, |row| queries::record(row, id.clone()))
    }

    async fn read_page(
        &self,
        function: &str,
        from: &RecordId,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let (function, room, key, sub) = named(function, from);
        let (limit, bytes) = (clamped(limit), i64::try_from(MAX_PAGE_BYTES).unwrap_or(i64::MAX));
        let rows = self.read(Query::Records, &[&function, &room, &key, &sub, &limit, &bytes]).await?;
        self.all(&rows, |row| queries::neighbour(row, from))
    }

    async fn read_due(
        &self,
        functions: &[Arc<str>],
        limit: usize,
    ) -> Result<Vec<(Arc<str>, Record)>, StoreError> {
        let functions: Vec<&[u8]> = functions.iter().map(|name| name.as_bytes()).collect();
        let rows = self.read(Query::Due, &[&functions, &clamped(limit)]).await?;
        self.all(&rows, queries::due)
    }

    async fn read_list(
        &self,
        function: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let (first, end) = queries::range(prefix, after);
        let rows = self.read(Query::List, &[&function.as_bytes(), &first, &end, &clamped(limit)]).await?;
        self.all(&rows, queries::listed)
    }

    async fn read_shelves(&self, from: Option<Cursor>, limit: usize) -> Result<Shelves, StoreError> {
        let (after, limit) = (Cursor::shelf(from), clamped(limit));
        // No room has the number 0.
        let (function, room, key) = after.as_ref().map_or((&[][..], 0, &[][..]), |(entity, room)| {
            (entity.function.as_bytes(), i16::from(*room as u8), entity.key.as_bytes())
        });
        let rows = self.read(Query::Shelves, &[&function, &room, &key, &limit]).await?;
        let page = self.all(&rows, queries::shelf)?;
        let next = Cursor::behind(&page, usize::try_from(limit).unwrap_or(usize::MAX));
        Ok((page, next))
    }

    async fn read_functions(&self) -> Result<Vec<Arc<str>>, StoreError> {
        let rows = self.read(Query::Functions, &[]).await?;
        self.all(&rows, |row| queries::name(row, 0))
    }

    async fn read_count(&self, function: &str) -> Result<u64, StoreError> {
        self.number(&self.read(Query::Count, &[&function.as_bytes()]).await?)
    }

    async fn sweep_all(&self, now: Millis, limit: usize) -> Result<usize, StoreError> {
        let told: [&(dyn ToSql + Sync); 2] = [&queries::kept(now), &clamped(limit)];
        self.number(&self.rows("sweeping", READ, Query::Sweep, &told).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let connection = self.connection().await?;
        let ping = async {
            let asked = connection.client.simple_query("").await;
            asked.map_err(|error| self.explain("asking for the health of", error))
        };
        self.remote.within("asking for the health of", CONNECT, ping).await?;
        connection.give_back();
        Ok(())
    }

    fn corrupt(&self) -> StoreError {
        let what =
            format!("{}: what is in the schema executor was not written by an executor", self.remote.name);
        StoreError::Corrupt { what }
    }

    fn explain(&self, doing: &str, error: tokio_postgres::Error) -> StoreError {
        explain(&self.remote.name, doing, error)
    }
}

impl StateStore for PostgresStore {
    fn get<'a>(&'a self, entity: &'a Entity) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>> {
        Box::pin(self.remote.run(self.read_value(entity)))
    }

    fn apply<'a>(&'a self, entity: &'a Entity, commit: Commit) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move { self.remote.run(self.commit_all(entity, &commit)).await })
    }

    fn record<'a>(
        &'a self,
        function: &'a str,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(self.remote.run(self.read_record(function, id)))
    }

    fn records<'a>(
        &'a self,
        function: &'a str,
        from: &'a RecordId,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Record>, StoreError>> {
        Box::pin(self.remote.run(self.read_page(function, from, limit)))
    }

    fn due<'a>(
        &'a self,
        functions: &'a [Arc<str>],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(Arc<str>, Record)>, StoreError>> {
        Box::pin(self.remote.run(self.read_due(functions, limit)))
    }

    fn list<'a>(
        &'a self,
        function: &'a str,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(self.remote.run(self.read_list(function, prefix, after, limit)))
    }

    fn shelves(&self, from: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Shelves, StoreError>> {
        Box::pin(self.remote.run(self.read_shelves(from, limit)))
    }

    fn functions(&self) -> BoxFuture<'_, Result<Vec<Arc<str>>, StoreError>> {
        Box::pin(self.remote.run(self.read_functions()))
    }

    fn count<'a>(&'a self, function: &'a str) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(self.remote.run(self.read_count(function)))
    }

    fn sweep(&self, now: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.remote.run(self.sweep_all(now, limit)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.remote.close().await;
            self.pool.close();
            self.pool.manager().part(PARTING).await;
        })
    }

    fn describe(&self) -> String {
        self.remote.name.clone()
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.remote.health(self.ping()))
    }
}

/// Function, room, key and sub.
fn named<'a>(function: &'a str, id: &'a RecordId) -> (&'a [u8], i16, &'a [u8], &'a [u8]) {
    (function.as_bytes(), i16::from(id.room as u8), id.key.as_bytes(), &id.sub)
}

/// Nothing was done, and it may go well the next time.
fn rolled_back(error: &tokio_postgres::Error) -> bool {
    let codes = [&SqlState::T_R_DEADLOCK_DETECTED, &SqlState::T_R_SERIALIZATION_FAILURE];
    error.code().is_some_and(|code| codes.contains(&code))
}

/// What a caller can do about a failure of the server or of the way to it.
///
/// What the server says when it lets nobody in is not repeated, because it names the user.
fn explain(store: &str, doing: &str, error: tokio_postgres::Error) -> StoreError {
    let refused = |why: &str| StoreError::Refused { store: store.to_owned(), why: why.to_owned() };
    let text = error.to_string();
    match error.code().cloned() {
        Some(code) if code.code().starts_with("28") => {
            refused("wrong user or password, or its pg_hba.conf does not let this user in without TLS")
        }
        Some(SqlState::INVALID_CATALOG_NAME) => refused("the database is not there; create it"),
        Some(SqlState::INSUFFICIENT_PRIVILEGE) => refused(
            "the user lacks rights; it needs CREATE on the database once, or to own the schema `executor` with all \
             in it, and CONNECT",
        ),
        Some(SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED) => {
            StoreError::Corrupt { what: format!("{store}: {error}") }
        }
        // The client itself found that it cannot log in; of these errors only the text is public.
        None if ["authentication error", "invalid configuration"]
            .iter()
            .any(|says| text.starts_with(says)) =>
        {
            refused("it asks for a password that the URL does not have, or in a way that is not supported")
        }
        _ => StoreError::unavailable(format!("{doing} {store}"), error),
    }
}
