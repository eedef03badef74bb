//! The one thread that changes the database.
//!
//! # Group commit
//!
//! Making a commit durable costs one sync of the disk, however much is in it. So the
//! writer takes the first commit that waits, then whatever else waits already, and puts
//! all of it into one transaction. It never waits for more to come: a queue of one
//! commits at once, and under load the queue fills while the disk syncs. Versions are
//! checked inside the transaction, before the first write of each commit (see
//! `change.rs`), so a conflict is the answer to one commit and no concern of the others.
//!
//! Answers go out only after COMMIT, conflicts too: a conflict may be with a write of
//! the same group. If COMMIT fails, nothing in the group has happened as far as anybody
//! has seen, all get the cause, and the thread goes on with the next group.
//!
//! # Sweeps
//!
//! What expired is removed in steps, each a transaction of its own and at most
//! [`SWEEP_STEP`] values and as many records, and no more events than the largest commit
//! has records; commits come in between. Whoever asked for the sweep asks for the steps, see
//! there.
//!
//! # Checkpoints
//!
//! The log has to be moved into the database now and then. `SQLite` would do it inside a
//! COMMIT; here it is done after the answers are out, once about
//! [`CHECKPOINT_PAGES`] pages were written. The next group waits for it.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::Guard;
use super::cache::{Cache, Known, News};
use super::change::{self, Expired, Removed, Verdict};
use super::schema::{PAGE_BYTES, classify};
use crate::state::{Commit, Entity, MAX_RECORDS, Millis, RecordWrite, StoreError, Versioned, Write};

/// From this many changes of values and records on, a group takes no more commits.
const GROUP_WRITES: usize = 256;

/// From this many bytes of values and records on, a group takes no more commits.
const GROUP_BYTES: usize = 8 << 20;

/// How many values, and how many records, a step of a sweep removes at most.
pub(super) const SWEEP_STEP: usize = 256;

/// How many pages (1 KiB each) the log gets before it is moved into the database.
///
/// The next group waits meanwhile, which is what this number bounds: measured on a
/// virtual disk with syncs of 0.1 ms, 1000 pages took 3 to 5 ms and 4000 took 10 to 17,
/// with the same throughput within noise.
const CHECKPOINT_PAGES: usize = 2000;

/// A commit on its way.
pub(super) struct Job {
    pub(super) entity: Entity,
    pub(super) commit: Commit,
    pub(super) reply: oneshot::Sender<Result<u64, StoreError>>,
}

/// A step of a sweep on its way.
pub(super) struct Sweep {
    pub(super) now: Millis,
    /// At most [`SWEEP_STEP`].
    pub(super) limit: usize,
    pub(super) reply: oneshot::Sender<Result<Swept, StoreError>>,
}

/// What a step of a sweep did.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// How many values were removed, with all their events.
    pub(super) values: usize,
    /// How many records were, besides these.
    pub(super) records: usize,
    /// Whether there may be more.
    pub(super) more: bool,
}

