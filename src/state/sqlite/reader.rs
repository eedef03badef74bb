//! The one thread that reads what the cache does not know.
//!
//! It takes the first read that waits and whatever else waits already, and answers all
//! of them from one read transaction, which the writer neither disturbs nor waits for.
//! What it found goes into the cache with the number of the last change it could see
//! (the cache module says why), and then to whoever asked.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::Guard;
use super::cache::{Cache, Known, News};
use super::schema::{classify, decode, read_sequence};
use crate::state::{Entity, StoreError, Versioned};

/// How many reads may share one transaction. An open read transaction keeps the log
/// from being reused, so it should be short.
const BATCH_READS: usize = 64;

type Answer = Result<Option<Versioned>, StoreError>;

/// A read on its way.
pub(super) struct Read {
    pub(super) entity: Entity,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// What the reader can be told.
pub(super) enum Command {
    Read(Read),
    /// Take nothing more, finish what is queued, end.
    Close,
    /// Lets a test hold the reader up between reading and telling the cache.
    #[cfg(test)]
    Pause(Box<dyn FnOnce() + Send>),
}

/// The reader thread's belongings. The guard is dropped last.
pub(super) struct Reader {
    connection: Connection,
    batch: Vec<Read>,
    commands: mpsc::Receiver<Command>,
    cache: Arc<Cache>,
    #[cfg(test)]
    pause: Option<Box<dyn FnOnce() + Send>>,
    _guard: Guard,
}

impl Reader {
    pub(super) fn new(
        connection: Connection,
        commands: mpsc::Receiver<Command>,
        cache: Arc<Cache>,
        guard: Guard,
    ) -> Self {
        Self {
            connection,
            batch: Vec::with_capacity(BATCH_READS),
            commands,
            cache,
            #[cfg(test)]
            pause: None,
            _guard: guard,
        }
    }

    /// Serves until told to close, or until all senders are gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            self.gather(first);
            self.serve();
        }
    }

    fn gather(&mut self, first: Command) {
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Read(read) => self.batch.push(read),
                Command::Close => self.commands.close(),
                #[cfg(test)]
                Command::Pause(pause) => self.pause = Some(pause),
            }
            if self.batch.len() >= BATCH_READS {
                break;
            }
            next = self.commands.try_recv().ok();
        }
    }

    fn serve(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match read_all(&self.connection, &self.batch) {
            Ok((stamp, answers)) => {
                #[cfg(test)]
                if let Some(pause) = self.pause.take() {
                    pause();
                }
                let found = self.batch.iter().zip(&answers);
                self.cache.learn(found.filter_map(|(read, answer)| news(read, answer, stamp)));
                for (read, answer) in self.batch.drain(..).zip(answers) {
                    // Fails if the caller has left, which is the caller's right.
                    let _ = read.reply.send(answer);
                }
            }
            Err(error) => {
                let (reads, cause) = (self.batch.len(), &error as &dyn std::error::Error);
                tracing::warn!(reads, error = cause, "state was not read");
                for read in self.batch.drain(..) {
                    let _ = read.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Reads everything in one transaction; with it the last change that transaction saw.
fn read_all(connection: &Connection, batch: &[Read]) -> Result<(u64, Vec<Answer>), StoreError> {
    let failed = |error| classify("reading state", error);
    let transaction =
        Transaction::new_unchecked(connection, TransactionBehavior::Deferred).map_err(failed)?;
    let stamp = read_sequence(&transaction).map_err(failed)?;
    let answers = batch.iter().map(|read| read_one(&transaction, &read.entity, stamp)).collect();
    transaction.commit().map_err(failed)?;
    Ok((stamp, answers))
}

fn read_one(transaction: &Transaction<'_>, entity: &Entity, stamp: u64) -> Answer {
    let select = || {
        transaction
            .prepare_cached("SELECT version, kind, value FROM entity WHERE function = ?1 AND key = ?2")?
            .query_row([entity.function.as_bytes(), entity.key.as_bytes()], |row| {
                let bytes = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, bytes))
            })
            .optional()
    };
    let Some((number, kind, bytes)) = select().map_err(|error| classify("reading state", error))? else {
        return Ok(None);
    };
    let version = u64::try_from(number).ok().filter(|version| (1..=stamp).contains(version));
    match (version, decode(kind)) {
        (Some(version), Some(kind)) => Ok(Some(Versioned { version, kind, bytes })),
        _ => Err(StoreError::Corrupt {
            what: format!("{entity:?} has version {number} of {stamp} and kind {kind}"),
        }),
    }
}

/// A value is stamped with its own version, the last change to it; an absence with the
/// last change there was.
fn news(read: &Read, answer: &Answer, seen: u64) -> Option<News> {
    let entity = read.entity.clone();
    match answer {
        Ok(Some(value)) => Some(News { entity, known: Known::Present(value.clone()), stamp: value.version }),
        Ok(None) => Some(News { entity, known: Known::Absent, stamp: seen }),
        Err(error) => {
            tracing::warn!(error = error as &dyn std::error::Error, "state was not read");
            None
        }
    }
}
