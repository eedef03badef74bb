//! What is in the database: the schema `executor`, made and brought up to date by ourselves.
//!
//! # Why versions only grow
//!
//! Each number is drawn by the statement that writes the row, at a time when nobody else can write a newer
//! one of the same entity first:
//!
//! - A change needs the row with the expected version. Whoever drew a number for it and then had to wait for
//!   another change finds another version, and writes nothing.
//! - Where there is no row there is nothing to wait for: one executor could draw 6 and be slow, another draw
//!   7, write it and delete it, and the first then write 6. So the absent entity is locked, by a hash of its
//!   name and until the end of the transaction, before the number is drawn.
//!
//! The sequence must not be cached (`CACHE 1`, the default): each connection would have its own range.
//! Numbers of transactions that fail are lost, which is right: none is given twice.
//!
//! Locks of names are held in the server's memory, which is for some thousands: a commit takes at most 18.
//!
//! # Why a function in the database
//!
//! A commit has to say what it found if it was refused, of a moment after the refusal. In one statement the
//! search would see what the statement saw at its begin; each statement of a function sees what is there by
//! then. So it is one round trip with the right answer.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{StoreError, explain};

/// Step n brings the schema from version n to n + 1. Only ever append.
///
/// Names are bytea because text cannot hold NUL and compares by the rules of a language. A part of each page
/// is left free, so that a changed row finds room next to the old one and its index stays as it is.
const STEPS: &[&str] = &["
    DO $$ BEGIN
        -- IF NOT EXISTS would need the right to create it also where it is.
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'executor') THEN
            CREATE SCHEMA executor;
        END IF;
    END $$;
    CREATE TABLE executor.store (
        id     boolean PRIMARY KEY DEFAULT true CHECK (id),
        schema integer NOT NULL
    );
    INSERT INTO executor.store (schema) VALUES (0);
    CREATE SEQUENCE executor.versions AS bigint;
    CREATE TABLE executor.entity (
        function bytea    NOT NULL,
        key      bytea    NOT NULL,
        version  bigint   NOT NULL,
        kind     smallint NOT NULL,
        value    bytea    NOT NULL,
        PRIMARY KEY (function, key)
    ) WITH (fillfactor = 80);
    CREATE FUNCTION executor.commit(f bytea, k bytea, expected bigint, new_kind smallint, new_value bytea)
    RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        done bigint;
        found_version bigint;
    BEGIN
        LOOP
            IF new_kind IS NULL THEN
                DELETE FROM executor.entity
                    WHERE function = f AND key = k AND version = expected RETURNING 0 INTO done;
            ELSIF expected = 0 THEN
                PERFORM pg_advisory_xact_lock(hashtextextended(encode(f, 'hex') || '/' || encode(k, 'hex'), 0));
                INSERT INTO executor.entity (function, key, version, kind, value)
                    VALUES (f, k, nextval('executor.versions'), new_kind, new_value)
                    ON CONFLICT (function, key) DO NOTHING RETURNING version INTO done;
            ELSE
                UPDATE executor.entity
                    SET version = nextval('executor.versions'), kind = new_kind, value = new_value
                    WHERE function = f AND key = k AND version = expected RETURNING version INTO done;
            END IF;
            IF done IS NOT NULL THEN
                RETURN done;
            END IF;
            SELECT version INTO found_version FROM executor.entity WHERE function = f AND key = k;
            found_version := coalesce(found_version, 0);
            IF found_version <> expected THEN
                RETURN -1 - found_version;
            ELSIF new_kind IS NULL THEN
                RETURN 0;
            END IF;
            -- It became what was expected only after the attempt: try again.
        END LOOP;
    END $$;
", include_str!("records.sql")];

/// How long a step may take. The usual limit of a connection is for what somebody waits for.
const PATIENCE: &str = "SET LOCAL statement_timeout = '30min'";

/// One executor at a time makes or updates the schema: "executor" in ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7311146992964923250)";

/// Whether the schema is the one of this release.
pub(super) async fn is_current(store: &str, client: &Client) -> Result<bool, StoreError> {
    Ok(version(store, client).await? == STEPS.len())
}

/// Brings the schema up to date. An index of a large table takes its time.
pub(super) async fn update(store: &str, client: &mut Client) -> Result<(), StoreError> {
    let failed = |error: tokio_postgres::Error| match error.code() {
        Some(&SqlState::DUPLICATE_TABLE | &SqlState::DUPLICATE_FUNCTION | &SqlState::DUPLICATE_OBJECT) => {
            let why = "its schema `executor` holds something else; use another database".to_owned();
            StoreError::Foreign { store: store.to_owned(), why }
        }
        _ => explain(store, "preparing the tables of", error),
    };
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.batch_execute(PATIENCE).await.map_err(failed)?;
    transaction.batch_execute(LOCK).await.map_err(failed)?;
    // Somebody may have been faster.
    let version = version(store, &transaction).await?;
    for step in &STEPS[version..] {
        transaction.batch_execute(step).await.map_err(failed)?;
    }
    let steps = i32::try_from(STEPS.len()).expect("a handful");
    transaction.execute("UPDATE executor.store SET schema = $1", &[&steps]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    if version < STEPS.len() {
        tracing::info!(
            store,
            from = version,
            to = STEPS.len(),
            "the tables of the state store were prepared"
        );
    }
    Ok(())
}

/// The steps done, at most those known.
async fn version(store: &str, client: &impl tokio_postgres::GenericClient) -> Result<usize, StoreError> {
    let failed = |error| explain(store, "looking for the tables of", error);
    // Not `to_regclass`: it may answer from what this connection saw before it had the lock.
    let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables
                                WHERE schemaname = 'executor' AND tablename = 'store')";
    if !client.query_one(there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(0);
    }
    let row =
        client.query_one("SELECT schema FROM executor.store", &[]).await.map_err(|error| {
            match error.code() {
                Some(&SqlState::UNDEFINED_COLUMN) => {
                    let why = "its schema `executor` holds something else; use another database".to_owned();
                    StoreError::Foreign { store: store.to_owned(), why }
                }
                _ => failed(error),
            }
        })?;
    let found = u32::try_from(row.try_get::<_, i32>(0).unwrap_or(-1)).unwrap_or(u32::MAX);
    match usize::try_from(found) {
        Ok(steps) if steps <= STEPS.len() => Ok(steps),
        _ => Err(StoreError::TooNew { store: store.to_owned(), found, supported: STEPS.len() as u32 }),
    }
}

/// Warns if the server answers before a commit is on its disk. What is bearable is for the operator to say.
pub(super) async fn check_durability(store: &str, client: &Client) {
    let settings = "SELECT current_setting('fsync'), current_setting('synchronous_commit')";
    let Ok(row) = client.query_one(settings, &[]).await else { return };
    for (at, name) in ["fsync", "synchronous_commit"].into_iter().enumerate() {
        if row.try_get::<_, &str>(at).is_ok_and(|value| value == "off") {
            let what = "a crash of the server can lose state that was acknowledged";
            tracing::warn!(store, "{name} is off in PostgreSQL: {what}");
        }
    }
}