/// What the writer can be told.
pub(super) enum Command {
    Commit(Job),
    Sweep(Sweep),
    /// Take nothing more, finish what is queued, end.
    Close,
    /// Lets a test break things.
    #[cfg(test)]
    Run(Box<dyn FnOnce(&Connection) + Send>),
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
    /// To be served after the group, before which it was not asked for.
    sweep: Option<Sweep>,
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
        let group = Vec::with_capacity(GROUP_WRITES);
        Self { log, group, sweep: None, commands, cache, _guard: guard }
    }

    /// Serves until told to close, or until all senders are gone. What is in the queue
    /// by then is still committed.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            self.gather(first);
            self.serve();
            self.sweep();
            if self.log.pages >= CHECKPOINT_PAGES {
                self.log.checkpoint("PASSIVE");
            }
        }
        self.log.checkpoint("TRUNCATE");
    }

    /// Puts `first` into the group and what else waits already.
    fn gather(&mut self, first: Command) {
        let (mut writes, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Commit(job) => {
                    writes += 1 + job.commit.records.len();
                    bytes += job.commit.bytes();
                    self.group.push(job);
                }
                Command::Sweep(sweep) => self.sweep = Some(sweep),
                Command::Close => self.commands.close(),
                #[cfg(test)]
                Command::Run(run) => run(&self.log.connection),
            }
            if writes >= GROUP_WRITES || bytes >= GROUP_BYTES || self.sweep.is_some() {
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
                self.cache.learn(news.filter_map(|(job, verdict)| news_of(job, verdict, stamp)));
                for (job, verdict) in self.group.drain(..).zip(verdicts) {
                    // Fails if the caller has left, which is the caller's right.
                    let _ = job.reply.send(answer_of(&verdict));
                }
            }
            Err(error) => {
                let commits = self.group.len();
                let cause = &error as &dyn std::error::Error;
                let store = self.log.path.display();
                tracing::warn!(%store, commits, error = cause, "state was not committed");
                let unsure = |job: &Job| News { entity: job.entity.clone(), known: Known::Unsure, stamp };
                let written = self.group.iter().filter(|job| job.commit.value.is_some());
                self.cache.learn(written.map(unsure));
                for job in self.group.drain(..) {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// As [`Writer::serve`], for the sweep that was gathered, if one was.
    fn sweep(&mut self) {
        let Some(Sweep { now, limit, reply }) = self.sweep.take() else { return };
        let mut found = Vec::new();
        let swept = self.log.sweep(now, limit, &mut found);
        let swept = swept.map_err(|error| classify("sweeping state", error));
        let removed = swept.as_ref().map_or(0, |swept| swept.values);
        let stamp = self.log.sequence;
        let news = found.into_iter().enumerate().map(|(at, entity)| {
            let known = if at < removed { Known::Absent } else { Known::Unsure };
            News { entity, known, stamp }
        });
        self.cache.learn(news);
        if let Err(error) = &swept {
            let (store, cause) = (self.log.path.display(), error as &dyn std::error::Error);
            tracing::warn!(%store, error = cause, "what expired was not removed");
        }
        let _ = reply.send(swept);
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
        let transaction = begin(&self.connection)?;
        let before = self.sequence;
        let mut verdicts = Vec::with_capacity(group.len());
        for Job { entity, commit, .. } in group {
            let number = self.sequence + 1;
            let verdict = change::apply(&transaction, entity, commit, number);
            if !matches!(verdict, Ok(Verdict::Conflict { .. } | Verdict::Stale { .. })) {
                self.sequence = number; // used up, even if this or a later step fails
                self.pages += pages(commit);
            }
            if let Ok(Verdict::Done { cleared, .. }) = verdict {
                self.pages += cleared;
            }
            verdicts.push(verdict?);
        }
        if self.sequence > before {
            self.pages += 1;
            store_sequence(&transaction, self.sequence)?;
        }
        transaction.commit()?; // on any other way out: ROLLBACK
        Ok(verdicts)
    }

    /// Removes what has expired, as one change. Whose values it touched is in `found`, also if it fails: those that it
    /// removed, and then maybe one that it only ended.
    fn sweep(&mut self, now: Millis, limit: usize, found: &mut Vec<Entity>) -> rusqlite::Result<Swept> {
        let transaction = begin(&self.connection)?;
        let expired = Expired::find(&transaction, now, limit)?;
        if expired.is_empty() {
            return Ok(Swept::default());
        }
        found.clone_from(&expired.entities);
        self.sequence += 1; // used up, even if a later step fails
        let Removed { values, records, events, cut } =
            expired.remove(&transaction, self.sequence, MAX_RECORDS)?;
        self.pages += 2 + 2 * (values + records) + events;
        store_sequence(&transaction, self.sequence)?;
        transaction.commit()?;
        found.truncate(values + usize::from(cut));
        Ok(Swept { values, records, more: cut || expired.is_full(limit) })
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

fn begin(connection: &Connection) -> rusqlite::Result<Transaction<'_>> {
    if !connection.is_autocommit() {
        // The last ROLLBACK failed as well. Without this no group would ever begin.
        connection.execute_batch("ROLLBACK")?;
    }
    Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
}

fn store_sequence(transaction: &Transaction<'_>, sequence: u64) -> rusqlite::Result<()> {
    transaction.prepare_cached("UPDATE store SET sequence = ?1 WHERE id = 1")?.execute([sequence])?;
    Ok(())
}

/// How many pages of the log `commit` will take, beside those of the records it clears.
fn pages(commit: &Commit) -> usize {
    let value = match &commit.value {
        Some((_, Write::Put(value))) => 1 + value.bytes.len().div_ceil(PAGE_BYTES),
        Some((_, Write::Delete)) => 1,
        Some((_, Write::Keep)) | None => 0,
    };
    // A record's row, and its place in the index, which is seldom that of the record before.
    let records = commit.records.iter().map(|change| match &change.write {
        RecordWrite::Put { bytes, .. } => 2 + bytes.len() / PAGE_BYTES,
        RecordWrite::Delete => 2,
        RecordWrite::Clear => 0,
    });
    value + records.sum::<usize>()
}

fn answer_of(verdict: &Verdict) -> Result<u64, StoreError> {
    match *verdict {
        Verdict::Done { number, put, .. } => Ok(if put { number } else { 0 }),
        Verdict::Conflict { expected, found } => Err(StoreError::Conflict { expected, found }),
        Verdict::Stale { index, found } => Err(StoreError::Stale { index, found }),
    }
}

/// What `verdict` says about the value of the job's entity. `stamp` is the last number of the group.
fn news_of(job: &Job, verdict: &Verdict, stamp: u64) -> Option<News> {
    let entity = job.entity.clone();
    match (verdict, &job.commit.value) {
        (&Verdict::Done { number, .. }, Some((_, Write::Put(value)))) => {
            let value = Versioned { version: number, value: value.clone() };
            Some(News { entity, known: Known::Present(value), stamp: number })
        }
        (&Verdict::Done { number, .. }, Some((_, Write::Delete))) => {
            Some(News { entity, known: Known::Absent, stamp: number })
        }
        // Should somebody have changed the database from outside, the next try sees it.
        (Verdict::Conflict { .. }, _) => Some(News { entity, known: Known::Unsure, stamp }),
        _ => None,
    }
}
