//! The one thread that changes the database.
//!
//! # Group commit
//!
//! Making a commit durable costs one sync of the disk, however much is in it. So the
//! writer takes the first commit that waits, then whatever else waits already, and puts
//! all of it into one transaction. It never waits for more to come: a queue of one
//! commits at once, and under load the queue fills while the disk syncs. Each write's
//! version is checked inside the transaction, so a conflict is the answer to one commit
//! and no concern of the others.
//!
//! Answers go out only after COMMIT, conflicts too: a conflict may be with a write of
//! the same group. If COMMIT fails, nothing in the group has happened as far as anybody
//! has seen, all get the cause, and the thread goes on with the next group.
//!
//! # Checkpoints
//!
//! The log has to be moved into the database now and then. `SQLite` would do it inside a
//! COMMIT; here it is done after the answers are out, once about
//! [`CHECKPOINT_PAGES`] pages were written. The next group waits for it.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot};

use super::Guard;
use super::cache::{Cache, Known, News};
use super::schema::{PAGE_BYTES, classify, encode};
use crate::state::{Entity, StoreError, Versioned, Write};

/// How many commits may share one transaction.
const GROUP_WRITES: usize = 256;

/// From this many value bytes on, a group takes no more commits.
const GROUP_BYTES: usize = 8 << 20;

/// How many pages (1 KiB each) the log gets before it is moved into the database.
///
/// The next group waits meanwhile, which is what this number bounds: measured on a
/// virtual disk with syncs of 0.1 ms, 1000 pages took 3 to 5 ms and 4000 took 10 to 17,
/// with the same throughput within noise.
const CHECKPOINT_PAGES: usize = 2000;

/// A commit on its way.
pub(super) struct Job {
    pub(super) entity: Entity,
    pub(super) expected: u64,
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<Result<u64, StoreError>>,
}

/// What the writer can be told.
pub(super) enum Command {
    Commit(Job),
    /// Take nothing more, finish what is queued, end.
    Close,
    /// Lets a test break things.
    #[cfg(test)]
    Run(Box<dyn FnOnce(&Connection) + Send>),
}

/// What became of one write inside the transaction.
enum Verdict {
    Put { version: u64 },
    Deleted { stamp: u64 },
    Conflict { found: u64 },
}

/// The writer thread's belongings.
///
/// Dropped (also by a panic) in this order: the cache is told that it is on its own
/// (see `drop`), the database is closed, whoever waits for an answer learns that none
/// comes, and last the guard gives the file back.
pub(super) struct Writer {
    pub(super) log: Log,
    /// The commits being served.
    group: Vec<Job>,
    commands: mpsc::Receiver<Command>,
    cache: Arc<Cache>,
    _guard: Guard,
}

/// The database as the writer sees it.
pub(super) struct Log {
    connection: Connection,
    path: PathBuf,
    /// The last number given to a change. Ahead of the stored one after a failed group:
    /// numbers are skipped rather than given twice.
    sequence: u64,
    /// Pages written since the last checkpoint, estimated from above.
    pages: usize,
}

impl Writer {
    pub(super) fn new(log: Log, commands: mpsc::Receiver<Command>, cache: Arc<Cache>, guard: Guard) -> Self {
        Self { log, group: Vec::with_capacity(GROUP_WRITES), commands, cache, _guard: guard }
    }

    /// Serves until told to close, or until all senders are gone. What is in the queue
    /// by then is still committed.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            self.gather(first);
            self.serve();
            if self.log.pages >= CHECKPOINT_PAGES {
                self.log.checkpoint("PASSIVE");
            }
        }
        self.log.checkpoint("TRUNCATE");
    }

    /// Puts `first` into the group and what else waits already.
    fn gather(&mut self, first: Command) {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Commit(job) => {
                    bytes += value_bytes(&job.write);
                    self.group.push(job);
                }
                Command::Close => self.commands.close(),
                #[cfg(test)]
                Command::Run(run) => run(&self.log.connection),
            }
            if self.group.len() >= GROUP_WRITES || bytes >= GROUP_BYTES {
                break;
            }
            next = self.commands.try_recv().ok();
        }
    }

    /// Commits the group, tells the cache, answers everybody; in this order, so that who
    /// has an answer also reads the new state.
    fn serve(&mut self) {
        if self.group.is_empty() {
            return;
        }
        let committed = self.log.commit(&self.group);
        let stamp = self.log.sequence;
        match committed {
            Ok(verdicts) => {
                let news = self.group.iter().zip(&verdicts);
                self.cache.learn(news.map(|(job, verdict)| verdict.news(job, stamp)));
                for (job, verdict) in self.group.drain(..).zip(verdicts) {
                    // Fails if the caller has left, which is the caller's right.
                    let _ = job.reply.send(verdict.answer(job.expected));
                }
            }
            Err(error) => {
                let commits = self.group.len();
                let cause = &error as &dyn std::error::Error;
                let store = self.log.path.display();
                tracing::warn!(%store, commits, error = cause, "state was not committed");
                let unsure = |job: &Job| News { entity: job.entity.clone(), known: Known::Unsure, stamp };
                self.cache.learn(self.group.iter().map(unsure));
                for job in self.group.drain(..) {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.cache.retire();
    }
}

impl Log {
    pub(super) fn new(connection: Connection, path: PathBuf, sequence: u64) -> Self {
        Self { connection, path, sequence, pages: 0 }
    }

    /// One transaction for the whole group; a verdict for each, or nothing done.
    fn commit(&mut self, group: &[Job]) -> Result<Vec<Verdict>, StoreError> {
        self.try_commit(group).map_err(|error| classify("committing state", error))
    }

    fn try_commit(&mut self, group: &[Job]) -> rusqlite::Result<Vec<Verdict>> {
        if !self.connection.is_autocommit() {
            // The last ROLLBACK failed as well. Without this no group would ever begin.
            self.connection.execute_batch("ROLLBACK")?;
        }
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let before = self.sequence;
        let mut verdicts = Vec::with_capacity(group.len());
        for job in group {
            let number = self.sequence + 1;
            let verdict = apply(&transaction, job, number);
            if !matches!(verdict, Ok(Verdict::Conflict { .. })) {
                self.sequence = number; // used up, even if this or a later step fails
                self.pages += 1 + value_bytes(&job.write).div_ceil(PAGE_BYTES);
            }
            verdicts.push(verdict?);
        }
        if self.sequence > before {
            self.pages += 1;
            transaction
                .prepare_cached("UPDATE store SET sequence = ?1 WHERE id = 1")?
                .execute([self.sequence])?;
        }
        transaction.commit()?; // on any other way out: ROLLBACK
        Ok(verdicts)
    }

    /// Moves the log into the database. A failure loses nothing and is only logged: the
    /// log grows and the next group tries again.
    fn checkpoint(&mut self, mode: &str) {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let numbers = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        match self.connection.query_row(&sql, [], numbers) {
            Ok((log, moved)) => self.pages = usize::try_from(log - moved).unwrap_or(0),
            Err(error) => {
                let cause = &error as &dyn std::error::Error;
                let store = self.path.display();
                tracing::warn!(%store, error = cause, "the state log was not checkpointed");
            }
        }
    }
}

fn value_bytes(write: &Write) -> usize {
    match write {
        Write::Put { bytes, .. } => bytes.len(),
        Write::Delete => 0,
    }
}

impl Verdict {
    fn answer(&self, expected: u64) -> Result<u64, StoreError> {
        match *self {
            Self::Put { version } => Ok(version),
            Self::Deleted { .. } => Ok(0),
            Self::Conflict { found } => Err(StoreError::Conflict { expected, found }),
        }
    }

    /// What this verdict says about the job's entity. A conflict makes it read again:
    /// should somebody have changed the database from outside, the next try sees it.
    fn news(&self, job: &Job, stamp: u64) -> News {
        let entity = job.entity.clone();
        match (self, &job.write) {
            (&Self::Put { version }, Write::Put { kind, bytes }) => {
                let value = Versioned { version, kind: *kind, bytes: bytes.clone() };
                News { entity, known: Known::Present(value), stamp: version }
            }
            (&Self::Deleted { stamp }, _) => News { entity, known: Known::Absent, stamp },
            _ => News { entity, known: Known::Unsure, stamp },
        }
    }
}

/// Checks and writes in one statement; asks why only if that changed nothing.
fn apply(transaction: &Transaction<'_>, job: &Job, number: u64) -> rusqlite::Result<Verdict> {
    let (function, key) = (job.entity.function.as_bytes(), job.entity.key.as_bytes());
    // A version that SQLite cannot hold is one that nobody has.
    let expected = i64::try_from(job.expected).unwrap_or(-1);
    let changed = match (&job.write, expected) {
        (Write::Put { kind, bytes }, 0) => transaction
            .prepare_cached(
                "INSERT INTO entity (function, key, version, kind, value)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            )?
            .execute(params![function, key, number, encode(*kind), &bytes[..]])?,
        (Write::Put { kind, bytes }, _) => transaction
            .prepare_cached(
                "UPDATE entity SET version = ?3, kind = ?4, value = ?5
                 WHERE function = ?1 AND key = ?2 AND version = ?6",
            )?
            .execute(params![function, key, number, encode(*kind), &bytes[..], expected])?,
        (Write::Delete, 0) => 0,
        (Write::Delete, _) => transaction
            .prepare_cached("DELETE FROM entity WHERE function = ?1 AND key = ?2 AND version = ?3")?
            .execute(params![function, key, expected])?,
    };
    debug_assert!(changed <= 1, "one entity is one row");
    if changed == 1 {
        return Ok(match job.write {
            Write::Put { .. } => Verdict::Put { version: number },
            Write::Delete => Verdict::Deleted { stamp: number },
        });
    }
    let found: u64 = transaction
        .prepare_cached("SELECT version FROM entity WHERE function = ?1 AND key = ?2")?
        .query_row([function, key], |row| row.get(0))
        .optional()?
        .unwrap_or(0);
    match job.write {
        Write::Delete if found == 0 && expected == 0 => Ok(Verdict::Deleted { stamp: number }),
        _ => Ok(Verdict::Conflict { found }),
    }
}
